"""Attribution graphs against autograd on models frozen by hand (`trace_reference.py`), and what follows from effects."""

import dataclasses

import pytest
import torch
import transformers

from assay.circuits.trace import AT_ONCE, Descent, TracePlan, trace
from assay.circuits.trace_graph import AttributionGraph, TraceNode, influence_of, normalised, suggest_supernodes
from assay.circuits.trace_run import CleanRun
from assay.errors import ShapeError, SiteError, UsageError
from assay.features.dictionary import Spec, make_dictionary
from assay.sites import Site
from conftest import FAMILIES, tiny_hf, wrap
from edge_reference import roughen
from trace_reference import Reference

PROMPT = [5, 9, 33, 77, 21, 150, 9]
REFERENCED = ["llama", "gpt2", "neox", "neox_sequential", "qwen2", "qwen3", "gemma2", "gemma3", "olmo2", "granite", "phi",
              "mistral", "bloom"]  # fmt: skip
D, WIDTH, K = 32, 48, 6


def transcoder(layer, architecture="topk", seed=0, **changes):
    """Random numbers at one layer."""
    given = {"k": K, "inputs": (f"mlp_in.{layer}",), "outputs": (f"mlp_out.{layer}",), "centred": False, **changes}
    dictionary = make_dictionary(Spec(architecture, WIDTH, D, D, **given), f"made-{layer}")
    return randomised(dictionary, 100 * seed + layer)


