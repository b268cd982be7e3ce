"""Planted activations: features in superposition whose directions, rates and meanings are known.

1. `n_features` unit directions in `width` < `n_features` dimensions (Elhage et al. 2022); every feature fires
   on a share of the texts that falls with its rank (Zipf) and then has a random strength.
2. The texts come in templates with an offset each, so that texts of one template are alike.
3. The concept is feature 0: members are the texts on which it fires. `strength` is its size in units of the
   other features' typical size; `twin` is the share of texts on which feature 1 agrees with the concept.
4. A text stands for its activations; a world is a host of features like a model (`assay.evidence.hosts`).
5. The untrained twin of a world gives every text activations that have nothing to do with any feature.

What a claim about a world should come to is known; what real activations look like is not shown by any.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from assay.data.prepare_concept import PreparedConcept
from assay.errors import TaskError
from assay.evidence.source import MemorySource
from assay.features.opened import is_latent, read_latents
from assay.records import Example, digest

SITE = "resid_post.0"
SPLITS = {"discover": 6, "tune": 8, "confirm": 20, "ood": 14}  # templates
FILLER = ("stone", "river", "lamp", "cloud", "paper", "glass", "wheel", "garden", "thread", "corner")


@dataclass(frozen=True, eq=False)
class World:
    """A host of features: text -> activations (width,)."""

    name: str
    vectors: dict[str, np.ndarray]
    directions: np.ndarray
    salt: str = ""
    source: str = "planted"
    site: str = SITE

    @cached_property
    def digest(self) -> str:
        return self.fresh_digest()

    def fresh_digest(self) -> str:
        """Hash of texts and activations, computed anew."""
        texts = sorted(self.vectors)
        whole = hashlib.sha256("\0".join((self.salt, *texts)).encode())
        whole.update(np.round(np.stack([self.vectors[text] for text in texts]), 6).tobytes())
        return whole.hexdigest()

    def passport(self) -> dict[str, Any]:
        return {"model": self.name, "digest": self.digest, "source": self.source}

    def load(self, examples: Sequence[Example]) -> PreparedConcept:
        """Examples of this world. Raises TaskError for texts it does not hold."""
        known = [example for example in examples if example.text in self.vectors]
        if not known:
            raise TaskError(f"none of {len(examples)} examples is in the world {self.name}.")
        lost = {"not in this world": len(examples) - len(known)} if len(known) < len(examples) else {}
        return PreparedConcept(known, [[0]] * len(known), [0] * len(known), lost)

    def read(self, site: str, data: PreparedConcept) -> Tensor:
        if is_latent(site):
            return read_latents(site, lambda source: self.read(source, data))
        return torch.tensor(np.stack([self.vectors[example.text] for example in data.examples]), dtype=torch.float32)

    def untrained(self, scheme: str, seed: int) -> "World":
        """Activations of the same size that mean nothing."""
        texts = sorted(self.vectors)
        spread = float(np.std(list(self.vectors.values())))
        drawn = _seeded(f"{scheme}-{seed}-{self.digest}").standard_normal((len(texts), self.directions.shape[1]))
        vectors = dict(zip(texts, drawn * spread, strict=True))
        return replace(self, vectors=vectors, name=f"{self.name}, untrained", salt=f"{scheme}-{seed}")


@dataclass(frozen=True, eq=False)
class Planted:
    """A world and the labelled texts of its concept."""

    world: World
    source: MemorySource
    firing: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def concept(self) -> np.ndarray:
        """The direction that stands for the concept."""
        return self.world.directions[0]


def planted_world(
    seed: int = 0, *, strength: float = 1.5, per_template: int = 12, width: int = 96, n_features: int = 256,
    twin: float = 0.8, noise: float = 0.15, template_spread: float = 0.15, near: float = 0.25, lexical: float = 0.0,
    splits: dict[str, int] | None = None,
) -> Planted:  # fmt: skip
    """A world with one concept. `near`: share of negatives that are near misses: feature 1, the twin, fires
    there too. `lexical`: share of members that say so in words."""
    rng = np.random.default_rng([seed, 20])
    directions = rng.standard_normal((n_features, width))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    rates = np.maximum(0.4 / np.arange(1, n_features + 1) ** 0.5, 0.01)
    vectors: dict[str, np.ndarray] = {}
    firing: dict[str, np.ndarray] = {}
    items: dict[str, list[Example]] = {}
    for split, n_templates in (splits or SPLITS).items():
        items[split] = []
        for number in range(n_templates):
            offset = rng.standard_normal(width) * template_spread
            for place in range(per_template):
                label = (place + number) % 2
                miss = label == 0 and rng.random() < near
                acts = (rng.random(n_features) < rates) * rng.uniform(0.5, 1.5, n_features)
                acts[0] = label * strength * rng.uniform(0.7, 1.3)
                agrees = label if rng.random() < twin else 1 - label
                acts[1] = (agrees or miss) * strength * rng.uniform(0.7, 1.3)
                text = filler_text(rng, seed, split, number, place, label if rng.random() < lexical else None)
                vectors[text] = acts @ directions + offset + noise * rng.standard_normal(width)
                firing[text] = acts
                word = f"{split}{number}-{place}"
                items[split].append(Example(text, label, f"{split} {number}", (word,), near_miss=miss))
    world = World(f"world {seed}", vectors, directions, salt=digest([seed, strength, twin]))
    return Planted(world, MemorySource(f"the concept of world {seed}", items), firing)


def filler_text(
    rng: np.random.Generator, seed: int, split: str, number: int, place: int, said: int | None = None
) -> str:  # fmt: skip
    """Words that mean nothing, "yes" or "no" where something is said, and a last word that no other text has."""
    words = [FILLER[i] for i in rng.integers(0, len(FILLER), 5)]
    told = [] if said is None else ["yes" if said else "no"]
    return " ".join([*words, *told, f"{split}{seed}.{number}.{place}"])


def _seeded(text: str) -> np.random.Generator:
    return np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big"))
