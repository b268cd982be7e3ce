"""Claims about features on a corpus that was read once: texts, codes, and what a rule says at every token.

1. A part of the corpus is rows of tokens of documents. `PartTexts` is what can be known of it without any model; its codes
   (tokens x units, 0 where a unit is off) come beside it once the model has read it.
2. `CorpusSource` draws the items of a split by text and rule alone, from a part of the same name: of some documents, most of
   them with a member, up to `EACH` tokens at which the rule says *on* (members), *near misses* (the rule says off at a token
   that members or the units most like this one are on at, or right beside a member), and others. An item's text is what the
   model read up to the token; its cluster is the document. No activation of the split takes part, so items are locked before it
   is read.
3. Parts that share eight words in a row with an earlier part in some document are used without that document.
4. `CorpusHost` gives the activations of items from the codes, and those of untrained twins that read the same rows. Nothing
   is run: what the codes are worth is a matter of how they were made.

Tokens without a whole character of their own, and tokens at the start of a row, are no items.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from assay.data.prepare_concept import PreparedConcept
from assay.data.splits import spans_of
from assay.errors import EvidenceError, TaskError
from assay.evidence.features import Feature
from assay.evidence.rules import Ruled
from assay.evidence.sparse_units import SparseUnits
from assay.records import digest
from assay.statistics import cluster_means

Array = np.ndarray
Verdicts = Callable[[Mapping[str, Any], str], Bool[Array, " token"]]  # (rule, part) -> where it says on
TYPE = "corpus windows"
SPLITS = ("tune", "confirm", "ood")
EACH = {"members": 2, "near": 6, "others": 8}  # items of one document
FIRST = 1  # tokens of a row that are no items
BROKEN = "\ufffd"


@dataclass(frozen=True, eq=False)
class PartTexts:
    """One part as text. `documents`, `pieces`: of every row; `tokens`: ids of all rows, one after the other."""

    documents: tuple[str, ...]
    pieces: tuple[tuple[str, ...], ...]
    tokens: Int[Array, " token"]

    @cached_property
    def starts(self) -> Int[Array, " row_and_end"]:
        """Where each row begins, and the end."""
        return np.concatenate([[0], np.cumsum([len(row) for row in self.pieces])]).astype(np.int64)

    @cached_property
    def row(self) -> Int[Array, " token"]:
        """The row of every token."""
        return np.repeat(np.arange(len(self.pieces)), np.diff(self.starts))

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Documents, each once, in order."""
        return tuple(dict.fromkeys(self.documents))

    @cached_property
    def document(self) -> Int[Array, " token"]:
        """The document of every token, as a number into `names`."""
        number = {name: place for place, name in enumerate(self.names)}
        return np.array([number[name] for name in self.documents], np.int64)[self.row] if self.pieces else np.zeros(0, np.int64)

    @cached_property
    def usable(self) -> Bool[Array, " token"]:
        """Tokens that can be items."""
        whole = [bool(piece) and BROKEN not in piece for row in self.pieces for piece in row]
        within = np.arange(len(self.tokens)) - self.starts[:-1][self.row] if self.pieces else np.zeros(0, int)
        return np.array(whole, bool) & (within >= FIRST)

    def prefix(self, token: int) -> tuple[str, int]:
        """(all that was read of the row up to a token, where that token begins in it)."""
        row = int(self.row[token])
        pieces = self.pieces[row][: token - int(self.starts[row]) + 1]
        text = "".join(pieces)
        return text, len(text) - len(pieces[-1])

    @cached_property
    def text_of(self) -> dict[str, str]:
        """Document -> its rows, a line each."""
        found: dict[str, list[str]] = {}
        for name, row in zip(self.documents, self.pieces, strict=True):
            found.setdefault(name, []).append("".join(row))
        return {name: "\n".join(rows) for name, rows in found.items()}

    def only(self, names: set[str]) -> "PartTexts":
        """Some documents of it."""
        kept = [row for row, name in enumerate(self.documents) if name in names]
        spans = [self.tokens[self.starts[row] : self.starts[row + 1]] for row in kept]
        return PartTexts(tuple(self.documents[row] for row in kept), tuple(self.pieces[row] for row in kept),
                         np.concatenate(spans) if spans else self.tokens[:0])  # fmt: skip

    def tokens_of(self, names: set[str]) -> Bool[Array, " token"]:
        """Which tokens belong to some documents."""
        inside = np.array([name in names for name in self.names], bool)
        return inside[self.document] if len(self.tokens) else np.zeros(0, bool)


