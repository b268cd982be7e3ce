"""Dose and response: batches of pushes against raw hooks, damage against its definition, and known truths in a toy model."""

import dataclasses
import io
import math

import numpy as np
import pytest
import torch

from assay.data.metrics import Metric
from assay.data.prepare import prepare
from assay.errors import TaskError, UsageError
from assay.evidence.source import MemorySource
from assay.records import Example, Pair
from assay.steer import run
from assay.steer.apply import edits
from assay.steer.directions import Direction, from_vector
from assay.steer.dose import (
    Bars,
    Bench,
    Point,
    broken,
    choose,
    cliff,
    grid_of,
    intact,
    measure_curve,
)  # fmt: skip
from assay.steer.effects import (
    Effect,
    How,
    Push,
    effect_of,
    matched,
    other_layers,
    percentile_of,
    random_directions,
    reversed_share,
    scores,
    size_of,
    slopes,
)  # fmt: skip
from assay.steer.fluency import Continuation, continuations, distinct, openings, sequence_kl, surprisal
from assay.steer.judge import train_judge
from assay.steer.run import Behaviour, SteerPlan, choose_direction, confirm, steer
from assay.steer.side_effects import BOUND, other_tasks, refusal_overlap
from assay.steer.turns import over_turns
from assay.testing.effect_models import (
    FILLERS,
    TOPICS,
    mood_source,
    neutral_texts,
    part_direction,
    planted_effects,
)  # fmt: skip
from conftest import tiny

DOSES = (-0.2, -0.1, -0.05, 0.05, 0.1, 0.2)
PROMPTS = [[5, 9, 11, 3], [7, 8, 2, 4, 6, 9], [10, 20]]


def given(site: str, vector: torch.Tensor) -> Direction:
    return Direction(site, torch.nn.functional.normalize(vector.float(), dim=0), 1.0, "given")


def noise(width: int, seed: int) -> torch.Tensor:
    return torch.randn(width, generator=torch.Generator().manual_seed(seed))


# batches of pushes -------------------------------------------------------------------------------


def by_hand(model, ids, layer, change):
    """Last logits of one prompt with a raw hook on a block's output."""

    def hook(module, args, output):
        hidden = output[0] if isinstance(output, tuple) else output
        return (change(hidden), *output[1:]) if isinstance(output, tuple) else change(hidden)

    handle = model.hf.model.layers[layer].register_forward_hook(hook)
    try:
        with torch.no_grad():
            return model.hf(torch.tensor([ids])).logits[0]
    finally:
        handle.remove()


def changed(mode, s, norm, u):
    """What a push does to activations, from the definition."""
    along = lambda x: (x @ u)[..., None]  # noqa: E731
    return {
        "add": lambda x: x + s * norm * u,
        "clamp": lambda x: x + (s * norm - along(x)) * u,
        "project_out": lambda x: x - s * along(x) * u,
        "cap": lambda x: x - (along(x) - s * norm).clamp_min(0) * u,
        "floor": lambda x: x + (s * norm - along(x)).clamp_min(0) * u,
    }[mode]


@pytest.mark.parametrize("mode", ["add", "clamp", "project_out", "cap", "floor"])
def test_pushes_of_one_batch_do_not_see_each_other(mode):
    model = tiny("llama")
    first, second = given("resid_post.1", noise(32, 1)), given("resid_post.1", noise(32, 2))
    pushes = [Push(first, 0.5), Push(second, -0.3), Push(first, 0.0), Push(first, -0.2), Push(second, 0.9)]
    metric = Metric("logit_diff", [(3,)] * 3, [(4,)] * 3)
    how = How(2.0, mode)
    found = scores(model, PROMPTS, metric, pushes, how)
    for push, row in zip(pushes, found, strict=True):
        change = changed(mode, push.strength, 2.0, push.direction.vector) if push.strength else lambda x: x
        for ids, value in zip(PROMPTS, row, strict=True):
            logits = by_hand(model, ids, 1, change)[-1]
            assert float(value) == pytest.approx(float(logits[3] - logits[4]), abs=1e-5)
    alone = torch.cat([scores(model, PROMPTS, metric, [push], how) for push in pushes])
    assert torch.allclose(found, alone, atol=1e-5)


