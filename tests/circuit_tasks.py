"""Repeated sequences for the hand-set circuit models, split by split, in memory."""

import random

from assay.evidence.source import MemorySource
from assay.records import Pair
from assay.testing.circuit_models import FIRST_HALF, SECOND_HALF

SPLITS = {"tune": (6, 3), "confirm": (12, 4), "ood": (10, 4)}  # templates, pairs of each


def source(halves: bool = False, seed: int = 0) -> MemorySource:
    """ "x a b c  a b" -> "c". `halves`: answers are words of the first half, foils of the second."""
    rng = random.Random(seed)
    return MemorySource("repeats", {split: pairs(rng, split, *size, halves) for split, size in SPLITS.items()})


def pairs(rng: random.Random, split: str, n_templates: int, per_template: int, halves: bool) -> list[Pair]:
    found = []
    for number in range(n_templates):
        length, lead = rng.randrange(5, 9), rng.randrange(1, 4)
        back = rng.randrange(1, length - 1)
        for _ in range(per_template):
            answer = rng.choice(FIRST_HALF if halves else range(24))
            foil = rng.choice([word for word in (SECOND_HALF if halves else range(24)) if word != answer])
            rest = rng.sample([word for word in range(24) if word not in (answer, foil)], length + lead - 1)
            before, first = rest[:lead], rest[lead:]
            first.insert(back, answer)
            other = [foil if place == back else word for place, word in enumerate(first)]
            found.append(Pair(text(before + first + first[:back]), text(before + other + first[:back]),
                              (f" w{answer}",), (f" w{foil}",), f"{split} {number}"))  # fmt: skip
    return found


def text(words: list[int]) -> str:
    return " ".join(f"w{word}" for word in words)
