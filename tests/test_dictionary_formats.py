"""Dictionary files: the peers' own files give the peers' own latents, every format comes back, and nothing is guessed."""

import io
import json
import math
import pickle
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from assay.cli.dictionary_files import _folded, _placed, export, import_, show
from assay.errors import ShapeError, StoreError, UsageError
from assay.features import kept
from assay.features.describe import describe, duplicates
from assay.features.dictionary import Spec, make_dictionary
from assay.features.formats import FORMATS, base, detect, folded, holders, load_dictionary, reading, write_dictionary
from assay.features.formats.plain import SCALED
from assay.features.opened import open_latents
from conftest import tiny, tiny_hf, wrap
from formats_made_here import ACROSS, OUT, WIDTH, D, K, every, inputs, made

FIXTURES = Path(__file__).parent / "fixtures" / "dictionaries"
CASES = sorted(
    file.parent / file.name.removesuffix(".expected.safetensors") for file in FIXTURES.glob("*/*.expected.safetensors")
)
MADE = every()
NAMES = [one.name for one in FORMATS]


def copied(case: str, tmp_path: Path) -> Path:
    """A fixture that can be changed."""
    return Path(shutil.copytree(FIXTURES / case, tmp_path / Path(case).name))


def changed(folder: Path, file: str = "cfg.json", **changes) -> Path:
    """A folder whose config has other values; None takes a key away."""
    config = {**json.loads((folder / file).read_text()), **changes}
    (folder / file).write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return folder


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.5


# what peers wrote --------------------------------------------------------------------------------


def test_there_are_fixtures_of_every_peer():
    assert {
        peer: sum(case.parent.name == peer for case in CASES) for peer in ("saelens", "dictionary_learning", "sparsify")
    } == {"saelens": 28, "dictionary_learning": 8, "sparsify": 6}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.parent.name}-{case.name}")
def test_latents_and_reconstructions_are_the_peers_own(case):
    expected = load_file(case.with_name(f"{case.name}.expected.safetensors"))
    assert detect(case).name == case.parent.name
    dictionary = load_dictionary(case)
    assert torch.allclose(dictionary.encode(expected["inputs"]), expected["latents"], atol=1e-5)
    assert torch.allclose(dictionary.reconstruct(expected["inputs"]), expected["reconstruction"], atol=1e-5)
    assert 0 < float((expected["latents"] > 0).float().mean()) < 1
    said = dictionary.provenance["imported"]
    assert said["format"] == case.parent.name and any(one.startswith("skip_first") for one in said["assumed"])


def test_sites_and_settings_come_along():
    sites = {"saelens/standard": "resid_post.3", "saelens/flat-heads": "z.3", "saelens/flat-topk": "resid_pre.3",
             "dictionary_learning/BatchTopKSAE": "resid_post.3", "sparsify/layers.3": "resid_post.3"}  # fmt: skip
    for case, site in sites.items():
        spec = load_dictionary(FIXTURES / case).spec
        assert spec.inputs == spec.outputs == (site,), case
    for case in ("saelens/transcoder", "saelens/jumprelu_skip_transcoder"):
        dictionary = load_dictionary(FIXTURES / case)
        assert dictionary.spec.inputs == dictionary.spec.outputs == () and not dictionary.spec.centred
        assert base.waiting(dictionary) == tuple(map(list, ACROSS.values()))
    spec = load_dictionary(FIXTURES / "sparsify/layers.7.mlp").spec
    assert (spec.inputs, spec.outputs, spec.skip) == (("mlp_in.7",), ("mlp_out.7",), True)
    assert load_dictionary(FIXTURES / "sparsify/layers.4").width == 2 * D  # num_latents 0: by the expansion factor
    said = load_dictionary(FIXTURES / "saelens/flat-heads").provenance["imported"]
    assert said["settings"]["context_size"] == 128 and "heads are concatenated" in " ".join(said["assumed"])


def test_files_may_be_named_instead_of_folders():
    for case, file in (
        ("saelens/topk", "cfg.json"),
        ("saelens/topk", "sae_weights.safetensors"),
        ("sparsify/layers.3", "cfg.json"),
        ("dictionary_learning/AutoEncoder", "ae.pt"),
    ):
        assert load_dictionary(FIXTURES / case / file).digest == load_dictionary(FIXTURES / case).digest


@pytest.mark.parametrize("where", ["config", "metadata"])
@pytest.mark.parametrize("case", ["standard", "standard-raw-input", "topk", "jumprelu"])
def test_a_stream_without_its_mean_over_features_is_read_from_the_raw_one(case, where, tmp_path):
    """TransformerLens' center_writing_weights: latents of the raw stream are those of the centred one by the file's numbers."""
    plain = load_dictionary(FIXTURES / "saelens" / case)
    folder = copied(f"saelens/{case}", tmp_path)
    about = json.loads((folder / "cfg.json").read_text())
    place = about if where == "config" else about.setdefault("metadata", {})
    place["model_from_pretrained_kwargs"] = {"center_writing_weights": True, "fold_ln": True, "trust_remote_code": False}
    (folder / "cfg.json").write_text(json.dumps(about))
    found, x = load_dictionary(folder), inputs() + 3
    centred = x - x.mean(1, keepdim=True)
    assert torch.allclose(found.encode(x), plain.encode(centred), atol=1e-5) and float(found.encode(x).sum()) > 1
    assert not torch.allclose(found.encode(x), plain.encode(x), atol=1e-2) and found.spec.inputs == plain.spec.inputs
    told = " ".join(found.provenance["imported"]["assumed"])
    assert "takes off the mean over features" in told and "{'fold_ln': True}" in told
    again = load_dictionary(write_dictionary(found, tmp_path / "it", "saelens").folder)
    assert torch.allclose(again.encode(x), found.encode(x), atol=1e-5)


@pytest.mark.parametrize("case, kwargs, problem", [
    ("gated", {"center_writing_weights": True}, "center_writing_weights"), ("standard", [1], "model_from_pretrained_kwargs")])
def test_models_changed_on_loading_that_cannot_be_made_up_for_are_refused(case, kwargs, problem, tmp_path):
    folder = copied(f"saelens/{case}", tmp_path)
    about = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps({**about, "model_from_pretrained_kwargs": kwargs}))
    with pytest.raises(UsageError, match=problem):
        load_dictionary(folder)


def test_firing_rates_beside_the_numbers_are_read(tmp_path):
    folder = copied("saelens/standard", tmp_path)
    save_file({"sparsity": torch.log10(torch.full((WIDTH,), 0.25))}, folder / "sparsity.safetensors")
    assert load_dictionary(folder).provenance["imported"]["firing"] == pytest.approx(
        {"mean": 0.25, "never": 0, "active": 0.25 * WIDTH}
    )


# formats without a package to ask: written by hand, formulas in plain torch ----------------------


def weights(d_out: int = D, width: int = WIDTH, seed: int = 0) -> dict[str, torch.Tensor]:
    return {
        "W_enc": random(D, width, seed=seed),
        "W_dec": random(width, d_out, seed=seed + 1),
        "b_enc": random(width, seed=seed + 2),
        "b_dec": random(d_out, seed=seed + 3),
        "threshold": random(width, seed=seed + 4).abs(),
    }


def jump(x, w):
    pre = x @ w["W_enc"] + w["b_enc"]
    latents = torch.where(pre > w["threshold"], pre.relu(), 0.0)
    return latents, latents @ w["W_dec"] + w["b_dec"]


