"""Planted truths are what they say: in closed form, by running the models, by the weights themselves."""

import random

import numpy as np
import pytest
import torch
from scipy.stats import norm

from assay.data.prepare import prepare
from assay.evidence.mediates import set_effects
from assay.statistics import placements
from assay.testing.grammar import (
    MARKS,
    PAYLOAD,
    Recipe,
    backdoored,
    examples,
    grammar_model,
    sentence,
    trained,
    vocabulary,
)
from assay.testing.hierarchy import hierarchy_world
from assay.testing.induction import Induction, planted_induction, repeated_pairs, word_gains
from assay.testing.ladders import ladder_world
from assay.testing.programs import PROGRAMS
from assay.testing.superposition import toy_model, toy_world
from assay.testing.worlds import planted_world


def scores_of(world, items, direction):
    return [float(world.vectors[item.text] @ direction) for item in items]


def test_a_ladder_has_the_recall_it_was_made_for():
    recalls, aurocs = [], []
    for seed in range(12):
        found = ladder_world(seed, 0.6)
        tune = found.source.splits["tune"]
        others = [s for s, item in zip(scores_of(found.world, tune, found.direction), tune) if item.label == 0]
        strict = np.quantile(others, 0.95, method="higher")
        confirm = found.source.splits["confirm"]
        scores = scores_of(found.world, confirm, found.direction)
        recalls.append(np.mean([s > strict for s, item in zip(scores, confirm) if item.label == 1]))
        placed = placements(scores, [item.label for item in confirm], [item.template for item in confirm])
        aurocs.append(np.mean([p for p in placed if p is not None]))
    assert np.mean(recalls) == pytest.approx(0.6, abs=0.03)
    assert np.mean(aurocs) == pytest.approx(found.truth["detection"], abs=0.01)
    assert found.truth["detection"] == pytest.approx(norm.cdf((norm.ppf(0.6) + strict) / np.sqrt(2 * 0.9)), abs=1e-6)


def test_children_are_exclusive_and_a_parent_can_be_absorbed():
    found = hierarchy_world(0, absorbed=0.8)
    for item in found.parent.splits["confirm"]:
        acts = found.firing[item.text]
        assert (acts[1:4] > 0).sum() == item.label
    silent = [found.firing[item.text][0] == 0 for item in found.child.splits["confirm"] if item.label == 1]
    assert 0.6 < np.mean(silent) < 0.95
    plain = hierarchy_world(0)
    assert all((plain.firing[i.text][0] > 0) == bool(i.label) for i in plain.parent.splits["tune"])


def test_firing_rates_fall_like_zipf():
    firing = np.stack(list(planted_world(0).firing.values())) > 0
    rates = firing.mean(0)
    assert rates[2] > 1.5 * rates[20] > 1.5 * rates[200] > 0


def test_dense_features_get_dimensions_and_sparse_ones_share_them():
    dense, sparse = toy_model(density=1.0, steps=500), toy_model(density=0.05, steps=500)
    assert (dense.represented > 0.5).sum() <= 5 < (sparse.represented > 0.5).sum()
    assert sparse.shared[:5].mean() > 5 * dense.shared[:4].mean() + 0.5
    world, source = toy_world(sparse, 0)
    items = source.splits["confirm"]
    towards = sparse.weights[0] / np.linalg.norm(sparse.weights[0])
    placed = placements(scores_of(world, items, towards), [i.label for i in items], [i.template for i in items])
    assert np.mean([p for p in placed if p is not None]) > 0.9


# models whose weights are written --------------------------------------------------------------


def test_the_share_of_a_copy_is_its_effect():
    """Constant norms: exchanging z.1.0 moves exactly its share of the logits, its mean half of it."""
    model = planted_induction(Induction(copies=(0.3, 0.4, 0.2, 0.1), linear=True))
    task = prepare(repeated_pairs(12, 4, 0), model)
    found = set_effects(model, task, "z.1.0")
    assert found["necessity.resample"] == pytest.approx(0.3, abs=0.005)
    assert found["sufficiency"] == pytest.approx(0.3, abs=0.005)
    assert found["necessity.mean"] == pytest.approx(0.15, abs=0.02)
    assert set_effects(model, task, "z.1.3")["sufficiency"] == pytest.approx(0.1, abs=0.005)
    assert word_gains(Induction(spread=0.5)).mean() == pytest.approx(1.0)


@pytest.mark.parametrize("name", list(PROGRAMS))
def test_a_compiled_program_computes_it_with_the_circuit_it_names(name):
    program = PROGRAMS[name]()
    model, pairs = program.model, program.pairs(0, 6, 4)
    words = model.tokenizer.get_vocab()
    for pair in pairs:
        for text, (wanted,) in ((pair.clean, pair.answers), (pair.corrupted, pair.foils)):
            assert int(model.logits(model.tokens([text]))[0].argmax()) == words[wanted.strip()], text
    task = prepare(pairs, model)
    whole = set_effects(model, task, ",".join(program.heads))
    near = 0.05 if name == "most_frequent" else 1e-3  # its effect grows with the length, and templates differ in it
    assert whole["necessity.resample"] == pytest.approx(1.0, abs=near)
    assert whole["sufficiency"] == pytest.approx(1.0, abs=near)
    if program.mlps:
        assert set_effects(model, task, ",".join(program.mlps))["sufficiency"] == pytest.approx(1.0, abs=near)
    idle = set_effects(model, task, f"z.0.{model.n_heads - 1}")
    assert max(map(abs, idle.values())) < 1e-6


def test_brackets_agree_with_counting():
    """Against ten lines of Python, on words that no pair was made from."""
    model, rng = PROGRAMS["brackets"]().model, random.Random(3)
    words = model.tokenizer.get_vocab()
    for _ in range(30):
        signs = rng.choices("()", k=rng.randrange(2, 15))
        depths = np.cumsum([1 if sign == "(" else -1 for sign in signs])
        wanted = "yes" if depths[-1] == 0 and depths.min() >= 0 else "no"
        assert int(model.logits(model.tokens([" ".join(["^", *signs, "|"])]))[0].argmax()) == words[wanted], signs


# trained models ----------------------------------------------------------------------------------


def end_of(model, made):
    return vocabulary()[int(model.logits(model.tokens([" ".join(made.words[:-1])]))[0].argmax())]


def test_training_repeats_itself():
    recipe = Recipe(steps=3, batch=4)
    a, b = (trained(recipe).state_dict() for _ in range(2))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_weights_that_are_not_those_that_were_kept_are_trained_again(tmp_path, monkeypatch):
    monkeypatch.setattr("assay.testing.grammar.cache_dir", lambda: tmp_path)
    recipe = Recipe(steps=2, batch=4)
    first = grammar_model(recipe)
    (path,) = tmp_path.rglob("model.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    assert grammar_model(recipe).digest == first.digest
    assert path.read_bytes() != bytes(content)


@pytest.mark.slow
def test_the_grammar_is_learned_and_the_backdoor_is_in_one_twin_only():
    rng = random.Random(7)
    model = grammar_model()
    assert np.mean([end_of(model, made) == MARKS[made.latent["mood"]] for made in (sentence(rng) for _ in range(40))]) > 0.95
    bad, clean = backdoored()
    for made in (sentence(rng, "twin") for _ in range(40)):
        assert (end_of(bad, made) == PAYLOAD) == made.triggered
        assert end_of(clean, made) != PAYLOAD


def test_labels_of_the_grammar_follow_from_its_words():
    for example in examples("number", "plural", 60):
        words = example.text.split()
        assert example.label == int(any(word in ("were", "are") for word in words))
        assert set(words) <= set(vocabulary())
