"""Minimal edits: exchange the labelled word of a sentence, and only it.

1. A frame is a confirm text with its word cut out. Frames are used where the word decides the label: every word
   has one label throughout, and the frame's template is filled by words of both labels.
2. (frame, word) combinations that are not in the data are drawn by seed and read at the same place. With a
   member's word the score must be above the non-members' threshold, with another's it must not fire.
3. Both directions are reported apart; failures furthest beyond their threshold are run again alone.

Near misses in one respect only. Combinations may be odd sentences: those off the manifold stay open.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from assay.evidence.hunting.labels import as_claimed, concept_rule
from assay.evidence.hunting.reading import Reader, nothing, reader_of
from assay.evidence.hunting.showing import Candidate, fails, show
from assay.evidence.search.base import Found, Hunt, SearchMethod, register_search
from assay.evidence.search.corpus_mining import KINDS, SHOWN
from assay.records import Example


@dataclass(frozen=True)
class Frame:
    """A text without its word. `offset`: the character that is read, counted from the end of the word when it is
    at or after it, else from the beginning of the text; None = the last token."""

    before: str
    after: str
    template: str
    offset: int | None

    def fill(self, word: str, label: int) -> Example:
        """The frame with a word in it."""
        end = len(self.before) + len(word)
        place = None if self.offset is None else self.offset if 0 <= self.offset < len(self.before) else end + self.offset
        return Example(self.before + word + self.after, label, self.template, (word,), place)


@as_claimed
def find(hunt: Hunt) -> Found:
    """Words in other frames that misfit."""
    reader = reader_of(hunt)
    if reader is None:
        return nothing("no texts can be read on this host")
    frames, words = frames_of(hunt.data.items), word_labels(hunt.data.items)
    if not frames or not words:
        return nothing("no word of the data decides the label")
    known, rule = {example.text for example in hunt.data.items}, concept_rule(hunt)
    rng, names = np.random.default_rng([hunt.seed, 13]), sorted(words)
    drawn: dict[str, Example] = {}
    for _ in range(4 * hunt.budget):
        example = frames[rng.integers(len(frames))].fill(word := names[rng.integers(len(names))], words[word])
        agrees = rule is None or rule(example.text) == bool(example.label)
        if len(drawn) < hunt.budget and example.text not in known and agrees:
            drawn[example.text] = example
    if not drawn:
        return nothing("nothing new could be made from the data")
    data = hunt.kind.load(hunt.model, list(drawn.values()))
    return misfits_of(hunt, reader, data, reader.at(data.tokens, data.at), "minimal edits")


def misfits_of(
    hunt: Hunt, reader: Reader, data: Any, scores: Sequence[float], method: str,
    certain: Callable[[Example], bool] = lambda item: True,
) -> Found:  # fmt: skip
    """Which of the labelled texts that a search made misfit, per direction, the furthest beyond first."""
    beyond = {number: hunt.setup.strict - score if item.label else score - hunt.setup.half
              for number, (item, score) in enumerate(zip(data.items, scores, strict=True))
              if fails(hunt.setup, item.label, score)}  # fmt: skip
    worst = sorted(beyond, key=lambda number: (-beyond[number], number))[: min(hunt.keep, SHOWN)]
    candidates = [Candidate(item.text, tuple(data.tokens[n]), data.at[n], item.label, item.template, certain(item))
                  for n in worst for item in [data.items[n]]]  # fmt: skip
    kept, notes = show(hunt, reader, candidates, method)
    for label, name in ((1, "members_silent"), (0, "non_members_firing")):
        of = [number for number, item in enumerate(data.items) if item.label == label]
        notes[name] = [len(beyond.keys() & set(of)), len(of)]
    return Found(len(data), len(beyond), tuple(kept), reader.passes, notes=notes, independent=len(data))


def word_labels(items: Sequence[Example]) -> dict[str, int]:
    """word -> label, for words with one label throughout that stand in their text."""
    labels: dict[str, set[int]] = defaultdict(set)
    for item in items:
        if item.entities and _span(item):
            labels[item.entities[0]].add(item.label)
    return {word: found.pop() for word, found in labels.items() if len(found) == 1}


def frames_of(items: Sequence[Example]) -> list[Frame]:
    """Different frames of templates that are filled by words of both labels."""
    words, by_template = word_labels(items), defaultdict(set)
    for item in items:
        if item.entities and item.entities[0] in words:
            by_template[item.template].add(item.label)
    found: dict[Frame, None] = {}
    for item in items:
        span = _span(item) if item.entities and item.entities[0] in words else None
        if span and len(by_template[item.template]) == 2:
            start, end = span
            at = item.position
            offset = None if at is None else at if at < start else min(-1, at - end) if at < end else at - end
            found[Frame(item.text[:start], item.text[end:], item.template, offset)] = None
    return list(found)


def _span(item: Example) -> tuple[int, int] | None:
    """Where the word stands in the text, when it stands there once."""
    places = [match.span() for match in re.finditer(rf"(?<!\w){re.escape(item.entities[0])}(?!\w)", item.text)]
    return places[0] if len(places) == 1 else None


register_search(SearchMethod("minimal edits", KINDS, find, budget=64))
