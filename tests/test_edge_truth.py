"""Planted circuits: they work, their edges are true by brute force on the bare modules, and methods succeed and fail on
them as they should."""

from functools import cache

import numpy as np
import pytest
import torch

from assay.circuits.attribute import AttributionPlan, attribute
from assay.circuits.exact import exact_edges
from assay.circuits.graph import graph_of, make_graph
from assay.errors import ShapeError, UsageError
from assay.testing.edge_truth import PROGRAM_EDGES, TRUTHS, node_roc, node_truth, roc
from assay.testing.gates_models import trigram_effects
from assay.testing.programs import PROGRAMS

pytestmark = pytest.mark.whole  # against references that take their time

INDUCTION = [name for name in TRUTHS.names() if name.startswith("induction")]
DIRECTIONS = ("noise", "denoise")
N = 9  # pairs, a template each


class Raw:
    """Every edge of a stock Llama or GPT-2 exchanged alone, by raw hooks."""

    def __init__(self, hf, task):
        self.hf, self.task, config = hf, task, hf.config
        self.gpt2 = config.model_type == "gpt2"
        self.blocks = hf.transformer.h if self.gpt2 else hf.model.layers
        self.heads = config.num_attention_heads
        self.size = config.hidden_size // self.heads
        self.last = hf.transformer.ln_f if self.gpt2 else hf.model.norm

    def parts(self, layer):
        """First norm, output projection, second norm, MLP."""
        block = self.blocks[layer]
        if self.gpt2:
            return block.ln_1, block.attn.c_proj, block.ln_2, block.mlp
        return block.input_layernorm, block.self_attn.o_proj, block.post_attention_layernorm, block.mlp

    def run(self, ids, hooks=(), rows=1):
        handles = [m.register_forward_hook(f) if after else m.register_forward_pre_hook(f) for m, after, f in hooks]
        with torch.no_grad():
            logits = self.hf(input_ids=torch.tensor([ids] * rows)).logits[:, -1]
        for handle in handles:
            handle.remove()
        return logits[0] if rows == 1 else logits

    def written(self, ids):
        """What every writer adds to the stream, and the streams that norms read."""
        out = {}

        def keep(name, change):
            return lambda module, args, result=None: out.__setitem__(name, change(args, result))

        hooks = [(self.blocks[0], False, keep("embed", lambda a, r: a[0]))]
        for layer in range(len(self.blocks)):
            norm, project, _, mlp = self.parts(layer)
            hooks.append((norm, False, keep(f"stream.{layer}", lambda a, r: a[0])))
            hooks.append((mlp, True, keep(f"mlp_out.{layer}", lambda a, r: r)))
            weight = project.weight if self.gpt2 else project.weight.T
            for head in range(self.heads):
                rows = slice(head * self.size, (head + 1) * self.size)
                mine = keep(f"z.{layer}.{head}", lambda a, r, w=weight[rows], s=rows: a[0][..., s] @ w)
                hooks.append((project, False, mine))
        self.run(ids, hooks)
        return out

    def patched(self, base, change, here, reader):
        """Logits of the base prompt where one reader alone reads its stream plus the change, (row, pos, d)."""
        name, *rest = reader.split(".")
        rows = len(change)
        if name in ("logits", "mlp_in"):
            norm = self.last if name == "logits" else self.parts(int(rest[0]))[2]
            return self.run(base, [(norm, False, lambda m, a: (a[0] + change,))], rows)
        layer, head = map(int, rest)
        with torch.no_grad():
            read = self.parts(layer)[0](here[f"stream.{layer}"] + change)
        start = head * self.size
        if self.gpt2:
            module = self.blocks[layer].attn.c_attn
            start += "qkv".index(name) * self.size * self.heads
        else:
            module = getattr(self.blocks[layer].self_attn, f"{name}_proj")

        def write(m, a, out):
            out = out.clone()
            out[..., start : start + self.size] = m.forward(read)[..., start : start + self.size]
            return out

        return self.run(base, [(module, True, write)], rows)

    def effects(self, edges, direction):
        """(pair, edge) changes of the logit difference, the whole one (pair,). Positive: carries the behaviour."""
        found, whole = np.zeros((len(self.task), len(edges))), np.zeros(len(self.task))
        for row in range(len(self.task)):
            a, b = self.task.answers[row][0], self.task.foils[row][0]
            ends = [self.task.clean[row], self.task.corrupted[row]]
            base, source = ends if direction == "noise" else ends[::-1]
            sign = 1 if direction == "noise" else -1
            here, there = self.written(base), self.written(source)
            plain, other = (float(x[a] - x[b]) for x in (self.run(base), self.run(source)))
            whole[row] = sign * (plain - other)
            by_reader = {}
            for number, edge in enumerate(edges):
                writer, reader = edge.split("->")
                by_reader.setdefault(reader, []).append((number, there[writer] - here[writer]))
            for reader, some in by_reader.items():
                numbers, changes = zip(*some, strict=True)
                logits = self.patched(base, torch.cat(changes), here, reader).view(len(some), -1)
                found[row, list(numbers)] = sign * (plain - (logits[:, a] - logits[:, b]).numpy())
        return found, whole


