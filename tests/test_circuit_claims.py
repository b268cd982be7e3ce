"""Claims about circuits of edges, on planted models: what is true passes, what is not does not."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from assay.atlas.attributions import KeptScores
from assay.circuits.exact import exact_edges
from assay.circuits.faithfulness import faithfulness_of
from assay.circuits.find import EDGE_GRID, FindPlan, _smallest, find_circuit, level_of, scored
from assay.circuits.graph import graph_of
from assay.circuits.guards import DoubledBos, InvertedSign
from assay.circuits.select import GRID
from assay.data.prepare import prepare
from assay.errors import UsageError
from assay.evidence.edges_instrument import EdgeInstrument, is_circuit, mask_of, other_circuits, parts_of
from assay.evidence.mediates import Mediates
from assay.evidence.memory import MemoryStore
from assay.evidence.run import Settings, state_claim, test_claim
from assay.evidence.source import MemorySource
from assay.testing.edge_truth import TRUTHS
from assay.testing.induction import planted_induction, repeated_pairs

TRUE = ["embed->v.1.0", "embed->v.1.1", "z.1.0->logits", "z.1.1->logits"]
DECOY = ["embed->v.0.1", "z.0.1->v.1.0"]
SETTINGS = Settings(tune=16, confirm=40, ood=36, draws=4, control_pairs=2)


@pytest.fixture(scope="module")
def model():
    return planted_induction()


@pytest.fixture(scope="module")
def source():
    sizes = {"discover": 4, "tune": 4, "confirm": 10, "ood": 9}
    return MemorySource("repeated", {split: repeated_pairs(n, 4, 0, split + " ") for split, n in sizes.items()})


def verdict_of(model, source, names, **options):
    store = MemoryStore()
    settings = Settings(**{**SETTINGS.__dict__, "options": options})
    stated, plan = state_claim(store, model, source, names, settings=settings)
    verdict = test_claim(store, stated.id, model, source=source)
    gates = {gate.name: gate for gate in store.evidence(stated.id).gates if gate.split == "confirm"}
    return stated, plan, verdict, gates


@pytest.mark.whole
def test_the_planted_circuit_is_supported_and_beats_its_rival(model, source):
    stated, plan, verdict, gates = verdict_of(model, source, TRUE, rival=DECOY)
    assert verdict.verdict == "supported", verdict
    assert gates["sufficiency"].estimate == pytest.approx(1.0, abs=0.05)
    assert gates["necessity.resample"].estimate == pytest.approx(1.0, abs=0.05)
    assert gates["rival.circuit"].p_above < 0.05 and "non-unique" not in verdict.qualifiers
    assert "a circuit of 4 edges" in verdict.sentence
    for how in ("mean", "zero"):  # what only needs the corrupted run around it is said not to stand alone
        said = any(("its mean" if how == "mean" else "at zero") in line for line in verdict.does_not_show)
        assert said == (gates[f"kept_alone.{how}"].p_above > 0.05)
    assert plan.settings["controls"]["edges"] == 4 and len(plan.settings["controls"]["random"]) == 4
    assert stated.subject["sites"] == ["embed->v.1.0", "embed->v.1.1", "z.1.0->logits", "z.1.1->logits"]


@pytest.mark.whole
def test_a_circuit_that_nothing_reads_is_refuted(model, source):
    _, _, verdict, gates = verdict_of(model, source, DECOY)
    assert verdict.verdict == "refuted"
    assert gates["sufficiency"].estimate == pytest.approx(0.0, abs=0.02)
    assert gates["planted.everything"].estimate > 0.99 and gates["planted.nothing"].estimate > 0.99


@pytest.mark.whole
def test_a_rival_as_good_makes_it_non_unique(model, source):
    _, _, verdict, _ = verdict_of(model, source, TRUE[::2], rival=TRUE[1::2])
    assert "non-unique" in verdict.qualifiers


def test_controls_are_other_circuits_of_the_same_size(model):
    graph = graph_of(model)
    mask = mask_of(graph, parts_of(model, TRUE))
    drawn = other_circuits(graph, mask, 6, 0)
    assert 0 < len(drawn) <= 6
    for draw in drawn:
        assert int(draw.mask.sum()) == 4 and int((draw.mask & mask).sum()) <= 2


def test_names_are_edges_or_nodes_of_several_kinds(model):
    assert is_circuit(TRUE) and is_circuit(["z.0.1", "mlp_out.0"]) and is_circuit(["embed"])
    assert not is_circuit(["z.0.1", "z.1.0"]) and not is_circuit(["resid_post.1"])
    kind = Mediates()
    assert kind.subject(model, "z.1.0->logits, embed->v.1.0")["sites"] == ["embed->v.1.0", "z.1.0->logits"]
    assert "circuit" in kind.words({"sites": TRUE}, "tends", "x")
    for wrong, message in (("z.1.0->z.0.0", "reader"), ("z.1.0->v.0.0", "before its reader"), ("resid_post.0,z.0.0", "nodes")):
        with pytest.raises(UsageError, match=message):
            kind.subject(model, wrong)


def test_last_position_and_whole_models_are_refused(model, source):
    store = MemoryStore()
    with pytest.raises(UsageError, match="positions"):
        state_claim(store, model, source, TRUE, settings=Settings(**{**SETTINGS.__dict__, "positions": "last"}))
    nodes = [str(site) for site in graph_of(model).writers]
    with pytest.raises(UsageError, match="all edges"):
        state_claim(store, model, source, nodes, settings=SETTINGS)


def test_one_plain_run_and_many_at_once_agree(model, source):
    task = prepare(source.items("confirm", 12, 0), model)
    from assay.evidence.circuits_instrument import Setup

    units = parts_of(model, TRUE)
    setup = Setup(units, (), (), {}, "logit_diff", "all", 1)
    instrument = EdgeInstrument(model, task, range(len(task)), setup)
    many = instrument.many([units, units[:2], units[2:]], "restore")
    for column, part in zip(many, (units, units[:2], units[2:]), strict=True):
        plain = instrument.patched(part, "restore")
        assert [x is None for x in column] == [x is None for x in plain]
        assert all(a is None or abs(a - b) < 1e-3 for a, b in zip(column, plain, strict=True))


def test_the_search_finds_the_planted_circuit(model, source):
    data = {split: prepare(source.items(split, 16, 0), model) for split in ("discover", "tune")}
    steps = []
    found = find_circuit(model, data["discover"], data["tune"], FindPlan(verify=4), lambda *step: steps.append(step))
    assert set(TRUE) <= set(found.parts) and found.curves["resample"].points[found.chosen].f.value >= 0.85
    assert not set(found.parts) & set(found.rival) and steps
    assert set(found.curves) == {"resample", "mean", "zero"} and found.verified is not None
    exact = find_circuit(model, data["discover"], data["tune"], FindPlan("exact", verify=4))
    assert set(TRUE) <= set(exact.parts) and exact.verified is not None
    assert exact.verified.noise == pytest.approx(exact_edges(model, data["discover"].select(range(8)), exact.verified.parts)
                                                 .double().mean(0).tolist())  # fmt: skip
    nodes = find_circuit(model, data["discover"], data["tune"], FindPlan("atp", "node"))
    assert {"z.1.0", "z.1.1"} <= set(nodes.parts)
    assert nodes.verified is not None and set(nodes.verified.parts) <= set(map(str, nodes.graph.writers))
    flow = find_circuit(model, data["discover"], data["tune"], FindPlan("information-flow", verify=4))
    assert flow.verified is not None and flow.verified.effect == pytest.approx(found.verified.effect, rel=0.2)
    swapped = replace(data["discover"], answers=data["discover"].foils, foils=data["discover"].answers)
    with pytest.raises(InvertedSign):
        find_circuit(model, swapped, data["tune"], FindPlan("information-flow"))


def test_gates_and_pairs_left_out_are_said_by_name():
    truth = TRUTHS.get("and_gate")
    planted = truth.model()
    discover, tune = truth.task(planted, 2, 1), truth.task(planted, 3, 2, seed=1)
    tune = replace(tune, dropped={"empty prompt": 2, "clean and corrupted are the same": 1})
    found = find_circuit(planted, discover, tune, FindPlan("exact", controls=2))
    assert found.verified is not None and set(found.verified.disagree.values()) == {"and"}
    (said,) = [warning for warning in found.warnings if "in one direction only" in warning]
    assert "embed->v.0.3 (AND)" in said
    assert "3 of 9 pairs of tune were left out: empty prompt (2); clean and corrupted are the same (1)" in found.warnings


def test_exact_scores_need_no_gradient():
    truth = TRUTHS.get("previous")
    planted = truth.model()
    task = truth.task(planted, 3, 2)
    found = scored(planted, task, FindPlan("exact", metric="rank"), lambda *_: None)
    edges = [found.graph.name(cell) for cell in found.graph.cells.tolist()]
    assert torch.equal(found.values, exact_edges(planted, task, edges, metric="rank").float()) and not found.warnings
    assert found.clean.max() == 0 < found.corrupted.min() and found.scores.min() < 0  # more are above when it is cut


def test_relevance_finds_edges_where_nothing_acts_through_queries():
    truth = TRUTHS.get("previous")
    planted = truth.model()
    data = [truth.task(planted, 4, 2, seed=seed) for seed in (0, 1)]
    found = find_circuit(planted, *data, FindPlan("relevance", controls=2, verify=0))
    assert set(truth.edges) <= set(found.parts) and found.plan.level == "edge"
    assert level_of("relevance") == level_of("atp") == "node" and level_of("relevance", "edge") == level_of("eap") == "edge"


def test_of_a_large_graph_no_circuit_is_chosen_that_is_more_than_a_fifth():
    pairs = [f"t{n}" for n in range(8)]
    clean, shares = np.ones(8), (0.1, 0.2, 0.5)
    curve = faithfulness_of(np.outer([0.3, 0.5, 0.9], clean), clean, np.zeros(8), pairs, n_edges=[100, 200, 500], n_all=1000,
                            selection="abs", nominal=shares)  # fmt: skip
    assert _smallest(curve, 0.4, 0.2) == (1, []) and _smallest(curve, 0.85, 1.0) == (2, [])
    chosen, (said,) = _smallest(curve, 0.85, 0.2)
    assert chosen == 1 and said.startswith("no circuit of up to 20% of all edges reaches 85%")
    assert set(GRID[:-1]) < set(EDGE_GRID)


@pytest.mark.parametrize("plan, message", [
    (FindPlan("acdc"), "method"), (FindPlan("atp"), "node"), (FindPlan(level="head"), "level"),
    (FindPlan(target=0.0), "target"), (FindPlan("eap", steps=3), "eap-ig alone"),
])  # fmt: skip
def test_plans_that_cannot_be_carried_out_are_refused(plan, message):
    with pytest.raises(UsageError, match=message):
        plan.check()


@pytest.mark.parametrize("method", ["eap", "eap-ig"])
def test_what_a_sum_over_positions_hides_is_said(method, tmp_path):
    truth = TRUTHS.get("opposite")
    planted = truth.model()
    found = find_circuit(planted, truth.task(planted, seed=0), truth.task(planted, seed=1), FindPlan(method, verify=0))
    assert set(found.parts) == set(truth.edges)
    (said,) = [warning for warning in found.warnings if "cancel over positions" in warning]
    assert said.startswith("1 edges outside") and truth.cancels[0] in said
    kept = KeptScores(tmp_path, "a" * 40)
    kept.put(found.attribution)
    again = kept.get(found.graph)
    assert again is not None and again.sizes is not None and found.attribution.sizes is not None
    assert torch.equal(again.sizes, found.attribution.sizes)
    exact = exact_edges(planted, truth.task(planted, seed=0), truth.cancels, "noise")
    assert float(exact.abs().mean()) < 0.05 * float(again.sizes[again.names.index(truth.cancels[0])])


def test_where_nothing_cancels_nothing_is_said():
    truth = TRUTHS.get("induction-4")
    planted = truth.model()
    found = find_circuit(planted, truth.task(planted, seed=0), truth.task(planted, seed=1), FindPlan("eap", verify=0))
    assert not [warning for warning in found.warnings if "cancel" in warning]


@pytest.mark.parametrize("subject", ["z.1.0", TRUE])
def test_a_claim_about_prompts_that_begin_with_bos_twice_is_refused(subject, source):
    planted = planted_induction()
    planted.prepend_bos, planted.bos_id = True, planted.tokenizer.convert_tokens_to_ids("w0")
    doubled = {split: [replace(pair, clean=f"w0 {pair.clean}", corrupted=f"w0 {pair.corrupted}")
                       for pair in source.items(split, n, 0)]
               for split, n in (("tune", 16), ("confirm", 40), ("ood", 36))}  # fmt: skip
    with pytest.raises(DoubledBos, match="begins with BOS twice"):
        state_claim(MemoryStore(), planted, MemorySource("doubled", doubled), subject, settings=SETTINGS)
