"""Nodes at classes of positions: against a Llama written out by hand in which every class that looks has keys of its own."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from assay.circuits.attribute import AttributionPlan, attribute
from assay.circuits.exact import exact_edges, exact_nodes
from assay.circuits.find import FindPlan, find_circuit
from assay.circuits.formats import read_circuit, write_circuit, write_eap_json, write_graphml
from assay.circuits.graph import graph_of, make_graph, parse_node
from assay.circuits.positions import classes_of, positions_of
from assay.circuits.subgraph import ABLATIONS, Bench
from assay.data.prepare import prepare
from assay.errors import UsageError
from assay.evidence.edges_instrument import classes_for, is_circuit, mask_of, parts_of
from assay.evidence.memory import MemoryStore
from assay.evidence.run import Settings, state_claim, test_claim
from assay.evidence.source import MemorySource
from assay.sites import Site
from assay.testing.edge_truth import TRUTHS
from assay.testing.induction import Induction, planted_induction, repeated_pairs
from test_attribute import setting

pytestmark = pytest.mark.whole

LABELS = {"one": [1, 1, 1], "two": [3, 4, 2]}


def labelled(family):
    model, task, _ = setting(family)
    return model, replace(task, labels={**LABELS, "end": [len(ids) - 1 for ids in task.clean]})


def spread(mask, graph):
    """A mask of the plain graph at every class."""
    n = len(graph.classes)
    inner = mask[:, :-1].repeat_interleave(n, 0).repeat_interleave(n, 1)
    return torch.cat([inner, mask[:, -1:].repeat_interleave(n, 0)], 1) & graph.exists


def summed(scores, graph):
    """Edges summed over the classes of both ends."""
    n = len(graph.classes)
    return torch.cat([scores[:, :-1].unflatten(0, (-1, n)).unflatten(2, (-1, n)).sum((1, 3)),
                      scores[:, -1:].unflatten(0, (-1, n)).sum(1)], 1)  # fmt: skip


@pytest.mark.parametrize("layers, heads, kv, parallel", [(3, 4, 2, False), (2, 4, 4, True), (30, 9, 3, False)])
@pytest.mark.parametrize("names", [[], ["a"], ["a", "b", "c"]])
def test_there_are_as_many_edges_as_the_closed_form_says(layers, heads, kv, parallel, names):
    n, between, units = len(names) + 2, layers * (layers - 1) // 2, heads + 1
    queries, mlps = between * units * heads + layers * heads, between * units + layers + (0 if parallel else layers * heads)
    looked_at, ends = 2 * kv * (between * units + layers), 1 + layers * units
    graph = make_graph(heads, kv, [parallel] * layers, [*names, "rest", "end"])
    assert graph.n_edges == n * (queries + mlps) + (n * (n - 1) + 1) * looked_at + ends
    assert len(graph.writers) == n * ends and len(graph.readers) == n * layers * (heads + 2 * kv + 1) + 1
    assert graph.n_edges > n * graph.plain.n_edges - len(graph.writers)


def test_edges_meet_where_they_are_read_and_names_come_back():
    graph = make_graph(4, 2, [False] * 3, ["a", "rest", "end"])
    there = {str(edge) for edge in graph.edges(graph.exists)}
    assert {"embed@a->v.2.0@end", "z.0.1@rest->k.1.1@a", "mlp_out.0@a->q.2.1@a", "z.2.0@end->logits"} <= there
    assert not {"embed@end->v.2.0@a", "mlp_out.0@a->q.2.1@end", "z.0.1@a->mlp_in.0@end", "z.2.0@a->logits"} & there
    assert all(str(graph.name(graph.edge(name))) == name for name in list(there)[:200])
    z = graph.writers[graph.edge("z.1.3@a->q.2.0@a")[0]]
    assert list(map(str, graph.readers_of(z))) == ["q.1.3@a", "k.1.1@a", "v.1.1@a"]
    assert all(reader in graph.readers_of(node) for reader in graph.readers[:-1] for node in graph.node_of(reader))
    for wrong, says in (("embed->v.2.0@end", "with a class"), ("embed@b->v.2.0@end", "a, rest, end"),
                        ("embed@end->v.2.0@a", "at its class")):  # fmt: skip
        with pytest.raises(UsageError, match=says):
            graph.edge(wrong)
    with pytest.raises(UsageError, match="no classes of positions"):
        graph.plain.edge("embed@a->v.2.0@end")
    with pytest.raises(UsageError, match="'rest' and 'end'"):
        make_graph(4, 2, [False], ["a", "end"])


def by_hand(hf, clean, base, mask, graph, of):
    """A Llama written out: position p of class c reads, as reader v, what writers put out there, each weighted by the mask's
    cell (writer at c, v at the class that looks) and `base` by the rest. Keys are looked up one query position at a time."""
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    config, plain, n = hf.config, graph.plain, len(graph.classes)
    d = config.hidden_size // config.num_attention_heads
    group = config.num_attention_heads // config.num_key_value_heads
    ids, length = torch.tensor([clean]), len(clean)
    out = {Site("embed"): hf.model.embed_tokens(ids)[0]}

    def read(reader, looks=None):
        """At all positions, as class `looks` sees it; None: as the position's own class does."""
        number, rows = plain.reader_number[reader], []
        for p in range(length):
            at = (of[p] if looks is None else looks)
            column = number * n + at if reader.name != "logits" else -1
            cells = [(mask[w * n + of[p], column], u) for w, u in enumerate(plain.writers) if plain.exists[w, number]]
            rows.append(sum(m * out[u][p] + (1 - m) * base[u][p] if base else out[u][p] for m, u in cells))
        return torch.stack(rows)

    cos, sin = hf.model.rotary_emb(ids.to(out[Site("embed")].dtype)[..., None], torch.arange(length)[None])
    for layer, block in enumerate(hf.model.layers):
        attention, written = block.self_attn, {}

        def head(name, h, looks=None, layer=layer, block=block, attention=attention):
            x = block.input_layernorm(read(Site(name, layer, h), looks))
            return getattr(attention, f"{name}_proj")(x)[:, h * d : (h + 1) * d]

        for h in range(config.num_attention_heads):
            q, z = head("q", h), []
            seen = {c: (head("k", h // group, c), head("v", h // group, c)) for c in set(of)}
            for p in range(length):
                key, value = seen[of[p]]
                query, rotated = apply_rotary_pos_emb(q[None, None], key[None, None], cos, sin)
                pattern = (query[0, 0, p] @ rotated[0, 0, : p + 1].T / d**0.5).softmax(-1)
                z.append(pattern @ value[: p + 1])
            written[Site("z", layer, h)] = torch.stack(z) @ attention.o_proj.weight[:, h * d : (h + 1) * d].T
        out.update(written)
        out[Site("mlp_out", layer)] = block.mlp(block.post_attention_layernorm(read(Site("mlp_in", layer))))
    return out, hf.lm_head(hf.model.norm(read(Site("logits")))[-1])


def metric_by_hand(model, task, pair, mask, graph, of):
    whole = torch.ones_like(mask)
    base = {k: v.detach() for k, v in by_hand(model.hf, task.corrupted[pair], {}, whole, graph, of[pair])[0].items()}
    logits = by_hand(model.hf, task.clean[pair], base, mask, graph, of[pair])[1]
    return logits[task.answers[pair][0]] - logits[task.foils[pair][0]]


@pytest.mark.whole
def test_circuits_equal_a_llama_written_out_by_hand():
    model, task = labelled("llama")
    graph = graph_of(model, classes_of(task))
    bench, of = Bench(model, task, graph), positions_of(task, graph.classes)
    rng = torch.Generator().manual_seed(0)
    masks = [graph.exists & (torch.rand(graph.exists.shape, generator=rng) < share) for share in (0.1, 0.6, 0.95)]
    ways = [bench.scores(masks), np.concatenate([bench.scores([mask]) for mask in masks])]
    with torch.no_grad():
        want = [[float(metric_by_hand(model, task, pair, mask.float(), graph, of)) for pair in range(len(task))]
                for mask in masks]  # fmt: skip
    for found in ways:
        assert found == pytest.approx(np.array(want), abs=2e-4 * np.abs(bench.clean).max())
    assert np.abs(np.array(want) - bench.clean).max() > 0.1


@pytest.mark.whole
def test_scores_are_gradients_of_the_cut_by_hand_and_exact_patching_is_the_cut():
    model, task = labelled("llama")
    graph = graph_of(model, classes_of(task))
    found = attribute(model, task, AttributionPlan("eap", positions="labels"))
    assert found.graph == graph and set(found.names) == {str(edge) for edge in graph.edges(graph.exists)}
    of, cells = positions_of(task, graph.classes), graph.cells
    for pair in (0,):
        mask = graph.exists.float().requires_grad_(True)
        (slope,) = torch.autograd.grad(metric_by_hand(model, task, pair, mask, graph, of), mask)
        assert torch.allclose(found.values[pair], slope[cells[:, 0], cells[:, 1]], atol=1e-4 * float(slope.abs().max()))
    model.hf.zero_grad()
    top = [found.names[number] for number in found.scores.abs().argsort(descending=True)[:4].tolist()]
    between = [name for name in found.names if name.startswith("embed@one->v.0") and name.endswith("@end")]
    drops = exact_edges(model, task, [*top, *between], "noise")
    with torch.no_grad():
        plain = float(metric_by_hand(model, task, 1, graph.exists.float(), graph, of))
        for edge, drop in zip([*top, *between], drops[1].tolist(), strict=True):
            cut = (graph.exists & ~graph.mask([edge])).float()
            assert drop == pytest.approx(plain - float(metric_by_hand(model, task, 1, cut, graph, of)), abs=2e-4)


@pytest.mark.whole
@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_over_all_classes_it_is_the_plain_graph(family):
    model, task = labelled(family)
    graph = graph_of(model, classes_of(task))
    rng = torch.Generator().manual_seed(1)
    masks = [graph.plain.exists & (torch.rand(graph.plain.exists.shape, generator=rng) < share) for share in (0.5, 0.9)]
    for how in ABLATIONS:
        plain, apart = Bench(model, task, ablation=how), Bench(model, task, graph, ablation=how)
        got = apart.scores([graph.exists, *(spread(mask, graph) for mask in masks)])
        assert got == pytest.approx(np.stack([plain.clean, *plain.scores(masks)]), abs=2e-4)
        assert apart.empty == pytest.approx(plain.empty, abs=2e-4)
    for plan in (AttributionPlan("eap-ig", "edge"), AttributionPlan("eap", "node")):
        whole, split = attribute(model, task, plan), attribute(model, task, replace(plan, positions="labels"))
        assert split.residual == pytest.approx(whole.residual, abs=1e-3) and list(split.steps) == list(whole.steps)
        nodes = split.scores.unflatten(0, (-1, len(graph.classes))).sum(1) if plan.level == "node" else None
        want, got = (whole.matrix(), summed(split.matrix(), graph)) if nodes is None else (whole.scores, nodes)
        assert torch.allclose(got, want, atol=1e-4 * float(want.abs().max()))


def test_what_cancels_over_positions_shows_at_its_classes():
    truth, plan = TRUTHS.get("opposite"), AttributionPlan("eap-ig")
    model = truth.model()
    task = prepare(truth.pairs(4, 3, 0), model)
    words = [model.tokenizer.convert_ids_to_tokens(ids) for ids in task.clean]
    labels = {name: [next(i for i, word in enumerate(row) if word[0] == name and word[1:].isdigit()) for row in words]
              for name in "pm"}  # fmt: skip
    task = replace(task, labels={**task.labels, **labels})
    whole, split = attribute(model, task, plan), attribute(model, task, replace(plan, positions="labels"))
    at = dict(zip(split.names, split.scores.tolist(), strict=True))
    effect = float((whole.clean - whole.corrupted).mean())
    assert abs(dict(zip(whole.names, whole.scores.tolist(), strict=True))["embed->v.0.3"]) < 0.01 * effect
    assert at["embed@p->v.0.3@end"] > 0.3 * effect and at["embed@m->v.0.3@end"] < -0.3 * effect
    exact = exact_edges(model, task, ["embed@p->v.0.3@end", "embed@m->v.0.3@end"]).mean(0).tolist()
    assert exact == pytest.approx([at["embed@p->v.0.3@end"], at["embed@m->v.0.3@end"]], rel=0.05)


PAIRS = {split: repeated_pairs(n, 2, 5, f"{split} ") for split, n in {"tune": 6, "confirm": 14, "ood": 12}.items()}


@pytest.fixture(scope="module")
def circuit():
    """The planted induction heads with what they look up; it is found at classes of positions."""
    model = planted_induction(Induction())
    task = prepare(repeated_pairs(4, 2, 1, "discover "), model)
    return model, task, find_circuit(model, task, task, FindPlan(positions="labels", verify=4, controls=2))


def test_a_circuit_between_classes_is_found_and_kept(circuit, tmp_path):
    model, task, found = circuit
    written = {"embed@rest->v.1.0@end", "embed@rest->v.1.1@end", "z.1.0@end->logits", "z.1.1@end->logits"}
    kept = found.curves["resample"].points[found.chosen].f.value
    assert set(found.parts) >= written and len(found.parts) <= 6 and kept == pytest.approx(1, abs=0.01)
    assert found.verified is not None and found.verified.agreement["noise"].pearson > 0.99
    held = found.circuit(model, "repeats")
    again = read_circuit(write_circuit(tmp_path / "c.json", held), graph_of(model))
    assert again.graph == held.graph and torch.equal(again.mask, held.mask)
    assert "@end" in write_graphml(tmp_path / "c.graphml", held).read_text()
    with pytest.raises(UsageError, match="GraphML holds them"):
        write_eap_json(tmp_path / "e.json", held)
    whole, at_end = (exact_nodes(model, task, [name]) for name in ("z.1.0", "z.1.0@end"))
    assert torch.allclose(at_end, whole, atol=1e-4)  # this head writes at the end alone


def test_a_claim_about_it_holds_and_one_about_the_wrong_class_does_not(circuit):
    model, task, found = circuit
    settings = Settings(tune=12, confirm=28, ood=24, draws=2, control_pairs=1)
    wrong = [name.replace("embed@rest", "embed@end") for name in found.parts]
    verdicts = []
    for parts in (found.parts, wrong):
        store, source = MemoryStore(), MemorySource("repeats", PAIRS)
        claim, _ = state_claim(store, model, source, list(parts), settings=settings)
        verdicts.append(test_claim(store, claim.id, model, source=source))
    right, other = verdicts
    kept = {gate["name"]: gate["estimate"] for gate in right.gates if gate["split"] == "confirm"}
    assert right.verdict == "supported" and kept["sufficiency"] == pytest.approx(1, abs=0.02)
    assert other.verdict == "refuted"
    names = ["z.1.0@end", "embed@rest"]
    assert is_circuit(names[:1]) and not is_circuit(["z.1.0"])
    graph = graph_of(model, classes_for(names, task))
    assert torch.equal(mask_of(graph, parts_of(model, names)), graph.node_mask(map(parse_node, names)))
    with pytest.raises(UsageError, match="classes of positions of this task: rest, end"):
        classes_for(["z.1.0@subject"], task)
