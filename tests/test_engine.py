"""Capture, edits, gradients, resume and generation against raw PyTorch hooks."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import GPT2LMHeadModel

from assay import add, clamp, patch, project_out, scale, zero
from assay.errors import LengthError, ShapeError, UsageError
from assay.model.context import learned_positions
from conftest import FAMILIES, tiny, tiny_hf, wrap

RAGGED = [[5, 6, 7], [9, 8, 7, 6, 5, 4, 3], [11], [30, 31, 32, 33, 34]]


def raw_logits(model, ids, path, change, before=False):
    """Logits with one module's output (or first input) changed by hand."""
    module = model.hf.get_submodule(path)

    def after_hook(m, args, out):
        return (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)

    if before:
        handle = module.register_forward_pre_hook(lambda m, args: (change(args[0]), *args[1:]))
    else:
        handle = module.register_forward_hook(after_hook)
    with torch.no_grad():
        logits = model.hf(input_ids=torch.tensor([ids])).logits[0, -1]
    handle.remove()
    return logits


def test_patch_equals_raw_hooks():
    model, ids, value = tiny("llama"), [5, 6, 7, 8], torch.randn(32)

    def at_two(x):
        x = x.clone()
        x[:, 2] = value
        return x

    got = model.logits([ids], edits=[patch("resid_post.1", value, positions=[2])])[0]
    torch.testing.assert_close(got, raw_logits(model, ids, "model.layers.1", at_two), atol=1e-6, rtol=1e-5)


def test_head_edits_equal_raw_hooks():
    model, ids = tiny("llama"), [5, 6, 7, 8]

    def no_head_two(x):
        x = x.clone()
        x[..., 16:24] = 0
        return x

    want = raw_logits(model, ids, "model.layers.1.self_attn.o_proj", no_head_two, before=True)
    for site in ("z.1.2", "attn_out.1.2"):
        got = model.logits([ids], edits=[zero(site)])[0]
        torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("edit, expected", [
    (lambda u: add("resid_post.0", u), lambda x, u: x + u),
    (lambda u: scale("resid_post.0", 2.5), lambda x, u: x * 2.5),
    (lambda u: project_out("resid_post.0", u), lambda x, u: x - (x @ u)[..., None] * u / (u @ u)),
    (lambda u: clamp("resid_post.0", u, 3.0), lambda x, u: x + (3 - x @ u / u.norm())[..., None] * u / u.norm()),
])  # fmt: skip
def test_edit_formulas(edit, expected):
    model, u = tiny("gpt2"), torch.randn(32)
    before = model.capture(RAGGED, "resid_post.0").flat("resid_post.0")
    after = model.capture(RAGGED, "resid_post.0", edits=[edit(u)]).flat("resid_post.0")
    torch.testing.assert_close(after, expected(before, u), atol=1e-5, rtol=1e-5)


def test_resid_mid_edit_changes_the_whole_stream():
    model, value = tiny("gemma2"), torch.randn(32)
    acts = model.capture(RAGGED, ["resid_mid.1", "resid_post.1", "mlp_out.1"], edits=[patch("resid_mid.1", value)])
    torch.testing.assert_close(acts["resid_mid.1"][0, 0], value, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(acts.flat("resid_post.1"), acts.flat("mlp_out.1") + value, atol=1e-5, rtol=1e-5)


def test_pattern_edit_is_pattern_times_v():
    model, ids = tiny("qwen3"), [[5, 6, 7, 8]]
    uniform = torch.full((1, 4, 4), 0.25).tril()
    acts = model.capture(ids, ["z.1", "v.1"], edits=[patch("pattern.1.3", uniform)])
    want = uniform[0] @ acts["v.1"][0, :, 1]
    torch.testing.assert_close(acts["z.1"][0, :, 3], want, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "opt", "gemma3", "falcon"])
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(4)), budget=st.integers(1, 40))
def test_batching_never_changes_results(family, order, budget):
    model = _cached(family)
    model.memory_budget = budget * 20_000
    prompts = [RAGGED[i] for i in order]
    acts = model.capture(prompts, ["resid_post.2", "z.1.0"])
    logits = model.logits(prompts)
    for row, last, prompt in zip(acts.rows("resid_post.2"), logits, prompts, strict=True):
        torch.testing.assert_close(last, model.logits([prompt])[0], atol=2e-5, rtol=1e-4)
        alone = model.capture([prompt], "resid_post.2")["resid_post.2"][0]
        torch.testing.assert_close(row, alone, atol=2e-5, rtol=1e-4)


_MODELS = {}


def _cached(family):
    if family not in _MODELS:
        _MODELS[family] = tiny(family)
    return _MODELS[family]


