"""Embedding: are texts where the feature fires closer to its explanation than like texts where it does not?

Value: AUROC of the cosine between explanation and text, by a kept sentence encoder (Paulo et al. 2024, arXiv 2410.13928).
Chance 0.5. The encoder reads words, not what a rule does, so a rule is scored by its sentence. No words: all cosines tie.
"""

import zlib

import numpy as np

from assay.explain.records import Explanation, Sample
from assay.explain.scorers.base import SCORERS, Outcome, Question, Scorer, asked, in_turn, scored, words_of
from assay.explain.scorers.intervals import auroc
from assay.explain.tools import Tools

WINDOWS = 20  # of a kind


def question(explanation: Explanation, sample: Sample, tools: Tools) -> Question:
    """AUROC of cosines."""
    found = asked(sample, explanation, tools)
    draw = np.random.default_rng([tools.seed, zlib.crc32(sample.feature.encode()), 5])
    on, off = (in_turn(side, WINDOWS, draw) for side in (found.on, found.off))

    def finish(_: object) -> Outcome:
        cosines = np.zeros(len(on) + len(off))
        if words_of(explanation):
            vectors = np.asarray(tools.encode([explanation.text, *(window.text for window in (*on, *off))]))
            cosines = vectors[1:] @ vectors[0]
        value, low, high = auroc(cosines[: len(on)].tolist(), cosines[len(on) :].tolist(),
                                 [window.document for window in on], [window.document for window in off])  # fmt: skip
        return Outcome(value, len(on) + len(off), 0, low, high, {**found.detail, "encoder": tools.encode.record["name"]})

    return scored(finish)


SCORERS.add("embedding", Scorer("embedding", 0.5, "Are its texts closest to the explanation?", question))
