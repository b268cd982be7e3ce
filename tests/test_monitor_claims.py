"""A saved monitor as a claim, from file to ledger; and one of latents, through every command."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from assay.cli.claim import claim as claims
from assay.cli.monitor import monitor as command
from assay.cli.monitor_claim import _bound
from assay.cli.opened import open_dictionary
from assay.errors import TaskError, UsageError
from assay.evidence import dictionaries
from assay.evidence.hosts import ModelHost
from assay.evidence.kinds import KINDS
from assay.evidence.memory import MemoryStore
from assay.evidence.monitors import MonitorHost, Saved, monitor_of, record_of
from assay.evidence.run import Settings, Statement, state_claim, test_claim
from assay.features.opened import close_latents
from assay.features.sentences import TfIdf
from assay.monitor.files import load_monitor, save_monitor
from assay.monitor.reading import reply_scores, score
from assay.monitor.records import Head, Monitor, bindings, data_digest
from assay.monitor.talks import texts_as_talks
from assay.monitor.thresholds import Threshold
from assay.monitor.units import POOLINGS, Pooling
from assay.records import Example
from assay.testing.score_worlds import monitored_world
from conftest import tiny
from judge_server import completion, judge

pytestmark = pytest.mark.whole

SIZES = {"tune": 460, "confirm": 480, "ood": 400}
EXPIRES = {"created": "2026-01-01T00:00:00+00:00", "expires": "2999-01-01T00:00:00+00:00"}


def test_a_text_is_read_as_monitors_read_it(glass):
    """All poolings, over two sites: the numbers of `score`, and the same ones after the record."""
    draw, texts = np.random.default_rng(0), ["The girl said that it was", "Go", "A man had a hat and a dog"]
    heads = tuple(Head(f"resid_post.{layer}", draw.standard_normal(128) / 11, 0.2, draw.standard_normal(128) / 11)
                  for layer in (0, 2))  # fmt: skip
    data = ModelHost(glass).load([Example(text, 0, f"t{n}") for n, text in enumerate(texts)])
    for name in POOLINGS:
        made = Monitor("m", "w", heads, Pooling(name, 2), bindings(glass))
        again = monitor_of(json.loads(json.dumps(record_of(made))))
        wanted = reply_scores(score(glass, made, texts_as_talks(glass, texts)))
        controls = reply_scores(score(glass, replace(made, pooling=made.pooling.of_controls()), texts_as_talks(glass, texts)))
        read = MonitorHost(ModelHost(glass), [again, made]).read("", data)
        assert read.numpy() == pytest.approx(np.stack([wanted, controls], 1), abs=1e-5), name


def planted(towards, threshold=None, pooling="mean", **world):
    """The verdict on a monitor of two heads that sum to `towards` in a world of one token a text."""
    made = monitored_world(0, **world)
    axis = made.axis if towards is None else towards
    heads = (Head("resid_post.0", 3 * axis, 1.0, axis), Head("resid_post.1", -axis, -1.0, axis))
    watch = Monitor("m", "the state", heads, Pooling(pooling), {})
    store = MemoryStore()
    claim, _ = state_claim(store, made.world, made.source, {"monitor": watch, "threshold": threshold},
                           statement=Statement("detects"), settings=Settings(**SIZES, draws=19))  # fmt: skip
    return store, claim, test_claim(store, claim.id, made.world, source=made.source)


@pytest.mark.whole
@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_a_planted_monitor_is_supported_by_the_battery(pooling):
    store, claim, verdict = planted(None, pooling=pooling)
    assert (verdict.verdict, verdict.reasons) == ("supported", ())
    assert [entry["kind"] for entry in store.entries()].count("state") == 1
    assert claim.subject["sites"][0].startswith("resid_post.0#") and "monitor m (" in claim.statement


@pytest.mark.whole
def test_a_monitor_of_another_direction_is_refuted_and_one_of_words_is_lexical():
    away = np.random.default_rng(1).standard_normal(32)
    assert planted(away)[2].verdict == "refuted"
    words = planted(None, reads="said")[2]
    assert words.verdict != "supported" and "lexical" in words.reasons


@pytest.mark.whole
def test_controls_know_nothing_of_the_labels_and_twins_are_fitted_anew():
    made = monitored_world(0)
    tune = made.world.load(made.source.items("tune", 460, 0))
    watch = Monitor("m", "w", (Head("resid_post.0", made.axis, 0.0),), Pooling(), {})
    subject = KINDS.get("detects").subject(made.world, {"monitor": watch})
    saved, member = Saved(made.world, subject, tune, 0, 20), torch.tensor(tune.labels) == 1
    values = saved.host.read("", tune)
    gaps = (values[member].mean(0) - values[~member].mean(0)) / values.std(0)
    assert float(gaps[0]) > 1.2 and float(gaps[1:].abs().max()) < 0.5
    twin, scorer = saved.twin(made.world.untrained("all", 1))
    drawn = scorer(twin.read("", tune))
    assert float(drawn[member].mean() - drawn[~member].mean()) > 0  # it learned the noise of tune, as a probe would


def test_texts_it_has_seen_do_not_judge_it():
    kind, items = KINDS.get("detects"), [Example(f"text {n}", n % 2, f"g{n}") for n in range(8)]
    watch = Monitor("m", "w", (Head("resid_post.0", np.ones(3), 0.0),), Pooling(), {},
                    card={"texts": [data_digest(["text 3"])], "calibration_texts": [data_digest(["text 4"])]})  # fmt: skip
    subject = kind.subject(None, {"monitor": watch})
    with pytest.raises(TaskError, match="confirm: the monitor was fitted or calibrated on 2 of its 8"):
        kind.check_texts(subject, "confirm", items)
    kind.check_texts(subject, "tune", items)
    kind.check_texts(subject, "ood", items[5:])
    with pytest.raises(UsageError, match="record of a saved monitor"):
        kind.subject(None, {"monitor": {"name": "m"}})


@pytest.fixture(scope="module")
def told(glass, tmp_path_factory):
    """A monitor of the embedding of one word, in a file, and a file of texts with it and without."""
    folder, word = tmp_path_factory.mktemp("claims"), glass.tokens(" was")[0][-1]
    rows = glass.hf.get_input_embeddings().weight.detach().float()
    away = (rows[word] - rows.mean(0)).numpy()
    high = float(rows[word].numpy() @ away)
    made = Monitor("was", "the word was", (Head("resid_pre.0", away, -0.7 * high),), Pooling("max"),
                   {**bindings(glass), **EXPIRES}, {"reply": Threshold("reply", 0.0, 0.01, 300, 0, 0.0, 0.01)})  # fmt: skip
    save_monitor(made, folder / "was.safetensors")
    draw, words = np.random.default_rng(0), ["girl", "man", "dog", "door", "hat", "road", "ship", "king", "bird", "tea"]
    lines = []
    for number in range(240):
        one, two, three = draw.choice(words, 3)
        text = f"The {one} and the {two} {'was' if number % 3 == 0 else 'had'} {three} {number}"
        lines.append(json.dumps({"text": text, "label": int(number % 3 == 0), "group": f"g{number}"}))
    (folder / "texts.jsonl").write_text("\n".join(lines))
    return folder


@pytest.mark.whole
def test_the_command_states_tests_and_records(told, monkeypatch):
    monkeypatch.chdir(told)
    common, run = ["--quiet", "--json", "-", "--atlas", "atlas"], CliRunner().invoke
    asked = ["claim", "was.safetensors", "glass-en", "texts.jsonl", "--sesoi", "false_alarms=0.9", "--set", "draws=19"]
    done = run(command, [*asked, *common])
    assert done.exit_code == 0, done.output
    verdict = json.loads(done.stdout)
    assert verdict["kind"] == "detects" and verdict["verdict"] == "refuted"  # an untrained model finds a word as well
    gates = {gate["name"]: gate for gate in verdict["gates"]}
    assert gates["recall"]["estimate"] == gates["false_alarms"]["estimate"] == 1.0 and gates["untrained"]["estimate"] < 0.05
    again = json.loads(run(command, [*asked, *common]).stdout)  # it is tested once
    assert again == verdict
    assert run(command, [*asked, "--require", "supported", *common]).exit_code == 1
    (told / "was.safetensors").rename(told / "gone.safetensors")  # a claim keeps what it is about
    assert run(claims, ["verify", "--atlas", "atlas", "--quiet"]).exit_code == 0
    replayed = run(claims, ["replay", verdict["claim"], *common])
    (told / "gone.safetensors").rename(told / "was.safetensors")
    assert replayed.exit_code == 0 and json.loads(replayed.stdout)["same"], replayed.output
    locked = run(command, [*asked, "--quantifier", "usually", "--state-only", *common])
    assert set(json.loads(locked.stdout)) == {"claim", "statement", "lock"}


def test_a_claim_about_another_model_is_refused(told):
    with pytest.raises(UsageError, match="fitted with another model"):
        _bound(None, tiny("llama"), load_monitor(told / "was.safetensors"))  # type: ignore[arg-type]


# from fit to drift, on latents -------------------------------------------------------------------

WORDS = ["girl", "man", "dog", "door", "hat", "road", "ship", "king", "bird", "tea", "queen", "garden", "letter", "window"]


def sentences(seed, n, labelled=True):
    draw, lines = np.random.default_rng(seed), []
    for number in range(n):
        one, two, three = draw.choice(WORDS, 3)
        label = number % 2 if labelled else 0
        text = f"The {one} and the {two} {'was' if label else 'had'} {three} {draw.integers(10**6):06d}"
        lines.append({"text": text, "label": label, "group": f"g{seed} {number}"})
    return lines


def written(path, lines):
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return str(path)


@pytest.fixture(scope="module")
def sae(glass, tmp_path_factory):
    """A dictionary file of resid_pre.0: latent 0 is the embedding of one word, the others are random."""
    folder, d = tmp_path_factory.mktemp("sae") / "words", glass.dims.d_model
    rows = glass.hf.get_input_embeddings().weight.detach().float()
    decoder = torch.nn.functional.normalize(torch.randn(24, d, generator=torch.Generator().manual_seed(0)), dim=1)
    decoder[0] = torch.nn.functional.normalize(rows[glass.tokens(" was")[0][-1]] - rows.mean(0), dim=0)
    folder.mkdir()
    config = {"architecture": "standard", "d_in": d, "d_sae": 24, "dtype": "float32", "device": "cpu",
              "apply_b_dec_to_input": True, "normalize_activations": "none", "reshape_activations": "none",
              "metadata": {"hook_name": "blocks.0.hook_resid_pre", "sae_lens_version": "6.0.0"}}  # fmt: skip
    (folder / "cfg.json").write_text(json.dumps(config))
    save_file({"W_enc": decoder.T.contiguous(), "b_enc": torch.zeros(24), "W_dec": decoder, "b_dec": torch.zeros(d)},
              folder / "sae_weights.safetensors")  # fmt: skip
    return folder


@pytest.mark.whole
def test_a_monitor_of_latents_from_fit_to_drift(glass, sae, tmp_path, monkeypatch):
    dictionary, out = open_dictionary(str(sae)), str(tmp_path / "m.safetensors")
    name = dictionary.name
    known, benign = written(tmp_path / "known.jsonl", sentences(1, 40)), sentences(2, 120, labelled=False)
    fresh = written(tmp_path / "fresh.jsonl", sentences(3, 40))

    def run(*words, fails=False):
        done = CliRunner().invoke(command, [*words, "--quiet", "--json", "-", "--atlas", str(tmp_path / "atlas")])
        assert (done.exit_code != 0) == fails, done.output
        return done.exception if fails else json.loads(done.stdout)

    made = run("fit", "glass-en", known, "--site", f"latent.{name}", "--dictionary", str(sae), "--pooling", "max", "--benign",
               written(tmp_path / "benign.jsonl", benign), "--rate", "0.05", "--unit", "reply", "--out", out)  # fmt: skip
    assert made["state"] == "calibrated" and made["sites"] == ["resid_pre.0"] and set(made["bound"]["dictionaries"]) == {name}
    close_latents(name)  # as in another program: the dictionary is found again where it was last seen
    monkeypatch.delitem(dictionaries._OPEN, dictionary.digest)
    heads = load_monitor(out).heads
    assert heads[0].weight.argmax() == 0 and len(heads) == 1  # the latent of the word

    # a sentence encoder beside it: whatever it is, words and it are measured on the same texts
    asked = []
    monkeypatch.setattr("assay.monitor.evaluate.sentence_encoder", lambda name: (asked.append(name), TfIdf())[1])
    beside = run("eval", out, "glass-en", fresh, "--train", known)
    assert asked == ["minilm"] and beside["recall"]["reply"]["hits"] > 10
    assert beside["baselines"]["sentence encoder"]["auroc"] > 0.9 < beside["auroc"][0]  # one word tells
    assert "sentence encoder" not in run("eval", out, "glass-en", fresh, "--train", known, "--encoder", "none")["baselines"]

    # a language model that rewords: the word goes, so the monitor is evaded; one that is not there is said
    def reword(body):
        text = body["messages"][-1]["content"].rpartition("\n")[2]
        return completion(text.replace(" was ", " had "))

    with judge(reword) as server:
        found = run("selftest", out, "glass-en", fresh, "--paraphraser", f"some@{server.url}")
        assert len(server.asked) == 40 and server.asked[0]["model"] == "some"
    attack = next(each for each in found if each["attack"] == "reworded by a language model")
    assert attack["rate"]["hits"] == attack["rate"]["n"] == beside["recall"]["reply"]["hits"]
    assert run("show", out)["card"]["evasion"]["reworded by a language model"]["hits"] == attack["rate"]["hits"]
    gone = run("selftest", out, "glass-en", fresh, "--paraphraser", f"some@{server.url}", fails=True)
    assert isinstance(gone, UsageError) and "--paraphraser: no answer" in str(gone)
    assert "latents" in str(run("selftest", out, "glass-en", fresh, "--search", "1", fails=True))

    # the same kind of texts does not disarm it, another kind does, and the file says so from then on
    same = run("drift", out, "glass-en", written(tmp_path / "same.jsonl", sentences(4, 60, labelled=False)))
    assert not same["drifted"] and same["state"] == "calibrated"
    other = [{"text": f"{3 * number} + {number} = {4 * number}; " * 3} for number in range(60)]
    moved = run("drift", out, "glass-en", written(tmp_path / "other.jsonl", other))
    assert moved["drifted"] and moved["state"].startswith("uncalibrated: drift in ")
    assert run("show", out, "--model", "glass-en")["state"] == moved["state"]
    assert "window" in str(run("drift", out, "glass-en", written(tmp_path / "few.jsonl", other[:5]), fails=True))