def test_resume_equals_a_full_pass():
    model, value = tiny("qwen2"), torch.randn(4, 1, 32)
    edits = [patch("resid_post.1", value, positions="last")]
    metric = lambda logits, rows: logits[:, 3] - logits[:, 4]  # noqa: E731
    start = model.checkpoint(RAGGED)
    assert torch.equal(model.score(RAGGED, metric, edits=edits, resume=start),
                       model.score(RAGGED, metric, edits=edits))  # fmt: skip


def test_a_checkpoint_of_one_layer_saves_nothing_and_changes_nothing():
    config = FAMILIES["gpt2"]()
    config.n_layer = 1
    model = wrap(GPT2LMHeadModel(config).eval())
    edits, metric = [zero("z.0.1")], lambda logits, rows: logits[:, 3] - logits[:, 4]
    start = model.checkpoint(RAGGED)
    assert start.layers == ()
    assert torch.equal(model.score(RAGGED, metric, edits=edits, resume=start), model.score(RAGGED, metric, edits=edits))


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_a_prompt_beyond_the_learned_positions_is_refused_by_number(family):
    model = tiny(family)
    assert model.logits([list(range(5, 69))]).shape == (1, 199)
    for ask in (model.logits, lambda ids: model.capture(ids, "resid_post.1")):
        with pytest.raises(LengthError, match="prompts: got 65 tokens in prompt 1; allowed: at most 64"):
            ask([[5, 6], list(range(5, 70))])


def test_positions_that_are_computed_have_no_end():
    assert tiny("llama").logits([list(range(5, 75))]).shape[0] == 1 and learned_positions(tiny("bloom").hf) is None


