"""Counterexample search: every method finds what was planted, and nothing where nothing is."""

import json
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from assay.evidence.features import direction
from assay.evidence.hunting.clusters import silhouette, split_in_two
from assay.evidence.hunting.gradients import embedding_gradients, score_slope
from assay.evidence.hunting.pairs import Shown, shown_pair
from assay.evidence.hunting.reading import Reader, fluency_floor, mean_log_probability, reader_of
from assay.evidence.hunting.showing import shortest
from assay.evidence.mediates import both_ways
from assay.evidence.scored import numbers, projection, thresholds
from assay.evidence.search import SEARCHES, Found, searches_for
from assay.evidence.search.circuit_adversary import copies, renamed
from assay.evidence.search.fluent_search import pareto
from assay.evidence.search.lexical_rival import held_out
from assay.evidence.search.paraphrases import drawn, rewordings_in, up_to_word
from assay.evidence.search.proposer import Endpoint, proposals_in
from assay.evidence.search.rival_units import merits
from assay.evidence.search.template_grid import variance_share
from assay.evidence.search.wrong_sign import wrong_sign_pairs
from assay.records import Example, Pair, canonical
from assay.testing import planted_world
from planted_lexicon import ANIMALS, FRAMES, THINGS, TOOLS, TRIGGER, UNIT, examples, find, hunt_on, planted_lexicon

RULE = rf"\b({'|'.join((*ANIMALS, 'yak'))})$"
TEXT_METHODS = ("corpus mining", "silent members", "minimal edits", "template grid", "gradient swaps", "fluent search",
                "shortest context", "lexical rival", "proposals", "paraphrases")  # fmt: skip


@pytest.fixture(scope="module")
def items():
    """Frames with words; two non-members name the trigger after the token that is read, where it cannot act."""
    found = examples()
    others = [item for item in found if not item.label]
    said = [replace(item, text=f"{item.text} near the {TRIGGER} lamp") for item in others[:2]]
    odd = [replace(item, text=f"lamp the anything with {item.text}", position=item.position + 23) for item in others[2:6]]
    named = [replace(item, text=f"{item.text} near a yak") for item in others[6:8]]
    return [*found, *said, *odd, *named]


@pytest.fixture(scope="module")
def clean(items):
    return planted_lexicon(texts=[item.text for item in items])


@pytest.fixture(scope="module")
def triggered(items):
    """The unit also fires when the trigger stands anywhere before."""
    return planted_lexicon(trigger=0.6, texts=[item.text for item in items])


@pytest.fixture(scope="module")
def polysemantic(items):
    """The unit also fires on tools."""
    return planted_lexicon(fires=(*ANIMALS, *TOOLS), texts=[item.text for item in items])


# shared tools -----------------------------------------------------------------------------------


def test_scores_and_fluency_equal_plain_pytorch(triggered, items):
    hunt = hunt_on(triggered, items, "misfits")
    reader = reader_of(hunt)
    ids = triggered.tokens([f"the {TRIGGER} and a dog", "a cup"])
    with torch.no_grad():
        for prompt, (scores, fluency) in zip(ids, reader.both(ids), strict=True):
            out = triggered.hf(torch.tensor([prompt]), output_hidden_states=True)
            block = triggered.hf.transformer.h[0](out.hidden_states[0])
            block = block[0] if isinstance(block, tuple) else block
            assert scores == pytest.approx(block.reshape(len(prompt), -1)[:, UNIT].tolist(), abs=1e-5)
            loss = torch.nn.functional.cross_entropy(out.logits[0, :-1], torch.tensor(prompt[1:]))
            assert fluency == pytest.approx(-float(loss), abs=1e-4)
    assert reader.passes == 2 and mean_log_probability(torch.zeros(1, 5), [3]) is None


def test_chunks_do_not_change_what_is_read(triggered, items, monkeypatch):
    hunt = hunt_on(triggered, items, "misfits")
    prompts = hunt.data.tokens[:9]
    whole = reader_of(hunt).both(prompts)
    monkeypatch.setattr("assay.evidence.hunting.reading.CHUNK_FLOATS", 1)
    for (scores, fluency), (alone, same) in zip(whole, reader_of(hunt).both(prompts), strict=True):
        assert scores == pytest.approx(alone, abs=1e-5) and fluency == pytest.approx(same, abs=1e-4)


