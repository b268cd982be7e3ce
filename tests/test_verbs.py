"""Verbs that run a model: the numbers are the library's, sealed data stay sealed, and what is refused is logged."""

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from assay import permissions
from assay.app import directions, explore
from assay.app.documents import make_document, pages
from assay.app.forms import form_of
from assay.app.results import kept_result, results
from assay.app.verbs import Cancelled, Report, run_verb, verbs
from assay.app.verbs import steer as steer_verb
from assay.app.verbs import trace as trace_verb
from assay.app.verbs.claims import subject_of
from assay.app.workspace import Workspace
from assay.atlas.features import keep_dictionary
from assay.errors import AssayError, UsageError
from assay.evidence.corpus_reading import texts_of
from assay.evidence.corpus_windows import marks_of
from assay.evidence.source import Source, marks
from assay.explain.reading import open_reading
from assay.features.dictionary import Spec, make_dictionary
from assay.model.edits import Edit
from assay.sites import parse_site
from assay.testing import planted_induction
from planted_task import write_task

pytestmark = pytest.mark.whole

SMALL = {"tune": 16, "confirm": 48, "ood": 36, "draws": 8}
HEADS = ["z.0.0", "z.1.0", "z.1.1"]
TEXT = "w3 w7 w1 w9 w3 w7"


@pytest.fixture(scope="module")
def model():
    return planted_induction()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verbs")
    write_task(folder / "task.jsonl")
    return folder


@pytest.fixture(scope="module")
def atlas(model, place):
    """An atlas with one transcoder per layer and a dictionary of the stream, of random numbers."""
    workspace = Workspace(place / "atlas", loaded=model, role="intervene")
    d = model.dims.d_model
    for name, read, written in [*((f"transcoder-{n}", f"mlp_in.{n}", f"mlp_out.{n}") for n in range(model.n_layers)),
                                ("stream", "resid_post.0", "resid_post.0")]:  # fmt: skip
        made = make_dictionary(Spec("relu", 24, d, d, inputs=(read,), outputs=(written,), centred=False), name)
        generator = torch.Generator().manual_seed(len(name))
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        keep_dictionary(workspace.store, made, model.name)
    return workspace.atlas


@pytest.fixture
def workspace(atlas, model, place, monkeypatch):
    monkeypatch.chdir(place)
    return Workspace(atlas, loaded=model, role="intervene", actor="tester")


@pytest.fixture
def fresh(tmp_path, model, place, monkeypatch):
    monkeypatch.chdir(place)
    return Workspace(tmp_path / "atlas", loaded=model, role="intervene", actor="tester")


def run(workspace, name, **arguments):
    return run_verb(workspace, name, arguments)["record"]


# sealed data, roles, files -----------------------------------------------------------------------


@pytest.mark.parametrize("split", ["confirm", "ood", "all", ""])
@pytest.mark.parametrize("verb", ["measure_task", "patch"])
def test_sealed_data_are_refused_and_the_request_is_logged(fresh, verb, split):
    with pytest.raises(UsageError, match="sealed"):
        run(fresh, verb, task="task.jsonl", split=split)
    asked = [entry for entry in permissions.entries(fresh.atlas) if entry["action"] == "refused: sealed data"]
    assert [entry["body"] for entry in asked] == [{"actor": "tester", "verb": verb, "split": split}]
    assert fresh.store.entry_count() == 0  # nothing was looked at


def test_every_verb_that_explores_has_no_other_way_to_name_a_split():
    named = {found.name for found in verbs() if "split" in found.parameters["properties"]}
    assert named == {"measure_task", "patch"}
    assert {found.name for found in verbs() if found.spends} == {"claim_test", "circuit_test", "map", "repair"}


