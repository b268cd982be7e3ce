"""From a model to an atlas: a planted dictionary with known answers, and the same map after a kill."""

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import map_world
from assay.app.verbs import Cancelled, Report, run_verb
from assay.app.workspace import Workspace
from assay.atlas import mapped as atlas_mapped
from assay.atlas.mapped import Mapped
from assay.atlas.store import Atlas
from assay.cli.main import cli
from assay.data import whereabouts
from assay.data.corpora import open_corpus
from assay.errors import MissingError, ReproduceError, SiteError, StoreError, UsageError
from assay.evidence import corpus_reading
from assay.evidence.bulk import Wanted, state_many
from assay.evidence.claims import audit
from assay.evidence.corpus_reading import source_again
from assay.evidence.corpus_windows import CorpusSource
from assay.evidence.replay import replay_claim
from assay.evidence.run import Statement
from assay.evidence.run import test_claim as tested_again
from assay.evidence.source import source_of
from assay.explain.endpoint import Asker, Endpoint, EndpointError, Journal
from assay.explain.reading import Reading, ReadPlan, open_reading, read_features
from assay.explain.records import Explanation
from assay.explain.units import of_dictionary, of_directions, of_heads, of_neurons
from assay.features import sentences
from assay.features.dictionary import Spec, make_dictionary
from assay.features.kept import save
from assay.features.opened import close_latents
from assay.mapping import run as work
from assay.mapping.claims import NO_RULE, WORDS, settings_for
from assay.mapping.compare import compare
from assay.mapping.concepts import names_of
from assay.mapping.run import MapPlan, MapRun, _read, run_map
from assay.mapping.shares import explained_variance, shares_of, token_shares
from assay.mapping.some import explain_some, score_some
from assay.mapping.stages import Stages
from assay.mapping.units import MapUnits, find_dictionary, find_units
from assay.model.load import load_model
from assay.model.untrained import untrained_model
from assay.probe.scores import aurocs
from assay.testing.word_latents import Given
from judge_server import completion, judge

pytestmark = pytest.mark.whole

HERE = Path(__file__).parent
PLAN = {"tokens": 12_000, "context": 32, "baseline": 4}


def plan(**more):
    given = {"corpus": map_world.corpus(), "ood": map_world.corpus(1, 80, name="other"), **PLAN}
    return MapPlan(**{**given, **more})


@pytest.fixture(scope="module", autouse=True)
def encoder():
    """Instead of the sentence encoder, whose meanings nothing here asks for."""

    def lengths(texts):
        return np.array([[len(text), 1.0] for text in texts], np.float32) / 99

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(atlas_mapped, "packaged_encoder", lambda: lengths)
        yield


@pytest.fixture(scope="module")
def model():
    return map_world.model()


@pytest.fixture(scope="module")
def dictionary(model):
    return map_world.dictionary(model)


@pytest.fixture(scope="module")
def mapped(model, dictionary, tmp_path_factory):
    """The planted map, whole, and what it said while it ran."""
    said = []
    atlas = Atlas(tmp_path_factory.mktemp("atlas"))
    run = MapRun(model, find_units(model, dictionary=dictionary), atlas, plan(), report=lambda *each: said.append(each))
    return run, run_map(run), said


def test_planted_latents_are_explained_and_supported(mapped):
    run, found, _ = mapped
    features = found["features"]
    assert features["all"] == map_world.WIDTH and features["active"] == map_world.READERS == features["explained"]
    assert features["supported"] >= map_world.READERS - 2 and features["refuted"] == 0
    assert sum(features[name] for name in ("supported", "refuted", "inconclusive")) == features["claimed"]
    for name, each in run.explained.items():
        unit = int(name.split(".")[-1])
        values = each.rule["any"][0][0]["of"] if each.rule else None
        assert values == ([f" w{unit}"] if unit < map_world.READERS else None)


def test_every_unit_is_counted(mapped):
    _, found, _ = mapped
    silent = map_world.WIDTH - map_world.READERS
    assert found["not_claimed"] == {NO_RULE: silent}
    assert sum(found["dropped"].values()) == silent
    assert found["features"]["claimed"] + sum(found["not_claimed"].values()) == found["features"]["mapped"]


def test_shares_are_those_of_brute_force(mapped):
    run, found, _ = mapped
    verdicts = json.loads((run.folder / "stages.json").read_text())["test"]["result"]["verdicts"]
    chosen = np.array([verdicts.get(name) == "supported" for name in run.reading.units])
    part = run.reading.part("confirm")
    dense, norms = part.codes.toarray(), run.units.decoder.norm(dim=1).numpy()
    half = some = 0
    for values, read in zip(dense, part.typical, strict=True):
        mass, own = float((values * norms).sum()), float((values * norms * chosen).sum())
        half += bool(read and mass > 0 and own >= mass / 2)
        some += bool(read and own > 0)
    n = int(part.typical.sum())
    assert found["shares"]["tokens"] == pytest.approx(half / n)
    assert found["shares"]["detail"]["tokens_any"] == pytest.approx(some / n)
    assert token_shares(part, np.zeros(len(chosen), bool), norms)[0] == 0
    assert found["shares"]["active_latents"] == pytest.approx(chosen.sum() / map_world.READERS)
    for name, value in found["unexplained"].items():
        assert value == pytest.approx(1 - found["shares"][name])


def test_variance_is_that_of_the_activations(mapped, dictionary):
    run, found, _ = mapped
    part = run.reading.part("confirm")
    everything = np.ones(len(run.reading.units), bool)
    table = run.model.hf.get_input_embeddings().weight.detach()
    keep = np.asarray(part.typical)
    x = table[part.tokens[keep]]
    whole = 1 - float(((x - dictionary.reconstruct(x)) ** 2).sum() / ((x - x.mean(0)) ** 2).sum())
    share = explained_variance(run.model, dictionary, part, everything)
    assert share["all"] == pytest.approx(whole, abs=1e-4) == pytest.approx(share["supported"], abs=1e-4)
    assert 0 < found["shares"]["variance"] <= share["all"] + 1e-6


