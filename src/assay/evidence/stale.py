"""Stale: a verdict that stands, about something that has changed since.

1. The model: another weights digest, or another tokenizer. Which token a text becomes, and whether a BOS
   token is put before it, is part of what was measured, so the tokenizer has a digest of its own.
2. A gate whose code has another version now, or that is gone; another version of the rule.
3. The data: the source gives other texts for a split than those that were locked.

A stale verdict is not false and is not changed: it says nothing about what is there now. Nothing here
needs the model, unless one is given to compare with.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from assay.errors import AssayError
from assay.evidence.claims import ClaimStore
from assay.evidence.gates.base import GATES, get_gate
from assay.evidence.source import Population, source_of
from assay.evidence.verdicts import RULE_VERSION
from assay.records import Claim, Plan, Verdict


def stale_reasons(store: ClaimStore, claim: Claim, model: Any = None, *, source: Population | None = None) -> list[str]:
    """Why the verdict of a claim is about something else than what is there now; empty when it is not.

    `model`: the model as it is now, where it is at hand. `source`: the data, where they live in memory.
    """
    plan = store.plan(claim.id)
    return [*other_model(claim, model), *changed_code(plan, store.verdict(claim.id)), *other_data(claim, plan, source)]


def with_stale(verdict: Mapping[str, Any], reasons: Sequence[str]) -> dict[str, Any]:
    """The JSON twin of a verdict with the qualifier *stale* where it is; what is stored stays as it was."""
    qualifiers = [*verdict["qualifiers"], *(["stale"] if reasons else [])]
    return {**verdict, "qualifiers": qualifiers, "stale": list(reasons)}


def changed_code(plan: Plan, verdict: Verdict | None) -> list[str]:
    """Gates and rule of another version than the one that decided. Costs nothing: for lists."""
    found = other_gates(plan)
    if verdict is not None and verdict.rule_version != RULE_VERSION:
        found.append(f"the rule was version {verdict.rule_version}, it is {RULE_VERSION} now")
    return found


def other_gates(plan: Plan) -> list[str]:
    """Gates of a plan that are gone, or have another version now."""
    found = []
    for gate in plan.gates:
        if gate.name not in GATES:
            found.append(f"the gate {gate.name} does not exist any more")
        elif (version := get_gate(gate.name).version) != gate.version:
            found.append(f"the gate {gate.name} was version {gate.version}, it is {version} now")
    return found


def other_model(claim: Claim, model: Any) -> list[str]:
    """Weights or tokenizer that are not those of the claim."""
    if model is None:
        return []
    found = []
    if model.digest != claim.subject.get("digest"):
        found.append(f"the model was {str(claim.subject.get('digest'))[:12]}, it is {model.digest[:12]} now")
    return [*found, *other_tokenizer(claim, model)]


def other_tokenizer(claim: Claim, model: Any) -> list[str]:
    """A tokenizer, or a BOS setting, that is not the one of the claim. Older claims do not name theirs."""
    then, now = claim.subject.get("tokenizer"), tokenizer_of(model).get("tokenizer")
    if then is None or now is None or then == now:
        return []
    return [f"the tokenizer or its BOS setting was {then[:12]}, it is {now[:12]} now"]


def tokenizer_of(model: Any) -> dict[str, str]:
    """{"tokenizer": digest} of a model that has one; empty for hosts without texts."""
    found = getattr(model, "tokenizer_digest", None)
    return {} if found is None else {"tokenizer": found}


def other_data(claim: Claim, plan: Plan, source: Population | None = None) -> list[str]:
    """Splits whose texts are not those that were locked."""
    if source is None and claim.task.get("type") == "memory":
        return []
    try:
        found = source_of(claim.task) if source is None else source
        return [f"the {split} data are not those that were locked" for split, locked in _locked(plan)
                if found.digest(split, locked["n"], locked["seed"]) != locked["digest"]]  # fmt: skip
    except AssayError as error:
        return [f"the data cannot be read any more ({error})"]


def _locked(plan: Plan) -> Sequence[tuple[str, dict[str, Any]]]:
    return list(plan.splits.items())
