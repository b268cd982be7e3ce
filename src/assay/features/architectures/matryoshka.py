"""Matryoshka BatchTopK (Bussmann et al. 2025, arXiv 2503.17547): the first latents alone must reconstruct, too.

Latents are in nested prefixes (`prefixes`, shares of the width, growing, the last 1). The loss is the mean over
prefixes of the FVU of what the prefix alone makes of the batch; latents of a parent concept gather in the first.
"""

from itertools import pairwise
from typing import ClassVar

from torch import Tensor

from assay.errors import bad_argument
from assay.features.architectures.batchtopk import BatchTopK
from assay.features.dictionary import ARCHITECTURES, Objective, Spec, Stage, fvu

PREFIXES = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)


class Matryoshka(BatchTopK):
    """Nested dictionaries in one."""

    architecture: ClassVar[str] = "matryoshka"
    k_first: ClassVar[float] = 1.0  # the prefixes do what BatchTopK's first tenth is for
    option_names: ClassVar[tuple[str, ...]] = ("decoder", "prefixes", "input_norm")

    def __init__(self, spec: Spec, name: str = "") -> None:
        super().__init__(spec, name)
        shares = tuple(spec.options.get("prefixes", PREFIXES))
        if not shares or shares[-1] != 1 or any(a >= b for a, b in pairwise((0, *shares))):
            raise bad_argument("prefixes", shares, "growing shares of the width, the last of them 1")
        sizes = [max(1, round(share * spec.width)) for share in shares]
        self.sizes = tuple(sorted(set(sizes)))

    def objective(self, x: Tensor, y: Tensor, stage: Stage) -> Objective:
        pairs, values = self.active(x, stage)
        found, loss = self.b_dec if self.W_skip is None else x @ self.W_skip.T + self.b_dec, y.new_zeros(())
        for low, high in pairwise((0, *self.sizes)):
            keep = (pairs.latents >= low) & (pairs.latents < high)
            found = found + self.spread(values[keep], pairs.where(keep))
            loss = loss + fvu(y, found, stage.total) / len(self.sizes)
        loss = loss + self.aux(x, y - found.detach(), stage)
        return Objective(loss, found, pairs, values)


ARCHITECTURES.add("matryoshka", Matryoshka)
