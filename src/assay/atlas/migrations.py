"""The schema, as numbered steps. A step is never edited after a release; changes are new steps.

Records are kept as canonical JSON in `body`, with the columns people ask for beside it, so that the
file can be read by anything that reads DuckDB.
"""

from collections.abc import Callable

from duckdb import CatalogException
from duckdb import DuckDBPyConnection as Connection


def m001_claims(db: Connection) -> None:
    """Claims, plans, verdicts, and the ledger with its head."""
    db.execute("CREATE TABLE claims (id VARCHAR PRIMARY KEY, version INTEGER, parent VARCHAR, kind VARCHAR,"
               " created VARCHAR, statement VARCHAR, body JSON)")  # fmt: skip
    db.execute("CREATE TABLE plans (claim VARCHAR PRIMARY KEY, lock VARCHAR, body JSON)")
    db.execute("CREATE SEQUENCE record_number")
    db.execute("CREATE TABLE verdicts (number BIGINT DEFAULT nextval('record_number'), claim VARCHAR,"
               " verdict VARCHAR, rule_version VARCHAR, body JSON)")  # fmt: skip
    db.execute('CREATE TABLE ledger ("index" BIGINT PRIMARY KEY, "time" VARCHAR, kind VARCHAR, body JSON,'
               " previous VARCHAR, hash VARCHAR)")  # fmt: skip
    db.execute("CREATE TABLE ledger_head (count BIGINT, hash VARCHAR)")


def m002_evidence(db: Connection) -> None:
    """Evidence, its gates as rows, counterexamples, and the runs that made them."""
    db.execute("CREATE TABLE runs (id VARCHAR PRIMARY KEY, created VARCHAR, command VARCHAR, passport JSON)")
    db.execute("CREATE TABLE tasks (digest VARCHAR PRIMARY KEY, name VARCHAR, body JSON)")
    db.execute("CREATE TABLE evidence (number BIGINT DEFAULT nextval('record_number'), claim VARCHAR, run VARCHAR,"
               " created VARCHAR, reads INTEGER, body JSON)")  # fmt: skip
    db.execute("CREATE TABLE gates (evidence BIGINT, claim VARCHAR, name VARCHAR, split VARCHAR, required BOOLEAN,"
               " estimate DOUBLE, low DOUBLE, high DOUBLE, sesoi DOUBLE, p_above DOUBLE,"
               " p_below DOUBLE, body JSON)")  # fmt: skip
    db.execute("CREATE TABLE counterexamples (evidence BIGINT, claim VARCHAR, score DOUBLE, status VARCHAR, body JSON)")


def m003_index(db: Connection) -> None:
    """What the ledger is asked, as tables that follow from it; records of data, deviations, replications, imports."""
    db.execute("CREATE TABLE marks (entry BIGINT, kind VARCHAR, subject VARCHAR, split VARCHAR, claim VARCHAR,"
               " ticket VARCHAR, data VARCHAR, clusters VARCHAR)")  # fmt: skip
    db.execute("CREATE TABLE cluster_sets (name VARCHAR, cluster VARCHAR)")
    db.execute("CREATE TABLE standing (claim VARCHAR PRIMARY KEY, verdict VARCHAR, p DOUBLE)")
    for table in ("deviations", "replications"):
        db.execute(f"CREATE TABLE {table} (number BIGINT DEFAULT nextval('record_number'), claim VARCHAR,"
                   " created VARCHAR, body JSON)")  # fmt: skip
    db.execute("CREATE TABLE datasets (digest VARCHAR PRIMARY KEY, name VARCHAR, split VARCHAR, body JSON)")
    db.execute("CREATE TABLE imports (claim VARCHAR PRIMARY KEY, verdict VARCHAR, created VARCHAR, kind VARCHAR,"
               " statement VARCHAR, body JSON)")  # fmt: skip
    db.execute("ALTER TABLE runs ADD COLUMN claim VARCHAR")
    db.execute("ALTER TABLE runs ADD COLUMN body JSON")
    db.execute(f"INSERT INTO marks {MARKS_OF_LEDGER}")
    db.execute(f"INSERT INTO cluster_sets {SETS_OF_LEDGER}")
    db.execute(f"INSERT INTO standing {STANDING_OF_VERDICTS}")
    db.execute("CREATE INDEX marks_claim ON marks (claim)")
    db.execute("CREATE INDEX marks_subject ON marks (subject)")
    db.execute("CREATE INDEX verdicts_claim ON verdicts (claim)")
    db.execute("CREATE INDEX evidence_claim ON evidence (claim)")
    db.execute("CREATE INDEX counterexamples_evidence ON counterexamples (evidence)")


