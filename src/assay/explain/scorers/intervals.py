"""Values and intervals of scores, with the document as the unit of observation.

1. Balanced accuracy: (share right where it fires + share right where it does not) / 2, so 0.5 knows nothing, whatever the mix.
   Interval: exact (Clopper & Pearson 1934) for each of the two on documents, at 97.5% each, so the mean of both bounds holds at
   95% or more. Windows of one document count as copies: a document with some wrong is rounded against the bound.
2. AUROC (Hanley & McNeil 1982) and Pearson's r: documents are drawn again with replacement, `DRAWS` times; 2.5% and 97.5%.
3. A share of independent trials: exact.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Float
from scipy import stats

from assay.statistics import clopper_pearson

DRAWS, LEVEL = 500, 0.95
Array = np.ndarray
Interval = tuple[float | None, float | None]


def balanced(truth: Sequence[bool], right: Sequence[bool], documents: Sequence[str]) -> tuple[float, float, float]:
    """(balanced accuracy, low, high) of answers that are right or not. Both kinds of truth must be there."""
    sides = []
    for kind in (True, False):
        rows = [row for row, each in enumerate(truth) if each is kind]
        answers, names = [right[row] for row in rows], [documents[row] for row in rows]
        sides.append((sum(answers) / len(rows), *_on_documents(answers, names, 1 - (1 - LEVEL) / 2)))
    value, low, high = (float(sum(part) / 2) for part in zip(*sides, strict=True))
    return value, low, high


def share(right: Sequence[float], level: float = LEVEL) -> tuple[float, float, float]:
    """(mean, low, high) of independent trials between 0 and 1; parts of a success are rounded against the bound."""
    hits, n = float(sum(right)), len(right)
    return hits / n, _exact(int(hits + 1e-9), n, level)[0], _exact(int(np.ceil(hits - 1e-9)), n, level)[1]


def _on_documents(right: Sequence[bool], documents: Sequence[str], level: float) -> tuple[float, float]:
    of: dict[str, list[bool]] = {}
    for document, each in zip(documents, right, strict=True):
        of.setdefault(document, []).append(each)
    return share([sum(each) / len(each) for each in of.values()], level)[1:]


@lru_cache(maxsize=4096)
def _exact(hits: int, n: int, level: float) -> tuple[float, float]:
    return clopper_pearson(hits, n, level)


def auroc(on: Sequence[float], off: Sequence[float], on_documents: Sequence[str], off_documents: Sequence[str]) -> tuple[
    float, float | None, float | None]:  # fmt: skip
    """(AUROC, low, high) of scores where it fires against scores where it does not; ties count half."""
    above = np.asarray(on)[:, None] - np.asarray(off)[None]
    wins = (above > 0) + 0.5 * (above == 0)
    names = sorted({*on_documents, *off_documents})
    place = {name: row for row, name in enumerate(names)}
    weights = _weights(len(names))
    first, second = (weights[:, [place[name] for name in side]] for side in (on_documents, off_documents))
    pairs = first.sum(1) * second.sum(1)
    drawn = ((first @ wins) * second).sum(1)[pairs > 0] / pairs[pairs > 0]
    return float(wins.mean()), *_quantiles(drawn, len(names))


def correlation(
    said: Sequence[Float[Array, " token"]], true: Sequence[Float[Array, " token"]], documents: Sequence[str]
) -> tuple[float, float | None, float | None]:
    """(Pearson's r over all tokens of all windows, low, high); 0 where one of both is constant."""
    names = sorted(set(documents))
    place = {name: row for row, name in enumerate(names)}
    sums = np.zeros((len(names), 6))
    for x, y, document in zip(said, true, documents, strict=True):
        sums[place[document]] += (len(x), x.sum(), y.sum(), x @ x, y @ y, x @ y)
    drawn = _pearson(_weights(len(names)) @ sums)
    return float(_pearson(sums.sum(0, keepdims=True))[0]), *_quantiles(drawn, len(names))


def _pearson(sums: Float[Array, "row 6"]) -> Float[Array, " row"]:
    n, x, y, xx, yy, xy = sums.T
    n = np.maximum(n, 1)
    first, second = xx / n - (x / n) ** 2, yy / n - (y / n) ** 2
    varies = (first > 1e-12 * (xx / n + 1e-300)) & (second > 1e-12 * (yy / n + 1e-300))
    with np.errstate(divide="ignore", invalid="ignore"):
        found = (xy / n - x * y / n**2) / np.sqrt(first * second)
    return np.where(varies, np.clip(np.nan_to_num(found), -1, 1), 0.0)


@lru_cache(maxsize=64)
def _weights(n: int) -> Float[Array, "draw n"]:
    """How often each of n documents is drawn."""
    found = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), DRAWS).astype(float)
    found.flags.writeable = False
    return found


def _quantiles(drawn: Float[Array, " draw"], n: int) -> Interval:
    """The middle 95%; none below 2 documents."""
    if n < 2 or not len(drawn):
        return None, None
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, 1 - (1 - LEVEL) / 2])
    return float(low), float(high)


def mean_of(values: Sequence[float], level: float = LEVEL) -> tuple[float, float | None, float | None]:
    """(mean, low, high) over features, by Student's t; no interval below 2."""
    row = np.asarray(values, float)
    centre = float(row.mean())
    if len(row) < 2:
        return centre, None, None
    reach = float(stats.t.ppf(1 - (1 - level) / 2, len(row) - 1) * row.std(ddof=1) / np.sqrt(len(row)))
    return centre, centre - reach, centre + reach
