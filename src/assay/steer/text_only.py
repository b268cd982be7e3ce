"""A direction without a behaviour: what a push does to what is written, where nobody says what it should change.

1. Every strength of the grid with openings and ordinary texts as a dose curve has them (`dose`), but for the effect: perplexity
   and variety of what is written, KL on ordinary text, a judge where there is one, and the cliff of each sign.
2. The strength that is shown: the largest that was asked for; where none was, the largest positive one before the cliff.
3. Side effects there (`side_effects`), and every prompt continued unsteered, steered, and along a random direction of equal
   norm.

Nothing is chosen by what it does, so there is no hit, no miss and no claim: for these a behaviour must be named.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from assay.data.prepare import PreparedTask
from assay.data.prepare_concept import PreparedConcept
from assay.errors import bad_argument
from assay.model.model import Model
from assay.records import plain
from assay.steer.directions import Direction
from assay.steer.dose import broken, cliff, judged, ratios
from assay.steer.effects import How, Progress, Push, random_directions
from assay.steer.fluency import check_room, continuations, fluency, openings, sequence_kl
from assay.steer.judge import Judge
from assay.steer.kept import Kept, Nowhere
from assay.steer.run import Sample, SteerPlan, direction_record, how_of, side_by_side
from assay.steer.side_effects import OtherTask, Refusal, other_tasks, refusal_overlap


@dataclass(frozen=True)
class TextPoint:
    """One strength; as `dose.Point`, without an effect."""

    strength: float
    perplexity: float
    distinct: float
    kl: float
    judged: float | None
    broken: tuple[str, ...]


@dataclass(frozen=True)
class TextReport:
    """Everything that was measured. `strength`: the one that samples and side effects are at, `why` it is that one."""

    model: str
    direction: dict[str, Any]
    applied: dict[str, Any]
    norm: float
    strength: float
    why: str
    points: tuple[TextPoint, ...]
    cliffs: dict[str, float | None]
    other_tasks: tuple[OtherTask, ...] | None
    left_out: dict[str, str]
    refusal: Refusal | None
    samples: tuple[Sample, ...]
    judge: dict[str, Any] | None

    def json(self) -> dict[str, Any]:
        """As plain data; `behaviour` and `effect` are null."""
        return {"behaviour": None, "effect": None, **plain(self)}


def steer_text(
    model: Model, directions: Sequence[Direction], plan: SteerPlan, judge: Judge | None = None,
    others: Mapping[str, PreparedTask] | None = None, requests: PreparedConcept | None = None,
    condition: tuple[Direction, float | None] | None = None, progress: Progress | None = None, kept: Kept | None = None,
    shown: float | None = None,
) -> TextReport:  # fmt: skip
    """What pushing does to text. Of several directions the one that separates left-out groups best is taken. `shown`: the
    strength of samples and side effects, None: the largest before text breaks.

    Raises UsageError for no direction, or prompts that leave no room for what is written.
    """
    if not directions:
        raise bad_argument("directions", "none", "one direction or more")
    kept = kept or Nowhere()
    direction = max(directions, key=lambda each: each.card.get("auroc") or 0.0)
    check_room(model, plan.shown, plan.shown_tokens)
    how = how_of(model, direction, plan, condition, kept)
    if progress:
        progress("writing", 0, 2)
    found = kept.once(f"text-{direction.name}", lambda: plain(_points(model, direction, how, plan, judge)))
    points = tuple(TextPoint(**{**record, "broken": tuple(record["broken"])}) for record in found)
    cliffs = {"+": cliff(points, 1), "-": cliff(points, -1)}
    strength, why = (shown, "the largest that was asked for") if shown is not None else _shown(plan, cliffs["+"])
    push = Push(direction, strength)
    if progress:
        progress("side effects", 1, 2)
    tasks, left = (None, {}) if others is None else other_tasks(model, others, push, how, progress)
    refusal = None if requests is None else refusal_overlap(model, requests, push, how)
    drawn = random_directions(model, direction, model.tokens(list(plan.texts[:12])), 1, plan.seed)
    samples = side_by_side(model, push, how, next(iter(drawn.values())), judge, plan, progress)
    applied, said = how.steering(direction, strength).describe(), None if judge is None else judge.record()
    return TextReport(model.name, direction_record(direction), applied, how.norm, strength, why, points, cliffs, tasks, left,
                      refusal, samples, said)  # fmt: skip


def _points(model: Model, direction: Direction, how: How, plan: SteerPlan, judge: Judge | None) -> list[TextPoint]:
    """Every strength of the grid on the plan's texts that nothing is chosen on."""
    pushes = [Push(direction, strength) for strength in plan.grid]
    lost = sequence_kl(model, plan.unseen[: plan.most_texts], pushes, how).double().mean(1).tolist()
    written = continuations(model, openings(plan.unseen)[: plan.openings], pushes, how, plan.max_new_tokens, plan.temperature,
                            plan.seed)  # fmt: skip
    text = [fluency(model, said) for said in written]
    usual = text[plan.grid.index(0.0)]
    found = []
    for push, one, said, loss in zip(pushes, text, written, lost, strict=True):
        both = ratios(one, usual)
        found.append(TextPoint(push.strength, *both, loss, judged(judge, said), broken(*both, loss, plan.bars) if push.strength
                               else ()))  # fmt: skip
    return found


def _shown(plan: SteerPlan, end: float | None) -> tuple[float, str]:
    """The strength that is shown, and why it is that one."""
    positive = [strength for strength in plan.grid if strength > 0] or [strength for strength in plan.grid if strength][-1:]
    before = [strength for strength in positive if end is None or strength < end]
    if before:
        return before[-1], "the largest of the grid before text breaks"
    return positive[0], "the smallest of the grid: text breaks at all of them"
