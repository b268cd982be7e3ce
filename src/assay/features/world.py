"""Other processes that train the same dictionaries: what sums are over, when each has a part of the rows, or of the latents.

1. Alone, everything here gives back what it got. Several processes (`scale/training.py`) put in another `World`.
2. Rows divided: process r of R takes rows r, r + R, ... of every batch: the first n rows of a batch are the first rows of all
   parts. What a loss takes from the whole batch is asked for here: `mean` of sums and counts, `gather` of candidates, `least`.
   Gradients of means are then averaged (`average`), and all processes make the same step.
3. Latents divided: process r holds latents r K/R to (r + 1) K/R and reads all rows. A sum over latents is `total`, the k
   largest of all are found among the k largest of each (`largest`). The loss is then the same number everywhere, and its
   gradient at a latent is that process's own; what every latent reads (`entered`) gets the sum of its gradients.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


class World:
    """One process alone."""

    rank, size = 0, 1
    parts, slices = 1, 1  # of the rows of a batch, of the latents
    device = torch.device("cpu")  # where this process trains

    def share(self, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """This process's rows of a batch, on its device."""
        own = slice(self.rank if self.parts > 1 else 0, None, self.parts)
        return {name: x[own].to(self.device) for name, x in batch.items()}

    def first(self, rows: int) -> int:
        """How many of the first `rows` rows of a batch are in this process's part."""
        return rows if self.parts == 1 else len(range(self.rank, rows, self.parts))

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

    def total(self, x: Tensor) -> Tensor:
        """The sum over slices of latents; each gets the gradient of the sum."""
        return x

    def entered(self, x: Tensor) -> Tensor:
        """The same, read by all slices: its gradient is the sum over them."""
        return x

    def largest(self, values: Tensor, k: int) -> Tensor:
        """Which of a slice's candidates (token, at most k) are among the k largest of all slices."""
        return torch.ones_like(values, dtype=torch.bool)

    def every(self, x: Tensor) -> Tensor:
        """Of all latents, from this slice's."""
        return x

    def own(self, latents: Tensor, width: int) -> Tensor:
        """Those of some latents that are in this slice of `width`, by their numbers in it."""
        return latents

    def collected(self, x: Tensor) -> Tensor:
        """Of all latents in process 0, whatever else in others."""
        return x


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
    return local + (world().mean(local.detach()) - local.detach()) if world().parts > 1 else local


def lowest(values: Tensor) -> Tensor | None:
    """The smallest value of all processes; None where there is none at all."""
    found = world().least(values.min() if len(values) else values.new_tensor(torch.inf))
    return found if bool(torch.isfinite(found)) else None


def deviation(x: Tensor) -> Tensor:
    """The standard deviation of all entries, of all slices."""
    if world().slices == 1:
        return x.std()
    n = x.numel() * world().slices
    centred = x - world().total(x.sum()) / n
    return (world().total(centred.square().sum()) / (n - 1)).sqrt()


def drawn(width: int, d: int, generator: torch.Generator) -> Tensor:
    """Normal rows: of a slice those that one process draws there; rows of other slices are drawn and let go."""
    slices, rank = world().slices, world().rank
    if slices == 1:
        return torch.randn(width, d, generator=generator)
    if width * d % 16:  # torch draws sixteen at a time
        return torch.randn(width * slices, d, generator=generator)[rank * width : (rank + 1) * width]
    rows = torch.empty(0)
    for number in range(slices):
        part = torch.randn(width, d, generator=generator)
        rows = part if number == rank else rows
    return rows