def same(dictionary, x, latents, rebuilt):
    assert torch.allclose(dictionary.encode(x), latents, atol=1e-5) and float(latents.sum()) > 1
    assert torch.allclose(dictionary.reconstruct(x), rebuilt, atol=1e-5)


@pytest.mark.parametrize("place, spelling, sites", [
    ("gemma-scope-2b-pt-res/layer_5/width_16k/average_l0_70", "W_", ("resid_post.5", "resid_post.5")),
    ("gemma-scope-2b-pt-att/layer_4/width_16k/average_l0_7", "w_", ("z.4", "z.4")),
    ("gemma-scope-2b-pt-mlp/layer_0/width_16k/average_l0_7", "w_", ("mlp_out.0", "mlp_out.0")),
    ("gemma-scope-2b-pt-transcoders/layer_2/width_16k/average_l0_7", "W_", None),
    ("models--google--gemma-scope-9b-pt-res/snapshots/f3a9/layer_20/width_16k/average_l0_7", "W_", ("resid_post.20",) * 2),
    ("layer_9_study/layer_8/gemma-scope-2b-pt-res/layer_5/width_16k/average_l0_70", "W_", ("resid_post.5", "resid_post.5")),
    ("gemma-scope-research/layer_5/width_16k/average_l0_70", "W_", None),
    ("downloads", "W_", None)])  # fmt: skip
def test_gemma_scope_1(place, spelling, sites, tmp_path):
    w, folder = weights(), tmp_path / place
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", **{name.replace("W_", spelling): value.numpy() for name, value in w.items()})
    dictionary = load_dictionary(folder)
    same(dictionary, inputs(), *jump(inputs(), w))
    assert (dictionary.spec.inputs, dictionary.spec.outputs) == (((sites[0],), (sites[1],)) if sites else ((), ()))
    assert load_dictionary(folder / "params.npz").digest == dictionary.digest
    linked = load_dictionary(as_in_a_cache(folder, tmp_path / "blobs"))
    assert (linked.digest, linked.name) == (dictionary.digest, dictionary.name)


def as_in_a_cache(folder: Path, blobs: Path) -> Path:
    """With a file that is a link to a place whose name says nothing, as Hugging Face keeps it."""
    blobs.mkdir()
    (folder / "params.npz").rename(blobs / "e3b0c442")
    (folder / "params.npz").symlink_to(blobs / "e3b0c442")
    return folder


@pytest.mark.parametrize("linked", [False, True])
def test_gemma_scope_1_of_embeddings_is_for_embeddings_as_the_model_has_them(linked, tmp_path):
    w, folder = weights(), tmp_path / "gemma-scope-2b-pt-res" / "embedding" / "width_4k" / "average_l0_6"
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", **{name: value.numpy() for name, value in w.items()})
    dictionary, x = load_dictionary(as_in_a_cache(folder, tmp_path / "blobs") if linked else folder), inputs()
    latents, rebuilt = jump(x / math.sqrt(D), w)
    same(dictionary, x, latents, rebuilt * math.sqrt(D))
    assert dictionary.spec.inputs == ("embed",)


@pytest.mark.parametrize("affine", [False, True])
def test_gemma_scope_2(affine, tmp_path):
    w, skip = weights(OUT), random(D, OUT, seed=9)
    tensors = {name.lower(): value for name, value in w.items()} | ({"affine_skip_connection": skip} if affine else {})
    save_file(tensors, tmp_path / "params.safetensors")
    config = {"architecture": "jump_relu", "model_name": "gemma-3-270m", "affine_connection": affine,
              "hf_hook_point_in": "model.layers.4.pre_feedforward_layernorm.output",
              "hf_hook_point_out": "model.layers.4.post_feedforward_layernorm.output"}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    dictionary, x = load_dictionary(tmp_path), inputs()
    latents, rebuilt = jump(x, w)
    same(dictionary, x, latents, rebuilt + x @ skip if affine else rebuilt)
    assert (dictionary.spec.inputs, dictionary.spec.outputs) == (("mlp_in.4",), ("mlp_out.4",))
    with pytest.raises(UsageError, match="affine_connection"):
        load_dictionary(changed(tmp_path, "config.json", affine_connection=not affine))


# before the gain of a norm -------------------------------------------------------------------------


def transcoder_of_gemma_scope(tmp_path, w) -> Path:
    folder = tmp_path / "gemma-scope-2b-pt-transcoders" / "layer_2" / "width_16k" / "average_l0_7"
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", **{name: value.numpy() for name, value in w.items()})
    return folder


def norms(x, gain, bias):
    """What a LayerNorm gives without and with its gain and bias."""
    bare = torch.nn.functional.layer_norm(x, (D,))
    return bare, bare * gain + bias


def test_a_transcoder_of_gemma_scope_1_has_no_site_until_the_gain_is_folded_in(tmp_path):
    w = weights()
    dictionary = load_dictionary(transcoder_of_gemma_scope(tmp_path, w))
    said = " ".join(dictionary.provenance["imported"]["assumed"])
    assert "mlp_in.2 before the gain" in said and "--fold MODEL" in said and "names none" not in said
    gain = 1 + random(D, seed=21)
    bare, x = norms(inputs(), gain, 0.0)
    found = folded(dictionary, gain)
    same(found, x, *jump(bare, w))
    assert (found.spec.inputs, found.spec.outputs, found.name) == (("mlp_in.2",), ("mlp_out.2",), dictionary.name)
    assumed = found.provenance["imported"]["assumed"]
    assert "before_gain" not in found.provenance["imported"] and "no site" not in " ".join(assumed)
    assert any("folded into the encoder" in one for one in assumed)
    same(dictionary, bare, *jump(bare, w))  # as it was
    again = load_dictionary(write_dictionary(found, tmp_path / "it", "native").folder)
    assert again.digest == found.digest and base.waiting(again) == ([], [])
    with pytest.raises(UsageError, match="before the gain"):
        folded(found, gain)


@pytest.mark.parametrize("case", ["transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"])
def test_a_transcoder_of_saelens_at_hook_normalized_is_folded_with_gain_and_bias(case, tmp_path):
    dictionary, gain, bias = load_dictionary(FIXTURES / "saelens" / case), 1 + random(D, seed=21), random(D, seed=22)
    bare, x = norms(inputs(), gain, bias)
    found = folded(dictionary, gain, bias)
    same(found, x, dictionary.encode(bare), dictionary.reconstruct(bare))
    assert found.spec.inputs == ("mlp_in.3",) and not found.W_enc.requires_grad
    again = load_dictionary(write_dictionary(found, tmp_path / "it", "saelens").folder)
    same(again, x, found.encode(x), found.reconstruct(x))
    assert (again.spec.inputs, again.spec.outputs) == tuple(ACROSS.values()) and base.waiting(again) == ([], [])


def test_a_transcoder_that_takes_its_bias_off_is_folded(tmp_path):
    dictionary = made("topk", 5, **ACROSS)
    dictionary.spec = replace(dictionary.spec, inputs=(), outputs=())
    sites = {"inputs": ["mlp_in.3"], "outputs": ["mlp_out.3"]}
    dictionary.provenance = {"imported": {"before_gain": sites}}
    gain, bias = 1 + random(D, seed=21), random(D, seed=22)
    bare, x = norms(inputs(), gain, bias)
    same(folded(dictionary, gain, bias), x, dictionary.encode(bare), dictionary.reconstruct(bare))


