"""Controls of dictionaries: did fitting do anything, and did it need a trained model?

1. Random directions of three pools, as many as the dictionary has, read with the best sparse code of the same
   number of latents per example. Contrast per example: explained variance minus that of the best pool. The bar is
   not 0: of two dictionaries drawn alike one is better, and over many texts significantly so.
2. Untrained twin: the dictionary's own recipe, refitted on a twin whose weights were drawn again. Contrast per
   example: explained variance here minus there, each in shares of its own variance. Only for dictionaries that
   can be refitted, and then required for listing features.

Sparse autoencoders with frozen random decoders come within a few points of trained ones on the usual scores
(Korznikov et al. 2026; Heap et al. 2025), so the comparison decides, not the score.
"""

from assay.evidence.dictionaries import USES, numbers
from assay.evidence.gates.base import Columns, Contrast, Gate, Table, column, difference, mean, register
from assay.evidence.random_dictionaries import greedy_codes
from assay.records import Claim, GatePlan

KINDS = ("reconstructs",)


def measure_random(instrument, gate: GatePlan) -> Columns:
    """Explained variance of the dictionary and of every pool."""
    setup, counts = instrument.setup, (instrument.codes != 0).sum(1).tolist()
    found = {"explained": instrument.explained(instrument.reconstruction)}
    for name, directions in setup.random.items():
        codes = greedy_codes(instrument.acts - setup.mean, directions, counts)
        found[f"random.{name}"] = instrument.explained(codes @ directions + setup.mean)
    return found


def measure_untrained(instrument, gate: GatePlan) -> Columns:
    """Explained variance of the recipe on the untrained twin."""
    found = {"explained": instrument.explained(instrument.reconstruction)}
    if instrument.setup.twin is not None:
        twin, dictionary, _, total = instrument.setup.twin
        acts = twin.read(instrument.setup.site, instrument.data)
        error = (acts - dictionary.decode(dictionary.encode(acts))).square().sum(1)
        found["untrained.all"] = numbers(1 - error / total)
    return found


def against_random(table: Table, gate: GatePlan) -> Contrast:
    """Explained minus explained by the best pool."""
    pools = {name: values for name, values in table["columns"].items() if name.startswith("random.")}
    if not pools:
        raise KeyError("random.")
    means = {name: mean(values) for name, values in pools.items()}
    strongest = max(means, key=means.__getitem__)
    return Contrast(difference(column(table, "explained"), pools[strongest]), means, {"strongest": strongest})


def against_untrained(table: Table, gate: GatePlan) -> Contrast:
    """Explained here minus explained on the twin."""
    return Contrast(difference(column(table, "explained"), column(table, "untrained.all")))


def can_refit(claim: Claim) -> bool:
    """Claims about listing features, of dictionaries with a recipe."""
    return claim.subject.get("use") == USES[0] and claim.subject["dictionary"]["refits"]


register(Gate("random.dictionary", "random", KINDS, 0.05, True, measure_random, against_random,
              says="it explains {estimate} more than directions that were never fitted", version=2))  # fmt: skip
register(Gate("untrained.dictionary", "untrained", KINDS, 0.05, can_refit, measure_untrained, against_untrained,
              says="it explains {estimate} more than the same recipe does in an untrained model"))  # fmt: skip
