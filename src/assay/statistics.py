"""Statistics on clusters: a template, not a prompt, is one observation.

1. Every gate gives one contrast per prompt pair; they are averaged within templates.
2. Sign-flip permutation of (template mean - SESOI): exact up to 20 templates, else Monte Carlo with
   (1 + hits) / (1 + draws) (Phipson & Smyth 2010).
3. Studentised bootstrap-t over templates (Efron 1981; Cameron, Gelbach & Miller 2008), with a floor
   under each resample's error.
4. p is the larger of the two, and never 0: sign flips are too liberal when effects are skewed to
   the left, bootstrap-t when templates are few. Where a p has to be small because many claims are corrected for
   together, `small_p` draws more.
5. Intervals: bootstrap-t by template from 8 templates on, Student's t below.

Prompts of one template are not independent: tests on prompts reject true nulls in a quarter of the
cases at an intraclass correlation of .5. None of this repairs a badly drawn set of templates.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Array = NDArray[np.float64]
EXACT_UP_TO = 20
MIN_BOOTSTRAP = 8
DRAWS = 1999
CHUNK = 8192  # resamples that are held as numbers at a time
SMALL = 11 / (1 + DRAWS)  # ten hits: below this the usual draws say little
FLOOR = 0.25  # simulated: below this, false positives no longer change; see tests/test_statistics.py


@dataclass(frozen=True)
class Summary:
    """A contrast summarised over clusters; `low` and `high` are None below 2 clusters."""

    estimate: float | None
    low: float | None
    high: float | None
    p_above: float
    p_below: float
    sample: dict[str, float | int | str | None]
    per_template: dict[str, float]


def summarise(
    values: Sequence[float | None], clusters: Sequence[str], sesoi: float, alpha: float = 0.05, seed: int = 0,
    draws: int = DRAWS,
) -> Summary:  # fmt: skip
    """Everything a gate reports about one contrast per pair; None marks a pair not measured. With more than the usual
    `draws` a small p is drawn again, down to 1 / (1 + draws)."""
    kept = [(v, c) for v, c in zip(values, clusters, strict=True) if v is not None]
    numbers, names = [v for v, _ in kept], [c for _, c in kept]
    if not np.isfinite(numbers).all():
        raise ValueError("summarise: contrasts must be finite numbers or None")
    per_template = cluster_means(numbers, names)
    means = np.array(list(per_template.values()), dtype=float)
    above, below = p_values(means, sesoi, seed=seed)
    if draws > DRAWS and above <= SMALL:
        above = small_p(means, sesoi, draws, seed)
    low, high = interval(means, seed=seed)
    spread = float(means.std(ddof=1)) if len(means) > 1 else None
    sample = {
        "K": len(means), "N": len(numbers), "icc": icc(numbers, names), "sd": spread,
        "mde80": mde80(means, alpha), "method": interval_method(len(means)),
    }  # fmt: skip
    estimate = float(means.mean()) if len(means) else None
    return Summary(estimate, low, high, above, below, sample, per_template)


def weaker(a: Summary, b: Summary) -> Summary:
    """One contrast summarised over two groupings (templates, and words that cross them): the larger p of
    both, the outer interval, the smaller number of clusters."""
    lows, highs = ([getattr(s, side) for s in (a, b)] for side in ("low", "high"))
    low = None if None in lows else min(lows)
    high = None if None in highs else max(highs)
    worse = b if len(b.per_template) < len(a.per_template) else a
    sample = {**worse.sample, "N": a.sample["N"], "icc": a.sample["icc"], "words": b.sample["K"]}
    return Summary(a.estimate, low, high, max(a.p_above, b.p_above), max(a.p_below, b.p_below), sample, a.per_template)


def placements(
    scores: Sequence[float | None], labels: Sequence[float | None], groups: Sequence[str]
) -> list[float | None]:
    """Per member, the share of non-members of its group that score below it, ties half; None for non-members.

    Their mean over the members of a group is that group's AUROC (Hanley & McNeil 1982). Where fewer than
    half of the groups have both labels, members are compared with all non-members. Items without a score
    are left out.
    """
    out: list[float | None] = [None] * len(scores)
    known = [row for row, score in enumerate(scores) if score is not None and not math.isnan(score)]
    if not known:
        return out
    value = np.array([scores[row] for row in known], dtype=float)
    member = np.array([labels[row] == 1 for row in known], dtype=bool)
    names = comparison_groups([labels[row] for row in known], [groups[row] for row in known])
    group = np.unique(np.array(names), return_inverse=True)[1].reshape(-1)
    others = np.bincount(group[~member], minlength=int(group.max()) + 1)
    # rank of (group, score) as one whole number: one search serves all groups
    order = np.unique(value, return_inverse=True)[1].reshape(-1)
    place = group * (int(order.max()) + 1) + order
    sorted_others, starts = np.sort(place[~member]), np.cumsum(others) - others
    rows = np.flatnonzero(member & (others[group] > 0))
    below, upto = (np.searchsorted(sorted_others, place[rows], side=side) for side in ("left", "right"))
    shares = (below + upto - 2 * starts[group[rows]]) / (2 * others[group[rows]])
    for row, share in zip(rows.tolist(), shares.tolist(), strict=True):
        out[known[row]] = share
    return out


def comparison_groups(labels: Sequence[float | None], groups: Sequence[str]) -> list[str]:
    """Within what members are compared with non-members: their group, or everything where fewer than half of
    the groups have both labels (documents with one label each, for instance)."""
    found: dict[str, set[bool]] = {}
    for label, group in zip(labels, groups, strict=True):
        found.setdefault(group, set()).add(label == 1)
    mixed = sum(len(both) == 2 for both in found.values())
    return list(groups) if 2 * mixed >= len(found) else [""] * len(groups)


def cluster_means(values: Sequence[float], clusters: Sequence[str]) -> dict[str, float]:
    """Mean contrast per cluster, in order of the cluster's name."""
    groups: dict[str, list[float]] = {}
    for value, cluster in zip(values, clusters, strict=True):
        groups.setdefault(cluster, []).append(float(value))
    return {name: math.fsum(groups[name]) / len(groups[name]) for name in sorted(groups)}