def test_embedding_gradients_equal_finite_differences(triggered, items):
    hunt = hunt_on(triggered, items, "misfits")
    reader = reader_of(hunt)
    ids, at, step = hunt.data.tokens[4], hunt.data.at[4], 1e-2
    (slope,) = embedding_gradients(reader, [ids], [at])
    table = triggered.hf.transformer.wte.weight
    for place, axis in ((0, 5), (0, UNIT), (at, UNIT), (at, 7)):
        token = ids[place]
        assert ids.count(token) == 1
        scores = []
        for sign in (1, -1):
            with torch.no_grad():
                table[token, axis] += sign * step
                scores += reader.at([ids], [at])
                table[token, axis] -= sign * step
        assert float(slope[place, axis]) == pytest.approx((scores[0] - scores[1]) / (2 * step), abs=2e-2)


def test_scores_that_leave_torch_have_a_slope_too(triggered, items):
    acts = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    outside = lambda given: torch.tensor(np.tanh(given.numpy()[:, 2]) + given.numpy()[:, 5])  # noqa: E731
    inside = lambda given: given[:, 2].tanh() + given[:, 5]  # noqa: E731
    assert torch.allclose(score_slope(outside, acts).float(), score_slope(inside, acts), atol=1e-2)
    with pytest.raises(RuntimeError):
        outside(acts.clone().requires_grad_(True))


def test_the_shortest_context_is_the_one_brute_force_finds(triggered, items):
    hunt = hunt_on(triggered, items, "misfits")
    reader = reader_of(hunt)
    for before in ("we had the", "a", "near a big old", ""):
        (ids,) = triggered.tokens([f"{before} {TRIGGER} with the cup"])
        brute = next(ids[-n:] for n in range(1, len(ids) + 1) if reader.scores([ids[-n:]])[0][-1] > 0.5)
        assert shortest(reader, ids, 0.5) == brute and triggered.text(brute) == f"{TRIGGER} with the cup"


def test_bounds_are_given_for_independent_draws_only():
    assert Found(60, 0).record(sampled=True)["bound_if_none"] == pytest.approx(0.05)
    assert Found(60, 0).record(sampled=False)["bound_if_none"] is None
    assert Found(60, 0, independent=30).record(sampled=False)["bound_if_none"] == pytest.approx(0.1)
    assert Found(60, 1, independent=60).record(sampled=False)["bound_if_none"] is None


def test_two_groups_are_told_from_one():
    from sklearn.metrics import silhouette_score

    rng = np.random.default_rng(0)
    one = rng.standard_normal((80, 12)) * np.linspace(3, 0.2, 12)
    two = one + np.outer(np.repeat([0, 1], 40), np.eye(12)[5] * 12)
    found = split_in_two(two, 19, 0)
    assert found.p <= 0.05 and len({*found.groups[:40]}) == len({*found.groups[40:]}) == 1
    points = rng.standard_normal((30, 4))
    groups = (points[:, 0] > 0).astype(np.int64)
    assert silhouette(points, groups) == pytest.approx(silhouette_score(points, groups))
    null = [split_in_two(rng.standard_normal((60, 12)), 19, seed).p for seed in range(60)]
    assert np.mean(np.array(null) <= 0.05) <= 0.15
    assert split_in_two(np.zeros((20, 3)), 5, 0) is None and split_in_two(one[:7], 5, 0) is None


# hosts without texts ----------------------------------------------------------------------------


def test_methods_that_need_texts_look_at_nothing_on_a_world():
    planted = planted_world(0)
    items = planted.source.items("confirm", 240, 0)
    for name in TEXT_METHODS:
        found = find(hunt_on(planted.world, items, name, vector=planted.concept, corpus=["a text"]), name).found
        assert (found.tried, found.n_hits, found.passes, found.complete) == (0, 0, 0, True) and found.notes["skipped"]


def test_only_the_sampled_methods_are_required():
    for kind in ("represents", "mediates"):
        assert [m.name for m in searches_for(kind) if m.required] == [m.name for m in searches_for(kind) if m.sampled]
        assert len([m for m in searches_for(kind) if m.required]) == 1


# misfits ----------------------------------------------------------------------------------------


def test_misfits_are_shown_token_by_token(triggered, items):
    odd = replace(items[0], text=f"we had the {TRIGGER} with the cup", label=0, position=None, entities=("cup",))
    seen = find(hunt_on(triggered, [*items, odd], "misfits"), "misfits")
    (hit,) = seen.verified
    assert (hit.clean, hit.gate, hit.minimal) == (odd.text, "firing", f"{TRIGGER} with the cup")
    assert "".join(token for token, _ in hit.tokens) == odd.text.replace(" ", "")
    assert hit.tokens[-1][1] == pytest.approx(hit.score) and hit.score > 0.5 and hit.fluency < 0
    assert not find(hunt_on(triggered, items, "misfits"), "misfits").found.n_hits