def test_nothing_sealed_is_read_before_all_is_locked_and_paid(model, dictionary, tmp_path, monkeypatch):
    run = MapRun(model, find_units(model, dictionary=dictionary), Atlas(tmp_path), plan(features=4, baseline=0))
    order = []
    real_read, real_pay = work._sealed, work._pay

    def pay(*given):
        assert set(open_reading(run.folder / "reading").parts) == {"shown", "scored", "tune"}
        order.append("pay")
        return real_pay(*given)

    def sealed(*given):
        kinds = [entry["kind"] for entry in run.atlas.entries()]
        assert kinds.count("lock") == kinds.count("ticket") == kinds.count("data") / 2 > 0
        order.append("sealed")
        return real_read(*given)

    monkeypatch.setattr(work, "_pay", pay)
    monkeypatch.setattr(work, "_sealed", sealed)
    run_map(run)
    assert order == ["pay", "sealed"]
    groups = [kind for kind, _ in itertools.groupby(entry["kind"] for entry in run.atlas.entries()
                                                    if entry["kind"] not in ("look", "data", "state"))]  # fmt: skip
    assert groups == ["lock", "ticket", "evidence", "verdict"]


def test_the_ledger_holds_and_claims_are_found_again(mapped):
    run, _, _ = mapped
    assert run.atlas.verify() == []
    claims = run.atlas.claims()
    assert audit(run.atlas, claims[0].id) == []
    again = source_again(claims[0].task)
    locked = run.atlas.plan(claims[0].id).splits["confirm"]
    assert again.digest("confirm", locked["n"], locked["seed"]) == locked["digest"]
    with pytest.raises(ReproduceError, match="assay map"):
        source_again({**claims[0].task, "reading": "0" * 64})
    assert all(not verdict.qualifiers for verdict in map(run.atlas.verdict, run.atlas.claim_ids()))


def test_the_atlas_shows_each_unit(mapped):
    run, found, _ = mapped
    atlas = Mapped(run.atlas)
    page = atlas.page(found["set"], run.reading.units[3])
    assert "w3" in page.record.explanations[0].text and page.claims[0].verdict in ("supported", "inconclusive")
    assert page.record.top_tokens[0] == (" w3", 1.0) and page.record.fired > 20
    assert {score.scorer for score in page.record.scores} == set(work.SCORERS_USED)
    assert all(score.value > 0.9 and score.shuffled < 0.7 for score in page.record.scores if score.scorer != "simulation")
    assert page.record.contexts and not page.record.why_not
    silent = atlas.page(found["set"], run.reading.units[-1])
    assert silent.record.fired == 0 and silent.record.why_not and not silent.claims
    assert [hit.feature for hit in atlas.find_text("w3", found["set"])][0] == run.reading.units[3]
    summary = atlas.summary(found["set"])
    assert summary["unexplained"] == found["unexplained"]
    assert {**found["features"], **summary["features"]} == found["features"]


def test_what_is_finished_is_not_done_again(mapped, model, dictionary):
    run, found, _ = mapped
    before = run.atlas.entry_count()
    again = MapRun(model, find_units(model, dictionary=dictionary), run.atlas, plan())
    assert run_map(again) == found  # with the seconds of every stage: none ran
    assert run.atlas.entry_count() == before


def test_progress_names_what_is_done(mapped):
    _, _, said = mapped
    assert {"reading shown", "explaining", "scoring", "locking claims", "testing claims"} <= {what for what, _, _ in said}
    assert all(0 <= done <= total for _, done, total in said)


CHILD = """
import sys; sys.path.insert(0, {here!r})
import map_world
from assay.atlas.store import Atlas
from assay.mapping.run import MapPlan, MapRun, run_map
from assay.mapping.units import find_units
model = map_world.model()
plan = MapPlan(corpus=map_world.corpus(), ood=map_world.corpus(1, 80, name="other"), tokens=12000, context=32, baseline=0)
def say(what, done, total):
    print(what, done, flush=True)
run_map(MapRun(model, find_units(model, dictionary=map_world.dictionary(model)), Atlas({atlas!r}), plan, report=say))
"""


