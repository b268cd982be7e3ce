"""Verdicts: a pure function of plan, evidence, counterexamples and rule version.

Rule 2, for a claim with required gates on the splits confirm and ood:

1. *not tested*: no evidence, or the behaviour is not there on confirm. (Not there on ood:
   *inconclusive: behaviour absent*.) Kinds without behaviour gates always have something to test.
2. Instrument problems (leaks between splits, another model, non-finite scores, a required gate that
   could not be measured, a planted truth that came out false) give *inconclusive: instrument*.
3. The k-th read of the same confirm clusters for the same subject is decided at alpha / k^2: the first at all of
   alpha, and however many follow, all of them together at less than 0.65 alpha more (the sum of 1/k^2 is pi^2/6).
4. *refuted*: some required gate is below its SESOI after Holm over all required gates, or a claim
   stated with "always" has a verified counterexample. Exceptions, all *inconclusive*: another
   ablation of the same quantity is above its SESOI (ablation-dependent), or necessity fails while
   the subject is sufficient and so is everything else (redundant). A rival that does as well does not
   make a claim false: a random control alone never refutes, it gives *inconclusive: non-unique*; nor do
   words that do as well, they give *inconclusive: lexical*.
5. *supported*: every required gate beats its SESOI on confirm at alpha and on ood at its own level
   (intersection-union: no correction inside a claim), on at least 8 clusters each, after Holm over
   the claims that share the confirm split, with a finished counterexample search.
6. Counterexamples only lower a verdict. "Always" is refuted by one that was verified; "usually" allows a share of
   failing items (bounded by cluster), "tends" that not significantly more than half fail, both among items drawn beforehand.
7. *inconclusive* with reason codes: everything else. A wide interval is never a refutation.

A verdict holds for the population, corruption and model of its claim. The rule's own error rates
are a property to be measured, not to be read off the code.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from assay.errors import EvidenceError
from assay.evidence.sentence import does_not_show, sentence
from assay.records import Claim, Counterexample, Deviation, Evidence, GateResult, Plan, Verdict, digest, plain
from assay.statistics import clopper_pearson, clusters_needed, holm

RULE_VERSION = "2"
MIN_CLUSTERS = 8
WRONG_SIGN_SHARE = 0.10
# a control that does as well, or another way to switch off that shows the opposite, and what it is called
CONTROLS = {"random": "non-unique", "lexical": "lexical", "ablation": "ablation-dependent"}
STATES = ("supported", "refuted", "inconclusive", "not tested")


@dataclass(frozen=True)
class Ruling:
    """The bare decision, before it is put into words."""

    verdict: str
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    p: float = 1.0
    adjusted: float = 1.0
    alpha: float = 0.05
    more_clusters: int | None = None


def decide(
    claim: Claim,
    plan: Plan,
    evidence: Evidence | None,
    counterexamples: Sequence[Counterexample] = (),
    *,
    rule_version: str = RULE_VERSION,
    family: Mapping[str, float] | None = None,
    deviations: Sequence[Deviation] = (),
) -> Verdict:
    """The verdict. `family`: p of every other claim that shares the confirm split.

    Raises EvidenceError for an unknown rule version, or evidence that belongs to another plan or model.
    """
    if rule_version != RULE_VERSION:
        raise EvidenceError(f"rule version: got {rule_version!r}; allowed: {RULE_VERSION!r}. Use the release"
                            " of Assay that decided this claim.")  # fmt: skip
    if evidence is not None and (evidence.claim, evidence.lock) != (claim.id, plan.lock):
        raise EvidenceError(f"claim {claim.id}: the evidence belongs to another claim or plan.")
    measured = claim.subject.get("digest") if evidence is None else evidence.run.get("digest", claim.subject.get("digest"))
    if measured != claim.subject.get("digest"):
        raise EvidenceError(f"claim {claim.id}: the evidence was measured on another model ({str(measured)[:12]}) than"
                            " the claim is about. It never counts.")  # fmt: skip
    others = dict(sorted((family or {}).items()))
    ruling = rule(claim, plan, evidence, counterexamples, others)
    gates = () if evidence is None else evidence.gates
    qualifiers = qualifiers_of(plan, evidence, ruling.reasons, deviations)
    decision = {
        "p": ruling.p, "p_adjusted": ruling.adjusted, "alpha": ruling.alpha, "family": others,
        "reads": 0 if evidence is None else evidence.reads, "notes": list(ruling.notes),
        "more_clusters": ruling.more_clusters, "evidence": None if evidence is None else digest(evidence),
        **({"deviations": [digest(deviation) for deviation in deviations]} if deviations else {}),
    }  # fmt: skip
    return Verdict(
        claim.id, claim.kind, ruling.verdict, ruling.reasons, qualifiers,
        tuple(gate_json(gate, level_of(plan, evidence, gate)) for gate in gates),
        sentence(claim, plan, ruling.verdict, ruling.reasons, gates),
        does_not_show(claim, ruling.verdict, gates), rule_version, decision,
        wrong_signs(evidence, counterexamples), unexplained(gates),
    )  # fmt: skip


def rule(
    claim: Claim,
    plan: Plan,
    evidence: Evidence | None,
    counterexamples: Sequence[Counterexample],
    family: Mapping[str, float],
) -> Ruling:
    """The bare decision, steps 1 to 7."""
    alpha = plan.levels["confirm"]
    if evidence is None:
        return Ruling("not tested", ("confirm unread",), alpha=alpha)
    charged = alpha * charge(evidence.reads)
    if absent := absent_behaviour(plan, evidence.gates, "confirm", alpha):
        if too_few := few_clusters(evidence.gates):
            short = missing_clusters([gate for gate in evidence.gates if gate.group == "behaviour"])
            return Ruling("inconclusive", ("underpowered",), too_few, alpha=charged, more_clusters=short)
        return Ruling("not tested", ("behaviour absent",), absent, alpha=charged)
    required, missing = required_gates(plan, evidence)
    if broken := (*evidence.flags, *broken_instrument(plan, evidence.gates, alpha)):
        return Ruling("inconclusive", ("instrument",), broken, alpha=charged)
    for split in plan.levels:
        if absent := absent_behaviour(plan, evidence.gates, split, plan.levels[split]):
            return Ruling("inconclusive", ("behaviour absent",), absent, alpha=charged)
    if missing:
        return Ruling("inconclusive", ("instrument",), missing, alpha=charged)
    p = claim_p(plan, required)
    adjusted = holm([p, *family.values()])[0]
    refuting, excused = refutations(required, evidence.gates, charged)
    verified = [hit for hit in counterexamples if hit.status == "verified"]
    if refuting or (claim.quantifier == "always" and verified):
        reasons = ("below SESOI",) * bool(refuting)
        reasons += ("counterexample",) * (claim.quantifier == "always" and bool(verified))
        return Ruling("refuted", reasons, tuple(gate.label for gate in refuting), p, adjusted, charged)
    reasons = dict.fromkeys(excused.values())
    notes = [f"{label}: below its bar, but {code}" for label, code in excused.items()]
    failing = [gate for gate in required if gate.p_above > level_of(plan, evidence, gate)]
    unexcused = [gate for gate in failing if gate.label not in excused]
    for code, note in doubts(claim, plan, evidence, required, unexcused):
        reasons.setdefault(code)
        notes.append(note)
    if not failing and adjusted > charged:
        reasons.setdefault("underpowered")
        notes.append(f"p {p:.3g} is {adjusted:.3g} after Holm over {len(family) + 1} claims on this confirm split")
    more = max(filter(None, (more_clusters(failing, charged), missing_clusters(required))), default=None)
    if reasons or failing or adjusted > charged:
        reasons = reasons or {"underpowered": None}
        return Ruling("inconclusive", tuple(reasons), tuple(notes), p, adjusted, charged, more)
    return Ruling("supported", (), (), p, adjusted, charged)


# the parts of the rule ---------------------------------------------------------------------------


def absent_behaviour(plan: Plan, gates: Sequence[GateResult], split: str, alpha: float) -> tuple[str, ...]:
    """Why there is nothing to test on a split: behaviour gates that are not above their bar."""
    if all(gate.group != "behaviour" for gate in plan.gates):
        return ()
    found = [gate for gate in gates if gate.group == "behaviour" and gate.split == split]
    if not found:
        return (f"the behaviour was not measured on {split}",)
    return tuple(f"{gate.label}: p {gate.p_above:.3g}" for gate in found if gate.p_above > alpha)


def broken_instrument(plan: Plan, gates: Sequence[GateResult], alpha: float) -> tuple[str, ...]:
    """Planted truths and falsehoods that did not come out as they must, or were not measured on confirm. Those that
    change everything at once ("everything") cannot be measured on every model."""
    found = [gate for gate in gates if gate.group == "instrument" and gate.p_below <= alpha]
    wrong = [f"{gate.label}: {gate.estimate:.2f}, must be above {gate.sesoi:g}" for gate in found]
    there = {gate.name for gate in gates if gate.split == "confirm"}
    planned = (gate.name for gate in plan.gates if gate.group == "instrument" and not gate.name.endswith("everything"))
    return (*wrong, *(f"{name} was not measured on confirm" for name in planned if name not in there))


def few_clusters(gates: Sequence[GateResult]) -> tuple[str, ...]:
    """Behaviour gates whose estimates are above their bars, on too few clusters to show it."""
    found = [gate for gate in gates if gate.group == "behaviour" and gate.split == "confirm"]
    low = [gate for gate in found if gate.estimate is not None and gate.estimate <= gate.sesoi]
    few = [gate for gate in found if gate.sample.get("K", 0) < MIN_CLUSTERS]
    return () if low else tuple(f"{gate.label}: {gate.sample.get('K', 0)} clusters, {MIN_CLUSTERS} needed" for gate in few)


def required_gates(plan: Plan, evidence: Evidence) -> tuple[list[GateResult], tuple[str, ...]]:
    """The deciding gates on every sealed split, and what is missing of them."""
    found = {(gate.name, gate.split): gate for gate in evidence.gates}
    wanted = [(gate.name, split) for split in plan.levels for gate in plan.gates if gate.required]
    missing = tuple(f"{name} was not measured on {split}" for name, split in wanted if (name, split) not in found)
    return [found[key] for key in wanted if key in found], missing


def level_of(plan: Plan, evidence: Evidence | None, gate: GateResult) -> float:
    """The level a gate must reach: the split's alpha, less what earlier reads cost."""
    return plan.levels.get(gate.split, plan.levels["confirm"]) * charge(1 if evidence is None else evidence.reads)


