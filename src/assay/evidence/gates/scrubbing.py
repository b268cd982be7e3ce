"""Scrubbing: is everything that the claim calls irrelevant really so?

1. The clean prompt is run with every unit of the subject's kind that is not claimed at its value in another prompt of the same
   length, one drawn for every unit (causal scrubbing, Chan et al. 2022). `scrubbing`: (scrubbed - corrupted) / mean over the
   split of (clean - corrupted), the share of the effect that is kept. From every pair bar * (its own effect - the mean effect)
   is taken, which is 0 over the split: at the bar, pairs whose effects differ are no noise (the test of a ratio, Fieller 1954).
2. `scrubbing.random`: that minus the share kept under the strongest random set of equal size in the subject's place, on the
   first pairs of every template.

Planned only for claims with the option `scrub`; then both decide. `sufficiency` takes all that is irrelevant from one corrupted
run, in which much is as it was; here nothing of one run stays together. Irrelevant parts of other kinds (MLPs, for a claim
about heads) are left as they are. A subject that is too large passes: scrubbing says nothing of padding.
"""

from assay.evidence.edges_instrument import is_circuit
from assay.evidence.gates.base import Columns, Contrast, Gate, Table, column, difference, register, span
from assay.evidence.gates.erasure import against_strongest
from assay.records import Claim, GatePlan

KINDS = ("mediates",)
OPTION = "scrub"
PREFIX = "random.scrubbed."


def about_units(claim: Claim) -> bool:
    """Edges have no values of their own that another prompt could give."""
    return not is_circuit(claim.subject["sites"])


def measure(instrument, gate: GatePlan) -> Columns:
    """The metric with everything else scrubbed."""
    return {"clean": instrument.clean, "corrupted": instrument.corrupted, "scrubbed": instrument.scrubbed(instrument.units)}


def measure_random(instrument, gate: GatePlan) -> Columns:
    """The same with random sets in the subject's place."""
    draws = {f"{PREFIX}{number:02d}": instrument.scrubbed(units, controls=True)
             for number, units in enumerate(instrument.random_sets[:19])}  # fmt: skip
    return {**measure(instrument, gate), **draws}


def kept(table: Table, gate: GatePlan) -> Contrast:
    """Share of the effect that is kept."""
    pairs = zip(_share(table, "scrubbed"), _share(table, "clean"), strict=True)
    return Contrast([None if share is None or whole is None else share - gate.sesoi * (whole - 1) for share, whole in pairs])


def against_random(table: Table, gate: GatePlan) -> Contrast:
    """The share kept minus that under the strongest random set."""
    controls = {name: _share(table, name) for name in sorted(table["columns"]) if name.startswith(PREFIX)}
    return against_strongest(_share(table, "scrubbed"), controls)


def _share(table: Table, name: str) -> list[float | None]:
    return difference(column(table, name), column(table, "corrupted"), span(table))


register(Gate("scrubbing", "sufficiency", KINDS, 0.9, True, measure, kept, asked=OPTION, about=about_units,
              says="with everything else from other prompts it keeps {estimate} of the effect", version=2))  # fmt: skip
register(Gate("scrubbing.random", "random", KINDS, 0.05, True, measure_random, against_random, asked=OPTION, about=about_units,
              says="it keeps {estimate} more than the strongest random set when everything else is scrubbed"))  # fmt: skip