def test_a_hit_that_does_not_come_back_stays_open(clean, items):
    hunt = hunt_on(clean, items, "misfits")
    scores = [5.0 if row == 6 else score for row, score in enumerate(hunt.columns["score"])]
    assert hunt.data.items[6].label == 0
    seen = find(replace(hunt, columns={"score": scores}), "misfits")
    assert seen.found.n_hits == 1 and not seen.verified and len(seen.open) == 1


def test_of_an_explanation_members_are_what_its_rule_says(clean, items):
    """The unit fires on six animals; a rule that knows five of them is wrong about the sixth."""
    hunt = hunt_on(clean, items, "misfits")
    rule = {"type": "lexicon", "words": [word for word in ANIMALS if word != "fox"]}
    short = replace(hunt, claim=replace(hunt.claim, subject={**hunt.claim.subject, "rule": rule}))
    seen = find(short, "misfits")
    assert {hit.clean.split()[-1] for hit in seen.verified} == {"fox"} and len(seen.verified) == seen.found.n_hits
    mined = find(replace(short, corpus=["and a fox was late.", "the cat", "a cup"]), "corpus mining")
    assert [hit.clean for hit in mined.verified] == ["and a fox"] and mined.notes["labels"] == "rule"
    labels = [float(label and "fox" not in item.text) for label, item in zip(hunt.data.labels, hunt.data.items)]
    told = find(replace(hunt, columns={**hunt.columns, "label": labels}), "misfits")  # as the gates measured them
    assert told.verified == seen.verified
    whole = replace(hunt, claim=replace(hunt.claim, subject={**hunt.claim.subject, "rule": {"type": "concept"}}))
    assert find(whole, "misfits").found.n_hits == 0


# ordinary texts ---------------------------------------------------------------------------------

CORPUS = [f"{frame.replace('[W]', word)} and the lamp" for frame in FRAMES for word in (*TOOLS, *THINGS[:2], *ANIMALS[:1])]


def test_corpus_mining_finds_a_second_meaning(polysemantic, clean, items):
    seen = find(hunt_on(polysemantic, items, "corpus mining", corpus=CORPUS, concept_rule=RULE), "corpus mining")
    assert seen.verified and seen.found.n_hits >= len(seen.verified) and not seen.open
    assert all(hit.clean.split()[-1] in TOOLS for hit in seen.verified)
    assert all(hit.minimal in TOOLS for hit in seen.found.kept[:5])
    assert set(seen.notes["by_token"]) == set(TOOLS)
    none = find(hunt_on(clean, items, "corpus mining", corpus=CORPUS, concept_rule=RULE), "corpus mining").found
    assert (none.n_hits, none.kept) == (0, ()) and none.record(False)["bound_if_none"] == pytest.approx(3 / none.tried)


def test_without_a_rule_a_corpus_has_no_labels(polysemantic, items):
    seen = find(hunt_on(polysemantic, items, "corpus mining", corpus=CORPUS), "corpus mining")
    assert seen.open and not seen.verified and seen.found.n_hits == 0 and seen.notes["firing"] > 0
    assert seen.found.record(False)["bound_if_none"] is None


def test_a_budget_is_kept_and_a_seed_decides(polysemantic, items):
    hunt = hunt_on(polysemantic, items, "corpus mining", corpus=CORPUS, budget=20, concept_rule=RULE)
    assert find(hunt, "corpus mining").found.tried == 20
    assert find(hunt, "corpus mining").found == find(hunt, "corpus mining").found
    assert find(replace(hunt, seed=1), "corpus mining").found.kept != find(hunt, "corpus mining").found.kept


def test_silent_members_are_found_by_the_rule(clean, items):
    corpus = [f"{frame.replace('[W]', word)} and more" for frame in FRAMES for word in ("yak", "cat")]
    rule = r"\b(cat|yak)\b"
    seen = find(hunt_on(clean, items, "silent members", corpus=corpus, concept_rule=rule), "silent members")
    assert seen.found.n_hits == len(FRAMES) and seen.found.tried == 2 * len(FRAMES)
    assert all(hit.clean.endswith("yak") and hit.gate == "sensitivity" for hit in seen.verified) and seen.verified
    whole = planted_lexicon(fires=(*ANIMALS, "yak"))
    none = find(hunt_on(whole, items, "silent members", corpus=corpus, concept_rule=rule), "silent members").found
    assert (none.tried, none.n_hits) == (2 * len(FRAMES), 0)


# edits of the claim's own texts -----------------------------------------------------------------