def test_what_edits_needs_intervene_and_refusals_are_logged(tmp_path, model, place, monkeypatch):
    monkeypatch.chdir(place)
    reader = Workspace(tmp_path / "atlas", loaded=model, role="read")
    refused = {"patch": {"task": "task.jsonl"}, "claim_test": {"claim": "c-0"}, "trace": {"prompt": TEXT, "validate": 2}}
    for name, given in refused.items():
        with pytest.raises(UsageError, match="needs the role 'intervene'"):
            run(reader, name, **given)
        assert [*permissions.entries(reader.atlas)][-1]["action"] == f"refused: {name}"
    assert run(reader, "measure_task", task="task.jsonl")["accuracy"] == 1.0
    acting = {found.name for found in verbs() if found.role == "intervene"}
    assert {"patch", "circuit_find", "circuit_test", "claim_state", "claim_test", "generate", "dose", "intervene"} <= acting


@pytest.mark.parametrize("name", ["/etc/passwd", "../secret.jsonl", "nothing.jsonl", "linked.jsonl", "notes.txt"])
def test_files_outside_the_working_folder_are_not_read(fresh, place, tmp_path, name):
    (tmp_path / "secret.jsonl").write_text("{}")
    (place / "notes.txt").write_text("{}")
    if not (place / "linked.jsonl").is_symlink():
        (place / "linked.jsonl").symlink_to(tmp_path / "secret.jsonl")
    with pytest.raises(UsageError, match="working folder"):
        explore.known_data(fresh, name)
    assert explore.known_data(fresh, "task.jsonl") == "task.jsonl" and explore.known_data(fresh, "ioi") == "ioi"


def test_a_typed_text_of_the_sealed_data_makes_the_claim_exploratory(fresh, model):
    sealed = Source("task.jsonl").items("confirm", 48, 0)
    run(fresh, "live", text=f" {sealed[5].clean} ", site="mlp_act.0")
    assert fresh.store.looks(model.digest, marks(sealed))
    claim = run(fresh, "claim_state", data="task.jsonl", kind="mediates", sites=HEADS, **SMALL)["claim"]
    verdict = run(fresh, "claim_test", claim=claim)
    assert "exploratory" in verdict["qualifiers"]


def test_exploring_looks_at_free_splits_only(workspace, model):
    run(workspace, "measure_task", task="task.jsonl")
    run(workspace, "patch", task="task.jsonl", site="z", n=8)
    run(workspace, "dose", task="task.jsonl", openings=1)
    looks = [entry["body"]["clusters"] for entry in workspace.store.entries() if entry["kind"] == "look"]
    looked = {cluster for clusters in looks for cluster in clusters}
    free = {mark for split in ("discover", "tune") for mark in marks(Source("task.jsonl").items(split, 400, 0))}
    sealed = {mark for split in ("confirm", "ood") for mark in marks(Source("task.jsonl").items(split, 400, 0))}
    assert looked & free and not looked & sealed


# numbers -----------------------------------------------------------------------------------------


def test_patch_finds_the_heads_that_were_written_in(workspace):
    record = run(workspace, "patch", task="task.jsonl", site="z", n=8)
    effect = np.array(record["effect"])
    assert effect[1, :2] == pytest.approx([0.5, 0.5], abs=0.01) and abs(effect[0]).max() < 0.01
    assert {(cell["layer"], cell["head"]) for cell in record["strongest"][:2]} == {(1, "0"), (1, "1")}
    head = next(head for head in results(workspace.atlas, "patch") if head["arguments"]["site"] == "z")
    kept = kept_result(workspace.atlas, head["id"])
    assert kept["blocks"][0]["type"] == "heatmap" and kept["record"]["effect"] == record["effect"]


