"""GroupMax: latents are in k equal groups, one after the other, and the largest of each group is active (sparsify).

As TopK but without sorting: one latent of every group is active, whatever the other groups hold.
"""

from typing import ClassVar

import torch

from assay.errors import bad_argument
from assay.features.architectures.topk import TopK
from assay.features.codes import Codes, Pairs, values_at
from assay.features.dictionary import ARCHITECTURES, Spec, Stage
from assay.features.screened import Scores, whole


@ARCHITECTURES.register("groupmax")
class GroupMax(TopK):
    """One active latent in each of k groups."""

    architecture: ClassVar[str] = "groupmax"

    def __init__(self, spec: Spec, name: str = "") -> None:
        super().__init__(spec, name)
        if spec.width % self.k:
            raise bad_argument("k", self.k, f"a divisor of the width, {spec.width}", "Latents are in k equal groups.")

    @property
    def screens(self) -> bool:
        return False

    def select(self, pre: Scores) -> Codes:
        pairs = self.largest(pre)
        return Codes(pairs, values_at(pre, pairs).relu())

    def choose(self, pre: Scores, stage: Stage) -> Pairs:
        return self.largest(pre)

    def largest(self, pre: Scores) -> Pairs:
        """The largest of each group."""
        size = self.width // self.k
        best = whole(self.weighed(pre)).unflatten(1, (self.k, size)).argmax(2)
        best = best + torch.arange(0, self.width, size, device=pre.device)
        offsets = torch.arange(len(pre) + 1, device=pre.device) * self.k
        return Pairs(offsets, best.reshape(-1), self.width)
