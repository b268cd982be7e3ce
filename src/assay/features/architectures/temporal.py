"""Temporal: what the tokens before predict is taken off, the rest has latents (Lubana et al. 2025, arXiv 2511.01836).

1. residual = x - b_dec where `centred`, else x. Of each attention block in turn: z = relu(W_enc residual); the codes of the
   tokens before (a zero for the first) are keys and values, z the query; p = relu(W_o attention + b_o).
2. What a block predicts, s W_dec^T p, is taken off the residual: s = (W_dec^T p . residual) / (|W_dec^T p| + eps)^2.
3. Latents are the k largest of relu(W_enc residual), or all where there is no k. reconstruction = what was predicted + latents
   W_dec + b_dec.

A token's latents depend on its text, so `codes` needs positions; without them the rows are one text. Read from files; not
trained here.
"""

import math
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.errors import bad_argument
from assay.features.codes import Codes, codes_of
from assay.features.dictionary import ARCHITECTURES, Dictionary, Spec, of_texts

EPS = 1e-6


@ARCHITECTURES.register("temporal")
class Temporal(Dictionary):
    """Latents of what the tokens before do not predict."""

    architecture: ClassVar[str] = "temporal"
    option_names: ClassVar[tuple[str, ...]] = ("heads", "blocks", "bottleneck", "eps", "tied", "input_norm")
    trains: ClassVar[bool] = False
    stand_in: ClassVar[str] = "topk"
    reads_texts: ClassVar[bool] = True

    def __init__(self, spec: Spec, name: str = "") -> None:
        super().__init__(spec, name)
        width, blocks = spec.width, int(spec.options.get("blocks", 1))
        self.heads, narrow = int(spec.options.get("heads", 8)), width // int(spec.options.get("bottleneck", 64))
        if not narrow or narrow % self.heads or width % self.heads:
            raise bad_argument("heads, bottleneck", (self.heads, spec.options.get("bottleneck", 64)),
                               f"numbers whose product divides the width, {width}")  # fmt: skip
        self.W_q, self.W_k = (nn.Parameter(torch.zeros(blocks, narrow, width)) for _ in range(2))
        self.W_v, self.W_o = (nn.Parameter(torch.zeros(blocks, width, width)) for _ in range(2))
        self.b_q, self.b_k = (nn.Parameter(torch.zeros(blocks, narrow)) for _ in range(2))
        self.b_v, self.b_o = (nn.Parameter(torch.zeros(blocks, width)) for _ in range(2))

    def pre(self, x: Float[Tensor, "token d_in"]) -> Float[Tensor, "token latent"]:
        """Raises UsageError: there is none of single tokens."""
        raise of_texts(self, "Use codes(x, positions).")

    def code_text(self, x: Float[Tensor, "token d_in"]) -> Codes:
        pre = (self._residual(x) @ self.W_enc.T).relu()
        if self.spec.k is None:
            return codes_of(pre)
        best = pre.topk(self.spec.k, dim=1)
        return codes_of(torch.zeros_like(pre).scatter_(1, best.indices, best.values))

    def predict_text(self, x: Float[Tensor, "token d_in"]) -> Float[Tensor, "token d_out"]:
        return self._centred(x) - self._residual(x)

    def _centred(self, x: Tensor) -> Tensor:
        return x if self.shift is None else x - self.shift

    def _residual(self, x: Float[Tensor, "token d_in"]) -> Float[Tensor, "token d_in"]:
        """What no block predicts."""
        residual, eps = self._centred(x), float(self.spec.options.get("eps", EPS))
        for block in range(len(self.W_q)):
            here = (residual @ self.W_enc.T).relu()
            before = torch.cat([torch.zeros_like(here[:1]), here[:-1]])
            made = self._attend(block, here, before).relu() @ self.W_dec
            share = (made * residual).sum(1, keepdim=True) / (made.norm(dim=1, keepdim=True) + eps).square()
            residual = residual - share * made
        return residual

    def _attend(
        self, block: int, here: Float[Tensor, "token latent"], before: Float[Tensor, "token latent"]
    ) -> Float[Tensor, "token latent"]:
        """Causal attention of one block."""
        q, k, v = (
            nn.functional.linear(codes, weight[block], bias[block]).unflatten(1, (self.heads, -1)).transpose(0, 1)
            for codes, weight, bias in (
                (here, self.W_q, self.b_q),
                (before, self.W_k, self.b_k),
                (before, self.W_v, self.b_v),
            )
        )
        scores = (q @ k.transpose(1, 2)) / math.sqrt(q.shape[-1])
        pattern = scores.masked_fill(torch.ones_like(scores[0], dtype=torch.bool).triu(1), -math.inf).softmax(-1)
        return nn.functional.linear((pattern @ v).transpose(0, 1).flatten(1), self.W_o[block], self.b_o[block])
