"""Streams and dictionaries at the ends of what there is: one active neuron, one latent, one token, several sites, odd texts."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from assay.cli.main import cli
from assay.cli.superposition import _figures, _geometry, dictionary_lines
from assay.cli.trace import _in
from assay.data.corpora import open_corpus
from assay.data.corpus_rows import _ids
from assay.errors import UsageError
from assay.features.contexts import latent_units
from assay.features.dictionary import Spec, make_dictionary
from assay.features.harvest import LiveStream
from assay.features.held_out import FACTOR, limits_of
from assay.features.massive import Limits
from assay.features.train import TrainPlan, train
from conftest import tiny

SAID = "The cat number {} sat on the mat and saw {} dogs in the garden."
TEXTS = "\n".join(json.dumps({"text": SAID.format(n, n * 7)}) for n in range(200))


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "texts.jsonl").write_text(TEXTS)
    return open_corpus(str(tmp_path / "texts.jsonl"))


def stream(glass, corpus, sites, tokens=4000):
    return LiveStream(glass, corpus, sites, tokens, context=32)


def test_decoders_of_free_norm_over_several_sites_are_refused_before_any_step(glass, corpus):
    """Each site has a scale of its own, so in raw units other latents would be chosen than were trained."""
    sites = ("resid_post.1", "mlp_out.1")
    flow = stream(glass, corpus, sites)
    for architecture in ("topk", "batchtopk", "matryoshka"):
        spec = Spec(architecture, 32, 256, 256, 4, sites, sites, options={"decoder": "free"})
        with pytest.raises(UsageError, match="decoder: got 'free, for several sites'; allowed: unit, or .*crosscoder"):
            train(flow, [spec], TrainPlan(tokens=2000, batch=256))


def test_a_first_batch_without_variance_is_refused(glass, corpus):
    spec = Spec("topk", 32, 128, 128, 4, ("resid_post.1",), ("resid_post.1",))
    with pytest.raises(UsageError, match="batch: got '1 tokens that are all alike"):
        train(stream(glass, corpus, ["resid_post.1"]), [spec], TrainPlan(tokens=50, batch=1))


def test_a_site_whose_usual_token_is_zero_has_no_limit():
    limits = Limits(1, 10.0, {"mlp_act.1.3": 0.0, "resid_post.1": 2.0}, {"mlp_act.1.3": "mlp_act.1.3"}, {"mlp_act.1.3": 1})
    assert limits.of("mlp_act.1.3") is None and limits.of("resid_post.1") == 20
    assert Limits(1, None, {"resid_post.1": 2.0}, {}, {}).of("resid_post.1") is None
    x = torch.zeros(40, 1)
    x[:9] = 3.0
    found = limits_of(make_dictionary(Spec("topk", 4, 1, 1, 1, ("mlp_act.1.3",), ("mlp_act.1.3",))), x, x + 1)
    assert found.x is None and found.y == FACTOR and bool(found.typical(x, x, torch.arange(40))[1:].all())




def test_limits_of_several_sites_are_their_own():
    sites = ("resid_post.1", "mlp_out.1")
    dictionary = make_dictionary(Spec("crosscoder", 8, 64, 64, 2, sites, sites, options={"sizes": [32, 32]}))
    dictionary.provenance = {"stream": {"limits": {"norm_limits": {"resid_post.1": 93.0, "mlp_out.1": 46.0}}}}
    found = limits_of(dictionary, torch.ones(9, 64), torch.ones(9, 64))
    assert (found.x, found.y, found.measured) == (None, None, False) and len(dictionary.massive_above) == 2


def test_latents_leave_tokens_alone_that_the_stream_before_a_norm_shows(glass):
    """Against the norms that a capture gives; the limit lies between two tokens of the text."""
    ids = glass.tokens("The girl said that the cat was in the garden with a bear")[0]
    norms = glass.capture([ids], ["resid_pre.1"]).flat(glass.sites(["resid_pre.1"])[0]).norm(dim=1)
    limit = float(norms[1:].quantile(0.5))
    d = glass.dims.d_model
    dictionary = make_dictionary(Spec("topk", 16, d, d, 16, ("mlp_in.1",), ("mlp_in.1",), skip_first=1), "seen")
    torch.manual_seed(0)
    with torch.no_grad():
        for value in dictionary.parameters():
            value.normal_()
    dictionary.requires_grad_(False)
    dictionary.provenance = {"stream": {"limits": {"guards": {"mlp_in.1": {"site": "resid_pre.1", "limit": limit}}}}}
    (fired,) = latent_units(glass, dictionary).firings([ids])
    wanted = [at for at in range(1, len(ids)) if norms[at] <= limit]
    assert sorted(set(fired.positions.tolist())) == wanted and 2 < len(wanted) < len(ids) - 2


def test_half_of_a_surrogate_pair_is_read_as_no_character(tmp_path, glass):
    (tmp_path / "odd.jsonl").write_text('{"text": "the cat \\ud83d sat, \\ud83d\\ude00 \\u00e9"}\n' + TEXTS)
    first = next(iter(open_corpus(str(tmp_path / "odd.jsonl")).documents()))
    assert first.text == "the cat \ufffd sat, \U0001f600 \u00e9" and _ids(glass, [first.text])
    with pytest.raises(TypeError):
        _ids(glass, ["\ud83d"])  # what the tokenizer does with it
    given = ["harvest", "glass-en", str(tmp_path / "odd.jsonl"), "--site", "resid_post.1", "--tokens", "900", "--context", "32",
             "--out", str(tmp_path / "acts"), "--quiet", "--atlas", str(tmp_path / "at")]  # fmt: skip
    done = CliRunner().invoke(cli, given)
    assert done.exit_code == 0, done.output


def test_a_dictionary_of_one_latent_has_no_interference(tmp_path):
    model = tiny("llama")
    d = model.dims.d_model
    one = make_dictionary(Spec("topk", 1, d, d, 1, ("resid_post.1",), ("resid_post.1",)), "one")
    with torch.no_grad():
        one.W_dec.fill_(0.3)
    found = _geometry(model, one)
    assert found["interference"] is None and "no two directions" in dictionary_lines(found)[0]
    record = {"found": [], "dictionary": found, "model": "tiny", "encoder": {"name": "none"}}
    assert _figures(record, one, tmp_path, "x") == []


def test_a_folder_with_a_transcoder_for_each_layer_is_all_of_them(tmp_path):
    """As circuit-tracer keeps them."""
    draw = torch.Generator().manual_seed(0)
    for layer in range(3):
        tensors = {"W_enc": (24, 8), "W_dec": (24, 8), "b_enc": (24,), "b_dec": (8,)}
        save_file({name: torch.randn(shape, generator=draw) for name, shape in tensors.items()},
                  tmp_path / f"layer_{layer}.safetensors")  # fmt: skip
    (tmp_path / "config.yaml").write_text("feature_input_hook: mlp.hook_in  # read\nfeature_output_hook: mlp.hook_out\n")
    found = _in(tmp_path)
    assert [one.spec.outputs for one in found] == [(f"mlp_out.{layer}",) for layer in range(3)]
    assert np.unique([one.digest for one in found]).size == 3 and isinstance(found[0].provenance, dict)
    assert SimpleNamespace(**found[0].provenance["imported"]).settings["feature_input_hook"] == "mlp.hook_in"
