"""The report's Markdown twin: the same words and numbers, for terminals, diffs and agents.

Text from users and models is written so that it stays text: markup characters are escaped, line
breaks and control characters are shown as marks.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from assay.records import PatchResult, TaskSummary
from assay.report import story
from assay.report.cells import describe, one_of, top_cells, visible
from assay.report.context import GLOSSARY, DemoReport
from assay.report.figures import accuracy_interval

SPECIAL = "\\`*_{}[]<>#|!$&~"


def render_markdown(report: DemoReport) -> str:
    """The whole report as Markdown."""
    lines = [f"# What is inside {safe(report.model.get('name', 'this model'))}?", "", safe(report.date), "",
             safe(report.summary or story.summary(report)), "", "## 1 What the model can do", ""]  # fmt: skip
    lines += tasks_lines(report.tasks)
    lines += ["## 2 Where the answer is carried", "", *example_lines(report.positions)]
    lines += sweep_lines(report.positions, report.tokens, 5)
    lines += ["## 3 Which heads move it", "", *sweep_lines(report.heads, None, 10)]
    if report.attribution_correlation is not None:
        lines += [f"Attribution against exact patching: correlation {story.number(report.attribution_correlation)}.", ""]
    for place, claim in enumerate(report.claims):
        lines += [f"## {4 if place == 0 else 5} {'The claim' if place == 0 else 'A wrong claim'}, tested", ""]
        lines += claim_lines(story.claim_card(story.deciding(claim)))
    if rows := story.ledger_rows(report.ledger):
        lines += ["Ledger: " + ", ".join(f"{count} {safe(name)}" for name, count in rows) + ".", ""]
    lines += ["## 6 What is still unexplained", ""]
    lines += [f"- {safe(row['name'])}: {row['text']}" for row in story.unexplained_rows(report.unexplained)]
    lines += ["", "## 7 Run it again, go deeper", ""]
    for item in story.commands(report.run):
        lines += [f"- {code(item['command'])} {safe(item['what'])}".rstrip()]
    lines += ["", *(f"- {safe(name)}: {safe(value)}" for name, value in story.passport_rows(report.model))]
    lines += ["", "## Words used here", "", *(f"- **{word}**: {meaning}" for word, meaning in GLOSSARY)]
    return "\n".join(lines) + "\n"


def example_lines(result: PatchResult) -> list[str]:
    """One pair of prompts, where the sweep has one."""
    found = result.plan.get("example")
    if not found:
        return []
    prompts = ((code(found["clean"]), safe(found["answer"])), (code(found["corrupted"]), safe(found["foil"])))
    return [*(f"- {prompt} is followed by **{answer}**" for prompt, answer in prompts), ""]


def tasks_lines(tasks: Sequence[TaskSummary]) -> list[str]:
    """Tasks as a table."""
    rows = []
    for task in tasks:
        low, high = accuracy_interval(task)
        accuracy = f"{story.percent(task.accuracy)} ({story.percent(low)} to {story.percent(high)})"
        difference = f"{story.number(task.logit_diff)} ({story.interval(task.low, task.high)})"
        rows.append((task.task, task.n_pairs, accuracy, difference))
    return table(("task", "prompts", "accuracy", "logit difference"), rows)


def sweep_lines(result: PatchResult, tokens: Sequence[str] | None, n: int) -> list[str]:
    """The strongest cells as a table."""
    rows = [(cell.layer, cell.label, story.number(cell.effect), story.interval(cell.low, cell.high))
            for cell in top_cells(result, n, tokens)]  # fmt: skip
    return [f"{describe(result).capitalize()}.", "", *table(("layer", one_of(result.axis), "effect", "95% interval"), rows)]


def claim_lines(card: dict[str, Any]) -> list[str]:
    """One claim card."""
    said = "; ".join(safe(item) for item in (*card["reasons"], *card["qualifiers"]))
    lines = [f"**{card['verdict']}**{f' ({said})' if said else ''} claim {safe(card['id'])}", "", safe(card["sentence"]), ""]
    lines += table(("gate", "estimate", "95% interval", "bar", "p", "passed"),
                   [(g["name"], g["estimate"], g["interval"], g["sesoi"], g["p"], "yes" if g["passed"] else "no")
                    for g in card["gates"]])  # fmt: skip
    if card["informing"]:
        lines += [f"{card['informing']} more gates only inform: {code('assay claim show ' + str(card['id']))}.", ""]
    if card["controls"]:
        lines += table(("control", "sets", "mean effect", "strongest"),
                       [(c["name"], c["n"], c["mean"], c["strongest"]) for c in card["controls"]])  # fmt: skip
    found = card["counterexamples"]
    if found:
        of = "" if found["candidates"] is None else f" of {found['candidates']} prompts"
        lines += [f"Counterexamples: {found['hits']}{of}.", ""]
    if card["does_not_show"]:
        lines += ["This does not show:", "", *(f"- {safe(item)}" for item in card["does_not_show"]), ""]
    return lines


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """A Markdown table, followed by an empty line."""
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return [*lines, *(f"| {' | '.join(safe(cell) for cell in row)} |" for row in rows), ""]


def safe(text: Any) -> str:
    """Text that Markdown does not read as markup."""
    return "".join(f"\\{char}" if char in SPECIAL else char for char in visible(str(text), 4000))


def code(text: str) -> str:
    """A command as inline code, whatever quotes it has."""
    fence = "``" if "`" in text else "`"
    return f"{fence}{visible(text, 400)}{fence}"
