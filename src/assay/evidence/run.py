"""State and test claims on a model.

    claim, plan = state_claim(atlas, model, Source("ioi"), ["z.3.1", "z.4.0"])
    verdict = test_claim(atlas, claim.id, model)

1. State: units are checked, tune pairs are measured for the smallest detectable effect, claim and
   plan are locked. Confirm and ood are not read.
2. Test: ticket, read, leak check, behaviour on confirm; if it is there, every gate on confirm and
   ood, then the counterexample search, then evidence, then verdict.
3. Search for *mediates*: confirm pairs on which ablating does not lower the metric or restoring does
   not raise it. The worst are measured again, alone, and kept. Hits can only lower a verdict.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module, metadata
from typing import Any

import numpy as np

from assay.data.prepare import PreparedTask, prepare
from assay.errors import EvidenceError, UsageError, bad_argument
from assay.evidence import claims
from assay.evidence.claims import QUANTIFIERS, ClaimStore, Progress
from assay.evidence.gates import evaluate
from assay.evidence.gates.base import Columns
from assay.evidence.ledger import digest, now, subject_key
from assay.evidence.source import Source, clusters, leaks
from assay.evidence.statistics import mde80
from assay.model.model import Model
from assay.records import Claim, Counterexample, Evidence, Plan, Verdict

KINDS = ("mediates",)
SIZES = {"tune": 48, "confirm": 128, "ood": 64}
SETTINGS = {"seed": 0, "alpha": 0.05, "metric": "logit_diff", "positions": "all", "draws": 19, "control_pairs": 4}
KEPT_HITS = 20


@dataclass(frozen=True)
class Statement:
    """What is claimed, in the words of whoever claims it."""

    kind: str = "mediates"
    quantifier: str = "tends"
    text: str = ""
    parent: str | None = None
    rivals: tuple[str, ...] = ()


def state_claim(
    store: ClaimStore,
    model: Model,
    source: Source,
    sites: str | Sequence[str],
    *,
    statement: Statement | None = None,
    sesoi: Mapping[str, float] | None = None,
    **settings: Any,
) -> tuple[Claim, Plan]:
    """State a claim and lock its plan. Settings: tune, confirm, ood (numbers of pairs), seed, alpha,
    metric, positions (all or last), draws, control_pairs. See `claims.warnings_of(plan)`.

    `sesoi`: by gate or group name. Raises UsageError for a wrong argument, TaskError for a task that
    does not fit the model.
    """
    statement = Statement() if statement is None else statement
    sizes, chosen = _settings(settings)
    kind = _kind(statement)
    units = [str(unit) for unit in kind.units_of(model, sites)]
    claim = _claim(store, model, source, units, statement, chosen["positions"])
    plan = claims.make_plan(claim, source, sizes, sesoi or {}, chosen)
    tune = prepare(source.pairs("tune", sizes["tune"], chosen["seed"]), model)
    setup, controls = kind.prepare_setup(model, plan, units, tune)
    seen = claims.seen_gates(plan.gates)
    columns = kind.measure_split(model, tune, setup, seen)
    plan = replace(plan, mde=_mde(plan, seen, tune, columns), settings={**plan.settings, "controls": controls})
    plan = replace(plan, lock=claims.lock_of(claim, plan))
    store.append("look", {"what": "tune pairs for the smallest detectable effect", "claim": claim.id,
                          "recipe": plan.splits["tune"]["digest"], "n": len(tune)})  # fmt: skip
    store.record_claim(claim, plan)
    return claim, plan


def test_claim(
    store: ClaimStore, claim_id: str, model: Model, progress: Progress | None = None
) -> Verdict:
    """Read confirm and ood, once, and decide. Raises EvidenceError when the model is another one."""
    claim, plan = store.claim(claim_id), store.plan(claim_id)
    claims.check_lock(claim, plan)
    if model.digest != claim.subject["digest"]:
        raise EvidenceError(f"claim {claim_id} is about {claim.subject['model']} with digest"
                            f" {claim.subject['digest'][:12]}; got {model.name} with {model.digest[:12]}."
                            " State a claim about this model instead.")  # fmt: skip
    source = Source(claim.task["name"], claim.task["corruption"])
    _check_recipes(plan, source)
    evidence, hits = Trial(store, claim, plan, model, source, progress).run()
    store.record_evidence(evidence, hits)
    return claims.judge(store, claim_id)


test_claim.__test__ = False  # type: ignore[attr-defined]  # a verb, not a pytest function


class Trial:
    """One test of one claim: reads, measures, searches."""

    def __init__(
        self, store: ClaimStore, claim: Claim, plan: Plan, model: Model, source: Source, progress: Progress | None
    ) -> None:
        self.store, self.claim, self.plan = store, claim, plan
        self.model, self.source, self.progress = model, source, progress
        self.kind = import_module(f"assay.evidence.{claim.kind}")
        self.subject = subject_key(claim.kind, claim.subject, claim.task)
        self.data: dict[str, dict[str, Any]] = {}
        self.flags: list[str] = []

    def run(self) -> tuple[Evidence, list[Counterexample]]:
        """Measurements, gates and counterexamples. Spends a ticket first."""
        plan, model = self.plan, self.model
        seen = {split: self._pairs(split) for split in ("discover", "tune") if split in plan.splits}
        tune = prepare(seen["tune"], model)
        setup, controls = self.kind.prepare_setup(model, plan, self.claim.subject["sites"], tune)
        if controls != plan.settings["controls"]:
            self.flags.append("the random sets drawn now are not those in the plan")
        ticket = claims.ticket_for(self.store, self.claim, plan, self.subject)
        known = [pair for pairs in seen.values() for pair in pairs]
        tasks = {split: self._read(split, ticket, known) for split in plan.levels}
        reads = claims.reads_of(self.store.entries(), self.subject, plan, self._pairs("confirm"))
        first = self.kind.measure_split(model, tasks["confirm"], setup, claims.preconditions(plan))
        tables = {"confirm": self._table(tasks["confirm"], first)}
        search: dict[str, Any] = {"method": plan.search["method"], "complete": False}
        hits: list[Counterexample] = []
        if self._behaviour(tables["confirm"]):
            for split, task in tasks.items():
                columns = self.kind.measure_split(model, task, setup, plan.gates, self._progress(split))
                tables[split] = self._table(task, columns)
            hits, search = self._search(tasks["confirm"], setup, tables["confirm"]["columns"])
        gates = claims.derive_gates(plan, tables)
        evidence = Evidence(
            self.claim.id, plan.lock, self._passport(), tables, gates, search, self.data, reads,
            tuple(self.flags), now(),
        )  # fmt: skip
        return evidence, hits

    def _pairs(self, split: str) -> list[Any]:
        recipe = self.plan.splits[split]
        return self.source.pairs(split, recipe["n"], recipe["seed"])

    def _read(self, split: str, ticket: str, known: Sequence[Any]) -> PreparedTask:
        """Pairs of a sealed split; says in the ledger what was read."""
        pairs = self._pairs(split)
        task = prepare(pairs, self.model)
        kept = clusters(task.pairs)
        self.data[split] = {"digest": digest(pairs), "pairs": len(task), "clusters": len(kept), "dropped": task.dropped}
        self.store.append("data", {"claim": self.claim.id, "ticket": ticket, "split": split, "subject": self.subject,
                                   "digest": self.data[split]["digest"], "clusters": clusters(pairs)})  # fmt: skip
        if shared := leaks(known, pairs):
            what = ", ".join(f"{n} {name}" for name, n in shared.items())
            self.flags.append(f"leak: {split} shares {what} with tune")
        return task

    def _table(self, task: PreparedTask, columns: Columns) -> dict[str, Any]:
        broken = [name for name, column in columns.items() if not _finite(column)]
        for name in broken:
            self.flags.append(f"non-finite scores: {name}")
        clean = {name: [_number(value) for value in column] for name, column in columns.items()}
        scores = [value for value in clean["clean"] if value is not None]
        if len(scores) > 1 and len(set(scores)) == 1:
            self.flags.append("constant scores: every clean prompt has the same metric")
        return {"templates": task.templates, "columns": clean}

    def _behaviour(self, table: Mapping[str, Any]) -> bool:
        level = self.plan.levels["confirm"]
        gates = claims.preconditions(self.plan)
        results = [evaluate(gate, "confirm", table, level, self.plan.settings["seed"]) for gate in gates]
        return all(result is not None and result.p_above <= level for result in results)

    def _search(
        self, task: PreparedTask, setup: Any, columns: Mapping[str, Sequence[float | None]]
    ) -> tuple[list[Counterexample], dict[str, Any]]:
        found = wrong_sign_pairs(columns)
        rows = [row for row, _, _ in found[:KEPT_HITS]]
        again = self.kind.recheck(self.model, task, rows, setup, columns) if rows else []
        hits = [
            Counterexample(
                self.claim.id, task.pairs[row].clean, task.pairs[row].corrupted, task.pairs[row].template, gate,
                score, "above 0", "verified" if same else "open",
            )
            for (row, gate, score), same in zip(found, again, strict=False)
        ]  # fmt: skip
        n = len(task)
        search = {"method": self.plan.search["method"], "complete": True, "candidates": n, "hits": len(found),
                  "kept": len(hits), "passes": 4 * len(rows), "bound_if_none": 3 / n if not found else None}  # fmt: skip
        return hits, search

    def _progress(self, split: str) -> Progress | None:
        report = self.progress
        return None if report is None else lambda label, done, total: report(f"{label} {split}", done, total)

    def _passport(self) -> dict[str, Any]:
        return {**self.model.passport(), "assay": _version(), "numpy": np.__version__, "rule": self.plan.rule_version,
                "seed": self.plan.settings["seed"]}  # fmt: skip


def wrong_sign_pairs(columns: Mapping[str, Sequence[float | None]]) -> list[tuple[int, str, float]]:
    """(row, gate, effect) of pairs whose ablation does not lower or restoring does not raise the
    metric, worst first; one line per pair, with the worse of its two effects."""
    found = []
    clean, ablated = columns["clean"], columns["ablated.resample"]
    corrupted, restored = columns["corrupted"], columns["restored"]
    for row, values in enumerate(zip(clean, ablated, corrupted, restored, strict=True)):
        if any(value is None for value in values):
            continue
        whole, without, broken, back = (float(value) for value in values if value is not None)
        effect, gate = min((whole - without, "necessity.resample"), (back - broken, "sufficiency"))
        if effect <= 0:
            found.append((row, gate, effect))
    return sorted(found, key=lambda item: item[2])


# the parts of stating ----------------------------------------------------------------------------


def _settings(given: Mapping[str, Any]) -> tuple[dict[str, int], dict[str, Any]]:
    unknown = sorted(set(given) - set(SIZES) - set(SETTINGS))
    if unknown:
        raise bad_argument("state_claim", unknown, ", ".join((*SIZES, *SETTINGS)))
    sizes = {name: given.get(name, n) for name, n in SIZES.items()}
    chosen = {name: given.get(name, value) for name, value in SETTINGS.items()}
    for name, value in {**sizes, "draws": chosen["draws"], "control_pairs": chosen["control_pairs"]}.items():
        if not isinstance(value, int) or value < 1:
            raise bad_argument(name, value, "a whole number, 1 or more")
    if not 0 < chosen["alpha"] <= 0.2:
        raise bad_argument("alpha", chosen["alpha"], "above 0, at most 0.2")
    if chosen["positions"] not in ("all", "last"):
        raise bad_argument("positions", chosen["positions"], "all or last")
    if chosen["metric"] != "logit_diff":
        raise bad_argument("metric", chosen["metric"], "logit_diff", "Wrong signs and accuracy are read off it.")
    return sizes, chosen


def _kind(statement: Statement) -> Any:
    if statement.kind not in KINDS:
        raise bad_argument("kind", statement.kind, ", ".join(KINDS))
    if statement.quantifier not in QUANTIFIERS:
        raise bad_argument("quantifier", statement.quantifier, ", ".join(QUANTIFIERS))
    return import_module(f"assay.evidence.{statement.kind}")


def _claim(
    store: ClaimStore, model: Model, source: Source, units: list[str], statement: Statement, positions: str
) -> Claim:
    parent = None if statement.parent is None else store.claim(statement.parent)
    if parent is not None and parent.kind != statement.kind:
        raise UsageError(f"parent: claim {parent.id} is of kind {parent.kind}; allowed: {statement.kind}.")
    text = statement.text or (
        f"{', '.join(units)} of {model.name} {_verb(statement.quantifier)} carry the task {source.name}"
    )
    body = {
        "version": 1 if parent is None else parent.version + 1, "parent": statement.parent, "kind": statement.kind,
        "statement": text, "quantifier": statement.quantifier,
        "subject": {"model": model.name, "source": str(model.source), "digest": model.digest, "sites": units,
                    "positions": positions},
        "task": {"name": source.name, "corruption": source.corruption}, "direction": "positive",
        "rivals": list(statement.rivals), "created": now(),
    }  # fmt: skip
    return Claim(id=claims.claim_id({**body, "n": len(store.entries())}), **{**body, "rivals": statement.rivals})


def _verb(quantifier: str) -> str:
    return {"tends": "tend to", "usually": "usually", "always": "always"}[quantifier]


def _mde(plan: Plan, gates: Sequence[Any], tune: PreparedTask, columns: Columns) -> dict[str, float | None]:
    """Per gate, from the spread of tune templates and the number of confirm templates."""
    table = {"templates": tune.templates, "columns": columns}
    found: dict[str, float | None] = {gate.name: None for gate in plan.gates}
    for gate in gates:
        result = evaluate(gate, "tune", table, plan.levels["confirm"], plan.settings["seed"])
        if result is not None:
            means = list(result.tables["per_template"].values())
            found[gate.name] = mde80(means, plan.levels["confirm"], plan.splits["confirm"]["templates"])
    return found


def _check_recipes(plan: Plan, source: Source) -> None:
    for split, recipe in plan.splits.items():
        if source.recipe(split, recipe["n"], recipe["seed"]) != recipe["digest"]:
            raise EvidenceError(f"task {source.name}: its data are not those the plan was locked on (split {split}).")


def _finite(column: Sequence[float | None]) -> bool:
    return all(value is None or np.isfinite(value) for value in column)


def _number(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else float(value)


def _version() -> str:
    return metadata.version("assay")
