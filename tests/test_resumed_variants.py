"""Changes at a site in the middle: passes that resume there give what whole passes with raw hooks give."""

import random
from types import SimpleNamespace

import pytest
import torch

from assay.data.metrics import Metric
from assay.evidence import effects
from assay.evidence.connects import Clean
from assay.probe import variants
from assay.sites import parse_site
from conftest import tiny

LAYERS = {"llama": lambda hf: hf.model.layers, "gpt2": lambda hf: hf.transformer.h, "gemma2": lambda hf: hf.model.layers}


def hooked(model, family, ids, layer, change):
    """(stream after the last block, logits) of one prompt, with the output of a block changed."""
    seen = []

    def hook(module, given, output):
        first = output[0] if isinstance(output, tuple) else output
        return (change(first), *output[1:]) if isinstance(output, tuple) else change(first)

    def keep(module, given, output):
        seen.append(output[0] if isinstance(output, tuple) else output)

    blocks = LAYERS[family](model.hf)
    handles = [blocks[layer].register_forward_hook(hook), blocks[-1].register_forward_hook(keep)]
    try:
        with torch.no_grad():
            logits = model.hf(torch.tensor([ids])).logits[0]
    finally:
        for handle in handles:
            handle.remove()
    return seen[0].reshape(len(ids), -1), logits


@pytest.fixture(params=list(LAYERS))
def case(request):
    model, rng = tiny(request.param), random.Random(0)
    prompts = [[rng.randrange(3, 199) for _ in range(length)] for length in (5, 9, 12, 12)]
    others = [[rng.randrange(3, 199) for _ in ids] for ids in prompts]
    return SimpleNamespace(model=model, family=request.param, prompts=prompts, others=others,
                           vector=torch.randn(32, generator=torch.Generator().manual_seed(1)))  # fmt: skip


@pytest.mark.parametrize("chunk", [1 << 24, 1500])
def test_variants_equal_raw_hooks(case, chunk, monkeypatch):
    monkeypatch.setattr(variants, "CHUNK_FLOATS", chunk)
    place = variants.place_of(case.model, "resid_post.1", "all")
    metric = Metric("logit_diff", [(7,)] * 4, [(11,)] * 4)
    basis = variants.orthonormal([case.vector])
    asked = [variants.pushed(case.vector), variants.interchange(basis), variants.unchanged, variants.swapped]
    found = variants.run_variants(case.model, case.prompts, metric, place, asked, case.others)
    for row, (ids, other) in enumerate(zip(case.prompts, case.others, strict=True)):
        taken = []
        hooked(case.model, case.family, other, 1, lambda x, into=taken: into.append(x) or x)
        for number, variant in enumerate(asked):
            _, logits = hooked(case.model, case.family, ids, 1, lambda x, v=variant, t=taken: v(x, t[0].reshape(x.shape)))
            assert found[number, row].item() == pytest.approx((logits[-1, 7] - logits[-1, 11]).item(), abs=1e-4)


@pytest.mark.parametrize("positions", ["all", "last"])
def test_damage_equals_raw_hooks(case, positions, monkeypatch):
    monkeypatch.setattr(type(case.model), "tokens", lambda self, given: [list(ids) for ids in given])
    place = variants.place_of(case.model, "resid_post.1", positions)
    found = effects.neutral_kl(case.model, case.prompts, place, [variants.pushed(case.vector), variants.pushed(-case.vector)])

    def pushed(sign, x):
        where = torch.zeros_like(x)
        where[..., -1 if positions == "last" else slice(None), :] = sign * case.vector
        return x + where

    for row, ids in enumerate(case.prompts):
        before = hooked(case.model, case.family, ids, 1, lambda x: x)[1].log_softmax(-1)
        for number, sign in enumerate((1, -1)):
            after = hooked(case.model, case.family, ids, 1, lambda x, s=sign: pushed(s, x))[1].log_softmax(-1)
            lost = (before.exp() * (before - after)).sum(-1)
            wanted = lost[-1] if positions == "last" else lost.mean()
            assert found[number][row] == pytest.approx(wanted.item(), abs=1e-5, rel=1e-3)


def test_a_cause_in_the_middle_equals_raw_hooks(case):
    unit = case.vector / case.vector.norm()
    a, b = (SimpleNamespace(site=parse_site(f"resid_post.{layer}"), vector=unit, off=-0.3, fires=lambda x: x > -10.0)
            for layer in (1, 2))  # fmt: skip
    clean = Clean(case.model, case.prompts, SimpleNamespace(a=a, b=b, targets=[b]))
    assert clean.resume is not None  # what lies before the cause does not run again
    for direction, after in zip((unit, case.vector), clean.after([unit, case.vector]), strict=True):
        for row, ids in enumerate(case.prompts):
            stream, _ = hooked(case.model, case.family, ids, 1,
                               lambda x, d=direction: x - ((x @ unit + 0.3)[..., None] * d))  # fmt: skip
            assert torch.allclose(after[row, : len(ids)], stream, atol=1e-4)
