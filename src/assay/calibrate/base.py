"""What it takes to test the battery on claims of one kind, and how a kind is added: one file, one registration.

1. A *family* makes claims whose truth is known, one per seed: `null` (nothing is there), `false` (there is
   something, but not what is claimed), `true` (it holds) and `ladder` (its effect is a known multiple of the
   smallest effect of interest of one gate, the *binding* gate of the kind; all other gates are then passed by
   a wide margin, as far as the world allows).
2. Every claim goes the road of any other claim: stated and locked in a store of its own, tested, judged.
3. What is kept of it: verdict, reasons, every gate's numbers, and which required gates are the only ones
   between the claim and *supported* (the rule is applied again without each of them).

Planted claims say how the battery behaves where its assumptions can be arranged; `assay calibrate MODEL` asks
the same of a model whose truth nobody knows.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from assay.evidence.claims import family_of
from assay.evidence.memory import MemoryStore
from assay.evidence.run import Settings, Statement, drafted, record_draft, test_claim
from assay.evidence.verdicts import rule
from assay.records import Claim, Evidence, Plan
from assay.registry import Registry

Truth = Literal["null", "false", "true", "ladder"]
LADDER = (0.5, 1.0, 1.5, 2.0)  # multiples of the binding gate's smallest effect of interest


@dataclass(frozen=True, eq=False)
class Case:
    """One claim whose truth is known. `truth`: population value by gate, where it is known."""

    model: Any
    source: Any
    subject: Any
    truth: Mapping[str, float] = field(default_factory=dict)
    corpus: tuple[str, ...] = ()
    quantifier: str = "tends"


@dataclass(frozen=True)
class Family:
    """Claims of one sort. `effect`: of a ladder, in units of the binding gate's smallest effect of interest. `slow`: a model is
    trained for it first, so that it is left out of quick runs."""

    name: str
    truth: Truth
    make: Callable[[int], Case]
    what: str
    effect: float | None = None
    settings: Settings | None = None
    slow: bool = False


@dataclass(frozen=True)
class Calibration:
    """How one claim kind is put to the test. `quick`, `full`: claims per family of each truth. `name`: where a kind has
    more than one, as claims about other things have gates of their own; as it is registered."""

    kind: str
    binding: str
    families: tuple[Family, ...]
    settings: Settings
    full: Mapping[str, int]
    quick: Mapping[str, int]
    note: str = ""
    name: str = ""

    @property
    def label(self) -> str:
        """What it is called."""
        return self.name or self.kind

    def count(self, family: Family, full: bool, n: int | None = None) -> int:
        """Claims of a family in a run; `n`: instead of the usual number."""
        if family.slow and not full:
            return 0
        return (self.full if full else self.quick).get(family.truth, 0) if n is None else n


CALIBRATIONS: Registry[Calibration] = Registry("calibration")


def ladder(make: Callable[[int, float], Case], what: str, settings: Settings | None = None) -> tuple[Family, ...]:
    """One family per rung: make(seed, effect in units of the smallest effect of interest)."""
    def at(effect: float) -> Callable[[int], Case]:
        return lambda seed: make(seed, effect)

    return tuple(Family(f"{effect:g} x SESOI", "ladder", at(effect), what, effect, settings) for effect in LADDER)


@dataclass(frozen=True)
class Outcome:
    """What came of one claim. `gates`: label -> (estimate, low, high, p, passed, required); `only`: the gates
    without any one of which the claim would be supported."""

    kind: str
    family: str
    seed: int
    verdict: str
    reasons: tuple[str, ...]
    gates: dict[str, tuple[float | None, float | None, float | None, float, bool, bool]]
    only: tuple[str, ...]
    truth: dict[str, float]


def try_case(calibration: Calibration, family: Family, seed: int) -> Outcome:
    """State, lock, test and judge one claim, in a store of its own."""
    store, case = MemoryStore(), family.make(seed)
    settings = replace(family.settings or calibration.settings, seed=seed)
    draft = drafted(store, case.model, case.source, case.subject, statement=Statement(calibration.kind, case.quantifier),
                    settings=settings)  # fmt: skip
    claim, _ = record_draft(store, draft)
    verdict = test_claim(store, claim.id, case.model, source=case.source, corpus=case.corpus)
    evidence = store.evidence(claim.id)
    gates = {gate["name"]: (gate["estimate"], gate["low"], gate["high"], gate["p"], gate["passed"], gate["required"])
             for gate in verdict.gates}  # fmt: skip
    only = () if evidence is None else alone(store, claim, store.plan(claim.id), evidence)
    return Outcome(calibration.kind, family.name, seed, verdict.verdict, verdict.reasons, gates, only, dict(case.truth))


def alone(store: MemoryStore, claim: Claim, plan: Plan, evidence: Evidence) -> tuple[str, ...]:
    """Required gates without any one of which the rule would say *supported*."""
    hits, family = store.counterexamples(claim.id), family_of(store, claim.id)
    if rule(claim, plan, evidence, hits, family).verdict == "supported":
        return ()
    found = []
    for gate in plan.gates:
        failed = any(result.name == gate.name and result.p_above > plan.levels.get(result.split, 0.05)
                     for result in evidence.gates)  # fmt: skip
        if not gate.required or not failed:
            continue
        fewer = replace(plan, gates=tuple(other for other in plan.gates if other.name != gate.name))
        rest = replace(evidence, gates=tuple(result for result in evidence.gates if result.name != gate.name))
        if rule(claim, fewer, rest, hits, family).verdict == "supported":
            found.append(gate.name)
    return tuple(found)
