"""State and test claims on a model.

    claim, plan = state_claim(atlas, model, Source("ioi"), ["z.3.1", "z.4.0"])
    verdict = test_claim(atlas, claim.id, model)

1. State: units are checked, tune pairs are measured for the smallest detectable effect, claim and
   plan are locked. Confirm and ood are not read.
2. Test: ticket, read, leak check, behaviour on confirm; if it is there, every gate on confirm and
   ood, then the counterexample search, then evidence, then verdict.
3. Search: the kind looks for confirm pairs on which the claim fails. The worst are measured again,
   alone, and kept. Hits can only lower a verdict.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from typing import Any

import numpy as np

from assay.data.prepare import PreparedTask, prepare
from assay.errors import EvidenceError, UsageError, bad_argument
from assay.evidence import claims
from assay.evidence.claims import QUANTIFIERS, ClaimStore
from assay.evidence.gates import evaluate
from assay.evidence.kinds import KINDS, Columns, Kind, Progress
from assay.evidence.ledger import looked_at, now, subject_key
from assay.evidence.source import Source, clusters, leaks
from assay.model.model import Model
from assay.records import Claim, Counterexample, Evidence, Plan, Verdict, digest
from assay.statistics import mde80

KEPT_HITS = 20


@dataclass(frozen=True)
class Settings:
    """How a claim is measured. Fixed when it is locked.

    `tune`, `confirm`, `ood`: pairs of each split. `positions`: all or last. `draws`: random sets;
    `control_pairs`: pairs per template that they are measured on.
    """

    tune: int = 48
    confirm: int = 128
    ood: int = 64
    seed: int = 0
    alpha: float = 0.05
    metric: str = "logit_diff"
    positions: str = "all"
    draws: int = 19
    control_pairs: int = 4

    @property
    def sizes(self) -> dict[str, int]:
        return {"tune": self.tune, "confirm": self.confirm, "ood": self.ood}

    def check(self) -> None:
        """Raises UsageError for a setting outside its limits."""
        for name, value in {**self.sizes, "draws": self.draws, "control_pairs": self.control_pairs}.items():
            if not isinstance(value, int) or value < 1:
                raise bad_argument(name, value, "a whole number, 1 or more")
        if not 0 < self.alpha <= 0.2:
            raise bad_argument("alpha", self.alpha, "above 0, at most 0.2")
        if self.positions not in ("all", "last"):
            raise bad_argument("positions", self.positions, "all or last")
        if self.metric != "logit_diff":
            raise bad_argument("metric", self.metric, "logit_diff", "Wrong signs and accuracy are read off it.")


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
    settings: Settings | None = None,
) -> tuple[Claim, Plan]:
    """State a claim and lock its plan; `sesoi` by gate or group name. See `claims.warnings_of(plan)`.

    Raises UsageError for a wrong argument, TaskError for a task that does not fit the model.
    """
    statement = Statement() if statement is None else statement
    settings = Settings() if settings is None else settings
    settings.check()
    kind = _kind(statement)
    units = kind.subject(model, sites)
    claim = _claim(store, model, source, units, statement, settings.positions)
    plan = claims.make_plan(claim, source, settings.sizes, sesoi or {}, asdict(settings))
    tune = prepare(source.pairs("tune", settings.tune, settings.seed), model)
    setup, controls = kind.prepare(model, plan, units, tune)
    seen = claims.seen_gates(plan.gates)
    columns = kind.measure(model, tune, setup, seen)
    plan = replace(plan, mde=_mde(plan, seen, tune, columns), settings={**plan.settings, "controls": controls})
    plan = replace(plan, lock=claims.lock_of(claim, plan))
    claims.record_look(store, model.digest, "tune pairs for the smallest detectable effect", tune.pairs)
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
    _check_data(plan, source)
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
        self.kind = KINDS.get(claim.kind)
        self.subject = subject_key(claim.kind, claim.subject, claim.task)
        self.data: dict[str, dict[str, Any]] = {}
        self.flags: list[str] = []

    def run(self) -> tuple[Evidence, list[Counterexample]]:
        """Measurements, gates and counterexamples. Spends a ticket first."""
        plan, model = self.plan, self.model
        seen = {split: self._pairs(split) for split in ("discover", "tune") if split in plan.splits}
        tune = prepare(seen["tune"], model)
        setup, controls = self.kind.prepare(model, plan, self.claim.subject["sites"], tune)
        if controls != plan.settings["controls"]:
            self.flags.append("the random sets drawn now are not those in the plan")
        ticket = claims.ticket_for(self.store, self.claim, plan, self.subject)
        known = [pair for pairs in seen.values() for pair in pairs]
        tasks = {split: self._read(split, ticket, known) for split in plan.levels}
        reads = claims.reads_of(self.store.entries(), self.subject, plan, self._pairs("confirm"))
        first = self.kind.measure(model, tasks["confirm"], setup, claims.preconditions(plan))
        tables = {"confirm": self._table(tasks["confirm"], first)}
        search: dict[str, Any] = {"method": plan.search["method"], "complete": False}
        hits: list[Counterexample] = []
        if self._behaviour(tables["confirm"]):
            for split, task in tasks.items():
                columns = self.kind.measure(model, task, setup, plan.gates, self._progress(split))
                tables[split] = self._table(task, columns)
            hits, search = self._search(tasks["confirm"], setup, tables["confirm"]["columns"])
        gates = claims.derive_gates(plan, tables)
        evidence = Evidence(
            self.claim.id, plan.lock, self._passport(), tables, gates, search, self.data, reads,
            tuple(self.flags), now(),
        )  # fmt: skip
        return evidence, hits

    def _pairs(self, split: str) -> list[Any]:
        locked = self.plan.splits[split]
        return self.source.pairs(split, locked["n"], locked["seed"])

    def _read(self, split: str, ticket: str, known: Sequence[Any]) -> PreparedTask:
        """Pairs of a sealed split; says in the ledger what was read."""
        pairs = self._pairs(split)
        task = prepare(pairs, self.model)
        kept = clusters(task.pairs)
        looked = looked_at(self.store.entries(), self.model.digest, clusters(pairs))
        self.data[split] = {"digest": digest(pairs), "pairs": len(task), "clusters": len(kept),
                            "dropped": task.dropped, "looked": looked}  # fmt: skip
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

    def _search(self, task: PreparedTask, setup: Any, columns: Columns) -> tuple[list[Counterexample], dict[str, Any]]:
        found = self.kind.search(self.model, task, setup, columns, KEPT_HITS)
        hits = [
            Counterexample(
                self.claim.id, task.pairs[hit.row].clean, task.pairs[hit.row].corrupted, task.pairs[hit.row].template,
                hit.gate, hit.score, "above 0", "verified" if hit.again else "open",
            )
            for hit in found.kept
        ]  # fmt: skip
        n = len(task)
        search = {"method": self.plan.search["method"], "complete": True, "candidates": n, "hits": found.n_failing,
                  "kept": len(hits), "passes": found.passes, "bound_if_none": None if found.n_failing else 3 / n}  # fmt: skip
        return hits, search

    def _progress(self, split: str) -> Progress | None:
        report = self.progress
        return None if report is None else lambda label, done, total: report(f"{label} {split}", done, total)

    def _passport(self) -> dict[str, Any]:
        return {**self.model.passport(), "assay": _version(), "numpy": np.__version__, "rule": self.plan.rule_version,
                "seed": self.plan.settings["seed"]}  # fmt: skip


# the parts of stating ----------------------------------------------------------------------------


def _kind(statement: Statement) -> Kind:
    if statement.quantifier not in QUANTIFIERS:
        raise bad_argument("quantifier", statement.quantifier, ", ".join(QUANTIFIERS))
    return KINDS.get(statement.kind)


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


def _check_data(plan: Plan, source: Source) -> None:
    for split, locked in plan.splits.items():
        if source.digest(split, locked["n"], locked["seed"]) != locked["digest"]:
            raise EvidenceError(f"task {source.name}: its data are not those the plan was locked on (split {split})."
                                " Restore them, or state the claim again.")  # fmt: skip


def _finite(column: Sequence[float | None]) -> bool:
    return all(value is None or np.isfinite(value) for value in column)


def _number(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else float(value)


def _version() -> str:
    return metadata.version("assay")
