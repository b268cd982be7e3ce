"""Random directions: does any direction do it?

1. Three pools: isotropic; drawn from the covariance of tune activations after the claimed direction was taken
   out of them; single units of the same site that are as often above their mean.
2. Each is scored on the same activations, its sign chosen so that it is as good as it can be.
3. Contrast per member: its placement under the claimed score minus that under the strongest direction.

Choosing the strongest on the data that judge it makes support harder. Beating random directions does
not make the claimed one the only one: see the rivals. (Controls: Korznikov et al. 2026, AxBench.)
"""

from assay.evidence.gates.base import Columns, Contrast, Gate, Table, column, difference, mean, register
from assay.evidence.gates.detection import placed
from assay.records import GatePlan
from assay.statistics import placements

KINDS = ("represents", "detects")  # of a monitor: fitted on random contrast pairs


def measure(instrument, gate: GatePlan) -> Columns:
    """The claimed score and that of every drawn direction."""
    return {"label": instrument.labels(), "score": instrument.score(), **instrument.of(instrument.setup.random, "random")}


def contrast(table: Table, gate: GatePlan) -> Contrast:
    """Placement minus that of the strongest direction."""
    return against_strongest(table, "random.", both_signs=True)


def against_strongest(table: Table, prefix: str, both_signs: bool) -> Contrast:
    """Placement minus that under the strongest of the columns with this prefix. KeyError when there is none."""
    found: dict[str, list[float | None]] = {}
    for name in sorted(name for name in table["columns"] if name.startswith(prefix)):
        values = placements(column(table, name), column(table, "label"), table["templates"])
        if both_signs and mean(values) < 0.5:
            values = [None if value is None else 1 - value for value in values]
        found[name] = values
    if not found:
        raise KeyError(prefix)
    means = {name: mean(values) for name, values in found.items()}
    strongest = max(means, key=means.__getitem__)
    return Contrast(difference(placed(table), found[strongest]), means, {"strongest": strongest, "draws": len(means)})


register(Gate("random.direction", "random", KINDS, 0.05, True, measure, contrast,
              says="it beats the best random direction by {estimate}"))  # fmt: skip
