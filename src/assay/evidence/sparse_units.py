"""Activations of many units at some examples, dense or sparse, and what is asked of all of them at once.

1. `ranks_of`: per unit, the sum of ranks of the members' activations (ties share their mean rank): the AUROC but for constants.
2. `cut`: per unit, the threshold above which it is on at a share of the examples, as near as its values allow from below.

Both forms give the same numbers; the sparse one looks at values above 0 only, which latents have few of.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]


@runtime_checkable
class Units(Protocol):
    """Values (example, unit)."""

    @property
    def width(self) -> int:
        """How many units."""
        ...

    @property
    def alive(self) -> Bool[Array, " unit"]:
        """Units that are not the same everywhere."""
        ...

    def ranks_of(self, member: Bool[Array, " example"]) -> Float[Array, " unit"]:
        """Sum of ranks of the members."""
        ...

    def cut(self, density: float) -> tuple[Float[Array, " unit"], Float[Array, " unit"]]:
        """(threshold, share of examples above it)."""
        ...

    def share_above(self, unit: int, threshold: float) -> float:
        """Share of examples at which a unit is above a threshold."""
        ...


@dataclass(frozen=True, eq=False)
class DenseUnits:
    """All values as one tensor."""

    acts: Float[Tensor, "example unit"]

    @property
    def width(self) -> int:
        return self.acts.shape[1]

    @cached_property
    def values(self) -> NDArray[np.float64]:
        """In double precision."""
        return self.acts.double().numpy()

    @property
    def alive(self) -> Bool[Array, " unit"]:
        return self.values.std(0) > 0

    def ranks_of(self, member: Bool[Array, " example"]) -> Float[Array, " unit"]:
        from scipy.stats import rankdata

        return rankdata(self.values, axis=0)[member].sum(0)

    def cut(self, density: float) -> tuple[Float[Array, " unit"], Float[Array, " unit"]]:
        cuts = np.quantile(self.values, 1 - density, axis=0, method="inverted_cdf")
        return cuts, (self.values > cuts).mean(0)


    def share_above(self, unit: int, threshold: float) -> float:
        return float((self.values[:, unit] > threshold).mean())


@dataclass(frozen=True, eq=False)
class SparseUnits:
    """Values above 0 only, (example, unit)."""

    codes: Any  # scipy CSR

    @property
    def width(self) -> int:
        return self.codes.shape[1]

    @cached_property
    def _sorted(self) -> tuple[Array, Array, Array, Array]:
        """(unit, value, example) of every value above 0, by unit and then by value; how many each unit has."""
        found = self.codes.tocoo()
        unit, example, value = found.col, found.row, found.data
        order = np.argsort(_joint(unit, value), kind="stable") if value.dtype == np.float32 else np.lexsort((value, unit))
        return unit[order], value[order].astype(np.float64), example[order], np.bincount(unit, minlength=self.width)

    @property
    def alive(self) -> Bool[Array, " unit"]:
        unit, value, _, count = self._sorted
        ends = np.cumsum(count)
        some = count > 0
        flat = np.zeros(self.width, bool)
        flat[some] = (count[some] == self.codes.shape[0]) & (value[ends[some] - 1] == value[ends[some] - count[some]])
        return some & ~flat

    def ranks_of(self, member: Bool[Array, " example"]) -> Float[Array, " unit"]:
        unit, value, example, count = self._sorted
        zeros = self.codes.shape[0] - count
        new = np.r_[True, (unit[1:] != unit[:-1]) | (value[1:] != value[:-1])][: len(unit)]
        starts = np.flatnonzero(new)  # of values that are equal, within a unit
        sizes = np.diff(np.r_[starts, len(unit)])
        inside = np.flatnonzero(member[example])
        tie, theirs = (np.cumsum(new) - 1)[inside], unit[inside]
        rank = starts[tie] - (np.cumsum(count) - count)[theirs] + (sizes[tie] + 1) / 2 + zeros[theirs]
        on = np.bincount(theirs, weights=rank, minlength=self.width)
        off = member.sum() - np.bincount(theirs, minlength=self.width)
        return on + off * (zeros + 1) / 2

    def cut(self, density: float) -> tuple[Float[Array, " unit"], Float[Array, " unit"]]:
        unit, value, _, count = self._sorted
        n = self.codes.shape[0]
        place = max(0, int(np.ceil((1 - density) * n)) - 1) - (n - count)  # among the unit's values above 0; below 0: a zero
        cuts, starts = np.zeros(self.width), np.cumsum(count) - count
        inside = place >= 0
        cuts[inside] = value[(starts + place)[inside]]
        above = np.bincount(unit, weights=value > cuts[unit], minlength=self.width)
        return cuts, above / n

    def share_above(self, unit: int, threshold: float) -> float:
        _, value, _, count = self._sorted
        end = int(np.cumsum(count)[unit])
        above = int((value[end - int(count[unit]) : end] > threshold).sum())
        return (above + (int(self.codes.shape[0] - count[unit]) if threshold < 0 else 0)) / self.codes.shape[0]


def _joint(unit: Array, value: Float[Array, " n"]) -> Array:
    """One number that sorts by unit, then by value: the bits of a float32 above 0 are ordered as it is."""
    return (unit.astype(np.uint64) << np.uint64(32)) | value.view(np.uint32)
