"""Is it in the picture? Linear probes of an image model's sites, beside what needs no training of it.

1. A picture is one vector per site: the largest value of each channel over places (`max`), its mean, or a transformer's
   first token. The probe is the logistic one that texts are probed with (`probe/estimators.py`).
2. Groups (backgrounds, digits, folders) are dealt to folds whole; each picture is scored by the probe that did not see its
   group, and all of these log odds together give one AUROC, with bounds over groups (`probe/scores.py`).
3. Baselines, with the same folds: pixels (16 x 16 in colour, or all where there are fewer); the same site of untrained
   twins, and the gain over it; labels that were dealt again, whole groups where a group has one label (five times, mean).
4. Against near misses alone, where the set has them: what looks like it and is not.

All sites are reported; the best of many is the best partly by luck. That a site can be read does not say that the model
uses it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold
from torch import Tensor

from assay.data.images import images_for, load_images
from assay.errors import UsageError
from assay.model.image_untrained import untrained_image_model
from assay.model.images import BATCH, ImageModel
from assay.model.untrained import SCHEMES
from assay.probe.estimators import LinearProbe
from assay.probe.scores import Estimate, auroc, auroc_difference
from assay.records import Example

Array = NDArray[np.float64]
COARSE, SHUFFLES = 16, 5
Progress = Callable[[int], Any]


@dataclass(frozen=True)
class SiteProbe:
    """One site. `near`: members against near misses alone; `untrained`: the same site of the twin; `shuffled`: AUROC with
    labels dealt again, mean of five (it may be below .5: what a probe has seen of a label is not what it is asked)."""

    site: str
    width: int
    auroc: Estimate
    near: Estimate | None
    untrained: Estimate
    over_untrained: Estimate
    over_pixels: Estimate
    shuffled: float


@dataclass(frozen=True)
class Probed:
    """Sites in the order of the run, and the baseline of pixels. `pool`: how places became one vector."""

    n: int
    members: int
    groups: int
    folds: int
    pool: str
    pixels: Estimate
    pixels_near: Estimate | None
    sites: tuple[SiteProbe, ...]


def probe_sites(
    model: ImageModel, items: Sequence[Example], sites: Sequence[str], pool: str = "max", folds: int = 5, seed: int = 0,
    progress: Progress | None = None,
) -> Probed:  # fmt: skip
    """Probe every site for the label of the pictures. `progress`: with the pictures read.

    Raises UsageError for one label only, or where one of them is in a single group.
    """
    labels = np.array([item.label for item in items])
    groups = [item.template for item in items]
    near = np.array([item.near_miss or item.label == 1 for item in items])
    split = _folds(labels, groups, folds, seed)
    names = list(dict.fromkeys(model.resolve(site)[0] for site in sites))
    twin = untrained_image_model(model, SCHEMES[0], seed)
    pixels, own, other = [], {site: [] for site in names}, {site: [] for site in names}
    for start in range(0, len(items), BATCH):
        part = [item.text for item in items[start : start + BATCH]]
        images = images_for(model.pixels, part)
        pixels.append(_coarse(model, part).flatten(1).numpy())
        for which, store in ((model, own), (twin, other)):
            for site, values in which.pooled_sites(images, names, pool).items():
                store[site].append(values.cpu().numpy())
        if progress is not None:
            progress(len(part))
    by_pixels = out_of_fold(np.concatenate(pixels), labels, split)
    shuffles = [_dealt(labels, groups, np.random.default_rng([seed, draw])) for draw in range(SHUFFLES)]
    shuffled_folds = [_folds(each, groups, folds, seed) for each in shuffles]
    found = []
    for site in names:
        values = np.concatenate(own[site])
        scores, twins = (out_of_fold(each, labels, split) for each in (values, np.concatenate(other[site])))
        chance = [_auroc(out_of_fold(values, each, way), each) for each, way in zip(shuffles, shuffled_folds, strict=True)]
        found.append(SiteProbe(
            site, values.shape[1], auroc(scores, labels, groups, seed=seed), _near(scores, labels, groups, near, seed),
            auroc(twins, labels, groups, seed=seed), auroc_difference(scores, twins, labels, groups, seed=seed),
            auroc_difference(scores, by_pixels, labels, groups, seed=seed), float(np.mean(chance)),
        ))  # fmt: skip
    baseline = auroc(by_pixels, labels, groups, seed=seed), _near(by_pixels, labels, groups, near, seed)
    return Probed(len(items), int(labels.sum()), len(set(groups)), len(split), pool, *baseline, tuple(found))


def _coarse(model: ImageModel, names: Sequence[str]) -> Tensor:
    """What the model sees of the pictures, 16 x 16 at most."""
    return load_images(names, min(COARSE, model.pixels.size), model.pixels.channels, model.pixels.fit)


def out_of_fold(values: Array, labels: NDArray[np.int64], split: Sequence[tuple[Any, Any]]) -> Array:
    """Log odds of every row by the probe that did not see its group."""
    scores = np.zeros(len(labels))
    for train, test in split:
        scores[test] = LinearProbe().fit(values[train], labels[train]).decision_function(values[test])
    return scores


def _folds(labels: NDArray[np.int64], groups: Sequence[str], folds: int, seed: int) -> list[tuple[Any, Any]]:
    """Folds of whole groups, as many as each label has groups at most, and both labels to train on."""
    per = [len({group for group, label in zip(groups, labels, strict=True) if label == side}) for side in (0, 1)]
    if min(per) < 2 or folds < 2:
        raise UsageError(
            f"images: label 0 is in {per[0]} groups and label 1 in {per[1]}, for {folds} folds; allowed: 2 groups of each"
            " and 2 folds at least. A folder's two sub-folders (0/ and 1/, or cats/ and dogs/) are its labels, and a folder is"
            " one group: hold out single pictures with --by picture, or name groups in a file of labelled pictures, one a line:"
            ' {"image": "cats/one.jpg", "label": 1, "group": "street 3"}.'
        )
    ways = StratifiedGroupKFold(min(folds, *per), shuffle=True, random_state=seed)
    found = [(train, test) for train, test in ways.split(np.zeros(len(labels)), labels, list(groups)) if len(test)]
    if any(len(set(labels[train].tolist())) < 2 for train, _ in found):
        raise UsageError("images: one label has too few groups to be on both sides of a split. More groups are needed.")
    return found


def _dealt(labels: NDArray[np.int64], groups: Sequence[str], rng: np.random.Generator) -> NDArray[np.int64]:
    """Labels dealt again: to groups where each has one label, else to rows."""
    by_group: dict[str, set[int]] = {}
    for group, label in zip(groups, labels.tolist(), strict=True):
        by_group.setdefault(group, set()).add(label)
    if any(len(found) > 1 for found in by_group.values()):
        return rng.permutation(labels)
    dealt = dict(zip(by_group, rng.permutation([next(iter(found)) for found in by_group.values()]).tolist(), strict=True))
    return np.array([dealt[group] for group in groups])


def _auroc(scores: Array, labels: NDArray[np.int64]) -> float:
    return auroc(scores, labels).value


def _near(scores: Array, labels: NDArray[np.int64], groups: Sequence[str], near: Any, seed: int) -> Estimate | None:
    if len(set(labels[near].tolist())) < 2:
        return None
    return auroc(scores[near], labels[near], [group for group, kept in zip(groups, near, strict=True) if kept], seed=seed)