@pytest.mark.slow
def test_a_killed_map_ends_the_same(tmp_path):
    """Killed while reading, scoring, paying and testing: one ticket per claim, and the verdicts of a run that nobody killed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(atlas, stop):
        code = CHILD.format(here=str(HERE), atlas=str(atlas))
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
        for line in child.stdout:
            if stop and line.startswith(stop):
                child.send_signal(signal.SIGKILL)
                break
        child.wait()
        return child.returncode

    for stop in ("reading tune", "scoring", "paying", "reading confirm", "testing claims"):
        assert start(tmp_path / "killed", stop) == -signal.SIGKILL
    assert start(tmp_path / "killed", None) == 0 == start(tmp_path / "whole", None)
    one, two = Atlas(tmp_path / "killed"), Atlas(tmp_path / "whole")
    assert one.tally() == {**two.tally(), "looks": one.tally()["looks"]} and one.verify() == []

    def verdicts(atlas):
        return {claim.statement: (v.verdict, v.decision["p"], v.decision["reads"]) for claim in atlas.claims()
                if (v := atlas.verdict(claim.id)) is not None}  # fmt: skip

    assert verdicts(one) == verdicts(two)


# other units and explainers ----------------------------------------------------------------------


@pytest.mark.parametrize("given", [{"site": "mlp_act.1"}, {"site": "resid_post.1"}, {"heads": "1"}])
def test_neurons_and_heads(model, tmp_path, given):
    run = MapRun(model, find_units(model, **given), Atlas(tmp_path), plan(tokens=6000, features=6, baseline=0))
    found = run_map(run)
    assert found["features"]["mapped"] == min(6, found["features"]["all"])
    assert found["features"]["claimed"] + sum(found["not_claimed"].values()) == found["features"]["mapped"]
    pages = [Mapped(run.atlas).page(found["set"], name).record for name in run.names]
    assert [page.name for page in pages] == run.names
    assert all(page.promoted and page.suppressed for page in pages if page.contexts)  # heads too: by what they add when on
    assert any(page.promoted for page in pages) or given == {"site": "resid_post.1"}  # a coordinate writes nothing
    assert [run.host.column(run.units.feature(name)) for name in run.names] == [run.reading.column(name) for name in run.names]


def test_a_head_that_copies_two_words_is_claimed_supported_and_comes_out_again(tmp_path):
    """It attends to its own token (queries and keys see the same) and adds something at two words alone."""
    model = map_world.model(5)
    ids = [model.tokens([f"w{number}"])[0][-1] for number in (20, 21)]
    attention, table = model.hf.model.layers[0].self_attn, model.hf.get_input_embeddings().weight
    same = torch.linalg.qr(torch.randn(32, 8, generator=torch.Generator().manual_seed(1))).Q.T
    with torch.no_grad():
        table[:, 0] = 0
        table[ids, 0] = 3 * table[30].norm()
        attention.q_proj.weight[:8], attention.k_proj.weight[:8], attention.v_proj.weight[:8] = 6 * same, 6 * same, 0
        attention.v_proj.weight[0, 0] = 1
    long = plan(corpus=map_world.corpus(n=900), ood=map_world.corpus(1, 300, name="other"), tokens=30_000, baseline=0)
    run = MapRun(model, find_units(model, heads="0"), Atlas(tmp_path), long)
    found = run_map(run)
    said = run.explained["attn_out.0.0"]
    assert said.text in ("fires on the tokens ' w21' or ' w20'", "fires on the tokens ' w20' or ' w21'")
    (claim,) = Mapped(run.atlas).page(found["set"], "attn_out.0.0").claims
    assert claim.verdict == "supported" and found["features"]["supported"] == found["features"]["claimed"] == 1
    (stated,) = run.atlas.claims()
    assert replay_claim(run.atlas, stated.id, model, source=source_of(stated.task)).same


def test_explanations_are_kept_so_that_no_later_stage_asks_again(model, dictionary, tmp_path, monkeypatch):
    """An explainer that says something else each time it is asked: what is scored, claimed and shown is its first word."""
    asked: list[int] = []
    plain = MapRun.explanations

    def moody(run, side):
        asked.append(1)
        return (replace(each, text=f"{each.text} ({len(asked)})") for each in plain(run, side))

    monkeypatch.setattr(MapRun, "explanations", moody)
    made = plan(tokens=8000, features=4, baseline=0)
    units = find_units(model, dictionary=dictionary)
    run = MapRun(model, units, Atlas(tmp_path), made)
    run.stages.run("read", run.identity, lambda: _read(run))
    first = {name: each.text for name, each in run.explained.items()}
    again = MapRun(model, units, Atlas(tmp_path), made)  # another process, after a kill
    found = run_map(again)
    assert asked == [1] and {name: each.text for name, each in again.explained.items()} == first
    texts = [Mapped(again.atlas).page(found["set"], name).record.explanations for name in again.names]
    assert all(each[0].text.endswith("(1)") for each in texts if each) and any(texts)


# an endpoint that is paid -------------------------------------------------------------------------

PAID = {"tokens": 8000, "features": 3, "baseline": 2, "scorers": ("detection", "intruder")}


def paid(model, folder, url):
    """A map of neurons that asks a server; whoever opens it closes `asker`."""
    made = plan(**PAID, explainer=f"openai:judge@{url}")
    run = MapRun(model, find_units(model, site="mlp_act.1"), Atlas(folder), made)
    run.asker = Asker(Endpoint(url, "judge", tries=2, together=2), run.folder / "calls", sleep=lambda _: None)
    return run


def test_what_an_endpoint_did_not_answer_is_asked_again_and_all_that_was_paid_is_counted(model, tmp_path):
    """Two prompts, an explanation and a question of a scorer, get no answer in the first runs; they must be no blocks of wrong
    answers. Words that are no answer are."""
    down, seen = {"explain": True, "score": True}, {}

    def answer(body):
        asked = body["messages"][-1]["content"]
        kind = "explain" if any("what it responds to" in each["content"] for each in body["messages"]) else "score"
        first = seen.setdefault(kind, asked)
        return (503, b"{}", {}) if down[kind] and asked == first else completion(json.dumps({"explanation": f"x{len(asked)}"}))

    with judge(answer) as server:
        for kind in ("explain", "score"):
            run = paid(model, tmp_path / "one", server.url)
            with run.asker, pytest.raises(EndpointError, match="1 prompts have no answer yet.*run the same command"):
                run_map(run)
            assert run.stages.finished("score") is False and run.stages.finished("explain") is (kind == "score")
            down[kind] = False
        run = paid(model, tmp_path / "one", server.url)
        with run.asker:
            found = run_map(run)
            budget = run.asker.budget
        answered = len(server.asked) - 2 * 2  # two prompts were tried twice for nothing
        assert answered == len(set(server.prompts)) == found["cost"]["calls"] == budget.spent.calls
        again = paid(model, tmp_path / "two", server.url)
        with again.asker:
            whole = run_map(again)
    assert found["scores"] == whole["scores"] and found["cost"] == whole["cost"]
    assert found["cost"]["prompt_tokens"] == 7 * answered and found["cost"]["lost"]["calls"] == 0
    for score in found["scores"].values():
        assert score["failed"] == score["asked"] > 0  # {"explanation": ..} is no answer of a judge
        assert score["shuffled"] is not None and score["untrained"] is not None and score["value"] <= score["chance"]
    assert found["untrained_units"] == 2 and found["not_claimed"] == {WORDS: 3}


PAID_CHILD = """
import sys; sys.path.insert(0, {here!r})
import test_map
from pathlib import Path
model = test_map.map_world.model()
run = test_map.paid(model, Path({atlas!r}), {url!r})
run.report = lambda what, done, total: print(what, done, flush=True)
test_map.atlas_mapped.packaged_encoder = lambda: lambda texts: test_map.np.ones((len(texts), 2))
with run.asker:
    test_map.run_map(run)
