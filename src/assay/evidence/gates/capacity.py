"""Capacity: does the answer depend on how strong the probe is?

1. The same property read by a difference of class means and by a small MLP, fitted on the same tune examples; and by the
   claim's own probe fitted on half of the tune words (`capacity.half`): does it still grow with the sample?
2. Contrast per member: its placement under that probe.
3. `code_length`: bits saved per label against coding labels at their rate on tune. Units come in blocks, each
   coded by a linear probe fitted on what came before (Voita & Titov 2020).

Reported. A property that only the MLP reads is there in a form that a linear claim does not describe; one that
the difference of means reads needs no fitting to be found.
"""

from collections.abc import Callable

from assay.evidence.gates.base import Columns, Contrast, Gate, Table, column, mean, register
from assay.evidence.gates.detection import placed
from assay.records import GatePlan

KINDS = ("decodes",)


def measure(instrument, gate: GatePlan) -> Columns:
    """Labels, and the score of every probe of other capacity."""
    return {"label": instrument.labels(), **instrument.of(instrument.setup.capacity, "capacity")}


def _under(probe: str) -> Callable[[Table, GatePlan], Contrast]:
    return lambda table, gate: Contrast(placed(table, f"capacity.{probe}"))


def measure_code(instrument, gate: GatePlan) -> Columns:
    """Bits per label under the online code, and at the rate of members on tune."""
    return instrument.code()


def code_length(table: Table, gate: GatePlan) -> Contrast:
    """Bits saved per label."""
    spent, plain = column(table, "bits"), column(table, "bits.rate")
    saved = [None if a is None or b is None else b - a for a, b in zip(spent, plain, strict=True)]
    return Contrast(saved, notes={"bits": mean(spent), "bits_at_rate": mean(plain)})


register(Gate("capacity.mean", "capacity", KINDS, 0.7, False, measure, _under("mean"),
              says="a difference of means ranks a member above a non-member {estimate} of the time"))  # fmt: skip
register(Gate("capacity.mlp", "capacity", KINDS, 0.7, False, measure, _under("mlp"),
              says="a small MLP ranks a member above a non-member {estimate} of the time"))  # fmt: skip
register(Gate("capacity.half", "capacity", KINDS, 0.7, False, measure, _under("half"),
              says="fitted on half of the words it ranks a member above a non-member {estimate} of the time"))  # fmt: skip
register(Gate("code_length", "capacity", KINDS, 0.0, False, measure_code, code_length,
              says="it saves {estimate} of a bit per label"))  # fmt: skip
