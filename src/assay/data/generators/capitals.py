"""Facts: "The capital of France is" -> " Paris".

Corruption `country` asks about another country of the same split; its capital is the foil.
"""

from assay.data.generators.base import Draw, bundled, fill_pair, next_word
from assay.records import Pair


def capitals(draw: Draw) -> Pair:
    """One pair. Label: country."""
    (country, capital), (other, foil) = draw.rng.sample(draw.words, 2)
    answer, wrong = (next_word(draw.frame, name) for name in (capital, foil))
    entities = [country, capital, other, foil]
    return fill_pair(draw, {"C": country}, {"C": other}, [answer], [wrong], {"country": "C"}, entities)


bundled("capitals", "facts: the capital of a country", ("country",), capitals)
