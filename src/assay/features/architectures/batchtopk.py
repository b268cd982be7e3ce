"""BatchTopK (Bussmann et al. 2024, arXiv 2412.06410): in training the k x n largest pre-activations of a batch of n.

Training begins with twice k (`k_first`), which falls to k over its first tenth: from k alone, latents of common concepts
are taken over by those of what they contain more often (decision 008, 51).

In use a token must not depend on its neighbours: a latent is active above one threshold, in training the running mean
of the smallest value selected, in the end the value that keeps k latents active per token by the final weights.
"""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from assay.features.architectures.topk import TopK
from assay.features.codes import Codes, Pairs, above, top_batch, values_at
from assay.features.dictionary import ARCHITECTURES, Objective, Spec, Stage
from assay.features.screened import Scores
from assay.features.world import lowest

MEMORY = 0.99  # of the running threshold


class BatchTopK(TopK):
    """k active latents per token on average. `threshold`: below 0 until the first step."""

    architecture: ClassVar[str] = "batchtopk"
    k_first: ClassVar[float] = 2.0
    threshold: Tensor

    def __init__(self, spec: Spec, name: str = "") -> None:
        super().__init__(spec, name)
        self.register_buffer("threshold", torch.tensor(-1.0))

    def select(self, pre: Scores) -> Codes:
        weighed = self.weighed(pre)
        pairs = above(weighed, self.threshold) if float(self.threshold) >= 0 else top_batch(weighed, self.k)
        return Codes(pairs, values_at(pre, pairs).relu())

    def choose(self, pre: Scores, stage: Stage) -> Pairs:
        return top_batch(self.weighed(pre), self.k_at(stage))

    @torch.no_grad()
    def after_step(self, found: Objective, stage: Stage) -> None:
        super().after_step(found, stage)
        values = found.values * self.W_dec.norm(dim=1)[found.pairs.latents] if self.free else found.values
        self.follow(values[values > 0])

    def follow(self, values: Float[Tensor, " active"]) -> None:
        """Move the threshold towards the smallest value that was selected."""
        if (least := lowest(values)) is not None:
            first = float(self.threshold) < 0
            self.threshold.copy_(least if first else self.threshold * MEMORY + least * (1 - MEMORY))

    @torch.no_grad()
    def settle(self, x: Float[Tensor, "token d_in"]) -> None:
        """The threshold at which k latents are active on average in this batch."""
        weighed = self.weighed(self.pre(x))
        pairs = top_batch(weighed, self.k)
        if (least := lowest(values_at(weighed, pairs))) is not None:
            self.threshold.copy_(torch.nextafter(least, x.new_tensor(0.0)))

    def fold_values(self, unit: float) -> None:
        if float(self.threshold) >= 0:
            self.threshold.div_(unit)


ARCHITECTURES.add("batchtopk", BatchTopK)
