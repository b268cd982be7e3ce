"""What a dictionary's description costs: bits per token of its codes and of its weights (after Ayonrinde et al. 2024).

1. Which latents are active: sum over latents of the binary entropy of their firing rate, the cost of saying so with a
   code that knows the rates and nothing else.
2. Their values, in steps so fine that rounding adds a hundredth to the squared error: with squared norms |d_j|^2 of
   decoder rows, step^2 / 12 x (mean over active of |d|^2) x L0 = error / 100, and the entropy of the rounded values.
3. The weights, `WEIGHT_BITS` each, spread over a corpus of `corpus_tokens`: a wide dictionary for few tokens is no
   short description.

A sum of costs with an error beside it: of two dictionaries only one with less of both is shorter without doubt. Bits
say nothing about meaning.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

WEIGHT_BITS = 16
SHARE = 0.01  # of the error that rounding may add


@dataclass(frozen=True)
class Cost:
    """Bits per token. `step`: of rounding, in units of a latent times its direction's norm."""

    which: float
    values: float
    weights: float
    step: float

    @property
    def codes(self) -> float:
        """Without the weights."""
        return self.which + self.values

    @property
    def total(self) -> float:
        """All of it."""
        return self.codes + self.weights


def cost(
    rates: Float[Tensor, " latent"], sizes: Float[Tensor, " active"], error: float, n_weights: int, corpus_tokens: int
) -> Cost:
    """From firing rates, a sample of active values times the norms of their directions, squared error per token, and sizes."""
    p = rates.double().clamp(0, 1)
    entropy = -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p)) / torch.log(torch.tensor(2.0, dtype=torch.double))
    l0 = float(p.sum())
    weights = WEIGHT_BITS * n_weights / max(corpus_tokens, 1)
    if not len(sizes) or l0 == 0:
        return Cost(float(entropy.sum()), 0.0, weights, 0.0)
    step = float((12 * SHARE * max(error, 1e-12) / l0) ** 0.5)
    counts = (sizes.double() / step).round().long().unique(return_counts=True)[1].double()
    shares = counts / counts.sum()
    return Cost(float(entropy.sum()), l0 * float(-(shares * shares.log2()).sum()), weights, step)
