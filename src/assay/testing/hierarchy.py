"""Planted hierarchies: a parent feature, its exclusive children, and what a dictionary makes of them.

1. The parent fires on members of its concept; exactly one of `n_children` children fires with it, never two.
2. Children have Zipf shares: the first is the commonest.
3. `absorbed`: share of the texts of the first child on which the parent's own direction stays silent, the way
   sparse dictionaries absorb a parent into a child (Chanin et al. 2024).

False claims with something to them: a child stands for the parent (it has holes), the parent stands for a child
(it is too broad), a unit with two unrelated meanings.
"""

from dataclasses import dataclass, field

import numpy as np

from assay.evidence.source import MemorySource
from assay.records import Example
from assay.testing.worlds import SPLITS, World, filler_text


@dataclass(frozen=True, eq=False)
class Hierarchy:
    """A world, the concept of the parent and that of its first child. Directions: parent, children, others."""

    world: World
    parent: MemorySource
    child: MemorySource
    firing: dict[str, np.ndarray] = field(default_factory=dict)


def hierarchy_world(
    seed: int = 0, *, n_children: int = 3, absorbed: float = 0.0, per_template: int = 12, width: int = 96,
    n_features: int = 192, noise: float = 0.15,
) -> Hierarchy:  # fmt: skip
    """A world with one parent and its children among unrelated features with Zipf rates."""
    rng = np.random.default_rng([seed, 40])
    directions = rng.standard_normal((n_features, width))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    rates = np.maximum(0.4 / np.arange(1, n_features + 1) ** 0.5, 0.01)
    shares = 1 / np.arange(1, n_children + 1)
    vectors: dict[str, np.ndarray] = {}
    firing: dict[str, np.ndarray] = {}
    items: dict[str, list[tuple[Example, int]]] = {}
    for split, n_templates in SPLITS.items():
        items[split] = []
        for number in range(n_templates):
            for place in range(per_template):
                member = (place + number) % 2
                child = int(rng.choice(n_children, p=shares / shares.sum())) if member else -1
                acts = (rng.random(n_features) < rates) * rng.uniform(0.5, 1.5, n_features)
                acts[: 1 + n_children] = 0.0
                if member:
                    silent = child == 0 and rng.random() < absorbed
                    acts[0] = 0.0 if silent else 1.5 * rng.uniform(0.7, 1.3)
                    acts[1 + child] = 1.5 * rng.uniform(0.7, 1.3)
                text = filler_text(rng, seed, split, number, place)
                vectors[text] = acts @ directions + noise * rng.standard_normal(width)
                firing[text] = acts
                example = Example(text, member, f"{split} {number}", (f"{split}{number}-{place}",))
                items[split].append((example, child))
    world = World(f"hierarchy {seed}", vectors, directions, salt=f"hierarchy-{seed}-{n_children}-{absorbed}")
    return Hierarchy(world, _parent(seed, items), _child(seed, items), firing)


def _parent(seed: int, items: dict[str, list[tuple[Example, int]]]) -> MemorySource:
    """Members against everything else; a third of the others counts as near misses."""
    found = {split: [_as(example, example.label, place // 2 % 3 == 0 and example.label == 0)
                     for place, (example, _) in enumerate(rows)] for split, rows in items.items()}  # fmt: skip
    return MemorySource(f"the parent concept of hierarchy {seed}", found)


def _child(seed: int, items: dict[str, list[tuple[Example, int]]]) -> MemorySource:
    """Texts of the first child against everything else; its siblings are the near misses."""
    found = {split: [_as(example, int(child == 0), child > 0) for example, child in rows]
             for split, rows in items.items()}  # fmt: skip
    return MemorySource(f"the child concept of hierarchy {seed}", found)


def _as(example: Example, label: int, near_miss: bool) -> Example:
    return Example(example.text, label, example.template, example.entities, near_miss=near_miss)
