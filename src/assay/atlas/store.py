"""`Atlas`: a directory with everything known about one model, claims and ledger first.

    with Atlas("./atlas") as atlas:
        atlas.claims()

1. The database is opened for each operation and closed after it, so that one process can write while
   others read. A process that finds it locked waits up to `patience` seconds, then says who holds it.
2. Every `record_*` writes its rows and its ledger entry in one transaction: all or nothing.
3. The ledger's head is kept in a table and, after the commit, in the file `ledger.head`.

Anyone who may write the directory may rewrite it. The chain makes that visible, not impossible.
"""

import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
from duckdb import DuckDBPyConnection as Connection

from assay.atlas.migrations import NEWEST, migrate, version_of
from assay.errors import EvidenceError, StoreError
from assay.evidence.claims import evidence_digest
from assay.evidence.ledger import Entry, next_entry, verify_chain
from assay.files import write_file
from assay.records import Claim, Counterexample, Evidence, GatePlan, GateResult, Plan, Verdict, canonical, digest

FILE = "atlas.duckdb"
HEAD = "ledger.head"
_IN_PROCESS = threading.RLock()


class Atlas:
    """One atlas. Nothing is opened or made before it is used."""

    def __init__(self, path: str | Path = "./atlas", *, patience: float = 10.0) -> None:
        self.path = Path(path)
        self.patience = patience

    def __enter__(self) -> "Atlas":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    # opening ---------------------------------------------------------------------------------

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A read-only connection. Raises StoreError when there is no atlas, or it cannot be read."""
        if not (self.path / FILE).is_file():
            raise StoreError(f"atlas {self.path}: there is none here. State a claim first, or give --atlas DIR.")
        with _IN_PROCESS:
            db = self._connect(read_only=True)
            try:
                version = version_of(db)
                if version == NEWEST:
                    yield db
                    return
            finally:
                db.close()
        self._check_version(version)
        with self.writing():
            pass  # brings an older atlas up to date
        with self.reading() as db:
            yield db

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A connection inside one transaction; makes or updates the atlas when needed."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"atlas {self.path}: cannot be made ({error.strerror}).") from error
        with _IN_PROCESS:
            db = self._connect(read_only=False)
            try:
                self._check_version(version_of(db))
                migrate(db)
                db.execute("BEGIN")
                yield db
                head = db.execute("SELECT count, hash FROM ledger_head").fetchone()
                db.execute("COMMIT")
            finally:
                db.close()
            if head is not None:
                write_file(self.path / HEAD, canonical({"count": head[0], "hash": head[1]}).encode())

    def _connect(self, read_only: bool) -> Connection:
        deadline = time.monotonic() + self.patience
        while True:
            try:
                return duckdb.connect(str(self.path / FILE), read_only=read_only)
            except duckdb.IOException as error:
                if "lock" not in str(error):
                    raise StoreError(f"atlas {self.path}: {FILE} cannot be opened: {_first_line(error)}") from error
                if time.monotonic() > deadline:
                    raise StoreError(
                        f"atlas {self.path} is being written by another process: {_first_line(error)}."
                        " Wait until it is done or end it, or give another --atlas DIR."
                    ) from error
                time.sleep(0.05)
            except duckdb.Error as error:
                raise StoreError(f"atlas {self.path}: {FILE} cannot be opened: {_first_line(error)}") from error

    def _check_version(self, version: int) -> None:
        if version > NEWEST:
            raise StoreError(f"atlas {self.path} has schema version {version}; this Assay knows up to {NEWEST}."
                             " Update Assay.")  # fmt: skip

    # ledger ----------------------------------------------------------------------------------

    def append(self, kind: str, body: Mapping[str, Any]) -> Entry:
        """Add one entry to the ledger."""
        with self.writing() as db:
            return _append(db, kind, body)

    def entries(self) -> list[Entry]:
        """The ledger, oldest first; empty when there is no atlas yet."""
        if not (self.path / FILE).is_file():
            return []
        with self.reading() as db:
            rows = db.execute('SELECT "index", "time", kind, body, previous, hash FROM ledger ORDER BY "index"').fetchall()
        keys = ("index", "time", "kind", "body", "previous", "hash")
        return [{**dict(zip(keys, row, strict=True)), "body": json.loads(row[3])} for row in rows]

    def heads(self) -> list[dict[str, Any] | None]:
        """The head kept in the database and the one in the file (None where there is none)."""
        with self.reading() as db:
            row = db.execute("SELECT count, hash FROM ledger_head").fetchone()
        table = None if row is None else {"count": row[0], "hash": row[1]}
        try:
            return [table, json.loads((self.path / HEAD).read_text())]
        except FileNotFoundError:
            return [table, None]
        except ValueError as error:
            raise StoreError(f"atlas {self.path}: {HEAD} is not readable ({error}).") from error

    def verify(self) -> list[str]:
        """What is wrong with the ledger; an empty list when nothing is."""
        entries, heads = self.entries(), self.heads()
        missing = [f"the ledger's head is missing ({name})" for name, head in
                   zip(("table ledger_head", HEAD), heads, strict=True) if entries and head is None]  # fmt: skip
        listed = {claim.id for claim in self.claims()}
        stated = {entry["body"]["claim"] for entry in entries if entry["kind"] == "state"}
        gone = [f"claim {name} is in the ledger but not in the store" for name in sorted(stated - listed)]
        added = [f"claim {name} is in the store but not in the ledger" for name in sorted(listed - stated)]
        return [*verify_chain(entries, *heads), *missing, *gone, *added]

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
            _append(db, "state", {"claim": claim.id, "digest": digest(claim), "statement": claim.statement})
            _append(db, "lock", {"claim": claim.id, "digest": plan.lock})

    def record_evidence(self, evidence: Evidence, counterexamples: Sequence[Counterexample]) -> None:
        """Evidence with its gates and counterexamples, and the run that made them."""
        run = digest([evidence.run, evidence.created])[:16]
        with self.writing() as db:
            db.execute("INSERT OR IGNORE INTO runs VALUES (?, ?, ?, ?)",
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
            _append(db, "evidence", {"claim": evidence.claim, "digest": evidence_digest(evidence, counterexamples),
                                     "reads": evidence.reads})  # fmt: skip

    def record_verdict(self, verdict: Verdict) -> None:
        """A verdict; earlier ones of the same claim stay and are superseded."""
        with self.writing() as db:
            db.execute("INSERT INTO verdicts (claim, verdict, rule_version, body) VALUES (?, ?, ?, ?)",
                       [verdict.claim, verdict.verdict, verdict.rule_version, canonical(verdict)])  # fmt: skip
            _append(db, "verdict", {"claim": verdict.claim, "digest": digest(verdict), "verdict": verdict.verdict})

    def claims(self) -> list[Claim]:
        """All claims, oldest first."""
        with self.reading() as db:
            rows = db.execute("SELECT body FROM claims ORDER BY created, id").fetchall()
        return [_claim(json.loads(body)) for (body,) in rows]

    def claim(self, claim_id: str) -> Claim:
        """A claim by id. Raises StoreError, with what there is, for an unknown one."""
        return _claim(self._one("SELECT body FROM claims WHERE id = ?", claim_id))

    def plan(self, claim_id: str) -> Plan:
        """The locked plan of a claim."""
        body = self._one("SELECT body FROM plans WHERE claim = ?", claim_id)
        return Plan(**{**body, "gates": tuple(GatePlan(**gate) for gate in body["gates"])})

    def evidence(self, claim_id: str) -> Evidence | None:
        """The newest evidence of a claim."""
        body = self._newest("evidence", claim_id)
        if body is None:
            return None
        gates = tuple(GateResult(**gate) for gate in body["gates"])
        return Evidence(**{**body, "gates": gates, "flags": tuple(body["flags"])})

    def counterexamples(self, claim_id: str) -> list[Counterexample]:
        """The counterexamples of the newest evidence, worst first."""
        with self.reading() as db:
            rows = db.execute(
                "SELECT body FROM counterexamples WHERE evidence = (SELECT max(number) FROM evidence WHERE claim = ?)"
                " ORDER BY rowid", [claim_id],
            ).fetchall()  # fmt: skip
        return [Counterexample(**json.loads(body)) for (body,) in rows]

    def verdict(self, claim_id: str) -> Verdict | None:
        """The verdict that stands for a claim."""
        body = self._newest("verdicts", claim_id)
        return None if body is None else Verdict(**{key: _tuples(key, value) for key, value in body.items()})

    def _newest(self, table: str, claim_id: str) -> dict[str, Any] | None:
        with self.reading() as db:
            row = db.execute(f"SELECT body FROM {table} WHERE claim = ? ORDER BY number DESC LIMIT 1", [claim_id]).fetchone()
        return None if row is None else json.loads(row[0])

    def _one(self, query: str, claim_id: str) -> dict[str, Any]:
        with self.reading() as db:
            row = db.execute(query, [claim_id]).fetchone()
            known = [] if row else db.execute("SELECT id FROM claims ORDER BY created DESC LIMIT 5").fetchall()
        if row is None:
            there = ", ".join(name for (name,) in known) or "none yet"
            raise StoreError(f"claim {claim_id!r}: not in atlas {self.path}; newest claims: {there}.")
        return json.loads(row[0])


def _append(db: Connection, kind: str, body: Mapping[str, Any]) -> Entry:
    """Add one entry inside the caller's transaction."""
    columns = '"index", "time", kind, body, previous, hash'
    row = db.execute(f'SELECT {columns} FROM ledger ORDER BY "index" DESC LIMIT 1').fetchone()
    last = None if row is None else {"index": row[0], "hash": row[5]}
    entry = next_entry(last, kind, body)
    db.execute("INSERT INTO ledger VALUES (?, ?, ?, ?, ?, ?)", [entry["index"], entry["time"], entry["kind"],
               canonical(entry["body"]), entry["previous"], entry["hash"]])  # fmt: skip
    db.execute("DELETE FROM ledger_head")
    db.execute("INSERT INTO ledger_head VALUES (?, ?)", [entry["index"] + 1, entry["hash"]])
    return entry


def _claim(body: Mapping[str, Any]) -> Claim:
    return Claim(**{**body, "rivals": tuple(body["rivals"])})


def _tuples(key: str, value: Any) -> Any:
    return tuple(value) if key in ("reasons", "qualifiers", "gates", "does_not_show") else value


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0].split(". See also")[0]
