"""Many claims about one host, by the same road as single ones: stated, then paid for, then read, then judged together.

1. `state_many`: every claim and plan is drafted and locked; some at a time are written in one go. A claim that is in the store
   already, of the same content and plan, is not stated again.
2. `pay_many`: the ticket of every claim, and what it will read, is in the ledger before the first sealed row is read.
3. `test_many`: each claim is measured, its evidence stored; then all are judged at once, with Holm's correction over every
   claim that shares confirm data. One by one would come to the same verdicts, and would judge each of n claims n times.
4. `draws_for`: how many resamples a p needs for n claims to be corrected for: a p cannot be below 1 / (1 + draws), and n times
   that must be well below alpha.

Every step goes on after a kill: what is recorded is not done again, and a ticket without evidence is used.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from assay.evidence import claims
from assay.evidence.claims import ClaimStore
from assay.evidence.run import (
    Draft,
    Measured,
    Settings,
    Statement,
    Trial,
    drafted,
    measured,
    names_of,
    record_draft,
    record_outcome,
    spend,
)  # fmt: skip
from assay.evidence.source import Population
from assay.evidence.verdicts import rule
from assay.records import Claim, Evidence, Plan, digest
from assay.statistics import DRAWS

Report = Callable[[str, int, int], None]
TOGETHER = 16
SLACK = 2  # times the draws that the correction needs at least
SPLITS = ("confirm", "ood")


@dataclass(frozen=True, eq=False)
class Wanted:
    """One claim to be: what it is about, its data, its words."""

    subject: Any
    source: Population
    statement: Statement = field(default_factory=Statement)


def draws_for(claims_in_all: int, alpha: float) -> int:
    """Resamples for a p that survives Holm over so many claims; the usual number where it is enough."""
    return max(DRAWS, math.ceil(SLACK * claims_in_all / alpha))


def state_many(
    store: ClaimStore, model: Any, wanted: Sequence[Wanted], settings: Settings, report: Report | None = None
) -> list[str]:  # fmt: skip
    """Ids of the claims, in the order given; those that are there already keep theirs. Raises as `state_claim` does."""
    known = _known(store)
    ids: list[str] = []
    for block in _blocks(wanted):
        drafts = [drafted(store, model, each.source, each.subject, statement=each.statement, settings=settings)
                  for each in block]  # fmt: skip
        with store:
            ids += [_recorded(store, draft, known) for draft in drafts]
        if report:
            report("locking claims", len(ids), len(wanted))
    return ids


def _known(store: ClaimStore) -> dict[str, str]:
    """What claims and plans say, but for when -> id."""
    with store:
        listed, _ = store.listing(limit=1 << 30)
        ids = [row.claim for row in listed if not row.imported]
        return {_content(store.claim(name), store.plan(name)): name for name in ids}


def _content(claim: Claim, plan: Plan) -> str:
    return digest([claim.kind, claim.statement, claim.quantifier, claim.subject, claim.task, plan.gates, plan.splits,
                   plan.levels, plan.settings, plan.search])  # fmt: skip


def _recorded(store: ClaimStore, draft: Draft, known: dict[str, str]) -> str:
    content = _content(draft.claim, draft.plan)
    if content not in known:
        record_draft(store, draft)
        known[content] = draft.claim.id
    return known[content]


def pay_many(store: ClaimStore, ids: Sequence[str], sources: Mapping[str, Population], report: Report | None = None) -> None:
    """Tickets and announcements of all claims that are not tested: nothing sealed is read before this is done."""
    done = 0
    for block in _blocks(ids):
        with store:
            for name in block:
                if store.evidence(name) is None and not _paid(store, name):
                    claim, plan, source = store.claim(name), store.plan(name), sources[name]
                    claims.check_lock(claim, plan)
                    for split in plan.levels:
                        items = _items(source, plan, split)
                        spend(store, claim, plan, split, items, names_of(source, split, items))
        done += len(block)
        if report:
            report("paying for sealed data", done, len(ids))


def _paid(store: ClaimStore, name: str) -> bool:
    """Whether a ticket is there that no evidence used, and says what it reads of every sealed split."""
    entries = store.entries_of(name)
    tickets = [entry["body"]["ticket"] for entry in entries if entry["kind"] == "ticket"]
    used = sum(entry["kind"] == "evidence" for entry in entries)
    read = {entry["body"]["split"] for entry in entries
            if entry["kind"] == "data" and tickets and entry["body"]["ticket"] == tickets[-1]}  # fmt: skip
    return len(tickets) > used and set(SPLITS) <= read


def test_many(
    store: ClaimStore, model: Any, ids: Sequence[str], sources: Mapping[str, Population], report: Report | None = None
) -> None:  # fmt: skip
    """Measure the claims that have no evidence yet, then judge all of them together.

    Raises EvidenceError for a claim that was not paid for, and what `test_claim` raises.
    """
    p_of: dict[str, float] = {}
    looks: dict[str, list[str]] = {}
    for block in _blocks(ids):
        with store:
            waiting = [(store.claim(name), store.plan(name)) for name in block if store.evidence(name) is None]
            unpaid = [claim.id for claim, _ in waiting if not _paid(store, claim.id)]
        if unpaid:
            pay_many(store, unpaid, sources)
        ready = [_measure(store, model, claim, plan, sources[claim.id], looks) for claim, plan in waiting]
        with store:
            fresh = {found.trial.claim.id: _p(found, record_outcome(store, found)) for found in ready}
            p_of |= {name: fresh[name] if name in fresh else claims.p_by_gates(store, name) for name in block}
        if report:
            report("testing claims", len(p_of), len(ids))
    claims.judge_all(store, p_of, report)


test_many.__test__ = False  # type: ignore[attr-defined]  # a verb, not a pytest function


def _measure(
    store: ClaimStore, model: Any, claim: Claim, plan: Plan, source: Population, looks: dict[str, list[str]]
) -> Measured:  # fmt: skip
    claims.check_lock(claim, plan)

    def on_read(split: str, items: Sequence[Any]) -> list[str]:
        names = names_of(source, split, items)
        key = digest(names)
        if key not in looks:
            looks[key] = store.looks(model.digest, names)
        return looks[key]

    return measured(Trial(claim, plan, model, None, on_read, source))


def _p(found: Measured, evidence: Evidence) -> float:
    """What no other claim has a part in."""
    return rule(found.trial.claim, found.trial.plan, evidence, found.outcome.hits, {}).p


def _items(source: Population, plan: Plan, split: str) -> list[Any]:
    locked = plan.splits[split]
    return source.items(split, locked["n"], locked["seed"])


def _blocks(items: Iterable[Any]) -> Iterable[list[Any]]:
    given = list(items)
    return (given[start : start + TOGETHER] for start in range(0, len(given), TOGETHER))