@cache
def made(name):
    truth = TRUTHS.get(name)
    model = truth.model()
    return truth, model, truth.task(model, N, 1), graph_of(model)


@cache
def brute(name, direction):
    """Share of the whole effect of every edge, mean over pairs, by name."""
    _, model, task, graph = made(name)
    names = [str(edge) for edge in graph.edges(graph.exists)]
    found, whole = Raw(model.hf, task).effects(names, direction)
    return dict(zip(names, found.mean(0) / whole.mean(), strict=True))


def matrix(found, graph):
    out = torch.zeros(graph.exists.shape)
    for edge, value in found.items():
        out[graph.edge(edge)] = float(value)
    return out


def judged(name, plan):
    truth, model, task, graph = made(name)
    found = attribute(model, task, plan)
    return found, roc(found.matrix().abs(), truth.mask(graph), graph, truth.asked(graph))


@pytest.mark.parametrize("name", TRUTHS.names())
def test_planted_models_do_what_they_were_built_for(name):
    truth, model, task, _ = made(name)
    assert len(task) == N and not task.dropped
    for prompts, wanted in ((task.clean, task.answers), (task.corrupted, task.foils)):
        if prompts is task.corrupted and name in ("backup", "opposite", "skip_trigram"):
            continue  # their corrupted texts ask for nothing
        right = [int(row.argmax()) == answer[0] for row, answer in zip(model.logits(prompts), wanted, strict=True)]
        assert np.mean(right) >= 0.9


@pytest.mark.parametrize("name", TRUTHS.names())
def test_edges_are_true_by_brute_force(name):
    """Of the whole effect: more than 5% where true, unless that direction is blind to it; less than 1% where not."""
    truth, _, _, graph = made(name)
    seen = set()
    for direction in DIRECTIONS:
        for edge, share in brute(name, direction).items():
            if edge in truth.edges and edge not in truth.blind.get(direction, ()):
                assert abs(share) > 0.05, (edge, direction, share)
                seen.add(edge)
            else:
                assert abs(share) < 0.01, (edge, direction, share)
    assert seen == set(truth.edges) and len(brute(name, "noise")) == graph.n_edges


def test_every_edge_of_the_induction_model_is_counted():
    graph = made("induction-8")[3]
    assert (graph.n_edges, graph.n_heads, graph.n_kv_heads) == (82, 4, 2)


