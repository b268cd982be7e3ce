"""Steering against raw PyTorch hooks: all modes, phases and conditions, per-row strengths, with the KV cache."""

import numpy as np
import pytest
import torch

from assay.errors import ShapeError, SiteError, UsageError
from assay.model.edits import Condition, add, cap, clamp, fade, floor, project_out
from assay.steer.apply import Steering, edits, residual_norm, sweep
from assay.steer.directions import Direction
from conftest import tiny

RAGGED = [[5, 6, 7], [9, 8, 7, 6, 5, 4, 3], [11], [30, 31, 32, 33, 34]]
SITE, NEW = "resid_post.1", 4
MODES = ("add", "clamp", "project_out", "cap", "floor")
FAMILIES = ("llama", "gpt2", "bloom", "falcon", "gemma3")
_MODELS = {}


def model_of(family):
    if family not in _MODELS:
        _MODELS[family] = tiny(family)
    return _MODELS[family]


def direction(seed=0, site=SITE, **card):
    vector = torch.randn(32, generator=torch.Generator().manual_seed(seed))
    return Direction(site, vector / vector.norm(), float(vector.norm()), "given", card=card)


def by_hand(x, u, mode, s, norm):
    """One position's activation after steering, written out as a loop over nothing but numbers."""
    now = sum(float(a) * float(b) for a, b in zip(x, u, strict=True))
    target = {"add": now + s * norm, "clamp": s * norm, "project_out": (1 - s) * now,
              "cap": min(now, s * norm), "floor": max(now, s * norm)}[mode]  # fmt: skip
    return x + (target - now) * u


def phase_holds(phase, position, length):
    return {"all": True, "prompt": position < length, "generated": position >= length, "last": position >= length - 1}[phase]


