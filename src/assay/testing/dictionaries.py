"""Hand-set dictionaries, and a host that does something with its activations, for claims of *reconstructs*.

`AtomDictionary` reads activations with the greedy code of `random_dictionaries.py`, a fixed number of its atoms at
a time; nothing is trained. Its `Recipe` twin also has a recipe: atoms are activations, picked far from each other.
`Reader` makes a planted world behave: its output is a linear reading of the activation, right when its sign
is that of the label.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from assay.data.prepare_concept import PreparedConcept
from assay.evidence.random_dictionaries import greedy_codes, unit
from assay.records import Example
from assay.testing.worlds import World


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
