"""`assay steer` from a file to a verdict, pictures and a direction; interrupted, run again, and asked for nonsense."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

from assay import load_model
from assay.cli.main import cli
from assay.errors import AssayError, UsageError
from assay.steer.directions import from_vector
from assay.steer.files import load_direction, save_direction
from assay.testing.effect_models import FILLERS, MOODS, TOPICS, neutral_texts, part_direction, planted_effects

pytestmark = pytest.mark.whole
SMALL = ("--file", "mood.jsonl", "--texts", "texts.txt", "--judge", "words", "--max-new-tokens", "8", "--prompt", "f1 f2 f3",
         "--strength", ".05", "--strength", ".1", "--strength", ".2", "--strength", ".3", "--quiet")  # fmt: skip
SITE = ("--site", "resid_post.0")
FAST = ("--quick", "--no-side-effects", "--draws", "5")


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The planted model as a directory, its mood as a task and as labelled texts, ordinary texts, three directions."""
    place, rng = tmp_path_factory.mktemp("steer"), random.Random(0)
    model = planted_effects()
    model.hf.save_pretrained(place / "model")
    model.tokenizer.save_pretrained(place / "model")
    pairs, texts = [], []
    for number in range(60):
        for _ in range(3):
            words = rng.sample(FILLERS, 6)
            words[3] = rng.choice(TOPICS[1 if rng.random() < 0.7 else -1])
            sides = [[*words[:2], rng.choice(MOODS[sign]), *words[2:], "ask"] for sign in (1, -1)]
            pairs.append({"clean": " ".join(sides[0]), "corrupted": " ".join(sides[1]), "answer": " yes", "foil": " no",
                          "template": f"t{number}"})  # fmt: skip
            texts += [{"text": " ".join(side), "label": label, "group": f"g{number}"} for side, label in zip(sides, (1, 0))]
    lines(place / "mood.jsonl", pairs)
    lines(place / "texts.jsonl", texts)
    (place / "texts.txt").write_text("\n".join(neutral_texts(28)))
    for name, part in (("mood", "mood"), ("copy", "copy")):
        save_direction(from_vector(model, part_direction(part), "resid_post.0"), place / f"{name}.safetensors")
    return place


def run(folder, *given):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return CliRunner().invoke(cli, ["steer", *given])


def record_of(folder, *given):
    done = run(folder, *given, "--json", "-")
    if done.exception is not None:
        raise done.exception
    return json.loads(done.stdout)


def refused(folder, *given):
    done = run(folder, *given)
    assert isinstance(done.exception, AssayError) and done.exception.exit_code == 2, (done.output, done.exception)
    return str(done.exception)


@pytest.fixture(scope="module")
def steered(folder):
    more = ("--atlas", "atlas", "--save", "out.safetensors")
    return record_of(folder, "model", "--direction", "mood.safetensors", *SMALL, *more)


def test_a_planted_direction_steers_and_the_claim_is_tested(folder, steered):
    assert steered["outcome"] == "hit" and steered["strength"] > 0 and steered["claim"]["verdict"] == "supported"
    assert steered["claim"]["kind"] == "steers" and "exploratory" not in steered["claim"]["qualifiers"]
    assert steered["controls"]["percentile"] >= 0.99 and len(steered["controls"]["random"]) == 100
    assert [point["strength"] for point in steered["confirm"]["points"]] == [-0.3, -0.2, -0.1, -0.05, 0, 0.05, 0.1, 0.2, 0.3]
    assert {"model", "behaviour", "direction", "norm", "effect", "tune", "samples", "plan", "passport"} <= set(steered)
    assert len(steered["effect"]["items"]) == steered["confirm"]["n_items"] > 8
    sample = steered["samples"][0]
    assert sample["prompt"] == "f1 f2 f3" and len({sample["unsteered"], sample["steered"]}) >= 1
    files = {path.rpartition(".")[2] for path in steered["files"]}
    assert files == {"html", "png", "svg"} and all((folder / path).stat().st_size > 2000 for path in steered["files"])
    page = (folder / next(path for path in steered["files"] if path.endswith(".html"))).read_text()
    assert "Dose and response" in page and "Side by side" in page and "<script" not in page
    again = load_direction(folder / "out.safetensors")
    assert again.digest == load_direction(folder / "mood.safetensors").digest


def test_the_claim_measures_damage_on_texts_that_nothing_was_chosen_on(folder, steered):
    from assay.atlas.store import Atlas

    told = list(dict.fromkeys((folder / "texts.txt").read_text().splitlines()))
    assert Atlas(folder / "atlas").plan(steered["claim"]["claim"]).settings["options"]["neutral"] == told[1::2]


