"""Queries and keys through the softmax, information flow and relevance slopes, against raw torch and closed forms."""

import numpy as np
import pytest
import torch
import transformers as T
from torch.nn import functional as F

from assay.circuits.attribute import AttributionPlan, attribute, nodes_of
from assay.circuits.flow import flow, shares
from assay.circuits.graph import graph_of
from assay.circuits.qk_fix import qk_fix
from assay.circuits.relevance import FrozenReaders, _Run, relevance, rules_of
from assay.data.prepare import PreparedTask, prepare
from assay.errors import SiteError, UsageError
from assay.model.edits import patch
from assay.records import Pair
from assay.sites import Site, parse_site
from assay.testing.induction import Induction, planted_induction
from conftest import tiny, tiny_hf, wrap

pytestmark = pytest.mark.whole  # against references that take their time

ANSWER, FOIL = 7, 8


def task(n=3, ragged=True, up=True):
    """Random tokens, one exchanged; `up` says which of the two answers is right."""
    rng = np.random.default_rng(0)
    clean = [rng.integers(20, 190, 5 + (i if ragged else 0)).tolist() for i in range(n)]
    corrupted = [row[:2] + [150 + i] + row[3:] for i, row in enumerate(clean)]
    ends = [(ANSWER,), (FOIL,)] if up else [(FOIL,), (ANSWER,)]
    return PreparedTask([Pair("a", "b", ("x",), ("y",), "t")] * n, clean, corrupted, [ends[0]] * n, [ends[1]] * n, {}, {})


def fitting(model, **settings):
    """The task with answer and foil named so that the clean run is the better one."""
    t = task(**settings)
    better = model.score(t.clean, t.metric()).mean() > model.score(t.corrupted, t.metric()).mean()
    return t if better else task(**settings, up=False)


def sign(t):
    return 1.0 if t.answers[0] == (ANSWER,) else -1.0


def score_of(found, name):
    return found.values[:, nodes_of(found.graph).index(parse_site(name))].numpy()


# queries and keys through the softmax ------------------------------------------------------------


def eager(sharp=20.0):
    """A tiny model with an eager kernel and sharp attention."""
    hf = tiny_hf("llama", 1)
    hf.set_attn_implementation("eager")
    with torch.no_grad():
        for block in hf.model.layers:
            block.self_attn.q_proj.weight *= sharp
            block.self_attn.k_proj.weight *= sharp
    return hf


def raw_attentions(hf, ids, layer=None, name="", head=0, value=None):
    """(metric, patterns) of one prompt with graph; one head of q or k replaced where a value is given."""
    handle = None
    if layer is not None:
        def write(module, args, out):
            out = out.clone()
            out[..., head * 8 : head * 8 + 8] = value[..., head * 8 : head * 8 + 8]
            return out
        handle = getattr(hf.model.layers[layer].self_attn, f"{name}_proj").register_forward_hook(write)  # fmt: skip
    out = hf(input_ids=torch.tensor([ids]), output_attentions=True)
    if handle:
        handle.remove()
    return out.logits[0, -1, ANSWER] - out.logits[0, -1, FOIL], out.attentions


def raw_projection(hf, ids, layer, name):
    kept = {}
    module = getattr(hf.model.layers[layer].self_attn, f"{name}_proj")
    handle = module.register_forward_hook(lambda m, a, out: kept.update(x=out.detach().clone()))
    hf(input_ids=torch.tensor([ids]))
    handle.remove()
    return kept["x"]