def m004_features(db: Connection) -> None:
    """Dictionaries with what was measured of them, and attribution graphs. Tensors and pages are files beside."""
    db.execute("CREATE TABLE dictionaries (digest VARCHAR PRIMARY KEY, name VARCHAR, model VARCHAR, created VARCHAR,"
               " folder VARCHAR, body JSON)")  # fmt: skip
    db.execute("CREATE TABLE evaluations (number BIGINT DEFAULT nextval('record_number'), dictionary VARCHAR,"
               " created VARCHAR, body JSON)")  # fmt: skip
    db.execute("CREATE TABLE graphs (id VARCHAR PRIMARY KEY, model VARCHAR, prompt VARCHAR, created VARCHAR, file VARCHAR,"
               " body JSON)")  # fmt: skip


def m005_mapped(db: Connection) -> None:
    """Sets of mapped features. Records, contexts and what searches need are files beside, in `features/`."""
    db.execute("CREATE TABLE feature_sets (id VARCHAR PRIMARY KEY, model VARCHAR, dictionary VARCHAR, site VARCHAR,"
               " corpus VARCHAR, created VARCHAR, folder VARCHAR, body JSON)")  # fmt: skip


def m006_harvests(db: Connection) -> None:
    """Activations of corpora that were written to folders, by the SHA-256 of their manifests."""
    db.execute("CREATE TABLE harvests (digest VARCHAR PRIMARY KEY, model VARCHAR, corpus VARCHAR, created VARCHAR,"
               " folder VARCHAR, body JSON)")  # fmt: skip


def m007_dictionaries_by_name(db: Connection) -> None:
    """The same numbers may be kept under several names."""
    db.execute("CREATE TABLE dictionaries_by_name (digest VARCHAR, name VARCHAR, model VARCHAR, created VARCHAR,"
               " folder VARCHAR, body JSON, PRIMARY KEY (digest, name))")  # fmt: skip
    db.execute("INSERT INTO dictionaries_by_name SELECT * FROM dictionaries")
    db.execute("DROP TABLE dictionaries")
    db.execute("ALTER TABLE dictionaries_by_name RENAME TO dictionaries")


SET_NAME = "sha256(array_to_string(list_sort(list_distinct(CAST(body->'$.clusters' AS VARCHAR[]))), ' '))"
MARKS_OF_LEDGER = (
    "SELECT \"index\", kind, coalesce(body->>'$.subject', body->>'$.model'), body->>'$.split', body->>'$.claim',"
    f" body->>'$.ticket', coalesce(body->>'$.data', body->>'$.digest'), {SET_NAME} FROM ledger"
)
SETS_OF_LEDGER = (
    f"SELECT DISTINCT {SET_NAME} AS name, unnest(CAST(body->'$.clusters' AS VARCHAR[])) AS cluster FROM ledger"
    " WHERE kind IN ('data', 'look')"
)
STANDING_OF_VERDICTS = (
    "SELECT claim, arg_max(verdict, number), arg_max(CAST(body->>'$.decision.p' AS DOUBLE), number)"
    " FROM verdicts GROUP BY claim"
)
MIGRATIONS: tuple[Callable[[Connection], None], ...] = (
    m001_claims, m002_evidence, m003_index, m004_features, m005_mapped, m006_harvests,
    m007_dictionaries_by_name,
)  # fmt: skip
NEWEST = len(MIGRATIONS)


def version_of(db: Connection) -> int:
    """The schema version of an open database; 0 for an empty one."""
    try:
        row = db.execute("SELECT max(version) FROM schema_version").fetchone()
    except CatalogException:  # no such table
        return 0
    return int(row[0]) if row and row[0] is not None else 0


def migrate(db: Connection, up_to: int = NEWEST) -> int:
    """Bring a database to a version, each step in its own transaction. Returns the version."""
    for number in range(version_of(db) + 1, up_to + 1):
        db.execute("BEGIN")
        db.execute("CREATE TABLE IF NOT EXISTS schema_version (version INTEGER PRIMARY KEY, name VARCHAR)")
        MIGRATIONS[number - 1](db)
        db.execute("INSERT INTO schema_version VALUES (?, ?)", [number, MIGRATIONS[number - 1].__name__])
        db.execute("COMMIT")
    return version_of(db)