def marks_of(part: PartTexts, documents: set[str] | None = None) -> list[str]:
    """Hashed names of (some) documents and hashes of the texts of their rows: by what the ledger knows them."""
    chosen = set(part.documents) if documents is None else documents
    texts = ["".join(row) for row, name in zip(part.pieces, part.documents, strict=True) if name in chosen]
    return sorted({digest(each)[:16] for each in (*chosen, *texts)})


def apart(parts: Mapping[str, PartTexts]) -> dict[str, set[str]]:
    """part -> documents that may be used: none shares eight words in a row, or its name, with one of an earlier part."""
    seen: set[tuple[str, ...]] = set()
    known: set[str] = set()
    kept: dict[str, set[str]] = {}
    for name, part in parts.items():
        spans = {document: spans_of(text) for document, text in part.text_of.items()}
        kept[name] = {document for document, own in spans.items() if document not in known and own.isdisjoint(seen)}
        seen.update(*(spans[document] for document in kept[name]))
        known |= kept[name]
    return kept


@dataclass(frozen=True, eq=False)
class CorpusTexts:
    """The parts that claims are tested on, before any model read them. `record`: how they are found again, with their hash;
    `before`: the parts that rules were found and scored on."""

    name: str
    parts: Mapping[str, PartTexts]
    verdicts: Verdicts
    record: Mapping[str, Any] = field(default_factory=dict)
    before: Mapping[str, PartTexts] = field(default_factory=dict)

    @cached_property
    def kept(self) -> dict[str, set[str]]:
        """Documents of every part that share nothing with another, or with what was seen before."""
        return apart({**self.before, **self.parts})

    @cached_property
    def free(self) -> dict[str, Bool[Array, " token"]]:
        """Tokens of every part that can be items."""
        return {name: part.usable & part.tokens_of(self.kept[name]) for name, part in self.parts.items()}

    @cached_property
    def marks(self) -> dict[str, list[str]]:
        """Hashed names of documents and hashes of rows, of every part."""
        return {name: marks_of(part, self.kept[name]) for name, part in self.parts.items()}

    def members(self, rule: Mapping[str, Any], split: str) -> Bool[Array, " token"]:
        """Where a rule says on, among tokens that can be items."""
        return self.verdicts(rule, split) & self.free[split]

    def member_documents(self, rule: Mapping[str, Any], split: str) -> int:
        """In how many documents of a split a rule says on somewhere. No model sees them."""
        return len(np.unique(self.parts[split].document[self.members(rule, split)]))