def raw_generation(model, prompt, change, later="resid_post.2"):
    """Greedy tokens of one prompt alone, without a cache, with a hook on block 1; and the last pass at a later block."""
    ids, seen = list(prompt), {}
    blocks = [model.hf.get_submodule(block.path) for block in model.layout.blocks]

    def steer(module, args, out):
        x = (out[0] if isinstance(out, tuple) else out).clone()
        for position in range(x.shape[1]):
            x[0, position] = change(x[0, position], position)
        return (x, *out[1:]) if isinstance(out, tuple) else x

    def keep(module, args, out):
        seen["later"] = (out[0] if isinstance(out, tuple) else out)[0].clone()

    handles = [blocks[1].register_forward_hook(steer), blocks[int(later[-1])].register_forward_hook(keep)]
    try:
        with torch.no_grad():
            for _ in range(NEW):
                logits = model.hf(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
                ids.append(int(logits.argmax()))
                if ids[-1] == model.hf.generation_config.eos_token_id:
                    break
    finally:
        for handle in handles:
            handle.remove()
    return ids[len(prompt) :], seen["later"]


def compare(model, steering, norm, strengths, holds):
    """Batched, left-padded, cached generation under per-row strengths against each prompt alone by hand."""
    got = model.generate(RAGGED, max_new_tokens=NEW, edits=edits(steering, norm), sites="resid_post.2")
    u = steering.direction.vector
    for row, (prompt, s) in enumerate(zip(RAGGED, strengths, strict=True)):
        def change(x, position, prompt=prompt, s=s):
            mine = s != 0 and phase_holds(steering.phase, position, len(prompt)) and holds(x, position, len(prompt))
            return by_hand(x, u, steering.mode, s, norm) if mine else x

        tokens, later = raw_generation(model, prompt, change)
        assert got.tokens[row] == tokens
        torch.testing.assert_close(got.activations.rows("resid_post.2")[row], later, atol=3e-5, rtol=1e-4)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("phase", ["all", "prompt", "generated", "last"])
def test_generation_equals_raw_hooks(mode, phase):
    strengths = [0.8, -0.4, 0.0, 1.5]
    steering = Steering(direction(), mode, strengths, phase=phase)
    compare(model_of("llama"), steering, 0.5, strengths, lambda x, position, length: True)


@pytest.mark.parametrize("family", FAMILIES[1:])
@pytest.mark.parametrize("mode", ["add", "cap"])
def test_generation_equals_raw_hooks_in_other_families(family, mode):
    strengths = [2.0, 0.0, -1.0, 0.1]
    compare(model_of(family), Steering(direction(), mode, strengths), 1.0, strengths, lambda x, position, length: True)


@pytest.mark.parametrize("positions, wanted", [("last", lambda p, n: p == n - 1), ([0, -1], lambda p, n: p in (0, n - 1))])
def test_positions(positions, wanted):
    steering = Steering(direction(), "add", 1.5, positions=positions)
    compare(model_of("gpt2"), steering, 1.0, [1.5] * 4, lambda x, position, length: wanted(position, length))


@pytest.mark.parametrize("mode", ["add", "cap", "project_out"])
def test_a_condition_is_read_per_position_in_the_same_pass(mode):
    model, gate = model_of("llama"), direction(3)
    steering = Steering(direction(), mode, [0.5, 0.5, 0.0, 0.5], condition=gate, threshold=0.005)
    fired = []

    def holds(x, position, length):
        fired.append(float(x @ gate.vector) > 0.005)
        return fired[-1]

    compare(model, steering, 0.3, [0.5, 0.5, 0.0, 0.5], holds)
    assert any(fired) and not all(fired)


def test_a_condition_at_an_earlier_site_and_resumed_passes():
    model, gate = model_of("llama"), direction(4, "attn_out.0")
    push = direction(0, "resid_post.1")
    threshold = float(model.capture(RAGGED, gate.site).flat(gate.site).matmul(gate.vector).median())
    steering = edits(Steering(push, "add", 1.0, condition=gate, threshold=threshold), 2.0)
    acts = model.capture(RAGGED, [gate.site, push.site])
    fires = acts.flat(gate.site) @ gate.vector > threshold
    got = model.capture(RAGGED, push.site, edits=steering).flat(push.site)
    torch.testing.assert_close(got, acts.flat(push.site) + 2.0 * fires[:, None] * push.vector, atol=1e-6, rtol=1e-5)
    assert 0 < int(fires.sum()) < len(fires)
    metric = lambda logits, rows: logits[:, 3]  # noqa: E731
    resumed = model.score(RAGGED, metric, edits=steering, resume=model.checkpoint(RAGGED))
    torch.testing.assert_close(resumed, model.score(RAGGED, metric, edits=steering))
    full = model.generate(RAGGED, max_new_tokens=NEW, edits=steering, sites=[gate.site, push.site])
    for row, tokens in enumerate(full.tokens):
        whole = [(RAGGED[row] + tokens)[:-1]]
        alone = model.capture(whole, push.site, edits=steering).flat(push.site)
        torch.testing.assert_close(full.activations.rows(push.site)[row], alone, atol=3e-5, rtol=1e-4)


def test_a_condition_that_comes_later_or_cannot_be_read_is_refused():
    model, u = model_of("llama"), torch.randn(32)
    with pytest.raises(SiteError, match="not computed before"):
        model.logits(RAGGED, edits=[add(SITE, u, condition=Condition("resid_post.2", u, 0.0))])
    with pytest.raises(SiteError, match="pattern"):
        model.logits(RAGGED, edits=[add(SITE, u, condition=Condition("pattern.0", u, 0.0))])
    with pytest.raises(SiteError, match="z.0.1"):
        model.logits(RAGGED, edits=[add(SITE, u, condition=Condition("attn_out.0.1", u, 0.0))])
    with pytest.raises(ShapeError, match="condition at resid_post.0"):
        model.logits(RAGGED, edits=[add(SITE, u, condition=Condition("resid_post.0", u[:8], 0.0))])
    with pytest.raises(UsageError, match="threshold"):
        Condition(SITE, u, float("nan"))


@pytest.mark.parametrize("site", ["resid_post.1", "resid_mid.1", "attn_out.1", "mlp_out.1", "embed"])
def test_conditions_work_at_every_kind_of_site(site):
    """Two edits at one site: the condition of the second reads what the first left."""
    model, u, w = model_of("gpt2"), torch.randn(32), torch.randn(32)
    before = model.capture(RAGGED, site).flat(site)
    got = model.capture(RAGGED, site, edits=[add(site, u), add(site, w, condition=Condition(site, w, 0.1))]).flat(site)
    moved = before + u
    want = moved + (moved @ w / w.norm() > 0.1)[:, None] * w
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def test_component_edits_at_every_kind_of_site_against_their_formulas():
    model, u = model_of("llama"), torch.randn(32)
    unit = u / u.norm()
    for site, seen in (("resid_pre.1",) * 2, ("resid_mid.1",) * 2, ("mlp_out.0",) * 2, ("attn_out.1.2", "attn_out.1")):
        x = model.capture(RAGGED, site).flat(site)
        now = x @ unit
        level = float(now.median())
        cases = {cap: now.clamp(max=level), floor: now.clamp(min=level), clamp: torch.full_like(now, level), fade: now * level}
        for maker, target in cases.items():
            edit = maker(site, u, level, condition=Condition(site, u, -0.01))
            got, plain = (model.capture(RAGGED, seen, edits=found).flat(seen) for found in ([edit], []))
            want = plain + ((target - now) * (now > -0.01))[:, None] * unit
            torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)
        assert 0 < int((now > level).sum()) < len(now)


