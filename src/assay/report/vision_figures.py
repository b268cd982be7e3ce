"""Pictures of methods on image models: visualisations, dataset examples with heat maps, patching, edges, weights, probes.

A heat map is drawn beside its picture's own pixels in grey, on a scale from 0 to the largest value shown of its channel, so
that weak pictures look weak. Every panel has its number.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from assay.data.images import load_images
from assay.report.cells import RAMP, visible
from assay.report.figures import ACCENT, COLOURS, GOOD, INK, MUTED, RULE, _drawable, _figure, _plain
from assay.vision.attribution import Attributed
from assay.vision.examples import Examples
from assay.vision.patching import Patched
from assay.vision.probing import Probed
from assay.vision.visualise import Checked, Visualisation
from assay.vision.weights import Weights

COLUMNS = 8


def visualisation_figure(shown: Sequence[tuple[str, Visualisation, Checked]]) -> Figure:
    """One panel per model or start: the picture, and what it reached beside the dataset."""
    figure = _figure(3.3 * len(shown), 3.9)
    for axes, (name, found, checked) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        _image(axes, found.image.permute(1, 2, 0).numpy())
        words = (f"{visible(name, 40)}\n{found.target}: {found.activation:.2f}\nnoise {found.noise:.2f}, best of"
                 f" {checked.n} pictures {checked.highest:.2f}")  # fmt: skip
        _say(axes, words)
    return figure


def examples_figure(found: Examples) -> Figure:
    """Top, quantile and random pictures in rows, each with its heat map on it."""
    rows = {kind: [one for one in found.shown if one.kind == kind] for kind in ("top", "quantile", "random")}
    panels = [(kind, part[i : i + COLUMNS]) for kind, part in rows.items() for i in range(0, len(part), COLUMNS)]
    figure = _figure(1.55 * COLUMNS, 1.95 * len(panels) + 0.4)
    most = max((float(one.heat.max()) for one in found.shown if one.heat is not None), default=0.0)
    for line, (kind, part) in zip(figure.subplots(len(panels), COLUMNS, squeeze=False), panels, strict=True):
        for axes in line[len(part) :]:
            axes.axis("off")
        for axes, one in zip(line, part, strict=False):
            pixels = load_images([one.name], 112, fit=found.fit)[0].permute(1, 2, 0).numpy()
            _image(axes, pixels if one.heat is None else pixels.mean(2, keepdims=True).repeat(3, 2))
            if one.heat is not None:
                _heat(axes, one.heat.numpy(), most, 112)
            _say(axes, f"{kind} {one.value:.2f}\n{visible(one.group, 22)}", 7)
    figure.suptitle(_drawable(f"{found.target}: {found.n} pictures, mean {found.mean:.2f}, 0 or less on {found.zero:.0%}"),
                    color=INK, fontsize=10, x=0.01, ha="left", parse_math=False)  # fmt: skip
    return figure


def patched_figure(found: Patched, clean: Any, corrupted: Any) -> Figure:
    """The first pair, and the mean effect of each unit: a map for places, points for channels."""
    figure = _figure(10.5, 3.6)
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1, 1.7))
    for axes, image, words in ((left, clean, "clean"), (middle, corrupted, "corrupted")):
        _image(axes, image.permute(1, 2, 0).numpy())
        _say(axes, f"{words}: {found.target} {float((found.clean if words == 'clean' else found.corrupted)[0]):.2f}")
    mean = found.mean.numpy()
    if mean.ndim == 2:
        limit = max(float(np.abs(mean).max()), 1e-9)
        drawn = right.imshow(mean, cmap=COLOURS, vmin=-limit, vmax=limit, interpolation="nearest")
        figure.colorbar(drawn, ax=right, fraction=0.05)
        right.set_xlabel("column of cells", color=INK)
        right.set_ylabel("row of cells", color=INK)
    else:
        _ranked(right, mean, "channel" if found.by == "channel" else "token")
        right.set_ylabel("share of the difference", color=INK)
    what = "restored" if found.direction == "denoise" else "lost"
    _say(
        right,
        f"{found.site}: share {what}, mean of {len(found.pairs)} pairs\nall units at once {float(found.whole.mean()):.2f}",
    )
    return figure


def attributed_figure(found: Attributed) -> Figure:
    """Scores of all channels, and first order against exact for those that were run."""
    figure = _figure(9.6, 3.8)
    left, right = figure.subplots(1, 2)
    scores = found.scores.mean(0).numpy()
    _ranked(left, scores, "channel")
    _say(left, f"{found.source} to {found.target}: first-order score")
    first, exact = scores[list(found.chosen)], found.exact.mean(0).numpy()
    both = np.concatenate([first, exact, [0.0]])
    ends = [float(both.min()), float(both.max())]
    right.plot(ends, ends, color=RULE, linewidth=1)
    right.plot(exact, first, "o", color=ACCENT, markersize=4)
    _plain(right)
    right.set_xlabel("exact: the target falls by", color=INK)
    right.set_ylabel("first order", color=INK)
    agree = "too few or no spread" if found.pearson is None else f"Pearson {found.pearson:.2f}, Spearman {found.spearman:.2f}"
    _say(right, f"{len(found.chosen)} channels: {agree}")
    return figure


def weights_figure(found: Weights, n: int = 16) -> Figure:
    """Kernels of the strongest pairs of channels, one scale for all."""
    pairs = found.strongest(n)
    columns = min(COLUMNS, len(pairs))
    figure = _figure(1.45 * columns + 0.8, 1.75 * -(-len(pairs) // columns) + 0.4)
    panels = figure.subplots(-(-len(pairs) // columns), columns, squeeze=False)
    limit, drawn = float(found.kernel.abs().max()), None
    for axes in panels.flat[len(pairs) :]:
        axes.axis("off")
    for axes, (target, source) in zip(panels.flat, pairs, strict=False):
        kernel = found.kernel[found.targets.index(target), found.sources.index(source)]
        drawn = axes.imshow(kernel.numpy(), cmap=COLOURS, vmin=-limit, vmax=limit, interpolation="nearest")
        axes.set_xticks([])
        axes.set_yticks([])
        _say(axes, f"{source} to {target}\nsum {float(kernel.sum()):+.2f}", 7.5)
    if drawn is not None:
        figure.colorbar(drawn, ax=panels, fraction=0.03)
    figure.suptitle(
        _drawable(f"{found.source} to {found.target}"), color=INK, fontsize=9.5, x=0.01, ha="left", parse_math=False
    )
    return figure


def probed_figure(found: Probed) -> Figure:
    """AUROC of every site with its bounds, the untrained twin, and the pixels as a line."""
    figure = _figure(8.2, 1.3 + 0.34 * len(found.sites))
    axes = figure.subplots()
    for row, one in enumerate(found.sites):
        for shift, estimate, ink, mark in ((-0.12, one.auroc, ACCENT, "o"), (0.12, one.untrained, MUTED, "^")):
            low, high = (estimate.value if bound is None else bound for bound in (estimate.low, estimate.high))
            axes.plot([low, high], [row + shift] * 2, color=ink, linewidth=1.6)
            axes.plot([estimate.value], [row + shift], mark, color=ink, markersize=6)
    axes.axvline(found.pixels.value, color=GOOD, linewidth=1.4, linestyle=(0, (4, 2)))
    axes.axvline(0.5, color=RULE, linewidth=1)
    axes.set_yticks(range(len(found.sites)), [_drawable(visible(one.site, 44)) for one in found.sites], parse_math=False)
    axes.set_ylim(len(found.sites) - 0.5, -0.5)
    _plain(axes, left=False)
    axes.set_xlabel("AUROC on groups that were held out (disc: this model, triangle: untrained, dashed: pixels)", color=INK,
                    fontsize=8.5)  # fmt: skip
    return figure


def _image(axes: Axes, pixels: np.ndarray) -> None:
    axes.imshow(pixels[..., 0] if pixels.shape[-1] == 1 else pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])


def _heat(axes: Axes, heat: np.ndarray, most: float, side: int) -> None:
    """A map over a picture of `side` pixels: nothing at 0 or less, strongest at `most`."""
    share = np.clip(heat / most, 0, 1) if most > 0 else np.zeros_like(heat)
    box = (-0.5, side - 0.5, side - 0.5, -0.5)
    axes.imshow(np.ones_like(heat), cmap="autumn", vmin=0, vmax=3, alpha=0.75 * share, extent=box, interpolation="nearest")


def _ranked(axes: Axes, values: np.ndarray, what: str) -> None:
    """Points by number, the six largest named."""
    axes.axhline(0, color=RULE, linewidth=1)
    axes.plot(range(len(values)), values, "o", color=RAMP[7], markersize=3)
    for c in np.argsort(-np.abs(values), kind="stable")[:6].tolist():
        axes.plot([c], [values[c]], "o", color=ACCENT, markersize=5)
        axes.annotate(str(c), (c, float(values[c])), xytext=(4, 3), textcoords="offset points", fontsize=8, color=INK)
    _plain(axes)
    axes.set_xlabel(what, color=INK)


def _say(axes: Axes, words: str, size: float = 8.5) -> None:
    axes.set_title(_drawable(words), fontsize=size, color=INK, loc="left", parse_math=False)
