"""The graph of edges against its closed forms, and against what comes after what."""

import itertools

import pytest
import torch

from assay.circuits.graph import LOGITS, graph_of, make_graph
from assay.errors import UsageError
from assay.sites import Site
from conftest import tiny


def n_edges(layers, heads, kv, parallel):
    """The closed form of the module's docstring."""
    between = layers * (layers - 1) // 2 * (heads + 1) * (heads + 2 * kv + 1)
    return between + layers * (heads + 2 * kv + 1) + (0 if parallel else layers * heads) + 1 + layers * (heads + 1)


@pytest.mark.parametrize("layers, heads, kv", [(1, 1, 1), (3, 4, 4), (3, 4, 2), (4, 6, 1), (12, 12, 12), (30, 9, 3)])
@pytest.mark.parametrize("parallel", [False, True])
def test_sizes_are_the_closed_forms(layers, heads, kv, parallel):
    graph = make_graph(heads, kv, [parallel] * layers)
    assert len(graph.writers) == 1 + layers * (heads + 1)
    assert len(graph.readers) == layers * (heads + 2 * kv + 1) + 1
    assert graph.n_edges == n_edges(layers, heads, kv, parallel) == len(graph.cells)


def test_published_sizes():
    assert make_graph(12, 12, [False] * 12).n_edges == 32_491  # GPT-2 small
    assert make_graph(9, 3, [False] * 30).n_edges == 70_651  # SmolLM2-135M


def moment(site, parallel, reads):
    """When a site reads, or writes: a layer's attention, then its MLP; both at once where it is parallel."""
    if site.name in ("embed", "logits"):
        return -1.0 if site.name == "embed" else 1e9
    is_mlp = site.name.startswith("mlp")
    start = site.layer + (0.5 if is_mlp and not parallel else 0.0)
    return start if reads else start + (0.9 if parallel else 0.4)


@pytest.mark.parametrize("parallel", [False, True])
def test_edges_are_all_that_go_forward(parallel):
    graph = make_graph(4, 2, [parallel] * 3)
    want = {f"{w}->{r}" for w, r in itertools.product(graph.writers, graph.readers)
            if moment(w, parallel, False) < moment(r, parallel, True)}  # fmt: skip
    assert {str(edge) for edge in graph.edges(graph.exists)} == want
    assert ("z.1.2->mlp_in.1" in want) != parallel and "mlp_out.1->q.1.0" not in want


def test_names_and_masks_come_back():
    graph = make_graph(4, 2, [False, True, False])
    for cell in graph.cells.tolist():
        edge = graph.name(cell)
        assert graph.edge(edge) == graph.edge(str(edge)) == tuple(cell)
    some = torch.rand(graph.exists.shape, generator=torch.Generator().manual_seed(0)) < 0.3
    assert torch.equal(graph.mask(graph.edges(some)), some & graph.exists)
    assert [graph.writer_number[w] for w in graph.writers] == list(range(len(graph.writers)))


def test_nodes_and_readers_of_each_other():
    graph = make_graph(4, 2, [False] * 2)
    assert graph.node_of(Site("k", 1, 1)) == (Site("z", 1, 2), Site("z", 1, 3))
    assert graph.readers_of(Site("z", 1, 2)) == (Site("q", 1, 2), Site("k", 1, 1), Site("v", 1, 1))
    for reader in graph.readers[:-1]:
        assert all(reader in graph.readers_of(writer) for writer in graph.node_of(reader))
    for writer in graph.writers:
        assert all(writer in graph.node_of(reader) for reader in graph.readers_of(writer))
    assert graph.node_of(LOGITS) == graph.readers_of(Site("embed")) == ()
    mask = graph.node_mask([Site("z", 0, 1), Site("mlp_out", 1)])
    assert {str(edge).split("->")[0] for edge in graph.edges(mask)} == {"z.0.1", "mlp_out.1"}
    assert torch.equal(mask[graph.writer_number[Site("z", 0, 1)]], graph.exists[graph.writer_number[Site("z", 0, 1)]])


@pytest.mark.parametrize("edge, says", [
    ("z.0.1", "WRITER->READER"), ("a->b->c", "WRITER->READER"), ("z.0.9->logits", "a writer of this model"),
    ("q.0.1->logits", "a writer of this model"), ("z.0.1->k.1.2", "a reader of this model"),
    ("z.1.0->q.1.0", "comes before"), ("mlp_out.1->q.0.0", "comes before"), ("z.0.1->resid_mid.1", "a reader of this model"),
])  # fmt: skip
def test_what_is_no_edge_is_refused(edge, says):
    with pytest.raises(UsageError, match=says):
        make_graph(4, 2, [False] * 2).edge(edge)


@pytest.mark.parametrize("family, kv, parallel", [("llama", 2, False), ("gpt2", 4, False), ("neox", 4, True),
                                                  ("neox_sequential", 4, False), ("gemma2", 2, False)])  # fmt: skip
def test_graphs_of_models(family, kv, parallel):
    graph = graph_of(tiny(family))
    assert graph.n_edges == n_edges(3, 4, kv, parallel)
    assert (graph.n_heads, graph.n_kv_heads, graph.parallel) == (4, kv, (parallel,) * 3)
