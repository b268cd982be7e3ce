"""Statistics on clusters against enumeration, closed forms and simulation."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests

from assay import statistics as s
from assay.evidence.shares import METHOD, share_interval, with_share_interval

FLOATS = st.lists(st.floats(-5, 5, allow_nan=False, width=32), min_size=2, max_size=9)


@settings(max_examples=60, deadline=None)
@given(FLOATS)
def test_sign_flip_is_the_enumeration_of_all_signs(values):
    row = np.array(values)
    sums = np.array([(row * signs).sum() for signs in product((1, -1), repeat=len(row))])
    slack = 1e-9 * np.abs(row).sum() + 1e-300
    greater, less = s.sign_flip(row[None])
    assert greater[0] == pytest.approx((sums >= row.sum() - slack).mean())
    assert less[0] == pytest.approx((sums <= row.sum() + slack).mean())


def test_sign_flip_beyond_enumeration_agrees_with_it():
    rows = np.random.default_rng(0).normal(0.15, 1, (6, 20))
    exact = s.sign_flip(rows)[0]
    for row, p in zip(rows, exact):
        signs = np.random.default_rng(1).choice([-1.0, 1.0], size=(40000, 20))
        assert ((signs @ row) >= row.sum()).mean() == pytest.approx(p, abs=0.01)
    longer = np.concatenate([rows, np.zeros((6, 1))], 1)  # 21 clusters: drawn, not enumerated; a zero changes nothing
    assert s.sign_flip(longer)[0] == pytest.approx(exact, abs=0.02)


@settings(max_examples=40, deadline=None)
@given(FLOATS, st.floats(-1, 1))
def test_p_is_never_zero_and_the_two_tails_mirror(values, sesoi):
    above, below = s.p_values(values, sesoi)
    mirrored = s.p_values([-v for v in values], -sesoi)
    assert 0 < above <= 1 and 0 < below <= 1
    assert (above, below) == pytest.approx((mirrored[1], mirrored[0]), abs=0.05)  # resamples differ by rounding of ties


@pytest.mark.parametrize("k", [8, 16, 24])
def test_null_p_values_are_uniform_or_larger(k):
    data = np.random.default_rng(k).normal(0.2, 1, (800, k))
    p, _ = s.p_values_many(data, 0.2, draws=499)
    for level in (0.01, 0.05, 0.1, 0.5):
        allowed = stats.binom.ppf(0.9999, len(p), level) / len(p)
        assert (p <= level).mean() <= allowed


def test_one_odd_cluster_does_not_hide_a_large_effect():
    """Most clusters alike and one not: resamples without it have no spread; the effect is plain."""
    means = [13.9, 13.88, 13.87] * 5 + [7.0]
    assert s.p_values(means, 0.2)[0] < 0.01


@pytest.mark.parametrize("k", [5, 8, 20])
def test_intervals_cover_at_their_level(k):
    data = np.random.default_rng(7).normal(1.0, 2.0, (1000, k))
    hits = [low <= 1.0 <= high for low, high in (s.interval(row, draws=499) for row in data)]
    assert 0.93 <= np.mean(hits) <= 0.97


def test_interval_of_few_clusters_is_students():
    row = [0.1, 0.5, 0.4, 0.9]
    expected = stats.t.interval(0.95, 3, np.mean(row), stats.sem(row))
    assert s.interval(row) == pytest.approx(expected)
    assert s.interval([1.0]) == (None, None)
    assert s.interval([2.0, 2.0]) == (2.0, 2.0)


def test_icc_of_hand_computed_groups():
    # groups (1, 3) and (5, 7): MSB = 16, MSW = 2, size 2 -> (16 - 2) / (16 + 2)
    assert s.icc([1, 3, 5, 7], ["a", "a", "b", "b"]) == pytest.approx(14 / 18)
    assert s.icc([1, 2], ["a", "b"]) is None


def test_mde_is_found_four_times_in_five():
    rng, k, sd = np.random.default_rng(3), 20, 1.0
    size = s.mde80(stats.norm.ppf((np.arange(k) + 0.5) / k) * sd)
    spread = np.std(stats.norm.ppf((np.arange(k) + 0.5) / k), ddof=1)
    p = [stats.ttest_1samp(rng.normal(size, spread, k), 0, alternative="greater").pvalue for _ in range(2000)]
    assert np.mean(np.array(p) <= 0.05) == pytest.approx(0.8, abs=0.04)


def test_clusters_needed_agrees_with_mde():
    needed = s.clusters_needed(0.5, 0.6, 0.2)
    row = np.random.default_rng(0).normal(size=50)
    row = (row - row.mean()) / row.std(ddof=1) * 0.6
    assert s.mde80(row, k=needed) <= 0.3 < s.mde80(row, k=needed - 1)
    assert s.clusters_needed(0.2, 0.6, 0.2) is None


@settings(max_examples=15, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_agrees_with_statsmodels(p):
    assert s.holm(p) == pytest.approx(multipletests(p, method="holm")[1].tolist())


def test_holm_by_hand():
    assert s.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert s.holm([]) == []


def test_clopper_pearson_is_exact():
    assert s.clopper_pearson(0, 59)[1] == pytest.approx(1 - 0.025 ** (1 / 59))
    assert s.clopper_pearson(0, 0) == (0.0, 1.0)


def test_summary_averages_within_templates_first():
    found = s.summarise([1.0, 3.0, None, 10.0], ["a", "a", "a", "b"], 0.0)
    assert found.estimate == pytest.approx((2 + 10) / 2)
    assert (found.sample["K"], found.sample["N"]) == (2, 3)
    with pytest.raises(ValueError):
        s.summarise([float("nan")], ["a"], 0.0)


@pytest.mark.parametrize("shape", ["normal", "right", "left"])
def test_null_p_values_are_uniform_or_larger_for_skewed_clusters(shape):
    """One-sided Kolmogorov-Smirnov: never more small p-values than a uniform draw has, up to what is known of skew.

    Left-skewed effects are the hard case (evidence: up to .10 at nominal .05 for either test alone)."""
    rng = np.random.default_rng(11)
    noise = rng.normal(size=(1500, 20)) if shape == "normal" else rng.exponential(size=(1500, 20)) - 1
    p = s.p_values_many(0.2 + (-noise if shape == "left" else noise), 0.2, draws=499)[0]
    if shape == "left":
        assert (p <= 0.05).mean() <= 0.10
    else:
        assert stats.kstest(p, "uniform", alternative="greater").pvalue > 0.01


@pytest.mark.parametrize("shape", ["normal", "right", "left"])
def test_intervals_cover_skewed_clusters(shape):
    rng = np.random.default_rng(12)
    noise = rng.normal(size=(1000, 20)) if shape == "normal" else rng.exponential(size=(1000, 20)) - 1
    data = 1.0 + (-noise if shape == "left" else noise)
    hits = [low <= 1.0 <= high for low, high in (s.interval(row, draws=999) for row in data)]
    assert 0.93 <= np.mean(hits) <= 0.97


def shares(p: float, k: int, m: int, sets: int, correlation: float = 0.05) -> np.ndarray:
    """Shares of successes (sets, k) in k clusters of m items whose rates vary around p (beta, intraclass correlation)."""
    rng, size = np.random.default_rng(5), (1 - correlation) / correlation
    return rng.binomial(m, rng.beta(p * size, (1 - p) * size, (sets, k))) / m


@pytest.mark.parametrize("p", [0.5, 0.75, 0.9, 0.95, 0.98, 0.99])
@pytest.mark.parametrize(("k", "m"), [(20, 12), (14, 12), (20, 40)])
def test_intervals_of_shares_cover_from_five_expected_failures_on(p, k, m):
    """With fewer there is too little spread to learn from: they are too narrow, and the documentation says by how much."""
    hits = np.mean([low <= p <= high for low, high in (s.interval(row, draws=499) for row in shares(p, k, m, 500))])
    if k * m * (1 - p) >= 4.5:
        assert 0.92 <= hits <= 0.985  # 500 sets: two standard errors around 93 to 97%
    else:
        assert 0.65 <= hits <= 0.95


@pytest.mark.parametrize("p", [0.5, 0.9, 0.98, 0.99, 0.998])
@pytest.mark.parametrize(("k", "m"), [(20, 12), (14, 12), (20, 40), (8, 8)])
def test_share_intervals_cover_near_0_and_1_too(p, k, m):
    """Where the bootstrap covers 23 to 92%. The other side is the mirror image."""
    found = [share_interval(row, k * m) for row in shares(p, k, m, 500)]
    assert np.mean([low <= p <= high for low, high in found]) >= 0.88  # two standard errors of 500 sets below 91%
    row = shares(p, k, m, 1)[0]
    assert share_interval(1 - row, k * m) == pytest.approx([1 - end for end in reversed(share_interval(row, k * m))])


def test_share_intervals_of_known_cases():
    """No failure: Clopper-Pearson of all items. One item per cluster: of the clusters. Anything but 0 and 1 is left alone."""
    assert share_interval([1.0] * 10, 40) == pytest.approx(s.clopper_pearson(40, 40))
    one = [1.0] * 15 + [0.0] * 5
    exact = s.clopper_pearson(15, 20)
    assert share_interval(one, 20) == pytest.approx(exact, abs=0.02)  # V divides by K - 1
    names = [str(place // 2) for place in range(20)]
    for values, method in (([1.0, 0.0] * 10, METHOD), ([1.0, 0.5] * 10, "bootstrap-t by template")):
        assert with_share_interval(s.summarise(values, names, 0.5), values).sample["method"] == method
    assert with_share_interval(s.summarise([1.0], ["a"], 0.5), [1.0]).low is None


@pytest.mark.parametrize(("n", "p"), [(300, 0.995), (60, 0.9), (20, 0.95)])
def test_exact_intervals_cover_at_least_their_level(n, p):
    rng = np.random.default_rng(6)
    draws = (rng.random((200, n)) < p).astype(float)
    found = [s.summarise_exact(row.tolist(), [str(place) for place in range(n)], 0.9) for row in draws]
    assert np.mean([one.low <= p <= one.high for one in found]) >= 0.93  # 200 sets; 95% or more in the limit


def test_tost_holds_its_level_and_shows_equivalence():
    rng = np.random.default_rng(13)
    at_the_edge = [s.tost(row, -0.1, 0.1, draws=299) for row in rng.normal(0.1, 0.1, (500, 16))]
    assert np.mean(np.array(at_the_edge) <= 0.05) <= stats.binom.ppf(0.999, 500, 0.05) / 500
    inside = [s.tost(row, -0.1, 0.1, draws=299) for row in rng.normal(0.0, 0.1, (60, 16))]
    assert np.mean(np.array(inside) <= 0.05) > 0.8
    assert s.tost(rng.normal(0, 5, 16), -0.1, 0.1) > 0.5  # a wide interval shows nothing
    with pytest.raises(ValueError):
        s.tost([0.0, 1.0], 0.1, -0.1)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.booleans())
def test_false_discovery_adjustment_agrees_with_statsmodels(p, dependent):
    wanted = multipletests(p, method="fdr_by" if dependent else "fdr_bh")[1]
    assert s.benjamini_hochberg(p, dependent) == pytest.approx(wanted.tolist())


@pytest.mark.parametrize(("estimate", "sd", "sesoi"), [(0.5, 0.6, 0.2), (0.2001, 0.5, 0.2), (0.21, 0.3, 0.2), (0.9, 0.0, 0.2)])
def test_clusters_needed_is_the_first_number_that_is_enough(estimate, sd, sesoi):
    def enough(k):
        return (stats.t.ppf(0.95, k - 1) + stats.t.ppf(0.8, k - 1)) * sd / np.sqrt(k) <= abs(estimate - sesoi)

    found = s.clusters_needed(estimate, sd, sesoi)
    if found is None:
        assert not enough(10_000)
    else:
        assert enough(found) and (found == s.MIN_BOOTSTRAP or not enough(found - 1))
