"""Matching pursuit (Mallat and Zhang 1993; as an SAE: Costa et al. 2025, arXiv 2506.03093): latents one after the other.

1. residual = x - b_dec. 2. The decoder row with the largest product with the residual is taken: the latent grows by the
product, the residual shrinks by product x row. 3. Until the residual's norm is below `residual_threshold` (0: never), a
step brings no new latent (`stop_on_repeat`), or `steps` are done (none: d_in). There is no encoder: W_enc is W_dec.

Read from files; not trained here.
"""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from assay.features.codes import Codes, codes_of
from assay.features.dictionary import ARCHITECTURES, Dictionary


@ARCHITECTURES.register("matching_pursuit")
class MatchingPursuit(Dictionary):
    """Latents by pursuit of the residual."""

    architecture: ClassVar[str] = "matching_pursuit"
    option_names: ClassVar[tuple[str, ...]] = ("residual_threshold", "steps", "stop_on_repeat", "input_norm")
    trains: ClassVar[bool] = False
    stand_in: ClassVar[str] = "topk"

    def code(self, x: Float[Tensor, "token d_in"]) -> Codes:
        options = self.spec.options
        limit, steps = float(options.get("residual_threshold", 1e-2)), options.get("steps") or self.spec.d_in
        stop_on_repeat = bool(options.get("stop_on_repeat", True))
        residual = x if self.shift is None else x - self.shift
        values, rows = x.new_zeros(len(x), self.width), torch.arange(len(x), device=x.device)
        going = torch.ones(len(x), dtype=torch.bool, device=x.device)
        for _ in range(int(steps)):
            best = (residual @ self.W_dec.T).relu().argmax(1)
            atoms = self.W_dec[best]
            gain = torch.where(going, (residual * atoms).sum(1).relu(), 0.0)
            repeated = (values[rows, best] != 0) | (gain == 0)
            values[rows, best] += gain
            residual = residual - gain[:, None] * atoms
            if stop_on_repeat:
                going = going & ~repeated
            if limit > 0:
                going = going & (residual.norm(dim=1) >= limit)
            if not bool(going.any()):
                break
        return codes_of(values)
