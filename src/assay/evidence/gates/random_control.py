"""Random control: is the subject better than random sets of the same size, layers and kind?

1. Draw sets: every unit is replaced by another unit of its layer that is not in the subject (from
   other layers where its own has none left; the record says so).
2. Measure each set exactly as the subject, on the first few pairs of every template.
3. Contrast per pair, required: the subject's effect minus that of the strongest set (largest mean effect).
4. Contrast per pair, reported: the same against the set at the .9 quantile of the means (Shi et al. 2024), so
   that the sampling error of the prompts enters; with the rank of the subject among the draws,
   p = (1 + sets at least as strong) / (1 + sets).

Choosing the strongest set on the data that judge it makes support harder, never easier. Beating
random sets does not make the subject the only or the smallest such set.
"""

import math

from assay.evidence.gates.base import Columns, Contrast, Gate, Table, column, difference, mean, register, span
from assay.records import GatePlan

KINDS = ("mediates",)
QUANTILE = 0.9
Draws = dict[str, list[float | None]]


def measure_necessity(instrument, gate: GatePlan) -> Columns:
    """Resample ablation of the subject and of every random set."""
    draws = instrument.many(instrument.random_sets, "resample")
    return {"ablated.resample": instrument.ablated(instrument.units, "resample"),
            **{f"random.ablated.{number:02d}": values for number, values in enumerate(draws)}}  # fmt: skip


def measure_sufficiency(instrument, gate: GatePlan) -> Columns:
    """Restoration of the subject and of every random set."""
    draws = instrument.many(instrument.random_sets, "restore")
    return {"restored": instrument.restored(instrument.units),
            **{f"random.restored.{number:02d}": values for number, values in enumerate(draws)}}  # fmt: skip


def drops(table: Table) -> tuple[list[float | None], Draws]:
    """Normalised drop by the subject, and by every random set."""
    clean = column(table, "clean")
    draws = {name: difference(clean, values, span(table)) for name, values in _draws(table, "random.ablated.")}
    return difference(clean, column(table, "ablated.resample"), span(table)), draws


def recoveries(table: Table) -> tuple[list[float | None], Draws]:
    """Share of the effect restored by the subject, and by every random set."""
    corrupted = column(table, "corrupted")
    draws = {name: difference(values, corrupted, span(table)) for name, values in _draws(table, "random.restored.")}
    return difference(column(table, "restored"), corrupted, span(table)), draws


def necessity(table: Table, gate: GatePlan) -> Contrast:
    """Drop by the subject minus drop by the strongest set."""
    return _against_strongest(*drops(table))


def sufficiency(table: Table, gate: GatePlan) -> Contrast:
    """Share restored by the subject minus share restored by the strongest set."""
    return _against_strongest(*recoveries(table))


def rank_necessity(table: Table, gate: GatePlan) -> Contrast:
    """Drop by the subject minus drop by the set at the .9 quantile."""
    return _against_quantile(*drops(table))


def rank_sufficiency(table: Table, gate: GatePlan) -> Contrast:
    """Share restored by the subject minus share restored by the set at the .9 quantile."""
    return _against_quantile(*recoveries(table))


def _draws(table: Table, prefix: str) -> list[tuple[str, list[float | None]]]:
    found = [(name, values) for name, values in table["columns"].items() if name.startswith(prefix)]
    if not found:
        raise KeyError(prefix)
    return sorted(found)


def _against_strongest(claimed: list[float | None], draws: Draws) -> Contrast:
    means = {name: mean(values) for name, values in draws.items()}
    strongest = max(means, key=means.__getitem__)
    return Contrast(difference(claimed, draws[strongest]), means, {"strongest": strongest, "draws": len(means)})


def _against_quantile(claimed: list[float | None], draws: Draws) -> Contrast:
    means = {name: mean(values) for name, values in draws.items()}
    order = sorted(means, key=means.__getitem__)
    barred = order[math.ceil(QUANTILE * len(order)) - 1]
    same_pairs = [None if other is None else value for value, other in zip(claimed, draws[barred], strict=True)]
    stronger = sum(value >= mean(same_pairs) for value in means.values())
    return Contrast(difference(claimed, draws[barred]), {},
                    {"compared_with": barred, "draws": len(means), "at_least_as_strong": stronger,
                     "rank_p": (1 + stronger) / (1 + len(means))})  # fmt: skip


register(Gate("random.necessity", "random", KINDS, 0.05, True, measure_necessity, necessity,
              says="its drop beats the strongest random set's by {estimate}"))  # fmt: skip
register(Gate("random.sufficiency", "random", KINDS, 0.05, True, measure_sufficiency, sufficiency,
              says="what it restores beats the strongest random set by {estimate}"))  # fmt: skip
register(Gate("rank.necessity", "rank", KINDS, 0.05, False, measure_necessity, rank_necessity))
register(Gate("rank.sufficiency", "rank", KINDS, 0.05, False, measure_sufficiency, rank_sufficiency))
