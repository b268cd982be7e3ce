"""Detection: does the score rank members above non-members?

1. Per member: the share of non-members of the same template that score below it (ties half).
2. Its mean over a template is that template's AUROC; the gate decides on templates.

Ranking members above non-members does not show that the score is high *only* for members: firing on
non-members, near misses, words and rivals have gates of their own.
"""

from assay.evidence.gates.base import Columns, Contrast, Gate, Table, column, register
from assay.records import GatePlan
from assay.statistics import placements

KINDS = ("represents", "decodes", "explains", "detects")


def measure(instrument, gate: GatePlan) -> Columns:
    """Label and score of every example."""
    return {"label": instrument.labels(), "score": instrument.score()}


def placed(table: Table, name: str = "score") -> list[float | None]:
    """Placement of every member under the score of that column."""
    return placements(column(table, name), column(table, "label"), table["templates"])


def contrast(table: Table, gate: GatePlan) -> Contrast:
    """Placement of every member."""
    return Contrast(placed(table))


register(Gate("detection", "detection", KINDS, 0.7, True, measure, contrast,
              says="it ranks a member above a non-member {estimate} of the time"))  # fmt: skip
