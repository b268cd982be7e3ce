"""Features whose explanation is known, and what every scorer must do with them, ours and yours.

    check_scorer("mine")                    # one that a rule can be executed for, or that asks a judge
    check_scorer("mine", Tools(changes=..)) # one that needs more

A planted feature is on at one word. Its windows stand beside like ones with a word much like it, and others. A scorer must give
the true rule more than chance and more than the rules of other features; must not reward a judge that says nothing; must count
what was not answered; must refuse samples that show what they score; and must say the same when it is asked again.
"""

import copy
from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from assay.errors import UsageError
from assay.explain.prompts import Prompt
from assay.explain.records import Explanation, Sample, Score, Window
from assay.explain.scorers.base import SCORERS, deranged, score_features
from assay.explain.tools import Reply, Tools

FILLER = (" the", " old", " house", " by", " a", " river", " was", " cold", " and", " grey", ",", " so", " they", " left", ".")
FEATURES, LENGTH = 6, 12


def planted_window(
    pieces: Sequence[str], on: Collection[int], document: str, why: str, value: float = 2.0, at: int | None = None
) -> Window:
    """A window that is on at some places; token ids are made from the pieces."""
    at = min(on, default=0) if at is None else at
    values = tuple(value if place in on else 0.0 for place in range(len(pieces)))
    ids = tuple(sum(place * ord(sign) for place, sign in enumerate(piece, 1)) % 50_000 for piece in pieces)
    return Window(ids, tuple(pieces), values, at, document, at, why)


def planted_windows(word: str, n: int, seed: Sequence[int] | int, document: str, why: str, on: bool = True) -> list[Window]:
    """n windows of different documents with a word at a random place; the feature is on at it, or nowhere."""
    draw, made = np.random.default_rng(seed), []
    for number in range(n):
        pieces = [FILLER[place] for place in draw.integers(len(FILLER), size=LENGTH)]
        place = int(draw.integers(1, LENGTH))
        pieces[place] = word
        made.append(planted_window(pieces, {place} if on else (), f"{document}{number}", why, float(draw.uniform(1, 3)), place))
    return made


def planted_sample(feature: str, word: str, near: str, seed: int = 0, n: int = 16, density: float = 0.01) -> Sample:
    """A feature that is on at `word`, and silent at `near` and elsewhere; n windows of each on either side."""
    sides = []
    for side in ("shown", "scored"):
        key = [seed, side == "shown"]
        made = planted_windows(word, n // 2, [*key, 1], f"{side}-top-", "top")
        made += planted_windows(word, n - n // 2, [*key, 2], f"{side}-random-", "random")
        made += planted_windows(near, n // 2, [*key, 3], f"{side}-similar-", "similar", on=False)
        made += planted_windows(" stone", n - n // 2, [*key, 4], f"{side}-other-", "other", on=False)
        sides.append(tuple(made))
    return Sample(feature, density, 3.0, 2 * n, *sides)


class Silent:
    """An endpoint without a usable answer."""

    name = "openai:silent"

    def __init__(self) -> None:
        self.asked: list[Prompt] = []
        self.unanswered: dict[str, str] = {}

    def ask(self, prompts: Sequence[Prompt]) -> list[Reply]:
        """No answer to anything."""
        self.asked += prompts
        return [Reply(None, failed="silent")] * len(prompts)


def check_scorer(name: str, tools: Tools | None = None) -> None:
    """Raises AssertionError, with what is wrong, where a registered scorer does not do what every one must."""
    scorer, tools = SCORERS.get(name), tools or Tools()
    samples = [planted_sample(f"f{n}", f" word{n}", f" words{n}", seed=n, n=24) for n in range(FEATURES)]
    rules = [_rule(f"f{n}", f" word{n}") for n in range(FEATURES)]
    others = deranged(rules, dict.fromkeys([sample.feature for sample in samples], 0.01))
    found = list(score_features(zip(rules, samples, strict=True), [name], tools, others))
    assert len(found) == FEATURES, f"{name}: {len(found)} of {FEATURES} planted features were scored"
    assert found == list(score_features(zip(rules, samples, strict=True), [name], tools, others)), f"{name}: not the same again"
    value = np.mean([score.value for score in found])
    shuffled = np.mean([score.shuffled for score in found if score.shuffled is not None])
    assert value > max(scorer.chance, shuffled), (
        f"{name}: true rules {value:.2f}, others' {shuffled:.2f}, chance {scorer.chance}"
    )
    for score in found:
        _check_score(score)
    _check_silence(name, samples[0], tools)
    shown = replace(
        samples[0], scored=(*samples[0].scored, replace(samples[0].scored[0], document=samples[0].shown[0].document))
    )
    try:
        list(score_features([(rules[0], shown)], [name], tools))
    except UsageError:
        return
    raise AssertionError(f"{name}: a sample that shows a document which it scores is not refused")


def _rule(feature: str, word: str) -> Explanation:
    record = {"type": "prefix", "any": [[{"is": "token", "of": [word]}]]}
    return Explanation(feature, f"on at {word.strip()}", "lexical/1", record)


def _check_score(score: Score) -> None:
    assert score.n > 0 and np.isfinite(score.value), f"{score.scorer}: value {score.value} of {score.n}"
    bounds = (score.low, score.high)
    assert None in bounds or bounds[0] <= score.value + 1e-9 and score.value - 1e-9 <= bounds[1], f"{score.scorer}: {bounds}"  # type: ignore[operator]


def _check_silence(name: str, sample: Sample, tools: Tools) -> None:
    """Words alone are judged; a judge that says nothing earns nothing, and every question counts as failed."""
    words = Explanation(sample.feature, "on at some word", "openai:silent/top/1")
    judge, again = Silent(), Silent()
    score, _ = (next(score_features([(words, sample)], [name], _asking(tools, each))) for each in (judge, again))
    if judge.asked:
        assert score.failed == score.n > 0, f"{name}: {score.failed} of {score.n} without an answer are counted"
        assert score.value <= SCORERS.get(name).chance, f"{name}: {score.value} for a judge that says nothing"
        assert again.asked == judge.asked, f"{name}: other prompts when asked again, so they would be paid again"


def _asking(tools: Tools, judge: Silent) -> Tools:
    """The same tools, whatever they hold already, with another judge."""
    made = copy.copy(tools)
    made.asker = judge
    return made
