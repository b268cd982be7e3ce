"""Is there a behaviour to explain?

1. Margin: the metric on clean prompts is above 0.
2. Accuracy: the answer beats the foil on more than half of the clean prompts.
3. Span: clean prompts score above their corrupted twins, so that effects can be normalised.

If any of them is not above its bar on confirm templates, the claim is *not tested*: there is nothing
it could be right or wrong about. None of them says anything about mechanism.
"""

from assay.evidence.gates.base import Columns, Contrast, Gate, Table, column, difference, register
from assay.records import GatePlan

KINDS = ("mediates", "uses")
SPAN_KINDS = (*KINDS, "steers")  # what steers may be a behaviour the model does not show by itself


def measure(instrument, gate: GatePlan) -> Columns:
    """The metric on clean and corrupted prompts."""
    return {"clean": instrument.clean, "corrupted": instrument.corrupted}


def margin(table: Table, gate: GatePlan) -> Contrast:
    """The metric itself."""
    return Contrast(list(column(table, "clean")))


def accuracy(table: Table, gate: GatePlan) -> Contrast:
    """1 where the answer wins, 0 where the foil does, minus the share right by guessing."""
    clean = column(table, "clean")
    return Contrast([None if value is None else float(value > 0) - 0.5 for value in clean])


def spread(table: Table, gate: GatePlan) -> Contrast:
    """Clean minus corrupted."""
    return Contrast(difference(column(table, "clean"), column(table, "corrupted")))


for _name, _contrast, _kinds in (("margin", margin, KINDS), ("accuracy", accuracy, KINDS), ("span", spread, SPAN_KINDS)):
    register(Gate(f"behaviour.{_name}", "behaviour", _kinds, 0.0, False, measure, _contrast, precondition=True))
