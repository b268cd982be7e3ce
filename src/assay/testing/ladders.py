"""Worlds whose population values are known in closed form: to place an effect exactly at, below or above a bar.

1. Along the claimed direction a text scores d * label + offset of its template + noise, all normal; offset and
   noise together have variance 1. All other dimensions are noise.
2. Tune texts lie on the quantiles of these distributions, so that the thresholds fixed on tune are known.
3. A few directions that mean nothing carry most of the variance, as in real residual streams; otherwise directions
   drawn from the covariance would be the concept itself.
4. `d` is chosen so that the recall at the strict threshold (the one that one in twenty non-members passes) is
   the recall asked for. Recall is the gate that decides in this family: at a recall of .5, the bar, the AUROC
   is .87 and the share of silent non-members .95, both above theirs.

Real activations are not normal, and templates differ in more than an offset.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from scipy.stats import norm

from assay.evidence.source import MemorySource
from assay.records import Example
from assay.testing.worlds import SPLITS, World, filler_text

WIDTH = 64
NUISANCE, NUISANCE_SIZE = 4, 6.0
BETWEEN = 0.1  # share of the variance that templates have in common
HIGHEST = 0.998  # a recall of 1 cannot be planted with normal noise


@dataclass(frozen=True, eq=False)
class Ladder:
    """A world with a claim at a known effect. `truth`: population value by gate."""

    world: World
    source: MemorySource
    direction: np.ndarray
    truth: dict[str, float] = field(default_factory=dict)


def ladder_world(seed: int, recall: float, per_template: int = 40) -> Ladder:
    """A world where the planted direction recalls that share of members at the strict threshold."""
    recall = min(recall, HIGHEST)
    rng = np.random.default_rng([seed, 30])
    along = rng.standard_normal(WIDTH)
    along /= np.linalg.norm(along)
    n = per_template * SPLITS["tune"] // 2
    grid = norm.ppf((np.arange(n) + 0.5) / n)
    strict = float(np.quantile(grid, 0.95, method="higher"))
    d = float(norm.ppf(recall)) + strict
    half = d + float(np.quantile(grid, 0.5, method="lower"))
    tune = {0: iter(rng.permutation(grid)), 1: iter(rng.permutation(grid))}

    def score(split: str, label: int, offset: float) -> float:
        drawn = next(tune[label]) if split == "tune" else offset + np.sqrt(1 - BETWEEN) * rng.standard_normal()
        return d * label + float(drawn)

    vectors, items = planted_texts(rng, seed, per_template, score, along)
    silent = float(norm.cdf(half))
    truth = {"sensitivity": recall, "firing": silent, "near_miss": silent,
             "detection": float(norm.cdf(d / np.sqrt(2 * (1 - BETWEEN))))}  # fmt: skip
    world = World(f"ladder {seed}", vectors, along[None], salt=f"ladder-{seed}-{recall}")
    return Ladder(world, MemorySource(f"the concept of ladder {seed}", items), along, truth)


def planted_texts(
    rng: np.random.Generator, seed: int, per_template: int, score: Callable[[str, int, float], float], along: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, list[Example]]]:
    """Activations by text and examples by split; half of the texts of a template are members, half of the
    others near misses (which score like all others)."""
    vectors: dict[str, np.ndarray] = {}
    items: dict[str, list[Example]] = {}
    heavy = rng.standard_normal((NUISANCE, len(along))) * NUISANCE_SIZE / np.sqrt(len(along))
    for split, n_templates in SPLITS.items():
        items[split] = []
        for number in range(n_templates):
            offset = float(np.sqrt(BETWEEN) * rng.standard_normal())
            for place in range(per_template):
                label = (place + number) % 2
                text = filler_text(rng, seed, split, number, place)
                rest = rng.standard_normal(len(along)) + rng.standard_normal(NUISANCE) @ heavy
                vectors[text] = rest - (rest @ along) * along + score(split, label, offset) * along
                miss = label == 0 and rng.random() < 0.5
                items[split].append(Example(text, label, f"{split} {number}", (f"{split}{number}-{place}",), near_miss=miss))
    return vectors, items
