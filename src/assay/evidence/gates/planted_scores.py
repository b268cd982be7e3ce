"""A planted truth and a planted falsehood through the same instrument, for kinds that score examples.

1. True: the labels are written into the activations along a random direction; read along it, members
   must rank above non-members.
2. False: shuffled labels are written in; read along the same direction, members must not.

Where either is significantly wrong the instrument is broken, and the claim gets no verdict.
"""

from assay.evidence.gates.base import Columns, Contrast, Gate, Table, register
from assay.evidence.gates.detection import KINDS, placed
from assay.records import GatePlan


def measure_true(instrument, gate: GatePlan) -> Columns:
    """Scores of a direction that carries the labels."""
    return {"label": instrument.labels(), "planted.true": instrument.planted(True)}


def measure_false(instrument, gate: GatePlan) -> Columns:
    """Scores of a direction that carries shuffled labels."""
    return {"label": instrument.labels(), "planted.false": instrument.planted(False)}


def true(table: Table, gate: GatePlan) -> Contrast:
    """Placement under the planted truth."""
    return Contrast(placed(table, "planted.true"))


def false(table: Table, gate: GatePlan) -> Contrast:
    """1 - placement under the planted falsehood."""
    return Contrast([None if value is None else 1 - value for value in placed(table, "planted.false")])


register(Gate("planted.true", "instrument", KINDS, 0.7, False, measure_true, true))
register(Gate("planted.false", "instrument", KINDS, 0.3, False, measure_false, false))
