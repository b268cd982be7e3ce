"""Dose and response: effect, text and damage at every strength; where text breaks; which strength to take.

1. Every strength of a grid with both signs and 0 is measured on the same pairs, openings and texts (`effects`, `fluency`).
2. Text is *broken* at a strength when, against the unsteered model, the perplexity ratio of what is written is above
   `Bars.perplexity`, its distinct-2 ratio is below `Bars.distinct`, the sequence KL on ordinary text is above `Bars.kl` nats
   per token, or any of these is not a finite number. The *cliff* of a sign is the smallest broken strength: the edge a user
   must stay away from, whatever happens behind it.
3. Damage is sqrt(2 KL) against the change of the log-odds, both in nats; a claim that a direction steers asks for a fifth.
4. The strength is chosen before the cliff, for the largest effect towards the answer whose damage is at most a fifth of the
   change; if none is, for the smallest damage per change. Of a direction that goes the other way this is a negative strength.
   Where only broken text moves towards the answer, the smallest such strength is taken, and where nothing does, the smallest
   of all; both are said not to work.

The choice is made on tune data. What it is worth is measured on other data (`run`).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from assay.data.prepare import PreparedTask
from assay.errors import bad_argument
from assay.model.model import Model
from assay.steer.directions import Direction
from assay.steer.effects import (
    Effect,
    How,
    Push,
    effect_of,
    reversed_share,
    scores,
    slopes,
    span_of,
)  # fmt: skip
from assay.steer.fluency import Continuation, Fluency, continuations, fluency, sequence_kl
from assay.steer.judge import Judge

GRID = (-0.5, -0.3, -0.2, -0.1, -0.05, 0.0, 0.05, 0.1, 0.2, 0.3, 0.5)
SHARES = (-1.0, -0.5, 0.0, 0.5, 1.0)  # of project_out: shares of the component, negative ones add to it
DAMAGE = 0.2  # of the change


@dataclass(frozen=True)
class Bars:
    """When text counts as broken: perplexity ratio above, distinct-2 ratio below, KL in nats per token above."""

    perplexity: float = 2.0
    distinct: float = 0.6
    kl: float = 1.0

    def __post_init__(self) -> None:
        for name in ("perplexity", "distinct", "kl"):
            if not 0 < getattr(self, name) < math.inf:
                raise bad_argument(name, getattr(self, name), "a positive number")


class Measured(Protocol):
    """A strength, and why text is broken there, if it is."""

    @property
    def strength(self) -> float: ...

    @property
    def broken(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class Point:
    """One strength. `effect` in the task's contrast; `perplexity` and `distinct` are ratios to unsteered text; `kl` in nats per
    token; `judged`: mean P(label 1) of what is written, None without a useful judge; `broken`: why, if it is."""

    strength: float
    effect: Effect
    perplexity: float
    distinct: float
    kl: float
    damage: float | None
    judged: float | None
    broken: tuple[str, ...]


@dataclass(frozen=True)
class Curve:
    """A dose-response curve on one set of pairs. `cliffs`: sign -> the smallest broken strength, or None."""

    split: str
    site: str
    norm: float
    span: float
    n_items: int
    n_templates: int
    points: tuple[Point, ...]
    slope: float
    reversed: float
    cliffs: dict[str, float | None]

    def at(self, strength: float) -> Point:
        """The point of a strength of the grid."""
        return next(point for point in self.points if point.strength == strength)


@dataclass(frozen=True)
class Choice:
    """A strength and why it was taken; `works`: whether text is intact there and the effect is towards the answer."""

    strength: float
    why: str
    works: bool


@dataclass(frozen=True, eq=False)
class Bench:
    """What a curve is measured on: pairs, ordinary texts, openings to continue, how, and a judge of what is written."""

    task: PreparedTask
    texts: Sequence[str]
    prompts: Sequence[str]
    judge: Judge | None = None
    max_new_tokens: int = 24
    temperature: float = 0.7
    seed: int = 0


def grid_of(strengths: Sequence[float]) -> tuple[float, ...]:
    """Strengths in order, with 0. Raises UsageError without one of each sign, or for numbers that are not finite."""
    found = sorted({float(strength) for strength in strengths} | {0.0})
    if not all(map(math.isfinite, found)) or found[0] >= 0 or found[-1] <= 0:
        raise bad_argument("strengths", list(strengths), "finite numbers, at least one positive and one negative",
                           "They are fractions of the residual norm: for example -0.3, -0.1, 0.1, 0.3.")  # fmt: skip
    return tuple(found)


def measure_curve(
    model: Model, direction: Direction, how: How, strengths: Sequence[float], bench: Bench, split: str, bars: Bars = Bars(),
    report: Callable[[str], None] = lambda step: None,
) -> Curve:  # fmt: skip
    """Every strength on one bench. Raises TaskError where the model does not have the behaviour."""
    pushes = [Push(direction, strength) for strength in grid_of(strengths)]
    report("effect")
    clean, span = span_of(model, bench.task)
    odds = scores(model, bench.task.clean, bench.task.metric("logit_diff"), pushes, how)
    moved = ((odds - clean) / span).double().numpy()
    moved[[number for number, push in enumerate(pushes) if push.strength == 0]] = 0.0  # unsteered, without the batch's rounding
    report("ordinary text")
    lost = sequence_kl(model, bench.texts, pushes, how).double().mean(1).tolist()
    report("writing")
    written = continuations(model, bench.prompts, pushes, how, bench.max_new_tokens, bench.temperature, bench.seed)
    return curve_of(model, direction, how, pushes, bench, split, bars, moved, span, lost, written)


def curve_of(
    model: Model, direction: Direction, how: How, pushes: Sequence[Push], bench: Bench, split: str, bars: Bars,
    moved: np.ndarray, span: float, lost: Sequence[float], written: Sequence[Sequence[Continuation]],
) -> Curve:  # fmt: skip
    """What was measured, as a curve."""
    found = [fluency(model, texts) for texts in written]
    plain = found[[push.strength for push in pushes].index(0.0)]
    points = []
    for push, row, text, said, loss in zip(pushes, moved, found, written, lost, strict=True):
        effect = effect_of(row.tolist(), bench.task.templates)
        both = ratios(text, plain)
        change = abs(effect.mean) * span
        points.append(Point(
            push.strength, effect, *both, loss, (2 * loss) ** 0.5 / change if change > 0 and push.strength else None,
            judged(bench.judge, said), broken(*both, loss, bars) if push.strength else (),
        ))  # fmt: skip
    found_slopes = slopes([push.strength for push in pushes], moved)
    return Curve(split, direction.site, how.norm, span, len(bench.task), len(set(bench.task.templates)), tuple(points),
                 float(found_slopes.mean()), reversed_share(found_slopes),
                 {"+": cliff(points, 1), "-": cliff(points, -1)})  # fmt: skip


def ratios(text: Fluency, plain: Fluency) -> tuple[float, float]:
    """Perplexity and distinct-2 against unsteered text."""
    return _exp(text.surprisal, plain.surprisal), _over(text.distinct, plain.distinct)


def judged(judge: Judge | None, written: Sequence[Continuation]) -> float | None:
    """Mean P(label 1) of continuations; None without a useful judge."""
    if judge is None or not judge.useful or not written:
        return None
    found = judge([one.text for one in written])
    return sum(found) / len(found)


def broken(perplexity: float, distinct: float, kl: float, bars: Bars = Bars()) -> tuple[str, ...]:
    """Why text counts as broken; empty where it is intact."""
    reasons = []
    if not math.isfinite(perplexity) or not math.isfinite(distinct) or not math.isfinite(kl):
        reasons.append("not a finite number")
    if perplexity > bars.perplexity:
        reasons.append(f"perplexity x {perplexity:.1f} (at most {bars.perplexity:g})")
    if distinct < bars.distinct:
        reasons.append(f"distinct-2 x {distinct:.2f} (at least {bars.distinct:g})")
    if kl > bars.kl:
        reasons.append(f"KL {kl:.2f} nats per token (at most {bars.kl:g})")
    return tuple(reasons)


def cliff(points: Sequence[Measured], sign: int) -> float | None:
    """The smallest broken strength of a sign; None where the grid does not reach it."""
    found = [point.strength for point in points if point.broken and point.strength * sign > 0]
    return min(found, key=abs) if found else None


def intact(points: Sequence[Point]) -> list[Point]:
    """Points before the cliff of their sign, without 0."""
    ends = {sign: cliff(points, sign) for sign in (1, -1)}
    return [point for point in points if point.strength
            and ((end := ends[1 if point.strength > 0 else -1]) is None or abs(point.strength) < abs(end))]  # fmt: skip


def choose(points: Sequence[Point]) -> Choice:
    """The strength to take, by point 4 above."""
    towards = [point for point in points if point.strength and point.effect.mean > 0]
    kept = [point for point in intact(points) if point in towards]
    if not kept:
        least = min(towards or [point for point in points if point.strength], key=lambda point: abs(point.strength))
        why = "every strength that moves the behaviour towards the answer breaks text" if towards else "nothing moves it there"
        return Choice(least.strength, why, False)
    light = [point for point in kept if point.damage is not None and point.damage <= DAMAGE]
    if light:
        best = max(light, key=lambda point: point.effect.mean)
        why = f"the largest effect with intact text and damage of at most {DAMAGE:g} of the change"
        return Choice(best.strength, why, True)
    best = min(kept, key=lambda point: (math.inf if point.damage is None else point.damage, -point.effect.mean))
    return Choice(best.strength, f"the least damage per change: at no strength is it at most {DAMAGE:g} of the change", True)


def _exp(one: float, other: float) -> float:
    """exp(one - other); 1 where nothing was written with and without steering, infinity where it is too large."""
    if math.isnan(one) and math.isnan(other):
        return 1.0
    return math.exp(one - other) if not one - other > 700 else math.inf


def _over(one: float, other: float) -> float:
    """A ratio to unsteered text; 1 where neither has enough tokens to tell."""
    if math.isnan(one) and math.isnan(other):
        return 1.0
    return one / other if other > 0 else math.inf
