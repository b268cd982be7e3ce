"""Indirect-object identification (Wang et al. 2022, arXiv 2211.00593).

"Then, Mary and John went to the store. John gave a drink to" -> " Mary", not " John". The order of
the two names (ABBA, BABA) alternates. Corruptions:

    swap    the indirect object becomes the second subject, so the other name is right
    abc     the second subject is a third person, so neither name is
    names   all three names are other names, all different (the paper's p_ABC)
"""

from assay.data.generators.base import Draw, bundled, fill_pair
from assay.records import Pair


def ioi(draw: Draw) -> Pair:
    """One pair. Labels: IO, S1 and S2, where the indirect object and the subject are named."""
    io, s, *others = draw.rng.sample(draw.words, 5)
    first, second = (s, io) if draw.flip else (io, s)
    clean = {"A": first, "B": second, "C": s}
    corrupted = {
        "swap": {**clean, "C": io},
        "abc": {**clean, "C": others[0]},
        "names": dict(zip("ABC", others, strict=True)),
    }[draw.corruption]
    places = {"IO": "B", "S1": "A", "S2": "C"} if draw.flip else {"IO": "A", "S1": "B", "S2": "C"}
    return fill_pair(draw, clean, corrupted, [f" {io}"], [f" {s}"], places, [*clean.values(), *corrupted.values()])


bundled("ioi", "indirect-object identification: which of two names was not repeated", ("swap", "abc", "names"), ioi)
