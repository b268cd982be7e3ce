"""Steering: does adding a direction move a behaviour, in both senses, on most prompts, and little else?

With y(s) the log-odds of answer against foil at strength s, and span the mean of clean - corrupted:

1. `steering.dose`: least-squares slope of y over the grid, times the largest strength, / span.
2. `steering.monotone`: Kendall's tau of y with s, per pair.
3. `steering.sign`: the smaller of the mean rise over positive and the mean fall over negative strengths, / span.
4. `steering.random`: the change at the largest strength minus that of the strongest random direction of equal
   norm (absolute mean change, so that either sense of a random direction counts). The empirical p is kept.
5. `steering.relative`: the change minus that of tokens that were as likely as answer and foil. A change of
   temperature moves both alike.
6. `steering.reversal`: share of pairs whose slope has the claimed sign; some directions move half of the
   prompts the wrong way under a good mean (Tan et al. 2024).
7. `steering.damage`: 1 - sqrt(2 KL on ordinary text) / change; both are sizes in nats.
8. `steering.prompt` (reported): the change minus that of a plain instruction. `steering.few_shot` (reported): the change
   minus that of four solved prompts of tune, put before the prompt. Where prompting does as well, the direction is not the
   best handle (AxBench, Wu et al. 2025).
9. `steering.nothing`, `steering.everything`: adding nothing, and adding the difference to the corrupted run.
"""

from typing import Any

import numpy as np
from scipy.stats import kendalltau

from assay.evidence.effects import WHOLE
from assay.evidence.gates.base import Columns, Contrast, Gate, Table, column, difference, mean, register, span
from assay.evidence.gates.erasure import against_strongest
from assay.records import GatePlan

KINDS = ("steers",)
LARGEST_RATIO = 2.0  # damage beyond twice the effect counts as twice


def measure(instrument, gate: GatePlan) -> Columns:
    """Log-odds at every strength."""
    return {"clean": instrument.clean, "corrupted": instrument.corrupted, **instrument.grid()}


def curve(table: Table) -> tuple[np.ndarray, np.ndarray]:
    """(strengths (s,) with 0, log-odds (pair, s)). KeyError where the grid was not measured."""
    found = {float(name.removeprefix("steered.")): values for name, values in table["columns"].items()
             if name.startswith("steered.")}  # fmt: skip
    if not found:
        raise KeyError("steered")
    found[0.0] = column(table, "clean")
    strengths = sorted(found)
    return np.array(strengths), np.array([found[s] for s in strengths], dtype=float).T


def slopes(table: Table) -> np.ndarray:
    """Least-squares slope of every pair, (pair,)."""
    strengths, odds = curve(table)
    centred = strengths - strengths.mean()
    return odds @ centred / (centred @ centred)


def dose(table: Table, gate: GatePlan) -> Contrast:
    """Slope times the largest strength, as a share of the span."""
    strengths, odds = curve(table)
    size = span(table)
    shown = {f"{s:+g}": round(float(y), 4) for s, y in zip(strengths, odds.mean(0), strict=True)}
    return Contrast((slopes(table) * strengths.max() / size).tolist(), notes={"curve": shown})


def monotone(table: Table, gate: GatePlan) -> Contrast:
    """Kendall's tau of log-odds with strength; 0 where nothing moves."""
    strengths, odds = curve(table)
    return Contrast([_tau(strengths, row) for row in odds.round(6)])


def _tau(strengths: np.ndarray, row: np.ndarray) -> float:
    found: Any = kendalltau(strengths, row) if np.ptp(row) > 0 else None
    return 0.0 if found is None else float(found.statistic)


def sign(table: Table, gate: GatePlan) -> Contrast:
    """The weaker of rise and fall, as a share of the span."""
    strengths, odds = curve(table)
    moved = odds - odds[:, strengths == 0]
    up, down = moved[:, strengths > 0].mean(1), -moved[:, strengths < 0].mean(1)
    return Contrast((np.minimum(up, down) / span(table)).tolist())


def reversal(table: Table, gate: GatePlan) -> Contrast:
    """1 where the slope has the claimed sign."""
    return Contrast((slopes(table) > 0).astype(float).tolist())


def risen(table: Table) -> list[float | None]:
    """Change at the largest strength, as a share of the span."""
    strengths, odds = curve(table)
    return ((odds[:, -1] - odds[:, strengths == 0][:, 0]) / span(table)).tolist()


def measure_random(instrument, gate: GatePlan) -> Columns:
    """Every random direction at the largest strength."""
    return {**measure(instrument, gate), **instrument.controls()}


