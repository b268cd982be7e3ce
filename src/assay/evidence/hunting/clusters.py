"""Do vectors fall into two groups, more than one cloud of the same shape would?

1. Vectors are rotated to their leading principal components, which keeps the distances that matter.
2. Two groups by k-means, begun on both sides of the median of each of the leading axes; how far apart they are is
   the mean silhouette (Rousseeuw 1987).
3. Null: Gaussian clouds of the same covariance, clustered the same way (as in SigClust, Liu et al. 2008). Draws stop
   at the first cloud that is as far apart, and p is one in that many (Besag & Clifford 1991).

Two groups are not two meanings: a frame of sentences can be a group.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

COMPONENTS = 6
STARTS = 3
ROUNDS = 8
MOST = 300  # vectors that are compared with each other
Points = NDArray[np.float64]


@dataclass(frozen=True)
class Split:
    """Two groups: 0 or 1 per vector, mean silhouette, and p against one Gaussian cloud."""

    groups: NDArray[np.int64]
    silhouette: float
    p: float


def split_in_two(vectors: Points, draws: int, seed: int) -> Split | None:
    """The best two groups of vectors (n, d), of the first `MOST`; None for fewer than 8, or when all are the same."""
    if len(vectors) < 8:
        return None
    vectors = vectors[:MOST]
    left, sizes, _ = np.linalg.svd(vectors - vectors.mean(0), full_matrices=False)
    kept = min(COMPONENTS, int((sizes > 1e-9 * max(1.0, sizes[0])).sum()))
    if kept == 0:
        return None
    points, spread = left[:, :kept] * sizes[:kept], sizes[:kept] / np.sqrt(len(vectors) - 1)
    (groups,) = two_means(points[None])
    found = silhouette(points, groups)
    clouds = np.random.default_rng([seed, 18]).standard_normal((draws, *points.shape)) * spread
    for number, (cloud, sides) in enumerate(zip(clouds, two_means(clouds), strict=True)):
        if silhouette(cloud, sides) >= found:
            return Split(groups, found, 1 / (number + 1))
    return Split(groups, found, 1 / (1 + draws))


def two_means(points: Points) -> NDArray[np.int64]:
    """k-means with two groups of many sets at once, (sets, n, k) -> (sets, n); the best of its beginnings."""
    n = points.shape[1]
    axes = points[:, :, :STARTS].transpose(0, 2, 1)
    groups = (axes > np.median(axes, axis=2, keepdims=True)).astype(float)  # (sets, starts, n)
    for _ in range(ROUNDS):
        high, low = centres(points, groups)
        apart = high - low
        side = apart @ points.transpose(0, 2, 1) - ((high + low) / 2 * apart).sum(2, keepdims=True)
        groups = (side > 0).astype(float)
    high, low = centres(points, groups)
    inside = groups.sum(2)
    between = inside * (n - inside) * ((high - low) ** 2).sum(2)
    return groups[np.arange(len(points)), between.argmax(1)].astype(np.int64)


def centres(points: Points, groups: Points) -> tuple[Points, Points]:
    """Means of both groups, (sets, starts, k) each."""
    inside, sums = groups.sum(2, keepdims=True), groups @ points
    total = points.sum(1)[:, None]
    return sums / np.maximum(1, inside), (total - sums) / np.maximum(1, points.shape[1] - inside)


def silhouette(points: Points, groups: NDArray[np.int64]) -> float:
    """Mean silhouette of two groups; 0 when one is empty."""
    sizes = np.bincount(groups, minlength=2)
    if sizes.min() == 0:
        return 0.0
    squares = (points**2).sum(1)
    distance = np.sqrt(np.maximum(0.0, squares[:, None] + squares - 2 * points @ points.T))
    sums = np.stack([distance[:, groups == side].sum(1) for side in (0, 1)], 1)
    own = np.take_along_axis(sums, groups[:, None], 1)[:, 0] / np.maximum(1, sizes[groups] - 1)
    other = np.take_along_axis(sums, 1 - groups[:, None], 1)[:, 0] / sizes[1 - groups]
    value = np.where(sizes[groups] > 1, (other - own) / np.maximum(np.maximum(own, other), 1e-300), 0.0)
    return float(value.mean())
