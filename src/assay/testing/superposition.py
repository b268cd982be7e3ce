"""Toy models of superposition (Elhage et al. 2022): more features than dimensions, learned, not drawn.

1. Features are sparse and independent, each with an importance that falls geometrically.
2. A linear map to `hidden` dimensions and its transpose with relu are trained to give the features back.
3. With dense features only the most important get a dimension each; with sparse ones they share dimensions, in
   polygons. `represented` says how strongly each one is kept, `shared` how much others lie along it.
4. As a world, the hidden activations of such a model are a host: its units are polysemantic, its feature
   directions are known.
"""

from dataclasses import dataclass

import numpy as np
import torch

from assay.evidence.source import MemorySource
from assay.records import Example
from assay.testing.toy_phases import train_toys
from assay.testing.worlds import SPLITS, World, filler_text


@dataclass(frozen=True, eq=False)
class Toy:
    """A trained toy model. `weights` (features, hidden): row i is where feature i points."""

    weights: np.ndarray
    density: float

    @property
    def represented(self) -> np.ndarray:
        """Squared norm of every feature (features,): about 1 where it is kept, 0 where it is given up."""
        return (self.weights**2).sum(1)

    @property
    def shared(self) -> np.ndarray:
        """Per feature (features,), squared projections of all others on its direction: 0 has a dimension of its own."""
        norms = np.linalg.norm(self.weights, axis=1, keepdims=True)
        overlap = (self.weights / np.maximum(norms, 1e-9)) @ self.weights.T
        return (overlap**2).sum(1) - np.diag(overlap) ** 2


def toy_model(features: int = 20, hidden: int = 5, density: float = 0.05, steps: int = 1500, seed: int = 0) -> Toy:
    """Train one; a second or two."""
    importance = 0.9 ** torch.arange(features)[None]
    found = train_toys(features, hidden, [density], importance, steps=steps, batch=512, seed=seed)
    return Toy(found.weights[0].double().numpy(), density)


def toy_world(toy: Toy, feature: int, seed: int = 0, per_template: int = 12, noise: float = 0.02) -> tuple[World, MemorySource]:
    """Hidden activations of texts, and the concept of one feature: members are the texts on which it fires."""
    rng = np.random.default_rng([seed, 70])
    n, hidden = toy.weights.shape
    vectors: dict[str, np.ndarray] = {}
    items: dict[str, list[Example]] = {}
    for split, n_templates in SPLITS.items():
        items[split] = []
        for number in range(n_templates):
            for place in range(per_template):
                label = (place + number) % 2
                acts = rng.random(n) * (rng.random(n) < toy.density)
                acts[feature] = label * rng.uniform(0.4, 1.0)
                text = filler_text(rng, seed, split, number, place)
                vectors[text] = acts @ toy.weights + noise * rng.standard_normal(hidden)
                near = label == 0 and place % 4 < 2
                items[split].append(Example(text, label, f"{split} {number}", (f"{split}{number}-{place}",), near_miss=near))
    world = World(f"toy {seed}", vectors, toy.weights, salt=f"toy-{seed}-{feature}")
    return world, MemorySource(f"feature {feature} of toy {seed}", items)
