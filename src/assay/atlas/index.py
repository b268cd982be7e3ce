"""What a ledger is asked, answered from tables beside it instead of from all its entries.

1. `marks` has one row per entry: whom it is charged to (subject of a read, model of a look), which claim,
   ticket, data and set of clusters it names. `cluster_sets` has the clusters of every set once, however
   often they were read. `standing` has the verdict and p that stand for a claim.
2. A row is written in the transaction that writes its entry.
3. All three follow from the ledger and the verdicts; `index_problems` derives them again and compares.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from duckdb import DuckDBPyConnection as Connection

from assay.atlas.migrations import MARKS_OF_LEDGER, SETS_OF_LEDGER, STANDING_OF_VERDICTS
from assay.errors import TamperedError
from assay.evidence.ledger import GENESIS, MOST_LOOKS, Entry, counts, look_words, next_entry, shortened
from assay.records import canonical

CHUNK = 10_000
COLUMNS = '"index", "time", kind, body, previous, hash'
STANDS = "coalesce(s.verdict, 'not tested')"
COUNTED_BY_VERDICT = {  # without a join of claims with their verdicts; claims without one count as not tested
    "": "SELECT (SELECT count(*) FROM standing WHERE verdict = ?) + (SELECT count(*) FROM imports WHERE verdict = ?)",
    "not tested": "SELECT (SELECT count(*) FROM claims) - (SELECT count(*) FROM standing WHERE verdict <> ?) +"
                  " (SELECT count(*) FROM imports WHERE verdict = ?)",
}  # fmt: skip
SHARED = "SELECT DISTINCT name FROM cluster_sets WHERE cluster IN (SELECT unnest(?::VARCHAR[]))"


def append(db: Connection, kind: str, body: Mapping[str, Any], head_in_file: Mapping[str, Any] | None) -> Entry:
    """Add one entry inside the caller's transaction. Raises TamperedError on a ledger that lost its end."""
    entry = next_entry(_last(db, head_in_file), kind, body)
    text = canonical(entry["body"])
    db.execute("INSERT INTO ledger VALUES (?, ?, ?, ?, ?, ?)",
               [entry["index"], entry["time"], kind, text, entry["previous"], entry["hash"]])  # fmt: skip
    db.execute("DELETE FROM ledger_head")
    db.execute("INSERT INTO ledger_head VALUES (?, ?)", [entry["index"] + 1, entry["hash"]])
    _mark(db, entry)
    return entry


def _last(db: Connection, head_in_file: Mapping[str, Any] | None) -> Entry | None:
    """The entry to go on from, by the head. A head that the ledger does not bear out must not be overwritten."""
    head = db.execute("SELECT count, hash FROM ledger_head").fetchone()
    newest = db.execute('SELECT "index", hash FROM ledger WHERE "index" >= ? ORDER BY "index" DESC LIMIT 1',
                        [0 if head is None else head[0] - 1]).fetchone()  # fmt: skip
    count = 0 if head is None else int(head[0])
    missing = head_in_file is not None and int(head_in_file["count"]) > count
    if missing or (newest is None) != (head is None) or (newest and head and newest != (count - 1, head[1])):
        raise TamperedError("the ledger's end is not the one its head names: nothing is added to it."
                            " See: assay claim verify. Restore the atlas from a copy.")  # fmt: skip
    return None if newest is None else {"index": newest[0], "hash": newest[1]}


def _mark(db: Connection, entry: Entry) -> None:
    body, names = entry["body"], None
    if "clusters" in body:
        clusters = sorted(set(body["clusters"]))
        names = hashlib.sha256(" ".join(clusters).encode()).hexdigest()
        known = db.execute("SELECT 1 FROM cluster_sets WHERE name = ? LIMIT 1", [names]).fetchone()
        if not known and entry["kind"] in ("data", "look"):
            db.execute("INSERT INTO cluster_sets SELECT ?, unnest(?::VARCHAR[])", [names, clusters])
    db.execute("INSERT INTO marks VALUES (?, ?, ?, ?, ?, ?, ?, ?)", [
        entry["index"], entry["kind"], body.get("subject", body.get("model")), body.get("split"), body.get("claim"),
        body.get("ticket"), body.get("data", body.get("digest")), names])  # fmt: skip


# questions ---------------------------------------------------------------------------------------


def reads(db: Connection, subject: str, data: str, clusters: Sequence[str]) -> int:
    """Tickets of a subject that met the same confirm data or any of the same clusters."""
    row = db.execute(
        "SELECT count(DISTINCT ticket) FROM marks WHERE subject = ? AND split = 'confirm' AND ((kind = 'ticket' AND"
        f" data = ?) OR (kind = 'data' AND clusters IN ({SHARED})))", [subject, data, list(clusters)],
    ).fetchone()  # fmt: skip
    return int(row[0]) if row else 0


