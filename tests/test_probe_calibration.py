"""Scores with intervals, probabilities, conformal sets, code length, scarcity and control tasks.

Coverage is tested by simulation: worlds whose true AUROC is known, seeded.
"""

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV, calibration_curve
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import roc_auc_score

from assay.errors import UsageError
from assay.probe.calibration import Calibrated, brier, conformal, ece, reliability
from assay.probe.code_length import block_of, online_bits
from assay.probe.control import control_labels
from assay.probe.estimators import logistic
from assay.probe.scarcity import curve
from assay.probe.scores import _delong_error, _weighted_auroc, accuracy, auroc, auroc_difference, mean_over_groups

WORLD = dict(groups=24, rows=6, share=0.5, gap=1.5)


def grouped(rng, groups, rows, share, gap, mixed=True):
    """Scores with a part of their variance common to a group, labels per row (or per group), groups."""
    of = np.repeat(np.arange(groups), rows)
    y = rng.integers(0, 2, len(of)) if mixed else rng.permutation(np.arange(groups) % 2)[of]
    common = rng.standard_normal(groups)[of] * share**0.5
    return common + (1 - share) ** 0.5 * rng.standard_normal(len(of)) + gap * y, y, of


def true_auroc(gap):
    return float(norm.cdf(gap / 2**0.5))


# scores ------------------------------------------------------------------------------------------


def test_values_are_the_librarys():
    rng = np.random.default_rng(0)
    scores, y = np.round(rng.standard_normal(80), 1), rng.integers(0, 2, 80)
    assert auroc(scores, y).value == roc_auc_score(y, scores)
    assert accuracy(scores, y).value == np.mean((scores > 0) == y)
    other = rng.standard_normal(80)
    assert auroc_difference(scores, other, y).value == pytest.approx(roc_auc_score(y, scores) - roc_auc_score(y, other))


def test_a_draw_is_the_auroc_of_its_rows():
    rng = np.random.default_rng(0)
    scores, y = np.round(rng.standard_normal(60), 1), rng.integers(0, 2, 60) == 1
    weights = rng.integers(0, 3, (4, 60)).astype(float)
    by_hand = [roc_auc_score(np.repeat(y, w.astype(int)), np.repeat(scores, w.astype(int))) for w in weights]
    np.testing.assert_allclose(_weighted_auroc(scores, y, weights), by_hand)
    assert np.isnan(_weighted_auroc(scores, y, y[None].astype(float))).all()


def test_delong_is_the_variance_of_placements():
    rng = np.random.default_rng(0)
    scores, y = np.round(rng.standard_normal(50), 1), rng.integers(0, 2, 50) == 1
    wins = (scores[y][:, None] > scores[~y]) + 0.5 * (scores[y][:, None] == scores[~y])
    by_hand = wins.mean(1).var(ddof=1) / y.sum() + wins.mean(0).var(ddof=1) / (~y).sum()
    assert _delong_error(scores, y) == pytest.approx(by_hand**0.5)


@pytest.mark.parametrize(("gap", "mixed"), [(0.0, False), (1.5, True), (1.5, False), (2.3, False)])
def test_intervals_over_groups_cover_and_those_over_rows_do_not(gap, mixed):
    rng, true = np.random.default_rng(1), true_auroc(gap)
    covered, over_rows = [], []
    for seed in range(150):
        scores, y, of = grouped(rng, 24, 6, 0.5, gap, mixed)
        found, rows = auroc(scores, y, of, draws=200, seed=seed), auroc(scores, y)
        covered.append(found.low <= true <= found.high)
        over_rows.append(rows.low <= true <= rows.high)
    assert 0.88 <= np.mean(covered) <= 0.99
    assert mixed or np.mean(over_rows) < 0.85


