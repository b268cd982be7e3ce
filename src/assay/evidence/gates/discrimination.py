"""Discrimination: does the explanation single out the feature among those that resemble it?

1. Candidates: the feature, and the nine other units that the rule fits best on tune.
2. In every template, the candidate is picked whose activation ranks the rule's members highest above the rest;
   among equals each has the same chance.
3. Contrast: the chance that the feature is picked, the same for all members of a template. Blind: one in ten.

Where several features share a meaning (most annotated ones do), an explanation can be right and still name none.
"""

from assay.evidence.gates.base import Columns, Contrast, Gate, Table, mean, register
from assay.evidence.gates.detection import placed
from assay.records import GatePlan
from assay.statistics import cluster_means

KINDS = ("explains",)


def measure(instrument, gate: GatePlan) -> Columns:
    """What the rule says; activations of the feature and of the candidates."""
    return {"label": instrument.labels(), "score": instrument.score(), **instrument.of(instrument.setup.nearest, "nearest")}


def contrast(table: Table, gate: GatePlan) -> Contrast:
    """The chance that the feature is picked. KeyError when there is nothing to tell it from."""
    names = sorted(name for name in table["columns"] if name.startswith("nearest."))
    if not names:
        raise KeyError("nearest.")
    placements = {name: placed(table, name) for name in ("score", *names)}
    ranked = {name: _by_template(values, table["templates"]) for name, values in placements.items()}
    picked: dict[str, float] = {}
    for template, own in ranked["score"].items():
        rivals = [ranked[name].get(template, 0.0) for name in names]
        best = max(own, *rivals)
        ties = sum(abs(value - best) < 1e-9 for value in (own, *rivals))
        picked[template] = 1 / ties if abs(own - best) < 1e-9 else 0.0
    values = [None if value is None else picked[template]
              for value, template in zip(placements["score"], table["templates"], strict=True)]  # fmt: skip
    return Contrast(values, {name: mean(found) for name, found in placements.items() if name != "score"},
                    {"candidates": 1 + len(names), "chance": 1 / (1 + len(names))})  # fmt: skip


def _by_template(values: list[float | None], templates: list[str]) -> dict[str, float]:
    kept = [(value, template) for value, template in zip(values, templates, strict=True) if value is not None]
    return cluster_means([value for value, _ in kept], [template for _, template in kept])


register(Gate("discrimination", "discrimination", KINDS, 0.5, True, measure, contrast,
              says="it is picked out among its nearest {estimate} of the time"))  # fmt: skip
