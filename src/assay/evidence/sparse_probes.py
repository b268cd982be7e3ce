"""Sparse probes: how well a handful of latents tell members, beside as many units and as many principal components.

1. Of each basis the `K` columns whose means differ most between members and others of tune, in their standard deviations.
2. A standardised logistic regression on these, fitted on tune (`probes.py`).

A dictionary that is good for listing features needs fewer of its latents for a concept than the site needs of its units.
(Gurnee et al. 2023; SAEBench, Karvonen et al. 2025.)
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from assay.evidence.probes import DEFAULT_C, FitData, fit_linear

K = 5
Reading = Callable[[Float[Tensor, "example d"]], Float[Tensor, "example column"]]


@dataclass(frozen=True, eq=False)
class SparseProbe:
    """A probe of few columns of what `reading` makes of activations."""

    reading: Reading
    columns: list[int]
    score: Callable[[Tensor], Tensor]

    def __call__(self, acts: Float[Tensor, "example d"]) -> Float[Tensor, " example"]:
        """The score of activations of the site."""
        return self.score(self.reading(acts)[:, self.columns])


def sparse_probes(
    encode: Reading, acts: Float[Tensor, "example d"], member: Bool[Tensor, " example"]
) -> dict[str, SparseProbe]:  # fmt: skip
    """`latents`, `units` and `components` -> a probe fitted on tune; nothing where tune has one label only."""
    if not member.any() or member.all():
        return {}
    mean = acts.mean(0)
    rows = torch.linalg.svd((acts - mean).double(), full_matrices=False).Vh.float()
    readings: dict[str, Reading] = {"latents": encode, "units": lambda x: x, "components": lambda x: (x - mean) @ rows.T}
    return {name: _fitted(reading, acts, member) for name, reading in readings.items()}


def _fitted(reading: Reading, acts: Float[Tensor, "example d"], member: Bool[Tensor, " example"]) -> SparseProbe:
    values = reading(acts).float()
    gap = (values[member].mean(0) - values[~member].mean(0)).abs() / values.std(0).clamp_min(1e-9)
    columns = gap.topk(min(K, values.shape[1])).indices.tolist()
    return SparseProbe(reading, columns, fit_linear(FitData(values[:, columns], member.int().tolist(), []), DEFAULT_C, 0))
