"""Every family's layout is proved; what is wrong is refused."""

import pytest
import torch

from assay.errors import LayoutError, SiteError
from conftest import FAMILIES, tiny, tiny_hf, wrap


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_proved(family):
    proof = tiny(family).check()
    assert [s for s in proof.sites if not s.proved] == []
    names = {s.site.split(".")[0] for s in proof.sites}
    assert {"embed", "resid_pre", "resid_post", "attn_out", "mlp_out", "q", "k", "v", "z", "pattern"} <= names
    parallel = family in ("neox", "phi", "falcon", "falcon_multi_query")
    assert ("resid_mid" in names) != parallel
    assert ("mlp_act" in names) == (family != "mixtral")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_proved_in_bfloat16(family):
    proof = wrap(tiny_hf(family).to(torch.bfloat16)).proof
    refused = {s.site.split(".")[0] for s in proof.sites if not s.proved}
    assert refused <= {"q", "k"}  # tiny random weights: their effect on z can be below bf16's resolution


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_the_default_model_is_proved_whatever_the_thread_count(smollm2, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        proof = smollm2.check()
    finally:
        torch.set_num_threads(before)
    assert proof.proved
    assert max(s.error for s in proof.sites if "nothing else" in s.equation) < 1e-6


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "gemma2", "opt", "falcon"])
def test_capture_equals_raw_hooks(family):
    model = tiny(family)
    ids = torch.arange(20, 29)[None]
    blocks = [model.hf.get_submodule(b.path) for b in model.layout.blocks]
    seen = {}
    hook = blocks[1].register_forward_hook(
        lambda m, a, out: seen.update(x=(out[0] if isinstance(out, tuple) else out).clone())
    )
    with torch.no_grad():
        model.hf(input_ids=ids)
    hook.remove()
    assert torch.equal(model.capture(ids, "resid_post.1")["resid_post.1"], seen["x"])


def test_interventions_tell_q_from_k():
    """The layout proposal is broken by hand: q's point is k's and k's is q's."""
    from assay.model.layout import find_layout
    from assay.model.prove import _Prover, probe_tokens
    from assay.sites import Site

    torch.manual_seed(0)
    hf = tiny_hf("neox")
    tokens = probe_tokens(hf)
    with torch.no_grad():
        layout = find_layout(hf, tokens)
        for layer in range(3):
            q, k = Site("q", layer), Site("k", layer)
            layout.points[q], layout.points[k] = layout.points[k], layout.points[q]
        proof = _Prover(hf, layout, tokens).run()
    failed = {s.site for s in proof.sites if not s.proved}
    assert {"q.0", "k.0", "q.1", "k.1", "q.2", "k.2"} <= failed
    assert "z.0" not in failed
    model = wrap(hf)
    model.__dict__["proof"] = proof
    with pytest.raises(SiteError, match=r"q at p moves z at p"):
        model.capture([[5, 6, 7]], "q.1")


def test_model_that_does_not_add_up_is_refused():
    hf = tiny_hf("llama")
    block = hf.model.layers[1]
    forward = block.forward
    block.forward = lambda *args, **kwargs: forward(*args, **kwargs) * 1.5
    with pytest.raises(LayoutError, match="resid_post.1|residual"):
        wrap(hf).check()


def test_sites_that_do_not_exist_say_why():
    with pytest.raises(SiteError, match="parallel block"):
        tiny("neox").capture([[5, 6]], "resid_mid.0")
    with pytest.raises(SiteError, match="mixture of experts"):
        tiny("mixtral").capture([[5, 6]], "mlp_act.0")
    with pytest.raises(SiteError, match="head 9 does not exist"):
        tiny("llama").capture([[5, 6]], "z.0.9")
