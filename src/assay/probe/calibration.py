"""From scores to probabilities, and to answers that are only given where they can be trusted.

1. Platt: a logistic curve through held-out scores, with Platt's (1999) soft targets (n1 + 1)/(n1 + 2) and 1/(n0 + 2), or
   isotonic regression. Fit on rows the probe has not seen: its own training scores are too far apart.
2. Reliability: rows in bins of probability, mean probability against the share of members, with exact intervals.
       ECE = sum over bins of n_b / n |share_b - mean_b|
3. Split conformal per class (Vovk 2012): with s = 1 - p(label) of the calibration rows of class y,
       p_y(x) = (1 + #{s_i >= s_y(x)}) / (n_y + 1),    the set of x: all y with p_y(x) > alpha
   The true label is in the set with probability 1 - alpha or more for each class, whatever the probe, if rows are
   exchangeable. Rows of a group are not: with groups, one row of each group and class is drawn, and the guarantee is for
   rows of new groups. Where the set is not one label the probe abstains.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from assay.errors import bad_argument
from assay.statistics import clopper_pearson

Array = NDArray[np.float64]
Way = Literal["platt", "isotonic"]


@dataclass(frozen=True, eq=False)
class Calibrated:
    """A curve from scores to probabilities of label 1."""

    method: Way
    slope: float | None
    offset: float | None
    curve: Any = None

    @classmethod
    def fit(cls, scores: ArrayLike, labels: ArrayLike, method: Way = "platt") -> "Calibrated":
        """Of scores (n,) and labels (n,) of rows that the probe was not fitted on. Raises UsageError for one class."""
        values, member = _scores(scores, labels)
        if method == "isotonic":
            from sklearn.isotonic import IsotonicRegression

            return cls(method, None, None, IsotonicRegression(out_of_bounds="clip", y_min=0, y_max=1).fit(values, member))
        if method != "platt":
            raise bad_argument("method", method, "platt, isotonic")
        return cls(method, *_platt(values, member))

    def proba(self, scores: ArrayLike) -> Array:
        """Probabilities of label 1, (n,)."""
        values = np.asarray(scores, float)
        if self.slope is None or self.offset is None:
            return np.asarray(self.curve.predict(values), float)
        return expit(self.slope * values + self.offset)


@dataclass(frozen=True)
class Bin:
    """Rows whose probability lies in [low, high): how many, their mean probability, the share of label 1 with bounds."""

    low: float
    high: float
    n: int
    mean: float
    share: float
    share_low: float
    share_high: float


@dataclass(frozen=True, eq=False)
class Sets:
    """What a conformal probe says: `p` (n, 2) p-values; `inside` (n, 2) which labels are in the set of every row."""

    alpha: float
    p: Array
    inside: NDArray[np.bool_]
    calibration: tuple[int, int]

    @property
    def answered(self) -> NDArray[np.bool_]:
        """Rows (n,) with one label in their set; the others are abstained from."""
        return self.inside.sum(1) == 1

    @property
    def label(self) -> NDArray[np.int64]:
        """The label of every answered row, -1 where the probe abstains."""
        return np.where(self.answered, self.inside[:, 1].astype(int), -1)

    def summary(self, labels: ArrayLike) -> dict[str, float | None]:
        """Coverage per class, the share answered, and the accuracy of the answers."""
        truth, answered = np.asarray(labels).astype(int), self.answered
        hit = self.inside[np.arange(len(truth)), truth]
        right = self.label[answered] == truth[answered]
        return {
            "coverage_0": _mean(hit[truth == 0]), "coverage_1": _mean(hit[truth == 1]),
            "answered": _mean(answered), "accuracy_answered": _mean(right),
        }  # fmt: skip


def reliability(proba: ArrayLike, labels: ArrayLike, bins: int = 10) -> tuple[Bin, ...]:
    """Bins of equal width that have rows. Intervals are exact binomial ones, as if rows were independent."""
    p, member = _probabilities(proba, labels)
    if bins < 1:
        raise bad_argument("bins", bins, "a whole number from 1 on")
    place = np.minimum((p * bins).astype(int), bins - 1)
    return tuple(_bin(b, bins, p[place == b], member[place == b]) for b in np.unique(place).tolist())


def ece(proba: ArrayLike, labels: ArrayLike, bins: int = 10) -> float:
    """Expected calibration error. Above 0 also for a perfect probe when rows are few."""
    found = reliability(proba, labels, bins)
    return sum(b.n * abs(b.share - b.mean) for b in found) / sum(b.n for b in found)


def brier(proba: ArrayLike, labels: ArrayLike) -> float:
    """Mean squared distance of probability and label."""
    from sklearn.metrics import brier_score_loss

    p, member = _probabilities(proba, labels)
    return float(brier_score_loss(member, p, pos_label=1))


def conformal(
    proba_cal: ArrayLike, labels_cal: ArrayLike, proba: ArrayLike, alpha: float = 0.1,
    groups_cal: Sequence[object] | None = None, seed: int = 0,
) -> Sets:  # fmt: skip
    """Sets for rows with probabilities `proba` (n,). With fewer than 1/alpha - 1 calibration rows of a class that class
    is in every set. Raises UsageError for an alpha outside (0, 1) or a class without calibration rows."""
    if not 0 < alpha < 1:
        raise bad_argument("alpha", alpha, "a number between 0 and 1")
    known, member = _probabilities(proba_cal, labels_cal, both=True)
    keep = np.arange(len(member)) if groups_cal is None else _one_per_group(member, groups_cal, seed)
    known, member, p = known[keep], member[keep], np.asarray(proba, float)
    columns, sizes = [], []
    for label in (0, 1):
        of_label = np.sort((known if label == 0 else 1 - known)[member == label])
        strange = p if label == 0 else 1 - p
        at_least = len(of_label) - np.searchsorted(of_label, strange, side="left")
        columns.append((1 + at_least) / (len(of_label) + 1))
        sizes.append(len(of_label))
    values = np.stack(columns, axis=1)
    return Sets(alpha, values, values > alpha, (sizes[0], sizes[1]))


# shared ------------------------------------------------------------------------------------------


def _platt(scores: Array, member: Array) -> tuple[float, float]:
    """(slope, offset): every row counts as a member and as another, by its soft target."""
    from sklearn.linear_model import LogisticRegression

    n1, n0 = member.sum(), (1 - member).sum()
    target = np.where(member == 1, (n1 + 1) / (n1 + 2), 1 / (n0 + 2))
    middle, spread = float(scores.mean()), float(scores.std()) or 1.0
    doubled = np.concatenate([scores, scores])[:, None]
    truth, weight = np.repeat([1, 0], len(scores)), np.concatenate([target, 1 - target])
    curve = LogisticRegression(C=1e10, solver="newton-cholesky", tol=1e-8, max_iter=1000)
    curve.fit((doubled - middle) / spread, truth, sample_weight=weight)
    slope = float(np.ravel(curve.coef_)[0]) / spread
    return slope, float(np.ravel(curve.intercept_)[0]) - slope * middle


def _bin(number: int, bins: int, p: Array, member: Array) -> Bin:
    low, high = clopper_pearson(int(member.sum()), len(member))
    return Bin(number / bins, (number + 1) / bins, len(member), float(p.mean()), float(member.mean()), low, high)


def _one_per_group(member: Array, groups: Sequence[object], seed: int) -> NDArray[np.int64]:
    """One row of every group and class, drawn by seed."""
    order = np.random.default_rng(seed).permutation(len(member))
    if len(groups) != len(member):
        raise bad_argument("groups_cal", f"{len(groups)} names", f"one per row: {len(member)}")
    first: dict[tuple[str, float], int] = {}
    for row in order.tolist():
        first.setdefault((str(groups[row]), float(member[row])), row)
    return np.array(sorted(first.values()))


def _scores(scores: ArrayLike, labels: ArrayLike) -> tuple[Array, Array]:
    values, member = np.asarray(scores, float), np.asarray(labels).astype(float)
    if values.ndim != 1 or values.shape != member.shape:
        raise bad_argument("scores", values.shape, f"one per label: {member.shape}")
    if not np.isfinite(values).all():
        raise bad_argument("scores", "nan or infinite", "finite numbers")
    if set(member.tolist()) != {0.0, 1.0}:
        raise bad_argument("labels", sorted(set(member.tolist()))[:5], "0 and 1, both present")
    return values, member


def _probabilities(proba: ArrayLike, labels: ArrayLike, both: bool = False) -> tuple[Array, Array]:
    p, member = np.asarray(proba, float), np.asarray(labels).astype(float)
    if p.ndim != 1 or p.shape != member.shape or not len(p):
        raise bad_argument("proba", p.shape, f"one probability of label 1 per label: {member.shape}, at least one")
    if not ((p >= 0) & (p <= 1)).all():
        raise bad_argument("proba", "a number outside 0 to 1", "probabilities", "Calibrated.proba makes them of scores.")
    if not set(member.tolist()) <= {0.0, 1.0} or (both and len(set(member.tolist())) < 2):
        raise bad_argument("labels", sorted(set(member.tolist()))[:5], "0 and 1" + (", both present" if both else ""))
    return p, member


def _mean(values: NDArray[Any]) -> float | None:
    return float(values.mean()) if len(values) else None