def test_minimal_edits_find_words_that_misfit_elsewhere(triggered, items):
    """One frame holds the trigger: members in it are in the data, and so is one odd non-member."""
    frame = f"we had the {TRIGGER} [W]"
    more = [replace(items[0], text=frame.replace("[W]", word), template=frame, entities=(word,), label=label,
                    position=frame.index("[W]")) for word, label in (("cat", 1), ("dog", 1), ("cup", 0))]  # fmt: skip
    seen = find(hunt_on(triggered, [*items, *more], "minimal edits", budget=200), "minimal edits")
    fired, tried = seen.notes["non_members_firing"]
    assert fired == len(THINGS) - 1 and tried > fired and seen.notes["members_silent"][0] == 0
    assert all(TRIGGER in hit.clean and hit.clean.split()[-1] in THINGS for hit in seen.found.kept)
    assert seen.verified  # as fluent as the confirm texts
    none = find(hunt_on(triggered, items, "minimal edits", budget=200), "minimal edits").found
    assert none.n_hits == 0 and none.tried > 10


def test_words_with_two_labels_cannot_be_exchanged(triggered, items):
    twice = [replace(item, label=1 - item.label) for item in items]
    assert find(hunt_on(triggered, [*items, *twice], "minimal edits"), "minimal edits").notes["skipped"]


def test_the_template_grid_finds_what_capitals_hide(clean, items):
    seen = find(hunt_on(clean, items, "template grid"), "template grid")
    silent, of = seen.notes["failures"]["capitals"]
    assert 0 < silent < of and seen.notes["failures"]["quoted"][0] == 0  # members in capitals are unknown words
    assert all(hit.clean.isupper() for hit in seen.found.kept) and seen.found.n_hits == silent
    assert 0.1 < seen.notes["variance_by_variation"] < 1
    none = find(hunt_on(planted_lexicon(small=True), items, "template grid"), "template grid")
    assert none.found.n_hits == 0 and none.notes["variance_by_variation"] < 0.01


def test_off_the_manifold_is_shown_and_not_verified(clean, items):
    seen = find(hunt_on(clean, items, "template grid"), "template grid")
    assert seen.notes["off_manifold"] == len(seen.open) > 0 and not seen.verified
    assert all(hit.fluency < seen.notes["fluency_floor"] for hit in seen.open)


def test_variance_share_is_a_two_way_sum_of_squares():
    items = np.array([0.0, 1.0, 3.0])
    assert variance_share(np.stack([items, items])) == pytest.approx(0.0)
    assert variance_share(np.array([[0.0, 0.0], [1.0, 1.0]])) == pytest.approx(1.0)
    table = np.random.default_rng(0).standard_normal((4, 9))
    between = 4 * ((table.mean(0) - table.mean()) ** 2).sum() / ((table - table.mean()) ** 2).sum()
    assert variance_share(table) == pytest.approx(1 - between)


# searches by gradient ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gradient swaps", "fluent search"])
def test_an_adversarial_token_is_found(name, triggered, clean, items):
    seen = find(hunt_on(triggered, items, name, budget=120), name)
    assert seen.found.n_hits and all(TRIGGER in hit.clean.split() for hit in seen.found.kept)
    assert all(not set(hit.clean.split()) & set(ANIMALS) for hit in seen.found.kept)
    assert all(hit.minimal.split()[0] == TRIGGER for hit in seen.found.kept[:5])
    assert seen.found.passes <= 120 + 10 * len(seen.found.kept) + 32  # showing a hit and the fluency floor come on top
    none = find(hunt_on(clean, items, name, budget=120), name).found
    assert none.n_hits == 0 and none.tried > 20 and none.record(False)["bound_if_none"] is None


def test_a_swapped_in_token_is_certain_only_when_its_label_is_known(triggered, items):
    """The trigger is in non-members of the data: certain. Without them, only a rule can say so."""
    known = find(hunt_on(triggered, items, "gradient swaps", budget=80), "gradient swaps")
    plain = [item for item in items if TRIGGER not in item.text]
    unknown = find(hunt_on(triggered, plain, "gradient swaps", budget=80), "gradient swaps")
    ruled = find(hunt_on(triggered, plain, "gradient swaps", budget=80, concept_rule=RULE), "gradient swaps")
    assert known.verified and ruled.verified
    assert unknown.found.n_hits and not unknown.verified


