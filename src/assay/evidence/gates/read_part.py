"""Read part: is it the part of the subspace that later weights read that matters?

1. Behind some sites stands one matrix: the MLP's last projection behind `mlp_act.L`, attention's behind `z.L`, the unembedding
   behind the last `resid_post`. What lies in its null space cannot matter by itself.
2. The claimed subspace is projected on what the matrix reads (singular values above a thousandth of the largest), and only
   that part is exchanged with the corrupted run. Contrast: its drop, as a share of the effect.
3. A subspace that works because it joins a direction that varies and is not read with one that is read and never varies
   (Makelov et al. 2023) has no effect left here, while `erasure.resample` passes.

Reported: that such a subspace is an illusion is disputed (Wu et al. 2024). Not measured at sites where everything is read, or
where no single matrix reads.
"""

from assay.evidence.gates.base import Columns, Contrast, Gate, Table, register
from assay.evidence.gates.erasure import drop
from assay.records import GatePlan

KINDS = ("uses",)


def measure(instrument, gate: GatePlan) -> Columns:
    """The metric with the read part exchanged; nothing where everything, or nothing known, is read."""
    exchanged = instrument.read_part_exchanged()
    both = {"clean": instrument.clean, "corrupted": instrument.corrupted}
    return {} if exchanged is None else {**both, "exchanged.read": exchanged}


def contrast(table: Table, gate: GatePlan) -> Contrast:
    """Normalised drop."""
    return Contrast(drop(table, "exchanged.read"))


register(Gate("read_part", "read part", KINDS, 0.2, False, measure, contrast,
              says="exchanging only what later weights read of it removes {estimate} of the effect"))  # fmt: skip
