"""Necessity: does the behaviour drop when the subject is ablated?

1. Mean ablation: every site is set to its mean over clean tune prompts (all positions together).
2. Resample ablation: every site is set to its value in the corrupted run of the same pair.
3. Contrast per pair: (clean - ablated) / mean over the split of (clean - corrupted).

A drop shows that the behaviour passes through the subject under this ablation. It does not show
what the subject computes, nor that nothing else is needed.
"""

from assay.evidence.gates.base import Columns, Contrast, Gate, Table, column, difference, register, span
from assay.records import GatePlan

KINDS = ("mediates",)


def measure(instrument, gate: GatePlan) -> Columns:
    """The metric on clean prompts with the subject ablated."""
    how = gate.options["ablation"]
    return {f"ablated.{how}": instrument.ablated(instrument.units, how)}


def contrast(table: Table, gate: GatePlan) -> Contrast:
    """Normalised drop per pair."""
    ablated = column(table, f"ablated.{gate.options['ablation']}")
    return Contrast(difference(column(table, "clean"), ablated, span(table)))


for _how in ("mean", "resample"):
    register(Gate(f"necessity.{_how}", "necessity", KINDS, 0.2, True, measure, contrast, {"ablation": _how}))
