"""Sparse feature circuits against patching single latents with raw hooks, and against attribution of whole sites."""

import pytest
import torch

from assay.circuits.graph import Edge
from assay.circuits.latent_edges import FeaturePlan, exact, feature_edges, feature_effects, features_of
from assay.errors import UsageError
from assay.features.dictionary import Spec, make_dictionary
from assay.model.edits import patch
from assay.sites import Site
from edge_reference import ANSWER, FOIL
from test_attribute import make_task
from test_trace import randomised, rough

D, WIDTH = 32, 40
SITES = ("resid_post.0", "attn_out.1", "mlp_out.1")


def sae(site, seed=0, architecture="jumprelu", **changes):
    given = {"k": 8, "inputs": (site,), "outputs": (site,), "skip_first": 1, **changes}
    dictionary = randomised(make_dictionary(Spec(architecture, WIDTH, D, D, **given), f"sae-{site}"), seed)
    if architecture == "jumprelu":
        dictionary.threshold.data.abs_()
    return dictionary


@pytest.fixture(scope="module")
def world():
    model = rough("llama")
    return model, make_task((6, 8), 0, model), [sae(site, at) for at, site in enumerate(SITES)]


def test_effects_of_a_site_add_up_to_attribution_patching_of_it(world):
    model, task, dictionaries = world
    found = feature_effects(model, task, dictionaries)
    slopes, high, _ = model.gradients(task.clean, list(SITES), task.metric())
    low = model.capture(task.corrupted, list(SITES))
    for site in SITES:
        whole = ((high[site] - low[site]) * slopes[site]).sum((1, 2))
        got = found.values[Site(*parse(site))].sum(1) + found.errors[Site(*parse(site))]
        assert torch.allclose(got, whole, rtol=1e-4, atol=1e-4 * float(whole.abs().max()))


def parse(site):
    name, layer = site.split(".")
    return name, int(layer)


def hooked_difference(model, task, dictionary, latent, row):
    """m(clean) - m(clean with one latent of resid_post.0 at its corrupted value), by hand."""
    hf = model.hf

    def stream(tokens):
        kept = {}
        handle = hf.model.layers[0].register_forward_hook(
            lambda m, a, out: kept.update(x=out if torch.is_tensor(out) else out[0])
        )
        with torch.no_grad():
            logits = hf(input_ids=torch.tensor([tokens])).logits[0, -1]
        handle.remove()
        return kept["x"][0], logits[ANSWER] - logits[FOIL]

    high, clean = stream(task.clean[row])
    low, _ = stream(task.corrupted[row])
    codes = [dictionary.encode(x) for x in (high, low)]
    change = (codes[1] - codes[0])[:, latent, None] * dictionary.W_dec[latent].detach()
    change[0] = 0.0  # the first token is not the dictionary's

    def hook(module, args, out):
        return out + change if torch.is_tensor(out) else (out[0] + change, *out[1:])

    handle = hf.model.layers[0].register_forward_hook(hook)
    with torch.no_grad():
        logits = hf(input_ids=torch.tensor([task.clean[row]])).logits[0, -1]
    handle.remove()
    return float(clean - (logits[ANSWER] - logits[FOIL]))


def test_exact_effects_are_those_of_patching_single_latents_by_hand(world):
    model, task, dictionaries = world
    nodes = [node for node, _ in feature_effects(model, task, dictionaries[:1]).nodes() if node.name == "latent"][:6]
    got = exact(model, task, dictionaries[:1], nodes)
    for at, node in enumerate(nodes):
        for row in range(len(task)):
            assert float(got[at, row]) == pytest.approx(
                hooked_difference(model, task, dictionaries[0], node.index, row), abs=2e-5
            )


def test_integrated_gradients_come_nearer_to_the_whole_site(world):
    """Patching everything of a site is the sum of its nodes along the line, by the fundamental theorem; not so at one end."""
    model, task, dictionaries = world
    site = Site("resid_post", 0)
    clean, corrupted = (model.score(side, task.metric()) for side in (task.clean, task.corrupted))
    far = {}
    for plan in (FeaturePlan("atp"), FeaturePlan("ig", steps=24)):
        found = feature_effects(model, task, dictionaries[:1], plan)
        far[plan.method] = (found.values[site].sum(1) + found.errors[site] - (clean - corrupted)).abs()
    assert float(far["ig"].max()) < 0.03 * float((clean - corrupted).abs().max()) and far["ig"].sum() < 0.2 * far["atp"].sum()