@dataclass(frozen=True, eq=False)
class CorpusSource:
    """The items of one claim: `rule` labels them, `near` are token ids that its look-alikes are on at."""

    texts: CorpusTexts
    rule: Mapping[str, Any]
    near: tuple[int, ...] = ()
    _made: dict[tuple[str, int, int], tuple[list[Ruled], str]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The corpus."""
        return self.texts.name

    def record(self) -> dict[str, Any]:
        """How it is found again: the corpus as read, the rule, and the tokens of near misses."""
        return {**self.texts.record, "type": TYPE, "name": self.name, "rule": dict(self.rule), "near": list(self.near)}

    def digest(self, split: str, n: int, seed: int) -> str:
        """Hash of the items. No model sees them."""
        return self._items(split, n, seed)[1]

    def items(self, split: str, n: int, seed: int) -> list[Ruled]:
        """Up to n items of a split. Raises TaskError where it has none."""
        return self._items(split, n, seed)[0]

    def n_templates(self, split: str) -> int:
        """How many documents a split has."""
        return len(self.texts.kept[split])

    def marks(self, split: str) -> list[str]:
        """All documents of a split and the texts of their rows, hashed: whole documents are read, not only items."""
        return self.texts.marks[split]

    def leaks(self, split: str, other: str) -> dict[str, int]:
        """What documents of two splits share: names, and runs of eight words; must be empty."""
        one, two = ({name: self.texts.parts[each].text_of[name] for name in self.texts.kept[each]} for each in (split, other))
        return _leaks_of(tuple(one.items()), tuple(two.items()))

    def host(self, model: Any) -> "CorpusHost":
        """What its items are read on: codes that are there, or those that a model makes anew, a part when it is asked for."""
        if isinstance(model, CorpusHost):
            return model
        from assay.evidence.corpus_reading import host_again

        return host_again(self.texts, model)

    def _items(self, split: str, n: int, seed: int) -> tuple[list[Ruled], str]:
        if (split, n, seed) not in self._made:
            if split not in self.texts.parts:
                raise TaskError(f"{self.name}: no part {split!r}; it has {', '.join(self.texts.parts)}.")
            found = self._drawn(split, n, seed)
            if not found:
                raise TaskError(f"{self.name}: the part {split!r} has no token that can be an item.")
            self._made[split, n, seed] = found, digest(found)
        return self._made[split, n, seed]

    def _drawn(self, split: str, n: int, seed: int) -> list[Ruled]:
        part, free = self.texts.parts[split], self.texts.free[split]
        on = self.texts.members(self.rule, split)
        close = near_misses(part, on, free, self.near)
        order = draw_order(len(free), split, seed)
        chosen = self._documents(part, on, free, order, n // sum(EACH.values()))
        kinds = {"members": on, "near": close, "others": free & ~on & ~close}
        drawn = sorted(token for kind, among in kinds.items()
                       for token in per_document(part, among & chosen, order, EACH[kind]))  # fmt: skip
        by = digest(dict(self.rule))
        return [self._item(split, token, int(on[token]), bool(close[token]), by) for token in drawn]

    @staticmethod
    def _documents(part: PartTexts, on: Array, free: Array, order: Array, most: int) -> Bool[Array, " token"]:
        """Tokens of the documents that are drawn from: most with a member, a fifth or more without."""
        first = per_document(part, on, order, 1)
        rest = per_document(part, free & ~np.isin(part.document, part.document[first]), order, 1)
        some = first[: max(1, most - min(len(rest), most // 5))]
        return np.isin(part.document, part.document[[*some, *rest[: most - len(some)]]])

    def _item(self, split: str, token: int, label: int, near: bool, by: str) -> Ruled:
        part = self.texts.parts[split]
        text, start = part.prefix(token)
        return Ruled(text, label, part.names[part.document[token]], (), start, near and not label, by, (split, token))


def near_misses(
    part: PartTexts, on: Bool[Array, " token"], free: Bool[Array, " token"], near: Sequence[int]
) -> Bool[Array, " token"]:
    """Tokens that look like members and are none: one of the given ids, or the neighbour of a member in its row."""
    beside = np.zeros(len(on), bool)
    same = part.row[1:] == part.row[:-1]
    beside[1:] |= on[:-1] & same
    beside[:-1] |= on[1:] & same
    return (np.isin(part.tokens, np.array(near, np.int64)) | beside) & free & ~on


def draw_order(n: int, split: str, seed: int) -> Int[Array, " token"]:
    """A number per token by which items are drawn: the same for all claims."""
    salt = int.from_bytes(hashlib.sha256(split.encode()).digest()[:4], "big")
    return np.random.default_rng([seed, salt]).permutation(n)


def per_document(part: PartTexts, among: Bool[Array, " token"], order: Int[Array, " token"], each: int) -> list[int]:
    """Up to `each` tokens of every document, first one of each, then the next; documents by their first token's number."""
    tokens = np.flatnonzero(among)
    if not len(tokens):
        return []
    tokens = tokens[np.argsort(order[tokens], kind="stable")]
    documents = part.document[tokens]
    by = np.argsort(documents, kind="stable")
    sorted_documents = documents[by]
    first = np.searchsorted(sorted_documents, sorted_documents, side="left")
    turn = np.empty(len(tokens), np.int64)
    turn[by] = np.arange(len(tokens)) - first
    chosen = np.flatnonzero(turn < each)
    return tokens[chosen[np.argsort(turn[chosen], kind="stable")]].tolist()


_LEAKS: dict[str, dict[str, int]] = {}


def _leaks_of(one: Sequence[tuple[str, str]], two: Sequence[tuple[str, str]]) -> dict[str, int]:
    key = digest([sorted(one), sorted(two)])
    if key not in _LEAKS:
        known = set().union(*(spans_of(text) for _, text in one))
        found = {"template": len({name for name, _ in one} & {name for name, _ in two}),
                 "8-gram": sum(not spans_of(text).isdisjoint(known) for _, text in two)}  # fmt: skip
        _LEAKS[key] = {name: count for name, count in found.items() if count}
    return _LEAKS[key]


# what was read -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Codes:
    """Values of all units at every token of one part: (tokens, units), 0 where off. `typical`: tokens they are meant for."""

    values: Any  # scipy CSR
    typical: Bool[Array, " token"]

    @cached_property
    def by_unit(self) -> Any:
        """The same by unit."""
        return self.values.tocsc()


    @cached_property
    def units(self) -> SparseUnits:
        """All units at the tokens they are meant for."""
        return SparseUnits(self.values[np.flatnonzero(self.typical)])


@dataclass(frozen=True, eq=False)
class CorpusHost:
    """Activations of items from codes, as a host of features. `codes`: by part, those that were read so far; `read_twin`:
    (scheme, part) -> codes of an untrained twin; `identity`: name, digest, source and passport of the model; `columns`: a
    feature's name -> its column."""

    texts: CorpusTexts
    codes: Mapping[str, Codes]
    identity: Mapping[str, Any]
    read_twin: Callable[[str, str], Codes] | None = None
    columns: Mapping[str, int] = field(default_factory=dict)
    scheme: str = ""

    @property
    def name(self) -> str:
        return str(self.identity["name"]) + (f", untrained ({self.scheme})" if self.scheme else "")

    @property
    def source(self) -> str:
        """Where the model came from."""
        return str(self.identity["source"])

    @property
    def digest(self) -> str:
        """Hash of the model that made the codes."""
        return str(self.identity["digest"])

    @property
    def tokenizer_digest(self) -> str | None:
        """Of its tokenizer, where it is known."""
        return self.identity.get("tokenizer")

    def fresh_digest(self) -> str:
        """The model is not here: what the codes say of it."""
        return self.digest

    def passport(self) -> dict[str, Any]:
        """The model's, as it read the corpus."""
        return dict(self.identity["passport"])

    def load(self, examples: Sequence[Ruled]) -> PreparedConcept:
        """Items of these parts; those at tokens that the units are not meant for are dropped and counted.

        Raises TaskError for texts that are in no part, EvidenceError for a part that was not read yet.
        """
        kept, at, lost = [], [], {"not in this corpus": 0, "a token that the units are not meant for": 0}
        for example in examples:
            place = self._where(example)
            if place is None:
                lost["not in this corpus"] += 1
            elif not self._read(place[0]).typical[place[1]]:
                lost["a token that the units are not meant for"] += 1
            else:
                kept.append(example)
                at.append(place)
        if not kept:
            raise TaskError(f"none of {len(examples)} items can be read in {self.texts.name} ({lost}).")
        numbers = {name: number for number, name in enumerate(self.texts.parts)}
        return PreparedConcept(kept, [[numbers[part]] for part, _ in at], [token for _, token in at],
                               {why: count for why, count in lost.items() if count})  # fmt: skip

    def read(self, site: str, data: PreparedConcept) -> Float[Tensor, "example unit"]:
        """Dense codes of items, whatever the site: the codes are of one group of units."""
        return torch.from_numpy(self.sparse(data).toarray()).float()

    def sparse(self, data: PreparedConcept) -> Any:
        """Codes of items, as they are kept. Raises EvidenceError for items of several parts."""
        return self._read(self.part_of(data)).values[np.array(data.at)]

    def untrained(self, scheme: str, seed: int) -> "CorpusHost":
        """An untrained twin that read the same rows. Raises EvidenceError where none did."""
        if self.read_twin is None:
            raise EvidenceError(f"{self.name}: no untrained twin read this corpus.")
        read = self.read_twin
        return CorpusHost(self.texts, Lazy(self.texts.parts, lambda part: read(scheme, part)), self.identity, None,
                          self.columns, scheme)  # fmt: skip

    def column(self, feature: Feature) -> int:
        """The column of a feature. Raises EvidenceError for one that was not read."""
        if feature.name not in self.columns:
            raise EvidenceError(f"{feature.name}: {self.texts.name} was not read for it; it has {len(self.columns)} units.")
        return self.columns[feature.name]

    def everywhere(self, unit: int, threshold: float, part: str) -> Bool[Array, " token"]:
        """Where one unit is above a threshold, at all tokens of a part that can be items."""
        codes = self._read(part)
        by_unit = codes.by_unit
        inside = slice(by_unit.indptr[unit], by_unit.indptr[unit + 1])
        on = np.full(len(codes.typical), threshold < 0)
        on[by_unit.indices[inside]] = by_unit.data[inside] > threshold
        return on & codes.typical & self.texts.free[part]

    def ruled(self, rule: Mapping[str, Any], part: str) -> Bool[Array, " token"]:
        """Where a rule says on, at the same tokens."""
        return self.texts.members(rule, part) & self._read(part).typical

    def values_at(self, unit: int, part: str, tokens: Sequence[int]) -> list[float]:
        """One unit at some tokens of a part."""
        by_unit = self._read(part).by_unit
        inside = slice(by_unit.indptr[unit], by_unit.indptr[unit + 1])
        known = dict(zip(by_unit.indices[inside].tolist(), by_unit.data[inside].tolist(), strict=True))
        return [float(known.get(token, 0.0)) for token in tokens]

    def all_units(self, part: str) -> SparseUnits:
        """All units at every token of a part that they are meant for: how often a unit is on in the corpus, not among items."""
        return self._read(part).units

    def part_of(self, data: PreparedConcept) -> str:
        """The part that items come from. Raises EvidenceError for several."""
        parts = {numbers[0] for numbers in data.tokens}
        if len(parts) != 1:
            raise EvidenceError(f"{self.texts.name}: items of one part are read at a time; got {len(parts)} parts.")
        return list(self.texts.parts)[parts.pop()]

    def _read(self, part: str) -> Codes:
        if part not in self.codes:
            raise EvidenceError(f"{self.texts.name}: the part {part!r} was not read by {self.name} yet.")
        return self.codes[part]

    def _where(self, example: Ruled) -> tuple[str, int] | None:
        """(part, token) of an item, where the corpus has that text there."""
        part, token = example.place
        texts = self.texts.parts.get(part)
        if texts is None or not 0 <= token < len(texts.tokens) or texts.prefix(token) != (example.text, example.position):
            return None
        return part, token


class Lazy(dict[str, Codes]):
    """Codes by part, read when they are asked for."""

    def __init__(self, parts: Mapping[str, Any], read: Callable[[str], Codes]) -> None:
        super().__init__()
        self._parts, self._how = parts, read

    def __contains__(self, part: object) -> bool:
        return part in self._parts

    def __missing__(self, part: str) -> Codes:
        self[part] = self._how(part)
        return self[part]


def by_document(part: PartTexts, among: Bool[Array, " token"], right: Bool[Array, " token"]) -> dict[str, float]:
    """Per document, the share of some of its tokens that are right; documents without such tokens are left out."""
    tokens = np.flatnonzero(among)
    return cluster_means(right[tokens].astype(float).tolist(), [part.names[number] for number in part.document[tokens]])