def test_live_shows_what_the_dictionary_says(workspace, model):
    found = run_verb(workspace, "live", {"text": TEXT, "dictionary": "stream", "heads": ["1.0"], "features": 60})
    (ids,) = model.tokens([TEXT])
    acts = model.capture([ids], ["resid_post.0", "pattern.1.0"])
    codes = workspace.dictionary("stream").encode(acts["resid_post.0"][0].float())
    codes[0] = 0  # the first token is none of a dictionary's
    shown = next(block for block in found["blocks"] if block["type"] == "tokens")
    assert "".join(shown["pieces"]) == TEXT
    for feature in shown["features"]:
        unit = int(feature["name"].removeprefix("latent "))
        assert feature["values"] == pytest.approx(codes[:, unit].tolist(), abs=1e-5)
    assert {int(each["feature"].removeprefix("latent.stream.")) for each in found["record"]["features"]} == set(
        codes.any(0).nonzero()[:, 0].tolist())  # fmt: skip
    grid = next(block for block in found["blocks"] if block["type"] == "patterns")
    assert np.array(grid["values"][0]) == pytest.approx(acts["pattern.1.0"][0].numpy(), abs=1e-6)
    assert found["record"]["next"][0]["token"].strip() == "w1"  # induction


def test_a_changed_latent_does_in_the_model_what_the_verb_says(workspace, model):
    traced = run(workspace, "trace", prompt=TEXT, nodes=1.0, edges=1.0)
    node = traced["latents"][0]["node"]
    record = run(workspace, "intervene", graph=traced["graph"], node=node, factor=3.0)
    layer, unit, position = (int(part) for part in node.removeprefix("latent.").replace("@", ".").split("."))
    dictionary = workspace.dictionary(f"transcoder-{layer}")
    (ids,) = model.tokens([TEXT])
    before = model.hf(torch.tensor([ids])).logits[0, -1].detach()
    value = dictionary.encode(model.capture([ids], f"mlp_in.{layer}")[f"mlp_in.{layer}"][0].float())[position, unit]

    def push(module, inputs, output):
        changed = output.clone()
        changed[0, position] += 2 * value * dictionary.directions()[unit]
        return changed

    handle = model.hf.transformer.h[layer].mlp.register_forward_hook(push)
    after = model.hf(torch.tensor([ids])).logits[0, -1].detach()
    handle.remove()
    change = (after - after.mean()) - (before - before.mean())
    logits = {int(row["node"].split(".")[1].split("@")[0]): row["measured"] for row in record["changes"]
              if row["node"].startswith("logit.")}  # fmt: skip
    assert logits and all(seen == pytest.approx(float(change[token]), abs=1e-4) for token, seen in logits.items())
    trace_verb._HELD.clear()  # another process: traced again from the kept plan
    again = run(workspace, "intervene", graph=traced["graph"], node=node, factor=3.0)
    assert [row["predicted"] for row in again["changes"]] == pytest.approx([row["predicted"] for row in record["changes"]])


def test_explain_finds_the_rule_that_was_written_into_a_latent(glass, tmp_path):
    """The latent reads the embedding of one token: on other documents, too, it is on there and nowhere else."""
    workspace = Workspace(tmp_path / "atlas", loaded=glass, role="read")
    vectors = glass.hf.get_input_embeddings().weight.detach().float()
    token = glass.tokenizer(" the", add_special_tokens=False)["input_ids"][-1]
    reads = vectors[token] / vectors[token].norm()
    scores = vectors @ reads
    others = torch.cat([scores[:token], scores[token + 1 :]]).max()
    d = glass.dims.d_model
    made = make_dictionary(Spec("relu", 2, d, d, inputs=("resid_pre.0",), outputs=("resid_pre.0",), centred=False), "planted")
    with torch.no_grad():
        made.W_enc.copy_(torch.stack([reads, -reads]))
        made.b_enc.copy_(torch.stack([-(others + scores[token]) / 2, torch.tensor(-1e3)]))
    keep_dictionary(workspace.store, made, glass.name)
    record = run(workspace, "explain", feature="latent.planted.0", tokens=12_000)
    piece = glass.text([token]).strip()
    assert record["explanation"] in (f"fires on the token ' {piece}'", f"fires on the word '{piece}'")
    assert record["checked"]["on"] > 5
    assert record["checked"]["precision"] == record["checked"]["recall"] == 1.0
    assert record["contexts"] and all(f"{piece}]]" in each["text"] for each in record["contexts"])
    assert not record["rule"]["not"]
    (look,) = [entry for entry in workspace.store.entries() if entry["kind"] == "look"]
    (reading,) = (open_reading(path) for path in (workspace.atlas / "readings").iterdir() if path.is_dir())
    read = [marks_of(texts_of(reading.as_text(part))) for part in ("shown", "scored")]
    assert all(read) and look["body"]["clusters"] == sorted({mark for part in read for mark in part})
    assert look["body"]["model"] == glass.digest and workspace.store.tally()["looks"] == 1


