"""Pictures of a set by how much a target responds to them, with heat maps of where.

1. Every picture of the set is read. Its number is the largest value of the channel's map (or token), or the mean.
2. Shown are the top ones; quantiles, from the least to the most, since top ones alone make any channel look pure (Bolukbasi
   et al. 2021, 2104.07143); and random ones.
3. The heat map is the channel's map, as it is; the box is the receptive place of its largest value in shares of the side: a
   map's cell stands for the same share of the picture only as far as padding and strides are even.
4. For a class there is no map: the number alone.

Only what is shown keeps its map: a folder may have more pictures than memory holds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from assay.data.images import images_for
from assay.errors import bad_argument
from assay.model.images import BATCH, Fit, ImageModel
from assay.records import Example
from assay.vision.targets import Target

Progress = Callable[[int], Any]


@dataclass(frozen=True, eq=False)
class Shown:
    """One picture: its name, its number, the share of the set below it, and its map (height, width) in raw activations.

    `peak`: middle of the largest cell, (down, across) in shares of the side. For tokens the map has one row per row of
    patches where their number allows it, else one row.
    """

    name: str
    label: int
    group: str
    kind: Literal["top", "quantile", "random"]
    value: float
    below: float
    heat: Float[Tensor, "height width"] | None
    peak: tuple[float, float] | None


@dataclass(frozen=True, eq=False)
class Examples:
    """What a set of n pictures shows of a target. `zero`: the share of pictures on which its number is 0 or less; `fit`: how
    the model's pictures are made, so that maps lie on what it saw."""

    target: str
    n: int
    mean: float
    sd: float
    zero: float
    shown: tuple[Shown, ...]
    fit: Fit | None = None


def examples(
    model: ImageModel, target: Target, items: Sequence[Example], top: int = 8, quantiles: int = 5, random: int = 5,
    pool: str = "max", seed: int = 0, batch: int = BATCH, progress: Progress | None = None,
) -> Examples:  # fmt: skip
    """Top, quantile and random pictures of a set. Raises UsageError for numbers that do not fit."""
    for name, got in (("top", top), ("quantiles", quantiles), ("random", random)):
        if got < 0:
            raise bad_argument(name, got, "0 or more")
    if not items or top + quantiles + random < 1:
        raise bad_argument("items, top, quantiles, random", (len(items), top, quantiles, random), "a picture, one to show")
    values = []
    for start in range(0, len(items), batch):
        part = items[start : start + batch]
        values.append(read(model, target, part, pool)[0])
        if progress is not None:
            progress(len(part))
    numbers = torch.cat(values).double().numpy()
    rows = _chosen(numbers, top, quantiles, random, seed)
    shown = []
    for kind, row in rows:
        heat = read(model, target, [items[row]], pool)[1]
        own = None if heat is None else _grid(heat[0])
        item, below = items[row], float((numbers < numbers[row]).mean())
        shown.append(Shown(item.text, item.label, item.template, kind, float(numbers[row]), below, own,
                           None if own is None else _peak(own)))  # fmt: skip
    return Examples(target.name, len(items), float(numbers.mean()), float(numbers.std()), float((numbers <= 0).mean()),
                    tuple(shown), model.pixels.fit)  # fmt: skip


def read(model: ImageModel, target: Target, items: Sequence[Example], pool: str = "max") -> tuple[Tensor, Tensor | None]:
    """(numbers (n,), maps (n, ...) or None for a class) of pictures."""
    if pool not in ("max", "mean"):
        raise bad_argument("pool", pool, "max, mean")
    images = images_for(model.pixels, [item.text for item in items])
    if target.site is None:
        return target.of(model.logits(images), {}).cpu(), None
    site = target.site if target.index is None else model.unit(target.site, target.index)
    maps = model.capture(images, [site])[site].float().cpu()
    if target.place is not None:
        return maps[(slice(None), *target.place)], maps
    flat = maps.flatten(1)
    return (flat.amax(1) if pool == "max" else flat.mean(1)), maps


def _chosen(numbers: np.ndarray, top: int, quantiles: int, random: int, seed: int) -> list[tuple[Any, int]]:
    """(kind, row): the top from the most down, quantiles from the least up, random ones drawn from all."""
    order = np.argsort(-numbers, kind="stable")
    places = np.linspace(len(order) - 1, 0, quantiles).round().astype(int) if quantiles else np.array([], int)
    drawn = np.random.default_rng(seed).permutation(len(order))[:random]
    return [*(("top", int(row)) for row in order[:top]), *(("quantile", int(order[place])) for place in places),
            *(("random", int(row)) for row in drawn)]  # fmt: skip


def _grid(heat: Tensor) -> Tensor:
    """A map as it is; tokens as a square of patches, without what stands before them (class tokens)."""
    if heat.ndim == 2:
        return heat
    side = int(len(heat) ** 0.5)
    return heat[-side * side :].reshape(side, side)


def _peak(heat: Tensor) -> tuple[float, float]:
    row, column = divmod(int(heat.argmax()), heat.shape[1])
    return (row + 0.5) / heat.shape[0], (column + 0.5) / heat.shape[1]
