"""Attribution graphs as files: nothing is lost in our own, theirs has what its reader asks for, damage is named."""

import dataclasses
import json

import networkx
import pytest
import torch

from assay.circuits.trace import trace
from assay.circuits.trace_formats import (
    _shares,
    cantor,
    graphml,
    neuronpedia_json,
    read_trace,
    trace_json,
    uncantor,
    write_trace,
)
from assay.circuits.trace_graph import AttributionGraph, TraceNode, influence_of, normalised
from assay.errors import UsageError
from assay.report.trace_figures import about
from test_trace import PROMPT, clt, rough, transcoder

THEIRS = {"node_id": str, "feature": int, "layer": str, "ctx_idx": int, "feature_type": str, "jsNodeId": str, "clerp": str,
          "token_prob": float, "is_target_logit": bool, "run_idx": int, "reverse_ctx_idx": int}  # fmt: skip


@pytest.fixture(scope="module")
def graph():
    whole = trace(rough("llama"), PROMPT, [transcoder(layer) for layer in range(3)])
    small = whole.prune(0.8, 0.98)
    latents = [n.name for n in small.nodes if n.kind == "latent"]
    return small.grouped({"a pair": latents[:2], "others": latents[2:4]})


def colliding():
    """Feature 2 of layer 0 and the error of layer 2 at one token: the same id in circuit-tracer's own scheme."""
    nodes = (TraceNode("embed", 0, None, 9), TraceNode("embed", 1, None, 4), TraceNode("latent", 1, 0, 2, 1.5, dictionary=0),
             TraceNode("latent", 1, 1, 7, 0.5, dictionary=1), TraceNode("error", 1, 2),
             TraceNode("logit", 1, None, 3, 2.0, 0.7, label=" a"))  # fmt: skip
    effects = torch.zeros(6, 6)
    effects[2, 0], effects[3, 2], effects[5, 2], effects[5, 3], effects[5, 4] = 1.0, 2.0, 3.0, -4.0, 5.0
    about = tuple({"name": f"t{n}", "digest": "ab" * 32, "group": 16} for n in range(2))
    made = AttributionGraph(nodes, effects, torch.zeros(6), torch.zeros(6), ("x", " y"), 3, (9, 4), "x y", "m", "d", about)
    return dataclasses.replace(made, influence=influence_of(normalised(effects), made.weights))


def same(a, b):
    assert [n.name for n in a.nodes] == [n.name for n in b.nodes]
    assert torch.allclose(a.effects, b.effects, atol=1e-6) and a.supernodes == b.supernodes


def test_our_own_file_comes_back_whole(tmp_path, graph):
    back = read_trace(write_trace(tmp_path / "g.json", graph))
    same(back, graph)
    assert back.nodes == graph.nodes and torch.equal(back.effects, graph.effects) and torch.equal(back.bias, graph.bias)
    assert torch.equal(back.influence, graph.influence) and torch.equal(back.cumulative, graph.cumulative)
    assert back.tokens == graph.tokens and back.digest == graph.digest
    assert (
        back.scores == json.loads(json.dumps(graph.scores))
        and back.dictionaries[0]["digest"] == graph.dictionaries[0]["digest"]
    )


def test_their_file_comes_back_without_a_model(tmp_path, graph):
    back = read_trace(write_trace(tmp_path / "g.json", graph, "neuronpedia"))
    same(back, graph)
    assert back.n_layers == 3 and back.texts == graph.texts
    assert back.scores == {name: pytest.approx(graph.scores[name]) for name in ("replacement", "completeness")}
    theirs = {n.name: n for n in back.nodes}
    for node in graph.nodes:
        assert theirs[node.name].index == node.index and theirs[node.name].layer == node.layer
        assert theirs[node.name].label == node.label
        if node.kind == "latent":
            assert theirs[node.name].value == pytest.approx(node.value)
    inner = graph.of("latent", "error")
    assert torch.allclose(back.cumulative[inner], graph.cumulative[inner])
    assert "probability" in about(back, back.nodes[-1])


