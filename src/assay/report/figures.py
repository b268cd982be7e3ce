"""Figures: a record goes in, a matplotlib Figure comes out. No global state, nothing is saved here
except by `save_figure`.

Every figure says in words what its numbers mean, shows intervals where the record has them, and can
be read without colour. A figure shows what was measured; it does not decide anything.
"""

import io
import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import font_manager, rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font

from assay.errors import bad_argument
from assay.files import write_file
from assay.records import PatchResult, TaskSummary
from assay.report.cells import (
    MISSING,
    RAMP,
    Scale,
    column_labels,
    describe,
    grid,
    one_of,
    scale_of,
    top_cells,
    visible,
)  # fmt: skip

INK, MUTED, RULE, ACCENT, GOOD, BAD, ON_BAR = "#1d2733", "#5d6b7a", "#d5dbe1", "#2f6ea8", "#17785a", "#b23a1e", "#fffffe"
THEMED = {INK: "var(--ink)", MUTED: "var(--muted)", RULE: "var(--rule)", ACCENT: "var(--accent)",
          GOOD: "var(--good)", BAD: "var(--bad)", ON_BAR: "var(--paper)"}  # fmt: skip
COLOURS = LinearSegmentedColormap.from_list("assay", RAMP).with_extremes(bad=MISSING)
SUFFIXES = (".png", ".svg")
STRIP = 128


