"""Greater-than (Hanna, Liu & Variengien 2023, arXiv 2305.00586).

"The war lasted from the year 1732 to the year 17" -> 33 to 99, not 00 to 32. Corruption `01` lets it
begin in the year 1701, after which hardly any continuation is wrong. Start years are 11 to 88, so
that a tokenizer that splits numbers into digits is left with right and wrong first digits too.
"""

from assay.data.generators.base import Draw, bundled, fill_pair
from assay.records import Pair

YEARS = range(11, 89)


def greater_than(draw: Draw) -> Pair:
    """One pair. Label: year, the last two digits of the start year."""
    noun, century = draw.rng.choice(draw.words["nouns"]), draw.rng.choice(draw.words["centuries"])
    year = draw.rng.choice(YEARS)
    clean = {"N": noun, "C": century, "Y": f"{year:02}"}
    answers, foils = ([f"{n:02}" for n in numbers] for numbers in (range(year + 1, 100), range(year + 1)))
    entities = [noun, f"{century}{year:02}", f"{century}01"]
    return fill_pair(draw, clean, {**clean, "Y": "01"}, answers, foils, {"year": "Y"}, entities)


bundled("greater_than", "greater-than: a later year follows", ("01",), greater_than)
