"""`steer`: a direction is tried at many doses on tune pairs, and what was chosen there is measured on others.

1. Tune: where several directions are given (one per layer), each is screened at a few doses on a few pairs and ordinary texts;
   the one with the largest effect before its KL exceeds the bar is kept. The full dose curve of that one is measured, and a
   strength is chosen on it (`dose.choose`).
2. Confirm: the same curve on pairs of other templates, with other openings and other ordinary texts. Nothing is chosen here.
3. Controls on confirm, all at the chosen strength: `draws` random directions that move activations as far (the percentile of
   the effect among them; of modes that do not add, the mean square on tune is matched), the opposite sign, the same numbers at
   other layers.
4. Side effects at the chosen strength (`side_effects`), text over several turns (`turns`), and texts side by side: unsteered,
   steered, one random direction.
5. A *hit* has an effect whose interval lies above `EFFECT`, is beyond the 99th percentile of random directions, and leaves
   text intact. Everything else is a miss: no effect, or incoherent. A miss is a result.

`choose_direction` reads tune pairs only, `confirm` takes what it chose: whoever tests a claim does so between the two. What a
hit is worth is for the claim to say: see `assay.evidence.steers`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from assay.data.ordinary import OTHERS, TEXTS
from assay.data.prepare import PreparedTask
from assay.data.prepare_concept import PreparedConcept
from assay.errors import bad_argument
from assay.model.edits import Phase
from assay.model.model import Model
from assay.records import digest, plain
from assay.steer.apply import Mode, residual_norm
from assay.steer.directions import Direction
from assay.steer.dose import GRID, SHARES, Bars, Bench, Choice, Curve, choose, grid_of, measure_curve
from assay.steer.effects import (
    Effect,
    How,
    Progress,
    Push,
    effect_of,
    matched,
    other_layers,
    percentile_of,
    random_directions,
    scores,
    size_of,
    span_of,
)  # fmt: skip
from assay.steer.fluency import check_room, continuations, openings, sequence_kl
from assay.steer.judge import Judge
from assay.steer.kept import Kept, Nowhere
from assay.steer.side_effects import OtherTask, Refusal, other_tasks, refusal_overlap
from assay.steer.turns import Turn, over_turns

EFFECT = 0.1  # of the task's contrast
BEYOND = 0.99  # of random directions
SCREEN = (-0.2, 0.1, 0.2, 0.4)
SCREEN_ITEMS, SCREEN_TEXTS = 16, 6
CLAIM_SHARES = (-1.0, -0.5, 0.5, 1.0)  # of the chosen strength
TOGETHER = 25  # random directions measured, and kept, at a time
ORDINARY = tuple(text for both in zip(OTHERS, TEXTS, strict=True) for text in both)


@dataclass(frozen=True)
class SteerPlan:
    """How a direction is tried. `strengths`: fractions of the mean residual norm (of project_out: shares of the component),
    None: the usual grid. `draws`: random directions. `control_items`: pairs they are measured on. `texts`: ordinary texts, from
    which openings are taken too: the first, third, .. are for tune, the others for confirm and claims; of a half at most
    `most_texts` are read. `prompts`: what is shown side by side; none: two openings.

    Raises UsageError for numbers that mean nothing.
    """

    mode: Mode = "add"
    positions: str = "all"
    phase: Phase = "all"
    strengths: tuple[float, ...] | None = None
    draws: int = 100
    control_items: int = 10
    max_new_tokens: int = 24
    temperature: float = 0.7
    openings: int = 8
    most_texts: int = 10
    texts: tuple[str, ...] = ORDINARY
    prompts: tuple[str, ...] = ()
    shown_tokens: int = 40
    bars: Bars = field(default_factory=Bars)
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("draws", "control_items", "max_new_tokens", "openings", "most_texts", "shown_tokens"):
            if getattr(self, name) < 1:
                raise bad_argument(name, getattr(self, name), "1 or more")
        if not 0 <= self.temperature < float("inf"):
            raise bad_argument("temperature", self.temperature, "0 (greedy) or more")
        if len(set(self.texts)) < 4:
            raise bad_argument("texts", f"{len(set(self.texts))} different ordinary texts", "four or more")
        grid_of(self.grid)

    @property
    def grid(self) -> tuple[float, ...]:
        """All strengths, 0 among them."""
        return grid_of(self.strengths if self.strengths is not None else SHARES if self.mode == "project_out" else GRID)

    @property
    def unseen(self) -> tuple[str, ...]:
        """The ordinary texts on which nothing is chosen."""
        return self.texts[1::2]

    @property
    def shown(self) -> list[str]:
        """The prompts that are shown side by side."""
        return list(self.prompts) or openings(self.unseen)[:2]

    def bench(self, task: PreparedTask, judge: Judge | None, half: int) -> Bench:
        """Pairs with every second ordinary text, and the openings of those."""
        texts = self.texts[half::2]
        first = openings(texts)[: self.openings]
        return Bench(task, texts[: self.most_texts], first, judge, self.max_new_tokens, self.temperature, self.seed)


@dataclass(frozen=True)
class Screened:
    """One candidate direction on tune: the largest effect towards the answer with a KL within the bar, and at which dose."""

    site: str
    strength: float | None
    effect: float
    kl: float | None


@dataclass(frozen=True, eq=False)
class Chosen:
    """What was chosen on tune: a direction, how it is applied, its curve there, and the strength."""

    direction: Direction
    how: How
    curve: Curve
    choice: Choice
    screened: tuple[Screened, ...]

    @property
    def push(self) -> Push:
        return Push(self.direction, self.choice.strength)

    @property
    def claimed(self) -> list[float]:
        """The doses that a claim is about, in units of the activations: shares of what was chosen, both ways."""
        return [share * abs(self.choice.strength) * self.how.norm for share in CLAIM_SHARES]


@dataclass(frozen=True)
class Controls:
    """At the chosen strength, on a few items: the effect, those of random directions by name, the share of them that are
    smaller, the opposite sign, and the same numbers at other layers."""

    n_items: int
    effect: float
    random: dict[str, float]
    percentile: float
    p: float
    flipped: float
    other_layers: dict[str, float]


@dataclass(frozen=True)
class Sample:
    """One prompt continued in three ways, greedily; `judged`: what the judge says of each, where there is a useful one."""

    prompt: str
    unsteered: str
    steered: str
    random: str
    judged: tuple[float, float, float] | None


@dataclass(frozen=True)
class SteerReport:
    """Everything that was measured. `outcome`: hit, no effect, or incoherent; `reasons` say why in words."""

    model: str
    behaviour: str
    direction: dict[str, Any]
    applied: dict[str, Any]
    norm: float
    strength: float
    why: str
    effect: Effect
    tune: Curve
    confirm: Curve
    screened: tuple[Screened, ...]
    controls: Controls
    other_tasks: tuple[OtherTask, ...] | None
    left_out: dict[str, str]
    refusal: Refusal | None
    samples: tuple[Sample, ...]
    judge: dict[str, Any] | None
    outcome: str
    reasons: tuple[str, ...]
    turns: tuple[Turn, ...] = ()

    def json(self) -> dict[str, Any]:
        """As plain data."""
        return plain(self)


@dataclass(frozen=True, eq=False)
class Behaviour:
    """What is to be changed: a task's pairs to choose on and (None while they are sealed) to report on, a judge of text, and
    which other tasks and requests are looked at."""

    name: str
    tune: PreparedTask
    confirm: PreparedTask | None = None
    judge: Judge | None = None
    others: Mapping[str, PreparedTask] | None = None
    requests: PreparedConcept | None = None


def steer(
    model: Model, directions: Direction | Sequence[Direction], behaviour: Behaviour, plan: SteerPlan = SteerPlan(),
    progress: Progress | None = None, kept: Kept | None = None, condition: tuple[Direction, float | None] | None = None,
) -> SteerReport:  # fmt: skip
    """Choose on tune, report on confirm.

    Raises TaskError where the model does not have the behaviour, UsageError for a direction or plan that does not fit.
    """
    chosen = choose_direction(model, directions, behaviour, plan, progress, kept, condition)
    return confirm(model, chosen, behaviour, plan, progress, kept)


# tune --------------------------------------------------------------------------------------------


def choose_direction(
    model: Model, directions: Direction | Sequence[Direction], behaviour: Behaviour, plan: SteerPlan = SteerPlan(),
    progress: Progress | None = None, kept: Kept | None = None, condition: tuple[Direction, float | None] | None = None,
) -> Chosen:  # fmt: skip
    """The direction and strength to take, by tune pairs alone. `condition`: a direction and a threshold (see `Steering`)."""
    given = [directions] if isinstance(directions, Direction) else list(directions)
    if not given:
        raise bad_argument("directions", "none", "one direction or more")
    check_room(model, plan.shown, plan.shown_tokens)
    kept = kept or Nowhere()
    found: list[tuple[Direction, How]] = []
    screened: list[Screened] = []
    few = _few(behaviour.tune, SCREEN_ITEMS)
    contrast = span_of(model, few) if len(given) > 1 else None
    for number, direction in enumerate(given):
        if progress:
            progress(f"choosing: {direction.site}", number, len(given))
        how = how_of(model, direction, plan, condition, kept)
        found.append((direction, how))
        if len(given) > 1:
            name = f"screen-{direction.name}"
            record = kept.once(name, lambda d=direction, h=how: plain(_screen(model, d, h, few, contrast, plan)))
            screened.append(Screened(**record))
    best = max(range(len(given)), key=lambda number: screened[number].effect) if screened else 0
    direction, how = found[best]
    bench = plan.bench(behaviour.tune, behaviour.judge, 0)
    curve = _curve(model, direction, how, bench, "tune", plan, progress, kept)
    return Chosen(direction, how, curve, choose(curve.points), tuple(screened))


def how_of(
    model: Model, direction: Direction, plan: SteerPlan, condition: tuple[Direction, float | None] | None = None,
    kept: Kept | None = None,
) -> How:  # fmt: skip
    """How a plan applies a direction: the norm at its site is that of the plan's ordinary texts."""
    texts = plan.texts[: 2 * plan.most_texts]
    norm = (kept or Nowhere()).once(f"norm-{direction.site}", lambda: residual_norm(model, direction.site, texts))
    return How(float(norm), plan.mode, plan.positions, plan.phase, *(condition or (None, None)))


