"""A threshold for a target false-alarm rate, and what may be said about the rate that it really has.

1. Of n independent benign units sorted by score, the threshold is the (k+1)-th largest and an alarm is a higher score: k of the
   n alarm. Whatever the scores' distribution, if it has no ties, the true rate of such a threshold is Beta(k + 1, n - k)
   distributed (Wilks 1941, tolerance limits), so the interval below is exact, and not one of a threshold that was fixed before.
   With ties at the threshold fewer alarm, and only the upper end is this one; the lower end is that of those that do.
2. k is the largest for which that rate is at most the target with a confidence of 95%:  Beta(.95; k + 1, n - k) <= target.
   With k = 0 this is 1 - .05^(1/n) <= target: 299 units for 1%, 2,995 for 0.1% (the rule of three). With fewer it is refused.
3. Units of one conversation are not independent, so tokens and segments are judged by conversations: the threshold is set
   on one unit of each that is drawn by seed, and the rate is that of a random unit of a random conversation.
4. The last digits of a score depend on what else is in the batch. Pooled by max, many texts have the very score of a token that
   all of them begin with, so the threshold lies `ROUNDING` (of the scores' usual size) above the one of 1.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from assay.errors import UsageError, bad_argument
from assay.statistics import clopper_pearson

CONFIDENCE = 0.95
ROUNDING = 1e-5  # of the largest score but for the last tenth: less is no difference
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Threshold:
    """Alarm above `value`. `n` benign units, `alarms` of them above it; the true rate lies in `low` to `high` in 95% of
    calibrations, and below the target in as many."""

    unit: str
    value: float
    target: float
    n: int
    alarms: int
    low: float
    high: float

    def alert(self, score: float) -> bool:
        """Whether a unit is above it; a score that is no number is."""
        return not score <= self.value

    def expects(self, m: int, confidence: float = CONFIDENCE) -> tuple[int, int]:
        """How many of m other benign units alert in 95% of calibrations, where nothing has changed: the rate is
        Beta(k + 1, n - k), so the number is beta-binomial. Exact for scores without ties."""
        shares = [(1 - confidence) / 2, (1 + confidence) / 2]
        low, high = stats.betabinom.ppf(shares, m, self.alarms + 1, self.n - self.alarms)
        return int(low), int(high)

    def holds(self, found: "Rate") -> bool:
        """Whether the false alarms on other benign units are what calibration lets expect."""
        low, high = self.expects(found.n)
        return low <= found.hits <= high


def needed(target: float, confidence: float = CONFIDENCE) -> int:
    """Benign units without which a rate cannot be promised."""
    if not 0 < target < 1:
        raise bad_argument("target", target, "a rate between 0 and 1, e.g. 0.01")
    return math.ceil(math.log(1 - confidence) / math.log1p(-target))


def threshold(
    unit: str, scores: Sequence[float] | Array, target: float, confidence: float = CONFIDENCE, least: float = -math.inf
) -> Threshold:
    """The threshold for a target rate, from scores of independent benign units, and not below `least`.

    Raises UsageError for too few of them.
    """
    values = np.sort(np.asarray(scores, np.float64))[::-1]
    n = len(values)
    if not np.isfinite(values).all():
        raise bad_argument("scores", "numbers that are not finite", "finite scores")
    enough(unit, n, target, confidence)
    k = 0
    while k + 1 < n and stats.beta.ppf(confidence, k + 2, n - k - 1) <= target:
        k += 1
    value = max(float(values[k]) + rounding(values), least)
    alarms = int((values > value).sum())
    low, high = stats.beta.ppf([0.025, 0.975], k + 1, n - k)
    if alarms < k:  # ties
        low = stats.beta.ppf(0.025, alarms, n - alarms + 1) if alarms else 0.0
    return Threshold(unit, value, target, n, alarms, float(low), float(high))


def rounding(values: Array) -> float:
    """What two passes over the same text may differ in: 0 for no values. One huge value does not say how coarse others are."""
    return ROUNDING * float(np.quantile(np.abs(values), 0.9)) if len(values) else 0.0


def enough(unit: str, n: int, target: float, confidence: float = CONFIDENCE) -> None:
    """Raises UsageError where n benign units cannot promise the rate, and says how many are needed."""
    least = needed(target, confidence)
    if n < least:
        raise UsageError(
            f"a false-alarm rate of {target:.3g} per {unit} cannot be promised from {n} benign units: {least} are needed"
            f" ({least - n} more), or take a rate of {rule_of_three(n, confidence):.3g} or above."
        )


def rule_of_three(n: int, confidence: float = CONFIDENCE) -> float:
    """The least rate that n benign units without an alarm can promise; 1 for none."""
    return 1 - (1 - confidence) ** (1 / n) if n else 1.0


@dataclass(frozen=True)
class Rate:
    """How often a fixed threshold alerts on other units: hits of n and an exact interval (Clopper & Pearson 1934).

    `mean`: of tokens and segments the mean rate of n conversations; `hits` are those of one unit of each, drawn by seed, and
    the interval is that of n units, which is wider than that of a mean of rates.
    """

    hits: int
    n: int
    low: float
    high: float
    mean: float | None = None

    @property
    def share(self) -> float:
        if self.mean is not None:
            return self.mean
        return self.hits / self.n if self.n else 0.0


def rate(scores: Sequence[float] | Array, at: float) -> Rate:
    """Alarms of a threshold on other data."""
    hits, n = int((np.asarray(scores, np.float64) > at).sum()), len(scores)
    return Rate(hits, n, *(clopper_pearson(hits, n) if n else (0.0, 1.0)))


def mean_rate(units: Sequence[Array], at: float, seed: int) -> Rate:
    """Alarms among units of conversations, whose own are not independent."""
    n, drawn = len(units), rate(one_of_each(units, seed), at)
    mean = float(np.mean([(values > at).mean() for values in units])) if n else 0.0
    hits = mean * n
    low = float(stats.beta.ppf(0.025, hits, n - hits + 1)) if hits > 0 else 0.0
    high = float(stats.beta.ppf(0.975, hits + 1, n - hits)) if hits < n else 1.0
    return Rate(drawn.hits, n, low, high, mean)


def one_of_each(units: Sequence[Array], seed: int) -> Array:
    """One unit of every conversation, drawn by seed; conversations without one are left out."""
    draw = np.random.default_rng([seed, 71])
    return np.array([values[draw.integers(len(values))] for values in units if len(values)])
