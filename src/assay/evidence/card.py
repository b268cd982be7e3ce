"""Claim cards: everything stored about one claim as one JSON object, for others to check.

1. A card is made from stored records alone; a claim whose records do not hold has none.
2. Reading a card: size, JSON, the card's own hash, every record field by field.
3. Checking it: the lock fits claim and plan; the ledger entries are whole and name these records; gates
   follow from tables, the verdict from gates by the rule; deviations and replications are the logged ones.
4. An imported card is kept and listed as imported. It is no read, no family member and no verdict here.

A card that follows is consistent. That its measurements were made as it says, only a replication shows.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from assay.errors import EvidenceError, TamperedError
from assay.evidence.claims import (
    ClaimStore,
    audit,
    check_lock,
    evidence_digest,
    gates_follow,
    ruled,
    same_verdict,
)  # fmt: skip
from assay.evidence.gates import gates_for
from assay.evidence.ledger import now, unjudged
from assay.evidence.schema import fitted, record_from
from assay.evidence.stale import other_gates, stale_reasons
from assay.evidence.verdicts import RULE_VERSION
from assay.records import (
    Claim,
    Counterexample,
    Dataset,
    Deviation,
    Evidence,
    Plan,
    Replication,
    Run,
    Verdict,
    digest,
    plain,
)  # fmt: skip
from assay.signing import check_signature
from assay.statistics import DRAWS

FORMAT, VERSION = "assay claim card", 1
OWN_ROWS = {"second": "second.template"}  # columns that are not about items, and the one that says how many rows they have
UNLIKE = ("corpus.precision", "corpus.recall")  # each about documents of its own
MOST_BYTES, MOST_ROWS, MOST_DRAWS, MOST_ALPHA = 64 << 20, 1_000_000, 100_000, 0.2
RATES = "error_rates.json"
KEYS = ("format", "version", "assay", "exported", "claim", "plan", "evidence", "counterexamples", "verdict", "deviations",
        "replications", "runs", "datasets", "ledger", "stale", "error_rates", "digest")  # fmt: skip
Card = dict[str, Any]


@dataclass(frozen=True)
class CardRecords:
    """The records of a card, as classes."""

    claim: Claim
    plan: Plan
    evidence: Evidence | None
    counterexamples: tuple[Counterexample, ...]
    verdict: Verdict | None
    deviations: tuple[Deviation, ...]
    replications: tuple[Replication, ...]
    runs: tuple[Run, ...]
    datasets: tuple[Dataset, ...]


# making ------------------------------------------------------------------------------------------


def make_card(store: ClaimStore, claim_id: str) -> Card:
    """The card of a claim; an imported one as it came. Raises TamperedError for records that do not hold."""
    if (card := store.imported(claim_id)) is not None:
        return dict(card)
    if problems := audit(store, claim_id):
        raise TamperedError("; ".join(problems) + ". No card is made of records that do not hold.")
    claim, plan, evidence = store.claim(claim_id), store.plan(claim_id), store.evidence(claim_id)
    entries = store.entries_of(claim_id)
    if unjudged(entries):
        raise EvidenceError(f"claim {claim_id}: it was measured and not judged, because a run was killed. Test it again.")
    data = [split["digest"] for split in plan.splits.values()]
    data += [entry["body"]["digest"] for entry in entries if entry["kind"] == "data"]
    card = {
        "format": FORMAT, "version": VERSION, "assay": metadata.version("assay"), "exported": now(),
        "claim": claim, "plan": plan, "evidence": evidence, "counterexamples": store.counterexamples(claim_id),
        "verdict": store.verdict(claim_id), "deviations": store.deviations(claim_id),
        "replications": store.replications(claim_id), "runs": store.runs(claim_id), "datasets": store.datasets(data),
        "ledger": {"entries": entries, "counts": store.tally()}, "stale": stale_reasons(store, claim),
        "error_rates": error_rates(family(claim)),
    }  # fmt: skip
    card = plain(card)
    return {**card, "digest": digest(card)}


def family(claim: Claim) -> str:
    """The calibration that speaks about a claim: that of its kind, or of edges."""
    from assay.evidence.edge_link import about_edge

    return f"{claim.kind}-edges" if claim.kind in ("connects", "mediates") and about_edge(claim) else claim.kind


def error_rates(kind: str) -> dict[str, Any] | None:
    """How often this family's battery errs: {"version", "null", "power"}; None when it was not calibrated."""
    file = resources.files("assay.evidence") / RATES
    if not file.is_file():
        return None
    found = json.loads(file.read_text())
    rates = found.get("kinds", {}).get(kind)
    return None if rates is None else {"version": found.get("version"), **rates}


# reading -----------------------------------------------------------------------------------------


