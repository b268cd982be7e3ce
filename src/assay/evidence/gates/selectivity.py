"""Selectivity: does the probe read the property, or remember the words?

1. Control tasks: every word gets a random label, the same wherever it occurs. Probes of the same kind and
   regularisation are fitted on them, on the same tune examples (Hewitt & Liang 2019).
2. Their placement on this split, by template, averaged over tasks; chance counts as the least they can do.
3. Contrast per member: placement under the claimed score minus that of the control tasks in its template.

With words held out a control task can only be at chance. Where words recur under a name that the split did
not see, it is not, and this is the gate that says so.
"""

from collections.abc import Sequence

from assay.evidence.gates.base import Columns, Contrast, Gate, Table, column, mean, register
from assay.evidence.gates.detection import placed
from assay.records import GatePlan
from assay.statistics import cluster_means, placements

KINDS = ("decodes",)
LABEL, SCORE = "control.label.", "control.score."


def measure(instrument, gate: GatePlan) -> Columns:
    """The claimed score; label and score of every control task."""
    columns: Columns = {"label": instrument.labels(), "score": instrument.score()}
    columns.update({f"{LABEL}{draw}": instrument.control_label(int(draw)) for draw in instrument.setup.control})
    return {**columns, **instrument.of(instrument.setup.control, SCORE.removesuffix("."))}


def contrast(table: Table, gate: GatePlan) -> Contrast:
    """Placement minus that of the control tasks. KeyError when none could be scored."""
    per_task: dict[str, float] = {}
    pooled: list[tuple[str, float]] = []
    for name in sorted(name for name in table["columns"] if name.startswith(SCORE)):
        labels = column(table, LABEL + name.removeprefix(SCORE))
        found = placements(column(table, name), labels, table["templates"])
        kept = [(t, value) for t, value in zip(table["templates"], found, strict=True) if value is not None]
        if kept:
            per_task[name.removeprefix(SCORE)] = mean(found)
            pooled.extend(kept)
    if not pooled:
        raise KeyError(SCORE)
    overall = sum(per_task.values()) / len(per_task)
    lift = max(0.0, 0.5 - overall)
    control = cluster_means([value for _, value in pooled], [template for template, _ in pooled])
    return Contrast(_minus(placed(table), table["templates"], control, overall, lift), per_task,
                    {"control": overall, "tasks": len(per_task)})  # fmt: skip


def _minus(
    values: Sequence[float | None], templates: Sequence[str], control: dict[str, float], overall: float, lift: float
) -> list[float | None]:
    return [None if value is None else value - control.get(template, overall) - lift
            for value, template in zip(values, templates, strict=True)]  # fmt: skip


register(Gate("selectivity", "control", KINDS, 0.1, True, measure, contrast,
              says="it is {estimate} better than a probe that learns random labels per word"))  # fmt: skip
