"""`assay harvest`, then `assay dictionary train|encode|list`: on a small real model, from files, with mistakes."""

import json
import signal
import subprocess
import sys
import time

import pytest
import torch

from assay.features import kept
from assay.features.encode import read_codes
from assay.features.formats import load_dictionary
from assay.features.shards import Shards
from assay.features.stream import Paired
from assay.model.load import load_model
from assay_process import run

pytestmark = pytest.mark.whole
SITES = ("--site", "resid_post.2", "--site", "mlp_in.2", "--site", "mlp_out.2")
QUIET = ("--atlas", "atlas", "--quiet")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("dictionary")
    said = "The Queen of hearts number {} said that the cat sat on the mat, and Alice was very tired of it."
    lines = [said.format(i) for i in range(300)]
    (place / "text.txt").write_text("\n\n".join(lines))
    sizes = ("--tokens", "9000", "--context", "48", "--out", "acts")
    done = run("harvest", "glass-en", "text.txt", *SITES, *sizes, *QUIET, cwd=place)
    assert done.returncode == 0, done.stderr
    return place


@pytest.fixture(scope="module")
def trained(folder):
    sizes = ("--width", "128,256", "--k", "8", "--tokens", "40000", "--batch", "256", "--json", "-")
    done = run("dictionary", "train", "acts", "--site", "resid_post.2", *sizes, *QUIET, cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_two_widths_share_a_pass_and_stand_in_the_atlas(folder, trained):
    rows = trained["dictionaries"]
    assert [row["spec"]["width"] for row in rows] == [128, 256]
    first = kept.load(folder / rows[0]["folder"])
    assert first.digest == rows[0]["digest"] and first.spec.inputs == ("resid_post.2",) and first.spec.skip_first == 1
    listed = json.loads(run("dictionary", "list", "--json", "-", "--atlas", "atlas", cwd=folder).stdout)
    assert [row["name"] for row in listed][:2] == [row["name"] for row in rows] and listed[0]["model"] == "glass-en"
    x = torch.cat([text.values["resid_post.2"][text.typical] for text in Shards(folder / "acts").rows()]).float()
    share = float((x - first.reconstruct(x)).square().sum() / (x - x.mean(0)).square().sum())
    assert share < 0.2 and share == pytest.approx(rows[0]["history"][-1]["fvu"], abs=0.1)


def test_a_name_that_is_taken_is_refused_before_training(folder, trained):
    words = ("--site", "resid_post.2", "--tokens", "1000000000", "--name", trained["dictionaries"][0]["name"])
    done = run("dictionary", "train", "acts", *words, *QUIET, cwd=folder)
    assert done.returncode == 2 and "--name" in done.stderr and "assay dictionary show" in done.stderr


def test_a_transcoder_for_each_mlp(folder):
    options = ("--target", "mlp_out.*", "--each", "--width", "64", "--k", "8", "--architecture", "batchtopk",
               "--tokens", "20000")  # fmt: skip
    done = run("dictionary", "train", "acts", "--site", "mlp_in.*", *options, "--batch", "256", "--name", "tc", "--json", "-",
               *QUIET, cwd=folder)  # fmt: skip
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)["dictionaries"][0]
    assert row["name"] == "tc-mlp_in.2" and kept.load(folder / row["folder"]).spec.transcodes


