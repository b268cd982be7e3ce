"""Streams of activations: what training reads, wherever the activations come from.

1. A stream names its sites and gives batches of typical tokens, shuffled, epoch after epoch, each in a new order.
2. Batch number b is the same whenever it is asked for (`seed`, `start`): training that was killed goes on exactly.
3. `TensorStream` holds activations in memory; `Paired` puts two streams of the same tokens beside each other, the sites of
   each under a name of its own, for crosscoders between models. Shards and running models have modules of their own.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from assay.errors import ShapeError, bad_argument

Batch = Mapping[str, Float[Tensor, "token d"]]


class ActivationStream(Protocol):
    """Activations of typical tokens. `record` goes into the provenance of what is trained on them."""

    @property
    def sites(self) -> tuple[str, ...]:
        """Canonical names."""
        ...

    @property
    def sizes(self) -> Mapping[str, int]:
        """Features of each site."""
        ...

    @property
    def n_tokens(self) -> int:
        """Tokens of one pass."""
        ...

    @property
    def record(self) -> Mapping[str, Any]:
        """Where they come from, as plain values."""
        ...

    @property
    def norm_limits(self) -> Mapping[str, float | None]:
        """For each site the norm above which a token was left out."""
        ...

    @property
    def skip_first(self) -> int:
        """Positions at the start of each text that were left out."""
        ...

    def batches(self, size: int, seed: int = 0, start: int = 0) -> Iterator[Batch]:
        """Batches of `size` tokens in fp32, from number `start` on, without end."""
        ...


class Alignable(ActivationStream, Protocol):
    """A stream that can be put beside another one."""

    def alignment(self) -> str:
        """What decides which token is at which place: streams for which it is the same give the same tokens side by side."""
        ...


class TensorStream:
    """Activations in memory, all sites with the same tokens."""

    def __init__(self, values: Mapping[str, Float[Tensor, "token d"]], record: Mapping[str, Any] | None = None) -> None:
        lengths = {len(x) for x in values.values()}
        if len(lengths) != 1 or lengths == {0}:
            raise ShapeError(f"values: sites of {sorted(lengths)} tokens; allowed: the same number, 1 or more, for all.")
        self.values, self.record, self.skip_first = dict(values), dict(record or {}), 0
        self.sites = tuple(self.values)
        self.sizes = {site: x.shape[1] for site, x in self.values.items()}
        self.n_tokens = lengths.pop()
        self.norm_limits: dict[str, float | None] = dict.fromkeys(self.sites)

    def alignment(self) -> str:
        """By number: tensors of as many tokens are taken to be of the same ones."""
        return f"{self.n_tokens} in memory"

    def batches(self, size: int, seed: int = 0, start: int = 0) -> Iterator[Batch]:
        """Batches of `size` tokens; a batch may end one epoch and begin the next."""
        if size < 1:
            raise bad_argument("size", size, "1 or more")
        epoch, order, number = -1, torch.empty(0, dtype=torch.long), start
        while True:
            rows = torch.arange(number * size, (number + 1) * size)
            parts = []
            for turn in rows.div(self.n_tokens, rounding_mode="floor").unique().tolist():
                if turn != epoch:
                    generator = torch.Generator().manual_seed(seed * 1_000_003 + turn)
                    epoch, order = turn, torch.randperm(self.n_tokens, generator=generator)
                parts.append(order[rows[rows.div(self.n_tokens, rounding_mode="floor") == turn] % self.n_tokens])
            chosen = torch.cat(parts)
            yield {site: x.index_select(0, chosen).float() for site, x in self.values.items()}
            number += 1


class Paired:
    """Streams of the same tokens side by side; the sites of each begin with its name and a colon.

    Raises UsageError for streams of other tokens, or of the same in another order: their values would not belong together.
    """

    def __init__(self, streams: Mapping[str, Alignable]) -> None:
        counts = {stream.n_tokens for stream in streams.values()}
        if len(counts) != 1 or len({stream.alignment() for stream in streams.values()}) != 1:
            raise bad_argument("streams", f"{sorted(counts)} tokens, not the same ones in the same order",
                               "streams of the same tokens", "Of harvests: `typical_in_all`. Of running models: factor=None"
                               " and the same buffer, as each leaves out the tokens that are massive there.")  # fmt: skip
        self.streams = dict(streams)
        self.n_tokens = counts.pop()
        self.sites = tuple(f"{name}:{site}" for name, stream in streams.items() for site in stream.sites)
        self.sizes = {f"{name}:{site}": size for name, stream in streams.items() for site, size in stream.sizes.items()}
        self.norm_limits = {f"{name}:{site}": limit for name, stream in streams.items()
                            for site, limit in stream.norm_limits.items()}  # fmt: skip
        self.record = {name: dict(stream.record) for name, stream in streams.items()}
        self.skip_first = max(stream.skip_first for stream in streams.values())
        self._alignment = next(iter(streams.values())).alignment()

    def alignment(self) -> str:
        """That of its streams."""
        return self._alignment

    def batches(self, size: int, seed: int = 0, start: int = 0) -> Iterator[Batch]:
        """The same batch of every stream."""
        runs = [stream.batches(size, seed, start) for stream in self.streams.values()]
        for parts in zip(*runs, strict=True):
            yield {f"{name}:{site}": x for name, part in zip(self.streams, parts, strict=True) for site, x in part.items()}
