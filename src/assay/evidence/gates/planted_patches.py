"""A planted truth and a planted falsehood through the instrument of circuit claims.

1. True: the corrupted run with everything patched to its clean values (the whole residual stream where the
   subject begins) must score like the clean run: it restores 1.
2. False: the corrupted run with the subject patched to the values it already has must change nothing: 0.
3. Each goes through a plain run and through the batched one that controls take; contrast per pair, the worse
   of the two: 1 - |metric - what it must be| / mean over the split of (clean - corrupted).

Where either is significantly wrong the instrument is broken, and the claim gets no verdict.
"""

from assay.evidence.gates.base import Columns, Contrast, Gate, Table, column, difference, register, span
from assay.records import GatePlan

KINDS = ("mediates",)
WAYS = ("", ".batched")


def measure_everything(instrument, gate: GatePlan) -> Columns:
    """Everything restored, both ways."""
    return _both(instrument, (instrument.everything(),), "restore", "everything")


def measure_nothing(instrument, gate: GatePlan) -> Columns:
    """The subject patched to its own values, both ways."""
    return _both(instrument, instrument.units, "same", "nothing")


def _both(instrument, units, how: str, name: str) -> Columns:
    (batched,) = instrument.many([units], how)
    return {"clean": instrument.clean, "corrupted": instrument.corrupted, f"planted.{name}.batched": batched,
            f"planted.{name}": instrument.patched(units, how)}  # fmt: skip


def _like(run: str, name: str):
    def contrast(table: Table, gate: GatePlan) -> Contrast:
        both = [difference(column(table, f"planted.{name}{way}"), column(table, run), span(table)) for way in WAYS]
        rows = zip(*both, strict=True)
        return Contrast([None if a is None or b is None else 1 - max(abs(a), abs(b)) for a, b in rows])

    return contrast


register(Gate("planted.everything", "instrument", KINDS, 0.95, False, measure_everything, _like("clean", "everything")))
register(Gate("planted.nothing", "instrument", KINDS, 0.95, False, measure_nothing, _like("corrupted", "nothing")))
