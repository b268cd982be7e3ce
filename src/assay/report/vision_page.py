"""Claims about pictures as one page: the probes, heat maps of the channels over them, and the verdict's gates.

1. `heat_figure`: rows of pictures; where a channel responds is laid over them, on one scale per claim.
2. The gates of a verdict: as on its card (`card_figures`).
3. `render_vision`: everything inside one HTML file: pictures as PNG inside, the gates as SVG, no request to anywhere.

The pictures are of tune. A heat map shows where a channel responds, not why, nor that anything reads it there.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from assay.records import Claim
from assay.report.card_figures import card_forest
from assay.report.figures import INK, MUTED, _drawable, _figure, figure_png
from assay.report.html import _svg, _template
from assay.vision.claims import Row

SIDE, STRONG = 1.15, 0.75  # inches per picture; opacity of the strongest response


@dataclass(frozen=True, eq=False)
class ClaimSeen:
    """A claim, its verdict as JSON (None: not tested), and pictures of what it is about."""

    claim: Claim
    verdict: Mapping[str, Any] | None
    rows: list[Row]


def heat_figure(rows: Sequence[Row]) -> Figure:
    """Pictures in rows, each with its heat map below it where there is one."""
    lines = [(row, layer) for row in rows for layer in ((False, True) if row.maps is not None else (False,))]
    columns = max(len(row.images) for row in rows)
    figure = _figure(SIDE * columns + 1.2, SIDE * len(lines) + 0.2)
    top = max((float(row.maps.max()) for row in rows if row.maps is not None), default=1.0) or 1.0
    axes = figure.subplots(len(lines), columns, squeeze=False)
    for (row, heat), across in zip(lines, axes, strict=True):
        for place, axis in enumerate(across):
            axis.set_axis_off()
            if place < len(row.images):
                _picture(axis, row, place, heat, top)
        across[0].text(-0.08, 0.5, _drawable("response" if heat else row.title), transform=across[0].transAxes, ha="right",
                       va="center", fontsize=8.5, color=MUTED if heat else INK)  # fmt: skip
    return figure


def _picture(axis: Any, row: Row, place: int, heat: bool, top: float) -> None:
    image = row.images[place]
    grey = image.shape[2] == 1
    shown = image[..., 0] if grey else image
    axis.imshow(shown if not heat else (shown if grey else image.mean(2)), cmap="gray", vmin=0, vmax=1)
    if heat and row.maps is not None:
        found = row.maps[place] / top
        axis.imshow(found, cmap="inferno", vmin=0, vmax=1, alpha=STRONG * np.clip(found, 0, 1) ** 0.5,
                    extent=(-0.5, image.shape[1] - 0.5, image.shape[0] - 0.5, -0.5), interpolation="bilinear")  # fmt: skip


def render_vision(claims: Sequence[ClaimSeen]) -> str:
    """The page."""
    cards = [_card(each, number) for number, each in enumerate(claims)]
    return _template("vision.html").render(title="What channels see", cards=cards, model=claims[0].claim.subject["model"])


def _card(each: ClaimSeen, number: int) -> dict[str, Any]:
    png = base64.b64encode(figure_png(heat_figure(each.rows), dpi=96)).decode()
    verdict = each.verdict or {"verdict": "not tested yet", "sentence": "", "does_not_show": [], "gates": [], "reasons": []}
    return {
        "id": each.claim.id, "statement": each.claim.statement, "kind": each.claim.kind, "verdict": verdict["verdict"],
        "reasons": ", ".join(verdict["reasons"]), "sentence": verdict["sentence"], "limits": verdict["does_not_show"],
        "picture": Markup(f"data:image/png;base64,{png}"),
        "gates": _svg(card_forest(verdict), f"gates-{number}") if verdict["gates"] else None,
        "alt": f"Pictures of {each.claim.task['name']} and where {', '.join(each.claim.subject['sites'][:3])} respond",
    }  # fmt: skip
