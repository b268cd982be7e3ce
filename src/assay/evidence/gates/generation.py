"""Generation: do steered texts say what they should, and stay texts?

1. After corrupted prompts (two per template) the model writes `NEW_TOKENS` tokens, with the direction at its largest strength
   at every position. A text scores 2 where it matches the claim's regular expression, else 0; and 2, 1 or 0 for fluency under
   the model without steering, against what it writes there by itself. The harmonic mean of the two is 0 where either is.
2. Contrast: the score under the direction minus that of the strongest control: nothing added, or one of nine random directions
   of equal norm. What a plain instruction reaches is shown beside it, where the claim has one.

Planned only for claims with the option `generation`; then it decides. No judge is asked: the expression stands for the concept,
and whether texts follow an instruction, AxBench's third score, is not tested (Wu et al. 2025). The strength is the claim's own.
"""

from assay.evidence.gates.base import Columns, Contrast, Gate, Table, column, mean, register
from assay.evidence.gates.erasure import against_strongest
from assay.records import GatePlan

KINDS = ("steers",)
PREFIX = "generated.random."


def measure(instrument, gate: GatePlan) -> Columns:
    """Scores of steered texts and of the controls'."""
    return instrument.generated()


def contrast(table: Table, gate: GatePlan) -> Contrast:
    """Score of steered texts minus that of the strongest control."""
    controls = {name: column(table, name) for name in sorted(table["columns"]) if name.startswith(PREFIX)}
    steered, plain = column(table, "generated.steered"), column(table, "generated.plain")
    found = against_strongest(steered, {"plain": plain, **controls})
    told = table["columns"].get("generated.instructed")
    shown = {"steered": mean(steered), "plain": mean(plain), **({} if told is None else {"instructed": mean(told)})}
    return Contrast(found.values, found.per_control, {**found.notes, **shown})


register(Gate("generation", "generation", KINDS, 0.1, True, measure, contrast, asked="generation",
              says="steered texts score {estimate} more (of 2) than the strongest control"))  # fmt: skip