def charge(reads: int) -> float:
    """The share of alpha that the k-th read is decided at, 1/k^2. The sum over all reads is finite, that of 1/k is not."""
    return 1 / max(1, reads) ** 2


def claim_p(plan: Plan, required: Sequence[GateResult]) -> float:
    """One p per claim: the largest over gates and splits, each split put on confirm's scale."""
    alpha = plan.levels["confirm"]
    scaled = [gate.p_above * alpha / plan.levels[gate.split] for gate in required]
    return min(1.0, max(scaled, default=1.0))


def refutations(
    required: Sequence[GateResult], gates: Sequence[GateResult], alpha: float
) -> tuple[list[GateResult], dict[str, str]]:
    """Required gates significantly below their SESOI, and the reason codes of those excused."""
    adjusted = holm([gate.p_below for gate in required])
    refuting: list[GateResult] = []
    excused: dict[str, str] = {}
    for gate, p in zip(required, adjusted, strict=True):
        if p > alpha:
            continue
        code = excuse(gate, gates, alpha)
        if code is None:
            refuting.append(gate)
        else:
            excused[gate.label] = code
    return refuting, excused


def excuse(gate: GateResult, gates: Sequence[GateResult], alpha: float) -> str | None:
    """Why a gate below its SESOI does not refute the claim, if there is a reason."""
    here = [other for other in gates if other.split == gate.split]
    twins = [other for other in here if other.group == gate.group and other.required and other.name != gate.name]
    if gate.group == "necessity" and any(twin.p_above <= alpha for twin in twins):
        return "ablation-dependent"
    if gate.group in CONTROLS:
        return CONTROLS[gate.group]
    sufficient = any(other.group == "sufficiency" and other.p_above <= alpha for other in here)
    doubled = any(other.group == "complement" and (other.low or 0.0) >= other.sesoi for other in here)
    return "redundant" if gate.group == "necessity" and sufficient and doubled else None


