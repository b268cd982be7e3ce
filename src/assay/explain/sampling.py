"""Windows of every unit: some to explain it by, others, of other documents, to judge what was said.

1. Shown windows are of the part *shown*, scored ones of *scored*: no document is in both, nor near copies of one (`split`).
   A window whose tokens all equal those of a shown one is not scored either, whatever document it is in.
2. Where the unit is on: *top*, the documents in which it is largest, each by its largest token; *quantile*, one firing from
   each of n bands of values with equal counts; *random*, firings drawn evenly. One window a document in each group, where
   there are enough documents; else further ones that do not overlap.
3. Near misses, in whose whole window it is off: *coactive*, where the units fire that fire most often together with it, by
       phi = (N n11 - n1 n2) / sqrt(n1 (N - n1) n2 (N - n2))      over N tokens;
   *neighbour*, where the nearest units by cosine of decoder rows fire; *similar*, half of them at tokens that it fires at
   elsewhere, half by TF-IDF cosine of the window's words with all shown windows in which it is on; *other*, any.
4. Units that never or hardly fire, or are hardly ever off, are left out and counted with the reason (`Samples.dropped`).

All is drawn from the plan's seed and the unit's column: the same for one unit as for all.
"""

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Int

from assay.errors import bad_argument
from assay.explain.reading import CodedPart, Reading
from assay.explain.records import WHY, Sample, Window
from assay.explain.units import nearest
from assay.features.dictionary import Dictionary

PARTNERS = 8  # units whose firings are looked at for near misses
TOP = 10  # neighbours and coactive units named in a sample
LOOKED_AT = 64  # firings of one partner, and times what is wanted of others
POOL = 4096  # windows that texts are compared with
TOKENS = 8  # of the most frequent tokens a unit fires at
KEPT = 1 << 16  # units whose windows an open reading remembers
DENSE = 1 << 22  # numbers of one block of joint counts
PAIRS = 4_000_000_000  # of units on together, above which joint counts are made on a part of the tokens
WORDS = 1 << 16  # numbers of words; two of them may share one
BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse mod 2^64
NONE = np.zeros(0, np.uint64)
Array = np.ndarray


@dataclass(frozen=True)
class SamplePlan:
    """Windows in each group, the same for *shown* and *scored*. `near`: of each kind of near miss. `least`: documents of each
    part a unit must fire in. `before`, `after`: tokens around the one a window is chosen by."""

    top: int = 10
    quantile: int = 10
    random: int = 10
    near: int = 5
    other: int = 10
    before: int = 16
    after: int = 8
    least: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("top", 1), ("quantile", 0), ("random", 0), ("near", 0), ("other", 1), ("before", 0), ("after", 0),
                            ("least", 1), ("seed", 0)):  # fmt: skip
            if getattr(self, name) < least:
                raise bad_argument(name, getattr(self, name), f"{least} or more")


def coactivation(
    reading: Reading, k: int = 16, part: str = "shown"
) -> tuple[Int[Array, "unit k"], Float[Array, "unit k"]]:  # fmt: skip
    """Of each unit the k others with the largest phi of being on at the same tokens, largest first; -1 and 0 where fewer are
    above 0. Over the tokens of a part that are read (of a part of them, drawn evenly, where very many units are on). Made once
    for a reading that is open."""
    kept = reading.coactive.get(part)
    if kept is None or kept[0].shape[1] < k:
        found = reading.part(part)
        kept = reading.coactive[part] = joint_firing(found.codes[found.typical], k)
    return kept[0][:, :k], kept[1][:, :k]