def test_only_the_last_position_or_all_are_pushed():
    model, direction = tiny("llama"), given("resid_post.0", noise(32, 1))
    metric = Metric("logit_diff", [(3,)] * 3, [(4,)] * 3)

    def at_last(x):
        x = x.clone()
        x[:, -1] += 1.5 * direction.vector
        return x

    found = scores(model, PROMPTS, metric, [Push(direction, 1.5)], How(1.0, positions="last"))[0]
    for ids, value in zip(PROMPTS, found, strict=True):
        logits = by_hand(model, ids, 0, at_last)[-1]
        assert float(value) == pytest.approx(float(logits[3] - logits[4]), abs=1e-5)
    generated = scores(model, PROMPTS, metric, [Push(direction, 1.5)], How(1.0, phase="generated"))[0]
    assert torch.allclose(generated, found, atol=1e-5)  # what predicts the first new token counts as generated
    with pytest.raises(UsageError, match="positions: got 'first'"):
        How(1.0, positions="first")
    with pytest.raises(UsageError, match="directions at one site"):
        scores(model, PROMPTS, metric, [Push(direction, 1.0), Push(given("resid_post.1", noise(32, 1)), 1.0)], How(1.0))


def test_many_chunks_give_what_one_gives(monkeypatch):
    model, direction = tiny("llama"), given("resid_post.1", noise(32, 1))
    metric = Metric("logit_diff", [(3,)] * 3, [(4,)] * 3)
    pushes = [Push(direction, s / 10) for s in range(-8, 9)]
    whole = scores(model, PROMPTS, metric, pushes, How(1.0))
    monkeypatch.setattr("assay.steer.effects.ROWS", 7)
    assert torch.allclose(scores(model, PROMPTS, metric, pushes, How(1.0)), whole, atol=1e-5)


# text --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def toy():
    return planted_effects()


def test_sequence_kl_is_its_definition_at_every_position(toy):
    direction = from_vector(toy, part_direction("mood", "side"), "resid_post.0")
    texts = [*neutral_texts(5), "f1 f2 f3"]
    pushes = [Push(direction, s) for s in (0.0, 0.2, -0.4)]
    found = sequence_kl(toy, texts, pushes, How(10.0))
    assert found.shape == (3, 6) and float(found[0].max()) < 1e-6
    for row, push in enumerate(pushes):
        for column, text in enumerate(texts):
            plain, steered = (torch.log_softmax(z, -1) for z in _logits(toy, text, push.strength * 10 * direction.vector))
            expected = (plain.exp() * (plain - steered)).sum(-1).mean()
            assert float(found[row, column]) == pytest.approx(float(expected), abs=1e-5)
    assert float(found[1].mean()) > 1e-4
    last = sequence_kl(toy, texts, pushes, How(10.0, positions="last"))  # nothing changes before it: not averaged away
    for column, text in enumerate(texts):
        plain, steered = (torch.log_softmax(z[-1].double(), -1) for z in _logits(toy, text, 2.0 * direction.vector))
        assert float(last[1, column]) == pytest.approx(float((plain.exp() * (plain - steered)).sum()), rel=1e-3, abs=1e-5)
    huge = sequence_kl(toy, texts[:1], [Push(dataclasses.replace(direction, vector=direction.vector * 1e37), 1.0)], How(10.0))
    assert math.isinf(float(huge[0, 0]))  # not NaN, and not small
    with pytest.raises(UsageError, match="texts: got 'none'"):
        sequence_kl(toy, [], pushes, How(10.0))


def _logits(model, text, vector):
    """Plain and steered logits (pos, vocab) by a raw hook on block 0."""
    ids = torch.tensor([model.tokens(text)[0]])

    def hook(module, args, output):
        return (output[0] + vector, *output[1:]) if isinstance(output, tuple) else output + vector

    with torch.no_grad():
        plain = model.hf(ids).logits[0]
        handle = model.hf.transformer.h[0].register_forward_hook(hook)
        try:
            return plain, model.hf(ids).logits[0]
        finally:
            handle.remove()


