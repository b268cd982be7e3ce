"""Interchange: does exchanging the subspace change the answer to that of the other run?

1. `interchange.accuracy`: share of pairs in which the model prefers the answer as it runs, and the foil with the subspace at
   its value in the corrupted run: what it should say if the subspace carried the variable in which the two runs differ
   (interchange intervention accuracy, Geiger et al. 2021, 2024). Only a rotation stands between subspace and variable.
2. `interchange.random`: that minus the share under the best random subspace of equal rank, on the first pairs of every
   template. What a draw shares with the claimed subspace is taken out of it, or it would be a noisy copy of the claim.
3. `interchange.untrained`: that minus the share on an untrained twin, in a subspace fitted on tune to the twin (the leading
   directions of the differences between the runs). Maps that reach as much there say nothing of the model (Sutter et al. 2025).

Planned only for claims with the option `interchange`; then all three decide. `erasure.resample` asks for a share of the
log-odds; this asks whether answers change. Variables that the claim does not name are not tested.
"""

from assay.evidence.gates.base import Columns, Contrast, Gate, Table, column, difference, register
from assay.evidence.gates.erasure import against_strongest
from assay.records import GatePlan

KINDS = ("uses",)
OPTION = "interchange"
PREFIX = "random.exchanged."


def measure(instrument, gate: GatePlan) -> Columns:
    """The metric with the claimed subspace exchanged."""
    return {"clean": instrument.clean, "erased.resample": instrument.erased("resample")}


def measure_random(instrument, gate: GatePlan) -> Columns:
    """The same with random subspaces."""
    return {**measure(instrument, gate), **instrument.random_exchanges()}


def measure_untrained(instrument, gate: GatePlan) -> Columns:
    """The same on the untrained twin."""
    return {**measure(instrument, gate), **instrument.twin_exchanged()}


def accuracy(table: Table, gate: GatePlan) -> Contrast:
    """1 where the answer changes as it should."""
    return Contrast(changed(table, "erased.resample"))


def against_random(table: Table, gate: GatePlan) -> Contrast:
    """Minus the same under the best random subspace."""
    controls = {name: changed(table, name) for name in sorted(table["columns"]) if name.startswith(PREFIX)}
    return against_strongest(changed(table, "erased.resample"), controls)


def against_untrained(table: Table, gate: GatePlan) -> Contrast:
    """Minus the same on the untrained twin."""
    return Contrast(difference(changed(table, "erased.resample"), changed(table, "twin.exchanged", "twin.clean")))


def changed(table: Table, name: str, base: str = "clean") -> list[float | None]:
    """1 where the answer is preferred in the base run and the foil after the exchange."""
    rows = zip(column(table, base), column(table, name), strict=True)
    return [None if before is None or after is None else float(before > 0 > after) for before, after in rows]


register(Gate("interchange.accuracy", "interchange", KINDS, 0.5, True, measure, accuracy, asked=OPTION,
              says="exchanging it changes the answer in {estimate} of pairs"))  # fmt: skip
register(Gate("interchange.random", "random", KINDS, 0.05, True, measure_random, against_random, asked=OPTION,
              says="exchanging it changes {estimate} more answers than the best random subspace"))  # fmt: skip
register(Gate("interchange.untrained", "untrained", KINDS, 0.1, True, measure_untrained, against_untrained, asked=OPTION,
              says="exchanging it changes {estimate} more answers than a fitted one in an untrained model"))  # fmt: skip