def test_half_precision_components_are_read_in_fp32():
    """In bf16 the component that is left after projecting out is rounding of x itself, not of the projection."""
    x = torch.randn(1, 64, 512, generator=torch.Generator().manual_seed(0)).bfloat16()
    u = torch.randn(512, generator=torch.Generator().manual_seed(1))
    from assay.model.edits import Frame, apply_edit

    frame = Frame(torch.zeros(1, dtype=torch.long), torch.tensor([64]), torch.zeros(1, dtype=torch.long))
    out = apply_edit(x, project_out(SITE, u), frame)
    wide = x.double()
    unit = u.double() / u.double().norm()
    want = wide - (wide @ unit)[..., None] * unit
    assert out.dtype == torch.bfloat16
    assert float((out.double() - want).abs().max()) <= float(want.abs().max()) * 2**-8


# strengths -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_strength_zero_is_no_edit(mode):
    assert edits(Steering(direction(), mode, 0.0), 3.0) == []
    assert edits(Steering(direction(), mode, [0.0, 0, -0.0]), 3.0) == []


@pytest.mark.parametrize("mode", MODES)
def test_sixteen_strengths_in_one_batch_do_not_leak(mode):
    """Each row is what it is in a batch of its strength alone; rows of strength 0 are bit-identical to unsteered ones."""
    model, prompt = model_of("llama"), [7, 8, 9, 10]
    strengths = [0.0 if n % 5 == 0 else (n - 8) / 4 for n in range(16)]
    prompts, per_row = sweep([prompt], strengths)
    site = "resid_post.2"
    plain = model.generate(prompts, max_new_tokens=NEW, sites=site)
    mixed = model.generate(prompts, max_new_tokens=NEW, sites=site, edits=edits(Steering(direction(), mode, per_row), 1.0))
    for row, s in enumerate(strengths):
        alone = model.generate(prompts, max_new_tokens=NEW, sites=site, edits=edits(Steering(direction(), mode, s), 1.0))
        assert mixed.tokens[row] == alone.tokens[row]
        torch.testing.assert_close(mixed.activations.rows(site)[row], alone.activations.rows(site)[row], atol=1e-6, rtol=1e-5)
        if s == 0:
            assert torch.equal(mixed.activations.rows(site)[row], plain.activations.rows(site)[row])
    changed = [not torch.equal(a, b) for a, b in zip(mixed.activations.rows(site), plain.activations.rows(site), strict=True)]
    assert sum(changed) >= 4  # a floor far below and a cap far above change nothing


def test_per_row_strengths_follow_their_prompts_through_batches():
    """Prompts are sorted by length and cut into batches: strengths stay with their prompts."""
    model = tiny("gpt2")
    model.memory_budget = 1 << 16
    strengths = [1.0, 2.0, 0.0, 3.0]
    before = model.capture(RAGGED, SITE)
    after = model.capture(RAGGED, SITE, edits=edits(Steering(direction(), "add", strengths), 1.0))
    for row, s in enumerate(strengths):
        change = after.rows(SITE)[row] - before.rows(SITE)[row]
        torch.testing.assert_close(change, s * direction().vector.expand_as(change), atol=1e-5, rtol=1e-4)


def test_a_number_of_strengths_that_does_not_fit_is_refused():
    with pytest.raises(ShapeError, match="one per prompt"):
        model_of("llama").logits(RAGGED, edits=edits(Steering(direction(), "add", [1.0, 2.0, 3.0]), 1.0))
    with pytest.raises(ShapeError, match=SITE):
        model_of("llama").logits(RAGGED, edits=edits(Steering(direction(), "cap", [1.0, 2.0, 3.0]), 1.0))


def test_strengths_may_be_a_list_a_tensor_or_an_array():
    found = [edits(Steering(direction(), "add", given), 1.0)[0] for given in
             ([0.0, 1.0, 2.0], torch.tensor([0.0, 1.0, 2.0]), np.array([0.0, 1.0, 2.0]))]  # fmt: skip
    assert all(torch.equal(edit.value, found[0].value) and edit.rows == (1, 2) for edit in found)


def test_sweep_repeats_all_prompts_at_each_strength():
    assert sweep(["a", "b"], [0, 1.5]) == (["a", "b", "a", "b"], [0.0, 0.0, 1.5, 1.5])


