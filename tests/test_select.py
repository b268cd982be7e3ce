"""Selections and random circuits against enumerated paths, literal re-statements of the rules, and counts."""

import math
import time
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.circuits import random_circuits as drawn
from assay.circuits import select
from assay.circuits.graph import EMBED, LOGITS, make_graph
from assay.circuits.subgraph import Bench
from assay.data.prepare import PreparedTask
from assay.errors import UsageError
from assay.records import Pair
from conftest import tiny_hf, wrap

SHAPES = [(2, 1, (False, False)), (2, 2, (True, False)), (4, 2, (False, False, True)), (1, 1, (True,))]
GRAPHS = [make_graph(*shape) for shape in SHAPES]
DEEP = make_graph(9, 3, [False] * 30)
cases = st.tuples(st.sampled_from(GRAPHS), st.integers(0, 10**6), st.floats(0.05, 0.9))


def scores_of(graph, seed, ties=False):
    x = torch.randn(graph.exists.shape, generator=torch.Generator().manual_seed(seed))
    return (x.round() if ties else x) * graph.exists


def mask_of(graph, seed, density):
    return (torch.rand(graph.exists.shape, generator=torch.Generator().manual_seed(seed)) < density) & graph.exists


def on_paths(graph, mask):
    """Edges of every path embed -> .. -> logits, by walking all of them."""
    kept = {site: [v for j, v in enumerate(graph.readers) if mask[i, j]] for i, site in enumerate(graph.writers)}
    found = torch.zeros_like(mask)

    def walk(writer, trail):
        for reader in kept[writer]:
            here = [*trail, (graph.writer_number[writer], graph.reader_number[reader])]
            if reader == LOGITS:
                for cell in here:
                    found[cell] = True
            for following in graph.node_of(reader):
                walk(following, here)

    walk(EMBED, [])
    return found


# selections ------------------------------------------------------------------------------------


@given(cases)
@settings(max_examples=60, deadline=None)
def test_connected_keeps_exactly_the_edges_of_paths(case):
    graph, seed, density = case
    mask = mask_of(graph, seed, density)
    if len(graph.parallel) == 3:
        mask &= mask_of(graph, seed + 1, 0.35)  # few enough paths to walk them all
    got = select.connected(graph, mask)
    assert torch.equal(got, on_paths(graph, mask))
    assert torch.equal(select.connected(graph, got), got)
    assert select.n_dropped(graph, mask) == int(mask.sum()) - int(got.sum())


@pytest.mark.parametrize(
    "edges, kept",
    [
        (["embed->logits"], 1),
        (["embed->q.0.0", "z.0.0->logits"], 2),  # a query alone feeds a head
        (["embed->k.0.0", "z.0.1->logits"], 2),  # a key head feeds every head of its group
        (["embed->q.0.0", "z.0.1->logits"], 0),  # a query feeds no other head
        (["embed->v.0.0", "z.0.2->logits"], 0),  # nor a value another group
        (["embed->q.0.0", "z.0.0->mlp_in.0", "mlp_out.0->v.1.1", "z.1.3->logits", "z.1.0->logits"], 4),
        (["embed->q.0.0", "z.0.0->mlp_in.1", "embed->mlp_in.0", "mlp_out.0->k.1.0", "z.1.3->logits"], 0),  # long dead ends
    ],
)
def test_what_counts_as_fed(edges, kept):
    graph = make_graph(4, 2, (False, False))
    assert int(select.connected(graph, graph.mask(edges)).sum()) == kept