@pytest.mark.parametrize("direction", ["noise", "denoise"])
def test_the_fix_equals_its_formula_in_raw_torch(direction):
    hf = eager()
    model = wrap(hf)
    t = fitting(model)
    found = qk_fix(model, t, direction=direction)
    linear = attribute(model, t, AttributionPlan("eap", "node", direction))
    base, source = (t.clean, t.corrupted) if direction == "noise" else (t.corrupted, t.clean)
    flip = sign(t) * (1.0 if direction == "noise" else -1.0)
    for layer, name, head in ((0, "q", 1), (1, "q", 3), (2, "q", 0), (0, "k", 0), (1, "k", 1), (2, "k", 1)):
        want = []
        for b, s in zip(base, source, strict=True):
            metric, patterns = raw_attentions(hf, b)
            slope = torch.autograd.grad(metric, patterns[layer])[0]
            with torch.no_grad():
                _, moved = raw_attentions(hf, b, layer, name, head, raw_projection(hf, s, layer, name))
            want.append(-flip * ((moved[layer] - patterns[layer].detach()) * slope).sum().item())
        np.testing.assert_allclose(score_of(found, f"{name}.{layer}.{head}"), want, rtol=1e-3, atol=1e-7)
        assert not np.allclose(score_of(linear, f"{name}.{layer}.{head}"), want, rtol=1e-2)  # else nothing is tested
    others = [i for i, site in enumerate(nodes_of(found.graph)) if site.name not in "qk"]
    torch.testing.assert_close(found.values[:, others], linear.values[:, others])
    assert found.plan["method"] == "qk-fix" and not found.values.isnan().any()


def test_a_small_memory_budget_changes_nothing():
    model = tiny("qwen3", 1)
    t = fitting(model)
    whole = qk_fix(model, t)
    model.memory_budget = 4 * 10 * 4 * 7 * 7 * 2  # two layers of one pair
    torch.testing.assert_close(qk_fix(model, t).values, whole.values, rtol=1e-4, atol=1e-6)


def recall(n=4):
    """"a b c d a" -> b; corrupted "a b c d c" -> d: only the last query tells them apart. And the keys' counterpart."""
    pairs, keys = [], []
    for i in range(n):
        a, b, c, d, e = (f"w{(5 * i + k) % 24}" for k in range(5))
        pairs.append(Pair(f"{a} {b} {c} {d} {a}", f"{a} {b} {c} {d} {c}", (f" {b}",), (f" {d}",), str(i)))
        keys.append(Pair(f"{a} {b} {c} {d} {a}", f"{e} {b} {a} {d} {a}", (f" {b}",), (f" {d}",), str(i)))
    return pairs, keys


@pytest.mark.parametrize("name", ["q", "k"])
def test_on_a_saturated_head_the_fix_is_near_the_exact_effect_and_the_linear_term_is_not(name):
    model = planted_induction(Induction(linear=True))
    t = prepare(recall()[name == "k"], model)
    site = Site(name, 1, 0)
    other = model.capture(t.corrupted, site)[site]
    clean = model.score(t.clean, t.metric())
    exact = clean - model.score(t.clean, t.metric(), edits=[patch(site, other)])
    linear = attribute(model, t, AttributionPlan("eap", "node"))
    assert exact.min() > 0.2 * float(clean.mean())  # it matters
    np.testing.assert_allclose(score_of(qk_fix(model, t), str(site)), exact, rtol=0.02)
    assert np.abs(score_of(linear, str(site))).max() < 0.01 * float(exact.min())


def test_for_small_changes_the_fix_the_linear_term_and_exact_patching_agree():
    hf, t = eager(10.0), task(ragged=False)
    with torch.no_grad():
        rows = hf.get_input_embeddings().weight
        for i, ids in enumerate(t.clean):
            rows[150 + i] = rows[ids[2]] + 0.02 * rows[ids[2]].norm() * F.normalize(torch.ones(32), dim=0)
    model = wrap(hf)
    t = fitting(model, ragged=False)
    fixed, linear = qk_fix(model, t), attribute(model, t, AttributionPlan("eap", "node"))
    for text in ("q.0.1", "q.1.2", "k.0.1", "k.2.0"):
        site = parse_site(text)
        other = model.capture(t.corrupted, site.whole)[site.whole]
        moved = model.capture(t.clean, site.whole)[site.whole].clone()
        moved[:, :, site.index] = other[:, :, site.index]
        exact = (model.score(t.clean, t.metric()) - model.score(t.clean, t.metric(), edits=[patch(site.whole, moved)])).numpy()
        size = np.abs(exact).max()
        np.testing.assert_allclose(score_of(fixed, text), exact, atol=0.1 * size)
        np.testing.assert_allclose(score_of(linear, text), exact, atol=0.1 * size)


