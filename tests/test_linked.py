"""Circuits, graphs and task effects of mapped features: linked as they are made, and again after a later map."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from assay.atlas.features import record_graph
from assay.atlas.linked import keep_patch, link_all, link_circuit, link_graph, link_tested, of_circuit
from assay.atlas.mapped import FeatureRecord, Mapped, MappedWriter, SetRecord
from assay.atlas.store import Atlas
from assay.circuits.formats import Circuit, write_circuit
from assay.circuits.graph import make_graph
from assay.circuits.patch import PatchPlan, patch_sweep
from assay.circuits.trace_formats import write_trace
from assay.circuits.trace_graph import AttributionGraph, TraceNode
from assay.errors import StoreError, UsageError
from assay.testing import planted_induction
from test_patch import task, tiny

MODEL, OTHER = "m" * 64, "o" * 64


def add(atlas, unit, names, model=MODEL, dictionary="", site="x"):
    about = SetRecord("tiny", model, unit, site, "words", dictionary, dictionary and dictionary * 8, units=len(names))
    with MappedWriter(atlas, about, 16) as writer:
        writer.add([FeatureRecord(name, number, 0.01, 1.0, 9) for number, name in enumerate(names)])
        return writer.finish().id


def heads(layers=2, n=4):
    return [f"attn_out.{layer}.{head}" for layer in range(layers) for head in range(n)]


@pytest.fixture
def atlas(tmp_path):
    return Atlas(tmp_path / "atlas")


def circuit(path, digest, edges, classes=()):
    graph = make_graph(4, 4, [False, False], classes)
    mask = torch.zeros_like(graph.exists)
    for edge in edges:
        mask[graph.edge(edge)] = True
    scores = torch.full((len(graph.writers),), math.nan)
    scores[[str(site).split("@")[0] for site in graph.writers].index("z.0.1")] = -0.5
    return write_circuit(path, Circuit(graph, mask, mask.float(), scores, model="tiny", digest=digest, task="t"))


def test_heads_of_a_circuit_know_it(atlas):
    ours, theirs = add(atlas, "head", heads()), add(atlas, "head", heads(), OTHER)
    path = circuit(atlas.path / "circuits" / "tiny-t.json", MODEL, ["embed->q.0.1", "z.0.1->q.1.2", "z.1.2->logits"])
    assert link_circuit(atlas, path) == 2
    mapped = Mapped(atlas)
    hits = mapped.by_circuit("tiny-t", ours)
    assert [(hit.feature, hit.value) for hit in hits] == [("attn_out.0.1", -0.5), ("attn_out.1.2", 0)]
    assert mapped.page(ours, "attn_out.1.2").circuits == ("tiny-t",) and mapped.page(ours, "attn_out.1.3").circuits == ()
    rows, total = mapped.rows(ours, filters={"circuit": "tiny-t"})
    assert total == 2 and {row["name"] for row in rows} == {"attn_out.0.1", "attn_out.1.2"}
    with pytest.raises(UsageError, match="none in this set"):
        mapped.by_circuit("tiny-t", theirs)  # the same names, other weights


def test_nodes_at_positions_are_the_head_itself_and_other_files_are_none(atlas, tmp_path):
    path = circuit(tmp_path / "at.json", MODEL, ["z.0.1@end->q.1.2@end", "z.0.1@rest->k.1.2@rest"], ("rest", "end"))
    found = of_circuit(path)
    assert found is not None and found.units == {"attn_out.0.1": -0.5}
    assert link_circuit(atlas, path) == 0  # not in the atlas: a circuit that goes away with its folder
    for text in ("{", "[1]", '{"format": "assay-circuit"}', '{"format": "else", "nodes": []}'):
        path.write_text(text)
        assert of_circuit(path) is None


def test_latents_of_a_graph_are_linked_by_their_dictionary(atlas):
    names = [f"latent.coder.{unit}" for unit in range(6)]
    ours, other = add(atlas, "latent", names, dictionary="coder"), add(atlas, "latent", names, dictionary="decoy", site="y")
    nodes = (TraceNode("embed", 0, index=3), TraceNode("latent", 0, 0, 2, 1.0, dictionary=0),
             TraceNode("latent", 1, 0, 2, 1.0, dictionary=0), TraceNode("latent", 1, 0, 5, 1.0, dictionary=0),
             TraceNode("logit", 1, index=7, probability=0.9))  # fmt: skip
    effects = torch.zeros(5, 5)
    effects[4, 1:4] = torch.tensor([0.1, 0.6, 0.2])
    graph = AttributionGraph(nodes, effects, torch.zeros(5), torch.tensor([0, 0.1, 0.6, 0.2, 0]), ("a", "b"), 1, (3, 4), "a b",
                             "tiny", MODEL, ({"name": "coder", "digest": "coder" * 8},))  # fmt: skip
    assert link_graph(atlas, "g1", graph) == 2
    mapped = Mapped(atlas)
    assert [(hit.feature, round(hit.value, 4)) for hit in mapped.by_circuit("g1", ours)] == [(names[2], 0.6), (names[5], 0.2)]
    assert mapped.page(other, names[2]).circuits == ()
    record_graph(atlas, "g2", "tiny", "a b", write_trace(atlas.path / "graphs" / "g.json", graph), {})
    record_graph(atlas, "g3", "tiny", "a b", atlas.path / "graphs" / "gone.json", {})
    assert link_all(mapped)["circuit"] == 2 and mapped.page(ours, names[5]).circuits == ("g1", "g2")


def test_sweeps_are_effects_on_the_task_and_found_by_a_later_map(atlas):
    model, pairs = tiny("llama", 1), task()
    swept = patch_sweep(model, pairs, PatchPlan(site="z", n_bootstrap=20))
    assert keep_patch(atlas, swept, model.digest, "capitals") == 0  # nothing is mapped yet
    ours = add(atlas, "head", heads(len(swept.layers)), model.digest)
    add(atlas, "head", heads(len(swept.layers)), OTHER)
    mapped = Mapped(atlas)
    assert link_all(mapped) == {"claim": 0, "circuit": 0, "effect": np.size(swept.effect)} == link_all(mapped)
    want = {f"attn_out.{layer}.{head}": swept.effect[row][head] for row, layer in enumerate(swept.layers) for head in range(4)}
    hits = mapped.by_task("capitals", ours, limit=99)
    assert [hit.feature for hit in hits] == sorted(want, key=lambda name: (-abs(want[name]), name))
    assert {hit.feature: hit.value for hit in hits} == pytest.approx(want)
    (effect,) = mapped.page(ours, hits[0].feature).effects
    assert effect.task == "capitals" and "denoise" in effect.metric and effect.low <= effect.value <= effect.high
    later = replace(swept, effect=[[0.25] * 4 for _ in swept.effect])
    keep_patch(atlas, later, model.digest, "capitals")
    assert mapped.by_task("capitals", ours)[0].value == 0.25 and len(list((atlas.path / "effects").iterdir())) == 1
    assert keep_patch(atlas, replace(swept, axis="positions"), model.digest, "capitals") == 0
    next((atlas.path / "effects").iterdir()).write_text("{}")
    with pytest.raises(StoreError, match="Remove it"):
        link_all(mapped)


def test_a_tested_claim_stands_before_a_sweep(atlas):
    """Rows as the battery writes them: the drop by mean ablation of the one unit that a claim is about."""
    model = planted_induction()
    ours = add(atlas, "head", heads(1), model.digest)
    body = {"subject": {"digest": model.digest, "sites": ["z.0.1"]}, "task": {"name": "copying"}}
    two = {**body, "subject": {"digest": model.digest, "sites": ["z.0.2", "z.0.3"]}}
    with atlas.writing() as db:
        for claim, each in (("c-one", body), ("c-two", two)):
            db.execute("INSERT INTO claims VALUES (?, 1, NULL, 'mediates', '', '', ?)", [claim, json.dumps(each)])
            for gate in (("necessity.mean", "confirm", 0.4), ("necessity.mean", "ood", 0.1), ("sufficiency", "confirm", 9)):
                db.execute("INSERT INTO gates VALUES (1, ?, ?, ?, true, ?, 0.3, 0.5, 0.2, 0, 0, '{}')", [claim, *gate])
    mapped = Mapped(atlas)
    assert link_tested(atlas, "c-two") == 0 and link_tested(atlas, "c-one") == 1 == link_all(mapped)["effect"]
    (hit,) = mapped.by_task("copying", ours)
    assert (hit.feature, hit.value) == ("attn_out.0.1", 0.4)
    assert mapped.page(ours, "attn_out.0.1").effects[0].detail == {"claim": "c-one"}
