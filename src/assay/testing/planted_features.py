"""Activations made of known features, and how much of them a dictionary finds.

1. Features are unit directions, more of them than dimensions. One token: x = offset + sum of value_i x direction_i.
2. Which are active: with rates r_i, feature i is where g_i < quantile(r_i), g standard normal with correlation
   U U^T of low rank outside the diagonal (a Gaussian copula), so that correlation leaves the rates what they are.
   Rates are equal, or fall as rank^-zipf. Values are uniform in .5 to 1.5.
3. With `parents`, so many first features each have `children` of their own: at most one of them is active, only with
   its parent, and its value is scaled by the parent's.
4. `recovery` compares a dictionary with the truth on tokens it was not trained on. Directions: mean over features of
   the largest cosine with a latent (MMCS), mean cosine of the best one-to-one matching (MCC), features found (cosine
   above .9). Latents: distinct nearest features over active latents (unique), those near none (false), never active
   (dead). Firing: F1 of matched latents against their features, as detectors.
5. Absorption: a parent's recall by its matched latent without a child, minus with one. Leakage: cosine of the child's
   latent with the parent's direction, beyond what the two directions share.

Explained variance does not say whether features were found: .71 of it went with 9% of them (Korznikov et al. 2026).
After SynthSAEBench (Chanin et al. 2026) and the hierarchies of Chanin et al. (2024), at a size for one core.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from assay.errors import bad_argument

SITE, FOUND, NEAR, MOST = "planted", 0.9, 0.5, 0.4  # MOST: no feature is active more often
LOW, HIGH = 0.5, 1.5


@dataclass(frozen=True)
class World:
    """What is planted. `mean_l0`: features active at a token, children not counted; `offset`: norm of the mean that is
    added, in feature norms; `child_rate`: how often a parent has some child with it; `correlation`: of any g with the
    common factors."""

    n_features: int = 256
    width: int = 64
    mean_l0: float = 5.0
    zipf: float = 0.0
    rank: int = 0
    correlation: float = 0.0
    offset: float = 0.0
    noise: float = 0.0
    parents: int = 0
    children: int = 3
    child_rate: float = 0.6
    orthogonal: bool = False
    seed: int = 1000  # apart from the seeds of dictionaries: with the same one, their start would be the truth

    def __post_init__(self) -> None:
        if self.parents * (1 + self.children) > self.n_features:
            raise bad_argument("parents", self.parents, f"at most {self.n_features // (1 + self.children)} of these families")
        if self.orthogonal and self.n_features > self.width:
            raise bad_argument("orthogonal", True, "False where there are more features than dimensions")
        if not 0 <= self.correlation < 1 or (self.correlation > 0) != (self.rank > 0):
            raise bad_argument("correlation, rank", (self.correlation, self.rank), "0 and 0, or 0 to 1 and 1 or more")
        if not 0 < self.mean_l0 <= MOST * self.n_roots:
            raise bad_argument("mean_l0", self.mean_l0, f"above 0, at most {MOST * self.n_roots:g}")

    @property
    def n_roots(self) -> int:
        """Features that are nobody's child."""
        return self.n_features - self.parents * self.children

    def json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Sample:
    """Tokens and what they are made of: `values` (token, feature), zero where a feature is not active."""

    values: Float[Tensor, "token feature"]
    acts: Float[Tensor, "token d"]


