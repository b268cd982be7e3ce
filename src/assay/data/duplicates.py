"""Near copies among texts: found exactly, in flat memory, and told apart from sentences of one pattern.

1. Texts are compared without case, punctuation and extra blanks. Equal ones are copies.
2. Others are compared as TF-IDF vectors of runs of four characters (scikit-learn). With unit vectors x and y the
   similarity is x·y. A run that many texts have weighs little: what a data set has in common makes nothing a copy.
   Of texts of more than 2 `SIDE` characters the first and the last `SIDE` are compared.
3. Only pairs that can reach the threshold are looked at (prefix filtering: Bayardo, Ma & Srikant 2007, section 4).
   Runs are ordered from rare to common; the tail of x is its longest end with a norm below TAIL. Two texts whose
   heads share a weight below threshold - TAIL cannot be that similar, so nothing is missed. Beside the vectors, memory
   is one block of rows at a time.
4. Texts of one pattern (a frame in which a word is changed) look alike on purpose. A pair above the threshold is no
   copy when both have the same number of words and differ only in the words of one or more slots, and
   - at least `FAMILY` texts fill those slots of that frame, each differently, or
   - the words that differ are the entities of the two examples (`copies_of` only: entities are known there).
   Equal texts are copies whatever their frames.
5. `copies_of` leaves out pairs of one template: they are on one side of a split anyway.

Fewer than `FAMILY` texts of a frame cannot be told from copies with a word changed; they are taken for copies, which
costs a little data and leaks nothing. Paraphrases and translations are not found.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from assay.data.splits import Joined, spans_of
from assay.errors import bad_argument
from assay.records import Example

THRESHOLD = 0.8
JOINED_FROM = 0.75  # for dealing: what is a copy among all texts must be none among those that are kept
RUN = 4  # characters
EDGES = ("\x02\x02", "\x03\x03")  # so that the shortest text has a run, and first and last letters count as others
SIDE = 400  # characters of each end of a long text
TAIL = 0.5  # norm of what may be left out of a comparison at first; it must be below the threshold
FAMILY = 5  # texts that make a frame a pattern
BLOCK = 500  # rows compared with all others at a time
NEAREST = 64  # copies of one text that are listed, however many there are
AT_ONCE = 50_000  # pairs whose similarity is computed at a time
TOKENS = re.compile(r"\w+")
Integers = NDArray[np.int64]


def near_duplicates(texts: Sequence[str], threshold: float = THRESHOLD) -> list[tuple[int, int]]:
    """Pairs (i, j), i < j, of near copies among texts, sorted; see the steps above.

    A text that is equal to earlier ones (without case and punctuation) is paired with the first of them only, and
    stands for itself no more: the pairs join all copies without listing n² of them. Raises UsageError for a
    threshold outside (0, 1].
    """
    return _found(texts, threshold, None)


def copies_of(examples: Sequence[Example], threshold: float = THRESHOLD) -> list[tuple[int, int]]:
    """Near copies among examples of different templates, for `divide(examples, copies)`. Pairs as `near_duplicates`."""
    return [(i, j) for i, j in all_copies(examples, threshold) if examples[i].template != examples[j].template]


def all_copies(examples: Sequence[Example], threshold: float = THRESHOLD) -> list[tuple[int, int]]:
    """Near copies among examples, those of one template too. Pairs as `near_duplicates`."""
    return _found([example.text for example in examples], threshold, examples)


def shared_runs(texts: Sequence[str], length: int, most: int) -> list[tuple[int, int]]:
    """Pairs of texts with `length` words in a row in common: parts of one document. Runs in more than `most` texts are
    phrases of the language and join nothing. Every text is paired with the first that has the run."""
    holders: dict[tuple[str, ...], list[int]] = {}
    for number, text in enumerate(texts):
        for run in spans_of(text, length):
            holders.setdefault(run, []).append(number)
    return sorted({(found[0], other) for found in holders.values() if len(found) <= most for other in found[1:]})


def plain_form(text: str) -> str:
    """A text without case, punctuation and extra blanks; one of punctuation alone stays as it is."""
    return " ".join(TOKENS.findall(unicodedata.normalize("NFKC", text).casefold())) or text.strip()


def _found(texts: Sequence[str], threshold: float, examples: Sequence[Example] | None) -> list[tuple[int, int]]:
    """(i, j) of near copies. Of a text that has many, `NEAREST` are listed, and any other that joins what is not joined."""
    if not 0 < threshold <= 1:
        raise bad_argument("threshold", threshold, "above 0, at most 1")
    first: dict[str, int] = {}
    found = [(at, number) for number, form in enumerate(map(plain_form, texts))
             if (at := first.setdefault(form, number)) != number]  # fmt: skip
    rows, forms = list(first.values()), list(first)
    families, joined, listed = Families(forms), Joined(), Counter[int]()
    for i, j, _ in similar(forms, threshold):
        if listed[i] >= NEAREST and joined.root(str(i)) == joined.root(str(j)):
            continue
        entities = set() if examples is None else _entities(examples[rows[i]]) | _entities(examples[rows[j]])
        if not families.one_pattern(i, j, entities):
            found.append((min(rows[i], rows[j]), max(rows[i], rows[j])))
            joined.join([str(i), str(j)])
            listed[i] += 1
    return sorted(found)


def similar(forms: Sequence[str], threshold: float) -> Iterator[tuple[int, int, float]]:
    """(i, j, x·y) of all pairs i < j of different texts with x·y >= threshold; steps 2 and 3. By i, the most alike first."""
    if len(forms) < 2:
        return
    vectors = _vectors(forms)
    tail = min(TAIL, threshold / 2)
    heads = _heads(vectors, tail)
    columns = heads.T.tocsr()
    for start in range(0, len(forms), BLOCK):
        shared = (heads[start : start + BLOCK] @ columns).tocoo()
        likely = (shared.data >= threshold - tail - 1e-9) & (shared.col > shared.row + start)
        left, right = (side[likely].astype(np.int64) for side in (shared.row, shared.col))
        yield from sorted(_exact(vectors, left + start, right, threshold), key=lambda pair: (pair[0], -pair[2], pair[1]))


def _vectors(forms: Sequence[str]) -> Any:
    """Unit TF-IDF vectors, one row a text, columns from rare to common."""
    from sklearn.feature_extraction.text import TfidfVectorizer  # half a second: only where it is needed

    maker = TfidfVectorizer(analyzer="char", ngram_range=(RUN, RUN), lowercase=False)
    ends = (form if len(form) <= 2 * SIDE else f"{form[:SIDE]}  {form[-SIDE:]}" for form in forms)
    vectors = maker.fit_transform([f"{EDGES[0]}{end}{EDGES[1]}" for end in ends]).tocsr()
    often = np.bincount(vectors.indices, minlength=vectors.shape[1])
    vectors = vectors[:, np.lexsort((np.arange(len(often)), often))].tocsr()
    vectors.sort_indices()
    return vectors


def _heads(vectors: Any, tail: float) -> Any:
    """Vectors without their commonest runs: what is left out has a norm below `tail`."""
    upto = np.concatenate([[0.0], np.cumsum(vectors.data**2)])
    to_end = np.repeat(upto[vectors.indptr[1:]], np.diff(vectors.indptr)) - upto[:-1]
    heads = vectors.copy()
    heads.data[to_end < tail**2 - 1e-9] = 0.0
    heads.eliminate_zeros()
    return heads


def _exact(vectors: Any, left: Integers, right: Integers, threshold: float) -> list[tuple[int, int, float]]:
    found: list[tuple[int, int, float]] = []
    for start in range(0, len(left), AT_ONCE):
        i, j = left[start : start + AT_ONCE], right[start : start + AT_ONCE]
        values = np.asarray(vectors[i].multiply(vectors[j]).sum(axis=1)).ravel()
        near = values >= threshold - 1e-9
        found += zip(i[near].tolist(), j[near].tolist(), values[near].tolist(), strict=True)
    return found


class Families:
    """Which texts fill the slots of one frame; step 4."""

    def __init__(self, forms: Sequence[str]) -> None:
        self._words = [form.split(" ") for form in forms]
        self._table: dict[int, Integers] = {}
        self._rows: dict[int, list[int]] = {}
        self._place: list[int] = []
        for row, words in enumerate(self._words):
            rows = self._rows.setdefault(len(words), [])
            self._place.append(len(rows))
            rows.append(row)
        self._known: dict[str, int] = {}
        self._sizes: dict[tuple[bytes, bytes], int] = {}

    def one_pattern(self, i: int, j: int, entities: set[str]) -> bool:
        """Whether two texts are fillings of one frame, by the number of fillings or because entities differ."""
        one, other = self._words[i], self._words[j]
        if len(one) != len(other):
            return False
        differ = np.array([a != b for a, b in zip(one, other, strict=True)])
        if differ.all():
            return False
        changed = {word for words in (one, other) for word, off in zip(words, differ, strict=True) if off}
        return changed <= entities or self._fillings(i, differ) >= FAMILY

    def _fillings(self, row: int, slots: NDArray[np.bool_]) -> int:
        """How many texts have the words of `row` outside the slots. Texts all differ, so their fillings do."""
        table = self._ids(len(slots))
        kept = table[self._place[row]][~slots]
        key = (slots.tobytes(), kept.tobytes())
        if key not in self._sizes:
            self._sizes[key] = int((table[:, ~slots] == kept).all(axis=1).sum())
        return self._sizes[key]

    def _ids(self, length: int) -> Integers:
        """Texts of that many words as numbers of words (text, word)."""
        if length not in self._table:
            known = self._known
            self._table[length] = np.array([[known.setdefault(word, len(known)) for word in self._words[row]]
                                            for row in self._rows[length]], dtype=np.int64)  # fmt: skip
        return self._table[length]


def _entities(example: Example) -> set[str]:
    return {word for entity in example.entities for word in plain_form(entity).split(" ")}