def test_generate_streams_what_it_returns_and_reads_the_prompt_once(workspace, model, monkeypatch):
    class Heard(Report):
        def __init__(self):
            self.texts = {}

        def piece(self, side, text):
            self.texts[side] = self.texts.get(side, "") + text

    heard = Heard()
    given = {"prompt": TEXT, "feature": "mlp_act.1.3", "dose": 0.5, "max_new_tokens": 7}
    read: list[int] = []
    hook = model.hf.register_forward_pre_hook(lambda _, __, given: read.append(given["input_ids"].numel()), with_kwargs=True)
    try:
        with monkeypatch.context() as patched:
            patched.setattr("assay.steer.apply.residual_norm", lambda *_: 20.0)
            patched.setattr("assay.steer.effects.random_directions", lambda model, direction, *_: {"r": direction})
            record = run_verb(workspace, "generate", given, heard)["record"]
    finally:
        hook.remove()
    assert heard.texts == {side: record[side] for side in ("unsteered", "steered", "random")}
    assert record["unsteered"] == model.generate([TEXT], max_new_tokens=7).texts[0]
    push = Edit(parse_site("mlp_act.1"), "add", 0.5 * 20.0 * torch.eye(model.dims.d_mlp)[3])
    assert record["steered"] == record["random"] == model.generate([TEXT], max_new_tokens=7, edits=[push]).texts[0]
    assert read == [3 * len(model.tokens([TEXT])[0]), *[3] * 6]  # the prompt once, then a token of each side


def test_a_letter_of_several_tokens_is_streamed_when_it_is_whole(monkeypatch):
    """A tokenizer whose tokens are bytes: steps end inside letters of three."""
    text = "abc日本def"
    tokens = list(text.encode())

    class Bytes:
        busy, at = True, 0

        def __init__(self, model, width):
            assert width == 1

        def join(self, ids, picking, edits):
            assert (ids, picking.max_new_tokens) == ([0], len(tokens))
            return 7

        def step(self):
            token, self.at = tokens[self.at], self.at + 1
            self.busy = self.at < len(tokens)
            return [SimpleNamespace(row=7, token=token, finish=None if self.busy else "length")]

    class Heard(Report):
        def __init__(self):
            self.pieces = []

        def piece(self, side, text):
            self.pieces.append(text)

    heard = Heard()
    monkeypatch.setattr("assay.steer.effects.pushed_edits", lambda *_: [])
    monkeypatch.setattr("assay.model.stream.Stream", Bytes)
    model: Any = SimpleNamespace(text=lambda found: bytes(found).decode(errors="replace"))
    said = steer_verb._written(model, [0], ["push"], None, len(tokens), heard)
    assert said == [text] and "".join(heard.pieces) == text and not any("\ufffd" in piece for piece in heard.pieces)


def test_dose_saves_a_direction_that_a_claim_can_name(workspace, model):
    record = run(workspace, "dose", task="task.jsonl", openings=1)
    assert record["direction"] in directions.names(workspace) and [row["dose"] for row in record["points"]] == sorted(
        row["dose"] for row in record["points"])  # fmt: skip
    parts = {"direction": record["direction"], "sign": -1, "strengths": [1.0, 2.0]}
    subject = subject_of(workspace, model, {"subject": parts})
    saved = directions.saved(workspace, model, record["direction"])
    assert np.array(subject["feature"].vector) == pytest.approx(-saved.vector.numpy(), abs=1e-6)
    assert subject["strengths"] == [1.0, 2.0] and "sign" not in subject


