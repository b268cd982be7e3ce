"""`assay harvest`: what it prints and writes, its mistakes, its list."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from assay.cli.dictionary import dictionary
from assay.cli.harvest import harvest
from assay.errors import CorpusError, SiteError, UsageError
from assay.features.shards import Shards
from assay.model.load import load_model
from assay.testing.compiler import tokenizer_of
from conftest import tiny_hf

WORDS = ("?", *(f"w{number}" for number in range(150)))


@pytest.fixture(autouse=True)
def there(tmp_path, tmp_path_factory, monkeypatch):
    """A model and a corpus in the working folder, and a cache of its own."""
    monkeypatch.setenv("ASSAY_CACHE", str(tmp_path_factory.mktemp("own")))
    monkeypatch.chdir(tmp_path)
    tiny_hf("llama").save_pretrained(tmp_path / "model")
    tokenizer_of(WORDS).save_pretrained(tmp_path / "model")
    rows = [{"body": " ".join(WORDS[1 + (7 * n + 3 * k) % 150] for k in range(5 + n % 40))} for n in range(60)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)))


def run(*words, **more):
    return CliRunner().invoke(harvest, list(words), **more)


GOOD = ("model", "corpus.jsonl", "--text-key", "body", "--site", "resid_post.1", "--site", "mlp_in.*", "--tokens", "600",
        "--context", "16", "--out", "acts", "--shard-tokens", "150")  # fmt: skip


def test_a_harvest_says_what_it_wrote_and_goes_on(tmp_path):
    done = run(*GOOD, "--json", "done.json")
    assert done.exit_code == 0 and "600 tokens" in done.stdout and "their variance" in done.stdout
    record = json.loads((tmp_path / "done.json").read_text())
    assert record["sites"] == ["resid_post.1", "mlp_in.0", "mlp_in.1", "mlp_in.2"] and record["tokens"] == 600
    assert record["shards"] >= 4 and record["resumed"] == 0 and record["skip_first"] == 1
    assert record["corpus"]["holdout"] == 0.05 and record["passport"]["digest"] == load_model("model").digest
    assert record["guards"]["mlp_in.2"]["site"] == "resid_pre.2"
    row = next(Shards("acts").rows())
    wanted = load_model("model").capture([row.tokens.tolist()], "resid_post.1")["resid_post.1"][0]
    assert row.values["resid_post.1"].dtype == torch.float16
    assert torch.allclose(row.values["resid_post.1"].float(), wanted, atol=2e-3)
    file = sorted((tmp_path / "acts").glob("shard-*"))[1]
    content = file.read_bytes()
    file.unlink()
    again = run(*GOOD, "--json", "-")
    record = json.loads(again.stdout)
    assert record["resumed"] == record["shards"] - 1 and file.read_bytes() == content


def test_the_atlas_knows_harvests_and_which_a_dictionary_was_trained_on(tmp_path):
    assert run("--kept").stdout == "none in atlas\n" and not Path("atlas").exists()
    record = json.loads(run(*GOOD, "--json", "-").stdout)
    assert record["digest"] == hashlib.sha256(Path("acts/manifest.json").read_bytes()).hexdigest()
    other = [*GOOD[:-3], "more", *GOOD[-2:], "--tokens", "300", "--quiet"]
    assert run(*other).exit_code == 0 and run(*GOOD).exit_code == 0  # the same one again is one row
    rows = json.loads(run("--kept", "--json", "-").stdout)
    assert [row["folder"] for row in rows] == [str(tmp_path / "more"), str(tmp_path / "acts")]
    row = rows[1]
    assert (row["digest"], row["model"], row["corpus"], row["tokens"]) == (record["digest"], "model", "corpus.jsonl", 600)
    assert row["sites"] == record["sites"] and row["identity"] == Shards("acts").manifest["identity"]
    assert row["shards"] == record["shards"] and row["bytes"] == record["bytes"]
    line = (f"{record['digest'][:12]}  model on 600 tokens of corpus.jsonl, resid_post.1, mlp_in.0, mlp_in.1, mlp_in.2:"
            f" {tmp_path / 'acts'}")  # fmt: skip
    assert run("--kept").stdout.splitlines()[1] == line
    trained = CliRunner().invoke(dictionary, ["train", "acts", "--site", "resid_post.1", "--width", "64", "--k", "4",
                                              "--batch", "64", "--tokens", "256", "--name", "own", "--quiet"])  # fmt: skip
    assert trained.exit_code == 0, trained.output
    shown = CliRunner().invoke(dictionary, ["show", "own"])
    assert f"trained on harvest {line}" in shown.stdout and shown.stdout.count("trained on harvest") == 1
    assert [each["digest"] for each in json.loads(CliRunner().invoke(dictionary, ["show", "own", "--json", "-"]).stdout)[
        "harvests"]] == [record["digest"]]  # fmt: skip


def test_an_atlas_that_cannot_be_written_is_said_before_anything_is_read():
    done = run(*GOOD, "--atlas", "corpus.jsonl")
    assert isinstance(done.exception, UsageError) and "--atlas" in str(done.exception) and not Path("acts").exists()


def test_a_corpus_with_fewer_tokens_is_said():
    done = run(*GOOD, "--tokens", "99999")
    assert done.exit_code == 0 and "all were read" in done.stderr
    assert Shards("acts").all_tokens < 2000


def test_a_short_model_is_read_as_far_as_it_goes_and_its_dictionary_from_the_same_corpus():
    words = [word for word in GOOD if word not in ("--context", "16")]
    assert run(*words).exit_code == 0 and run(*words).exit_code == 0
    assert Shards("acts").manifest["identity"]["context"] == 64  # all that the model reads
    trained = CliRunner().invoke(dictionary, ["train", "acts", "--site", "resid_post.1", "--width", "64", "--k", "4",
                                              "--batch", "64", "--tokens", "256", "--name", "own", "--quiet"])  # fmt: skip
    assert trained.exit_code == 0, trained.output
    how = ["eval", "own", "--model", "model", "--corpus", "corpus.jsonl", "--quiet"]
    judged = CliRunner().invoke(dictionary, [*how, "--text-key", "body", "--tokens", "100", "--no-frozen", "--no-untrained"])
    assert judged.exit_code == 0 and "held-out tokens" in judged.output
    long = [json.dumps({"text": " ".join(WORDS[1 + (7 * n + k) % 150] for k in range(40))}) for n in range(60)]
    Path("long.jsonl").write_text("\n".join(long))
    few = CliRunner().invoke(dictionary, [*how[:4], "--corpus", "long.jsonl", "--tokens", "16", "--quiet"])
    assert isinstance(few.exception, UsageError) and "two held-out documents" in str(few.exception)
    other = CliRunner().invoke(dictionary, [*how])
    assert isinstance(other.exception, CorpusError) and "body" in str(other.exception)
    unused = CliRunner().invoke(dictionary, ["train", "acts", "--site", "resid_post.1", "--device", "cuda"])
    assert isinstance(unused.exception, UsageError) and "cpu with HARVEST" in str(unused.exception)


def test_no_limit_and_other_positions():
    done = run(*GOOD, "--factor", "0", "--skip-first", "3", "--holdout", "0", "--dtype", "fp32", "--json", "-")
    record = json.loads(done.stdout)
    assert record["norm_limits"]["resid_post.1"] is None and record["skip_first"] == 3
    read = list(Shards("acts").rows())
    assert all(row.typical.tolist() == [False] * min(3, len(row.tokens)) + [True] * (len(row.tokens) - 3) for row in read)


@pytest.mark.parametrize("change, kind, said", [
    (("--site", "resid_post.7"), SiteError, "0 to 2"),
    (("--seed", "-1"), UsageError, "--seed: got -1"),
    (("--site", "pattern.1"), SiteError, "pattern"),
    (("--dtype", "int8"), UsageError, "fp16, bf16"),
    (("--text-key", "text"), CorpusError, "--text-key"),
    (("--holdout", "1"), UsageError, "holdout"),
    (("--factor", "0.5"), UsageError, "factor"), (("--factor", "inf"), UsageError, "factor"),
    (("--context", "65"), UsageError, "2 to 64"),
])  # fmt: skip
def test_mistakes(change, kind, said):
    done = run(*GOOD, *change)
    assert isinstance(done.exception, kind) and said in str(done.exception)
    assert not any(Path("acts").glob("shard-*"))




@pytest.mark.parametrize("words, said", [
    ((), "MODEL"), (("model",), "CORPUS"), (GOOD[:4], "--site"), (GOOD[:6], "--tokens"), (GOOD[:10], "--out"),
])  # fmt: skip
def test_what_is_missing_is_named(words, said):
    done = run(*words)
    assert isinstance(done.exception, UsageError) and str(done.exception).startswith(said)


def test_another_corpus_into_the_same_folder_is_refused(tmp_path):
    assert run(*GOOD).exit_code == 0
    (tmp_path / "corpus.jsonl").write_text(json.dumps({"body": "w1 w2 " * 400}))
    done = run(*GOOD)
    assert isinstance(done.exception, UsageError) and "corpus.digest" in str(done.exception)


def test_the_list_names_packaged_corpora():
    done = run("--list")
    assert done.exit_code == 0 and "brown" in done.stdout and "licence" in done.stdout and "not fetched yet" in done.stdout
    assert {row["name"] for row in json.loads(run("--list", "--json", "-").stdout)} >= {"brown", "mixed", "code"}
