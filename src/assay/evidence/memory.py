"""A claim store that lives as long as the process: for calibration, notebooks and tests.

It keeps the same records under the same rules as an atlas; only nothing is written to disk.
"""

from collections.abc import Sequence

from assay.errors import EvidenceError, StoreError
from assay.evidence.claims import evidence_digest
from assay.evidence.ledger import MemoryLedger
from assay.records import Claim, Counterexample, Evidence, Plan, Verdict, digest


class MemoryStore(MemoryLedger):
    """Claims, plans, evidence and verdicts in dictionaries, and a ledger."""

    def __init__(self) -> None:
        super().__init__()
        self._claims: dict[str, tuple[Claim, Plan]] = {}
        self._evidence: dict[str, tuple[Evidence, list[Counterexample]]] = {}
        self._verdicts: dict[str, Verdict] = {}

    def record_claim(self, claim: Claim, plan: Plan) -> None:
        if claim.id in self._claims:
            raise EvidenceError(f"claim {claim.id} is locked. Narrow it with a new version (--parent {claim.id}).")
        self._claims[claim.id] = (claim, plan)
        self.append("state", {"claim": claim.id, "digest": digest(claim), "statement": claim.statement})
        self.append("lock", {"claim": claim.id, "digest": plan.lock})

    def record_evidence(self, evidence: Evidence, counterexamples: Sequence[Counterexample]) -> None:
        self._evidence[evidence.claim] = (evidence, list(counterexamples))
        self.append("evidence", {"claim": evidence.claim, "digest": evidence_digest(evidence, counterexamples),
                                 "reads": evidence.reads})  # fmt: skip

    def record_verdict(self, verdict: Verdict) -> None:
        self._verdicts[verdict.claim] = verdict
        self.append("verdict", {"claim": verdict.claim, "digest": digest(verdict), "verdict": verdict.verdict})

    def claims(self) -> list[Claim]:
        return [claim for claim, _ in self._claims.values()]

    def claim(self, claim_id: str) -> Claim:
        return self._both(claim_id)[0]

    def plan(self, claim_id: str) -> Plan:
        return self._both(claim_id)[1]

    def evidence(self, claim_id: str) -> Evidence | None:
        return self._evidence.get(claim_id, (None, []))[0]

    def counterexamples(self, claim_id: str) -> list[Counterexample]:
        return list(self._evidence.get(claim_id, (None, []))[1])

    def verdict(self, claim_id: str) -> Verdict | None:
        return self._verdicts.get(claim_id)

    def _both(self, claim_id: str) -> tuple[Claim, Plan]:
        if claim_id not in self._claims:
            raise StoreError(f"claim {claim_id!r}: not in this store; it has {', '.join(self._claims) or 'none'}.")
        return self._claims[claim_id]
