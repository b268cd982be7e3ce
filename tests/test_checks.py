"""The public check suite, over every kind that is calibrated: no required gate without a truth it passes and a
falsehood it stops; and on a gate of one's own."""

import re
from pathlib import Path

import pytest

from assay.calibrate import CALIBRATIONS
from assay.evidence.features import direction
from assay.evidence.gates import GATES, Contrast, Gate, gates_for
from assay.evidence.gates.base import column
from assay.evidence.kinds import KINDS
from assay.evidence.run import Settings
from assay.evidence.search import SEARCHES
from assay.testing import planted_world
from assay.testing.checks import Planted, check_gate, check_pure, tried

pytestmark = pytest.mark.whole
ELSEWHERE = {"right_sign"}  # required of "usually" and "always" only: tests/test_mediates_gates.py


def planted(kind, family):
    calibration = CALIBRATIONS.get(kind)
    case = family.make(3)
    return Planted(calibration.kind, case.model, case.source, case.subject, family.settings or calibration.settings)


@pytest.mark.parametrize("kind", CALIBRATIONS.names())
def test_every_required_gate_passes_a_truth_and_stops_a_falsehood(kind):
    families = CALIBRATIONS.get(kind).families
    true = tried(planted(kind, next(family for family in families if family.truth == "true")))
    required = [gate.name for gate in true.plan.gates if gate.required and gate.name not in ELSEWHERE]
    level = true.plan.levels["confirm"]
    assert required and all(true.gate(name).p_above <= level for name in required)
    check_pure(true, required)
    unstopped = set(required)
    for family in families:
        if family.truth in ("null", "false") and unstopped:
            false = tried(planted(kind, family))
            measured = {gate.name for gate in false.evidence.gates}
            unstopped -= {name for name in unstopped & measured if false.gate(name).p_above > level}
    assert unstopped <= STOPPED_ELSEWHERE.get(kind, set()), f"no falsehood is stopped by {sorted(unstopped)}"


# required gates whose falsehood is in the tests of the kind, not among the calibration's families
STOPPED_ELSEWHERE: dict[str, set[str]] = {}


def share_above(table, gate):
    return Contrast([float(value > 0.5) if value is not None else None for value in column(table, "score")])


def test_a_gate_of_ones_own_is_checked_the_same_way():
    world = planted_world(0)
    settings = Settings(tune=96, confirm=240, ood=168, draws=3)
    good = Planted("represents", world.world, world.source, direction(world.world.site, world.concept), settings)
    bad = Planted("represents", world.world, world.source, direction(world.world.site, -world.concept), settings)
    gate = Gate("share.above", "mine", ("represents",), 0.3, False, lambda i, g: {"score": i.score()}, share_above)
    GATES.add(gate.name, gate)
    try:
        assert gate in gates_for("represents")
        check_gate("share.above", good, bad)
        with pytest.raises(AssertionError, match="the planted truth does not pass"):
            check_gate("share.above", bad, good)
    finally:
        GATES.remove(gate.name)


def test_the_code_on_the_page_of_evidence_runs():
    """A gate, a kind and a search of one's own, and controls without any claim."""
    page = (Path(__file__).parent.parent / "docs" / "evidence.md").read_text()
    known = [registry.names() for registry in (GATES, KINDS, SEARCHES)]
    try:
        exec("\n".join(re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)), {"__name__": "page"})
        assert len(GATES.names()) > len(known[0]) and "longer" in KINDS
    finally:
        for registry, names in zip((GATES, KINDS, SEARCHES), known, strict=True):
            for name in set(registry.names()) - set(names):
                registry.remove(name)
