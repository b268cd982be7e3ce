"""The calibration of claims about edges: what is planted is what is measured, and what is not there is not found."""

from dataclasses import replace

import pytest

from assay.calibrate import CALIBRATIONS, calibrate
from assay.calibrate.base import LADDER, try_case
from assay.calibrate.edges import EMPTY, OTHER_READER, OTHER_WRITER, SURE, UNREAD
from assay.circuits.graph import graph_of
from assay.evidence.gates import gates_for
from assay.testing.edge_truth import TRUTHS
from assay.testing.llama_induction import EDGES

CALIBRATION = CALIBRATIONS.get("connects-edges")
FAMILY = {family.name: family for family in CALIBRATION.families}


def test_it_is_found_by_its_name_and_is_about_its_kind():
    assert CALIBRATION.kind == "connects" and CALIBRATION.label == "connects-edges"
    assert CALIBRATIONS.get("connects").label == "connects"
    assert CALIBRATION.binding in {gate.name for gate in gates_for("connects")}
    assert [family.effect for family in CALIBRATION.families if family.truth == "ladder"] == list(LADDER)
    assert sum(CALIBRATION.quick[family.truth] for family in CALIBRATION.families) <= 12


def test_true_edges_are_true_and_all_others_are_not():
    for seed in (0, 2, 12):
        case = FAMILY["true edge"].make(seed)
        assert case.subject in TRUTHS.get(SURE[seed % len(SURE)]).edges
    for seed in (0, 3, 6):
        case, truth = FAMILY["untrue"].make(seed), TRUTHS.get(TRUTHS.names()[seed])
        graph = graph_of(case.model)
        assert truth.asked(graph)[graph.edge(case.subject)] and not truth.mask(graph)[graph.edge(case.subject)]
        assert case.source.items("confirm", 4, 0)
    graph = graph_of(FAMILY["empty writer"].make(0).model)
    false = (*UNREAD, *OTHER_READER, *OTHER_WRITER)
    assert set(SURE) <= set(TRUTHS.names())
    assert all(graph.exists[graph.edge(edge)] for edge in false) and not {*false} & {*EDGES}
    assert all(FAMILY["empty writer"].make(seed).subject.split("->")[0] in EMPTY for seed in range(8))


@pytest.mark.whole
@pytest.mark.parametrize("name", ["untrue", "empty writer", "unread writer", "other reader", "other writer"])
def test_what_is_not_there_is_not_supported(name):
    assert try_case(CALIBRATION, FAMILY[name], 1).verdict != "supported"


@pytest.mark.whole
def test_the_ladder_is_climbed_and_its_truth_is_the_bar_at_one():
    low, high = (try_case(CALIBRATION, FAMILY[f"{effect:g} x SESOI"], 1) for effect in (0.5, 2.0))
    assert (low.verdict == "supported", high.verdict) == (False, "supported")
    assert try_case(CALIBRATION, FAMILY["true edge"], 1).verdict == "supported"
    for outcome in (low, high):
        assert outcome.gates["edge.effect"][0] == pytest.approx(outcome.truth["edge.effect"], abs=0.01)
    (bar,) = [gate.sesoi for gate in gates_for("connects") if gate.name == "edge.effect"]
    assert FAMILY["1 x SESOI"].make(0).truth["edge.effect"] == pytest.approx(bar)


@pytest.mark.whole
def test_both_calibrations_of_a_kind_are_kept_apart(tmp_path, monkeypatch):
    for name in ("connects", "connects-edges"):
        calibration = CALIBRATIONS.get(name)
        one = next(family for family in calibration.families if family.truth == "false")
        monkeypatch.setitem(CALIBRATIONS._items, name, replace(calibration, families=(one,)))
    found = calibrate(["connects", "connects-edges"], n=1, keep=tmp_path)["kinds"]
    assert list(found) == ["connects", "connects-edges"] and found["connects"] != found["connects-edges"]
    assert len(list(tmp_path.iterdir())) == 2
    assert {each["false"]["n"] for each in found.values()} == {1}


CIRCUITS = CALIBRATIONS.get("mediates-edges")
OF_CIRCUITS = {family.name: family for family in CIRCUITS.families}


def test_circuits_have_a_calibration_of_their_own():
    assert CIRCUITS.kind == "mediates" and CALIBRATIONS.get("mediates").label == "mediates"
    assert CIRCUITS.binding in {gate.name for gate in gates_for("mediates") if gate.required}
    for family in CIRCUITS.families:
        case = family.make(1)
        graph = graph_of(case.model)
        assert bool(graph.mask(case.subject).any()) and case.source.items("confirm", 4, 0)
    untrue, truth = OF_CIRCUITS["untrue edges"].make(2), TRUTHS.get(TRUTHS.names()[2])
    assert not {*untrue.subject} & {*truth.edges}
    (bar,) = [gate.sesoi for gate in gates_for("mediates") if gate.name == CIRCUITS.binding]
    assert OF_CIRCUITS["1 x SESOI"].make(0).truth["necessity.mean"] == pytest.approx(bar)


@pytest.mark.whole
def test_circuits_that_are_there_are_supported_and_broken_ones_are_not():
    outcome = try_case(CIRCUITS, OF_CIRCUITS["2 x SESOI"], 1)
    assert outcome.verdict == "supported"
    for gate, truth in outcome.truth.items():
        assert outcome.gates[gate][0] == pytest.approx(truth, abs=0.03)
    assert try_case(CIRCUITS, OF_CIRCUITS["broken path"], 1).verdict == "refuted"
    assert try_case(CIRCUITS, OF_CIRCUITS["0.5 x SESOI"], 1).verdict != "supported"
