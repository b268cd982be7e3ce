"""Is it one direction? The same property read in another way, and on other texts.

1. *Difference of means* at the same site and position, fitted on the same rows: its AUROC on confirm, and its cosine with the
   direction of the probe.
2. *Stability*: groups are halved by seed and the probe is fitted on each half; mean cosine of the two directions over draws.

Directions that read alike need not be alike: where features outnumber rows, many read. A low cosine says that the vector is one
choice among them, and is no reason to doubt that the property is readable.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from assay.probe.estimators import PROBES
from assay.probe.scores import Estimate, auroc

Array = NDArray[np.float64]
DRAWS = 5


@dataclass(frozen=True)
class Agreement:
    """`mean_difference`: AUROC on confirm of the difference of class means; `cosine`: of that with the probe's direction;
    `stability`: mean cosine of directions fitted on halves of the groups, None where a half has one label."""

    mean_difference: Estimate
    cosine: float
    stability: float | None


def agreement(
    probe: Any, direction: Array, X: Array, y: NDArray[np.int64], groups: Sequence[str], held: Array, y_held: NDArray[np.int64],
    groups_held: Sequence[str], seed: int = 0,
) -> Agreement:  # fmt: skip
    """Of a probe's direction (d,) fitted on X (n, d), y (n,); `held`: rows of confirm. `probe()`: a new one of its kind."""
    means: Any = PROBES.get("mean_difference")().fit(X, y)
    found = auroc(means.decision_function(held), y_held, groups_held, seed=seed)
    halves = [_cosine(*(probe().fit(X[rows], y[rows]).direction_ for rows in both)) for both in _halves(y, groups, seed)]
    return Agreement(found, _cosine(direction, means.direction_), float(np.mean(halves)) if halves else None)


def _halves(y: NDArray[np.int64], groups: Sequence[str], seed: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Rows of two halves of the groups, draw by draw; draws in which a half has one label are left out."""
    names, rng, found = np.unique(list(groups), return_inverse=True)[1], np.random.default_rng(seed), []
    n = int(names.max()) + 1
    for _ in range(DRAWS):
        first = np.isin(names, rng.permutation(n)[: n // 2])
        if all(len(np.unique(y[side])) == 2 for side in (first, ~first)):
            found.append((np.flatnonzero(first), np.flatnonzero(~first)))
    return found


def _cosine(one: Array, other: Array) -> float:
    size = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / size if size else 0.0
