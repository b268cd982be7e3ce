"""Rival circuits: does another circuit do as well?

1. The rival is named with the claim: usually the circuit that the same search finds when the claimed edges are
   forbidden. It is restored alone, as the claimed one is.
2. Contrast per pair: what the claimed circuit restores minus what the rival does.

Reported, not required: a rival as good does not make a claim false, it makes it *non-unique*. That no
rival was named, or that this one does worse, does not show that there is none.
"""

from assay.evidence.gates.base import Columns, Contrast, Gate, Table, column, difference, register, span
from assay.records import GatePlan

KINDS = ("mediates",)


def measure(instrument, gate: GatePlan) -> Columns:
    """The metric with only the claimed circuit, and with only the rival."""
    found = instrument.rivals(instrument.setup.rivals)
    if not found:
        return {}
    return {"restored": instrument.restored(instrument.units), "rival.restored": found[0]}


def contrast(table: Table, gate: GatePlan) -> Contrast:
    """Claimed minus rival, in shares of the effect."""
    rival = column(table, "rival.restored")
    return Contrast(difference(column(table, "restored"), rival, span(table)))


register(Gate("rival.circuit", "rival", KINDS, 0.0, False, measure, contrast,
              says="it restores {estimate} more than the rival circuit"))  # fmt: skip
