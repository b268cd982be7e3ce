"""Terminal pictures: rich renderables that a command prints. Nothing here prints.

1. A grid cell shows the effect in tenths ("+9", " ·" near no effect), so it reads without colour;
   the background repeats the number where the terminal has colours.
2. The grid is left out where it does not fit; the list of the strongest cells is always there.
3. Text from users and models is never read as markup, and control characters are shown, not obeyed.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from assay.records import PatchResult, TaskSummary
from assay.report import story
from assay.report.cells import Scale, colour, describe, grid, one_of, scale_of, top_cells, visible

TONES = {"good": "green", "bad": "red", "open": "yellow", "none": "bright_black"}
NARROW, WIDE, MARGIN, MOST_ROWS = 3, 6, 9, 64


class EffectGrid:
    """The grid of a sweep where it fits the width, nothing where it does not."""

    def __init__(self, result: PatchResult) -> None:
        self.result = result

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        result = self.result
        cell = min(WIDE, max([NARROW, *(len(visible(name)) + 1 for name in result.columns)]))
        if MARGIN + cell * len(result.columns) > options.max_width or len(result.layers) > MOST_ROWS:
            return
        scale, effect = scale_of(result), grid(result)
        head = "".join(f"{visible(name, cell - 1):>{cell}}" for name in result.columns)
        yield Text(f"{'layer':>{MARGIN - 2}}  {head}", style="dim", no_wrap=True)
        for layer, row in zip(result.layers, effect):
            line = Text(f"{layer:>{MARGIN - 2}}  ", no_wrap=True)
            for value in row.tolist():
                line.append(f"{tenths(value, scale):>{cell}}", style=_style(value, scale))
            yield line
        unit = scale.limit / 10
        yield Text(f"{'':{MARGIN}}in steps of {unit:.2g} from {scale.centre:g}; · is less than half a step", style="dim")


def tenths(value: float, scale: Scale) -> str:
    """An effect on the scale's own ruler: -10 to 10 steps from its centre."""
    if not np.isfinite(value):
        return ""
    step = round((value - scale.centre) / scale.limit * 10)
    return "·" if step == 0 else f"{step:+d}"


def patch_table(result: PatchResult, tokens: Sequence[str] | None = None, n: int = 12) -> RenderableType:
    """A sweep: what was measured, the grid, the strongest cells with intervals, the checks."""
    plan, dropped = result.plan, sum(result.dropped.values())
    head = Text.assemble(
        (f"{visible(str(plan.get('site', '')), 40)}", "bold"), f", {result.n_pairs} pairs, {dropped} dropped; ",
        f"{visible(str(plan.get('metric', 'metric')), 40)}: clean {result.clean:.3f}, corrupted {result.corrupted:.3f}\n",
        (describe(result), "dim"),
    )  # fmt: skip
    table = _table(("layer", "right"), (one_of(result.axis), "left"), ("effect", "right"), ("95% interval", "right"))
    for cell in top_cells(result, n, tokens):
        table.add_row(Text(str(cell.layer)), Text(cell.label), Text(story.number(cell.effect, 3)),
                      Text(story.interval(cell.low, cell.high)))  # fmt: skip
    checks = [Text(f"{name.replace('_', ' ')}: {visible(str(value), 80)}", style="dim")
              for name, value in result.checks.items()]  # fmt: skip
    return Group(head, EffectGrid(result), table, *checks)


def tasks_table(tasks: Sequence[TaskSummary]) -> RenderableType:
    """Tasks: what the model can do, with the interval of the logit difference."""
    table = _table(("task", "left"), ("pairs", "right"), ("patterns", "right"), ("accuracy", "right"),
                   ("logit diff", "right"), ("95% interval", "right"))  # fmt: skip
    for task in tasks:
        table.add_row(Text(visible(task.task, 40)), Text(str(task.n_pairs)), Text(str(task.n_templates)),
                      Text(story.percent(task.accuracy)), Text(story.number(task.logit_diff)),
                      Text(story.interval(task.low, task.high)))  # fmt: skip
    return table


def verdict_panel(verdict: Mapping[str, Any], every: bool = False) -> RenderableType:
    """A verdict: sentence, reasons, the gates that decide (or every gate), and what it does not show."""
    card = story.claim_card(verdict)
    table = _table(("gate", "left"), ("estimate", "right"), ("95% interval", "right"), ("bar", "right"),
                   ("p", "right"), ("", "left"))  # fmt: skip
    shown = [gate for gate in card["gates"] if every or gate["required"]]
    for gate in shown:
        table.add_row(Text(visible(gate["name"], 40)), Text(gate["estimate"]), Text(gate["interval"]),
                      Text(gate["sesoi"]), Text(gate["p"]), Text(gate["result"], style=TONES[gate["tone"]]))  # fmt: skip
    parts: list[RenderableType] = [Text(visible(card["sentence"], 2000)), Text(""), table]
    if informing := len(card["gates"]) - len(shown):
        parts.append(Text(f"{informing} more gates only inform: assay claim show {visible(str(card['id']), 60)}", style="dim"))
    said = list(dict.fromkeys([*card["reasons"], *card["qualifiers"], *card["notes"]]))
    if said:
        parts.append(Text("because: " + "; ".join(visible(item, 200) for item in said)))
    if "exploratory" in card["qualifiers"]:
        parts.append(Text("exploratory: sealed data had been looked at before, or the plan was not followed; assay claim show"
                          f" {visible(str(card['id']), 60)} says which"))  # fmt: skip
    if card["outlook"]:
        parts.append(Text(card["outlook"]))
    lost = {gate["name"] for gate in shown if gate["required"] and not gate["passed"]}
    parts += [Text(f"{control['name']}: the strongest of its {control['n']} controls is {visible(control['which'], 60)}"
                   f" ({control['strongest']})")
              for control in card["controls"] if control["name"] in lost and "which" in control]  # fmt: skip
    if every and card["counterexamples"]:
        parts += _counterexamples(card["counterexamples"])
    if card["does_not_show"]:
        parts.append(Text("\nThis does not show:", style="bold"))
        parts += [Text(f"  - {visible(item, 400)}") for item in card["does_not_show"]]
    title = Text(f"{card['mark']} {card['verdict']}", style=f"bold {TONES[card['tone']]}")
    return Panel(Group(*parts), title=title, title_align="left", border_style=TONES[card["tone"]],
                 subtitle=Text(f"claim {visible(str(card['id']), 60)}"), subtitle_align="right")  # fmt: skip


def _counterexamples(found: Mapping[str, Any]) -> list[Text]:
    """How many of those that were tried, and the worst."""
    tried = "" if found["candidates"] is None else f" of {found['candidates']} that were tried ({found['share']})"
    return [Text(f"\ncounterexamples: {found['hits']}{tried}"),
            *(Text(f"  {hit['score']}  {hit['clean']}", style="dim") for hit in found["worst"])]  # fmt: skip


def _style(value: float, scale: Scale) -> str:
    if not np.isfinite(value):
        return ""
    share = scale.share(value)
    return f"{'white' if abs(share - 0.5) > 0.34 else 'black'} on {colour(share)}"


def _table(*columns: tuple[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name, justify in columns:
        table.add_column(name, justify=justify, overflow="fold")
    return table