# information flow --------------------------------------------------------------------------------


def test_shares_in_closed_form():
    stream, written = torch.tensor([[[3.0, -1.0]]]), torch.tensor([[[2.0, 1.0], [1.0, -1.0], [0.0, -1.0]]])
    #   |r| = 4; without the first |(1,-2)| = 3, the second |(2,0)| = 2, the third |(3,0)| = 3
    every = torch.ones(3, 1, dtype=torch.bool)
    torch.testing.assert_close(shares(stream, written, every)[0, :, 0], torch.tensor([0.25, 0.5, 0.25]))
    every[2] = False
    torch.testing.assert_close(shares(stream, written, every)[0, :, 0], torch.tensor([1 / 3, 2 / 3, 0.0]))
    against = torch.tensor([[[-1.0, 0.0], [4.0, -1.0]]])
    torch.testing.assert_close(shares(stream, against, every[:2])[0, :, 0], torch.tensor([0.0, 1.0]))


def test_flow_of_a_model_written_by_hand():
    """One token e0; RMSNorm makes it sqrt(8) e0; head h writes gain_h sqrt(8) e_(h+1): shares 1 : gains."""
    config = T.LlamaConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, head_dim=4,
                           intermediate_size=8, vocab_size=9, rms_norm_eps=1e-12, tie_word_embeddings=False)  # fmt: skip
    torch.manual_seed(0)
    hf = T.LlamaForCausalLM(config).eval()
    attention = hf.model.layers[0].self_attn
    with torch.no_grad():
        hf.model.embed_tokens.weight[3] = torch.eye(8)[0]
        attention.v_proj.weight.zero_()
        attention.o_proj.weight.zero_()
        for head, gain in ((0, 0.5), (1, 0.25)):
            attention.v_proj.weight[4 * head, 0] = 1.0
            attention.o_proj.weight[head + 1, 4 * head] = gain
    found = flow(wrap(hf), [[3]]).matrix()
    graph = graph_of(wrap(hf))
    parts = torch.tensor([1.0, 0.5 * 8**0.5, 0.25 * 8**0.5])
    torch.testing.assert_close(found[:, graph.reader_number[Site("mlp_in", 0)]], F.pad(parts / parts.sum(), (0, 1)))
    torch.testing.assert_close(found[:, graph.reader_number[Site("v", 0, 1)]], torch.tensor([1.0, 0, 0, 0]))


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox", "gemma2", "olmo2", "granite"])
def test_flow_equals_one_token_at_a_time(family):
    """Against outputs of heads and MLPs as the model names them, and streams summed from them."""
    model = tiny(family, 1)
    prompts = task().clean
    found, graph = flow(model, prompts), graph_of(model)
    heads = [Site("attn_out", layer, head) for layer in range(3) for head in range(4)]
    streams = [Site("resid_pre", layer) for layer in range(3)]
    mids = [Site("resid_mid" if family != "neox" else "resid_pre", layer) for layer in range(3)]
    sites = [*heads, *streams, *mids, *(Site("mlp_out", layer) for layer in range(3)), Site("resid_post", 2)]
    acts = model.capture(prompts, sites)
    for writer, reader in (("embed", "k.2.0"), ("z.0.3", "q.1.1"), ("z.1.2", "mlp_in.2"), ("mlp_out.0", "v.2.0"),
                           ("z.2.1", "logits"), ("mlp_out.1", "logits"), ("embed", "mlp_in.0")):  # fmt: skip
        end = parse_site(reader)
        stream = {"logits": Site("resid_post", 2), "mlp_in": mids[end.layer or 0]}.get(end.name, Site("resid_pre", end.layer))
        want = np.zeros(len(prompts))
        for row, ids in enumerate(prompts):
            tokens = range(len(ids)) if end.name != "logits" else [len(ids) - 1]
            for token in tokens:
                r, closeness = acts[stream][row, token], {}
                for u in graph.writers:
                    if not graph.exists[graph.writer_number[u], graph.reader_number[end]]:
                        continue
                    site = {"embed": Site("resid_pre", 0), "z": Site("attn_out", u.layer, u.index)}.get(u.name, u)
                    closeness[str(u)] = max(0.0, float(r.abs().sum() - (r - acts[site][row, token]).abs().sum()))
                want[row] += closeness[writer] / sum(closeness.values()) / len(tokens)
        cell = found.names.index(f"{writer}->{reader}")
        np.testing.assert_allclose(found.values[:, cell], want, rtol=2e-4, atol=1e-6)


