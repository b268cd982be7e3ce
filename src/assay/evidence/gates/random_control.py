"""Random control: is the subject better than random sets of the same size, layers and kind?

1. Draw sets: every unit is replaced by another unit of its layer that is not in the subject (from
   other layers where its own has none left; the record says so).
2. Measure each set exactly as the subject, on the first few pairs of every template.
3. Contrast per pair: the subject's effect minus that of the strongest set (largest mean effect).

Choosing the strongest set on the data that judge it makes support harder, never easier. Beating
random sets does not make the subject the only or the smallest such set.
"""

from assay.evidence.gates.base import Columns, Contrast, Gate, Table, column, difference, mean, register, span
from assay.records import GatePlan

KINDS = ("mediates",)


def measure_necessity(instrument, gate: GatePlan) -> Columns:
    """Resample ablation of the subject and of every random set."""
    draws = {f"random.ablated.{number:02d}": instrument.ablated(units, "resample", controls=True)
             for number, units in enumerate(instrument.random_sets)}  # fmt: skip
    return {"ablated.resample": instrument.ablated(instrument.units, "resample"), **draws}


def measure_sufficiency(instrument, gate: GatePlan) -> Columns:
    """Restoration of the subject and of every random set."""
    draws = {f"random.restored.{number:02d}": instrument.restored(units, controls=True)
             for number, units in enumerate(instrument.random_sets)}  # fmt: skip
    return {"restored": instrument.restored(instrument.units), **draws}


def necessity(table: Table, gate: GatePlan) -> Contrast:
    """Drop by the subject minus drop by the strongest set."""
    clean = column(table, "clean")
    draws = {name: difference(clean, values, span(table)) for name, values in _draws(table, "random.ablated.")}
    return _against_strongest(difference(clean, column(table, "ablated.resample"), span(table)), draws)


def sufficiency(table: Table, gate: GatePlan) -> Contrast:
    """Share restored by the subject minus share restored by the strongest set."""
    corrupted = column(table, "corrupted")
    draws = {name: difference(values, corrupted, span(table)) for name, values in _draws(table, "random.restored.")}
    return _against_strongest(difference(column(table, "restored"), corrupted, span(table)), draws)


def _draws(table: Table, prefix: str) -> list[tuple[str, list[float | None]]]:
    found = [(name, values) for name, values in table["columns"].items() if name.startswith(prefix)]
    if not found:
        raise KeyError(prefix)
    return sorted(found)


def _against_strongest(claimed: list[float | None], draws: dict[str, list[float | None]]) -> Contrast:
    means = {name: mean(values) for name, values in draws.items()}
    strongest = max(means, key=means.__getitem__)
    return Contrast(difference(claimed, draws[strongest]), means, {"strongest": strongest, "draws": len(means)})


register(Gate("random.necessity", "random", KINDS, 0.05, True, measure_necessity, necessity))
register(Gate("random.sufficiency", "random", KINDS, 0.05, True, measure_sufficiency, sufficiency))
