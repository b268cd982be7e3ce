"""Files of EAP-IG, and what MIB's evaluator made of files written here (`fixtures/circuits`), against Assay's own numbers."""

import json
from pathlib import Path

import pytest
import torch
import transformers as T

from assay.circuits.attribute import AttributionPlan, attribute
from assay.circuits.faithfulness import areas_of
from assay.circuits.formats import SHARES, Ungrouped, mib_circuits, read_eap
from assay.circuits.graph import graph_of
from assay.circuits.subgraph import Bench
from assay.data.prepare import PreparedTask
from assay.records import Pair
from conftest import wrap

AT = Path(__file__).parent / "fixtures" / "circuits"
MIB = json.loads((AT / "mib.json").read_text())


@pytest.fixture(scope="module")
def model():
    return wrap(T.AutoModelForCausalLM.from_pretrained(AT).eval())


@pytest.fixture(scope="module")
def task() -> PreparedTask:
    read = json.loads((AT / "pairs.json").read_text())
    pairs = [Pair("a", "b", ("x",), ("y",), f"t{n % 4}") for n in range(len(read["clean"]))]
    ends = ([(token,) for token in read[name]] for name in ("answers", "foils"))
    return PreparedTask(pairs, read["clean"], read["corrupted"], *ends, {}, {})


@pytest.mark.parametrize("name", ["eap.json", "eap.pt"])
def test_scores_of_the_peer_are_those_made_here(name, model, task):
    graph = graph_of(model)
    read, own = read_eap(AT / name, graph), attribute(model, task, AttributionPlan("eap")).matrix()
    torch.testing.assert_close(read.scores[graph.exists], own[graph.exists], atol=2e-5, rtol=1e-4)
    assert float(own.abs().max()) > 1 and read.d_model == 16
    alone = read_eap(AT / name)
    assert int(alone.mask.sum()) == 39  # of 40 chosen, one was on no path
    for cell in alone.mask.nonzero().tolist():
        reader = alone.graph.readers[cell[1]]
        here = reader if reader.name not in "kv" else f"{reader.name}.{reader.layer}.{reader.index // 2}"
        assert read.mask[graph.edge(f"{alone.graph.writers[cell[0]]}->{here}")]


@pytest.mark.parametrize("select", ["abs", "signed"])
def test_the_evaluator_of_mib_found_the_same_faithfulness(select, model, task):
    graph = graph_of(model)
    masks = mib_circuits(read_eap(AT / "eap.json", graph), select)
    assert [Ungrouped(graph).count(mask) for mask in masks] == MIB[select]["edges"][:-1]
    assert MIB[select]["edges"][-1] == Ungrouped(graph).n_edges
    bench = Bench(model, task)
    whole = bench.clean.mean() - bench.empty.mean()
    own = (bench.scores(masks).mean(1) - bench.empty.mean()) / whole
    assert own == pytest.approx(MIB[select]["f"][:-1], abs=1e-5) and max(own) > 0.4
    areas = areas_of([*SHARES, 1.0], MIB[select]["f"])
    assert areas.cpr is not None and areas.cpr.value == pytest.approx(MIB[select]["cpr"])
    assert areas.cmd is not None and areas.cmd.value == pytest.approx(MIB[select]["cmd"])
