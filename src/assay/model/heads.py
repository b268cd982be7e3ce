"""What each attention head adds to the residual stream.

head h adds z_h W_O[h]. Where a norm stands between attention and the residual stream (Gemma 2,
OLMo 2), its divisor is taken from the actual run, so shares stay a linear split of the whole:
sum over heads + bias share = attn_out. The frozen divisor is what "contribution" means there.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.model.layout import Layout
from assay.model.offload import brought_in
from assay.model.points import Point
from assay.sites import Site


class HeadMaths:
    """Head contributions of one model, from tensors stashed during a pass."""

    def __init__(self, hf: nn.Module, layout: Layout) -> None:
        self.hf, self.layout = hf, layout

    def shares(
        self, layer: int, stash: dict[tuple[str, int], Tensor], heads: Sequence[int]
    ) -> Float[Tensor, "batch pos head d_model"]:
        """Each head's part of attn_out."""
        z = stash["z", layer]
        weight = self.output_weight(layer).to(z.dtype)  # (head, d_head, d_model)
        parts = torch.einsum("bphd,hdm->bphm", z[:, :, list(heads)], weight[list(heads)])
        return self._normed(layer, stash, parts) * self._scale(layer)

    def bias_share(self, layer: int, stash: dict[tuple[str, int], Tensor]) -> Tensor | float:
        """What the output projection's bias adds."""
        bias = self.output_bias(layer)
        if bias is None:
            return 0.0
        parts = bias[None, None, None].expand(*stash["z", layer].shape[:2], 1, -1)
        return self._normed(layer, stash, parts)[:, :, 0] * self._scale(layer)

    def output_weight(self, layer: int) -> Float[Tensor, "head d_head d_model"]:
        """W_O by head."""
        o_proj = self._o_proj(layer)
        n_heads, d_head = self._split_sizes(layer)
        with brought_in(o_proj):
            weight = o_proj.weight
            assert isinstance(weight, Tensor)
            is_conv1d = type(o_proj).__name__ == "Conv1D"  # GPT-2 keeps (in, out)
            return (weight if is_conv1d else weight.T).view(n_heads, d_head, -1)

    def output_bias(self, layer: int) -> Float[Tensor, " d_model"] | None:
        """The bias of the output projection, which is no head's."""
        o_proj = self._o_proj(layer)
        with brought_in(o_proj):
            bias = getattr(o_proj, "bias", None)
        return bias if isinstance(bias, Tensor) else None

    def _o_proj(self, layer: int) -> nn.Module:
        path = self.layout.blocks[layer].o_proj
        assert path is not None
        return self.hf.get_submodule(path)

    def _split_sizes(self, layer: int) -> tuple[int, int]:
        split = self.layout.points[Site("z", layer)].split
        assert split is not None
        return split.n_heads, split.d_head

    def _scale(self, layer: int) -> float:
        point: Point = self.layout.points[Site("attn_out", layer)]
        return point.scale

    def _normed(self, layer: int, stash: dict[tuple[str, int], Tensor], parts: Tensor) -> Tensor:
        """Parts through the post-norm with its divisor frozen at this run's value."""
        path = self.layout.blocks[layer].post_norm
        if path is None:
            return parts
        raw, normed = stash["raw", layer], stash["normed", layer]
        ones = torch.ones_like(raw[:1, :1])
        with torch.no_grad():
            gain = self.hf.get_submodule(path).forward(ones).float()
        unit = raw.float() * gain
        divisor = (normed.float() * unit).sum(-1) / (unit * unit).sum(-1).clamp_min(1e-30)
        return (parts.float() * gain * divisor[:, :, None, None]).to(parts.dtype)
