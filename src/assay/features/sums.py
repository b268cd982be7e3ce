"""What an evaluation adds up: sums over tokens, by document, batch after batch.

Batches are summed apart and merged in their order, so that it does not matter who read them. Sums over the first batches
can be kept in a file: a run that was killed goes on after them, to the same numbers.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from assay.errors import StoreError, UsageError, bad_argument
from assay.features.codes import Codes
from assay.features.cost import Cost, cost, cost_in_words
from assay.features.dictionary import Dictionary
from assay.features.ratios import Measure, complement, ratio
from assay.features.spliced import Losses
from assay.files import write_file

VALUES, EVERY = 1_000_000, 2.0  # of latents, kept as a sample; seconds between two writes
DECADES = tuple(-6 + step / 2 for step in range(13))  # of firing rates, log10, lower edges of bins
FURTHER = {"layer": 2, "root": 1}  # numbers of a token that undo an input_norm
NOTHING = "held-out text: no token is typical for this dictionary. Check its site and norm limits."


@dataclass(frozen=True)
class Rates:
    """Histogram of firing rates over latents: `counts[i]` of them at 10^edges[i] or more, below the next; `never`: none."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    never: int


class Reconstruction:
    """Sums for FVU and its relatives, float64, per document. `centre`: near the mean, so that no digits are lost."""

    def __init__(self, documents: int, centre: Float[Tensor, " d"]) -> None:
        self.centre = centre.double()
        self.n = torch.zeros(documents, dtype=torch.double)
        self.error, self.square, self.shares = self.n.clone(), self.n.clone(), self.n.clone()
        self.active = self.n.clone()
        self.sums = torch.zeros(documents, len(centre), dtype=torch.double)
        self.shift = torch.zeros(len(centre), dtype=torch.double)

    def add(self, y: Tensor, found: Tensor, documents: Tensor, active: Tensor | None = None) -> None:
        """Some tokens: targets, reconstructions, and how many numbers each was made of."""
        centred, error = y.double() - self.centre, y.double() - found.double()
        squares, errors = centred.square().sum(1), error.square().sum(1)
        for sums, values in ((self.n, torch.ones_like(errors)), (self.error, errors), (self.square, squares),
                             (self.shares, 1 - errors / squares.clamp_min(1e-12))):  # fmt: skip
            sums.index_add_(0, documents, values)
        self.sums.index_add_(0, documents, centred)
        self.shift += error.sum(0)
        if active is not None:
            self.active.index_add_(0, documents, active.double())

    def merge(self, part: "Reconstruction", places: Tensor) -> None:
        """Add sums of another batch, around the same centre; `places`: the number here of each of its documents."""
        for name in ("n", "error", "square", "shares", "active", "sums"):
            getattr(self, name).index_add_(0, places, getattr(part, name))
        self.shift += part.shift

    @property
    def n_tokens(self) -> int:
        return int(self.n.sum())

    @property
    def total(self) -> Float[Tensor, " document"]:
        """Squared distance from the mean over all tokens, per document."""
        mean = self.sums.sum(0) / self.n.sum().clamp_min(1)
        return self.square - 2 * self.sums @ mean + self.n * mean.square().sum()

    @property
    def mse(self) -> float:
        """Squared error per token."""
        return float(self.error.sum() / self.n.sum().clamp_min(1))

    def fvu(self) -> Measure | None:
        """Fraction of variance unexplained."""
        return ratio(self.error.numpy(), self.total.numpy())

    def forms(self) -> dict[str, Measure | None]:
        """The three explained variances."""
        n = max(self.n_tokens, 1)
        centred = (self.error.sum() - self.shift.square().sum() / n) / self.total.sum()
        return {"explained variance": complement(self.fvu()),
                "explained variance, mean of ratios": ratio(self.shares.numpy(), self.n.numpy()),
                "explained variance, error centred": Measure(float(1 - centred))}  # fmt: skip

    def l0(self) -> Measure | None:
        """Numbers per token."""
        return ratio(self.active.numpy(), self.n.numpy())

    def tensors(self) -> dict[str, Tensor]:
        """All sums, by name."""
        return {name: getattr(self, name) for name in ("n", "error", "square", "shares", "active", "sums", "shift")}

    def take(self, kept: Mapping[str, Tensor]) -> None:
        """Go on from what `tensors` gave."""
        for name, value in kept.items():
            setattr(self, name, value)