def waiting_for(d, site, to):
    """A transcoder of width d that reads before a gain, as it is read from files."""
    dictionary = make_dictionary(Spec("relu", 8, d, d, centred=False), "waits")
    with torch.no_grad():
        for at, parameter in enumerate(dictionary.parameters()):
            parameter.copy_(random(*parameter.shape, seed=30 + at))
    dictionary.provenance = {"imported": {"before_gain": {"inputs": [site], "outputs": [to]}, "assumed": []}}
    return dictionary


class Loads:
    """What a command has to load a model with."""

    def __init__(self, model):
        self.model = model

    def load(self, name, dtype, prepend_bos):
        return self.model


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "gemma3"])
def test_the_gain_of_a_model_is_measured_and_folded_in(family):
    """What the norm gives, by its own module, against the same without gain and bias, by hand."""
    hf = tiny_hf(family)
    for name, parameter in hf.named_parameters():
        if "norm" in name or "ln_" in name:
            parameter.data += random(*parameter.shape, seed=len(name)) * 0.3
    model = wrap(hf, family)
    dictionary = waiting_for(32, "mlp_in.1", "mlp_out.1")
    found = _folded(Loads(model), dictionary, family)
    stream = "resid_mid.1"
    acts = model.capture([[5, 9, 14, 3, 77]], [stream, "mlp_in.1"])
    x = acts[stream][0].double()
    if family == "gpt2":
        bare = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + hf.config.layer_norm_epsilon).sqrt()
    else:
        bare = x / (x.pow(2).mean(-1, keepdim=True) + hf.config.rms_norm_eps).sqrt()
    same(found, acts["mlp_in.1"][0], dictionary.encode(bare.float()), dictionary.reconstruct(bare.float()))
    assert found.spec.inputs == ("mlp_in.1",) and float((found.W_enc - dictionary.W_enc).detach().abs().max()) > 0.01


def test_what_no_gain_can_be_folded_into_is_an_error():
    with pytest.raises(UsageError, match="--fold MODEL.*before the gain"):
        _placed(waiting_for(32, "mlp_in.1", "mlp_out.1"), "mlp_in.1", "mlp_out.1")
    for family, dictionary, said in (
        ("olmo2", waiting_for(32, "mlp_in.1", "mlp_out.1"), "as it is there"),
        ("llama", waiting_for(16, "mlp_in.1", "mlp_out.1"), "of width 16"),
        ("llama", waiting_for(32, "mlp_in.7", "mlp_out.7"), "a model with mlp_in.7"),
        ("llama", MADE["relu"], "do not say"),
    ):
        with pytest.raises(UsageError, match=said):
            _folded(Loads(tiny(family)), dictionary, family)


def test_what_waits_for_a_gain_still_does_when_it_is_written(tmp_path):
    dictionary = load_dictionary(FIXTURES / "saelens/transcoder")
    for format in holders(dictionary):
        again = load_dictionary(write_dictionary(dictionary, tmp_path / format, format).folder)
        assert again.spec.inputs == (), format
        assert base.waiting(again) == (base.waiting(dictionary) if format != "gemma_scope" else ([], [])), format
    about = json.loads((tmp_path / "saelens" / "cfg.json").read_text())["metadata"]
    assert (about["hook_name"], about["hook_name_out"]) == ("blocks.3.ln2.hook_normalized", "blocks.3.hook_mlp_out")
    about = (tmp_path / "circuit_tracer" / "config.yaml").read_text()
    assert 'feature_input_hook: "ln2.hook_normalized"' in about and (tmp_path / "circuit_tracer/layer_3.safetensors").is_file()


def test_what_reads_after_the_gain_is_not_written_as_before_it(tmp_path):
    dictionary = MADE["relu same-size transcoder"]
    hooks = {"saelens": ("cfg.json", "mlp_in.3"), "llama_scope": ("hyperparams.json", "mlp_in.3"),
             "circuit_tracer": ("config.yaml", "mlp.hook_in")}  # fmt: skip
    for format, (file, hook) in hooks.items():
        folder = write_dictionary(dictionary, tmp_path / format, format).folder
        text = (folder / file).read_text()
        assert f'"{hook}"' in text and 'hook_mlp_out"' in text and "hook_normalized" not in text, format
        again = load_dictionary(folder)
        assert (again.spec.inputs, again.spec.outputs) == tuple(ACROSS.values()), format
    about = tmp_path / "saelens"  # as older versions wrote it: what Assay itself says of it counts
    config = json.loads((about / "cfg.json").read_text())
    config["metadata"]["hook_name"] = "blocks.3.ln2.hook_normalized"
    assert load_dictionary(changed(about, metadata=config["metadata"])).spec.inputs == ("mlp_in.3",)


def test_two_names_of_different_tensors_are_no_site(tmp_path):
    """As SAELens names transcoders of Gemma Scope 2."""
    folder = copied("saelens/jumprelu_transcoder", tmp_path)
    about = json.loads((folder / "cfg.json").read_text())["metadata"]
    hook = "model.layers.3.pre_feedforward_layernorm.output"
    dictionary = load_dictionary(changed(folder, metadata={**about, "hf_hook_name": hook}))
    assert dictionary.spec.inputs == () and base.waiting(dictionary) == ([], [])
    assert any(hook in one for one in dictionary.provenance["imported"]["assumed"])


def test_gains_that_cannot_be_folded_in_are_refused(tmp_path):
    dictionary, gain = load_dictionary(FIXTURES / "saelens/transcoder"), torch.ones(D)
    for wrong in (torch.ones(D + 1), torch.ones(D) * math.nan, torch.zeros(D)):
        with pytest.raises(UsageError, match="gain"):
            folded(dictionary, wrong)
    with pytest.raises(UsageError, match="bias"):
        folded(dictionary, gain, torch.ones(D + 1))
    with pytest.raises(UsageError, match="before the gain of a norm"):
        folded(MADE["relu"], gain)
    folder = copied("saelens/standard", tmp_path)
    both = load_dictionary(changed(folder, metadata={"sae_lens_version": "6.0.0", "hook_name": "blocks.1.ln1.hook_normalized"}))
    assert base.waiting(both) == (["attn_in.1"], ["attn_in.1"])
    with pytest.raises(UsageError, match="attn_in.1 to attn_in.1"):
        folded(both, gain)
    folder = copied("saelens/gated", tmp_path)
    gated = load_dictionary(changed(folder, metadata={"sae_lens_version": "6.0.0", "hook_name": "blocks.1.ln2.hook_normalized",
                                                      "hook_name_out": "blocks.1.hook_mlp_out"}))  # fmt: skip
    with pytest.raises(UsageError, match="gated"):
        folded(gated, gain)
    gated.provenance["imported"]["before_gain"] = {"inputs": "mlp_in.1"}
    with pytest.raises(UsageError, match="a list of sites"):
        folded(gated, gain)


@pytest.mark.parametrize("hook, sites, waits", [
    ("mlp.hook_in", "mlp_in.7", False), ("hook_mlp_in", "resid_mid.7", False), ("hook_resid_mid", "resid_mid.7", False),
    ("ln2.hook_normalized", "mlp_in.7", True)])  # fmt: skip
