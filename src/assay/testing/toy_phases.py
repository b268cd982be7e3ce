"""Many toy models of superposition at once (Elhage et al. 2022): phase pictures in seconds.

1. Feature i is active with probability `density`, then uniform on 0 to 1. The model of m dimensions gives back
       x' = relu(x W W^T + b),    loss = mean over features of importance_i (x'_i - x_i)^2
2. Models that differ in density and importance are trained side by side, one batched product a step (Adam; the rate is
   constant, then falls to 0 by a cosine over the last half).
3. `phases`: two features, one dimension, a model per cell of density x relative importance of the second. Here no samples
   are drawn: the expected loss is summed over a quadrature of both features, which is exact but for the kinks of the relu.
   What should come out is known: with the best bias (0 for the last), W = (1, 0), (0, 1), (1, -1) lose, summed over features,
       r (p/3 - p^2/4)        p/3 - p^2/4        (1 + r) p^2 / 6
   and `expected_phase` names the smallest. The last is an upper bound: trained models may do a little better.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from assay.errors import bad_argument

PHASES = ("first only", "second only", "superposition")
KEPT = 0.5  # norm from which a feature counts as represented


@dataclass(frozen=True, eq=False)
class Toys:
    """Trained models. `weights` (model, feature, m): row i is where feature i points; `density`, `importance` as given."""

    weights: Float[Tensor, "model feature m"]
    bias: Float[Tensor, "model feature"]
    density: Float[Tensor, " model"]
    importance: Float[Tensor, "model feature"]
    loss: Float[Tensor, " model"]

    @property
    def norms(self) -> Float[Tensor, "model feature"]:
        """About 1 where a feature is represented, 0 where it is given up."""
        return self.weights.norm(dim=2)


def train_toys(
    features: int, m: int, density: Sequence[float], importance: Float[Tensor, "model feature"] | None = None, *,
    steps: int = 2000, batch: int = 256, rate: float = 1e-2, seed: int = 0,
) -> Toys:  # fmt: skip
    """One model per density; importance 1 for all features unless given. Deterministic in `seed`.

    Raises UsageError for densities outside 0 to 1 or sizes below 1.
    """
    p = torch.tensor(list(density), dtype=torch.float32)
    for name, size in (("features", features), ("m", m), ("steps", steps), ("batch", batch)):
        if size < 1:
            raise bad_argument(name, size, "1 or more")
    if not len(p) or not bool(((p > 0) & (p <= 1)).all()):
        raise bad_argument("density", list(density), "one or more numbers above 0, up to 1")
    weight = torch.ones(len(p), features) if importance is None else importance.float()
    generator = torch.Generator().manual_seed(seed)

    def draw(step: int) -> tuple[Tensor, Tensor | float]:
        u = torch.rand(len(p), batch, features, generator=generator) / p[:, None, None]
        return u * (u < 1), 1 / batch  # below its density a uniform number is uniform again

    return _trained(draw, p, weight, m, steps, rate, generator)


def _trained(
    draw: Callable[[int], tuple[Tensor, Tensor | float]], density: Tensor, importance: Tensor, m: int, steps: int,
    rate: float, generator: torch.Generator,
) -> Toys:  # fmt: skip
    """`draw(step)`: inputs (model, point, feature) and the weight of each point (model, point)."""
    n, features = importance.shape
    w = (torch.randn(n, features, m, generator=generator) / max(features, 4) ** 0.5).requires_grad_()
    b = torch.zeros(n, features, requires_grad=True)
    optimiser = torch.optim.Adam([w, b], lr=rate)
    kept = max(1, steps // 10)
    late = torch.zeros(n)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = rate * _share(step / steps)
        x, share = draw(step)
        found = torch.relu(torch.baddbmm(b[:, None], x @ w, w.transpose(1, 2)))
        losses = ((importance[:, None] * (found - x).square()).mean(2) * share).sum(1)
        optimiser.zero_grad()
        losses.sum().backward()
        optimiser.step()
        if step >= steps - kept:
            late += losses.detach() / kept
    return Toys(w.detach(), b.detach(), density, importance, late)


def _share(done: float) -> float:
    return 1.0 if done < 0.5 else float(0.5 + 0.5 * np.cos(np.pi * (2 * done - 1)))


# the phase picture --------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Phases:
    """Two features in one dimension. Per cell (importance, density): number of the phase in `PHASES`, -1 where none fits;
    `second`: norm of the second feature; `expected`: number of the phase whose loss in closed form is smallest."""

    density: tuple[float, ...]
    importance: tuple[float, ...]
    phase: np.ndarray
    second: np.ndarray
    expected: np.ndarray

    @property
    def agreement(self) -> float:
        """Share of cells that are in the expected phase."""
        return float((self.phase == self.expected).mean())


def phases(
    density: Sequence[float], importance: Sequence[float], *, steps: int = 500, restarts: int = 4, seed: int = 0
) -> Phases:
    """Train `restarts` models per cell, of which the one with the least loss counts; name each cell's phase.

    Raises UsageError for densities outside 0 to 1 or an importance that is not positive.
    """
    if not density or not importance or min(importance) <= 0 or not all(0 < p <= 1 for p in density):
        raise bad_argument("density, importance", (list(density), list(importance)), "above 0 (densities up to 1), one or more")
    cells = [(p, r) for r in importance for p in density]
    every = [cell for cell in cells for _ in range(restarts)]
    p, weight = torch.tensor([cell[0] for cell in every]), torch.tensor([[1.0, cell[1]] for cell in every])
    points, shares = quadrature(p)
    x = points.expand(len(every), -1, -1)
    toys = _trained(lambda step: (x, shares), p, weight, 1, steps, 5e-2, torch.Generator().manual_seed(seed))
    best = toys.loss.view(len(cells), restarts).argmin(1) + torch.arange(len(cells)) * restarts
    rows = toys.weights[best, :, 0].numpy()
    shape = (len(importance), len(density))
    named = np.array([phase_of(row) for row in rows]).reshape(shape)
    expected = np.array([expected_phase(*cell) for cell in cells]).reshape(shape)
    return Phases(tuple(density), tuple(importance), named, np.abs(rows[:, 1]).reshape(shape), expected)


def quadrature(
    density: Float[Tensor, " model"], nodes: int = 8
) -> tuple[Float[Tensor, "point 2"], Float[Tensor, "model point"]]:
    """Points and weights for the mean over two features: neither, one or both active (Gauss-Legendre on 0 to 1)."""
    at, share = np.polynomial.legendre.leggauss(nodes)
    values = torch.cat([torch.zeros(1), torch.tensor((at + 1) / 2, dtype=torch.float32)])
    active = torch.tensor(share / 2, dtype=torch.float32)
    weights = torch.cat([1 - density[:, None], density[:, None] * active], 1)
    return torch.cartesian_prod(values, values), (weights[:, :, None] * weights[:, None]).flatten(1)


def phase_of(row: Float[np.ndarray, " two"]) -> int:
    """Which features one dimension holds; -1: neither, or both on the same side."""
    first, second = np.abs(row) > KEPT
    if first and second:
        return 2 if row[0] * row[1] < 0 else -1
    return 0 if first else 1 if second else -1


def expected_phase(p: float, r: float) -> int:
    """The candidate of least loss; see the module's text."""
    alone = p / 3 - p * p / 4
    return int(np.argmin([r * alone, alone, (1 + r) * p * p / 6]))
