"""Cross-layer transcoders whose latents have thresholds of their own: active where pre > threshold (0: a ReLU).

As `clt`, with another rule for what is active: this is how published ones are kept. Read from files; not trained here.
"""

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from assay.features.architectures.clt import CrossLayer
from assay.features.codes import Codes, above, values_at
from assay.features.dictionary import ARCHITECTURES, Spec
from assay.features.screened import Scores


@ARCHITECTURES.register("clt_jumprelu")
class JumpCrossLayer(CrossLayer):
    """Transcoders of all layers in one, a threshold per latent."""

    architecture: ClassVar[str] = "clt_jumprelu"
    trains: ClassVar[bool] = False
    stand_in: ClassVar[str] = "clt"

    def __init__(self, spec: Spec, name: str = "") -> None:
        super().__init__(replace(spec, k=spec.k or spec.width), name)
        self.spec = spec
        self.threshold = nn.Parameter(torch.zeros(spec.width))

    def select(self, pre: Scores) -> Codes:
        pairs = above(pre, self.threshold)
        return Codes(pairs, values_at(pre, pairs).relu())

    def start(self, x: Tensor, y: Tensor, generator: torch.Generator) -> None:
        super(CrossLayer, self).start(x, y, generator)  # which says that it does not train
