"""The least work a job needs, written straight onto a Llama-like Hugging Face model.

Not tools: each knows this one job, the module names and what may be left out.
"""

from typing import Any

import torch
from inputs import SweepInput
from torch import Tensor, nn

from assay import Model


def truncated(hf: Any, n_layers: int, ids: Tensor) -> Tensor:
    """The residual stream after `n_layers` blocks, from a trunk that has no more: no norm, no logits."""
    trunk = hf.model
    layers, norm = trunk.layers, trunk.norm
    trunk.layers, trunk.norm, trunk.config.num_hidden_layers = layers[:n_layers], nn.Identity(), n_layers
    try:
        with torch.no_grad():
            return trunk(input_ids=ids, use_cache=False).last_hidden_state
    finally:
        trunk.layers, trunk.norm, trunk.config.num_hidden_layers = layers, norm, len(layers)


class SweepFloor:
    """Layer x position patching with every residual cached beforehand.

    Per layer one batch, one row a position, goes through the later blocks only, and the last position
    through two rows of the unembedding.
    """

    def __init__(self, model: Model, pair: SweepInput) -> None:
        self.trunk, self.pair = model.hf.model, pair
        sites = [f"resid_post.{layer}" for layer in pair.layers]
        acts = model.capture([pair.clean, pair.corrupted], sites)
        self.residuals = [acts[site] for site in sites]
        self.unembed = model.hf.lm_head.weight[[pair.answer, pair.foil]].detach()

    def __call__(self) -> Tensor:
        n = torch.arange(len(self.pair.clean))
        found = []
        with torch.no_grad():
            angles = self.trunk.rotary_emb(self.residuals[0], n[None])
            for layer, (clean, corrupted) in zip(self.pair.layers, self.residuals, strict=True):
                x = corrupted.repeat(len(n), 1, 1)
                x[n, n] = clean
                for block in self.trunk.layers[layer + 1 :]:
                    x = block(x, position_embeddings=angles)
                answer, foil = (self.trunk.norm(x[:, -1]) @ self.unembed.T).T
                found.append(answer - foil)
        return torch.stack(found)
