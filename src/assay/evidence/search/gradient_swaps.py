"""Gradient-guided token swaps: exchange tokens of a non-member until the score fires.

1. Start from confirm non-members, drawn by seed. The gradient of the score with respect to the embeddings ranks
   every exchange to first order (Ebrahimi et al. 2018, arXiv 1712.06751); as in GCG (Zou et al. 2023, arXiv
   2307.15043) some of the best are run, and the best that was run is kept.
2. Exchanges bring in only tokens that no member of the confirm split contains; the token that is read and the
   words of the example stay, and the new text must be read as the same tokens again.
3. A text that fires is a hit. It is *verified* when its label is certain: a `concept_rule` says it is no member,
   or its word decides the label throughout the data and all its new tokens are known from non-members; and when it
   is as fluent as the confirm texts. Others are shown as *open*.
4. Rounds go on until the budget of prompts (gradients included) is spent, at most `SWAPS` exchanges per start.

No hit says that this search found none, not that none exists: its tries are no sample.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from assay.data.prepare import Unusable, token_finder
from assay.evidence.hunting.gradients import embedding_gradients, swap_gains
from assay.evidence.hunting.labels import as_claimed, concept_rule, token_sets
from assay.evidence.hunting.reading import Reader, nothing, reader_of
from assay.evidence.hunting.showing import Candidate, show
from assay.evidence.search.base import Found, Hunt, SearchMethod, register_search
from assay.evidence.search.corpus_mining import KINDS, SHOWN
from assay.evidence.search.minimal_edits import word_labels
from assay.records import Example

SWAPS = 3
RUN = 8  # exchanges run per round


@dataclass(frozen=True)
class Start:
    """A non-member on its way: its tokens, the token that is read, positions that may change."""

    ids: tuple[int, ...]
    at: int
    free: tuple[int, ...]
    item: Example
    score: float


@as_claimed
def find(hunt: Hunt) -> Found:
    """Non-members that fire after a few exchanges."""
    reader = reader_of(hunt)
    if reader is None:
        return nothing("no texts can be read on this host")
    vocabulary, known = allowed_tokens(hunt, reader)
    hits: list[Candidate] = []
    tried = 0
    for start in starts(hunt, reader):
        if reader.passes + RUN + 1 > hunt.budget:
            break
        climbed, n = climb(hunt, reader, start, vocabulary)
        tried += n
        if climbed.score > hunt.setup.half:
            hits.append(candidate(hunt, reader, start, climbed, known))
    kept, notes = show(hunt, reader, hits[: min(hunt.keep, SHOWN)], "gradient swaps")
    return Found(tried, len(hits), tuple(kept), reader.passes, notes={**notes, "tokens_allowed": len(vocabulary)})


def allowed_tokens(hunt: Hunt, reader: Reader) -> tuple[list[int], set[int]]:
    """(tokens of the vocabulary that no member contains, those of them that non-members contain)."""
    members, others = token_sets(hunt)
    special = set(getattr(reader.model.tokenizer, "all_special_ids", ()))
    size = min(reader.model.dims.d_vocab, len(reader.model.tokenizer))
    return [token for token in range(size) if token not in members and token not in special], others - members - special


def starts(hunt: Hunt, reader: Reader) -> list[Start]:
    """Non-members that are silent, in an order drawn by seed, with the positions that may change."""
    rows = [row for row, item in enumerate(hunt.data.items) if item.label == 0]
    found = []
    for row in np.random.default_rng([hunt.seed, 15]).permutation(rows).tolist():
        item, ids, at = hunt.data.items[row], hunt.data.tokens[row], hunt.data.at[row]
        score, held = hunt.columns["score"][row], word_places(reader, item, ids)
        free = [place for place in range(reader.first, at) if place not in held]
        if score is not None and score <= hunt.setup.half and free:
            found.append(Start(tuple(ids), at, tuple(free), item, float(score)))
    return found


def word_places(reader: Reader, item: Example, ids: Sequence[int]) -> set[int]:
    """Positions of the tokens that make up the example's words."""
    find, places = token_finder(item.text, len(ids), reader.model), set[int]()
    for match in (match for word in item.entities for match in re.finditer(re.escape(word), item.text)):
        for offset in range(*match.span()):
            try:
                places.add(find(offset))
            except Unusable:  # a space that belongs to no token
                continue
    return places


def climb(hunt: Hunt, reader: Reader, start: Start, vocabulary: list[int]) -> tuple[Start, int]:
    """The best text that up to SWAPS rounds of exchanges reach, and how many texts were run."""
    now, tried = start, 0
    for _ in range(SWAPS):
        if reader.passes + RUN + 1 > hunt.budget or now.score > hunt.setup.half:
            break
        (slope,) = embedding_gradients(reader, [now.ids], [now.at])
        gains = swap_gains(reader, now.ids, slope, vocabulary)
        texts = best_exchanges(reader, now, gains, vocabulary)
        if not texts:
            break
        scores = reader.at(texts, [now.at] * len(texts))
        tried += len(texts)
        best = max(range(len(texts)), key=scores.__getitem__)
        if scores[best] <= now.score:
            break
        now = Start(texts[best], now.at, now.free, now.item, scores[best])
    return now, tried


def best_exchanges(reader: Reader, now: Start, gains: torch.Tensor, vocabulary: list[int]) -> list[tuple[int, ...]]:
    """Up to RUN texts with one exchange each, best first by the gradient, no two alike."""
    ranked = gains[list(now.free)]
    order = ranked.flatten().topk(min(4 * RUN, ranked.numel())).indices.tolist()
    found: list[tuple[int, ...]] = []
    for flat in order:
        place, token = now.free[flat // len(vocabulary)], vocabulary[flat % len(vocabulary)]
        text = (*now.ids[:place], token, *now.ids[place + 1 :])
        if text != now.ids and reader.is_text(text):
            found.append(text)
        if len(found) == RUN:
            break
    return found


def candidate(hunt: Hunt, reader: Reader, start: Start, climbed: Start, known: set[int]) -> Candidate:
    """A hit, and whether its label is certain."""
    rule, text = concept_rule(hunt), reader.text(climbed.ids)
    new = {token for token, old in zip(climbed.ids, start.ids, strict=True) if token != old}
    decided = bool(start.item.entities) and start.item.entities[0] in word_labels(hunt.data.items)
    certain = not rule(text) if rule is not None else decided and new <= known
    return Candidate(text, climbed.ids, climbed.at, 0, start.item.template, certain)


register_search(SearchMethod("gradient swaps", KINDS, find, budget=60))
