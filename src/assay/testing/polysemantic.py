"""A planted polysemantic neuron, and a dictionary whose latents take it apart.

1. A world of neurons (`worlds.py`) with more features than neurons: every feature is a unit direction across all neurons.
2. Neuron 0 carries features 0 and 1, with the weight `shared` each, and no other: it fires where either does. Feature 0 is the
   concept; feature 1 is active on `other` of the texts without the concept, and has nothing to do with it.
3. The dictionary is written in, not trained: latent i reads along the direction of feature i and is silent below `BAR`.

The neuron does not stand for the concept, latent 0 does. How well training would find such latents is not shown.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from assay.evidence.source import MemorySource
from assay.features.dictionary import Dictionary, Spec, make_dictionary
from assay.records import Example
from assay.testing.worlds import SPLITS, World, filler_text

SITE = "mlp_act.0"
BAR = 0.75  # of a feature's typical strength 1.5


@dataclass(frozen=True, eq=False)
class Polysemantic:
    """The world, the labelled texts of feature 0, and the dictionary."""

    world: World
    source: MemorySource
    dictionary: Dictionary


def polysemantic_world(
    seed: int = 0, *, n_features: int = 128, width: int = 96, shared: float = 0.5, other: float = 0.4, noise: float = 0.1,
    per_template: int = 12,
) -> Polysemantic:  # fmt: skip
    """Texts of every split. `shared`: weight of neuron 0 in the directions of features 0 and 1 (their cosine is its square)."""
    rng = np.random.default_rng([seed, 40])
    directions = _directions(rng, n_features, width, shared)
    rates = np.maximum(0.2 / np.arange(1, n_features + 1) ** 0.5, 0.01)
    vectors: dict[str, np.ndarray] = {}
    items: dict[str, list[Example]] = {}
    for split, n_templates in SPLITS.items():
        items[split] = []
        for number in range(n_templates):
            for place in range(per_template):
                label = (place + number) % 2
                acts = (rng.random(n_features) < rates) * rng.uniform(0.5, 1.0, n_features)
                acts[0] = label * 1.5 * rng.uniform(0.8, 1.2)
                acts[1] = (not label and rng.random() < other) * 1.5 * rng.uniform(0.8, 1.2)
                text = filler_text(rng, seed, split, number, place)
                vectors[text] = acts @ directions + noise * rng.standard_normal(width)
                items[split].append(Example(text, label, f"{split} {number}", (f"{split}{number}-{place}",),
                                            near_miss=label == 0 and not acts[1] and place % 4 < 2))  # fmt: skip
    name = f"polysemantic world {seed}"
    world = replace(World(name, vectors, directions, salt=f"polysemantic-{seed}-{shared}-{other}"), site=SITE)
    return Polysemantic(world, MemorySource(f"feature 0 of {name}", items), _dictionary(directions, f"taken-apart-{seed}"))


def _directions(rng: np.random.Generator, n: int, width: int, shared: float) -> np.ndarray:
    found = rng.standard_normal((n, width))
    found[:, 0] = 0.0
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    found[:2] *= np.sqrt(1 - shared**2)
    found[:2, 0] = shared
    return found


@torch.no_grad()
def _dictionary(directions: np.ndarray, name: str) -> Dictionary:
    n, width = directions.shape
    made = make_dictionary(Spec("relu", n, width, width, inputs=(SITE,), outputs=(SITE,), skip_first=0), name)
    made.W_enc.copy_(torch.tensor(directions))
    made.W_dec.copy_(torch.tensor(directions))
    made.b_enc.fill_(-BAR)
    return made