# tests -------------------------------------------------------------------------------------------


def p_values(means: ArrayLike, sesoi: float, *, draws: int = DRAWS, seed: int = 0) -> tuple[float, float]:
    """(p of "mean <= sesoi", p of "mean >= sesoi") from cluster means (K,). 1.0 below 2 clusters."""
    above, below = p_values_many(np.atleast_2d(np.asarray(means, float)), sesoi, draws=draws, seed=seed)
    return float(above[0]), float(below[0])


def p_values_many(
    means: Array, sesoi: float, *, draws: int = DRAWS, seed: int = 0
) -> tuple[Array, Array]:
    """`p_values` for many data sets at once, (sets, K) -> two arrays (sets,)."""
    if means.shape[1] < 2:
        return np.ones(len(means)), np.ones(len(means))
    flip = sign_flip(means - sesoi, seed=seed)
    boot = bootstrap_t(means, sesoi, draws=draws, seed=seed)
    return np.maximum(flip[0], boot[0]), np.maximum(flip[1], boot[1])


def sign_flip(centred: Array, *, draws: int = 9999, seed: int = 0) -> tuple[Array, Array]:
    """One-sided sign-flip p-values of (sets, K) contrasts with null value 0: (greater, less)."""
    k = centred.shape[1]
    observed = centred.sum(1)
    slack = 1e-9 * np.abs(centred).sum(1) + 1e-300
    if k <= EXACT_UP_TO:
        counts = [_exact_tails(row, o, s) for row, o, s in zip(centred, observed, slack, strict=True)]
        return tuple(np.array(tail) / 2**k for tail in zip(*counts, strict=True))  # type: ignore[return-value]
    sums = centred @ _signs(k, draws, seed).T.astype(np.float64)
    greater = (sums >= (observed - slack)[:, None]).sum(1)
    less = (sums <= (observed + slack)[:, None]).sum(1)
    return (1 + greater) / (1 + draws), (1 + less) / (1 + draws)


@lru_cache(maxsize=8)
def _signs(k: int, draws: int, seed: int) -> NDArray[np.int8]:
    """The sign patterns (draws, k): the same for all gates with that many clusters."""
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(draws, k)).astype(np.int8)
    signs.flags.writeable = False
    return signs