def test_delong_covers_independent_rows():
    rng = np.random.default_rng(2)
    for gap in (0.0, 2.3):
        found = [auroc(*grouped(rng, 60, 1, 0.0, gap)[:2]) for _ in range(200)]
        assert 0.9 <= np.mean([f.low <= true_auroc(gap) <= f.high for f in found]) <= 0.985


def test_differences_are_paired():
    """Two scores that share their noise: the interval of the difference covers, and is far narrower than either's."""
    rng, covered, widths = np.random.default_rng(3), [], []
    for seed in range(150):
        scores, y, of = grouped(rng, **WORLD)
        better = scores + 0.5 * y
        found = auroc_difference(better, scores, y, of, draws=200, seed=seed)
        true = true_auroc(WORLD["gap"] + 0.5) - true_auroc(WORLD["gap"])
        covered.append(found.low <= true <= found.high)
        own = auroc(scores, y, of, draws=200, seed=seed)
        widths.append((found.high - found.low) / (own.high - own.low))
    assert 0.87 <= np.mean(covered) <= 0.99 and np.mean(widths) < 0.7
    same = auroc_difference(scores, scores, y, of)
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_accuracy_intervals_cover():
    rng, covered = np.random.default_rng(4), []
    true = norm.cdf(0.75)
    for seed in range(150):
        scores, y, of = grouped(rng, **WORLD)
        found = accuracy(scores, y, of, draws=200, seed=seed, threshold=0.75)
        covered.append(found.low <= true <= found.high)
    assert 0.9 <= np.mean(covered) <= 0.99


def test_a_perfect_score_has_a_lower_bound_that_groups_decide():
    y, scores = np.arange(80) % 2, np.arange(80) % 2 + 0.0
    rows, few = auroc(scores, y), auroc(scores, y, np.arange(80) // 10)
    assert rows.value == few.value == rows.high == 1 and few.low < rows.low < 1
    assert rows.low == pytest.approx(0.025 ** (1 / 40)) and few.low == pytest.approx(0.025 ** (1 / 4))
    assert auroc(scores, y, ["one"] * 80).low is None


def test_a_mean_over_groups_uses_groups():
    values = np.repeat([0.0, 1.0, 0.5, 0.2], 25)
    found = mean_over_groups(values, np.repeat(list("abcd"), 25).tolist())
    assert found.value == pytest.approx(0.425) and found.groups == 4 and found.high - found.low > 0.5


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(([1.0, 2], [1, 1]), "labels"), (([1.0, 2], [1, 2]), "labels"), (([1.0, np.nan], [1, 0]), "scores"),
     (([1.0], [1, 0]), "scores"), (([1.0, 2], [1, 0], ["a"]), "groups")],
)  # fmt: skip
def test_wrong_scores_are_named(arguments, named):
    with pytest.raises(UsageError, match=f"^{named}: got"):
        auroc(*arguments)


# probabilities -----------------------------------------------------------------------------------


class Given(ClassifierMixin, BaseEstimator):
    """A classifier whose decision is its only feature."""

    def fit(self, X, y):
        self.classes_, self.fitted_ = np.array([0, 1]), True
        return self

    def decision_function(self, X):
        return X[:, 0]

    def predict(self, X):
        return (X[:, 0] > 0).astype(int)


@pytest.mark.parametrize(("method", "theirs"), [("platt", "sigmoid"), ("isotonic", "isotonic")])
def test_calibration_is_the_librarys(method, theirs):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 300)
    scores = 3 * (y + rng.standard_normal(300)) + 5
    library = CalibratedClassifierCV(FrozenEstimator(Given().fit(None, None)), method=theirs, ensemble=False)
    expected = library.fit(scores[:, None], y).predict_proba(scores[:, None])[:, 1]
    np.testing.assert_allclose(Calibrated.fit(scores, y, method).proba(scores), expected, atol=1e-4)


