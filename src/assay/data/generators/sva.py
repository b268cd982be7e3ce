"""Subject-verb agreement with attractors (after Linzen, Dupoux & Goldberg 2016, arXiv 1611.01368).

"The doctors near the lawyer" -> " are" or " were", not " is" or " was". The other noun always has the
opposite number: between subject and verb it is an attractor, in other frames it precedes the subject.
Clean subjects are singular and plural in turn. Corruption `number` changes the number of the subject.
All verbs of a split in one form are answers, all in the other form are foils.
"""

from assay.data.generators.base import Draw, bundled, fill_pair
from assay.records import Pair


def sva(draw: Draw) -> Pair:
    """One pair. Labels: subject and attractor."""
    subject, attractor = draw.rng.sample(draw.words["nouns"], 2)
    number, other = (1, 0) if draw.flip else (0, 1)
    clean = {"N": subject[number], "M": attractor[other]}
    corrupted = {**clean, "N": subject[other]}
    answers, foils = ([f" {verb[form]}" for verb in draw.words["verbs"]] for form in (number, other))
    labels, entities = {"subject": "N", "attractor": "M"}, [*subject, attractor[other]]
    return fill_pair(draw, clean, corrupted, answers, foils, labels, entities)


bundled("sva", "subject-verb agreement: the verb follows its subject, not a nearer noun", ("number",), sva)
