"""Sufficiency: does the subject alone bring the behaviour back?

1. Run the corrupted prompt with the subject set to its values in the clean run.
2. Contrast per pair: (restored - corrupted) / mean over the split of (clean - corrupted).
3. The complement gate restores everything of the same kind *except* the subject. It is reported:
   a high value next to a failed necessity gate means that the behaviour is carried twice.

Restoring shows that the subject's clean values are enough given the corrupted rest of the network;
what of the effect is not restored is the unexplained share.
"""

from assay.evidence.gates.base import Columns, Contrast, Gate, Table, column, difference, register, span
from assay.records import GatePlan

KINDS = ("mediates",)


def measure(instrument, gate: GatePlan) -> Columns:
    """The metric on corrupted prompts with the subject restored."""
    return {"restored": instrument.restored(instrument.units)}


def measure_complement(instrument, gate: GatePlan) -> Columns:
    """The metric on corrupted prompts with everything of the same kind but the subject restored."""
    return {"complement": instrument.restored(instrument.complement)}


def _recovered(name: str):
    def contrast(table: Table, gate: GatePlan) -> Contrast:
        return Contrast(difference(column(table, name), column(table, "corrupted"), span(table)))

    return contrast


register(Gate("sufficiency", "sufficiency", KINDS, 0.2, True, measure, _recovered("restored")))
register(Gate("complement", "complement", KINDS, 0.8, False, measure_complement, _recovered("complement")))
