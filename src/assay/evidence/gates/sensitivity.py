"""Sensitivity: does the score miss members?

1. The threshold is the one that one in twenty non-members passes on tune.
2. Contrast per member: 1 where it fires.

Holes show here: a feature that fires on some members only is at best about a part of the concept.
"""

from assay.evidence.gates.base import Columns, Contrast, Gate, Table, column, register
from assay.records import GatePlan

KINDS = ("represents", "explains")


def measure(instrument, gate: GatePlan) -> Columns:
    """Label and firing at the strict threshold."""
    return {"label": instrument.labels(), "fires.strict": instrument.fires(instrument.setup.strict)}


def contrast(table: Table, gate: GatePlan) -> Contrast:
    """Whether each member fires."""
    rows = zip(column(table, "label"), column(table, "fires.strict"), strict=True)
    return Contrast([fires if label == 1 else None for label, fires in rows])


register(Gate("sensitivity", "sensitivity", KINDS, 0.5, True, measure, contrast, bars={"explains": 0.6},
              says="it fires on {estimate} of members"))  # fmt: skip
