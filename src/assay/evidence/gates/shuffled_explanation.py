"""Shuffled explanation: does the rule explain this feature, or any feature?

1. The same rule is given to other units of the site, drawn at random, each with a threshold on tune at which it
   is on as often as the feature.
2. Contrast: balanced right or wrong (on where the rule says on, off where it says off) for the feature, minus that
   for the unit at the .95 quantile of the others.

A rule that fits a topic of the data fits every unit that follows the topic; this gate takes that away.
"""

import math

from assay.evidence.gates.base import Columns, Contrast, Gate, Table, column, difference, mean, register
from assay.evidence.gates.near_detection import balanced
from assay.records import GatePlan

KINDS = ("explains",)
QUANTILE = 0.95


def measure(instrument, gate: GatePlan) -> Columns:
    """What the rule says; where the feature is on, and where every other unit is."""
    return {"label": instrument.labels(), "fires": instrument.fires(instrument.setup.half),
            **instrument.of(instrument.setup.others, "other")}  # fmt: skip


def contrast(table: Table, gate: GatePlan) -> Contrast:
    """Balanced accuracy minus that of the unit at the quantile. KeyError when there is none."""
    label, templates = column(table, "label"), table["templates"]
    names = sorted(name for name in table["columns"] if name.startswith("other."))
    if not names:
        raise KeyError("other.")
    found = {name: balanced(column(table, name), label, label, templates) for name in names}
    means = {name: mean(values) for name, values in found.items()}
    order = sorted(names, key=means.__getitem__)
    barred = order[math.ceil(QUANTILE * len(order)) - 1]
    return Contrast(difference(balanced(column(table, "fires"), label, label, templates), found[barred]), means,
                    {"compared_with": barred, "draws": len(means)})  # fmt: skip


register(Gate("shuffled_explanation", "shuffled", KINDS, 0.05, True, measure, contrast,
              says="the rule fits it better than 95% of other features by {estimate}"))  # fmt: skip
