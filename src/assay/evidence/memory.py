"""A claim store that lives as long as the process: for calibration, notebooks and tests.

It keeps the same records under the same rules as an atlas; only nothing is written to disk.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from assay.errors import EvidenceError, StoreError
from assay.evidence.claims import Listed, evidence_digest
from assay.evidence.ledger import MemoryLedger, check_ticket
from assay.records import Claim, Counterexample, Dataset, Deviation, Evidence, Plan, Replication, Run, Verdict, digest


class MemoryStore(MemoryLedger):
    """Claims, plans, evidence and verdicts in dictionaries, and a ledger."""

    def __init__(self) -> None:
        super().__init__()
        self._claims: dict[str, tuple[Claim, Plan]] = {}
        self._evidence: dict[str, tuple[Evidence, list[Counterexample]]] = {}
        self._verdicts: dict[str, Verdict] = {}
        self._deviations: dict[str, list[Deviation]] = {}
        self._replications: dict[str, list[Replication]] = {}
        self._runs: dict[str, list[Run]] = {}
        self._datasets: dict[str, Dataset] = {}
        self._imports: dict[str, tuple[Mapping[str, Any], str]] = {}

    def record_claim(self, claim: Claim, plan: Plan) -> None:
        if claim.id in self._claims:
            raise EvidenceError(f"claim {claim.id} is locked. Narrow it with a new version (--parent {claim.id}).")
        self._claims[claim.id] = (claim, plan)
        self.append("state", {"claim": claim.id, "digest": digest(claim), "statement": claim.statement})
        self.append("lock", {"claim": claim.id, "digest": plan.lock})

    def record_evidence(self, evidence: Evidence, counterexamples: Sequence[Counterexample]) -> None:
        check_ticket(self.entries_of(evidence.claim))
        self._evidence[evidence.claim] = (evidence, list(counterexamples))
        self.append("evidence", {"claim": evidence.claim, "digest": evidence_digest(evidence, counterexamples),
                                 "reads": evidence.reads})  # fmt: skip

    def record_verdict(self, verdict: Verdict) -> None:
        self._verdicts[verdict.claim] = verdict
        self.append("verdict", {"claim": verdict.claim, "digest": digest(verdict), "verdict": verdict.verdict})

    def record_deviation(self, deviation: Deviation) -> None:
        self._both(deviation.claim)
        self._deviations.setdefault(deviation.claim, []).append(deviation)
        self.append("deviation", {"claim": deviation.claim, "digest": digest(deviation)})

    def record_replication(self, replication: Replication) -> None:
        self._both(replication.claim)
        self._replications.setdefault(replication.claim, []).append(replication)
        self.append("replication", {"claim": replication.claim, "digest": digest(replication), "same": replication.same,
                                    "verdict": replication.verdict, "moved": replication.moved})  # fmt: skip

    def record_dataset(self, dataset: Dataset) -> None:
        self._datasets.setdefault(dataset.digest, dataset)

    def record_run(self, run: Run) -> None:
        self._runs.setdefault(run.claim, []).append(run)

    def record_import(self, card: Mapping[str, Any], created: str) -> None:
        name, verdict = card["claim"]["id"], (card["verdict"] or {}).get("verdict", "not tested")
        if name in self._claims or name in self._imports:
            raise EvidenceError(f"claim {name} is already in this store. Nothing was imported.")
        self._imports[name] = (card, created)
        self.append("import", {"claim": name, "digest": digest(card), "verdict": verdict})

    def imported(self, claim_id: str) -> Mapping[str, Any] | None:
        return self._imports.get(claim_id, (None, ""))[0]

    def claims(self) -> list[Claim]:
        return [claim for claim, _ in self._claims.values()]

    def listing(self, limit: int = 50, offset: int = 0, verdict: str = "", kind: str = "") -> tuple[list[Listed], int]:
        own = [Listed(c.id, c.kind, c.version, c.statement, self._standing(c.id), c.created, False) for c in self.claims()]
        others = [Listed(name, card["claim"]["kind"], 1, card["claim"]["statement"],
                         (card["verdict"] or {}).get("verdict", "not tested"), created, True)
                  for name, (card, created) in self._imports.items()]  # fmt: skip
        chosen = [item for item in sorted([*own, *others], key=lambda item: (item.created, item.claim))
                  if verdict in ("", item.verdict) and kind in ("", item.kind)]  # fmt: skip
        return chosen[offset : offset + limit], len(chosen)

    def p_of(self, claims: Sequence[str]) -> dict[str, float]:
        return {name: 1.0 if self._deviations.get(name) or name not in self._verdicts
                else float(self._verdicts[name].decision.get("p", 1.0)) for name in claims}  # fmt: skip

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

    def deviations(self, claim_id: str) -> list[Deviation]:
        return list(self._deviations.get(claim_id, ()))

    def replications(self, claim_id: str) -> list[Replication]:
        return list(self._replications.get(claim_id, ()))

    def runs(self, claim_id: str) -> list[Run]:
        return list(self._runs.get(claim_id, ()))

    def datasets(self, digests: Sequence[str]) -> list[Dataset]:
        return [self._datasets[name] for name in digests if name in self._datasets]

    def _standing(self, claim_id: str) -> str:
        return self._verdicts[claim_id].verdict if claim_id in self._verdicts else "not tested"

    def _both(self, claim_id: str) -> tuple[Claim, Plan]:
        if claim_id not in self._claims:
            raise StoreError(f"claim {claim_id!r}: not in this store; it has {', '.join(self._claims) or 'none'}.")
        return self._claims[claim_id]
