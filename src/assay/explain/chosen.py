"""Which documents of a corpus are read, and how they are cut into rows.

1. Documents are taken in the order of a number that belongs to their beginnings (SHA-256 with the seed), of the first `LOOK`
   of the corpus: a fair sample in whatever order it lists them, the same for the same seed.
2. Of each at most `per_document` tokens are read, so that many documents take part. Where the whole corpus would give too
   few tokens that way, more is read of each.
3. Rows hold at most `context` tokens of one document, the first of them the token that begins every text if the model
   wants it.
"""

import hashlib
import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from assay.data.corpora import Corpus
from assay.errors import CorpusError, UsageError, bad_argument
from assay.explain.pieces import Pieces
from assay.explain.split import HEAD
from assay.model.context import context_length
from assay.model.model import Model

LOOK = 100_000  # documents
CHARACTERS = 16  # of a text that are kept for each token that may be read of it
TOGETHER = 64  # documents tokenised in one call
MORE = 2  # times as much of each document, or of the corpus, where it was too little
SHORTEST = 2  # tokens of a row that has anything to read
Report = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class ChosenRow:
    """Token ids of a row with the piece of each; `place`: tokens of its document before it."""

    tokens: np.ndarray
    pieces: list[str]
    place: int


@dataclass(frozen=True, eq=False)
class ChosenDocument:
    """What is read of one document."""

    name: str
    rows: list[ChosenRow]

    @property
    def text(self) -> str:
        """The text that is read of it."""
        return "".join(piece for row in self.rows for piece in row.pieces)

    @property
    def n_tokens(self) -> int:
        """Of all rows."""
        return sum(len(row.tokens) for row in self.rows)


def check_context(model: Model, context: int) -> None:
    """Raises UsageError for a model without a tokenizer, or a context that it cannot read."""
    if model.tokenizer is None:
        raise UsageError(f"model {model.name} has no tokenizer: a corpus cannot be read with it.")
    longest = context_length(model.hf)
    if context < 2 + SHORTEST or (longest and context > longest):
        least = 2 + SHORTEST
        raise bad_argument("context", context, f"{least} to {longest}" if longest else f"{least} or more")


def choose(
    model: Model, corpus: Corpus, tokens: int, per_document: int, context: int, seed: int, report: Report | None = None
) -> tuple[list[ChosenDocument], int]:
    """Documents with about `tokens` tokens in all, and how many tokens were read of each at most.

    Raises CorpusError where the corpus has no text.
    """
    pieces, limit, each = Pieces(model), CHARACTERS * tokens, per_document
    while True:
        texts, all_there, cut = _candidates(corpus, seed, limit, CHARACTERS * each)
        found = _cut(model, pieces, texts, tokens, each, context, report)
        if not found:
            raise CorpusError(f"corpus {corpus.name!r}: it has no document of {SHORTEST} tokens or more.")
        cut = cut or any(document.cut for document in found)
        if sum(document.n_tokens for document in found) >= tokens or (all_there and not cut):
            return [ChosenDocument(document.name, document.rows) for document in found], each
        limit, each = (limit, each * MORE) if all_there else (limit * MORE, each)


@dataclass(frozen=True, eq=False)
class _Found(ChosenDocument):
    cut: bool


def _candidates(corpus: Corpus, seed: int, limit: int, longest: int) -> tuple[list[tuple[str, str]], bool, bool]:
    """(name, beginning of the text) in the order they are taken, about `limit` characters; whether that is all of the corpus,
    and whether a text was cut."""
    heap: list[tuple[float, int, str, str]] = []
    held, cut, all_there = 0, False, True
    for number, document in enumerate(corpus.documents()):
        if number == LOOK:
            break
        text = document.text[:longest]
        heapq.heappush(heap, (-_draw(seed, document.text), number, document.id, text))
        held, cut = held + len(text), cut or len(document.text) > longest
        while len(heap) > 1 and held - len(heap[0][3]) >= limit:
            held -= len(heapq.heappop(heap)[3])
            all_there = False
    return [(name, text) for _, _, name, text in sorted(heap, reverse=True, key=lambda one: (one[0], -one[1]))], all_there, cut


def _draw(seed: int, text: str) -> float:
    content = f"take {seed} {text.strip()[:HEAD]}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big") / 2**64


def _cut(
    model: Model, pieces: Pieces, texts: Sequence[tuple[str, str]], tokens: int, each: int, context: int, report: Report | None
) -> list[_Found]:  # fmt: skip
    found: list[_Found] = []
    held = 0
    for name, ids in _tokenised(model, texts):
        rows = list(_rows(model, pieces, ids[:each], context))
        if rows:
            found.append(_Found(name, rows, len(ids) > each))
            held += found[-1].n_tokens
            if report:
                report("choosing documents", min(held, tokens), tokens)
        if held >= tokens:
            break
    return found


def _tokenised(model: Model, texts: Sequence[tuple[str, str]]) -> Iterator[tuple[str, list[int]]]:
    for start in range(0, len(texts), TOGETHER):
        some = texts[start : start + TOGETHER]
        ids = model.tokenizer([text for _, text in some], add_special_tokens=False, verbose=False)["input_ids"]
        yield from zip((name for name, _ in some), ids, strict=True)


def _rows(model: Model, pieces: Pieces, ids: list[int], context: int) -> Iterator[ChosenRow]:
    lead = [model.bos_id] if model.prepend_bos and model.bos_id is not None else []
    room = context - len(lead)
    for place in range(0, len(ids), room):
        body = ids[place : place + room]
        if len(body) >= SHORTEST:
            row = [*lead, *body]
            yield ChosenRow(np.array(row, np.int32), pieces.of(row, place == 0), place)