def test_flow_needs_only_prompts_and_sums_to_one():
    model = tiny("llama", 1)
    t = task()
    found = flow(model, t)
    torch.testing.assert_close(found.values, flow(model, t.clean).values)
    torch.testing.assert_close(found.matrix().sum(0), torch.ones(len(found.graph.readers)))
    assert np.isnan(found.clean).all() and np.isnan(found.residual).all() and (found.values >= 0).all()
    model.memory_budget = 1
    torch.testing.assert_close(flow(model, t).values, found.values)


# relevance ---------------------------------------------------------------------------------------


def raw_relevance(hf, ids):
    """{module: slope} by hooks that follow the rules: queries and keys cut off, norms and ratios held constant."""
    def norm(m, args, out):
        x = args[0]
        return m.weight * x * (x.pow(2).mean(-1, keepdim=True) + m.variance_epsilon).rsqrt().detach()

    def mlp(m, args, out):
        gate, up = m.gate_proj(args[0]), m.up_proj(args[0])
        act = gate * (F.silu(gate) / gate).detach()
        return m.down_proj((act * up.detach() + act.detach() * up) / 2)

    kept, handles = {}, []

    def keep(key):
        def before(m, args):
            kept[key] = args[0] if args[0].requires_grad else args[0].detach().requires_grad_(True)
            return (kept[key], *args[1:])
        return before

    def keep_out(key):
        return lambda m, args, out: kept.update({key: out})

    for layer, block in enumerate(hf.model.layers):
        if layer == 0:
            handles.append(block.register_forward_pre_hook(keep("embed")))
        handles += [x.register_forward_hook(norm) for x in (block.input_layernorm, block.post_attention_layernorm)]
        handles += [getattr(block.self_attn, f"{x}_proj").register_forward_hook(lambda m, a, o: o.detach()) for x in "qk"]
        handles += [block.mlp.register_forward_hook(mlp), block.mlp.register_forward_hook(keep_out(f"mlp_out.{layer}"))]
        handles += [block.self_attn.o_proj.register_forward_pre_hook(keep(f"z.{layer}")),
                    block.self_attn.v_proj.register_forward_hook(keep_out(f"v.{layer}"))]  # fmt: skip
    handles.append(hf.model.norm.register_forward_hook(norm))
    for parameter in hf.parameters():
        parameter.requires_grad_(False)
    logits = hf(input_ids=torch.tensor([ids])).logits[0, -1]
    for handle in handles:
        handle.remove()
    metric = logits[ANSWER] - logits[FOIL]
    slopes = torch.autograd.grad(metric, list(kept.values()))
    return metric.item(), {k: (v.detach(), g) for (k, v), g in zip(kept.items(), slopes, strict=True)}


def test_relevance_equals_raw_hooks():
    model = tiny("llama", 1)
    t = fitting(model)
    found = relevance(model, t)
    for row in range(len(t)):
        metric, at_clean = raw_relevance(model.hf, t.clean[row])
        _, at_corrupted = raw_relevance(model.hf, t.corrupted[row])
        assert metric * sign(t) == pytest.approx(found.clean[row], rel=1e-4)
        for text in ("embed", "z.0.2", "z.1.0", "z.2.3", "mlp_out.0", "mlp_out.2", "v.0.1", "v.2.0"):
            site = parse_site(text)
            key = text if site.index is None else str(site.whole)
            product = (at_clean[key][0] - at_corrupted[key][0]) * at_clean[key][1] * sign(t)
            part = slice(None) if site.index is None else slice(site.index * 8, site.index * 8 + 8)
            assert score_of(found, text)[row] == pytest.approx(float(product[..., part].sum()), rel=2e-3, abs=1e-7)
    for name in ("q.1.0", "k.2.1"):
        assert (score_of(found, name) == 0).all()