def heat_map(result: PatchResult, tokens: Sequence[str] | None = None) -> Figure:
    """Layers down, columns across, colour = effect. One layer of many neurons becomes a point plot."""
    if len(result.layers) == 1 and len(result.columns) > STRIP:
        return _point_map(result, tokens)
    effect, scale, labels = grid(result), scale_of(result), column_labels(result, tokens)
    n_rows, n_columns = effect.shape
    long = max(map(len, labels), default=1) > 3
    width = min(14.0, max(6.4, 2.4 + 0.34 * n_columns))
    figure = _figure(width, min(14.0, max(2.8, 1.9 + 0.21 * n_rows + 0.075 * max(map(len, labels)) * long)))
    axes = figure.subplots()
    image = axes.imshow(effect, cmap=COLOURS, vmin=scale.centre - scale.limit, vmax=scale.centre + scale.limit,
                        aspect="auto", interpolation="nearest")  # fmt: skip
    _ticks(axes, labels, [str(layer) for layer in result.layers], rotate=long)
    if n_rows * n_columns <= 1024:
        axes.set_xticks(np.arange(n_columns + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(n_rows + 1) - 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=0.6)
        axes.tick_params(which="minor", length=0)
    axes.set_xlabel(one_of(result.axis), color=INK)
    axes.set_ylabel("layer", color=INK)
    _title(axes, result, scale)
    bar = figure.colorbar(image, ax=axes, pad=0.02, fraction=0.05, aspect=28)
    _mark_scale(bar, scale)
    return figure


def _point_map(result: PatchResult, tokens: Sequence[str] | None) -> Figure:
    """One layer with many columns: a point per column, the ten strongest named with their interval."""
    effect, scale = grid(result)[0], scale_of(result)
    figure = _figure(9.0, 4.2)
    axes = figure.subplots()
    axes.axhline(scale.centre, color=MUTED, linewidth=0.8)
    axes.scatter(np.arange(len(effect)), effect, s=7, color=ACCENT, alpha=0.55, linewidths=0)
    place = {column: number for number, column in enumerate(result.columns)}
    top = top_cells(result, 10, tokens)
    for cell in top:
        x = place[cell.column]
        axes.plot([x, x], [cell.low, cell.high], color=INK, linewidth=1.1)
        axes.plot([x], [cell.effect], "o", color=INK, markersize=4)
        right = x > 0.9 * len(effect)
        axes.annotate(_drawable(cell.label), (x, cell.effect), xytext=(-6 if right else 6, 0), color=INK,
                      textcoords="offset points", fontsize=8, va="center", ha="right" if right else "left",
                      parse_math=False)  # fmt: skip
    _plain(axes)
    axes.set_xlim(-0.01 * len(effect), 1.01 * len(effect))
    axes.set_xlabel(f"{one_of(result.axis)} of layer {result.layers[0]}", color=INK)
    axes.set_ylabel("effect", color=INK)
    _title(axes, result, Scale(scale.centre, scale.limit, False))
    return figure


def forest_plot(verdict: Mapping[str, Any]) -> Figure:
    """Every gate of a verdict: estimate, 95% interval and the bar it must beat (SESOI), confirm and ood.

    `verdict` is the JSON twin of a verdict. Filled circles passed, crosses did not; gates that only
    inform are grey. The behaviour gate is in units of the metric and is drawn only when it is alone.
    """
    gates = _comparable(verdict["gates"])
    figure = _figure(7.2, max(1.6, 1.25 + 0.36 * len(gates)))
    axes = figure.subplots()
    axes.axvline(0, color=RULE, linewidth=1)
    for row, gate in enumerate(gates):
        ink = (GOOD if gate["passed"] else BAD) if gate.get("required", True) else MUTED
        low, high = (gate["estimate"] if gate.get(k) is None else gate[k] for k in ("low", "high"))
        axes.plot([low, high], [row, row], color=ink, linewidth=2.2, solid_capstyle="round")
        axes.plot([gate["estimate"]], [row], "o" if gate["passed"] else "X", color=ink, markersize=8,
                  markeredgecolor="none")  # fmt: skip
        if gate.get("sesoi") is not None:
            axes.plot([gate["sesoi"]] * 2, [row - 0.34, row + 0.34], color=INK, linewidth=1.8)
    axes.set_yticks(range(len(gates)), [_drawable(visible(g["name"], 40)) for g in gates], parse_math=False)
    axes.set_ylim(len(gates) - 0.4, -0.6)
    _plain(axes, left=False)
    for label, gate in zip(axes.get_yticklabels(), gates):
        label.set_color(INK if gate.get("required", True) else MUTED)
    axes.set_xlabel("effect (dot or cross = estimate, line = 95% interval, upright bar = what was required)",
                    color=MUTED, fontsize=8.5)  # fmt: skip
    return figure


def _comparable(gates: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    measured = [gate for gate in gates if gate.get("estimate") is not None]
    shares = [gate for gate in measured if gate.get("group") != "behaviour"]
    return shares or measured


def bar_table(tasks: Sequence[TaskSummary]) -> Figure:
    """Tasks: accuracy beside the logit difference, both with 95% intervals."""
    names = [_drawable(visible(task.task, 32)) for task in tasks]
    figure = _figure(7.2, 1.1 + 0.46 * max(1, len(tasks)))
    left, right = figure.subplots(1, 2, sharey=True)
    for row, task in enumerate(tasks):
        low, high = accuracy_interval(task)
        left.barh([row], [task.accuracy], height=0.55, color=ACCENT)
        left.plot([low, high], [row, row], color=INK, linewidth=1.4)
        left.annotate(f"{task.accuracy:.0%}", (0.03, row), color=ON_BAR if task.accuracy > 0.2 else INK,
                      va="center", fontsize=9, weight="bold")  # fmt: skip
        right.plot([task.low, task.high], [row, row], color=ACCENT, linewidth=2.2, solid_capstyle="round")
        right.plot([task.logit_diff], [row], "o", color=ACCENT, markersize=7)
    left.axvline(0.5, color=INK, linewidth=1, linestyle=(0, (3, 2)))
    left.set_xlim(0, 1)
    left.set_xticks([0, 0.5, 1], ["0%", "50%, by chance", "100%"])
    right.axvline(0, color=INK, linewidth=1, linestyle=(0, (3, 2)))
    left.set_yticks(range(len(tasks)), names, parse_math=False)
    left.set_ylim(len(tasks) - 0.4, -0.6)
    for axes, title in ((left, "accuracy"), (right, "logit difference, answer minus foil")):
        _plain(axes, left=False)
        axes.set_title(title, loc="left", fontsize=9.5, color=INK)
    right.tick_params(labelleft=False)
    return figure


def curve(
    x: Sequence[float],
    lines: Mapping[str, Sequence[float]],
    bounds: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
    *,
    xlabel: str = "",
    ylabel: str = "",
    title: str = "",
) -> Figure:
    """Named lines over one x axis, each with its 95% band where `bounds` has one, named at its end."""
    figure = _figure(6.8, 3.8)
    axes = figure.subplots()
    inks, styles = (ACCENT, RAMP[7], GOOD, INK, MUTED), ("-", "--", "-.", ":", (0, (5, 1)))
    for number, (name, y) in enumerate(lines.items()):
        ink, style = inks[number % len(inks)], styles[number % len(styles)]
        axes.plot(x, y, color=ink, linestyle=style, linewidth=2, marker="o", markersize=3.5)
        if bounds and name in bounds:
            axes.fill_between(x, *bounds[name], color=ink, alpha=0.15, linewidth=0)
        axes.annotate(_drawable(name), (x[-1], y[-1]), xytext=(7, 0), textcoords="offset points", color=ink,
                      va="center", fontsize=9, parse_math=False)  # fmt: skip
    _plain(axes)
    axes.grid(color=RULE, linewidth=0.6)
    axes.set_xlabel(_drawable(xlabel), color=INK, parse_math=False)
    axes.set_ylabel(_drawable(ylabel), color=INK, parse_math=False)
    axes.set_title(_drawable(title), loc="left", fontsize=11, color=INK, parse_math=False)
    return figure


def accuracy_interval(task: TaskSummary) -> tuple[float, float]:
    """95% Wilson bounds of an accuracy over pairs (pairs of one template are not independent)."""
    n, p, z = task.n_pairs, task.accuracy, 1.959964
    if n == 0:
        return 0.0, 1.0
    centre, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (centre - spread) / (1 + z * z / n), (centre + spread) / (1 + z * z / n)


# files --------------------------------------------------------------------------------------------


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a PNG or SVG, by suffix: beside the target first, then renamed. Raises UsageError, StoreError."""
    target = Path(path)
    if target.suffix.lower() not in SUFFIXES:
        raise bad_argument("figure path", str(path), " or ".join(SUFFIXES))
    content = figure_png(figure) if target.suffix.lower() == ".png" else figure_svg(figure).encode()
    write_file(target, content)
    return target


def figure_png(figure: Figure, dpi: int = 144) -> bytes:
    """PNG bytes; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, facecolor="white", metadata={"Software": "assay"})
    return buffer.getvalue()


def figure_svg(figure: Figure, *, themed: bool = False, name: str = "figure") -> str:
    """A standalone SVG; `themed` gives an inline element that takes its colours from the page.

    `name` keeps ids of several figures on one page apart.
    """
    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": name, "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", transparent=themed, metadata={"Date": None, "Creator": "assay"})
    text = buffer.getvalue()
    if not themed:
        return text
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{re.sub(r'[^A-Za-z0-9-]', '-', name)}-", text)
    for hexed, variable in THEMED.items():
        text = text.replace(hexed, variable)
    return text.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)


