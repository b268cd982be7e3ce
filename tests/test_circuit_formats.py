"""Circuit files: written, read by an independent reader of EAP-IG's format, refused when they do not fit."""

import json
import math
import os
import re
import zipfile
from pathlib import Path

import networkx
import pytest
import torch

from assay.circuits.formats import (
    MIB_MODELS,
    SHARES,
    Circuit,
    Measured,
    Ungrouped,
    circuit_json,
    mib_circuits,
    mib_mismatch,
    read_circuit,
    read_eap,
    read_mib,
    write_circuit,
    write_eap_json,
    write_eap_pt,
    write_graphml,
    write_mib,
)
from assay.circuits.graph import make_graph
from assay.errors import UsageError

WRITE = {".json": write_eap_json, ".pt": write_eap_pt}


def made(layers=3, heads=6, kv=2, parallel=False, seed=0, **more) -> Circuit:
    graph = make_graph(heads, kv, [parallel] * layers)
    rng = torch.Generator().manual_seed(seed)
    scores = torch.randn(graph.exists.shape, generator=rng) * graph.exists
    mask = graph.exists & (torch.rand(graph.exists.shape, generator=rng) < 0.3)
    return Circuit(graph, mask, scores, d_model=48, **more)


def edit_json(path: Path, change) -> Path:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    return path


# an independent reader ---------------------------------------------------------------------------


class PeerGraph:
    """EAP-IG's graph built from `cfg` alone, by its rules: sources in the stream so far feed every later target."""

    def __init__(self, cfg):
        self.cfg, self.edges, self.nodes = cfg, {}, {"input": False}
        layers, heads = cfg["n_layers"], cfg["n_heads"]
        self.targets = []
        stream = ["input"]
        for layer in range(layers):
            names = [f"a{layer}.h{head}" for head in range(heads)]
            inputs = [f"{name}<{letter}>" for letter in "qkv" for name in names]
            self.targets += [*inputs, f"m{layer}"]
            for source in stream:
                self.edges |= {f"{source}->{target}": None for target in inputs}
            before = list(stream) if cfg["parallel_attn_mlp"] else [*stream, *names]
            self.edges |= {f"{source}->m{layer}": None for source in before}
            stream += [*names, f"m{layer}"]
        self.targets.append("logits")
        self.edges |= {f"{source}->logits": None for source in stream}
        self.nodes = dict.fromkeys(stream, False)
        self.sources = stream


def peer_json(path) -> PeerGraph:
    """What their `from_json` demands: three top keys, known nodes with in_graph, known edges with score and in_graph."""
    data = json.loads(Path(path).read_text())
    graph = PeerGraph({key: data["cfg"][key] for key in ("n_layers", "n_heads", "parallel_attn_mlp", "d_model")})
    for name, row in data["nodes"].items():
        if name != "logits":
            assert name in graph.nodes
            graph.nodes[name] = row["in_graph"]
    for name, row in data["edges"].items():
        assert name in graph.edges
        graph.edges[name] = (row["score"], row["in_graph"])
    return graph


def peer_pt(path) -> PeerGraph:
    """What their `from_pt` demands: keys, and tensors that can be assigned to (source, target) matrices."""
    data = torch.load(path)
    assert {"cfg", "src_nodes", "dst_nodes", "edges_scores", "edges_in_graph", "nodes_in_graph"} <= data.keys()
    graph = PeerGraph(data["cfg"])
    shape = len(graph.sources), len(graph.targets)
    assert data["src_nodes"] == graph.sources and data["dst_nodes"] == graph.targets
    assert data["edges_scores"].shape == data["edges_in_graph"].shape == shape
    for s, source in enumerate(graph.sources):
        graph.nodes[source] = bool(data["nodes_in_graph"][s])
        for t, target in enumerate(graph.targets):
            name, cell = f"{source}->{target}", (float(data["edges_scores"][s, t]), bool(data["edges_in_graph"][s, t]))
            if name in graph.edges:
                graph.edges[name] = cell
            else:
                assert cell == (0.0, False)
    return graph