BIAS_FREE = ["llama", "phi3", "olmo2", "granite", "qwen3"]


@pytest.mark.parametrize("family", [*BIAS_FREE, "gpt2", "neox", "falcon", "opt", "gemma2"])
def test_values_stay_and_relevance_is_conserved(family):
    model = tiny(family, 1)
    t = fitting(model)
    run = _Run(model, t, AttributionPlan("relevance", "node"))
    rows = list(range(len(t)))
    point, plain = run._pass(rows, t.clean, True), run._pass(rows, t.clean, False)
    torch.testing.assert_close(point.metric, plain.metric, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(plain.metric, model.score(t.clean, t.metric()), rtol=1e-4, atol=1e-6)
    last = Site("resid_post", 2)
    torch.testing.assert_close(point.values[last], plain.values[last], rtol=1e-4, atol=1e-5)
    totals = [(point.values[site] * point.slopes[site]).sum((1, 2)) for site in (Site("resid_pre", 0), last)]
    if family in BIAS_FREE:
        for total in totals:
            torch.testing.assert_close(total, point.metric, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("direction", ["noise", "denoise"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "neox", "gemma2", "phi3"])
def test_relevance_edges_of_a_writer_sum_to_its_node(family, direction):
    model = tiny(family, 1)
    t = fitting(model)
    nodes, edges = (relevance(model, t, level=level, direction=direction) for level in ("node", "edge"))
    sums = torch.zeros(len(t), len(edges.graph.writers)).index_add_(1, edges.graph.cells[:, 0], edges.values)
    torch.testing.assert_close(sums, nodes.values[:, : sums.shape[1]], rtol=2e-3, atol=1e-6)


def test_relevance_of_gpt2_activations_is_their_ratio():
    """Through one MLP: slope of mlp_in = W_in [f(x)/x] W_out g, with the matrices themselves."""
    model = tiny("gpt2", 1)
    t = fitting(model)
    run = _Run(model, t, AttributionPlan("relevance", "node"))
    point = run._pass([0], t.clean, True)
    mlp = model.hf.transformer.h[1].mlp
    read, g = point.values[Site("mlp_in", 1)], point.slopes[Site("mlp_out", 1)]
    with torch.no_grad():
        x = mlp.c_fc(read)
        want = ((g @ mlp.c_proj.weight.T) * mlp.act(x) / x) @ mlp.c_fc.weight.T
    torch.testing.assert_close(point.slopes[Site("mlp_in", 1)], want, rtol=1e-3, atol=1e-7)


def test_what_relevance_does_not_know_is_refused():
    with pytest.raises(SiteError, match="no relevance rules.*mixture of experts"):
        rules_of(tiny("mixtral"), FrozenReaders(tiny("mixtral").hf, tiny("mixtral").layout))
    with pytest.raises(UsageError, match="level: got 'head'; allowed: edge, node"):
        relevance(tiny("llama"), task(), level="head")
    with pytest.raises(UsageError, match="Ranks have none"):
        relevance(tiny("llama"), task(), metric="rank")


@pytest.mark.parametrize("change, says", [("mix", "depend on each other"), ("sum", "not a product")])
def test_an_mlp_that_is_no_product_of_units_is_refused(change, says):
    hf = tiny_hf("llama", 1)
    for block in hf.model.layers:
        def forward(x, m=block.mlp):
            gate, up = m.act_fn(m.gate_proj(x)), m.up_proj(x)
            return m.down_proj((gate * up).cumsum(-1) if change == "mix" else gate + up**2)
        block.mlp.forward = forward  # fmt: skip
    model = wrap(hf)
    with pytest.raises(SiteError, match=says):
        rules_of(model, FrozenReaders(hf, model.layout))