def read_card(path: Path) -> Card:
    """A card from a file, checked, its signature too.

    Raises EvidenceError for what is no card, TamperedError for what does not follow, and what `check_signature` raises.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise EvidenceError(f"card {path}: {path.stat().st_size >> 20} MB; allowed: up to {MOST_BYTES >> 20} MB.")
        card = json.loads(path.read_bytes(), parse_constant=_no_constant)
    except OSError as error:
        raise EvidenceError(f"card {path}: cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise EvidenceError(f"card {path}: no JSON ({error}). Give the file that `assay claim export --out FILE.json`"
                            " wrote.") from error  # fmt: skip
    check_signature(path, "claim")
    check_card(card)
    return card


def import_card(store: ClaimStore, card: Card) -> None:
    """Check a card and keep it as imported. Raises EvidenceError when a claim of its id is already there."""
    check_card(card)
    store.record_import(card, now())


def check_card(card: Any) -> CardRecords:
    """All checks of a card. Raises EvidenceError for the form, TamperedError, naming everything that does not follow."""
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise EvidenceError("card: this is no claim card. Give the file that `assay claim export --out FILE.json` wrote.")
    if card.get("version") != VERSION:
        raise EvidenceError(f"card: version {card.get('version')!r}; allowed: {VERSION}. Update Assay.")
    for name in (*KEYS, *sorted(card)):
        if name not in card or name not in KEYS:
            raise EvidenceError(f"card: the field {name!r} is {'missing' if name in KEYS else 'unknown'}.")
    if digest({key: value for key, value in card.items() if key != "digest"}) != card["digest"]:
        raise TamperedError("card: it was edited: its hash does not match its content.")
    records = records_of(card)
    if problems := [*lock_problems(records), *entry_problems(records, card["ledger"]), *verdict_problems(records)]:
        raise TamperedError("card: " + "; ".join(problems) + ". Nothing was imported.")
    return records


def records_of(card: Mapping[str, Any]) -> CardRecords:
    """The records of a card, field by field. Raises EvidenceError naming the first that does not fit."""
    parts = {name: card[name] for name in CardRecords.__dataclass_fields__}
    records = record_from(CardRecords, parts, "card")
    if records.evidence is not None:
        _check_tables(records.evidence)
        _check_options(records.plan)
    return records


def _check_tables(evidence: Evidence) -> None:
    for split, table in evidence.tables.items():
        place = f"evidence.tables.{split}"
        templates = fitted(tuple[str, ...], table.get("templates"), f"{place}.templates")
        words = table.get("words")
        columns = fitted(dict[str, tuple[float | None, ...]], table.get("columns"), f"{place}.columns")
        if words is not None:
            columns = {**columns, "words": fitted(tuple[str, ...], words, f"{place}.words")}
        for name, column in columns.items():
            first = OWN_ROWS.get(name.split(".")[0], "")
            rows = len(columns[first]) if first in columns else len(templates)
            if (len(column) != rows and name not in UNLIKE) or len(column) > MOST_ROWS:
                raise EvidenceError(f"card: {place}.{name}: {len(column)} rows; allowed: {rows}, one per {first or 'item'}.")


def _check_options(plan: Plan) -> None:
    fitted(int, plan.settings.get("seed"), "plan.settings.seed")
    for gate in plan.gates:
        for name, value in gate.options.items():
            if isinstance(value, int | float) and abs(value) > MOST_DRAWS:
                raise EvidenceError(f"card: plan.gates.{gate.name}.{name}: {value}; allowed: up to {MOST_DRAWS}.")


# what must follow --------------------------------------------------------------------------------


def lock_problems(records: CardRecords) -> list[str]:
    """Claim and plan against their lock; evidence against both."""
    claim, plan, evidence = records.claim, records.plan, records.evidence
    try:
        check_lock(claim, plan)
    except TamperedError:
        return ["claim or plan are not those that were locked"]
    if evidence is not None and (evidence.claim, evidence.lock) != (claim.id, plan.lock):
        return ["the evidence belongs to another claim or plan"]
    others = [hit.claim for hit in records.counterexamples if hit.claim != claim.id]
    return ["counterexamples belong to another claim"] if others else []


def entry_problems(records: CardRecords, ledger: Any) -> list[str]:
    """The ledger entries of the claim: whole, in order, and of these very records."""
    entries = ledger.get("entries") if isinstance(ledger, dict) else None
    if not isinstance(entries, list) or not all(isinstance(e, dict) and isinstance(e.get("body"), dict) for e in entries):
        raise EvidenceError("card: ledger.entries: allowed: a list of ledger entries.")
    found = []
    for entry in entries:
        content = {key: entry.get(key) for key in ("index", "time", "kind", "body", "previous")}
        if digest(content) != entry.get("hash"):
            found.append(f"ledger entry {entry.get('index')} was edited: its hash does not match its content")
    indices = [entry.get("index") for entry in entries]
    if not all(isinstance(index, int) for index in indices) or indices != sorted(set(indices)):
        found.append("the ledger entries are not in order")
    evidence, verdict = records.evidence, records.verdict
    expected = {"state": [digest(records.claim)], "lock": [records.plan.lock],
                "evidence": [evidence_digest(evidence, records.counterexamples)] if evidence else [],
                "verdict": [digest(verdict)] if verdict else []}  # fmt: skip
    for kind, wanted in expected.items():
        logged = [entry["body"].get("digest") for entry in entries if entry.get("kind") == kind]
        if logged[-1:] != wanted:
            found.append(f"the {kind} is not the one in the ledger entries")
    for kind, listed in (("deviation", records.deviations), ("replication", records.replications)):
        logged = [entry["body"]["digest"] for entry in entries if entry.get("kind") == kind and "digest" in entry["body"]]
        if logged != [digest(record) for record in listed]:
            found.append(f"the {kind}s are not those in the ledger entries")
    return [*found, *_read_problems(evidence, entries)]


def _read_problems(evidence: Evidence | None, entries: Sequence[Mapping[str, Any]]) -> list[str]:
    if evidence is None:
        return []
    kinds = [entry.get("kind") for entry in entries]
    last = len(kinds) - 1 - kinds[::-1].index("evidence") if "evidence" in kinds else 0
    tickets = kinds[:last].count("ticket")
    if evidence.reads < max(1, tickets):
        return [f"the evidence counts {evidence.reads} reads, the ledger entries have {tickets} tickets"]
    return []


def verdict_problems(records: CardRecords) -> list[str]:
    """Gates from tables, verdict from gates. A card of another version of rule or gates cannot be derived here."""
    plan, verdict = records.plan, records.verdict
    if verdict is not None and verdict.rule_version != RULE_VERSION:
        raise EvidenceError(f"card: it was decided by rule version {verdict.rule_version!r}; allowed: {RULE_VERSION!r}."
                            " Use the release of Assay that made it.")  # fmt: skip
    if other := other_gates(plan):
        raise EvidenceError(f"card: {'; '.join(other)}. Use the release of Assay that made it.")
    try:
        return [*plan_problems(records.claim, plan), *_derived_problems(records)]
    except EvidenceError as error:
        return [str(error)]
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:  # columns that no measurement writes
        return [f"gates and verdict cannot be derived from the measurements ({type(error).__name__}: {error})"]


def plan_problems(claim: Claim, plan: Plan) -> list[str]:
    """A plan that asks less than the battery of its kind: gates left out or made optional, levels no one may set."""
    planned = {gate.name: gate for gate in plan.gates}
    found = []
    for gate in gates_for(plan.kind, claim, plan.settings.get("options", {})):
        decides = gate.plan(kind=plan.kind, claim=claim).required
        if decides and (gate.name not in planned or not planned[gate.name].required):
            found.append(f"the plan leaves out the required gate {gate.name}")
        elif gate.name in planned and planned[gate.name].group != gate.group:
            found.append(f"the plan puts the gate {gate.name} into another group")
        more = dict(planned[gate.name].options) if gate.name in planned else {}
        draws = more.pop("resamples", DRAWS)  # of a claim that is one of many
        if gate.name in planned and (more != gate.options or not isinstance(draws, int) or draws < DRAWS):
            found.append(f"the plan measures the gate {gate.name} in another way")
        if gate.name in planned and not 0 <= planned[gate.name].sesoi <= 1:
            found.append(f"the plan gives the gate {gate.name} a bar outside 0 to 1")
    alpha = plan.levels.get("confirm", 1.0)
    if set(plan.levels) != {"confirm", "ood"} or not 0 < alpha <= MOST_ALPHA or not 0 < plan.levels["ood"] <= 2 * alpha:
        found.append(f"the plan has the levels {plan.levels}; allowed: confirm up to {MOST_ALPHA:g}, ood up to twice that")
    return found


def _derived_problems(records: CardRecords) -> list[str]:
    plan, evidence, verdict = records.plan, records.evidence, records.verdict
    found = []
    if evidence is not None and not gates_follow(plan, evidence):
        found.append("the gates do not follow from the measurements")
    if verdict is None:
        return found
    family = fitted(dict[str, float], verdict.decision.get("family"), "verdict.decision.family")
    fresh = ruled(records.claim, plan, evidence, records.counterexamples, deviations=records.deviations, family=family)
    if not same_verdict(fresh, verdict):
        how = f" ({fresh.verdict})" if fresh.verdict != verdict.verdict else ", its reasons or numbers differ"
        found.append(f"the verdict ({verdict.verdict}) does not follow from the evidence{how}")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")
