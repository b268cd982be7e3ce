"""The batched path against scikit-learn's own fits, one by one."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from assay.errors import UsageError
from assay.probe import path as path_module
from assay.probe.path import fit_path, folds_of


def world(n=150, d=20, sites=2, gap=1.5, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    mixing = rng.standard_normal((sites, d, d)) * (1 + np.arange(d)) ** -0.7  # a few wide axes, many narrow ones
    X = (rng.standard_normal((sites, n, d)) + gap * (y[:, None] - 0.5) * rng.standard_normal(d) / d**0.5) @ mixing
    return X * rng.uniform(0.01, 100, d) + rng.uniform(-50, 50, d), y, np.arange(n) // 5


def theirs(X, y, C):
    """(weights, bias, standardised weights) in the space of X, to many digits."""
    scaler = StandardScaler().fit(X)
    fitted = LogisticRegression(C=C, tol=1e-12, max_iter=100_000, solver="newton-cholesky").fit(scaler.transform(X), y)
    weights = fitted.coef_[0] / scaler.scale_
    return weights, float(fitted.intercept_[0] - weights @ scaler.mean_), fitted.coef_[0]


def agrees(X, y, groups, Cs, folds=5):
    """The largest relative distance of coefficients, and of held-out scores, from the library's."""
    found = fit_path(X, y, groups, Cs, folds)
    apart = []
    for s, x in enumerate(X):
        spread = x.std(0)
        for i, C in enumerate(found.Cs):
            weights, bias, _ = theirs(x, y, C)
            apart.append(np.linalg.norm((found.coef[s, i] - weights) * spread) / np.linalg.norm(weights * spread))
            held = np.empty(len(y))
            for f in np.unique(found.fold):
                out = found.fold == f
                weights, bias, _ = theirs(x[~out], y[~out], C)
                held[out] = x[out] @ weights + bias
            apart.append(np.abs(found.held_out[s, i] - held).max() / np.abs(held).max())
    assert (found.error <= 1e-4).all()
    return max(apart)


def test_equal_to_the_library_for_every_fold_and_penalty():
    X, y, groups = world()
    assert agrees(X, y, groups, (1e-4, 1e-2, 1.0, 30.0)) < 2e-4


def test_equal_with_more_features_than_rows():
    X, y, groups = world(n=60, d=130, sites=1)
    assert agrees(X, y, groups, (1e-3, 0.1, 10.0), folds=3) < 2e-4


def test_equal_for_separable_rows_and_unequal_classes():
    X, y, groups = world(n=120, d=10, sites=1, gap=12)
    y = y * (np.arange(120) % 3 == 0)
    assert agrees(X, y, groups, (1e-3, 1.0, 1e4), folds=3) < 2e-4


def test_features_that_do_not_vary_are_left_alone():
    """One constant everywhere, one that varies in a single group only, one that hardly varies: as the library has it."""
    X, y, groups = world(n=100, d=6, sites=1)
    X[0, :, 1] = 7.0
    X[0, :, 2] = np.where(groups == 3, X[0, :, 2], 0.1)
    X[0, :, 4] = 1 + 1e-9 * X[0, :, 4]
    assert agrees(X, y, groups, (1e-2, 1.0)) < 2e-4
    assert fit_path(X, y, groups, (1.0,)).coef[0, 0, 1] == 0


def test_nothing_to_read_gives_nothing():
    y = np.array([0, 1] * 20)
    found = fit_path(np.ones((1, 40, 3)), y, None, (0.1, 1.0))
    assert not found.coef.any() and found.error.max() == 0
    np.testing.assert_allclose(found.intercept, 0, atol=1e-9)


def test_the_error_is_a_bound_of_the_true_one():
    X, y, groups = world(sites=1)
    found = fit_path(X, y, groups, (1e-3, 1.0), tol=0.05)
    for i, C in enumerate(found.Cs):
        weights, spread = theirs(X[0], y, C)[0], X[0].std(0)
        true = np.linalg.norm((found.coef[0, i] - weights) * spread) / np.linalg.norm(found.coef[0, i] * spread)
        assert true <= found.error[0, i] <= 0.05


def test_fits_that_do_not_arrive_are_made_by_the_library(monkeypatch):
    X, y, groups = world(n=80, d=8, sites=1)
    right = fit_path(X, y, groups, (0.01, 1.0))
    monkeypatch.setattr(path_module, "ROUNDS", 1)
    late = fit_path(X, y, groups, (0.01, 1.0))
    np.testing.assert_allclose(late.held_out, right.held_out, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(late.coef, right.coef, rtol=1e-2, atol=1e-3 * np.abs(right.coef).max(-1).min())
    assert late.error.max() < 1e-3


def test_scores_of_other_rows_and_the_choice_of_c():
    X, y, groups = world()
    found = fit_path(X, y, groups, (1.0, 1e-3), progress=(done := []).append)
    assert done == [1, 1] and found.Cs == (1e-3, 1.0)
    np.testing.assert_allclose(found.decide(X)[1, 0], X[1] @ found.coef[1, 0] + found.intercept[1, 0])
    loss = -np.log(np.where(y == 1, 1 / (1 + np.exp(-found.held_out)), 1 / (1 + np.exp(found.held_out)))).mean(-1)
    np.testing.assert_allclose(found.log_loss(y), loss)


def test_folds_keep_groups_together_and_both_labels_in_training():
    _, y, groups = world()
    fold = folds_of(y, groups, 5)
    assert len(set(fold)) == 5 and all(len(set(fold[groups == g])) == 1 for g in groups)
    assert all(len(set(y[fold != f])) == 2 for f in range(5))
    few = folds_of([0, 0, 1, 1, 0, 0], ["a", "b", "c", "d", "e", "f"], 5)
    assert len(set(few)) == 2  # two groups of label 1


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"y": [0, 1, 2] * 50}, "y"), ({"y": [0] * 150}, "y"), ({"Cs": (0.0,)}, "Cs"), ({"groups": ["a"] * 150}, "groups"),
        ({"groups": ["a"] * 3}, "groups"), ({"folds": 1}, "folds"), ({"X": np.full((1, 150, 2), np.nan)}, "X, site 0"),
        ({"X": [np.ones((150, 2)), np.ones((150, 3))]}, "X"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(change, named):
    X, y, groups = world()
    with pytest.raises(UsageError, match=rf"^{named}: got"):
        fit_path(**{"X": X, "y": y, "groups": groups, **change})
