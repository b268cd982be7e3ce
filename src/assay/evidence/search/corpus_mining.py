"""Corpus mining: ordinary texts on which the score fires although the concept is not there.

1. Texts are drawn from the corpus by seed and read in chunks; only the strongest context per text is kept, and
   of those the `keep` strongest (bounded memory).
2. With a `concept_rule` every context (the text up to the token) is labelled by it: a non-member that fires is
   a hit, run again alone before it is called verified, and texts are independent draws.
3. Without a rule nobody knows the labels: the strongest contexts are shown as *open* and no hit is counted.
4. Which tokens fire most is noted: many unrelated ones mean several meanings.

What it does not find is not there in this corpus, as far as it was read.
"""

import heapq
from collections import Counter

import numpy as np

from assay.evidence.hunting.labels import Rule, as_claimed, concept_rule
from assay.evidence.hunting.reading import Reader, nothing, reader_of
from assay.evidence.hunting.showing import Candidate, show
from assay.evidence.search.base import Found, Hunt, SearchMethod, register_search
from assay.records import digest

KINDS = ("represents", "decodes", "explains", "detects")
CHUNK = 16
SHOWN = 8


@as_claimed
def find(hunt: Hunt) -> Found:
    """Contexts of the corpus that fire."""
    reader, rule = reader_of(hunt), concept_rule(hunt)
    if reader is None or not hunt.corpus:
        return nothing("no corpus was given (--corpus)" if reader else "no texts can be read on this host")
    order = np.random.default_rng([hunt.seed, 11]).permutation(len(hunt.corpus))[: hunt.budget]
    strongest: list[tuple[float, int, int, list[int]]] = []
    fired, by_token, tried, seen = 0, Counter[str](), 0, set[str]()
    for start in range(0, len(order), CHUNK):
        numbers = _new(hunt, order[start : start + CHUNK], seen)
        if not numbers:
            continue
        prompts = reader.tokens([hunt.corpus[n] for n in numbers])
        tried += len(prompts)
        for number, ids, scores in zip(numbers, prompts, reader.scores(prompts), strict=True):
            place = _strongest(reader, ids, scores, rule, hunt.setup.half)
            if place is None:
                continue
            fired += 1
            by_token[reader.model.piece(ids[place])] += 1
            heapq.heappush(strongest, (scores[place], -number, place, ids))
            if len(strongest) > min(hunt.keep, SHOWN):
                heapq.heappop(strongest)
    candidates = [
        Candidate(reader.text(ids[: place + 1]), tuple(ids[: place + 1]), place, 0, certain=rule is not None, made=False)
        for _, _, place, ids in sorted(strongest, reverse=True)
    ]
    kept, notes = show(hunt, reader, candidates, "corpus mining")
    notes = {**notes, "firing": fired, "by_token": dict(by_token.most_common(10)), "labels": "rule" if rule else "none"}
    return Found(tried, fired if rule else 0, tuple(kept), reader.passes, notes=notes, independent=tried if rule else 0)


def _new(hunt: Hunt, numbers: np.ndarray, seen: set[str]) -> list[int]:
    """Those texts that are not empty and were not seen before, remembered by their hash."""
    found = []
    for number in map(int, numbers):
        name = digest(hunt.corpus[number])
        if hunt.corpus[number].strip() and name not in seen:
            seen.add(name)
            found.append(number)
    return found


def _strongest(reader: Reader, ids: list[int], scores: list[float], rule: Rule | None, half: float) -> int | None:
    """The token with the largest score that fires and, where there is a rule, is no member."""
    firing = [place for place in range(reader.first, len(ids)) if scores[place] > half]
    for place in sorted(firing, key=lambda place: -scores[place]):
        if rule is None or not rule(reader.text(ids[: place + 1])):
            return place
    return None


register_search(SearchMethod("corpus mining", KINDS, find, budget=64))