"""
STOPS = ("explaining 1", "scoring 3", "explaining an untrained", "scoring an untrained", "reading confirm", "indexing")


@pytest.mark.slow
def test_killed_at_every_stage_no_call_is_paid_twice(tmp_path):
    """SIGKILL in each stage. Only what was on its way at that moment (two calls at once) may be asked again, and is counted."""
    log, environment = tmp_path / "log", {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "judge_server.py"), "--log", str(log), "--delay", "0.02"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    kills, done = 0, ""
    try:
        code = PAID_CHILD.format(here=str(HERE), atlas=str(tmp_path / "atlas"), url=server.stdout.readline().strip())
        for stop in (*STOPS, None):
            child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
            for line in child.stdout:
                if stop and line.startswith(stop):
                    child.send_signal(signal.SIGKILL)
                    done += f"{stop};"
                    kills += 1
                    break
            child.wait()
        assert child.returncode == 0 and done == "".join(f"{stop};" for stop in STOPS)
    finally:
        server.kill()
        server.wait()
    (folder,) = (tmp_path / "atlas" / "maps").iterdir()
    journal = Journal(folder / "calls")
    journal.close()
    asked = log.read_text().split()
    assert len(set(asked)) == len(journal.replies) == journal.spent.calls > 20
    assert len(asked) - len(set(asked)) <= journal.lost.calls <= 2 * 4  # four of the stages ask
    summary = json.loads((folder / "stages.json").read_text())["atlas"]["result"]
    assert summary["cost"]["calls"] == journal.spent.calls and summary["cost"]["lost"]["calls"] == journal.lost.calls
    assert kills == len(STOPS)


def test_latents_of_a_transcoder(model, tmp_path):
    """Latents that read an MLP's input and write its output: where they are on is of the first, variance is of the second."""
    words = map_world.dictionary(model)
    spec = Spec("relu", map_world.WIDTH, words.spec.d_in, words.spec.d_out, inputs=("mlp_in.0",), outputs=("mlp_out.0",),
                skip_first=1, centred=False)  # fmt: skip
    made = make_dictionary(spec, "transcoder")
    prompts = [[number] for number in model.tokens(" ".join(map_world.WORDS[1 : map_world.READERS + 1]))[0]]
    acts = model.capture(prompts, "mlp_in.0,mlp_out.0")
    x, y = (acts.flat(site).flatten(1) for site in model.sites("mlp_in.0,mlp_out.0"))
    with torch.no_grad():
        made.W_enc.copy_(words.W_enc)
        made.W_enc[: len(x)] = x / x.norm(dim=1, keepdim=True)
        made.b_enc.copy_(torch.full((map_world.WIDTH,), -1e3))
        made.b_enc[: len(x)] = -0.7 * x.norm(dim=1)
        made.W_dec[: len(y)] = y / (0.3 * x.norm(dim=1, keepdim=True))
    made.requires_grad_(False)
    run = MapRun(model, find_units(model, dictionary=made), Atlas(tmp_path), plan(tokens=8000, baseline=0))
    assert isinstance(run.units, MapUnits) and run.units.site == "mlp_in.0"
    found = run_map(run)
    assert found["features"]["active"] >= map_world.READERS and found["features"]["explained"] >= map_world.READERS - 2
    part, read = run.reading.part("confirm"), []
    hook = model.hf.model.layers[0].mlp.register_forward_hook(lambda *each: read.append(each[2].detach()[0]))
    with torch.no_grad():
        for row in part.rows:
            model.hf(torch.tensor([row.tokens.tolist()]))
    hook.remove()
    keep = np.asarray(part.typical)
    written = torch.cat(read)[torch.from_numpy(keep)]
    left = written - (torch.from_numpy(part.codes[np.flatnonzero(keep)].toarray()).float() @ made.W_dec + made.b_dec)
    share = 1 - float((left**2).sum() / ((written - written.mean(0)) ** 2).sum())
    assert found["shares"]["detail"]["variance_all_latents"] == pytest.approx(share, abs=1e-4) and share > 0
    pages = [Mapped(run.atlas).page(found["set"], name).record for name in run.names[:3]]
    assert all(page.promoted for page in pages)


def test_a_transcoder_with_a_skip_and_normalised_inputs_is_mapped_and_its_variance_is_not_made_up(model, tmp_path):
    """What a skip writes is no latent's, and codes of normalised inputs alone do not decode: the share is of what is on."""
    words = map_world.dictionary(model)
    spec = Spec("relu", map_world.WIDTH, words.spec.d_in, words.spec.d_out, inputs=("mlp_in.0",), outputs=("mlp_out.0",),
                skip_first=1, centred=False, skip=True, options={"input_norm": "layer"})  # fmt: skip
    made = make_dictionary(spec, "skip")
    prompts = [[number] for number in model.tokens(" ".join(map_world.WORDS[1:9]))[0]]

    def normed(x):
        return (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-5)

    x = normed(model.capture(prompts, "mlp_in.0").flat("mlp_in.0").flatten(1))
    with torch.no_grad():
        made.W_enc[: len(x)] = x / x.norm(dim=1, keepdim=True)
        made.b_enc.fill_(-1e3)
        made.b_enc[: len(x)] = -0.7 * x.norm(dim=1)
        made.W_dec.copy_(words.W_dec)
        made.W_skip.normal_()
    made.requires_grad_(False)
    run = MapRun(model, find_units(model, dictionary=made), Atlas(tmp_path), plan(tokens=6000, baseline=0))
    _read(run)
    run.reading.read_more(model, ("confirm",), run.units.source)
    part, seen = run.reading.part("confirm"), []
    hook = model.hf.model.layers[0].mlp.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()[0]))
    with torch.no_grad():
        for row in part.rows:
            model.hf(torch.tensor([row.tokens.tolist()]))
    hook.remove()
    read = normed(torch.cat(seen))
    codes = torch.relu(read @ made.W_enc.T + made.b_enc) * torch.from_numpy(np.asarray(part.typical))[:, None]
    assert np.allclose(part.codes.toarray(), codes.numpy(), atol=1e-4) and codes.count_nonzero() > 100
    names = run.reading.units
    found = shares_of(model, run.units, run.reading, names[:4], names)
    squares = (codes**2).sum(0)
    assert found.detail["variance_of"] == "squares of what is on" and "variance_all_latents" not in found.detail
    assert found.variance == pytest.approx(float(squares[:4].sum() / squares.sum()), abs=1e-4) and 0 < found.variance < 1


