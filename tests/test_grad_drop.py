"""GradDrop: on a cancellation that was written, and against backward passes with raw hooks."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from assay.circuits.attribute import AttributionPlan, attribute, nodes_of
from assay.circuits.exact import exact_edges, exact_nodes
from assay.circuits.graph import graph_of
from assay.data.prepare import prepare
from assay.errors import UsageError
from assay.records import Pair
from assay.sites import parse_site
from assay.testing.compiler import Compiler
from assay.testing.gates_models import SIZE, _alias, _look, _maker
from conftest import tiny
from test_attribute import make_task, setting

WORDS = ("^", "?", "f0", "f1", "f2", "x0", "x1", "yes", "no")
DROP = AttributionPlan("eap", "node", grad_drop=True)


def cancelling():
    """A head finds x; MLP 1 says yes by x, MLP 2 takes back max(0, x - 1/2): at x = 1 their slopes cancel, half of the effect
    stays."""
    code = Compiler(WORDS, 12, 3)
    signals = _alias(code, "x", "token", WORDS, ("x0", "x1"))
    _look(code, 0, "one", {0: {"x0": 1.0, "x1": 1.0}}, signals, code.part("found", 2))
    found, yes, no = code.at("found", 1), code.at("output", WORDS.index("yes")), code.at("output", WORDS.index("no"))
    code.neuron(1, {found: 1.0}, 0.0, {yes: SIZE})
    code.neuron(2, {found: 1.0}, -0.5, {yes: -SIZE})
    code.neuron(0, {code.at("one"): 1.0}, 0.0, {no: 0.25 * SIZE})
    model = _maker(code)()
    rng = np.random.default_rng(0)
    pairs = []
    for number in range(6):
        before, after = (" ".join(rng.choice(["f0", "f1", "f2"], 1 + (number + side) % 3)) for side in (0, 1))
        clean, corrupted = (f"^ {before} {word} {after} ?" for word in ("x1", "x0"))
        pairs.append(Pair(clean, corrupted, (" yes",), (" no",), str(number)))
    return model, prepare(pairs, model)


@pytest.fixture(scope="module")
def planted():
    return cancelling()


def test_a_written_cancellation_is_missed_by_one_gradient_and_seen_without_single_layers(planted):
    """|score| is SIZE without layer 1, SIZE without layer 2, 0 without the head's own: 2 SIZE / (3 - 1)."""
    model, task = planted
    exact = exact_nodes(model, task, ["z.0.3"]).mean(0)
    assert float(exact) == pytest.approx(SIZE / 2, abs=0.05)
    place = nodes_of(graph_of(model)).index(parse_site("z.0.3"))
    plain, dropped = (attribute(model, task, plan).scores[place] for plan in (replace(DROP, grad_drop=False), DROP))
    assert abs(float(plain)) < 0.01 * SIZE and float(dropped) == pytest.approx(SIZE, abs=0.02 * SIZE)
    others = [site for site in ("z.0.0", "z.1.2", "z.2.1") if float(exact_nodes(model, task, [site]).abs().max()) < 0.01]
    scores = attribute(model, task, DROP).scores
    assert others and all(float(scores[nodes_of(graph_of(model)).index(parse_site(site))]) < 0.02 * SIZE for site in others)


def test_edges_into_what_cancels_come_back_too(planted):
    model, task = planted
    plan = AttributionPlan("eap", grad_drop=True)
    edge = "embed->v.0.3"
    plain, dropped = (attribute(model, task, each) for each in (replace(plan, grad_drop=False), plan))
    place = plain.names.index(edge)
    assert float(exact_edges(model, task, [edge]).mean()) == pytest.approx(SIZE / 2, abs=0.05)
    assert abs(float(plain.scores[place])) < 0.01 * SIZE
    assert float(dropped.scores[place]) == pytest.approx(SIZE, abs=0.02 * SIZE)
    assert (dropped.values >= 0).all() and np.isnan(dropped.residual).all() and not dropped.warnings
    assert dropped.plan["grad_drop"] is True and torch.equal(dropped.cancelled, plain.cancelled)


def by_detaching(reference, clean, corrupted, drop):
    """(writer,) d metric / d share summed over readers, with what one layer writes cut out of the graph, by raw hooks."""
    high, low = reference.plain(clean), reference.plain(corrupted)
    change = reference.changes(high, low, at=high)
    share = torch.zeros(len(reference.writers), len(reference.readers), dtype=torch.double, requires_grad=True)
    part = reference.parts[drop]
    writes = (part.post_attn or part.o, part.post_mlp or part.mlp)
    handles = [module.register_forward_hook(lambda _, __, out: out.detach()) for module in writes]
    found = torch.autograd.grad(reference.run(clean, share, change).metric, share)[0]
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "neox", "granite"])
def test_scores_equal_raw_backward_passes_without_each_layer(family):
    model, task, reference = setting(family)
    found = attribute(model, task, AttributionPlan("eap", grad_drop=True))
    graph, layers = found.graph, model.n_layers
    edges = [graph.name(cell) for cell in graph.cells.tolist()]
    rows = [reference.writers.index(str(edge.writer)) for edge in edges]
    columns = [reference.readers.index(str(edge.reader)) for edge in edges]
    for pair, (clean, corrupted) in enumerate(zip(task.clean, task.corrupted, strict=True)):
        each = [by_detaching(reference, clean, corrupted, layer)[rows, columns].abs() for layer in range(layers)]
        want = sum(each) / (layers - 1)
        np.testing.assert_allclose(found.values[pair], want, atol=2e-4 * float(want.max()))


def test_what_it_cannot_be_combined_with_is_refused():
    model = tiny("llama", 1)
    task = make_task([5, 5, 5], 1, model)
    for wrong in (replace(DROP, method="eap-ig"), replace(DROP, positions="labels")):
        with pytest.raises(UsageError, match="grad_drop"):
            attribute(model, task, wrong)
