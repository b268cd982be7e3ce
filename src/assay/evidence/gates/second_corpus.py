"""Second corpus: does the score rank members above non-members in texts of another source?

1. The corpus named by the claim's options (`assay.evidence.second_corpus`) is read with the score as it was fixed on tune.
2. Contrast per member of it: the share of non-members of its template that score below. Clusters are its own templates.

Planned only for claims that name a corpus; then it decides. Passing on two corpora is not passing on all. (Bolukbasi et al.
2021: single directions that mean another thing in every corpus.)
"""

from assay.evidence.gates.base import Columns, Contrast, Gate, Table, column, register
from assay.evidence.gates.detection import KINDS
from assay.evidence.second_corpus import OPTION
from assay.records import GatePlan
from assay.statistics import placements


def measure(instrument, gate: GatePlan) -> Columns:
    """Per text of the second corpus, not per item: label, score and the number of its template."""
    return instrument.second()


def contrast(table: Table, gate: GatePlan) -> Contrast:
    """Placement of every member of the second corpus."""
    templates = [f"template {number:g}" for number in column(table, "second.template")]
    placed = placements(column(table, "second.score"), column(table, "second.label"), templates)
    return Contrast(placed, clusters=templates)


register(Gate("second_corpus", "detection", KINDS, 0.7, True, measure, contrast, asked=OPTION,
              says="in the second corpus it ranks a member above a non-member {estimate} of the time"))  # fmt: skip
