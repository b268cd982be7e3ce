"""Patching between two pictures: which places, channels or heads carry what makes their answers differ.

1. Two runs: m(clean) and m(corrupted) of a target (a logit, log-odds of classes, a channel).
2. `denoise`: the corrupted picture runs, one unit of a site has the clean run's activation: what is enough to restore?
   `noise`: the clean picture runs, one unit has the corrupted run's: what is needed?
3. Effect, as a share of the difference (1: all of it, 0: none), per unit and pair:
       denoise  (m(patched) - m(corrupted)) / (m(clean) - m(corrupted))
       noise    (m(clean) - m(patched)) / (m(clean) - m(corrupted))
4. Units: places of a map (cells of `cell` x `cell`) or tokens; channels, heads of z, or units.
5. A pair whose two runs differ by less than 1e-3 of the pairs' mean difference is left out: its share is a division by noise.

Effects of single units need not add up: two places may each be enough, or only both together.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from assay.errors import ShapeError, UsageError, bad_argument
from assay.model.images import BATCH, ImageEdit, ImageModel
from assay.vision.targets import Target, measure

Direction = Literal["denoise", "noise"]
By = Literal["place", "channel"]
SAME = 1e-3
Progress = Callable[[int], Any]


@dataclass(frozen=True, eq=False)
class Patched:
    """`effect` (pair, unit) as shares; `whole` (pair,): all units of the site at once. `shape`: (rows, columns) of cells,
    (tokens,) or (channels,); `pairs`: rows of the given pictures that are left in. `clean`, `corrupted` (pair,): the target."""

    site: str
    target: str
    by: By
    direction: Direction
    shape: tuple[int, ...]
    clean: Float[Tensor, " pair"]
    corrupted: Float[Tensor, " pair"]
    effect: Float[Tensor, "pair unit"]
    whole: Float[Tensor, " pair"]
    pairs: tuple[int, ...]

    @property
    def mean(self) -> Float[Tensor, "..."]:
        """Mean effect over pairs, in the shape of the units."""
        return self.effect.mean(0).reshape(self.shape)


def patch_pictures(
    model: ImageModel, clean: Tensor, corrupted: Tensor, site: str, target: Target, by: By = "channel",
    direction: Direction = "denoise", cell: int = 1, batch: int = BATCH, progress: Progress | None = None,
) -> Patched:  # fmt: skip
    """Effects of every unit of a site for pairs of pictures (n, channel, size, size). `progress`: with the runs done.

    Raises UsageError where no pair differs, SiteError and ShapeError for what the model does not have.
    """
    _check(clean, corrupted, by, direction, cell)
    site, point = model.resolve(site)[0], model.layout.points[model.resolve(site)[0]]
    ends = [measure(model, images, target, batch=batch).double() for images in (clean, corrupted)]
    gap = (ends[0] - ends[1]).abs()
    pairs = torch.nonzero(gap > SAME * gap.mean()).flatten().tolist()
    if not pairs:
        raise UsageError(f"{target.name}: it is the same on both pictures of every pair; take pictures on which it differs.")
    held = [model.capture(images[pairs], [site], batch=batch)[site] for images in (clean, corrupted)]
    units, shape = _units(held[0], point.kind == "map", point.heads, by, cell)
    start, given, runs = (corrupted, held[0], held[1]) if direction == "denoise" else (clean, held[1], held[0])
    m_clean, m_corrupted = ends[0][pairs], ends[1][pairs]
    effects, wholes = [], []
    for row, pair in enumerate(pairs):
        masks = torch.cat([units, torch.ones_like(units[:1])])
        found = []
        for part in masks.split(batch):
            value = torch.where(part, given[row : row + 1], runs[row : row + 1])
            images = start[pair : pair + 1].expand(len(part), -1, -1, -1)
            found.append(measure(model, images, target, [ImageEdit(site, value)], batch).double())
            if progress is not None:
                progress(len(part))
        patched, difference = torch.cat(found), m_clean[row] - m_corrupted[row]
        moved = patched - m_corrupted[row] if direction == "denoise" else m_clean[row] - patched
        effects.append((moved / difference)[:-1])
        wholes.append((moved / difference)[-1])
    return Patched(site, target.name, by, direction, shape, m_clean.cpu(), m_corrupted.cpu(), torch.stack(effects).cpu(),
                   torch.stack(wholes).cpu(), tuple(pairs))  # fmt: skip


def n_runs(model: ImageModel, site: str, by: By, cell: int, n_pairs: int) -> int:
    """Pictures that `patch_pictures` runs at most."""
    from assay.vision.targets import blank

    name = model.resolve(site)[0]
    point = model.layout.points[name]
    return n_pairs * (1 + len(_units(model.capture(blank(model), [name])[name], point.kind == "map", point.heads, by, cell)[0]))


def _check(clean: Tensor, corrupted: Tensor, by: str, direction: str, cell: int) -> None:
    if clean.shape != corrupted.shape or not len(clean):
        raise ShapeError(f"clean, corrupted: got {tuple(clean.shape)} and {tuple(corrupted.shape)}; allowed: as many of both.")
    if by not in ("place", "channel"):
        raise bad_argument("by", by, "place, channel")
    if direction not in ("denoise", "noise"):
        raise bad_argument("direction", direction, "denoise, noise")
    if cell < 1:
        raise bad_argument("cell", cell, "1 or more")


def _units(value: Tensor, is_map: bool, heads: int, by: By, cell: int) -> tuple[Tensor, tuple[int, ...]]:
    """Masks (unit, ..) that broadcast against one picture's activation with itself in front, and the units' shape."""
    if by == "channel":
        width = value.shape[1] if is_map else value.shape[-1]
        n = heads or width
        masks = torch.eye(n, dtype=torch.bool, device=value.device).repeat_interleave(width // n, 1)
        return (masks[:, :, None, None] if is_map else masks[:, None]), (n,)
    if not is_map:
        tokens = value.shape[1]
        return torch.eye(tokens, dtype=torch.bool, device=value.device)[..., None], (tokens,)
    rows, columns = (-(-side // cell) for side in value.shape[2:])
    masks = torch.zeros(rows * columns, 1, *value.shape[2:], dtype=torch.bool, device=value.device)
    for number in range(rows * columns):
        row, column = divmod(number, columns)
        masks[number, 0, row * cell : (row + 1) * cell, column * cell : (column + 1) * cell] = True
    return masks, (rows, columns)
