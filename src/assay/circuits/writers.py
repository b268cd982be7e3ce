"""What each writer adds to the residual stream, and how that changes when its own output changes.

    head z.L.H     s N(.. + z_h W_O[h] + ..)      N: the norm after attention, where there is one; s: the
    mlp_out.L      s N(.. + mlp ..)               residual multiplier
    embed          all that enters the first block

A head is exchanged before the norm it shares with its layer; small changes go through the norm's exact
derivative at the actual run, large ones through the norm itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from assay.model.heads import HeadMaths
from assay.model.model import Model
from assay.model.readers import Norm, Readers
from assay.sites import Site

Values = Mapping[Site, Tensor]


@dataclass(frozen=True, eq=False)
class Block:
    """The writers of one half of a layer: all its heads, or its MLP; or the embedding.

    `site`: where their outputs are read. `raw`: where the input of the norm behind them is read, if there is one.
    """

    site: Site
    first: int
    n: int
    weight: Float[Tensor, "head d_head d_model"] | None
    norm: Norm | None
    raw: Site | None
    scale: float
    bias: Float[Tensor, " d_model"] | None = None  # of the heads' projection; before the norm

    @property
    def slice(self) -> slice:
        """Their numbers among the graph's writers."""
        return slice(self.first, self.first + self.n)

    def before_norm(self, change: Float[Tensor, "t ..."]) -> Float[Tensor, "t n d_model"]:
        """Changes of the writers' outputs as changes of what they add, before any norm."""
        if self.weight is None:
            return change.float()[:, None]
        return torch.einsum("thk,hkd->thd", change.float(), self.weight.float())

    def together(self, values: Float[Tensor, "t ..."]) -> Float[Tensor, "t d_model"]:
        """What the writers add together, before any norm, with these outputs."""
        whole = self.before_norm(values).sum(1)
        return whole if self.bias is None else whole + self.bias.float()

    def small(self, change: Float[Tensor, "t ..."], raw: Float[Tensor, "t d_model"] | None) -> Float[Tensor, "t n d_model"]:
        """First-order changes of the stream, for changes of the outputs at a run with `raw` before the norm."""
        added = self.before_norm(change)
        if self.norm is not None:
            assert raw is not None
            added = self.norm.push(raw, added)
        return added if self.scale == 1.0 else self.scale * added


class Writers:
    """All writers of a model, in blocks, in the graph's order."""

    def __init__(self, model: Model, readers: Readers) -> None:
        maths, dims = HeadMaths(model.hf, model.layout), model.dims
        self.blocks = [Block(Site("resid_pre", 0), 0, 1, None, None, None, 1.0)]
        for layer in range(dims.n_layers):
            first = 1 + layer * (dims.n_heads + 1)
            heads, mlp = Site("z", layer), Site("mlp_out", layer)
            scale = model.layout.points[Site("attn_out", layer)].scale
            weight, bias = maths.output_weight(layer), maths.output_bias(layer)
            self.blocks.append(replace(self._block(readers, heads, first, dims.n_heads, weight, scale), bias=bias))
            self.blocks.append(self._block(readers, mlp, first + dims.n_heads, 1, None, model.layout.points[mlp].scale))
        self.n = 1 + dims.n_layers * (dims.n_heads + 1)
        self.d_model = dims.d_model

    def _block(
        self, readers: Readers, site: Site, first: int, n: int, weight: Tensor | None, scale: float
    ) -> Block:
        after = readers.post_norm(site)
        if after is None:  # an MLP's site is scaled already, heads are not
            return Block(site, first, n, weight, None, None, scale if site.name == "z" else 1.0)
        path, norm = after
        read = site if site.name == "z" else Site("path", path=f"{path}:in")
        return Block(read, first, n, weight, norm, Site("path", path=f"{path}:in"), scale)

    @property
    def sites(self) -> list[Site]:
        """Where outputs are read."""
        return [block.site for block in self.blocks]

    @property
    def raw_sites(self) -> list[Site]:
        """Inputs of the norms behind writers."""
        return [block.raw for block in self.blocks if block.raw is not None]

    def small(self, change: Values, raw: Values) -> Float[Tensor, "writer t d_model"]:
        """First-order changes of the stream by writer, for the tokens given; `change` and `raw` are flat, (t, ..)."""
        like = change[self.blocks[0].site]
        out = torch.empty(self.n, len(like), self.d_model, device=like.device)
        for block in self.blocks:
            part = block.small(change[block.site], None if block.raw is None else raw[block.raw])
            out[block.slice] = part.transpose(0, 1)
        return out

