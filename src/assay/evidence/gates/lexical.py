"""Words alone: is a surface cue enough?

1. A classifier that sees only the words (fitted on tune) scores the same examples.
2. Contrast per member: placement under the claimed score minus that under the words.

Where words do as well, the claim has to be reworded to the words: the verdict says *lexical*.
"""

from assay.evidence.gates.base import Columns, Contrast, Gate, Table, difference, register
from assay.evidence.gates.detection import placed
from assay.records import GatePlan

KINDS = ("represents", "decodes", "detects")


def measure(instrument, gate: GatePlan) -> Columns:
    """The claimed score and that of the words."""
    return {"label": instrument.labels(), "score": instrument.score(), "lexical": instrument.lexical()}


def contrast(table: Table, gate: GatePlan) -> Contrast:
    """Placement minus that of the words."""
    return Contrast(difference(placed(table), placed(table, "lexical")))


register(Gate("lexical", "lexical", KINDS, 0.0, True, measure, contrast, bars={"decodes": 0.05},
              says="it beats a reading of the words alone by {estimate}"))  # fmt: skip
