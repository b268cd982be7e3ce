"""A steering run in the terminal: the sentence, texts side by side, doses, side effects, the verdict. Nothing here prints."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from assay.report.cells import visible
from assay.report.steer_figures import dose_rows, facts, refusal_rows, sentence, task_rows, turn_rows
from assay.report.steer_text import text_facts, text_rows, text_sentence
from assay.report.terminal import _table, verdict_panel
from assay.steer.run import SteerReport
from assay.steer.text_only import TextReport

LONGEST = 600


def steer_view(report: SteerReport, record: Mapping[str, Any]) -> RenderableType:
    """Everything that is said about a run. `record` is its JSON twin."""
    title = "in one sentence"
    parts: list[RenderableType] = [Panel(Text(visible(sentence(report), 3000)), title=title, title_align="left")]
    parts += [side_by_side(report), _doses(report), *_turns(report), *_side_effects(report)]
    parts += [Text(f"{name}: {visible(value, 300)}", style="dim") for name, value in facts(report, record)]
    parts += [Text(f"note: {visible(note, 300)}", style="yellow") for note in record.get("notes", ())]
    claim = record.get("claim") or {}
    if "gates" in claim:
        parts.append(verdict_panel(claim))
    else:
        parts.append(Text(f"no claim: {visible('; '.join(claim.get('reasons', ())), 300)}", style="dim"))
    return Group(*parts, *(Text(f"picture: {path}") for path in record.get("files", ())))


def text_view(report: TextReport, record: Mapping[str, Any]) -> RenderableType:
    """A run without a behaviour: texts side by side, text at every dose, side effects."""
    table = _table(("", "left"), ("strength", "right"), ("perplexity", "right"), ("distinct-2", "right"), ("KL", "right"),
                   ("judge", "right"), ("broken", "left"))  # fmt: skip
    for point, row in zip(report.points, text_rows(report), strict=True):
        table.add_row(Text("►" if point.strength == report.strength else ""),
                      *(Text(row[name]) for name in ("strength", "perplexity", "distinct", "kl", "judged")),
                      Text(row["broken"], style="red"))  # fmt: skip
    parts: list[RenderableType] = [
        Panel(Text(visible(text_sentence(report), 3000)), title="in one sentence", title_align="left"), side_by_side(report),
        table, *_side_effects(report), *(Text(f"{name}: {visible(value, 300)}", style="dim") for name, value in
                                         text_facts(report)),
        *(Text(f"note: {visible(note, 300)}", style="yellow") for note in record["notes"]),
        Text(f"no claim: {visible('; '.join(record['claim']['reasons']), 300)}", style="dim"),
    ]  # fmt: skip
    return Group(*parts, *(Text(f"picture: {path}") for path in record["files"]))


def side_by_side(report: SteerReport | TextReport) -> RenderableType:
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


def _turns(report: SteerReport) -> list[RenderableType]:
    """Conversations of several turns; nothing where they were not measured."""
    if not report.turns:
        return []
    table = _table(("strength", "right"), ("earlier turns", "left"), ("turn", "right"), ("perplexity", "right"),
                   ("distinct-2", "right"), ("judge", "right"), ("broken", "left"))  # fmt: skip
    for row in turn_rows(report):
        names = ("strength", "earlier", "turn", "perplexity", "distinct", "judged")
        table.add_row(*(Text(row[name]) for name in names), Text(row["broken"], style="red"))
    words = "one opening after another in one context; ratios to the same turn of the unsteered conversation"
    return [Text(""), table, Text(words, style="dim")]


def _side_effects(report: SteerReport | TextReport) -> list[RenderableType]:
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
