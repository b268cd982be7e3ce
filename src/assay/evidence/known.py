"""Claims that were stated before: the same model, parts, data and plan.

A second claim of the same words would be a second member of every family it shares data with, and a second read of its
confirm split. Whoever states claims by a search that may be run again asks here first.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

from assay.evidence.claims import ClaimStore, make_plan
from assay.evidence.kinds import KINDS
from assay.evidence.run import Settings, Statement, drafted, record_draft
from assay.evidence.source import Population
from assay.evidence.stale import tokenizer_of
from assay.records import Claim, Plan, digest

PAGE = 200


def stated_before(
    store: ClaimStore, model: Any, source: Population, subject: Any, *, statement: Statement | None = None,
    sesoi: Mapping[str, float] | None = None, settings: Settings | None = None,
) -> Claim | None:  # fmt: skip
    """The newest claim of this store that `state_claim` would state again with these arguments, tested or not; None: it would
    be a new one. Claims that narrow another are not looked at. Raises what the kind's `subject` raises."""
    statement, settings = statement or Statement(), settings or Settings()
    named = KINDS.get(statement.kind).subject(model, subject)
    wanted = {"digest": model.digest, "positions": settings.positions, **tokenizer_of(model), **named}
    for old in _newest_first(store, statement.kind):
        same = old.parent is None and old.quantifier == statement.quantifier
        if same and all(old.subject.get(key) == value for key, value in wanted.items()):
            again = make_plan(old, source, settings.sizes, sesoi or {}, asdict(settings))
            if _bare(again) == _bare(store.plan(old.id)):
                return old
    return None


def state_once(
    store: ClaimStore, model: Any, source: Population, subject: Any, *, statement: Statement | None = None,
    sesoi: Mapping[str, float] | None = None, settings: Settings | None = None,
) -> tuple[Claim, Plan, bool]:  # fmt: skip
    """The claim with its plan, and whether it was stated before: then nothing is written. One that narrows another is always
    new. Raises what `state_claim` raises, and leaves it to the caller to warn (`cautions.warnings_of`)."""
    asked: dict[str, Any] = {"statement": statement, "sesoi": sesoi, "settings": settings}
    fresh = (statement is not None and statement.parent is not None) or not store.entry_count()
    before = None if fresh else stated_before(store, model, source, subject, **asked)
    if before is not None:
        return before, store.plan(before.id), True
    return *record_draft(store, drafted(store, model, source, subject, **asked)), False


def _newest_first(store: ClaimStore, kind: str) -> Iterator[Claim]:
    """Own claims of a kind."""
    rows, total = store.listing(PAGE, 0, kind=kind)
    for start in range(PAGE, total, PAGE):
        rows = [*rows, *store.listing(PAGE, start, kind=kind)[0]]
    return (store.claim(row.claim) for row in reversed(rows) if not row.imported)


def _bare(plan: Plan) -> str:
    """What of a plan is chosen, not measured."""
    settings = {name: value for name, value in plan.settings.items() if name != "controls"}
    return digest(replace(plan, lock="", mde={}, settings=settings))
