"""ReLU with a sparsity penalty on values x decoder norms (Bricken et al. 2023; Anthropic, April 2024 update).

`penalty`: "l1" (values), or "tanh" (tanh of 4 x value / its scale, which counts large values once). `anneal`: from this
share of training on, the exponent of an l1 penalty falls from 1 to 0.2 (p-annealing, Karvonen et al. 2024).
The weight of the penalty is `sparsity`; with a target k, it is steered until so many latents are active.
"""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from assay.errors import bad_argument
from assay.features.codes import Codes, Pairs, above, values_at
from assay.features.dictionary import ARCHITECTURES, Dictionary, Objective, Spec, Stage, fvu
from assay.features.screened import Scores
from assay.features.world import world

LAST_POWER, TANH = 0.2, 4.0


class ReLU(Dictionary):
    """All positive pre-activations are active."""

    architecture: ClassVar[str] = "relu"
    option_names: ClassVar[tuple[str, ...]] = ("penalty", "anneal", "input_norm")
    unit_decoder: ClassVar[bool] = False  # the penalty counts norms

    def __init__(self, spec: Spec, name: str = "") -> None:
        if spec.options.get("penalty", "l1") not in ("l1", "tanh"):
            raise bad_argument("penalty", spec.options["penalty"], "l1, tanh")
        super().__init__(spec, name)

    @property
    def steered(self) -> bool:
        return True

    def select(self, pre: Scores) -> Codes:
        pairs = above(pre, 0.0)
        return Codes(pairs, values_at(pre, pairs))

    def choose(self, pre: Scores, stage: Stage) -> Pairs:
        return above(pre, 0.0)

    def objective(self, x: Tensor, y: Tensor, stage: Stage) -> Objective:
        pre = self.pre(x)  # with gradients: most latents are active for most of training
        found = world().total(pre.relu() @ self.W_dec) + self.b_dec
        found = found if self.W_skip is None else found + x @ self.W_skip.T
        cost = world().total(self.penalty(pre.relu() * self.W_dec.norm(dim=1), stage))
        with torch.no_grad():
            pairs = above(pre, 0.0)
            values = pre[pairs.tokens, pairs.latents]
        loss = fvu(y, found, stage.total) + stage.sparsity * cost + self.aux(x, y - found.detach(), stage)
        return Objective(loss, found, pairs, values, float(cost.detach()))

    def penalty(self, weighed: Float[Tensor, "token latent"], stage: Stage) -> Float[Tensor, ""]:
        """Per token, in units of the root of one token's variance."""
        scaled = weighed / stage.total**0.5
        if self.spec.options.get("penalty") == "tanh":
            return (TANH * scaled).tanh().sum(1).mean()
        start = self.spec.options.get("anneal", 0.0)
        if not start or stage.share < start:
            return scaled.sum(1).mean()
        power = 1 - (1 - LAST_POWER) * (stage.share - start) / max(1 - start, 1e-9)
        return (scaled + 1e-6).pow(power).sum(1).mean()


ARCHITECTURES.add("relu", ReLU)
