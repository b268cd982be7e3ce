"""Shortest sufficient context: how much of a member's text does the score need?

1. The members that fire most are cut from the left, as far as the score at the token that is read stays above
   its threshold: doubled lengths, then bisection, each run. The token that begins every text stays.
2. What is left is masked: every other token of it is replaced, one at a time, by the model's most frequent
   token of the data; tokens whose loss silences the score are needed.
3. Where one or two tokens are enough for at least half of the members, the score follows a word and not a
   context: the claim may be lexical, and the notes say so.

A property of the score, not a failure of the claim: nothing here is a counterexample.
"""

from collections import Counter

import numpy as np

from assay.evidence.hunting.labels import as_claimed
from assay.evidence.hunting.reading import Reader, nothing, reader_of
from assay.evidence.hunting.showing import shortest
from assay.evidence.search.base import Found, Hunt, SearchMethod, register_search
from assay.evidence.search.corpus_mining import KINDS

FEW = 2
PER_MEMBER = 10  # prompts one member may take: log2(length) cuts and one mask per token left


@as_claimed
def find(hunt: Hunt) -> Found:
    """Lengths of the shortest contexts that still fire, and which of their tokens are needed."""
    reader = reader_of(hunt)
    if reader is None:
        return nothing("no texts can be read on this host")
    rows = [(score, row) for row, (item, score) in enumerate(zip(hunt.data.items, hunt.columns["score"], strict=True))
            if item.label and score is not None and score > hunt.setup.half]  # fmt: skip
    if not rows:
        return nothing("no member fires")
    filler = Counter(token for ids in hunt.data.tokens for token in ids[reader.first :]).most_common(1)[0][0]
    found: list[tuple[int, int, str]] = []
    for _, row in sorted(rows, key=lambda item: (-item[0], item[1])):
        if reader.passes + PER_MEMBER > hunt.budget:
            break
        left = shortest(reader, hunt.data.tokens[row][: hunt.data.at[row] + 1], hunt.setup.half)
        needed = needed_tokens(reader, left, filler, hunt.setup.half)
        found.append((len(left) - reader.first, needed, reader.text(left)))
    return Found(len(found), 0, passes=reader.passes, notes=summary(found))


def needed_tokens(reader: Reader, ids: list[int], filler: int, threshold: float) -> int:
    """How many of the tokens silence the score when they are replaced; the one that is read counts as needed."""
    places = list(range(reader.first, len(ids) - 1))[:PER_MEMBER]
    if not places:
        return 1
    masked = [[*ids[:place], filler, *ids[place + 1 :]] for place in places]
    return 1 + sum(score[-1] <= threshold for score in reader.scores(masked))


def summary(found: list[tuple[int, int, str]]) -> dict[str, object]:
    """Median length, share of members for which one or two tokens do, examples, and what follows."""
    if not found:
        return {"skipped": "the budget is too small for one member"}
    lengths = [length for length, _, _ in found]
    share = float(np.mean([length <= FEW for length in lengths]))
    notes: dict[str, object] = {
        "median_tokens": float(np.median(lengths)), "share_one_or_two": share,
        "median_needed": float(np.median([needed for _, needed, _ in found])),
        "examples": [text for _, _, text in found[:5]],
    }  # fmt: skip
    if share >= 0.5:
        words = ", ".join(repr(text.strip()) for text, _ in Counter(t for _, _, t in found).most_common(5))
        notes["lexical"] = f"one or two tokens are enough: the claim may be about words ({words})"
    return notes


register_search(SearchMethod("shortest context", KINDS, find, budget=48))
