"""Precision over all deciles of firing examples, not over the strongest few.

1. Examples that pass the threshold (half of the members do, on tune) are all looked at, from the
   weakest to the strongest, so that every decile of the activation weighs the same.
2. Contrast per firing example: 1 for a member, 0 for a non-member.

The value depends on how many members the examples have; the record keeps that share.
"""

from assay.evidence.gates.base import Columns, Contrast, Gate, Table, column, mean, register
from assay.records import GatePlan

KINDS = ("represents", "explains")


def measure(instrument, gate: GatePlan) -> Columns:
    """Label and firing of every example."""
    return {"label": instrument.labels(), "fires": instrument.fires(instrument.setup.half)}


def contrast(table: Table, gate: GatePlan) -> Contrast:
    """The label of every firing example."""
    label = column(table, "label")
    values = [given if fires == 1 else None for given, fires in zip(label, column(table, "fires"), strict=True)]
    return Contrast(values, notes={"share_of_members": mean(label)})


register(Gate("precision", "precision", KINDS, 0.8, True, measure, contrast, bars={"explains": 0.6},
              says="{estimate} of what it fires on are members"))  # fmt: skip