def test_small_changes_are_estimated_exactly(world):
    """Where clean and corrupted hardly differ, gradients are differences: every node's estimate is its exact effect."""
    model, task, dictionaries = world
    nodes = [node for node, _ in feature_effects(model, task, dictionaries).nodes(12)]
    assert len(nodes) == 12
    ig = feature_effects(model, task, dictionaries, FeaturePlan("ig", steps=16))
    real = exact(model, task, dictionaries, nodes).mean(1)
    estimates = dict(ig.nodes())
    made = torch.tensor([estimates[node] for node in nodes])
    assert float(torch.corrcoef(torch.stack([made, real]))[0, 1]) > 0.6


def test_first_and_massive_tokens_are_error(world):
    dictionary = sae("resid_post.0", norm_limit=5.0)
    x = torch.randn(4, D, generator=torch.Generator().manual_seed(0))
    x[2] *= 100
    x[[1, 3]] /= x[[1, 3]].norm(dim=1, keepdim=True)
    (found,) = features_of(world[0], [dictionary]).values()
    parts = found.split(x, dictionary.typical(x, torch.arange(4)))
    assert torch.equal(parts.error[[0, 2]], x[[0, 2]]) and not parts.codes[[0, 2]].any()
    made = dictionary.reconstruct(x)
    assert torch.allclose(parts.error[[1, 3]], (x - made)[[1, 3]], atol=1e-5)


def test_edges_are_gradients_of_the_target_through_the_model(world):
    model, task, dictionaries = world
    effects = feature_effects(model, task, dictionaries)
    nodes = [n for n, _ in effects.nodes() if n.path == "sae-resid_post.0"][:3] + [
        n for n, _ in effects.nodes() if n.path == "sae-mlp_out.1" and n.name == "latent"][:2]  # fmt: skip
    edges = dict(feature_edges(model, task, dictionaries, nodes))
    assert edges and all((e.writer.path, e.reader.path) == ("sae-resid_post.0", "sae-mlp_out.1") for e in edges)
    hf, (up, _, down), found = model.hf, dictionaries, effects.features[Site("resid_post", 0)]
    slopes, _, _ = model.gradients(task.clean, ["mlp_out.1"], task.metric())
    high, low = (model.capture(side, ["resid_post.0"]) for side in (task.clean, task.corrupted))
    for edge, got in edges.items():
        source, target, total = edge.writer, edge.reader, 0.0
        for row in range(len(task)):
            a, b = high.rows("resid_post.0")[row], low.rows("resid_post.0")[row]
            pa, pb = (found.split(x, up.typical(x, torch.arange(len(x)))) for x in (a, b))
            if source.name == "error":
                step = pa.error - pb.error
            else:
                step = (pa.codes - pb.codes)[:, source.index, None] * up.W_dec[source.index].detach()
            values = [_target(hf, down, target.index, task.clean[row], sign * 1e-3 * step, slopes.rows("mlp_out.1")[row])
                      for sign in (1, -1)]  # fmt: skip
            total += (values[0] - values[1]) / 2e-3 / len(task)
        assert got == pytest.approx(total, rel=0.05, abs=2e-3 * max(map(abs, edges.values())))


def guarded(model, texts, share=0.5):
    """An SAE behind a norm whose training left out tokens of large norm in the stream before it."""
    norms = torch.cat([rows[1:].norm(dim=1) for rows in model.capture(texts, ["resid_pre.1"]).rows("resid_pre.1")])
    dictionary, limit = sae("mlp_in.1"), float(norms.quantile(share))
    dictionary.provenance = {"stream": {"limits": {"guards": {"mlp_in.1": {"site": "resid_pre.1", "limit": limit}}}}}
    return dictionary, limit


