"""Minimality and stability: which of the claimed units are padding?

1. A unit's share: what the set restores less when that unit is left out (Shi et al. 2024).
2. A yardstick: ten units outside the subject are added to it one at a time; what the set then restores more.
   The strongest of them counts.
3. Minimality, contrast per pair: the weakest unit's share minus that of the strongest addition. Notes: each
   unit's p after Holm over the units, and the share of units that fail.
4. Stability, per template: the share of the claimed units that beat the strongest addition on that template
   alone, which is the Jaccard index of the claimed set and the units kept there. Notes: the same index for
   the sets kept on 199 resamples of the templates.

Reported: padding makes a claim less informative, not false. At most 32 units of a set are left out in turn. A unit
that only works together with another one counts for both; one that is backed up by another, for neither.
"""

import random
from collections.abc import Mapping, Sequence

from assay.evidence.gates.base import Columns, Contrast, Gate, Table, column, difference, mean, register, span
from assay.records import GatePlan
from assay.statistics import cluster_means, holm, summarise

KINDS = ("mediates",)
MOST_UNITS = 32
RESAMPLES = 199
Shares = dict[str, list[float | None]]


def measure(instrument, gate: GatePlan) -> Columns:
    """Restoration by the set, by the set without each unit, and with each added one; on the control pairs."""
    units, added = instrument.units, instrument.setup.added
    chosen = units[:: -(-len(units) // MOST_UNITS)]
    without = [tuple(unit for unit in units if unit != gone) for gone in chosen]
    more = [(*units, unit) for unit in added]
    whole, *rest = instrument.many([units, *without, *more], "restore")
    names = [*(f"without.{unit}" for unit in chosen), *(f"with.{unit}" for unit in added)]
    return {"corrupted": instrument.corrupted, "clean": instrument.clean, "restored.controls": whole,
            **dict(zip(names, rest, strict=True))}  # fmt: skip


def shares(table: Table) -> tuple[Shares, Shares]:
    """What every claimed unit adds to the set, and what every unit outside it would. KeyError without either."""
    whole, size = column(table, "restored.controls"), span(table)
    own = {name.removeprefix("without."): difference(whole, values, size)
           for name, values in table["columns"].items() if name.startswith("without.")}  # fmt: skip
    other = {name.removeprefix("with."): difference(values, whole, size)
             for name, values in table["columns"].items() if name.startswith("with.")}  # fmt: skip
    if not own or not other:
        raise KeyError("minimality")
    return own, other


def minimality(table: Table, gate: GatePlan) -> Contrast:
    """The weakest unit's share minus that of the strongest addition."""
    own, other = shares(table)
    yardstick = max(other, key=lambda name: mean(other[name]))
    gains = {name: difference(values, other[yardstick]) for name, values in own.items()}
    means = {name: mean(values) for name, values in gains.items()}
    p = holm([summarise(values, table["templates"], gate.sesoi).p_above for values in gains.values()])
    failing = [name for name, value in zip(gains, p, strict=True) if value > gate.options["alpha"]]
    weakest = min(means, key=means.__getitem__)
    return Contrast(gains[weakest], means, {"weakest": weakest, "strongest_addition": yardstick,
                    "failing": failing, "share_failing": len(failing) / len(gains)})  # fmt: skip


def stability(table: Table, gate: GatePlan) -> Contrast:
    """Per pair, the share of claimed units that are kept on its template."""
    own, other = shares(table)
    by_unit, by_other = ({name: _by_template(values, table["templates"]) for name, values in side.items()}
                         for side in (own, other))  # fmt: skip
    measured = sorted(set.intersection(*(set(found) for found in (*by_unit.values(), *by_other.values()))))
    alone = {template: _kept(by_unit, by_other, [template]) for template in measured}
    rng = random.Random(f"stability-{gate.options['seed']}")
    draws = sorted(_kept(by_unit, by_other, rng.choices(measured, k=len(measured))) for _ in range(RESAMPLES))
    values = [None if value is None else alone[template]
              for value, template in zip(column(table, "restored.controls"), table["templates"], strict=True)]  # fmt: skip
    notes = {"jaccard_mean": mean(draws), "jaccard_low": draws[len(draws) // 20]} if measured else {}
    return Contrast(values, notes=notes)


def _by_template(values: Sequence[float | None], templates: Sequence[str]) -> dict[str, float]:
    kept = [(value, template) for value, template in zip(values, templates, strict=True) if value is not None]
    return cluster_means([value for value, _ in kept], [template for _, template in kept])


def _kept(own: Mapping[str, Mapping[str, float]], other: Mapping[str, Mapping[str, float]], picked: Sequence[str]) -> float:
    """Share of claimed units whose mean share over these templates beats every addition's."""
    bar = max(mean([found[template] for template in picked]) for found in other.values())
    return sum(mean([found[template] for template in picked]) > bar for found in own.values()) / len(own)


register(Gate("minimality", "minimality", KINDS, 0.0, False, measure, minimality, {"alpha": 0.05},
              says="the weakest unit adds {estimate} more than a random one would"))  # fmt: skip
register(Gate("stability", "stability", KINDS, 0.5, False, measure, stability, {"seed": 0},
              says="{estimate} of the units are kept on a single template"))  # fmt: skip
