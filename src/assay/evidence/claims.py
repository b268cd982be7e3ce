"""Claims: state and lock, test, derive again.

1. `state_claim` writes the claim and its plan, with the smallest detectable effect measured on tune
   data, and locks both by hash. Nothing of confirm or ood has been read.
2. `test_claim` spends a ticket in the ledger, then reads confirm and ood, measures every gate, looks
   for counterexamples, and stores evidence and verdict.
3. Claims of other subjects that share the confirm split are judged again, because Holm's correction
   changes with every member of the family.
4. `rederive` makes gates from stored tables and the verdict from gates, without a model.
5. What is done otherwise than locked is a *deviation*: recorded, shown, and the result is exploratory. A bar
   changed in a deviation is applied to the stored measurements; the locked plan stays as it is.

A killed run leaves a ticket without evidence, and testing the claim again uses that ticket; or evidence without a verdict,
and testing the claim again gives the verdict.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

from assay.errors import EvidenceError, TamperedError, bad_argument
from assay.evidence import ledger as chain
from assay.evidence.cautions import warnings_of as warnings_of
from assay.evidence.gates import evaluate, gates_for, get_gate
from assay.evidence.gates.base import GATES
from assay.evidence.ledger import now
from assay.evidence.search import searches_for
from assay.evidence.shares import METHOD
from assay.evidence.source import Population, marks
from assay.evidence.verdicts import RULE_VERSION, decide
from assay.records import (
    Claim,
    Counterexample,
    Dataset,
    Deviation,
    Evidence,
    GatePlan,
    GateResult,
    Plan,
    Replication,
    Run,
    Verdict,
    digest,
    plain,
)  # fmt: skip
from assay.statistics import DRAWS

QUANTIFIERS = ("tends", "usually", "always")


@dataclass(frozen=True)
class Listed:
    """One line of a list of claims. `imported`: stated and tested by others."""

    claim: str
    kind: str
    version: int
    statement: str
    verdict: str
    created: str
    imported: bool


@runtime_checkable
class ClaimStore(chain.Ledger, Protocol):
    """Where claims live. Every `record_*` writes rows and ledger entry in one transaction."""

    def record_claim(self, claim: Claim, plan: Plan) -> None: ...

    def record_evidence(self, evidence: Evidence, counterexamples: Sequence[Counterexample]) -> None: ...

    def record_verdict(self, verdict: Verdict) -> None: ...

    def record_deviation(self, deviation: Deviation) -> None: ...

    def record_replication(self, replication: Replication) -> None: ...

    def record_dataset(self, dataset: Dataset) -> None: ...

    def record_run(self, run: Run) -> None: ...

    def record_import(self, card: Mapping[str, Any], created: str) -> None: ...

    def listing(self, limit: int = 50, offset: int = 0, verdict: str = "", kind: str = "") -> tuple[list[Listed], int]: ...

    def p_of(self, claims: Sequence[str]) -> dict[str, float]: ...

    def imported(self, claim_id: str) -> Mapping[str, Any] | None: ...

    def claim(self, claim_id: str) -> Claim: ...

    def plan(self, claim_id: str) -> Plan: ...

    def evidence(self, claim_id: str) -> Evidence | None: ...

    def counterexamples(self, claim_id: str) -> list[Counterexample]: ...

    def verdict(self, claim_id: str) -> Verdict | None: ...

    def deviations(self, claim_id: str) -> list[Deviation]: ...

    def replications(self, claim_id: str) -> list[Replication]: ...

    def runs(self, claim_id: str) -> list[Run]: ...

    def datasets(self, digests: Sequence[str]) -> list[Dataset]: ...


# locks -------------------------------------------------------------------------------------------


def lock_of(claim: Claim, plan: Plan) -> str:
    """SHA-256 of the canonical JSON of a claim and its plan (without the lock itself)."""
    return digest([claim, replace(plan, lock="")])


def check_lock(claim: Claim, plan: Plan) -> None:
    """Raises TamperedError when claim or plan differ from what was locked."""
    if lock_of(claim, plan) != plan.lock or plan.claim != claim.id:
        raise TamperedError(f"claim {claim.id}: claim or plan differ from what was locked. Restore the atlas"
                            " from a copy. A bar (SESOI) or anything else of a plan is changed openly: as a deviation"
                            " (assay claim deviate), or in a new version of the claim (--parent).")  # fmt: skip


# deriving ----------------------------------------------------------------------------------------


def derive_gates(plan: Plan, tables: Mapping[str, Mapping[str, Any]]) -> tuple[GateResult, ...]:
    """All gates on all measured splits, from stored columns; in the order of names, as a store keeps them."""
    found = []
    for split, table in tables.items():
        table = {**table, "columns": dict(sorted(table["columns"].items()))}
        alpha = plan.levels.get(split, plan.levels["confirm"])
        for gate in plan.gates:
            result = evaluate(gate, split, table, alpha, plan.settings["seed"], "shares" in plan.settings)
            if result is not None:
                found.append(result)
    return tuple(found)


def family_of(store: ClaimStore, claim_id: str) -> dict[str, float]:
    """p of every claim of another subject whose confirm data share a cluster with this claim's.

    A claim whose data were read but that has no verdict counts with p = 1, and so does one with deviations.
    """
    with store:
        own = [entry["body"] for entry in store.entries_of(claim_id)
               if entry["kind"] == "data" and entry["body"]["split"] == "confirm"]  # fmt: skip
        return store.p_of(store.sharing(own[-1]["subject"], own[-1]["clusters"])) if own else {}


def deviated(plan: Plan, evidence: Evidence, deviations: Sequence[Deviation]) -> tuple[Plan, Evidence]:
    """The plan with the bars that deviations put in place of the locked ones, and the gates measured against them."""
    bars = {name: bar for deviation in deviations for name, bar in deviation.sesoi.items()}
    if not bars:
        return plan, evidence
    gates = tuple(replace(gate, sesoi=bars.get(gate.name, gate.sesoi)) for gate in plan.gates)
    plan = replace(plan, gates=gates)
    return plan, replace(evidence, gates=derive_gates(plan, evidence.tables))


def ruled(
    claim: Claim, plan: Plan, evidence: Evidence | None, hits: Sequence[Counterexample], *,
    deviations: Sequence[Deviation], family: Mapping[str, float],
) -> Verdict:  # fmt: skip
    """The verdict that the rule gives for these records."""
    if evidence is None:
        return decide(claim, plan, None, deviations=deviations)
    plan, evidence = deviated(plan, evidence, deviations)
    return decide(claim, plan, evidence, hits, family=family, deviations=deviations)


def verdict_of(store: ClaimStore, claim_id: str) -> Verdict:
    """The verdict that the rule gives for the stored gates. Raises TamperedError on a broken lock."""
    return _ruled_here(store, claim_id, family_of(store, claim_id))


def _ruled_here(store: ClaimStore, claim_id: str, family: Mapping[str, float]) -> Verdict:
    claim, plan = store.claim(claim_id), store.plan(claim_id)
    check_lock(claim, plan)
    return ruled(claim, plan, store.evidence(claim_id), store.counterexamples(claim_id),
                 deviations=store.deviations(claim_id), family=family)  # fmt: skip


def rederive(store: ClaimStore, claim_id: str) -> Verdict:
    """The verdict from stored tables, without a model: gates from measurements, verdict from gates.

    Raises TamperedError on a broken lock, or when the stored gates do not follow.
    """
    verdict = verdict_of(store, claim_id)
    evidence = store.evidence(claim_id)
    if evidence is not None and not gates_follow(store.plan(claim_id), evidence):
        raise TamperedError(f"claim {claim_id}: the stored gates do not follow from the stored measurements.")
    return verdict


def gates_follow(plan: Plan, evidence: Evidence) -> bool:
    """Whether the stored gates are those that the stored tables give.

    Gates measured by another version of their code cannot be derived here: they are left out (and *stale*).
    """
    here = {gate.name for gate in plan.gates if gate.name in GATES and get_gate(gate.name).version == gate.version}
    plan = replace(plan, gates=tuple(gate for gate in plan.gates if gate.name in here))
    return same_gates(derive_gates(plan, evidence.tables), [gate for gate in evidence.gates if gate.name in here])


def same_gates(a: Sequence[GateResult], b: Sequence[GateResult], tolerance: float = 1e-6) -> bool:
    """Equal numbers within rounding: the arithmetic may run on another machine."""
    return _close(plain(a), plain(b), tolerance)


def same_verdict(a: Verdict, b: Verdict) -> bool:
    """Same decision, reasons and numbers within rounding."""
    return _close(plain(a), plain(b), 1e-6)


def same_decision(a: Verdict, b: Verdict) -> bool:
    """The same verdict but for its words: those are made anew by every release, and by gates that others add."""
    return same_verdict(*(replace(verdict, sentence="", does_not_show=()) for verdict in (a, b)))


def _close(a: Any, b: Any, tolerance: float) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_close(a[key], b[key], tolerance) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(_close(x, y, tolerance) for x, y in zip(a, b, strict=True))
    if isinstance(a, float | int) and isinstance(b, float | int):
        return math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance)
    return a == b


def audit(store: ClaimStore, claim_id: str) -> list[str]:
    """What does not hold about a stored claim: hashes against the ledger, verdict against the rule."""
    with store:
        return _audit(store, claim_id)


def _audit(store: ClaimStore, claim_id: str) -> list[str]:
    try:
        claim, plan, evidence, verdict = (
            store.claim(claim_id), store.plan(claim_id), store.evidence(claim_id), store.verdict(claim_id)
        )  # fmt: skip
    except TamperedError as error:
        return [f"claim {claim_id}: {error}"]
    problems = []
    entries = store.entries_of(claim_id)
    logged = {entry["kind"]: entry["body"] for entry in entries}
    expected = {"state": digest(claim), "lock": plan.lock, "evidence": evidence and evidence_digest(
        evidence, store.counterexamples(claim_id)), "verdict": verdict and digest(verdict)}  # fmt: skip
    for kind, value in expected.items():
        if (logged.get(kind) or {}).get("digest") != value:
            problems.append(f"claim {claim_id}: the stored {kind} is not the one in the ledger")
    try:
        fresh = rederive(store, claim_id)
    except EvidenceError as error:
        return [*problems, str(error)]
    if verdict is None or chain.unjudged(entries):
        return problems
    if verdict.rule_version != RULE_VERSION or same_decision(fresh, verdict):
        return problems
    then = ruled(claim, plan, evidence, store.counterexamples(claim_id), deviations=store.deviations(claim_id),
                 family=_family_then(store, verdict))  # fmt: skip
    if not same_decision(then, verdict):
        problems.append(f"claim {claim_id}: the stored verdict ({verdict.verdict}) does not follow from the"
                        f" stored evidence ({fresh.verdict})")  # fmt: skip
    return problems


def _family_then(store: ClaimStore, verdict: Verdict) -> dict[str, float]:
    """The family as it was when a verdict was given: members that were read or judged since (a test that is under
    way, or was killed) stand as they stood then. When they are judged, this claim is judged again."""
    given = max((entry["index"] for entry in store.entries_of(verdict.claim) if entry["kind"] == "verdict"), default=-1)
    stood = verdict.decision["family"]

    def moved(claim: str) -> bool:
        return any(entry["index"] > given and entry["kind"] in ("data", "verdict", "deviation")
                   for entry in store.entries_of(claim))  # fmt: skip

    family = family_of(store, verdict.claim)
    since = {other for other in family if moved(other)}
    return {other: stood[other] if other in since else p for other, p in family.items() if other not in since or other in stood}


def evidence_digest(evidence: Evidence, counterexamples: Sequence[Counterexample]) -> str:
    """Hash of evidence and counterexamples together."""
    return digest([evidence, list(counterexamples)])


def judge(store: ClaimStore, claim_id: str) -> Verdict:
    """Decide and record the verdict of a claim, then those of its family where they changed."""
    with store:
        verdict = verdict_of(store, claim_id)
        store.record_verdict(verdict)
        for other in family_of(store, claim_id):
            old = store.verdict(other)
            new = None if old is None else verdict_of(store, other)
            if old is not None and new is not None and not same_verdict(old, new):
                store.record_verdict(new)
    return verdict


def judge_all(store: ClaimStore, p_of: Mapping[str, float], report: Callable[[str, int, int], None] | None = None) -> None:
    """Record the verdicts of many claims at once, each with its family, then those of older claims that this changes.

    `p_of`: claim -> its p by its gates. What is recorded is what judging them one by one comes to in the end.
    """
    others: dict[str, None] = {}
    with store:
        for number, name in enumerate(p_of):
            family = {other: p_of.get(other, p) for other, p in family_of(store, name).items()}
            others |= dict.fromkeys(other for other in family if other not in p_of)
            verdict = _ruled_here(store, name, family)
            old = store.verdict(name)
            if old is None or not same_verdict(old, verdict):
                store.record_verdict(verdict)
            if report:
                report("judging", number + 1, len(p_of))
        for other in others:
            old = store.verdict(other)
            new = None if old is None else verdict_of(store, other)
            if old is not None and new is not None and not same_verdict(old, new):
                store.record_verdict(new)


def p_by_gates(store: ClaimStore, claim_id: str) -> float:
    """The p of a tested claim by its gates, which no other claim has a part in; 1 where its plan was deviated from."""
    if store.deviations(claim_id):
        return 1.0
    return float(_ruled_here(store, claim_id, {}).decision["p"])


def deviate(store: ClaimStore, claim_id: str, what: str, why: str, sesoi: Mapping[str, float] | None = None) -> Deviation:
    """Say openly what is done otherwise than locked; a tested claim is judged again, as *exploratory*.

    Raises UsageError without a reason, or for a bar of a gate that the plan does not have.
    """
    if not what.strip() or not why.strip():
        raise bad_argument("deviation", {"what": what, "why": why}, "what changed and why, both in words")
    plan = store.plan(claim_id)
    check_lock(store.claim(claim_id), plan)
    names = [gate.name for gate in plan.gates]
    for name, bar in (sesoi or {}).items():
        if name not in names:
            raise bad_argument("sesoi", name, ", ".join(names))
        _check_bar(name, bar)
    deviation = Deviation(claim_id, what, why, now(), dict(sesoi or {}))
    store.record_deviation(deviation)
    if store.evidence(claim_id) is not None:
        judge(store, claim_id)
    return deviation


# stating -----------------------------------------------------------------------------------------


def make_plan(
    claim: Claim, source: Population, sizes: Mapping[str, int], sesoi: Mapping[str, float], settings: Mapping[str, Any]
) -> Plan:
    """The plan of a claim, not yet locked. Raises UsageError for SESOIs of unknown gates."""
    gates = gates_for(claim.kind, claim, settings["options"])
    known = {gate.name for gate in gates} | {gate.group for gate in gates}
    for name, value in sesoi.items():
        if name not in known:
            raise bad_argument("sesoi", name, ", ".join(sorted(known)))
        _check_bar(name, value)
    seed = settings["seed"]
    splits = {
        split: {"n": n, "seed": seed, "digest": source.digest(split, n, seed),
                "templates": min(n, source.n_templates(split))}
        for split, n in sizes.items()
    }  # fmt: skip
    more = {"resamples": n} if (n := settings.get("resamples", DRAWS)) != DRAWS else {}
    planned = tuple(gate.plan(sesoi.get(gate.name, sesoi.get(gate.group)), claim.kind, claim, **more) for gate in gates)
    budgets = {method.name: settings["search"].get(method.name, method.budget) for method in searches_for(claim.kind)}
    alpha = settings["alpha"]
    return Plan(
        claim=claim.id, kind=claim.kind, gates=planned, splits=splits, metric=settings["metric"],
        levels={"confirm": alpha, "ood": 2 * alpha},
        family=digest([source.name, splits["confirm"]["digest"]])[:16],
        settings={"shares": METHOD}
        | {key: value for key, value in settings.items() if key not in ("metric", "alpha", "search", *sizes)},
        search={"methods": budgets}, mde={}, rule_version=RULE_VERSION,
    )  # fmt: skip


def _check_bar(name: str, bar: float) -> None:
    if not 0 <= bar <= 1:
        raise bad_argument(f"sesoi of {name}", bar, "0 to 1 (share of the effect)")


def record_look(store: chain.Ledger, model: str, what: str, pairs: Sequence[Any]) -> None:
    """Say in the ledger that these items were measured with this model (its digest) outside of a test."""
    store.append("look", {"what": what, "model": model, "clusters": marks(pairs), "n": len(pairs)})


def claim_id(body: Mapping[str, Any]) -> str:
    """A short id from the content of a claim and the moment it was stated."""
    return f"c-{digest(body)[:10]}"


def seen_gates(gates: Sequence[GatePlan]) -> list[GatePlan]:
    """Gates cheap enough to be tried on tune: all but controls and what needs many runs."""
    costly = ("random", "complement", "untrained", "rival", "instrument", "control", "capacity", "rank", "minimality",
              "stability", "kept alone")  # fmt: skip
    return [gate for gate in gates if gate.group not in costly]


def preconditions(plan: Plan) -> list[GatePlan]:
    """Gates that decide whether there is anything to test."""
    return [gate for gate in plan.gates if get_gate(gate.name).precondition]


def ticket_for(store: ClaimStore, claim: Claim, plan: Plan, subject: str) -> str:
    """The ticket to read confirm with: an unfinished one of this claim, else a new one."""
    entries = store.entries_of(claim.id)
    mine = [entry["body"]["ticket"] for entry in entries if entry["kind"] == "ticket"]
    done = sum(entry["kind"] == "evidence" for entry in entries)
    if len(mine) > done:
        return mine[-1]
    ticket = f"{claim.id}-{len(mine) + 1}"
    store.append("ticket", {"claim": claim.id, "ticket": ticket, "split": "confirm", "subject": subject,
                            "family": plan.family, "data": plan.splits["confirm"]["digest"], "time": now()})  # fmt: skip
    return ticket


def reads_of(store: chain.Ledger, subject: str, plan: Plan, names: Sequence[str]) -> int:
    """How often this subject has met these confirm data (`marks`), this read included."""
    return max(1, store.reads(subject, plan.splits["confirm"]["digest"], names))
