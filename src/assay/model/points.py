"""Where a public tensor lives in a module tree, and how to read and write it there.

A `Point` is a module, the side of it, which argument or output, and a view: heads may be blocked
(q of all heads, then k, then v) or grouped (per KV head: its queries, its key, its value) inside one
fused projection; a contribution may be a multiple of what the module returns.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Split:
    """Heads inside the last axis of a tensor.

    The axis is read as (groups, per_group, d_head); heads first..last of each group are the view.
    """

    groups: int
    per_group: int
    first: int
    last: int
    d_head: int

    @property
    def n_heads(self) -> int:
        return self.groups * (self.last - self.first)

    def get(self, x: Tensor) -> Tensor:
        """(..., features) -> (..., head, d_head)."""
        grouped = x.unflatten(-1, (self.groups, self.per_group, self.d_head))
        return grouped[..., self.first : self.last, :].flatten(-3, -2)

    def put(self, x: Tensor, heads: Tensor) -> Tensor:
        """A copy of `x` with these heads."""
        grouped = x.unflatten(-1, (self.groups, self.per_group, self.d_head)).clone()
        grouped[..., self.first : self.last, :] = heads.unflatten(-2, (self.groups, -1))
        return grouped.flatten(-3)


@dataclass(frozen=True)
class Point:
    """One tensor of a model: module path, side, which argument or output, and how to view it.

    `order` ranks points by when they happen in a forward pass. `scale` times the module's tensor
    is the public value (residual multipliers). `kernel` points are attention patterns.
    """

    path: str
    side: Literal["in", "out", "kernel"]
    key: int | str = 0
    order: int = 0
    split: Split | None = None
    scale: float = 1.0

    def read(self, raw: Tensor, batch: int) -> Tensor:
        """Module tensor -> public value (batch, pos, *feature)."""
        x = raw if raw.dim() != 2 else raw.unflatten(0, (batch, -1))
        x = x if self.scale == 1.0 else x * self.scale
        return x if self.split is None else self.split.get(x)

    def write(self, raw: Tensor, value: Tensor, batch: int) -> Tensor:
        """Module tensor with the public value replaced by `value`."""
        if self.split is not None:
            x = raw if raw.dim() != 2 else raw.unflatten(0, (batch, -1))
            value = self.split.put(x, value if self.scale == 1.0 else value / self.scale)
        elif self.scale != 1.0:
            value = value / self.scale
        return value.to(raw.dtype).reshape(raw.shape)


@dataclass(frozen=True)
class Dims:
    """Sizes of a model."""

    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_model: int
    d_head: int
    d_mlp: int
    d_vocab: int


def relative_error(got: Tensor, want: Tensor, scale: Tensor | None = None) -> float:
    """Largest |got - want|, each position relative to its own largest entry (of `scale`)."""
    if got.shape != want.shape:
        return float("inf")
    reference = want if scale is None else scale
    difference = (got.float() - want.float()).abs().flatten(2).amax(-1)
    size = reference.float().abs().flatten(2).amax(-1).clamp_min(torch.finfo(torch.float32).tiny)
    error = (difference / size).max().item()
    return error if error == error else float("inf")