def joint_firing(codes: Any, k: int, pairs: int = PAIRS) -> tuple[Int[Array, "unit k"], Float[Array, "unit k"]]:
    """The same of codes (N, units), scipy CSR."""
    counts = np.diff(codes.indptr).astype(np.float64)
    if (cost := float((counts**2).sum())) > pairs:
        kept = max(1, int(codes.shape[0] * pairs / cost))
        codes = codes[np.sort(np.random.default_rng(0).choice(codes.shape[0], kept, replace=False))]
    n, width = codes.shape
    on = sp.csr_array((np.ones(len(codes.data), np.float32), codes.indices, codes.indptr), shape=codes.shape)
    turned = on.T.tocsr()
    fired = np.diff(turned.indptr).astype(np.float64)
    spread = np.sqrt(fired * (n - fired))
    units, values = np.full((width, k), -1, np.int64), np.zeros((width, k), np.float32)
    step, kept = max(1, DENSE // max(width, 1)), min(k, width)
    for start in range(0, width, step):
        rows = slice(start, min(start + step, width))
        joint = (turned[rows] @ on).toarray()
        bottom = spread[rows, None] * spread
        phi = (n * joint - fired[rows, None] * fired) / np.where(bottom > 0, bottom, np.inf)
        phi[np.arange(len(phi)), np.arange(rows.start, rows.stop)] = -1.0
        best = np.argpartition(-phi, kept - 1, axis=1)[:, :kept]
        best = np.take_along_axis(best, np.lexsort((best, -np.take_along_axis(phi, best, 1)), axis=1), 1)
        found = np.take_along_axis(phi, best, 1)
        units[rows, :kept], values[rows, :kept] = np.where(found > 0, best, -1), np.maximum(found, 0)
    return units, values


def neighbours(dictionary: Dictionary, k: int = 16) -> tuple[Int[Array, "unit k"], Float[Array, "unit k"]]:
    """Of each latent the k others with the largest cosine of decoder rows, largest first."""
    return nearest(dictionary.directions().float().cpu(), k)


def samples(reading: Reading, plan: SamplePlan | None = None, only: Iterable[str | int] | None = None) -> "Samples":
    """Samples of all units of a reading, or of `only` some by name or column, in the order of columns.

    Raises UsageError where *shown* or *scored* is not read, or for a unit there is none of.
    """
    columns = range(len(reading.units)) if only is None else sorted({reading.column(unit) for unit in only})
    return Samples(reading, plan or SamplePlan(), list(columns))


class Samples:
    """Samples, made one by one as they are asked for. `dropped`: units left out and why; those that prove to be hardly ever
    off, or to fire in copies of shown windows only, are entered when they are reached."""

    def __init__(self, reading: Reading, plan: SamplePlan, columns: Sequence[int]) -> None:
        self.reading, self.plan, self.columns = reading, plan, columns
        shown, scored = reading.part("shown"), reading.part("scored")
        _refuse_shared(shown, scored)
        self._shown, self._scored = _Side(shown, plan), _Side(scored, plan)
        self.dropped: dict[str, str] = {}
        for column in columns:
            if reason := self._why_not(column):
                self.dropped[reading.units[column]] = reason

    def __len__(self) -> int:
        """How many are not dropped, as far as is known."""
        return len(self.columns) - len(self.dropped)

    def __iter__(self) -> Iterator[Sample]:
        for column in self.columns:
            if self.reading.units[column] not in self.dropped and (made := self._sample(column)) is not None:
                yield made

    def of(self, unit: str | int) -> Sample | None:
        """The sample of one unit; None where it is dropped."""
        column = self.reading.column(unit)
        return None if self._why_not(column) else self._sample(column)

    # internal --------------------------------------------------------------------------------

    @cached_property
    def _coactive(self) -> tuple[Array, Array]:
        return coactivation(self.reading, max(TOP, PARTNERS))

    @cached_property
    def _near(self) -> tuple[Array, Array] | None:
        return self.reading.neighbours()

    def _why_not(self, column: int) -> str:
        if not len(self._shown.firings(column)[0]):
            return "never fires in the part shown"
        for side in (self._shown, self._scored):
            n = len(np.unique(side.document[side.firings(column)[0]]))
            if n < self.plan.least:
                return f"fires in fewer than {self.plan.least} documents of the part {side.part.name}"
        return ""

    def _sample(self, column: int) -> Sample | None:
        near = () if self._near is None else _pairs(*self._near, column)
        coactive = _pairs(*self._coactive, column)
        kept = self.reading.chosen.setdefault(self.plan, {})
        if column in kept:
            shown, scored = map(_read_back, kept[column])
        else:
            partners = ([unit for unit, _ in coactive][:PARTNERS], [unit for unit, value in near if value > 0][:PARTNERS])
            shown, scored = self._chosen(column, partners)
            if len(kept) < KEPT:
                kept[column] = _written(shown), _written(scored)
        name = self.reading.units[column]
        if not any(why == "top" for _, why in scored):
            self.dropped[name] = "fires in the part scored only in copies of shown windows"
            return None
        if not all(any(why == "other" for _, why in side) for side in (shown, scored)):
            self.dropped[name] = "hardly ever off: no window without it was found"
            return None
        positions, values = self._shown.firings(column)
        names = self.reading.units
        return Sample(name, len(positions) / max(1, self._shown.n_typical), float(values.max()), len(positions),
                      self._shown.windows(column, shown), self._scored.windows(column, scored),
                      tuple((names[unit], value) for unit, value in near[:TOP]),
                      tuple((names[unit], value) for unit, value in coactive[:TOP]))  # fmt: skip

    def _chosen(self, column: int, partners: tuple[list[int], list[int]]) -> tuple["Chosen", "Chosen"]:
        """Of both parts."""
        shown = self._shown.choose(column, partners, NONE)
        words = self._shown.words_of([at for at, why in shown if why in ("top", "quantile", "random")])
        shown += self._shown.similar(column, shown, words, NONE)
        seen = self._shown.hashes[[at for at, _ in shown]]
        scored = self._scored.choose(column, partners, seen)
        return shown, scored + self._scored.similar(column, scored, words, seen)


def _written(chosen: "Chosen") -> Array:
    """Five bytes a window instead of a hundred: a map asks for all of them twice."""
    return np.array([(at, WHY.index(why)) for at, why in chosen], [("at", np.int32), ("why", np.uint8)])


def _read_back(kept: Array) -> "Chosen":
    return [(at, WHY[why]) for at, why in kept.tolist()]


def _refuse_shared(shown: CodedPart, scored: CodedPart) -> None:
    if both := set(shown.names) & set(scored.names):
        raise bad_argument("reading", f"{len(both)} documents in shown and in scored, as {sorted(both)[0]!r}",
                           "parts that share none", "Read again.")  # fmt: skip


def _pairs(units: Array, values: Array, column: int) -> list[tuple[int, float]]:
    return [(unit, value) for unit, value in zip(units[column].tolist(), values[column].tolist(), strict=True) if unit >= 0]


Chosen = list[tuple[int, str]]  # token of the part, why


class _Side:
    """One part, ready to have windows chosen from it."""

    def __init__(self, part: CodedPart, plan: SamplePlan) -> None:
        self.part, self.plan = part, plan
        self.codes, self.document = part.by_unit, part.document_of
        tokens, row = np.arange(part.n_tokens), part.row_of
        self.row_starts = part.starts[:-1][row]
        self.first = np.maximum(tokens - plan.before, self.row_starts)
        self.end = np.minimum(tokens + plan.after + 1, part.starts[1:][row])
        self.hashes = _window_hashes(part.tokens, self.first, self.end)
        self.typical = np.flatnonzero(part.typical)
        self.n_typical = len(self.typical)
        self.by_token = self.typical[np.argsort(part.tokens[self.typical], kind="stable")]
        self.sorted_ids = part.tokens[self.by_token]

    @cached_property
    def _words(self) -> Array:
        """A number for the word of each token, blanks and case aside, the same in every part."""
        table: dict[str, int] = {}
        return np.array([_word_number(piece, table) for piece in self.part.pieces], np.int64)

    @cached_property
    def pool(self) -> Array:
        """Tokens whose windows texts are compared with."""
        rng = np.random.default_rng([self.plan.seed, 7])
        return np.sort(rng.choice(self.typical, min(POOL, self.n_typical), replace=False))

    @cached_property
    def pool_words(self) -> Any:
        """Unit TF-IDF rows of the pool's windows."""
        return _tf_idf(self._bags(self.pool), self.idf)

    @cached_property
    def idf(self) -> Array:
        """Of each word: log((1 + windows) / (1 + windows with it)) + 1."""
        bags = self._bags(self.pool)
        return np.log((1 + bags.shape[0]) / (1 + np.bincount(bags.indices, minlength=WORDS))) + 1

    def _bags(self, at: Array) -> Any:
        lengths = self.end[at] - self.first[at]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        places = np.repeat(self.first[at] - offsets[:-1], lengths) + np.arange(offsets[-1])
        bags = sp.csr_array((np.ones(len(places), np.float32), self._words[places], offsets), shape=(len(at), WORDS))
        bags.sum_duplicates()
        return bags

    def firings(self, column: int) -> tuple[Array, Array]:
        """Tokens at which a unit is on, in order, and its values."""
        inside = slice(self.codes.indptr[column], self.codes.indptr[column + 1])
        return self.codes.indices[inside], self.codes.data[inside]

    def silent(self, column: int, at: Array) -> Array:
        """Those of some tokens in whose windows a unit is off everywhere."""
        on = self.firings(column)[0]
        return at[np.searchsorted(on, self.first[at]) == np.searchsorted(on, self.end[at])]

    # choosing --------------------------------------------------------------------------------

    def choose(self, column: int, partners: tuple[list[int], list[int]], seen: Array) -> Chosen:
        """All groups but *similar*; windows with a hash in `seen` are left out."""
        rng = np.random.default_rng([self.plan.seed, column, 11])
        on, values = self.firings(column)
        made: Chosen = []
        by_value = np.lexsort((on, -values))
        self._add(made, "top", on[by_value], self.plan.top, seen)
        self._add_bands(made, on[by_value], seen, rng)
        self._add(made, "random", rng.permutation(on), self.plan.random, seen)
        for why, units in zip(("coactive", "neighbour"), partners, strict=True):
            self._add(made, why, self.silent(column, self._in_turn(units, rng)), self.plan.near, seen)
        self._add(made, "other", self.silent(column, self._any(self.plan.other * LOOKED_AT, rng)), self.plan.other, seen)
        return made

    def similar(self, column: int, made: Chosen, words: Array, seen: Array) -> Chosen:
        """Windows in which a unit is off and that look like those in which it is on; `words`: TF-IDF of those."""
        rng = np.random.default_rng([self.plan.seed, column, 13])
        found: Chosen = list(made)
        half = (self.plan.near + 1) // 2
        self._add(found, "similar", self.silent(column, self._same_tokens(column, rng)), half, seen)
        likeness = self.pool_words @ (words * self.idf)
        order = np.argsort(-likeness, kind="stable")
        alike = self.pool[order[likeness[order] > 0]]
        rest = self.plan.near - sum(why == "similar" for _, why in found)
        self._add(found, "similar", self.silent(column, alike[: 4 * LOOKED_AT]), rest, seen)
        return found[len(made) :]

    def words_of(self, at: Sequence[int]) -> Array:
        """How often each word is in some windows."""
        return np.asarray(self._bags(np.asarray(at, np.int64)).sum(axis=0)).ravel()

    def _same_tokens(self, column: int, rng: np.random.Generator) -> Array:
        """Tokens with the ids a unit fires at most often, some of each, in turn."""
        ids, counts = np.unique(self.part.tokens[self.firings(column)[0]], return_counts=True)
        often = ids[np.lexsort((ids, -counts))][:TOKENS]
        groups = [self.by_token[slice(*np.searchsorted(self.sorted_ids, [token, token + 1]))] for token in often]
        return _turns([_some(group, LOOKED_AT, rng) for group in groups])

    def _in_turn(self, units: Sequence[int], rng: np.random.Generator) -> Array:
        """Firings of some units, one of each in turn."""
        return _turns([_some(self.firings(unit)[0], LOOKED_AT, rng) for unit in units])

    def _any(self, n: int, rng: np.random.Generator) -> Array:
        """Tokens drawn evenly."""
        return self.typical[rng.integers(0, self.n_typical, n)] if self.n_typical else self.typical

    def _add_bands(self, made: Chosen, by_value: Array, seen: Array, rng: np.random.Generator) -> None:
        """One firing of each band of values, of a document that the bands before have not taken if there is one."""
        taken: set[int] = set()
        cuts = np.linspace(0, len(by_value), self.plan.quantile + 1).round().astype(int).tolist()
        for start, end in zip(cuts[:-1], cuts[1:], strict=True):
            able = self._able(made, _some(by_value[start:end], LOOKED_AT, rng), seen)
            if len(able):
                fresh = [at for at in able.tolist() if self.document[at] not in taken]
                chosen = fresh[0] if fresh else int(able[0])
                taken.add(int(self.document[chosen]))
                made.append((chosen, "quantile"))

    def _add(self, made: Chosen, why: str, at: Array, n: int, seen: Array) -> None:
        """Up to n of some tokens, the first come first: one of each document, then others that overlap none of the group."""
        able = self._able(made, at, seen)
        if n <= 0 or not len(able):
            return
        each = np.sort(np.unique(self.document[able], return_index=True)[1])
        chosen = able[each[:n]].tolist()
        if len(chosen) < n:
            apart = self.plan.before + self.plan.after + 1
            for token in np.delete(able, each).tolist():
                if all(abs(token - other) >= apart for other in chosen):
                    chosen.append(token)
                    if len(chosen) == n:
                        break
        made += [(token, why) for token in chosen]

    def _able(self, made: Chosen, at: Array, seen: Array) -> Array:
        """Those that are no copy of a window of `made` or `seen`, nor of an earlier one among them."""
        taken = np.concatenate([seen, self.hashes[[token for token, _ in made]]]) if made else seen
        able = at[~np.isin(self.hashes[at], taken)] if len(taken) else at
        return able[np.sort(np.unique(self.hashes[able], return_index=True)[1])]

    # windows ---------------------------------------------------------------------------------

    def windows(self, column: int, chosen: Chosen) -> tuple[Window, ...]:
        """As records."""
        on, values = self.firings(column)
        return tuple(self._window(at, why, on, values) for at, why in chosen)

    def _window(self, at: int, why: str, on: Array, values: Array) -> Window:
        first, end, begin = int(self.first[at]), int(self.end[at]), int(self.row_starts[at])
        a, b = np.searchsorted(on, [first, end])
        filled = np.zeros(end - first, np.float32)
        filled[on[a:b] - first] = values[a:b]
        part = self.part
        return Window(tuple(part.tokens[first:end].tolist()), tuple(part.pieces[first:end]), tuple(filled.tolist()), at - first,
                      part.names[self.document[at]], at - begin, why, tuple(part.pieces[begin:first]))  # fmt: skip



def _word_number(piece: str, table: dict[str, int]) -> int:
    if piece not in table:
        table[piece] = zlib.crc32(piece.strip().casefold().encode("utf-8", "surrogatepass")) % WORDS
    return table[piece]


def _tf_idf(bags: Any, idf: Array) -> Any:
    made = bags.copy()
    made.data = (made.data * idf[made.indices]).astype(np.float32)
    norms = np.sqrt(np.add.reduceat(np.append(made.data, 0.0) ** 2, made.indptr[:-1]))
    made.data /= np.repeat(np.maximum(norms, 1e-12), np.diff(made.indptr)).astype(np.float32)
    return made


def _window_hashes(tokens: Array, first: Array, end: Array) -> Array:
    """A number for the tokens of each window, the same in any part: sum of mixed ids x BASE^place from its start, mod 2^64."""
    n = len(tokens)
    with np.errstate(over="ignore"):
        mixed = (tokens.astype(np.uint64) + np.uint64(1)) * np.uint64(0xD1B54A32D192ED03)
        mixed ^= mixed >> np.uint64(29)
        powers, inverse = (np.cumprod(np.full(n + 1, base, np.uint64)) for base in (BASE, pow(BASE, -1, 1 << 64)))
        sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mixed * powers[:n], dtype=np.uint64)])
        return (sums[end] - sums[first]) * inverse[first] * np.uint64(31) + (end - first).astype(np.uint64)


def _some(tokens: Array, n: int, rng: np.random.Generator) -> Array:
    """Up to n of them in random order."""
    return rng.permutation(tokens)[:n] if len(tokens) <= 4 * n else rng.choice(tokens, n, replace=False, shuffle=True)


def _turns(groups: Sequence[Array]) -> Array:
    """The first of every group, then the second of every group, and so on, each token once."""
    if not groups:
        return np.zeros(0, np.int64)
    joined = np.concatenate(groups)
    ranks = np.concatenate([np.arange(len(group)) for group in groups])
    ordered = joined[np.argsort(ranks, kind="stable")]
    return ordered[np.sort(np.unique(ordered, return_index=True)[1])]