def looks(db: Connection, model: str, clusters: Sequence[str]) -> list[str]:
    """Looks of a model at any of these clusters, newest first."""
    where = f"FROM marks WHERE subject = ? AND kind = 'look' AND clusters IN ({SHARED})"
    given = [model, list(clusters)]
    total = db.execute(f"SELECT count(*) {where}", given).fetchone()
    rows = db.execute(f'SELECT {COLUMNS} FROM ledger WHERE "index" IN (SELECT entry {where} ORDER BY entry DESC LIMIT'
                      f' {MOST_LOOKS}) ORDER BY "index" DESC', given).fetchall()  # fmt: skip
    return shortened([look_words(entry_of(row)) for row in rows], int(total[0]) if total else 0)


def sharing(db: Connection, subject: str, clusters: Sequence[str]) -> list[str]:
    """Claims of other subjects whose confirm data share a cluster with these, in order of their reads."""
    rows = db.execute(
        "SELECT claim FROM marks WHERE kind = 'data' AND split = 'confirm' AND subject <> ? AND clusters IN"
        f" ({SHARED}) GROUP BY claim ORDER BY min(entry)", [subject, list(clusters)],
    ).fetchall()  # fmt: skip
    return [claim for (claim,) in rows]


def entries_of(db: Connection, claim: str) -> list[Entry]:
    """The entries about one claim."""
    rows = db.execute(f'SELECT {COLUMNS} FROM ledger WHERE "index" IN (SELECT entry FROM marks WHERE claim = ?)'
                      ' ORDER BY "index"', [claim]).fetchall()  # fmt: skip
    return [entry_of(row) for row in rows]


def tally(db: Connection) -> dict[str, int]:
    """The counts of the whole ledger."""
    kinds = dict(db.execute("SELECT kind, count(*) FROM marks GROUP BY kind").fetchall())
    failed = db.execute("SELECT count(*) FROM replications WHERE body->>'$.same' = 'false'").fetchone()
    verdicts = dict(db.execute("SELECT verdict, count(*) FROM standing GROUP BY verdict").fetchall())
    return counts({**kinds, "failed replication": failed[0] if failed else 0}, verdicts)


def page(db: Connection, limit: int, offset: int, verdict: str, kind: str) -> tuple[list[tuple[Any, ...]], int]:
    """Rows of a list of own and imported claims, oldest first, and how many there are in all of this choice.

    Which claims are on the page is found from narrow columns; their texts are read for the page alone.
    """
    where, given = " AND ".join(["kind = ?"] * bool(kind) + ["verdict = ?"] * bool(verdict)) or "true", [kind, verdict]
    given = [value for value in given if value]
    joined = "claims c LEFT JOIN standing s ON s.claim = c.id" if verdict else "claims c"
    own = f"SELECT c.id, c.kind, {STANDS if verdict else 'NULL'} AS verdict, c.created, false AS imported FROM {joined}"
    others = "SELECT claim, kind, verdict, created, true FROM imports"
    chosen = f"FROM ({own} UNION ALL {others}) WHERE {where}"
    counted = COUNTED_BY_VERDICT.get(verdict, COUNTED_BY_VERDICT[""]) if verdict and not kind else f"SELECT count(*) {chosen}"
    total = db.execute(counted, [verdict, verdict] if verdict and not kind else given).fetchone()
    ids = [row[0] for row in db.execute(f"SELECT id {chosen} ORDER BY created, id LIMIT {int(limit)} OFFSET {int(offset)}",
                                        given).fetchall()]  # fmt: skip
    rows = db.execute(
        f"SELECT c.id, c.kind, c.version, c.statement, {STANDS}, c.created, false FROM claims c LEFT JOIN standing s ON"
        " s.claim = c.id WHERE c.id IN (SELECT unnest(?::VARCHAR[])) UNION ALL SELECT claim, kind, 1, statement, verdict,"
        " created, true FROM imports WHERE claim IN (SELECT unnest(?::VARCHAR[])) ORDER BY created, id", [ids, ids],
    ).fetchall()  # fmt: skip
    return rows, int(total[0]) if total else 0


def entry_of(row: Sequence[Any]) -> Entry:
    """A row of the ledger as an entry."""
    keys = ("index", "time", "kind", "body", "previous", "hash")
    return {**dict(zip(keys, row, strict=True)), "body": json.loads(row[3])}


def chunks(db: Connection) -> Iterator[list[Entry]]:
    """The ledger in order, some thousand entries at a time."""
    found = db.execute(f'SELECT {COLUMNS} FROM ledger ORDER BY "index"')
    while rows := found.fetchmany(CHUNK):
        yield [entry_of(row) for row in rows]