def test_directions_from_a_file(model, tmp_path):
    table = model.hf.get_input_embeddings().weight.detach()
    np.save(tmp_path / "rows.npy", table[[model.tokens(["w2"])[0][-1], model.tokens(["w5"])[0][-1]]].numpy())
    units = find_units(model, directions=str(tmp_path / "rows.npy"), at="resid_post.0")
    run = MapRun(model, units, Atlas(tmp_path / "atlas"), plan(tokens=8000, baseline=0))
    found = run_map(run)
    assert found["features"]["all"] == 2 and found["features"]["active"] == 2
    assert found["features"]["claimed"] + sum(found["not_claimed"].values()) == 2


def test_a_direction_that_reads_a_word_is_claimed_and_comes_out_again(model, tmp_path):
    """Words as frequent as a direction is on: their rules pass the screen, and claims name the directions."""
    table = model.hf.get_input_embeddings().weight.detach()
    np.save(tmp_path / "rows.npy", table[[model.tokens([f"w{word}"])[0][-1] for word in range(20, 26)]].numpy())
    corpora = []
    for seed, n in ((0, 500), (1, 100)):
        words = np.random.default_rng(seed).choice(map_world.WORDS[13:113], (n, 30))
        corpora.append(Given([" ".join(row) for row in words], f"even {seed}"))
    units = find_units(model, directions=str(tmp_path / "rows.npy"), at="embed")
    run = MapRun(model, units, Atlas(tmp_path / "atlas"), plan(corpus=corpora[0], ood=corpora[1], baseline=0))
    found = run_map(run)
    assert found["features"]["claimed"] > 0
    claim = run.atlas.claims()[0]
    page = next(page for name in run.names if (page := Mapped(run.atlas).page(found["set"], name)).claims)
    assert claim.subject["sites"][0].startswith("embed#") and page.claims[0].statement.startswith("embed#")
    assert replay_claim(run.atlas, claim.id, model, source=source_of(claim.task)).same


def test_interventions_are_scored_where_units_can_be_clamped(model, dictionary, tmp_path, monkeypatch):
    monkeypatch.setitem(sentences.ENCODERS, "minilm", sentences.TfIdf)
    some = plan(tokens=8000, features=6, baseline=0, scorers=("detection", "intervention"))
    run = MapRun(model, find_units(model, dictionary=dictionary), Atlas(tmp_path / "latents"), some)
    found = run_map(run)
    scored = found["scores"]["intervention"]
    assert scored["features"] == found["scores"]["detection"]["features"] > 1 and not found["not_scored"]
    assert 0 <= scored["value"] <= 1
    alone = MapRun(model, run.units, Atlas(tmp_path / "alone"), replace(some, features=(run.names[0],)))
    assert run_map(alone)["scores"]["intervention"]["features"] == 1  # told from its look-alikes
    assert work._changes(run, run.side, []) is None  # a block whose units are all dropped
    heads = run_map(MapRun(model, find_units(model, heads="1"), Atlas(tmp_path / "heads"), some))
    assert "intervention" not in heads["scores"]
    assert heads["not_scored"] == {"intervention: what clamping features does was not measured":
                                   heads["scores"]["detection"]["features"]}  # fmt: skip


def test_each_score_has_that_of_an_untrained_twin_beside_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sentences.ENCODERS, "minilm", sentences.TfIdf)
    model = load_model("glass-en")
    some = plan(corpus="mixed", ood=None, tokens=6000, features=5, baseline=3, scorers=("detection", "intervention"))
    run = MapRun(model, find_units(model, site="mlp_act.1"), Atlas(tmp_path), some)
    found = run_map(run)
    twins = [score for path in (run.folder / "twin_scores").iterdir() for score in json.loads(path.read_text())["scores"]]
    assert {each["scorer"] for each in twins} == {"detection", "intervention"}
    shown = [score for name in run.names for score in Mapped(run.atlas).page(found["set"], name).record.scores]
    assert shown and all(score.untrained == pytest.approx(np.mean([each["value"] for each in twins
                                                                   if each["scorer"] == score.scorer])) for score in shown)
    assert not any(torch.equal(one, other) for one, other in zip(run.twin.model.hf.parameters(), model.hf.parameters(),
                                                                strict=True) if one.dim() > 1)  # fmt: skip


def test_latents_are_spread_over_neurons_as_brute_force_says():
    """Participation ratio of what a latent writes, along what each neuron of its layer writes."""
    model = load_model("glass-en")
    neurons = next(each for name, each in model.hf.named_parameters() if name.endswith("layers.1.mlp.down_proj.weight"))
    made = make_dictionary(Spec("relu", 7, model.dims.d_model, model.dims.d_model, inputs=("resid_post.1",),
                                outputs=("resid_post.1",)), "spread")  # fmt: skip
    torch.nn.init.normal_(made.W_dec, generator=torch.Generator().manual_seed(3))
    units = find_units(model, dictionary=made)
    parts = (made.directions().detach().double() @ neurons.detach().double()).numpy()
    np.testing.assert_allclose(units.spread_over_neurons(model), (parts**2).sum(1) ** 2 / (parts**4).sum(1), rtol=1e-4)
    assert find_units(model, site="mlp_act.1").spread_over_neurons(model) is None
    made.spec = replace(made.spec, inputs=("embed",), outputs=("embed",))  # no MLP has written there yet
    assert find_units(model, dictionary=made).spread_over_neurons(model) is None


def test_an_explainer_sees_what_a_unit_does_by_its_direction_and_when_it_is_set(model, dictionary, tmp_path):
    def answer(body):
        return completion(json.dumps({"explanation": "something"}))

    some = plan(tokens=8000, features=3, baseline=2, scorers=("detection",), prompt="output")
    with judge(answer) as server:
        some = replace(some, explainer=f"openai:m@{server.url}")
        with Asker(Endpoint.named(some.explainer), tmp_path / "calls") as asker:
            run = MapRun(model, find_units(model, dictionary=dictionary), Atlas(tmp_path / "atlas"), some, asker)
            run_map(run)
        asked = [body["messages"][-1]["content"] for body in server.asked if "next" in body["messages"][-1]["content"]]
    told = [text for text in asked if '"promoted when set"' in text]
    assert told and all('"suppressed when set"' in text and '{"promoted":' in text for text in told)
    kept = run.explained[next(name for name in run.names if run.explained[name].output)].output
    assert kept["method"] == "direct" and kept["clamped"]["method"] == "clamped" and kept["clamped"]["detail"]["kl"] >= 0
    shown = {run.reading.part("shown").names[number] for number in run.reading.part("shown").documents}
    assert kept["clamped"]["documents"] and set(kept["clamped"]["documents"]) <= shown


