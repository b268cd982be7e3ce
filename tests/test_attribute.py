"""Attribution against per-edge perturbation with raw hooks in float64 (`edge_reference.py`); the guards."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from assay.circuits import guards
from assay.circuits.attribute import AttributionPlan, attribute
from assay.data.prepare import PreparedTask
from assay.errors import UsageError
from assay.records import Pair
from assay.sites import Site
from conftest import tiny_hf, wrap
from edge_reference import ANSWER, FOIL, Reference, roughen

pytestmark = pytest.mark.whole  # against references that take their time

FAMILIES = ["llama", "qwen2", "gpt2", "neox", "neox_sequential", "gemma2", "qwen3", "olmo2", "granite"]
LENGTHS = (5, 8, 6)


def make_task(lengths=LENGTHS, seed=0, model=None):
    """Pairs of one length within, of several among them; turned round where the metric is better on corrupted."""
    rng = np.random.default_rng(seed)
    clean = [rng.integers(20, 190, n).tolist() for n in lengths]
    corrupted = [row[:1] + rng.integers(20, 190, len(row) - 1).tolist() for row in clean]
    pairs = [Pair("a", "b", ("x",), ("y",), f"t{i}") for i in range(len(lengths))]
    task = PreparedTask(pairs, clean, corrupted, [(ANSWER,)] * len(pairs), [(FOIL,)] * len(pairs), {}, {}, {})
    if model is not None and model.score(clean, task.metric()).mean() < model.score(corrupted, task.metric()).mean():
        task = replace(task, clean=corrupted, corrupted=clean)
    return task


def setting(family, seed=0, lengths=LENGTHS):
    """A rough model, a task it has the right sign on, and the reference."""
    hf = roughen(tiny_hf(family, seed), seed)
    model = wrap(hf, family)
    return model, make_task(lengths, seed, model), Reference(hf, family)


def brute_force(reference, graph, task, alphas):
    """(pair, edge) means of gradients over points of the line."""
    where = [(reference.writers.index(str(graph.name(c).writer)), reference.readers.index(str(graph.name(c).reader)))
             for c in graph.cells.tolist()]  # fmt: skip
    rows, columns = torch.tensor(where).T
    return torch.stack([
        sum(reference.gradient(clean, corrupted, alpha) for alpha in alphas)[rows, columns] / len(alphas)
        for clean, corrupted in zip(task.clean, task.corrupted, strict=True)
    ])  # fmt: skip


def error(got, want):
    """The largest difference, relative to the largest value."""
    return float((got.double() - want).abs().max() / want.abs().max())


@pytest.mark.parametrize("direction, alpha", [("noise", 1.0), ("denoise", 0.0)])
@pytest.mark.parametrize("family", FAMILIES)
def test_edges_are_perturbations_of_one_edge(family, direction, alpha):
    model, task, reference = setting(family)
    found = attribute(model, task, AttributionPlan(method="eap", direction=direction))
    assert found.names and {str(e) for e in found.graph.writers} == set(reference.writers)
    assert error(found.values, brute_force(reference, found.graph, task, [alpha])) < 1e-4
    metrics = [[float(reference.run(ids).metric) for ids in side] for side in (task.clean, task.corrupted)]
    np.testing.assert_allclose([found.clean, found.corrupted], metrics, rtol=1e-4, atol=1e-4)


def test_the_reference_itself_is_a_perturbation():
    """The reference's gradient against differences of its runs, and its run against the model."""
    model, task, reference = setting("gpt2")
    clean, corrupted = task.clean[1], task.corrupted[1]
    slopes = reference.gradient(clean, corrupted, 1.0)
    change = reference.changes(reference.plain(clean), reference.plain(corrupted))
    for edge in ("z.0.1->k.2.1", "mlp_out.0->mlp_in.1", "embed->logits", "embed->q.0.0"):
        at = tuple(side.index(end) for side, end in zip((reference.writers, reference.readers), edge.split("->"), strict=True))
        share = torch.zeros(slopes.shape, dtype=torch.double)
        share[at] = 1e-4
        slope = (reference.run(clean, share, change).metric - reference.run(clean, -share, change).metric) / 2e-4
        assert float(slope) == pytest.approx(float(slopes[at]), rel=1e-4)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "neox", "gemma2"])
