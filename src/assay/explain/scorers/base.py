"""What scorers share: what a question is, which windows are asked about, what a rule says, and how explanations are shuffled.

1. A scorer turns an explanation and a sample into a question: prompts, and what is made of the replies. An explanation with a
   rule is executed instead (no prompt): the rule says of every token whether the feature is on.
2. Asked about are only windows of documents that were not shown; a scored window with the very tokens of a shown one (text
   that comes in many documents) is left out and counted.
3. Windows that do not fire, of all kinds there are (coactive, neighbour, similar, other), are as many as those that fire
   where a judge is paid, all where a rule is executed.
4. An answer that is missing or not as asked for counts as wrong.
5. Shuffled: the same questions with the explanation of another feature that fires about as often.

A further scorer is one file and one registration in `SCORERS`.
"""

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from assay.errors import bad_argument
from assay.explain.prompts import Prompt
from assay.explain.records import Cost, Explanation, Sample, Score, Window
from assay.explain.tools import Reply, Tools, check_disjoint
from assay.registry import Registry

MOST = 20  # windows of a kind that a judge is asked about
TOGETHER = 10  # windows in one prompt
BLOCK = 16  # features asked about together
ALIKE = 16  # features among which explanations are exchanged


@dataclass(frozen=True)
class Outcome:
    """What a question came to. `n`: what was asked about, `failed` of it without a usable answer."""

    value: float
    n: int
    failed: int = 0
    low: float | None = None
    high: float | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Question:
    """Prompts, and what is made of their replies (in order). Without prompts nothing is asked."""

    prompts: tuple[Prompt, ...]
    finish: Callable[[Sequence[Reply]], Outcome]


class Unscored(Exception):
    """This scorer cannot be used with this sample; the reason."""


@dataclass(frozen=True)
class Scorer:
    """`chance`: what knowing nothing gives. `question` raises Unscored where the sample has too little."""

    name: str
    chance: float
    words: str
    question: Callable[[Explanation, Sample, Tools], Question]


SCORERS: Registry[Scorer] = Registry("scorer")


def scored(value: Callable[[Sequence[Reply]], Outcome]) -> Question:
    """A question that needs no reply."""
    return Question((), value)


# windows ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """Windows that are asked about: those that fire and those that do not. `left_out`: with the tokens of a shown one."""

    on: tuple[Window, ...]
    off: tuple[Window, ...]
    left_out: int = 0

    @property
    def detail(self) -> dict[str, Any]:
        """How many windows of each kind."""
        kinds = [window.why for window in (*self.on, *self.off)]
        return {"windows": {why: kinds.count(why) for why in dict.fromkeys(kinds)}, "left_out": self.left_out}


def asked(sample: Sample, explanation: Explanation, tools: Tools, most: int = MOST) -> Asked:
    """All windows for a rule; at most `most` that fire and as many that do not for a judge, kinds in turn.

    Raises UsageError where shown and scored windows share a document, Unscored where there are none of one kind.
    """
    check_disjoint(sample)
    shown = {window.tokens for window in sample.shown}
    kept = [window for window in sample.scored if window.tokens not in shown]
    on, off = ([window for window in kept if window.fires is fires] for fires in (True, False))
    if not on or not off:
        raise Unscored(f"no scored window {'fires' if not on else 'without firing'}")
    if by_judge(explanation):
        on = in_turn(on, most, draw_of(sample, tools, 1))
        off = in_turn(off, min(most, len(on)), draw_of(sample, tools, 2))
    return Asked(tuple(on), tuple(off), len(sample.scored) - len(kept))


def in_turn(windows: Sequence[Window], most: int, draw: np.random.Generator) -> list[Window]:
    """At most so many, one kind after the other, each in random order."""
    kinds: dict[str, list[Window]] = {}
    for place in draw.permutation(len(windows)).tolist():
        kinds.setdefault(windows[place].why, []).append(windows[place])
    found: list[Window] = []
    longest = max((len(kind) for kind in kinds.values()), default=0)
    for turn in range(longest):
        found += [kind[turn] for kind in kinds.values() if turn < len(kind)]
    return found[:most]


def draw_of(sample: Sample, tools: Tools, salt: int) -> np.random.Generator:
    """Random numbers that depend on the feature and the seed only."""
    return np.random.default_rng([tools.seed, zlib.crc32(sample.feature.encode()), salt])


# rules --------------------------------------------------------------------------------------------


def by_judge(explanation: Explanation) -> bool:
    """Whether words alone must be judged. An explainer of rules that found none says nothing: it never fires."""
    return explanation.rule is None and not explanation.explainer.startswith("lexical")


def words_of(explanation: Explanation) -> str:
    """What is said; nothing where an explainer of rules found none."""
    return explanation.text.strip() if by_judge(explanation) or explanation.rule is not None else ""


def verdicts(explanation: Explanation, windows: Sequence[Window], tools: Tools) -> list[np.ndarray]:
    """Whether a rule fires, for every token of every window; nowhere where there is no rule.

    Scorers share what was executed: `tools.memo` holds it while its block is at work.
    """
    if explanation.rule is None:
        return [np.zeros(len(window.pieces), bool) for window in windows]
    from assay.explain.rules import fires_in, rule_of

    memo, own, apply = tools.memo, id(explanation.rule), tools.executed or fires_in
    todo = [window for window in windows if (own, id(window)) not in memo]
    if todo:
        rule = memo.setdefault(own, rule_of(explanation.rule))
        memo.update(((own, id(window)), row) for window, row in zip(todo, apply(rule, todo), strict=True))
    return [memo[own, id(window)] for window in windows]


