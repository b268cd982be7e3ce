"""Sparse probe: do a few latents tell members better than as many units or principal components?

1. Three probes of five columns each, chosen and fitted on tune (`assay.evidence.sparse_probes`).
2. Contrast per member: its placement under the probe of latents minus that under the better of the other two.

Reported, for claims about listing features: where units do as well, the dictionary adds nothing for this concept; for others it
may. (Gurnee et al. 2023; SAEBench, Karvonen et al. 2025.)
"""

from assay.evidence.dictionaries import USES
from assay.evidence.gates.base import Columns, Contrast, Gate, Table, difference, mean, register
from assay.evidence.gates.detection import placed
from assay.records import Claim, GatePlan

KINDS = ("reconstructs",)
OTHERS = ("sparse.units", "sparse.components")


def about_listing(claim: Claim) -> bool:
    """Claims about listing features."""
    return claim.subject.get("use") == USES[0]


def measure(instrument, gate: GatePlan) -> Columns:
    """Labels, and the scores of the three probes; nothing where tune had one label only."""
    return instrument.sparse()


def contrast(table: Table, gate: GatePlan) -> Contrast:
    """Placement under the latents minus that under the better of units and components."""
    own, others = placed(table, "sparse.latents"), {name: placed(table, name) for name in OTHERS}
    best = max(others, key=lambda name: mean(others[name]))
    return Contrast(difference(own, others[best]), {name: mean(values) for name, values in others.items()},
                    {"latents": mean(own), "compared_with": best})  # fmt: skip


register(Gate("sparse_probe", "baseline", KINDS, 0.0, False, measure, contrast, about=about_listing,
              says="five of its latents tell members {estimate} better than five units or components"))  # fmt: skip