def test_a_cancelled_sweep_goes_on_from_what_is_finished(fresh):
    class Stops(Report):
        def __call__(self, step, done=0, of=0):
            if isinstance(step, str) and step.startswith("patching") and done:
                raise Cancelled

    given = {"task": "task.jsonl", "site": "resid_post", "n": 8}
    with pytest.raises(Cancelled):
        run_verb(fresh, "patch", given, Stops())
    assert run(fresh, "patch", **given)["checks"]["layers_reused"] >= 1


# claims ------------------------------------------------------------------------------------------


def test_the_same_claim_is_stated_once_and_subjects_are_checked(fresh):
    first = run(fresh, "claim_state", data="task.jsonl", kind="mediates", sites=HEADS, **SMALL)
    again = run(fresh, "claim_state", data="task.jsonl", kind="mediates", sites=HEADS, **SMALL)
    assert again["claim"] == first["claim"] and again["stated_before"] and not first["stated_before"]
    assert fresh.store.entries_of(first["claim"])[-1]["kind"] == "lock"
    for bad in ({"kind": "mediates"}, {"kind": "mediates", "sites": ["z.9.9"]}, {"kind": "steers", "sites": ["mlp_act.0.1"]},
                {"kind": "explains", "subject": {"rule": 3}}, {"kind": "guess", "sites": HEADS},
                {"kind": "mediates", "sites": HEADS, "sesoi": {"necessity": "low"}}):  # fmt: skip
        with pytest.raises(AssayError):
            run(fresh, "claim_state", data="task.jsonl", **bad, **SMALL)


@pytest.mark.slow
def test_a_circuit_is_found_stated_tested_and_shown(fresh):
    found = run(fresh, "circuit_find", task="task.jsonl", n=8, tune=8, confirm=32, ood=24, draws=4)
    edges = {row["edge"] for row in found["edges"]}
    assert {"z.1.0->logits", "z.1.1->logits", "embed->v.1.0", "embed->v.1.1"} <= edges
    assert found["faithfulness"]["resample"]["value"] > 0.85 and found["of"] == 110
    shown = run_verb(fresh, "circuit_show", {"circuit": found["circuit"]})
    picture = next(block for block in shown["blocks"] if block["type"] == "graph")
    names = {node["id"]: node for node in picture["nodes"]}
    assert {"embed", "logits", "z.1.0", "z.1.1"} <= set(names) and names["logits"]["layer"] == len(picture["layers"]) - 1
    assert {(edge["from"], edge["to"]) for edge in picture["edges"]} >= {("embed", "z.1.0"), ("z.1.0", "logits")}
    page = make_document(fresh, "circuit", {"circuit": found["circuit"]})
    assert next(block for block in page["blocks"] if block["type"] == "form")["verb"] == "circuit_test"
    verdict = run(fresh, "circuit_test", circuit=found["circuit"])
    assert verdict["verdict"] == "supported" and verdict["claim"] == found["claim"]
    page = make_document(fresh, "circuit", {"circuit": found["circuit"]})
    assert "circuit-curve" in {block["id"] for block in page["blocks"]}
    assert "form" not in {block["type"] for block in page["blocks"]}  # it is tested: nothing left to spend
    again = run(fresh, "claim_replay", claim=found["claim"])
    assert again["same"] and fresh.store.tally()["replications"] == 1
    with pytest.raises(UsageError, match="circuit"):
        run(fresh, "circuit_show", circuit="../task")


