"""Fluent search: texts that fire and still read like texts (EPO, Thompson et al. 2024, arXiv 2402.01702).

1. A population of texts, one per weight of fluency, starts from confirm non-members. Each tries to be best at
   score / scale + weight * fluency, where scale is the spread of the non-members' scores.
2. New texts exchange one token before the one that is read: half of them the best by the embedding gradient of
   the score, half those the model itself expects there. Only tokens that no member contains come in.
3. Everything run goes into a Pareto front of score against fluency. Texts of the front that fire are hits, the
   most fluent first; hits per level of fluency are reported.
4. Labels and statuses as in *gradient swaps*: certain label and fluent, or *open*.

A front found by search has no end: another seed may go further.
"""

from dataclasses import dataclass

import numpy as np
import torch

from assay.evidence.hunting.gradients import embedding_gradients, swap_gains
from assay.evidence.hunting.labels import as_claimed
from assay.evidence.hunting.reading import Reader, fluency_floor, nothing, reader_of
from assay.evidence.hunting.showing import show
from assay.evidence.search.base import Found, Hunt, SearchMethod, register_search
from assay.evidence.search.corpus_mining import KINDS, SHOWN
from assay.evidence.search.gradient_swaps import Start, allowed_tokens, candidate, starts

WEIGHTS = (0.1, 0.5, 2.0)
OFFSPRING = 3  # of each half, per weight and round


@dataclass(frozen=True)
class Point:
    """A text with its score and fluency, and the start it came from."""

    now: Start
    fluency: float
    origin: Start


@as_claimed
def find(hunt: Hunt) -> Found:
    """Texts on the front that fire."""
    reader = reader_of(hunt)
    if reader is None:
        return nothing("no texts can be read on this host")
    vocabulary, known = allowed_tokens(hunt, reader)
    seeds, scale = starts(hunt, reader)[: len(WEIGHTS)], spread(hunt)
    if not seeds or hunt.budget < 2 * len(WEIGHTS):
        return nothing("no silent non-member to start from, or no budget")
    front = [Point(start, fluency or 0.0, start) for start, (_, fluency) in
             zip(seeds, reader.both([start.ids for start in seeds]), strict=True)]  # fmt: skip
    tried, rng = 0, np.random.default_rng([hunt.seed, 16])
    while reader.passes + len(WEIGHTS) * (2 * OFFSPRING + 2) <= hunt.budget:
        born: list[Point] = []
        for weight in WEIGHTS:
            best = max(front, key=lambda point: point.now.score / scale + weight * point.fluency)  # noqa: B023
            born += offspring(reader, best, vocabulary, rng)
        tried += len(born)
        before, front = front, pareto([*front, *born])
        if before == front:
            break
    return shown(hunt, reader, front, known, tried)


def shown(hunt: Hunt, reader: Reader, front: list[Point], known: set[int], tried: int) -> Found:
    """Hits of the front, the most fluent first."""
    floor = fluency_floor(hunt, reader)
    fire = sorted((point for point in front if point.now.score > hunt.setup.half and point.now != point.origin),
                  key=lambda point: -point.fluency)  # fmt: skip
    hits = [candidate(hunt, reader, point.origin, point.now, known) for point in fire]
    kept, notes = show(hunt, reader, hits[: min(hunt.keep, SHOWN)], "fluent search")
    levels = {"at least the 5th percentile": sum(point.fluency >= floor for point in fire),
              "up to 1 below": sum(floor > point.fluency >= floor - 1 for point in fire),
              "further below": sum(point.fluency < floor - 1 for point in fire)}  # fmt: skip
    curve = [[round(point.now.score, 4), round(point.fluency, 4)] for point in front]
    return Found(tried, len(hits), tuple(kept), reader.passes, notes={**notes, "hits_by_fluency": levels, "front": curve})


def spread(hunt: Hunt) -> float:
    """Standard deviation of the non-members' scores."""
    scores = [s for s, item in zip(hunt.columns["score"], hunt.data.items, strict=True) if s is not None and not item.label]
    return float(np.std(scores)) or 1.0


def offspring(reader: Reader, parent: Point, vocabulary: list[int], rng: np.random.Generator) -> list[Point]:
    """Texts one exchange away: by the gradient of the score, and by what the model expects."""
    now = parent.now
    (slope,) = embedding_gradients(reader, [now.ids], [now.at])
    gains = swap_gains(reader, now.ids, slope, vocabulary)[list(now.free)]
    expected = expectations(reader, now)[:, vocabulary]
    texts: list[tuple[int, ...]] = []
    for table in (gains, expected):
        order = table.flatten().topk(min(4 * OFFSPRING, table.numel())).indices.tolist()
        for flat in rng.permutation(order)[:OFFSPRING].tolist():
            place, token = now.free[flat // len(vocabulary)], vocabulary[flat % len(vocabulary)]
            text = (*now.ids[:place], token, *now.ids[place + 1 :])
            if text != now.ids and text not in texts and reader.is_text(text):
                texts.append(text)
    read = reader.both(texts) if texts else []
    return [Point(Start(text, now.at, now.free, now.item, scores[now.at]), fluency or 0.0, parent.origin)
            for text, (scores, fluency) in zip(texts, read, strict=True)]  # fmt: skip


def expectations(reader: Reader, now: Start) -> torch.Tensor:
    """Log-probability of every token at the places that may change, (places, vocab); one prompt run."""
    logits = reader.model.logits([list(now.ids)], positions="all")[0].float().log_softmax(-1)
    reader.passes += 1
    places = torch.tensor(now.free)
    return torch.where((places > 0)[:, None], logits[(places - 1).clamp_min(0)], torch.full((1, 1), -1e9))


def pareto(points: list[Point]) -> list[Point]:
    """Points that no other beats in both score and fluency, the highest score first."""
    found: list[Point] = []
    for point in sorted(points, key=lambda p: (-p.now.score, -p.fluency, p.now.ids)):
        if not found or point.fluency > found[-1].fluency:
            found.append(point)
    return found


register_search(SearchMethod("fluent search", KINDS, find, budget=72))