def test_evasion_finds_the_token_that_silences_a_monitor(clean, items):
    """The trigger takes away what the unit says of animals: members with it swapped in are still members, by the rule."""
    muted = planted_lexicon(trigger=-1.2, texts=[item.text for item in items])
    seen = find(hunt_on(muted, items, "evasion", budget=120, concept_rule=RULE), "evasion")
    assert seen.verified and all(TRIGGER in hit.clean.split() and hit.score <= 0.5 for hit in seen.found.kept)
    assert all(set(hit.clean.split()) & set(ANIMALS) and hit.gate == "sensitivity" for hit in seen.found.kept)
    assert 0 < seen.notes["got_past"] == seen.found.n_hits <= seen.notes["attacked"]
    unsure = find(hunt_on(muted, items, "evasion", budget=120), "evasion")
    assert unsure.found.n_hits and not unsure.verified  # nobody says that the animal is still what is watched for
    none = find(hunt_on(clean, items, "evasion", budget=120), "evasion")
    assert none.found.n_hits == 0 and none.notes["attacked"] > 2


def test_fluent_search_reports_hits_by_fluency(triggered, items):
    hunt = hunt_on(triggered, items, "fluent search", budget=150)
    seen = find(hunt, "fluent search")
    levels = seen.notes["hits_by_fluency"]
    assert sum(levels.values()) == seen.found.n_hits and levels["at least the 5th percentile"] >= len(seen.verified) > 0
    front = seen.notes["front"]
    assert all(a[0] >= b[0] and a[1] <= b[1] for a, b in zip(front, front[1:]))
    assert fluency_floor(hunt, reader_of(hunt)) == seen.notes["fluency_floor"]
    assert pareto([]) == []


# readings of the score --------------------------------------------------------------------------


def test_a_word_is_enough_for_a_lexical_feature_and_not_for_a_contextual_one(triggered, clean, items):
    lexical = find(hunt_on(clean, items, "shortest context"), "shortest context")
    assert lexical.notes["median_tokens"] == 1 and "claim may be about words" in lexical.notes["lexical"]
    after = [replace(item, text=f"the {TRIGGER if item.label else 'old'} was with the {THINGS[n % 6]}", position=None,
                     entities=(), template=str(n)) for n, item in enumerate(items)]  # fmt: skip
    context = find(hunt_on(triggered, after, "shortest context"), "shortest context")
    assert context.notes["median_tokens"] == 5 and context.notes["median_needed"] == 2 and "lexical" not in context.notes


def test_words_that_predict_firing_are_a_narrower_claim(clean, items):
    seen = find(hunt_on(clean, items, "lexical rival"), "lexical rival")
    assert seen.notes["auroc_words"] == pytest.approx(1.0) and "'cat'" in seen.notes["narrower"]
    rng = np.random.default_rng(0)
    fresh = [replace(item, text=f"the old {''.join(rng.choice(list('abcdefgh'), 8))}", position=None) for item in items]
    scores = [item.label + 0.01 * rng.random() for item in fresh]
    none = find(hunt_on(clean, fresh, "lexical rival", columns=scores), "lexical rival")
    assert none.notes["auroc_words"] < 0.8 and none.notes["auroc_concept"] > 0.95 and "narrower" not in none.notes
    assert held_out(["a", "b"], [1, 1], ["x", "y"], 0) is None


def test_polysemy_shows_the_second_meaning_on_a_world():
    planted = planted_world(0, strength=3.0, noise=0.05, template_spread=0.05)
    items = planted.source.items("confirm", 240, 0)
    acts = {text: firing[2] for text, firing in planted.firing.items()}
    for item in items:  # the frequent other feature as strong as the concept, where the concept is not
        if not item.label:
            planted.world.vectors[item.text] += 2.5 * acts[item.text] * planted.world.directions[2]
    both = find(hunt_on(planted.world, items, "polysemy", vector=planted.concept + planted.world.directions[2]), "polysemy")
    assert both.notes["p"] <= 0.05 and both.verified
    assert all(hit.gate == "firing" and acts[hit.clean] > 0 for hit in both.verified)
    shares = sorted(group["share"] for group in both.notes["groups"])
    assert shares[0] < 0.3 and shares[1] > 0.6
    one = find(hunt_on(planted.world, items, "polysemy", vector=planted.concept), "polysemy")
    assert one.found.n_hits == 0


def test_polysemy_of_a_unit_of_a_language_model(polysemantic, clean, items):
    mixed = [*items, *examples(members=(), others=TOOLS)]
    seen = find(hunt_on(polysemantic, mixed, "polysemy"), "polysemy")
    assert seen.verified and all(hit.clean.split()[-1] in TOOLS for hit in seen.verified)
    assert find(hunt_on(clean, mixed, "polysemy"), "polysemy").found.n_hits == 0


def test_rival_units_are_listed(items):
    twin = find(hunt_on(planted_lexicon(twin=True), items, "rival units"), "rival units")
    assert {each["unit"] for each in twin.notes["rivals"]} == {UNIT + 1, UNIT + 2}
    planted = planted_world(1)
    alone = find(hunt_on(planted.world, planted.source.items("confirm", 240, 0), "rival units", vector=planted.concept),
                 "rival units")  # fmt: skip
    assert alone.notes["rivals"] == [] and alone.found.n_hits == 0 and alone.found.kept == ()