def test_tokens_whose_stream_is_massive_before_the_norm_are_error(world):
    """Every latent and the error against a sum by hand; tokens are told apart by a capture of the stream."""
    model, task, _ = world
    dictionary, limit = guarded(model, task.clean)
    found = feature_effects(model, task, [dictionary])
    slopes, high, _ = model.gradients(task.clean, ["mlp_in.1"], task.metric())
    sides = [model.capture(texts, ["mlp_in.1", "resid_pre.1"]) for texts in (task.clean, task.corrupted)]
    values, errors, left = torch.zeros(len(task), WIDTH), torch.zeros(len(task)), 0
    for row in range(len(task)):
        slope, codes, rest = slopes.rows("mlp_in.1")[row], [], []
        for acts in sides:
            x, keep = acts.rows("mlp_in.1")[row], acts.rows("resid_pre.1")[row].norm(dim=1) <= limit
            keep[0] = False
            left += int((~keep[1:]).sum())
            codes.append(dictionary.encode(x) * keep[:, None])
            rest.append(
                x - torch.where(keep[:, None], dictionary.reconstruct(x), torch.zeros(())) + keep[:, None] * dictionary.b_dec
            )
        values[row] = ((codes[0] - codes[1]) * (slope @ dictionary.directions().T)).sum(0)
        errors[row] = ((rest[0] - rest[1]) * slope).sum().detach()
    site = Site("mlp_in", 1)
    assert left > 4 and values.abs().max() > 0
    assert torch.allclose(found.values[site], values, rtol=1e-4, atol=1e-5 * float(values.abs().max()))
    assert torch.allclose(found.errors[site], errors, rtol=1e-3, atol=1e-4 * float(errors.abs().max()))


def test_edges_into_latents_leave_massive_tokens_alone(world):
    """An edge is nothing where all tokens of the reader are massive, and without a limit it is something."""
    model, task, dictionaries = world
    reader = sae("mlp_in.1")
    nodes = [node for node, _ in feature_effects(model, task, [reader]).nodes() if node.name == "latent"][:3]
    nodes += [node for node, _ in feature_effects(model, task, dictionaries[:1]).nodes()][:3]
    assert feature_edges(model, task, [dictionaries[0], reader], nodes)
    half, limit = guarded(model, task.clean)
    whole = dict(feature_edges(model, task, [dictionaries[0], reader], nodes))
    some = dict(feature_edges(model, task, [dictionaries[0], half], nodes))
    assert set(some) <= set(whole) and any(some.get(edge) != whole[edge] for edge in whole)
    none = guarded(model, task.clean, 0.0)[0]
    none.provenance["stream"]["limits"]["guards"]["mlp_in.1"]["limit"] = limit / 1e6
    assert not feature_edges(model, task, [dictionaries[0], none], nodes)


def _target(hf, dictionary, latent, tokens, step, slope):
    """A latent of mlp_out.1 weighted by its slope, with resid_post.0 moved by `step`."""
    kept = {}

    def move(module, args, out):
        return out + step if torch.is_tensor(out) else (out[0] + step, *out[1:])

    handles = [hf.model.layers[0].register_forward_hook(move),
               hf.model.layers[1].mlp.register_forward_hook(lambda m, a, out: kept.update(y=out[0]))]  # fmt: skip
    with torch.no_grad():
        hf(input_ids=torch.tensor([tokens]))
    for handle in handles:
        handle.remove()
    codes = dictionary.encode(kept["y"])[:, latent]
    codes[0] = 0.0
    return float((codes * (slope @ dictionary.W_dec[latent].detach())).sum())


def test_what_is_no_sae_is_refused(world):
    model, task, _ = world
    with pytest.raises(UsageError, match="SAEs of one site"):
        features_of(
            model, [make_dictionary(Spec("topk", 8, D, D, k=2, inputs=("mlp_in.0",), outputs=("mlp_out.0",), centred=False))]
        )
    with pytest.raises(UsageError, match="one for each site"):
        features_of(model, [sae("resid_post.0"), sae("resid_post.0", 1)])
    with pytest.raises(UsageError, match="a name for each"):
        other = Spec("topk", WIDTH, D, D, k=8, inputs=("attn_out.1",), outputs=("attn_out.1",))
        features_of(model, [sae("resid_post.0"), make_dictionary(other, "sae-resid_post.0")])
    with pytest.raises(UsageError, match="whole sites"):
        features_of(model, ["z.0"])
    with pytest.raises(UsageError, match="one SAE or site or more"):
        feature_effects(model, task, [])
    with pytest.raises(UsageError, match="method"):
        feature_effects(model, task, [sae("resid_post.0")], FeaturePlan("exactly"))
    with pytest.raises(UsageError, match="latents, errors and units"):
        exact(model, task, [sae("resid_post.0")], [Site("latent", index=999, path="sae-resid_post.0")])