def test_hooks_of_circuit_tracer(hook, sites, waits, tmp_path):
    w, gain = weights(), 1 + random(D, seed=21)
    save_file({"W_enc": w["W_enc"].T.contiguous(), **{name: w[name] for name in ("W_dec", "b_enc", "b_dec")}},
              tmp_path / "layer_7.safetensors")  # fmt: skip
    (tmp_path / "config.yaml").write_text(
        f"feature_input_hook: '{hook}' # read\nfeature_output_hook: hook_mlp_out  # and written\nscan:   # none\n")  # fmt: skip
    dictionary = load_dictionary(tmp_path)
    if waits:
        assert dictionary.spec.inputs == () and base.waiting(dictionary) == ([sites], ["mlp_out.7"])
        dictionary = folded(dictionary, gain)
    assert (dictionary.spec.inputs, dictionary.spec.outputs) == ((sites,), ("mlp_out.7",))
    assert not any("no norm follows" in one for one in dictionary.provenance["imported"]["assumed"])


LAYERS = 3


def cross_layer(x, layers):
    """x (token, layer x d): latents and outputs, layer by layer."""
    parts, found, out = x.split(D, dim=1), [], [layer["b_dec"].expand(len(x), D).clone() for layer in layers]
    for number, layer in enumerate(layers):
        pre = parts[number] @ layer["W_enc"] + layer["b_enc"]
        found.append(torch.where(pre > layer["threshold"], pre.relu(), 0.0))
        for after in range(number, LAYERS):
            out[after] += found[-1] @ layer["W_out"][:, after]
    return torch.cat(found, 1), torch.cat(out, 1)


def layers_of_three(zero_before: bool):
    found = []
    for number in range(LAYERS):
        w = weights(seed=10 * number + 1)
        w["W_out"] = random(WIDTH, LAYERS, D, seed=50 + number)
        if zero_before:
            w["W_out"][:, :number] = 0
        found.append(w)
    return found


def test_cross_layer_transcoders_of_gemma_scope_2(tmp_path):
    layers, x = layers_of_three(zero_before=False), inputs(LAYERS * D)
    for number, w in enumerate(layers):
        save_file(
            {"w_enc": w["W_enc"], "w_dec": w["W_out"], "b_enc": w["b_enc"], "b_dec": w["b_dec"], "threshold": w["threshold"]},
            tmp_path / f"params_layer_{number}.safetensors",
        )
    dictionary = load_dictionary(tmp_path)
    same(dictionary, x, *cross_layer(x, layers))
    assert any("layers before it are not zero" in one for one in dictionary.provenance["imported"]["assumed"])
    assert dictionary.spec.inputs == ("mlp_in.0", "mlp_in.1", "mlp_in.2")
    assert any("what such files are for" in one for one in dictionary.provenance["imported"]["assumed"])
    with pytest.raises(UsageError, match="all layers"):
        load_dictionary(tmp_path / "params_layer_1.safetensors")
    (tmp_path / "params_layer_1.safetensors").unlink()
    with pytest.raises(UsageError, match="every layer"):
        load_dictionary(tmp_path)


GEMMA_CLT = {"architecture": "jump_relu", "type": "clt", "affine_connection": False, "model_name": "google/gemma-3-270m-pt",
             "width": LAYERS * WIDTH, "l0": 150,
             "hf_hook_point_in": "model.layers.{all}.pre_feedforward_layernorm.output",
             "hf_hook_point_out": "model.layers.{all}.post_feedforward_layernorm.output"}  # fmt: skip


def clt_of_gemma_scope(folder: Path, **changes) -> Path:
    for number, w in enumerate(layers_of_three(zero_before=True)):
        tensors = {name.lower(): value for name, value in w.items() if name not in ("W_dec", "W_out")} | {"w_dec": w["W_out"]}
        save_file(tensors, folder / f"params_layer_{number}.safetensors")
    (folder / "config.json").write_text(json.dumps({**GEMMA_CLT, **changes}))
    return folder


def test_the_config_of_a_cross_layer_transcoder_of_gemma_scope_2_is_read(tmp_path):
    dictionary = load_dictionary(clt_of_gemma_scope(tmp_path))
    said = dictionary.provenance["imported"]
    assert dictionary.spec.inputs == ("mlp_in.0", "mlp_in.1", "mlp_in.2") and dictionary.spec.outputs[2] == "mlp_out.2"
    assert said["settings"]["model_name"] in dictionary.name and said["settings"]["l0"] == 150 and len(said["hooks"]) == 2
    assert not any("sites" in one for one in said["assumed"])
    hooks = {"hf_hook_point_in": "model.layers.{all}.output", "hf_hook_point_out": "model.layers.{all}.output"}
    assert load_dictionary(changed(tmp_path, "config.json", **hooks)).spec.inputs[1] == "resid_post.1"
    unknown = load_dictionary(changed(tmp_path, "config.json", hf_hook_point_in="model.layers.{all}.clever.output"))
    assert unknown.spec.inputs == unknown.spec.outputs == ()
    assert any("names none" in one for one in unknown.provenance["imported"]["assumed"])


@pytest.mark.parametrize("changes, said", [
    ({"architecture": "topk"}, "architecture"), ({"architecture": "topk", "k": 4}, "architecture"), ({"k": 4}, "keys.*k"),
    ({"unknown": 1}, "unknown"), ({"affine_connection": True}, "affine_connection.*skip connection"),
    ({"type": "crosscoder"}, "type"), ({"hf_hook_point_in": "model.layers.{5,9,12}.output"}, "hf_hook_point_in"),
    ({"hf_hook_point_out": "model.layers.2.output"}, "hf_hook_point_out"),
    ({"hf_hook_point_in": 3}, "hf_hook_point_in")])  # fmt: skip
def test_what_is_not_understood_of_a_cross_layer_transcoder_is_refused(changes, said, tmp_path):
    with pytest.raises(UsageError, match=said):
        load_dictionary(clt_of_gemma_scope(tmp_path, **changes))


@pytest.mark.parametrize("rule", ["relu", "jumprelu"])
def test_cross_layer_transcoders_of_circuit_tracer(rule, tmp_path):
    layers, x = layers_of_three(zero_before=True), inputs(LAYERS * D)
    for number, w in enumerate(layers):
        if rule == "relu":
            w["threshold"] = torch.zeros(WIDTH)
        tensors = {
            "W_enc": w["W_enc"].T,
            "b_enc": w["b_enc"],
            "b_dec": w["b_dec"],
            **({"threshold": w["threshold"]} if rule != "relu" else {}),
        }
        save_file(
            {f"{name}_{number}": value.contiguous() for name, value in tensors.items()},
            tmp_path / f"W_enc_{number}.safetensors",
        )
        save_file({f"W_dec_{number}": w["W_out"][:, number:].contiguous()}, tmp_path / f"W_dec_{number}.safetensors")
    (tmp_path / "config.yaml").write_text(
        'model_name: "tiny"\nfeature_input_hook: "hook_resid_mid"\nfeature_output_hook: hook_mlp_out\n'
    )
    dictionary = load_dictionary(tmp_path)
    same(dictionary, x, *cross_layer(x, layers))
    assert dictionary.spec.inputs == ("resid_mid.0", "resid_mid.1", "resid_mid.2") and dictionary.spec.outputs[2] == "mlp_out.2"


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("thresholds", [False, True])
def test_transcoders_of_circuit_tracer(turned, thresholds, tmp_path):
    w, skip, x = weights(OUT), random(OUT, D, seed=9), inputs()
    w["threshold"] *= thresholds
    tensors = {"W_enc": w["W_enc"].T, "W_dec": w["W_dec"].T if turned else w["W_dec"], "b_enc": w["b_enc"], "b_dec": w["b_dec"],
               "W_skip": skip, **({"activation_function.threshold": w["threshold"]} if thresholds else {})}  # fmt: skip
    save_file({name: value.contiguous() for name, value in tensors.items()}, tmp_path / "layer_7.safetensors")
    (tmp_path / "config.yaml").write_text(
        "model_name: tiny\nfeature_input_hook: mlp.hook_in\nfeature_output_hook: mlp.hook_out\n"
    )
    latents, rebuilt = jump(x, w)
    for path in (tmp_path, tmp_path / "layer_7.safetensors"):
        dictionary = load_dictionary(path)
        same(dictionary, x, latents, rebuilt + x @ skip.T)
        assert (dictionary.spec.inputs, dictionary.spec.outputs) == (("mlp_in.7",), ("mlp_out.7",))
        assert any("no norm follows" in one for one in dictionary.provenance["imported"]["assumed"])
    save_file(
        {**load_file(tmp_path / "layer_7.safetensors"), "threshold": torch.full((WIDTH,), -1.0)},
        tmp_path / "layer_8.safetensors",
    )
    with pytest.raises(UsageError, match="negative" if not thresholds else "activation_function|threshold"):
        load_dictionary(tmp_path / "layer_8.safetensors")
    with pytest.raises(UsageError, match="layer_7.safetensors, layer_8.safetensors"):
        load_dictionary(tmp_path)


