"""Which channels respond to a concept, and whether they feed a class more than matched random channels do.

1. `find_channels`: pictures of discover are read at a site (largest value of every map); per channel the AUROC of members
   against non-members, and against near misses alone, both within a template, so that no background can tell. The best
   channels are measured again on tune; confirm and ood stay sealed for claims about them (`vision.claims`).
2. `feeds`: channels are set to their mean over the pictures of a reference set (mean ablation, at every place), and the
   score of the classes (`evidence.image_circuits.class_score`) falls by some amount per picture. The same for `draws` random
   sets of channels with like mean and spread (`matched`). One contrast per picture, chosen minus mean of random, summarised
   over templates; and the share of random sets that do at least as much.

Responding is association; an effect of ablation says that the class depends on the channels on these pictures.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from assay.data.images import SceneSource
from assay.errors import bad_argument
from assay.evidence.image_circuits import class_score, matched, mean_over_places
from assay.evidence.image_host import ImageHost
from assay.model.images import ImageEdit, ImageModel
from assay.statistics import Summary, summarise

__all__ = ["Fed", "Responding", "feeds", "find_channels", "matched"]
MANY = 1 << 30


@dataclass(frozen=True)
class Responding:
    """One channel: AUROC on discover, where it was chosen, and on tune, against all and against near misses alone."""

    site: str
    channel: int
    chosen_by: float
    auroc: float
    near: float


@dataclass(frozen=True)
class Fed:
    """Fall of the class score under ablation, in nats. `rank`: (1 + random sets that do as much) / (1 + random sets)."""

    site: str
    channels: tuple[int, ...]
    effect: float
    random: tuple[float, ...]
    contrast: Summary
    rank: float


def find_channels(model: ImageModel, concept: Any, site: str, n: int = 4, seed: int = 0) -> list[Responding]:
    """The n channels of a site that tell members of a concept best. `concept`: wheels, windows, or a source of labelled
    pictures. Raises UsageError, SiteError, TaskError."""
    source = SceneSource(concept) if isinstance(concept, str) else concept
    whole, index = model.resolve(site)
    if index is not None or model.layout.points[whole].heads:
        raise bad_argument("site", site, "a whole site of channels or units, without heads")
    first, _ = _areas(model, source, "discover", site, seed)
    if not 1 <= n <= len(first):
        raise bad_argument("n", n, f"1 to {len(first)}")
    best = np.argsort(-first, kind="stable")[:n]
    every, near = _areas(model, source, "tune", site, seed)
    return [Responding(site, int(c), float(first[c]), float(every[c]), float(near[c])) for c in best]


def _areas(model: ImageModel, source: Any, split: str, site: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """AUROC per channel within templates: members against all others, and against near misses (NaN without any)."""
    host = ImageHost(model)
    data = host.load(source.items(split, MANY, seed))
    acts = host.read(site, data).double().numpy()
    close = [row for row, item in enumerate(data.items) if item.label or item.near_miss]
    return _auroc(acts, data.items), _auroc(acts[close], [data.items[row] for row in close])


def _auroc(acts: np.ndarray, items: Sequence[Any]) -> np.ndarray:
    """Mean over templates of P(member above non-member), ties one half, per column."""
    templates, labels = np.array([item.template for item in items]), np.array([item.label for item in items])
    found = []
    for template in dict.fromkeys(templates.tolist()):
        inside, outside = (acts[(templates == template) & (labels == label)] for label in (1, 0))
        if len(inside) and len(outside):
            above = (inside[:, None] > outside[None]) + 0.5 * (inside[:, None] == outside[None])
            found.append(above.mean((0, 1)))
    return np.mean(found, axis=0) if found else np.full(acts.shape[1], np.nan)


def feeds(
    model: ImageModel, images: Tensor, templates: Sequence[str], reference: Tensor, site: str, channels: Sequence[int],
    classes: Sequence[int], draws: int = 20, seed: int = 0,
) -> Fed:  # fmt: skip
    """Whether channels carry the classes on these pictures more than matched random ones. `templates`: cluster per picture."""
    if not channels or draws < 1:
        raise bad_argument("channels, draws", (list(channels), draws), "one channel and one draw at least")
    site = model.resolve(site)[0]
    mean, acts = mean_over_places(model.capture(reference, [site])[site]), model.capture(images, [site])[site]
    clean = class_score(model.logits(images), classes)

    def fall(which: Sequence[int]) -> np.ndarray:
        edit = ImageEdit(site, mean, "set", tuple(which))
        return (clean - class_score(model.logits(images, [edit]), classes)).double().cpu().numpy()

    chosen = fall(channels)
    random = [fall(drawn) for drawn in matched(acts, channels, draws, seed, model.layout.points[site].heads)]
    contrast = summarise((chosen - np.mean(random, axis=0)).tolist(), list(templates), 0.0, seed=seed)
    means = tuple(float(each.mean()) for each in random)
    rank = (1 + sum(each >= chosen.mean() for each in means)) / (1 + draws)
    return Fed(site, tuple(channels), float(chosen.mean()), means, contrast, rank)