class Firing:
    """How often each latent is active, and a sample of values times the norms of their directions."""

    def __init__(self, dictionary: Dictionary) -> None:
        self.norms = dictionary.directions().norm(dim=1)
        self.counts = torch.zeros(dictionary.width, dtype=torch.long)
        self.n, self.values, self.kept = 0, [], 0

    def add(self, codes: Codes, keep: Bool[Tensor, " token"]) -> None:
        """Codes of those tokens that are kept."""
        chosen = keep[codes.pairs.tokens]
        latents = codes.latents[chosen]
        self.counts += torch.bincount(latents, minlength=len(self.counts))
        self.n += int(keep.sum())
        if self.kept < VALUES:
            sizes = (codes.values[chosen] * self.norms[latents])[: VALUES - self.kept]
            self.values.append(sizes)
            self.kept += len(sizes)

    def merge(self, part: "Firing") -> None:
        """Add counts of another batch, and of its sample what there is room for."""
        self.counts += part.counts
        self.n += part.n
        for sizes in part.values:
            kept = sizes[: VALUES - self.kept]
            self.values.append(kept)
            self.kept += len(kept)

    @property
    def rates(self) -> Float[Tensor, " latent"]:
        return self.counts.double() / max(self.n, 1)

    def histogram(self) -> Rates:
        """Latents by log10 of their rate, in half decades."""
        alive = self.rates[self.counts > 0].log10()
        edges = torch.tensor(DECADES, dtype=torch.double)
        place = (torch.bucketize(alive, edges, right=True) - 1).clamp(0, len(edges) - 1)
        counts = torch.bincount(place, minlength=len(edges)).tolist()
        return Rates(DECADES, tuple(counts), int((self.counts == 0).sum()))

    def cost(self, dictionary: Dictionary, mse: float, corpus_tokens: int) -> Cost:
        """Bits per token."""
        weights = sum(parameter.numel() for parameter in dictionary.parameters())
        if dictionary.input_norm != "none":
            return cost_in_words(self.rates.float(), FURTHER[dictionary.input_norm], weights, corpus_tokens)
        sizes = torch.cat(self.values) if self.values else torch.zeros(0)
        return cost(self.rates.float(), sizes, mse, weights, corpus_tokens)

    def tensors(self) -> dict[str, Tensor]:
        """All that was counted, by name."""
        values = torch.cat(self.values) if self.values else torch.zeros(0)
        return {"counts": self.counts, "n": torch.tensor(self.n), "values": values}

    def take(self, kept: Mapping[str, Tensor]) -> None:
        """Go on from what `tensors` gave."""
        self.counts, self.n, self.values = kept["counts"], int(kept["n"]), [kept["values"]]
        self.kept = len(kept["values"])


@dataclass(eq=False)
class Found:
    """Everything summed over some batches, by column name."""

    typical: dict[str, Reconstruction]
    all: Reconstruction
    latents: dict[str, Firing]
    losses: Losses | None

    @staticmethod
    def empty(
        ways: Mapping[str, Dictionary], documents: int, mean: Tensor, further: Sequence[str], losses: bool
    ) -> "Found":  # fmt: skip
        """Nothing yet, of so many documents. `further`: columns that are no dictionary's."""
        names = [*ways, *further]
        return Found({name: Reconstruction(documents, mean) for name in names}, Reconstruction(documents, mean),
                      {name: Firing(each) for name, each in ways.items()}, Losses(documents) if losses else None)  # fmt: skip

    def merge(self, part: "Found", places: Tensor) -> None:
        """Add one batch; `places`: the number here of each of its documents."""
        for name, sums in self.typical.items():
            sums.merge(part.typical[name], places)
        self.all.merge(part.all, places)
        for name, firing in self.latents.items():
            firing.merge(part.latents[name])
        if self.losses is not None and part.losses is not None:
            self.losses.merge(part.losses, places)

    def tensors(self) -> dict[str, Tensor]:
        """All sums, by name."""
        return {f"{place}.{name}": value for place, part in self._parts().items() for name, value in part.tensors().items()}

    def take(self, kept: Mapping[str, Tensor]) -> None:
        """Go on from what `tensors` gave."""
        for place, part in self._parts().items():
            start = f"{place}."
            part.take({name.removeprefix(start): value for name, value in kept.items() if name.startswith(start)})

    def _parts(self) -> dict[str, "Sums"]:
        numbered = {**{f"typical.{number}": each for number, each in enumerate(self.typical.values())}, "all": self.all,
                    **{f"latents.{number}": each for number, each in enumerate(self.latents.values())}}  # fmt: skip
        return numbered if self.losses is None else {**numbered, "losses": self.losses}