@pytest.mark.parametrize("act", ["jumprelu", "topk"])
@pytest.mark.parametrize("unit", [False, True])
def test_llama_scope_as_its_authors_read_it(act, unit, tmp_path):
    w, x = weights(), inputs()
    (tmp_path / "checkpoints").mkdir()
    save_file(
        {
            "encoder.weight": w["W_enc"].T.contiguous(),
            "encoder.bias": w["b_enc"],
            "decoder.weight": w["W_dec"].T.contiguous(),
            "decoder.bias": w["b_dec"],
        },
        tmp_path / "checkpoints" / "final.safetensors",
    )
    config = {
        "hook_point_in": "blocks.3.hook_resid_post",
        "hook_point_out": "blocks.3.hook_resid_post",
        "d_model": D,
        "d_sae": WIDTH,
        "expansion_factor": 2,
        "act_fn": act,
        "top_k": 4,
        "jump_relu_threshold": 0.3,
        "norm_activation": "dataset-wise",
        "dataset_average_activation_norm": {"in": 4.0, "out": 5.0},
        "sparsity_include_decoder_norm": unit,
        "use_decoder_bias": True,
        "apply_decoder_bias_to_pre_encoder": False,
        "use_glu_encoder": False,
        "lp": 1,
    }
    (tmp_path / "hyperparams.json").write_text(json.dumps(config))
    into, out = math.sqrt(D) / 4.0, math.sqrt(D) / 5.0
    norms = w["W_dec"].norm(dim=1) * into / out if unit else torch.ones(WIDTH)
    pre = (into * x @ w["W_enc"] + w["b_enc"]) / into * norms  # in raw units, decoder rows of norm 1 where asked for
    latents = torch.where(pre > 0.3, pre, 0.0)
    rebuilt = ((latents / norms * into) @ w["W_dec"] + w["b_dec"]) / out
    dictionary = load_dictionary(tmp_path)
    same(dictionary, x, latents, rebuilt)
    assert dictionary.spec.inputs == ("resid_post.3",)
    across = {"hook_point_in": "blocks.3.ln2.hook_normalized", "hook_point_out": "blocks.3.hook_mlp_out"}
    transcoder = load_dictionary(changed(tmp_path, "hyperparams.json", **across))
    assert transcoder.spec.inputs == () and base.waiting(transcoder) == (["mlp_in.3"], ["mlp_out.3"])
    with pytest.raises(UsageError, match="norm_activation"):
        load_dictionary(changed(tmp_path, "hyperparams.json", norm_activation="token-wise"))


# there and back ----------------------------------------------------------------------------------


PLACES = {
    "native": set(MADE),
    "saelens": {
        name
        for name in MADE
        if name.split()[0] in ("relu", "jumprelu", "gated", "topk", "batchtopk", "matryoshka", "matching_pursuit", "temporal")
    }
    - {"topk same-size skip transcoder"},
    "dictionary_learning": {
        name
        for name in MADE
        if name.split()[0] in ("relu", "jumprelu", "gated", "topk", "batchtopk", "matryoshka")
        and "skip" not in name
        and "norm" not in name
    }
    - {"relu transcoder", "jumprelu transcoder"},
    "sparsify": {name for name in MADE if name.split()[0] in ("topk", "groupmax") and "norm" not in name},
    "gemma_scope": {
        name
        for name in MADE
        if name.split()[0] in ("relu", "jumprelu", "batchtopk", "matryoshka") and "skip" not in name and "norm" not in name
    },
    "gemma_scope_2": {
        name for name in MADE if name.split()[0] in ("relu", "jumprelu", "batchtopk", "matryoshka") and "norm" not in name
    },
    "llama_scope": {
        "relu",
        "relu raw input",
        "relu square",
        "relu same-size transcoder",
        "topk",
        "topk raw input",
        "topk free",
        "topk same-size transcoder",
        "batchtopk",
        "batchtopk raw input",
        "matryoshka",
    },
    "circuit_tracer": {
        name for name in MADE if name.split()[0] in ("relu", "jumprelu", "batchtopk", "matryoshka") and "norm" not in name
    }
    | {"clt", "clt_jumprelu"},
}


def test_the_places_are_those():
    assert {one.name: {name for name, dictionary in MADE.items() if not one.lacks(dictionary)} for one in FORMATS} == PLACES


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("format", NAMES)
def test_what_is_written_comes_back_or_is_refused_by_name(format, name, tmp_path):
    dictionary = MADE[name]
    if name not in PLACES[format]:
        with pytest.raises(UsageError) as refused:
            write_dictionary(dictionary, tmp_path / "no", format)
        assert all(other in str(refused.value) for other in holders(dictionary)) and not (tmp_path / "no").exists()
        return
    written = write_dictionary(dictionary, tmp_path / "it", format)
    assert detect(tmp_path / "it").name == format
    again, x = load_dictionary(tmp_path / "it"), inputs(dictionary.spec.d_in)
    norms = dictionary.directions().norm(dim=1) if SCALED in written.notes else 1.0
    assert torch.allclose(again.encode(x), dictionary.encode(x) * norms, atol=1e-5)
    assert torch.allclose(again.reconstruct(x), dictionary.reconstruct(x), atol=1e-5)
    if format not in ("gemma_scope", "circuit_tracer"):
        kept = ("skip_first", "norm_limit", "inputs", "outputs", "k")
        assert [getattr(again.spec, key) for key in kept] == [getattr(dictionary.spec, key) for key in kept]
        assert again.name == dictionary.name and again.provenance["model"] == "tiny"
    twice = load_dictionary(write_dictionary(again, tmp_path / "twice", format).folder)
    assert torch.allclose(twice.encode(x), again.encode(x), atol=1e-5)


def test_a_threshold_that_is_not_set_is_not_written():
    for architecture in ("batchtopk", "matryoshka"):
        assert holders(made(architecture, threshold=-1.0)) == ["native"]
    options = {"centred": False, "options": {"layers": 2}}
    assert holders(made("clt", threshold=-1.0, **options)) == ["native"]