def _screen(model: Model, direction: Direction, how: How, task: PreparedTask, contrast: Any, plan: SteerPlan) -> Screened:
    """A few doses on a few pairs; damage on a few ordinary texts."""
    doses = SCREEN if plan.mode != "project_out" else tuple(share for share in SHARES if share)
    pushes = [Push(direction, dose) for dose in doses]
    effects = _effects(model, task, pushes, how, contrast)
    lost = sequence_kl(model, plan.texts[0::2][:SCREEN_TEXTS], pushes, how).mean(1).tolist()
    able = [(effect.mean, dose, loss) for dose, effect, loss in zip(doses, effects, lost, strict=True) if loss <= plan.bars.kl]
    if not able:
        return Screened(direction.site, None, float("-inf"), None)
    effect, dose, loss = max(able)
    return Screened(direction.site, dose, effect, loss)


def _curve(
    model: Model, direction: Direction, how: How, bench: Bench, split: str, plan: SteerPlan, progress: Progress | None,
    kept: Kept,
) -> Curve:  # fmt: skip
    def make() -> dict[str, Any]:
        steps = iter(range(3))

        def report(step: str) -> None:
            if progress:
                progress(f"{step} on {split}", next(steps), 3)

        return plain(measure_curve(model, direction, how, plan.grid, bench, split, plan.bars, report))

    return curve_from(kept.once(f"curve-{split}-{direction.name}", make))