def doubts(
    claim: Claim, plan: Plan, evidence: Evidence, required: Sequence[GateResult], failing: Sequence[GateResult]
) -> list[tuple[str, str]]:
    """Everything that keeps a claim from being supported: (reason code, note)."""
    found = []
    for gate in required:
        if gate.sample.get("K", 0) < MIN_CLUSTERS:
            found.append(("underpowered", f"{gate.label}: {gate.sample.get('K', 0)} clusters, {MIN_CLUSTERS} needed"))
    passed = [gate for gate in required if gate not in failing]
    for gate in failing:
        found.append((_why(gate, passed), f"{gate.label}: p {gate.p_above:.3g}"))
    if not evidence.search.get("complete", False):
        found.append(("search incomplete", "the counterexample search was not finished"))
    if claim.quantifier in ("usually", "always"):
        hits, n = evidence.search.get("hits", 0), evidence.search.get("candidates", 0)
        if n and failing_share(evidence)[1] > WRONG_SIGN_SHARE:
            found.append(("counterexamples", f"{hits} of {n} pairs have the wrong sign; {WRONG_SIGN_SHARE:.0%} allowed"))
    found += [("counterexamples", note) for note in mostly_failing(evidence)]
    return found


def failing_share(evidence: Evidence) -> tuple[float, float]:
    """95% bounds of the share of sampled items that fail: by cluster where a search says so, the outer of several; evidence
    from before searches did is judged as it was then, as if items were independent."""
    sampled = [found for found in evidence.search.get("methods", {}).values() if found.get("sampled")]
    if not any("high" in found for found in sampled):
        return clopper_pearson(int(evidence.search.get("hits", 0)), int(evidence.search.get("candidates", 0)))
    bounds = [(found["low"], found["high"]) if "high" in found else clopper_pearson(found["hits"], found["tried"])
              for found in sampled]  # fmt: skip
    return min(low for low, _ in bounds), max(high for _, high in bounds)


