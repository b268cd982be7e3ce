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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from assay.data.prepare import PreparedTask, prepare
from assay.errors import ReproduceError, UsageError, bad_argument
from assay.evidence import claims
from assay.evidence.claims import QUANTIFIERS, ClaimStore
from assay.evidence.gates import evaluate
from assay.evidence.kinds import KINDS, Columns, Kind, Progress
from assay.evidence.ledger import looked_at, now, subject_key
from assay.evidence.source import Source, clusters, leaks
from assay.model.model import Model
from assay.passport import run_passport
from assay.records import Claim, Counterexample, Evidence, GateResult, Pair, Plan, Verdict, digest
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
    model.fresh_digest()
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
    """Read confirm and ood, once, and decide. Raises ReproduceError when model or data are others."""
    claim, plan = store.claim(claim_id), store.plan(claim_id)
    claims.check_lock(claim, plan)
    subject = subject_key(claim.kind, claim.subject, claim.task)

    def on_read(split: str, pairs: Sequence[Pair]) -> list[str]:
        """Spend the ticket and say what is read, before it is read; what was looked at of it earlier."""
        entries = store.entries()
        ticket = claims.ticket_for(store, claim, plan, subject)
        store.append("data", {"claim": claim.id, "ticket": ticket, "split": split, "subject": subject,
                              "digest": digest(pairs), "clusters": clusters(pairs)})  # fmt: skip
        return looked_at(entries, model.digest, clusters(pairs))

    trial = Trial(claim, plan, model, progress, on_read)
    outcome = trial.run()
    reads = claims.reads_of(store.entries(), subject, plan, trial.pairs("confirm"))
    passport = {**model.passport(), **run_passport(plan.settings), "rule": plan.rule_version}
    evidence = Evidence(claim.id, plan.lock, passport, outcome.tables, outcome.gates, outcome.search, outcome.data,
                        reads, outcome.flags, now())  # fmt: skip
    store.record_evidence(evidence, outcome.hits)
    return claims.judge(store, claim_id)


test_claim.__test__ = False  # type: ignore[attr-defined]  # a verb, not a pytest function


@dataclass(frozen=True)
class Outcome:
    """What a trial measured: tables per split, gates made from them, the search, and what was read."""

    tables: dict[str, dict[str, Any]]
    gates: tuple[GateResult, ...]
    hits: list[Counterexample]
    search: dict[str, Any]
    data: dict[str, dict[str, Any]]
    flags: tuple[str, ...]


class Trial:
    """One measurement of one locked claim. Knows no store: `on_read(split, pairs)` is told before sealed
    pairs are measured, and says what was looked at of them earlier."""

    def __init__(
        self,
        claim: Claim,
        plan: Plan,
        model: Model,
        progress: Progress | None = None,
        on_read: Callable[[str, Sequence[Pair]], list[str]] = lambda split, pairs: [],
    ) -> None:
        self.claim, self.plan, self.model = claim, plan, model
        self.source = Source(claim.task["name"], claim.task["corruption"])
        self.progress, self.on_read = progress, on_read
        self.kind = KINDS.get(claim.kind)
        self.data: dict[str, dict[str, Any]] = {}
        self.flags: list[str] = []

    def run(self) -> Outcome:
        """Measurements, gates and counterexamples. Raises ReproduceError for another model or other data."""
        self._check()
        plan, model = self.plan, self.model
        seen = {split: self.pairs(split) for split in ("discover", "tune") if split in plan.splits}
        tune = prepare(seen["tune"], model)
        setup, controls = self.kind.prepare(model, plan, self.claim.subject["sites"], tune)
        if controls != plan.settings["controls"]:
            self.flags.append("the random sets drawn now are not those in the plan")
        known = [pair for pairs in seen.values() for pair in pairs]
        tasks = {split: self._read(split, known) for split in plan.levels}
        first = self.kind.measure(model, tasks["confirm"], setup, claims.preconditions(plan))
        tables = {"confirm": self._table(tasks["confirm"], first)}
        search: dict[str, Any] = {"method": plan.search["method"], "complete": False}
        hits: list[Counterexample] = []
        if self._behaviour(tables["confirm"]):
            for split, task in tasks.items():
                columns = self.kind.measure(model, task, setup, plan.gates, self._progress(split))
                tables[split] = self._table(task, columns)
            hits, search = self._search(tasks["confirm"], setup, tables["confirm"]["columns"])
        return Outcome(tables, claims.derive_gates(plan, tables), hits, search, self.data, tuple(self.flags))

    def _check(self) -> None:
        """The model and the texts must be those that were locked."""
        subject, got = self.claim.subject, self.model
        if got.fresh_digest() != subject["digest"]:
            raise ReproduceError(f"claim {self.claim.id} is about {subject['model']} with digest"
                                 f" {subject['digest'][:12]}; got {got.name} with {got.digest[:12]}."
                                 " State a claim about this model instead.")  # fmt: skip
        for split, locked in self.plan.splits.items():
            if self.source.digest(split, locked["n"], locked["seed"]) != locked["digest"]:
                raise ReproduceError(f"task {self.source.name}: its data are not those the plan was locked on"
                                     f" (split {split}). Restore them, or state the claim again.")  # fmt: skip

    def pairs(self, split: str) -> list[Pair]:
        """The pairs of a split, as locked."""
        locked = self.plan.splits[split]
        return self.source.pairs(split, locked["n"], locked["seed"])

    def _read(self, split: str, known: Sequence[Pair]) -> PreparedTask:
        """Pairs of a sealed split, aligned; whether they leak into what was seen."""
        pairs = self.pairs(split)
        looked = self.on_read(split, pairs)
        task = prepare(pairs, self.model)
        self.data[split] = {"digest": digest(pairs), "pairs": len(task), "clusters": len(clusters(task.pairs)),
                            "dropped": task.dropped, "looked": looked}  # fmt: skip
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
        "task": source.record(), "direction": "positive",
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


def _finite(column: Sequence[float | None]) -> bool:
    return all(value is None or np.isfinite(value) for value in column)


def _number(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else float(value)