def test_their_file_has_what_their_reader_asks_for(graph):
    made = neuronpedia_json(graph, "a-graph")
    assert set(made) == {"metadata", "qParams", "nodes", "links"}
    assert {"slug", "scan", "transcoder_list", "prompt_tokens", "prompt"} <= set(made["metadata"])
    assert {"pinnedIds", "supernodes", "linkType", "clickedId", "sg_pos"} == set(made["qParams"])
    ids = [node["node_id"] for node in made["nodes"]]
    assert len(set(ids)) == len(ids) == len(graph.nodes)
    for node in made["nodes"]:
        assert all(type(node[key]) is kind for key, kind in THEIRS.items()), node
        if node["feature_type"] == "logit":
            assert float(node["clerp"].split("(p=")[1].split(")")[0]) == pytest.approx(node["token_prob"], abs=6e-4)
            assert node["layer"] == "4"
        if node["feature_type"] == "cross layer transcoder":
            layer, feature, position = map(int, node["node_id"].split("_"))
            assert uncantor(node["feature"]) == (layer, feature) and (int(node["layer"]), node["ctx_idx"]) == (layer, position)
    assert all(link["source"] in ids and link["target"] in ids and type(link["weight"]) is float for link in made["links"])
    assert [group[0] for group in made["qParams"]["supernodes"]] == ["a pair", "others"]
    assert all(member in ids for group in made["qParams"]["supernodes"] for member in group[1:])
    kept = sorted(n["influence"] for n in made["nodes"] if n["influence"] is not None)
    inner = [n["influence"] for n in made["nodes"] if n["layer"] in "012"]
    assert 0 < kept[0] <= kept[-1] <= 1.0 + 1e-6 and max(inner) <= 0.81  # of the graph that was traced


def test_ids_do_not_collide_where_theirs_would(tmp_path):
    made = neuronpedia_json(colliding(), "x")
    ids = [node["node_id"] for node in made["nodes"]]
    assert "0_2_1" in ids and "error_2_1" in ids and len(set(ids)) == len(ids)
    same(read_trace(write_trace(tmp_path / "g.json", colliding(), "neuronpedia")), colliding())


def test_a_file_with_their_colliding_ids_is_read_as_far_as_it_is_clear(tmp_path):
    text = json.dumps(neuronpedia_json(colliding(), "x")).replace("error_2_1", "0_2_1")
    (tmp_path / "g.json").write_text(text)
    back = read_trace(tmp_path / "g.json")
    at = back.number
    assert float(back.effects[at["latent.0.2@1"], at["embed@0"]]) == 1.0  # what it is the target of is the feature's
    assert float(back.effects[at["latent.1.7@1"], at["latent.0.2@1"]]) == 2.0  # the error of layer 2 comes too late
    assert sorted(back.effects[-1].tolist())[-2:] == [3.0, 5.0] and "stand for two nodes" in back.notes[0]


def test_cross_layer_latents_are_numbered_within_their_layer(tmp_path):
    graph = trace(rough("llama"), PROMPT, [clt()]).prune(0.9, 0.99)
    made = neuronpedia_json(graph, "x")
    numbers = {n["node_id"] for n in made["nodes"] if n["feature_type"].startswith("cross")}
    assert numbers == {f"{n.layer}_{n.index - 24 * n.layer}_{n.position}" for n in graph.nodes if n.kind == "latent"}


def test_pairs_of_numbers_come_back():
    for a, b in ((0, 0), (3, 17), (25, 163839), (61, 2**20)):
        assert uncantor(cantor(a, b)) == (a, b)


def test_graphml_is_a_graph_for_networkx(graph):
    text = graphml(dataclasses.replace(graph, prompt="a\x00b & <c>")).decode()
    back = networkx.parse_graphml(text)
    assert back.number_of_nodes() == len(graph.nodes) and back.number_of_edges() == graph.n_edges
    s, t, effect = graph.edges()[0]
    assert back.edges[graph.nodes[s].name, graph.nodes[t].name]["effect"] == pytest.approx(effect)


def test_a_whole_graph_is_not_written(monkeypatch, graph, tmp_path):
    monkeypatch.setattr("assay.circuits.trace_formats.MOST_EDGES", 5)
    with pytest.raises(UsageError, match="Prune"):
        write_trace(tmp_path / "g.json", graph)