def test_latents_that_write_nothing_stay_silent(tmp_path):
    for name in ("batchtopk", "clt"):
        dictionary = made(name, 30, 0.0, **({"options": {"decoder": "free"}} if name == "batchtopk" else {
            "centred": False, "options": {"layers": 2}}))  # fmt: skip
        with torch.no_grad():
            (dictionary.W_dec if name == "batchtopk" else dictionary.W_dec[0])[1] = 0
        x, format = inputs(), "saelens" if name == "batchtopk" else "circuit_tracer"
        again = load_dictionary(write_dictionary(dictionary, tmp_path / name, format).folder)
        assert torch.allclose(again.encode(x), dictionary.encode(x), atol=1e-5) and not again.encode(x)[:, 1].any()


def test_what_only_assay_writes_is_data_too(tmp_path):
    folder = write_dictionary(MADE["relu"], tmp_path / "it", "saelens").folder
    config = json.loads((folder / "cfg.json").read_text())
    own = config["metadata"]["assay"]
    wrong = (({"spec": {**own["spec"], "width": "many"}}, "spec"), ({"spec": {**own["spec"], "width": WIDTH + 1}}, "spec"),
             ({"spec": {**own["spec"], "norm_limit": "far"}}, "spec"), ({"spec": [1]}, "object"), ({"provenance": 3}, "object"),
             ({"probe": 5}, "probe"), ({"spec": {**own["spec"], "more": 1}}, "more"))  # fmt: skip
    for change, said in wrong:
        (folder / "cfg.json").write_text(json.dumps({**config, "metadata": {**config["metadata"], "assay": {**own, **change}}}))
        with pytest.raises(UsageError, match=said):
            load_dictionary(folder)


def test_numbers_changed_after_writing_are_noticed(tmp_path):
    for format, file in (
        ("saelens", "sae_weights.safetensors"),
        ("sparsify", "sae.safetensors"),
        ("gemma_scope_2", "params.safetensors"),
    ):
        dictionary = MADE["topk" if format == "sparsify" else "relu"]
        write_dictionary(dictionary, tmp_path / format, format)
        tensors = load_file(tmp_path / format / file)
        name = "W_dec" if "W_dec" in tensors else "w_dec"
        tensors[name] = tensors[name].flip(0).contiguous()
        save_file(tensors, tmp_path / format / file)
        with pytest.raises(UsageError, match="changed after"):
            load_dictionary(tmp_path / format)


# nothing is guessed ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case, file, changes, said",
    [
        ("saelens/standard", "cfg.json", {"clever_trick": 1}, "clever_trick"),
        ("saelens/standard", "cfg.json", {"architecture": "temporal"}, "q_target"),
        ("saelens/standard", "cfg.json", {"architecture": "quantum"}, "quantum"),
        ("saelens/standard", "cfg.json", {"normalize_activations": "expected_average_only_in"}, "activation_scaler.json"),
        ("saelens/standard", "cfg.json", {"normalize_activations": "covariance_whitening"}, "whitening"),
        ("saelens/standard", "cfg.json", {"normalize_activations": "magic"}, "magic"),
        ("saelens/standard", "cfg.json", {"d_in": D + 1}, "W_dec"),
        ("saelens/standard", "cfg.json", {"d_in": True}, "d_in"),
        ("saelens/standard", "cfg.json", {"d_sae": -2}, "d_sae"),
        ("saelens/standard", "cfg.json", {"apply_b_dec_to_input": "yes"}, "apply_b_dec_to_input"),
        ("saelens/topk", "cfg.json", {"k": None}, "cfg.json: k"),
        ("saelens/topk", "cfg.json", {"k": WIDTH + 1}, "k:"),
        ("saelens/transcoder", "cfg.json", {"apply_b_dec_to_input": True}, "transcoders"),
        ("saelens/transcoder", "cfg.json", {"normalize_activations": "layer_norm"}, "layer_norm"),
        ("saelens/transcoder", "cfg.json", {"architecture": "skip_transcoder"}, "W_skip"),
        ("saelens/skip_transcoder", "cfg.json", {"architecture": "transcoder"}, "W_skip"),
        ("saelens/jumprelu", "cfg.json", {"architecture": "standard"}, "threshold"),
        ("saelens/flat-topk", "cfg.json", {"activation_fn_str": "tanh-relu"}, "tanh-relu"),
        ("saelens/flat-topk", "cfg.json", {"activation_fn_kwargs": {"k": 3, "slope": 2}}, "slope"),
        ("saelens/flat-topk", "cfg.json", {"finetuning_scaling_factor": True}, "finetuning_scaling_factor"),
        ("saelens/flat-topk", "cfg.json", {"normalize_activations": True}, "expected_average_only_in"),
        ("sparsify/layers.3", "cfg.json", {"signed": True}, "signed"),
        ("sparsify/layers.3", "cfg.json", {"activation": "relu"}, "groupmax"),
        ("sparsify/layers.3", "cfg.json", {"post_act": 1}, "post_act"),
        ("sparsify/layers.7.mlp", "cfg.json", {"skip_connection": False}, "W_skip"),
        (
            "dictionary_learning/BatchTopKSAE",
            "config.json",
            {"trainer": {"activation_dim": D}},
            "AutoEncoderTopK, BatchTopKSAE",
        ),
        ("dictionary_learning/BatchTopKSAE", "config.json", {"trainer": {"dict_class": "IdentityDict"}}, "IdentityDict"),
        (
            "dictionary_learning/BatchTopKSAE",
            "config.json",
            {"trainer": {"dict_class": "BatchTopKSAE", "k": K + 1}},
            "as the tensors",
        ),
        ("dictionary_learning/AutoEncoder", "config.json", {"trainer": {"dict_class": "AutoEncoderNew"}}, "decoder.bias"),
        ("dictionary_learning/AutoEncoder", "config.json", {"trainer": {"dict_class": "AutoEncoder", "gelu": 1}}, "gelu"),
        ("dictionary_learning/AutoEncoder", "config.json", {"more": {}}, "more"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(case, file, changes, said, tmp_path):
    with pytest.raises(UsageError, match=said):
        load_dictionary(changed(copied(case, tmp_path), file, **changes))


def test_settings_that_are_known_to_be_harmless_are_kept_aside(tmp_path):
    folder = changed(copied("saelens/standard", tmp_path), l1_coefficient=3.0, dtype="bfloat16")
    assert load_dictionary(folder).provenance["imported"]["settings"]["l1_coefficient"] == 3.0


def test_numbers_must_be_there_be_finite_and_be_all(tmp_path):
    file = "sae_weights.safetensors"
    for number, (change, said) in enumerate(
        (
            ({"b_enc": None}, "b_enc: got 'no such tensor'"),
            ({"more": torch.zeros(2)}, "more"),
            ({"b_enc": torch.full((WIDTH,), math.nan)}, "finite"),
            ({"W_enc": torch.zeros(WIDTH, D)}, "W_enc"),
            ({"b_enc": torch.zeros(1, WIDTH)}, "axes"),
        )
    ):
        folder = Path(shutil.copytree(FIXTURES / "saelens/standard", tmp_path / str(number)))
        tensors = {**load_file(folder / file), **change}
        save_file({name: value.contiguous() for name, value in tensors.items() if value is not None}, folder / file)
        with pytest.raises(UsageError, match=said):
            load_dictionary(folder)


class Harm:
    def __reduce__(self):
        return (Path.write_text, (Path("harm-was-done"), "x"))


def test_no_file_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"encoder.weight": Harm()}, tmp_path / "ae.pt")
    with pytest.raises(UsageError, match="tensors only"):
        load_dictionary(tmp_path)
    (tmp_path / "ae.pt").write_bytes(pickle.dumps(Harm()))
    with pytest.raises(UsageError, match="tensors only"):
        load_dictionary(tmp_path, "dictionary_learning")
    np.savez(tmp_path / "params.npz", W_enc=np.array([Harm()], dtype=object))
    with pytest.raises(UsageError, match="without objects"):
        load_dictionary(tmp_path / "params.npz")
    assert not (tmp_path / "harm-was-done").exists()
    torch.save([torch.zeros(2)], tmp_path / "ae.pt")
    with pytest.raises(UsageError, match="state_dict"):
        load_dictionary(tmp_path / "ae.pt")


