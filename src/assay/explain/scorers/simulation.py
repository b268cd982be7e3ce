"""Simulation: how strongly is the feature on at each token? (Bills et al. 2023)

1. A judge gives every token of a window a number from 0 to 10; a rule gives 1 where it fires, else 0.
2. Value: Pearson's r of these numbers with the true activations, over all tokens of windows that fire and of like ones that do
   not, times the share of windows with a usable answer: a window without one adds nothing and is not forgiven. Constant
   predictions have r = 0. Chance 0.
"""

from collections.abc import Sequence

import numpy as np

from assay.explain import prompts
from assay.explain.records import Explanation, Sample, Window
from assay.explain.scorers.base import SCORERS, Asked, Outcome, Question, Scorer, asked, by_judge, scored, verdicts
from assay.explain.scorers.intervals import correlation
from assay.explain.tools import Reply, Tools

WINDOWS = 10  # of a kind: each is one prompt


def question(explanation: Explanation, sample: Sample, tools: Tools) -> Question:
    """Correlation of predicted with true activations."""
    found = asked(sample, explanation, tools, WINDOWS)
    windows = [*found.on, *found.off]
    if not by_judge(explanation):
        return scored(lambda _: outcome(found, windows, [row.astype(float) for row in verdicts(explanation, windows, tools)]))

    def finish(replies: Sequence[Reply]) -> Outcome:
        said = [prompts.strengths_in(reply.text, len(window.pieces)) for reply, window in zip(replies, windows, strict=True)]
        return outcome(found, windows, [None if row is None else np.array(row) for row in said])

    return Question(tuple(prompts.simulation(explanation.text, window) for window in windows), finish)


def outcome(found: Asked, windows: Sequence[Window], said: Sequence[np.ndarray | None]) -> Outcome:
    """What the predictions come to; None adds nothing."""
    known = [(row, window) for row, window in zip(said, windows, strict=True) if row is not None]
    failed = len(windows) - len(known)
    if not known:
        return Outcome(0.0, len(windows), failed, detail=found.detail)
    true = [np.array(window.values) for _, window in known]
    found_r = correlation([row for row, _ in known], true, [window.document for _, window in known])
    kept = len(known) / len(windows)
    value, low, high = (None if each is None else each * kept for each in found_r)
    assert value is not None
    return Outcome(value, len(windows), failed, low, high, {**found.detail, "r_of_answered": found_r[0]})


SCORERS.add("simulation", Scorer("simulation", 0.0, "How strongly is it on at each token?", question))
