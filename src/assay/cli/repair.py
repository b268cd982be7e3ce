"""`assay repair MODEL`, `assay repair log`."""

import sys
from pathlib import Path
from typing import Any

import click

from assay.app.repairs import METHODS, STEPS, TEXT, Job, Order, write_repair
from assay.cli.common import Common, common_options, model_options, task_source
from assay.errors import bad_argument

REQUIRED = {"repaired": ("repaired",), "price": ("repaired", "repaired at a price")}
EXIT_NOT_AS_REQUIRED, EXIT_TAMPERED = 1, 3


class _Repair(click.Group):
    """`assay repair log` is a command of its own; any other first word is a model."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args if args and args[0] in self.commands else ["run", *args])


@click.group(cls=_Repair)
def repair() -> None:
    """Change weights, export the model, and prove what else changed."""


@repair.command("run", epilog="The audit log: assay repair log. A model in a folder called log or run: ./log.")
@click.argument("name", metavar="MODEL")
@click.option("--fault", metavar="TASK", help="A bundled task that the model does badly.")
@click.option("--file", "fault_file", metavar="FILE", help="The fault as a task file, JSONL or CSV.")
@click.option("--method", required=True, type=click.Choice(METHODS), help="How weights are changed; see docs/repair.md.")
@click.option("--direction", metavar="FILE", help="project-out: a saved direction of the residual stream.")
@click.option("--units", metavar="z.9.3,..", help="Heads (z.L.H) or neurons (mlp_act.L.N), separated by commas.")
@click.option("--factor", "factors", multiple=True, type=float, help="scale-*: may be given again. Default: 0, 0.5, 1.5, 2.")
@click.option("--layer", "layers", metavar="L,..", help="rank-one: where to write; project-out: only there.")
@click.option("--strength", "strengths", multiple=True, type=float, help="rank-one: may be given again. Default: 0.5, 1.")
@click.option("--subject", metavar="LABEL", help="rank-one: the label that marks the subject, or end.")
@click.option("--steps", type=click.IntRange(1), help=f"rank-one: of the search for values. Default: {STEPS}.")
@click.option("--neighbours", metavar="FILE", help="A task file of what should stay as it is.")
@click.option("--text", "corpus", default=TEXT, show_default=True, help="Ordinary text that edits are made from.")
@click.option("--tokens", default=6144, show_default=True, type=click.IntRange(256), help="Of it.")
@click.option("--n", default=60, show_default=True, type=click.IntRange(1), help="Pairs per split of a bundled fault.")
@click.option("--task-n", default=40, show_default=True, type=click.IntRange(1), help="Pairs of each bundled task.")
@click.option("--out", metavar="DIR", help="Write the changed model here. Without it nothing is written.")
@click.option("--require", "required", type=click.Choice(tuple(REQUIRED)), help="Write it only with this verdict; else exit 1.")
@click.option("--allow", metavar="ROLE", help="modify: to export changed weights. Default: intervene, or ASSAY_ALLOW.")
@click.option("--reason", metavar="TEXT", help="Why weights are changed; kept in the audit log and the card.")
@model_options
@common_options
def run(
    common: Common, name: str, fault: str | None, fault_file: str | None, dtype: str, prepend_bos: bool | None,
    out: str | None, required: str | None, allow: str | None, reason: str | None, **options: Any,
) -> None:  # fmt: skip
    """Repair a fault of MODEL: make an edit from discover, choose on tune, judge on confirm and ood, export with a card.

    The fault is a task whose answers MODEL gets wrong. Without --out this is a dry run on a copy in memory.
    """
    from assay.permissions import require

    if out is not None and not out.strip():
        raise bad_argument("--out", out, "a new directory", "Leave it out for a dry run.")
    grant = require("intervene" if out is None else "modify", reason=reason, granted=allow)  # written down before: roles.py
    source = task_source(fault, fault_file)
    folder = None if out is None else Path(out)
    if folder is not None:
        from assay.steer.export import check_target

        check_target(folder)
    for many in ("factors", "strengths"):
        options[many] = tuple(options[many])
    job = Job(common.atlas, Order(source, seed=common.seed, **options))
    model = common.load(name, dtype, prepend_bos)
    with common.progress("repairing") as advance:
        report = job.run(model, advance)
    if job.found:
        common.note(f"{job.found} finished part(s) kept in the atlas by an earlier run.")
    record = job.record(model, report, grant.reason)
    wanted = required is None or report.verdict in REQUIRED[required]
    write_repair(common.atlas, report, record, folder if wanted else None, grant)

    def show() -> Any:
        from assay.report.repair_card import repair_view

        return repair_view(record)

    common.emit(record, show)
    if not wanted:
        common.note(f"--require {required}: the verdict is {report.verdict!r}; nothing was written.")
        sys.exit(EXIT_NOT_AS_REQUIRED)


@repair.command("log")
@click.option("--verify", is_flag=True, help="Check the chain; exit 3 where it does not hold, or is not there.")
@click.option("--last", default=20, show_default=True, type=click.IntRange(1), help="Entries to show.")
@common_options
def log(common: Common, verify: bool, last: int) -> None:
    """The audit log of an atlas: who did what, when and why."""
    from collections import deque

    from assay import permissions

    problems = permissions.verify(common.atlas)
    newest: deque[dict[str, Any]] = deque(maxlen=last)
    count = 0
    for entry in permissions.entries(common.atlas):
        newest.append(entry)
        count += 1
    record = {"entries": count, "problems": problems, "whole": not problems, "newest": list(newest)}
    common.emit(record, lambda: _log_view(record))
    if verify and (problems or not count):
        sys.exit(EXIT_TAMPERED)


def _log_view(record: dict[str, Any]) -> Any:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from assay.report.cells import visible

    shown = Table("", "when", "who", "role", "what", "why", "entry", box=None, pad_edge=False)
    for one in record["newest"]:
        body = one["body"]
        told = ", ".join(str(body[key]) for key in ("fault", "method", "verdict") if key in body)
        what = one["action"] + (f": {told}" if told else "")
        cells = (str(one["index"]), one["time"][:19], one["who"], one["role"], what, one["why"], one["hash"][:12])
        shown.add_row(*(Text(visible(cell, 80)) for cell in cells))
    whole = "the chain holds" if record["entries"] else "there is no log in this atlas"
    state = whole if record["whole"] else "; ".join(record["problems"])
    return Group(*([shown] if record["newest"] else []), Text(f"{record['entries']} entries; {state}"))