def test_a_crosscoder_between_two_models(folder, tmp_path):
    model = load_model("glass-en")
    torch.manual_seed(0)
    with torch.no_grad():
        model.hf.get_input_embeddings().weight[model.tokenizer.encode(" cat")[-1]] += 3 * torch.randn(model.dims.d_model)
    model.hf.save_pretrained(tmp_path / "tuned")
    model.tokenizer.save_pretrained(tmp_path / "tuned")
    sizes = ("--site", "resid_post.0", "--tokens", "9000", "--context", "48", "--seed", "0")
    for name, place in (("glass-en", "base-acts"), (str(tmp_path / "tuned"), "tuned-acts")):
        done = run("harvest", name, "text.txt", *sizes, "--out", str(tmp_path / place), *QUIET, cwd=folder)
        assert done.returncode == 0, done.stderr
    words = ["dictionary", "train", str(tmp_path / "tuned-acts"), "--width", "64", "--k", "8", "--tokens", "60000",
             "--batch", "256", *QUIET]  # fmt: skip
    beside = ("--beside", str(tmp_path / "base-acts"))
    done = run(*words, *beside, "--architecture", "crosscoder", "--name", "both", cwd=folder)
    assert done.returncode == 0 and "assay dictionary show" in done.stdout, done.stderr
    done = run("dictionary", "show", "both", "--json", "-", "--atlas", "atlas", cwd=folder)
    shown = json.loads(done.stdout)
    assert shown["spec"]["inputs"] == ["tuned-acts:resid_post.0", "base-acts:resid_post.0"]
    made = load_dictionary(folder / "atlas/dictionaries/both")
    norms = torch.stack([part.norm(dim=1) for part in made.W_dec.split(model.dims.d_model, 1)], 1) * made.site_scale
    assert torch.allclose(made.shares(), norms / norms.sum(1, keepdim=True))
    assert [one["count"] for one in shown["alone"]] == (made.shares() > 0.9).sum(0).tolist()
    x = next(Paired({name: Shards(tmp_path / name) for name in ("tuned-acts", "base-acts")}).batches(2000))
    x = torch.cat([x[site] for site in made.spec.inputs], 1)
    assert float((x - made.reconstruct(x)).square().sum() / (x - x.mean(0)).square().sum()) < 0.3
    told = run("dictionary", "show", "both", "--atlas", "atlas", cwd=folder).stdout
    assert "base-acts:resid_post.0: " in told and "latents write at several sites" in told
    judged = ("dictionary", "eval", "both", "--corpus", "text.txt", "--tokens", "2000", "--control-tokens", "3000", "--context",
              "48", *QUIET)  # fmt: skip
    models = [str(tmp_path / "tuned"), "glass-en"]
    first, second = (run(*judged, "--model", one, "--beside", other, "--json", "-", cwd=folder)
                     for one, other in (models, models[::-1]))  # fmt: skip
    assert first.returncode == 0 and second.returncode == 0, first.stderr + second.stderr
    record = json.loads(first.stdout)
    assert {column["name"] for column in record["columns"]} >= {"dictionary", "frozen decoder", "untrained model"}
    assert {name: each["digest"] for name, each in record["model"].items()} == {
        name: Shards(tmp_path / name).record["model"]["digest"]
        for name in ("tuned-acts", "base-acts")}  # fmt: skip
    assert record["columns"] == json.loads(second.stdout)["columns"]  # whichever is named first
    assert record["columns"][0]["measures"]["FVU"]["value"] < record["columns"][1]["measures"]["FVU"]["value"]
    for given, said in (((), "--beside: got 'nothing'"), (("--beside", "glass-en", "--letters"), "--letters: got 'two models'"),
                        (("--beside", "glass-en", "--engine", "ray"), "no engine where two models")):  # fmt: skip
        done = run(*judged, "--model", models[0], *given, cwd=folder)
        assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr, done.stderr
    for given, said in ((beside, "--architecture crosscoder"),
                        (("--beside", "elsewhere/tuned-acts", "--architecture", "crosscoder"), "another name")):  # fmt: skip
        done = run(*words, *given, cwd=folder)
        assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_codes_on_disk_are_what_the_dictionary_makes(folder, trained):
    path = trained["dictionaries"][1]["folder"]
    done = run("dictionary", "encode", path, "acts", "--out", "codes", "--json", "-", *QUIET, cwd=folder)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["dense_bytes"] > 5 * record["bytes"]
    dictionary, texts = kept.load(folder / path), list(Shards(folder / "acts").rows())
    parts = list(read_codes(folder / "codes"))
    tokens = torch.cat([part.tokens for part in parts])
    assert torch.equal(tokens, torch.cat([text.tokens for text in texts]).long())
    x = torch.cat([text.values["resid_post.2"] for text in texts]).float()
    typical = torch.cat([text.typical for text in texts])
    expected = dictionary.encode(x) * typical[:, None]
    got = torch.cat([part.codes.dense() for part in parts])
    assert torch.allclose(got, expected, rtol=2e-3, atol=1e-3) and not bool(got[~typical].any())
    again = run("dictionary", "encode", trained["dictionaries"][0]["folder"], "acts", "--out", "codes", *QUIET, cwd=folder)
    assert again.returncode == 2 and "codes of another dictionary" in again.stderr
    file = next((folder / "codes").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(Exception, match="damaged"):
        list(read_codes(folder / "codes"))


@pytest.mark.parametrize(("words", "said"), [
    (("acts", "--site", "resid_post.3"), "allowed: resid_post.2, mlp_in.2, mlp_out.2"),
    (("acts",), "HARVEST has several"),
    (("nothing", "--site", "resid_post.2"), "assay harvest"),
    ((), "HARVEST, or --model and --corpus"),
    (("acts", "--site", "resid_post.2", "--k", "0"), "--k"),
    (("acts", "--site", "resid_post.2", "--k", "9000"), "the width"),
    (("acts", "--site", "resid_post.2", "--k", "none"), "topk needs to know"),
    (("acts", "--site", "resid_post.2", "--k", "8,none", "--architecture", "jumprelu"), "jumprelu with --option penalty=tanh"),
    (("acts", "--site", "resid_post.2", "--width", "many"), "whole numbers"),
    (("acts", "--site", "resid_post.2", "--architecture", "topp"), "Did you mean 'topk'"),
    (("acts", "--site", "resid_post.2", "--option", "tau=3"), "options"),
    (("acts", "--site", "resid_post.2", "--option", "tau"), "NAME=VALUE"),
    (("acts", "--site", "resid_post.2", "--target", "mlp_out.2", "--site", "mlp_in.2", "--each"), "a target for each site"),
    (("acts", "--site", "resid_post.2", "--lr", "-1"), "lr"),
    (("acts", "--site", "resid_post.2", "--kept-as", "fp8"), "fp32, fp16"),
])  # fmt: skip
def test_mistakes_are_told_in_one_line(folder, words, said):
    done = run("dictionary", "train", *words, *QUIET, cwd=folder)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_a_fixed_weight_of_the_penalty_instead_of_k(folder):
    words = ("--architecture", "relu", "--width", "64", "--k", "none,8", "--sparsity", "0.2", "--tokens", "20000",
             "--batch", "256", "--name", "plain", "--json", "-")  # fmt: skip
    done = run("dictionary", "train", "acts", "--site", "resid_post.2", *words, *QUIET, cwd=folder)
    assert done.returncode == 0, done.stderr
    free, aimed = json.loads(done.stdout)["dictionaries"]
    assert (free["name"], aimed["name"]) == ("plain-64", "plain-64-k8") and free["spec"]["k"] is None
    weights = [{line["sparsity"] for line in row["history"]} for row in (free, aimed)]
    assert weights[0] == {0.2} and len(weights[1]) > 1
    assert kept.load(folder / free["folder"]).digest == free["digest"]


def test_interrupted_training_goes_on_with_the_same_command(folder):
    words = ("dictionary", "train", "acts", "--site", "resid_post.2", "--width", "512", "--k", "8", "--tokens", "80000",
             "--batch", "128", "--name", "long", "--atlas", "cut")  # fmt: skip
    program = [sys.executable, "-m", "assay", *words, "--quiet"]
    process = subprocess.Popen(program, cwd=folder, stderr=subprocess.PIPE, text=True,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # fmt: skip
    state = folder / "cut" / "training" / "long" / "checkpoint.safetensors"
    deadline = time.monotonic() + 300
    while not state.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert state.exists()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 130 and "same command again" in said
    done = run(*words, "--json", "-", "--quiet", cwd=folder)
    assert done.returncode == 0, done.stderr
    whole = run(*words[:-2], "--atlas", "whole", "--json", "-", "--quiet", cwd=folder)
    assert json.loads(done.stdout)["dictionaries"][0]["digest"] == json.loads(whole.stdout)["dictionaries"][0]["digest"]


KILLED = """
import os, signal, sys
from assay.features import kept
from assay.cli.main import main
real, calls = kept.save, []
def save(*given, **named):
    calls.append(1)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*given, **named)
kept.save = save
sys.argv = ["assay", *sys.argv[1:]]
main()
"""


def test_a_kill_while_dictionaries_are_written_loses_none(folder):
    words = ("dictionary", "train", "acts", "--each", "--site", "resid_post.2", "--site", "mlp_in.2", "--width", "32,48",
             "--k", "4", "--tokens", "10000", "--batch", "128", "--name", "ks", "--kept-as", "fp16", "--quiet")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", KILLED, *words, "--atlas", "killed"], cwd=folder, capture_output=True)
    assert done.returncode == -signal.SIGKILL
    assert len(list((folder / "killed" / "dictionaries").iterdir())) >= 1
    again = run(*words, "--atlas", "killed", "--json", "-", cwd=folder)
    assert again.returncode == 0, again.stderr
    whole = run(*words, "--atlas", "unkilled", "--json", "-", cwd=folder)
    rows = [json.loads(each.stdout)["dictionaries"] for each in (again, whole)]
    assert [row["digest"] for row in rows[0]] == [row["digest"] for row in rows[1]]
    assert [row["digest"] for row in rows[0]] == [kept.load(folder / row["folder"]).digest for row in rows[1]]
    assert [row["name"] for row in rows[0]] == [f"ks-{site}-{size}-k4" for site in ("resid_post.2", "mlp_in.2")
                                                for size in (32, 48)]  # fmt: skip
    assert not list((folder / "killed").rglob("checkpoint.safetensors"))
    third = run(*words, "--atlas", "killed", cwd=folder)
    assert third.returncode == 2 and "--name" in third.stderr  # as before: it is there


@pytest.mark.parametrize(("words", "said"), [
    (("--width", "64", "--k", "4,4"), "each width, k and site once"), (("--tokens", "10"), "one batch"),
    (("--site", "resid_post.2", "--width", "64"), "each site once"),
    (("--architecture", "temporal", "--width", "64"), "only read from files"),
])  # fmt: skip
def test_what_would_be_lost_after_training_is_refused_before(folder, words, said):
    done = run("dictionary", "train", "acts", "--site", "resid_post.2", *words, *QUIET, cwd=folder)
    assert done.returncode == 2 and said in done.stderr


def test_the_same_numbers_under_two_names_are_two_dictionaries(folder, trained):
    """Exported and read again under another name; both are listed, and so they are after the first is kept again."""
    first = trained["dictionaries"][0]["name"]
    for words in (("export", first, "--format", "saelens", "--out", "other"), ("import", "other", "--name", "second")):
        done = run("dictionary", *words, *QUIET, cwd=folder)
        assert done.returncode == 0, done.stderr
    listed = json.loads(run("dictionary", "list", "--json", "-", "--atlas", "atlas", cwd=folder).stdout)
    assert {first, "second"} <= {row["name"] for row in listed}
    assert len({row["digest"] for row in listed if row["name"] in (first, "second")}) == 1
    for name in (first, "second"):
        assert run("dictionary", "show", name, *QUIET, cwd=folder).returncode == 0


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_an_import_again_is_the_same_dictionary(folder, trained, dtype):
    words = ("import", trained["dictionaries"][1]["folder"], "--name", f"twice-{dtype}", "--kept-as", dtype, "--json", "-")
    for _ in range(2):
        done = run("dictionary", *words, *QUIET, cwd=folder)
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert told["digest"] == kept.load(folder / told["folder"]).digest and told["model"] == "glass-en"


def test_codes_are_written_by_name_and_never_among_other_files(folder, trained):
    """What else is in the folder stays; a dictionary of other weights is told."""
    name = trained["dictionaries"][0]["name"]
    (folder / "full").mkdir()
    (folder / "full" / "mine.txt").write_text("mine")
    done = run("dictionary", "encode", name, "acts", "--out", "full", *QUIET, cwd=folder)
    assert done.returncode == 2 and "mine.txt" in done.stderr and [x.name for x in (folder / "full").iterdir()] == ["mine.txt"]
    done = run("dictionary", "encode", name, "acts", "--out", "acts", *QUIET, cwd=folder)
    assert done.returncode == 2 and "manifest.json" in done.stderr and not (folder / "acts" / "codes.json").exists()
    strange = kept.load(folder / trained["dictionaries"][0]["folder"])
    strange.provenance["stream"]["model"] = {"model": "another", "digest": "0" * 64, "dtype": "float32"}
    kept.save(strange, folder / "strange")
    for given, told in ((name, False), ("strange", True)):
        done = run("dictionary", "encode", given, "acts", "--out", f"codes-{told}", "--atlas", "atlas", cwd=folder)
        assert done.returncode == 0 and ("other weights" in done.stderr) == told, done.stderr


def test_a_corpus_of_less_than_a_batch_is_told(folder):
    (folder / "short.txt").write_text("Alice was very tired of the cat.")
    sizes = ("--holdout", "0", "--tokens", "100", "--context", "48", "--out", "short")
    run("harvest", "glass-en", "short.txt", *SITES[:2], *sizes, "--atlas", "atlas", cwd=folder)
    done = run("dictionary", "train", "short", "--site", "resid_post.2", "--width", "16", "--k", "2", "--atlas", "atlas",
               "--tokens", "2048", cwd=folder)  # fmt: skip
    assert done.returncode == 0 and "fewer than a batch of 2,048" in done.stderr, done.stderr


def test_a_second_dictionary_of_another_site_is_refused_before_any_work(folder):
    for site in ("resid_post.2", "mlp_out.2"):
        done = run("dictionary", "train", "acts", "--site", site, "--width", "32", "--k", "4", "--tokens", "4000",
                   "--batch", "256", "--name", f"at-{site}", *QUIET, cwd=folder)  # fmt: skip
        assert done.returncode == 0, done.stderr
    done = run("dictionary", "eval", "at-resid_post.2", "--second", "at-mlp_out.2", "--model", "glass-en",
               "--corpus", "text.txt", *QUIET, cwd=folder)  # fmt: skip
    assert done.returncode == 2 and "--second" in done.stderr and "resid_post.2 to resid_post.2" in done.stderr


@pytest.mark.parametrize(("words", "said"), [
    (("nosuch",), "a dictionary of this atlas: "), (("",), "a dictionary of this atlas: "),
    (("{own}", "--figure", "text.txt/x.png"), "--figure: got 'text.txt/x.png'"),
    (("{own}", "--figure", "acts.png"), "--figure: got"), (("{own}", "--atlas", "blocked"), "--atlas: got"),
])  # fmt: skip
def test_an_evaluation_that_could_not_be_written_is_refused_before_any_work(folder, trained, words, said):
    (folder / "acts.png").mkdir(exist_ok=True)
    (folder / "blocked").mkdir(exist_ok=True)
    (folder / "blocked" / "evaluating").write_text("")
    own = trained["dictionaries"][0]["folder"]
    done = run("dictionary", "eval", *(word.format(own=own) for word in words), "--model", "glass-en", "--corpus", "text.txt",
               "--tokens", "600", *(QUIET if "--atlas" not in words else ()), cwd=folder)  # fmt: skip
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr
