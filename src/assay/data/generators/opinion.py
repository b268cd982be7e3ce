"""Sentiment: "The hotel looked lovely. Our room was" -> " great", not " terrible".

The clean prompt is always the favourable one, so that "towards the answer" has one sense for all pairs. The first
judgement and the words that are scored are different words. Corruption `judgement` turns it into its opposite.
"""

from assay.data.generators.base import Draw, bundled, fill_pair, next_word
from assay.records import Pair

GOOD, BAD = ("great", "wonderful", "good", "nice"), ("terrible", "horrible", "bad", "poor")


def opinion(draw: Draw) -> Pair:
    """One pair. Label: judgement."""
    word, other = draw.rng.choice(draw.words["positive"]), draw.rng.choice(draw.words["negative"])
    answers, foils = ([next_word(draw.frame, word) for word in side] for side in (GOOD, BAD))
    return fill_pair(draw, {"W": word}, {"W": other}, answers, foils, {"judgement": "W"}, [word, other])


bundled("opinion", "sentiment: a favourable judgement is followed by another one", ("judgement",), opinion)