def test_words_alone_are_not_claimed(mapped):
    run, _, _ = mapped
    (screened,) = work.screen([Explanation(run.names[0], "likes w0", "openai:any/top/1")], run.host, run.texts)
    assert screened.why_not == WORDS


def test_some_features_without_the_model(mapped):
    run, _, _ = mapped
    (one,) = explain_some(run.folder, ["3"])
    assert one == run.explained[run.reading.units[3]]
    scores, skipped = score_some(run.folder, ["3"], ("detection",))
    assert len(scores) == 1 and scores[0].value > 0.9 and not skipped
    with pytest.raises(UsageError, match="unit"):
        explain_some(run.folder, ["nothing"])
    with pytest.raises(UsageError, match="often enough"):
        score_some(run.folder, [str(map_world.WIDTH - 1)], ("detection",))


def test_two_maps_are_compared(mapped, model, dictionary, tmp_path):
    run, _, _ = mapped
    moved = map_world.dictionary(model, "moved", order=[5, 4, 3, 2, 1, 0, 6, 7, 8, 9, 10])
    other = MapRun(model, find_units(model, dictionary=moved), Atlas(tmp_path), plan(features=12, baseline=0))
    other.stages.run("read", other.identity, lambda: work._read(other))
    found = compare(run, other)
    pairs = {(int(each.one.split(".")[-1]), int(each.other.split(".")[-1])) for each in found.same}
    assert pairs == {(5, 0), (4, 1), (3, 2), (2, 3), (1, 4), (0, 5), (6, 6), (7, 7), (8, 8), (9, 9), (10, 10)}
    assert [name.split(".")[-1] for name in found.only_one] == ["11"] and found.only_other == ()


# mistakes ----------------------------------------------------------------------------------------


def test_mistakes_are_named(model, tmp_path):
    with pytest.raises(UsageError, match="one of dictionary, site, heads and directions"):
        find_units(model, site="mlp_act.1", heads="1")
    with pytest.raises(UsageError, match="assay dictionary"):
        find_units(model)
    with pytest.raises(UsageError, match="--at"):
        find_units(model, directions="x.npy")
    (tmp_path / "bad.npy").write_text("no numbers")
    with pytest.raises(UsageError, match="cannot be read"):
        find_units(model, directions=str(tmp_path / "bad.npy"), at="embed")
    np.save(tmp_path / "words.npy", np.array(["a", "b"]))
    with pytest.raises(UsageError, match="cannot be read"):
        find_units(model, directions=str(tmp_path / "words.npy"), at="embed")
    with pytest.raises(UsageError, match="dictionary"):
        find_dictionary("smollm2-135m", "no such")
    for alpha in (0.0, -1.0, 0.5, float("nan")):
        with pytest.raises(UsageError, match="alpha"):
            plan(alpha=alpha)
    with pytest.raises(UsageError, match="scorers"):
        plan(scorers=())
    with pytest.raises(UsageError, match="nonsense"):
        plan(explainer="openai:m@http://127.0.0.1:9", prompt="nonsense")
    late = MapRun(model, find_units(model, site="mlp_act.1"), Atlas(tmp_path / "none"), plan(features=("mlp_act.1[0]", "x")))
    with pytest.raises(UsageError, match="features"):
        run_map(late)
    assert not (tmp_path / "none").exists()  # nothing was read
    with pytest.raises(UsageError, match="features"):
        plan(features=0)
    with pytest.raises(UsageError, match="scorer"):
        plan(scorers=("guessing",))
    with pytest.raises(UsageError, match="endpoint"):
        run_map(MapRun(model, find_units(model, site="mlp_act.1"), Atlas(tmp_path), plan(explainer="openai:m@http://x")))


def test_a_damaged_stage_file_is_named(tmp_path):
    (tmp_path / "stages.json").write_text("{")
    with pytest.raises(StoreError, match="Remove it"):
        Stages(tmp_path)


def test_a_stage_runs_again_for_other_inputs_and_counts_its_seconds(tmp_path):
    stages, ran = Stages(tmp_path), []

    def do(value):
        return lambda: ran.append(value) or {"value": value}

    assert stages.run("a", 1, do(1)) == stages.run("a", 1, do(2)) == {"value": 1}
    assert Stages(tmp_path).run("a", 2, do(3)) == {"value": 3} and ran == [1, 3]
    with pytest.raises(ZeroDivisionError):
        stages.run("b", 1, lambda: 1 / 0)
    assert set(Stages(tmp_path).seconds) == {"a", "b"}  # what an interrupted stage took is counted
    assert Stages(tmp_path).run("b", 1, do(4)) == {"value": 4}


# the command -------------------------------------------------------------------------------------


@pytest.fixture
def typed(model, dictionary, tmp_path, monkeypatch):
    from assay.cli import common

    monkeypatch.setattr(common.Common, "load", lambda self, name, dtype, bos: model)
    (tmp_path / "texts.txt").write_text("\n\n".join(d.text for d in map_world.corpus().documents()))
    save(dictionary, tmp_path / "planted")
    return lambda *words: CliRunner().invoke(cli, [*words, "--atlas", str(tmp_path / "atlas"), "--quiet"])