@pytest.mark.parametrize("plan", [AttributionPlan(method="eap"), AttributionPlan(steps=2), AttributionPlan(level="node")])
def test_batches_do_not_change_values(family, plan):
    model, task, _ = setting(family)
    whole = attribute(model, task, plan)
    model.memory_budget = 1
    assert len(model.batches(task.clean, gradients=True)) == len(task)
    alone = attribute(model, task, plan)
    assert error(alone.values, whole.values.double()) < 1e-5
    np.testing.assert_array_equal(alone.steps, whole.steps)


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox", "gemma2", "olmo2"])
@pytest.mark.parametrize("direction", ["noise", "denoise"])
def test_a_writers_edges_sum_to_its_node_and_nodes_are_gradients(family, direction):
    model, task, _ = setting(family)
    edges, nodes = (attribute(model, task, AttributionPlan("eap", level, direction)) for level in ("edge", "node"))
    for pair in range(len(task)):
        sums = edges.matrix(edges.values[pair]).sum(1).double()
        assert error(sums, nodes.values[pair, : len(sums)].double()) < 1e-4
    point = task.clean if direction == "noise" else task.corrupted
    layers = range(model.n_layers)
    wholes = [Site(name, layer) for layer in layers for name in ("q", "k", "v", "z", "mlp_in")]
    slopes, values, _ = model.gradients(point, wholes, task.metric())
    high, low = (model.capture(side, wholes) for side in (task.clean, task.corrupted))
    for number, name in enumerate(nodes.names):
        site = Site(*[int(part) if part.isdigit() else part for part in name.split(".")])
        if site.whole in wholes:
            each = (high[site.whole] - low[site.whole]) * slopes[site.whole]
            each = each if site.index is None else each[:, :, site.index]
            want = each.flatten(1).sum(1)
            assert (nodes.values[:, number] - want).abs().max() < 1e-4 * nodes.values.abs().max(), name


def test_fixed_steps_are_the_mean_over_midpoints():
    model, task, reference = setting("gemma2")
    found = attribute(model, task, AttributionPlan(steps=4))
    assert error(found.values, brute_force(reference, found.graph, task, [(k + 0.5) / 4 for k in range(4)])) < 1e-4
    assert (found.steps == 4).all()


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_adaptive_steps_are_complete_and_near_the_integral(family):
    model, task, reference = setting(family, lengths=(6,))
    plan = AttributionPlan(tolerance=0.01, max_steps=257)
    found = attribute(model, task, plan)
    span = np.abs(found.clean - found.corrupted)
    entry = [number for number, name in enumerate(found.names) if name.startswith("embed->")]
    left = np.abs(found.values[:, entry].sum(1).numpy() - (found.clean - found.corrupted))
    np.testing.assert_allclose(left / span, found.residual, atol=1e-4)
    assert (left <= plan.tolerance * np.maximum(span, 0.1 * span.mean()) + 1e-5).all()
    integral = brute_force(reference, found.graph, task, [(k + 0.5) / 200 for k in range(200)])
    for got, want in zip(found.values, integral, strict=True):
        assert error(got, want) < 0.03


def test_the_ends_of_a_line_are_both_single_gradients():
    model, task, _ = setting("qwen2")
    found = attribute(model, task, AttributionPlan(method="eap-ig"))
    for end, direction in (("clean", "noise"), ("corrupted", "denoise")):
        single = attribute(model, task, AttributionPlan(method="eap", direction=direction))
        assert error(found.ends[end], single.values.double()) < 1e-5
    assert not attribute(model, task, AttributionPlan(steps=1)).ends


def test_cancelling_is_what_sums_hide():
    model, task, _ = setting("llama")
    found = attribute(model, task, AttributionPlan(method="eap"))
    pairwise = 1 - found.values.sum(0).abs() / found.values.abs().sum(0)  # cancels over pairs; positions can only add
    assert (found.cancelled >= pairwise - 1e-4).all() and found.cancelled.max() <= 1