@pytest.mark.parametrize(("architecture", "options", "said"), [
    ("topk", {"input_norm": "layer"}, "a topk with input_norm 'layer'"),
    ("jumprelu", {"input_norm": "root"}, "a jumprelu with input_norm 'root'"),
    ("matching_pursuit", {"steps": 3}, "a matching_pursuit"),
    ("temporal", {"heads": 2, "bottleneck": 10}, "a temporal"),
])  # fmt: skip
def test_latents_that_say_more_than_decoder_rows_are_refused_by_name(world, architecture, options, said):
    """Their codes times decoder rows, plus the error, would be another activation, or there is no slope to follow."""
    model, task, _ = world
    given = sae("resid_post.0", architecture=architecture, options=options)
    node = Site("latent", index=0, path=given.name)
    for run in (lambda: feature_effects(model, task, [given]), lambda: exact(model, task, [given], [node]),
                lambda: feature_edges(model, task, [given], [node])):  # fmt: skip
        with pytest.raises(UsageError, match=f"{said}'?.*give the site resid_post.0"):
            run()


def test_the_record_names_nodes_and_shares(world):
    model, task, dictionaries = world
    found = feature_effects(model, task, dictionaries)
    data = found.json(5)
    assert len(data["nodes"]) == 5 and set(data["error_share"]) == set(SITES) and data["n_pairs"] == len(task)
    assert all(0 <= share <= 1 for share in data["error_share"].values())
    named = {node["node"] for node in found.json()["nodes"]}
    assert "error.sae-resid_post.0" in named and any(name.startswith("latent.sae-attn_out.1.") for name in named)


def test_neurons_are_nodes_like_latents(world):
    """Effects are slope times change; exact ones are patches of one neuron; edges are differences along the writer's change."""
    model, task, dictionaries = world
    given, site, above = ["mlp_act.0", dictionaries[2], "mlp_act.2"], Site("mlp_act", 0), Site("mlp_act", 2)
    found = feature_effects(model, task, given)
    slopes, high, _ = model.gradients(task.clean, [site, above], task.metric())
    low = model.capture(task.corrupted, [site, above])
    want = ((high[site] - low[site]) * slopes[site]).sum(1)
    assert torch.allclose(found.values[site], want, rtol=1e-4, atol=1e-6) and not found.errors[site].any()
    nodes = [node for node, _ in found.nodes() if node.name == "mlp_act"]
    first, last = next(n for n in nodes if n.layer == 0), next(n for n in nodes if n.layer == 2)
    one = [patch(first, low[site][..., first.index])]
    by_hand = model.score(task.clean, task.metric()) - model.score(task.clean, task.metric(), edits=one)
    assert torch.allclose(exact(model, task, given, [first])[0], by_hand, atol=1e-6)
    latent = next(node for node, _ in found.nodes() if node.name == "latent")
    edges = dict(feature_edges(model, task, given, [first, latent, last]))
    assert {Edge(first, latent), Edge(first, last), Edge(latent, last)} >= set(edges) and Edge(first, last) in edges
    step = 1e-3 * (high[site] - low[site])[..., first.index]
    moved = [model.capture(task.clean, above, edits=[patch(first, high[site][..., first.index] + sign * step)])[above]
             for sign in (1, -1)]  # fmt: skip
    change = ((moved[0] - moved[1]) / 2e-3 * slopes[above])[..., last.index].sum(1).mean()
    assert edges[Edge(first, last)] == pytest.approx(float(change), rel=0.02, abs=1e-5)
