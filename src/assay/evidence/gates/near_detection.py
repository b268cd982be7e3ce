"""Members against near misses: does the explanation say where the feature stops?

1. Texts for which the rule says *on*, and the near misses: texts made to look like them.
2. Right where the feature is on exactly when the rule says so.
3. Contrast: right or wrong, weighted so that members and near misses count the same; its mean over a template is
   the balanced accuracy there.

Against random other texts a broad explanation looks as good as a narrow one (Ma et al. 2025).
"""

from collections.abc import Sequence

from assay.evidence.gates.base import Column, Columns, Contrast, Gate, Table, column, register
from assay.records import GatePlan
from assay.statistics import comparison_groups

KINDS = ("explains",)


def measure(instrument, gate: GatePlan) -> Columns:
    """What the rule says, where the feature is on, and which texts are near misses."""
    return {"label": instrument.labels(), "near": instrument.near(),
            "fires": instrument.fires(instrument.setup.half)}  # fmt: skip


def contrast(table: Table, gate: GatePlan) -> Contrast:
    """Weighted right or wrong on members and near misses. KeyError when there are no near misses."""
    label, near = column(table, "label"), column(table, "near")
    if not any(near):
        raise KeyError("no near misses")
    sides = [0.0 if close else 1.0 if said == 1 else None for said, close in zip(label, near, strict=True)]
    return Contrast(balanced(column(table, "fires"), label, sides, table["templates"]))


def balanced(on: Column, said: Column, sides: Column, templates: Sequence[str]) -> list[float | None]:
    """1 where `on` is what was `said`, else 0, weighted so that both sides (1 and 0; None is left out) count the
    same within a template, or over all where most templates have one side only."""
    kept = [row for row, side in enumerate(sides) if side is not None]
    groups = dict(zip(kept, comparison_groups([sides[row] for row in kept], [templates[row] for row in kept]), strict=True))
    counts: dict[tuple[str, float | None], int] = {}
    for row, group in groups.items():
        counts[group, sides[row]] = counts.get((group, sides[row]), 0) + 1
    values: list[float | None] = [None] * len(sides)
    for row, group in groups.items():
        own, other = counts[group, sides[row]], counts.get((group, 1.0 - (sides[row] or 0.0)), 0)
        if other:
            values[row] = float(on[row] == said[row]) * (own + other) / (2 * own)
    return values


register(Gate("near_detection", "detection", KINDS, 0.75, True, measure, contrast,
              says="it is right on {estimate} of members and near misses"))  # fmt: skip
