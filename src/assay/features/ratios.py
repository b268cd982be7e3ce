"""Ratios of sums with intervals over documents.

FVU, L0 and loss recovered are all one sum over tokens divided by another. With sums n_d and m_d of document d
    estimate = sum n / sum m,    leaving out d: (sum n - n_d) / (sum m - m_d)
and the jackknife over documents gives the standard error; bounds are t with one degree of freedom less than documents.
Tokens of one document are no independent observations.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats


@dataclass(frozen=True)
class Measure:
    """A number and its 95% bounds; bounds are None where there is one document, or where none are known."""

    value: float
    low: float | None = None
    high: float | None = None

    def json(self) -> dict[str, Any]:
        """As plain values."""
        return {"value": self.value, "low": self.low, "high": self.high}


def ratio(numerators: ArrayLike, denominators: ArrayLike, level: float = 0.95) -> Measure | None:
    """Sum over sum, over documents; documents where both are 0 do not count. None where the denominators sum to 0."""
    above, below = np.asarray(numerators, float), np.asarray(denominators, float)
    kept = (above != 0) | (below != 0)
    above, below = above[kept], below[kept]
    whole, total = above.sum(), below.sum()
    if not len(below) or total == 0 or not np.isfinite([whole, total]).all():
        return None
    value, rest = float(whole / total), total - below
    if (rest == 0).any():
        return Measure(value)
    return jackknife(value, (whole - above) / rest, level)


def jackknife(value: float, left_out: ArrayLike, level: float = 0.95) -> Measure:
    """An estimate, and bounds from what it is without each document; none for one document, or where one is needed."""
    left = np.asarray(left_out, float)
    k = len(left)
    if k < 2 or not np.isfinite(left).all():
        return Measure(value)
    error = float(np.sqrt((k - 1) / k * ((left - left.mean()) ** 2).sum()))
    reach = float(stats.t.ppf((1 + level) / 2, k - 1)) * error
    return Measure(value, value - reach, value + reach)


def complement(measure: Measure | None) -> Measure | None:
    """1 - x."""
    if measure is None:
        return None
    bounds = (None, None) if measure.low is None or measure.high is None else (1 - measure.high, 1 - measure.low)
    return Measure(1 - measure.value, *bounds)