def test_what_sparsify_trains_with_multi_topk_is_told(tmp_path):
    folder = copied("sparsify/layers.3", tmp_path)
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps({**config, "multi_topk": True}))
    told = load_dictionary(folder).provenance["imported"]["assumed"]
    assert any("multi_topk" in said for said in told)
    plain = load_dictionary(FIXTURES / "sparsify/layers.3").provenance["imported"]
    assert not any("multi_topk" in said for said in plain.get("assumed", []))


@pytest.mark.parametrize("change, said", [
    ({"spec": {"inputs": "resid_post.1"}}, "inputs"), ({"spec": {"inputs": [1]}}, "inputs"),
    ({"spec": {"norm_limit": "a"}}, "norm_limit"), ({"spec": {"skip_first": "a"}}, "skip_first"),
    ({"spec": {"centred": "no"}}, "centred"), ({"provenance": [1]}, "provenance"),
    ({"provenance": {"stream": "x"}}, "provenance"), ({"provenance": {"imported": 3}}, "provenance"),
])  # fmt: skip
def test_a_description_with_a_value_of_another_type_is_refused(tmp_path, change, said):
    kept.save(make_dictionary(Spec("relu", 4, 3, 3)), tmp_path)
    record = json.loads((tmp_path / "dictionary.json").read_text())
    for key, value in change.items():
        record[key] = {**record[key], **value} if key == "spec" else value
    (tmp_path / "dictionary.json").write_text(json.dumps(record))
    with pytest.raises((UsageError, StoreError), match=said):
        load_dictionary(tmp_path)


