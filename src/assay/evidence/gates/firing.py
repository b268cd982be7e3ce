"""Firing on non-members: is the score broader than the concept?

1. The threshold is the one that half of the members pass on tune.
2. Contrast per non-member: 1 where it stays below, 0 where it fires. `near_miss` looks at the negatives
   that look like members, `firing` at all others.

A unit with two unrelated meanings ranks members well and still fires elsewhere: this is the gate that
stops it.
"""

from assay.evidence.gates.base import Columns, Contrast, Gate, Table, column, register
from assay.records import GatePlan

KINDS = ("represents",)


def measure(instrument, gate: GatePlan) -> Columns:
    """Where the score passes the threshold, and which examples are near misses."""
    return {"label": instrument.labels(), "near": instrument.near(),
            "fires": instrument.fires(instrument.setup.half)}  # fmt: skip


def _silent(near: bool):
    def contrast(table: Table, gate: GatePlan) -> Contrast:
        rows = zip(column(table, "label"), column(table, "near"), column(table, "fires"), strict=True)
        values = [1.0 - fires if label == 0 and bool(close) == near and fires is not None else None
                  for label, close, fires in rows]  # fmt: skip
        if all(value is None for value in values):
            raise KeyError("no such examples")
        return Contrast(values)

    return contrast


register(Gate("firing", "firing", KINDS, 0.9, True, measure, _silent(near=False),
              says="it stays silent on {estimate} of non-members"))  # fmt: skip
register(Gate("near_miss", "firing", KINDS, 0.9, True, measure, _silent(near=True),
              says="it stays silent on {estimate} of near misses"))  # fmt: skip
