"""What a dictionary's description costs: bits per token of its codes and of its weights (after Ayonrinde et al. 2024).

1. Which latents are active: sum over latents of the binary entropy of their firing rate, the cost of saying so with a
   code that knows the rates and nothing else.
2. Their values, in steps so fine that rounding adds a hundredth to the squared error: with squared norms |d_j|^2 of
   decoder rows, step^2 / 12 x (mean over active of |d|^2) x L0 = error / 100, and the entropy of the rounded values.
   Where inputs are normalised token by token one step does not suit all: values are then words of `WEIGHT_BITS`, and so is
   what undoes the norm (the size of a token, for "layer" its mean, too). That is an upper bound.
3. The weights, `WEIGHT_BITS` each, spread over a corpus of `corpus_tokens`: a wide dictionary for few tokens is no
   short description.

A sum of costs with an error beside it: of two dictionaries only one with less of both is shorter without doubt. What a
`temporal` predicts from the tokens before is taken as given. Bits say nothing about meaning.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from assay.errors import bad_argument

WEIGHT_BITS = 16
SHARE = 0.01  # of the error that rounding may add
ENOUGH = 100  # values, for bins to be counted as too many for them


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
    l0, which, weights = float(rates.double().sum()), _which(rates), WEIGHT_BITS * n_weights / max(corpus_tokens, 1)
    if not len(sizes) or l0 == 0:
        return Cost(which, 0.0, weights, 0.0)
    if not math.isfinite(error):
        raise bad_argument("error", error, "a finite number")
    step = float((12 * SHARE * max(error, 1e-12) / l0) ** 0.5)
    return Cost(which, l0 * _bits(sizes.double() / step), weights, step)


def _bits(steps: Float[Tensor, " active"]) -> float:
    """Entropy of values rounded to whole steps. A sample of n cannot show more than log2 n bits: where it fills more than
    n / 10 bins, these are made twice as wide until it does not, and each time counts as the bit that it costs (values are
    level within a narrow bin)."""
    halvings, bins = 0, steps.round().unique(return_counts=True)[1]
    while len(steps) >= ENOUGH and len(bins) > len(steps) / 10:
        halvings += 1
        bins = (steps / 2**halvings).round().unique(return_counts=True)[1]
    shares = bins.double() / len(steps)
    return halvings + float(-(shares * shares.log2()).sum())


def cost_in_words(rates: Float[Tensor, " latent"], further: int, n_weights: int, corpus_tokens: int) -> Cost:
    """The same where no step suits all tokens: values, and `further` numbers of each token, are words of `WEIGHT_BITS`."""
    values = WEIGHT_BITS * (float(rates.double().sum()) + further)
    return Cost(_which(rates), values, WEIGHT_BITS * n_weights / max(corpus_tokens, 1), 0.0)


def _which(rates: Float[Tensor, " latent"]) -> float:
    """Binary entropies in bits, summed."""
    p = rates.double().clamp(0, 1)
    return float(-(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p)).sum()) / math.log(2)