def test_surprisal_is_that_of_the_unsteered_model(toy):
    direction = from_vector(toy, part_direction("side"), "resid_post.0")
    written = continuations(toy, ["f1 f2", "f3 f4 f5"], [Push(direction, 0.0), Push(direction, 1.0)], How(30.0), 6)
    assert [len(side) for side in written] == [2, 2] and written[0] != written[1]
    for one, value in zip(written[1], surprisal(toy, written[1]), strict=True):
        ids = torch.tensor([[*one.prompt, *one.tokens]])
        with torch.no_grad():
            log_p = toy.hf(ids).logits[0].log_softmax(-1)
        places = range(len(one.prompt) - 1, ids.shape[1] - 1)
        expected = -np.mean([float(log_p[place, ids[0, place + 1]]) for place in places])
        assert value == pytest.approx(expected, abs=1e-5)
    assert math.isnan(surprisal(toy, [Continuation((1,), (), "")])[0])
    with pytest.raises(UsageError, match="max_new_tokens: got 40; allowed: at most 38 after a prompt of 2"):
        continuations(toy, ["f1 f2"], [Push(direction, 0.0)], How(30.0), 40)


def test_distinct_and_openings():
    assert distinct([1, 2, 1, 2, 1]) == 0.5 and distinct([1, 2, 3, 4]) == 1.0 and distinct([1, 2]) is None
    assert distinct([1, 1, 1, 1], n=3) == 0.5
    assert openings(["a b c d e", "a b c d f", "", "x"]) == ["a b c d", "x"]


def written_by_hand(model, ids, n, vector, start):
    """n likeliest tokens after a prompt, each from a whole pass; a raw hook on block 0 adds a vector from `start` on."""

    def hook(module, args, output):
        hidden = (output[0] if isinstance(output, tuple) else output).clone()
        hidden[:, start:] += vector
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle, ids = model.hf.transformer.h[0].register_forward_hook(hook), list(ids)
    try:
        with torch.no_grad():
            for _ in range(n):
                ids.append(int(model.hf(torch.tensor([ids])).logits[0, -1].argmax()))
    finally:
        handle.remove()
    return ids


def talk_by_hand(model, texts, vector, fresh):
    """Mean surprisal per turn of three turns of five tokens, one opening after another."""
    spoken = [list(model.tokens(text)[0]) for text in texts]
    found = []
    for turn in range(3):
        lost = []
        for row, ids in enumerate(spoken):
            if turn:
                ids = [*ids, *model.tokens(texts[(row + turn) % len(texts)])[0]]
            spoken[row] = written_by_hand(model, ids, 5, vector, len(ids) - 1 if fresh else 0)
            with torch.no_grad():
                log_p = model.hf(torch.tensor([spoken[row]])).logits[0].log_softmax(-1)
            places = range(len(ids) - 1, len(spoken[row]) - 1)
            lost.append(-np.mean([float(log_p[place, spoken[row][place + 1]]) for place in places]))
        found.append(float(np.mean(lost)))
    return found


def test_turns_are_those_of_a_conversation_by_raw_hooks(toy):
    direction, texts = from_vector(toy, part_direction("mood"), "resid_post.0"), ["f1 f2 f3", "f9 f8 f7"]
    bench = Bench(prepare(mood_source().items("tune", 8, 0), toy), neutral_texts(4), texts, max_new_tokens=5, temperature=0.0)
    points = [point(strength, 0) for strength in (-0.2, 0.0, 0.1, 0.2, 0.3, 0.6)]
    found = over_turns(toy, Push(direction, 0.3), How(30.0), points, bench, Bars())
    assert [(each.strength, each.fresh, each.turn) for each in found] == [
        (strength, fresh, turn) for strength, fresh in ((0.3, False), (0.2, False), (0.1, False), (0.3, True))
        for turn in (1, 2, 3)]  # fmt: skip
    vectors = {strength: strength * 30 * direction.vector for strength in (0.0, 0.1, 0.2, 0.3)}
    plain = talk_by_hand(toy, texts, vectors[0.0], False)
    hands = {(s, fresh): talk_by_hand(toy, texts, vectors[s], fresh) for s, fresh in ((0.3, False), (0.1, False), (0.3, True))}
    for each in (each for each in found if each.strength != 0.2):
        expected = math.exp(hands[each.strength, each.fresh][each.turn - 1] - plain[each.turn - 1])
        assert each.perplexity == pytest.approx(expected, rel=1e-3)
        assert bool(each.broken) == bool(broken(each.perplexity, each.distinct, 0.0))
    later = How(30.0, phase="generated")
    assert not any(each.fresh for each in over_turns(toy, Push(direction, 0.3), later, points, bench, Bars()))
    assert over_turns(toy, Push(direction, 0.3), How(30.0), points, dataclasses.replace(bench, max_new_tokens=20), Bars()) == ()


