"""Untrained twins: does the architecture alone explain it?

1. The same pipeline runs on twins whose weights were drawn again, one per scheme.
2. Contrast per member: placement minus that on the best twin (its sign chosen so that it is as good as it
   can be).

Signal in untrained networks is real where words are fixed per class: trained must be *better*, not
alone in having any. (Adebayo et al. 2018; Heap et al. 2025; Dead Salmons 2025.)
"""

from assay.evidence.gates.base import Columns, Contrast, Gate, Table, register
from assay.evidence.gates.random_direction import against_strongest
from assay.records import GatePlan

KINDS = ("represents", "decodes", "explains", "detects")


def measure(instrument, gate: GatePlan) -> Columns:
    """The claimed score and that of the same pipeline on every twin."""
    return {"label": instrument.labels(), "score": instrument.score(), **instrument.untrained()}


def contrast(table: Table, gate: GatePlan) -> Contrast:
    """Placement minus that on the best untrained twin."""
    return against_strongest(table, "untrained.", both_signs=True)


register(Gate("untrained", "untrained", KINDS, 0.05, True, measure, contrast,
              says="it is {estimate} better than in an untrained model"))  # fmt: skip