PEER = {".json": peer_json, ".pt": peer_pt}


@pytest.mark.parametrize("suffix", WRITE)
@pytest.mark.parametrize("parallel", [False, True])
def test_the_peers_reader_finds_every_edge_where_it_belongs(suffix, parallel, tmp_path):
    circuit = made(parallel=parallel)
    graph, read = circuit.graph, PEER[suffix](WRITE[suffix](tmp_path / f"c{suffix}", circuit))
    assert None not in read.edges.values()
    assert len(read.edges) == Ungrouped(graph).n_edges
    for w, r in graph.cells.tolist():
        writer, reader = graph.writers[w], graph.readers[r]
        source = {"embed": "input", "z": f"a{writer.layer}.h{writer.index}", "mlp_out": f"m{writer.layer}"}[writer.name]
        if reader.name in "qkv":
            width = 1 if reader.name == "q" else 3
            heads = range(reader.index * width, (reader.index + 1) * width)
            names = [f"{source}->a{reader.layer}.h{head}<{reader.name}>" for head in heads]
        else:
            names = [f"{source}->" + ("logits" if reader.name == "logits" else f"m{reader.layer}")]
        assert sum(read.edges[name][0] for name in names) == pytest.approx(float(circuit.scores[w, r]), rel=1e-6)
        assert len({read.edges[name][0] for name in names}) == 1
        assert {read.edges[name][1] for name in names} == {bool(circuit.mask[w, r])}
    assert list(read.nodes.values()) == circuit.mask.any(1).tolist()


def test_sizes_are_those_of_the_peer():
    """GPT-2 small and SmolLM2-135M, as counted with the peer's tool."""
    gpt2, smol = (Ungrouped(make_graph(h, kv, [False] * n)) for h, kv, n in ((12, 12, 12), (9, 3, 30)))
    assert (len(gpt2.sources) + 1, gpt2.n_edges) == (158, 32491)
    assert (len(smol.sources), len(smol.targets), smol.n_edges, smol.graph.n_edges) == (301, 841, 123211, 70651)


# there and back ----------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", WRITE)
@pytest.mark.parametrize("kv", [1, 2, 6])
def test_there_and_back(suffix, kv, tmp_path):
    circuit = made(kv=kv, nodes=torch.randn(22, generator=torch.Generator().manual_seed(5)))
    assert circuit.nodes is not None
    circuit.nodes[3] = math.nan
    first = circuit.graph.cells[7].tolist()
    circuit.scores[tuple(first)] = math.nan
    again = read_eap(WRITE[suffix](tmp_path / f"c{suffix}", circuit), circuit.graph)
    exists = circuit.graph.exists
    torch.testing.assert_close(again.scores[exists], circuit.scores[exists], equal_nan=True)
    assert bool(again.scores[~exists].isnan().all()) and torch.equal(again.mask, circuit.mask)
    torch.testing.assert_close(again.nodes, circuit.nodes, equal_nan=True)
    assert again.d_model == 48 and again.notes == () and torch.equal(again.writers, circuit.writers)


@pytest.mark.parametrize("suffix", WRITE)
def test_an_edge_without_a_score_has_none_of_the_first_places_in_a_peers_top_n(suffix, tmp_path):
    circuit = made()
    circuit.scores[~circuit.mask] = math.nan
    edges = PEER[suffix](WRITE[suffix](tmp_path / f"c{suffix}", circuit)).edges
    assert sum(flag for _, flag in edges.values()) == Ungrouped(circuit.graph).count(circuit.mask)
    assert all(math.isfinite(score) and (flag or score == 0) for score, flag in edges.values())
    again = read_eap(tmp_path / f"c{suffix}", circuit.graph)
    assert torch.equal(again.scores.isnan(), circuit.scores.isnan() | ~circuit.graph.exists)