@pytest.mark.slow
def test_probe_reads_free_splits_and_says_what_claim_it_suggests(glass, tmp_path):
    workspace = Workspace(tmp_path / "atlas", loaded=glass, role="intervene")
    given = {"concept": "sentiment", "n": 60, "sites": ["embed", "resid_post.1"], "untrained": False}
    record = run(workspace, "probe", **given)
    assert record["best"] in ("embed", "resid_post.1") and 0 <= record["tune"]["value"] <= 1
    assert {row["name"] for row in record["baselines"]} >= {"bag_of_words"}
    source = explore.concept_of(workspace, "sentiment")
    sealed = {mark for split in ("confirm", "ood") for mark in marks(source.items(split, 60, 0))}
    assert not {mark for mark in sealed if workspace.store.looks(glass.digest, [mark])}
    saved = directions.saved(workspace, glass, record["direction"])
    assert saved.site == record["best"] and float(saved.vector.norm()) == pytest.approx(1.0, abs=1e-5)
    assert record["claim"]["kind"] == "decodes" and record["claim"]["subject"]["site"] == record["best"]
    head = results(workspace.atlas, "probe")[0]
    page = make_document(workspace, "probe", {"result": head["id"]})
    state = next(block for block in page["blocks"] if block["type"] == "form" and block["verb"] == "claim_state")
    assert state["fixed"] == record["claim"]


# pages and forms ---------------------------------------------------------------------------------


OWN = ("task", "circuit", "graph", "probe", "steer", "live", "monitor")


def test_pages_say_what_to_run_on_an_empty_atlas(fresh):
    for name in OWN:
        document = make_document(fresh, name)
        ids = [block["id"] for block in document["blocks"]]
        assert len(set(ids)) == len(ids) and (document["empty"] or name in ("task", "live")), name
        assert json.dumps(document, allow_nan=False)


def test_pages_of_what_was_measured(workspace):
    record = run(workspace, "trace", prompt=TEXT)
    run(workspace, "measure_task", task="task.jsonl")
    shown = {"task": {"task": "task.jsonl"}, "graph": {"graph": record["graph"], "node": record["latents"][0]["node"]},
             "live": {"text": TEXT}, "steer": {"feature": "mlp_act.1.3"}}  # fmt: skip
    for name, arguments in shown.items():
        document = make_document(workspace, name, arguments)
        ids = [block["id"] for block in document["blocks"]]
        assert len(set(ids)) == len(ids) and document["params"].items() >= arguments.items()
    picture = next(block for block in make_document(workspace, "graph", shown["graph"])["blocks"] if block["type"] == "graph")
    names = {node["id"] for node in picture["nodes"]}
    assert all(edge["from"] in names and edge["to"] in names for edge in picture["edges"])
    assert all(0 <= node["layer"] < len(picture["layers"]) and 0 <= node["position"] < len(picture["positions"])
               for node in picture["nodes"])  # fmt: skip
    assert picture["intervene"] == {"verb": "intervene", "arguments": {"graph": record["graph"]}}


def test_forms_ask_for_what_their_verb_takes(workspace):
    for name in OWN:
        for block in make_document(workspace, name, {"task": "ioi"} if name in ("task", "circuit") else {})["blocks"]:
            if block["type"] != "form":
                continue
            taken = verbs().get(block["verb"]).parameters
            asked = {field["name"] for field in block["fields"]} | set(block.get("fixed", {}))
            assert asked <= set(taken["properties"]) and set(taken.get("required", ())) <= asked, (name, block["id"])
    field = form_of("x", "dose", "Go", ("mode",))["fields"][0]
    assert field["kind"] == "choice" and field["value"] == "add" and "clamp" in field["choices"]


def test_kept_results_are_found_by_name_only(workspace, tmp_path):
    for name in ("../x", "patch-000000000000", "patch-../../etc"):
        with pytest.raises(UsageError, match="result"):
            kept_result(workspace.atlas, name)
    assert results(tmp_path) == [] and {"task", "graph"} <= {each.name for each in pages()}
