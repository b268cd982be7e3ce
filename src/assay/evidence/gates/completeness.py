"""Completeness and equivalence: is the subject the whole story, and does it act like the whole model?

1. Completeness: what is left of the metric when the subject is resample-ablated. Contrast per pair:
   1 - ablated / mean clean metric; above .8 means that less than a fifth is left (IOI completeness; Shi et al.).
2. Isolation: the clean prompt with every other unit of the kind at its corrupted value. Contrast per pair:
   share of the effect that is kept.
3. Equivalence: the share of pairs on which the isolated subject beats the whole model lies inside
   1/2 +- .1. Two one-sided tests: the share is above .4, and 1 - the share is. A difference below one
   percent of the effect is a tie, and counts half. Only both together show equivalence; one that fails
   shows nothing (Schuirmann 1987).

Reported, not required: a set of units may carry a task without being all of it.
"""

from statistics import median

from assay.evidence.gates.base import Columns, Contrast, Gate, Table, column, difference, mean, register, span
from assay.records import GatePlan

KINDS = ("mediates",)
TIE = 0.01


def measure_left(instrument, gate: GatePlan) -> Columns:
    """Resample ablation of the subject."""
    return {"clean": instrument.clean, "ablated.resample": instrument.ablated(instrument.units, "resample")}


def measure_isolated(instrument, gate: GatePlan) -> Columns:
    """Resample ablation of everything of the kind but the subject, on the control pairs."""
    return {"clean": instrument.clean, "corrupted": instrument.corrupted,
            "isolated": instrument.ablated(instrument.complement, "resample", controls=True)}  # fmt: skip


def completeness(table: Table, gate: GatePlan) -> Contrast:
    """1 - what is left without the subject, in shares of the clean metric. KeyError without a margin."""
    whole = mean(column(table, "clean"))
    if whole <= 0:
        raise KeyError("no margin")
    return Contrast([None if left is None else 1 - left / whole for left in column(table, "ablated.resample")])


def isolation(table: Table, gate: GatePlan) -> Contrast:
    """Share of the effect that the subject keeps on its own."""
    return Contrast(difference(column(table, "isolated"), column(table, "corrupted"), span(table)))


def wins(table: Table) -> tuple[list[float | None], float]:
    """Per pair 1 where the isolated subject beats the whole model, .5 for a tie; median size of the gap."""
    gaps = difference(column(table, "isolated"), column(table, "clean"), span(table))
    values = [None if gap is None else 0.5 if abs(gap) < TIE else float(gap > 0) for gap in gaps]
    return values, median([abs(gap) for gap in gaps if gap is not None] or [0.0])


def at_least(table: Table, gate: GatePlan) -> Contrast:
    """The win share, to be above .4."""
    values, gap = wins(table)
    return Contrast(values, notes={"median_gap": gap})


def at_most(table: Table, gate: GatePlan) -> Contrast:
    """1 - the win share, to be above .4."""
    values, gap = wins(table)
    return Contrast([None if value is None else 1 - value for value in values], notes={"median_gap": gap})


register(Gate("completeness", "completeness", KINDS, 0.8, False, measure_left, completeness))
register(Gate("isolation", "isolation", KINDS, 0.2, False, measure_isolated, isolation))
register(Gate("equivalence.least", "equivalence", KINDS, 0.4, False, measure_isolated, at_least))
register(Gate("equivalence.most", "equivalence", KINDS, 0.4, False, measure_isolated, at_most))