# nothing stays behind ------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("at_step", [0, 2])
def test_no_edit_survives_an_exception(error, at_step):
    """Raised inside block 2, after the steered block 1, in the prompt's pass and in the middle of generation."""
    model = tiny("llama")
    plain = model.generate(RAGGED, max_new_tokens=NEW, sites="resid_post.2")
    before = model.hf(input_ids=torch.tensor([[5, 6, 7]])).logits
    steering = edits(Steering(direction(), "add", [3.0] * 4, condition=direction(1, "resid_post.0"), threshold=-9.0), 1.0)
    block, calls = model.hf.get_submodule(model.layout.blocks[2].path), []

    def bomb(*_):
        calls.append(1)
        if len(calls) > at_step:
            raise error("inside")

    handle = block.register_forward_pre_hook(bomb)
    with pytest.raises(error):
        model.generate(RAGGED, max_new_tokens=NEW, edits=steering)
    handle.remove()
    assert len(calls) == at_step + 1
    hooked = [m for m in model.hf.modules() if m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m)]
    assert hooked == [] and not model.engine.busy
    assert torch.equal(model.hf(input_ids=torch.tensor([[5, 6, 7]])).logits, before)
    again = model.generate(RAGGED, max_new_tokens=NEW, sites="resid_post.2")
    assert again.tokens == plain.tokens
    assert torch.equal(again.activations.flat("resid_post.2"), plain.activations.flat("resid_post.2"))


def test_generated_only_leaves_earlier_turns_alone():
    """A second turn on top of a steered first one: what the cache holds for the first turn is what an unsteered model has."""
    model = model_of("llama")
    steering = edits(Steering(direction(), "add", 3.0, phase="generated"), 1.0)
    first = model.generate([[5, 6, 7]], max_new_tokens=3, edits=steering)
    turn = [5, 6, 7, *first.tokens[0], 20, 21]
    second = model.generate([turn], max_new_tokens=3, edits=steering, sites="resid_post.2")
    plain = model.capture([turn], "resid_post.2").flat("resid_post.2")
    torch.testing.assert_close(second.activations.flat("resid_post.2")[: len(turn)], plain, atol=1e-6, rtol=1e-5)


# doses ---------------------------------------------------------------------------------------------


def test_a_dose_is_a_share_of_typical_norms():
    """First positions and a token of enormous norm do not count."""
    model = tiny("llama")
    with torch.no_grad():
        model.hf.get_input_embeddings().weight[150] *= 1000
    texts = [[5, 6, 7, 8], [9, 150, 10], [11], [12, 13]]
    with torch.no_grad():
        acts = [model.hf(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[2][0] for ids in texts]
    norms = {(row, at): float(x.norm()) for row, rows in enumerate(acts) for at, x in enumerate(rows)}
    typical = [norm for (row, at), norm in norms.items() if at > 0 and (row, at) != (1, 1)]
    assert norms[1, 1] > 10 * max(typical)
    assert residual_norm(model, SITE, texts) == pytest.approx(sum(typical) / len(typical), rel=1e-5)
    behind = residual_norm(model, "mlp_in.2", texts)  # behind a norm, the residual stream tells
    inside = model.capture(texts, "mlp_in.2").rows("mlp_in.2")
    kept = [float(x.norm()) for row, rows in enumerate(inside) for at, x in enumerate(rows) if at > 0 and (row, at) != (1, 1)]
    assert behind == pytest.approx(sum(kept) / len(kept), rel=1e-5)
    with pytest.raises(UsageError, match="texts"):
        residual_norm(model, SITE, [[5], [6]])


def test_wrong_settings_are_refused():
    u = direction()
    for change, name in (
        ({"mode": "twist"}, "mode"), ({"phase": "later"}, "phase"), ({"strength": float("nan")}, "strength"),
        ({"strength": []}, "strength"), ({"strength": torch.ones(2, 2)}, "strength"), ({"strength": "much"}, "strength"),
        ({"threshold": 1.0}, "threshold"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=name):
            Steering(u, **{"mode": "add", **change})
    with pytest.raises(UsageError, match="norm"):
        edits(Steering(u), 0.0)
    with pytest.raises(UsageError, match="threshold"):
        edits(Steering(u, condition=u))
    (edit,) = edits(Steering(u, condition=direction(2, threshold=0.25)))
    assert edit.condition is not None and edit.condition.threshold == 0.25
    assert edit.describe()["condition"] == {"site": SITE, "threshold": 0.25}
    (edit,) = edits(Steering(u, condition=direction(2, intercept=-3.0)))
    assert edit.condition is not None and edit.condition.threshold == pytest.approx(3.0 / direction(2).scale)
    with pytest.raises(UsageError, match="threshold"):
        edits(Steering(u, condition=direction(2, threshold="high")))
    assert Steering(u, "cap", [1, 2]).describe()["strength"] == [1.0, 2.0]