def mostly_failing(evidence: Evidence) -> list[str]:
    """Sampled searches in which significantly more than half of the items fail: then nothing "tends to" hold.

    Methods that hunt for failures are left out: how often they succeed is a property of the hunt.
    """
    sampled = {name: m for name, m in evidence.search.get("methods", {}).items() if m.get("sampled") and m.get("tried")}
    return [f"{name}: {m['hits']} of {m['tried']} fail, more than half" for name, m in sorted(sampled.items())
            if clopper_pearson(m["hits"], m["tried"])[0] > 0.5]  # fmt: skip


def _why(gate: GateResult, passed: Sequence[GateResult]) -> str:
    """The reason code of one gate that did not pass."""
    estimate = gate.estimate if gate.estimate is not None else 0.0
    twins = [other for other in passed if other.group == gate.group and other.split == gate.split]
    if estimate < gate.sesoi and gate.group == "necessity" and twins:
        return "ablation-dependent"
    if estimate <= gate.sesoi and gate.group in CONTROLS:
        return CONTROLS[gate.group]
    if estimate < gate.sesoi and passed:
        return "conflicting gates"
    return "underpowered"


def more_clusters(failing: Sequence[GateResult], alpha: float) -> int | None:
    """How many more clusters per split would settle the gate that needs most; None if unknown."""
    needs = []
    for gate in failing:
        sd, k = gate.sample.get("sd"), int(gate.sample.get("K") or 0)
        total = gate.sample.get("needed")  # gates that are decided by an exact count say it themselves
        if total is None and gate.estimate is not None and sd is not None:
            total = clusters_needed(gate.estimate, sd, gate.sesoi, alpha)
        if total is None:
            return None
        needs.append(max(1, total - k))
    return max(needs, default=None)


