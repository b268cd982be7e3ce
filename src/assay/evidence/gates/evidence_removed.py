"""Text-evidence removal: does the monitor still find members whose text no longer says so?

1. The words that state it (given with the claim, or telling on tune) are taken out of all texts, which are then
   read again by the monitor, and by a reading of the words that was fitted on tune texts without them.
2. Contrast per member: placement under the monitor minus that under the words.

A monitor that reads the statement falls to the level of the words here. (Leakage of textual evidence: 2509.21344.)
"""

from assay.evidence.gates.base import Columns, Contrast, Gate, Table, column, difference, mean, register
from assay.evidence.gates.detection import placed
from assay.records import GatePlan

KINDS = ("detects",)
COLUMNS = ("label", "score.redacted", "lexical.redacted")


def measure(instrument, gate: GatePlan) -> Columns:
    """Labels, and both scores on the texts that are left."""
    return {"label": instrument.labels(), **instrument.redacted()}


def contrast(table: Table, gate: GatePlan) -> Contrast:
    """Placement minus that of the words, where the telling words are gone."""
    kept = [row for row, score in enumerate(column(table, "score.redacted")) if score is not None]
    left = {"templates": [table["templates"][row] for row in kept],
            "columns": {name: [column(table, name)[row] for row in kept] for name in COLUMNS}}  # fmt: skip
    own, words = placed(left, "score.redacted"), placed(left, "lexical.redacted")
    values: list[float | None] = [None] * len(table["templates"])
    for row, gain in zip(kept, difference(own, words), strict=True):
        values[row] = gain
    return Contrast(values, notes={"monitor": mean(own), "words": mean(words), "nothing_left": len(values) - len(kept)})


register(Gate("evidence_removed", "lexical", KINDS, 0.0, True, measure, contrast,
              says="with the telling words gone it beats the words by {estimate}"))  # fmt: skip
