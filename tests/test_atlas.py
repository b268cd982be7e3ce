"""The atlas: one writer and many readers, migrations, tampering, and files that are not an atlas."""

import json
import subprocess
import sys
from dataclasses import replace

import duckdb
import pytest

from assay.atlas.migrations import MIGRATIONS, NEWEST, migrate, version_of
from assay.atlas.store import FILE, HEAD, Atlas
from assay.errors import EvidenceError, StoreError
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


def test_migrations_run_from_the_oldest(tmp_path):
    atlas = Atlas(tmp_path)
    with duckdb.connect(str(tmp_path / FILE)) as db:
        migrate(db, up_to=1)
        assert version_of(db) == 1
        db.execute("INSERT INTO claims VALUES ('old', 1, NULL, 'mediates', 'now', 's', ?)", [
            json.dumps({**CLAIM.__dict__, "id": "old"})])  # fmt: skip
    assert [claim.id for claim in atlas.claims()] == ["old"]
    with atlas.reading() as db:
        assert version_of(db) == NEWEST == len(MIGRATIONS)


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


def test_unknown_claims_name_what_there_is(atlas):
    stored(atlas)
    with pytest.raises(StoreError, match="newest claims: c1"):
        atlas.claim("c9")
    with pytest.raises(EvidenceError, match="locked"):
        atlas.record_claim(CLAIM, PLAN)
    (atlas.path / HEAD).write_text("{")
    with pytest.raises(StoreError, match="not readable"):
        atlas.heads()
