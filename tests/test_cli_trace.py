"""`assay trace` on the planted model: files, the record, other tools' files, mistakes."""

import json

import pytest
import torch

from assay.atlas.features import graphs
from assay.atlas.store import Atlas
from assay.errors import UsageError
from assay.features.dictionary import Spec, make_dictionary
from assay.features.kept import save
from assay.testing import planted_induction
from assay_process import run

pytestmark = pytest.mark.whole
COMMON = ("--quiet", "--json", "-")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("trace")
    model = planted_induction()
    model.hf.save_pretrained(place / "model")
    model.tokenizer.save_pretrained(place / "model")
    d = model.dims.d_model
    for layer in range(model.n_layers):
        spec = Spec("relu", 24, d, d, inputs=(f"mlp_in.{layer}",), outputs=(f"mlp_out.{layer}",), centred=False)
        dictionary = make_dictionary(spec, f"transcoder-{layer}")
        generator = torch.Generator().manual_seed(layer)
        with torch.no_grad():
            for parameter in dictionary.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        save(dictionary, place / "made" / f"{layer:02}")
    (place / "none").mkdir()
    (place / "prompt.txt").write_text(model.text(model.tokens(" ".join(list(model.tokenizer.get_vocab())[5:12]))[0]))
    return place


@pytest.fixture(scope="module")
def prompt(folder):
    return (folder / "prompt.txt").read_text()


@pytest.fixture(scope="module")
def traced(folder, prompt):
    done = run(
        "trace",
        "model",
        "--prompt",
        prompt,
        "--dictionaries",
        "made",
        "--validate",
        "4",
        "--out",
        "graphs",
        *COMMON,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_graph_its_page_and_its_picture_are_written(folder, traced):
    assert {"nodes", "edges", "scores", "supernodes", "validation", "files", "prompt"} <= set(traced)
    assert {"replacement", "completeness", "completeness_error"} <= set(traced["scores"])
    assert traced["scores"]["completeness_error"] < 1e-5 and len(traced["dictionaries"]) == 2
    agreement = traced["validation"]["agreement"]["latents, total"]
    assert {"pearson", "spearman", "n_pairs", "n_interventions", "pearson_low"} <= set(agreement)
    suffixes = [path.rpartition(".")[2] for path in traced["files"]]
    assert suffixes == ["json", "html", "svg"]
    page = (folder / traced["files"][1]).read_text()
    assert "data-trace" in page and "http://" not in page.replace("http://www.w3.org", "") and "https://" not in page


def test_it_comes_back_from_its_file_and_from_theirs(folder, prompt, traced):
    done = run("trace", "--from", traced["files"][0], "--format", "neuronpedia", "--out", "theirs", *COMMON, cwd=folder)
    assert done.returncode == 0, done.stderr
    theirs = json.loads(done.stdout)
    held = json.loads((folder / theirs["files"][0]).read_text())
    assert {"metadata", "qParams", "nodes", "links"} <= set(held)
    back = run("trace", "--from", theirs["files"][0], "--format", "graphml", "--out", "again", *COMMON, cwd=folder)
    assert back.returncode == 0, back.stderr
    again = json.loads(back.stdout)
    assert len(again["edges"]) == len(traced["edges"]) and again["files"][0].endswith(".graphml")


def test_what_is_printed_says_how_well_it_held(folder, prompt):
    done = run(
        "trace", "model", "--prompt", prompt, "--dictionaries", "made/00", "--validate", "4", "--out", "shown", cwd=folder
    )
    assert done.returncode == 0, done.stderr
    for words in ("what would come next", "predicted against measured", "control", "written:", "influence"):
        assert words in done.stdout
    assert "no dictionary for 1 of 2 layers" in done.stderr


@pytest.mark.parametrize("words, said", [
    (["trace"], "MODEL, --prompt"),
    (["trace", "model"], "--prompt"),
    (["trace", "model", "--prompt", "x"], "no dictionaries"),
    (["trace", "model", "--prompt", "x", "--dictionaries", "none"], "none"),
    (["trace", "model", "--prompt", "x", "--dictionaries", "missing"], "that exists"),
    (["trace", "model", "--prompt", "x", "--dictionaries", "made", "--format", "pt"], "assay, neuronpedia"),
    (["trace", "model", "--prompt", "x", "--dictionaries", "made", "--mass", "2"], "mass"),
    (["trace", "model", "--prompt", "x", "--dictionaries", "made", "--edges", "1.5"], "edges"),
    (["trace", "model", "--from", "x.json"], "a file alone"),
    (["trace", "--from", "x.json"], "x.json"),
    (["trace", "--from", "x.json", "--nodes", "0.5", "--target", "a"], "a file and --nodes, --target"),
    (["trace", "model", "--prompt", "x", "--dictionaries", "made", "--out", "prompt.txt"], "--out: got 'prompt.txt'"),
    (["trace", "model", "--prompt", "x", "--json", "prompt.txt/x.json"], "--json: 'prompt.txt/x.json'"),
    (["trace", "model", "--prompt", "", "--dictionaries", "made"], "--prompt: got ''"),
    (["trace", "model", "--prompt", "x", "--dictionaries", ""], "--dictionaries: got ''"),
    (["trace", "model", "--prompt", "x \udcff", "--dictionaries", "made"], "text of valid Unicode"),
])  # fmt: skip
def test_mistakes_are_one_line(folder, words, said):
    done = run(*words, cwd=folder)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


def test_a_prompt_longer_than_the_model_was_made_for_is_told_and_one_that_takes_too_much_refused(monkeypatch):
    from assay.circuits import trace_run
    from assay.circuits.trace import trace

    model = planted_induction()
    words = " ".join(list(model.tokenizer.get_vocab())[5:12])
    assert not any("made for" in note for note in trace(model, words, []).notes)
    monkeypatch.setattr("assay.circuits.trace.context_length", lambda hf: 4)
    n_tokens = len(model.tokens([words])[0])
    assert f"the prompt has {n_tokens} tokens; the model was made for 4, and does badly beyond" in trace(model, words, []).notes
    monkeypatch.setattr(trace_run, "PATTERNS", 4 * model.n_layers * model.dims.n_heads * 9)  # three tokens
    with pytest.raises(UsageError, match="prompt: got .* tokens'?; allowed: 3 at most"):
        trace(model, words, [])


def test_the_graph_stands_in_the_atlas(folder, traced, prompt):
    rows = graphs(Atlas(folder / "atlas"))
    assert any(row["prompt"] == prompt and row["file"] == traced["files"][0] for row in rows)
    assert "nodes" not in rows[0]


def test_no_graph_is_written_over_another(folder, traced, prompt):
    other = run("trace", "model", "--prompt", prompt, "--dictionaries", "made/00", "--out", "graphs", *COMMON, cwd=folder)
    assert other.returncode == 0, other.stderr
    files = json.loads(other.stdout)["files"]
    assert not set(files) & set(traced["files"]) and all((folder / file).is_file() for file in traced["files"])
    again = run("trace", "model", "--prompt", prompt, "--dictionaries", "made/00", "--out", "graphs", *COMMON, cwd=folder)
    assert json.loads(again.stdout)["files"] == files
