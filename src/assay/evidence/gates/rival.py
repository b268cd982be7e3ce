"""Rivals: do other units of the same site do as well?

1. On tune, the units that rank members best are chosen, the claimed one left out.
2. Contrast per member: placement under the claimed score minus that under the strongest rival.

Reported, not required: a rival as good does not make a claim false, it makes it *non-unique*.
"""

from assay.evidence.gates.base import Columns, Contrast, Gate, Table, register
from assay.evidence.gates.random_direction import against_strongest
from assay.records import GatePlan

KINDS = ("represents",)


def measure(instrument, gate: GatePlan) -> Columns:
    """The claimed score and that of every rival."""
    return {"label": instrument.labels(), "score": instrument.score(), **instrument.of(instrument.setup.rivals, "rival")}


def contrast(table: Table, gate: GatePlan) -> Contrast:
    """Placement minus that of the strongest rival."""
    return against_strongest(table, "rival.", both_signs=True)


register(Gate("rival", "rival", KINDS, 0.0, False, measure, contrast,
              says="it beats the best other unit by {estimate}"))  # fmt: skip