@given(cases, st.sampled_from(["abs", "signed"]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_top_k_and_threshold_are_sorted_lists(case, by, ties):
    graph, seed, share = case
    scores = scores_of(graph, seed, ties)
    size = lambda cell: abs(float(scores[tuple(cell)])) if by == "abs" else float(scores[tuple(cell)])  # noqa: E731
    order = sorted(graph.cells.tolist(), key=lambda cell: -size(cell))
    k = math.floor(share * graph.n_edges)
    want = {tuple(cell) for cell in order[:k]}
    assert {tuple(cell) for cell in select.at_share(graph, scores, share, by).nonzero().tolist()} == want
    tau = size(order[k])
    assert {tuple(cell) for cell in select.threshold(graph, scores, tau, by).nonzero().tolist()} == {
        tuple(cell) for cell in order if size(cell) >= tau
    }


@given(cases, st.sampled_from(["abs", "signed"]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_greedy_takes_the_best_edge_that_leads_on(case, by, ties):
    graph, seed, share = case
    scores, k = scores_of(graph, seed, ties), math.floor(share * graph.n_edges)
    value = scores.abs() if by == "abs" else scores
    chosen = torch.zeros_like(graph.exists)
    for _ in range(k):
        wrote = {graph.writers[u] for u in chosen.any(1).nonzero()[:, 0].tolist()}
        open_ = [v == LOGITS or bool(wrote & set(graph.node_of(v))) for v in graph.readers]
        free = [(u, v) for u, v in graph.cells.tolist() if open_[v] and not chosen[u, v]]
        chosen[max(free, key=lambda cell: float(value[cell]))] = True
    assert torch.equal(select.greedy(graph, scores, k, by), chosen)


@given(cases, st.sampled_from(["abs", "signed"]), st.sampled_from(["top_k", "greedy"]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_curves_are_nested_and_count_what_they_hold(case, by, rule, prune):
    graph, seed, _ = case
    curve = select.curve_masks(graph, scores_of(graph, seed), by, rule=rule, prune=prune)
    assert curve.shares == select.GRID and curve.n_chosen[-1] == curve.n_edges[-1] == graph.n_edges
    assert curve.n_edges == tuple(int(mask.sum()) for mask in curve.masks)
    assert curve.n_chosen == tuple(math.floor(share * graph.n_edges) for share in select.GRID)
    assert prune or curve.n_edges == curve.n_chosen
    assert all(not bool((small & ~large).any()) for small, large in zip(curve.masks, curve.masks[1:]))
    alone = getattr(select, rule)(graph, scores_of(graph, seed), curve.n_chosen[-3], by)
    assert torch.equal(curve.masks[-3], select.connected(graph, alone) if prune else alone)
    assert curve.selection == f"{rule} by {by}" + (", pruned" if prune else "")


def test_top_nodes_by_size_and_by_sign():
    graph = GRAPHS[0]
    scores = torch.tensor([0.5, -3.0, 2.0, 1.0, -0.1, 0.0, 0.2])
    for by, want in (("abs", ["z.0.0", "z.0.1", "mlp_out.0"]), ("signed", ["z.0.1", "mlp_out.0", "embed"])):
        sites, mask = select.top_nodes(graph, scores, 3, by)
        assert [str(site) for site in sites] == want
        assert torch.equal(mask, graph.node_mask(sites)) and int(mask.any(1).sum()) == 3


@pytest.mark.parametrize(
    "call",
    [
        lambda g, s: select.top_k(g, s, g.n_edges + 1),
        lambda g, s: select.top_k(g, s, -1),
        lambda g, s: select.top_k(g, s, 3, "size"),
        lambda g, s: select.top_k(g, s[:, :-1], 3),
        lambda g, s: select.greedy(g, s * math.nan, 3),
        lambda g, s: select.at_share(g, s, 1.1),
        lambda g, s: select.threshold(g, s, -1.0, "abs"),
        lambda g, s: select.connected(g, ~g.exists),
        lambda g, s: select.connected(g, torch.zeros(2, 2, dtype=torch.bool)),
        lambda g, s: select.curve_masks(g, s, "abs", grid=(0.5, 0.1)),
        lambda g, s: select.curve_masks(g, s, "abs", rule="best"),
        lambda g, s: select.top_nodes(g, torch.zeros(len(g.writers) + len(g.readers) - 1), 2),
        lambda g, s: drawn.matched(g, torch.zeros_like(g.exists), 1),
        lambda g, s: drawn.walks(g, g.exists, 0),
        lambda g, s: drawn.inflated(g, g.exists, 1),
        lambda g, s: drawn.uniform(g, 0, 1),
    ],
)
def test_wrong_arguments_are_named(call):
    with pytest.raises(UsageError, match="allowed"):
        call(GRAPHS[0], scores_of(GRAPHS[0], 0))


@pytest.mark.parametrize("family", ["llama", "neox"])
def test_pruning_changes_nothing_under_resampling(family):
    hf = tiny_hf(family, 1)
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.mul_(1 if parameter.dim() == 1 else 8)
    model = wrap(hf, family)
    clean = [[20, 31, 42, 53, 64], [25, 36, 47, 58, 69]]
    corrupted = [[20, 99, 42, 53, 65], [25, 98, 47, 58, 68]]
    task = PreparedTask([Pair("a", "b", ("x",), ("y",), "t")] * 2, clean, corrupted, [(7,)] * 2, [(8,)] * 2, {}, {}, {})
    bench = Bench(model, task)
    masks = [mask_of(bench.graph, seed, density) for seed, density in enumerate((0.1, 0.15, 0.3))]
    pruned = [select.connected(bench.graph, mask) for mask in masks]
    got, want = bench.scores(pruned), bench.scores(masks)
    assert all(a.sum() < b.sum() for a, b in zip(pruned, masks)) and np.abs(want - bench.empty).max() > 0.1
    assert np.abs(got - want).max() < 1e-4
    means = Bench(model, task, ablation="mean")
    assert np.abs(means.scores(pruned) - means.scores(masks)).max() > 0.01  # what is not fed does not write its mean


# random circuits -------------------------------------------------------------------------------


def classes(graph, mask):
    return Counter((e.writer.layer, e.writer.name, e.reader.layer, e.reader.name) for e in graph.edges(mask))


@given(cases)
@settings(max_examples=40, deadline=None)
def test_matched_keep_every_class_and_coincide_only_where_they_must(case):
    graph, seed, density = case
    mask = mask_of(graph, seed, density)
    if not mask.any():
        return
    want, there = classes(graph, mask), classes(graph, graph.exists)
    forced = sum(max(0, n - (there[key] - n)) for key, n in want.items())
    for found in drawn.matched(graph, mask, 3, seed):
        assert classes(graph, found.mask) == want
        assert int((found.mask & mask).sum()) == found.n_shared == found.n_forced == forced
        assert found.n_live == int(on_count(graph, found.mask)) and found.n_edges == int(mask.sum())


def on_count(graph, mask):
    return select.connected(graph, mask).sum()


def test_matched_draws_every_edge_of_a_class_alike():
    graph = make_graph(4, 4, (False, False))
    mask = graph.mask(["z.0.0->q.1.0", "z.0.1->q.1.2", "embed->logits"])
    total = sum(found.mask.double() for found in drawn.matched(graph, mask, 4000, 1))
    rows, columns = slice(1, 5), [graph.reader_number[v] for v in graph.readers if v.layer == 1 and v.name == "q"]
    counts = total[rows, columns]
    outside = counts[~mask[rows, columns]]  # 14 edges, 2 of them in every draw
    assert float(counts[mask[rows, columns]].sum()) == 0 and float(outside.sum()) == 8000
    chi2 = float(((outside - 8000 / 14) ** 2 / (8000 / 14)).sum()) / (1 - 1 / 7)
    assert chi2 < 34.5  # .001 of chi squared with 13 degrees
    assert float(total[0, -1]) == 4000 and drawn.matched(graph, mask, 1)[0].n_forced == 1


@given(cases)
@settings(max_examples=40, deadline=None)
def test_walks_are_exact_in_size_and_all_on_paths(case):
    graph, seed, density = case
    mask = mask_of(graph, seed, density)
    if not mask.any():
        return
    for found in drawn.walks(graph, mask, 3, seed):
        assert found.n_edges == int(found.mask.sum()) == int(mask.sum())
        assert not bool((found.mask & ~graph.exists).any())
        assert found.n_live == int(on_count(graph, found.mask)) and found.n_shared == int((found.mask & mask).sum())
        assert found.n_trimmed > 0 or found.n_live == found.n_edges


def test_a_last_walk_that_cannot_fit_is_cut_and_said_to_be(monkeypatch):
    monkeypatch.setattr(drawn, "TRIES", 1)
    graph = make_graph(4, 2, [False] * 6)
    found = drawn.walks(graph, graph.mask(["embed->q.0.0"]), 20, 0)
    cut = [one for one in found if one.n_trimmed]
    assert cut and all(one.n_edges == 1 and one.n_live == 0 for one in cut)
    assert all(str(edge.reader) == "logits" for one in cut for edge in graph.edges(one.mask))


def test_walks_over_allowed_edges_take_no_others_and_every_size_there_is():
    """Dead ends of what is allowed are no edges of walks; what forms no path, or too few edges, is refused."""
    graph = make_graph(2, 1, (False, False))
    circuit = graph.mask(["embed->q.0.0", "z.0.0->logits"])
    allowed = graph.exists & ~circuit & ~graph.mask(["embed->logits", "mlp_out.1->logits"])
    live = select.connected(graph, allowed)
    for size in (2, 7, int(live.sum())):
        (found,) = drawn.walks(graph, circuit, 1, size, n_edges=size, allowed=allowed)
        assert found.n_edges == size and not bool((found.mask & ~live).any()) and found.n_shared == 0
    dead, short = graph.mask(["embed->q.0.0"]), "connect the embeddings"
    for wrong, message in (({"n_edges": int(live.sum()) + 1}, "on a path"), ({"allowed": circuit & ~circuit}, short),
                           ({"allowed": dead}, short), ({"n_edges": 0}, "n_edges")):  # fmt: skip
        with pytest.raises(UsageError, match=message):
            drawn.walks(graph, circuit, 1, **{"allowed": allowed, **wrong})


def test_one_walk_more_is_a_path_through_what_was_outside():
    graph = make_graph(2, 1, (False, True))
    circuit = graph.mask(["embed->q.0.0", "z.0.0->logits", "embed->logits"])
    seen = torch.zeros_like(graph.exists)
    for found in drawn.one_walk_more(graph, circuit, 200, 3):
        assert bool((found.mask == (circuit | found.added)).all()) and not bool((found.added & circuit).any())
        assert 1 <= found.n_added == int(found.added.sum()) and bool((select.connected(graph, found.mask) == found.mask).all())
        seen |= found.added
    assert int(seen.sum()) == graph.n_edges - 3
    with pytest.raises(UsageError, match="leaves paths"):
        drawn.one_walk_more(graph, graph.exists, 1)


def test_walks_step_uniformly():
    """One layer of one head: every walk from its own edge on is known, so are the shares of its steps."""
    graph = make_graph(2, 1, (False, False))
    walker, rng = drawn._Walker(graph), np.random.default_rng(0)
    start = graph.edge("z.0.1->k.1.0")
    walk, cell = walker.walks(np.tile(np.array([start]), (6000, 1)), rng)
    steps = Counter(str(graph.name(divmod(int(one), len(graph.readers)))) for one in cell)
    assert steps["z.0.1->k.1.0"] == 6000 and len(np.unique(walk)) == 6000
    into = {name: steps[f"embed->{name}.0.{1 if name == 'q' else 0}"] for name in "qkv"}
    assert sum(into.values()) == 6000 and all(abs(n - 2000) < 150 for n in into.values())
    out = {head: [steps[f"z.1.{head}->{reader}"] for reader in ("mlp_in.1", "logits")] for head in (0, 1)}
    assert all(abs(n - 1500) < 150 for pair in out.values() for n in pair)
    assert steps["mlp_out.1->logits"] == out[0][0] + out[1][0] and len(steps) == 1 + 3 + 4 + 1


@given(cases)
@settings(max_examples=40, deadline=None)
def test_inflated_is_the_circuit_and_walks(case):
    graph, seed, density = case
    mask = select.connected(graph, mask_of(graph, seed, density))
    n_extra = 1 + seed % (graph.n_edges - int(mask.sum())) if not mask.equal(graph.exists) else 0
    if not n_extra:
        return
    found = drawn.inflated(graph, mask, n_extra, seed)
    assert int(found.added.sum()) == found.n_added == n_extra
    assert torch.equal(found.mask, mask | found.added) and not bool((mask & found.added).any())
    assert found.n_trimmed or torch.equal(select.connected(graph, found.mask), found.mask)


def test_draws_depend_on_seed_and_number_alone():
    graph, mask = GRAPHS[2], mask_of(GRAPHS[2], 0, 0.2)
    for draw in (drawn.matched, drawn.walks, lambda g, m, n, s: drawn.uniform(g, 20, n, s)):
        many, few, other = draw(graph, mask, 4, 5), draw(graph, mask, 2, 5), draw(graph, mask, 4, 6)
        assert all(torch.equal(a.mask, b.mask) for a, b in zip(many, few))
        assert not any(torch.equal(a.mask, b.mask) for a, b in zip(many, [*many[1:], other[0]]))


def test_uniform_circuits_of_a_deep_model_are_dead_and_walks_are_not():
    assert DEEP.n_edges == 70651
    [loose], [whole] = drawn.uniform(DEEP, 706, 1), drawn.walks(DEEP, mask_of(DEEP, 0, 0.01), 1)
    assert loose.n_edges == 706 and loose.n_shared is None and loose.n_live < 70
    assert whole.n_live == whole.n_edges > 600


@pytest.mark.parametrize("share", [0.001, 0.01, 0.1, 0.5])
def test_draws_of_a_deep_model_are_fast(share):
    mask = select.greedy(DEEP, scores_of(DEEP, 0), int(share * DEEP.n_edges))
    for draw in (drawn.matched, drawn.walks):
        times = []
        for seed in range(3):
            start = time.process_time()
            draw(DEEP, mask, 1, seed)
            times.append(time.process_time() - start)
        assert min(times) < 0.25  # measured: 3 to 30 ms
