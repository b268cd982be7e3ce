"""How many groups of examples a probe needs: AUROC against the number of training groups.

1. For every size and seed that many groups are drawn from the training rows, both labels among them; a logistic probe is
   fitted and scored on the same held-out rows.
2. value: mean over seeds. Bounds: held-out groups and the seed are drawn with replacement, so they are those of one more
   training set of this size and other held-out groups; percentiles of the draws.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from assay.errors import bad_argument
from assay.probe.estimators import logistic
from assay.probe.scores import bootstrap_auroc

Array = NDArray[np.float64]
SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)


@dataclass(frozen=True)
class Point:
    """`groups` training groups with `rows` rows on average; AUROC over seeds with its interval."""

    groups: int
    rows: float
    value: float
    low: float
    high: float
    by_seed: tuple[float, ...]

    def json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def curve(
    X: ArrayLike, y: ArrayLike, groups: Sequence[object], X_held: ArrayLike, y_held: ArrayLike,
    groups_held: Sequence[object] | None = None, sizes: Sequence[int] | None = None, seeds: int = 5, C: float = 0.01,
    level: float = 0.95, draws: int = 1000, seed: int = 0,
) -> tuple[Point, ...]:  # fmt: skip
    """Points for rising `sizes` (numbers of groups; by default 1/16, 1/8, 1/4, 1/2 and all). Sizes that cannot have both
    labels are left out. Raises UsageError for sizes outside 2 to the number of groups."""
    values, labels, held = np.asarray(X, float), np.asarray(y).astype(float), np.asarray(X_held, float)
    names = np.unique([str(g) for g in groups], return_inverse=True)[1]
    k = int(names.max()) + 1
    wanted = sorted({max(2, round(share * k)) for share in SHARES} if sizes is None else set(sizes))
    if not wanted or wanted[0] < 2 or wanted[-1] > k:
        raise bad_argument("sizes", sizes if sizes is not None else k, f"numbers of groups from 2 to {k}")
    points = []
    for size in wanted:
        drawn = [_draw(names, labels, size, seed + 1000 * number) for number in range(1 if size == k else seeds)]
        fits = [logistic(values[rows], labels[rows], C) for rows in drawn]
        scores = np.stack([held @ weights + bias for weights, bias in fits])
        by_seed, low, high = bootstrap_auroc(scores, y_held, groups_held, level, draws, seed)
        points.append(Point(size, float(np.mean([len(r) for r in drawn])), float(np.mean(by_seed)), low, high, by_seed))
    return tuple(points)


def _draw(names: NDArray[np.int64], labels: Array, size: int, seed: int) -> NDArray[np.int64]:
    """Rows of `size` groups: one with a row of each label, the others from all."""
    generator = np.random.default_rng(seed)
    chosen: list[int] = []
    for value in (0.0, 1.0):
        having = np.setdiff1d(np.unique(names[labels == value]), chosen)
        if value not in labels[np.isin(names, chosen)]:
            chosen.append(int(generator.choice(having)))
    rest = np.setdiff1d(np.unique(names), chosen)
    chosen += generator.choice(rest, size - len(chosen), replace=False).tolist()
    return np.flatnonzero(np.isin(names, chosen))