@pytest.mark.parametrize("name", INDUCTION)
def test_the_llama_is_an_ordinary_one_that_does_induction(name):
    _, model, task, _ = made(name)
    assert type(model.hf).__name__ == "LlamaForCausalLM"
    queries, keys = (model.capture(task.clean[:1], site) for site in ("q.0", "k.0"))
    score = (queries["q.0"][0, 1:, 0] @ keys["k.0"][0, 1:, 0].T) / 4  # the previous-token head, before RoPE
    assert float(score.std()) < 1e-3 * float(score.abs().max())  # the same for all pairs of positions
    pattern = model.capture(task.clean[:1], "pattern.0")["pattern.0"][0, 0]
    assert float(pattern.diagonal(-1)[1:].min()) > 0.99
    ids, gain = task.clean[0], float(name.split("-")[1])
    found = model.capture([ids], ["q.1", "k.1"])
    scores = found["k.1"][0, :, 0] @ found["q.1"][0, -1, 0] / 4  # before RoPE, which hardly turns what is matched
    match = ids.index(ids[-1]) + 1
    assert float(scores[match]) == pytest.approx(gain, rel=0.05)
    others = torch.cat([scores[:match], scores[match + 1 :]])
    assert float(others.max()) < 0.02 * gain


@pytest.mark.parametrize("name", INDUCTION)
def test_integrated_gradients_find_induction_at_any_saturation(name):
    found, ranked = judged(name, AttributionPlan("eap-ig"))
    assert ranked.auroc >= 0.95 and ranked.n_true == 5 and not found.warnings


def test_one_gradient_fails_on_saturated_attention_and_says_so():
    true, saturated = (judged(name, AttributionPlan("eap"))[1].auroc for name in ("induction-4", "induction-60"))
    assert true >= 0.95 and saturated < 0.9
    for direction in DIRECTIONS:
        found, ranked = judged("induction-60", AttributionPlan("eap", direction=direction))
        assert ranked.auroc < 0.9
        assert any("not complete" in warning and "eap-ig" in warning for warning in found.warnings)
        whole = (found.clean - found.corrupted).mean()
        assert abs(float(found.matrix()[found.graph.edge("z.0.0->k.1.0")])) < 0.01 * whole
        assert brute("induction-60", direction)["z.0.0->k.1.0"] > 0.3


@pytest.mark.parametrize("name", ["induction-8", "negative"])
def test_exact_patching_of_the_workbench_is_the_brute_force(name):
    truth, model, task, _ = made(name)
    for direction in DIRECTIONS:
        whole = Raw(model.hf, task).effects([], direction)[1].mean()
        found = exact_edges(model, task, list(brute(name, direction)), direction).mean(0) / whole
        assert found.numpy() == pytest.approx(np.array(list(brute(name, direction).values())), abs=1e-4)


def test_a_gate_is_missed_in_the_direction_it_should_be():
    either, both = ("embed->v.0.3", "embed->v.0.2", "z.0.3->mlp_in.0", "z.0.2->mlp_in.0"), 1.0
    for name, shows, hides in (("or_gate", "denoise", "noise"), ("and_gate", "noise", "denoise")):
        assert TRUTHS.get(name).blind == {hides: either}
        for edge in either:
            assert brute(name, shows)[edge] == pytest.approx(both, abs=5e-3)  # one of two has the whole effect
            assert brute(name, hides)[edge] == pytest.approx(0.0, abs=1e-3)  # and the same one has none
        assert brute(name, hides)["mlp_out.0->logits"] == pytest.approx(1.0, abs=5e-3)
        found = attribute(*made(name)[1:3], AttributionPlan("eap", direction=hides))
        assert all(abs(float(found.matrix()[found.graph.edge(edge)])) < 0.01 for edge in either)
        assert judged(name, AttributionPlan("eap-ig"))[1].auroc == 1.0