@pytest.mark.parametrize("suffix", WRITE)
def test_without_a_model_the_files_own_graph_is_taken(suffix, tmp_path):
    circuit = made(kv=2)
    again = read_eap(WRITE[suffix](tmp_path / f"c{suffix}", circuit))
    assert again.graph.n_kv_heads == 6 and int(again.mask.sum()) == Ungrouped(circuit.graph).count(circuit.mask)
    torch.testing.assert_close(again.scores.nansum(), circuit.scores.sum())


@pytest.mark.parametrize("suffix", WRITE)
def test_heads_of_a_group_that_disagree_are_summed_and_noted(suffix, tmp_path):
    alone = made(kv=6)
    grouped = made(kv=2).graph
    alone.scores[0, alone.graph.cells[0, 1] + 6] = math.nan  # input -> a0.h0<k>
    again = read_eap(WRITE[suffix](tmp_path / f"c{suffix}", alone), grouped)
    cell = grouped.edge("embed->k.0.0")
    own = [alone.graph.edge(f"embed->k.0.{head}") for head in range(3)]
    assert float(again.scores[cell]) == pytest.approx(sum(float(alone.scores[c]) for c in own[1:]))
    assert bool(again.mask[cell]) == any(bool(alone.mask[c]) for c in own)
    assert any(note.startswith("1 edges into keys or values were scored") for note in again.notes)
    assert any("are in the circuit for some query heads" in note for note in again.notes)


# signs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", WRITE)
def test_the_sign_is_stated_and_cannot_be_contradicted(suffix, tmp_path):
    circuit = made()
    path = WRITE[suffix](tmp_path / f"c{suffix}", circuit)
    assert torch.equal(read_eap(path, circuit.graph, sign="carries").mask, circuit.mask)
    with pytest.raises(UsageError, match="carries, which c.* says itself"):
        read_eap(path, circuit.graph, sign="opposes")
    with pytest.raises(UsageError, match="sign: got 'up'; allowed: carries"):
        read_eap(path, circuit.graph, sign="up")


def test_a_file_without_a_sign_is_read_as_told(tmp_path):
    circuit = made()
    path = edit_json(write_eap_json(tmp_path / "c.json", circuit), lambda data: data.pop("assay"))
    plain, turned = read_eap(path, circuit.graph), read_eap(path, circuit.graph, sign="opposes")
    assert "does not say its sign" in plain.notes[0] and turned.notes == ()
    torch.testing.assert_close(turned.scores, -plain.scores, equal_nan=True)


# files that do not fit ---------------------------------------------------------------------------

