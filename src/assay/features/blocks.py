"""One shuffled order for everything too large to be in memory: blocks of units, shuffled inside.

1. Tokens lie in units (a row of the corpus, a stretch of a shard), each with a known number of tokens. An epoch takes
   all units in an order drawn from (seed, epoch).
2. Units are put together to blocks of about `block_tokens`; a block is loaded whole, and its tokens are shuffled by
   (seed, epoch, block). Memory: one block.
3. Epochs follow each other without end; batch b is tokens b * size to (b + 1) * size of that sequence. Which block
   begins it follows from counting alone, so batch b is the same whether or not those before it were made.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from assay.errors import StoreError, bad_argument

Loaded = Mapping[str, Float[Tensor, "token d"]]


@dataclass(frozen=True, eq=False)
class Block:
    """Some units and the order of their tokens; a first block begins inside it."""

    units: np.ndarray
    order: np.ndarray
    key: tuple[int, int, int]


class Order:
    """The endless shuffled order of tokens that lie in units of these sizes."""

    def __init__(self, sizes: np.ndarray, block_tokens: int, seed: int) -> None:
        self.sizes, self.block_tokens, self.seed = np.asarray(sizes, dtype=np.int64), block_tokens, seed
        self.n_tokens = int(self.sizes.sum())
        if not self.n_tokens:
            raise StoreError("no token is left to read: every one is at the start of a text or massive.")

    def blocks(self, token: int) -> Iterator[Block]:
        """Blocks from the one that holds the token of this number on."""
        epoch, token = divmod(token, self.n_tokens)
        while True:
            units = np.random.default_rng([self.seed, 1, epoch]).permutation(len(self.sizes))
            ends = np.cumsum(self.sizes[units])
            place = (ends - self.sizes[units]) // self.block_tokens  # the block of each unit
            cuts = [0, *(np.flatnonzero(np.diff(place)) + 1).tolist(), len(units)]
            for number, (start, stop) in enumerate(zip(cuts, cuts[1:], strict=False)):
                first = int(ends[start - 1]) if start else 0
                inside = int(ends[stop - 1]) - first
                if token - first < inside:
                    order = np.random.default_rng([self.seed, 2, epoch, number]).permutation(inside)
                    yield Block(units[start:stop], order[max(token - first, 0) :], (self.seed, epoch, number))
            epoch, token = epoch + 1, 0


def shuffled(
    order: Order, load: Callable[[Block], tuple[Loaded, np.ndarray]], size: int, start: int
) -> Iterator[dict[str, Float[Tensor, "token d"]]]:
    """Batches of `size` tokens in fp32. `load` gives a block's tokens, and where in them the block's order points."""
    if size < 1:
        raise bad_argument("size", size, "1 or more")
    if start < 0:
        raise bad_argument("start", start, "0 or more")
    parts: list[dict[str, Tensor]] = []
    have = 0
    for block in order.blocks(start * size):
        values, chosen = load(block)
        index = torch.from_numpy(np.ascontiguousarray(chosen))
        while len(index):
            taken, index = index[: size - have], index[size - have :]
            parts.append({site: x[taken].float() for site, x in values.items()})
            have += len(taken)
            if have == size:
                yield parts[0] if len(parts) == 1 else {site: torch.cat([part[site] for part in parts]) for site in values}
                parts, have = [], 0
        del values