def test_calibrated_probabilities_are_true_shares():
    rng = np.random.default_rng(0)
    true = rng.uniform(0.02, 0.98, 20_000)
    y = (rng.uniform(size=20_000) < true).astype(int)
    odds = 4 * np.log(true / (1 - true)) + 7  # too sure, and off by a constant
    half = np.arange(20_000) < 10_000
    for method in ("platt", "isotonic"):
        made = Calibrated.fit(odds[half], y[half], method).proba(odds[~half])
        assert ece(made, y[~half]) < 0.02 < ece(1 / (1 + np.exp(-odds[~half])), y[~half])
        assert np.abs(made - true[~half]).mean() < 0.02


def test_reliability_ece_and_brier():
    rng = np.random.default_rng(0)
    p, y = rng.uniform(size=500), rng.integers(0, 2, 500)
    found = reliability(p, y, 7)
    share, mean = calibration_curve(y, p, n_bins=7)
    np.testing.assert_allclose([b.share for b in found], share)
    np.testing.assert_allclose([b.mean for b in found], mean)
    assert sum(b.n for b in found) == 500 and all(b.share_low <= b.share <= b.share_high for b in found)
    assert ece(p, y, 7) == pytest.approx(sum(b.n / 500 * abs(b.share - b.mean) for b in found))
    assert brier(p, y) == pytest.approx(np.mean((p - y) ** 2))
    assert len(reliability([1.0, 0.0], [1, 0])) == 2 and ece([1.0, 0.0], [1, 0]) == 0
    with pytest.raises(UsageError, match="proba: got"):
        ece([1.2], [1])


@pytest.mark.parametrize("alpha", [0.1, 0.25])
def test_conformal_sets_hold_the_label_of_each_class_as_often_as_promised(alpha):
    """For a bad probe and unequal classes: mean coverage over calibration sets is 1 - alpha to 1 - alpha + 1/(n + 1)."""
    rng, covered = np.random.default_rng(0), {0: [], 1: []}
    for _ in range(400):
        y = (rng.uniform(size=140) < 0.25).astype(int)
        p = 1 / (1 + np.exp(-(3 * rng.standard_normal(140) + y + 2)))
        sets = conformal(p[:80], y[:80], p[80:], alpha)
        for label in (0, 1):
            hit = sets.inside[y[80:] == label, label]
            covered[label] += [hit.mean()] if len(hit) else []
    assert all(1 - alpha - 0.015 < np.mean(covered[label]) < 1 - alpha + 0.07 for label in (0, 1))


def test_conformal_by_groups_covers_rows_of_new_groups():
    """All rows of a group share most of their noise: row-wise calibration fails for new groups, one row a group holds."""
    rng, right, wrong = np.random.default_rng(1), [], []
    for seed in range(500):
        scores, y, of = grouped(rng, 40, 8, 0.9, 1.5, mixed=False)
        p = 1 / (1 + np.exp(-scores))
        cal = of < 24
        for kept, groups in ((right, of[cal].tolist()), (wrong, None)):
            sets = conformal(p[cal], y[cal], p[~cal], 0.1, groups, seed)
            kept.append(sets.inside[np.arange((~cal).sum()), y[~cal]].mean())
    assert np.mean(wrong) < 0.9 <= np.mean(right) < 0.97


def test_a_probe_abstains_where_it_does_not_know():
    y = np.tile([0, 1], 200)
    p = np.where(np.arange(400) < 200, 0.5 + 0.45 * (2 * y - 1), np.random.default_rng(0).uniform(0.4, 0.6, 400))
    sets = conformal(p, y, [0.97, 0.03, 0.5, 0.52], 0.1)
    assert sets.label.tolist() == [1, 0, -1, -1] and sets.answered.tolist() == [True, True, False, False]
    assert sets.summary([1, 1, 0, 1]) == {"coverage_0": 1.0, "coverage_1": pytest.approx(2 / 3), "answered": 0.5,
                                          "accuracy_answered": 0.5}  # fmt: skip
    assert conformal(p[:8], y[:8], [0.99], 0.1).inside.all()  # four rows a class cannot promise 90%
    with pytest.raises(UsageError, match="alpha: got"):
        conformal(p, y, p, 0.0)
    with pytest.raises(UsageError, match="labels: got"):
        conformal(p, np.ones(400), p)


