"""What a probe can learn by heart: control tasks (Hewitt & Liang 2019).

1. A *unit* is what a probe could memorise: a word, an entity, a template. The control task gives every unit a random
   label, the same wherever it occurs, in training and held-out rows.
2. Only held-out rows whose unit was trained on can be answered in the control task; both tasks are scored on them.
3. selectivity = accuracy of the probe - accuracy of the same probe on the control task (mean over draws), interval over
   units. Near 0: what looks like a property may be memory.

Where no unit occurs on both sides (a split by unit) nothing can be memorised, and selectivity is not defined.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from assay.probe.estimators import logistic
from assay.probe.scores import Estimate, mean_over_groups

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Selectivity:
    """`accuracy` and `control` on the `rows` held-out rows whose unit was trained on; None, and `why`, where too few."""

    accuracy: float | None
    control: float | None
    selectivity: Estimate | None
    rows: int
    units: int
    why: str = ""

    def json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def control_labels(units: Sequence[object], draw: int = 0, seed: int = 0) -> NDArray[np.int64]:
    """A random label (n,) per unit, the same wherever the unit occurs."""
    return np.array([hashlib.sha256(f"{seed}/{draw}/{unit}".encode()).digest()[0] % 2 for unit in units])


def selectivity(
    X: ArrayLike, y: ArrayLike, units: Sequence[object], X_held: ArrayLike, y_held: ArrayLike, units_held: Sequence[object],
    C: float = 0.01, draws: int = 5, seed: int = 0,
) -> Selectivity:  # fmt: skip
    """Of a logistic probe fitted on X (n, d), y (n,) and scored on the held-out rows."""
    values, labels, names = np.asarray(X, float), np.asarray(y).astype(float), np.array([str(u) for u in units])
    names_held = np.array([str(u) for u in units_held])
    seen = np.isin(names_held, names)
    held, truth, of = np.asarray(X_held, float)[seen], np.asarray(y_held)[seen], names_held[seen]
    if len(np.unique(of)) < 2:
        return Selectivity(None, None, None, int(seen.sum()), len(np.unique(of)), "no units on both sides of the split")
    right = _right(values, labels, held, truth, C)
    control = np.zeros(len(of))
    for draw in range(draws):
        control += _right(values, control_labels(names.tolist(), draw, seed), held, control_labels(of.tolist(), draw, seed), C)
    gap = mean_over_groups(right - control / draws, of.tolist())
    return Selectivity(float(right.mean()), float(control.mean() / draws), gap, len(of), len(np.unique(of)))


def _right(values: Array, labels: ArrayLike, held: Array, truth: ArrayLike, C: float) -> Array:
    """1 for every held-out row that a probe fitted on `labels` gets right; the one label where there is one only."""
    known = np.asarray(labels).astype(float)
    if len(np.unique(known)) < 2:
        return (np.asarray(truth) == known[0]).astype(float)
    weights, bias = logistic(values, known, C)
    return ((held @ weights + bias > 0) == np.asarray(truth)).astype(float)
