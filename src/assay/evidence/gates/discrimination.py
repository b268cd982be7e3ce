"""Discrimination: does the explanation single out the feature among those that resemble it?

1. Candidates: the feature, and the nine other units that the rule fits best on tune.
2. Fit of a candidate: how high its activation ranks the rule's members above the rest of their template (placement), the
   mean over templates. The rival is the candidate that fits best on the items of this split.
3. Contrast per member: placement under the feature minus placement under the rival.

The rival is the best of nine on the very items it is held against, so equals count as a little better than the feature: the
gate errs against the claim. Chosen on the other templates, it would err for it; and picking a winner template by template
would measure how many members a template has (benchmarks/discrimination.py shows all three).

Where several features share a meaning (most annotated ones do), an explanation can be right and still name none.
"""

from collections.abc import Sequence

from assay.evidence.gates.base import Columns, Contrast, Gate, Table, difference, mean, register
from assay.evidence.gates.detection import placed
from assay.records import GatePlan
from assay.statistics import cluster_means

KINDS = ("explains",)


def measure(instrument, gate: GatePlan) -> Columns:
    """What the rule says; activations of the feature and of the candidates."""
    return {"label": instrument.labels(), "score": instrument.score(), **instrument.of(instrument.setup.nearest, "nearest")}


def contrast(table: Table, gate: GatePlan) -> Contrast:
    """How much better the rule fits the feature than the rival. KeyError when there is nothing to tell it from."""
    found = {name: placed(table, name) for name in sorted(table["columns"]) if name.startswith("nearest.")}
    if not found:
        raise KeyError("nearest.")
    fits = {name: _fit(values, table["templates"]) for name, values in found.items()}
    rival = max(fits, key=lambda name: fits[name])
    return Contrast(difference(placed(table), found[rival]), fits, {"candidates": 1 + len(fits), "rival": rival})


def _fit(values: Sequence[float | None], templates: Sequence[str]) -> float:
    kept = [(value, template) for value, template in zip(values, templates, strict=True) if value is not None]
    return mean(list(cluster_means([value for value, _ in kept], [template for _, template in kept]).values()))


register(Gate("discrimination", "discrimination", KINDS, 0.05, True, measure, contrast, version=2,
              says="it ranks members higher than the best of its nearest does, by {estimate}"))  # fmt: skip
