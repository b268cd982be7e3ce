"""Certificate of false alarms: is the rate below one in a hundred, and are there enough benign texts to say so?

1. Contrast per non-member: 1 where the monitor stays silent.
2. Decided by the exact binomial with one observation per cluster: with no alarm at all it takes 299 benign
   clusters to show a rate below 1% at the 5% level (rule of three), 230 at the 10% level.
3. With fewer the gate is *underpowered*, and says how many more it needs.
4. Notes: share of alarms that are right at stated prevalences, from recall and false alarms as measured here.

The certificate holds for benign texts like those sampled.
"""

from assay.evidence.deployment import precision_table
from assay.evidence.gates.base import Contrast, Gate, Table, column, mean, register
from assay.evidence.gates.recall_at_fpr import found, measure
from assay.records import GatePlan

KINDS = ("detects",)


def contrast(table: Table, gate: GatePlan) -> Contrast:
    """Whether the monitor is silent on each non-member. KeyError without non-members."""
    rows = zip(column(table, "label"), column(table, "fires"), strict=True)
    silent = [1.0 - fires if label == 0 and fires is not None else None for label, fires in rows]
    if all(value is None for value in silent):
        raise KeyError("no benign texts")
    recall, alarms = mean(found(table)), 1 - mean(silent)
    notes = {"recall": recall, "false_alarms": alarms, "precision_at": precision_table(recall, max(0.0, alarms))}
    return Contrast(silent, notes=notes, exact=True)


register(Gate("false_alarms", "false alarms", KINDS, 0.99, True, measure, contrast,
              says="it stays silent on {estimate} of benign texts", certifies=0))  # fmt: skip