def missing_clusters(gates: Sequence[GateResult]) -> int | None:
    """How many clusters the gate with the fewest lacks to be able to support anything; None when it lacks none."""
    short = max((MIN_CLUSTERS - int(gate.sample.get("K") or 0) for gate in gates), default=0)
    return short if short > 0 else None


def qualifiers_of(
    plan: Plan, evidence: Evidence | None, reasons: Sequence[str], deviations: Sequence[Deviation] = ()
) -> tuple[str, ...]:
    """Labels that go with any verdict. A reported rival that is not beaten makes a claim non-unique; sealed data
    seen before, or any deviation from the plan, makes it exploratory."""
    if evidence is None:
        return ("exploratory",) * bool(deviations)
    rivals = [gate for gate in evidence.gates if gate.group == "rival" and gate.split == "confirm"]
    matched = any(gate.p_above > level_of(plan, evidence, gate) for gate in rivals)
    names = {"exploratory": bool(deviations) or any(data.get("looked") for data in evidence.data.values()),
             "reused split": evidence.reads > 1, "non-unique": "non-unique" in reasons or matched,
             "lexical": "lexical" in reasons}  # fmt: skip
    return tuple(name for name, holds in names.items() if holds)


def wrong_signs(evidence: Evidence | None, counterexamples: Sequence[Counterexample]) -> dict:
    """Counterexamples as shown: counts, share with bounds, and the worst."""
    if evidence is None:
        return {}
    hits, n = int(evidence.search.get("hits", 0)), int(evidence.search.get("candidates", 0))
    low, high = failing_share(evidence)
    worst = sorted(counterexamples, key=lambda hit: hit.score)[:10]
    return {"hits": hits, "candidates": n, "methods": plain(evidence.search.get("methods", {})),
            "share": hits / n if n else None, "low": low, "high": high,
            "verified": sum(hit.status == "verified" for hit in counterexamples),
            "worst": [plain(hit) for hit in worst]}  # fmt: skip


def unexplained(gates: Sequence[GateResult]) -> dict:
    """What the subject leaves open, per split: the larger of two shares, clipped to [0, 1], and both.

    `not_restored`: 1 - share of the effect that the subject alone brings back. `left_when_ablated`: share
    of the clean metric that stays when the subject is mean-ablated.
    """
    found = {}
    for split in dict.fromkeys(gate.split for gate in gates):
        here = {gate.name: gate.estimate for gate in gates if gate.split == split}
        restored, dropped = here.get("sufficiency"), here.get("necessity.mean")
        margin, span = here.get("behaviour.margin"), here.get("behaviour.span")
        shares = {} if restored is None else {"not_restored": 1 - restored}
        if dropped is not None and span is not None and margin:
            shares["left_when_ablated"] = 1 - dropped * span / margin
        if shares:
            found[split] = {"share": min(1.0, max(0.0, *shares.values())), **shares}
    return found


def gate_json(gate: GateResult, level: float) -> dict:
    """One gate with the keys scripts rely on."""
    return {
        "name": gate.label, "estimate": gate.estimate, "low": gate.low, "high": gate.high, "sesoi": gate.sesoi,
        "p": gate.p_above, "passed": gate.p_above <= level, "p_below": gate.p_below, "required": gate.required,
        "group": gate.group, "split": gate.split, "level": level, **plain(gate.sample), "tables": plain(gate.tables),
    }  # fmt: skip
