"""Does a push hold over turns? What was written under it stays in the context of what is written next.

1. Openings are continued; then another opening follows what was written and is continued, and so on, up to `TURNS` times:
   unsteered, at the chosen strength, and at the next smaller ones of its sign.
2. Every turn runs the whole conversation under the same edits: keys and values of earlier turns are those that a kept cache
   would hold. *Fresh*: at the chosen strength, but earlier turns are read as they are (phase "last"), as they would be if
   nothing steered were kept.
3. Of every turn what a dose curve has: perplexity of what is written under the unsteered model, in the same context, and
   distinct-2, as ratios to the same turn of the unsteered conversation; broken by the same bars. Text that breaks only where
   earlier turns are kept is broken by them.

Conversations are openings of ordinary texts one after the other, not talk. Fewer turns are measured where more do not fit into
the model's context, and none where two do not.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from assay.data.prepare import longest_of
from assay.model.model import Model
from assay.steer.dose import Bars, Bench, Point, broken, judged, ratios
from assay.steer.effects import How, Push, pushed_edits
from assay.steer.fluency import Continuation, fluency

TURNS, SMALLER = 3, 2  # turns of a conversation; strengths below the chosen one


@dataclass(frozen=True)
class Turn:
    """What is written in one turn at one strength. `fresh`: earlier turns were read unsteered; the rest as of a dose curve."""

    strength: float
    fresh: bool
    turn: int
    perplexity: float
    distinct: float
    judged: float | None
    broken: tuple[str, ...]


def over_turns(
    model: Model, push: Push, how: How, points: Sequence[Point], bench: Bench, bars: Bars
) -> tuple[Turn, ...]:
    """Every turn at the strength of a push and the next smaller ones of `points`; none where two turns do not fit."""
    openings = model.tokens(list(bench.prompts))
    turns = min(TURNS, longest_of(model) // (max(map(len, openings)) + 1 + bench.max_new_tokens))
    if turns < 2:
        return ()
    pushes = [Push(push.direction, 0.0), push, *(Push(push.direction, dose) for dose in _smaller(points, push.strength))]
    kept = _talks(model, openings, pushes, how, bench, turns)
    plain = [fluency(model, turn[0]) for turn in kept]
    found = [(one.strength, False, [turn[row] for turn in kept]) for row, one in enumerate(pushes) if row]
    if how.phase == "all":
        fresh = _talks(model, openings, [push], replace(how, phase="last"), bench, turns)
        found.append((push.strength, True, [turn[0] for turn in fresh]))
    rows = []
    for strength, is_fresh, written in found:
        for number, (said, usual) in enumerate(zip(written, plain, strict=True), 1):
            perplexity, distinct = ratios(fluency(model, said), usual)
            rows.append(Turn(strength, is_fresh, number, perplexity, distinct, judged(bench.judge, said),
                             broken(perplexity, distinct, 0.0, bars)))  # fmt: skip
    return tuple(rows)


def _smaller(points: Sequence[Point], strength: float) -> list[float]:
    """The strengths of a sign below one, the largest first."""
    below = [point.strength for point in points if 0 < point.strength / strength < 1]
    return sorted(below, key=abs, reverse=True)[:SMALLER]


def _talks(
    model: Model, openings: Sequence[list[int]], pushes: Sequence[Push], how: How, bench: Bench, turns: int
) -> list[list[list[Continuation]]]:
    """[turn][push][opening]: what is written, with all that stood before it."""
    n, texts = len(openings), list(bench.prompts)
    follow = [list(model.tokenizer(f" {text}", add_special_tokens=False)["input_ids"]) for text in texts]
    prompts, found = [list(ids) for _ in pushes for ids in openings], []
    for turn in range(turns):
        made = model.generate(prompts, max_new_tokens=bench.max_new_tokens, edits=pushed_edits(pushes, how, n),
                              temperature=bench.temperature, seed=bench.seed + turn)  # fmt: skip
        flat = [Continuation(tuple(prompt), tuple(new), text)
                for prompt, new, text in zip(made.prompts, made.tokens, made.texts, strict=True)]  # fmt: skip
        found.append([flat[start : start + n] for start in range(0, len(flat), n)])
        prompts = [[*one.prompt, *one.tokens, *follow[(row + turn + 1) % n]] for row, one in enumerate(flat)]
    return found