def contrast_random(table: Table, gate: GatePlan) -> Contrast:
    """Change minus that of the strongest random direction."""
    controls = {}
    for name in sorted(name for name in table["columns"] if name.startswith("random.steered.")):
        moved = difference(column(table, name), column(table, "clean"), span(table))
        controls[name] = moved if mean(moved) >= 0 else [None if value is None else -value for value in moved]
    return against_strongest(risen(table), controls)


def measure_relative(instrument, gate: GatePlan) -> Columns:
    """Log-odds of matched tokens."""
    return {**measure(instrument, gate), **instrument.matched()}


def relative(table: Table, gate: GatePlan) -> Contrast:
    """Change minus that of matched tokens."""
    matched = difference(column(table, "matched.steered"), column(table, "matched"), span(table))
    return Contrast(difference(risen(table), matched))


def measure_damage(instrument, gate: GatePlan) -> Columns:
    """KL on ordinary texts."""
    return {**measure(instrument, gate), **instrument.damage()}


def damage(table: Table, gate: GatePlan) -> Contrast:
    """1 - damage as a share of the mean change at the largest strength."""
    size = max(abs(mean(risen(table)) * span(table)), 1e-6)
    return Contrast([None if value is None else 1 - min(LARGEST_RATIO, (2 * value) ** 0.5 / size)
                     for value in column(table, "neutral.kl")])  # fmt: skip


def measure_prompt(instrument, gate: GatePlan) -> Columns:
    """Log-odds under a plain instruction."""
    return {**measure(instrument, gate), **instrument.prompted()}


def prompt(table: Table, gate: GatePlan) -> Contrast:
    """Change by steering minus change by the instruction."""
    told = difference(column(table, "prompted"), column(table, "clean"), span(table))
    return Contrast(difference(risen(table), told), notes={"by_instruction": mean(told)})


def measure_shots(instrument, gate: GatePlan) -> Columns:
    """Log-odds behind solved prompts."""
    return {**measure(instrument, gate), **instrument.shown()}


def shots(table: Table, gate: GatePlan) -> Contrast:
    """Change by steering minus change by solved prompts."""
    told = difference(column(table, "few_shot"), column(table, "clean"), span(table))
    return Contrast(difference(risen(table), told), notes={"by_examples": mean(told)})


def measure_nothing(instrument, gate: GatePlan) -> Columns:
    """Nothing is added."""
    return {"clean": instrument.clean, "corrupted": instrument.corrupted, **instrument.added(False)}


def nothing(table: Table, gate: GatePlan) -> Contrast:
    """1 - normalised change."""
    return _near(table, "added.nothing", "clean")


def measure_everything(instrument, gate: GatePlan) -> Columns:
    """The difference to the corrupted run is added, where everything later is computed from the site."""
    place = instrument.setup.place
    whole = place.site.name in WHOLE and place.positions == "all"
    return {"clean": instrument.clean, "corrupted": instrument.corrupted, **(instrument.added(True) if whole else {})}


def everything(table: Table, gate: GatePlan) -> Contrast:
    """1 - normalised distance from the corrupted score."""
    return _near(table, "added.everything", "corrupted")


def _near(table: Table, name: str, target: str) -> Contrast:
    apart = difference(column(table, target), column(table, name), span(table))
    return Contrast([None if value is None else 1 - abs(value) for value in apart])


def _add(name, group, sesoi, measured, contrast, says="", required=True, version=1) -> None:
    register(Gate(f"steering.{name}", group, KINDS, sesoi, required, measured, contrast, says=says, version=version))


_add("dose", "dose", 0.2, measure, dose, "at full strength it moves the log-odds by {estimate} of the task's own contrast")
_add("sign", "sign", 0.05, measure, sign, "the weaker of its two senses moves the log-odds by {estimate}")
_add("reversal", "reversal", 0.8, measure, reversal, "it moves {estimate} of prompts the right way")
_add("damage", "damage", 0.8, measure_damage, damage, "ordinary text is {estimate} untouched, measured by the effect")
_add("monotone", "dose", 0.5, measure, monotone, "its dose-response has a rank correlation of {estimate}")
_add("random", "random", 0.05, measure_random, contrast_random, "it beats the strongest random direction by {estimate}",
     version=2)
_add("relative", "relative", 0.05, measure_relative, relative, "it moves answers {estimate} more than equally likely words")
_add("prompt", "baseline", 0.0, measure_prompt, prompt, "it moves the log-odds {estimate} more than an instruction", False)
_add("few_shot", "baseline", 0.0, measure_shots, shots, "it moves the log-odds {estimate} more than four solved prompts", False)
_add("nothing", "instrument", 0.9, measure_nothing, nothing, required=False)
_add("everything", "instrument", 0.9, measure_everything, everything, required=False)
