"""Circuit adversary: search over the words of a pair for one on which the claimed parts do not carry the task.

1. Tasks that copy (answer and foil both stand in the prompts) stay the same task when words are renamed: a word
   is exchanged for another of the split's words everywhere in the pair, answers and foils included. Other tasks
   are left alone, because there a word may decide the answer.
2. Coordinate search from confirm pairs drawn by seed: for one word after the other, some renamings are measured
   and the one with the worst effect is kept. Effect of a pair: the smaller of (clean - ablated) and
   (restored - corrupted).
3. A hit is a pair on which the model does the task (clean above 0 and above corrupted) and the effect is at or
   below 0. It is measured again alone before it is called *verified*, shown token by token, and shortened as far as it
   still fails.

The worst pairs by construction: their share says nothing about how often the claim fails.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from assay.data.prepare import NothingLeft, PreparedTask, prepare
from assay.evidence.hunting.pairs import MINIMISED, shown_pair
from assay.evidence.hunting.reading import nothing
from assay.evidence.mediates import Setup, both_ways
from assay.evidence.search.base import Found, Hunt, SearchMethod, register_search
from assay.records import Counterexample, Pair

PER_WORD = 6  # renamings measured per word
PROMPTS = 6  # run per pair: two captures, four scores
SHOWN = 8


@dataclass(frozen=True)
class Effect:
    """A pair with what the claimed parts do on it. `gate`: the worse of the two."""

    pair: Pair
    value: float
    gate: str
    behaves: bool

    @property
    def hit(self) -> bool:
        return self.behaves and self.value <= 0


class Measure:
    """Effects of any pairs, counted in prompts run."""

    def __init__(self, hunt: Hunt) -> None:
        self.model, self.passes = hunt.model, 0
        self.setup: Setup = replace(hunt.setup, complement=(), random_sets=())

    def __call__(self, pairs: Sequence[Pair]) -> list[Effect]:
        """Effects of those pairs that the model's tokens allow, all in one batch."""
        try:
            return self.of(prepare(pairs, self.model))
        except NothingLeft:
            return []

    def fails(self, task: PreparedTask) -> list[bool]:
        """Which pairs are hits."""
        return [effect.hit for effect in self.of(task)]

    def of(self, task: PreparedTask) -> list[Effect]:
        """Effects of pairs that are ready for the model."""
        columns = both_ways(self.model, task, range(len(task)), self.setup)
        self.passes += PROMPTS * len(task)
        found = []
        for pair, *scores in zip(task.pairs, *columns.values(), strict=True):
            clean, ablated, corrupted, restored = (0.0 if score is None else score for score in scores)
            value, gate = min((clean - ablated, "necessity.resample"), (restored - corrupted, "sufficiency"))
            found.append(Effect(pair, value, gate, clean > max(0.0, corrupted)))
        return found


def find(hunt: Hunt) -> Found:
    """Renamed pairs on which ablating does not lower the metric, or restoring does not raise it."""
    pairs = [pair for pair in hunt.data.pairs if copies(pair)]
    pool = sorted({word for pair in pairs for word in words_of(pair)})
    if not pairs or len(pool) < 3 or hunt.budget == 0:
        return nothing("words can only be renamed in tasks that copy, or there is no budget")
    rng, measure = random.Random(f"circuit-adversary-{hunt.seed}"), Measure(hunt)
    hits: dict[str, Effect] = {}
    tried = 0
    for pair in rng.sample(pairs, len(pairs)):
        if measure.passes + PROMPTS * PER_WORD > hunt.budget:
            break
        worst, n = climb(pair, pool, rng, measure, hunt.budget)
        tried += n
        if worst is not None and worst.hit:
            hits[worst.pair.clean] = worst
    found = sorted(hits.values(), key=lambda effect: effect.value)
    kept = tuple(shown(hunt, measure, effect, number < MINIMISED)
                 for number, effect in enumerate(found[: min(hunt.keep, SHOWN)]))  # fmt: skip
    return Found(tried, len(found), kept, measure.passes)


def climb(pair: Pair, pool: Sequence[str], rng: random.Random, measure: Measure, budget: int) -> tuple[Effect | None, int]:
    """The worst pair that one round over the words reaches, and how many pairs were measured."""
    start = measure([pair])
    if not start:
        return None, 0
    (now,) = start
    tried = 1
    for word in words_of(pair):
        free = [other for other in pool if other not in words_of(now.pair) and not contains(now.pair, other)]
        chosen = rng.sample(free, min(PER_WORD, len(free)))
        if not chosen or not contains(now.pair, word) or measure.passes + PROMPTS * len(chosen) > budget or now.hit:
            break
        effects = measure([renamed(now.pair, word, other) for other in chosen])
        tried += len(effects)
        now = min([now, *effects], key=lambda effect: (not effect.behaves, effect.value))
    return now, tried


def shown(hunt: Hunt, measure: Measure, effect: Effect, shorten: bool) -> Counterexample:
    """A hit, measured again alone; token by token, and shortened where that is asked for."""
    again = measure([effect.pair])
    same = bool(again) and again[0].hit
    pair = shown_pair(hunt, prepare([effect.pair], hunt.model), 0, measure.fails if same and shorten else None)
    return Counterexample(hunt.claim.id, effect.pair.clean, effect.pair.corrupted, effect.pair.template, effect.gate,
                          effect.value, "above 0", "verified" if same else "open", "circuit adversary", pair.tokens,
                          pair.minimal)  # fmt: skip


# renaming ----------------------------------------------------------------------------------------


def copies(pair: Pair) -> bool:
    """Whether one answer and one foil both stand in the prompts."""
    if len(pair.answers) != 1 or len(pair.foils) != 1:
        return False
    return all(contains(pair, word.strip()) for word in (*pair.answers, *pair.foils))


def words_of(pair: Pair) -> list[str]:
    """Words that may be renamed: the named entities, and answer and foil."""
    return list(dict.fromkeys([*(word.strip() for word in (*pair.answers, *pair.foils)), *pair.entities]))


def contains(pair: Pair, word: str) -> bool:
    """Whether a whole word stands in either prompt."""
    return any(_whole(word).search(text) for text in pair.texts)


def renamed(pair: Pair, word: str, other: str) -> Pair:
    """The pair with one word exchanged for another, everywhere. Labels are left out: offsets move."""

    def change(text: str) -> str:
        return _whole(word).sub(lambda match: other, text)

    return replace(pair, clean=change(pair.clean), corrupted=change(pair.corrupted), labels={},
                   answers=tuple(map(change, pair.answers)), foils=tuple(map(change, pair.foils)),
                   entities=tuple(map(change, pair.entities)))  # fmt: skip


def _whole(word: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(word)}(?!\w)")


register_search(SearchMethod("circuit adversary", ("mediates",), find, budget=120))
