"""A rule for one unit, by description length (Rissanen 1978; rules as two cells as in Quinlan & Rivest 1989).

1. Of N tokens a unit fires at K. A rule parts them into tokens at which it says *fires* and the others. The firings in a part
   of n tokens with k firings cost  cell(n, k) = log2(n + 1) + log2 C(n, k)  bits: which k it is, of n + 1 possible numbers, and
   which of the n they are. This is also what they cost when they are told one by one, each with probability
   (firings so far + 1) / (tokens so far + 2): nothing is fitted that is not paid for.
2. Without a rule: cell(N, K). With one: cell of its part + cell of the rest + the bits of the rule (`rules.rule_bits`).
3. One condition: values of a kind are sorted by the share of their tokens at which the unit fires; the best sets under 2 are
   among the first m of that order, for one m. All kinds and all m are tried.
4. An alternative: the best few conditions, each joined with the best further condition within its tokens, and once more,
   as long as bits are saved. The next alternative is looked for among tokens not yet in the rule. Exceptions are looked for
   among the rule's tokens, by the same order backwards. Alternatives that no longer pay are left out.
5. A value must be seen firing in at least `documents` documents (as an exception: must be seen in as many); twice as many
   for what lasts over many tokens, such as a language. One that stands for others (an ending, for words) must be seen firing
   with at least `several` of them, else those themselves are named.
6. "Fires" must be right often enough to be said: an alternative is one only if the unit fires at a share `right` of its tokens.
   Conditions below that are looked at too, for what they give together.
7. No rule is the outcome unless at least `least` bits are saved. Both are codes, so that of units that fire at random about one
   in 2^least at most is given a rule. Firings come in bursts and texts repeat each other, which no code here knows of: of
   units without a rule more than that are given one, and text not seen must judge what was found.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from assay.errors import bad_argument
from assay.explain.conditions import gamma_bits
from assay.explain.rules import MOST_ALTERNATIVES, TYPE, rule_bits
from assay.explain.table import Table

Array = np.ndarray
FEW = 0.04  # of the entries of long lists: up to here it takes less time to look tokens up in them than to go through them
MANY = 8192  # entries, from which on that matters
TRIED = 3  # further conditions that are joined at each step, of which the best stays
JOINED_VALUES = 16  # values of a kind that gives several at once, of which sets are formed


@dataclass(frozen=True)
class SearchPlan:
    """How long rules may be and when one is given. `seeds`: conditions that are joined with others, the best of those
    that are right often enough and of all."""

    alternatives: int = 4
    conditions: int = 3
    exceptions: int = 2
    values: int = 40
    seeds: int = 2
    documents: int = 2
    several: int = 3
    right: float = 0.3
    least: float = 20.0

    def __post_init__(self) -> None:
        for name, low in (("alternatives", 1), ("conditions", 1), ("exceptions", 0), ("values", 1), ("seeds", 1),
                          ("documents", 1), ("several", 1), ("least", 0)):  # fmt: skip
            if getattr(self, name) < low:
                raise bad_argument(name, getattr(self, name), f"{low} or more")
        if not 0 <= self.right <= 1:
            raise bad_argument("right", self.right, "0 to 1")
        if self.alternatives > MOST_ALTERNATIVES:
            raise bad_argument("alternatives", self.alternatives, f"at most {MOST_ALTERNATIVES}")


@dataclass(frozen=True)
class Found:
    """`record`: the rule, None where none pays. Bits `without` a rule, `given` it, and of the `rule`; `said`: tokens at which
    it says *fires*, `hits` of them rightly; `fired`: firings."""

    record: dict[str, Any] | None
    without: float
    given: float
    rule: float
    fired: int
    said: int
    hits: int


@dataclass(frozen=True)
class Literal:
    """A set of values of one kind, the likeliest first, with its bits."""

    kind: int
    values: tuple[int, ...]
    bits: float


@dataclass(frozen=True, eq=False)
class Term:
    """Literals that must all hold; `tokens`: at which they do, among those not in the rule yet; `saved`: bits."""

    literals: tuple[Literal, ...]
    tokens: Int[Array, " token"]
    saved: float

    @property
    def bits(self) -> float:
        return gamma_bits(len(self.literals)) + sum(literal.bits for literal in self.literals)


class Cells:
    """log2 of factorials up to N + 1, and what follows from them."""

    def __init__(self, n: int) -> None:
        self.log = np.concatenate([[0.0], np.cumsum(np.log2(np.arange(1, n + 2)))])

    def choose(self, n: Any, k: Any) -> Any:
        """log2 of the number of sets of k among n."""
        return self.log[n] - self.log[k] - self.log[n - k]

    def cell(self, n: Any, k: Any) -> Any:
        """Bits of k firings among n tokens."""
        return np.log2(np.asarray(n) + 1.0) + self.choose(n, k)


class Searcher:
    """Looks for rules in one table; `find` one unit at a time."""

    def __init__(self, table: Table, plan: SearchPlan) -> None:
        self.table, self.plan = table, plan
        self.cells = Cells(max(len(table), *table.sizes.values()))
        self.on, self.free = np.zeros(len(table), bool), np.ones(len(table), bool)
        self.marks = np.zeros(len(table), bool)  # set and cleared within one call
        self.kind_bits = float(np.log2(len(table.kinds)))
        self.size = np.array([table.sizes[kind.name] for kind in table.kinds])
        self.starts = np.cumsum([0, *(kind.most for kind in table.kinds)]).tolist()
        self.n_documents = int(table.documents.max(initial=-1)) + 1
        first = {kind.name: start for kind, start in zip(table.kinds, self.starts, strict=False)}
        self.over = [(first[kind.name], first[kind.over]) for kind in table.kinds if kind.over in first]
        self.several = [number for number, kind in enumerate(table.kinds) if kind.most > 1]
        self.gamma = np.array([0, *(gamma_bits(m) for m in range(1, plan.values + 1))], float)

    def find(self, fired: Int[Array, " token"]) -> Found:
        """The rule of a unit that fires at these tokens of the table."""
        n, k = len(self.table), len(fired)
        base = float(self.cells.cell(n, k))
        nothing = Found(None, base, base, 0.0, k, 0, 0)
        if k < 2 or k == n:
            return nothing
        self.on[fired] = True
        try:
            terms = self._terms(fired)
            found = self._settled(terms, base, k) if terms else nothing
        finally:
            self.on[fired] = False
            self.free[:] = True
        return found if base - found.given - found.rule >= self.plan.least and found.record else nothing

    # alternatives ----------------------------------------------------------------------------

    def _terms(self, fired: Int[Array, " token"]) -> list[Term]:
        """Alternatives one after the other, each among the tokens that are left."""
        terms: list[Term] = []
        said = hits = 0
        totals = self.table.totals.copy()
        left = fired
        while len(terms) < self.plan.alternatives and len(left) >= 2:
            term = self._best_term(totals, left, said, hits, len(fired))
            if term is None:
                break
            terms.append(term)
            self.free[term.tokens] = False
            totals -= self.table.count(self.table.columns[term.tokens])
            said, hits = said + len(term.tokens), hits + int(self.on[term.tokens].sum())
            left = left[self.free[left]]
        return terms

    def _best_term(self, totals: Int[Array, " value"], left: Int[Array, " token"], said: int, hits: int, k: int) -> Term | None:
        state = _State(said, hits, len(self.table), k)
        seeds = [term for way in self._literals(totals, left, state, None)
                 if (term := self._as_term((way,), self._tokens(way), state))]  # fmt: skip
        grown = [self._grown(seed, state) for seed in seeds if seed is seeds[0] or seed.saved > 0]
        able = [term for term in grown if term.saved > 0 and self._share(term.tokens) >= max(self.plan.right, k / state.n)]
        return max(able, key=lambda term: term.saved, default=None)

    def _share(self, tokens: Int[Array, " token"]) -> float:
        """At what share of some tokens the unit fires."""
        return float(np.count_nonzero(self.on[tokens]) / max(1, len(tokens)))

    def _grown(self, term: Term, state: "_State") -> Term:
        """Joined with further conditions as long as that saves bits."""
        while len(term.literals) < self.plan.conditions:
            firing = term.tokens[self.on[term.tokens]]
            if len(firing) == len(term.tokens):
                break
            totals = self.table.count(self.table.columns[term.tokens])
            ways = self._literals(totals, firing, state, term)
            taken = {literal.kind for literal in term.literals}
            able = [way for way in ways if way.kind not in taken][:TRIED]
            more = [joined for way in able if (joined := self._joined_with(term, way, state))]
            best = max(more, key=lambda joined: joined.saved, default=term)
            if best.saved <= term.saved:
                break
            term = best
        return self._trimmed(term, state) if len(term.literals) > 1 else term

    def _joined_with(self, term: Term, way: Literal, state: "_State") -> Term | None:
        tokens = self._both(term.tokens, self.table.where_any(way.values))
        return self._as_term((*term.literals, way), tokens, state)

    def _trimmed(self, term: Term, state: "_State") -> Term:
        """Without values that do not count once the other conditions hold."""
        firing, tokens, literals = term.tokens[self.on[term.tokens]], term.tokens, []
        for literal in term.literals:
            seen = self._documents(literal.values, firing)
            kept = tuple(value for value, n in zip(literal.values, seen, strict=True) if n)
            literals.append(replace(literal, values=kept, bits=self._bits(literal.kind, len(kept))))
            tokens = self._both(tokens, self.table.where_any(kept))
        trimmed = Term(tuple(literals), tokens, 0.0)
        saved = float(self._saved(state, len(tokens), int(self.on[tokens].sum())) - trimmed.bits)
        return replace(trimmed, saved=saved) if saved > term.saved else term

    def _as_term(self, literals: tuple[Literal, ...], tokens: Int[Array, " token"], state: "_State") -> Term | None:
        """With the last literal's values seen firing in enough documents only; None where nothing is left."""
        last = literals[-1]
        seen = self._documents(last.values, tokens[self.on[tokens]])
        enough = self._enough(last.kind)
        kept = tuple(value for value, n in zip(last.values, seen, strict=True) if n >= enough)
        if not kept:
            return None
        if kept != last.values:
            last = replace(last, values=kept, bits=self._bits(last.kind, len(kept)))
            tokens = self._both(tokens, self.table.where_any(last.values))
        term = Term((*literals[:-1], last), tokens, 0.0)
        return replace(term, saved=float(self._saved(state, len(tokens), int(self.on[tokens].sum())) - term.bits))

    def _enough(self, kind: int) -> int:
        """Documents that a value of this kind must be seen in: of what lasts over many tokens, twice as many."""
        return self.plan.documents * (2 if self.table.kinds[kind].lasts else 1)

    def _documents(self, values: Sequence[int], tokens: Int[Array, " token"]) -> list[int]:
        """In how many documents each value, all of one kind, is seen among some tokens."""
        lists = [self.table.where(int(value)) for value in values]
        if (entries := sum(map(len, lists))) > MANY and len(tokens) < FEW * entries:
            return self._documents_among(values, tokens)
        self.marks[tokens] = True
        found = [len(set(self.table.documents[own[self.marks[own]]].tolist())) for own in lists]
        self.marks[tokens] = False
        return found

    def _documents_among(self, values: Sequence[int], tokens: Int[Array, " token"]) -> list[int]:
        """The same from these tokens' columns of that kind, without the lists of the values."""
        kind = int(self.table.kind_of[values[0]])
        held = self.table.columns[tokens, self.starts[kind] : self.starts[kind + 1]]
        chosen = np.asarray(values)
        order = chosen.argsort()
        place = chosen[order].searchsorted(held).clip(max=len(chosen) - 1)
        token, column = np.nonzero(chosen[order][place] == held)
        n = self.n_documents
        seen = np.unique(order[place[token, column]] * n + self.table.documents[tokens[token]])
        return np.bincount(seen // n, minlength=len(chosen)).tolist()

    def _both(self, some: Int[Array, " token"], others: Int[Array, " token"]) -> Int[Array, " token"]:
        """Tokens in both lists, in order."""
        if len(some) < FEW * len(others):
            return some[others[others.searchsorted(some).clip(max=len(others) - 1)] == some]
        self.marks[others] = True
        both = some[self.marks[some]]
        self.marks[others] = False
        return both

    def _tokens(self, literal: Literal) -> Int[Array, " token"]:
        """Tokens of a literal that are not in the rule yet."""
        found = self.table.where_any(literal.values)
        return found[self.free[found]]

    # one condition ---------------------------------------------------------------------------

    def _literals(
        self, totals: Int[Array, " value"], firing: Int[Array, " token"], state: "_State", within: Term | None
    ) -> list[Literal]:
        """The best sets of values, two of a kind at most, the best first. `totals`: tokens of each value here."""
        hits = self.table.count(self.table.columns[firing])
        values = np.flatnonzero((hits >= min(2, len(firing))) & self._general(firing))
        if not len(values):
            return []
        kinds = self.table.kind_of[values].astype(np.int64)
        rate = hits[values] / totals[values]
        order = np.lexsort((-hits[values], -rate, kinds))
        values, kinds = values[order], kinds[order]
        starts = np.flatnonzero(np.diff(kinds, prepend=-1))
        lengths = np.diff(np.append(starts, len(values)))
        rank = np.arange(len(values)) - np.repeat(starts, lengths)
        said, right = _running(totals[values], starts, lengths), _running(hits[values], starts, lengths)
        single = ~np.isin(kinds, self.several) & (rank < self.plan.values)
        size = self.size[kinds[single]]
        saved = np.full(len(values), -np.inf)
        m = rank[single] + 1
        bits = self.kind_bits + self.gamma[m] + self.cells.choose(size, m)
        saved[single] = self._saved(state, said[single], right[single]) - bits
        sure = np.where(right >= self.plan.right * said, saved, -np.inf)
        ways: list[list[tuple[float, int, int, Int[Array, " value"]]]] = [[], []]
        for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
            kind, own = int(kinds[start]), values[start : start + length]
            if kind in self.several:
                ways[0].append((*self._joined(kind, own, state, within), kind, own))
                continue
            for found, bits_saved in zip(ways, (saved, sure), strict=True):
                count = int(bits_saved[start : start + length].argmax()) + 1
                found.append((float(bits_saved[start + count - 1]), count, kind, own))
        best = [way for found in ways for way in sorted(found, key=lambda way: -way[0])[: self.plan.seeds]]
        best = sorted({way[1:3]: way for way in best if np.isfinite(way[0])}.values(), key=lambda way: -way[0])
        return [self._literal(kind, own[:count], hits) for _, count, kind, own in best]

    def _general(self, firing: Int[Array, " token"]) -> Bool[Array, " value"]:
        """Which values do not stand for too few others."""
        good = np.ones(len(self.table.values) + 1, bool)
        for column, over in self.over:
            pairs = np.unique(self.table.columns[firing][:, [column, over]].astype(np.int64) @ [len(good), 1])
            values, words = np.unique(pairs // len(good), return_counts=True)
            good[values[words < self.plan.several]] = False
        return good[:-1]

    def _literal(self, kind: int, values: Int[Array, " value"], hits: Int[Array, " value"]) -> Literal:
        order = np.argsort(-hits[values], kind="stable")
        return Literal(kind, tuple(values[order].tolist()), self._bits(kind, len(values)))

    def _joined(self, kind: int, values: Int[Array, " value"], state: "_State", within: Term | None) -> tuple[float, int]:
        """The same for a kind that gives several values at once: a token counts where the first of its values comes."""
        values = values[: min(JOINED_VALUES, self.plan.values)]
        wanted = self.free if within is None else self.table.mask(within.tokens)
        wanted = wanted.copy()
        said, right = [], []
        for value in values.tolist():
            tokens = self.table.where(value)
            tokens = tokens[wanted[tokens]]
            wanted[tokens] = False
            said.append(len(tokens))
            right.append(int(np.count_nonzero(self.on[tokens])))
        m = np.arange(1, len(values) + 1)
        bits = self.kind_bits + self.gamma[m] + self.cells.choose(self.size[kind], m)
        saved = self._saved(state, np.cumsum(said), np.cumsum(right)) - bits
        return float(saved.max()), int(saved.argmax()) + 1

    # bits ------------------------------------------------------------------------------------

    def _bits(self, kind: int, m: int) -> float:
        return float(self.kind_bits + gamma_bits(m) + self.cells.choose(self.size[kind], m))

    def _saved(self, state: "_State", said: Any, hits: Any) -> Any:
        """Bits of firings saved when these tokens join the rule."""
        return self._data(state, 0, 0) - self._data(state, said, hits)

    def _data(self, state: "_State", said: Any, hits: Any) -> Any:
        said, hits = state.said + said, state.hits + hits
        if np.ndim(said) == 0 and not said:
            return self.cells.cell(state.n, state.k)
        return self.cells.cell(said, hits) + self.cells.cell(state.n - said, state.k - hits)

    # the whole rule --------------------------------------------------------------------------

    def _settled(self, terms: list[Term], base: float, k: int) -> Found:
        """With exceptions, and without alternatives that no longer pay."""
        exceptions: list[Literal] = []
        found = self._scored(terms, exceptions, base, k)
        while len(exceptions) < self.plan.exceptions:
            more = self._exception(terms, exceptions, k)
            tried = self._scored(terms, [*exceptions, more], base, k) if more else found
            if not more or tried.given + tried.rule >= found.given + found.rule:
                break
            exceptions, found = [*exceptions, more], tried
        for term in reversed(terms):
            fewer = [other for other in terms if other is not term]
            tried = self._scored(fewer, exceptions, base, k) if fewer else found
            if fewer and tried.given + tried.rule < found.given + found.rule:
                terms, found = fewer, tried
        return found

    def _covered(self, terms: Sequence[Term], exceptions: Sequence[Literal]) -> Bool[Array, " token"]:
        said = np.zeros(len(self.table), bool)
        for term in terms:
            said |= np.logical_and.reduce([self._mask(literal) for literal in term.literals])
        for literal in exceptions:
            said &= ~self._mask(literal)
        return said

    def _mask(self, literal: Literal) -> Bool[Array, " token"]:
        return self.table.mask(self.table.where_any(literal.values))

    def _scored(self, terms: Sequence[Term], exceptions: Sequence[Literal], base: float, k: int) -> Found:
        said = self._covered(terms, exceptions)
        n, hits = int(said.sum()), int((said & self.on).sum())
        record = {"type": TYPE, "any": [[self._record(literal) for literal in term.literals] for term in terms],
                  "not": [self._record(literal) for literal in exceptions]}  # fmt: skip
        given = float(self._data(_State(0, 0, len(self.table), k), n, hits))
        return Found(record, base, given, rule_bits(record, self.table.sizes), k, n, hits)

    def _record(self, literal: Literal) -> dict[str, Any]:
        return {"is": self.table.kinds[literal.kind].name, "of": [self.table.values[value] for value in literal.values]}

    def _exception(self, terms: Sequence[Term], exceptions: Sequence[Literal], k: int) -> Literal | None:
        """The set of values without which the rule saves most."""
        said = np.flatnonzero(self._covered(terms, exceptions))
        firing = said[self.on[said]]
        if len(firing) == len(said):
            return None
        totals, hits = (self.table.count(self.table.columns[tokens]) for tokens in (said, firing))
        values = np.flatnonzero((totals >= 2) & (hits * len(said) < totals * len(firing)))
        best: tuple[float, Literal | None] = (0.0, None)
        for kind in np.unique(self.table.kind_of[values]):
            if kind in self.several:
                continue
            own = values[self.table.kind_of[values] == kind]
            own = own[np.lexsort((-totals[own], hits[own] / totals[own]))][: self.plan.values]
            own = own[np.array(self._documents(own.tolist(), said), int) >= self._enough(int(kind))]
            if not len(own):
                continue
            m = np.arange(1, len(own) + 1)
            state = _State(len(said), len(firing), len(self.table), k)
            bits = self.kind_bits + self.gamma[m] + self.cells.choose(self.size[kind], m)
            saved = self._saved(state, -np.cumsum(totals[own]), -np.cumsum(hits[own])) - bits
            if saved.max() > best[0]:
                best = float(saved.max()), self._literal(int(kind), own[: int(saved.argmax()) + 1], totals)
        return best[1]


@dataclass(frozen=True)
class _State:
    """Tokens in the rule so far, firings among them, and of all."""

    said: int
    hits: int
    n: int
    k: int


def _running(counts: Int[Array, " value"], starts: Int[Array, " kind"], lengths: Int[Array, " kind"]) -> Float[Array, " value"]:
    """Sums from the start of each kind."""
    total = np.cumsum(counts)
    before = np.concatenate([[0], total])[starts]
    return total - np.repeat(before, lengths)
