"""Probes as scikit-learn estimators: their rules, their optima, their directions in activation space."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from assay.errors import UsageError
from assay.probe.estimators import PROBES, AttentionProbe, KSparseProbe, LinearProbe, PCAProbe

NAMES = ["linear", "mean_difference", "lda", "pca", "k_sparse", "mlp", "attention"]
DIRECTIONS = ["linear", "mean_difference", "lda", "pca", "k_sparse"]


def world(n=240, d=12, gap=2.5, seed=0, scales=None):
    """Labels move the activations along a known axis, in coordinates of unequal scale; groups of four rows."""
    rng = np.random.default_rng(seed)
    axis = rng.standard_normal(d)
    axis /= np.linalg.norm(axis)
    y = rng.integers(0, 2, n)
    X = rng.standard_normal((n, d)) + gap * (y[:, None] - 0.5) * axis
    scales = np.ones(d) if scales is None else scales
    return X * scales + 3, y, np.arange(n) // 4, axis * scales


def test_all_probes_are_registered():
    assert PROBES.names() == NAMES
    with pytest.raises(UsageError, match="did you mean|Did you mean 'linear'"):
        PROBES.get("liner")


@pytest.mark.parametrize("name", NAMES)
def test_scikit_learns_own_checks_pass(name):
    with warnings.catch_warnings(action="ignore"):
        found = check_estimator(PROBES.get(name)(), on_fail=None, on_skip=None)
    assert [(row["check_name"], row["exception"]) for row in found if row["status"] == "failed"] == []
    assert sum(row["status"] == "passed" for row in found) > 50


@pytest.mark.parametrize("name", NAMES)
def test_pipelines_clones_and_cross_validation_work(name):
    X, y, groups, _ = world()
    probe = PROBES.get(name)()
    assert clone(probe).get_params() == probe.get_params()
    scores = cross_val_score(make_pipeline(StandardScaler(), probe), X, y, groups=groups, cv=GroupKFold(4), scoring="roc_auc")
    assert scores.min() > 0.8
    fitted = clone(probe).fit(X, np.where(y == 1, "yes", "no"), groups=groups)
    assert (fitted.predict(X) == np.where(fitted.decision_function(X) > 0, "yes", "no")).all()
    proba = fitted.predict_proba(X)
    assert np.allclose(proba.sum(1), 1) and ((proba[:, 1] > 0.5) == (fitted.decision_function(X) > 0)).all()


@pytest.mark.parametrize("name", DIRECTIONS)
def test_directions_are_in_activation_space(name):
    """Adding the direction raises the decision by its squared length, whatever the scales of coordinates."""
    X, y, _, _ = world(scales=np.array([10.0, 0.1] * 6))
    probe = PROBES.get(name)().fit(X, y)
    np.testing.assert_allclose(X @ probe.direction_ + probe.intercept_, probe.decision_function(X), rtol=1e-10)
    moved = probe.decision_function(X + probe.direction_) - probe.decision_function(X)
    np.testing.assert_allclose(moved, probe.direction_ @ probe.direction_, rtol=1e-6)
    assert probe.decision_function(X)[y == 1].mean() > probe.decision_function(X)[y == 0].mean()


def test_the_linear_probe_is_the_librarys_optimum():
    X, y, _, _ = world(scales=np.array([10.0, 0.1] * 6))
    theirs = make_pipeline(StandardScaler(), LogisticRegression(C=0.3, tol=1e-10, max_iter=10_000)).fit(X, y)
    ours = LinearProbe(C=0.3).fit(X, y).decision_function(X)
    np.testing.assert_allclose(ours, theirs.decision_function(X), rtol=1e-5, atol=1e-5)


def test_lda_is_the_librarys_with_the_planted_axis():
    X, y, _, axis = world(n=4000)
    probe = PROBES.get("lda")().fit(X, y)
    theirs = LinearDiscriminantAnalysis(solver="eigen", shrinkage="auto").fit(X, y)
    np.testing.assert_allclose(probe.decision_function(X), theirs.decision_function(X), atol=1e-6)
    assert probe.direction_ @ axis / np.linalg.norm(probe.direction_) > 0.99


def test_the_mean_difference_is_that_and_its_threshold_half_way():
    X, y = np.array([[0.0, 1], [2, 1], [4, 5], [6, 5]]), [0, 0, 1, 1]
    probe = PROBES.get("mean_difference")().fit(X, y)
    assert probe.direction_.tolist() == [4, 4]
    assert probe.decision_function([[3, 3]]).tolist() == [0]


def test_pca_learns_its_axis_without_labels():
    """The wide axis has nothing to do with the labels: PCA takes it all the same, and its sign is that of the labels."""
    X, y, _, axis = world(n=400, gap=1.0)
    wide = np.zeros(12)
    wide[3] = 1
    X = X + 20 * np.random.default_rng(5).standard_normal((400, 1)) * wide
    probe = PCAProbe().fit(X, y)
    assert abs(probe.direction_ @ wide) > 0.99
    flipped = PCAProbe().fit(X, 1 - y)
    np.testing.assert_allclose(flipped.direction_, -probe.direction_)
    assert probe.decision_function(X)[y == 1].mean() >= probe.decision_function(X)[y == 0].mean()


def test_k_sparse_takes_the_planted_features_only():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 300)
    X = rng.standard_normal((300, 50)) * rng.uniform(0.1, 10, 50)
    for feature in (7, 31):
        X[:, feature] += 1.5 * y * X[:, feature].std()
    probe = KSparseProbe(k=2).fit(X, y)
    assert sorted(probe.chosen_.tolist()) == [7, 31] and np.flatnonzero(probe.direction_).tolist() == [7, 31]
    with pytest.raises(UsageError, match="k"):
        KSparseProbe(k=0).fit(X, y)


def test_c_is_chosen_by_groups_not_rows():
    """Labels fixed per group and nothing else to read: by row weak penalties look good, by group none does."""
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(40), 5)
    X = rng.standard_normal((40, 60))[groups] + 0.1 * rng.standard_normal((200, 60))
    y = rng.permutation(np.arange(40) % 2)[groups]
    options = (1e-4, 1e-2, 1.0)
    assert LinearProbe(C=options).fit(X, y, groups=groups).C_ < LinearProbe(C=options).fit(X, y).C_
    with pytest.raises(UsageError, match="C: got"):
        LinearProbe(C=-1).fit(X, y)


def ragged(n=200, d=8, seed=0):
    """One token of each text carries the label, marked by another coordinate; its place is random."""
    rng = np.random.default_rng(seed)
    y, texts = rng.integers(0, 2, n), []
    for label in y:
        tokens = rng.standard_normal((int(rng.integers(3, 12)), d))
        at = rng.integers(len(tokens))
        tokens[at, 0] += 6
        tokens[at, 1] = 3 * (2 * label - 1) + rng.standard_normal()
        texts.append(tokens)
    return texts, y


def test_attention_finds_the_token_that_tells():
    """Means over tokens are noisy here; the learned query looks at the marked token."""
    texts, y = ragged()
    held, truth = ragged(seed=1)
    probe = AttentionProbe().fit(texts, y)
    pooled = LinearProbe().fit(np.stack([t.mean(0) for t in texts]), y)
    assert probe.score(held, truth) > 0.97 > pooled.score(np.stack([t.mean(0) for t in held]), truth) + 0.03
    shares = probe.attention(held)
    assert np.mean([share.argmax() == text[:, 0].argmax() for share, text in zip(shares, held)]) > 0.95
    assert np.allclose([share.sum() for share in shares], 1)
    by_hand = [share @ text @ probe.weights_ + probe.intercept_ for share, text in zip(shares, held)]
    np.testing.assert_allclose(probe.decision_function(held), by_hand, atol=1e-9)


def test_attention_is_the_same_for_the_same_seed_and_leaves_torchs_generator_alone():
    texts, y = ragged(60)
    state = torch.get_rng_state()
    first, second = (AttentionProbe(random_state=3).fit(texts, y).decision_function(texts) for _ in range(2))
    assert (first == second).all() and torch.equal(state, torch.get_rng_state())
    assert not np.array_equal(first, AttentionProbe(random_state=4).fit(texts, y).decision_function(texts))
    with pytest.raises(ValueError, match="one token"):
        AttentionProbe().fit([*texts[:-1], texts[-1][:0]], y)


def test_attention_with_one_token_is_the_linear_probe():
    X, y, _, _ = world(scales=np.array([10.0, 0.1] * 6))
    theirs = LinearProbe(C=0.1).fit(X, y)
    np.testing.assert_allclose(AttentionProbe(C=0.1).fit(X, y).decision_function(X), theirs.decision_function(X), atol=2e-3)


def test_attention_cross_validates_on_lists():
    texts, y = ragged(120)
    assert cross_val_score(AttentionProbe(), texts, y, cv=3).mean() > 0.9
