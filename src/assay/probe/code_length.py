"""How many bits labels cost when activations are known: the online code (Voita & Titov 2020).

1. Groups are put in an order by seed and cut into blocks that grow (1/16, 1/8, 1/4, 1/2 of the rows and the rest).
2. The first block costs one bit a label. Every later one is coded by a probe fitted on all blocks before it:
       bits = n_first + sum over blocks of sum over rows of -log2 p(label | blocks before)
3. compression = uniform bits / bits, with one bit a label as uniform. Labels that are not half and half can be compressed
   without activations: `label_bits` is what the same blocks cost by the shares of labels seen before.

A probe that needs many examples, or a strong fit, pays for it here; accuracy does not show that.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from assay.errors import bad_argument
from assay.probe.estimators import logistic

Array = NDArray[np.float64]
BLOCKS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)


@dataclass(frozen=True)
class CodeLength:
    """Bits of all labels; `blocks`: rows of each block."""

    bits: float
    uniform_bits: float
    label_bits: float
    blocks: tuple[int, ...]

    @property
    def compression(self) -> float:
        """Uniform bits over bits: 1 where nothing was gained."""
        return self.uniform_bits / self.bits

    @property
    def gain(self) -> float:
        """Share of the label bits that activations save; below 0 where they cost more than they tell."""
        return 1 - self.bits / self.label_bits

    def json(self) -> dict[str, Any]:
        """As plain values."""
        return {**asdict(self), "compression": self.compression, "gain": self.gain}


def online_bits(
    X: ArrayLike, y: ArrayLike, groups: Sequence[object] | None = None, C: float = 0.01,
    blocks: Sequence[float] = BLOCKS, seed: int = 0,
) -> CodeLength:  # fmt: skip
    """Code of labels y (n,) given X (n, d). `blocks`: shares of the rows after which a block ends, rising, the last 1.

    Raises UsageError for blocks that do not rise to 1, or too few groups for two blocks.
    """
    values, labels = np.asarray(X, float), np.asarray(y).astype(int)
    where = block_of(labels, groups, blocks, seed)
    first = int((where == 0).sum())
    bits, plain = float(first), float(first)
    for number in range(1, int(where.max()) + 1):
        known, now = where < number, where == number
        plain += _share_bits(labels[known], labels[now])
        bits += _probe_bits(values, labels, known, now, C)
    return CodeLength(bits, float(len(labels)), plain, tuple(np.bincount(where).tolist()))


def block_of(
    labels: NDArray[np.int64], groups: Sequence[object] | None, blocks: Sequence[float], seed: int
) -> NDArray[np.int64]:
    """The block (n,) of every row: a group lies in the block where its middle row falls. Empty blocks are left out."""
    ends = np.asarray(blocks, float)
    if not len(ends) or (np.diff(ends, prepend=0.0) <= 0).any() or ends[-1] != 1.0:
        raise bad_argument("blocks", tuple(blocks), "shares that rise from above 0 to 1")
    names = np.arange(len(labels)) if groups is None else np.unique([str(g) for g in groups], return_inverse=True)[1]
    sizes = np.bincount(names)
    order = np.random.default_rng(seed).permutation(len(sizes))
    middle = np.empty(len(sizes))
    middle[order] = (np.cumsum(sizes[order]) - sizes[order] / 2) / len(labels)
    where = np.unique(np.searchsorted(ends, middle[names], side="left"), return_inverse=True)[1]
    if where.max() < 1:
        raise bad_argument("groups", f"{len(sizes)} groups", "enough for two blocks or more", "Give more groups or rows.")
    return where


def _probe_bits(values: Array, labels: NDArray[np.int64], known: Any, now: Any, C: float) -> float:
    if len(np.unique(labels[known])) < 2:
        return _share_bits(labels[known], labels[now])
    weights, bias = logistic(values[known], labels[known].astype(float), C)
    odds = values[now] @ weights + bias
    return float(np.logaddexp(0.0, np.where(labels[now] == 1, -odds, odds)).sum()) / math.log(2)


def _share_bits(known: NDArray[np.int64], now: NDArray[np.int64]) -> float:
    """Bits by the share of label 1 before, with half a row of each added (Krichevsky & Trofimov 1981)."""
    share = (known.sum() + 0.5) / (len(known) + 1)
    return float(-np.log2(np.where(now == 1, share, 1 - share)).sum())
