"""Rows that come and go against each alone: `generate`, captures, edits, sampling, stop texts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from assay import add, project_out
from assay.errors import ShapeError, SiteError, UsageError
from assay.model.context import context_length
from assay.model.stream import Picking, Stream, penalised, sample
from assay.model.written import Written
from conftest import FAMILIES, tiny

SITE = "resid_post.1"
PROMPTS = [[5, 6, 7], [9, 8, 7, 6, 5, 4, 3], [11], [30, 31, 32, 33, 34], [40, 41]]
NINE = Picking(max_new_tokens=9, stop_ids=())


def run(stream, joins):
    """Drive a stream; `joins[t]`: what joins before step t, as (prompt, picking, edits). Tokens, activations, ends by row."""
    tokens, held, finish, at = {}, {}, {}, 0
    while stream.busy or at <= max(joins):
        for prompt, picking, edits in joins.get(at, ()):
            number = stream.join(prompt, picking, edits)
            tokens[number], held[number] = [], []
        for step in stream.step():
            tokens[step.row] += [] if step.token is None else [step.token]
            if stream.sites:
                assert step.start == sum(map(len, held[step.row]))  # nothing twice, nothing left out
                held[step.row].append(step.captured[stream.sites[0]])
            finish[step.row] = step.finish
        at += 1
    return tokens, {row: torch.cat(parts) for row, parts in held.items() if parts}, finish


def alone(model, prompt, n=9):
    out = model.hf.generate(torch.tensor([prompt]), max_new_tokens=n, do_sample=False, pad_token_id=0, eos_token_id=None)
    return out[0, len(prompt) :].tolist()


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_rows_that_join_late_get_what_they_get_alone(family):
    model = tiny(family)
    stream = Stream(model, [SITE], width=3)
    joins = {0: [(PROMPTS[0], NINE, ())], 2: [(p, NINE, ()) for p in PROMPTS[1:3]], 3: [(p, NINE, ()) for p in PROMPTS[3:]]}
    tokens, held, finish = run(stream, joins)
    for number, prompt in enumerate(PROMPTS):
        assert tokens[number] == alone(model, prompt)
        whole = model.capture([prompt + tokens[number]], SITE)[SITE][0]
        torch.testing.assert_close(held[number], whole, atol=2e-5, rtol=1e-4)  # every token, the last one too
        assert finish[number] == "length"
    assert (stream.running, stream.waiting, stream._slots.columns) == (0, 0, 0)


@pytest.fixture(scope="module")
def llama():
    return tiny("llama")


@given(st.data())
@settings(max_examples=12, deadline=None)
def test_whoever_joins_or_leaves_changes_nothing(llama, data):
    stream, expected, got, left = Stream(llama, width=data.draw(st.integers(1, 4))), {}, {}, set()
    for _ in range(data.draw(st.integers(3, 12))):
        what = data.draw(st.sampled_from(["join", "leave", "step", "step"]))
        if what == "join":
            prompt = data.draw(st.lists(st.integers(3, 198), min_size=1, max_size=12))
            n = data.draw(st.integers(1, 20))
            number = stream.join(prompt, Picking(n, stop_ids=()))
            expected[number], got[number] = (prompt, n), []
        elif what == "leave" and got:
            number = data.draw(st.sampled_from(sorted(got)))
            stream.leave(number)
            left.add(number)
        else:
            for step in stream.step():
                got[step.row].append(step.token)
    while stream.busy:
        for step in stream.step():
            got[step.row].append(step.token)
    for number, (prompt, n) in expected.items():
        want = alone(llama, prompt, n)
        assert got[number] == want if number not in left else got[number] == want[: len(got[number])]


@pytest.mark.parametrize("slow", [False, True])
def test_without_a_proved_cache_rows_are_run_whole(llama, slow):
    stream = Stream(llama, [SITE], width=2)
    stream.cached = not slow
    tokens, held, _ = run(stream, {0: [(p, NINE, [add(SITE, 3.0, positions=[-1])]) for p in PROMPTS]})
    for number, prompt in enumerate(PROMPTS):
        want = llama.generate([prompt], max_new_tokens=9, edits=[add(SITE, 3.0, positions=[-1])], sites=[SITE])
        assert tokens[number][: len(want.tokens[0])] == want.tokens[0]
        n = len(want.activations.rows(SITE)[0])
        torch.testing.assert_close(held[number][:n], want.activations.rows(SITE)[0], atol=2e-5, rtol=1e-4)


@pytest.mark.slow
def test_the_135m_model_says_the_same_whoever_is_there(smollm2):
    texts = ["The capital of France is", "Once upon a time there was a", "def add(a, b):", "Water boils when"]
    prompts = smollm2.tokens(texts)
    want = smollm2.generate(prompts, max_new_tokens=12).tokens
    stream = Stream(smollm2, ["resid_post.15"], width=3)
    tokens, _, _ = run(stream, {at * 2: [(prompt, Picking(12), ())] for at, prompt in enumerate(prompts)})
    assert [tokens[at] for at in range(4)] == want


def test_edits_belong_to_their_row(llama):
    push = 4 * torch.randn(32, generator=torch.Generator().manual_seed(1))
    sets = [[], [add(SITE, push)], [add(SITE, push, phase="generated")], [project_out(SITE, push, phase="prompt")], []]
    stream = Stream(llama, [SITE])
    tokens, held, _ = run(stream, {number: [(p, NINE, e)] for number, (p, e) in enumerate(zip(PROMPTS, sets, strict=True))})
    for number, (prompt, edits) in enumerate(zip(PROMPTS, sets, strict=True)):
        want = llama.generate([prompt], max_new_tokens=9, edits=edits, sites=[SITE])
        n = len(want.tokens[0])
        assert tokens[number][:n] == want.tokens[0]
        seen = want.activations.rows(SITE)[0]
        torch.testing.assert_close(held[number][: len(seen)], seen, atol=2e-5, rtol=1e-4)


def test_an_edit_that_begins_midway_holds_from_there(llama):
    push, prompt = 4 * torch.randn(32, generator=torch.Generator().manual_seed(1)), PROMPTS[1]
    stream = Stream(llama, [SITE])
    number, held = stream.join(prompt, NINE), []
    stream.join(PROMPTS[2], NINE)
    for at in range(10):
        if at == 4:
            stream.edit(number, [add(SITE, push)])
        held += [step.captured[stream.sites[0]] for step in stream.step() if step.row == number]
    tokens = alone(llama, prompt)
    plain = llama.capture([prompt + tokens], SITE)[SITE][0]
    got = torch.cat(held)
    assert torch.allclose(got[: len(prompt) + 3], plain[: len(prompt) + 3], atol=2e-5)
    assert not torch.allclose(got[len(prompt) + 3], plain[len(prompt) + 3], atol=0.1)


def test_sampling_is_the_row_s_own(llama):
    picking = Picking(9, temperature=1.0, top_p=0.9, seed=7, stop_ids=())
    first, _, _ = run(Stream(llama), {0: [(PROMPTS[0], picking, ())]})
    others = [(p, Picking(5, temperature=2.0, seed=n, stop_ids=()), ()) for n, p in enumerate(PROMPTS)]
    second, _, _ = run(Stream(llama), {0: others, 3: [(PROMPTS[0], picking, ())]})
    assert second[len(others)] == first[0]
    third, _, _ = run(Stream(llama), {0: [(PROMPTS[0], Picking(9, 1.0, 0.9, 8, ()), ())]})
    assert third[0] != first[0]


def test_samples_have_the_stated_probabilities():
    logits, random = torch.tensor([0.5, 0.3, 0.15, 0.05]).log(), torch.Generator().manual_seed(0)
    drawn = torch.tensor([sample(logits, 1.0, 0.75, random) for _ in range(4000)]).bincount(minlength=4) / 4000
    torch.testing.assert_close(drawn, torch.tensor([0.625, 0.375, 0, 0]), atol=0.03, rtol=0)
    assert {sample(logits, 1.0, 0.4, random) for _ in range(50)} == {0}  # the first token is always among them
    hot = torch.tensor([sample(logits, 100.0, 1.0, random) for _ in range(4000)]).bincount(minlength=4) / 4000
    torch.testing.assert_close(hot, torch.full((4,), 0.25), atol=0.03, rtol=0)


def test_a_repetition_penalty_of_the_model_holds(llama):
    from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor as Reference

    logits, seen = torch.randn(199, generator=torch.Generator().manual_seed(2)), [3, 5, 5, 9]
    torch.testing.assert_close(penalised(logits, seen, 1.3), Reference(1.3)(torch.tensor([seen]), logits[None].clone())[0])
    model = tiny("llama")
    model.hf.generation_config.repetition_penalty = 1.7
    tokens, _, _ = run(Stream(model), {0: [(p, NINE, ()) for p in PROMPTS]})
    assert [tokens[n] for n in range(5)] == [alone(model, p) for p in PROMPTS] != [alone(llama, p) for p in PROMPTS]


def test_a_stop_token_ends_a_row_and_closing_runs_the_last_token(llama):
    want = alone(llama, PROMPTS[0])
    stop = want[4]
    tokens, _, finish = run(Stream(llama, [SITE]), {0: [(PROMPTS[0], Picking(9, stop_ids=(stop,)), ())]})
    assert (tokens[0], finish[0]) == (want[: want.index(stop) + 1], "stop")
    stream = Stream(llama, [SITE])
    number = stream.join(PROMPTS[0], NINE)
    stream.step()
    stream.close(number)
    (last,) = stream.step()
    assert (last.token, last.finish, last.start, len(last.captured[stream.sites[0]])) == (None, "stop", len(PROMPTS[0]), 1)
    assert not stream.busy


def test_wrong_arguments_are_named(llama):
    stream = Stream(llama)
    assert context_length(llama.hf) == 64
    for call, name in [
        (lambda: stream.join([5] * 60, Picking(5)), "prompt"), (lambda: Picking(0), "max_new_tokens"),
        (lambda: Picking(temperature=-1.0), "temperature"), (lambda: Picking(top_p=0.0), "top_p"),
        (lambda: Stream(llama, width=0), "width"), (lambda: stream.join([5], edits=[add(SITE, 1.0, rows=[0])]), "edits"),
        (lambda: stream.join([5], edits=[add(SITE, torch.zeros(1, 32))]), "edits"),
    ]:  # fmt: skip
        with pytest.raises(UsageError, match=f"^{name}: got"):
            call()
    with pytest.raises(SiteError, match="pattern"):
        Stream(llama, ["pattern.1"])
    with pytest.raises(ShapeError, match="direction"):
        stream.join([5], edits=[project_out(SITE, torch.ones(7))])
    assert not stream.busy and stream.step() == []


# text ----------------------------------------------------------------------------------------------


def letters(tokens):
    """A tokenizer of bytes: letters beyond ASCII take several tokens."""
    return bytes(tokens).decode("utf-8", "replace")


@given(st.text(max_size=30), st.lists(st.text(min_size=1, max_size=4), max_size=3))
def test_pieces_are_the_text_before_the_first_stop(text, stops):
    written, pieces = Written(letters, stops), []
    for token in text.encode():
        pieces.append(written.push(token))
        assert not any(stop in "".join(pieces) for stop in stops)
    pieces.append(written.end())
    places = [text.find(stop) for stop in stops if stop in text]
    ends = [place + len(stop) for stop in stops if (place := text.find(stop)) >= 0]
    first = min((place for place in places), default=len(text))
    got = "".join(pieces)
    assert written.stopped == bool(places) and got == written.text
    # the stop that is complete first ends the text; one that began earlier and is longer may still be open then
    assert got == text if not places else got == text[: len(got)] and first <= len(got) <= min(ends)


@pytest.mark.parametrize("temperature, logits, expected", [
    (1e-40, [1.0, 3.0, 2.0], 1), (1.0, [1.0, torch.nan, 2.0], 2), (1.0, [1.0, 2.0, torch.inf], 2)])  # fmt: skip
def test_the_likeliest_is_picked_where_chances_are_no_numbers(temperature, logits, expected):
    """At temperatures near 0, and of a model that overflows: nothing else that runs beside it may fail for it."""
    assert sample(torch.tensor(logits), temperature, 0.9, torch.Generator().manual_seed(0)) == expected


def test_half_a_letter_and_half_a_stop_are_held_back():
    written = Written(letters, ["\nUser:"])
    assert [written.push(t) for t in "é".encode()] == ["", "é"]
    assert [written.push(t) for t in b"\nU"] == ["", ""] and written.push(ord("p")) == "\nUp"
    assert [written.push(t) for t in b"a\nUser:"] == ["a", *[""] * 6] and written.stopped
    assert written.end() == "" == written.push(ord("x"))


def test_a_real_tokenizer_gives_its_own_text(glass):
    text = "The café — naïve “quotes”, 東京 and 🙂 in one line.\n  Two  spaces."
    tokens = glass.tokens(text)[0]
    written = Written(glass.text)
    assert "".join([*map(written.push, tokens), written.end()]) == glass.text(tokens)


@given(st.lists(st.integers(3, 1023), max_size=40))
@settings(max_examples=60, deadline=None)
def test_any_tokens_of_a_real_tokenizer_give_its_own_text(glass, tokens):
    written = Written(glass.text)
    assert "".join([*map(written.push, tokens), written.end()]) == glass.text(tokens)
