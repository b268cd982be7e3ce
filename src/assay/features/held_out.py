"""Held-out text and its activations, as evaluation reads them: row by row, each token with its document and position.

1. A row is one run of token ids; positions count from its start. Rows of one document stay together for intervals.
2. Typical tokens are those a dictionary is for: not the first positions, and norms of input and target, and of the residual
   stream in front of a norm where training looked there, not above its limits. A dictionary without a limit (most that were
   made elsewhere) gets 10 x the median norm measured here: a handful of massive tokens may hold most of the variance.
3. A crosscoder between two models reads both: `SideBySide`, whose sites are NAME:SITE, as those of a `Paired` stream.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from assay.errors import bad_argument
from assay.features.dictionary import Dictionary
from assay.model.model import Model

FACTOR = 10.0  # times the median norm


@dataclass(frozen=True)
class HeldOut:
    """Rows of token ids and the document of each. Raises UsageError for none, or for rows of fewer than two tokens."""

    rows: tuple[tuple[int, ...], ...]
    documents: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.rows or len(self.rows) != len(self.documents):
            raise bad_argument("rows", f"{len(self.rows)} rows, {len(self.documents)} documents", "as many, 1 or more")
        if min(map(len, self.rows)) < 2:
            raise bad_argument("rows", "a row of one token", "two tokens or more in each")

    @staticmethod
    def of(rows: Sequence[Sequence[int]], documents: Sequence[str] | None = None) -> "HeldOut":
        """Each row its own document unless said otherwise; rows of fewer than two tokens are left out."""
        names = [str(number) for number in range(len(rows))] if documents is None else [str(name) for name in documents]
        if len(names) != len(rows):
            raise bad_argument("documents", f"{len(names)} for {len(rows)} rows", "one for each row")
        kept = [(tuple(map(int, row)), name) for row, name in zip(rows, names, strict=True) if len(row) > 1]
        return HeldOut(tuple(row for row, _ in kept), tuple(name for _, name in kept))

    @property
    def n_tokens(self) -> int:
        """In all rows."""
        return sum(map(len, self.rows))

    @property
    def digest(self) -> str:
        """Of rows and their documents."""
        return hashlib.sha256(repr((self.rows, self.documents)).encode()).hexdigest()

    @property
    def names(self) -> list[str]:
        """Documents, in order of their first row."""
        return list(dict.fromkeys(self.documents))

    def divided(self, share: float) -> tuple["HeldOut", "HeldOut"]:
        """By document: about this share of them for fitting, the others for scores; of their tokens, where documents are so
        unlike that it would be less than half or more than twice of these. Raises UsageError for one document."""
        names = self.names
        if len(names) < 2:
            raise bad_argument("rows", "one document", "two documents or more", "Some are for fitting, some for scores.")
        first = set(names[:: max(2, round(1 / share))])
        sizes = dict.fromkeys(names, 0)
        for row, name in zip(self.rows, self.documents, strict=True):
            sizes[name] += len(row)
        if not share / 2 <= sum(sizes[name] for name in first) / self.n_tokens <= 2 * share:
            first = _by_tokens(sizes, share)
        parts = [[n for n, name in enumerate(self.documents) if (name in first) is wanted] for wanted in (True, False)]
        made = [HeldOut(tuple(self.rows[n] for n in part), tuple(self.documents[n] for n in part)) for part in parts]
        return made[0], made[1]

    def batches(self, tokens: int) -> Iterator["HeldOut"]:
        """Rows in turn, so many tokens at a time at most, one row at least."""
        start = 0
        while start < len(self.rows):
            end, count = start + 1, len(self.rows[start])
            while end < len(self.rows) and count + len(self.rows[end]) <= tokens:
                count += len(self.rows[end])
                end += 1
            yield HeldOut(self.rows[start:end], self.documents[start:end])
            start = end


def _by_tokens(sizes: Mapping[str, int], share: float) -> set[str]:
    """Documents that hold about this share of the tokens of those read so far, at every one; neither all of them nor none."""
    chosen, held, read = set[str](), 0, 0
    for name, size in sizes.items():
        read += size
        if held + size / 2 <= share * read:
            chosen.add(name)
            held += size
    smallest = min(sizes, key=lambda name: sizes[name])
    return chosen or {smallest} if len(chosen) < len(sizes) else chosen - {smallest}


@dataclass(frozen=True, eq=False)
class Tokens:
    """Inputs and targets of some tokens; `typical` says which of them a dictionary is for. `positions` in their rows, None
    where they are tokens of no known texts."""

    x: Float[Tensor, "token d_in"]
    y: Float[Tensor, "token d_out"]
    documents: Int[Tensor, " token"]
    typical: Bool[Tensor, " token"]
    positions: Int[Tensor, " token"] | None = None


@dataclass(frozen=True)
class Limits:
    """Which tokens are typical. `measured`: whether norm limits were set here and not by the dictionary."""

    skip_first: int
    x: float | None
    y: float | None
    measured: bool = False

    def typical(self, x: Tensor, y: Tensor, positions: Tensor) -> Bool[Tensor, " token"]:
        """Of tokens at these positions."""
        keep = positions >= self.skip_first
        for values, limit in ((x, self.x), (y, self.y)):
            if limit is not None:
                keep = keep & (values.norm(dim=1) <= limit)
        return keep

    def json(self) -> dict[str, Any]:
        """As plain values."""
        return {"skip_first": self.skip_first, "norm_limit": self.x, "target_limit": self.y, "measured_here": self.measured}


@dataclass(frozen=True, eq=False)
class SideBySide:
    """Models that read the same tokens; a site is NAME:SITE. Raises UsageError for models of unlike tokenizers."""

    models: Mapping[str, Model]

    def __post_init__(self) -> None:
        if len({model.tokenizer_digest for model in self.models.values()}) != 1:
            told = ", ".join(model.name for model in self.models.values())
            raise bad_argument("models", f"{told}, of unlike tokenizers", "models that read the same tokens")

    @property
    def digest(self) -> str:
        """Of all of them, in order."""
        return " ".join(model.digest for model in self.models.values())

    def passport(self) -> dict[str, Any]:
        """That of each, by name."""
        return {name: model.passport() for name, model in self.models.items()}

    def hosts(self, sites: Sequence[str]) -> list[tuple[Model, str]]:
        """(model, its own site) of each. Raises UsageError for a site of no model here."""
        found = []
        for site in sites:
            name, _, own = site.partition(":")
            if name not in self.models:
                raise bad_argument("site", site, ", ".join(f"{known}:SITE" for known in self.models))
            found.append((self.models[name], own))
        return found


def limits_of(dictionary: Dictionary, x: Float[Tensor, "token d_in"], y: Float[Tensor, "token d_out"]) -> Limits:
    """The dictionary's own (of several sites, those of `massive_above`), or 10 x the median norm of these tokens where it has
    none, and no limit where that norm is 0."""
    spec = dictionary.spec
    if spec.norm_limit is not None or spec.target_limit is not None or dictionary.massive_above:
        return Limits(spec.skip_first, spec.norm_limit, spec.target_limit)
    usual = [FACTOR * float(values.norm(dim=1).median()) or None for values in (x, y)]
    return Limits(spec.skip_first, *usual, measured=True)


def read(model: Model | SideBySide, sites: Sequence[str], held: HeldOut) -> Float[Tensor, "token d"]:
    """Activations at sites side by side, all tokens of all rows in order, fp32; heads are laid side by side, too."""
    return torch.cat(read_each(model, sites, held), 1)


def read_each(model: Model | SideBySide, sites: Sequence[str], held: HeldOut) -> list[Float[Tensor, "token d"]]:
    """The same for each site; every model runs once."""
    pairs = model.hosts(sites) if isinstance(model, SideBySide) else [(model, site) for site in sites]
    hosts = {id(host): host for host, _ in pairs}
    acts = {key: host.capture([list(row) for row in held.rows], host.sites([own for one, own in pairs if one is host]))
            for key, host in hosts.items()}  # fmt: skip
    return [acts[id(host)].flat(host.sites([own])[0]).flatten(1).float() for host, own in pairs]


def positions_of(held: HeldOut) -> Int[Tensor, " token"]:
    """Of each token in its row."""
    return torch.cat([torch.arange(len(row)) for row in held.rows])


def read_tokens(
    model: Model | SideBySide, dictionary: Dictionary, held: HeldOut, limits: Limits, names: Sequence[str]
) -> Tokens:  # fmt: skip
    """Inputs and targets of some rows."""
    inputs, outputs, above = dictionary.spec.inputs, dictionary.spec.outputs, dictionary.massive_above
    values = read_each(model, [*inputs, *outputs, *above], held)
    x, y = torch.cat(values[: len(inputs)], 1), torch.cat(values[len(inputs) : len(inputs) + len(outputs)], 1)
    place = {name: number for number, name in enumerate(names)}
    rows = torch.tensor([place[name] for name in held.documents])
    documents = rows.repeat_interleave(torch.tensor([len(row) for row in held.rows]))
    positions = positions_of(held)
    typical = limits.typical(x, y, positions)
    for norms, limit in zip(values[len(inputs) + len(outputs) :], above.values(), strict=True):
        typical = typical & (norms.norm(dim=1) <= limit)
    return Tokens(x, y, documents, typical, positions)