@pytest.mark.parametrize("change, says", [
    (dict(method="ig"), "eap, eap-ig"), (dict(level="unit"), "edge, node"), (dict(direction="up"), "noise, denoise"),
    (dict(steps=0), "1 or more"), (dict(tolerance=0.0), "more than 0"), (dict(metric="rank"), "a metric with a gradient"),
])  # fmt: skip
def test_a_plan_that_does_not_fit_is_refused(change, says):
    model = wrap(tiny_hf("llama"))
    with pytest.raises(UsageError, match=says):
        attribute(model, make_task(), AttributionPlan(**change))


class Tokenizer:
    pad_token_id, eos_token_id = 5, 2

    def decode(self, ids):
        return " word" if ids[0] < 100 else "7"

    def convert_ids_to_tokens(self, token):
        return "Ġword" if token < 100 else "7"


def broken(name, task):
    """A task with one fault."""
    clean, corrupted = [list(row) for row in task.clean], [list(row) for row in task.corrupted]
    answers, notes = list(task.answers), dict(task.notes)
    if name == "AnswerInPrompt":
        answers[1] = (clean[1][-1],)
    elif name == "AnswerInPrompt, corrupted":
        answers[1] = (corrupted[1][-1],)
    elif name == "PadInPrompt":
        corrupted[0][2] = 5
    elif name == "LengthMismatch":
        corrupted[2].append(30)
    elif name == "DoubledBos":
        clean[1][:2] = [1, 1]
    elif name == "SeveralTokens":
        notes["scored on first tokens"] = 2
    elif name == "NoDifference":
        corrupted = clean
    elif name == "InvertedSign":
        clean, corrupted = corrupted, clean
    return replace(task, clean=clean, corrupted=corrupted, answers=answers, notes=notes)


def test_a_name_that_was_said_before_is_refused_at_the_end_and_a_digit_is_not():
    model, task, _ = setting("llama")
    model.tokenizer = Tokenizer()
    for token, refused in ((50, True), (150, False)):
        clean = [[*row[:-3], token, 30, token] for row in task.clean]
        ended = replace(task, clean=clean, answers=[(token,)] * len(task))
        if refused:
            with pytest.raises(guards.AnswerInPrompt, match="3 pairs"):
                guards.check_task(model, ended, "logit_diff")
        else:
            guards.check_task(model, ended, "logit_diff")


@pytest.mark.parametrize("begin, end, refused", [([], [2], True), ([], [2, 2], True), ([2, 2], [], True), ([2], [], False),
                                                 ([], [], False)])  # fmt: skip
def test_a_pad_token_that_also_ends_texts_is_refused_at_the_end_and_in_a_row(begin, end, refused):
    model, task, _ = setting("llama")
    model.tokenizer = type("Shared", (Tokenizer,), {"pad_token_id": 2})()
    prompts = [[[30, *begin, *row, *end] for row in side] for side in (task.clean, task.corrupted)]
    given = replace(task, clean=prompts[0], corrupted=prompts[1])
    if not refused:
        return guards.check_task(model, given, "logit_diff")
    with pytest.raises(guards.PadInPrompt, match="3 pairs"):
        guards.check_task(model, given, "logit_diff")


@pytest.mark.parametrize("name", ["AnswerInPrompt", "AnswerInPrompt, corrupted", "PadInPrompt", "LengthMismatch",
                                  "DoubledBos", "SeveralTokens", "NoDifference", "InvertedSign"])  # fmt: skip
def test_every_guard_refuses_its_fault_and_nothing_else(name):
    model, task, _ = setting("llama")
    model.bos_id = 1
    metric = "prob_diff" if name == "SeveralTokens" else "logit_diff"
    model.tokenizer = Tokenizer()
    plan = AttributionPlan(method="eap", metric=metric)
    if metric == "logit_diff":
        attribute(model, task, plan)
    else:
        guards.check_task(model, task, metric)
    with pytest.raises(getattr(guards, name.partition(",")[0])):
        attribute(model, broken(name, task), plan)


def test_several_tokens_may_be_compared_by_logits():
    model, task, _ = setting("llama")
    attribute(model, broken("SeveralTokens", task), AttributionPlan(method="eap"))
