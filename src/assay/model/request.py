"""What one run is asked to do, and the batches it is cut into."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from assay.errors import bad_argument
from assay.model.activations import Activations
from assay.model.edits import Edit, Frame, Positions
from assay.sites import Site

Metric = Callable[[Tensor, Tensor], Tensor]
LogitsAt = Literal["last", "all"] | None
Progress = Callable[[int], None]


@dataclass(eq=False)
class Prefix:
    """What the first `length` tokens of some prompts leave in the model's KV cache, a row each; nothing at first."""

    length: int = 0
    cache: Any = None


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Cached residual streams (resid_pre) of prompts, to resume later passes from any layer.

    With `tokens`, the first tokens of each prompt are run once for all passes that leave them as they are.
    """

    layers: tuple[int, ...]
    residuals: Activations
    index: tuple[int, ...]
    tokens: Sequence[Sequence[int]] = ()
    prefix: Prefix = field(default_factory=Prefix)

    def select(self, rows: Sequence[int]) -> "Checkpoint":
        """The checkpoint of these prompts, in this order; repeats share memory."""
        return replace(self, index=tuple(self.index[row] for row in rows))

    def at(self, layer: int, rows: Sequence[int], width: int) -> Float[Tensor, "row pos d_model"]:
        """The residual entering `layer`, padded on the right to `width` positions."""
        parts = self.residuals.rows(Site("resid_pre", layer))
        first = parts[0]
        out = first.new_zeros(len(rows), width, first.shape[-1])
        for place, row in enumerate(rows):
            part = parts[self.index[row]]
            out[place, : len(part)] = part
        return out


@dataclass(frozen=True, eq=False)
class Request:
    """What one run should do, before it is cut into batches. `made`: captures whose values the reader makes, unseen."""

    tokens: list[list[int]]
    captures: tuple[Site, ...] = ()
    edits: tuple[Edit, ...] = ()
    positions: Positions = "all"
    logits: LogitsAt = None
    resume: Checkpoint | None = None
    gradients: bool = False
    made: tuple[Site, ...] = ()

    def resume_layer(self, n_layers: int) -> int:
        """The first block anything touches: earlier ones need not run again."""
        if self.resume is None:
            return 0
        read = (edit.condition.site for edit in self.edits if edit.condition is not None)
        sites = (*self.captures, *read, *(edit.site for edit in self.edits))
        touched = [_first_layer(site, n_layers) for site in sites]
        earliest = min(touched, default=n_layers)
        return max((layer for layer in self.resume.layers if layer <= earliest), default=0)


@dataclass(frozen=True, eq=False)
class Batch:
    """Some prompts of a request, padded on the right.

    `cache` holds what the first `start` positions left behind, when those were run before.
    """

    rows: Tensor
    ids: Tensor
    lengths: Tensor
    start: int = 0
    cache: Any = None

    @property
    def ragged(self) -> bool:
        return bool((self.lengths != self.lengths[0]).any())

    def frame(self) -> Frame:
        return Frame(self.rows, self.lengths, torch.zeros_like(self.rows), self.start)

    def arguments(self) -> dict[str, Any]:
        """What the model is called with; a mask only where it is needed."""
        arguments: dict[str, Any] = {"input_ids": self.ids[:, self.start :], "use_cache": self.cache is not None}
        if self.cache is not None:
            arguments["past_key_values"] = self.cache
        if self.ragged or self.cache is not None:
            steps = torch.arange(self.ids.shape[1], device=self.ids.device)
            arguments["attention_mask"] = (steps < self.lengths[:, None]).long()
        return arguments


def _first_layer(site: Site, n_layers: int) -> int:
    if site.layer is not None:
        return site.layer
    return n_layers if site.name in ("final_norm", "logits") else 0


def position_table(positions: Positions, lengths: Sequence[int]) -> Int[Tensor, "prompt k"] | None:
    """Absolute positions, or None for all of them. Raises UsageError outside a prompt."""
    size = torch.tensor(list(lengths))
    if isinstance(positions, str):
        if positions not in ("all", "last"):
            raise bad_argument("positions", positions, "'all', 'last', a list of ints or (n, k)")
        return None if positions == "all" else size[:, None] - 1
    table = torch.as_tensor(positions).long()
    table = table[None].expand(len(size), -1) if table.dim() == 1 else table
    if len(table) != len(size):
        raise bad_argument("positions", f"{len(table)} rows", f"{len(size)} rows, one per prompt")
    table = torch.where(table < 0, table + size[:, None], table)
    outside = (table < 0) | (table >= size[:, None])
    if outside.any():
        row = int(outside.any(1).nonzero()[0])
        raise bad_argument(
            "positions", positions, f"positions inside every prompt; prompt {row} has {lengths[row]} tokens"
        )
    return table