def test_the_command_and_its_json(typed, tmp_path):
    result = typed("map", "tiny", "--dictionary", str(tmp_path / "planted"), "--corpus", str(tmp_path / "texts.txt"),
                   "--ood", "same", "--tokens", "8000", "--features", "6", "--baseline", "0",
                   "--json", str(tmp_path / "out.json"))  # fmt: skip
    assert result.exit_code == 0, result.output
    assert result.output.startswith("Unexplained") and "assay app" in result.output
    found = json.loads((tmp_path / "out.json").read_text())
    assert {"model", "dictionary", "features", "dropped", "shares", "unexplained", "scores", "cost", "seconds"} <= set(found)
    assert open_corpus(tmp_path / "texts.txt").digest
    name = Mapped(tmp_path / "atlas").set().id
    assert found["set"] == name
    unit = next(Mapped(tmp_path / "atlas").records(name)).name
    explained = typed("explain", unit)
    assert explained.exit_code == 0 and explained.output.startswith(unit)
    scored = typed("score", unit, "--scorers", "detection", "--json", "-")
    assert scored.exit_code == 0 and json.loads(scored.output)["scores"][0]["scorer"] == "detection"


@pytest.mark.parametrize(("words", "said"), [
    (("map", "tiny", "--explainer", "magic"), "lexical, or openai:MODEL@URL"),
    (("map", "tiny", "--site", "mlp_act.1", "--heads", "0"), "one of dictionary"),
    (("explain", "x.1"), "assay map MODEL"),
    (("map", "tiny", "--alpha", "0"), "alpha"),
    (("map", "tiny", "--explainer", "openai:m@https://127.0.0.2.example.com/v1"), "--dry-run"),
])  # fmt: skip
def test_mistakes_of_the_command(typed, words, said):
    result = typed(*words)
    assert result.exit_code != 0 and said in str(result.exception)


def test_a_dry_run_asks_nothing(typed, tmp_path):
    result = typed("map", "tiny", "--dictionary", str(tmp_path / "planted"), "--corpus", str(tmp_path / "texts.txt"),
                   "--ood", "same", "--tokens", "8000", "--features", "3", "--price-in", "1", "--scorers", "detection",
                   "--explainer", "openai:m@http://127.0.0.1:9", "--dry-run", "--json", "-")  # fmt: skip
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert found["at_most"]["calls"] >= 3 and found["at_most"]["money"] > 0
    assert Atlas(tmp_path / "atlas").tally()["stated"] == 0


# measured again ----------------------------------------------------------------------------------


def test_a_claim_of_a_map_comes_out_again_when_the_model_reads_the_corpus_anew(mapped, model):
    run, _, _ = mapped
    claim = next(each for each in run.atlas.claims() if run.atlas.verdict(each.id).verdict == "supported")
    before, files = run.atlas.evidence(claim.id), {path: path.stat().st_mtime_ns for path in run.folder.rglob("*.safetensors")}
    found = replay_claim(run.atlas, claim.id, model, source=source_of(claim.task))
    assert found.same and not found.moved and found.before == found.again.verdict == "supported"
    assert len(before.gates) == len(found.again.gates) and "corpus.precision" in str(found.again.gates)
    assert {path: path.stat().st_mtime_ns for path in run.folder.rglob("*.safetensors")} == files  # what is kept stays


def test_codes_that_were_kept_take_no_part_when_it_is_measured_again(mapped, model, tmp_path):
    """Kept codes are spoilt, rows and units are not: a replay reads the model and comes out as before."""
    run, _, _ = mapped
    kept = {path: path.read_bytes() for path in (run.folder / "reading").rglob("codes-*.safetensors")}
    claim = run.atlas.claims()[0]
    try:
        for path in kept:
            path.write_bytes(b"spoilt")
        assert replay_claim(run.atlas, claim.id, model, source=source_of(claim.task)).same
    finally:
        for path, content in kept.items():
            path.write_bytes(content)
    with pytest.raises(ReproduceError, match="digest"):
        replay_claim(run.atlas, claim.id, untrained_model(model, "all", 3), source=source_of(claim.task))


def test_a_test_of_a_locked_claim_spends_its_ticket_before_sealed_text_is_read(mapped, model, monkeypatch):
    """`assay claim test` on a claim of a corpus that was stated and locked: the same road, on whole documents."""
    run, _, _ = mapped
    rule = {"type": "prefix", "any": [[{"is": "token", "of": [" w3", " w70"]}]]}
    source = CorpusSource(run.texts, rule)
    wanted = Wanted({"feature": run.units.feature(run.reading.units[3]), "rule": rule}, source, Statement("explains"))
    (claim,) = state_many(run.atlas, run.host, [wanted], settings_for(1, 0.05, 0))
    seen, real = {}, Reading.read_more

    def read(self, model, parts, *given):
        tickets = [entry["kind"] for entry in run.atlas.entries_of(claim)].count("ticket")
        seen.update(dict.fromkeys(parts, tickets))
        return real(self, model, parts, *given)

    monkeypatch.setattr(Reading, "read_more", read)
    verdict = tested_again(run.atlas, claim, model)
    assert seen == {"tune": 0, "confirm": 1, "ood": 1}
    assert "corpus.precision" in {gate["name"] for gate in verdict.gates}
    assert verdict.verdict != "supported"  # it is off at w70


def test_units_are_made_again_from_what_a_reading_keeps(model, tmp_path):
    rows = torch.randn(3, model.dims.d_model, generator=torch.Generator().manual_seed(0))
    dictionary = map_world.dictionary(model)
    find_units(model, dictionary=dictionary)
    kinds = {"latent": of_dictionary(dictionary, [1, 5]), "neuron": of_neurons(model, "mlp_act.1", [3, 7], -1),
             "two sites": of_neurons(model, "mlp_act.0,mlp_act.2"), "stream": of_neurons(model, "resid_post.1", [2, 9]),
             "head": of_heads(model, "attn_out.1"), "direction": of_directions(model, "resid_post.0", rows)}  # fmt: skip
    for name, units in kinds.items():
        plan = ReadPlan(tokens=3000, context=32, parts=("shown",))
        read = read_features(model, units, map_world.corpus(), tmp_path / name, plan)
        again = open_reading(read.folder).anew(model)
        assert again.folder != read.folder and again.digest == read.digest and again.units == read.units, name
        one, two = read.part("shown"), again.read_more(model, ("shown",)).part("shown")
        assert (one.codes != two.codes).nnz == 0 and one.codes.nnz > 0, name
    place = again.folder
    del again, two
    assert not place.exists()  # gone with the reading
    close_latents(dictionary.name)
    with pytest.raises(SiteError, match="no dictionary"):
        open_reading(tmp_path / "latent").anew(model)
    find_units(model, dictionary=dictionary)


