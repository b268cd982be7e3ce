"""The picture of a claim card: every gate with its bar, and beside it what its controls did.

1. As in `figures.forest_plot`: estimate, 95% interval, the bar it must beat.
2. Under the line of a gate that was compared with controls, each control is a tick, and where there are
   enough of them their density is drawn. A control's place is its effect minus that of the strongest (or
   minus the .95 quantile of shuffles), because that is what the gate's own number is relative to: the
   strongest control is at 0.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import gaussian_kde

from assay.report.cells import visible
from assay.report.figures import ACCENT, BAD, GOOD, INK, MUTED, ON_BAR, RULE, _comparable, _drawable, _figure, _plain

ENOUGH = 8  # controls for a density
HEIGHT = 0.36


def card_forest(verdict: Mapping[str, Any]) -> Figure:
    """One row per gate, deciding gates first: confirm above, the other split hollow below, controls under both."""
    rows = gate_rows(_comparable(verdict["gates"]))
    shown = [gate for row in rows for gate in row]
    figure = _figure(7.4, max(1.7, 1.1 + 0.42 * len(rows)))
    axes = figure.subplots()
    axes.axvline(0, color=RULE, linewidth=1)
    for place, row in enumerate(rows):
        _null(axes, place, null_of(row[0]))
        for gate in row:
            _gate(axes, place, gate)
    names = [gates[0]["name"].partition("@")[0] for gates in rows]
    axes.set_yticks(range(len(rows)), [_drawable(visible(name, 40)) for name in names], parse_math=False)
    axes.set_ylim(len(rows) - 0.35, -0.65)
    axes.set_xlim(*_limits(shown))
    _plain(axes, left=False)
    for label, row in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_color(INK if row[0].get("required", True) else MUTED)
    axes.set_xlabel("effect: dot or cross = estimate, line = 95% interval, upright bar = what was required;\n"
                    "hollow = ood; shaded with ticks = controls relative to the strongest of them", color=MUTED,
                    fontsize=8.5)  # fmt: skip
    return figure


def gate_rows(gates: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Gates by name, each with its splits, confirm first; deciding gates before those that only inform."""
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for gate in gates:
        rows.setdefault(str(gate["name"]).partition("@")[0], []).append(gate)
    ordered = [sorted(row, key=lambda gate: gate.get("split", "confirm") != "confirm") for row in rows.values()]
    return sorted(ordered, key=lambda row: not row[0].get("required", True))


def null_of(gate: Mapping[str, Any]) -> list[float]:
    """What the controls of a gate did, on the scale of its estimate; empty for a gate without controls."""
    tables = gate.get("tables") or {}
    shuffles, controls = tables.get("null"), tables.get("per_control") or {}
    if isinstance(shuffles, list) and shuffles and isinstance(tables.get("quantile95"), int | float):
        return [float(value) - float(tables["quantile95"]) for value in shuffles]
    if tables.get("strongest") not in controls:
        return []
    values = [float(value) for value in controls.values() if value is not None]
    return [value - max(values) for value in values]


def _gate(axes: Axes, place: int, gate: Mapping[str, Any]) -> None:
    main = gate.get("split", "confirm") == "confirm"
    row = place - 0.1 if main else place + 0.14
    ink = (GOOD if gate["passed"] else BAD) if gate.get("required", True) else MUTED
    low, high = (gate["estimate"] if gate.get(bound) is None else gate[bound] for bound in ("low", "high"))
    axes.plot([low, high], [row, row], color=ink, linewidth=2.2 if main else 1.2, solid_capstyle="round")
    axes.plot([gate["estimate"]], [row], "o" if gate["passed"] else "X", markersize=7 if main else 5.5, zorder=3,
              markeredgecolor="none" if main else ink, color=ink if main else ON_BAR)  # fmt: skip
    if gate.get("sesoi") is not None:
        axes.plot([gate["sesoi"]] * 2, [place - HEIGHT, place + HEIGHT], color=INK, linewidth=1.6)


def _null(axes: Axes, row: int, values: Sequence[float]) -> None:
    """Controls below the line of a gate: ticks, and a density where there are enough."""
    if not values:
        return
    base = row + HEIGHT + 0.06
    axes.vlines(values[:200], base - 0.14, base, color=ACCENT, linewidth=0.7, alpha=0.7)
    spread = np.asarray(values, dtype=float)
    if len(spread) >= ENOUGH and np.ptp(spread) > 1e-9:
        xs = np.linspace(spread.min() - 0.05 * np.ptp(spread), spread.max() + 0.05 * np.ptp(spread), 120)
        density = gaussian_kde(spread)(xs)
        axes.fill_between(xs, base, base - 0.55 * density / density.max(), color=ACCENT, alpha=0.2, linewidth=0)


def _limits(gates: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """The range of estimates, intervals and bars, and of controls as far as one unit below 0."""
    shown = [float(gate[key]) for gate in gates for key in ("estimate", "low", "high", "sesoi") if gate.get(key) is not None]
    shown += [max(-1.0, value) for gate in gates for value in null_of(gate)]
    low, high = min([0.0, *shown]), max([0.0, *shown])
    margin = 0.05 * (high - low) or 0.1
    return low - margin, high + margin
