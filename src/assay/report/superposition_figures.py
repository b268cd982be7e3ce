"""Pictures of superposition: polygons and phases of toy models, cosines of directions, concepts of units.

Arrays and records go in, a matplotlib Figure comes out; see `figures.py` for what all figures keep to.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from assay.errors import bad_argument
from assay.features.polysemy import Polysemy
from assay.features.superposition import BINS, Interference
from assay.report.cells import RAMP, visible
from assay.report.figures import ACCENT, BAD, GOOD, INK, MUTED, RULE, _drawable, _figure, _plain

NONE, PALE = "#e8ebee", ("#c7dbee", "#f3d9c6", "#cfe6d8")
HATCHES = ("", "..", "//")
MOST_UNITS = 40


def polygons(weights: Sequence[Float[np.ndarray, "feature 2"]], titles: Sequence[str] = ()) -> Figure:
    """Features of models with two dimensions as arrows, one panel a model; grey where the norm is below one half."""
    rows = [np.asarray(row) for row in weights]
    if not rows or any(row.ndim != 2 or row.shape[1] != 2 for row in rows):
        raise bad_argument("weights", [row.shape for row in rows], "one or more arrays of shape (feature, 2)")
    figure = _figure(min(14.0, 2.3 * len(rows) + 0.4), 2.7)
    reach = 1.15 * max(1.0, max(float(np.linalg.norm(row, axis=1).max()) for row in rows))
    for axes, row, title in zip(np.atleast_1d(figure.subplots(1, len(rows))), rows, [*titles, *[""] * len(rows)]):
        for x, y in row:
            ink = ACCENT if np.hypot(x, y) > 0.5 else MUTED
            axes.plot([0, x], [0, y], color=ink, linewidth=1.6)
            axes.plot([x], [y], "o", color=ink, markersize=5)
        axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xticks=[], yticks=[])
        for side in axes.spines.values():
            side.set_color(RULE)
        axes.set_title(_drawable(title), fontsize=9, color=INK, parse_math=False)
    return figure


def phase_map(
    density: Sequence[float], importance: Sequence[float], phase: Int[np.ndarray, "importance density"],
    names: Sequence[str], expected: Int[np.ndarray, "importance density"] | None = None,
) -> Figure:  # fmt: skip
    """Which phase every cell is in (colour and hatch; -1 is none of them), a cross where another one was expected."""
    figure = _figure(6.4, 4.2)
    axes = figure.subplots()
    colours = ListedColormap([NONE, *PALE[: len(names)]])
    axes.imshow(phase, origin="lower", aspect="auto", cmap=colours, vmin=-1.5, vmax=len(names) - 0.5, interpolation="nearest")
    for number in range(len(names)):
        hatch = HATCHES[number % len(HATCHES)]
        for y, x in np.argwhere(np.asarray(phase) == number):
            if hatch:
                axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor="none", edgecolor=MUTED, hatch=hatch, linewidth=0))
    if expected is not None:
        y, x = np.nonzero(np.asarray(phase) != np.asarray(expected))
        axes.plot(x, y, "x", color=BAD, markersize=7)
    _log_ticks(axes.set_xticks, density)
    _log_ticks(axes.set_yticks, importance)
    axes.tick_params(colors=MUTED, labelsize=8.5)
    axes.set_xlabel("density: how often a feature is active (sparse at the left)", color=INK)
    axes.set_ylabel("importance of the second feature", color=INK)
    handles = [Patch(facecolor=PALE[n], edgecolor=MUTED, hatch=HATCHES[n % len(HATCHES)], label=name)
               for n, name in enumerate(names)]  # fmt: skip
    figure.legend(handles=handles, loc="outside upper left", ncols=len(names), frameon=False, fontsize=9, labelcolor=INK)
    return figure


def _log_ticks(place: Any, values: Sequence[float]) -> None:
    """At most eight labels."""
    every = max(1, -(-len(values) // 8))
    place(range(0, len(values), every), [f"{value:.2g}" for value in values[::every]])


def interference_plot(found: Interference, title: str = "") -> Figure:
    """|cosine| of all pairs of directions against as many random ones; shares on a log axis."""
    figure = _figure(6.8, 3.6)
    axes = figure.subplots()
    centres = (np.arange(BINS) + 0.5) / BINS
    lines = (("these directions", found.histogram, ACCENT, "-"), ("as many random ones", found.random_histogram, RAMP[7], "--"))
    for name, histogram, ink, style in lines:
        share = np.array(histogram, dtype=float) / max(1, sum(histogram))
        there = share > 0
        axes.plot(centres[there], share[there], color=ink, linestyle=style, linewidth=1.8, label=name, drawstyle="steps-mid")
    axes.axvline(found.welch, color=INK, linewidth=0.9, linestyle=":")
    axes.set_yscale("log")
    axes.set_xlim(0, 1)
    _plain(axes)
    words = f"|cosine| of a pair ({found.n} directions in {found.d} dimensions; dotted: the least that the largest can be)"
    axes.set_xlabel(words, color=INK, fontsize=9)
    axes.set_ylabel("share of pairs", color=INK)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    axes.set_title(_drawable(title), loc="left", fontsize=10, color=INK, parse_math=False)
    return figure


def concepts_plot(units: Sequence[Polysemy], title: str = "") -> Figure:
    """Concepts per unit with 95% intervals, most first; at most 40 units are drawn, and the title says so."""
    if not units:
        raise bad_argument("units", "none", "one or more")
    order = sorted(units, key=lambda unit: (-unit.concepts, -unit.several, unit.unit))[:MOST_UNITS]
    figure = _figure(7.2, 1.3 + 0.27 * len(order))
    axes = figure.subplots()
    for row, unit in enumerate(order):
        ink = MUTED if unit.concepts == 0 else GOOD if unit.concepts == 1 else RAMP[7]
        axes.plot([unit.low, unit.high], [row, row], color=ink, linewidth=2.2, solid_capstyle="round")
        axes.plot([unit.concepts], [row], "o" if unit.concepts < 2 else "D", color=ink, markersize=6.5)
        words = "; ".join(" ".join(concept.words[:3]) for concept in unit.found)
        axes.annotate(_drawable(visible(words, 70)), (unit.high, row), xytext=(9, 0), textcoords="offset points", va="center",
                      fontsize=7.5, color=MUTED, parse_math=False, annotation_clip=False)  # fmt: skip
    axes.set_yticks(range(len(order)), [_drawable(visible(unit.unit, 32)) for unit in order], parse_math=False)
    axes.set_ylim(len(order) - 0.4, -0.6)
    most = max(unit.high for unit in order)
    axes.set_xlim(-0.3, 2 * most + 1.5)
    axes.set_xticks(range(most + 1))
    _plain(axes, left=False)
    axes.set_xlabel("unrelated concepts in the top contexts (line: 95% interval; circle: at most one; diamond: several)",
                    color=MUTED, fontsize=8.5)  # fmt: skip
    left = f" ({len(order)} of {len(units)} units)" if len(order) < len(units) else ""
    axes.set_title(_drawable(f"{title}{left}"), loc="left", fontsize=10, color=INK, parse_math=False)
    return figure
