"""Other processes that train the same dictionaries: what a batch's sums are over, when each has a part of its rows.

1. Alone, everything here gives back what it got. Several processes (`scale/training.py`) put in another `World`.
2. Process r of R takes rows r, r + R, ... of every batch: the first n rows of a batch are the first rows of all parts.
3. What a loss takes from the whole batch is asked for here: `mean` of sums and counts, `gather` of candidates, `least`.
   Gradients of means are then averaged (`average`), and all processes make the same step.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


class World:
    """One process alone."""

    rank, size = 0, 1

    def share(self, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """This process's rows of a batch."""
        return batch if self.size == 1 else {name: x[self.rank :: self.size] for name, x in batch.items()}

    def first(self, rows: int) -> int:
        """How many of the first `rows` rows of a batch are in this process's part."""
        return len(range(self.rank, rows, self.size))

    def mean(self, x: Tensor) -> Tensor:
        """Of all processes, without gradients."""
        return x

    def least(self, x: Tensor) -> Tensor:
        """The smallest of all processes."""
        return x

    def all(self, yes: bool) -> bool:
        """Whether it is so in every process."""
        return yes

    def any(self, mask: Tensor) -> Tensor:
        """Where it is so in some process."""
        return mask

    def gather(self, x: Tensor) -> Tensor:
        """Vectors of one length, one after the other."""
        return x

    def average(self, parameters: Iterable[Tensor]) -> None:
        """Their gradients become the mean over processes."""


_HERE = [World()]


def world() -> World:
    """The one this process is in."""
    return _HERE[-1]


@contextmanager
def inside(other: World) -> Iterator[World]:
    """As long as this lasts, `world()` is another one."""
    _HERE.append(other)
    try:
        yield other
    finally:
        _HERE.remove(other)


def following(local: Tensor) -> Tensor:
    """The mean over processes as a value, with the gradient of this process's own: averaged, that of the whole batch."""
    return local + (world().mean(local.detach()) - local.detach()) if world().size > 1 else local


def lowest(values: Tensor) -> Tensor | None:
    """The smallest value of all processes; None where there is none at all."""
    found = world().least(values.min() if len(values) else values.new_tensor(torch.inf))
    return found if bool(torch.isfinite(found)) else None
