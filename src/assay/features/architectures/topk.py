"""TopK (Gao et al. 2024, arXiv 2406.04093): the k largest pre-activations of each token, then ReLU.

With the option `decoder: "free"`, decoder rows keep their own norms and selection is on pre-activation x norm.
"""

from typing import ClassVar

import torch

from assay.errors import bad_argument
from assay.features.codes import Codes, Pairs, top_k, values_at
from assay.features.dictionary import ARCHITECTURES, Dictionary, Objective, Spec, Stage
from assay.features.screened import Scores
from assay.features.world import world


class TopK(Dictionary):
    """k active latents per token."""

    architecture: ClassVar[str] = "topk"
    option_names: ClassVar[tuple[str, ...]] = ("decoder", "input_norm")

    def __init__(self, spec: Spec, name: str = "") -> None:
        if spec.k is None:
            raise bad_argument("k", None, f"1 to {spec.width}", f"{spec.architecture} needs to know how many are active.")
        if spec.options.get("decoder", "unit") not in ("unit", "free"):
            raise bad_argument("decoder", spec.options["decoder"], "unit, free")
        super().__init__(spec, name)

    @property
    def k(self) -> int:
        """Active latents per token."""
        return int(self.spec.k or 0)

    @property
    def free(self) -> bool:
        """Whether decoder rows keep their own norms."""
        return self.spec.options.get("decoder") == "free"

    @property
    def screens(self) -> bool:
        return True

    def weighed(self, pre: Scores) -> Scores:
        """What selection looks at."""
        return pre * self.W_dec.norm(dim=1) if self.free else pre

    def select(self, pre: Scores) -> Codes:
        pairs = top_k(self.weighed(pre), self.k)
        return Codes(pairs, values_at(pre, pairs).relu())

    def choose(self, pre: Scores, stage: Stage) -> Pairs:
        return top_k(self.weighed(pre), self.k_at(stage))

    def k_at(self, stage: Stage) -> int:
        """k now: larger than in the end where it is annealed."""
        return min(self.width * world().slices, max(1, round(self.k * stage.k_scale)))

    def project(self) -> None:
        if not self.free:
            super().project()

    @torch.no_grad()
    def after_step(self, found: Objective, stage: Stage) -> None:
        if not self.free:
            super().after_step(found, stage)


ARCHITECTURES.add("topk", TopK)