def test_the_numbers_of_confirm_are_read_after_the_claim(folder, steered):
    from assay.atlas.store import Atlas

    kinds = [(entry["kind"], entry["body"].get("what", "")) for entry in Atlas(folder / "atlas").entries()]
    names = [kind for kind, _ in kinds]
    tested = max(place for place, kind in enumerate(names) if kind == "verdict")
    looked = [place for place, (kind, what) in enumerate(kinds) if kind == "look" and what.startswith("steer report")]
    assert looked and min(looked) > tested
    assert any(kind == "look" and what.startswith("steer mood.jsonl") for kind, what in kinds[:tested])


def test_the_same_command_again_states_no_second_claim(folder, steered):
    again = record_of(folder, "model", "--direction", "mood.safetensors", *SMALL, "--atlas", "atlas")
    assert again["claim"]["claim"] == steered["claim"]["claim"] and again["claim"]["stated_before"]
    assert again["confirm"] == steered["confirm"] and again["controls"] == steered["controls"]


def test_a_direction_that_nothing_reads_is_a_miss(folder):
    found = record_of(folder, "model", "--direction", "copy.safetensors", *SMALL, "--atlas", "copy", "--no-claim",
                      "--no-side-effects")  # fmt: skip
    assert found["outcome"] == "no effect" and found["reasons"] and found["claim"]["verdict"] == "not stated"
    assert found["other_tasks"] is None and any("--no-side-effects" in note for note in found["notes"])


def test_a_learned_direction_is_tried_at_the_dose_it_was_trained_with(folder):
    typed = [word for word in SMALL if word != "--strength" and not word.startswith(".")]
    found = record_of(folder, "model", "--method", "learned", "--mode", "clamp", *SITE, *typed, "--atlas", "trained", *FAST)
    tried, trained = [point["strength"] for point in found["tune"]["points"]], found["direction"]["card"]["dose"]
    assert trained in tried and -trained in tried and len(tried) > 5


def test_a_concept_chooses_its_layer_on_tune(folder):
    found = record_of(folder, "model", "--concept", "texts.jsonl", *SMALL, "--atlas", "concept", "--no-claim",
                      "--no-side-effects")  # fmt: skip
    assert {each["site"] for each in found["screened"]} == {"resid_post.0", "resid_post.1"}
    assert found["outcome"] == "hit" and found["direction"]["method"] == "mean_difference"
    assert found["judge"]["useful"] and all(point["judged"] is not None for point in found["confirm"]["points"])


def test_a_condition_is_asked_only_where_it_has_been_read(folder):
    model = load_model(str(folder / "model"))
    save_direction(from_vector(model, part_direction("copy"), "resid_post.1"), folder / "late.safetensors")
    found = record_of(folder, "model", "--concept", "texts.jsonl", "--condition", "late.safetensors", "--threshold", "-100",
                      *SMALL, "--atlas", "late", *FAST)  # fmt: skip
    assert found["direction"]["site"] == "resid_post.1" and found["controls"]["other_layers"] == {}
    assert found["effect"]["mean"] > 0.2


@pytest.mark.parametrize("given, method", [(("--method", "pca"), "pca"), (("--method", "learned"), "learned_add"),
                                           (("--method", "learned", "--mode", "clamp"), "learned_set")])  # fmt: skip
def test_directions_of_the_behaviours_own_pairs(folder, given, method):
    found = record_of(folder, "model", *given, *SITE, *SMALL, "--atlas", method, *FAST)
    assert found["direction"]["method"] == method and found["direction"]["source"]["kind"] == "task"
    assert found["effect"]["low"] > 0.2 and found["confirm"]["cliffs"]["+"] != found["strength"]


@pytest.mark.parametrize("mode, more", [("project_out", ()), ("clamp", ("--phase", "last")), ("cap", ("--positions", "last")),
                                        ("add", ("--condition", "copy.safetensors", "--threshold", "-100"))])  # fmt: skip
def test_other_ways_to_apply_it_run_and_say_why_there_is_no_claim(folder, mode, more):
    found = record_of(folder, "model", "--direction", "mood.safetensors", "--mode", mode, *more, *SMALL, "--draws", "5",
                      "--atlas", f"atlas-{mode}", "--no-side-effects")  # fmt: skip
    assert found["applied"]["mode"] == mode and found["claim"]["verdict"] == "not stated" and found["claim"]["reasons"]
    assert mode != "add" or found["effect"]["mean"] > 0.2


TEXT = ("--texts", "texts.txt", "--judge", "words", "--max-new-tokens", "8", "--prompt", "f1 f2 f3", "--quiet")


