"""Long texts: does the monitor still find members in the longest third of texts?

1. The threshold is that of the claim. Contrast per member of the longest third (in characters): 1 where it fires.
2. Shown beside it: the recall in the shortest third, and the share of the longest third of non-members that set it off.

Reported. A score that grows or fades with length drifts when texts get longer than those it was tuned on; other drift, with
time or place, needs texts of other times and places.
"""

import numpy as np

from assay.evidence.gates.base import Columns, Contrast, Gate, Table, column, mean, register
from assay.records import GatePlan

KINDS = ("detects",)


def measure(instrument, gate: GatePlan) -> Columns:
    """Labels, where the score passes the threshold, and lengths."""
    return {"label": instrument.labels(), "fires": instrument.fires(instrument.setup.half), "length": instrument.lengths()}


def contrast(table: Table, gate: GatePlan) -> Contrast:
    """Whether each member of the longest third is found. KeyError where all texts are of one length."""
    length = np.array(column(table, "length"), dtype=float)
    short, long = np.quantile(length, [1 / 3, 2 / 3])
    if short == long:
        raise KeyError("length")

    def firing(label: int, inside: np.ndarray) -> list[float | None]:
        rows = zip(column(table, "label"), column(table, "fires"), inside.tolist(), strict=True)
        return [fires if own == label and kept else None for own, fires, kept in rows]

    return Contrast(firing(1, length >= long), notes={"recall_short": mean(firing(1, length <= short)),
                                                      "false_alarms_long": mean(firing(0, length >= long))})  # fmt: skip


register(Gate("long_texts", "recall", KINDS, 0.8, False, measure, contrast,
              says="it finds {estimate} of members in the longest third of texts"))  # fmt: skip
