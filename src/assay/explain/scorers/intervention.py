"""Intervention: does what is said of a feature tell its effect on the next token from other features' effects?

`Tools.changes` has what happens when this and other features are clamped in the same contexts, of documents that no explainer
saw (`assay.explain.output_side.clamped`).

1. Words, with a judge: it sees the promoted and suppressed tokens of this feature and of one other, and names the one it is
   about; `TRIALS` others, look-alikes first (the nearest by decoder, the one it fires with most). Value: share right.
2. A rule, or no judge, with lists of promoted and suppressed tokens (`Explanation.output`): in every context the mean change
   of the promoted minus that of the suppressed, for this feature and the others. Value: share of others below it, ties half;
   mean over documents.
3. Else: cosine of the words with each feature's promoted tokens, by the sentence encoder; share of others below, ties half.

Chance 0.5 in all three; `detail["by"]` says which it was. After Paulo et al. 2024 (intervention scoring).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from assay.errors import bad_argument
from assay.explain import prompts
from assay.explain.output_side import Changes, Output
from assay.explain.records import Explanation, Sample
from assay.explain.scorers.base import SCORERS, Outcome, Question, Scorer, Unscored, by_judge, draw_of, scored, words_of
from assay.explain.scorers.intervals import share
from assay.explain.tools import Reply, Tools, check_disjoint
from assay.statistics import interval

TRIALS, OTHERS = 6, 50


def question(explanation: Explanation, sample: Sample, tools: Tools) -> Question:
    """How often the feature's own change is told from others'."""
    check_disjoint(sample)
    changes, feature = tools.changes, sample.feature
    if changes is None:
        raise Unscored("what clamping features does was not measured")
    if feature not in changes.outputs:
        raise Unscored("it was not clamped")
    others = [name for name in changes.features if name != feature]
    if not others:
        raise Unscored("no other feature was clamped")
    draw = draw_of(sample, tools, 7)
    hard = [name for name in look_alikes(sample) if name in changes.outputs]
    rest = [name for name in others if name not in hard]
    chosen = [*hard, *(rest[place] for place in draw.permutation(len(rest)))][:OTHERS]
    if by_judge(explanation):
        return _judged(explanation, changes, feature, chosen[:TRIALS], draw)
    if explanation.output and explanation.output.get("promoted"):
        return scored(_by_tokens(explanation.output, changes, feature, chosen))
    return scored(lambda _: _by_words(explanation, changes, feature, chosen, tools))


def look_alikes(sample: Sample) -> list[str]:
    """Features that it is told from first: the nearest by decoder, and the one that fires with it most."""
    found = dict.fromkeys(name for near in (sample.neighbours, sample.coactive) for name, _ in near[:1])
    return [name for name in found if name != sample.feature]


def _judged(
    explanation: Explanation, changes: Changes, feature: str, others: Sequence[str], draw: np.random.Generator
) -> Question:
    trials, own = [], []
    for other in others:
        place = int(draw.integers(2))
        pair = [changes.outputs[other], changes.outputs[other]]
        pair[place] = changes.outputs[feature]
        trials.append(prompts.intervention(explanation.text, [_lists(output) for output in pair]))
        own.append(place)

    def finish(replies: Sequence[Reply]) -> Outcome:
        said = [prompts.number_in(reply.text, 2) for reply in replies]
        value, low, high = share([float(answer == place) for answer, place in zip(said, own, strict=True)])
        return Outcome(value, len(said), sum(answer is None for answer in said), low, high, {"by": "judge"})

    return Question(tuple(trials), finish)


def _lists(output: Output) -> dict[str, list[str]]:
    return {"promoted": [token.text for token in output.promoted], "suppressed": [token.text for token in output.suppressed]}


def _by_tokens(
    output: Mapping[str, Any], changes: Changes, feature: str, others: Sequence[str]
) -> Callable[[Sequence[Reply]], Outcome]:
    seen = set(output.get("documents", ())) & set(changes.documents)
    if seen:
        raise bad_argument("explanation", f"lists from document {min(seen)!r}, where it is scored",
                           "lists from documents that are not scored")  # fmt: skip
    up, down = (changes.of([token["id"] for token in output.get(name, ())]) for name in ("promoted", "suppressed"))
    if up is None:
        raise Unscored("the change of its promoted tokens was not measured")
    fit = up - (0.0 if down is None else down)
    place = {name: row for row, name in enumerate(changes.features)}
    own, rest = fit[place[feature]], fit[[place[name] for name in others]]
    won = ((rest < own) + 0.5 * (rest == own)).mean(0)
    groups = {name: [row for row, each in enumerate(changes.documents) if each == name] for name in changes.documents}
    means = [float(won[rows].mean()) for rows in groups.values()]

    def finish(_: object) -> Outcome:
        low, high = interval(means)
        return Outcome(float(np.mean(means)), len(means), 0, None if low is None else max(0.0, low),
                       None if high is None else min(1.0, high), {"by": "tokens", "others": len(others)})  # fmt: skip

    return finish


def _by_words(explanation: Explanation, changes: Changes, feature: str, others: Sequence[str], tools: Tools) -> Outcome:
    cosines = np.zeros(len(others) + 1)
    if words_of(explanation):
        said = [" ".join(token.text for token in changes.outputs[name].promoted) or " " for name in (feature, *others)]
        vectors = np.asarray(tools.encode([explanation.text, *said]))
        cosines = vectors[1:] @ vectors[0]
    won = float(((cosines[1:] < cosines[0]) + 0.5 * (cosines[1:] == cosines[0])).mean())
    return Outcome(won, len(others), detail={"by": "words", "others": len(others)})


SCORERS.add("intervention", Scorer("intervention", 0.5, "Does it tell the feature's effect from others'?", question))