# concepts ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def concepts(tmp_path_factory):
    """Texts of random words: one concept is that the last is w5 (w6 is its near miss), the other has labels by lot."""
    draw, folder, rows = random.Random(0), tmp_path_factory.mktemp("concepts"), []
    for group in range(48):
        for label, last in ((1, "w5"), (1, "w5"), (0, "w6"), (0, f"w{draw.randrange(20, 140)}")):
            words = [f"w{draw.randrange(12, 150)}" for _ in range(14)]
            rows.append({"text": " ".join([*words, last]), "label": label, "group": f"g{group}", "near_miss": last == "w6"})
    (folder / "five.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lots = [{**row, "label": draw.randrange(2), "near_miss": False} for row in rows]
    (folder / "lots.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lots))
    return str(folder / "five.jsonl"), str(folder / "lots.jsonl")


def test_the_unit_that_tells_a_concept_is_claimed_to_represent_it_and_no_other(mapped, model, concepts):
    run, _, _ = mapped
    again = MapRun(model, run.units, run.atlas, run.plan, concepts=concepts)
    first = run_map(again)
    told, lots = first["concepts"]
    assert told["feature"] == run.reading.units[5] and told["auroc"] == 1.0 and not told["why_not"]
    assert lots["claim"] == "" and lots["auroc"] < 0.75 and "0.75" in lots["why_not"]
    claim, verdict = run.atlas.claim(told["claim"]), run.atlas.verdict(told["claim"])
    assert claim.kind == "represents" and claim.subject["sites"] == [told["feature"]]
    assert verdict.verdict == told["verdict"] and "exploratory" not in verdict.qualifiers
    gates = {gate["name"]: gate for gate in verdict.gates}
    assert gates["detection"]["passed"] and gates["near_miss"]["passed"]
    assert claim.id in {each.id for each in Mapped(run.atlas).page(first["set"], told["feature"]).claims}
    entries = run.atlas.entry_count()
    assert run_map(MapRun(model, run.units, run.atlas, run.plan, concepts=concepts)) == first
    assert run.atlas.entry_count() == entries  # nothing is stated or tested twice


def test_area_under_the_curve_is_that_of_scikit_learn():
    from sklearn.metrics import roc_auc_score

    draw = np.random.default_rng(0)
    values, labels = draw.integers(0, 4, (60, 7)).astype(np.float32), draw.integers(0, 2, 60)
    wanted = [roc_auc_score(labels, column) for column in values.T]
    assert np.allclose(aurocs(values, labels.astype(bool)), wanted)
    assert aurocs(np.ones((3, 2)), np.ones(3, bool)).tolist() == [0.5, 0.5]


def test_topics_are_looked_for_where_they_are_asked_for_and_name_another_map():
    plain, more = (MapPlan(map_world.corpus(), None, topics=topics) for topics in (False, True))
    assert {kind.name for kind in more.lexical.chosen} - {kind.name for kind in plain.lexical.chosen} == {"topic"}
    assert "topics" not in plain.record() and more.record() == {**plain.record(), "topics": True}


def test_concepts_that_cannot_be_claimed_are_named(mapped, model, tmp_path):
    run, _, _ = mapped
    heads = MapRun(model, find_units(model, heads="1"), Atlas(tmp_path), run.plan, concepts=("animals",))
    with pytest.raises(UsageError, match="heads"):
        run_map(heads)
    (record,) = run_map(MapRun(model, run.units, run.atlas, run.plan, concepts=("animals",)))["concepts"]
    assert not record["claim"] and record["why_not"]  # this tokenizer has none of its words
    assert names_of("bundled, my.jsonl,animals") == ("animals", "people", "plurals", "tense", "my.jsonl")


# as a verb ---------------------------------------------------------------------------------------


class Stopped(Report):
    """Asked to stop at the first step of a kind."""

    def __init__(self, at):
        self.at, self.told = at, []

    def __call__(self, step, done=0, of=0):
        self.told.append(step)
        if step == self.at:
            raise Cancelled


def test_the_map_is_a_verb_that_goes_on_where_it_was_stopped(model, tmp_path, monkeypatch):
    corpora = {"corpus": map_world.corpus(), "ood": map_world.corpus(1, 80, name="other")}
    workspace = Workspace(tmp_path / "atlas", role="intervene", loaded=model)
    with pytest.raises(MissingError, match="mixed"):
        run_verb(workspace, "map", {"site": "mlp_act.1", "corpus": "/etc"})
    monkeypatch.setattr("assay.app.verbs.map._corpus", lambda argument, name: corpora[argument])
    given = {"site": "mlp_act.1", "tokens": 4000, "features": 4, "baseline": 0}
    with pytest.raises(Cancelled):
        run_verb(workspace, "map", given, Stopped("scoring"))
    assert workspace.mapped.sets() == []
    rest = Stopped("never")
    done = run_verb(workspace, "map", given, rest)
    assert "reading shown" not in rest.told and "scoring" in rest.told
    (made,) = workspace.mapped.sets()
    assert done["record"]["set"] == made.id and done["record"]["features"]["mapped"] == made.features == 4
    shown = {block["id"]: block for block in done["blocks"]}
    shares = {item["share"] for item in shown["map-unexplained"]["items"]}
    assert shares == {share for share in done["record"]["unexplained"].values() if share is not None}


def test_a_claim_is_measured_again_where_its_atlas_was_moved_to(mapped, model, tmp_path, monkeypatch):
    """On a machine that never saw the map: its readings are found in the folder of the atlas."""
    run, _, _ = mapped
    moved, claim = Atlas(shutil.copytree(run.atlas.path, tmp_path / "moved")), run.atlas.claims()[0]
    monkeypatch.setattr(whereabouts, "cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setattr(corpus_reading, "_FOUND", {})
    with pytest.raises(ReproduceError, match="neither where it was last seen"):
        source_of(claim.task)
    assert replay_claim(moved, claim.id, model).same
    assert whereabouts.last_seen(run.reading.digest) == (moved.path / "maps" / run.folder.name / "reading").resolve()
