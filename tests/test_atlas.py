"""The atlas: one writer and many readers, migrations, tampering, and files that are not an atlas."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import duckdb
import pytest

from assay.atlas import database
from assay.atlas.database import engine
from assay.atlas.features import dictionaries, harvests
from assay.atlas.migrations import MIGRATIONS, NEWEST, migrate, version_of
from assay.atlas.store import FILE, HEAD, Atlas
from assay.errors import EvidenceError, StoreError, TamperedError
from assay.evidence.claims import audit, judge, lock_of
from assay.records import Counterexample
from test_verdicts import CLAIM, PLAN, evidence

HOLD = "import duckdb, sys; db = duckdb.connect(sys.argv[1]); print('held', flush=True); sys.stdin.read()"


@pytest.fixture
def atlas(tmp_path):
    return Atlas(tmp_path / "atlas", patience=0.3)


def stored(atlas, claim=CLAIM, plan=PLAN):
    """A claim with evidence and a verdict, as a test leaves it."""
    plan = replace(plan, claim=claim.id, splits={s: {"n": 1, "seed": 0, "digest": "d", "templates": 9} for s in plan.levels})
    plan = replace(plan, lock=lock_of(claim, plan))
    found = replace(evidence(), claim=claim.id, lock=plan.lock, gates=(), tables={})
    hit = Counterexample(claim.id, "a", "b", "t", "sufficiency", -1.0, "above 0", "verified")
    atlas.record_claim(claim, plan)
    atlas.record_evidence(found, [hit])
    return judge(atlas, claim.id)


def test_records_come_back_as_they_went_in(atlas):
    verdict = stored(atlas)
    assert atlas.claim("c1") == CLAIM and atlas.plan("c1").gates == PLAN.gates
    assert atlas.verdict("c1") == verdict
    assert atlas.counterexamples("c1")[0].score == -1.0
    assert [entry["kind"] for entry in atlas.entries()] == ["state", "lock", "evidence", "verdict"]
    assert atlas.verify() == [] and audit(atlas, "c1") == []


def test_other_tools_can_read_it(atlas):
    stored(atlas)
    with duckdb.connect(str(atlas.path / FILE), read_only=True) as db:
        assert db.execute("SELECT verdict FROM verdicts").fetchall() == [("not tested",)]
        assert db.execute("SELECT body->>'$.statement' FROM claims").fetchone() == (CLAIM.statement,)


@pytest.mark.parametrize("sql, said", [
    ("UPDATE ledger SET body = '{\"claim\": \"c1\", \"verdict\": \"supported\"}' WHERE kind = 'verdict'", "was edited"),
    ("DELETE FROM ledger WHERE \"index\" = 1", "is missing or moved"),
    ("DELETE FROM ledger WHERE \"index\" = 3", "deleted at the end"),
    ("DELETE FROM claims", "in the ledger but not in the store"),
    ("DELETE FROM ledger_head", "head is missing"),
])  # fmt: skip
def test_tampering_with_the_database_shows(atlas, sql, said):
    stored(atlas)
    with duckdb.connect(str(atlas.path / FILE)) as db:
        db.execute(sql)
    assert any(said in problem for problem in atlas.verify())


@pytest.mark.parametrize("table, kind", [("claims", "state"), ("plans", "lock"), ("evidence",) * 2, ("verdicts", "verdict")])
def test_tampering_with_a_record_shows(atlas, table, kind):
    stored(atlas)
    with duckdb.connect(str(atlas.path / FILE)) as db:
        body = json.loads(db.execute(f"SELECT body FROM {table}").fetchone()[0])
        body |= {"claims": {"statement": "better"}, "plans": {"lock": "0"}, "evidence": {"reads": 3},
                 "verdicts": {"verdict": "supported"}}[table]  # fmt: skip
        db.execute(f"UPDATE {table} SET body = ?", [json.dumps(body)])
    assert any(f"the stored {kind}" in problem for problem in audit(atlas, "c1"))


@pytest.mark.parametrize("damage", ["bytes", "table"])
def test_a_damaged_database_is_said_in_words(atlas, damage):
    stored(atlas)
    path = atlas.path / FILE
    if damage == "table":
        with duckdb.connect(str(path)) as db:
            db.execute("DROP TABLE marks")
    else:
        content = bytearray(path.read_bytes())
        for place in range(12_288, len(content), 4096):  # behind the headers: every block has a checksum
            content[place + 100] ^= 255
        path.write_bytes(bytes(content))
    with pytest.raises((TamperedError, StoreError), match="atlas.duckdb (is damaged|cannot be opened)"):
        atlas.verify()


def test_restoring_an_older_copy_of_the_database_shows(atlas):
    stored(atlas)
    old = (atlas.path / FILE).read_bytes()
    atlas.append("look", {"what": "one more"})
    (atlas.path / FILE).write_bytes(old)
    assert any("deleted at the end" in problem for problem in atlas.verify())


def test_a_second_writer_gets_a_clear_error(atlas):
    stored(atlas)
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(atlas.path / FILE)],
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # fmt: skip
    try:
        assert holder.stdout and holder.stdout.readline().strip() == "held"
        with pytest.raises(StoreError, match="being written by another process"):
            atlas.append("look", {"what": "blocked"})
    finally:
        holder.communicate("")
    assert len(atlas.entries()) == 4 and atlas.verify() == []


def test_a_failing_write_leaves_nothing(atlas):
    stored(atlas)
    with pytest.raises(RuntimeError), atlas.writing() as db:
        db.execute("DELETE FROM claims")
        raise RuntimeError("stopped in the middle")
    assert [claim.id for claim in atlas.claims()] == ["c1"]


def test_after_an_operation_nothing_is_open_and_several_can_be_at_once(atlas, tmp_path):
    stored(atlas)
    other = Atlas(tmp_path / "other")
    other.append("look", {"what": "x"})
    with atlas.reading() as one, other.reading() as two, atlas.reading() as same:
        counts = [db.execute("SELECT count(*) FROM ledger").fetchone() for db in (one, two, same)]
    assert counts == [(4,), (1,), (4,)]
    with engine() as db:
        assert db.execute("SELECT count(*) FROM duckdb_databases() WHERE NOT internal").fetchone() == (1,)
    check = "import duckdb, sys; duckdb.connect(sys.argv[1]).execute('CHECKPOINT')"
    assert subprocess.run([sys.executable, "-c", check, str(atlas.path / FILE)]).returncode == 0


def test_ctrl_c_while_a_file_is_opened_leaves_it_free(atlas, monkeypatch):
    stored(atlas)
    made = database.new_cursor

    class Pressed:
        def __init__(self):
            self.db, self.first = made(), True

        def execute(self, query):
            self.db.execute(query)
            if query.startswith("ATTACH") and self.first:
                self.first = False
                raise KeyboardInterrupt

        def close(self):
            self.db.close()

    monkeypatch.setattr(database, "new_cursor", Pressed)
    with pytest.raises(KeyboardInterrupt):
        atlas.entries()
    monkeypatch.setattr(database, "new_cursor", made)
    with engine() as db:
        assert db.execute("SELECT count(*) FROM duckdb_databases() WHERE NOT internal").fetchone() == (1,)
    atlas.append("look", {"what": "the file is free"})
    assert len(atlas.entries()) == 5


def test_an_engine_that_cannot_let_go_is_given_up(atlas):
    stored(atlas)
    with atlas.reading() as db:
        db.execute("BEGIN")  # a file in a transaction cannot be detached
        db.execute("SELECT count(*) FROM ledger").fetchone()
    atlas.append("look", {"what": "the file is free again"})
    assert len(atlas.entries()) == 5 and atlas.verify() == []


LONG = "SELECT count(*) FROM range({}) t(i) WHERE regexp_matches(repeat(i::VARCHAR, 200), '(a|b|[0-9])*c')"


@pytest.mark.parametrize("opened", ["reading", "engine"])
def test_ctrl_c_during_a_long_query_is_seen_at_once(atlas, opened):
    """Of many threads DuckDB 2.0 may look at none: this query of ten seconds then runs to its end."""
    stored(atlas)
    pressed = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT))
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt), engine() if opened == "engine" else getattr(atlas, opened)() as db:
        pressed.start()
        db.execute(LONG.format(4_000_000)).fetchall()
    assert time.monotonic() - start < 8
    assert atlas.verdict("c1") is not None and atlas.verify() == []


def test_a_ticket_pays_for_one_evidence_and_evidence_without_a_verdict_is_no_tampering(atlas):
    stored(atlas)
    ticket = {"claim": "c1", "split": "confirm", "subject": "s", "data": "d"}
    atlas.append("ticket", {**ticket, "ticket": "c1-1"})
    again = replace(atlas.evidence("c1"), reads=2)
    with pytest.raises(EvidenceError, match="c1: it was tested meanwhile with the same ticket"):
        atlas.record_evidence(again, [])
    assert atlas.evidence("c1").reads == 1
    atlas.append("ticket", {**ticket, "ticket": "c1-2"})
    atlas.record_evidence(again, [])
    assert atlas.evidence("c1").reads == 2 and atlas.verdict("c1").decision["reads"] == 1
    assert audit(atlas, "c1") == [] and atlas.verify() == []
    assert judge(atlas, "c1").decision["reads"] == 2 and audit(atlas, "c1") == []


def test_migrations_run_from_the_oldest(tmp_path):
    atlas = Atlas(tmp_path)
    with duckdb.connect(str(tmp_path / FILE)) as db:
        migrate(db, up_to=1)
        assert version_of(db) == 1
        db.execute("INSERT INTO claims VALUES ('old', 1, NULL, 'mediates', 'now', 's', ?)", [
            json.dumps({**CLAIM.__dict__, "id": "old"})])  # fmt: skip
    assert harvests(atlas) == []  # a reader brings it up to date
    assert [claim.id for claim in atlas.claims()] == ["old"]
    with atlas.reading() as db:
        assert version_of(db) == NEWEST == len(MIGRATIONS)


def test_dictionaries_of_an_older_atlas_stay_and_may_share_their_numbers(tmp_path):
    with duckdb.connect(str(tmp_path / FILE)) as db:
        migrate(db, up_to=6)
        db.execute("INSERT INTO dictionaries VALUES ('d', 'first', 'm', 'now', 'there', '{}')")
        migrate(db)
        db.execute("INSERT INTO dictionaries VALUES ('d', 'second', 'm', 'then', 'here', '{}')")
    assert [(row["name"], row["folder"]) for row in dictionaries(Atlas(tmp_path))] == [("first", "there"), ("second", "here")]


def test_an_atlas_of_a_newer_version_is_refused(atlas):
    stored(atlas)
    with duckdb.connect(str(atlas.path / FILE)) as db:
        db.execute(f"INSERT INTO schema_version VALUES ({NEWEST + 1}, 'm999')")
    with pytest.raises(StoreError, match="Update Assay"):
        atlas.claims()


def test_what_is_not_an_atlas_is_said(tmp_path):
    with pytest.raises(StoreError, match="there is none here"):
        Atlas(tmp_path).claims()
    (tmp_path / FILE).write_bytes(b"not a database" * 1000)
    with pytest.raises(StoreError, match="cannot be opened"):
        Atlas(tmp_path).claims()
    with pytest.raises(StoreError, match="cannot be made"):
        Atlas(tmp_path / FILE / "below").append("look", {})


# one opening for many operations -----------------------------------------------------------------


def test_a_block_opens_once_reads_then_writes_and_lets_go(atlas, monkeypatch):
    stored(atlas)
    opened, attach = [], database._Held.open
    monkeypatch.setattr(database._Held, "open", lambda held, *given: opened.append(given[-1]) or attach(held, *given))
    with atlas, Atlas(atlas.path) as same:
        atlas.claims(), same.verdict("c1"), same.tally()
        assert opened == [True]
        atlas.append("look", {"what": "first write"})
        same.append("look", {"what": "second"})
        assert opened == [True, False] and atlas.tally()["looks"] == 2
    with duckdb.connect(str(atlas.path / FILE)) as db:  # nobody holds it any more
        assert db.execute("SELECT count(*) FROM ledger").fetchone() == (6,)


def test_a_failing_write_inside_a_block_leaves_nothing(atlas):
    stored(atlas)
    with atlas:
        with pytest.raises(RuntimeError), atlas.writing() as db:
            db.execute("DELETE FROM claims")
            raise RuntimeError("stopped in the middle")
        assert [claim.id for claim in atlas.claims()] == ["c1"]
        atlas.append("look", {"what": "goes on"})
    assert atlas.verify() == []


def test_nothing_is_added_to_a_ledger_that_lost_its_end(atlas):
    stored(atlas)
    with duckdb.connect(str(atlas.path / FILE)) as db:
        db.execute('DELETE FROM ledger WHERE "index" = 3')
    with pytest.raises(TamperedError, match="nothing is added"):
        atlas.append("look", {"what": "would hide it"})
    assert any("deleted at the end" in problem for problem in atlas.verify())


def test_nothing_is_added_to_an_older_copy(atlas):
    stored(atlas)
    old = (atlas.path / FILE).read_bytes()
    atlas.append("look", {"what": "one more"})
    (atlas.path / FILE).write_bytes(old)
    with pytest.raises(TamperedError, match="nothing is added"):
        atlas.append("look", {"what": "would hide it"})


@pytest.mark.parametrize("sql, table", [
    ("DELETE FROM marks WHERE kind = 'ticket'", "marks"),
    ("UPDATE marks SET subject = 'other' WHERE kind = 'data'", "marks"),
    ("DELETE FROM cluster_sets WHERE cluster = 'a'", "cluster_sets"),
    ("UPDATE standing SET verdict = 'supported', p = 0.0", "standing"),
])  # fmt: skip
def test_tampering_with_the_index_shows(atlas, sql, table):
    stored(atlas)
    atlas.append("ticket", {"claim": "c1", "ticket": "c1-1", "split": "confirm", "subject": "s", "data": "d"})
    atlas.append("data", {"claim": "c1", "ticket": "c1-1", "split": "confirm", "subject": "s", "clusters": ["a", "b"]})
    assert atlas.verify() == [] and atlas.reads("s", "other", ["b"]) == 1
    with duckdb.connect(str(atlas.path / FILE)) as db:
        db.execute(sql)
    assert any(f"table {table}" in problem for problem in atlas.verify())


def test_an_anchor_kept_elsewhere_shows_a_rewritten_ledger(atlas, tmp_path):
    stored(atlas)
    anchor = atlas.heads()[0]
    atlas.append("look", {"what": "later"})
    assert atlas.verify(anchor) == []
    rewritten = Atlas(tmp_path / "nicer")
    stored(rewritten)
    rewritten.append("look", {"what": "another"})
    assert rewritten.verify() == [] and any("does not match" in problem for problem in rewritten.verify(anchor))


def test_an_older_atlas_gets_its_index_from_its_ledger(tmp_path):
    """A ledger written before there was an index answers as one written with it."""
    source = Atlas(tmp_path / "new")
    stored(source)
    for number in range(3):
        body = {"claim": f"c{number}", "ticket": f"t{number}", "split": "confirm", "subject": "s", "data": "d"}
        source.append("ticket", body)
        source.append("data", {**body, "clusters": ["b", "a"]})
        source.append("look", {"what": "w", "model": "m", "clusters": ["a"]})
    old = Atlas(tmp_path / "old")
    old.path.mkdir()
    with duckdb.connect(str(old.path / FILE)) as db:
        migrate(db, up_to=2)
        db.execute(f"ATTACH '{source.path / FILE}' AS new (READ_ONLY)")
        for table in ("ledger", "ledger_head", "claims", "plans", "verdicts", "evidence", "counterexamples"):
            db.execute(f"INSERT INTO {table} SELECT * FROM new.{table}")
    assert old.reads("s", "x", ["a"]) == 3 and old.looks("m", ["a"]) == source.looks("m", ["a"])
    assert old.tally() == source.tally() and old.sharing("other", ["b"]) == ["c0", "c1", "c2"]
    assert [problem for problem in old.verify() if HEAD not in problem] == []
    assert audit(old, "c1") == []


# real processes ---------------------------------------------------------------------------------

BLOCK = """
import sys
from assay.atlas.store import Atlas
with Atlas(sys.argv[1]) as atlas:
    atlas.append("look", {"what": "the winner"})
    print("held", flush=True)
    sys.stdin.read()