def curve_from(record: Mapping[str, Any]) -> Curve:
    """A curve from its plain data."""
    from assay.steer.dose import Point

    points = tuple(Point(**{**point, "effect": _effect_from(point["effect"]), "broken": tuple(point["broken"])})
                   for point in record["points"])  # fmt: skip
    return Curve(**{**record, "points": points})


def _effect_from(record: Mapping[str, Any]) -> Effect:
    return Effect(record["mean"], record["low"], record["high"], tuple(record["items"]))


# confirm -----------------------------------------------------------------------------------------


def confirm(
    model: Model, chosen: Chosen, behaviour: Behaviour, plan: SteerPlan = SteerPlan(), progress: Progress | None = None,
    kept: Kept | None = None,
) -> SteerReport:  # fmt: skip
    """What was chosen, measured on confirm pairs, with controls, side effects and texts. UsageError without such pairs."""
    if behaviour.confirm is None:
        raise bad_argument("behaviour.confirm", None, "pairs of templates that tune does not have")
    kept = kept or Nowhere()
    bench = plan.bench(behaviour.confirm, behaviour.judge, 1)
    curve = _curve(model, chosen.direction, chosen.how, bench, "confirm", plan, progress, kept)
    drawn = random_directions(model, chosen.direction, behaviour.tune.clean, plan.draws, plan.seed)
    few = _few(behaviour.confirm, plan.control_items)
    controls = _controls(model, chosen, few, behaviour.tune.clean, drawn, plan, progress, kept)
    others, left = (None, {}) if behaviour.others is None else other_tasks(
        model, behaviour.others, chosen.push, chosen.how, progress)  # fmt: skip
    refusal = None if behaviour.requests is None else refusal_overlap(model, behaviour.requests, chosen.push, chosen.how)
    samples = side_by_side(model, chosen.push, chosen.how, next(iter(drawn.values())), behaviour.judge, plan, progress)
    turns = _turns(model, chosen, curve, bench, plan, progress, kept)
    point = curve.at(chosen.choice.strength)
    outcome, reasons = judged_outcome(chosen.choice, point.effect, (*point.broken, *_behind(curve, point.strength)), controls)
    return SteerReport(
        model=model.name, behaviour=behaviour.name, direction=direction_record(chosen.direction),
        applied=chosen.how.steering(chosen.direction, chosen.choice.strength).describe(),
        norm=chosen.how.norm, strength=chosen.choice.strength, why=chosen.choice.why, effect=point.effect, tune=chosen.curve,
        confirm=curve, screened=chosen.screened, controls=controls, other_tasks=others, left_out=left, refusal=refusal,
        samples=samples, judge=None if behaviour.judge is None else behaviour.judge.record(), outcome=outcome, reasons=reasons,
        turns=turns,
    )  # fmt: skip


