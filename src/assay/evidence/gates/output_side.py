"""Output side: does adding the feature make the model say what the claim says it says?

1. `output.shift`: rise of the log-odds of the words named by the claim, when the feature is added at the token that is read
   (`assay.evidence.output_side`), in nats against equally likely tokens.
2. `output.random`: that rise minus that of the strongest random direction of equal norm, on the first text of every template.

Planned only for claims that name words; then both decide. What reads a concept need not write it: a claim about the input
side alone names none. (FADE's faithfulness, Puri et al. 2025.)
"""

from assay.evidence.gates.base import Columns, Contrast, Gate, Table, column, difference, register
from assay.evidence.gates.erasure import against_strongest
from assay.evidence.output_side import OPTION
from assay.records import GatePlan

KINDS = ("represents", "explains")
PREFIX = "output.random."


def measure(instrument, gate: GatePlan) -> Columns:
    """Log-odds of the words before and after, and after random additions."""
    return instrument.output()


def rise(table: Table, gate: GatePlan) -> Contrast:
    """After minus before."""
    return Contrast(_risen(table, "output.after"))


def against_random(table: Table, gate: GatePlan) -> Contrast:
    """The rise minus that of the strongest random direction."""
    controls = {name: _risen(table, name) for name in sorted(table["columns"]) if name.startswith(PREFIX)}
    return against_strongest(_risen(table, "output.after"), controls)


def _risen(table: Table, name: str) -> list[float | None]:
    return difference(column(table, name), column(table, "output.before"))


register(Gate("output.shift", "output", KINDS, 0.0, True, measure, rise, asked=OPTION,
              says="added, it raises the log-odds of the words named by {estimate} of a nat"))  # fmt: skip
register(Gate("output.random", "random", KINDS, 0.0, True, measure, against_random, asked=OPTION,
              says="added, it raises those words by {estimate} of a nat more than the strongest random direction"))  # fmt: skip
