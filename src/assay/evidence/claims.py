"""Claims: state and lock, test, derive again.

1. `state_claim` writes the claim and its plan, with the smallest detectable effect measured on tune
   data, and locks both by hash. Nothing of confirm or ood has been read.
2. `test_claim` spends a ticket in the ledger, then reads confirm and ood, measures every gate, looks
   for counterexamples, and stores evidence and verdict.
3. Claims of other subjects that share the confirm split are judged again, because Holm's correction
   changes with every member of the family.
4. `rederive` makes gates from stored tables and the verdict from gates, without a model.

A killed run leaves a ticket without evidence; testing the claim again uses that ticket.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

from assay.errors import EvidenceError, TamperedError, bad_argument
from assay.evidence import ledger as chain
from assay.evidence.gates import evaluate, gates_for, get_gate
from assay.evidence.ledger import Entry, now
from assay.evidence.search import searches_for
from assay.evidence.source import Population, clusters
from assay.evidence.verdicts import RULE_VERSION, decide
from assay.records import Claim, Counterexample, Evidence, GatePlan, GateResult, Plan, Verdict, digest, plain

QUANTIFIERS = ("tends", "usually", "always")


@runtime_checkable
class ClaimStore(chain.Ledger, Protocol):
    """Where claims live. Every `record_*` writes rows and ledger entry in one transaction."""

    def record_claim(self, claim: Claim, plan: Plan) -> None: ...

    def record_evidence(self, evidence: Evidence, counterexamples: Sequence[Counterexample]) -> None: ...

    def record_verdict(self, verdict: Verdict) -> None: ...

    def claim(self, claim_id: str) -> Claim: ...

    def plan(self, claim_id: str) -> Plan: ...

    def evidence(self, claim_id: str) -> Evidence | None: ...

    def counterexamples(self, claim_id: str) -> list[Counterexample]: ...

    def verdict(self, claim_id: str) -> Verdict | None: ...


# locks -------------------------------------------------------------------------------------------


def lock_of(claim: Claim, plan: Plan) -> str:
    """SHA-256 of the canonical JSON of a claim and its plan (without the lock itself)."""
    return digest([claim, replace(plan, lock="")])


def check_lock(claim: Claim, plan: Plan) -> None:
    """Raises TamperedError when claim or plan differ from what was locked."""
    if lock_of(claim, plan) != plan.lock or plan.claim != claim.id:
        raise TamperedError(f"claim {claim.id}: claim or plan differ from what was locked. Restore the atlas"
                            " from a copy, or state the claim again.")  # fmt: skip


def warnings_of(plan: Plan) -> list[str]:
    """What a careful person would change before testing."""
    found = []
    for gate in plan.gates:
        size = plan.mde.get(gate.name)
        if size is not None and gate.required and size > 2 * gate.sesoi:
            found.append(f"{gate.name}: effects below {gate.sesoi + size:.2f} would probably be missed"
                         f" (SESOI {gate.sesoi:g}, MDE {size:.2f}); use more templates.")  # fmt: skip
    for split in plan.levels:
        if plan.splits[split]["templates"] < 8:
            found.append(f"{split}: {plan.splits[split]['templates']} templates; fewer than 8 can never be supported.")
    return found


# deriving ----------------------------------------------------------------------------------------


def derive_gates(plan: Plan, tables: Mapping[str, Mapping[str, Any]]) -> tuple[GateResult, ...]:
    """All gates on all measured splits, from stored columns."""
    found = []
    for split, table in tables.items():
        alpha = plan.levels.get(split, plan.levels["confirm"])
        for gate in plan.gates:
            result = evaluate(gate, split, table, alpha, plan.settings["seed"])
            if result is not None:
                found.append(result)
    return tuple(found)


def family_of(store: ClaimStore, claim_id: str, entries: Sequence[Entry] | None = None) -> dict[str, float]:
    """p of every claim of another subject whose confirm data share a cluster with this claim's.

    A claim whose data were read but that has no verdict counts with p = 1.
    """
    entries = store.entries() if entries is None else entries
    own = [entry["body"] for entry in entries if entry["kind"] == "data" and entry["body"]["claim"] == claim_id
           and entry["body"]["split"] == "confirm"]  # fmt: skip
    if not own:
        return {}
    found = {}
    for other in chain.sharing(entries, own[-1]["subject"], own[-1]["clusters"]):
        verdict = store.verdict(other)
        found[other] = 1.0 if verdict is None else float(verdict.decision["p"])
    return found


def verdict_of(store: ClaimStore, claim_id: str, entries: Sequence[Entry] | None = None) -> Verdict:
    """The verdict that the rule gives for the stored gates. Raises TamperedError on a broken lock."""
    claim, plan, evidence = store.claim(claim_id), store.plan(claim_id), store.evidence(claim_id)
    check_lock(claim, plan)
    if evidence is None:
        return decide(claim, plan, None)
    return decide(claim, plan, evidence, store.counterexamples(claim_id), family=family_of(store, claim_id, entries))


def rederive(store: ClaimStore, claim_id: str, entries: Sequence[Entry] | None = None) -> Verdict:
    """The verdict from stored tables, without a model: gates from measurements, verdict from gates.

    Raises TamperedError on a broken lock, or when the stored gates do not follow.
    """
    verdict = verdict_of(store, claim_id, entries)
    evidence = store.evidence(claim_id)
    if evidence is not None and not same_gates(derive_gates(store.plan(claim_id), evidence.tables), evidence.gates):
        raise TamperedError(f"claim {claim_id}: the stored gates do not follow from the stored measurements.")
    return verdict


def same_gates(a: Sequence[GateResult], b: Sequence[GateResult], tolerance: float = 1e-6) -> bool:
    """Equal numbers within rounding: the arithmetic may run on another machine."""
    return _close(plain(a), plain(b), tolerance)


def same_verdict(a: Verdict, b: Verdict) -> bool:
    """Same decision, reasons and numbers within rounding."""
    return _close(plain(a), plain(b), 1e-6)


def _close(a: Any, b: Any, tolerance: float) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_close(a[key], b[key], tolerance) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(_close(x, y, tolerance) for x, y in zip(a, b, strict=True))
    if isinstance(a, float | int) and isinstance(b, float | int):
        return math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance)
    return a == b


def audit(store: ClaimStore, claim_id: str, entries: Sequence[Entry] | None = None) -> list[str]:
    """What does not hold about a stored claim: hashes against the ledger, verdict against the rule."""
    entries = store.entries() if entries is None else entries
    claim, plan, evidence, verdict = (
        store.claim(claim_id), store.plan(claim_id), store.evidence(claim_id), store.verdict(claim_id)
    )  # fmt: skip
    problems = []
    logged: dict[str, dict[str, Any]] = {}
    for entry in entries:
        if entry["body"].get("claim") == claim_id:
            logged[entry["kind"]] = entry["body"]
    expected = {"state": digest(claim), "lock": plan.lock, "evidence": evidence and evidence_digest(
        evidence, store.counterexamples(claim_id)), "verdict": verdict and digest(verdict)}  # fmt: skip
    for kind, value in expected.items():
        if (logged.get(kind) or {}).get("digest") != value:
            problems.append(f"claim {claim_id}: the stored {kind} is not the one in the ledger")
    try:
        fresh = rederive(store, claim_id, entries)
    except EvidenceError as error:
        return [*problems, str(error)]
    if verdict is not None and not same_verdict(fresh, verdict):
        problems.append(f"claim {claim_id}: the stored verdict ({verdict.verdict}) does not follow from the"
                        f" stored evidence ({fresh.verdict})")  # fmt: skip
    return problems


def evidence_digest(evidence: Evidence, counterexamples: Sequence[Counterexample]) -> str:
    """Hash of evidence and counterexamples together."""
    return digest([evidence, list(counterexamples)])


def judge(store: ClaimStore, claim_id: str) -> Verdict:
    """Decide and record the verdict of a claim, then those of its family where they changed."""
    verdict = verdict_of(store, claim_id)
    store.record_verdict(verdict)
    entries = store.entries()
    for other in family_of(store, claim_id, entries):
        old = store.verdict(other)
        new = None if old is None else verdict_of(store, other, entries)
        if old is not None and new is not None and not same_verdict(old, new):
            store.record_verdict(new)
    return verdict


# stating -----------------------------------------------------------------------------------------


def make_plan(
    claim: Claim, source: Population, sizes: Mapping[str, int], sesoi: Mapping[str, float], settings: Mapping[str, Any]
) -> Plan:
    """The plan of a claim, not yet locked. Raises UsageError for SESOIs of unknown gates."""
    gates = gates_for(claim.kind)
    known = {gate.name for gate in gates} | {gate.group for gate in gates}
    for name, value in sesoi.items():
        if name not in known:
            raise bad_argument("sesoi", name, ", ".join(sorted(known)))
        if not 0 <= value <= 1:
            raise bad_argument(f"sesoi of {name}", value, "0 to 1 (share of the effect)")
    seed = settings["seed"]
    splits = {
        split: {"n": n, "seed": seed, "digest": source.digest(split, n, seed),
                "templates": min(n, source.n_templates(split))}
        for split, n in sizes.items()
    }  # fmt: skip
    planned = tuple(gate.plan(sesoi.get(gate.name, sesoi.get(gate.group)), claim.kind) for gate in gates)
    budgets = {method.name: settings["search"].get(method.name, method.budget) for method in searches_for(claim.kind)}
    alpha = settings["alpha"]
    return Plan(
        claim=claim.id, kind=claim.kind, gates=planned, splits=splits, metric=settings["metric"],
        levels={"confirm": alpha, "ood": 2 * alpha},
        family=digest([source.name, splits["confirm"]["digest"]])[:16],
        settings={key: value for key, value in settings.items() if key not in ("metric", "alpha", "search", *sizes)},
        search={"methods": budgets}, mde={}, rule_version=RULE_VERSION,
    )  # fmt: skip


def record_look(store: chain.Ledger, model: str, what: str, pairs: Sequence[Any]) -> None:
    """Say in the ledger that these items were measured with this model (its digest) outside of a test."""
    store.append("look", {"what": what, "model": model, "clusters": clusters(pairs), "n": len(pairs)})


def claim_id(body: Mapping[str, Any]) -> str:
    """A short id from the content of a claim and the moment it was stated."""
    return f"c-{digest(body)[:10]}"


def seen_gates(gates: Sequence[GatePlan]) -> list[GatePlan]:
    """Gates cheap enough to be tried on tune: all but controls and complement."""
    return [gate for gate in gates if gate.group not in ("random", "complement", "untrained", "rival", "instrument")]


def preconditions(plan: Plan) -> list[GatePlan]:
    """Gates that decide whether there is anything to test."""
    return [gate for gate in plan.gates if get_gate(gate.name).precondition]


def ticket_for(store: ClaimStore, claim: Claim, plan: Plan, subject: str) -> str:
    """The ticket to read confirm with: an unfinished one of this claim, else a new one."""
    entries = store.entries()
    mine = [e["body"]["ticket"] for e in entries if e["kind"] == "ticket" and e["body"]["claim"] == claim.id]
    done = sum(entry["kind"] == "evidence" and entry["body"]["claim"] == claim.id for entry in entries)
    if len(mine) > done:
        return mine[-1]
    ticket = f"{claim.id}-{len(mine) + 1}"
    store.append("ticket", {"claim": claim.id, "ticket": ticket, "split": "confirm", "subject": subject,
                            "family": plan.family, "data": plan.splits["confirm"]["digest"], "time": now()})  # fmt: skip
    return ticket


def reads_of(entries: Sequence[Entry], subject: str, plan: Plan, pairs: Sequence[Any]) -> int:
    """How often this subject has met these confirm clusters, this read included."""
    return max(1, chain.count_reads(entries, subject, plan.splits["confirm"]["digest"], clusters(pairs)))