def test_positions_with_opposite_signs_cancel_in_an_edge():
    truth, model, task, graph = made("opposite")
    (edge,) = truth.cancels
    found = attribute(model, task, AttributionPlan("eap-ig"))
    cell = found.names.index(edge)
    assert float(found.cancelled[cell]) > 0.99 and abs(float(found.scores[cell])) < 0.01
    assert all(float(found.cancelled[found.names.index(name)]) < 0.05 for name in truth.edges)
    raw = Raw(model.hf, task)
    for row in range(3):  # each position alone: plus and minus half of what the head writes
        a, b = task.answers[row][0], task.foils[row][0]
        here, there = raw.written(task.clean[row]), raw.written(task.corrupted[row])
        change = there["embed"] - here["embed"]
        effects = []
        for place in change.abs().sum(-1)[0].nonzero()[:, 0].tolist():
            alone = torch.zeros_like(change)
            alone[:, place] = change[:, place]
            patched = raw.patched(task.clean[row], alone, here, "v.0.3")
            effects.append(float((plain := raw.run(task.clean[row]))[a] - plain[b] - patched[a] + patched[b]))
        assert sorted(effects) == pytest.approx([-2.0, 2.0], abs=0.02)


def test_a_backup_head_repairs_a_node_and_not_an_edge():
    _, model, task, _ = made("backup")
    head, size = 3, model.dims.d_head

    def silent(module, args):
        z = args[0].clone()
        z[..., head * size : (head + 1) * size] = 0
        return (z,)

    raw = Raw(model.hf, task)
    shares = []
    for ids, (a,), (b,) in zip(task.clean, task.answers, task.foils, strict=True):
        logits = raw.run(ids, [(raw.parts(0)[1], False, silent)])
        shares.append(float(logits[a] - logits[b]))
    assert np.mean(shares) == pytest.approx(4.0, rel=0.05)  # the whole answer is still there
    assert brute("backup", "noise")["z.0.3->logits"] == pytest.approx(1.0, abs=0.02)
    assert brute("backup", "noise")["z.0.3->q.1.3"] == pytest.approx(-1.0, abs=0.02)  # asleep no more: said twice


def test_a_negative_head_has_negative_edges():
    for direction in DIRECTIONS:
        found = brute("negative", direction)
        assert found["z.0.3->logits"] == pytest.approx(2.0, abs=0.02)
        assert found["z.1.3->logits"] == pytest.approx(-1.0, abs=0.02)
    truth, model, task, graph = made("negative")
    scores = attribute(model, task, AttributionPlan("eap-ig")).matrix()
    assert roc(scores, truth.mask(graph), graph).auroc < 0.7  # by sign, its edges come last
    assert roc(scores.abs(), truth.mask(graph), graph).auroc > 0.95


def test_the_inhibition_chain_acts_through_a_query_alone():
    truth, *_ = made("inhibition")
    for direction in DIRECTIONS:
        found = brute("inhibition", direction)
        assert all(found[edge] == pytest.approx(1.0, abs=5e-3) for edge in truth.edges)
        assert max(abs(found[f"z.1.3->{reader}.2.3"]) for reader in "kv") < 1e-3
    found, _ = judged("inhibition", AttributionPlan("eap"))
    assert abs(float(found.matrix()[found.graph.edge("z.1.3->q.2.3")])) < 0.01 and found.warnings
    assert judged("inhibition", AttributionPlan("eap-ig"))[1].auroc == 1.0


def test_the_skip_trigram_is_its_formula():
    _, model, task, graph = made("skip_trigram")
    edges = ["embed->k.0.3", "embed->v.0.3"]
    (noise, whole), (denoise, _) = (Raw(model.hf, task).effects(edges, direction) for direction in DIRECTIONS)
    slopes = {direction: attribute(model, task, AttributionPlan("eap", direction=direction)) for direction in DIRECTIONS}
    key, value = (slopes["noise"].names.index(edge) for edge in edges)
    for row, ids in enumerate(task.clean):
        want = trigram_effects(len(ids))
        assert whole[row] == pytest.approx(want["clean"], abs=0.01)
        assert noise[row] == pytest.approx([want["noise key"], want["noise value"]], abs=0.01)
        assert denoise[row] == pytest.approx([0.0, want["denoise value"]], abs=0.01)
        assert float(slopes["noise"].values[row, key]) == pytest.approx(want["slope key"], abs=0.01)
        assert float(slopes["noise"].values[row, value]) == pytest.approx(want["noise value"], abs=0.01)
        assert float(slopes["denoise"].values[row, key]) == pytest.approx(0.0, abs=0.01)
        assert float(slopes["denoise"].values[row, value]) == pytest.approx(want["denoise value"], abs=0.01)


