"""A push without a behaviour: what text does at every dose, as a figure and a page.

A report goes in; see `figures.py` for what all figures keep to. No effect was measured, so nothing here says that it steers.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from assay.files import write_file
from assay.report.cells import visible
from assay.report.figures import INK, RULE, _drawable, _figure, _plain, figure_svg, save_figure
from assay.report.html import _template
from assay.report.steer_figures import cliffs_said, draw_text, number, refusal_rows, shade, task_rows
from assay.steer.text_only import TextReport


def text_figure(report: TextReport) -> Figure:
    """Perplexity and variety, and KL, over the doses. Shaded: text is broken."""
    figure = _figure(7.2, 5.0)
    panels = figure.subplots(2, 1, sharex=True)
    text, damage = panels
    x = [point.strength for point in report.points]
    for axes in panels:
        shade(axes, report.cliffs, x)
        axes.axvline(report.strength, color=INK, linewidth=1.2, linestyle=(0, (4, 2)))
        axes.axvline(0, color=RULE, linewidth=0.8)
        _plain(axes)
    draw_text(text, damage, x, report.points)
    damage.set_xlabel("strength (fraction of the residual norm); dashed: shown; red: broken from the cliff on", color=INK,
                      fontsize=9)  # fmt: skip
    title = f"{visible(report.direction['name'], 60)}, {report.model}: text only"
    text.set_title(_drawable(title), loc="left", fontsize=9.5, color=INK, parse_math=False)
    return figure


def text_sentence(report: TextReport) -> str:
    """What was looked at, in plain words."""
    point = next(each for each in report.points if each.strength == report.strength)
    broken = f" Text is broken there: {'; '.join(point.broken)}." if point.broken else ""
    return (f"At strength {report.strength:+g} of the residual norm ({report.why}) written text has perplexity x"
            f" {number(point.perplexity)} and distinct-2 x {number(point.distinct)}, and KL on ordinary text is"
            f" {number(point.kl, 3)} nats per token.{broken} No behaviour was named: nothing was measured that could show that"
            " it steers.")  # fmt: skip


def text_rows(report: TextReport) -> list[dict[str, str]]:
    """Every strength as text, with the columns of a dose curve."""
    return [{
        "strength": f"{point.strength:+g}", "effect": "", "interval": "", "perplexity": number(point.perplexity),
        "distinct": number(point.distinct), "kl": number(point.kl, 3),
        "judged": "" if point.judged is None else f"{point.judged:.2f}", "broken": "; ".join(point.broken),
    } for point in report.points]  # fmt: skip


def text_facts(report: TextReport) -> list[tuple[str, str]]:
    """Where the numbers come from."""
    return [("model", report.model), ("direction", report.direction["name"]), ("made by", report.direction["method"]),
            ("a dose of 1", f"{report.norm:.4g}, the mean norm at {report.direction['site']}"),
            ("applied", report.applied["mode"]), ("strength shown", f"{report.strength:+g}: {report.why}"),
            ("cliff", cliffs_said(report.cliffs)),
            *(("left out", f"{name}: {why}") for name, why in report.left_out.items())]  # fmt: skip


def save_text_files(report: TextReport, record: Mapping[str, Any], folder: Path, stem: str) -> list[str]:
    """The page and its picture; where they are."""
    figure = text_figure(report)
    page = _template("steer.html").render(
        title=f"What does {report.direction['name']} do to text?", report=report, sentence=text_sentence(report),
        verdict=record["claim"]["verdict"], said="; ".join(record["claim"]["reasons"]), not_shown=(), notes=record["notes"],
        rows=text_rows(report), pictures=[("Dose and text", Markup(figure_svg(figure, themed=True, name="text")))], turns=(),
        tasks=task_rows(report), refusal=refusal_rows(report), facts=text_facts(report),
    )  # fmt: skip
    stem = f"{stem}-{report.direction['name'].replace('#', '-')}"
    write_file(folder / f"{stem}.html", page.encode())
    saved = [save_figure(text_figure(report), folder / f"{stem}{suffix}") for suffix in (".png", ".svg")]
    return [str(folder / f"{stem}.html"), *map(str, saved)]
