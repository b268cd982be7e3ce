"""Kept alone: does a circuit do the task when everything outside of it is at its mean, or at zero?

1. Only the circuit's edges carry what they should; all others carry means over clean prompts, or zeros.
2. Contrast per pair, on the first few pairs of every template: (kept - all edges cut) / mean of (clean - all edges cut).

Reported, not required: `sufficiency` asks the same with the corrupted run outside, which keeps all that the two
prompts share. A circuit found on minimal pairs usually needs it; one that does not stands on its own. Where
either is not above its bar, the verdict says so among what it does not show. Not measured for claims about units.
"""

from assay.evidence.gates.base import Columns, Contrast, Gate, Table, column, difference, mean, register
from assay.records import GatePlan

KINDS = ("mediates",)


def measure(instrument, gate: GatePlan) -> Columns:
    """The metric with only the claimed circuit, and with nothing, under one ablation."""
    how = gate.options["ablation"]
    found = instrument.alone(instrument.units, how)
    if found is None:
        return {}
    return {"clean": instrument.clean, f"kept.{how}": found[0], f"cut.{how}": found[1]}


def contrast(table: Table, gate: GatePlan) -> Contrast:
    """Share of the way from everything cut to the whole model. KeyError where that way has no length."""
    how = gate.options["ablation"]
    nothing = column(table, f"cut.{how}")
    size = mean(difference(column(table, "clean"), nothing))
    if size <= 0:
        raise KeyError("no effect")
    return Contrast(difference(column(table, f"kept.{how}"), nothing, size))


for _how, _where in (("mean", "its mean"), ("zero", "zero")):
    register(Gate(f"kept_alone.{_how}", "kept alone", KINDS, 0.2, False, measure, contrast, {"ablation": _how},
                  says=f"with everything else at {_where} it keeps {{estimate}} of the effect"))  # fmt: skip
