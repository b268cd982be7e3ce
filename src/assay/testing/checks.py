"""Public check suites: what every gate and every kind of claim must do, ours and yours.

    check_gate("mine", Planted("represents", host, source, true_feature, settings),
                       Planted("represents", host, source, false_feature, settings))

A gate must pass a planted truth and stop a planted falsehood; its contrast must be pure: the same numbers from
stored columns, in whatever order they come, without the model; and it must say `KeyError` where its columns are
missing, so that a required gate that was not measured is never taken for one that passed.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from assay.evidence.claims import derive_gates, rederive, same_verdict
from assay.evidence.gates import get_gate
from assay.evidence.gates.base import clusters_of
from assay.evidence.memory import MemoryStore
from assay.evidence.run import Settings, Statement, drafted, record_draft, test_claim
from assay.records import Evidence, GateResult, Plan, Verdict


@dataclass(frozen=True, eq=False)
class Planted:
    """One claim whose truth is known: its kind, what holds it, its data, what it names, how it is measured."""

    kind: str
    host: Any
    source: Any
    subject: Any
    settings: Settings


@dataclass(frozen=True)
class Tried:
    """What came of a planted claim."""

    plan: Plan
    evidence: Evidence
    verdict: Verdict
    again: Verdict

    def gate(self, name: str) -> GateResult:
        """A gate on confirm. Raises AssertionError when it was not measured."""
        found = [gate for gate in self.evidence.gates if gate.name == name and gate.split == "confirm"]
        assert found, f"{name}: not measured; measured: {sorted({gate.name for gate in self.evidence.gates})}"
        return found[0]


def tried(planted: Planted) -> Tried:
    """State, lock, test and judge a planted claim, in a store of its own. Raises AssertionError when nothing of
    it was measured."""
    store = MemoryStore()
    draft = drafted(store, planted.host, planted.source, planted.subject, statement=Statement(planted.kind),
                    settings=planted.settings)  # fmt: skip
    claim, plan = record_draft(store, draft)
    verdict = test_claim(store, claim.id, planted.host, source=planted.source)
    evidence = store.evidence(claim.id)
    assert evidence is not None and evidence.tables, f"nothing was measured: {verdict.sentence}"
    return Tried(plan, evidence, verdict, rederive(store, claim.id))


def check_gate(gate: str | Sequence[str], true: Planted, false: Planted) -> tuple[Tried, Tried]:
    """What came of the two claims. Raises AssertionError, saying what, when a gate, or one of several, does not do its job on
    them."""
    passing, stopped = tried(true), tried(false)
    names, level = [gate] if isinstance(gate, str) else list(gate), passing.plan.levels["confirm"]
    for name in names:
        good, bad = passing.gate(name), stopped.gate(name)
        assert good.p_above <= level, f"{name}: the planted truth does not pass ({good.estimate} against {good.sesoi})"
        assert bad.p_above > level, f"{name}: the planted falsehood passes ({bad.estimate} against {bad.sesoi})"
    for found in (passing, stopped):
        check_pure(found, names)
    return passing, stopped


def check_pure(found: Tried, names: Iterable[str]) -> None:
    """Raises AssertionError when gates or verdict do not follow from stored columns alone, in any order."""
    table = found.evidence.tables["confirm"]
    turned = {**table, "columns": dict(reversed(list(table["columns"].items())))}
    again = {gate.name: gate for gate in derive_gates(found.plan, {"confirm": turned})}
    for name in names:
        assert again[name] == found.gate(name), f"{name}: other numbers when the columns come in another order"
        plan = next(gate for gate in found.plan.gates if gate.name == name)
        contrast = get_gate(name).contrast(table, plan)
        assert len(contrast.values) == len(clusters_of(contrast, table)), f"{name}: a contrast must have one value per item"
        try:
            get_gate(name).contrast({**table, "columns": {}}, plan)
        except KeyError:
            continue
        raise AssertionError(f"{name}: no KeyError without its columns: a gate that was not measured would count")
    assert same_verdict(found.verdict, found.again), "the verdict does not follow from what was stored"