# parts --------------------------------------------------------------------------------------------


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _plain(axes: Axes, *, left: bool = True) -> None:
    for side in ("top", "right") if left else ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(RULE)
    axes.tick_params(colors=MUTED, labelsize=8.5, length=3 if left else 0)
    axes.set_axisbelow(True)


def _ticks(axes: Axes, columns: Sequence[str], rows: Sequence[str], *, rotate: bool) -> None:
    """Every label that fits, evenly thinned otherwise."""
    fits = 48 if rotate else 40
    across, down = math.ceil(len(columns) / fits), math.ceil(len(rows) / 40)
    shown = [_drawable(label) for label in columns[::across]]
    axes.set_xticks(range(0, len(columns), across), shown, parse_math=False,
                    rotation=90 if rotate else 0, fontsize=8.5)  # fmt: skip
    axes.set_yticks(range(0, len(rows), down), rows[::down], fontsize=8)
    axes.tick_params(colors=INK, length=2)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _title(axes: Axes, result: PatchResult, scale: Scale) -> None:
    plan = result.plan
    task, metric = plan.get("task", ""), str(plan.get("metric", "metric")).replace("_", " ")
    method = " (first-order estimate)" if plan.get("method") == "attribution" else ""
    lines = [describe(result)]
    if scale.shrunk:
        lines.append(f"colours end at {scale.centre - scale.limit:g} and {scale.centre + scale.limit:g}")
    title = f"{plan.get('site', '')}{f' on {task}' if task else ''}, {metric}, {result.n_pairs} pairs{method}"
    axes.set_title(_drawable("\n".join([title, *lines])), loc="left", fontsize=9, color=INK, parse_math=False)


def _mark_scale(bar: Any, scale: Scale) -> None:
    low, high = scale.centre - scale.limit, scale.centre + scale.limit
    names = {0.0: "0  corrupted", 1.0: "1  clean"}
    ticks = sorted({low, high, scale.centre, *(x for x in names if low <= x <= high)})
    close = [t for t in ticks if t not in names and any(0 < abs(t - x) < 0.12 * scale.limit for x in names)]
    ticks = [t for t in ticks if t not in close]
    bar.set_ticks(ticks, labels=[names.get(t, f"{t:.2g}") for t in ticks])
    bar.ax.tick_params(colors=INK, labelsize=8.5, length=3)
    bar.outline.set_visible(False)
    for value in names:
        if low < value < high:
            bar.ax.axhline(value, color=INK, linewidth=1.4)


@lru_cache(maxsize=1)
def _font() -> FT2Font:
    return FT2Font(font_manager.findfont("DejaVu Sans"))


def _drawable(text: str) -> str:
    """Characters the font lacks become a box, so that drawing never warns or fails."""
    return "".join(char if char == "\n" or _font().get_char_index(ord(char)) else "□" for char in text)
