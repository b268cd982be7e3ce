"""Two maps side by side: which units of one are units of the other.

1. By decoder: cosine of what they add, where both write to the same space.
2. By firing: on rows that both have read (the same documents, token by token), the overlap of where they are on,
   |A and B| / |A or B|. Maps of other corpora have no such rows.
3. A pair is the same unit where each is the other's best match (by the sum of both measures, each that is known) and the match
   reaches `SAME` in one of them; *changed* where they are each other's best but reach it in none; the rest are only in one.

Units of base and fine-tuned models, of two seeds, or of two dictionaries are compared so.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import sparse

from assay.errors import bad_argument
from assay.explain.reading import CodedPart
from assay.mapping.run import MapRun

SAME, LEAST = 0.7, 0.2
PART = "shown"
Matrix = Float[np.ndarray, "one other"]


@dataclass(frozen=True)
class Pair:
    """A unit of each. `cosine`, `overlap`: None where that was not measured."""

    one: str
    other: str
    cosine: float | None
    overlap: float | None


@dataclass(frozen=True)
class Compared:
    """What two maps have in common. `silent`: units that are on nowhere, and not compared, of each."""

    same: tuple[Pair, ...]
    changed: tuple[Pair, ...]
    only_one: tuple[str, ...]
    only_other: tuple[str, ...]
    silent: tuple[int, int]

    def json(self) -> Mapping[str, object]:
        """Counts, for summaries."""
        return {"same": len(self.same), "changed": len(self.changed), "only_one": len(self.only_one),
                "only_other": len(self.only_other), "silent": list(self.silent)}  # fmt: skip


def compare(one: MapRun, other: MapRun) -> Compared:
    """Units of two maps. Raises UsageError where neither decoders nor firings can be compared."""
    parts = one.reading.part(PART), other.reading.part(PART)
    alive = [np.flatnonzero(np.diff(part.by_unit.indptr) > 0) for part in parts]
    cosine, overlap = cosines(one, other), overlaps(*parts)
    if cosine is None and overlap is None:
        raise bad_argument("maps", "of other sizes, over other rows", "two whose decoders write to one space, or with rows in"
                           " common")  # fmt: skip
    known = [matrix[np.ix_(*alive)] for matrix in (cosine, overlap) if matrix is not None]
    pairs = mutual(np.sum(known, axis=0))
    names = [[run.reading.units[column] for column in units] for run, units in zip((one, other), alive, strict=True)]
    made = [_pair(names, alive, a, b, cosine, overlap) for a, b in pairs]
    best = [max(value for value in (pair.cosine, pair.overlap) if value is not None) for pair in made]
    same = tuple(pair for pair, value in zip(made, best, strict=True) if value >= SAME)
    changed = tuple(pair for pair, value in zip(made, best, strict=True) if LEAST <= value < SAME)
    met = {pair.one for pair in (*same, *changed)}, {pair.other for pair in (*same, *changed)}
    rest = [tuple(name for name in side if name not in seen) for side, seen in zip(names, met, strict=True)]
    silent = (len(one.reading.units) - len(alive[0]), len(other.reading.units) - len(alive[1]))
    return Compared(same, changed, rest[0], rest[1], silent)


def _pair(
    names: list[list[str]], alive: list[np.ndarray], a: int, b: int, cosine: Matrix | None, overlap: Matrix | None
) -> Pair:  # fmt: skip
    places = alive[0][a], alive[1][b]
    values = [None if matrix is None else float(matrix[places]) for matrix in (cosine, overlap)]
    return Pair(names[0][a], names[1][b], values[0], values[1])


def cosines(one: MapRun, other: MapRun) -> Matrix | None:
    """Cosines of decoder rows; None where they write to spaces of other sizes."""
    rows = one.units.decoder, other.units.decoder
    if rows[0] is None or rows[1] is None or rows[0].shape[1] != rows[1].shape[1]:
        return None
    unit = [each / each.norm(dim=1, keepdim=True).clamp_min(1e-12) for each in rows if each is not None]
    return (unit[0] @ unit[1].T).numpy()


def overlaps(one: CodedPart, other: CodedPart) -> Matrix | None:
    """|A and B| / |A or B| of where units are on, over the rows that both parts have; None where there is none."""
    rows = common_tokens(one, other)
    if not len(rows[0]):
        return None
    on = [sparse.csr_array((part.codes[tokens] > 0).astype(np.float64))
          for part, tokens in zip((one, other), rows, strict=True)]  # fmt: skip
    both = (on[0].T @ on[1]).toarray()
    either = on[0].sum(0)[:, None] + on[1].sum(0)[None, :] - both
    return np.divide(both, either, out=np.zeros_like(both), where=either > 0)


def common_tokens(one: CodedPart, other: CodedPart) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of rows with the same ids in both, in the same order."""
    known = {np.asarray(row.tokens).tobytes(): number for number, row in enumerate(other.rows)}
    pairs = [(number, known[key]) for number, row in enumerate(one.rows) if (key := np.asarray(row.tokens).tobytes()) in known]
    spans = [[np.arange(part.starts[row], part.starts[row + 1]) for row in rows]
             for part, rows in ((one, [a for a, _ in pairs]), (other, [b for _, b in pairs]))]  # fmt: skip
    none = np.zeros(0, np.int64)
    return (np.concatenate(spans[0]), np.concatenate(spans[1])) if pairs else (none, none)


def mutual(scores: Matrix) -> list[tuple[int, int]]:
    """Pairs each of which is the other's best."""
    if not scores.size:
        return []
    forward, back = scores.argmax(1), scores.argmax(0)
    return [(row, int(column)) for row, column in enumerate(forward) if back[column] == row]
