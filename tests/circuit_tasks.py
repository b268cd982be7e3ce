"""Repeated sequences for the hand-set circuit models, split by split, in memory."""

import random

from assay.evidence.source import MemorySource
from assay.testing.circuit_models import repeats

SPLITS = {"tune": (6, 3), "confirm": (12, 4), "ood": (10, 4)}  # templates, pairs of each


def source(halves: bool = False, seed: int = 0) -> MemorySource:
    """ "x a b c  a b" -> "c". `halves`: answers are words of the first half, foils of the second."""
    rng = random.Random(seed)
    return MemorySource("repeats", {split: repeats(rng, split, *size, halves) for split, size in SPLITS.items()})
