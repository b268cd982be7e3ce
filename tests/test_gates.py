"""Gates on tables made by hand: what only this gate stops. No model, no store."""

import numpy as np
import pytest

from assay.evidence.gates import evaluate, get_gate
from assay.evidence.verdicts import broken_instrument
from test_verdicts import PLAN

TEMPLATES = [f"t{row // 4}" for row in range(48)]


def judged(name, **columns):
    """A gate on 12 templates of 4 items. Columns are named with _ for a dot."""
    table = {"templates": TEMPLATES, "words": None, "columns": {key.replace("_", "."): list(map(float, value))
                                                                 for key, value in columns.items()}}  # fmt: skip
    found = evaluate(get_gate(name).plan(), "confirm", table, 0.05, 0)
    assert found is not None
    return found


def noise(seed=0):
    return np.random.default_rng(seed).standard_normal(48) * 0.1


def behaviour(clean, corrupted):
    """Which behaviour gates pass."""
    gates = {name: judged(f"behaviour.{name}", clean=clean, corrupted=corrupted) for name in ("margin", "accuracy", "span")}
    return {name for name, gate in gates.items() if gate.p_above <= 0.05}


def test_a_behaviour_passes_all_three():
    assert behaviour(2 + noise(), -2 + noise(1)) == {"margin", "accuracy", "span"}


def test_margin_alone_stops_a_few_hugely_wrong_prompts():
    """Three of four prompts are right by a little, one is wrong by a lot."""
    clean = np.where(np.arange(48) % 4 == 0, -6.0, 0.5) + noise()
    assert behaviour(clean, -9 + noise(1)) == {"accuracy", "span"}


def test_accuracy_alone_stops_a_few_hugely_right_prompts():
    """One of four prompts is right by a lot, the others are wrong by a little."""
    clean = np.where(np.arange(48) % 4 == 0, 9.0, -0.5) + noise()
    assert behaviour(clean, -9 + noise(1)) == {"margin", "span"}


def test_span_alone_stops_a_corruption_that_changes_nothing():
    assert behaviour(2 + noise(), 2 + noise(1)) == {"margin", "accuracy"}


@pytest.mark.parametrize(("name", "share"), [("background.bare", 0.0), ("background.exchanged", 1.0)])
def test_a_channel_that_sees_the_background_is_stopped(name, share):
    """Fires on as many pictures as one that sees the thing does (bare: none; exchanged: all), or the other way round."""
    fires = f"fires_{name.partition('.')[2]}"
    sees, stands = judged(name, **{fires: np.full(48, share)}), judged(name, **{fires: np.full(48, 1 - share)})
    assert (sees.estimate, stands.estimate) == (1, 0) and sees.p_above < 0.01
    assert stands.p_above > 0.5 and stands.p_below < 0.01


@pytest.mark.parametrize("name, good, bad", [("planted.true", 1.0, 0.0), ("planted.false", 0.0, 1.0)])
def test_a_planted_truth_read_as_false_breaks_the_instrument(name, good, bad):
    """Labels alternate; the planted score follows them (true) or runs against nothing (false)."""
    labels = np.arange(48) % 2
    column = name.replace(".", "_")
    fine = judged(name, label=labels, **{column: good * labels * 4 + noise()})
    broken = judged(name, label=labels, **{column: (bad * 8 - 4) * labels + noise()})
    assert not [note for note in broken_instrument(PLAN, [fine], 0.05) if note.startswith(name)]
    assert [note for note in broken_instrument(PLAN, [broken], 0.05) if note.startswith(name)]


def test_a_planned_instrument_gate_that_was_not_measured_breaks_the_instrument():
    from dataclasses import replace

    plan = replace(PLAN, gates=(*PLAN.gates, get_gate("planted.true").plan(), get_gate("planted.everything").plan()))
    assert broken_instrument(plan, [], 0.05) == ("planted.true was not measured on confirm",)


def test_random_sufficiency_alone_stops_what_random_sets_restore_as_well():
    """Ablating the subject drops the metric and ablating random sets does not; both restore it alike."""
    clean, corrupted = 2 + noise(), -2 + noise(1)
    drops = judged("random.necessity", clean=clean, corrupted=corrupted, ablated_resample=noise(2), random_ablated_00=clean)
    columns = {"clean": clean, "corrupted": corrupted, "restored": 1 + noise(3), "random_restored_00": -2 + noise(4)}
    alone = judged("random.sufficiency", **columns)
    alike = judged("random.sufficiency", **{**columns, "random_restored_01": 1 + noise(5)})
    assert drops.p_above <= 0.05 and alone.p_above <= 0.05
    assert alike.p_above > 0.05 and alike.tables["strongest"] == "random.restored.01"


