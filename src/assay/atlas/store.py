"""`Atlas`: a directory with everything known about one model, claims and ledger first.

    with Atlas("./atlas") as atlas:
        atlas.claims()

1. Every `record_*` writes its rows and its ledger entry in one transaction: all or nothing.
2. The ledger's head is kept in a table and in a file. Nothing is added to a ledger whose end is not the one
   they name.
3. What the ledger is asked is answered from indexed tables (`index.py`), not by reading all entries.

Anyone who may write the directory may rewrite it. The chain makes that visible, not impossible.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from duckdb import DuckDBPyConnection as Connection

from assay.atlas import index
from assay.atlas.database import FILE, HEAD, Database
from assay.atlas.moved import find_here
from assay.errors import EvidenceError, MissingRecord, TamperedError
from assay.evidence.claims import Listed, evidence_digest
from assay.evidence.ledger import ChainCheck, Entry, check_ticket
from assay.evidence.ledger import counts as no_counts
from assay.records import (
    Claim,
    Counterexample,
    Dataset,
    Deviation,
    Evidence,
    GatePlan,
    GateResult,
    Plan,
    Replication,
    Run,
    Verdict,
    canonical,
    digest,
)  # fmt: skip

__all__ = ["FILE", "HEAD", "Atlas"]
T = TypeVar("T")


class Atlas(Database):
    """One atlas. Nothing is opened or made before it is used."""

    # ledger ----------------------------------------------------------------------------------

    def append(self, kind: str, body: Mapping[str, Any]) -> Entry:
        """Add one entry to the ledger. Raises TamperedError when its end is not the one the head names."""
        with self.writing() as db:
            return self._append(db, kind, body)

    def _append(self, db: Connection, kind: str, body: Mapping[str, Any]) -> Entry:
        return index.append(db, kind, body, self._head_in_file())

    def entries(self) -> list[Entry]:
        """The ledger, oldest first; empty when there is no atlas yet."""
        if not self._file.is_file():
            return []
        with self.reading() as db:
            return [entry for chunk in index.chunks(db) for entry in chunk]

    def entry_count(self) -> int:
        """How many entries there are; 0 when there is no atlas yet."""
        if not self._file.is_file():
            return 0
        with self.reading() as db:
            return int((index.head_of(db) or index.EMPTY_HEAD)["count"])

    def entries_of(self, claim: str) -> list[Entry]:
        """The entries about one claim, oldest first."""
        with self.reading() as db:
            return index.entries_of(db, claim)

    def reads(self, subject: str, data: str, clusters: Sequence[str]) -> int:
        """How many tickets of this subject met the same confirm data or any of the same clusters."""
        with self.reading() as db:
            return index.reads(db, subject, data, clusters)

    def looks(self, model: str, clusters: Sequence[str]) -> list[str]:
        """What was looked at on these clusters with this model (its digest), outside of claim tests."""
        with self.reading() as db:
            return index.looks(db, model, clusters)

    def sharing(self, subject: str, clusters: Sequence[str]) -> list[str]:
        """Claims of other subjects whose confirm data share a cluster with these: the Holm family."""
        with self.reading() as db:
            return index.sharing(db, subject, clusters)

    def tally(self) -> dict[str, int]:
        """Stated, tested and decided counts: the denominator of every supported claim."""
        if not self._file.is_file():
            return no_counts({}, {})
        with self.reading() as db:
            return index.tally(db)

    def heads(self) -> list[dict[str, Any] | None]:
        """The head kept in the database and the one in the file (None where there is none)."""
        with self.reading() as db:
            return [index.head_of(db), self._head_in_file()]

    def verify(self, *anchors: Mapping[str, Any]) -> list[str]:
        """What is wrong with the ledger; an empty list when nothing is. `anchors`: heads kept elsewhere.

        Reads every entry once, some thousand at a time.
        """
        with self.reading() as db:
            table, file = index.head_of(db), self._head_in_file()
            check = ChainCheck(table, file, *anchors)
            for chunk in index.chunks(db):
                check.feed(chunk)
            heads = {"table ledger_head": table, HEAD: file}
            missing = [f"the ledger's head is missing ({name})" for name, head in heads.items()
                       if check.count and head is None]  # fmt: skip
            return [*check.done(), *missing, *index.record_problems(db), *index.index_problems(db)]

    # records ---------------------------------------------------------------------------------

    def record_claim(self, claim: Claim, plan: Plan) -> None:
        """A claim and its locked plan. Raises EvidenceError when the id is taken."""
        with self.writing() as db:
            if db.execute("SELECT 1 FROM claims WHERE id = ?", [claim.id]).fetchone():
                raise EvidenceError(f"claim {claim.id} is locked. Narrow it with a new version (--parent {claim.id}).")
            db.execute("INSERT INTO claims VALUES (?, ?, ?, ?, ?, ?, ?)", [
                claim.id, claim.version, claim.parent, claim.kind, claim.created, claim.statement,
                canonical(claim)])  # fmt: skip
            db.execute("INSERT INTO plans VALUES (?, ?, ?)", [claim.id, plan.lock, canonical(plan)])
            db.execute("INSERT OR IGNORE INTO tasks VALUES (?, ?, ?)", [digest(claim.task), claim.task["name"],
                       canonical(claim.task)])  # fmt: skip
            self._append(db, "state", {"claim": claim.id, "digest": digest(claim), "statement": claim.statement})
            self._append(db, "lock", {"claim": claim.id, "digest": plan.lock})

    def record_evidence(self, evidence: Evidence, counterexamples: Sequence[Counterexample]) -> None:
        """Evidence with its gates and counterexamples, and the run that made them. Raises EvidenceError when its ticket was
        used meanwhile."""
        run = digest([evidence.run, evidence.created])[:16]
        with self.writing() as db:
            check_ticket(index.entries_of(db, evidence.claim))
            db.execute("INSERT OR IGNORE INTO runs (id, created, command, passport) VALUES (?, ?, ?, ?)",
                       [run, evidence.created, "claim test", canonical(evidence.run)])  # fmt: skip
            row = db.execute(
                "INSERT INTO evidence (claim, run, created, reads, body) VALUES (?, ?, ?, ?, ?) RETURNING number",
                [evidence.claim, run, evidence.created, evidence.reads, canonical(evidence)],
            ).fetchone()
            number = row[0] if row else 0
            for gate in evidence.gates:
                db.execute("INSERT INTO gates VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", [
                    number, evidence.claim, gate.name, gate.split, gate.required, gate.estimate, gate.low, gate.high,
                    gate.sesoi, gate.p_above, gate.p_below, canonical(gate)])  # fmt: skip
            for hit in counterexamples:
                db.execute("INSERT INTO counterexamples VALUES (?, ?, ?, ?, ?)",
                           [number, hit.claim, hit.score, hit.status, canonical(hit)])  # fmt: skip
            self._append(db, "evidence", {"claim": evidence.claim, "digest": evidence_digest(evidence, counterexamples),
                                     "reads": evidence.reads})  # fmt: skip

    def record_verdict(self, verdict: Verdict) -> None:
        """A verdict; earlier ones of the same claim stay and are superseded."""
        with self.writing() as db:
            db.execute("INSERT INTO verdicts (claim, verdict, rule_version, body) VALUES (?, ?, ?, ?)",
                       [verdict.claim, verdict.verdict, verdict.rule_version, canonical(verdict)])  # fmt: skip
            db.execute("INSERT INTO standing VALUES (?, ?, ?) ON CONFLICT (claim) DO UPDATE SET verdict ="
                       " excluded.verdict, p = excluded.p",
                       [verdict.claim, verdict.verdict, verdict.decision.get("p", 1.0)])  # fmt: skip
            self._append(db, "verdict", {"claim": verdict.claim, "digest": digest(verdict), "verdict": verdict.verdict})

    def record_deviation(self, deviation: Deviation) -> None:
        """A deviation from the plan of a claim that is here."""
        self._record_small("deviations", "deviation", deviation, {})

    def record_replication(self, replication: Replication) -> None:
        """A claim measured again, whatever came out."""
        body = {"same": replication.same, "verdict": replication.verdict, "moved": replication.moved}
        self._record_small("replications", "replication", replication, body)

    def _record_small(self, table: str, kind: str, record: Deviation | Replication, body: Mapping[str, Any]) -> None:
        self.claim(record.claim)
        with self.writing() as db:
            db.execute(f"INSERT INTO {table} (claim, created, body) VALUES (?, ?, ?)",
                       [record.claim, record.created, canonical(record)])  # fmt: skip
            self._append(db, kind, {"claim": record.claim, "digest": digest(record), **body})

    def record_dataset(self, dataset: Dataset) -> None:
        """The items of a split; once, however often they are read."""
        with self.writing() as db:
            db.execute("INSERT OR IGNORE INTO datasets VALUES (?, ?, ?, ?)",
                       [dataset.digest, dataset.name, dataset.split, canonical(dataset)])  # fmt: skip

    def record_run(self, run: Run) -> None:
        """A finished measurement of a claim."""
        with self.writing() as db:
            db.execute("INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?, ?, ?)",
                       [run.id, run.started, "claim test", canonical(run.passport), run.claim, canonical(run)])  # fmt: skip

    def record_import(self, card: Mapping[str, Any], created: str) -> None:
        """A claim of others, by its card. Raises EvidenceError when a claim of that id is here."""
        claim, verdict = card["claim"], (card["verdict"] or {}).get("verdict", "not tested")
        with self.writing() as db:
            for table, column in (("claims", "id"), ("imports", "claim")):
                if db.execute(f"SELECT 1 FROM {table} WHERE {column} = ?", [claim["id"]]).fetchone():
                    raise EvidenceError(f"claim {claim['id']} is already in atlas {self.path} ({table}). Nothing was imported.")
            db.execute("INSERT INTO imports VALUES (?, ?, ?, ?, ?, ?)", [claim["id"], verdict, created,
                       claim["kind"], claim["statement"], canonical(card)])  # fmt: skip
            self._append(db, "import", {"claim": claim["id"], "digest": digest(card), "verdict": verdict})

    def imported(self, claim_id: str) -> dict[str, Any] | None:
        """The card of an imported claim; None for any other."""
        with self.reading() as db:
            row = db.execute("SELECT body FROM imports WHERE claim = ?", [claim_id]).fetchone()
        return None if row is None else json.loads(row[0])

    def claims(self) -> list[Claim]:
        """All claims, oldest first. See `listing` for a page of them."""
        with self.reading() as db:
            rows = db.execute("SELECT body FROM claims ORDER BY created, id").fetchall()
        return [_read(_claim, json.loads(body)) for (body,) in rows]

    def claim_ids(self) -> list[str]:
        """Ids of all claims, oldest first."""
        with self.reading() as db:
            return [name for (name,) in db.execute("SELECT id FROM claims ORDER BY created, id").fetchall()]

    def listing(self, limit: int = 50, offset: int = 0, verdict: str = "", kind: str = "") -> tuple[list[Listed], int]:
        """A page of own and imported claims, oldest first, and how many there are in all of this choice."""
        with self.reading() as db:
            rows, total = index.page(db, limit, offset, verdict, kind)
        return [Listed(*row) for row in rows], total

    def p_of(self, claims: Sequence[str]) -> dict[str, float]:
        """The p that stands for each of these claims; 1 where there is no verdict, or the plan was deviated from."""
        with self.reading() as db:
            rows = db.execute("SELECT claim, p FROM standing WHERE claim IN (SELECT unnest(?::VARCHAR[])) AND"
                              " claim NOT IN (SELECT claim FROM deviations)", [list(claims)]).fetchall()  # fmt: skip
        return {**dict.fromkeys(claims, 1.0), **{claim: float(p) for claim, p in rows}}

    def deviations(self, claim_id: str) -> list[Deviation]:
        """Deviations from the plan of a claim, oldest first."""
        return [Deviation(**body) for body in self._all("deviations", claim_id)]

    def replications(self, claim_id: str) -> list[Replication]:
        """Replications of a claim, oldest first."""
        return [Replication(**{**body, "moved": tuple(body["moved"])}) for body in self._all("replications", claim_id)]

    def runs(self, claim_id: str) -> list[Run]:
        """Finished measurements of a claim, oldest first."""
        with self.reading() as db:
            rows = db.execute("SELECT body FROM runs WHERE claim = ? ORDER BY created", [claim_id]).fetchall()
        return [Run(**json.loads(body)) for (body,) in rows]

    def datasets(self, digests: Sequence[str]) -> list[Dataset]:
        """Recorded data by their digests, as many as there are."""
        with self.reading() as db:
            rows = db.execute("SELECT body FROM datasets WHERE digest IN (SELECT unnest(?::VARCHAR[])) ORDER BY split",
                              [list(digests)]).fetchall()  # fmt: skip
        return [Dataset(**{**body, "clusters": tuple(body["clusters"])}) for body in (json.loads(row[0]) for row in rows)]

    def _all(self, table: str, claim_id: str) -> list[dict[str, Any]]:
        with self.reading() as db:
            rows = db.execute(f"SELECT body FROM {table} WHERE claim = ? ORDER BY number", [claim_id]).fetchall()
        return [json.loads(body) for (body,) in rows]

    def claim(self, claim_id: str) -> Claim:
        """A claim by id; what it is about is found in this atlas from then on, wherever that was moved (`find_here`).

        Raises StoreError, with what there is, for an unknown one; TamperedError for one that is none.
        """
        found = _read(_claim, self._one("SELECT body FROM claims WHERE id = ?", claim_id))
        find_here(self.path, found)
        return found

    def plan(self, claim_id: str) -> Plan:
        """The locked plan of a claim."""
        body = self._one("SELECT body FROM plans WHERE claim = ?", claim_id)
        return _read(_plan, body)

    def evidence(self, claim_id: str) -> Evidence | None:
        """The newest evidence of a claim."""
        return self._newest("evidence", claim_id, _evidence)

    def counterexamples(self, claim_id: str) -> list[Counterexample]:
        """The counterexamples of the newest evidence, worst first."""
        with self.reading() as db:
            rows = db.execute(
                "SELECT body FROM counterexamples WHERE evidence = (SELECT max(number) FROM evidence WHERE claim = ?)"
                " ORDER BY rowid", [claim_id],
            ).fetchall()  # fmt: skip
        return [counterexample_of(json.loads(body)) for (body,) in rows]

    def verdict(self, claim_id: str) -> Verdict | None:
        """The verdict that stands for a claim."""
        return self._newest("verdicts", claim_id, _verdict)

    def _newest(self, table: str, claim_id: str, make: Callable[[Any], T]) -> T | None:
        """The newest record of a claim. These are large: a block that asks again gets the same one."""

        def read(db: Connection) -> T | None:
            # arg_max finds them by the index; with ORDER BY the bodies of all claims would be read
            row = db.execute(f"SELECT arg_max(body, number) FROM {table} WHERE claim = ?", [claim_id]).fetchone()
            return None if row is None or row[0] is None else _read(make, json.loads(row[0]))

        return self._once((table, claim_id), read)

    def _one(self, query: str, claim_id: str) -> dict[str, Any]:
        with self.reading() as db:
            row = db.execute(query, [claim_id]).fetchone()
            known = [] if row else db.execute("SELECT id FROM claims ORDER BY created DESC LIMIT 5").fetchall()
        if row is None:
            there = ", ".join(name for (name,) in known) or "none yet"
            raise MissingRecord(f"claim {claim_id!r}: not in atlas {self.path}; newest claims: {there}.")
        return json.loads(row[0])


def counterexample_of(body: Mapping[str, Any]) -> Counterexample:
    """A counterexample from its JSON."""
    return Counterexample(**{**body, "tokens": tuple((token, score) for token, score in body.get("tokens", ()))})


def _read(make: Callable[[Any], T], body: Any) -> T:
    """A record from what is stored. Raises TamperedError for fields that no record of its class has."""
    try:
        return make(body)
    except (AttributeError, KeyError, TypeError) as error:
        raise TamperedError(f"a stored {make.__name__.strip('_')} is none any more ({type(error).__name__}: {error})."
                            " See: assay claim verify. Restore the atlas from a copy.") from error  # fmt: skip


def _claim(body: Mapping[str, Any]) -> Claim:
    return Claim(**{**body, "rivals": tuple(body["rivals"])})


def _plan(body: Mapping[str, Any]) -> Plan:
    return Plan(**{**body, "gates": tuple(GatePlan(**gate) for gate in body["gates"])})


def _evidence(body: Mapping[str, Any]) -> Evidence:
    gates = tuple(GateResult(**gate) for gate in body["gates"])
    return Evidence(**{**body, "gates": gates, "flags": tuple(body["flags"])})


def _verdict(body: Mapping[str, Any]) -> Verdict:
    return Verdict(**{key: _tuples(key, value) for key, value in body.items()})


def _tuples(key: str, value: Any) -> Any:
    return tuple(value) if key in ("reasons", "qualifiers", "gates", "does_not_show") else value
