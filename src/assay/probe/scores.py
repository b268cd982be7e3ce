"""How well scores tell two classes apart, with intervals over groups.

1. AUROC: the share of (member, other) pairs in the right order, ties half (Hanley & McNeil 1982).
2. Rows of one group are no independent observations. Groups are drawn with replacement, their rows go with them; the
   standard error s of the draws is that of logit(AUROC), and
       bounds = sigmoid(logit(AUROC) -+ t s),    t of Student's t with one degree of freedom less than groups
   Percentiles of the draws are too narrow below some 30 groups (`tests/test_probe_calibration.py` has the coverage).
3. Without groups s is DeLong's (DeLong, DeLong & Clarke-Pearson 1988) and t is normal. Accuracies: the same draws and
   bounds, exact binomial ones without groups.
4. At an AUROC of 1 draws have no spread. m pairs of different groups can be made that share no group, and all are in
   order: the lower bound is the exact binomial one of m successes in m. So too at 0.
5. Two scores of the same rows are compared on the same draws: bounds = difference -+ t s. Where one of them is 1 or 0, the
   way to its bound of step 4 is added: bound = difference -+ sqrt((t s)^2 + way^2), on the side where it may lie.
6. Where all rows of a label are in one group, draws do not say how other groups of that label would do: no bounds, but
   those of step 4.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.special import expit, logit

from assay.errors import bad_argument
from assay.features.ratios import ratio
from assay.statistics import clopper_pearson

Array = NDArray[np.float64]
Groups = Sequence[object] | None
CHUNK = 4_000_000  # numbers of one block of draws


@dataclass(frozen=True)
class Estimate:
    """A number, its interval, and from how much data. Bounds are None where there are too few groups for one."""

    value: float
    low: float | None
    high: float | None
    n: int
    groups: int
    method: str

    def json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def auroc(
    scores: ArrayLike, labels: ArrayLike, groups: Groups = None, level: float = 0.95, draws: int = 1000, seed: int = 0
) -> Estimate:
    """AUROC of scores (n,) for labels (n,) of 0 and 1. Raises UsageError for other labels, or where one is missing."""
    data = _checked(labels, groups, scores)
    value = float(_rank_auroc(data.scores[0], data.member))
    pairs = data.disjoint_pairs()
    if groups is None:
        spread, df, method = _delong_error(data.scores[0], data.member), np.inf, "DeLong, logit"
    else:
        stars = [_weighted_auroc(data.scores[0], data.member, weights) for weights in data.draws(draws, seed)]
        spread, df, method = float(np.nanstd(np.concatenate(stars), ddof=1)), data.k - 1, "bootstrap over groups, logit t"
    if pairs < 2 and value not in (0.0, 1.0):
        return data.estimate(value, None, None, "a label in one group: no interval")
    low, high = _logit_bounds(value, spread, df, level, pairs)
    return data.estimate(value, low, high, method)


def accuracy(
    scores: ArrayLike, labels: ArrayLike, groups: Groups = None, level: float = 0.95, draws: int = 1000, seed: int = 0,
    threshold: float = 0.0,
) -> Estimate:  # fmt: skip
    """Share of rows on the right side of the threshold; above it is label 1. One label is enough."""
    data = _checked(labels, groups, scores, both=False)
    right = ((data.scores[0] > threshold) == data.member).astype(float)
    value = float(right.mean())
    if groups is None:
        low, high = clopper_pearson(int(right.sum()), data.n, level)
        return data.estimate(value, low, high, "exact binomial")
    stars = [weights @ right / weights.sum(1) for weights in data.draws(draws, seed)]
    low, high = _logit_bounds(value, float(np.nanstd(np.concatenate(stars), ddof=1)), data.k - 1, level, data.k)
    return data.estimate(value, low, high, "bootstrap over groups, logit t")


def auroc_difference(
    first: ArrayLike, second: ArrayLike, labels: ArrayLike, groups: Groups = None, level: float = 0.95, draws: int = 1000,
    seed: int = 0,
) -> Estimate:  # fmt: skip
    """AUROC of `first` minus that of `second`, scores of the same rows. Without groups every row is its own."""
    data = _checked(labels, groups, first, second)
    ones = [_rank_auroc(scores, data.member) for scores in data.scores]
    value = ones[0] - ones[1]
    stars = [
        _weighted_auroc(data.scores[0], data.member, w) - _weighted_auroc(data.scores[1], data.member, w)
        for w in data.draws(draws, seed)
    ]
    if data.disjoint_pairs() < 2:
        return data.estimate(value, None, None, "a label in one group: no interval")
    reach = float(stats.t.ppf((1 + level) / 2, data.k - 1) * np.nanstd(np.concatenate(stars), ddof=1))
    way = 1 - clopper_pearson(data.disjoint_pairs(), data.disjoint_pairs(), level)[0]  # from an AUROC of 1 to its bound
    down, up = (np.hypot(way * (ones[0] == end), way * (ones[1] == 1 - end)) for end in (1.0, 0.0))
    low, high = value - float(np.hypot(reach, down)), value + float(np.hypot(reach, up))
    return data.estimate(value, max(low, -1.0), min(high, 1.0), "bootstrap over groups, paired, t")


def mean_over_groups(values: ArrayLike, groups: Sequence[object], level: float = 0.95) -> Estimate:
    """Mean of rows (n,), each a number of its own, with t bounds by the jackknife over groups."""
    rows = np.asarray(values, float)
    place = np.unique([str(g) for g in groups], return_inverse=True)[1]
    sums, sizes = np.bincount(place, rows), np.bincount(place)
    found = ratio(sums, sizes, level)
    if found is None:
        raise bad_argument("values", "no rows", "at least one")
    return Estimate(found.value, found.low, found.high, len(rows), len(sizes), "jackknife over groups, t")


def bootstrap_auroc(
    scores: Array, labels: ArrayLike, groups: Groups = None, level: float = 0.95, draws: int = 1000, seed: int = 0
) -> tuple[tuple[float, ...], float, float]:
    """AUROC of each of several scores (which, n), and percentile bounds where each draw takes one of them and groups."""
    data = _checked(labels, groups, *scores)
    values = tuple(_rank_auroc(row, data.member) for row in data.scores)
    pick, stars, done = np.random.default_rng(seed + 1).integers(0, len(scores), draws), np.full(draws, np.nan), 0
    for weights in data.draws(draws, seed):
        chosen = pick[done : done + len(weights)]
        for which in np.unique(chosen).tolist():
            rows = np.flatnonzero(chosen == which)
            stars[done + rows] = _weighted_auroc(data.scores[which], data.member, weights[rows])
        done += len(weights)
    low, high = np.nanquantile(stars, [(1 - level) / 2, (1 + level) / 2])
    return values, float(low), float(high)


# data --------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Data:
    """Checked input: scores (which, n), member (n,) bool, place of the group of every row."""

    scores: Array
    member: NDArray[np.bool_]
    place: NDArray[np.int64]

    @property
    def n(self) -> int:
        return len(self.member)

    @property
    def k(self) -> int:
        return int(self.place.max()) + 1

    def estimate(self, value: float, low: float | None, high: float | None, method: str) -> Estimate:
        return Estimate(value, low, high, self.n, self.k, method)

    def draws(self, draws: int, seed: int) -> Iterator[Array]:
        """Blocks of row weights (draws of the block, n): how often the group of a row was drawn."""
        generator = np.random.default_rng(seed)
        block = max(1, min(draws, CHUNK // self.n))
        for start in range(0, draws, block):
            counts = generator.multinomial(self.k, np.full(self.k, 1 / self.k), size=min(block, draws - start))
            yield counts[:, self.place].astype(float)

    def disjoint_pairs(self) -> int:
        """How many (member, other) pairs of different groups there can be without using a group twice."""
        inside = [len(np.unique(self.place[self.member == value])) for value in (True, False)]
        return min(*inside, self.k // 2)


def _checked(labels: ArrayLike, groups: Groups, *scores: ArrayLike, both: bool = True) -> _Data:
    found, values = np.asarray(labels), np.stack([np.asarray(s, float) for s in scores])
    if found.ndim != 1 or values.shape[1:] != found.shape or not len(found):
        raise bad_argument("scores", values.shape[1:], f"one score per label: {found.shape}, at least one")
    if not np.isin(found, (0, 1)).all():
        raise bad_argument("labels", sorted(set(found.tolist()))[:5], "0 and 1")
    if both and len(np.unique(found)) < 2:
        raise bad_argument("labels", f"only {int(found[0])}", "rows of both labels", "AUROC compares one with the other.")
    if not np.isfinite(values).all():
        raise bad_argument("scores", "nan or infinite", "finite numbers")
    if groups is not None and len(groups) != len(found):
        raise bad_argument("groups", f"{len(groups)} names", f"one per row: {len(found)}")
    place = np.arange(len(found)) if groups is None else np.unique([str(g) for g in groups], return_inverse=True)[1]
    return _Data(values, found == 1, place)


# numbers -----------------------------------------------------------------------------------------


def aurocs(scores: NDArray[Any], member: NDArray[np.bool_]) -> Array:
    """AUROC of every column of scores (row, column), ties half, by ranks (Hanley & McNeil 1982); 0.5 where all rows are
    members, or none is."""
    inside, outside = int(member.sum()), int((~member).sum())
    if not inside or not outside:
        return np.full(scores.shape[1], 0.5)
    ranks = stats.rankdata(scores, axis=0)[member].sum(0)
    return (ranks - inside * (inside + 1) / 2) / (inside * outside)


def _rank_auroc(scores: Array, member: NDArray[np.bool_]) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(member, scores))


def _weighted_auroc(scores: Array, member: NDArray[np.bool_], weights: Array) -> Array:
    """AUROC (draws,) for row weights (draws, n); nan where a draw has one class only."""
    order = np.argsort(scores, kind="stable")
    weights, member = weights[:, order], member[order]
    ties = np.unique(scores[order], return_index=True)[1]
    members, others = (np.add.reduceat(weights * side, ties, axis=1) for side in (member, ~member))
    below = np.cumsum(others, axis=1) - others / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return (members * below).sum(1) / (members.sum(1) * others.sum(1))


def _delong_error(scores: Array, member: NDArray[np.bool_]) -> float:
    """Standard error from placements: of every row, the share of the other class that it is in order with."""
    ranks = stats.rankdata(scores)
    m, n = int(member.sum()), int((~member).sum())
    of_members = (ranks[member] - stats.rankdata(scores[member])) / n
    of_others = 1 - (ranks[~member] - stats.rankdata(scores[~member])) / m
    if min(m, n) < 2:
        return float("nan")
    return float(np.sqrt(of_members.var(ddof=1) / m + of_others.var(ddof=1) / n))


def _logit_bounds(value: float, spread: float, df: float, level: float, m: int) -> tuple[float | None, float | None]:
    """Bounds of a share with standard error `spread`; those of `m` successes in `m` where there is no spread."""
    if df < 1 or m < 1 or np.isnan(spread):
        return None, None
    if value in (0.0, 1.0):
        return clopper_pearson(m if value else 0, m, level)
    reach = float(stats.t.ppf((1 + level) / 2, df)) * spread / (value * (1 - value))
    return float(expit(logit(value) - reach)), float(expit(logit(value) + reach))