def test_damaged_and_large_files_are_refused(tmp_path, monkeypatch):
    folder = copied("saelens/standard", tmp_path)
    (folder / "sae_weights.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(UsageError, match="safetensors"):
        load_dictionary(folder)
    (folder / "cfg.json").write_text("{")
    with pytest.raises(UsageError, match="JSON"):
        load_dictionary(folder)
    (folder / "cfg.json").write_text("[1]")
    with pytest.raises(UsageError, match="JSON object"):
        load_dictionary(folder)
    (folder / "cfg.json").write_text("[" * 100_000)
    with pytest.raises(UsageError, match="JSON"):
        load_dictionary(folder)
    (tmp_path / "params.npz").write_bytes(b"PK\x03\x04 not a zip")
    with pytest.raises(UsageError, match="numpy"):
        load_dictionary(tmp_path / "params.npz")
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("W_enc.npy", b"\0" * 10_000_000)
    (tmp_path / "params.npz").write_bytes(content.getvalue())
    monkeypatch.setattr(reading, "LARGEST", 1_000_000)
    with pytest.raises(UsageError, match="unpacked"):
        load_dictionary(tmp_path / "params.npz")
    monkeypatch.setattr(reading, "LARGEST", 10)
    for case in ("saelens/topk", "dictionary_learning/AutoEncoder", "sparsify/layers.3"):
        with pytest.raises(UsageError, match="at most 10 bytes"):
            load_dictionary(FIXTURES / case)


def test_paths_that_are_none_and_folders_that_could_be_two(tmp_path):
    with pytest.raises(UsageError, match="exists"):
        load_dictionary(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="saelens .*sparsify"):
        load_dictionary(tmp_path)
    for case in ("saelens/topk", "dictionary_learning/AutoEncoder"):
        shutil.copytree(FIXTURES / case, tmp_path, dirs_exist_ok=True)
    with pytest.raises(UsageError, match="dictionary_learning, saelens"):
        load_dictionary(tmp_path)
    assert load_dictionary(tmp_path, "saelens").architecture == "topk"
    with pytest.raises(UsageError, match="format"):
        load_dictionary(tmp_path, "saelense")
    with pytest.raises(StoreError):
        load_dictionary(tmp_path, "native")


# square matrices ---------------------------------------------------------------------------------


def square(d=64, tied=True):
    rows = torch.nn.functional.normalize(torch.randn(d, d, generator=torch.Generator().manual_seed(3)), dim=1)
    encoder = rows + 0.3 * torch.nn.functional.normalize(torch.randn(d, d, generator=torch.Generator().manual_seed(4)), dim=1)
    return (encoder if tied else torch.randn(d, d, generator=torch.Generator().manual_seed(5))), rows


def test_a_square_matrix_that_lies_transposed_is_noticed():
    encoder, decoder = square()
    assert base.check_order(encoder, decoder) == [
        "square matrices: decoder rows have one norm and encoder rows lie along decoder rows"
    ]
    for one, other in ((encoder.T, decoder), (encoder, decoder.T), (encoder.T, decoder.T)):
        with pytest.raises(UsageError, match="transposed"):
            base.check_order(one, other)
    untied, free = square(tied=False)[0], decoder * torch.linspace(0.5, 2, 64)[:, None]
    assert "nothing in the numbers" in base.check_order(untied, free)[0]
    assert base.check_order(encoder[:32], decoder[:32]) == []


@pytest.mark.parametrize("seed", range(20))
def test_random_square_matrices_show_nothing(seed):
    for d in (2, 3, 6, 16, 64):
        assert "nothing in the numbers" in base.check_order(random(d, d, seed=seed), random(d, d, seed=seed + 100))[0]


def test_a_transposed_square_file_is_refused(tmp_path):
    encoder, decoder = square()
    dictionary = make_dictionary(Spec("relu", 64, 64, 64))
    with torch.no_grad():
        dictionary.W_enc.copy_(encoder)
        dictionary.W_dec.copy_(decoder)
    folder = write_dictionary(dictionary, tmp_path / "it", "saelens").folder
    assert any("square" in one for one in load_dictionary(folder).provenance["imported"]["assumed"])
    tensors = load_file(folder / "sae_weights.safetensors")
    tensors["W_enc"] = tensors["W_enc"].T.contiguous()
    save_file(tensors, folder / "sae_weights.safetensors")
    with pytest.raises(UsageError, match="transposed"):
        load_dictionary(folder)


# what formats needed of dictionaries -------------------------------------------------------------


def test_inputs_normalised_in_use():
    x = inputs()
    for norm in ("layer", "root"):
        dictionary = made("relu", 71, options={"input_norm": norm})
        plain = made("relu", 71)
        if norm == "layer":
            scale, mean = x.std(1, keepdim=True), x.mean(1, keepdim=True)
            z = (x - mean) / (scale + 1e-5)
        else:
            scale, mean = x.norm(dim=1, keepdim=True) / math.sqrt(D), 0.0
            z = x / scale
        assert torch.allclose(dictionary.encode(x), plain.encode(z), atol=1e-6)
        assert torch.allclose(dictionary.reconstruct(x), plain.reconstruct(z) * scale + mean, atol=1e-5)
        with pytest.raises(UsageError, match="reconstruct"):
            dictionary.decode(dictionary.encode(x))
        with pytest.raises(UsageError, match="only read from files"):
            dictionary.start(x, x, torch.Generator())
    with pytest.raises(UsageError, match="input_norm"):
        made("relu", options={"input_norm": "other"})
    with pytest.raises(UsageError, match="options"):
        made("crosscoder", options={"sizes": (D,), "input_norm": "layer"})


def test_matching_pursuit_token_by_token():
    dictionary, x = made("matching_pursuit", 3, options={"residual_threshold": 0.4, "steps": 5}), inputs()
    for row, found in zip(x, dictionary.encode(x), strict=True):
        residual, latents = row - dictionary.b_dec, torch.zeros(WIDTH)
        for _ in range(5):
            products = dictionary.W_dec @ residual
            best = int(products.argmax())
            repeat = bool(latents[best] != 0) or float(products[best]) <= 0
            gain = max(float(products[best]), 0.0)
            latents[best] += gain
            residual = residual - gain * dictionary.W_dec[best]
            if repeat or float(residual.norm()) < 0.4:
                break
        assert torch.allclose(found, latents, atol=1e-5)
    with pytest.raises(UsageError, match="only read from files"):
        dictionary.start(x, x, torch.Generator())


def test_a_temporal_reads_each_text_from_its_start():
    dictionary, x = MADE["temporal layer norm"], inputs()
    positions = torch.cat([torch.arange(n) for n in (20, 1, 43)])
    parts = x.split([20, 1, 43])
    for method in (dictionary.encode, dictionary.reconstruct):
        whole = method(x, positions)
        assert torch.allclose(whole, torch.cat([method(part) for part in parts]), atol=1e-6)
        assert not torch.allclose(whole[20:], method(x)[20:], atol=1e-2)
    later = x.clone()
    later[10:] += 1
    assert torch.equal(dictionary.encode(later)[:10], dictionary.encode(x)[:10])  # causal
    codes = dictionary.codes(x, positions)
    assert torch.equal(dictionary.reconstruct(x, positions, codes), dictionary.reconstruct(x, positions))
    for refused in (lambda: dictionary.decode(codes), lambda: dictionary.pre(x), lambda: open_latents(dictionary)):
        with pytest.raises(UsageError, match="temporal"):
            refused()
    with pytest.raises(ShapeError, match="3 for 64 tokens"):
        dictionary.codes(x, positions[:3])
    with pytest.raises(UsageError, match="heads, bottleneck"):
        made("temporal", options={"heads": 5, "bottleneck": 3})


def test_groupmax_takes_one_of_each_group():
    dictionary, x = made("groupmax", 5), inputs()
    pre = dictionary.pre(x).view(len(x), K, -1)
    expected = torch.where(pre == pre.max(2, keepdim=True).values, pre, 0.0).relu().flatten(1)
    assert torch.equal(dictionary.encode(x), expected)
    with pytest.raises(UsageError, match="divisor"):
        made("groupmax", k=5)


def test_a_clt_of_thresholds_is_not_trained():
    dictionary = MADE["clt_jumprelu"]
    with pytest.raises(UsageError, match="only read from files"):
        dictionary.start(inputs(D), inputs(D), torch.Generator())


def test_descriptions():
    rows = torch.nn.functional.normalize(torch.randn(40, 64, generator=torch.Generator().manual_seed(1)), dim=1)
    rows[7] = 3 * rows[3] + 0.3 * rows[4]
    rows[9] = 0
    found = duplicates(rows)
    assert found.count == 2 and found.closest[0][:2] == (3, 7) and 0.9 < found.closest[0][2] < 1
    assert duplicates(rows, most=10).looked_at == 10
    dictionary = make_dictionary(Spec("relu", 40, 64, 64))
    with torch.no_grad():
        dictionary.W_dec.copy_(rows)
        dictionary.W_enc.copy_(rows)
    said = describe(dictionary)
    assert said.never_written == 1 and said.decoder_norms[1] == pytest.approx(1) and said.tied == pytest.approx(39 / 40)
    assert describe(MADE["clt"]).tied is None and describe(MADE["topk"]).duplicates.looked_at == WIDTH


# command line ------------------------------------------------------------------------------------


def run(command, *arguments):
    return CliRunner().invoke(command, [str(one) for one in arguments], catch_exceptions=True)


def test_import_export_show(tmp_path):
    case, atlas = FIXTURES / "saelens/topk-rescaled", tmp_path / "atlas"
    found = run(import_, case, "--atlas", atlas, "--json", tmp_path / "in.json", "--name", "mine")
    assert found.exit_code == 0, found.exception
    record = json.loads((tmp_path / "in.json").read_text())
    assert record["format"] == "saelens" and record["name"] == "mine" and record["model"] == "tiny" and record["assumed"]
    assert "assumed: decoder norms" in found.output
    expected = load_file(case.with_name("topk-rescaled.expected.safetensors"))
    assert torch.allclose(load_dictionary(record["folder"]).encode(expected["inputs"]), expected["latents"], atol=1e-5)
    shown = run(show, "mine", "--atlas", atlas, "--json", tmp_path / "show.json")
    assert shown.exit_code == 0 and "resid_post.3" in shown.output and "not evaluated" in shown.output
    assert json.loads((tmp_path / "show.json").read_text())["digest"] == record["digest"]
    out = run(export, "mine", "--format", "sparsify", "--out", tmp_path / "out", "--atlas", atlas, "--json", "-")
    assert json.loads(out.output)["files"] == ["cfg.json", "sae.safetensors"]
    assert torch.allclose(load_dictionary(tmp_path / "out").encode(expected["inputs"]), expected["latents"], atol=1e-5)
    assert run(show, tmp_path / "out").exit_code == 0
    full = run(export, "mine", "--format", "saelens", "--out", tmp_path / "out", "--atlas", atlas)
    assert isinstance(full.exception, UsageError) and "empty" in str(full.exception)
    missing = run(show, "yours", "--atlas", atlas)
    assert isinstance(missing.exception, UsageError) and "mine" in str(missing.exception)


def test_import_with_sites_given_by_hand(tmp_path):
    case = FIXTURES / "saelens/batchtopk"
    found = run(
        import_, case, "--out", tmp_path / "it", "--site", "blocks.4.hook_resid_post", "--model", "tiny", "--kept-as", "fp16"
    )
    assert found.exit_code == 0, found.exception
    spec = load_dictionary(tmp_path / "it").spec
    assert spec.inputs == spec.outputs == ("resid_post.4",)
    wrong = run(import_, FIXTURES / "saelens/topk", "--out", tmp_path / "no", "--site", "resid_post.4")
    assert isinstance(wrong.exception, UsageError) and "resid_post.3" in str(wrong.exception)
    alone = run(import_, case, "--out", tmp_path / "no", "--target", "resid_post.4")
    assert isinstance(alone.exception, UsageError)


def test_the_commands_load_nothing_heavy(tmp_path):
    import subprocess
    import sys

    code = "import sys; import assay.cli.dictionary_files; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
