"""A picture of replications: how far every figure is beyond its bar.

One row per figure. x is the distance of the estimate from the bar, in half-widths of the 95% interval, to the right where the
paper puts it; below -1 and above 1 the whole interval is on one side. Far values are drawn at the edge.
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from assay.report.figures import BAD, GOOD, INK, MUTED, RULE, _drawable, _figure, _plain

EDGE, WIDTH = 6.0, 62  # half-widths; characters of a label


def replication_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """From records of replications; those without figures are left out."""
    every = [(row, each) for row in rows for each in row["found"]["figures"]]
    figure = _figure(9.5, 1.1 + 0.42 * len(every))
    axes = figure.subplots()
    axes.axvspan(-1, 1, color=RULE, alpha=0.5, linewidth=0)
    axes.axvline(0, color=MUTED, linewidth=1)
    labels = []
    for place, (row, each) in enumerate(every):
        at = beyond(each)
        mark = "o" if abs(at) < EDGE else ">" if at > 0 else "<"
        axes.plot([at], [place], mark, color=GOOD if at > 0 else BAD, markersize=6)
        labels.append(_drawable(textwrap.shorten(f"{row['name']}: {each['name']}", WIDTH, placeholder=" ..")))
    axes.set(xlim=(-EDGE - 0.5, EDGE + 0.5), ylim=(len(every) - 0.4, -0.6))
    axes.set_yticks(range(len(every)), labels, fontsize=8, color=INK)
    axes.set_xlabel("distance from the bar, in half-widths of the 95% interval (right: as published)", fontsize=8, color=INK)
    _plain(axes)
    return figure


def beyond(each: Mapping[str, Any]) -> float:
    """Signed distance from the bar in half-widths, between -EDGE and EDGE; at the edge where the interval has no width."""
    gap = (each["value"] - each["bar"]) * (1 if each["side"] == "above" else -1)
    width = 0.0 if each["low"] is None or each["high"] is None else (each["high"] - each["low"]) / 2
    ratio = gap / width if width > 0 else EDGE * (gap > 0) - EDGE * (gap < 0)
    return max(-EDGE, min(EDGE, ratio))
