"""Induction (Olsson et al. 2022, arXiv 2209.11895): what followed the last time follows again.

"river, table, horse, candle. river, table," -> " horse". Half of the frames of a split are lists of
random words in some format, half are sentences that repeat a phrase. Corruptions:

    replace    the word to be copied is another word, new to the text, so that one is right
    exchange   it changes places with another word of the text: the same words, another order
"""

from dataclasses import replace

from assay.data.generators.base import SLOT, Draw, bundled, fill_pair, next_word
from assay.records import Pair


def induction(draw: Draw) -> Pair:
    """One pair. Labels: copied, the word to be copied where it was first said; before, what precedes it there."""
    slots = list(dict.fromkeys(SLOT.findall(draw.frame)))
    *words, new = draw.rng.sample(draw.words, len(slots) + 1)
    clean = dict(zip(slots, words, strict=True))
    foil = new if draw.corruption == "replace" else clean["Y"]
    corrupted = {**clean, "X": foil} if foil == new else {**clean, "X": foil, "Y": clean["X"]}
    answer, wrong = (next_word(draw.frame, word) for word in (clean["X"], foil))
    entities = [*clean.values(), *corrupted.values()]
    pair = fill_pair(draw, clean, corrupted, [answer], [wrong], {"copied": "X"}, entities)
    at, other_at = pair.labels["copied"]
    before = len(pair.clean[:at].rstrip()) - 1, len(pair.corrupted[:other_at].rstrip()) - 1
    return replace(pair, labels={**pair.labels, "before": before})


bundled("induction", "induction: a word that followed before follows again", ("replace", "exchange"), induction)
