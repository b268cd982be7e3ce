"""Self-contained pages: an interactive heat map, and the newcomer's report.

1. Everything a page needs is inside it: plotly.js once, styles, script, pictures as inline SVG. A
   content security policy in the page forbids the browser any request.
2. Text from users and models is escaped by the template engine; data for the script are JSON with
   `<`, `>` and `&` written as escapes, so they cannot end the script element.
3. Every interactive map has a still picture for print and for browsers without scripts, and its
   numbers as a table.
"""

import html
import json
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from assay.records import PatchResult, TaskSummary
from assay.report import figures, story
from assay.report.cells import RAMP, colour, column_labels, describe, grid, one_of, scale_of, top_cells
from assay.report.context import GLOSSARY, DemoReport

TABLE_CELLS = 2048


def render_report(report: DemoReport) -> str:
    """The whole report as one HTML page that needs nothing else."""
    cards = [{**story.claim_card(claim), "figure": _forest(claim, f"forest-{place}")}
             for place, claim in enumerate(map(story.deciding, report.claims), 1)]  # fmt: skip
    return _template("report.html").render(
        report=report, title=f"What is inside {report.model.get('name', 'this model')}?",
        summary=report.summary or story.summary(report), passport=story.passport_rows(report.model),
        tasks=[task_row(task) for task in report.tasks],
        task_figure=_svg(figures.bar_table(report.tasks), "tasks") if report.tasks else None,
        positions=map_context(report.positions, "positions", report.tokens),
        heads=map_context(report.heads, "heads"), cards=cards,
        top_places=top_rows(report.positions, 5, report.tokens), top_heads=top_rows(report.heads, 10),
        correlation=story.number(report.attribution_correlation),
        unexplained=story.unexplained_rows(report.unexplained), ledger=story.ledger_rows(report.ledger),
        commands=story.commands(report.run), timings=dict(report.run.get("timings", {})),
        cached=dict(report.run.get("cached", {})), glossary=GLOSSARY, number=story.number,
        interval=story.interval, example=report.positions.plan.get("example"),
    )  # fmt: skip


def heat_map_html(result: PatchResult, tokens: Sequence[str] | None = None) -> str:
    """One interactive heat map as a page of its own."""
    task = result.plan.get("task", "")
    title = f"{result.plan.get('site', 'patching')}{f' on {task}' if task else ''}"
    return _template("heat_map.html").render(
        title=title, map=map_context(result, "map", tokens), rows=top_rows(result, 10, tokens), result=result,
        number=story.number, model=result.plan.get("model", ""),
    )  # fmt: skip


def map_context(result: PatchResult, name: str, tokens: Sequence[str] | None = None) -> dict[str, Any]:
    """What the map template needs: data for the script, the still picture, the table, the words."""
    still = _svg(figures.heat_map(result, tokens), f"still-{name}")
    small = len(result.layers) * len(result.columns) <= TABLE_CELLS
    labels = column_labels(result, tokens)
    longest = max(map(len, labels), default=1)
    return {
        "name": name, "still": still, "data": script_json(plotly_data(result, labels)), "labels": labels,
        "alt": f"Heat map of {one_of(result.axis)} by layer. Strongest: {story.strongest(result, tokens)}.",
        "describe": describe(result), "axis": one_of(result.axis), "table": _table(result) if small else [],
        "height": 110 + 14 * max(10, min(60, len(result.layers))) + 7 * longest * (longest > 3),
    }  # fmt: skip


def plotly_data(result: PatchResult, labels: Sequence[str]) -> dict[str, Any]:
    """Plain data for the page's script: cells, bounds, labels (escaped for plotly's own markup), scale."""
    scale = scale_of(result)
    return {
        "z": _finite(grid(result).tolist()), "low": _finite(result.low), "high": _finite(result.high),
        "layers": result.layers, "labels": [html.escape(label) for label in labels], "axis": one_of(result.axis),
        "centre": scale.centre, "limit": scale.limit, "ramp": RAMP,
    }  # fmt: skip


def top_rows(result: PatchResult, n: int, tokens: Sequence[str] | None = None) -> list[dict[str, str]]:
    """The strongest cells as text."""
    return [{"layer": str(cell.layer), "label": cell.label, "effect": story.number(cell.effect),
             "interval": story.interval(cell.low, cell.high)} for cell in top_cells(result, n, tokens)]  # fmt: skip


def task_row(task: TaskSummary) -> dict[str, str]:
    """One task as text."""
    low, high = figures.accuracy_interval(task)
    return {"task": task.task, "pairs": str(task.n_pairs), "dropped": str(sum(task.dropped.values())),
            "templates": str(task.n_templates), "accuracy": story.percent(task.accuracy),
            "accuracy_interval": f"{story.percent(low)} to {story.percent(high)}",
            "logit_diff": story.number(task.logit_diff), "interval": story.interval(task.low, task.high)}  # fmt: skip


def script_json(value: Any) -> Markup:
    """JSON that is safe inside a script element."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return Markup(text)


def _table(result: PatchResult) -> list[dict[str, Any]]:
    scale, effect = scale_of(result), grid(result)
    return [{"layer": layer, "cells": [_table_cell(value, result.low[i][j], result.high[i][j], scale.share(value))
                                       for j, value in enumerate(effect[i].tolist())]}
            for i, layer in enumerate(result.layers)]  # fmt: skip


def _table_cell(value: float, low: Any, high: Any, share: float) -> dict[str, str]:
    known = math.isfinite(value)
    return {"text": story.number(value), "title": story.interval(low, high), "colour": colour(share if known else value),
            "dark": "dark" if known and abs(share - 0.5) > 0.34 else ""}  # fmt: skip


def _finite(rows: Any) -> list[list[float | None]]:
    return [[None if v is None or not math.isfinite(v) else round(v, 5) for v in row] for row in rows]


def _forest(verdict: Any, name: str) -> Markup | None:
    measured = any(gate.get("estimate") is not None for gate in verdict["gates"])
    return _svg(figures.forest_plot(verdict), name) if measured else None


def _svg(figure: figures.Figure, name: str) -> Markup:
    return Markup(figures.figure_svg(figure, themed=True, name=name))


@lru_cache(maxsize=1)
def _environment() -> Environment:
    loader = PackageLoader("assay.report", "templates")
    pages = Environment(loader=loader, autoescape=lambda name: not str(name).endswith(".md"), trim_blocks=True,
                        lstrip_blocks=True, undefined=StrictUndefined)  # fmt: skip
    pages.globals["asset"] = lambda name: Markup(loader.get_source(pages, name)[0])
    pages.globals["plotly_js"] = lambda: Markup(get_plotlyjs())
    return pages


def _template(name: str) -> Any:
    return _environment().get_template(name)
