"""`assay circuit` from search to verdict, and to files of other tools and back, on the planted model."""

import json

import pytest

from assay.circuits.formats import read_mib
from assay.evidence.card import error_rates
from assay.records import plain
from assay.testing import planted_induction
from assay_process import run
from planted_task import write_task

pytestmark = pytest.mark.whole
COMMON = ("--atlas", "atlas", "--quiet", "--json", "-")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("circuit")
    model = planted_induction()
    model.hf.save_pretrained(place / "model")
    model.tokenizer.save_pretrained(place / "model")
    write_task(place / "task.jsonl")
    return place


@pytest.fixture(scope="module")
def found(folder):
    sizes = ("--n", "16", "--tune", "16", "--confirm", "48", "--ood", "36", "--draws", "4")
    done = run("circuit", "find", "model", "--file", "task.jsonl", *sizes, *COMMON, cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_find_gives_edges_nodes_faithfulness_and_pictures(folder, found):
    assert {"edges", "nodes", "faithfulness", "claim", "warnings", "rival", "curves", "plan"} <= set(found)
    assert {"from", "to", "score"} <= set(found["edges"][0])
    assert {"n_edges", "ablation", "value", "low", "high"} <= set(found["faithfulness"][0])
    edges = {(edge["from"], edge["to"]) for edge in found["edges"]}
    assert {("z.1.0", "logits"), ("z.1.1", "logits"), ("embed", "v.1.0"), ("embed", "v.1.1")} <= edges
    assert {row["ablation"] for row in found["faithfulness"]} == {"resample", "mean", "zero"}
    suffixes = {path.rpartition(".")[2] for path in found["files"]}
    assert suffixes == {"json", "html", "svg", "png"} and all((folder / path).stat().st_size > 500 for path in found["files"])
    assert list((folder / "atlas" / "attributions").glob("*.safetensors"))


def test_the_claim_about_it_is_tested_once_and_shown(folder, found):
    done = run("circuit", "test", "model", found["files"][0], "--require", "supported", *COMMON, cwd=folder)
    record = json.loads(done.stdout)
    assert done.returncode == 0 and record["verdict"] == "supported" and record["claim"] == found["claim"]
    assert (record["circuit"], record["files"]) == (found["files"][0], found["files"][1:2])
    card = run("claim", "export", found["claim"], "--out", "card.json", "--atlas", "atlas", cwd=folder)
    assert card.returncode == 0, card.stderr
    assert json.loads((folder / "card.json").read_text())["error_rates"] == plain(error_rates("mediates-edges"))
    shown = run("circuit", "show", found["files"][0], "--atlas", "atlas", cwd=folder)
    assert "z.1.0->logits" in shown.stdout and "edges" in shown.stdout


def test_a_kept_circuit_is_named_by_its_task_or_its_name(folder, found):
    from assay.atlas.circuits import kept_circuit
    from assay.atlas.store import Atlas
    from assay.errors import UsageError

    atlas, path = Atlas(folder / "atlas"), folder / found["files"][0]
    assert kept_circuit(atlas, "model", "task.jsonl").samefile(path) and kept_circuit(atlas, "model", path.stem).samefile(path)
    for model, named in (("other", "task"), ("model", "tas")):
        with pytest.raises(UsageError, match=f"got '{named}'.*one of the circuits of this atlas: .*{path.stem}"):
            kept_circuit(atlas, model, named)


def test_the_same_search_again_states_no_second_claim(folder, found):
    sizes = ("--n", "16", "--tune", "16", "--confirm", "48", "--ood", "36", "--draws", "4")
    again = run("circuit", "find", "model", "--file", "task.jsonl", *sizes, *COMMON, cwd=folder)
    record = json.loads(again.stdout)
    assert not found["stated_before"] and record["stated_before"] and record["claim"] == found["claim"]
    other = run("circuit", "find", "model", "--file", "task.jsonl", *sizes[:-1], "5", "--atlas", "atlas", "--quiet", cwd=folder)
    assert "stated: c-" in other.stdout and found["claim"] not in other.stdout  # another plan is another claim


def test_areas_and_tests_are_printed_in_words_and_in_the_twin(folder, found):
    done = run("circuit", "test", "model", found["files"][0], "--atlas", "atlas", "--json", "twin.json", "--tests", "50",
               cwd=folder)  # fmt: skip
    record = json.loads((folder / "twin.json").read_text())
    curve = found["curves"]["resample"]["actual"]
    for axis, end in (("linear", ""), ("log", "_log")):
        for name in ("cpr", "cmd"):
            assert record["areas"][axis][name] == pytest.approx(curve[name + end]["value"])
    assert record["areas"]["selection"] == found["curves"]["resample"]["selection"]
    said = " ".join(done.stdout.split())
    assert f"chosen by {record['areas']['selection']}" in said and f"CPR {record['areas']['linear']['cpr']:.3f}" in said
    assert record["shi"]["n_edges"] == len(found["edges"]) and record["shi"]["sufficiency"]["n"] == 50
    assert "better than random shown closer to the model than 100% of 50 random circuits" in said
    assert "as good as the model stands" in said and "nothing left outside" in said


def test_one_edge_of_it_is_stated_tested_and_judged(folder, found):
    sizes = ("--confirm", "48", "--ood", "36")
    done = run("circuit", "edge", "model", found["files"][0], "z.1.0->logits", *sizes, "--require", "supported", *COMMON,
               cwd=folder)  # fmt: skip
    record = json.loads(done.stdout)
    assert done.returncode == 0 and (record["kind"], record["verdict"]) == ("connects", "supported")
    estimates = {gate["name"]: gate["estimate"] for gate in record["gates"]}
    assert estimates["edge.effect"] == pytest.approx(0.5, abs=0.02)  # the other induction head has the other half
    again = run("circuit", "edge", "model", found["files"][0], "z.1.0->logits", *sizes, *COMMON, cwd=folder)
    assert json.loads(again.stdout) == {**record, "stated_before": True}  # neither a second claim nor a second read
    outside = run("circuit", "edge", "model", found["files"][0], "z.0.0->logits", "--atlas", "atlas", cwd=folder)
    assert outside.returncode == 2 and "an edge of this circuit" in outside.stderr
    stated = run("claim", "state", "model", "task.jsonl", "z.0.1->v.1.0", "--kind", "connects", "--set", "confirm=48",
                 "--set", "ood=36", *COMMON, cwd=folder)  # fmt: skip
    assert stated.returncode == 0, stated.stderr
    false = run("claim", "test", json.loads(stated.stdout)["claim"], "--model", "model", *COMMON, cwd=folder)
    assert json.loads(false.stdout)["verdict"] == "refuted"


def test_other_tools_files_come_back_and_can_be_claimed(folder, found):
    out = run("circuit", "export", found["files"][0], "theirs.json", "--format", "eap-json", *COMMON, cwd=folder)
    assert out.returncode == 0, out.stderr
    theirs = json.loads((folder / "theirs.json").read_text())
    assert {"cfg", "nodes", "edges"} <= set(theirs)
    back = run("circuit", "import", "model", "theirs.json", "back.json", *COMMON, cwd=folder)
    assert back.returncode == 0 and json.loads(back.stdout)["edges"] == len(found["edges"])
    tested = run("circuit", "test", "model", "back.json", "--task", "task.jsonl", "--tests", "0", *COMMON, cwd=folder)
    record = json.loads(tested.stdout)
    kept = json.loads((folder / record["circuit"]).read_text())  # of a file elsewhere the atlas keeps a copy
    assert (folder / record["circuit"]).parent == folder / "atlas" / "circuits" and kept["plan"]["claim"] == record["claim"]
    assert len(kept["edges"]) == len(found["edges"]) and (folder / record["files"][0]).stat().st_size > 500
    (folder / "cut.json").write_text(json.dumps({**kept, "edges": kept["edges"][1:]}))
    cut = run("circuit", "test", "model", "cut.json", "--atlas", "atlas", cwd=folder)
    assert cut.returncode == 2 and "other edges than its claim" in cut.stderr
    for form in ("eap-pt", "graphml"):
        target = f"out.{form}" if form == "graphml" else "out.pt"
        assert run("circuit", "export", found["files"][0], target, "--format", form, *COMMON, cwd=folder).returncode == 0


def test_a_submission_needs_all_scores_and_says_what_does_not_fit(folder, found):
    more = ("--n", "16", "--tune", "16", "--confirm", "48", "--ood", "36", "--draws", "4", "--all-scores", "--out", "all")
    done = run("circuit", "find", "model", "--file", "task.jsonl", *more, *COMMON, cwd=folder)
    kept = json.loads(done.stdout)["files"][0]
    record = json.loads((folder / kept).read_text())
    assert len(record["edges"]) + len(record["other_edges"]) == record["graph"]["n_edges"] > len(record["edges"])
    words = ("--format", "mib", "--task", "ioi", "--model", "gpt2")
    out = run("circuit", "export", kept, "nine", *words, "--select", "abs", "--atlas", "atlas", cwd=folder)
    assert out.returncode == 0 and "gpt2 of MIB has 12 layers of 12 heads" in out.stderr
    entry = read_mib(folder / "nine" / "ioi_gpt2")
    assert len(entry.circuits) == 9 and int(entry.circuits[-1].mask.sum()) > int(entry.circuits[0].mask.sum())
    del record["other_edges"]
    (folder / "few.json").write_text(json.dumps(record))
    refused = run("circuit", "export", "few.json", "none", *words, "--atlas", "atlas", cwd=folder)
    assert refused.returncode == 2 and "--all-scores" in refused.stderr and not (folder / "none").exists()


@pytest.mark.parametrize("words, said", [
    (["circuit", "find", "model"], "TASK, --file"),
    (["circuit", "find", "model", "--file", "task.jsonl", "--method", "acdc"], "eap-ig"),
    (["circuit", "find", "model", "--file", "task.jsonl", "--method", "atp", "--level", "edge"], "--level node"),
    (["circuit", "test", "model", "none.json"], "assay circuit find"),
    (["circuit", "test", "model", "c-0123456789", "--task", "ioi"], "which names its own"),
    (["circuit", "test", "model", "task.jsonl", "--format", "eap"], "--task TASK"),
    (["circuit", "find", "model", "--file", "task.jsonl", "--grad-drop"], "--method eap"),
    (["circuit", "edge", "model", "none.json", "z.0.0->logits"], "none.json"),
    (["circuit", "show", "task.jsonl"], "task.jsonl"),
    (["circuit", "export", "task.jsonl", "x"], "task.jsonl"),
])  # fmt: skip
def test_mistakes_are_one_line(folder, words, said):
    done = run(*words, "--atlas", "atlas", cwd=folder)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr
