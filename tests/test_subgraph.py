"""Circuits at work: against engine edits for all families, and against a Llama written out by hand."""

import numpy as np
import pytest
import torch

from assay.circuits.exact import exact_edges
from assay.circuits.subgraph import ABLATIONS, Bench, writer_means
from assay.errors import UsageError
from assay.model.edits import patch, zero
from assay.sites import Site
from test_attribute import FAMILIES, setting

pytestmark = pytest.mark.whole  # against references that take their time

TOLERANCE = 2e-4


def close(got, want, scale):
    assert float(np.abs(np.asarray(got) - np.asarray(want)).max()) <= TOLERANCE * max(scale, 1.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_cut_nodes_are_patched_nodes_and_cut_edges_are_exact_edges(family):
    model, task, _ = setting(family)
    bench = Bench(model, task)
    graph, everything = bench.graph, bench.graph.exists
    nodes = [Site("z", 0, 1), Site("z", 1, 2), Site("mlp_out", 1)]
    heads = nodes[:2]
    some = [str(graph.name(cell)) for cell in graph.cells[:: max(1, len(graph.cells) // 7)].tolist()]
    masks = [everything, torch.zeros_like(everything),
             everything & ~graph.node_mask(nodes), everything & ~graph.node_mask(heads),
             *(everything & ~graph.mask([edge]) for edge in some)]  # fmt: skip
    scale = float(np.abs(bench.clean).max())
    for found in (bench.scores(masks), np.concatenate([bench.scores([mask]) for mask in masks])):
        close(found[0], bench.clean, scale)
        close(found[1], bench.corrupted, scale)
        for row, cut in ((2, nodes), (3, heads)):
            acts = model.capture(task.corrupted, [site.whole for site in cut])
            edits = [patch(s, acts[s.whole] if s.index is None else acts[s.whole][:, :, s.index]) for s in cut]
            close(found[row], model.score(task.clean, task.metric(), edits=edits), scale)
        drops = exact_edges(model, task, some, "noise").numpy()
        close(bench.clean[None] - found[4:], drops.T, scale)


@pytest.mark.parametrize("how", ["zero", "mean"])
def test_other_ablations_are_edits_too(how):
    model, task, _ = setting("llama")
    bench = Bench(model, task, ablation=how)
    cut = [Site("z", 1, 0), Site("mlp_out", 0)]
    found = bench.scores([bench.graph.exists, bench.graph.exists & ~bench.graph.node_mask(cut)])
    close(found[0], bench.clean, 1)
    edits = [zero(site) for site in cut]
    if how == "mean":
        acts = model.capture(task.clean, [site.whole for site in cut])
        edits, longest = [], max(map(len, task.clean))
        for site in cut:
            rows = [r if site.index is None else r[:, site.index] for r in acts.rows(site.whole)]
            first, later = torch.stack([r[0] for r in rows]).mean(0), torch.cat([r[1:] for r in rows]).mean(0)
            edits.append(patch(site, torch.stack([first, *[later] * (longest - 1)])[None]))
    close(found[1], model.score(task.clean, task.metric(), edits=edits), 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_few_nodes_kept_beside_large_streams_are_edits_too(family):
    """Readers that are cut from large streams read what is left, and not the rounding errors of those streams."""
    model, task, _ = setting(family)
    bench = Bench(model, task, ablation="zero")
    last = model.n_layers - 1
    for name, weight in model.hf.named_parameters():
        if any(part in name for part in ("o_proj.w", "c_proj.w", "attention.dense.w", "dense_4h_to_h.w", "down_proj.w")):
            weight.data *= 1e4
    model.hf.get_input_embeddings().weight.data[:, 0] += 1e5
    kept = [Site("embed"), Site("z", 0, 1), Site("mlp_out", last)]
    for nodes in ([], kept[2:], kept[1:], kept):
        cut = [site for site in bench.graph.writers if site not in nodes]
        edits = [zero(Site("resid_pre", 0) if site.name == "embed" else site) for site in cut]
        scale = float(model.logits(task.clean, edits=edits).abs().max())  # the unembedding may be the embedding
        close(bench.scores([bench.graph.node_mask(nodes)])[0], model.score(task.clean, task.metric(), edits=edits), scale)


def by_hand(hf, clean, base, mask, graph):
    """A Llama in which reader v reads the sum of what its writers put out, `base` where the edge is cut."""
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    config = hf.config
    d = config.hidden_size // config.num_attention_heads
    group = config.num_attention_heads // config.num_key_value_heads
    ids = torch.tensor([clean])
    out = {Site("embed"): hf.model.embed_tokens(ids)[0]}

    def read(reader):
        number = graph.reader_number[reader]
        return sum((out[w] if mask[i, number] else base[w]) for i, w in enumerate(graph.writers) if graph.exists[i, number])

    cos, sin = hf.model.rotary_emb(ids.float()[..., None], torch.arange(len(clean))[None])
    causal = torch.full((len(clean), len(clean)), float("-inf")).triu(1)
    for layer, block in enumerate(hf.model.layers):
        heads = {}
        for name, n in zip("qkv", (config.num_attention_heads, *[config.num_key_value_heads] * 2), strict=True):
            proj = getattr(block.self_attn, f"{name}_proj")
            heads[name] = torch.stack([proj(block.input_layernorm(read(Site(name, layer, h))))[:, h * d : (h + 1) * d]
                                       for h in range(n)])  # fmt: skip
        q, k = apply_rotary_pos_emb(heads["q"][None], heads["k"][None], cos, sin)
        written = {}
        for h in range(config.num_attention_heads):
            pattern = (q[0, h] @ k[0, h // group].T / d**0.5 + causal).softmax(-1)
            z = pattern @ heads["v"][h // group]
            written[Site("z", layer, h)] = z @ block.self_attn.o_proj.weight[:, h * d : (h + 1) * d].T
        out.update(written)
        out[Site("mlp_out", layer)] = block.mlp(block.post_attention_layernorm(read(Site("mlp_in", layer))))
    logits = hf.lm_head(hf.model.norm(read(Site("logits")))[-1])
    return out, logits


@torch.no_grad()
def test_random_circuits_equal_a_llama_written_out_by_hand():
    model, task, _ = setting("llama")
    bench = Bench(model, task)
    graph = bench.graph
    rng = torch.Generator().manual_seed(0)
    for share in (0.02, 0.3, 0.7, 0.95):
        mask = graph.exists & (torch.rand(graph.exists.shape, generator=rng) < share)
        found = bench.outputs([mask, mask, mask], ("logit_diff", "kl", "agree"))
        for pair, (clean, corrupted) in enumerate(zip(task.clean, task.corrupted, strict=True)):
            whole = torch.ones_like(mask)
            base, _ = by_hand(model.hf, corrupted, {}, whole, graph)
            _, full = by_hand(model.hf, clean, base, whole, graph)
            _, logits = by_hand(model.hf, clean, base, mask, graph)
            metric = logits[task.answers[pair][0]] - logits[task.foils[pair][0]]
            close(found["logit_diff"][:, pair], float(metric), float(np.abs(bench.clean).max()))
            p = full.log_softmax(-1)
            close(found["kl"][0, pair], float((p.exp() * (p - logits.log_softmax(-1))).sum()), 1)
            assert found["agree"][0, pair] == float(full.argmax() == logits.argmax())


def test_pairs_are_taken_in_parts_that_fit_and_give_the_same():
    model, task, _ = setting("llama")
    bench = Bench(model, task)
    mask = bench.graph.exists & (torch.rand(bench.graph.exists.shape, generator=torch.Generator().manual_seed(1)) < 0.5)
    whole = bench.scores([mask] * 4)
    model.memory_budget = 4 * 4 * 8 * 32 * 7
    small = Bench(model, task)
    close(small.scores([mask] * 4), whole, 1)
    seen = []
    small.scores([mask] * 4, seen.append)
    assert sum(seen) == 4


def test_means_are_those_of_all_first_and_all_later_positions():
    model, task, _ = setting("llama")
    first, later = writer_means(model, task.clean)[Site("z", 1)]
    rows = model.capture(task.clean, ["z.1"]).rows("z.1")
    assert torch.allclose(first, torch.stack([r[0] for r in rows]).mean(0), atol=1e-6)
    assert torch.allclose(later, torch.cat([r[1:] for r in rows]).mean(0), atol=1e-6)


def test_an_unknown_ablation_is_refused():
    model, task, _ = setting("llama")
    with pytest.raises(UsageError, match=f"ablation.*{ABLATIONS[0]}"):
        Bench(model, task, ablation="noise")