# many features ------------------------------------------------------------------------------------


def deranged(explanations: Iterable[Explanation], density: Mapping[str, float], seed: int = 0) -> dict[str, Explanation]:
    """For every feature the explanation of another one that fires about as often; not one that says the same.

    Features are sorted by density and cut into groups of `ALIKE`; in each, explanations move along a random cycle. A feature
    whose group has no other explanation is left out.
    """
    known = sorted(explanations, key=lambda each: (density[each.feature], each.feature))
    cuts = list(range(0, len(known), ALIKE))
    if len(cuts) > 1 and len(known) - cuts[-1] < ALIKE // 2:
        cuts.pop()
    draw, out = np.random.default_rng(seed), {}
    for start, end in zip(cuts, [*cuts[1:], len(known)], strict=True):
        group = [known[start + place] for place in draw.permutation(end - start).tolist()]
        for place, own in enumerate(group):
            others = (group[(place + step) % len(group)] for step in range(1, len(group)))
            other = next((each for each in others if _says_else(each, own)), None)
            if other is not None:
                out[own.feature] = other
    return out


def _says_else(other: Explanation, own: Explanation) -> bool:
    return bool(words_of(other)) and (other.text, other.rule) != (own.text, own.rule)


def score_features(
    pairs: Iterable[tuple[Explanation, Sample]], scorers: Sequence[str], tools: Tools,
    others: Mapping[str, Explanation] | None = None, skipped: dict[tuple[str, str], str] | None = None,
) -> Iterator[Score]:  # fmt: skip
    """Scores of every explanation by every scorer, in order, `BLOCK` features at a time; samples may be a stream.

    `others`: explanations of other features (`deranged`), for the shuffled baseline. What a scorer cannot score goes into
    `skipped`: (feature, scorer) -> why. Raises UsageError for an unknown scorer, a sample that shares documents, or a judge
    that is needed and not given; BudgetSpent and EndpointError after all finished blocks were handed on.
    """
    chosen = [SCORERS.get(name) for name in scorers]
    if not chosen:
        raise bad_argument("scorers", "none", ", ".join(SCORERS.names()))
    for block in _blocks(pairs):
        tools.memo.clear()
        yield from _block(block, chosen, tools, others or {}, {} if skipped is None else skipped)
        tools.done(len(block))


def _blocks(pairs: Iterable[tuple[Explanation, Sample]]) -> Iterator[list[tuple[Explanation, Sample]]]:
    block: list[tuple[Explanation, Sample]] = []
    for pair in pairs:
        block.append(pair)
        if len(block) == BLOCK:
            yield block
            block = []
    if block:
        yield block


def _block(
    block: Sequence[tuple[Explanation, Sample]], scorers: Sequence[Scorer], tools: Tools, others: Mapping[str, Explanation],
    skipped: dict[tuple[str, str], str],
) -> list[Score]:  # fmt: skip
    asked_of: list[tuple[Explanation, Scorer, Question, Question | None]] = []
    for explanation, sample in block:
        if explanation.feature != sample.feature:
            raise bad_argument("pairs", f"an explanation of {explanation.feature} with a sample of {sample.feature}",
                               "both of one feature")  # fmt: skip
        for scorer in scorers:
            try:
                own = _question(scorer, explanation, sample, tools)
            except Unscored as why:
                skipped[explanation.feature, scorer.name] = str(why)
                continue
            asked_of.append((explanation, scorer, own, _shuffled(scorer, others.get(explanation.feature), sample, tools)))
    prompts = [prompt for _, _, own, other in asked_of for question in (own, other) if question for prompt in question.prompts]
    replies = iter(tools.endpoint("a judge").ask(prompts) if prompts else [])
    made = []
    for explanation, scorer, own, other in asked_of:
        outcome, cost = _finished(own, replies)
        shuffled, other_cost = _finished(other, replies) if other else (None, Cost())
        made.append(Score(explanation.feature, explanation.explainer, scorer.name, outcome.value, scorer.chance, outcome.n,
                          outcome.failed, outcome.low, outcome.high, shuffled.value if shuffled else None,
                          cost=cost.plus(other_cost), detail=outcome.detail))  # fmt: skip
    return made


def _question(scorer: Scorer, explanation: Explanation, sample: Sample, tools: Tools) -> Question:
    """A scorer's question; where a judge is needed and the explainer gave no words, every answer is wrong."""
    question = scorer.question(explanation, sample, tools)
    if by_judge(explanation) and not words_of(explanation):
        blank = [Reply(None, failed="no explanation")] * len(question.prompts)
        return Question((), lambda _: question.finish(blank))
    return question


def _shuffled(scorer: Scorer, other: Explanation | None, sample: Sample, tools: Tools) -> Question | None:
    """The question about this sample with another feature's explanation; None where there is none."""
    if other is None:
        return None
    try:
        return _question(scorer, replace(other, feature=sample.feature), sample, tools)
    except Unscored:
        return None


def _finished(question: Question, replies: Iterator[Reply]) -> tuple[Outcome, Cost]:
    own = [next(replies) for _ in question.prompts]
    cost = Cost()
    for reply in own:
        cost = cost.plus(reply.cost)
    return question.finish(own), cost