def plain_gradient(model, site, ids):
    """d (logit 3 - logit 4 at the end) / d a module's own tensor, by autograd alone, nothing detached.

    The tensor is handed on as a copy, so that it stands for its own site and not for another reader
    of the same tensor (parallel blocks) or writer into it; only resid_mid is meant with all its readers.
    """
    held, point = {}, model.layout.points[site]

    def keep(tensor):
        held["raw"] = tensor if site.name == "resid_mid" or point.side == "out" else tensor.clone()
        held["raw"].retain_grad()
        return tensor if site.name == "resid_mid" else held["raw"].clone()

    def before(module, args, kwargs):
        if isinstance(point.key, int):
            return (*args[: point.key], keep(args[point.key]), *args[point.key + 1 :]), kwargs
        return args, {**kwargs, point.key: keep(kwargs[point.key])}

    def after(module, args, out):
        return (keep(out[0]), *out[1:]) if isinstance(out, tuple) else keep(out)

    module = model.hf.get_submodule(point.path)
    if point.side == "in":
        handle = module.register_forward_pre_hook(before, with_kwargs=True)
    else:
        handle = module.register_forward_hook(after)
    logits = model.hf(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
    (logits[3] - logits[4]).backward()
    handle.remove()
    return point.read(held["raw"].grad, 1)[0] / point.scale**2  # read() multiplies by the scale, the chain rule divides


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_equal_autograd(family):
    model = _cached(family)
    sites = [site for site in model.layout.points if site.name not in ("logits", "pattern")]
    slopes, values, scores = model.gradients(RAGGED, sites, lambda logits, rows: logits[:, 3] - logits[:, 4])
    ids = RAGGED[1]
    for site in sites:
        want = plain_gradient(model, site, ids)
        torch.testing.assert_close(slopes.rows(site)[1], want, atol=1e-6 * float(want.abs().max() + 1), rtol=1e-3)
    acts = model.capture(RAGGED, sites)
    for site in sites:
        torch.testing.assert_close(values.flat(site), acts.flat(site), atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(scores, model.score(RAGGED, lambda logits, rows: logits[:, 3] - logits[:, 4]))
    assert all(p.requires_grad for p in model.hf.parameters())


def test_gradients_survive_families_that_write_in_place():
    """Falcon adds attention into the tensor its MLP returned."""
    model, site = _cached("falcon"), "mlp_out.1"
    slopes, values, _ = model.gradients(RAGGED, [site], lambda logits, rows: logits[:, 3])
    torch.testing.assert_close(values.flat(site), model.capture(RAGGED, site).flat(site), atol=1e-5, rtol=1e-4)
    later, _, _ = model.gradients(RAGGED, "resid_post.1", lambda logits, rows: logits[:, 3])
    torch.testing.assert_close(slopes.flat(site), later.flat("resid_post.1"))


def test_generation_without_edits_is_hf_and_keeps_activations():
    model = tiny("llama")
    generation = model.generate(RAGGED, max_new_tokens=5, sites=["resid_post.1"])
    for prompt, new, acts in zip(RAGGED, generation.tokens, generation.activations.rows("resid_post.1"), strict=True):
        want = model.hf.generate(torch.tensor([prompt]), max_new_tokens=5, do_sample=False, pad_token_id=0)[0]
        assert [*prompt, *new] == want.tolist()
        full = model.capture([(prompt + new)[:-1]], "resid_post.1")["resid_post.1"][0]
        torch.testing.assert_close(acts, full, atol=2e-5, rtol=1e-4)


def test_generation_edit_hits_absolute_positions_and_rows():
    model, push = tiny("gpt2"), torch.randn(4, 32)
    push[1] = 0  # per-prompt strengths: prompt 1 must not change
    plain = model.generate(RAGGED, max_new_tokens=4, sites=["resid_post.0"])
    edit = add("resid_post.0", push, phase="generated")
    steered = model.generate(RAGGED, max_new_tokens=4, sites=["resid_post.0"], edits=[edit])
    assert plain.tokens[1] == steered.tokens[1]
    for row, prompt in enumerate(RAGGED):
        before, after = (g.activations.rows("resid_post.0")[row] for g in (plain, steered))
        torch.testing.assert_close(before[: len(prompt)], after[: len(prompt)], atol=1e-5, rtol=1e-4)
        delta = after[len(prompt)] - before[len(prompt)]
        torch.testing.assert_close(delta, push[row], atol=1e-5, rtol=1e-4)


def test_everything_is_left_as_found_after_an_exception():
    model = tiny("llama")
    model.proof  # noqa: B018
    before = model.hf(input_ids=torch.tensor([[5, 6, 7]])).logits

    def interrupted(logits, rows):
        raise KeyboardInterrupt

    start = model.checkpoint([[5, 6, 7]])
    with pytest.raises(KeyboardInterrupt):
        model.score([[5, 6, 7]], interrupted, edits=[zero("pattern.2.1"), zero("z.2.0")], resume=start)
    hooks = [m for m in model.hf.modules() if m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m)]
    assert hooks == []
    assert torch.equal(model.hf(input_ids=torch.tensor([[5, 6, 7]])).logits, before)


@pytest.mark.parametrize("family", ["llama", "gpt2", "falcon", "mixtral"])
def test_a_pass_interrupted_inside_leaves_nothing(family):
    model = tiny(family)
    start = model.checkpoint(RAGGED)
    block = model.hf.get_submodule(model.layout.blocks[2].path)
    seen = []
    mine = [block.register_forward_hook(lambda *_: seen.append(1)), block.register_forward_pre_hook(lambda *_: None)]

    def interrupt(*_):
        raise KeyboardInterrupt

    bomb = block.register_forward_pre_hook(interrupt)
    difference = lambda logits, rows: logits[:, 3]  # noqa: E731
    edits = [zero("pattern.2.1"), zero("z.1.0"), zero("attn_out.1.1")]
    for call in (
        lambda: model.score(RAGGED, difference, edits=edits, resume=start),
        lambda: model.gradients(RAGGED, "resid_pre.1", difference),
        lambda: model.generate(RAGGED, max_new_tokens=2, edits=edits[1:], sites=["z.2"]),
        lambda: model.capture(RAGGED, ["pattern.2", "resid_post.2"]),
    ):
        with pytest.raises(KeyboardInterrupt):
            call()
        hooked = {m for m in model.hf.modules() if m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m)}
        assert hooked == {block} and len(block._forward_hooks) == 1 and len(block._forward_pre_hooks) == 2
        assert not model.engine.busy and all(p.requires_grad for p in model.hf.parameters())
        assert torch.overrides._get_current_function_mode_stack() == []
    bomb.remove()
    model.capture(RAGGED, "resid_post.2")
    assert seen  # other people's hooks still run
    for handle in mine:
        handle.remove()


