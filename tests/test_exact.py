"""Exact edges, nodes and paths against raw hooks (`edge_reference.py`); estimates beside them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from assay.circuits.attribute import AttributionPlan, attribute
from assay.circuits.exact import agreement, exact_edges, exact_nodes, gates, verify_top
from assay.circuits.graph import graph_of
from assay.circuits.guards import LengthMismatch
from assay.circuits.path_patch import path_patch
from assay.errors import UsageError
from assay.testing.edge_truth import TRUTHS
from assay.testing.gates_models import GATE_EDGES
from test_attribute import setting

pytestmark = pytest.mark.whole  # against references that take their time

FAMILIES = ["llama", "gpt2", "gemma2", "neox"]
SIGN = {"noise": -1.0, "denoise": 1.0}


def ends(task, direction):
    """(base, source) of every pair."""
    clean, corrupted = task.clean, task.corrupted
    return list(zip(clean, corrupted, strict=True) if direction == "noise" else zip(corrupted, clean, strict=True))


def some_edges(graph, n=24, seed=0):
    """Edges of every kind: drawn, and one into every kind of reader."""
    rng = np.random.default_rng(seed)
    drawn = [str(graph.name(graph.cells[i].tolist())) for i in rng.choice(len(graph.cells), n, replace=False)]
    return list(dict.fromkeys([*drawn, "embed->q.0.1", "z.0.1->k.2.1", "z.0.3->v.1.0", "mlp_out.0->mlp_in.1", "z.2.3->logits",
                               "mlp_out.2->logits", "embed->logits", "mlp_out.1->q.2.3", "embed->mlp_in.0"]))  # fmt: skip


@pytest.mark.parametrize("direction", ["noise", "denoise"])
@pytest.mark.parametrize("family", [*FAMILIES, "olmo2", "granite"])
def test_edges_equal_brute_force(family, direction):
    model, task, reference = setting(family)
    edges = some_edges(graph_of(model))
    done: list[int] = []
    got = exact_edges(model, task, edges, direction, progress=done.append)
    want = SIGN[direction] * np.array([[reference.exact(base, source, edge) for edge in edges]
                                       for base, source in ends(task, direction)])  # fmt: skip
    assert sum(done) == got.numel() == len(task) * len(edges)
    np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())
    assert (np.abs(want).max(0) > 1e-2 * np.abs(want).max()).sum() > len(edges) / 2  # not a test of zeros


@pytest.mark.parametrize("direction", ["noise", "denoise"])
@pytest.mark.parametrize("family", FAMILIES)
def test_nodes_equal_brute_force(family, direction):
    model, task, reference = setting(family)
    nodes = ["embed", "z.0.0", "z.1.3", "mlp_out.1", "z.2.2", "mlp_out.2"]
    got = exact_nodes(model, task, nodes, direction)
    want = SIGN[direction] * np.array([[reference.node(base, source, node) for node in nodes]
                                       for base, source in ends(task, direction)])  # fmt: skip
    np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())
    whole = (model.score(task.clean, task.metric()) - model.score(task.corrupted, task.metric())).numpy()
    np.testing.assert_allclose(got[:, 0], whole, atol=1e-4 * np.abs(whole).max())  # everything enters by embed


def test_batches_and_chunks_do_not_change_values(monkeypatch):
    model, task, _ = setting("llama")
    edges = some_edges(graph_of(model))
    whole = exact_edges(model, task, edges, metric="loss")
    monkeypatch.setattr("assay.circuits.exact.TOKENS_AT_ONCE", 1)
    model.memory_budget = 1
    torch.testing.assert_close(exact_edges(model, task, edges, metric="loss"), whole, atol=1e-5, rtol=1e-4)


def test_mistakes_are_named():
    model, task, _ = setting("llama")
    attribution = attribute(model, task, AttributionPlan("eap", "node"))
    for call, says in (
        (lambda: exact_edges(model, task, ["embed->logits"], "up"), "noise or denoise"),
        (lambda: exact_edges(model, task, ["z.2.0->q.1.0"]), "comes before"),
        (lambda: exact_edges(model, task, []), "at least one"),
        (lambda: exact_nodes(model, task, ["q.1.0"]), "a writer of this model"),
        (lambda: verify_top(model, task.select([0]), attribution), "pairs that were attributed"),
        (lambda: path_patch(model, task, "z.0.0", "z.1.0"), "q.L.H, k.L.H, v.L.H"),
        (lambda: path_patch(model, task, "q.0.0", "logits"), "embed, z.L.H"),
        (lambda: path_patch(model, task, [], "logits"), "at least one"),
        (lambda: path_patch(model, task, ["z.0.0", "z.2.0"], "q.2.0"), "senders: got 'z.2.0'"),
        (lambda: path_patch(model, task, "z.1.0", ["q.1.0", "logits"]), "receivers: got 'q.1.0'"),
        (lambda: path_patch(model, task, "z.1.0", "logits", freeze="mlps"), "heads or all"),
    ):
        with pytest.raises(UsageError, match=says):
            call()
    uneven = replace(task, clean=[[*row, 30] for row in task.clean])
    for call in (lambda: exact_nodes(model, uneven, ["embed"]), lambda: path_patch(model, uneven, "z.0.0", "logits")):
        with pytest.raises(LengthMismatch):
            call()


# estimates ---------------------------------------------------------------------------------------


def test_verification_puts_estimates_beside_exact_values():
    model, task, _ = setting("llama")
    found = attribute(model, task, AttributionPlan("eap"))
    got = verify_top(model, task, found, k=6, n_random=10, seed=3)
    assert len(set(got.parts)) == 16 and got.k == 6 and got.n_pairs == len(task)
    order = found.scores.abs().argsort(descending=True)
    assert got.parts[:6] == [found.names[i] for i in order[:6]]
    assert got.estimate == [pytest.approx(float(found.scores[found.names.index(name)])) for name in got.parts]
    for direction in ("noise", "denoise"):
        want = exact_edges(model, task, got.parts, direction).mean(0).numpy()
        np.testing.assert_allclose(getattr(got, direction), want, atol=1e-6)
        measured = got.agreement[direction]
        assert measured.pearson == pytest.approx(stats.pearsonr(got.estimate, want)[0], abs=1e-5)
        assert measured.spearman == pytest.approx(stats.spearmanr(got.estimate, want)[0], abs=1e-5)
        assert measured.same_sign == pytest.approx(np.mean(np.sign(got.estimate) == np.sign(want)))
    assert got.parts != verify_top(model, task, found, k=6, n_random=10, seed=4).parts
    assert got.effect == pytest.approx(float((found.clean - found.corrupted).mean()))
    nodes = attribute(model, task, AttributionPlan("eap", "node"))
    seen = verify_top(model, task, nodes, k=4, n_random=3)
    writers = set(map(str, nodes.graph.writers))
    strongest = max(writers, key=lambda name: abs(nodes.scores[nodes.names.index(name)]))
    assert set(seen.parts) <= writers and seen.parts[0] == strongest
    np.testing.assert_allclose(seen.noise, exact_nodes(model, task, seen.parts).mean(0), atol=1e-6)


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_estimates_become_exact_for_small_differences(family):
    """Which ties the signs and scales of both together."""
    model, task, _ = setting(family)
    table, clean = model.hf.get_input_embeddings().weight.data, task.clean
    corrupted = [row[:2] + [190 + number] + row[3:] for number, row in enumerate(clean)]
    rng = torch.Generator().manual_seed(0)
    for number, row in enumerate(clean):
        table[190 + number] = table[row[2]] + 3e-3 * torch.randn(32, generator=rng)
    task = replace(task, corrupted=corrupted)
    if model.score(clean, task.metric()).mean() < model.score(corrupted, task.metric()).mean():
        task = replace(task, clean=corrupted, corrupted=clean)
    got = verify_top(model, task, attribute(model, task, AttributionPlan("eap")), k=20, n_random=0)
    for exact in (got.noise, got.denoise):
        np.testing.assert_allclose(exact, got.estimate, atol=0.03 * max(map(abs, got.estimate)))
    assert got.agreement["mean"].pearson > 0.999 and not got.disagree


def test_agreement_and_gates_by_hand():
    estimate, exact = np.array([3.0, 2.0, -1.0, 0.5]), np.array([2.0, 4.0, -1.0, 0.0])
    found = agreement(estimate, exact)
    assert found.pearson == pytest.approx(stats.pearsonr(estimate, exact)[0])
    assert found.spearman == pytest.approx(0.8) and found.same_sign == 1.0
    assert agreement(np.array([1.0, -1.0]), np.array([1.0, 1.0])).pearson is None
    assert agreement(np.array([1.0, -1.0]), np.array([1.0, 1.0])).same_sign == 0.5
    assert agreement(np.array([1.0, 2.0]), np.zeros(2)).same_sign is None
    noise, denoise = np.array([1.0, 0.1, 1.0, 0.04, -1.0]), np.array([0.1, -1.0, 0.9, 0.0, 0.0])
    assert gates(noise, denoise, -1.0) == ["and", "or", "", "", "and"]


@pytest.mark.parametrize("name, kind", [("or_gate", "or"), ("and_gate", "and")])
def test_a_gate_that_was_built_is_named_at_its_inputs_and_nowhere_else(name, kind):
    """Two signals into one MLP: all four edges up to the gate are said to be its inputs, its output and false edges are not."""
    truth = TRUTHS.get(name)
    model = truth.model()
    task = truth.task(model, 4, 2)
    got = verify_top(model, task, attribute(model, task), k=graph_of(model).n_edges, n_random=0)
    assert got.disagree == dict.fromkeys(GATE_EDGES[:-1], kind) and len(got.parts) == 23
    lost, won = np.array(got.noise) / got.effect, np.array(got.denoise) / got.effect
    inputs = [got.parts.index(edge) for edge in GATE_EDGES[:-1]]
    large, small = (won, lost) if kind == "or" else (lost, won)
    np.testing.assert_allclose(large[inputs], 1, atol=0.01)  # one is enough, or every one is needed
    np.testing.assert_allclose(small[inputs], 0, atol=0.01)
    out = got.parts.index(GATE_EDGES[-1])
    assert lost[out] == pytest.approx(1, abs=0.01) and won[out] == pytest.approx(1, abs=0.01)


# paths -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["noise", "denoise"])
@pytest.mark.parametrize("family", FAMILIES)
def test_one_direct_path_is_an_exact_edge(family, direction):
    model, task, _ = setting(family)
    edges = ["z.0.1->logits", "mlp_out.1->logits", "embed->logits", "z.0.2->k.2.1", "z.0.0->v.1.1", "mlp_out.0->q.2.2",
             "embed->mlp_in.1", "embed->q.0.1"]  # fmt: skip
    want = exact_edges(model, task, edges, direction)
    for edge, column in zip(edges, want.T, strict=True):
        sender, receiver = edge.split("->")
        got = path_patch(model, task, sender, receiver, direction=direction, freeze="all")
        np.testing.assert_allclose(got.values, column, atol=1e-4 * float(want.abs().max()))


@pytest.mark.parametrize("freeze", ["heads", "all"])
@pytest.mark.parametrize("senders, receivers", [
    (["z.0.1"], ["logits"]), (["z.0.1", "z.0.2", "z.1.0"], ["q.2.1", "k.2.0", "v.2.1"]),
    (["z.0.3", "mlp_out.0"], ["v.1.0", "q.2.1", "logits"]), (["embed"], ["k.1.1", "mlp_in.2"]),
])  # fmt: skip
@pytest.mark.parametrize("family", FAMILIES)
def test_paths_equal_brute_force(family, senders, receivers, freeze):
    model, task, reference = setting(family)
    for direction in ("noise", "denoise"):
        got = path_patch(model, task, senders, receivers, direction=direction, freeze=freeze)
        want = [SIGN[direction] * reference.paths(base, source, senders, receivers, freeze == "all")
                for base, source in ends(task, direction)]  # fmt: skip
        np.testing.assert_allclose(got.values, want, atol=1e-4 * np.abs(got.clean - got.corrupted).max())
        assert np.abs(want).max() > 1e-3 * np.abs(got.clean - got.corrupted).max()


def test_open_mlps_carry_what_frozen_ones_do_not():
    model, task, _ = setting("llama")
    done: list[int] = []
    opened, closed = (path_patch(model, task, "z.0.1", "logits", freeze=freeze, progress=done.append)
                      for freeze in ("heads", "all"))  # fmt: skip
    assert np.abs(opened.values - closed.values).max() > 1e-2 * np.abs(opened.values).max()
    assert sum(done) == 2 * len(task) and opened.plan["receivers"] == ["logits"] and opened.templates == task.templates


def test_paths_do_not_depend_on_batches():
    model, task, _ = setting("gemma2")
    whole = path_patch(model, task, "z.0.1", ["q.2.1", "logits"], metric="kl")
    model.memory_budget = 1
    alone = path_patch(model, task, "z.0.1", ["q.2.1", "logits"], metric="kl")
    np.testing.assert_allclose(alone.values, whole.values, atol=1e-5)
    assert np.abs(whole.values).max() > 1e-3