def _behind(curve: Curve, strength: float) -> tuple[str, ...]:
    """That a strength lies behind the curve's own cliff, if it does."""
    cliff = curve.cliffs["+" if strength > 0 else "-"]
    return () if cliff is None or abs(strength) <= abs(cliff) else (f"behind the cliff at {cliff:+g}",)


def judged_outcome(
    choice: Choice, effect: Effect, broken: Sequence[str], controls: Controls
) -> tuple[str, tuple[str, ...]]:
    """hit, no effect or incoherent, and why. Text that breaks is a miss whatever the effect is."""
    reasons = []
    if effect.low is None or effect.low <= EFFECT:
        least = "not known" if effect.low is None else f"{effect.low:+.2f}"
        reasons.append(f"effect {effect.mean:+.2f} of the contrast: its interval begins at {least}; above {EFFECT:g} is asked")
    if controls.percentile < BEYOND:
        smaller = sum(abs(value) < abs(controls.effect) for value in controls.random.values())
        reasons.append(f"{smaller} of {len(controls.random)} random directions have a smaller effect; {_asked_of(controls)}")
    unsound = (*([] if choice.works else [f"on tune, {choice.why}"]), *broken)
    if reasons:
        return "no effect", (*reasons, *unsound)
    return ("incoherent", unsound) if unsound else ("hit", ())


def _asked_of(controls: Controls) -> str:
    """How many random directions must have a smaller effect."""
    drawn = len(controls.random)
    needed = math.ceil(BEYOND * (drawn + 1))
    return f"at least {needed} must" if needed <= drawn else "fewer than 99 show nothing beyond the 99th percentile"


