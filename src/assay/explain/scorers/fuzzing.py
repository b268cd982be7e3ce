"""Fuzzing: are the marked tokens those at which the feature is on? (Paulo et al. 2024, arXiv 2410.13928)

1. Half of the windows that fire are shown with their firing tokens marked; in the other half as many tokens are marked at which
   it is off.
2. Hard negatives: like windows where it fires nowhere, with the token they were chosen by marked, and as many more as a firing
   window has. A judge cannot tell them by the number of marks.
3. A rule says yes where it fires at half of the marked tokens or more. Value: balanced accuracy, chance 0.5.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from assay.explain import prompts
from assay.explain.records import Explanation, Sample, Window
from assay.explain.scorers.base import (
    SCORERS,
    TOGETHER,
    Asked,
    Outcome,
    Question,
    Scorer,
    Unscored,
    asked,
    by_judge,
    draw_of,
    scored,
    verdicts,
)
from assay.explain.scorers.intervals import balanced
from assay.explain.tools import Reply, Tools


@dataclass(frozen=True)
class Marked:
    """A window with marks at some tokens; `right` where it fires at them."""

    window: Window
    at: frozenset[int]
    right: bool


def question(explanation: Explanation, sample: Sample, tools: Tools) -> Question:
    """Balanced accuracy of yes and no over marked windows."""
    found, draw = asked(sample, explanation, tools), draw_of(sample, tools, 4)
    items = marks(found, draw)
    if not by_judge(explanation):
        return scored(lambda _: outcome(found, items, executed(explanation, items, tools)))
    mixed = [items[place] for place in draw.permutation(len(items))]
    parts = [mixed[start : start + TOGETHER] for start in range(0, len(mixed), TOGETHER)]

    def finish(replies: Sequence[Reply]) -> Outcome:
        said: list[bool | None] = []
        for part, reply in zip(parts, replies, strict=True):
            said += prompts.yes_no_in(reply.text, "right", len(part)) or [None] * len(part)
        return outcome(found, mixed, said)

    texts = [[prompts.marked(item.window, item.at) for item in part] for part in parts]
    return Question(tuple(prompts.fuzzing(explanation.text, part) for part in texts), finish)


def marks(found: Asked, draw: np.random.Generator) -> list[Marked]:
    """Windows with right and with wrong marks. Raises Unscored where there are none of one kind."""
    on = [found.on[place] for place in draw.permutation(len(found.on))]
    right = [Marked(window, frozenset(prompts.firing(window)), True) for window in on[::2]]
    counts = [len(item.at) for item in right]
    wrong = [_moved(window, len(prompts.firing(window)), draw) for window in on[1::2]]
    wrong += [_beside(window, int(draw.choice(counts)), draw) for window in found.off]
    kept = [item for item in wrong if item is not None]
    if not kept:
        raise Unscored("no scored window has tokens at which it is off")
    return right + kept


def _moved(window: Window, n: int, draw: np.random.Generator) -> Marked | None:
    """Marks at as many tokens where it is off; None where it is on everywhere."""
    off = [place for place, value in enumerate(window.values) if value <= 0]
    return Marked(window, frozenset(draw.permutation(off)[:n].tolist()), False) if off else None


def _beside(window: Window, n: int, draw: np.random.Generator) -> Marked:
    """Marks at the token a silent window was chosen by and at n - 1 others."""
    others = [place for place in range(len(window.pieces)) if place != window.at]
    return Marked(window, frozenset([window.at, *draw.permutation(others)[: n - 1].tolist()]), False)


def executed(explanation: Explanation, items: Sequence[Marked], tools: Tools) -> list[bool | None]:
    """What a rule says of marks."""
    rows = verdicts(explanation, [item.window for item in items], tools)
    return [bool(row[sorted(item.at)].mean() >= 0.5) for row, item in zip(rows, items, strict=True)]


def outcome(found: Asked, items: Sequence[Marked], said: Sequence[bool | None]) -> Outcome:
    """What the answers come to; None is wrong."""
    truth = [item.right for item in items]
    right = [answer is not None and answer == good for answer, good in zip(said, truth, strict=True)]
    value, low, high = balanced(truth, right, [item.window.document for item in items])
    return Outcome(value, len(items), sum(answer is None for answer in said), low, high, found.detail)


SCORERS.add("fuzzing", Scorer("fuzzing", 0.5, "Are the marked tokens those where it is on?", question))
