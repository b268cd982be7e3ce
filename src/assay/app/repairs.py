"""One repair from its order to the exported checkpoint: what `assay repair` and the verb of that name both do.

1. Order: the fault (a task), the method and its settings, and what else is measured; all data are read before the model.
2. Run: what is read of the splits is written into the ledger first; then the edit is made, chosen on tune and judged.
3. Write: the audit log, then the checkpoint with its card, then the log again. Without a folder nothing is written.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assay import permissions
from assay.errors import bad_argument
from assay.permissions import Grant

if TYPE_CHECKING:
    from assay.model.model import Model
    from assay.steer.repair import Fault, RepairPlan, RepairReport

METHODS = ("project-out", "scale-heads", "mean-ablate-heads", "scale-neurons", "mean-ablate-neurons", "rank-one")
RESIDUAL = ("embed", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
TEXT, CONTEXT, STEPS = "wikipedia", 128, 12
EVERYTHING = 1 << 30
Progress = Callable[..., None]
Record = dict[str, Any]


@dataclass(frozen=True)
class Order:
    """What is asked for. `task`: name or file of the fault; `units`, `layers`: as they are typed; `direction`: a file.

    `neighbours`: a task file of what should stay; `corpus`, `tokens`: ordinary text; `n`, `task_n`: pairs per split of a
    bundled fault, and of each other bundled task.
    """

    task: str
    method: str
    units: str | None = None
    factors: tuple[float, ...] = ()
    layers: str | None = None
    direction: str | None = None
    subject: str | None = None
    strengths: tuple[float, ...] = ()
    steps: int | None = None
    neighbours: str | None = None
    corpus: str = TEXT
    tokens: int = 6144
    n: int = 60
    task_n: int = 40
    seed: int = 0


class Job:
    """An order that is carried out. `atlas`: where ledger and audit log are. UsageError, TaskError for what does not fit."""

    def __init__(self, atlas: Path, order: Order) -> None:
        self.atlas, self.order = atlas, order
        self.ordinary: Record | None = None
        self.found = 0  # finished parts that an earlier run had left
        self.fault = self._fault()

    def _fault(self) -> "Fault":
        """All data, read and checked before the model is loaded."""
        from assay.data.ordinary import OTHERS, TEXTS
        from assay.data.tasks import TASKS, load_task
        from assay.evidence.source import SPLITS, Source, find_source
        from assay.steer.repair import Fault
        from assay.steer.repair_checks import paraphrased

        order, found = self.order, find_source(self.order.task)
        if not isinstance(found, Source):
            raise bad_argument("--fault", order.task, "a task", "It is a concept: it has labels, but no answers to mend.")
        n = order.n if found.bundled else EVERYTHING
        splits = {split: found.items(split, n, order.seed) for split in SPLITS}
        neighbours = load_task(order.neighbours, "tune", order.n, order.seed) if order.neighbours else []
        tasks = {name: load_task(name, "tune", order.task_n, order.seed) for name in TASKS.names() if name != order.task}
        return Fault(found.name, splits, neighbours, tasks, TEXTS, paraphrased(splits["confirm"], OTHERS))

    def plan(self, model: "Model") -> "RepairPlan":
        """The plan, with the direction read for this model."""
        from assay.steer.rank_one import ValuePlan
        from assay.steer.repair import RepairPlan

        order = self.order
        units = tuple(part.strip() for part in (order.units or "").split(",") if part.strip())
        for flag, value, method in (
            ("--direction", order.direction, "project-out"), ("--strength", order.strengths or None, "rank-one"),
            ("--subject", order.subject, "rank-one"), ("--steps", order.steps, "rank-one"),
        ):  # fmt: skip
            if value is not None and order.method != method:
                raise bad_argument(flag, value, f"none for --method {order.method}")
        return RepairPlan(
            method=order.method, units=units, factors=order.factors, layers=_layers(order.layers, model),
            direction=None if order.direction is None else _direction(order.direction, model), subject=order.subject,
            strengths=order.strengths or (0.5, 1.0), values=ValuePlan(steps=order.steps or STEPS), seed=order.seed,
        )  # fmt: skip

    def run(self, model: "Model", progress: Progress) -> "RepairReport":
        """Make, choose, judge; what is read of sealed splits is in the ledger before."""
        from assay.steer.repair import check_plan, repair, require_usable

        plan = self.plan(model)
        check_plan(model, plan)
        require_usable(model, self.fault, plan)
        self._look(model)
        kept = self._kept(model, plan)
        report = repair(model, self.fault, plan, lambda: self._texts(model), progress, kept)
        self.found = kept.found
        return report

    def _kept(self, model: "Model", plan: "RepairPlan") -> Any:
        """Finished parts of this very run, in the atlas."""
        from importlib.metadata import version

        from assay.atlas.steers import KeptSteering
        from assay.records import digest, plain

        vector = None if plan.direction is None else plan.direction.tolist()
        key = [version("assay"), model.digest, model.tokenizer_digest, plan.record(), vector, plain(self.fault)]
        return KeptSteering(self.atlas, digest(key), "repair")

    def _look(self, model: "Model") -> None:
        from assay.atlas.store import Atlas
        from assay.evidence.claims import record_look

        atlas, words = Atlas(self.atlas), f"repair {self.fault.name} {self.order.method}"
        for split in ("tune", "confirm", "ood"):
            record_look(atlas, model.digest, f"{words}, {split}", self.fault.splits[split])
        if self.fault.neighbours:
            record_look(atlas, model.digest, f"{words}, neighbours", self.fault.neighbours)

    def _texts(self, model: "Model") -> Sequence[Sequence[int]]:
        from assay.data.corpora import open_corpus
        from assay.data.corpus_rows import packed
        from assay.model.context import context_length

        corpus = open_corpus(self.order.corpus)
        context = min(CONTEXT, context_length(model.hf) or CONTEXT)
        rows = packed(model, corpus, context, tokens=self.order.tokens)
        self.ordinary = {**corpus.record(), "tokens": rows.n_tokens}
        return [rows.tokens(row).tolist() for row in range(len(rows))]

    def record(self, model: "Model", report: "RepairReport", reason: str) -> Record:
        """The JSON twin of what is printed and of the card."""
        from assay.evidence.source import Source
        from assay.passport import run_passport

        splits = {split: {"pairs": len(pairs), "templates": len({pair.template for pair in pairs})}
                  for split, pairs in self.fault.splits.items()}  # fmt: skip
        return {
            **report.json(), "model": model.passport(), "digest_before": model.digest,
            "digest_after": report.changed.model.digest, "reason": reason, "ordinary": self.ordinary,
            "data": {**Source(self.order.task).record(), "splits": splits}, "run": run_passport(asdict(self.order)),
            "out": None, "audit": "",
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


def write_repair(atlas: Path, report: "RepairReport", record: Record, folder: Path | None, grant: Grant) -> None:
    """The audit log first, then the checkpoint, then the log again; `record` gets what came of it.

    `folder`: a new one; None: nothing but the log is written. Raises as `permissions.record` and `steer.export.export`.
    """
    body = {key: record[key] for key in ("fault", "method", "settings", "verdict", "digest_before", "digest_after")}
    body |= {"model": record["model"]["model"], "weights": [one["name"] for one in record["weights"]]}
    action = "repair: dry run" if folder is None else "repair: export begins"
    entry = permissions.record(atlas, action, body, grant)
    record["audit"] = entry["hash"]
    if folder is None:
        return
    from assay.steer.export import export

    done = export(report.changed, folder, lambda facts: _cards(record, facts, folder))
    permissions.record(atlas, "repair: exported", {
        "entry": entry["hash"], "folder": folder.name, "digest": done.digest, "bytes": done.bytes}, grant)  # fmt: skip


def _cards(record: Record, facts: Any, folder: Path) -> dict[str, str]:
    from assay.report.repair_card import repair_card

    used = record["model"]["prepend_bos"]
    if facts["prepend_bos"] != used:
        note = f"all was measured with prepend_bos={used}; the tokenizer by itself does otherwise"
        record["notes"] = [*record["notes"], note]
    record |= {"digest_after": facts["digest"], "out": folder.name, "export": dict(facts)}
    text = json.dumps(_finite(record), indent=1, allow_nan=False)
    return {"README.md": repair_card(record), "repair.json": text}


def _finite(value: Any) -> Any:
    """NaN and infinity as null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
