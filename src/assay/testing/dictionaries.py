"""Hand-set dictionaries, and a host that does something with its activations, for claims of *reconstructs*.

`AtomDictionary` reads activations with the greedy code of `random_dictionaries.py`, a fixed number of its atoms at
a time; nothing is trained. Its `Recipe` twin also has a recipe: atoms are activations, picked far from each other.
`Reader` makes a planted world behave: its output is a linear reading of the activation, right when its sign
is that of the label.
`explained_by_atoms` is a world with a dictionary that explains a known share of its variance: atoms are orthonormal,
codes sparse and never negative, and what the atoms miss is noise at right angles to all of them. With codes a and
noise e the dictionary gives back a exactly, and 1 - E|e|² / (E|a - mean a|² + E|e|²) is the share.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from assay.data.prepare_concept import PreparedConcept
from assay.evidence.random_dictionaries import greedy_codes, unit
from assay.evidence.source import MemorySource
from assay.records import Example
from assay.testing.worlds import World, filler_text

ATOMS, WIDTH, RATE = 40, 96, 0.15  # of the world with orthonormal atoms, and how often each is active
TEMPLATES = {"discover": 6, "tune": 8, "confirm": 14, "ood": 12}


@dataclass(frozen=True, eq=False)
class AtomDictionary:
    """Atoms (latent, d) around a mean (d,); `active` of them per example."""

    name: str
    atoms: Tensor
    mean: Tensor
    active: int = 12

    @property
    def digest(self) -> str:
        parts = (self.atoms.numpy().tobytes(), self.mean.numpy().tobytes(), str(self.active).encode())
        return hashlib.sha256(b"|".join(parts)).hexdigest()

    @property
    def width(self) -> int:
        return len(self.atoms)

    def encode(self, acts: Float[Tensor, "example d"]) -> Float[Tensor, "example latent"]:
        return greedy_codes(acts - self.mean, unit(self.atoms), [self.active] * len(acts))

    def decode(self, latents: Float[Tensor, "example latent"]) -> Float[Tensor, "example d"]:
        return latents @ unit(self.atoms) + self.mean


@dataclass(frozen=True, eq=False)
class Recipe:
    """An atom dictionary whose atoms are made from activations, so that it can be made again from others."""

    made: AtomDictionary

    @property
    def name(self) -> str:
        return self.made.name

    @property
    def digest(self) -> str:
        return self.made.digest

    @property
    def width(self) -> int:
        return self.made.width

    def encode(self, acts: Float[Tensor, "example d"]) -> Float[Tensor, "example latent"]:
        return self.made.encode(acts)

    def decode(self, latents: Float[Tensor, "example latent"]) -> Float[Tensor, "example d"]:
        return self.made.decode(latents)

    def refit(self, acts: Float[Tensor, "example d"]) -> "Recipe":
        return components(acts, self.width, self.made.active)


def components(acts: Float[Tensor, "example d"], width: int, active: int) -> Recipe:
    """The recipe: the leading principal directions of the activations and their opposites."""
    mean = acts.mean(0)
    _, _, rows = torch.linalg.svd(acts - mean, full_matrices=False)
    atoms = torch.cat([rows[: width // 2], -rows[: width // 2]])
    return Recipe(AtomDictionary(f"{width} principal directions", atoms, mean, active))


@dataclass(frozen=True, eq=False)
class Reader:
    """A world that reads one direction of its activations: `behaviour` is the signed distance from `bar`."""

    world: World
    reads: Tensor
    bar: float
    name: str = "a reading world"
    source: str = "planted"

    @property
    def site(self) -> str:
        return self.world.site

    @property
    def directions(self) -> Any:
        return self.world.directions

    @property
    def digest(self) -> str:
        return hashlib.sha256(f"{self.world.digest} {self.reads.tolist()} {self.bar}".encode()).hexdigest()

    def fresh_digest(self) -> str:
        return self.digest

    def passport(self) -> dict[str, Any]:
        return {"model": self.name, "digest": self.digest, "source": self.source}

    def load(self, examples: Sequence[Example]) -> PreparedConcept:
        return self.world.load(examples)

    def read(self, site: str, data: PreparedConcept) -> Tensor:
        return self.world.read(site, data)

    def untrained(self, scheme: str, seed: int) -> "Reader":
        return replace(self, world=self.world.untrained(scheme, seed))

    def behaviour(self, site: str, data: PreparedConcept, values: Float[Tensor, "example d"]) -> Float[Tensor, " example"]:
        sign = 2.0 * torch.tensor(data.labels, dtype=torch.float32) - 1.0
        return sign * (values @ self.reads - self.bar)


@dataclass(frozen=True, eq=False)
class Tied:
    """Orthonormal atoms (latent, d), read and written with the same weights."""

    name: str
    atoms: Tensor

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.atoms.numpy().tobytes()).hexdigest()

    @property
    def width(self) -> int:
        return len(self.atoms)

    def encode(self, acts: Float[Tensor, "example d"]) -> Float[Tensor, "example latent"]:
        codes = torch.relu(acts @ self.atoms.T)
        return torch.where(codes > 1e-3, codes, 0.0)

    def decode(self, latents: Float[Tensor, "example latent"]) -> Float[Tensor, "example d"]:
        return latents @ self.atoms


def explained_by_atoms(seed: int, share: float, per_template: int = 12) -> tuple[World, MemorySource, Tied]:
    """A world, texts of which half are members, and a dictionary that explains `share` of the variance there."""
    rng = np.random.default_rng([seed, 41])
    basis = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0].T
    second = RATE * (0.25 / 3 + 1) - RATE**2  # variance of a code: active at RATE, then uniform from .5 to 1.5
    noise = np.sqrt(ATOMS * second * (1 / share - 1) / (WIDTH - ATOMS))
    vectors: dict[str, np.ndarray] = {}
    items: dict[str, list[Example]] = {}
    for split, n_templates in TEMPLATES.items():
        items[split] = []
        for number in range(n_templates):
            for place in range(per_template):
                codes = (rng.random(ATOMS) < RATE) * rng.uniform(0.5, 1.5, ATOMS)
                text = filler_text(rng, seed, split, number, place)
                missed = noise * rng.standard_normal(WIDTH - ATOMS)
                vectors[text] = codes @ basis[:ATOMS] + missed @ basis[ATOMS:]
                items[split].append(Example(text, int(codes[0] > 0), f"{split} {number}", (f"{split}{number}-{place}",)))
    world = World(f"atoms {seed}", vectors, basis[:ATOMS], salt=f"atoms-{seed}-{share}")
    atoms = torch.tensor(basis[:ATOMS], dtype=torch.float32)
    return world, MemorySource(f"the first atom of world {seed}", items), Tied(f"atoms {seed}", atoms)