class Moments:
    """Number, sum and, if `square`, products of the typical targets of some batches, float64."""

    def __init__(self, square: bool) -> None:
        self.n, self.total = 0, torch.zeros((), dtype=torch.double)
        self.square = torch.zeros((), dtype=torch.double) if square else None

    def add(self, y: Float[Tensor, "token d"]) -> None:
        """Some tokens."""
        y = y.double()
        self.n, self.total = self.n + len(y), self.total + y.sum(0)
        if self.square is not None:
            self.square = self.square + y.T @ y

    def merge(self, part: "Moments") -> None:
        """Add those of another batch."""
        self.n, self.total = self.n + part.n, self.total + part.total
        if self.square is not None and part.square is not None:
            self.square = self.square + part.square

    def axes(self) -> tuple[Float[Tensor, " d"], Float[Tensor, "axis d"] | None]:
        """Mean, float64, and principal axes, if there are products. Raises UsageError where no token was added."""
        if not self.n:
            raise UsageError(NOTHING)
        mean = self.total / self.n
        if self.square is None:
            return mean, None
        return mean, torch.linalg.eigh(self.square / self.n - torch.outer(mean, mean)).eigenvectors.T.flip(0).float()

    def tensors(self) -> dict[str, Tensor]:
        """All sums, by name."""
        found = {"n": torch.tensor(self.n), "total": self.total}
        return found if self.square is None else {**found, "square": self.square}

    def take(self, kept: Mapping[str, Tensor]) -> None:
        """Go on from what `tensors` gave."""
        self.n, self.total, self.square = int(kept["n"]), kept["total"], kept.get("square")


# kept --------------------------------------------------------------------------------------------


class Sums(Protocol):
    """What can be kept and taken up."""

    def tensors(self) -> dict[str, Tensor]:
        """All of it, by name."""
        ...

    def take(self, kept: Mapping[str, Tensor]) -> None:
        """Go on from what `tensors` gave."""
        ...


class KeptSums:
    """A file with the sums over the first batches of one pass. `path`: None where nothing is kept.

    `identity`: what must be the same for a pass to go on.
    """

    def __init__(self, path: Path | None, identity: str) -> None:
        self.path, self.identity, self.written = path, identity, time.monotonic()

    def take_up(self, sums: Sums) -> int:
        """Fill sums with what was kept; over how many batches. Raises UsageError for those of another evaluation and
        StoreError for a file that is none."""
        if self.path is None or not self.path.exists():
            return 0
        try:
            with safe_open(self.path, "pt") as file:
                record, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise StoreError(f"{self.path}: no kept sums ({error}). Delete it to begin again.") from error
        if record["identity"] != self.identity:
            raise bad_argument("folder", f"{self.path}, which another evaluation left", "an empty folder")
        sums.take(tensors)
        return int(record["batches"])

    def keep(self, sums: Sums, batches: int, last: bool = False) -> None:
        """Write sums over so many batches, unless that was done less than `EVERY` seconds ago; the last in any case."""
        if self.path is None or (not last and time.monotonic() - self.written < EVERY):
            return
        tensors = {name: value.contiguous() for name, value in sums.tensors().items()}
        write_file(self.path, save(tensors, {"identity": self.identity, "batches": str(batches)}))
        self.written = time.monotonic()
