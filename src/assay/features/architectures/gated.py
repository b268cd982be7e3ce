"""Gated (Rajamanoharan et al. 2024, arXiv 2404.16014): one path says which latents are active, another how much.

1. gate = W_enc (x - shift) + b_gate; active where gate > 0.
2. value = relu(exp(r_mag) x W_enc (x - shift) + b_mag), which shares the gate's directions.
3. Loss: FVU + sparsity x (relu(gate) x decoder norm) + FVU of the reconstruction from relu(gate), the decoder held fixed
   there: the gate learns from the last two only.

`b_enc` is the gate's bias.
"""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.features.codes import Codes, Pairs, above
from assay.features.dictionary import ARCHITECTURES, Dictionary, Objective, Spec, Stage, fvu
from assay.features.screened import Scores, whole


class Gated(Dictionary):
    """Gate and magnitude."""

    architecture: ClassVar[str] = "gated"
    option_names: ClassVar[tuple[str, ...]] = ("input_norm",)
    unit_decoder: ClassVar[bool] = False  # the penalty counts norms

    def __init__(self, spec: Spec, name: str = "") -> None:
        super().__init__(spec, name)
        self.r_mag = nn.Parameter(torch.zeros(spec.width))
        self.b_mag = nn.Parameter(torch.zeros(spec.width))

    @property
    def steered(self) -> bool:
        return True

    def magnitude(self, gate: Float[Tensor, "token latent"]) -> Float[Tensor, "token latent"]:
        """Values from gates: the gate without its bias, scaled, with a bias of its own."""
        return ((gate - self.b_enc) * self.r_mag.exp() + self.b_mag).relu()

    def select(self, pre: Scores) -> Codes:
        pairs = above(pre, 0.0)
        return Codes(pairs, self.magnitude(whole(pre))[pairs.tokens, pairs.latents])

    def choose(self, pre: Scores, stage: Stage) -> Pairs:
        return above(pre, 0.0)

    def objective(self, x: Tensor, y: Tensor, stage: Stage) -> Objective:
        gate = self.pre(x)
        values = torch.where(gate > 0, self.magnitude(gate), 0.0)
        base = self.b_dec if self.W_skip is None else x @ self.W_skip.T + self.b_dec
        found = values @ self.W_dec + base
        frozen = gate.relu() @ self.W_dec.detach() + base.detach()
        cost = (gate.relu() * self.W_dec.detach().norm(dim=1)).sum(1).mean() / stage.total**0.5
        loss = fvu(y, found, stage.total) + fvu(y, frozen, stage.total) + stage.sparsity * cost
        with torch.no_grad():
            pairs = above(values, 0.0)
            kept = values[pairs.tokens, pairs.latents]
        return Objective(loss + self.aux(x, y - found.detach(), stage), found, pairs, kept, float(cost.detach()))

    def fold_values(self, unit: float) -> None:
        self.b_mag.div_(unit)


ARCHITECTURES.add("gated", Gated)