def test_without_a_behaviour_text_alone_is_looked_at(folder):
    """The dose curve of the same direction has the same text and damage; no effect, no claim."""
    grid = ("--strength", ".1", "--strength", ".3")
    found = record_of(folder, "model", "--direction", "mood.safetensors", *TEXT, *grid, "--atlas", "text", "--save",
                      "again.safetensors")  # fmt: skip
    assert found["behaviour"] is None and found["effect"] is None and found["claim"]["verdict"] == "not stated"
    assert found["strength"] == 0.3 and [point["strength"] for point in found["points"]] == [-0.3, -0.1, 0, 0.1, 0.3]
    whole = record_of(folder, "model", "--direction", "mood.safetensors", "--file", "mood.jsonl", *TEXT, *grid, "--draws", "5",
                      "--no-claim", "--atlas", "text2")  # fmt: skip
    for one, other in zip(found["points"], whole["confirm"]["points"], strict=True):
        assert [one[name] for name in ("perplexity", "distinct", "kl")] == pytest.approx(
            [other[name] for name in ("perplexity", "distinct", "kl")], rel=1e-4, abs=1e-6)  # fmt: skip
    sample = found["samples"][0]
    assert sample["prompt"] == "f1 f2 f3" and {"unsteered", "steered", "random"} <= set(sample)
    assert {path.rpartition(".")[2] for path in found["files"]} == {"html", "png", "svg"}
    assert load_direction(folder / "again.safetensors").digest == load_direction(folder / "mood.safetensors").digest
    said = run(folder, "model", "--concept", "texts.jsonl", *TEXT, "--no-side-effects", "--atlas", "text").output
    for words in ("in one sentence", "steered, +", "random direction, +", "no claim: no behaviour is named"):
        assert words in said


def test_without_a_behaviour_the_strength_that_was_typed_is_shown(folder):
    found = record_of(folder, "model", "--direction", "mood.safetensors", *TEXT, "--strength", "-.3", "--strength", ".1",
                      "--no-side-effects", "--atlas", "negative")  # fmt: skip
    assert found["strength"] == -0.3 and found["applied"]["strength"] == -0.3 and "asked for" in found["why"]
    quick = record_of(folder, "model", "--direction", "mood.safetensors", *TEXT, "--quick", "--no-side-effects", "--atlas",
                      "quick")  # fmt: skip
    assert "asked for" not in quick["why"]


def test_a_direction_brings_the_behaviour_of_its_concept(folder):
    from dataclasses import replace

    from assay.cli.steer_given import _concept_of

    made = load_direction(folder / "mood.safetensors")
    save_direction(replace(made, source={"kind": "concept", "concept": "sentiment"}), folder / "named.safetensors")
    assert _concept_of(str(folder / "named.safetensors")) == "sentiment"
    assert _concept_of(str(folder / "mood.safetensors")) is None


def test_what_is_printed(folder):
    done = run(folder, "model", "--direction", "mood.safetensors", *SMALL, "--atlas", "atlas")
    for words in ("in one sentence", "unsteered", "steered, +", "random direction, +", "strength", "supported", "picture:"):
        assert words in done.output


def test_refusal_that_cannot_be_asked_is_said(folder, steered):
    assert steered["refusal"] is None and any("refusal was not looked at" in note for note in steered["notes"])
    assert steered["other_tasks"] == [] and any("ioi was not looked at" in note for note in steered["notes"])


