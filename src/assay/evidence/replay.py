"""Replay: measure a tested claim again, and see whether the same verdict comes out.

1. What is stored must hold: locks, hashes, gates from measurements, verdict from gates.
2. The model and the texts must be those that were locked, by digest; ordinary texts that searches read, those of the test.
3. Everything is measured again from the plan: same units, controls, seeds and gates.
4. The rule is applied with the reads and the family of the first verdict, and both are compared.
5. What came out is stored as a replication: who, where, the same or not, which gates moved.

A replay shows that the numbers come out again. It is no new evidence: the data are the same.
"""

import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from assay.errors import EvidenceError, ReproduceError, TamperedError
from assay.evidence.claims import ClaimStore, audit, ruled
from assay.evidence.empirical import MISBEHAVES
from assay.evidence.kinds import Progress
from assay.evidence.ledger import now, unjudged
from assay.evidence.run import Trial, corpus_record, passport_of
from assay.evidence.source import Population
from assay.records import GateResult, Replication, Verdict

TOLERANCE = 1e-3  # of effects that are shares: rounding of another processor is far below, a changed effect above


@dataclass(frozen=True)
class Replay:
    """A verdict, what came out again, and every gate that moved by more than rounding."""

    claim: str
    same: bool
    before: str
    again: Verdict
    moved: tuple[str, ...]


def replay_claim(
    store: ClaimStore,
    claim_id: str,
    model: Any,
    progress: Progress | None = None,
    tolerance: float = TOLERANCE,
    *,
    source: Population | None = None,
    who: str = "",
    corpus: Sequence[str] = (),
) -> Replay:
    """Measure again and compare; what came out is stored. `corpus`: the ordinary texts of the first test's searches, if any.
    Raises TamperedError for records that do not hold, ReproduceError for another model, other data or another corpus,
    EvidenceError for a claim that was never tested."""
    claim, plan = store.claim(claim_id), store.plan(claim_id)
    evidence, before = store.evidence(claim_id), store.verdict(claim_id)
    if evidence is None or before is None or unjudged(store.entries_of(claim_id)):
        raise EvidenceError(f"claim {claim_id} was not tested yet: there is nothing to replay. Test it first.")
    if problems := audit(store, claim_id):
        raise TamperedError("; ".join(problems))
    read = evidence.search.get("corpus")
    if read is not None and corpus_record(corpus).get("corpus") != read:
        raise ReproduceError(f"claim {claim_id}: its searches read {'other ' if corpus else ''}ordinary texts, and a hit among"
                             " them may have decided. Give those that it was tested with: --corpus FILE.")  # fmt: skip
    outcome = Trial(claim, plan, model, progress, source=source, corpus=() if read is None else corpus).run()
    data = {split: {**found, "looked": evidence.data.get(split, {}).get("looked", [])}
            for split, found in outcome.data.items()}  # fmt: skip
    noted = tuple(flag for flag in evidence.flags if flag.startswith(MISBEHAVES))  # of the model, not of this run
    measured = replace(evidence, tables=outcome.tables, gates=outcome.gates, search=outcome.search, data=data,
                       flags=(*outcome.flags, *noted))  # fmt: skip
    again = ruled(claim, plan, measured, outcome.hits, deviations=store.deviations(claim_id),
                  family=before.decision["family"])  # fmt: skip
    moved = moved_gates(evidence.gates, outcome.gates, tolerance)
    same = (again.verdict, again.reasons, again.qualifiers) == (before.verdict, before.reasons, before.qualifiers)
    passport = passport_of(model, plan)
    where = f"{platform.system()} {platform.machine()}, {passport.get('device', 'cpu')}"
    store.record_replication(Replication(claim_id, who or "not named", where, same and not moved, before.verdict,
                                         again.verdict, moved, now(), passport))  # fmt: skip
    return Replay(claim_id, same and not moved, before.verdict, again, moved)


def moved_gates(before: Sequence[GateResult], again: Sequence[GateResult], tolerance: float) -> tuple[str, ...]:
    """One sentence per gate that is missing, new, or differs by more than `tolerance`."""
    old, new = ({gate.label: gate.estimate for gate in gates} for gates in (before, again))
    found = [f"{name}: measured {'before' if name in old else 'now'} only" for name in old.keys() ^ new.keys()]
    for name in old.keys() & new.keys():
        a, b = old[name], new[name]
        if (a is None) != (b is None) or (a is not None and b is not None and abs(a - b) > tolerance * max(1.0, abs(a))):
            found.append(f"{name}: {a} before, {b} now")
    return tuple(sorted(found))