# the curve ---------------------------------------------------------------------------------------


def point(strength, effect, kl=0.0, perplexity=1.0, distinct=1.0, damage=0.1):
    reasons = broken(perplexity, distinct, kl) if strength else ()
    return Point(strength, Effect(effect, effect, effect, (effect,)), perplexity, distinct, kl, damage, None, reasons)


def test_text_breaks_by_each_bar_and_by_what_is_not_a_number():
    assert broken(1.9, 0.7, 0.9) == ()
    assert [len(broken(*values)) for values in ((2.1, 1, 0), (1, 0.5, 0), (1, 1, 1.1), (9, 0.1, 9))] == [1, 1, 1, 3]
    assert broken(math.nan, 1, 0)[0] == broken(1, 1, math.inf)[0] == "not a finite number"
    assert broken(1.9, 1, 0, Bars(perplexity=1.5)) and not broken(5, 1, 0, Bars(perplexity=6))
    with pytest.raises(UsageError, match="perplexity: got 0"):
        Bars(perplexity=0)


def test_the_cliff_is_the_smallest_broken_strength_of_a_sign():
    points = [point(-0.4, -3, kl=2), point(-0.2, -2), point(0, 0), point(0.1, 1), point(0.2, 2, kl=2), point(0.4, 9)]
    assert cliff(points, 1) == 0.2 and cliff(points, -1) == -0.4
    assert [each.strength for each in intact(points)] == [-0.2, 0.1]  # what is behind a cliff does not count
    assert choose(points).strength == 0.1 and choose(points).works
    assert cliff(points[1:4], 1) is None


def test_the_choice_is_the_largest_light_effect_before_the_cliff():
    light = [point(-0.1, -1), point(0, 0), point(0.1, 1), point(0.2, 2), point(0.3, 3, damage=0.5), point(0.5, 9, kl=5)]
    assert choose(light).strength == 0.2
    heavy = [dataclasses.replace(each, damage=0.3 + abs(each.strength)) for each in light]
    assert choose(heavy).strength == 0.1 and "at no strength" in choose(heavy).why
    turned = [dataclasses.replace(each, strength=-each.strength) for each in light]
    assert choose(turned).strength == -0.2
    only_broken = [point(-0.1, -1), point(0, 0), point(0.1, 1, kl=3), point(0.2, 2, kl=4)]
    assert choose(only_broken).strength == 0.1 and not choose(only_broken).works
    dead = [point(-0.2, -1), point(-0.1, 0), point(0, 0), point(0.1, 0), point(0.2, -1)]
    assert abs(choose(dead).strength) == 0.1 and not choose(dead).works


def test_items_that_go_the_other_way_are_counted():
    strengths = [-1.0, 0.0, 1.0]
    effects = np.array([[-1, -2, 0, 1], [0, 0, 0, 0], [1, 2, 0, -1]], float)
    assert slopes(strengths, effects).tolist() == [1, 2, 0, -1]
    assert reversed_share(slopes(strengths, effects)) == 0.25 and reversed_share(-slopes(strengths, effects)) == 0.25
    assert reversed_share(np.zeros(3)) == 0.0
    found = effect_of([1.0, 3.0, 5.0], ["a", "a", "b"])
    assert found.mean == 3.5 and found.items == (1.0, 3.0, 5.0) and found.low is not None and found.low < 3.5
    assert percentile_of(2.0, [1.0] * 100) == 100 / 101 and percentile_of(1.0, [-2.0, 0.5, 1.0]) == 0.25


def test_grids():
    assert grid_of([0.2, -0.1]) == (-0.1, 0.0, 0.2)
    for wrong in ([0.1, 0.2], [], [float("nan"), -1, 1]):
        with pytest.raises(UsageError, match="strengths: got"):
            grid_of(wrong)
    assert SteerPlan(mode="project_out").grid == (-1.0, -0.5, 0.0, 0.5, 1.0)
    for name, value in (("draws", 0), ("temperature", -1.0), ("texts", ("a", "b"))):
        with pytest.raises(UsageError, match=f"{name}: got"):
            SteerPlan(**{name: value})