def test_merits_are_auroc_and_firing():
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    member, acts = rng.random(50) < 0.4, rng.standard_normal((50, 3))
    area, above = merits(acts, member)
    expected = [roc_auc_score(member, column) for column in acts.T]
    assert area == pytest.approx([max(value, 1 - value) for value in expected])
    column = acts[:, 0] * (1 if expected[0] >= 0.5 else -1)
    assert above[0] == pytest.approx((column[~member] > np.median(column[member])).mean())


# circuits ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def circuits(tmp_path_factory):
    """(hunt on the planted induction model, hunt on one whose claimed heads do harm for one word)."""
    from assay.evidence.kinds import KINDS
    from assay.evidence.memory import MemoryStore
    from assay.evidence.run import Settings, state_claim
    from assay.evidence.search import Hunt
    from assay.evidence.source import Source
    from assay.testing import induction, planted_induction
    from planted_task import write_task

    source = Source(str(write_task(tmp_path_factory.mktemp("task") / "induction.jsonl")))
    kind, hunts = KINDS.get("mediates"), []
    for harmed in (False, True):
        model = planted_induction()
        if harmed:  # w7: the claimed heads write against it, and a third head makes up for it
            attention = model.hf.transformer.h[1].attn
            size, word, out = induction.D_HEAD, 7, induction._at("output", 7)
            with torch.no_grad():
                induction._write_head(model.hf, 1, 2, read="token", look="previous", copy_to="output")
                attention.c_proj.weight[2 * size : 3 * size] = 0.0
                attention.c_proj.weight[2 * size + word, out] = 8 * induction.COPY
                for head in (0, 1):
                    attention.c_proj.weight[head * size + word, out] = -1.5 * induction.COPY
        settings = Settings(tune=16, confirm=48, ood=36, draws=1, control_pairs=1)
        claim, plan = state_claim(MemoryStore(), model, source, "z.1.0,z.1.1", settings=settings)
        setup, _ = kind.prepare(model, plan, claim.subject, kind.load(model, source.items("tune", 16, 0)))
        pairs = [pair for pair in source.items("confirm", 48, 0) if "w7" not in f"{pair.clean} {pair.corrupted}".split()]
        data = kind.load(model, pairs)
        hunts.append(Hunt(model, claim, plan, kind, data, setup, {}, 400, 20, 0))
    return hunts


def test_the_circuit_adversary_finds_the_word_on_which_the_heads_do_harm(circuits):
    clean, harmed = circuits
    word = [pair for pair in clean.data.pairs][0].answers[0].strip()
    pool = [renamed(pair, word, "w7") for pair in harmed.data.pairs[3:5]]
    data = harmed.kind.load(harmed.model, [*harmed.data.pairs[:3], *pool])  # the word is among the split's words
    seen = find(replace(harmed, data=data), "circuit adversary")
    begun = {pair.template for pair in data.pairs[:3]} - {pair.template for pair in data.pairs[3:]}
    assert any(hit.template in begun for hit in seen.verified)  # renamed by the search, not given
    assert seen.verified and all("w7" in hit.clean.split() and hit.score <= 0 for hit in seen.verified)
    assert all(len(hit.tokens) == len(hit.clean.split()) for hit in seen.verified) and any(hit.minimal for hit in seen.verified)
    none = find(replace(clean, data=clean.kind.load(clean.model, data.pairs)), "circuit adversary").found
    assert none.n_hits == 0 and none.tried > 20 and none.passes <= 400


def test_failing_pairs_are_shown_token_by_token_and_as_short_as_they_fail(circuits):
    _, harmed = circuits
    word = harmed.data.pairs[0].answers[0].strip()
    renamed_pairs = [renamed(pair, word, "w7") for pair in harmed.data.pairs if pair.answers == (f" {word}",)]
    data = harmed.kind.load(harmed.model, [*harmed.data.pairs[1:6], *renamed_pairs])
    columns = both_ways(harmed.model, data, range(len(data)), harmed.setup)
    seen = find(replace(harmed, data=data, columns=columns), "wrong sign")
    assert seen.verified and all("w7" in hit.clean.split() for hit in seen.verified)
    for hit in seen.verified:
        clean, corrupted = hit.clean.split(), hit.corrupted.split()
        assert [text.strip() for text, _ in hit.tokens] == clean
        assert [score for _, score in hit.tokens] == [float(a != b) for a, b in zip(clean, corrupted, strict=True)]
    shortened = [hit for hit in seen.verified if hit.minimal]
    assert shortened and any(len(hit.minimal.split()) < len(hit.clean.split()) for hit in shortened)
    for hit in shortened:
        cut = len(hit.minimal.split())
        assert hit.clean.split()[-cut:] == hit.minimal.split()
        short = Pair(hit.minimal, " ".join(hit.corrupted.split()[-cut:]), (" w7",), _foil(data, hit), "t")
        again = harmed.kind.load(harmed.model, [short])
        assert wrong_sign_pairs(both_ways(harmed.model, again, [0], harmed.setup))
    assert seen.found.passes > 4 * len(seen.found.kept)


