"""Off target: do other behaviours stay as they are under the same change?

1. The claim names other tasks that the model does (option `off_target`; five or more make a good test). One pair per
   template of their discover and tune splits is changed as the claim says: erased, or pushed with the largest strengths.
2. Per pair: the size of the change of its log-odds, as a share of that task's own contrast. Sizes, since a push towards one
   answer raises as many pairs of a balanced task as it lowers.
3. Contrast: 1 - that share / the claimed effect as a share of its own task's contrast. At .8 the other task moves by a fifth.
4. The task with the weakest evidence is the gate: all of them must pass.

Planned only for claims that name tasks; then it decides. What was not named is not shown to be spared. (RAVEL's isolation,
Huang et al. 2024; SteeringControl, Siu et al. 2025.)
"""

from assay.evidence.gates.base import Columns, Contrast, Gate, Table, mean, register
from assay.evidence.gates.erasure import drop
from assay.evidence.gates.steering import LARGEST_RATIO, risen
from assay.records import GatePlan
from assay.statistics import cluster_means, p_values

KINDS = ("uses", "steers")
PREFIX = "off."


def measure(instrument, gate: GatePlan) -> Columns:
    """The claimed effect, and the change of every other task."""
    return {"clean": instrument.clean, "corrupted": instrument.corrupted, **instrument.elsewhere()}


def claimed(table: Table) -> float:
    """Mean effect of the change on the claim's own task, as a share of its contrast."""
    return mean(drop(table, "erased.mean") if "erased.mean" in table["columns"] else risen(table))


def contrast(table: Table, gate: GatePlan) -> Contrast:
    """1 - ratio of the effects, of the task that moves most surely. KeyError where no other task was measured."""
    size, spared, moved = max(claimed(table), 1e-6), {}, {}
    for name in sorted(name for name in table["columns"] if name.startswith(PREFIX)):
        shares, task = table["columns"][name], name.removeprefix(PREFIX)
        moved[task] = mean(shares)
        spared[task] = [None if share is None else 1 - min(LARGEST_RATIO, abs(share) / size) for share in shares]
    if not spared:
        raise KeyError("off")
    worst = max(spared, key=lambda name: (_p(spared[name], table, gate.sesoi), -mean(spared[name])))
    return Contrast(spared[worst], moved, {"most": worst, "claimed": size})


def _p(values: list[float | None], table: Table, sesoi: float) -> float:
    kept = [(value, template) for value, template in zip(values, table["templates"], strict=True) if value is not None]
    means = cluster_means([value for value, _ in kept], [template for _, template in kept])
    return p_values(list(means.values()), sesoi)[0]


register(Gate("off_target", "damage", KINDS, 0.8, True, measure, contrast, asked="off_target",
              says="of the other tasks named, the one it moves most is {estimate} spared"))  # fmt: skip