@pytest.mark.parametrize("name", list(PROGRAM_EDGES))
def test_filled_programs_say_what_the_compiled_ones_say(name):
    _, model, task, _ = made(name)
    plain = PROGRAMS[name]().model
    difference = (model.logits(task.clean) - plain.logits(task.clean)).abs().max()
    assert 0 < float(difference) < 0.1
    assert set(PROGRAM_EDGES) == set(PROGRAMS)


@pytest.mark.parametrize("name", TRUTHS.names())
def test_true_edges_are_wired(name):
    """A path needs every part: what writes must be reached from embed, and what reads must reach the logits."""
    truth, _, _, graph = made(name)
    cells = [graph.edge(edge) for edge in truth.edges]
    into = {site for _, reader in cells for site in graph.node_of(graph.readers[reader])}
    assert all(str(graph.writers[writer]) == "embed" or graph.writers[writer] in into for writer, _ in cells)
    out = {graph.writers[writer] for writer, _ in cells}
    silent = {"z.1.3"} if name == "backup" else set()  # carries nothing in either run
    for _, reader in cells:
        nodes = graph.node_of(graph.readers[reader])
        assert not nodes or out & set(nodes) or silent & {str(node) for node in nodes}


def test_roc_by_hand():
    graph = make_graph(1, 1, [False])
    names = [str(edge) for edge in graph.edges(graph.exists)]
    truth = graph.mask(names[:2])
    scores = torch.full(graph.exists.shape, 9.0)  # cells that are no edges do not count
    for edge, value in zip(names, (3.0, 1.0, 2.0, 1.0, *[0.0] * (len(names) - 4)), strict=True):
        scores[graph.edge(edge)] = value
    found = roc(scores, truth, graph)
    n = len(names) - 2
    assert found.auroc == pytest.approx((n + (n - 2) + 0.5) / (2 * n))  # one above all; one below one, tied with one
    assert found.average_precision == pytest.approx(0.5 * 1.0 + 0.5 * 2 / 4)
    assert (found.n_true, found.n) == (2, len(names))
    fewer = roc(scores, truth, graph, graph.exists & ~graph.mask([names[2]]))
    assert fewer.auroc == pytest.approx((n - 1 + (n - 2) + 0.5) / (2 * (n - 1))) and fewer.n == len(names) - 1


def test_what_cannot_be_ranked_is_refused():
    graph = make_graph(1, 1, [False])
    scores = torch.zeros(graph.exists.shape)
    with pytest.raises(UsageError, match="some true and some false"):
        roc(scores, torch.zeros_like(graph.exists), graph)
    with pytest.raises(UsageError, match="finite numbers"):
        roc(scores / 0, graph.mask(["embed->v.0.0"]), graph)
    with pytest.raises(ShapeError, match="writer, reader"):
        roc(scores[:1], graph.exists, graph)
    with pytest.raises(ShapeError, match="one for each node"):
        node_roc(torch.zeros(3), torch.zeros(4, dtype=torch.bool))


def test_nodes_of_a_truth():
    truth, model, task, graph = made("induction-8")
    found = attribute(model, task, AttributionPlan("eap-ig", level="node"))
    true = node_truth(truth.edges, graph)
    names = [name for name, is_true in zip(found.names, true.tolist(), strict=True) if is_true]
    assert names == ["embed", "z.0.0", "z.1.0", "v.0.0", "q.1.0", "k.1.0", "v.1.0"]
    assert node_roc(found.scores.abs(), true).auroc > 0.95