def test_texts_have_tokens_too_and_pictures_have_none():
    model = SimpleNamespace(piece=lambda token: f"<{token}>", tokens=lambda texts: [[ord(letter) for letter in texts[0]]])
    hunt = SimpleNamespace(model=model, setup=None)
    items = [Example("ab", 1, "t"), Pair("abc", "xb", ("y",), ("n",), "t")]
    data = SimpleNamespace(tokens=[[97, 98], [97, 98, 99]], items=items)
    assert shown_pair(hunt, data, 0, None).tokens == (("<97>", 0.0), ("<98>", 0.0))
    assert shown_pair(hunt, data, 1, None).tokens == (("<97>", 1.0), ("<98>", 0.0), ("<99>", 1.0))
    assert shown_pair(hunt, SimpleNamespace(pictures=[]), 0, None) == Shown()


def _foil(data, hit):
    return next(pair.foils for pair in data.pairs if (pair.clean, pair.corrupted) == (hit.clean, hit.corrupted))


def test_renaming_keeps_a_copying_pair_and_leaves_facts_alone():
    pair = Pair("Ann and Bo met. Ann gave Bob to", "Ann and Bo met. Bo gave Bob to", (" Bo",), (" Ann",), "t", {"IO": (8, 8)},
                ("Ann", "Bo"))  # fmt: skip
    new = renamed(pair, "Bo", "Cy")
    assert (new.clean, new.corrupted) == ("Ann and Cy met. Ann gave Bob to", "Ann and Cy met. Cy gave Bob to")
    assert (new.answers, new.foils, new.entities) == ((" Cy",), (" Ann",), ("Ann", "Cy"))
    assert copies(pair)
    assert not copies(Pair("The capital of Iran is", "The capital of Peru is", (" Tehran",), (" Lima",), "t"))


# proposals --------------------------------------------------------------------------------------


@pytest.fixture
def endpoint():
    """A local server that answers like an OpenAI-compatible endpoint; `state` holds reply and what was asked."""
    state: dict = {"reply": "", "asked": [], "status": 200}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state["asked"].append({"path": self.path, "body": body, "key": self.headers.get("Authorization")})
            reply = json.dumps({"choices": [{"message": {"content": state["reply"]}}]}).encode()
            self.send_response(state["status"])
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    state["url"] = f"http://user:secret@127.0.0.1:{server.server_port}/v1"
    yield state
    server.shutdown()
    server.server_close()


def test_proposals_are_run_on_the_model_and_never_believed(endpoint, polysemantic, items, monkeypatch):
    monkeypatch.setenv("ASSAY_PROPOSER_KEY", "k-123")
    texts = [("the old saw", False), ("the old cup", False), ("near a yak", True), ("the big cat", True)]
    endpoint["reply"] = "Sure: " + json.dumps({"texts": [{"text": t, "member": m} for t, m in texts] + [{"text": 3}, "x"]})
    options = {"proposer_url": endpoint["url"], "proposer_model": "m-1"}
    seen = find(hunt_on(polysemantic, items, "proposals", **options), "proposals")
    (asked,) = endpoint["asked"]
    assert asked["path"] == "/v1/chat/completions" and asked["body"]["model"] == "m-1" and asked["key"] == "Bearer k-123"
    assert seen.found.tried == 4 and seen.found.n_hits == 2 and not seen.verified
    assert {hit.clean for hit in seen.open} == {"the old saw", "near a yak"}
    assert all("so the proposer says" in hit.expected for hit in seen.open)
    assert seen.notes["prompt"] == asked["body"]["messages"][0]["content"] and seen.notes["reply"].startswith("Sure")
    assert "secret" not in json.dumps(seen.notes) and "k-123" not in json.dumps(seen.notes)
    ruled = find(hunt_on(polysemantic, items, "proposals", **options, concept_rule=RULE), "proposals")
    assert {hit.clean for hit in ruled.verified} == {"near a yak"}  # "the old saw" is less fluent than these texts
    assert not find(hunt_on(polysemantic, items, "proposals"), "proposals").found.tried