def _controls(
    model: Model, chosen: Chosen, task: PreparedTask, tune: Sequence[list[int]], drawn: Mapping[str, Direction],
    plan: SteerPlan, progress: Progress | None, kept: Kept,
) -> Controls:  # fmt: skip
    strength, how, contrast = chosen.choice.strength, chosen.how, span_of(model, task)
    own, flipped = _effects(model, task, [chosen.push, Push(chosen.direction, -strength)], how, contrast)
    names, random = list(drawn), {}
    size = size_of(model, chosen.push, how, tune)
    for start in range(0, len(names), TOGETHER):
        if progress:
            progress("random directions", start, len(names))
        group = names[start : start + TOGETHER]
        beside = [matched(chosen.push, how, size, drawn[name]) for name in group]
        pushes, alike = [push for push, _ in beside], beside[0][1]
        name = f"random-{strength:g}-{size:.6g}-{digest([drawn[name].digest for name in group])[:12]}"
        found = kept.once(name, lambda pushes=pushes, alike=alike: [
            each.mean for each in _effects(model, task, pushes, alike, contrast)])  # fmt: skip
        random.update(zip(group, found, strict=True))
    layers = {}
    for direction in other_layers(model, chosen.direction, condition=how.condition):
        there = how_of(model, direction, plan, None if how.condition is None else (how.condition, how.threshold), kept)
        layers[direction.site] = _effects(model, task, [Push(direction, strength)], there, contrast)[0].mean
    percentile = percentile_of(own.mean, list(random.values()))
    reached = sum(abs(value) >= abs(own.mean) for value in random.values())
    return Controls(len(task), own.mean, random, percentile, (1 + reached) / (1 + len(random)), flipped.mean, layers)


def _effects(
    model: Model, task: PreparedTask, pushes: Sequence[Push], how: How, contrast: tuple[Tensor, float] | None = None
) -> list[Effect]:
    clean, span = contrast or span_of(model, task)
    moved = (scores(model, task.clean, task.metric("logit_diff"), pushes, how) - clean) / span
    return [effect_of(row, task.templates) for row in moved.tolist()]


def _few(task: PreparedTask, n: int) -> PreparedTask:
    """At most n pairs, templates in turn, each beginning one pair later than the one before: where every template lists its
    kinds of pairs in the same order, all kinds are among the first."""
    rows: dict[str, list[int]] = {}
    for row, template in enumerate(task.templates):
        rows.setdefault(template, []).append(row)
    turns = [0] * len(task)
    for number, own in enumerate(rows.values()):
        for place, row in enumerate(own):
            turns[row] = (place - number) % len(own)
    return task.select(np.argsort(turns, kind="stable")[:n].tolist())


def side_by_side(
    model: Model, push: Push, how: How, random: Direction, judge: Judge | None, plan: SteerPlan,
    progress: Progress | None = None,
) -> tuple[Sample, ...]:  # fmt: skip
    """The prompts of a plan continued without a push, under it, and along a random direction that moves as far."""
    prompts = plan.shown
    if progress:
        progress("side by side", 0, 1)
    size = size_of(model, push, how, model.tokens(list(plan.texts[:SCREEN_TEXTS])))
    beside, alike = matched(push, how, size, random)
    sides = [side for pushes, way in (([Push(push.direction, 0.0), push], how), ([beside], alike))
             for side in continuations(model, prompts, pushes, way, plan.shown_tokens, 0.0, plan.seed)]  # fmt: skip
    texts = [[one.text for one in side] for side in sides]
    useful = judge is not None and judge.useful
    said = [judge(side) for side in texts] if judge is not None and useful else []
    return tuple(Sample(prompt, texts[0][row], texts[1][row], texts[2][row],
                        (said[0][row], said[1][row], said[2][row]) if said else None)
                 for row, prompt in enumerate(prompts))  # fmt: skip


def _turns(
    model: Model, chosen: Chosen, curve: Curve, bench: Bench, plan: SteerPlan, progress: Progress | None, kept: Kept
) -> tuple[Turn, ...]:
    if progress:
        progress("over turns", 0, 1)
    name = f"turns-{chosen.choice.strength:g}-{chosen.direction.name}"
    found = kept.once(name, lambda: plain(over_turns(model, chosen.push, chosen.how, curve.points, bench, plan.bars)))
    return tuple(Turn(**{**record, "broken": tuple(record["broken"])}) for record in found)


def direction_record(direction: Direction) -> dict[str, Any]:
    """What a report says of a direction: all but its numbers."""
    return {"name": direction.name, "site": direction.site, "method": direction.method, "scale": direction.scale,
            "convention": direction.convention, "source": direction.source, "card": direction.card}  # fmt: skip
