"""Detection: is the feature on anywhere in a text? (Paulo et al. 2024, arXiv 2410.13928)

Texts where it fires and like ones where it does not, mixed; a rule says yes where it fires at some token. Value: balanced
accuracy, chance 0.5.
"""

from collections.abc import Sequence

from assay.explain import prompts
from assay.explain.records import Explanation, Sample, Window
from assay.explain.scorers.base import (
    SCORERS,
    TOGETHER,
    Asked,
    Outcome,
    Question,
    Scorer,
    asked,
    by_judge,
    draw_of,
    scored,
    verdicts,
)
from assay.explain.scorers.intervals import balanced
from assay.explain.tools import Reply, Tools


def question(explanation: Explanation, sample: Sample, tools: Tools) -> Question:
    """Balanced accuracy of yes and no over windows."""
    found = asked(sample, explanation, tools)
    windows = [*found.on, *found.off]
    if not by_judge(explanation):
        return scored(lambda _: outcome(found, windows, [bool(row.any()) for row in verdicts(explanation, windows, tools)]))
    mixed = [windows[place] for place in draw_of(sample, tools, 3).permutation(len(windows))]
    parts = [mixed[start : start + TOGETHER] for start in range(0, len(mixed), TOGETHER)]

    def finish(replies: Sequence[Reply]) -> Outcome:
        said: list[bool | None] = []
        for part, reply in zip(parts, replies, strict=True):
            said += prompts.yes_no_in(reply.text, "on", len(part)) or [None] * len(part)
        return outcome(found, mixed, said)

    return Question(tuple(prompts.detection(explanation.text, part) for part in parts), finish)


def outcome(found: Asked, windows: Sequence[Window], said: Sequence[bool | None]) -> Outcome:
    """What the answers come to; None is wrong."""
    truth = [window.fires for window in windows]
    right = [answer is not None and answer == fires for answer, fires in zip(said, truth, strict=True)]
    value, low, high = balanced(truth, right, [window.document for window in windows])
    caught = sum(each for each, fires in zip(right, truth, strict=True) if fires)
    detail = {**found.detail, "right_on": caught, "right_off": sum(right) - caught}
    return Outcome(value, len(windows), sum(answer is None for answer in said), low, high, detail)


SCORERS.add("detection", Scorer("detection", 0.5, "Is it on anywhere in the text?", question))
