"""`assay claim state --kind reconstructs`: a dictionary from a file, stated, tested where it was and where it went."""

import json
import shutil

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from assay.cli.main import cli
from assay.data import whereabouts
from assay.errors import ReproduceError, SiteError, UsageError
from assay.evidence import dictionaries
from assay.evidence.dictionaries import directions_of
from assay.features import opened as latents
from assay.features.formats import load_dictionary

WIDTH, SITE = 96, "resid_post.0"
SIZES = [word for pair in ("tune=40", "confirm=40", "ood=39", "draws=3") for word in ("--set", pair)]


@pytest.fixture(scope="module")
def wide(glass):
    return glass.feature_shape(glass.sites(SITE)[0])[0]


def sae(folder, d, seed, hook="blocks.0.hook_resid_post", **more):
    """An SAE folder as SAELens 6 writes it: random unit rows, and their transpose to encode."""
    decoder = torch.nn.functional.normalize(torch.randn(WIDTH, d, generator=torch.Generator().manual_seed(seed)), dim=1)
    folder.mkdir(parents=True)
    config = {"architecture": "standard", "d_in": d, "d_sae": WIDTH, "dtype": "float32", "device": "cpu",
              "apply_b_dec_to_input": True, "normalize_activations": "none", "reshape_activations": "none",
              "metadata": {"hook_name": hook, "sae_lens_version": "6.0.0"}, **more}  # fmt: skip
    (folder / "cfg.json").write_text(json.dumps(config))
    save_file({"W_enc": decoder.T.contiguous(), "b_enc": torch.zeros(WIDTH), "W_dec": decoder, "b_dec": torch.zeros(d)},
              folder / "sae_weights.safetensors")  # fmt: skip
    return folder


@pytest.fixture
def run(tmp_path, monkeypatch):
    """One command as a process of its own would meet it: nothing is open, this folder is the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(whereabouts, "cache_dir", lambda: tmp_path / "cache")

    def once(*words, kept=False):
        if not kept:
            monkeypatch.setattr(dictionaries, "_OPEN", {})
            monkeypatch.setattr(latents, "_OPEN", {})
        return CliRunner().invoke(cli, ["claim", *words, "--atlas", "atlas", "--quiet"])

    return once


def stated(*more):
    return ("state", "glass-en", "animals", SITE, "--kind", "reconstructs", *SIZES, *more)


def test_a_dictionary_from_a_file_is_claimed_tested_and_found_again(run, tmp_path, wide):
    path = sae(tmp_path / "sae", wide, 0)
    done = run(*stated("--dictionary", str(path), "--use", "listing features", "--json", "stated.json"))
    assert done.exit_code == 0, (done.output, done.exception)
    record = json.loads((tmp_path / "stated.json").read_text())
    assert record["record"]["subject"]["dictionary"]["digest"] == load_dictionary(path).digest
    assert str(tmp_path) not in json.dumps(record) and "for listing features" in record["statement"]

    moved = shutil.move(path, tmp_path / "moved")
    done = run("test", record["claim"])
    assert isinstance(done.exception, ReproduceError) and "--dictionary PATH" in str(done.exception)
    done = run("test", record["claim"], "--dictionary", str(sae(tmp_path / "other", wide, 1)))
    assert isinstance(done.exception, UsageError) and "that of the claim" in str(done.exception)
    done = run("test", record["claim"], "--dictionary", str(moved), "--json", "tested.json")
    assert done.exit_code == 0, (done.output, done.exception)
    tested = json.loads((tmp_path / "tested.json").read_text())
    assert tested["verdict"] in ("refuted", "inconclusive")  # random directions are no features
    assert run("replay", record["claim"]).exit_code == 0  # it is kept in mind where it was given last


@pytest.mark.parametrize(("more", "said"), [
    ((), "--dictionary: got '0 paths'"),
    (("--dictionary", "sae"), "--use: got None"),
    (("--dictionary", "sae", "--use", "everything"), "listing features, steering, standing in the loss"),
    (("--dictionary", "nowhere", "--use", "steering"), "nowhere"),
    (("--dictionary", "narrow", "--use", "listing features"), "activations: got shape"),
])  # fmt: skip
def test_mistakes_are_named(run, tmp_path, wide, more, said):
    sae(tmp_path / "sae", wide, 0)
    sae(tmp_path / "narrow", 5, 0)
    done = run(*stated(*more))
    assert said in str(done.exception) and getattr(done.exception, "exit_code", 1) == 2


def test_dictionaries_belong_to_one_kind(run):
    done = run("state", "glass-en", "animals", SITE, "--kind", "decodes", "--dictionary", "sae")
    assert "given for kind decodes" in str(done.exception)


def test_directions_are_rows_of_the_decoder_however_they_are_asked_for(tmp_path):
    found = load_dictionary(sae(tmp_path / "sae", 7, 3))
    plain = type("Plain", (), {"width": found.width, "decode": staticmethod(found.decode)})()
    assert torch.allclose(directions_of(found), directions_of(plain), atol=1e-6)


@pytest.mark.parametrize(("kind", "more"), [("represents", ()), ("explains", ("--rule", "concept"))])
def test_a_latent_is_claimed_about_with_the_file_of_its_dictionary(run, tmp_path, wide, kind, more):
    path = sae(tmp_path / "sae", wide, 0)
    latent = f"latent.{load_dictionary(path).name}.3"
    words = ("state", "glass-en", "animals", latent, "--kind", kind, *SIZES, *more)
    done = run(*words)
    assert isinstance(done.exception, SiteError) and "--dictionary PATH" in str(done.exception)
    done = run(*words, "--dictionary", str(path), "--json", "stated.json")
    assert done.exit_code == 0, (done.output, done.exception)
    record = json.loads((tmp_path / "stated.json").read_text())
    assert record["record"]["subject"]["dictionary"]["digest"] == load_dictionary(path).digest
    assert latent in record["statement"]
    done = run("test", record["claim"], "--json", "tested.json")  # found where it was
    assert done.exit_code == 0, (done.output, done.exception)
    assert json.loads((tmp_path / "tested.json").read_text())["verdict"] in ("inconclusive", "refuted")
    other = run("test", record["claim"], "--dictionary", str(sae(tmp_path / "other", wide, 1)))
    assert isinstance(other.exception, UsageError) and "that of the claim" in str(other.exception)
    done = run("state", "glass-en", "animals", SITE, "--kind", "decodes", *SIZES, "--dictionary", str(path))
    assert isinstance(done.exception, UsageError) and "represents or explains" in str(done.exception)
