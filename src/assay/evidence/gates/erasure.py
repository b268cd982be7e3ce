"""Erasure: does the behaviour drop when a direction is erased, more than when anything else as large is?

1. `erasure.mean`: the component is set to its tune mean. `erasure.resample`: to its value in the corrupted run.
   Contrast per pair: (clean - erased) / mean over the split of (clean - corrupted).
2. `erasure.random`: the drop by mean erasure minus that by the strongest random subspace of equal rank and
   equal mean squared change, on the first few pairs of every template. The empirical p is kept beside it.
3. `erasure.damage`: 1 - sqrt(2 KL) / span, over ordinary texts: what the erasure breaks elsewhere.
4. `erasure.nothing`, `erasure.everything`: exchanging nothing must change nothing; exchanging a whole residual
   stream must give the corrupted score. Otherwise the instrument is broken.

That a property can be decoded counts for nothing here (Elazar et al. 2021). Controls are drawn without regard
to the claim and may overlap with it; this makes support harder.
"""

from assay.evidence.effects import WHOLE
from assay.evidence.gates.base import Columns, Contrast, Gate, Table, column, difference, mean, register, span
from assay.records import GatePlan

KINDS = ("uses",)


def measure(instrument, gate: GatePlan) -> Columns:
    """The metric on clean prompts with the subspace erased."""
    how = gate.options["how"]
    return {"clean": instrument.clean, "corrupted": instrument.corrupted, f"erased.{how}": instrument.erased(how)}


def contrast(table: Table, gate: GatePlan) -> Contrast:
    """Normalised drop per pair."""
    return Contrast(drop(table, f"erased.{gate.options['how']}"))


def drop(table: Table, name: str) -> list[float | None]:
    """(clean - erased) / span per pair."""
    return difference(column(table, "clean"), column(table, name), span(table))


def measure_random(instrument, gate: GatePlan) -> Columns:
    """Mean erasure of the claim and of every random subspace."""
    return {"clean": instrument.clean, "corrupted": instrument.corrupted, "erased.mean": instrument.erased("mean"),
            **instrument.controls()}  # fmt: skip


def contrast_random(table: Table, gate: GatePlan) -> Contrast:
    """Drop by the claim minus drop by the strongest random subspace."""
    drops = {name: drop(table, name) for name in sorted(table["columns"]) if name.startswith("random.erased.")}
    return against_strongest(drop(table, "erased.mean"), drops)


def against_strongest(claimed: list[float | None], controls: dict[str, list[float | None]]) -> Contrast:
    """Claimed effect minus that of the control with the largest mean. KeyError without controls."""
    if not controls:
        raise KeyError("controls")
    means = {name: mean(values) for name, values in controls.items()}
    strongest = max(means, key=means.__getitem__)
    values = difference(claimed, controls[strongest])
    own = mean([value for value, kept in zip(claimed, values, strict=True) if kept is not None])
    reached = sum(value >= own for value in means.values())
    p = (1 + reached) / (1 + len(means))
    return Contrast(values, means, {"strongest": strongest, "draws": len(means), "p_empirical": p})


def measure_damage(instrument, gate: GatePlan) -> Columns:
    """KL on ordinary texts."""
    return {"clean": instrument.clean, "corrupted": instrument.corrupted, "neutral.kl": instrument.damage()}


def contrast_damage(table: Table, gate: GatePlan) -> Contrast:
    """1 - damage as a share of the behaviour."""
    size = span(table)
    return Contrast([None if value is None else max(-1.0, 1 - (2 * value) ** 0.5 / size)
                     for value in column(table, "neutral.kl")])  # fmt: skip


def measure_nothing(instrument, gate: GatePlan) -> Columns:
    """An exchange that changes nothing."""
    return {"clean": instrument.clean, "corrupted": instrument.corrupted, "exchanged.nothing": instrument.exchanged(False)}


def contrast_nothing(table: Table, gate: GatePlan) -> Contrast:
    """1 - normalised change."""
    return Contrast([None if value is None else 1 - abs(value) for value in drop(table, "exchanged.nothing")])


def measure_everything(instrument, gate: GatePlan) -> Columns:
    """An exchange of the whole activation, where everything later is computed from it."""
    place = instrument.setup.place
    if place.site.name not in WHOLE or place.positions != "all":
        return {}
    return {"clean": instrument.clean, "corrupted": instrument.corrupted, "exchanged.everything": instrument.exchanged(True)}


def contrast_everything(table: Table, gate: GatePlan) -> Contrast:
    """1 - normalised distance from the corrupted score."""
    apart = difference(column(table, "corrupted"), column(table, "exchanged.everything"), span(table))
    return Contrast([None if value is None else 1 - abs(value) for value in apart])


for _how in ("mean", "resample"):
    register(Gate(f"erasure.{_how}", "necessity", KINDS, 0.2, True, measure, contrast, {"how": _how},
                  says={"mean": "erasing it removes {estimate} of the effect",
                        "resample": "exchanging it removes {estimate} of the effect"}[_how]))  # fmt: skip
register(Gate("erasure.random", "random", KINDS, 0.05, True, measure_random, contrast_random,
              says="it removes {estimate} more than the strongest random change of equal size", version=2))  # fmt: skip
register(Gate("erasure.damage", "damage", KINDS, 0.9, True, measure_damage, contrast_damage,
              says="ordinary text is {estimate} untouched by erasing it"))  # fmt: skip
register(Gate("erasure.nothing", "instrument", KINDS, 0.9, False, measure_nothing, contrast_nothing))
register(Gate("erasure.everything", "instrument", KINDS, 0.9, False, measure_everything, contrast_everything))
