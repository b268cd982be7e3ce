"""Intruder: the feature fires in all of five texts but one; by the explanation, in which does it not?

1. Trials share no window: each takes four windows that fire and one like window that does not, at a random place.
2. A judge names one text. A rule points at the texts where it fires nowhere: of m of them, one is picked at random, so the
   trial counts 1/m if the intruder is among them; where it fires in all, 1/5. Value: share of trials won, chance 0.2.

After Paulo & Belrose's intruder test (2025), which shows no explanation and so scores the feature, not what is said of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from assay.explain import prompts
from assay.explain.records import Explanation, Sample, Window
from assay.explain.scorers.base import (
    SCORERS,
    Asked,
    Outcome,
    Question,
    Scorer,
    Unscored,
    asked,
    by_judge,
    draw_of,
    in_turn,
    scored,
    verdicts,
)
from assay.explain.scorers.intervals import share
from assay.explain.tools import Reply, Tools

TEXTS = 5
MOST_TRIALS = 10  # of a judge
READ = 40  # windows of a kind that trials of a judge are made from


@dataclass(frozen=True)
class Trial:
    """Texts of which all but one fire."""

    windows: tuple[Window, ...]
    intruder: int


def question(explanation: Explanation, sample: Sample, tools: Tools) -> Question:
    """Share of trials in which the silent text is found."""
    found = asked(sample, explanation, tools, READ)
    made = trials(found, draw_of(sample, tools, 6))
    if not by_judge(explanation):
        return scored(lambda _: outcome(found, executed(explanation, made, tools), 0))
    made = made[:MOST_TRIALS]

    def finish(replies: Sequence[Reply]) -> Outcome:
        said = [prompts.number_in(reply.text, TEXTS) for reply in replies]
        right = [float(answer == trial.intruder) for answer, trial in zip(said, made, strict=True)]
        return outcome(found, right, sum(answer is None for answer in said))

    return Question(tuple(prompts.intruder(explanation.text, trial.windows) for trial in made), finish)


def trials(found: Asked, draw: np.random.Generator) -> list[Trial]:
    """As many as there are windows for. Raises Unscored for fewer than four that fire."""
    on, off = (in_turn(side, len(side), draw) for side in (found.on, found.off))
    n = min(len(on) // (TEXTS - 1), len(off))
    if not n:
        raise Unscored(f"{len(on)} scored windows fire; a trial needs {TEXTS - 1}")
    made = []
    for trial in range(n):
        windows, place = on[trial * (TEXTS - 1) : (trial + 1) * (TEXTS - 1)], int(draw.integers(TEXTS))
        made.append(Trial((*windows[:place], off[trial], *windows[place:]), place))
    return made


def executed(explanation: Explanation, made: Sequence[Trial], tools: Tools) -> list[float]:
    """What a rule wins of every trial."""
    fires = [bool(row.any()) for row in verdicts(explanation, [window for trial in made for window in trial.windows], tools)]
    won = []
    for number, trial in enumerate(made):
        silent = [place for place in range(TEXTS) if not fires[number * TEXTS + place]]
        won.append(1 / TEXTS if not silent else 1 / len(silent) if trial.intruder in silent else 0.0)
    return won


def outcome(found: Asked, won: Sequence[float], failed: int) -> Outcome:
    """What the trials come to."""
    value, low, high = share(won)
    return Outcome(value, len(won), failed, low, high, found.detail)


SCORERS.add("intruder", Scorer("intruder", 1 / TEXTS, "In which text is it not on?", question))
