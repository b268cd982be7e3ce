"""Stating a claim: what `assay claim state` and the verb `claim_state` both do.

1. Parts that the kind does not have, or lacks, are refused by name before anything is measured.
2. The same words, data and plan are one claim: what was stated before is found again, and nothing is written.
3. Mapped features that the claim is about are linked to it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from assay.errors import bad_argument

if TYPE_CHECKING:
    from assay.atlas.store import Atlas
    from assay.evidence.run import Settings, Statement
    from assay.records import Claim, Plan


@dataclass(frozen=True)
class Stated:
    """A claim with its locked plan. `before`: it was there already; `left_out`: items that are in no split, by reason."""

    claim: "Claim"
    plan: "Plan"
    before: bool
    left_out: Mapping[str, int]
    warnings: tuple[str, ...]


def check_subject(model: Any, kind: str, given: Any, argument: str = "subject", hint: str = "See claim_kinds.") -> None:
    """Raises UsageError for parts that a kind does not have, or lacks."""
    from assay.evidence.kinds import KINDS

    subject = KINDS.get(kind).subject
    try:
        subject(model, given)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        takes = (subject.__doc__ or "").split(". ")[0].strip().rstrip(".")
        got = sorted(given) if isinstance(given, Mapping) else given
        raise bad_argument(argument, got, f"for kind {kind}: {takes}", hint) from error


def state(
    store: "Atlas", model: Any, source: Any, subject: Any, words: "Statement", bars: Mapping[str, float], settings: "Settings"
) -> Stated:
    """State and lock, or find what was stated; with everything that should be known before it is tested."""
    from assay.atlas.mapped import Mapped
    from assay.evidence.cautions import warnings_of
    from assay.evidence.known import state_once

    claim, plan, before = state_once(store, model, source, subject, statement=words, sesoi=bars, settings=settings)
    Mapped(store).link_claims([claim.id])
    left_out = source.dropped()
    dropped = [f"{n} items of {source.name} are in no split: {why}." for why, n in left_out.items()]
    return Stated(claim, plan, before, left_out, (*dropped, *warnings_of(plan, source)))
