"""Circuit files of Assay, read by circuitkit's own graph, and files of that graph read here (`make peers`).

circuitkit has the graph, the JSON and the .pt of EAP-IG, and is a package; EAP-IG and MIB's evaluator are not. What those
made of files written here is in `fixtures/circuits`.
"""

import importlib.util
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from assay.circuits.formats import Circuit, Ungrouped, mib_circuits, read_eap, write_eap_json, write_eap_pt, write_mib
from assay.circuits.graph import make_graph

FIXTURES = Path(__file__).parent.parent / "fixtures" / "circuits"
WRITE = {".json": write_eap_json, ".pt": write_eap_pt}


def peer_class():
    """Their `Graph`, without what their package does to other libraries when it is imported."""
    spec = importlib.util.find_spec("circuitkit")
    assert spec is not None and spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0])
    for name in ("circuitkit", "circuitkit.backends"):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(folder.joinpath(*name.split(".")[1:]))]
    from circuitkit.backends.eap.graph import Graph

    return Graph


PEER = peer_class()
READ = {".json": PEER.from_json, ".pt": PEER.from_pt}


def made(kv: int, parallel: bool) -> Circuit:
    graph = make_graph(6, kv, [parallel] * 3)
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(graph.exists.shape, generator=generator)
    mask = graph.exists & (torch.rand(graph.exists.shape, generator=generator) < 0.3)
    return Circuit(graph, mask, scores, nodes=torch.randn(len(graph.writers), generator=generator), d_model=48)


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("kv", [1, 2, 6])
@pytest.mark.parametrize("suffix", WRITE)
def test_the_peer_reads_every_score_and_every_flag(suffix, kv, parallel, tmp_path):
    circuit = made(kv, parallel)
    theirs, read = Ungrouped(circuit.graph), READ[suffix](str(WRITE[suffix](tmp_path / f"c{suffix}", circuit)))
    assert torch.equal(read.real_edge_mask, theirs.exists) and len(read.edges) == theirs.n_edges
    torch.testing.assert_close(read.scores[theirs.exists], theirs.spread(circuit.scores)[theirs.exists])
    assert torch.equal(read.in_graph, circuit.mask[:, theirs.column])
    assert torch.equal(read.nodes_in_graph, circuit.writers)
    torch.testing.assert_close(read.nodes_scores, circuit.nodes)


@pytest.mark.parametrize("suffix", WRITE)
def test_the_peers_top_n_is_that_of_the_submission(suffix, tmp_path):
    circuit = made(6, False)
    for n, mask in enumerate(mib_circuits(circuit, "abs")):
        read = READ[suffix](str(WRITE[suffix](tmp_path / f"c{n}{suffix}", circuit)))
        read.apply_topn(int(mask.sum()), True, prune=False)
        assert torch.equal(read.in_graph, mask)


@pytest.mark.parametrize("suffix", WRITE)
def test_edges_without_a_score_are_last_in_the_peers_top_n(suffix, tmp_path):
    circuit = made(6, False)
    circuit.scores[~circuit.mask] = float("nan")
    read = READ[suffix](str(WRITE[suffix](tmp_path / f"c{suffix}", circuit)))
    read.apply_topn(int(circuit.mask.sum()), True, prune=False)
    assert torch.equal(read.in_graph, circuit.mask)


@pytest.mark.parametrize("kv", [2, 6])
@pytest.mark.parametrize("suffix", WRITE)
def test_there_and_back_through_the_peer(suffix, kv, tmp_path):
    circuit = made(kv, False)
    if suffix == ".json":
        circuit = replace(circuit, nodes=None)  # their to_json fails on a graph with scores of nodes: logits have none
    read = READ[suffix](str(WRITE[suffix](tmp_path / f"c{suffix}", circuit)))
    again = tmp_path / f"again{suffix}"
    (read.to_json if suffix == ".json" else read.to_pt)(str(again))
    back, exists = read_eap(again, circuit.graph, sign="carries"), circuit.graph.exists
    torch.testing.assert_close(back.scores[exists], circuit.scores[exists])
    if circuit.nodes is not None:
        torch.testing.assert_close(back.nodes, circuit.nodes)
    assert torch.equal(back.mask, circuit.mask) and torch.equal(back.writers, circuit.writers) and back.notes == ()


def test_the_peer_reads_every_circuit_of_a_submission(tmp_path):
    circuit = made(2, False)
    folder = write_mib(tmp_path, circuit, task="ioi", model="qwen2.5", select="signed")
    counts = sorted(int(PEER.from_json(str(path)).count_included_edges()) for path in folder.iterdir())
    assert counts == [Ungrouped(circuit.graph).count(mask) for mask in mib_circuits(circuit, "signed")]


@pytest.mark.parametrize("suffix", READ)
def test_the_fixtures_are_what_the_peer_reads(suffix):
    read, here = READ[suffix](str(FIXTURES / f"eap{suffix}")), read_eap(FIXTURES / f"eap{suffix}")
    exists = here.graph.exists
    torch.testing.assert_close(here.scores[exists], read.scores[exists])
    assert torch.equal(here.mask, read.in_graph) and int(here.mask.sum()) == 39