class PlantedFeatures:
    """A world as a stream of activations (`assay.features.stream`), with its truth. Batch n of a seed is always the same."""

    def __init__(self, world: World, n_tokens: int = 2_048_000) -> None:
        self.world, self.n_tokens = world, n_tokens
        self.sites, self.sizes = (SITE,), {SITE: world.width}
        self.norm_limits: Mapping[str, float | None] = {SITE: None}
        self.skip_first = 0
        generator = torch.Generator().manual_seed(world.seed)
        drawn = torch.randn(world.n_features, world.width, generator=generator)
        if world.orthogonal:
            drawn = torch.linalg.qr(drawn.T)[0].T
        self.directions = drawn / drawn.norm(dim=1, keepdim=True)
        mean = torch.randn(world.width, generator=generator)
        self.mean = world.offset * mean / mean.norm()
        factors = torch.randn(world.n_roots, max(world.rank, 1), generator=generator)
        self.factors = world.correlation**0.5 * factors / factors.norm(dim=1, keepdim=True)

    @property
    def record(self) -> dict[str, Any]:
        """What it is, for provenance."""
        return {"planted": self.world.json()}

    @cached_property
    def rates(self) -> Float[Tensor, " root"]:
        """How often each root feature is active, children left out."""
        weights = np.arange(1, self.world.n_roots + 1) ** -self.world.zipf
        rates = weights * self.world.mean_l0 / weights.sum()
        while rates.max() > MOST * (1 + 1e-9):  # what the commonest may not have goes to the others
            rates = np.minimum(rates, MOST)
            free = rates < MOST
            rates[free] *= (self.world.mean_l0 - MOST * (~free).sum()) / rates[free].sum()
        return torch.tensor(rates, dtype=torch.float32)

    @cached_property
    def parent(self) -> Int[Tensor, " feature"]:
        """The parent of each feature, -1 for none. Parents come first, children last, family by family."""
        found = torch.full((self.world.n_features,), -1)
        found[self.world.n_roots :] = torch.arange(self.world.parents).repeat_interleave(self.world.children)
        return found

    def sample(self, n: int, seed: int, number: int = 0) -> Sample:
        """n tokens; the same for the same seed and number."""
        state = np.random.SeedSequence([self.world.seed, seed, number]).generate_state(1, np.uint64)
        rng = torch.Generator().manual_seed(int(state[0]) >> 2)
        world, roots = self.world, self.world.n_roots
        normal = torch.randn(n, roots, generator=rng)
        if world.rank:
            own = (1 - self.factors.square().sum(1)).sqrt()
            normal = torch.randn(n, world.rank, generator=rng) @ self.factors.T + own * normal
        bars = torch.special.ndtri(self.rates.double()).float()
        values = torch.zeros(n, world.n_features)
        sizes = LOW + (HIGH - LOW) * torch.rand(n, world.n_features, generator=rng)
        values[:, :roots] = torch.where(normal < bars, sizes[:, :roots], 0.0)
        if world.parents:
            values[:, roots:] = self._children(values[:, : world.parents], sizes[:, roots:], rng)
        noise = world.noise * torch.randn(n, world.width, generator=rng) if world.noise else 0.0
        return Sample(values, values @ self.directions + self.mean + noise)

    def _children(self, parents: Tensor, sizes: Tensor, rng: torch.Generator) -> Float[Tensor, "token child"]:
        """At most one child per active parent, with a value scaled by the parent's."""
        world, n = self.world, len(parents)
        drawn = torch.rand(n, world.parents, generator=rng) / max(world.child_rate, 1e-12)
        chosen = (drawn * world.children).long()
        active = (parents > 0) & (drawn < 1)
        found = torch.zeros(n, world.parents, world.children)
        chosen = chosen.clamp(max=world.children - 1)[:, :, None]
        found.scatter_(2, chosen, (active * parents)[:, :, None])
        return found.flatten(1) * sizes

    def batches(self, size: int, seed: int = 0, start: int = 0) -> Iterator[Mapping[str, Float[Tensor, "token d"]]]:
        """Endless batches, number `start` first."""
        number = start
        while True:
            yield {SITE: self.sample(size, seed, number).acts}
            number += 1


# what was found ----------------------------------------------------------------------------------


class Latents(Protocol):
    """A dictionary, as far as `recovery` needs it."""

    def directions(self) -> Float[Tensor, "latent d"]: ...
    def encode(self, acts: Float[Tensor, "token d"]) -> Float[Tensor, "token latent"]: ...
    def reconstruct(self, acts: Float[Tensor, "token d"]) -> Float[Tensor, "token d"]: ...


@dataclass(frozen=True)
class Recovery:
    """How much of the truth a dictionary has. Shares and cosines in 0 to 1; `absorbed`, `leaked`: None without a hierarchy."""

    mmcs: float
    mcc: float
    found: float
    f1: float
    unique: float
    false: float
    fvu: float
    l0: float
    dead: float
    absorbed: float | None = None
    leaked: float | None = None

    def json(self) -> dict[str, float | None]:
        """As plain values."""
        return asdict(self)