# code length, scarcity, control ------------------------------------------------------------------


def test_code_length_by_hand():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 120)
    X = rng.standard_normal((120, 4)) + y[:, None]
    found, where = online_bits(X, y, C=0.5, blocks=(0.25, 1.0)), block_of(y, None, (0.25, 1.0), 0)
    weights, bias = logistic(X[where == 0], y[where == 0].astype(float), 0.5)
    p = 1 / (1 + np.exp(-(X[where == 1] @ weights + bias)))
    later = y[where == 1]
    assert found.bits == pytest.approx(30 - np.log2(np.where(later == 1, p, 1 - p)).sum())
    assert found.blocks == (30, 90) and found.uniform_bits == 120 and found.compression == 120 / found.bits > 1.3


def test_noise_is_not_compressed_and_unequal_labels_are_not_the_activations_work():
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((400, 10)), (rng.uniform(size=400) < 0.1).astype(int)
    found = online_bits(X, y, C=0.01)
    assert found.compression > 1.4 and found.gain < 0.02
    told = online_bits(X + 8 * y[:, None], y, C=0.01)
    assert told.gain > 0.4


def test_blocks_keep_groups_together():
    groups = np.repeat(np.arange(30), 5)
    where = block_of(np.zeros(150, int), groups.tolist(), (0.1, 0.3, 1.0), 0)
    assert all(len(set(where[groups == g])) == 1 for g in range(30)) and np.bincount(where).tolist() == [15, 30, 105]
    with pytest.raises(UsageError, match="blocks: got"):
        block_of(np.zeros(150, int), None, (0.5, 0.4, 1.0), 0)
    with pytest.raises(UsageError, match="groups: got"):
        block_of(np.zeros(150, int), ["a"] * 150, (0.5, 1.0), 0)


def test_words_that_are_known_by_heart_do_not_compress_by_group():
    """A label per word and nothing else: rows of other words tell nothing, so the code of groups gains nothing."""
    rng = np.random.default_rng(0)
    words = np.repeat(np.arange(40), 6)
    X = rng.standard_normal((40, 50))[words]
    y = control_labels(words.tolist())
    by_row, by_group = online_bits(X, y, None, C=0.1), online_bits(X, y, words.tolist(), C=0.1)
    assert by_row.compression > 1.4 > 1.05 > by_group.compression


def test_scarcity_rises_with_groups_and_its_end_is_the_whole_fit():
    rng = np.random.default_rng(0)
    y, yh = rng.integers(0, 2, 320), rng.integers(0, 2, 200)
    X, Xh = rng.standard_normal((320, 30)) + 0.4 * y[:, None], rng.standard_normal((200, 30)) + 0.4 * yh[:, None]
    points = curve(X, y, np.arange(320) // 4, Xh, yh, np.arange(200) // 4, draws=200)
    assert [p.groups for p in points] == [5, 10, 20, 40, 80] and points[0].value < points[-1].value - 0.03
    weights, bias = logistic(X, y.astype(float), 0.01)
    assert points[-1].value == pytest.approx(roc_auc_score(yh, Xh @ weights + bias)) and len(points[-1].by_seed) == 1
    assert all(p.low < p.value < p.high for p in points)
    assert points == curve(X, y, np.arange(320) // 4, Xh, yh, np.arange(200) // 4, draws=200)
    with pytest.raises(UsageError, match="sizes: got"):
        curve(X, y, np.arange(320) // 4, Xh, yh, sizes=(1, 500))


def test_control_labels_go_by_unit_and_draw():
    labels = control_labels(["a", "b", "a", "c"])
    assert labels[0] == labels[2] and len({tuple(control_labels(list("abcdefgh"), draw)) for draw in range(5)}) > 1