"""
APPEND = """
import sys
from assay.atlas.store import Atlas
for number in range(6):
    Atlas(sys.argv[1], patience=60).append("look", {"what": f"{sys.argv[2]} {number}"})
"""
TEST = """
import sys
from assay.atlas.store import Atlas
from assay.evidence.kinds import KINDS
from assay.evidence.run import test_claim
from assay.testing import planted_induction
def hang(*_, **__):
    print("measuring", flush=True)
    sys.stdin.read()
KINDS.get("mediates").measure = hang
test_claim(Atlas(sys.argv[1]), sys.argv[2], planted_induction())
"""


def process(code, *arguments, folder=None):
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], text=True, cwd=folder,
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip


@pytest.mark.whole
def test_of_two_writers_one_wins_and_the_other_is_told(atlas):
    stored(atlas)
    winner = process(BLOCK, atlas.path)
    try:
        assert winner.stdout and winner.stdout.readline().strip() == "held"
        with pytest.raises(StoreError, match="being written by another process.*or give another --atlas"):
            atlas.append("look", {"what": "the loser"})
    finally:
        winner.communicate("")
    assert [entry["body"]["what"] for entry in atlas.entries() if entry["kind"] == "look"] == ["the winner"]
    assert atlas.verify() == []


@pytest.mark.whole
def test_two_writers_taking_turns_lose_nothing(atlas):
    stored(atlas)
    writers = [process(APPEND, atlas.path, name) for name in ("a", "b")]
    errors = [writer.communicate()[1] for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0], errors
    said = [entry["body"]["what"] for entry in atlas.entries() if entry["kind"] == "look"]
    assert sorted(said) == sorted(f"{name} {number}" for name in ("a", "b") for number in range(6))
    assert atlas.verify() == []


@pytest.mark.whole
def test_a_process_killed_during_a_test_leaves_a_ledger_that_verifies(tmp_path):
    from assay.evidence.run import Settings, state_claim, test_claim
    from assay.evidence.source import Source
    from assay.testing import planted_induction
    from planted_task import write_task

    atlas, model = Atlas(tmp_path / "atlas"), planted_induction()
    source = Source(str(write_task(tmp_path / "task.jsonl")))
    settings = Settings(tune=16, confirm=32, ood=24, draws=4, control_pairs=1)
    claim, _ = state_claim(atlas, model, source, "z.0.0,z.1.0,z.1.1", settings=settings)
    killed = process(TEST, atlas.path, claim.id, folder=tmp_path)
    assert killed.stdout and killed.stdout.readline().strip() == "measuring", killed.communicate()[1]
    killed.kill()  # SIGKILL: nothing in that process runs after this
    killed.communicate()
    assert killed.returncode == -9
    assert atlas.verify() == [] and audit(atlas, claim.id) == []
    assert "ticket" in [entry["kind"] for entry in atlas.entries_of(claim.id)] and atlas.evidence(claim.id) is None
    verdict = test_claim(atlas, claim.id, model)
    assert verdict.decision["reads"] == 1 and "reused split" not in verdict.qualifiers
    assert atlas.tally()["tickets"] == 1 and atlas.verify() == [] and audit(atlas, claim.id) == []
    assert len(atlas.runs(claim.id)) == 1 and atlas.runs(claim.id)[0].ticket == f"{claim.id}-1"


def test_unknown_claims_name_what_there_is(atlas):
    stored(atlas)
    with pytest.raises(StoreError, match="newest claims: c1"):
        atlas.claim("c9")
    with pytest.raises(EvidenceError, match="locked"):
        atlas.record_claim(CLAIM, PLAN)
    (atlas.path / HEAD).write_text("{")
    with pytest.raises(StoreError, match="not readable"):
        atlas.heads()
