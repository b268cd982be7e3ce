"""Rows of token ids: a corpus as a model reads it, packed once and then read from disk in any order.

1. Every document is tokenised (long ones in pieces of at most `PIECE` characters, cut at a line end where there is one)
   and cut into rows of at most `context` tokens. A row holds tokens of one document only, so nothing attends across
   documents; the last row of a document is short. BOS stands before each row if the model wants it, and counts.
2. Packing stops at `tokens` tokens, the last row cut to fit: exactly so many, or all of a smaller corpus.
3. Rows are kept in the cache (`rows/`), 4 bytes a token, memory-mapped: any row at once, flat memory, the same rows
   after a restart. The key is corpus, tokenizer, context and tokens; a folder is built beside and renamed.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from assay.data.corpora import Corpus, open_corpus
from assay.errors import CorpusError, UsageError, bad_argument
from assay.model.cache import cache_dir
from assay.model.context import context_length
from assay.model.model import Model

FORMAT = 1  # of the packing; raise it to have all rows packed again
PIECE = 1 << 18  # characters tokenised at a time
TOGETHER = 64  # documents tokenised in one call
PARTS = {"tokens": np.uint32, "ends": np.int64, "documents": np.int64, "places": np.int64, "name_ends": np.int64}


@dataclass(frozen=True, eq=False)
class Row:
    """One text as the model gets it. `document`: its number and `name`: its id; `place`: tokens of it before this row."""

    number: int
    tokens: np.ndarray
    document: int
    name: str
    place: int


class Rows:
    """Rows in a folder. `len(rows)`, `rows[7]`, `rows.lengths` (n_rows,)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.record: dict[str, Any] = json.loads((folder / "rows.json").read_text(encoding="utf-8"))
        self._parts = {name: _mapped(folder / name, kind) for name, kind in PARTS.items()}
        self._names = _mapped(folder / "names", np.uint8)

    def __len__(self) -> int:
        return len(self._parts["ends"])

    @property
    def n_tokens(self) -> int:
        """All tokens of all rows."""
        return len(self._parts["tokens"])

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens in each row."""
        return np.diff(self._parts["ends"], prepend=0)

    def tokens(self, row: int) -> np.ndarray:
        """Token ids of one row, uint32."""
        end = int(self._parts["ends"][row])
        return self._parts["tokens"][end - int(self.lengths[row]) : end]

    def __getitem__(self, row: int) -> Row:
        if not 0 <= row < len(self):
            raise bad_argument("row", row, f"0 to {len(self) - 1}")
        document = int(self._parts["documents"][row])
        return Row(row, self.tokens(row), document, self.name(document), int(self._parts["places"][row]))

    def name(self, document: int) -> str:
        """The id of a document."""
        ends = self._parts["name_ends"]
        start = int(ends[document - 1]) if document else 0
        return self._names[start : int(ends[document])].tobytes().decode("utf-8", "surrogatepass")

    def __iter__(self) -> Iterator[Row]:
        return (self[row] for row in range(len(self)))


def _mapped(file: Path, kind: Any) -> np.ndarray:
    return np.memmap(file, dtype=kind, mode="r") if file.stat().st_size else np.zeros(0, kind)


def packed(
    model: Model,
    corpus: str | Path | Corpus,
    context: int = 256,
    tokens: int | None = None,
    report: Callable[[int], None] | None = None,
) -> Rows:
    """Rows of at most `context` tokens of a corpus, `tokens` in all (None: all of it); kept in the cache.

    `report(n)`: so many tokens were packed since the last call. Raises UsageError for a model without a tokenizer or a
    context it cannot read, CorpusError for a corpus without text.
    """
    opened = open_corpus(corpus)
    _check(model, context, tokens)
    record = {"format": FORMAT, "corpus": opened.record(), "corpus_digest": opened.digest, "context": context,
              "tokenizer": model.tokenizer_digest, "bos": _bos(model), "tokens": tokens}  # fmt: skip
    key = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:32]
    target = cache_dir() / "rows" / key
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.parent / f".{key}.lock"):
            if not (target / "rows.json").is_file():
                _build(model, opened, record, target, report)
    except OSError as error:
        raise CorpusError(f"Cannot keep token rows in {target.parent}: {error}. Set ASSAY_CACHE to a folder on a disk with"
                          " room.") from error  # fmt: skip
    return Rows(target)


def _check(model: Model, context: int, tokens: int | None) -> None:
    if model.tokenizer is None:
        raise UsageError(f"model {model.name} has no tokenizer: a corpus cannot be read with it.")
    longest = context_length(model.hf)
    if context < 2 or (longest and context > longest):
        raise bad_argument("context", context, f"2 to {longest}" if longest else "2 or more")
    if tokens is not None and tokens < 2:
        raise bad_argument("tokens", tokens, "2 or more")


def _bos(model: Model) -> int | None:
    return model.bos_id if model.prepend_bos else None


def _build(
    model: Model, corpus: Corpus, record: dict[str, Any], target: Path, report: Callable[[int], None] | None
) -> None:  # fmt: skip
    for stale in target.parent.glob(f".{target.name}.tmp-*"):
        shutil.rmtree(stale)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.tmp-", dir=target.parent) as work:
        folder = Path(work) / "rows"
        folder.mkdir()
        with closing(_Writer(folder, record["context"], record["bos"], record["tokens"], report)) as writer:
            for name, ids in _documents(model, corpus):
                writer.add(name, ids)
                if writer.full:
                    break
        if not writer.n_tokens:
            raise CorpusError(f"corpus {corpus.name!r}: it has no text" + (
                f" in its part {record['corpus']['split']!r}: whole documents are divided. Give more of them; of a text file"
                " --documents line makes one of each line." if record["corpus"]["split"] != "all" else "."))  # fmt: skip
        (folder / "rows.json").write_text(json.dumps({**record, "n_tokens": writer.n_tokens}), encoding="utf-8")
        if target.exists():
            shutil.rmtree(target)
        os.replace(folder, target)


def _documents(model: Model, corpus: Corpus) -> Iterator[tuple[str, Iterator[list[int]]]]:
    """(id, token ids piece by piece) of every document; short ones are tokenised together."""
    waiting: list[tuple[str, str]] = []
    size = 0
    for document in corpus.documents():
        if len(document.text) > PIECE:
            yield from _short(model, waiting)
            waiting, size = [], 0
            yield document.id, (_ids(model, [piece])[0] for piece in pieces(document.text))
            continue
        waiting.append((document.id, document.text))
        size += len(document.text)
        if len(waiting) == TOGETHER or size > PIECE:
            yield from _short(model, waiting)
            waiting, size = [], 0
    yield from _short(model, waiting)


def _short(model: Model, waiting: list[tuple[str, str]]) -> Iterator[tuple[str, Iterator[list[int]]]]:
    if waiting:
        for (name, _), ids in zip(waiting, _ids(model, [text for _, text in waiting]), strict=True):
            yield name, iter([ids])


def _ids(model: Model, texts: Sequence[str]) -> list[list[int]]:
    return model.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]


def pieces(text: str) -> Iterator[str]:
    """A long text in parts of at most PIECE characters, cut after a line end or blank where there is one."""
    start = 0
    while len(text) - start > PIECE:
        window = text[start : start + PIECE]
        cut = max(window.rfind("\n"), 0) + 1
        cut = cut if cut > PIECE // 2 else max(window.rfind(" "), 0)
        cut = cut if cut > PIECE // 2 else PIECE
        yield text[start : start + cut]
        start += cut
    yield text[start:]


class _Writer:
    """Cuts documents into rows and appends them to the files of a folder."""

    def __init__(
        self, folder: Path, context: int, bos: int | None, most: int | None, report: Callable[[int], None] | None
    ) -> None:
        self.files = {name: (folder / name).open("wb") for name in (*PARTS, "names")}
        self.context, self.bos, self.most, self.report = context, bos, most, report
        self.n_tokens = self.n_documents = self.n_bytes = 0

    @property
    def full(self) -> bool:
        return self.most is not None and self.n_tokens >= self.most

    def add(self, name: str, parts: Iterator[list[int]]) -> None:
        """All rows of a document, as far as there is room."""
        place, held, before = 0, [], self.n_tokens
        room = self.context - (self.bos is not None)
        for ids in parts:
            held += ids
            start = 0
            while len(held) - start >= room and not self.full:
                self._row(held[start : start + room], place)
                place, start = place + room, start + room
            held = held[start:]
            if self.full:
                break
        if held and not self.full:
            self._row(held, place)
        if self.n_tokens > before:
            self._name(name)
        if self.report:
            self.report(self.n_tokens - before)

    def _row(self, ids: list[int], place: int) -> None:
        row = ids if self.bos is None else [self.bos, *ids]
        row = row if self.most is None else row[: self.most - self.n_tokens]
        self.n_tokens += len(row)
        self._put("tokens", row)
        self._put("ends", [self.n_tokens])
        self._put("documents", [self.n_documents])
        self._put("places", [place])

    def _name(self, name: str) -> None:
        encoded = name.encode("utf-8", "surrogatepass")
        self.n_bytes, self.n_documents = self.n_bytes + len(encoded), self.n_documents + 1
        self.files["names"].write(encoded)
        self._put("name_ends", [self.n_bytes])

    def _put(self, name: str, values: Sequence[int]) -> None:
        self.files[name].write(np.asarray(values, dtype=PARTS[name]).tobytes())

    def close(self) -> None:
        for file in self.files.values():
            file.close()
