"""Crosscoders (Lindsey et al. 2024): one set of latents for several sites, of one model or of two.

1. Inputs and targets are the same sites, each scaled by its own norm, concatenated: layers for features that live on,
   the same layer of two models for what training changed.
2. BatchTopK on pre-activation x sum over sites of the decoder's norm there (Minder et al. 2025: against latents that
   look exclusive to one site only because the penalty shrank the other).
3. `shares`: a latent's decoder norm at each site over the sum: 1/n where it is shared, near 1 where one site has it alone.
"""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from assay.errors import bad_argument
from assay.features.architectures.batchtopk import BatchTopK
from assay.features.dictionary import ARCHITECTURES, Objective, Spec, Stage
from assay.features.screened import Scores


class Crosscoder(BatchTopK):
    """Latents over sites. `spec.options["sizes"]`: features of each site, in order."""

    architecture: ClassVar[str] = "crosscoder"
    k_first: ClassVar[float] = 1.0
    site_scale: Tensor
    option_names: ClassVar[tuple[str, ...]] = ("sizes",)

    def __init__(self, spec: Spec, name: str = "") -> None:
        sizes = spec.options.get("sizes") or ()
        if sum(sizes) != spec.d_in or spec.d_in != spec.d_out:
            raise bad_argument("sizes", sizes, f"the features of each site, {spec.d_in} in all")
        super().__init__(spec, name)
        self.sizes = tuple(int(size) for size in sizes)
        self.register_buffer("site_scale", torch.ones(len(sizes)))

    @property
    def free(self) -> bool:
        return True

    def norms(self) -> Float[Tensor, "latent site"]:
        """Decoder norms at each site, in the units of training, where all sites have one scale."""
        norms = torch.stack([part.norm(dim=1) for part in self.W_dec.split(list(self.sizes), dim=1)], 1)
        return norms * self.site_scale

    def shares(self) -> Float[Tensor, "latent site"]:
        """Decoder norms over their sum."""
        norms = self.norms().detach()
        return norms / norms.sum(1, keepdim=True).clamp_min(1e-12)

    def weighed(self, pre: Scores) -> Scores:
        return pre * self.norms().sum(1)

    @torch.no_grad()
    def after_step(self, found: Objective, stage: Stage) -> None:
        values = found.values * self.norms().sum(1)[found.pairs.latents]
        self.follow(values[values > 0])

    def fold_weights(self, scale_in: Tensor, scale_out: Tensor, unit: float) -> None:
        super().fold_weights(scale_in, scale_out, unit)
        firsts = [sum(self.sizes[:site]) for site in range(len(self.sizes))]
        self.site_scale.mul_(scale_out[firsts])  # values x norms stay in the units of training

    def fold_values(self, unit: float) -> None:
        """The threshold is in units of training still."""


ARCHITECTURES.add("crosscoder", Crosscoder)
