"""Gendered pronouns: "So Mary is a really great friend, isn't" -> " she", not " he".

Clean names of the two genders alternate. Corruption `gender` puts a name of the other gender in the
same place. Names are those that English text uses for one gender far more often than the other.
"""

from assay.data.generators.base import Draw, bundled, fill_pair
from assay.records import Pair


def pronouns(draw: Draw) -> Pair:
    """One pair. Label: name."""
    right, wrong = ("she", "he") if draw.flip else ("he", "she")
    name, other = draw.rng.choice(draw.words[right]), draw.rng.choice(draw.words[wrong])
    return fill_pair(draw, {"N": name}, {"N": other}, [f" {right}"], [f" {wrong}"], {"name": "N"}, [name, other])


bundled("pronouns", "gendered pronouns: he or she, by the name", ("gender",), pronouns)