def _exact_tails(row: Array, observed: float, slack: float) -> tuple[int, int]:
    """How many of the 2^K sign patterns reach the observed sum, from above and from below.

    All sums of one half of the row are looked up among the sorted sums of the other: 2^(K/2) steps.
    """
    first, second = _signed_sums(row[: len(row) // 2]), np.sort(_signed_sums(row[len(row) // 2 :]))
    reach = len(second) - np.searchsorted(second, observed - slack - first, side="left")
    stay = np.searchsorted(second, observed + slack - first, side="right")
    return int(reach.sum()), int(stay.sum())


def _signed_sums(row: Array) -> Array:
    sums = np.zeros(1)
    for value in row:
        sums = np.concatenate([sums + value, sums - value])
    return sums


def bootstrap_t(
    means: Array, sesoi: float, *, draws: int = DRAWS, seed: int = 0
) -> tuple[Array, Array]:
    """One-sided studentised bootstrap p-values of (sets, K) cluster means: (greater, less)."""
    above, below = np.empty(len(means)), np.empty(len(means))
    for place, row in enumerate(means):
        centre, error = row.mean(), _error(row)
        if error == 0:
            above[place] = 1 / (1 + draws) if centre > sesoi else 1.0
            below[place] = 1 / (1 + draws) if centre < sesoi else 1.0
            continue
        t, star = (centre - sesoi) / error, _t_star(row, error, draws, seed)
        above[place] = (1 + (star >= t).sum()) / (1 + draws)
        below[place] = (1 + (star <= t).sum()) / (1 + draws)
    return above, below


def _t_star(row: Array, error: float, draws: int, seed: int) -> Array:
    """Bootstrap t statistics (draws,). A resample's own error counts as at least a quarter of `error`:

    where most clusters agree and one does not, resamples without it would have no spread and an
    infinite t, and no effect however large could be told from none.
    """
    return _t_star_of(row.tobytes(), error, draws, seed)


@lru_cache(maxsize=8)
def _t_star_of(data: bytes, error: float, draws: int, seed: int) -> Array:
    """`_t_star`, kept: the p-value and the interval of one gate ask for the same resamples."""
    row = np.frombuffer(data)
    samples = row[_picks(len(row), draws, seed)]
    errors = samples.std(1, ddof=1) / math.sqrt(len(row))
    star = (samples.mean(1) - row.mean()) / np.maximum(errors, FLOOR * error)
    star.flags.writeable = False
    return star


@lru_cache(maxsize=8)
def _picks(k: int, draws: int, seed: int) -> NDArray[np.int64]:
    """Which clusters (draws, k) every resample takes: the same for all gates with that many clusters."""
    picks = np.random.default_rng(seed).integers(0, k, size=(draws, k))
    picks.flags.writeable = False
    return picks


def small_p(means: ArrayLike, sesoi: float, draws: int, seed: int = 0) -> float:
    """p of "mean <= sesoi" from cluster means (K,), as `p_values` with so many draws for both tests.

    Nothing is drawn where the answer is known to be 1 / (1 + draws) or less: the sign-flip p is at most
    exp(-S^2 / 2Q), S the sum of the centred means and Q that of their squares (Hoeffding 1963); and no resample reaches a t
    above (largest mean - mean) / (floor of its error).
    """
    row = np.asarray(means, float)
    if len(row) < 2:
        return 1.0
    return max(_small_flip(row - sesoi, draws, seed), _small_bootstrap(row, sesoi, draws, seed))


def _small_flip(centred: Array, draws: int, seed: int) -> float:
    if len(centred) <= EXACT_UP_TO:
        return float(sign_flip(centred[None])[0][0])
    total, least = float(centred.sum()), 1 / (1 + draws)
    if total > 0 and math.exp(-(total**2) / (2 * float((centred**2).sum()))) <= least:
        return least
    rng, hits, slack = np.random.default_rng([seed, 1]), 0, 1e-9 * float(np.abs(centred).sum()) + 1e-300
    for start in range(0, draws, CHUNK):
        plus = np.unpackbits(rng.integers(0, 256, (min(CHUNK, draws - start), -(-len(centred) // 8)), np.uint8), axis=1)
        hits += int((2 * (plus[:, : len(centred)] @ centred) - total >= total - slack).sum())
    return (1 + hits) / (1 + draws)


def _small_bootstrap(row: Array, sesoi: float, draws: int, seed: int) -> float:
    centre, error, least = float(row.mean()), _error(row), 1 / (1 + draws)
    if error == 0:
        return least if centre > sesoi else 1.0
    t = (centre - sesoi) / error
    if t > (float(row.max()) - centre) / (FLOOR * error):
        return least
    centred, hits = row - centre, 0
    powers = np.stack([centred, centred**2], 1) / len(row)
    for counts in _counts(len(row), draws, seed):
        moments = counts @ powers
        spread = np.sqrt(np.maximum(moments[:, 1] - moments[:, 0] ** 2, 0) / (len(row) - 1))
        hits += int((moments[:, 0] >= t * np.maximum(spread, FLOOR * error)).sum())
    return (1 + hits) / (1 + draws)


@lru_cache(maxsize=24)
def _counts(k: int, draws: int, seed: int) -> list[NDArray[np.uint8]]:
    """How often every resample takes every cluster, (draws, k) in chunks: the same for all gates with that many clusters."""
    rng, found = np.random.default_rng([seed, 2]), []
    for start in range(0, draws, CHUNK):
        n = min(CHUNK, draws - start)
        cells = rng.integers(0, k, (n, k), np.int32) + np.arange(n, dtype=np.int32)[:, None] * k
        found.append(np.minimum(np.bincount(cells.ravel(), minlength=n * k), 255).astype(np.uint8).reshape(n, k))
    return found


def _error(row: Array) -> float:
    """Standard error of the mean of cluster means; 0 for a spread at rounding level."""
    spread = row.std(ddof=1)
    return 0.0 if spread <= 1e-12 * (np.abs(row).max() + 1e-300) else float(spread / math.sqrt(len(row)))


# sizes and bounds --------------------------------------------------------------------------------


def interval_method(k: int) -> str:
    """Which interval `interval` gives for k clusters."""
    return "bootstrap-t by template" if k >= MIN_BOOTSTRAP else "t by template"


def interval(
    means: ArrayLike, level: float = 0.95, *, draws: int = DRAWS, seed: int = 0
) -> tuple[float | None, float | None]:
    """Two-sided interval of the mean of cluster means (K,); (None, None) below 2 clusters."""
    row = np.asarray(means, float)
    if len(row) < 2:
        return None, None
    centre, error, tail = float(row.mean()), _error(row), (1 - level) / 2
    if error == 0:
        return centre, centre
    if len(row) < MIN_BOOTSTRAP:
        reach = float(stats.t.ppf(1 - tail, len(row) - 1)) * error
        return centre - reach, centre + reach
    star = _t_star(row, error, draws, seed)
    bottom, top = np.quantile(star, [tail, 1 - tail])
    return centre - float(top) * error, centre - float(bottom) * error


def icc(values: Sequence[float], clusters: Sequence[str]) -> float | None:
    """Intraclass correlation, one-way ANOVA with unequal sizes; None when it is not defined."""
    names, group = np.unique(np.array(clusters, dtype=object), return_inverse=True) if len(clusters) else ((), np.zeros(0, int))
    k, n = len(names), len(values)
    if k < 2 or n <= k:
        return None
    row = np.asarray(values, float)
    sizes = np.bincount(group).astype(float)
    means = np.bincount(group, weights=row) / sizes
    between = float((sizes * (means - row.mean()) ** 2).sum()) / (k - 1)
    inside = float(((row - means[group]) ** 2).sum()) / (n - k)
    size = (n - float((sizes**2).sum()) / n) / (k - 1)
    total = between + (size - 1) * inside
    return (between - inside) / total if total > 0 else None


def mde80(means: ArrayLike, alpha: float = 0.05, k: int | None = None) -> float | None:
    """Smallest excess over the SESOI found with 80% power from k clusters (default: as many as given)."""
    row = np.asarray(means, float)
    k = len(row) if k is None else k
    if len(row) < 2 or k < 2:
        return None
    return float(_factor80(alpha, k) * row.std(ddof=1) / math.sqrt(k))


@lru_cache(maxsize=20_000)
def _factor80(alpha: float, k: int) -> float:
    """How many standard errors from the bar an effect is found with 80% power."""
    return float(stats.t.ppf(1 - alpha, k - 1) + stats.t.ppf(0.8, k - 1))


def clusters_needed(estimate: float, sd: float, sesoi: float, alpha: float = 0.05) -> int | None:
    """Clusters with 80% power to tell `estimate` from `sesoi`; None when they are the same."""
    gap = abs(estimate - sesoi)
    if gap == 0:
        return None

    def enough(k: int) -> bool:
        return _factor80(alpha, k) * sd / math.sqrt(k) <= gap

    first = bisect_left(range(2, 10_001), True, key=enough)  # more clusters never make it harder
    return max(first + 2, MIN_BOOTSTRAP) if first < 9_999 else None


def clopper_pearson(hits: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Exact interval of a proportion; (0, 1) without data."""
    if n == 0:
        return 0.0, 1.0
    bounds = stats.binomtest(hits, n).proportion_ci(level, method="exact")
    return float(bounds.low), float(bounds.high)


def holm(p: Sequence[float]) -> list[float]:
    """Holm-adjusted p-values, in the order given (Holm 1979).

    Its own four lines: the well-kept library call collects garbage on every use, which takes longer than
    everything else a verdict needs. The tests compare the two.
    """
    order = np.argsort(p, kind="stable")
    steps = np.asarray(p, float)[order] * (len(p) - np.arange(len(p)))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return adjusted.tolist()


def summarise_exact(
    values: Sequence[float | None], clusters: Sequence[str], sesoi: float, alpha: float = 0.05, seed: int = 0,
    draws: int = DRAWS,
) -> Summary:  # fmt: skip
    """A share of successes near 1, by the exact binomial with one observation per cluster.

    A cluster fails by its share of failures; the failures of all clusters are rounded up to a whole number, as if
    texts of one cluster were copies of each other (intraclass correlation 1). Without a failure this is the rule
    of three: about 3 / (1 - sesoi) clusters. `sample` has "needed", the clusters that would settle it at this rate.
    """
    kept = [(v, c) for v, c in zip(values, clusters, strict=True) if v is not None]
    numbers, names = [v for v, _ in kept], [c for _, c in kept]
    per_template = cluster_means(numbers, names)
    n, lost = len(per_template), math.fsum(1 - share for share in per_template.values())
    failures = max(0, min(n, math.ceil(lost - 1e-9)))
    above = float(stats.binom.cdf(failures, n, 1 - sesoi)) if n else 1.0
    fewest = max(0, math.floor(lost + 1e-9))
    below = float(stats.binom.sf(fewest - 1, n, 1 - sesoi)) if n else 1.0
    low, high = 1 - clopper_pearson(failures, n)[1], 1 - clopper_pearson(fewest, n)[0]
    sample = {"K": n, "N": len(numbers), "icc": icc(numbers, names), "sd": None, "mde80": None,
              "method": "exact binomial on clusters", "needed": certificate(lost / n if n else 0.0, sesoi, alpha)}  # fmt: skip
    return Summary(1 - lost / n if n else None, low, high, above, below, sample, per_template)


def certificate(rate: float, sesoi: float, alpha: float = 0.05) -> int | None:
    """Clusters needed to certify success above `sesoi` when failures keep coming at `rate`; None where never."""
    if rate >= 1 - sesoi:
        return None
    low, high = 1, 1
    while stats.binom.cdf(math.ceil(rate * high), high, 1 - sesoi) > alpha:
        low, high = high, 2 * high
        if high > 10_000_000:
            return None
    while low < high:
        middle = (low + high) // 2
        met = stats.binom.cdf(math.ceil(rate * middle), middle, 1 - sesoi) <= alpha
        low, high = (low, middle) if met else (middle + 1, high)
    return low


def benjamini_hochberg(p: Sequence[float], dependent: bool = False) -> list[float]:
    """FDR-adjusted p-values (Benjamini & Hochberg 1995), in the order given; `dependent`: under any dependence
    (Benjamini & Yekutieli 2001). A list of those below a level is a screening list, not confirmed claims."""
    if not len(p):
        return []
    return stats.false_discovery_control(p, method="by" if dependent else "bh").tolist()


def tost(
    means: ArrayLike, low: float, high: float, *, draws: int = DRAWS, seed: int = 0
) -> float:
    """p of "the mean lies outside of (low, high)" from cluster means (K,): two one-sided tests (Schuirmann 1987).

    Small p shows equivalence within the bounds; a large p of an ordinary test never does. 1.0 below 2 clusters.
    """
    if not low < high:
        raise ValueError(f"tost: got bounds {low} and {high}; allowed: low below high.")
    above = p_values(means, low, draws=draws, seed=seed)[0]
    below = p_values(means, high, draws=draws, seed=seed)[1]
    return max(above, below)
