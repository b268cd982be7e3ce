"""`assay probe` from a file to a verdict, pictures and a direction; interrupted, run again, and asked for nonsense."""

import json
import random

import pytest
from click.testing import CliRunner

from assay.cli.main import cli
from assay.errors import AssayError
from assay.testing.probe_worlds import FILLERS, LETTERS, SPLITS, VOCABULARY, part, probe_world, words_of

pytestmark = pytest.mark.whole
COMMON = ("--atlas", "atlas", "--quiet", "--encoder", "none")
BASELINES = {"majority", "length_punctuation", "bag_of_words", "sentence_embedding", "embedding_layer", "untrained", "shuffled",
             "control_task"}  # fmt: skip


def words(what, sign):
    return [word for split in SPLITS for word in words_of(what, sign, split)]


def sentence(rng, *inside):
    """Filler words around some words, and the question at the end."""
    chosen = [*rng.sample(FILLERS, 6), *inside]
    rng.shuffle(chosen)
    return " ".join([*chosen, "ask"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The model as a directory; texts and pairs of which every template has words of its own."""
    place, rng = tmp_path_factory.mktemp("probe"), random.Random(0)
    model = probe_world("used").model
    model.hf.save_pretrained(place / "model")
    model.tokenizer.save_pretrained(place / "model")
    colours = [word for sign in (1, -1) for word in words("colour", sign)]
    texts, pairs = [], []
    for number, both in enumerate(zip(words("mood", 1), words("mood", -1), strict=True)):
        for label, word in zip((1, 0), both, strict=True):
            texts += [{"text": sentence(rng, word, rng.choice(colours)), "label": label, "group": f"g{number}",
                       "entities": [word]} for _ in range(4)]  # fmt: skip
        for _ in range(2):
            fillers = rng.sample(FILLERS, 6)
            clean, corrupted = (" ".join([*fillers, word, "ask"]) for word in both)
            pairs.append({"clean": clean, "corrupted": corrupted, "answer": " yes", "foil": " no", "template": f"t{number}"})
    for name, rows in (("mood", texts), ("pairs", pairs)):
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


def run(folder, *given, error=None):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        done = CliRunner().invoke(cli, ["probe", *given])
    if error is None:
        assert done.exit_code == 0, (done.output, done.exception)
    return done


@pytest.fixture(scope="module")
def first(folder):
    done = run(folder, "model", "--file", "mood.jsonl", "--site", "embed,resid_post.*", *COMMON, "--json", "first.json")
    return json.loads((folder / "first.json").read_text()), done.output


def test_the_record_has_its_keys_and_the_property_is_where_it_was_written(folder, first):
    record, _ = first
    assert {"site", "best", "scores", "baselines", "claim", "sentence", "not_shown", "flags", "calibration"} <= set(record)
    assert set(record["baselines"]) == BASELINES and record["baselines"]["sentence_embedding"] is None
    by_site = {score["site"]: score for score in record["scores"]}
    assert set(by_site) == {"embed", "resid_post.0", "resid_post.1", "resid_post.2"}
    assert by_site[record["best"]]["auroc"] > 0.95 and record["margin"]["low"] > 0.05 and by_site["embed"]["auroc"] == 0.5
    assert {path.rpartition(".")[2] for path in record["files"]} == {"png", "svg", "html"}
    assert all((folder / path).stat().st_size > 500 for path in record["files"])


def test_the_claim_was_locked_before_confirm_was_read_and_the_sentence_says_what_holds(folder, first):
    from assay.atlas.store import Atlas

    record, shown = first
    assert record["claim"]["kind"] == "decodes" and record["claim"]["verdict"] == "supported", record["claim"]["reasons"]
    assert record["claim"]["qualifiers"] == []
    assert record["sentence"].startswith("The claim that it is readable (decodes) holds: a linear probe at resid_post.")
    said = " ".join(shown.replace("│", " ").split())
    assert record["sentence"] in said and "This does not show:" in said and "bag of words" in said
    assert any("uses" in item for item in record["not_shown"])
    kinds = [(entry["kind"], entry["body"].get("split") or entry["body"].get("what", ""))
             for entry in Atlas(folder / "atlas").entries()]  # fmt: skip
    order = [kinds.index(each) for each in (("look", "probe mood.jsonl linear"), ("lock", ""), ("ticket", "confirm"),
                                            ("data", "confirm"), ("look", "probe map mood.jsonl linear"))]  # fmt: skip
    assert order == sorted(order) and sum(kind == "ticket" for kind, _ in kinds) == 1


def test_the_direction_is_a_file_that_steering_reads(folder, first):
    from assay import load_model
    from assay.steer.files import load_direction

    record, _ = first
    found = load_direction(folder / record["direction"], load_model(str(folder / "model")))
    assert found.site == record["best"] and found.convention["sign"] == "+ is towards label 1"
    assert float(found.vector.norm()) == pytest.approx(1, abs=1e-5) and float(found.vector @ part("mood")) > 0.5


def test_the_same_command_again_reads_nothing_anew_and_states_no_second_claim(folder, first, monkeypatch):
    from assay.model.model import Model

    monkeypatch.setattr(Model, "walk", lambda *a, **k: pytest.fail("the texts were read again"))
    run(folder, "model", "--file", "mood.jsonl", "--site", "embed,resid_post.*", *COMMON, "--json", "again.json")
    again = json.loads((folder / "again.json").read_text())
    assert {key: value for key, value in again.items() if key != "files"} == {
        key: value for key, value in first[0].items() if key != "files"}  # fmt: skip


def test_another_choice_on_confirm_that_was_seen_is_exploratory(folder, first):
    run(folder, "model", "--file", "mood.jsonl", "--site", "resid_post.2", "--probe", "mean_difference", *COMMON, "--json",
        "second.json")  # fmt: skip
    claim = json.loads((folder / "second.json").read_text())["claim"]
    assert claim["claim"] != first[0]["claim"]["claim"] and "exploratory" in claim["qualifiers"]
    shown = CliRunner().invoke(cli, ["claim", "show", claim["claim"], "--atlas", str(folder / "atlas")], catch_exceptions=False)
    assert "exploratory: sealed data had been looked at before" in shown.output
    assert "seen before its test, confirm: probe" in shown.output


def test_an_interrupted_run_goes_on_where_it_was(folder, monkeypatch):
    from assay.model.model import Model
    from assay.probe import measure

    command = ("model", "--file", "mood.jsonl", "--site", "resid_post.0", "--encoder", "none", "--quiet", "--atlas", "other")
    monkeypatch.setattr(measure, "curve", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    stopped = run(folder, *command, error=True)
    assert stopped.exit_code != 0 and not (folder / "other" / "figures").exists()
    monkeypatch.undo()
    monkeypatch.setattr(Model, "walk", lambda *a, **k: pytest.fail("the texts were read again"))
    run(folder, *command, "--json", "resumed.json")
    claim = json.loads((folder / "resumed.json").read_text())["claim"]
    assert claim["verdict"] == "supported" and claim["qualifiers"] == []  # still the first read of confirm


def test_the_causal_follow_up_says_whether_it_is_used(folder):
    run(folder, "model", "--file", "mood.jsonl", "--site", "resid_post.0", "--no-untrained", "--no-claim", "--causal",
        "pairs.jsonl", "--encoder", "none", "--quiet", "--atlas", "causal", "--json", "causal.json")  # fmt: skip
    record = json.loads((folder / "causal.json").read_text())
    assert record["claim"] == {"note": "not stated (--no-claim)"} and "(decodes) was not tested" in record["sentence"]
    assert record["causal"]["verdict"]["kind"] == "uses" and record["causal"]["follow_up"]["used"] == "yes"
    assert "(uses)" in record["sentence"] and "pairs.jsonl" in record["sentence"]


def sae(folder):
    """A dictionary file of resid_post.0: latents 0 and 1 are the property and its opposite, the others random."""
    import torch
    from safetensors.torch import save_file

    d = len(part("mood"))
    decoder = torch.nn.functional.normalize(torch.randn(24, d, generator=torch.Generator().manual_seed(0)), dim=1)
    decoder[0], decoder[1] = part("mood"), -part("mood")
    folder.mkdir()
    config = {"architecture": "standard", "d_in": d, "d_sae": 24, "dtype": "float32", "device": "cpu",
              "apply_b_dec_to_input": True, "normalize_activations": "none", "reshape_activations": "none",
              "metadata": {"hook_name": "blocks.0.hook_resid_post", "sae_lens_version": "6.0.0"}}  # fmt: skip
    (folder / "cfg.json").write_text(json.dumps(config))
    save_file({"W_enc": decoder.T.contiguous(), "b_enc": torch.zeros(24), "W_dec": decoder, "b_dec": torch.zeros(d)},
              folder / "sae_weights.safetensors")  # fmt: skip
    return folder


def test_latents_of_a_dictionary_stand_beside_what_they_are_made_of(folder, tmp_path, monkeypatch):
    from assay.features import opened

    monkeypatch.setattr(opened, "_OPEN", {})
    run(folder, "model", "--file", "mood.jsonl", "--dictionary", str(sae(tmp_path / "sae")), "--no-untrained", *COMMON[2:],
        "--atlas", "latents", "--k", "2", "--json", "latents.json")  # fmt: skip
    record = json.loads((folder / "latents.json").read_text())
    assert record["best"].startswith("latent.") and record["probe"] == "k_sparse" and record["direction"] is None
    assert record["scores"][0]["auroc"] > 0.95 and record["baselines"]["raw_activations"] > 0.95
    assert "latents" in record["claim"]["note"] and "verdict" not in record["claim"]
    refused = run(folder, "model", "--file", "mood.jsonl", "--dictionary", str(tmp_path / "sae"), "--site", "resid_post.0",
                  *COMMON, error=True)  # fmt: skip
    assert "--site, --dictionary" in str(refused.exception)


@pytest.mark.parametrize("given, said", [
    ((), "CONCEPT, --file: got 'neither'"),
    (("animals", "--file", "mood.jsonl"), "CONCEPT, --file: got 'both'"),
    (("animils",), "Did you mean 'animals'?"),
    (("--file", "none.jsonl"), "none.jsonl"),
    (("--file", "mood.jsonl", "--probe", "forest"), "mean_difference"),
    (("--file", "mood.jsonl", "--position", "middle"), "concept, last"),
    (("--file", "mood.jsonl", "--position", "mean", "--probe", "attention"), "attention"),
    (("--file", "mood.jsonl", "--encoder", "bert"), "minilm, none"),
    (("--file", "mood.jsonl", "--site", "resid_post"), "the layer is missing"),
    (("--file", "mood.jsonl", "--site", "resid_post.9"), "0 to 2"),
    (("--file", "mood.jsonl", "--site", "pattern.0"), "pattern"),
    (("--file", "mood.jsonl", "--causal", "iio"), "Did you mean 'ioi'?"),
    (("--file", "mood.jsonl", "--dictionary", "nowhere"), "nowhere"),
    (("--file", "pairs.jsonl"), "text"),
])  # fmt: skip
def test_mistakes_are_named(folder, given, said):
    done = run(folder, "model", *given, *(() if "--encoder" in given else COMMON[-2:]), "--quiet", "--atlas", "no", error=True)
    assert isinstance(done.exception, AssayError) and said in str(done.exception), (done.exception, done.output)
    assert done.exception.exit_code == 2 and not (folder / "no").exists()


def test_a_small_vocabulary_is_no_accident():
    """Every word of the texts is a token of the model."""
    assert set(FILLERS) | {word for what in LETTERS for sign in (1, -1) for word in words(what, sign)} <= set(VOCABULARY)