def test_a_rival_that_ranks_as_well_is_not_beaten():
    """The claimed unit and its rival tell members apart alike; a rival that tells nothing is beaten."""
    labels = np.arange(48) % 2
    score = 4 * labels + noise()
    beaten = judged("rival", label=labels, score=score, rival_a=noise(1))
    alike = judged("rival", label=labels, score=score, rival_a=noise(1), rival_b=4 * labels + noise(2))
    assert beaten.p_above <= 0.05 < alike.p_above


def test_discrimination_is_held_against_the_rival_that_is_best_over_all_templates():
    """Ten of twelve templates are told apart by the feature; one rival tells eight, others four each. Which template is which
    does not matter, nor that in some the rival does better."""
    labels, number = np.arange(48) % 2, np.arange(48) // 4
    score = labels * np.isin(number, np.arange(10))
    weak = {f"nearest_{k}": labels * (number % 3 == k) for k in range(3)}
    strong = labels * (number >= 4)
    found = judged("discrimination", label=labels, score=score, **weak, nearest_9=strong)
    assert found.estimate == pytest.approx((10 - 8) / 12 / 2) and found.tables["rival"] == "nearest.9"
    assert found.p_above > 0.05 >= judged("discrimination", label=labels, score=score, **weak).p_above


def test_discrimination_does_not_depend_on_how_many_members_a_template_has():
    """A rival that is on at a third of the members is beaten, with one member in a template as with four."""
    for members in (1, 4):
        labels = np.tile(np.r_[np.ones(members), np.zeros(4)], 24)
        table = {"templates": [f"t{row // (members + 4)}" for row in range(len(labels))], "words": None}
        draw = np.random.default_rng(members)
        columns = {f"nearest.{k}": (labels * (draw.random(len(labels)) < 0.33)).tolist() for k in range(9)}
        table["columns"] = {"label": labels.tolist(), "score": labels.tolist(), **columns}
        found = evaluate(get_gate("discrimination").plan(), "confirm", table, 0.05, 0)
        assert found is not None and found.p_above <= 0.05


def test_a_rival_circuit_that_restores_as_well_is_not_beaten():
    columns = {"clean": 2 + noise(), "corrupted": -2 + noise(1), "restored": 1.5 + noise(2)}
    beaten = judged("rival.circuit", **columns, rival_restored=-1 + noise(3))
    alike = judged("rival.circuit", **columns, rival_restored=1.5 + noise(4))
    assert beaten.p_above <= 0.05 < alike.p_above


@pytest.mark.parametrize("how", ["mean", "zero"])
def test_a_circuit_that_needs_what_both_prompts_share_is_not_kept_alone(how):
    columns = {"clean": 2 + noise(), f"cut_{how}": -2 + noise(1)}
    alone = judged(f"kept_alone.{how}", **columns, **{f"kept_{how}": 1 + noise(2)})
    needy = judged(f"kept_alone.{how}", **columns, **{f"kept_{how}": -2 + noise(3)})
    assert alone.p_above <= 0.05 < needy.p_above and alone.estimate == pytest.approx(0.75, abs=0.05)


@pytest.mark.parametrize("name, column", [("erasure.nothing", "exchanged_nothing"), ("steering.nothing", "added_nothing")])
def test_an_edit_that_should_change_nothing_and_does_breaks_the_instrument(name, column):
    clean, corrupted = 2 + noise(), -2 + noise(1)
    still, moved = (judged(name, clean=clean, corrupted=corrupted, **{column: clean - step}) for step in (0.0, 1.0))
    assert still.estimate == pytest.approx(1) and moved.estimate == pytest.approx(0.75, abs=0.02)
    assert not [note for note in broken_instrument(PLAN, [still], 0.05) if note.startswith(name)]
    assert [note for note in broken_instrument(PLAN, [moved], 0.05) if note.startswith(name)]


def test_an_edge_has_a_span_and_a_share_of_what_its_writer_brings():
    """Half of what changes in the reader comes from the writer; a corruption that changes nothing is nothing to explain."""
    whole = judged("edge.whole", edge_change=2 + noise(), edge_whole=1 + noise(1))
    assert whole.estimate == pytest.approx(0.5, abs=0.05) and whole.p_above <= 0.05
    assert judged("edge.span", clean=2 + noise(), corrupted=-2 + noise(1)).p_above <= 0.05
    assert judged("edge.span", clean=2 + noise(), corrupted=2 + noise(1)).p_above > 0.05