# checks ------------------------------------------------------------------------------------------


def index_problems(db: Connection) -> list[str]:
    """Where the tables that questions are answered from do not follow from ledger and verdicts."""
    derived = {"marks": MARKS_OF_LEDGER, "cluster_sets": SETS_OF_LEDGER, "standing": STANDING_OF_VERDICTS}
    found = []
    for table, query in derived.items():
        row = db.execute(f"SELECT (SELECT count(*) FROM ({query} EXCEPT SELECT * FROM {table})) +"
                         f" (SELECT count(*) FROM (SELECT * FROM {table} EXCEPT {query}))").fetchone()  # fmt: skip
        if row and row[0]:
            found.append(f"the index of the ledger (table {table}) does not follow from it: {row[0]} rows differ")
    return found


def record_problems(db: Connection) -> list[str]:
    """Claims that are in the ledger but not in the store, or the other way; wrong digests of small records."""
    stated = "SELECT body->>'$.claim' FROM ledger WHERE kind = 'state'"
    gone = db.execute(f"{stated} EXCEPT SELECT id FROM claims ORDER BY 1").fetchall()
    added = db.execute(f"SELECT id FROM claims EXCEPT {stated} ORDER BY 1").fetchall()
    found = [f"claim {name} is in the ledger but not in the store" for (name,) in gone]
    found += [f"claim {name} is in the store but not in the ledger" for (name,) in added]
    found += [f"{n} rows of table {table} show something else than their record" for table, n in _columns_differ(db)]
    for table, kind in (("deviations", "deviation"), ("replications", "replication"), ("imports", "import"),
                        ("verdicts", "verdict")):  # fmt: skip
        logged = ("SELECT body->>'$.claim', body->>'$.digest' FROM ledger"
                  f" WHERE kind = '{kind}' AND body->>'$.digest' IS NOT NULL")  # fmt: skip
        differ = f"(({logged}) EXCEPT SELECT claim, sha256(CAST(body AS VARCHAR)) FROM {table})"
        more = f"(SELECT claim, sha256(CAST(body AS VARCHAR)) FROM {table} EXCEPT ({logged}))"
        row = db.execute(f"SELECT (SELECT count(*) FROM {differ}) + (SELECT count(*) FROM {more})").fetchone()
        if row and row[0]:
            found.append(f"{row[0]} {kind} records are not the ones in the ledger")
    return found


SHOWN = {  # columns that are listed and counted -> where their records say the same
    "claims": {"id": "$.id", "version": "$.version", "parent": "$.parent", "kind": "$.kind", "created": "$.created",
               "statement": "$.statement"},
    "plans": {"claim": "$.claim", "lock": "$.lock"},
    "verdicts": {"claim": "$.claim", "verdict": "$.verdict", "rule_version": "$.rule_version"},
    "evidence": {"claim": "$.claim", "created": "$.created", "reads": "$.reads"},
    "gates": {"name": "$.name", "split": "$.split", "required": "$.required", "estimate": "$.estimate", "low": "$.low",
              "high": "$.high", "sesoi": "$.sesoi", "p_above": "$.p_above", "p_below": "$.p_below"},
    "imports": {"claim": "$.claim.id", "kind": "$.claim.kind", "statement": "$.claim.statement"},
}  # fmt: skip
NUMBERS = ("estimate", "low", "high", "sesoi", "p_above", "p_below")


def _columns_differ(db: Connection) -> list[tuple[str, int]]:
    """(table, rows) whose columns beside the record do not say what the record says."""
    found = []
    for table, columns in SHOWN.items():
        differ = " OR ".join(
            f"{name} IS DISTINCT FROM CAST(body->>'{path}' AS DOUBLE)" if name in NUMBERS
            else f"CAST({name} AS VARCHAR) IS DISTINCT FROM body->>'{path}'" for name, path in columns.items()
        )  # fmt: skip
        row = db.execute(f"SELECT count(*) FROM {table} WHERE {differ}").fetchone()
        if row and row[0]:
            found.append((table, int(row[0])))
    row = db.execute("SELECT count(*) FROM imports WHERE verdict IS DISTINCT FROM"
                     " coalesce(body->>'$.verdict.verdict', 'not tested')").fetchone()  # fmt: skip
    return [*found, *([("imports", int(row[0]))] if row and row[0] else [])]


def head_of(db: Connection) -> dict[str, Any] | None:
    """Count and last hash as the database keeps them."""
    row = db.execute("SELECT count, hash FROM ledger_head").fetchone()
    return None if row is None else {"count": row[0], "hash": row[1]}


EMPTY_HEAD = {"count": 0, "hash": GENESIS}
