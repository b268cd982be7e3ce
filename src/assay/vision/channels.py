"""Which channels respond to a concept, and whether they feed a class more than matched random channels do.

1. `find_channels`: scenes of discover are read at a site (largest value of every map); per channel the AUROC of members
   against non-members, and against near misses alone, both within a template, so that no background can tell. The best
   channels are measured again on confirm scenes; only that number is reported as theirs.
2. `feeds`: channels are set to their mean over the pictures of a reference set (mean ablation, at every place), and the
   log-odds of the classes against all others fall by some amount per picture. The same for `draws` random sets: for every
   chosen channel one of the 10 of its site whose mean and spread on the pictures are nearest. One contrast per picture,
   chosen minus mean of random, summarised over backgrounds (`assay.statistics.summarise`); and the share of random sets
   that do at least as much.
3. `channel_edges`: (a(picture) - a(reference)) times gradient, from channels of one map to a channel of a later one, as
   edge attribution patching does (Syed et al. 2023, 2310.10348).

Responding is association; an effect of ablation says that the class depends on the channels on these pictures.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from assay.data.images import SceneSource, load_images
from assay.errors import bad_argument
from assay.model.images import ImageEdit, ImageModel
from assay.statistics import Summary, summarise

NEAREST = 10


@dataclass(frozen=True)
class Responding:
    """One channel: AUROC on discover, where it was chosen, and on confirm, against all and against near misses alone."""

    site: str
    channel: int
    chosen_by: float
    auroc: float
    near: float


@dataclass(frozen=True)
class Fed:
    """Fall of the class log-odds under ablation. `rank`: (1 + random sets that do as much) / (1 + random sets)."""

    site: str
    channels: tuple[int, ...]
    effect: float
    random: tuple[float, ...]
    contrast: Summary
    rank: float


def find_channels(model: ImageModel, concept: str, site: str, n: int = 4, seed: int = 0) -> list[Responding]:
    """The n channels of a site that tell members of a rendered concept best. Raises UsageError, SiteError."""
    source = SceneSource(concept)
    first = _areas(model, source, "discover", site, seed)[0]
    if not 1 <= n <= len(first):
        raise bad_argument("n", n, f"1 to {len(first)}")
    best = np.argsort(-first, kind="stable")[:n]
    every, near = _areas(model, source, "confirm", site, seed)
    return [Responding(site, int(c), float(first[c]), float(every[c]), float(near[c])) for c in best]


def _areas(model: ImageModel, source: SceneSource, split: str, site: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """AUROC per channel within templates: members against all others, and against near misses."""
    items = source.items(split, 1 << 30, seed)
    images = load_images([item.text for item in items], model.pixels.size, model.pixels.channels)
    acts = model.pooled(images, site).double().numpy()
    labels = np.array([item.label for item in items])
    near = np.array([item.near_miss for item in items])
    return _auroc(acts, labels, items), _auroc(acts[(labels == 1) | near], labels[(labels == 1) | near],
                                              [item for item in items if item.label or item.near_miss])  # fmt: skip


def _auroc(acts: np.ndarray, labels: np.ndarray, items: Sequence) -> np.ndarray:
    """Mean over templates of P(member above non-member), ties one half, per column."""
    templates = np.array([item.template for item in items])
    found = []
    for template in dict.fromkeys(templates.tolist()):
        inside, outside = (acts[(templates == template) & (labels == label)] for label in (1, 0))
        if len(inside) and len(outside):
            above = (inside[:, None] > outside[None]) + 0.5 * (inside[:, None] == outside[None])
            found.append(above.mean((0, 1)))
    return np.mean(found, axis=0)


def log_odds(logits: Tensor, classes: Sequence[int]) -> Tensor:
    """Log-odds (n,) of a set of classes against all others."""
    chosen = torch.zeros(logits.shape[1], dtype=torch.bool)
    chosen[list(classes)] = True
    return logits[:, chosen].logsumexp(1) - logits[:, ~chosen].logsumexp(1)


def feeds(
    model: ImageModel, images: Tensor, templates: Sequence[str], reference: Tensor, site: str, channels: Sequence[int],
    classes: Sequence[int], draws: int = 20, seed: int = 0,
) -> Fed:  # fmt: skip
    """Whether channels carry the classes on these pictures more than matched random ones. `templates`: cluster per picture."""
    if not channels or draws < 1:
        raise bad_argument("channels, draws", (list(channels), draws), "one channel and one draw at least")
    mean = model.capture(reference, [site])[site].mean((0, 2, 3))[None, :, None, None]
    acts = model.capture(images, [site])[site]
    clean = log_odds(model.logits(images), classes)

    def fall(which: Sequence[int]) -> np.ndarray:
        edit = ImageEdit(site, mean, "set", tuple(which))
        return (clean - log_odds(model.logits(images, [edit]), classes)).double().numpy()

    chosen = fall(channels)
    random = [fall(drawn) for drawn in matched(acts, channels, draws, seed)]
    contrast = summarise((chosen - np.mean(random, axis=0)).tolist(), list(templates), 0.0, seed=seed)
    means = tuple(float(each.mean()) for each in random)
    rank = (1 + sum(each >= chosen.mean() for each in means)) / (1 + draws)
    return Fed(site, tuple(channels), float(chosen.mean()), means, contrast, rank)


def matched(acts: Tensor, channels: Sequence[int], draws: int, seed: int) -> list[tuple[int, ...]]:
    """Random sets: for every channel one of the 10 nearest others by mean and spread (in units of their spread)."""
    facts = torch.stack([acts.mean((0, 2, 3)), acts.std((0, 2, 3))], 1)
    facts = facts / facts.std(0).clamp_min(1e-12)
    free = [c for c in range(len(facts)) if c not in set(channels)]
    near = {c: [free[i] for i in (facts[free] - facts[c]).norm(dim=1).argsort()[:NEAREST].tolist()] for c in channels}
    rng, found = np.random.default_rng(seed), []
    for _ in range(draws):
        drawn: list[int] = []
        for c in channels:
            left = [other for other in near[c] if other not in drawn] or [other for other in free if other not in drawn]
            drawn.append(int(rng.choice(left)))
        found.append(tuple(drawn))
    return found


def channel_edges(
    model: ImageModel, images: Tensor, reference: Tensor, source: str, target: str, channel: int
) -> Tensor:  # fmt: skip
    """Scores (channels of source,): change of the target channel's sum that each source channel accounts for, to first
    order, mean over pictures. `reference`: as many pictures as `images`."""
    with torch.no_grad():
        _, before = model.forward(reference, [source], logits=False)
    _, found = model.forward(images.clone().requires_grad_(), [source, target], logits=False)
    if found[source].grad_fn is None:
        raise bad_argument("source", source, f"a site before {target}")
    (grad,) = torch.autograd.grad(found[target][:, channel].sum(), found[source], allow_unused=True)
    if grad is None:
        raise bad_argument("source", source, f"a site before {target}")
    return ((found[source] - before[source]).detach() * grad).sum((2, 3)).mean(0)
