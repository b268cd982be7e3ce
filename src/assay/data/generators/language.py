"""Language: "Le chat dort toujours sur" -> " le", " une", .., not " the", " a", ...

The clean prompt is always the French one, so that "towards the answer" has one sense for all pairs. Corruption
`english` is the beginning of another sentence, in English, with as many tokens for the embedded default model; with
another tokenizer those pairs are left whose two beginnings happen to have equally many.
"""

from assay.data.generators.base import Draw, bundled, fill_pair
from assay.records import Pair

FRENCH = (" le", " la", " les", " un", " une", " des", " son")
ENGLISH = (" the", " a", " an", " his", " her", " my", " some")


def language(draw: Draw) -> Pair:
    """One pair. No label: nothing but the whole sentence changes."""
    french, english = draw.rng.choice(draw.words["french"]), draw.rng.choice(draw.words["english"])
    return fill_pair(draw, {"S": french}, {"S": english}, FRENCH, ENGLISH, {}, [french, english])


bundled("language", "language: a French sentence goes on in French", ("english",), language)