def recovery(dictionary: Latents, planted: PlantedFeatures, n: int = 20_000, seed: int = 999) -> Recovery:
    """What a dictionary finds, on n tokens of a seed that training must not have used."""
    sample = planted.sample(n, seed)
    with torch.no_grad():
        codes, found = dictionary.encode(sample.acts), dictionary.reconstruct(sample.acts)
    return compared(planted, sample, dictionary.directions(), codes, found)


def compared(
    planted: PlantedFeatures, sample: Sample, directions: Float[Tensor, "latent d"], codes: Float[Tensor, "token latent"],
    found: Float[Tensor, "token d"],
) -> Recovery:  # fmt: skip
    """The same, from directions, codes and reconstructions that any other library made of `sample.acts`."""
    rows = directions / directions.norm(dim=1, keepdim=True).clamp_min(1e-12)
    cosines = (rows @ planted.directions.T).numpy().astype(np.float64)
    firing, truth = (codes > 0).numpy(), (sample.values > 0).numpy()
    alive = np.asarray(firing.any(0))
    matched = matching(cosines, alive)
    absorbed, leaked = hierarchy_errors(planted, matched, cosines, firing, truth)
    nearest = cosines[alive].argmax(1)
    error = (sample.acts - found).double().square().sum()
    total = (sample.acts - sample.acts.mean(0)).double().square().sum()
    return Recovery(
        mmcs=float(cosines.max(0).mean()),
        mcc=float(np.mean([cosines[latent, feature] if latent >= 0 else 0.0 for feature, latent in enumerate(matched)])),
        found=float((cosines[alive].max(0, initial=-1) > FOUND).mean()), f1=float(np.mean(f1_of(matched, firing, truth))),
        unique=len(set(nearest.tolist())) / max(int(alive.sum()), 1),
        false=float((cosines[alive].max(1) < NEAR).mean()) if alive.any() else 0.0, fvu=float(error / total),
        l0=float(firing.sum(1).mean()), dead=float(1 - alive.mean()), absorbed=absorbed, leaked=leaked,
    )  # fmt: skip


def matching(cosines: np.ndarray, alive: np.ndarray) -> np.ndarray:
    """Per feature its latent in the best one-to-one matching (Hungarian method) over active latents; -1 for none."""
    places = np.flatnonzero(alive)
    latents, features = linear_sum_assignment(-cosines[places])
    found = np.full(cosines.shape[1], -1)
    found[features] = places[latents]
    return found


def f1_of(matched: np.ndarray, firing: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Per feature the F1 of its latent as a detector of it; 0 without one. Features that never occur are left out."""
    present = np.flatnonzero(truth.any(0))
    hits = np.array([(firing[:, matched[f]] & truth[:, f]).sum() if matched[f] >= 0 else 0 for f in present], float)
    said = np.array([firing[:, matched[f]].sum() if matched[f] >= 0 else 0 for f in present], float)
    return 2 * hits / (said + truth[:, present].sum(0))


def hierarchy_errors(
    planted: PlantedFeatures, matched: np.ndarray, cosines: np.ndarray, firing: np.ndarray, truth: np.ndarray
) -> tuple[float | None, float | None]:
    """Absorption and leakage, means over parents and over children; None without a hierarchy."""
    parent = planted.parent.numpy()
    children = np.flatnonzero(parent >= 0)
    if not len(children):
        return None, None
    gaps, leaks = [], []
    for mother in range(planted.world.parents):
        with_child = truth[:, children[parent[children] == mother]].any(1)
        alone, both = truth[:, mother] & ~with_child, truth[:, mother] & with_child
        said = firing[:, matched[mother]] if matched[mother] >= 0 else np.zeros(len(truth), bool)
        if alone.any() and both.any():
            gaps.append(said[alone].mean() - said[both].mean())
    own = (planted.directions @ planted.directions.T).numpy()
    for child in children:
        if matched[child] >= 0:
            leaks.append(cosines[matched[child], parent[child]] - own[child, parent[child]])
    return float(np.mean(gaps)) if gaps else None, float(np.mean(leaks)) if leaks else None