def test_random_state_and_modes_are_left_as_found():
    model = tiny("gpt2")
    model.proof  # noqa: B018
    model.hf.train()
    frozen = next(model.hf.parameters())
    frozen.requires_grad_(False)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    model.check()
    model.capture(RAGGED, "resid_post.1")
    model.gradients(RAGGED, "resid_post.1", lambda logits, rows: logits[:, 3])
    model.generate(RAGGED, max_new_tokens=2, temperature=1.0, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(module.training for module in model.hf.modules())
    assert [p.requires_grad for p in model.hf.parameters()].count(False) == 1


def test_captures_are_owned():
    model = tiny("falcon")
    sites = [site for site in model.layout.points if site.name != "pattern"]
    acts = model.capture(RAGGED, sites)
    storages = [acts.flat(site).untyped_storage().data_ptr() for site in acts]
    assert len(set(storages)) == len(storages)
    weights = {p.untyped_storage().data_ptr() for p in model.hf.parameters()}
    assert not weights & set(storages) and not any(acts.flat(site).requires_grad for site in acts)


def test_a_run_inside_a_run_is_refused_in_words():
    model = tiny("llama")
    with pytest.raises(UsageError, match="already running"):
        model.score(RAGGED, lambda logits, rows: model.logits(RAGGED)[:, 0])


def test_layers_from_the_end_ranges_and_stars():
    model = tiny("llama")
    acts = model.capture(RAGGED, ["resid_post.-1", "z.0:2.1", "mlp_out.*"])
    assert [str(site) for site in acts] == ["resid_post.2", "z.0.1", "z.1.1", "mlp_out.0", "mlp_out.1", "mlp_out.2"]
    assert torch.equal(acts["z.0.1"], model.capture(RAGGED, "z.0")["z.0"][:, :, 1])


def test_dispatched_models_run_and_are_proved():
    """Modules under accelerate's hooks, as device_map leaves them."""
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    want = tiny("llama").capture(RAGGED, ["z.1", "resid_post.2"])
    hf = tiny_hf("llama")
    for module in [hf, *hf.model.layers, hf.lm_head]:
        add_hook_to_module(module, AlignDevicesHook("cpu", io_same_device=True), append=True)
    hooked = [module for module in hf.modules() if "forward" in vars(module)]
    model = wrap(hf)
    assert model.proof.proved
    got = model.capture(RAGGED, ["z.1", "resid_post.2"])
    for site in got:
        assert torch.equal(got.flat(site), want.flat(site))
    start = model.checkpoint(RAGGED)
    edit = [add("resid_post.1", 1.0, positions="last")]
    metric = lambda logits, rows: logits[:, 3]  # noqa: E731
    assert torch.equal(model.score(RAGGED, metric, edits=edit, resume=start), model.score(RAGGED, metric, edits=edit))
    assert [module for module in hf.modules() if "forward" in vars(module)] == hooked


def test_wrong_shapes_and_positions_are_refused_before_running():
    model = tiny("llama")
    with pytest.raises(ShapeError, match=r"resid_post.1.*\(31,\)"):
        model.logits([[5, 6]], edits=[patch("resid_post.1", torch.zeros(31))])
    with pytest.raises(UsageError, match="prompt 0 has 2 tokens"):
        model.capture([[5, 6]], "resid_post.1", positions=[4])
    with pytest.raises(UsageError, match="finite"):
        patch("resid_post.1", float("nan"))
    with pytest.raises(UsageError, match="empty prompt"):
        model.logits([[5], []])


def test_capture_stops_early():
    model = tiny("llama")
    model.proof  # noqa: B018
    ran = []
    handles = [b.register_forward_hook(lambda m, a, o, i=i: ran.append(i)) for i, b in enumerate(model.hf.model.layers)]
    model.capture([[5, 6, 7]], "resid_post.0")
    for handle in handles:
        handle.remove()
    assert 1 not in ran and 2 not in ran


# layers that are not run ---------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_made_unseen_is_not_computed_and_nothing_else_changes(family):
    model, ids = tiny(family), [[5, 6, 7, 8, 9], [9, 8, 7, 6, 5]]
    sites = [f"{name}.{layer}" for layer in range(model.n_layers) for name in "qkv"]
    acts = model.capture(ids, sites)
    seen = {}

    def visit(site, value):
        seen[site] = value.abs().max().item()
        return acts[site]

    found = model.walk(ids, sites, visit, logits=True, made=sites)
    torch.testing.assert_close(found, model.logits(ids), atol=1e-5, rtol=1e-4)
    if family in ("llama", "gpt2", "neox", "opt"):
        assert not any(seen.values()), "a linear layer ran of whose output nothing is used"
    assert not [name for name, module in model.hf.named_modules() if "forward" in module.__dict__]
    assert all(model.capture(ids, ["q.1"])["q.1"].abs().amax((0, 1, 3)) > 0)


def test_a_layer_of_which_only_a_part_is_made_runs():
    model, ids, seen = tiny("gpt2"), [[5, 6, 7, 8, 9]], {}
    model.walk(ids, ["q.0"], lambda site, value: seen.update({site: value.abs().max().item()}), made=["q.0"])
    assert min(seen.values()) > 0  # its keys and values are the model's own


def test_readers_are_measured_again_when_a_norm_is_another():
    model = tiny("llama")
    first = model.readers()
    assert model.readers() is first
    model.hf.model.layers[1].input_layernorm.weight.data.mul_(2)  # not counted by torch
    second = model.readers()
    norms = [readers.norm(model.sites("q.1")[0]).gain for readers in (first, second)]
    torch.testing.assert_close(norms[1], 2 * norms[0], atol=1e-4, rtol=1e-4)
