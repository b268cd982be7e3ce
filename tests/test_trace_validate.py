"""Graphs tested by intervening: changes against raw hooks, predictions that must be right, controls that must not be."""

import numpy as np
import pytest
import torch
import transformers as T

from assay.circuits.trace import trace
from assay.circuits.trace_validate import ValidatePlan, _World, pearson, spearman, validate_trace
from assay.errors import UsageError
from assay.features.dictionary import Spec, make_dictionary
from conftest import SMALL, tiny_hf, wrap
from edge_reference import roughen
from test_trace import PROMPT, clt, rough, transcoder


def relu_gpt2():
    """GPT-2 with ReLU, and transcoders that are its MLPs: there is nothing left over."""
    torch.manual_seed(0)
    config = T.GPT2Config(n_embd=32, n_layer=3, n_head=4, n_positions=64, activation_function="relu", **SMALL)
    hf = roughen(T.AutoModelForCausalLM.from_config(config).eval(), 1, 0.15)
    made = []
    for layer, block in enumerate(hf.transformer.h):
        spec = Spec(
            "relu", 128, 32, 32, inputs=(f"mlp_in.{layer}",), outputs=(f"mlp_out.{layer}",), centred=False, skip_first=0
        )
        dictionary = make_dictionary(spec, f"mlp-{layer}")
        with torch.no_grad():
            dictionary.W_enc.copy_(block.mlp.c_fc.weight.T)
            dictionary.b_enc.copy_(block.mlp.c_fc.bias)
            dictionary.W_dec.copy_(block.mlp.c_proj.weight)
            dictionary.b_dec.copy_(block.mlp.c_proj.bias)
        made.append(dictionary)
    return wrap(hf, "relu"), made


def test_a_perfect_dictionary_leaves_nothing_over_and_predicts_what_the_model_does():
    model, dictionaries = relu_gpt2()
    graph = trace(model, PROMPT, dictionaries)
    errors = graph.effects[:, graph.of("error")].abs().sum() / graph.effects.abs().sum()
    assert float(errors) < 1e-5 and graph.scores["replacement"] > 0.9999 and graph.scores["completeness"] > 0.9999
    found = validate_trace(model, dictionaries, graph, ValidatePlan(n=40, factor=1.2))
    held = found.agreement
    assert held["latents, total"].pearson > 0.8 and held["latents, total"].spearman > 0.8
    assert held["latents, total"].pearson_low < held["latents, total"].pearson < held["latents, total"].pearson_high
    assert held["latents, total"].pearson > held["latents, direct"].pearson
    assert 0.5 < held["latents, total"].slope < 1.5
    assert abs(held["latents, control: direction"].pearson) < 0.35 and abs(held["latents, control: latent"].pearson) < 0.35
    assert held["logits, total"].n_interventions <= 40 and held["latents, total"].n_pairs > 500


def test_measured_changes_are_those_of_a_hooked_model():
    hf = roughen(tiny_hf("llama"))
    model, dictionaries = wrap(hf, "llama"), [transcoder(layer) for layer in range(3)]
    graph = trace(model, PROMPT, dictionaries)
    world = _World(model, dictionaries, graph)
    place = next(at for at, node in enumerate(graph.nodes) if node.kind == "latent" and node.layer == 1 and node.position == 4)
    node = graph.nodes[place]
    push = world.push(place, 0.0)
    got = world.measured([place], [push], None)[0]
    vector = -node.value * dictionaries[1].W_dec[node.index].detach()
    assert torch.allclose(push[0][1], vector)

    def run(change):
        seen, handles = {}, []

        def shift(module, args, out):
            out = out.clone()
            out[0, 4] += change
            return out

        handles.append(hf.model.layers[1].mlp.register_forward_hook(shift))
        handles.append(hf.model.layers[2].mlp.register_forward_pre_hook(lambda m, a: seen.update(mlp=a[0][0])))
        with torch.no_grad():
            seen["logits"] = hf(input_ids=torch.tensor([PROMPT])).logits[0, -1]
        for handle in handles:
            handle.remove()
        return seen

    clean, edited = run(torch.zeros(32)), run(vector)
    for at, other in enumerate(graph.nodes):
        if other.kind == "latent" and other.layer == 2:
            row = dictionaries[2].W_enc[other.index].detach()
            want = (edited["mlp"][other.position] - clean["mlp"][other.position]) @ row
        elif other.kind == "logit":
            moved = edited["logits"] - clean["logits"]
            want = moved[other.index] - moved.mean()
        else:
            continue
        assert float(got[at]) == pytest.approx(float(want), rel=1e-3, abs=2e-5)


def test_predictions_are_sums_over_paths():
    model, dictionaries = rough("gemma2"), [transcoder(layer) for layer in range(3)]
    graph = trace(model, PROMPT, dictionaries)
    world = _World(model, dictionaries, graph)
    place = int(world.latents[3])
    total, direct = world.predicted([place], 0.0)
    value = graph.nodes[place].value
    assert torch.allclose(direct[0], -graph.effects[:, place], atol=1e-5)
    gains = torch.zeros_like(graph.effects)
    for at in world.latents.tolist():
        gains[:, at] = graph.effects[:, at] / graph.nodes[at].value
    now = torch.zeros(len(graph.nodes))
    now[place] = -value
    series = torch.zeros_like(now)
    for _ in range(4):
        now = gains @ now
        series += now
    assert torch.allclose(total[0], series, rtol=1e-4, atol=1e-4 * float(series.abs().max()))


def test_cross_layer_latents_are_changed_where_they_write():
    model, dictionary = rough("llama"), clt()
    graph = trace(model, PROMPT, [dictionary])
    world = _World(model, [dictionary], graph)
    place = next(at for at, node in enumerate(graph.nodes) if node.kind == "latent" and node.layer == 1)
    push = world.push(place, 2.0)
    assert [site.layer for site, _ in push] == [1, 2]
    whole = dictionary.directions()[graph.nodes[place].index].view(3, 32) * graph.nodes[place].value
    assert torch.allclose(push[0][1], whole[1]) and torch.allclose(push[1][1], whole[2])
    assert validate_trace(model, [dictionary], graph, ValidatePlan(n=4)).agreement["latents, total"].n_interventions <= 4


def test_intervals_come_from_interventions_and_correlations_from_numpy():
    rng = np.random.default_rng(0)
    x = rng.normal(size=50)
    y = x + rng.normal(size=50)
    assert pearson(x, y) == pytest.approx(np.corrcoef(x, y)[0, 1]) and spearman(x, np.exp(x)) == pytest.approx(1.0)
    assert pearson(x, np.ones(50)) is None
    model, dictionaries = rough("llama"), [transcoder(layer) for layer in range(3)]
    few = validate_trace(model, dictionaries, trace(model, PROMPT, dictionaries), ValidatePlan(n=2))
    assert few.agreement["latents, total"].pearson_low is None


def test_mistakes_are_named():
    model, dictionaries = rough("llama"), [transcoder(layer) for layer in range(3)]
    graph = trace(model, PROMPT, dictionaries)
    with pytest.raises(UsageError, match="traced in"):
        validate_trace(rough("qwen2"), dictionaries, graph)
    with pytest.raises(UsageError, match="those of the graph"):
        validate_trace(model, dictionaries[:2], graph)
    with pytest.raises(UsageError, match="no latents"):
        validate_trace(model, [], trace(model, PROMPT, []))
    for plan, said in ((ValidatePlan(n=0), "n:"), (ValidatePlan(factor=1.0), "changes nothing")):
        with pytest.raises(UsageError, match=said):
            validate_trace(model, dictionaries, graph, plan)
