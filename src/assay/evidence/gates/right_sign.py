"""Per-prompt signs: does a mean hide prompts on which the effect is reversed?

1. A pair goes the right way when ablating the subject lowers its metric and restoring raises it.
2. Contrast per pair: 1 for the right way, 0 for the wrong one; the share must be above .9.

Required of claims that say *usually* or *always*, reported for those that say *tends*. Two opposite errors
that cancel in the mean show here (Scheurer et al. 2023 on causal scrubbing).
"""

from assay.evidence.gates.base import Columns, Contrast, Gate, Table, column, register
from assay.records import Claim, GatePlan

KINDS = ("mediates",)
COLUMNS = ("clean", "ablated.resample", "corrupted", "restored")


def measure(instrument, gate: GatePlan) -> Columns:
    """Both effects, by the columns of the gates that decide on them."""
    units = instrument.units
    return {"clean": instrument.clean, "ablated.resample": instrument.ablated(units, "resample"),
            "corrupted": instrument.corrupted, "restored": instrument.restored(units)}  # fmt: skip


def contrast(table: Table, gate: GatePlan) -> Contrast:
    """Whether both effects have the claimed sign."""
    rows = zip(*(column(table, name) for name in COLUMNS), strict=True)
    return Contrast([None if None in row else float(row[0] > row[1] and row[3] > row[2]) for row in rows])


def of_most(claim: Claim) -> bool:
    """Whether the claim is about most prompts, not about their mean."""
    return claim.quantifier in ("usually", "always")


register(Gate("right_sign", "per prompt", KINDS, 0.9, of_most, measure, contrast,
              says="{estimate} of the prompts go the claimed way"))  # fmt: skip