# mistakes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("given, says", [
    (("--direction", "none.safetensors", "--behaviour", "opinion"), "--direction: got 'none.safetensors'"),
    ((), "--behaviour: got None"),
    (("--concept", "texts.jsonl", "--method", "learned"), "--behaviour: got None"),
    (("--direction", "mood.safetensors", "--require", "supported"), "--require: got 'without a behaviour'"),
    (("--direction", "mood.safetensors", "--selective"), "--selective: got 'without a behaviour'"),
    (("--concept", "texts.jsonl", "--direction", "mood.safetensors"), "got '--direction and --concept'"),
    (("--direction", "mood.safetensors", "--behaviour", "opinions"), "Did you mean 'opinion'?"),
    (("--behaviour", "opinion", "--file", "mood.jsonl"), "--behaviour, --file: got 'both'"),
    (("--direction", "mood.safetensors", "--method", "pca", *SMALL), "--method: got 'pca'"),
    (("--direction", "mood.safetensors", *SMALL, "--mode", "push"), "mode: got 'push'; allowed: add, clamp"),
    (("--direction", "mood.safetensors", *SMALL, "--phase", "later"), "phase: got 'later'"),
    (("--direction", "mood.safetensors", *SMALL, "--positions", "first"), "--positions: got 'first'"),
    (("--direction", "mood.safetensors", *SMALL, "--strength", "0"), "--strength: got 0.0"),
    (("--direction", "mood.safetensors", *SMALL, "--strength", "nan"), "strengths: got"),
    (("--direction", "mood.safetensors", *SMALL, "--draws", "0"), "draws: got 0"),
    (("--direction", "mood.safetensors", *SMALL, "--threshold", "1"), "--threshold: got 1.0; allowed: with --condition"),
    (("--direction", "mood.safetensors", *SMALL, "--selective", "--no-claim"), "--selective: got 'given'"),
    (("--direction", "mood.safetensors", *SMALL, "--selective", "--quick"), "--selective: got 'given'"),
    (("--direction", "mood.safetensors", *SMALL, "--require", "supported", "--quick"), "--require: got 'given'"),
    (("--direction", "mood.safetensors", *SMALL, "--require", "supported", "--mode", "cap"), "--require: got 'given'"),
    (("--direction", "mood.safetensors", *SMALL, "--save", "x.pt"), "--save: got 'x.pt'"),
    (("--direction", "mood.safetensors", *SMALL, "--allow", "everything"), "--allow: got 'everything'"),
    (("--direction", "mood.safetensors", *SMALL, "--allow", "read"), "this needs the role 'intervene'; granted: 'read'"),
    (("--direction", "mood.safetensors", *SMALL, "--site", "resid_post.1"), "it was made at resid_post.0, not resid_post.1"),
    (("--direction", "mood.safetensors", *SMALL, "--texts", "none.txt"), "--texts: got 'none.txt'"),
    (("--direction", "mood.safetensors", *SMALL, "--max-new-tokens", "500"), "has 40 positions"),
    (("--direction", "mood.safetensors", *SMALL, "--judge", "me"), "--judge: got 'me'"),
    (("--feature", "resid_post.0", *SMALL), "--feature: got 'resid_post.0'; allowed: a neuron"),
    (("--feature", "mlp_act.0.999", *SMALL), "neuron 999 does not exist"),
    (("--feature", "latent.sae.3", *SMALL), "--dictionary: got None"),
    (("--concept", "sentimnt", "--behaviour", "opinion"), "Did you mean 'sentiment'?"),
    (("--concept", "texts.jsonl", *SMALL, "--method", "mlp"), "no single direction"),
    (("--concept", "texts.jsonl", *SMALL, "--site", "resid_post.9"), "resid_post.9"),
])  # fmt: skip
def test_mistakes_are_one_sentence(folder, given, says):
    assert says in refused(folder, "model", *given, "--atlas", "wrong")


def test_another_model_is_refused_unless_it_is_named(folder):
    other = planted_effects(copy=7.0)
    save_direction(from_vector(other, part_direction("mood"), "resid_post.0"), folder / "other.safetensors")
    words = ("model", "--direction", "other.safetensors", *SMALL, "--atlas", "other", *FAST)
    assert "To use it all the same, say so" in refused(folder, *words)
    assert record_of(folder, *words, "--allow", "model")["effect"]["mean"] > 0.5


def test_require_exits_1_where_nothing_is_supported(folder):
    done = run(folder, "model", "--direction", "copy.safetensors", *SMALL, "--atlas", "copy", *FAST, "--require", "supported")
    assert done.exit_code == 1


def test_ctrl_c_says_so_keeps_what_is_done_and_goes_on(folder, tmp_path):
    words = [sys.executable, "-m", "assay", "steer", "model", "--direction", "mood.safetensors", *SMALL, "--draws", "3000",
             "--atlas", str(tmp_path), "--no-claim", "--no-side-effects"]  # fmt: skip
    process = subprocess.Popen(words, cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                               env={**os.environ, "PYTHONUNBUFFERED": "1"},
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))  # fmt: skip
    for _ in range(2400):
        if len(list(tmp_path.rglob("kept/*/*.json"))) >= 3 or process.poll() is not None:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130 and "The same command again" in said and "Traceback" not in said
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".") and path.suffix == ".json"]


def test_a_unit_can_be_pushed(folder):
    found = record_of(folder, "model", "--feature", "mlp_act.1.0", *SMALL, "--atlas", "unit", *FAST)
    assert found["direction"]["site"] == "mlp_act.1" and found["direction"]["source"]["unit"] == "mlp_act.1.0"


def test_behaviours_of_concepts_are_bundled_tasks():
    from assay.cli.steer_given import BEHAVIOURS, Asked, behaviour_name
    from assay.data.concepts import CONCEPTS
    from assay.data.tasks import TASKS

    def asked(**more):
        return Asked(**{**dict.fromkeys(("file", "feature", "concept", "method", "site", "dictionary")), "at": "marked",
                        "allow": (), **more})  # fmt: skip

    for concept, task in BEHAVIOURS.items():
        assert concept in CONCEPTS and task in TASKS and behaviour_name(asked(concept=concept), None, None) == task
        assert behaviour_name(asked(), concept, None) == task
    assert behaviour_name(asked(concept="animals"), None, None) is None
    with pytest.raises(UsageError, match="Concepts with a behaviour of their own"):
        behaviour_name(asked(), None, None)
