"""What a gate is, and how one is added: one file in this folder, one `register` call.

1. `measure(instrument, gate)` runs the model and returns columns: one number per pair (None where a
   pair was left out), named so that no two gates collide. It runs once per chunk of pairs.
2. `contrast(table, gate)` turns the columns of a whole split into one contrast per pair, without
   the model. Verdicts can therefore be derived again from stored tables.
3. `evaluate` summarises the contrast over templates against the gate's SESOI; where words cross
   templates also over words, and the weaker of the two counts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from assay.evidence.kinds import Columns
from assay.evidence.shares import with_share_interval
from assay.records import Claim, GatePlan, GateResult
from assay.registry import Registry
from assay.statistics import DRAWS, Summary, cluster_means, summarise, summarise_exact, weaker

Column = Sequence[float | None]
Table = Mapping[str, Any]  # {"templates": [..], "columns": Columns, "controls": {..}}


@dataclass(frozen=True)
class Contrast:
    """One number per pair, and what else the gate wants shown.

    `exact`: the values are shares of successes so near 1 that spread says nothing; decide by the exact binomial.
    `clusters`: of the values, where they are not one per item.
    """

    values: list[float | None]
    per_control: dict[str, float] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    exact: bool = False
    clusters: list[str] | None = None


@dataclass(frozen=True)
class Gate:
    """A registered gate. `kinds`: the claim kinds it can serve; `required`: whether it decides, for all claims or
    as the claim at hand says.

    `about`: which claims of its kinds it serves; none: all of them. `certifies`: the label whose clusters it counts,
    of gates that are decided by the exact binomial.
    `asked`: the option of the claim without which the gate is not planned, of gates that need what only the user has.
    `precondition` gates decide only whether there is something to test. `bars`: SESOIs of kinds whose bar is
    another one. `says`: the estimate in words, "it ranks a member above a non-member {estimate} of the time".
    `version`: goes up when the same data would give other numbers; verdicts by an older one are *stale*.
    """

    name: str
    group: str
    kinds: tuple[str, ...]
    sesoi: float
    required: bool | Callable[[Claim], bool]
    measure: Callable[[Any, GatePlan], Columns]
    contrast: Callable[[Table, GatePlan], Contrast]
    options: dict[str, Any] = field(default_factory=dict)
    precondition: bool = False
    bars: Mapping[str, float] = field(default_factory=dict)
    says: str = ""
    version: int = 1
    about: Callable[[Claim], bool] | None = None
    certifies: int | None = None
    asked: str | None = None

    def plan(self, sesoi: float | None = None, kind: str = "", claim: Claim | None = None, **options: Any) -> GatePlan:
        """The gate as it will be locked."""
        chosen = self.bars.get(kind, self.sesoi) if sesoi is None else sesoi
        decides = self.required if isinstance(self.required, bool) else claim is not None and self.required(claim)
        return GatePlan(self.name, self.group, chosen, decides, {**self.options, **options}, self.version)


GATES: Registry[Gate] = Registry("gate")


def register(gate: Gate) -> Gate:
    """Make a gate known. Raises UsageError when its name is taken."""
    return GATES.add(gate.name, gate)


def get_gate(name: str) -> Gate:
    """A registered gate by name. Raises UsageError for one this version does not have."""
    return GATES.get(name)


def gates_for(kind: str, claim: Claim | None = None, options: Mapping[str, Any] | None = None) -> list[Gate]:
    """The gates that serve a claim kind, a claim of it, or one with these options, in order of registration."""
    return [gate for gate in GATES if kind in gate.kinds
            and (claim is None or gate.about is None or gate.about(claim))
            and (options is None or gate.asked is None or gate.asked in options)]  # fmt: skip


def evaluate(
    gate: GatePlan, split: str, table: Table, alpha: float, seed: int, shares: bool = True
) -> GateResult | None:  # fmt: skip
    """One gate on one split, from stored columns; None when it was not measured there. `shares`: intervals of what is 0 or 1
    per item are those of `evidence/shares.py`; plans locked before there were any do not say so."""
    found = get_gate(gate.name)
    try:
        contrast = found.contrast(table, gate)
    except KeyError:
        return None
    draws = int(gate.options.get("resamples", DRAWS))

    def over(clusters: Sequence[str]) -> Summary:
        summed = summarise_exact if contrast.exact else summarise
        summary = summed(contrast.values, clusters, gate.sesoi, alpha, seed, draws)
        return with_share_interval(summary, contrast.values) if shares and not contrast.exact else summary

    summary = over(clusters_of(contrast, table))
    if table.get("words") and contrast.clusters is None:
        summary = weaker(summary, over(table["words"]))
    tables = {"per_template": summary.per_template, "per_control": contrast.per_control, **contrast.notes}
    return GateResult(
        gate.name, split, gate.group, gate.required, gate.sesoi, summary.estimate, summary.low,
        summary.high, summary.p_above, summary.p_below, summary.sample, tables, found.version,
    )  # fmt: skip


def template_means(gate: GatePlan, table: Table) -> list[float] | None:
    """The mean contrast of every template; None when the gate was not measured. Nothing is tested."""
    try:
        contrast = get_gate(gate.name).contrast(table, gate)
    except KeyError:
        return None
    of = clusters_of(contrast, table)
    kept = [(value, name) for value, name in zip(contrast.values, of, strict=True) if value is not None]
    return list(cluster_means([value for value, _ in kept], [name for _, name in kept]).values())


def clusters_of(contrast: Contrast, table: Table) -> Sequence[str]:
    """The cluster of every value: the item's template, unless the gate says otherwise."""
    return table["templates"] if contrast.clusters is None else contrast.clusters


def column(table: Table, name: str) -> list[float | None]:
    """A measured column. KeyError when the gate was not measured."""
    return table["columns"][name]


def mean(values: Column) -> float:
    """Mean of the measured entries; 0 for none."""
    kept = [value for value in values if value is not None]
    return sum(kept) / len(kept) if kept else 0.0


def span(table: Table) -> float:
    """Mean of clean - corrupted over the split: what one unit of normalised effect stands for.

    One denominator per split: dividing pair by pair would let pairs without a contrast dominate.
    KeyError (the gate cannot be computed) when the task has no effect in this split.
    """
    size = mean(column(table, "clean")) - mean(column(table, "corrupted"))
    if size <= 0:
        raise KeyError("no effect")
    return size


def difference(a: Column, b: Column, divide_by: float = 1.0) -> list[float | None]:
    """(a - b) / divide_by pair by pair; None where either was not measured."""
    return [
        None if x is None or y is None else (x - y) / divide_by for x, y in zip(a, b, strict=True)
    ]