def randomised(dictionary, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in dictionary.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return dictionary


def clt(layers=3, group=24, **changes):
    sites = {side: tuple(f"{side}.{layer}" for layer in range(layers)) for side in ("mlp_in", "mlp_out")}
    spec = Spec("clt", group * layers, D * layers, D * layers, k=12, inputs=sites["mlp_in"], outputs=sites["mlp_out"],
                centred=False, options={"layers": layers}, **changes)  # fmt: skip
    return randomised(make_dictionary(spec, "across"), 5)


def rough(family):
    return wrap(roughen(tiny_hf(family)), family)


def close(a, b, size=None):
    size = b.abs().max() if size is None else size
    return float((a - b).abs().max()) <= 2e-5 * float(size) + 1e-6


# effects -----------------------------------------------------------------------------------------


@pytest.mark.whole
@pytest.mark.parametrize("family", REFERENCED)
def test_effects_are_gradients_of_a_frozen_model_times_sources(family):
    model = rough(family)
    dictionaries = [transcoder(layer, skip=layer == 1) for layer in (0, 1, 2)]
    graph = trace(model, PROMPT, dictionaries)
    skip = {1: (dictionaries[1].W_skip.detach(), list(range(1, len(PROMPT))))}
    scale = 0.3 if family == "granite" else 1.0
    reference = Reference(roughen(tiny_hf(family)), family, PROMPT, skip, scale)
    errors = CleanRun(model, PROMPT, dictionaries).errors
    unembed = model.hf.get_output_embeddings().weight.detach()
    places = [at for at, node in enumerate(graph.nodes) if node.kind == "latent"][::5]
    for place in [*places, len(graph.nodes) - 1, len(graph.nodes) - 2]:
        node = graph.nodes[place]
        if node.kind == "latent":
            vector = dictionaries[node.layer].W_enc[node.index].detach()
        else:
            vector = (unembed[node.index] - unembed.mean(0)) / getattr(model.hf.config, "logits_scaling", 1.0)
        slopes = reference.slopes(node.layer, node.position, vector)
        expected = torch.zeros(len(graph.nodes))
        for at, source in enumerate(graph.nodes[:place]):
            if source.kind == "embed":
                expected[at] = (slopes[0][source.position] * reference.embed[0, source.position]).sum()
            elif source.kind in ("latent", "error") and source.layer + 1 < len(slopes):
                slope = slopes[source.layer + 1][source.position]
                written = errors[source.layer, source.position]
                if source.kind == "latent":
                    written = source.value * dictionaries[source.layer].W_dec[source.index]
                expected[at] = (slope * written).sum()
        assert close(graph.effects[place], expected.detach()), node.name


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_effects_and_biases_add_up_to_what_is_read(family):
    """Independent truth: the dictionary's own pre-activations, and the model's logits."""
    model = rough(family)
    dictionaries = [transcoder(0), transcoder(2, "jumprelu")]
    graph = trace(model, PROMPT, dictionaries)
    assert graph.scores["layers_without_dictionary"] == 1 and graph.scores["completeness_error"] < 1e-5
    total = graph.effects.sum(1) + graph.bias
    size = graph.effects.abs().sum(1)
    acts = model.capture([PROMPT], ["mlp_in.0", "mlp_in.2", f"path:{model.layout.unembed}:out"])
    pre = {layer: d.pre(acts[f"mlp_in.{layer}"][0]).detach() for layer, d in zip((0, 2), dictionaries, strict=True)}
    logits = acts[Site("path", path=f"{model.layout.unembed}:out")][0, -1] / getattr(model.hf.config, "logits_scaling", 1.0)
    for place, node in enumerate(graph.nodes):
        if node.kind == "latent":
            assert abs(total[place] - pre[node.layer][node.position, node.index]) <= 1e-5 * size[place] + 1e-6
        elif node.kind == "logit":
            assert abs(total[place] - (logits[node.index] - logits.mean())) <= 1e-5 * size[place] + 1e-6
    assert all(node.position > 0 for node in graph.nodes if node.kind == "latent")  # the first token is not for dictionaries


@pytest.mark.parametrize("architecture", ["relu", "jumprelu", "gated", "batchtopk", "matryoshka"])
def test_every_architecture_is_read_with_the_slope_of_its_values(architecture):
    model = rough("llama")
    dictionary = transcoder(1, architecture)
    graph = trace(model, PROMPT, [dictionary])
    latents = [(place, node) for place, node in enumerate(graph.nodes) if node.kind == "latent"]
    codes = dictionary.codes(model.capture([PROMPT], ["mlp_in.1"])["mlp_in.1"][0, 1:])
    assert len(latents) == len(codes.values) > 0
    for place, node in latents:
        assert graph.effects[place].sum() + graph.bias[place] == pytest.approx(node.value, rel=1e-4, abs=1e-4)
    dense = codes.dense()
    assert all(node.value == pytest.approx(float(dense[node.position - 1, node.index]), rel=1e-5) for _, node in latents)
    step = CleanRun(model, PROMPT, [dictionary]).active[0]  # values move with inputs as `reading` says
    x = model.capture([PROMPT], ["mlp_in.1"])["mlp_in.1"][0]
    for n in range(0, len(step.value), 7):
        p, j, row = int(step.position[n]), int(step.latent[n]), step.reading(torch.tensor([n]))[0]
        moved = x[1:].clone()
        moved[p - 1] += 1e-3 * row / row.norm()
        after = dictionary.encode(moved)[p - 1, j]
        if float(after) > 0:
            assert (after - step.value[n]) / 1e-3 == pytest.approx(float(row.norm()), rel=0.05, abs=0.02)


def test_a_cross_layer_latent_has_the_sum_of_its_effects_through_all_layers():
    model, dictionary = rough("llama"), clt()
    graph = trace(model, PROMPT, [dictionary])
    assert graph.scores["completeness_error"] < 1e-5
    reference = Reference(roughen(tiny_hf("llama")), "llama", PROMPT)
    place = len(graph.nodes) - 1
    unembed = model.hf.get_output_embeddings().weight.detach()
    slopes = reference.slopes(None, len(PROMPT) - 1, unembed[graph.nodes[place].index] - unembed.mean(0))
    directions = dictionary.directions().view(dictionary.width, 3, D)
    seen = 0
    for at, node in enumerate(graph.nodes):
        if node.kind == "latent":
            assert node.index // 24 == node.layer
            whole = sum((slopes[m + 1][node.position] * directions[node.index, m]).sum() for m in range(3)) * node.value
            assert float(graph.effects[place, at]) == pytest.approx(float(whole), rel=1e-4, abs=1e-5)
            seen += 1
    assert seen > 10


@pytest.mark.parametrize("family, site", [("gpt2", "resid_mid.1"), ("neox", "resid_pre.1")])
def test_transcoders_may_read_the_stream_before_the_norm(family, site):
    model = rough(family)
    dictionary = transcoder(1, inputs=(site,), skip=True)
    graph = trace(model, PROMPT, [dictionary])
    assert graph.scores["completeness_error"] < 1e-5
    pre = dictionary.pre(model.capture([PROMPT], [site])[site][0]).detach()
    for place, node in enumerate(graph.nodes):
        if node.kind == "latent":
            total = graph.effects[place].sum() + graph.bias[place]
            assert float(total) == pytest.approx(float(pre[node.position, node.index]), abs=1e-4)


def test_batches_of_targets_do_not_change_anything(monkeypatch):
    model, dictionaries = rough("gemma2"), [transcoder(layer) for layer in range(3)]
    whole = trace(model, PROMPT, dictionaries)
    monkeypatch.setattr("assay.circuits.trace.AT_ONCE", 5)
    parts = trace(model, PROMPT, dictionaries)
    assert (
        AT_ONCE > 5 and close(parts.effects, whole.effects) and [n.name for n in parts.nodes] == [n.name for n in whole.nodes]
    )


def test_no_dictionary_is_a_graph_of_whole_mlps():
    graph = trace(rough("gpt2"), PROMPT, [])
    assert {node.kind for node in graph.nodes} == {"embed", "error", "logit"}
    assert graph.scores["completeness_error"] < 1e-5 and "no dictionary for 3 of 3 layers" in graph.notes[0]


def test_transcoders_of_another_model_are_said_to_be():
    model, dictionaries = rough("gpt2"), [transcoder(layer) for layer in range(3)]
    own = {"model": model.name, "digest": model.digest, "dtype": "float32"}
    for dictionary in dictionaries:
        dictionary.provenance = {"stream": {"model": own}}
    assert trace(model, PROMPT, dictionaries).notes == ()
    dictionaries[0].provenance = {"stream": {"model": {**own, "digest": "of bfloat16", "dtype": "bfloat16"}}}
    assert trace(model, PROMPT, dictionaries).notes == ()
    for dictionary in dictionaries[1:]:
        dictionary.provenance = {"stream": {"model": {**own, "digest": "of another"}}}
    first, second = trace(model, PROMPT, dictionaries).notes
    assert "trained on other weights" in first and "1 other dictionaries" in second


@pytest.mark.parametrize(("architecture", "options"), [
    ("topk", {"input_norm": "layer"}), ("relu", {"input_norm": "root"}), ("matching_pursuit", {}),
])  # fmt: skip
def test_transcoders_whose_latents_are_not_of_the_input_as_it_is_are_refused(architecture, options):
    given = {"inputs": ("mlp_in.1",), "outputs": ("mlp_out.1",), "centred": False, "options": options}
    made = make_dictionary(Spec(architecture, 16, 32, 32, None if architecture == "relu" else 4, **given), "normed")
    with pytest.raises(UsageError, match=f"normed, a {architecture}"):
        trace(rough("llama"), PROMPT, [made])


def test_a_soft_cap_is_no_scale_of_logits_however_straight():
    """Logits with a common mean lie where a cap is nearly a line: one that does not go through 0."""
    model = rough("llama")
    run = CleanRun(model, PROMPT, [], -1)
    x, unembed = run.value(Site("final_norm"))[run.last], model.hf.lm_head
    rows = unembed.weight.detach().clone()
    for shift, size in ((0.0, 0.15), (15.0, 0.4), (15.0, 1.0), (-40.0, 0.1)):
        unembed.weight = torch.nn.Parameter(size * rows + shift * x / (x @ x))
        plain = unembed.weight.detach() @ x
        assert run.logit_scale(30 * (plain / 30).tanh(), run.last) == 1.0
        assert run.logit_scale(0.3 * plain, run.last) == pytest.approx(0.3, rel=1e-4)


def test_a_model_whose_values_cannot_be_read_is_refused_by_name():
    """OLMo with `clip_qkv`: queries, keys and values are cut after their projections."""
    config = transformers.OlmoConfig(vocab_size=99, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                                     num_attention_heads=4, clip_qkv=0.5)  # fmt: skip
    torch.manual_seed(0)
    model = wrap(roughen(transformers.AutoModelForCausalLM.from_config(config).eval()), "olmo")
    with pytest.raises(SiteError, match="attention cannot be taken apart"):
        trace(model, PROMPT, [])


def test_massive_tokens_are_error_as_a_whole():
    model = rough("llama")
    x = model.capture([PROMPT], ["mlp_in.1"])["mlp_in.1"][0]
    limit = float(x.norm(dim=1).sort().values[3])
    graph = trace(model, PROMPT, [transcoder(1, norm_limit=limit)])
    used = {node.position for node in graph.nodes if node.kind == "latent"}
    assert used == {p for p in range(1, 7) if float(x[p].norm()) <= limit} and len(used) < 6
    assert graph.scores["completeness_error"] < 1e-5


@pytest.mark.parametrize("across", [False, True])
def test_a_massive_stream_in_front_of_the_norm_is_error_as_a_whole(across):
    """As training left it out; what the MLP reads is as large there as anywhere."""
    model, made = rough("llama"), clt() if across else transcoder(1)
    stream = model.capture([PROMPT], ["resid_pre.1"])["resid_pre.1"][0].norm(dim=1)
    limit = float(stream[1:].sort().values[-2:].mean())
    before = {node.position for node in trace(model, PROMPT, [made]).nodes if node.kind == "latent"}
    made.provenance = {"stream": {"limits": {"guards": {"mlp_in.1": {"site": "resid_pre.1", "limit": limit}}}}}
    graph = trace(model, PROMPT, [made])
    assert {node.position for node in graph.nodes if node.kind == "latent"} == before - {int(stream[1:].argmax()) + 1}
    assert len(before) == 6 and graph.scores["completeness_error"] < 1e-5


def test_more_latents_than_can_be_traced_count_as_errors():
    model, dictionaries = rough("llama"), [transcoder(layer) for layer in range(3)]
    whole, part = trace(model, PROMPT, dictionaries), trace(model, PROMPT, dictionaries, TracePlan(most=30))
    assert part.scores["traced_latents"] <= 33 < whole.scores["traced_latents"] and "not traced" in part.notes[0]
    rows = [whole.number[node.name] for node in part.nodes]
    both = whole.effects[rows][:, rows]
    errors = part.of("error")
    assert close(part.effects[:, ~errors], both[:, ~errors])
    reads = part.of("latent", "logit")
    assert close((part.effects.sum(1) + part.bias)[reads], (whole.effects.sum(1) + whole.bias)[rows][reads])
    kept = {n.name for n in part.nodes if n.kind == "latent" and n.layer == 1}  # the most influential of the layer
    layer = [n for n in whole.nodes if n.kind == "latent" and n.layer == 1]
    top = sorted(layer, key=lambda n: -whole.influence[whole.number[n.name]])
    assert 5 < len(kept) < len(layer) and {n.name for n in top[: len(kept)]} == kept


def test_logits_are_the_most_probable_or_those_asked_for():
    model = rough("llama")
    probability = model.logits([PROMPT])[0].softmax(-1)
    few = trace(model, PROMPT, [], TracePlan(mass=0.2))
    chosen = [node for node in few.nodes if node.kind == "logit"]
    assert sum(n.probability for n in chosen) >= 0.2 > sum(n.probability for n in chosen[:-1])
    assert chosen[0].index == int(probability.argmax()) and chosen[0].probability == pytest.approx(float(probability.max()))
    assert len([n for n in trace(model, PROMPT, [], TracePlan(logits=3, mass=1.0)).nodes if n.kind == "logit"]) == 3
    asked = trace(model, PROMPT, [], TracePlan(targets=(7, 8), position=3))
    assert [(n.index, n.position) for n in asked.nodes if n.kind == "logit"] == [(7, 3), (8, 3)]
    assert not asked.effects[-1, [n.position > 3 for n in asked.nodes]].any()


def test_half_precision_models_can_be_traced():
    model = wrap(roughen(tiny_hf("llama")).bfloat16(), "llama")
    graph = trace(model, PROMPT, [transcoder(1)])
    assert graph.scores["completeness_error"] < 0.03


@pytest.mark.parametrize("changes, said", [
    ({"inputs": ("resid_post.1",), "outputs": ("resid_post.1",)}, "transcoders"),
    ({"inputs": ("mlp_in.0",), "outputs": ("mlp_out.1",)}, "MLP of a layer"),
    ({"inputs": ("mlp_in.7",), "outputs": ("mlp_out.7",)}, "outside the model"),
])  # fmt: skip
def test_dictionaries_that_do_not_fit_are_refused_by_name(changes, said):
    with pytest.raises(UsageError, match=said):
        trace(rough("llama"), PROMPT, [transcoder(1, **changes)])


def test_other_mistakes_are_named():
    model = rough("llama")
    with pytest.raises(UsageError, match="one for each layer"):
        trace(model, PROMPT, [transcoder(1), transcoder(1, seed=1)])
    small = make_dictionary(Spec("topk", 8, 16, 16, k=2, inputs=("mlp_in.0",), outputs=("mlp_out.0",), centred=False))
    with pytest.raises(ShapeError, match="16 to 16"):
        trace(model, PROMPT, [small])
    for plan, said in ((TracePlan(logits=0), "logits"), (TracePlan(mass=0.0), "mass"), (TracePlan(targets=(999,)), "token ids"),
                       (TracePlan(position=9), "position")):  # fmt: skip
        with pytest.raises(UsageError, match=said):
            trace(model, PROMPT, [], plan)


# what follows from effects -----------------------------------------------------------------------


def toy():
    """Two tokens, three latents, errors, two logits; numbers by hand."""
    nodes = (TraceNode("embed", 0, None, 5), TraceNode("embed", 1, None, 6), TraceNode("latent", 0, 0, 1, 1.0, dictionary=0),
             TraceNode("latent", 1, 0, 1, 2.0, dictionary=0), TraceNode("error", 1, 0), TraceNode("latent", 1, 1, 3, 1.0),
             TraceNode("logit", 1, None, 7, 1.0, 0.6), TraceNode("logit", 1, None, 8, 0.5, 0.3))  # fmt: skip
    effects = torch.zeros(8, 8)
    effects[2, 0] = 2.0
    effects[3, 0], effects[3, 1] = 1.0, -3.0
    effects[5, 2], effects[5, 3], effects[5, 4] = 1.0, 2.0, -1.0
    effects[6, 5], effects[6, 1], effects[6, 4] = 3.0, 1.0, 1.0
    effects[7, 3], effects[7, 5] = 0.01, -2.0
    graph = AttributionGraph(nodes, effects, torch.zeros(8), torch.zeros(8), ("a", "b"), 2)
    return dataclasses.replace(graph, influence=influence_of(normalised(effects), graph.weights))


def test_influence_is_the_sum_over_all_paths():
    graph = toy()
    shares = normalised(graph.effects).double()
    inverse = torch.linalg.inv(torch.eye(8, dtype=torch.float64) - shares) - torch.eye(8, dtype=torch.float64)
    assert torch.allclose(graph.influence.double(), graph.weights.double() @ inverse, atol=1e-6)
    into_five = 0.6 * 3 / 5 + 0.3 * 2 / 2.01
    assert float(graph.influence[5]) == pytest.approx(into_five)
    assert float(graph.influence[2]) == pytest.approx(into_five / 4)


def test_scores_follow_their_definitions():
    from assay.circuits.trace_graph import graph_scores

    graph = toy()
    scores = graph_scores(graph)
    errors = float(graph.influence[4])
    assert scores["replacement"] == pytest.approx(
        float(graph.influence[:2].sum()) / (float(graph.influence[:2].sum()) + errors)
    )
    importance = graph.influence + graph.weights
    known = torch.tensor([1, 1, 1, 1, 1, 0.75, 0.8, 1.0])
    assert scores["completeness"] == pytest.approx(float((known * importance).sum() / importance.sum()))


def test_pruning_keeps_shares_and_drops_what_dangles():
    graph = toy()
    small = graph.prune(0.7, 0.9)
    names = {node.name for node in small.nodes}
    assert {"embed@0", "embed@1", "logit.7@1", "logit.8@1", "latent.1.3@1"} <= names
    assert all(
        n == "error.0@1" or n.split("@")[0] in ("embed",) or small.effects[small.number[n]].any()
        for n in names
        if "logit" not in n
    )
    inner = [small.number[n] for n in names if n.startswith(("latent", "error"))]
    assert all(bool(small.effects[:, place].any()) for place in inner)
    assert graph.prune(1.0, 1.0).n_edges == graph.n_edges
    with pytest.raises(UsageError, match="share"):
        graph.prune(1.5)


def test_pruning_of_a_traced_graph_reaches_its_shares():
    graph = trace(rough("llama"), PROMPT, [transcoder(layer) for layer in range(3)])
    small = graph.prune(0.8, 0.98)
    kept = graph.influence >= graph.influence.sort(descending=True).values[int((graph.cumulative < 0.8).sum())]
    assert {n.name for n in small.nodes} <= {
        n.name for n, k in zip(graph.nodes, kept, strict=True) if k or n.kind in ("embed", "logit")
    }
    assert 10 < len(small.nodes) < len(graph.nodes) and small.n_edges < graph.n_edges
    for node in small.nodes:
        assert small.influence[small.number[node.name]] == graph.influence[graph.number[node.name]]


def test_groups_are_checked_and_collapse_into_sums():
    graph = toy().grouped({"both": ["latent.0.1@0", "latent.0.1@1"]})
    order, effects = graph.collapsed()
    assert order == ["embed@0", "embed@1", "both", "error.0@1", "latent.1.3@1", "logit.7@1", "logit.8@1"]
    assert float(effects[2, 0]) == 3.0 and float(effects[4, 2]) == 3.0
    for groups, said in (({"a": ["none"]}, "a node of the graph"), ({"a": ["embed@0"], "b": ["embed@0"]}, "one group only")):
        with pytest.raises(UsageError, match=said):
            graph.grouped(groups)


def test_the_same_latent_at_two_tokens_is_proposed_as_a_group():
    graph = toy()
    assert suggest_supernodes(graph, similar=0.999) == [("latent.0.1", ("latent.0.1@0", "latent.0.1@1"))]
    apart = {
        "latent.0.1@0": torch.tensor([1.0, 0]),
        "latent.0.1@1": torch.tensor([1.0, 0]),
        "latent.1.3@1": torch.tensor([0, 1.0]),
    }
    assert len(suggest_supernodes(graph, apart, 0.999)[0][1]) == 2
    alike = {**apart, "latent.1.3@1": torch.tensor([2.0, 0.01])}
    assert len(suggest_supernodes(graph, alike, 0.99)[0][1]) == 3


def test_effects_never_run_backwards():
    graph = trace(rough("neox"), PROMPT, [transcoder(layer) for layer in range(3)])
    assert not graph.effects.triu().any()
    with pytest.raises(UsageError, match="earlier"):
        dataclasses.replace(graph, effects=graph.effects.T.contiguous())
    best = graph.strongest(graph.nodes[-1].name, 3)
    assert abs(best[0][1]) == float(graph.effects[-1].abs().max())


def test_the_descent_reads_every_latent_of_a_layer():
    run = CleanRun(rough("llama"), PROMPT, [transcoder(1)])
    active, places = Descent(run).members(1)
    assert len(places) == len(active.value) and Descent(run).members(0) is None


@pytest.mark.parametrize("family", ["llama", "granite", "gpt2", "olmo2"])
@pytest.mark.parametrize("position", [3, -1])
def test_a_logit_is_the_model_s_own_above_the_mean_of_the_vocabulary(family, position):
    model = wrap(roughen(tiny_hf(family)), family)
    graph = trace(model, PROMPT, [transcoder(0), transcoder(2)], TracePlan(position=position))
    with torch.no_grad():
        logits = model.hf(torch.tensor([PROMPT])).logits[0][position]
    logits = logits - logits.mean()
    at = graph.of("logit").nonzero()[:, 0].tolist()
    want = [float(logits[graph.nodes[n].index]) for n in at]
    assert [graph.nodes[n].value for n in at] == pytest.approx(want, rel=1e-3, abs=1e-4)
    sums = (graph.effects.sum(1) + graph.bias)[-len(at) :]
    assert sums.tolist() == pytest.approx([graph.nodes[n].value for n in at], rel=1e-3, abs=1e-3)
