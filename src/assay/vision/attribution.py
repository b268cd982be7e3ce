"""Edges between channels by attribution: how much each channel of one site moves a target, to first order and exactly.

1. Two runs per pair of pictures, activations a (picture) and r (reference). A target is a channel of a later map, or logits.
2. First order (edge attribution patching: Syed, Rager & Conmy 2023, 2310.10348; Nanda 2023, for nodes):
       score(c) = sum over places of (a - r)_c * d target / d a_c          one forward and one backward run for all channels
3. Exact: the picture runs again with channel c as on the reference, everywhere, and the target falls by
       exact(c) = target(a) - target(a with r_c)                          one run per channel and picture
4. Both are for the same change, so that they should agree; where they do not, saturation or ReLUs lie between. Their
   correlations are reported, over all channels that were run exactly: drawn at random unless all are.

Scores go through everything between the two sites, and around what lies beside it. They are about these pictures.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from assay.errors import ShapeError, bad_argument
from assay.model.images import BATCH, ImageEdit, ImageModel
from assay.vision.targets import Target, measure

Progress = Callable[[int], Any]


@dataclass(frozen=True, eq=False)
class Attributed:
    """`scores` (pair, channel); `exact` (pair, chosen) for the channels `chosen`. `pearson`, `spearman`: of their means over
    pairs; None with fewer than 3 channels or where one side does not vary. `total` (pair,): target(a) - target(r)."""

    source: str
    target: str
    scores: Float[Tensor, "pair channel"]
    chosen: tuple[int, ...]
    exact: Float[Tensor, "pair chosen"]
    total: Float[Tensor, " pair"]
    pearson: float | None
    spearman: float | None

    def strongest(self, n: int) -> list[int]:
        """The n channels with the largest mean score, by size."""
        return self.scores.mean(0).abs().argsort(descending=True, stable=True)[:n].tolist()


def attribute_channels(
    model: ImageModel, images: Tensor, reference: Tensor, source: str, target: Target, check: int | Sequence[int] = 32,
    seed: int = 0, batch: int = BATCH, progress: Progress | None = None,
) -> Attributed:  # fmt: skip
    """Scores of the channels (heads, units) of `source`, and exact effects of `check` of them: a number to draw, or which.

    `images`, `reference`: as many pictures of both. Raises UsageError for a target that does not depend on the source.
    """
    if images.shape != reference.shape or not len(images):
        raise ShapeError(
            f"images, reference: got {tuple(images.shape)} and {tuple(reference.shape)}; allowed: as many of both."
        )
    source = model.resolve(source)[0]
    if target.site == source:
        raise bad_argument("source", source, "a site before the target's")
    width = model.width(source)
    drawn = np.random.default_rng(seed).permutation(width)[:check].tolist() if isinstance(check, int) else list(check)
    if wrong := [c for c in drawn if not 0 <= c < width]:
        raise bad_argument("check", wrong[0], f"channels 0 to {width - 1}")
    scores, exact, totals = [], [], []
    for start in range(0, len(images), batch):
        part, other = images[start : start + batch], reference[start : start + batch]
        held = model.capture(other, [source], batch=batch)[source]
        score, before = _first_order(model, part, held, source, target)
        scores.append(score)
        totals.append(before - measure(model, other, target, batch=batch).double())
        columns = [
            before - measure(model, part, target, [ImageEdit(source, held, channels=(c,))], batch).double() for c in drawn
        ]
        exact.append(torch.stack(columns, 1) if columns else before.new_zeros(len(part), 0))
        if progress is not None:
            progress(len(part))
    both = torch.cat(scores).double().cpu(), torch.cat(exact).cpu()
    pearson, spearman = _agreement(both[0].mean(0)[drawn].numpy(), both[1].mean(0).numpy())
    return Attributed(source, target.name, both[0], tuple(drawn), both[1], torch.cat(totals).cpu(), pearson, spearman)


def _first_order(
    model: ImageModel, images: Tensor, reference: Tensor, source: str, target: Target
) -> tuple[Float[Tensor, "n channel"], Float[Tensor, " n"]]:
    """Scores, and the target on the pictures."""
    x = images.clone().requires_grad_()
    logits, found = model.forward(x, [source, *target.sites], logits=target.site is None)
    number, held = target.of(logits, found), found[source]
    grad = torch.autograd.grad(number.sum(), held, allow_unused=True)[0] if held.grad_fn and number.grad_fn else None
    if grad is None:
        raise bad_argument("source", source, f"a site that {target.name} depends on, before it")
    change, point = (held - reference).detach() * grad, model.layout.points[source]
    per = change.sum((2, 3)) if point.kind == "map" else change.sum(1)
    per = per.unflatten(1, (point.heads, -1)).sum(2) if point.heads else per
    return per, number.detach().double()


def _agreement(a: np.ndarray, b: np.ndarray) -> tuple[float | None, float | None]:
    if len(a) < 3 or not a.std() > 0 or not b.std() > 0:
        return None, None
    pearson, spearman = (np.corrcoef(*pair)[0, 1] for pair in ((a, b), (stats.rankdata(a), stats.rankdata(b))))
    return float(pearson), float(spearman)
