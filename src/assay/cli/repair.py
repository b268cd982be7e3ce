"""`assay repair MODEL`, `assay repair log`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from assay.cli.common import Common, common_options, model_options, task_source
from assay.errors import bad_argument

if TYPE_CHECKING:
    from assay.model.model import Model
    from assay.steer.repair import Fault, RepairPlan, RepairReport

METHODS = ("project-out", "scale-heads", "mean-ablate-heads", "scale-neurons", "mean-ablate-neurons", "rank-one")
RESIDUAL = ("embed", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
REQUIRED = {"repaired": ("repaired",), "price": ("repaired", "repaired at a price")}
TEXT, CONTEXT, STEPS = "wikipedia", 128, 12
EVERYTHING = 1 << 30
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
@click.option("--method", required=True, type=click.Choice(METHODS))
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
    grant = require("intervene" if out is None else "modify", reason=reason, granted=allow)
    source = task_source(fault, fault_file)
    folder = None if out is None else Path(out)
    if folder is not None:
        from assay.steer.export import check_target

        check_target(folder)
    job = _Job(common, source, options)
    model = common.load(name, dtype, prepend_bos)
    report = job.repair(model)
    record = job.record(model, report, grant.reason)
    wanted = required is None or report.verdict in REQUIRED[required]
    _write(common, report, record, folder if wanted else None, grant)

    def show() -> Any:
        from assay.report.repair_card import repair_view

        return repair_view(record)

    common.emit(record, show)
    if not wanted:
        common.note(f"--require {required}: the verdict is {report.verdict!r}; nothing was written.")
        sys.exit(EXIT_NOT_AS_REQUIRED)


class _Job:
    """What one command line asks for."""

    def __init__(self, common: Common, source: str, options: dict[str, Any]) -> None:
        self.common, self.source, self.options = common, source, options
        self.ordinary: dict[str, Any] | None = None
        self.fault = self._fault()

    def _fault(self) -> "Fault":
        """All data, read and checked before the model is loaded."""
        from assay.data.tasks import TASKS, load_task
        from assay.evidence.neutral import TEXTS
        from assay.evidence.source import SPLITS, Source, find_source
        from assay.steer.repair import Fault

        found, seed = find_source(self.source), self.common.seed
        if not isinstance(found, Source):
            raise bad_argument("--fault", self.source, "a task", "It is a concept: it has labels, but no answers to mend.")
        n = self.options["n"] if found.bundled else EVERYTHING
        splits = {split: found.items(split, n, seed) for split in SPLITS}
        beside = self.options["neighbours"]
        neighbours = load_task(beside, "tune", self.options["n"], seed) if beside else []
        tasks = {name: load_task(name, "tune", self.options["task_n"], seed) for name in TASKS.names() if name != self.source}
        return Fault(found.name, splits, neighbours, tasks, TEXTS)

    def plan(self, model: "Model") -> "RepairPlan":
        """The plan, with the direction read for this model."""
        from assay.steer.rank_one import ValuePlan
        from assay.steer.repair import RepairPlan

        given = self.options
        units = tuple(part.strip() for part in (given["units"] or "").split(",") if part.strip())
        direction = given["direction"]
        for flag, value, method in (
            ("--direction", direction, "project-out"), ("--strength", given["strengths"] or None, "rank-one"),
            ("--subject", given["subject"], "rank-one"), ("--steps", given["steps"], "rank-one"),
        ):  # fmt: skip
            if value is not None and given["method"] != method:
                raise bad_argument(flag, value, f"none for --method {given['method']}")
        return RepairPlan(
            method=given["method"], units=units, factors=tuple(given["factors"]), layers=_layers(given["layers"], model),
            direction=None if direction is None else _direction(direction, model), subject=given["subject"],
            strengths=tuple(given["strengths"]) or (0.5, 1.0), values=ValuePlan(steps=given["steps"] or STEPS),
            seed=self.common.seed,
        )  # fmt: skip

    def repair(self, model: "Model") -> "RepairReport":
        """Make, choose, judge; what is read of sealed splits is in the ledger before."""
        from assay.steer.repair import check_plan, repair, require_usable

        plan = self.plan(model)
        check_plan(model, plan)
        require_usable(model, self.fault, plan)
        self._look(model)
        with self.common.progress("repairing") as advance:
            return repair(model, self.fault, plan, lambda: self._texts(model), advance)

    def _look(self, model: "Model") -> None:
        from assay.atlas.store import Atlas
        from assay.evidence.claims import record_look

        atlas, words = Atlas(self.common.atlas), f"repair {self.fault.name} {self.options['method']}"
        for split in ("tune", "confirm", "ood"):
            record_look(atlas, model.digest, f"{words}, {split}", self.fault.splits[split])
        if self.fault.neighbours:
            record_look(atlas, model.digest, f"{words}, neighbours", self.fault.neighbours)

    def _texts(self, model: "Model") -> Sequence[Sequence[int]]:
        from assay.data.corpora import open_corpus
        from assay.data.corpus_rows import packed

        corpus = open_corpus(self.options["corpus"])
        context = min(CONTEXT, getattr(model.hf.config, "max_position_embeddings", CONTEXT) or CONTEXT)
        rows = packed(model, corpus, context, tokens=self.options["tokens"])
        self.ordinary = {**corpus.record(), "tokens": rows.n_tokens}
        return [rows.tokens(row).tolist() for row in range(len(rows))]

    def record(self, model: "Model", report: "RepairReport", reason: str) -> dict[str, Any]:
        """The JSON twin of what is printed and of the card."""
        from assay.evidence.source import Source
        from assay.passport import run_passport

        splits = {split: {"pairs": len(pairs), "templates": len({pair.template for pair in pairs})}
                  for split, pairs in self.fault.splits.items()}  # fmt: skip
        return {
            **report.json(), "model": model.passport(), "digest_before": model.digest,
            "digest_after": report.changed.model.digest, "reason": reason, "ordinary": self.ordinary,
            "data": {**Source(self.source).record(), "splits": splits},
            "run": run_passport(self.options), "out": None, "audit": "",
        }  # fmt: skip


def _layers(spelled: str | None, model: "Model") -> tuple[int, ...] | None:
    """Layers of "3,5" or "3:9"; None where none are named."""
    if spelled is None:
        return None
    sites = model.sites([f"resid_post.{part.strip()}" for part in spelled.split(",")])
    return tuple(dict.fromkeys(site.layer for site in sites if site.layer is not None))


def _direction(file: str, model: "Model") -> Any:
    """The vector of a saved direction. Raises UsageError for one that is none of the residual stream."""
    from assay.sites import parse_site
    from assay.steer.files import is_direction, load_direction

    if Path(file).is_file() and not is_direction(file):
        raise bad_argument("--direction", file, "a file that assay steer .. --save FILE, or steer.files.save_direction, wrote")
    direction = load_direction(file)
    if direction.model_digest != model.digest:
        made = direction.source.get("model") or "a model it does not name"
        raise bad_argument("--direction", f"one made on {made}, weights {direction.model_digest[:12]}",
                           f"one made on {model.name} as it is loaded here, weights {model.digest[:12]}",
                           "Directions of another model, revision or dtype are not taken.")  # fmt: skip
    direction = load_direction(file, model)
    if parse_site(direction.site).name not in RESIDUAL:
        raise bad_argument("--direction", f"one at {direction.site}", f"one at {', '.join(RESIDUAL)}",
                           "Only there are directions those of the residual stream.")  # fmt: skip
    return direction.vector


def _write(common: Common, report: "RepairReport", record: dict[str, Any], folder: Path | None, grant: Any) -> None:
    """The audit log first, then the checkpoint, then the log again; `record` gets what came of it."""
    from assay import permissions

    body = {key: record[key] for key in ("fault", "method", "settings", "verdict", "digest_before", "digest_after")}
    body |= {"model": record["model"]["model"], "weights": [one["name"] for one in record["weights"]]}
    action = "repair: dry run" if folder is None else "repair: export begins"
    entry = permissions.record(common.atlas, action, body, grant)
    record["audit"] = entry["hash"]
    if folder is None:
        return
    from assay.steer.export import export

    done = export(report.changed, folder, lambda facts: _cards(record, facts, folder))
    permissions.record(common.atlas, "repair: exported", {
        "entry": entry["hash"], "folder": folder.name, "digest": done.digest, "bytes": done.bytes}, grant)  # fmt: skip


def _cards(record: dict[str, Any], facts: Any, folder: Path) -> dict[str, str]:
    import json

    from assay.cli.common import finite
    from assay.report.repair_card import repair_card

    used = record["model"]["prepend_bos"]
    if facts["prepend_bos"] != used:
        note = f"all was measured with prepend_bos={used}; the tokenizer by itself does otherwise"
        record["notes"] = [*record["notes"], note]
    record |= {"digest_after": facts["digest"], "out": folder.name, "export": dict(facts)}
    text = json.dumps(finite(record), indent=1, allow_nan=False)
    return {"README.md": repair_card(record), "repair.json": text}


@repair.command("log")
@click.option("--verify", is_flag=True, help="Check the chain; exit 3 where it does not hold.")
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
    if problems and verify:
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
