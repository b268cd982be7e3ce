"""Data files of claims: named by content, found again on another machine, never by somebody's folders."""

import json
from dataclasses import replace

import pytest
from click.testing import CliRunner

from assay.atlas.store import Atlas
from assay.cli.claim import model_of
from assay.cli.main import cli
from assay.data import whereabouts
from assay.data.whereabouts import placeless
from assay.errors import ReproduceError, TaskError, UsageError
from assay.evidence.replay import replay_claim
from assay.evidence.run import Settings, Statement, state_claim, test_claim
from assay.evidence.source import ConceptSource, Source, given_again, source_of
from assay.evidence.stale import stale_reasons
from assay.records import Claim, canonical
from assay.testing import planted_induction
from planted_task import write_task

SMALL = Settings(tune=16, confirm=48, ood=36, draws=4, control_pairs=1)


@pytest.fixture(scope="module")
def model():
    return planted_induction()


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Another machine: an empty working folder, and nothing kept in mind."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()

    def go():
        monkeypatch.chdir(folder)
        monkeypatch.setattr(whereabouts, "cache_dir", lambda: folder / "cache")
        return folder

    return go


def test_a_claim_about_a_file_has_no_folder_in_it_and_is_tested_from_anywhere(model, tmp_path, monkeypatch, elsewhere):
    (tmp_path / "secret_folder").mkdir()
    path = write_task(tmp_path / "secret_folder" / "mine.jsonl")
    store = Atlas(tmp_path / "atlas")
    claim, plan = state_claim(store, model, Source(str(path)), "z.0.0,z.1.0,z.1.1", settings=SMALL)
    assert "secret_folder" not in canonical([claim, plan]) and claim.statement.count("mine.jsonl") == 1
    assert claim.task["name"] == "mine.jsonl" and len(claim.task["file"]) == 64

    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")  # the same machine: it is where it was
    verdict = test_claim(store, claim.id, model)
    assert verdict.verdict == "supported" and "secret_folder" not in json.dumps(store.entries())

    folder = elsewhere()
    with pytest.raises(ReproduceError, match=r"mine\.jsonl.*--file"):
        replay_claim(store, claim.id, model)
    assert any("cannot be read" in reason for reason in stale_reasons(store, claim))
    moved = path.rename(tmp_path / "moved.jsonl")
    assert replay_claim(store, claim.id, model, source=given_again(claim.task, str(moved))).same
    moved.rename(folder / "renamed.jsonl")  # in the working folder it is known by what is in it
    write_task(folder / "other.jsonl", seed=3)
    assert replay_claim(store, claim.id, model).same and stale_reasons(store, claim) == []
    changed = given_again(claim.task, str(folder / "other.jsonl"))
    with pytest.raises(ReproduceError, match="not those the plan was locked on"):
        replay_claim(store, claim.id, model, source=changed)


def test_a_file_of_the_name_with_other_content_comes_last(tmp_path, elsewhere):
    record = Source(str(write_task(tmp_path / "mine.jsonl"))).record()
    (tmp_path / "mine.jsonl").unlink()
    folder = elsewhere()
    write_task(folder / "mine.jsonl", seed=5)
    assert source_of(record) == Source("mine.jsonl")  # its digests will not fit, and testing says so
    write_task(folder / "copy.jsonl")
    assert source_of(record) == Source("copy.jsonl")


def test_records_of_before_and_of_bundled_data_are_read_as_they_are(tmp_path):
    path = str(write_task(tmp_path / "old.jsonl"))
    assert source_of({"type": "task", "name": path, "corruption": None}) == Source(path)
    assert Source("ioi").record().keys() == {"type", "name", "corruption"} and ConceptSource("animals").name == "animals"
    assert source_of(ConceptSource("animals").record()) == ConceptSource("animals")
    with pytest.raises(UsageError, match="bundled"):
        given_again(Source("ioi").record(), path)
    with pytest.raises(TaskError, match="gone"):
        Source(str(tmp_path / "gone.jsonl")).record()


def test_the_list_of_places_is_bounded_and_a_damaged_one_is_begun_anew(tmp_path, monkeypatch, elsewhere):
    folder = elsewhere()
    monkeypatch.setattr(whereabouts, "MOST", 2)
    (folder / "cache").mkdir()
    (folder / "cache" / whereabouts.SEEN).write_text("{half")
    records = []
    for number in range(3):
        (tmp_path / f"{number}.jsonl").write_text(f"{number}" * 5)
        records.append(whereabouts.file_record(tmp_path / f"{number}.jsonl"))
    kept = json.loads((folder / "cache" / whereabouts.SEEN).read_text())
    assert list(kept) == [record["file"] for record in records[1:]]
    assert whereabouts.file_of(records[2]) == str(tmp_path / "2.jsonl")
    with pytest.raises(ReproduceError):
        whereabouts.file_of(records[0])


def test_the_commands_say_where_a_file_is_missing(glass, tmp_path, elsewhere):
    rows = [{"text": f"They saw the {word}{mark} {n}", "label": label, "group": f"g{n}"}
            for n in range(40) for label, word in enumerate(("chair", "dog")) for mark in (".", "!")]  # fmt: skip
    path = tmp_path / "own.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    store = Atlas(tmp_path / "atlas")
    small = replace(SMALL, draws=3, search={})
    claim, _ = state_claim(store, glass, ConceptSource(str(path)), "resid_post.0", statement=Statement("decodes"),
                           settings=small)  # fmt: skip
    path.unlink()
    elsewhere()
    for command in ("test", "replay"):
        done = CliRunner().invoke(cli, ["claim", command, claim.id, "--atlas", str(tmp_path / "atlas")])
        assert isinstance(done.exception, ReproduceError) and done.exception.exit_code == 4
    done = CliRunner().invoke(cli, ["claim", "test", claim.id, "--file", "no.jsonl", "--atlas", str(tmp_path / "atlas")])
    assert isinstance(done.exception, TaskError)


def test_a_model_folder_is_named_without_its_folders_and_found_by_digest(tmp_path, elsewhere):
    place = tmp_path / "somebody" / "model"
    place.mkdir(parents=True)
    assert placeless(f"local:{place}", "d1") == "local:model" and placeless("hub:a/b", "d2") == "hub:a/b"
    subject = {"model": "model", "source": "local:model", "digest": "d1"}
    claim = Claim("c", 1, None, "decodes", "s", "tends", subject, {"name": "t"}, "positive", (), "now")
    assert model_of(claim) == str(place)
    old = replace(claim, subject={**subject, "source": f"local:{place}", "digest": "never seen"})
    assert model_of(old) == str(place)  # claims of before keep their path
    elsewhere()
    with pytest.raises(ReproduceError, match="--model"):
        model_of(claim)