@pytest.mark.parametrize("change, said", [
    (lambda d: d.update(format="other"), "format"),
    (lambda d: d["edges"].append(["embed@0", "nowhere", 1.0]), r"edges\["),
    (lambda d: d["edges"].append([d["nodes"][-1]["name"], "embed@0", 1.0]), "earlier"),
    (lambda d: d["nodes"][0].update(kind="thing"), r"nodes\[0\].kind"),
    (lambda d: d["nodes"][0].update(position=-1), "position"),
    (lambda d: d["nodes"].append(d["nodes"][0]), "one name"),
    (lambda d: d["nodes"][0].update(bias=float("inf")), "finite"),
    (lambda d: d.pop("texts"), "texts"),
    (lambda d: d["supernodes"].append({"label": "z", "nodes": ["nowhere"]}), "nowhere"),
    (lambda d: d["edges"].append([["embed@0"], "embed@1", 1.0]), r"edges\["),
    (lambda d: d.update(plan=[1]), "plan"), (lambda d: d.update(scores="x"), "scores"),
    (lambda d: d.update(validation="x"), "validation"), (lambda d: d.update(validation={"agreement": {}}), "validation.factor"),
    (lambda d: d.update(validation={"factor": 0.0, "agreement": {"total": 1}}), "agreement.total"),
    (lambda d: d.update(dictionaries=[{}]), "name"), (lambda d: d["dictionaries"][0].update(digest=3), r"dictionaries\[0\]"),
    (lambda d: next(n for n in d["nodes"] if n["kind"] == "latent").update(dictionary=99), "dictionary"),
])  # fmt: skip
def test_damage_in_our_file_is_named(tmp_path, graph, change, said):
    data = trace_json(graph)
    change(data)
    (tmp_path / "g.json").write_text(json.dumps(data))
    with pytest.raises(UsageError, match=said):
        read_trace(tmp_path / "g.json")


@pytest.mark.parametrize("change, said", [
    (lambda d: d["links"].append({"source": "x", "target": "y", "weight": 1.0}), r"links\["),
    (lambda d: d["links"][0].update(weight="much"), "weight"),
    (lambda d: d["nodes"][0].update(feature_type="thing"), "feature_type"),
    (lambda d: d["nodes"][3].update(ctx_idx=None), "ctx_idx"),
    (lambda d: d.update(nodes={}), "nodes"),
    (lambda d: d["qParams"].update(supernodes=[[1]]), "supernodes"),
    (lambda d: d["metadata"].update(generation_settings=3), "generation_settings"),
    (lambda d: d["metadata"].update(transcoder_list="abc"), "transcoder_list"),
    (lambda d: next(n for n in d["nodes"] if n["activation"]).update(layer="\u00b2"), "layer"),
])  # fmt: skip
def test_damage_in_their_file_is_named(tmp_path, graph, change, said):
    data = neuronpedia_json(graph, "x")
    change(data)
    (tmp_path / "g.json").write_text(json.dumps(data))
    with pytest.raises(UsageError, match=said):
        read_trace(tmp_path / "g.json")


def test_digits_of_other_scripts_are_no_numbers(tmp_path, graph):
    """An id such as E_\u00b2_0 says no token; the token of the embedding is then not known."""
    data = neuronpedia_json(graph, "x")
    row = next(row for row in data["nodes"] if row["node_id"].startswith("E_"))
    old, row["node_id"] = row["node_id"], f"E_\u00b2_{row['ctx_idx']}"
    for link in data["links"]:
        link.update({side: row["node_id"] for side in ("source", "target") if link[side] == old})
    (tmp_path / "g.json").write_text(json.dumps(data))
    assert read_trace(tmp_path / "g.json").tokens == ()


def test_shares_after_a_gap_are_no_larger_than_the_share_before():
    """Of shares .4, .3, .2, .1 the second was pruned: what is left of it does not go to the next."""
    found = _shares([0.4, None, 0.9, 1.0])
    assert torch.allclose(found, torch.tensor([0.4, 0.0, 0.4, 0.1])) and _shares([0.4, 0.7, 0.9, 1.0]).sum() == pytest.approx(1)
    assert torch.allclose(_shares([0.5, 0.5, 0.6]), torch.tensor([0.5, 0.0, 0.1]))