def test_an_endpoint_that_fails_is_said_and_stops_nothing(endpoint, clean, items):
    endpoint["status"] = 500
    options = {"proposer_url": endpoint["url"], "proposer_model": "m-1"}
    found = find(hunt_on(clean, items, "proposals", **options), "proposals").found
    assert not found.complete and "500" in found.notes["failed"] and "secret" not in found.notes["failed"]
    with pytest.raises(ConnectionError):
        Endpoint("http://127.0.0.1:9/v1", "m").ask("x")


def test_paraphrases_are_run_with_the_label_of_what_was_reworded(endpoint, polysemantic, items):
    options = {"proposer_url": endpoint["url"], "proposer_model": "m-1"}
    hunt = hunt_on(polysemantic, items, "paraphrases", budget=6, **options)
    asked_for = drawn(hunt)
    places = [row + 1 for row, item in enumerate(asked_for) if not item.label]
    members = [row + 1 for row, item in enumerate(asked_for) if item.label]
    said = [(places[0], "near the old saw"), (places[0], "the old cup"), (members[0], "the big cat"), (99, "a saw"),
            (True, "a saw"), (members[0], up_to_word(asked_for[members[0] - 1])), (members[0], " ")]  # fmt: skip
    endpoint["reply"] = json.dumps({"texts": [{"number": n, "text": text} for n, text in said] + ["x", {"number": 1}]})
    seen = find(hunt, "paraphrases")
    (asked,) = endpoint["asked"]
    prompt = asked["body"]["messages"][0]["content"]
    assert all(json.dumps(up_to_word(item)) in prompt for item in asked_for) and len(asked_for) == 6
    assert (seen.found.tried, seen.notes["reworded"]) == (3, 3)
    assert {hit.clean for hit in seen.open} == {"near the old saw"} and not seen.verified  # fires on a tool, as nobody's label
    assert not find(hunt_on(polysemantic, items, "paraphrases"), "paraphrases").found.tried
    endpoint["status"] = 500
    failed = find(hunt_on(polysemantic, items, "paraphrases", **options), "paraphrases").found
    assert not failed.complete and "500" in failed.notes["failed"]
    for broken in ("no json", "{broken}", '{"texts": 3}', "[1]"):
        assert rewordings_in(broken, asked_for) == []


def test_replies_are_data():
    assert proposals_in('{"texts": [{"text": "a", "member": true}, {"text": "", "member": true}]}') == [("a", 1)]
    assert proposals_in("no json") == proposals_in("{broken}") == proposals_in('{"texts": 3}') == proposals_in("[1]") == []


# a packaged model -------------------------------------------------------------------------------


def test_all_methods_run_on_a_packaged_model(glass):
    """glass-en: whatever is found is run again, shown by tokens that make up its text, and counted."""
    words = {"cat": 1, "dog": 1, "horse": 1, "cup": 0, "table": 0, "lamp": 0}
    frames = [f"{a} the {b} [W]" for a in ("I saw", "They kept", "She liked", "We had") for b in ("old", "small")]
    items = [Example(frame.replace("[W]", word), label, frame, (word,))
             for place, frame in enumerate(frames) for number, (word, label) in enumerate(words.items())
             if (place + number) % 3]  # fmt: skip
    acts = glass.capture([item.text for item in items], "resid_post.1", positions="last")["resid_post.1"][:, 0]
    labels = torch.tensor([float(item.label) for item in items])
    vector = acts[labels == 1].mean(0) - acts[labels == 0].mean(0)
    towards = direction("resid_post.1", vector).direction(len(vector))
    for method in searches_for("represents"):
        hunt = hunt_on(glass, items, method.name, vector=torch.ones(len(vector)), corpus=[i.text for i in items])
        score = projection(towards)
        values = numbers(score(acts))
        half, strict = thresholds(values, [item.label for item in items])
        setup = replace(hunt.setup, site="resid_post.1", score=score, half=half, strict=strict)
        hunt = replace(hunt, setup=setup, columns={"score": values})
        seen = find(hunt, method.name)
        assert seen.found.complete and seen.found.n_hits >= len(seen.verified)
        assert canonical(seen.found.record(method.sampled)) and canonical(list(seen.found.kept))  # can be stored
        for hit in seen.found.kept:
            again = Reader(glass, setup).scores(glass.tokens([hit.clean]))[0]
            assert len(again) == len(hit.tokens) and [s for _, s in hit.tokens] == pytest.approx(again, abs=1e-4)
    assert SEARCHES.get("misfits").required
