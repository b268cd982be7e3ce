"""`assay tasks [MODEL]`: what is bundled, and what a model can do of it."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import click

from assay.cli.common import Common, common_options, model_options
from assay.records import Pair, TaskSummary

SEALED = ("confirm", "ood")


@click.command()
@click.argument("name", metavar="[MODEL]", required=False)
@click.option("--task", "chosen", multiple=True, metavar="NAME", help="Only this one; may be given again.")
@click.option("--file", "files", multiple=True, metavar="FILE", help="Your own task, JSONL or CSV.")
@click.option("--split", default=None, help="discover, tune, confirm or ood. Default: discover; of a file: all pairs.")
@click.option("--n", default=40, show_default=True, type=click.IntRange(1), help="Pairs of each task.")
@click.option("--corruption", default=None, help="Default: the first of each task.")
@model_options
@common_options
def tasks(
    common: Common, name: str | None, chosen: tuple[str, ...], files: tuple[str, ...], dtype: str,
    prepend_bos: bool | None, **options: Any,
) -> None:  # fmt: skip
    """List the tasks, or measure how well MODEL does them, before anything is looked for inside it.

    Accuracy: the share of clean prompts after which the answer is likelier than the foil. The logit
    difference has a 95% interval by template. Reading confirm or ood is written to the ledger.
    """
    from assay.data.tasks import TASKS

    names = [*chosen, *files] or TASKS.names()
    if name is None:
        rows = [_describe(task) for task in names]
        common.emit(rows, lambda: _listing(rows))
        return
    pairs = {task: _pairs(task, options["split"], options["n"], common.seed, options["corruption"]) for task in names}
    model = common.load(name, dtype, prepend_bos)
    _record_sealed(common, model, pairs, options["split"])
    summaries, notes = _measure(common, model, pairs)
    rows = [{**asdict(summary), "notes": notes[summary.task], "split": _split(summary.task, options["split"])}
            for summary in summaries]  # fmt: skip
    common.emit(rows, lambda: _table(summaries, notes))


def _describe(task: str) -> dict[str, Any]:
    """A row of the list. A file is read whole, so that its mistakes are found here."""
    from assay.data.tasks import TASKS, load_task

    if task in TASKS:
        known = TASKS.get(task)
        return {"task": task, "title": known.title, "corruptions": list(known.corruptions),
                "templates": {split: known.n_templates(split) for split in known.splits}}  # fmt: skip
    pairs = load_task(task)
    return {"task": task, "title": f"your own, {len(pairs)} pairs", "corruptions": [],
            "templates": {"all": len({pair.template for pair in pairs})}}  # fmt: skip


def _pairs(task: str, split: str | None, n: int, seed: int, corruption: str | None) -> list[Pair]:
    from assay.data.tasks import TASKS, load_task
    from assay.evidence.source import Source

    if task in TASKS or split is None:
        return load_task(task, split or "discover", n, seed, corruption)
    return Source(task).items(split, n, seed)


def _split(task: str, split: str | None) -> str:
    from assay.data.tasks import TASKS

    return split or ("discover" if task in TASKS else "all")


def _record_sealed(common: Common, model: Any, pairs: dict[str, list[Pair]], split: str | None) -> None:
    """What is measured on sealed templates is a look, whatever comes of it."""
    from assay.atlas.store import Atlas
    from assay.evidence.claims import record_look

    for task, found in pairs.items():
        if _split(task, split) in (*SEALED, "all"):
            record_look(Atlas(common.atlas), model.digest, f"tasks {task} {_split(task, split)}", found)
            common.note(f"{task}: this look at {_split(task, split)} is in the ledger of {common.atlas}.")


def _measure(
    common: Common, model: Any, pairs: dict[str, list[Pair]]
) -> tuple[list[TaskSummary], dict[str, dict[str, int]]]:
    """A summary of each task, and what was done to its answers. Raises TaskError when no task is left."""
    from assay.data.measure import measure_task
    from assay.data.prepare import NothingLeft, prepare

    summaries, notes = [], {}
    with common.progress("measuring tasks", len(pairs)) as advance:
        for task, found in pairs.items():
            try:
                prepared = prepare(found, model)
            except NothingLeft as error:
                if len(pairs) == 1:
                    raise
                unknown = float("nan")
                summaries.append(TaskSummary(task, 0, error.dropped, unknown, unknown, unknown, unknown, 0))
                notes[task] = {}
            else:
                summaries.append(measure_task(model, prepared, task))
                notes[task] = prepared.notes
            advance(1)
    return summaries, notes


def _listing(rows: Sequence[dict[str, Any]]) -> str:
    width = max(len(row["task"]) for row in rows)
    lines = []
    for row in rows:
        lines.append(f"{row['task']:<{width}}  {row['title']}")
        made = f"corruptions: {', '.join(row['corruptions'])}; " if row["corruptions"] else ""
        lines.append(f"{'':<{width}}  {made}templates: {', '.join(f'{n} {split}' for split, n in row['templates'].items())}")
    return "\n".join(lines)


def _table(summaries: Sequence[TaskSummary], notes: dict[str, dict[str, int]]) -> Any:
    from rich.console import Group
    from rich.text import Text

    from assay.report.cells import visible
    from assay.report.terminal import tasks_table

    lines = []
    for summary in summaries:
        said = [f"{count} dropped: {reason}" for reason, count in summary.dropped.items()]
        said += [f"{count} x {note}" for note, count in notes[summary.task].items()]
        if not summary.low > 0:
            why = "too few of them to say whether it can do it" if summary.logit_diff > 0 else "no behaviour to study here"
            said.append(f"the interval over {summary.n_templates} templates is not above 0: {why}")
        lines += [Text(f"{visible(summary.task, 40)}: {visible(text, 200)}", style="dim") for text in said]
    return Group(tasks_table(summaries), *lines)