BROKEN = {
    "no cfg": (lambda d: d.pop("cfg"), "key 'cfg': missing"),
    "cfg": (lambda d: d["cfg"].update(n_layers=4), "key 'cfg.n_layers': got 4; allowed: 3, as in the model"),
    "heads": (lambda d: d["cfg"].update(n_heads="6"), "key 'cfg.n_heads': got '6'; allowed: a whole number"),
    "parallel": (lambda d: d["cfg"].update(parallel_attn_mlp=True), "key 'cfg.parallel_attn_mlp': got True; .* sequential"),
    "node": (lambda d: d["nodes"].update({"a9.h0": {"in_graph": True}}), "key 'nodes.a9.h0'"),
    "node flag": (lambda d: d["nodes"]["m0"].update(in_graph=1), "key 'nodes.m0.in_graph': got 1; allowed: true or false"),
    "edge name": (lambda d: d["edges"].update({"m0->a1.h9<q>": {}}), "key 'edges.m0->a1.h9<q>'"),
    "edge letter": (lambda d: d["edges"].update({"m0->a1.h0": {}}), "key 'edges.m0->a1.h0'"),
    "backwards": (lambda d: d["edges"].update({"m1->m0": {}}), "key 'edges.m1->m0': .* comes before its target"),
    "score": (lambda d: d["edges"]["input->m0"].update(score="high"), "key 'edges.input->m0.score': got 'high'"),
    "infinite": (lambda d: d["edges"]["input->m0"].update(score=math.inf), "key 'edges.input->m0.score': got inf"),
    "flag": (lambda d: d["edges"]["input->m0"].pop("in_graph"), "key 'edges.input->m0.in_graph': got None"),
    "scored": (lambda d: d["edges"]["input->m0"].update(scored="no"), "key 'edges.input->m0.scored': got 'no'"),
    "edges": (lambda d: d.update(edges=[]), r"key 'edges': got \[\]; allowed: an object"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_json_that_does_not_fit_names_its_key(name, tmp_path):
    change, message = BROKEN[name]
    circuit = made()
    path = edit_json(write_eap_json(tmp_path / "c.json", circuit), change)
    with pytest.raises(UsageError, match=message):
        read_eap(path, circuit.graph)


@pytest.mark.parametrize(("text", "message"), [
    ("{", "not JSON"), ("[" * 100_000, "not JSON"), ("[]", "the file"), ('{"cfg": 1, "cfg": 2}', "key 'cfg': .*twice"),
    ('{"cfg": {"n_layers": 100000, "n_heads": 1000, "d_model": 1, "parallel_attn_mlp": false}, "nodes": {}, "edges": {}}',
     "cells; allowed"), ("\xff", "not JSON"),
])  # fmt: skip
def test_hostile_json_is_refused(text, message, tmp_path):
    (tmp_path / "c.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=message):
        read_eap(tmp_path / "c.json")


BROKEN_PT = {
    "edges": (lambda d: d.update(edges=d.pop("edges_scores")), "key 'edges_scores': missing"),
    "shape": (lambda d: d.update(edges_scores=d["edges_scores"][:, 1:]), "key 'edges_scores': got .*a tensor of shape"),
    "order": (lambda d: d["dst_nodes"].reverse(), "key 'dst_nodes': got \"'logits' in place of 'a0.h0<q>'\""),
    "names": (lambda d: d["src_nodes"].pop(), "key 'src_nodes': got '21 names'"),
    "flags": (lambda d: d.update(edges_in_graph=d["edges_in_graph"].float()), "key 'edges_in_graph': got 'torch.float32'"),
    "scored": (lambda d: d.update(edges_scored=1), "key 'edges_scored': got 1; allowed: a tensor of shape"),
    "no edges": (lambda d: d["edges_in_graph"].fill_(True), "key 'edges_in_graph': got '.* cells that are no edges'"),
    "infinite": (lambda d: d["edges_scores"].fill_(math.inf), "key 'edges_scores': got 'infinite values'"),
    "sparse": (lambda d: d.update(edges_scores=d["edges_scores"].to_sparse()), "key 'edges_scores'"),
}


@pytest.mark.parametrize("name", BROKEN_PT)
def test_a_pt_that_does_not_fit_names_its_key(name, tmp_path):
    change, message = BROKEN_PT[name]
    circuit = made()
    path = write_eap_pt(tmp_path / "c.pt", circuit)
    data = torch.load(path)
    change(data)
    torch.save(data, path)
    with pytest.raises(UsageError, match=message):
        read_eap(path, circuit.graph)


class Bad:
    def __reduce__(self):
        return os.mkdir, (os.environ["ASSAY_TEST_BAD"],)


def test_a_pt_with_objects_is_never_run(tmp_path, monkeypatch):
    monkeypatch.setenv("ASSAY_TEST_BAD", str(tmp_path / "ran"))
    torch.save({"cfg": Bad()}, tmp_path / "c.pt")
    with pytest.raises(UsageError, match="holds more than tensors"):
        read_eap(tmp_path / "c.pt")
    assert not (tmp_path / "ran").exists()


def test_large_files_are_refused_before_they_are_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr("assay.circuits.formats.LARGEST", 10_000)
    path = write_eap_json(tmp_path / "c.json", made())
    with pytest.raises(UsageError, match="bytes; allowed: 10000"):
        read_eap(path)
    with zipfile.ZipFile(tmp_path / "c.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("c/data.pkl", b"\0" * 1_000_000)
    assert (tmp_path / "c.pt").stat().st_size < 10_000
    with pytest.raises(UsageError, match="1000000 bytes unpacked"):
        read_eap(tmp_path / "c.pt")


def test_what_cannot_be_written_or_read_says_why(tmp_path):
    circuit = made()
    mixed = make_graph(4, 2, [True, False])
    none = Circuit(mixed, torch.zeros_like(mixed.exists), torch.zeros(mixed.exists.shape), d_model=8)
    for write in WRITE.values():
        with pytest.raises(UsageError, match="sequential and parallel"):
            write(tmp_path / "c", none)
        with pytest.raises(UsageError, match="d_model: got None"):
            write(tmp_path / "c", Circuit(circuit.graph, circuit.mask, circuit.scores))
    with pytest.raises(UsageError, match="cannot be read"):
        read_eap(tmp_path / "none.json")
    with pytest.raises(UsageError, match=".json or .pt"):
        read_eap(tmp_path / "c.pkl")
    with pytest.raises(UsageError, match="cells that are no edges"):
        Circuit(circuit.graph, torch.ones_like(circuit.mask), circuit.scores)
    with pytest.raises(UsageError, match="writers by readers"):
        Circuit(circuit.graph, circuit.mask[1:], circuit.scores[1:])


def test_edges_and_nodes_left_out_are_noted(tmp_path):
    circuit = made()

    def cut(data):
        del data["edges"]["input->m0"], data["nodes"]["m1"], data["edges"]["input->m1"]["score"]
        data["nodes"]["m2"]["neurons"] = [True] * 48

    again = read_eap(edit_json(write_eap_json(tmp_path / "c.json", circuit), cut), circuit.graph)
    for name in ("embed->mlp_in.0", "embed->mlp_in.1"):
        assert math.isnan(again.scores[circuit.graph.edge(name)])
    assert not again.mask[circuit.graph.edge("embed->mlp_in.0")]
    assert [note.split(":")[0] for note in again.notes[:3]] == [
        "single neurons of the file are not read", "1 of 22 nodes are not in the file",
        f"1 of {Ungrouped(circuit.graph).n_edges} edges are not in the file"]  # fmt: skip


# MIB ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("select", ["abs", "signed"])
def test_nine_circuits_keep_to_their_shares_as_the_peer_counts(select, tmp_path):
    circuit = made(layers=6)
    folder = write_mib(tmp_path, circuit, task="arc_easy", model="qwen2.5", select=select)
    assert folder.name == "arc-easy_qwen2.5" and len(list(folder.iterdir())) == 9
    total = Ungrouped(circuit.graph).n_edges
    kept = {path.stem: sum(flag for _, flag in peer_json(path).edges.values()) for path in folder.iterdir()}
    for share in SHARES:
        count = kept[f"circuit_{100 * share:g}"]
        assert count <= share * total < count + 3 + 1e-6  # one more group of three would not fit
    cells, masks = circuit.graph.cells, mib_circuits(circuit, select)
    values = circuit.scores[cells[:, 0], cells[:, 1]]
    values = values.abs() if select == "abs" else values
    for small, large in zip(masks, masks[1:], strict=False):
        assert not (small & ~large).any()
    inside = masks[-1][cells[:, 0], cells[:, 1]]
    assert values[inside].min() >= values[~inside].max()
    entry = read_mib(folder, circuit.graph)
    assert entry.importances is None and all(torch.equal(c.mask, m) for c, m in zip(entry.circuits, masks, strict=True))


def test_importances_in_one_file_and_membership_without_scores(tmp_path):
    circuit = made()
    entry = read_mib(write_mib(tmp_path, circuit, task="ioi", model="gpt2", suffix=".pt"), circuit.graph)
    assert entry.importances is not None and entry.circuits == ()
    torch.testing.assert_close(entry.importances.scores[circuit.graph.exists], circuit.scores[circuit.graph.exists])
    folder = write_mib(tmp_path / "b", circuit, task="ioi", model="gpt2", select="abs")
    for path in folder.iterdir():
        edit_json(path, lambda data: [row.pop("score") for row in data["edges"].values()])
    bare = read_mib(folder, circuit.graph)
    assert [int(c.mask.sum()) for c in bare.circuits] == [int(m.sum()) for m in mib_circuits(circuit, "abs")]
    assert bool(bare.circuits[0].scores.isnan().all())


def test_folders_that_are_no_submission_are_refused(tmp_path):
    circuit = made()
    with pytest.raises(UsageError, match="task: got 'sva'; allowed: ioi, mcqa"):
        write_mib(tmp_path, circuit, task="sva", model="gpt2")
    with pytest.raises(UsageError, match="model: got '../x'"):
        write_mib(tmp_path, circuit, task="ioi", model="../x")
    folder = write_mib(tmp_path, circuit, task="ioi", model="gpt2", select="abs")
    write_eap_json(folder / "circuit_0.1.json", circuit)  # far too many edges for the smallest
    with pytest.raises(UsageError, match="at most .*of the graph as EAP-IG counts it"):
        read_mib(folder, circuit.graph)
    (folder / "circuit_1.json").unlink()
    with pytest.raises(UsageError, match="8 files"):
        read_mib(folder, circuit.graph)
    circuit.scores[circuit.graph.edge("embed->logits")] = math.nan
    with pytest.raises(UsageError, match="1 edges without a score.*--all-scores"):
        mib_circuits(circuit, "abs")
    with pytest.raises(UsageError, match="1 edges without a score.*--all-scores"):
        write_mib(tmp_path / "c", circuit, task="ioi", model="gpt2")
    assert not (tmp_path / "c").exists()


def test_a_folder_holds_one_submission(tmp_path):
    """Their evaluator takes what is in a folder, whatever it is called."""
    circuit = made()
    folder = write_mib(tmp_path, circuit, task="ioi", model="gpt2")
    write_mib(tmp_path, circuit, task="ioi", model="gpt2")
    for more in ({"suffix": ".pt"}, {"select": "abs"}):
        with pytest.raises(UsageError, match="with importances.json'; allowed: a folder without other files"):
            write_mib(tmp_path, circuit, task="ioi", model="gpt2", **more)
    assert [path.name for path in folder.iterdir()] == ["importances.json"]


def test_importances_may_be_those_of_nodes_alone(tmp_path):
    circuit = made(nodes=torch.randn(22))
    assert circuit.nodes is not None
    circuit.scores.fill_(math.nan)
    entry = read_mib(write_mib(tmp_path, circuit, task="ioi", model="gpt2"), circuit.graph)
    assert entry.importances is not None and entry.importances.nodes is not None
    torch.testing.assert_close(entry.importances.nodes, circuit.nodes)
    circuit.nodes[4] = math.nan
    with pytest.raises(UsageError, match="1 nodes without a score"):
        write_mib(tmp_path / "b", circuit, task="ioi", model="gpt2")


def test_models_of_mib_have_the_edges_that_mib_counts():
    counts = {"gpt2": 32491, "qwen2.5": 179749, "gemma2": 74218, "llama3": 1592881, "interpbench": 1108}
    assert {name: Ungrouped(make_graph(heads, heads, [False] * layers)).n_edges
            for name, (layers, heads) in MIB_MODELS.items()} == counts  # fmt: skip
    assert mib_mismatch(make_graph(14, 2, [False] * 24), "qwen2.5") is None
    assert mib_mismatch(made().graph, "gpt2") == (
        "gpt2 of MIB has 12 layers of 12 heads, this circuit's model 3 of 6: their evaluator will not run it")


# GraphML and Assay's own -------------------------------------------------------------------------


def test_graphml_has_scores_kinds_and_paths(tmp_path):
    graph = make_graph(4, 2, [False, False])
    mask = graph.mask(["embed->v.0.1", "z.0.3->k.1.0", "z.1.1->logits", "mlp_out.0->logits"])
    scores = torch.where(mask, torch.tensor(-1.5), torch.tensor(0.0))
    scores[graph.edge("z.1.1->logits")] = math.nan
    found = networkx.read_graphml(write_graphml(tmp_path / "c.graphml", Circuit(graph, mask, scores, task="a<b&c")))
    assert found.graph["task"] == "a<b&c" and found.graph["sign"].startswith("positive: corrupting the edge lowers")
    streams = {(a, b): data for a, b, data in found.edges(data=True) if data["kind"] == "stream"}
    assert len(streams) == 4 and streams["embed", "v.0.1"]["score"] == -1.5 and "score" not in streams["z.1.1", "logits"]
    path = ["embed", "v.0.1", "z.0.3", "k.1.0", "z.1.1", "logits"]
    assert list(networkx.all_simple_paths(found, "embed", "logits")) == [path]
    assert dict(found.nodes["k.1.0"]) == {"kind": "key", "layer": 1, "index": 0}


def measured_circuit() -> Circuit:
    rows = (Measured(5, "resample", 0.5, 0.4, None, "abs"), Measured(9, "mean", 1.2))
    return made(model="tiny", digest="ab12", task="ioi", plan={"method": "eap", "steps": 5}, faithfulness=rows,
                nodes=torch.full((22,), math.nan).index_fill_(0, torch.tensor([2]), 0.25))  # fmt: skip


def test_own_json_there_and_back(tmp_path):
    circuit = measured_circuit()
    edge = circuit.strongest()[0]
    again = read_circuit(write_circuit(tmp_path / "c.json", circuit, others=True), circuit.graph)
    exists = circuit.graph.exists
    assert torch.equal(again.mask, circuit.mask) and torch.equal(again.scores[exists], circuit.scores[exists])
    assert torch.equal(again.writers, circuit.writers) and again.faithfulness == circuit.faithfulness
    for name in ("model", "digest", "task", "plan", "d_model"):
        assert getattr(again, name) == getattr(circuit, name)
    torch.testing.assert_close(again.nodes, circuit.nodes, equal_nan=True)
    few = read_circuit(write_circuit(tmp_path / "few.json", circuit))
    assert bool(few.scores[~circuit.mask].isnan().all()) and few.scores[edge] == circuit.scores[edge]


def test_own_json_has_the_keys_scripts_rely_on():
    data = circuit_json(measured_circuit())
    assert set(data["edges"][0]) == {"from", "to", "score"} and all(isinstance(name, str) for name in data["nodes"])
    assert set(data["faithfulness"][0]) >= {"n_edges", "ablation", "value", "low", "high"}
    sizes = [abs(row["score"]) for row in data["edges"]]
    assert sizes == sorted(sizes, reverse=True) and data["sign"] == "carries"


OWN = {
    "format": (lambda d: d.update(format="x"), "key 'format'"),
    "graph": (lambda d: d["graph"].update(n_layers=0), "key 'graph.n_layers'"),
    "other model": (lambda d: d["graph"].update(n_kv_heads=3), "key 'graph': got .*3 KV heads.*; allowed: the model's"),
    "parallel": (lambda d: d["graph"].update(parallel=[1]), "key 'graph.parallel'"),
    "edge": (lambda d: d["edges"][1].update(to="q.9.0"), r"key 'edges\[1\]': edge: got"),
    "twice": (lambda d: d["edges"].append(d["edges"][0]), "every edge once"),
    "score": (lambda d: d["edges"][0].update(score=True), r"key 'edges\[0\].score': got True"),
    "node": (lambda d: d["nodes"].append("z.99.0"), "key 'nodes': got 'z.99.0'"),
    "text": (lambda d: d.update(task=3), "key 'task': got 3; allowed: a text"),
    "faithfulness": (lambda d: d["faithfulness"][0].update(n_edges=-1), r"key 'faithfulness\[0\].n_edges'"),
    "sign": (lambda d: d.update(sign="up"), "key 'sign': got 'up'"),
}


@pytest.mark.parametrize("name", OWN)
def test_own_json_that_does_not_fit_names_its_key(name, tmp_path):
    change, message = OWN[name]
    circuit = measured_circuit()
    path = edit_json(write_circuit(tmp_path / "c.json", circuit), change)
    with pytest.raises(UsageError, match=message) as error:
        read_circuit(path, circuit.graph)
    assert re.search(re.escape(str(path)), str(error.value))