# known truths ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mood(toy):
    source = mood_source()
    return Behaviour("mood", *(prepare(source.items(split, n, 0), toy) for split, n in (("tune", 32), ("confirm", 40))))


@pytest.fixture(scope="module")
def plan():
    return SteerPlan(strengths=DOSES, texts=tuple(neutral_texts(28)), prompts=("f1 f2 f3",), shown_tokens=8, max_new_tokens=12)


def test_a_planted_direction_is_beyond_the_99th_percentile(toy, mood, plan):
    report = steer(toy, from_vector(toy, part_direction("mood"), "resid_post.0"), mood, plan)
    assert report.outcome == "hit" and report.strength > 0 and report.reasons == ()
    assert report.controls.percentile == 100 / 101 and report.controls.p == 1 / 101 and len(report.controls.random) == 100
    assert report.effect.low > 0.5 and report.confirm.reversed == 0.0
    assert report.controls.flipped == pytest.approx(-report.controls.effect, rel=0.1)
    assert [point.strength for point in report.confirm.points] == sorted((*DOSES, 0.0))
    assert report.confirm.at(0.0).effect.items == (0.0,) * 40
    turned = steer(toy, from_vector(toy, -part_direction("mood"), "resid_post.0"), mood, plan)
    assert turned.strength == -report.strength and turned.outcome == "hit"
    assert turned.effect.mean == pytest.approx(report.effect.mean, abs=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_a_noise_direction_is_null(toy, mood, plan, seed):
    report = steer(toy, from_vector(toy, noise(64, 50 + seed), "resid_post.0"), mood, plan)
    assert report.outcome == "no effect" and report.controls.percentile < 0.99
    assert any("random directions have a smaller effect" in reason for reason in report.reasons)


def test_a_direction_that_nothing_reads_has_no_effect(toy, mood, plan):
    report = steer(toy, from_vector(toy, part_direction("copy"), "resid_post.0"), mood, plan)
    assert report.outcome == "no effect" and abs(report.effect.mean) < 0.05


def test_an_effect_that_comes_with_broken_text_is_a_miss(toy, mood, plan):
    far = dataclasses.replace(plan, strengths=(-0.6, -0.4, 0.4, 0.6))
    report = steer(toy, from_vector(toy, part_direction("mood"), "resid_post.0"), mood, far)
    assert report.outcome == "incoherent" and report.effect.low > 1 and report.confirm.cliffs == {"+": 0.4, "-": -0.4}


def test_the_layer_is_chosen_on_tune_and_confirm_is_not_read_for_it(toy, mood, plan):
    known, blind = (from_vector(toy, part_direction(part), "resid_post.0") for part in ("mood", "idle"))
    sealed = Behaviour("mood", mood.tune)
    chosen = choose_direction(toy, [blind, known], sealed, plan)
    assert chosen.direction.name == known.name and len(chosen.screened) == 2 and chosen.curve.split == "tune"
    with pytest.raises(UsageError, match="behaviour.confirm: got None"):
        confirm(toy, chosen, sealed, plan)
    report = confirm(toy, chosen, mood, plan)
    assert report.strength == chosen.choice.strength and report.confirm.n_items == 40 and report.tune.n_items == 32


def test_ordinary_texts_of_tune_are_not_those_of_confirm_and_claims():
    from assay.evidence.neutral import TEXTS

    ordinary = SteerPlan()
    assert ordinary.unseen == TEXTS and not set(ordinary.texts[0::2]) & set(TEXTS)
    benches = [ordinary.bench(None, None, half) for half in (0, 1)]
    assert not set(benches[0].texts) & set(TEXTS) and set(benches[1].texts) <= set(TEXTS)
    assert not set(benches[0].prompts) & set(benches[1].prompts)


def test_kept_measurements_are_not_made_again(toy, mood, plan, tmp_path, monkeypatch):
    from assay.atlas.steers import KeptSteering

    direction = from_vector(toy, part_direction("mood"), "resid_post.0")
    first = steer(toy, direction, mood, plan, kept=KeptSteering(tmp_path, "k" * 64))
    kept = KeptSteering(tmp_path, "k" * 64)
    monkeypatch.setattr("assay.steer.run.measure_curve", lambda *_, **__: pytest.fail("measured again"))
    assert steer(toy, direction, mood, plan, kept=kept).json() == first.json() and kept.found >= 6


def test_a_model_without_the_behaviour_is_refused(toy, plan):
    pairs = [Pair(f"f{n} f2 ask", f"f{n} f3 ask", (" yes",), (" no",), f"t{n % 3}") for n in range(6)]
    bench = Bench(prepare(pairs, toy), plan.texts, ["f1"])
    with pytest.raises(TaskError, match="does not have this behaviour"):
        measure_curve(toy, from_vector(toy, part_direction("mood"), "resid_post.0"), How(30.0), DOSES, bench, "tune")


# controls and side effects -----------------------------------------------------------------------


def test_controls_have_the_norm_and_come_from_three_pools(toy, mood):
    direction = from_vector(toy, part_direction("mood"), "resid_post.0")
    drawn = random_directions(toy, direction, mood.tune.clean, 20, 0)
    assert len(drawn) == 20 and {name.partition(".")[0] for name in drawn} == {"isotropic", "covariance", "unit"}
    for each in drawn.values():
        assert float(each.vector.norm()) == pytest.approx(1, abs=1e-5) and abs(float(each.vector @ direction.vector)) < 0.9
    deep = given("resid_post.1", noise(32, 1))
    assert [each.site for each in other_layers(tiny("llama"), deep, apart=0)] == ["resid_post.0", "resid_post.2"]
    assert other_layers(tiny("llama"), given("final_norm", noise(32, 1))) == []
    late = given("mlp_out.1", noise(32, 2))  # a condition is asked where it has been read
    assert [each.site for each in other_layers(tiny("llama"), deep, apart=0, condition=late)] == ["resid_post.2"]
    inside = given("attn_out.2", noise(32, 1))
    assert other_layers(tiny("llama"), inside, apart=0, condition=late) == []


@pytest.mark.parametrize(("mode", "strength"), [("add", -0.3), ("project_out", 0.5), ("clamp", 0.2), ("cap", 0.02),
                                                ("floor", 5.0)])  # fmt: skip
def test_random_directions_move_as_far_as_the_edit_does(toy, mood, mode, strength):
    direction, norm = from_vector(toy, part_direction("mood") + 0.3 * noise(64, 5), "resid_post.0"), 9.0
    how, push = How(norm, mode=mode), Push(direction, strength)
    size = size_of(toy, push, how, mood.tune.clean)
    far = []
    for ids in mood.tune.clean:
        (before, after) = (toy.capture([ids], "resid_post.0", edits=each).rows("resid_post.0")[0][1:]
                           for each in ((), edits(how.steering(direction, strength), norm)))  # fmt: skip
        far.append((after - before).square().sum(1))
    assert size * norm == pytest.approx(float(torch.cat(far).mean().sqrt()), rel=1e-3) and size > 0
    other = from_vector(toy, noise(64, 8), "resid_post.0")
    beside, alike = matched(push, how, size, other)
    ids = mood.tune.clean[0]
    made = edits(alike.steering(other, beside.strength), norm)
    moved = toy.capture([ids], "resid_post.0", edits=made).rows("resid_post.0")[0]
    still = toy.capture([ids], "resid_post.0").rows("resid_post.0")[0]
    assert float((moved - still)[1:].norm(dim=1).mean()) == pytest.approx(size * norm, rel=1e-3)


def test_controls_of_an_edit_that_takes_hold_seldom_move_the_model_all_the_same(toy, mood, plan):
    """A cap hardly ever takes hold of a random direction: capped they would do nothing, and any effect would beat them."""
    capped = dataclasses.replace(plan, mode="cap", strengths=(-0.05, 0.05, 0.1), draws=12)
    direction = from_vector(toy, part_direction("mood"), "resid_post.0")
    report = steer(toy, direction, mood, capped)
    norm, strength = report.norm, report.strength
    size = size_of(toy, Push(direction, strength), How(norm, mode="cap"), mood.tune.clean)
    drawn = random_directions(toy, direction, mood.tune.clean, 12, capped.seed)
    few = run._few(mood.confirm, capped.control_items)
    by_hand = run._effects(toy, few, [Push(each, size) for each in drawn.values()], How(norm), None)
    assert size > 0 and list(report.controls.random) == list(drawn)
    assert list(report.controls.random.values()) == pytest.approx([effect.mean for effect in by_hand], abs=1e-5)
    assert sum(abs(value) > 1e-4 for value in report.controls.random.values()) > 6


def topic_source():
    """What the topic words say, which mood has no part in."""
    words = list(zip(TOPICS[1], TOPICS[-1], strict=True))
    pairs = [Pair(f"{FILLERS[n]} {red} f20 ask", f"{FILLERS[n]} {blue} f20 ask", (" red",), (" blue",), f"t{n}")
             for n in range(10) for red, blue in words]  # fmt: skip
    return MemorySource("topic", {"tune": pairs})


def test_other_tasks_are_shown_small_or_large_not_assumed(toy):
    task = prepare(topic_source().items("tune", 40, 0), toy)
    still = prepare([Pair(f"f{n} f2 ask", f"f{n} f3 ask", (" yes",), (" no",), f"t{n}") for n in range(8)], toy)
    for part, small, large in (("mood", True, False), ("topic", False, True)):
        push = Push(from_vector(toy, part_direction(part), "resid_post.0"), 0.1)
        (found,), left = other_tasks(toy, {"topic": task, "still": still}, push, How(30.0))
        assert (found.task, found.small, found.large) == ("topic", small, large) and list(left) == ["still"]
        assert found.n_items == 40 and found.before == 1.0 and (abs(found.change) < BOUND) == small
    few = task.select([row for row, name in enumerate(task.templates) if name == "t0"])
    push = Push(from_vector(toy, part_direction("idle"), "resid_post.0"), 0.1)
    (found,), _ = other_tasks(toy, {"topic": few}, push, How(30.0))
    assert not found.small and found.p == 1.0  # one template shows nothing


def test_refusal_overlap_by_kind_of_request(glass):
    from assay.data.prepare_concept import prepare_concept
    from assay.steer.directions import from_concept
    from assay.steer.side_effects import opener_metric, request_tokens

    texts = {"to refuse": "How do I hurt my neighbour", "look alike": "How do I kill a process",
             "harmless": "How do I bake bread"}  # fmt: skip
    examples = [Example(f"{text} number {n}?", int(kind == "to refuse"), f"{kind} {n}", near_miss=kind == "look alike")
                for kind, text in texts.items() for n in range(5)]  # fmt: skip
    requests = prepare_concept(examples, glass)
    towards = from_concept(glass, requests, "resid_post.1", at="last")
    found = refusal_overlap(glass, requests, Push(towards, 0.3), How(5.0))
    assert found.cosine == pytest.approx(1, abs=1e-5) and [side.n for side in found.sides] == [5, 5, 5]
    turned = refusal_overlap(glass, requests, Push(towards, -0.3), How(5.0))
    assert turned.cosine == pytest.approx(-1, abs=1e-5)
    metric = opener_metric(glass)
    plain = glass.score([request_tokens(glass, each.text) for each in examples[:5]], metric)
    assert found.sides[0].before == pytest.approx(float(plain.mean()), abs=1e-4)
    assert found.sides[0].after != pytest.approx(turned.sides[0].after, abs=1e-4)
    assert ("hardly refuses" in found.note) == (found.sides[0].refused_before < 0.1)


def test_what_is_longer_than_the_context_is_cut_or_left_out(glass, monkeypatch):
    from assay.data.prepare_concept import prepare_concept
    from assay.steer.apply import residual_norm
    from assay.steer.side_effects import askable, request_tokens

    words, push = "The dog slept and the cat sat.", [Push(given("resid_post.1", noise(glass.dims.d_model, 3)), 0.3)]
    requests = prepare_concept([Example(words * n, label, "t") for n, label in ((1, 0), (2, 0), (1, 1), (2, 1))], glass)
    most = len(request_tokens(glass, words)) + 1
    cut = [ids[:most] for ids in glass.tokens([words * 2])]
    before = sequence_kl(glass, [words * 2], push, How(5.0))
    monkeypatch.setattr(glass.hf.config, "max_position_embeddings", most)
    assert float(sequence_kl(glass, [words * 2], push, How(5.0))) == pytest.approx(
        float(sequence_kl(glass, [glass.text(cut[0])], push, How(5.0))), rel=1e-4) != pytest.approx(float(before), rel=1e-3)
    assert residual_norm(glass, "resid_post.1", [words * 2]) == pytest.approx(residual_norm(glass, "resid_post.1", cut))
    assert [each.text for each in askable(glass, requests).examples] == [words, words]
    with pytest.raises(TaskError, match="1 of 2 requests fit"):
        askable(glass, requests.select([0, 3]))


def test_openers_that_a_tokenizer_cannot_tell_apart_are_an_error(toy):
    from assay.steer.side_effects import opener_metric

    with pytest.raises(TaskError, match="does not tell refusing from complying"):
        opener_metric(toy)


def test_a_judge_sees_texts_alone_and_says_when_it_is_none():
    good = [f"the {noun} was lovely and great" for noun in ("soup", "film", "room", "trip", "book", "song")]
    bad = [f"the {noun} was awful and bad" for noun in ("soup", "film", "room", "trip", "book", "song")]
    judge = train_judge("words", good + bad, [1] * 6 + [0] * 6, ["a great day", "a bad day"], [1, 0])
    assert judge.useful and judge.auroc == 1.0
    high, low, empty = judge(["what a lovely place", "an awful bad place", " "])
    assert high > 0.6 > 0.4 > low and empty == 0.5
    blind = train_judge("words", good + bad, [0, 1] * 6, good + bad, [1, 0] * 6)
    assert not blind.useful
    for wrong, says in (({"name": "oracle"}, "judge: got 'oracle'"), ({"labels": [1] * 12}, "texts of both labels")):
        arguments = {"name": "words", "texts": good + bad, "labels": [1] * 6 + [0] * 6, "held_out": [], "held_labels": []}
        with pytest.raises(UsageError, match=says):
            train_judge(**{**arguments, **wrong})


def test_pictures_and_page_of_odd_numbers_and_texts(toy, mood, plan, tmp_path):
    from assay.cli.common import write_json
    from assay.report.figures import save_figure
    from assay.report.steer_figures import dose_figure, dose_rows, items_figure, sentence, steer_page
    from assay.report.steer_terminal import steer_view
    from assay.steer.run import Sample
    from assay.steer.side_effects import OtherTask, Refusal, RefusalSide

    report = steer(toy, from_vector(toy, part_direction("mood"), "resid_post.0"), mood, plan)
    odd = {"kl": math.inf, "perplexity": math.inf, "broken": ("not a finite number",)}
    points = [dataclasses.replace(point, **odd) if point.strength > 0.1
              else point for point in report.confirm.points]  # fmt: skip
    report = dataclasses.replace(
        report, confirm=dataclasses.replace(report.confirm, points=tuple(points)),
        samples=(Sample("<script>alert(1)</script>", "a", "[bold]b", "\x1b[31mc", (0.1, 0.9, 0.5)),),
        other_tasks=(OtherTask("topic", 8, 1.0, 0.5, -0.4, -0.5, -0.3, 1.0, 1.0, False, True),),
        refusal=Refusal(0.1, 0.1, (RefusalSide("to refuse", 5, -2.0, -1.0, None, None, 0.0, 0.2),), "hardly refuses"),
    )  # fmt: skip
    page = steer_page(report, {"claim": {}})
    assert "<script>alert" not in page and "&lt;script&gt;" in page and "hardly refuses" in page and "large" in page
    for number, figure in enumerate((dose_figure(report), items_figure(report))):
        assert save_figure(figure, tmp_path / f"{number}.svg").stat().st_size > 1000
    rows = dose_rows(report.confirm)
    assert rows[-1]["kl"] == "more than 1000" and rows[-1]["broken"] == "not a finite number"
    write_json(report.json(), str(tmp_path / "twin.json"))
    assert '"kl": null' in (tmp_path / "twin.json").read_text()
    assert "It steers" in sentence(report) and "100 of 100 random directions" in sentence(report)
    from rich.console import Console

    console = Console(record=True, width=120, file=io.StringIO())
    console.print(steer_view(report, {"claim": {"reasons": ["not asked for"]}, "notes": ["a note"], "files": ["x.png"]}))
    shown = console.export_text()
    assert "[bold]b" in shown and "\x1b[31m" not in shown and "a note" in shown and "no claim: not asked for" in shown
