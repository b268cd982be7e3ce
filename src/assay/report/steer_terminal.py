"""A steering run in the terminal: the sentence, texts side by side, doses, side effects, the verdict. Nothing here prints."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from assay.report.cells import visible
from assay.report.steer_figures import dose_rows, facts, refusal_rows, sentence, task_rows
from assay.report.terminal import _table, verdict_panel
from assay.steer.run import SteerReport

LONGEST = 600


def steer_view(report: SteerReport, record: Mapping[str, Any]) -> RenderableType:
    """Everything that is said about a run. `record` is its JSON twin."""
    title = "in one sentence"
    parts: list[RenderableType] = [Panel(Text(visible(sentence(report), 3000)), title=title, title_align="left")]
    parts += [side_by_side(report), _doses(report), *_side_effects(report)]
    parts += [Text(f"{name}: {visible(value, 300)}", style="dim") for name, value in facts(report, record)]
    parts += [Text(f"note: {visible(note, 300)}", style="yellow") for note in record.get("notes", ())]
    claim = record.get("claim") or {}
    if "gates" in claim:
        parts.append(verdict_panel(claim))
    else:
        parts.append(Text(f"no claim: {visible('; '.join(claim.get('reasons', ())), 300)}", style="dim"))
    return Group(*parts, *(Text(f"picture: {path}") for path in record.get("files", ())))


def side_by_side(report: SteerReport) -> RenderableType:
    """Every prompt continued unsteered, steered and pushed along a random direction."""
    table = Table(show_lines=True, header_style="dim", expand=True)
    for name in ("prompt", "unsteered", f"steered, {report.strength:+g}", f"random direction, {report.strength:+g}"):
        table.add_column(name, ratio=1 if name == "prompt" else 2, overflow="fold")
    for sample in report.samples:
        texts = [sample.unsteered, sample.steered, sample.random]
        said = ["" if sample.judged is None else f"\n[judge {value:.2f}]" for value in sample.judged or (0.0,) * 3]
        cells = [Text(visible(text.strip(), LONGEST) + mark) for text, mark in zip(texts, said, strict=True)]
        table.add_row(Text(visible(sample.prompt, LONGEST)), *cells)
    return table


def _doses(report: SteerReport) -> RenderableType:
    table = _table(("", "left"), ("strength", "right"), ("effect", "right"), ("95% interval", "right"), ("perplexity", "right"),
                   ("distinct-2", "right"), ("KL", "right"), ("judge", "right"), ("broken", "left"))  # fmt: skip
    for point, row in zip(report.confirm.points, dose_rows(report.confirm), strict=True):
        names = ("strength", "effect", "interval", "perplexity", "distinct", "kl", "judged")
        table.add_row(Text("►" if point.strength == report.strength else ""), *(Text(row[name]) for name in names),
                      Text(row["broken"], style="red"))  # fmt: skip
    words = "on confirm; ► was chosen on tune; perplexity and distinct-2 are ratios to unsteered text"
    return Group(table, Text(words, style="dim"))


def _side_effects(report: SteerReport) -> list[RenderableType]:
    parts: list[RenderableType] = []
    if report.other_tasks:
        table = _table(("other task", "left"), ("accuracy before", "right"), ("after", "right"), ("change", "right"),
                       ("95% interval", "right"), ("p (Holm)", "right"), ("", "left"))  # fmt: skip
        for row in task_rows(report):
            table.add_row(*(Text(row[name]) for name in ("task", "before", "after", "change", "interval", "p", "says")))
        parts += [Text(""), table, Text("change in each task's own contrast; shown small: within 0.2 by two one-sided tests",
                                        style="dim")]  # fmt: skip
    if report.refusal is not None:
        table = _table(("requests", "left"), ("n", "right"), ("log-odds of refusing before", "right"), ("after", "right"),
                       ("change", "right"), ("95% interval", "right"), ("begin by refusing", "right"))  # fmt: skip
        for row in refusal_rows(report):
            names = ("requests", "n", "before", "after", "change", "interval", "refused")
            table.add_row(*(Text(row[name]) for name in names))
        cosine = f"cosine with a refusal direction at the same site: {report.refusal.cosine:+.2f} (random: about" \
                 f" {report.refusal.chance:.2f}). {report.refusal.note}"  # fmt: skip
        parts += [Text(""), table, Text(cosine, style="dim")]
    return parts
