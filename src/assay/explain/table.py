"""The values of all conditions at every token of a text, as whole numbers: what a rule is looked for in, and applied with.

1. Each kind gives every token its value, or several; the values of all kinds are numbered through, and a table (token x
   column) holds them. A column past the values a token has holds the number V, which stands for none.
2. Values that occur in fewer than `least` documents are none: nothing that is true of one document alone is a rule.
3. `where(value)` lists the tokens of a value; a set of values is the union of their lists.

Memory: 4 bytes for every value of every token, twice: about 40 values to a token.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from assay.errors import bad_argument
from assay.explain.conditions import Kind, usable
from assay.explain.rules import Condition, PrefixRule, fires_where
from assay.explain.views import Row

Array = np.ndarray
Report = Callable[[int], Any]


@dataclass(frozen=True, eq=False)
class Table:
    """`columns` (token, column): numbers of values; `values`: their texts; `kind_of`: the kind of each, by number;
    `documents`: the document of each token, by number; `sizes`: how many values each kind has."""

    kinds: tuple[Kind, ...]
    columns: Int[Array, "token column"]
    values: tuple[str, ...]
    kind_of: Int[Array, " value"]
    documents: Int[Array, " token"]

    def __len__(self) -> int:
        return len(self.columns)

    @cached_property
    def sizes(self) -> dict[str, int]:
        counts = np.bincount(self.kind_of, minlength=len(self.kinds))
        return {kind.name: int(n) for kind, n in zip(self.kinds, counts, strict=True)}

    @cached_property
    def totals(self) -> Int[Array, " value"]:
        """Tokens of every value."""
        return self.count(self.columns)

    @cached_property
    def _lists(self) -> tuple[Int[Array, " entry"], Int[Array, " value"]]:
        flat = self.columns.ravel()
        order = np.argsort(flat, kind="stable").astype(np.int32)
        ends = np.concatenate([[0], np.cumsum(self.totals)])
        return order // self.columns.shape[1], ends

    @cached_property
    def number(self) -> Mapping[tuple[str, str], int]:
        """The number of a value of a kind."""
        names = [kind.name for kind in self.kinds]
        return {(names[kind], value): at for at, (kind, value) in enumerate(zip(self.kind_of, self.values, strict=True))}

    def count(self, columns: Int[Array, "token column"]) -> Int[Array, " value"]:
        """How many of these tokens have each value."""
        return np.bincount(columns.ravel(), minlength=len(self.values) + 1)[: len(self.values)]

    def where(self, value: int) -> Int[Array, " token"]:
        """The tokens that have a value, in order."""
        tokens, ends = self._lists
        return tokens[ends[value] : ends[value + 1]]

    def where_any(self, values: Iterable[int]) -> Int[Array, " token"]:
        """The tokens that have one of some values, in order."""
        lists = [self.where(int(value)) for value in values]
        if len(lists) < 2:
            return lists[0] if lists else np.zeros(0, np.int32)
        return np.flatnonzero(self.mask(np.concatenate(lists))).astype(np.int32)

    def mask(self, tokens: Int[Array, " token"]) -> Bool[Array, " token"]:
        """True at these tokens."""
        mask = np.zeros(len(self), bool)
        mask[tokens] = True
        return mask

    def fires(self, rule: Mapping[str, Any] | PrefixRule) -> Bool[Array, " token"]:
        """At which tokens a rule says *fires*. Raises UsageError for a kind of condition that the table lacks."""
        return fires_where(rule, self.met)

    def met(self, condition: Condition) -> Bool[Array, " token"]:
        """At which tokens one condition holds. Raises UsageError for a kind that the table lacks."""
        name = condition.kind.name
        if name not in self.sizes:
            raise bad_argument("rule", f"a condition {name}", ", ".join(self.sizes), "Make the table with that kind.")
        numbers = [self.number[name, value] for value in condition.values if (name, value) in self.number]
        return self.mask(self.where_any(numbers))


def make_table(
    rows: Sequence[Sequence[str]], documents: Sequence[Any], keep: Bool[Array, " token"] | None = None,
    kinds: Sequence[Kind] | None = None, least: int = 1, report: Report | None = None,
) -> Table:  # fmt: skip
    """The table of rows of pieces, `documents[r]` that of row r; `keep`: only these tokens of all rows, one after the other.

    With least = 1 rules are applied as on the text itself. `report` is called with the number of tokens done.
    Raises UsageError for no token, or lists that do not belong together.
    """
    kinds = usable() if kinds is None else tuple(kinds)
    lengths = [len(row) for row in rows]
    n = sum(lengths)
    if len(documents) != len(rows) or (keep is not None and len(keep) != n):
        raise bad_argument("documents", f"{len(documents)}, and {n if keep is None else len(keep)} tokens to keep",
                           f"{len(rows)} documents and {n} tokens, as the rows have")  # fmt: skip
    kept = np.ones(n, bool) if keep is None else np.asarray(keep, bool)
    if not kept.any():
        raise bad_argument("rows", "no token", "at least one")
    names = {name: number for number, name in enumerate(dict.fromkeys(documents))}
    of_token = np.repeat([names[name] for name in documents], lengths)[kept].astype(np.int32)
    columns, texts = _interned(rows, kinds, kept, report)
    return _pruned(kinds, columns, texts, of_token, least)


def _interned(
    rows: Sequence[Sequence[str]], kinds: tuple[Kind, ...], kept: Bool[Array, " token"], report: Report | None
) -> tuple[list[Int[Array, "token column"]], list[list[str]]]:
    """Per kind, numbers of values at the kept tokens (-1: none), and their texts."""
    numbers: list[dict[str, int]] = [{} for _ in kinds]
    widths = [kind.most for kind in kinds]
    found = [np.full((int(kept.sum()), width), -1, np.int32) for width in widths]
    done = at = 0
    for pieces in rows:
        row, here = Row(tuple(pieces)), kept[done : done + len(pieces)]
        size = int(here.sum())
        for known, kind, out in zip(numbers, kinds, found, strict=True):
            values = [one for one, wanted in zip(kind.along(row), here, strict=True) if wanted]
            _fill(out[at : at + size], values, known)
        done, at = done + len(pieces), at + size
        if report is not None:
            report(len(pieces))
    return found, [list(known) for known in numbers]


def _fill(out: Int[Array, "token column"], values: Sequence[tuple[str, ...]], known: dict[str, int]) -> None:
    if out.shape[1] == 1:
        out[:, 0] = [known.setdefault(one[0], len(known)) if one else -1 for one in values]
        return
    for line, one in zip(out, values, strict=True):
        line[: len(one)] = [known.setdefault(value, len(known)) for value in one]


def _pruned(
    kinds: tuple[Kind, ...], columns: list[Int[Array, "token column"]], texts: list[list[str]],
    documents: Int[Array, " token"], least: int,
) -> Table:  # fmt: skip
    """Values of enough documents, numbered through all kinds."""
    numbers, kept_texts, kind_of = [], [], []
    start = 0
    for number, (column, text) in enumerate(zip(columns, texts, strict=True)):
        enough = _documents_per_value(column, documents, len(text)) >= least
        new = np.full(len(text) + 1, -1, np.int32)  # the last one: none
        new[:-1][enough] = np.arange(start, start + enough.sum())
        numbers.append(new[column])
        kept_texts += [one for one, good in zip(text, enough, strict=True) if good]
        kind_of += [number] * int(enough.sum())
        start += int(enough.sum())
    joined = np.concatenate(numbers, 1)
    joined[joined < 0] = start
    return Table(kinds, joined, tuple(kept_texts), np.array(kind_of, np.int16), documents)


def _documents_per_value(column: Int[Array, "token column"], documents: Int[Array, " token"], n: int) -> Int[Array, " value"]:
    tokens, _ = np.nonzero(column >= 0)
    values = column[column >= 0].astype(np.int64)
    pairs = np.unique(values * (int(documents.max()) + 1) + documents[tokens])
    return np.bincount(pairs // (int(documents.max()) + 1), minlength=n)
