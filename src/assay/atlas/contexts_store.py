"""Features with their contexts in files that are read a page at a time: shards of some thousand features each.

One shard is one safetensors file; feature i of it is a slice of every column:

1. `record_text[record_start[i] : record_start[i + 1]]`: its record as JSON in UTF-8.
2. `window_start[i] : window_start[i + 1]` are its windows. Of each window: `at`, `position`, `document` (a row of the table of
   documents), `why` (an index into the list in the file's metadata), and where its tokens and values begin in
3. `tokens`: rows of the table of pieces, two bytes each where the shard has at most 65,536 different ones; and
   `values` beside `value_at`: activations that are not zero, and at which token of the window.
4. The tables: `piece_id` and its text (one row per different pair of token id and text: a byte-level tokenizer has tokens whose
   text depends on what stands beside them), and the names of documents.

A page touches the slices of one feature, so its cost does not grow with the number of features. What a model read before a
window (`Window.lead`) is not kept.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from assay.errors import StoreError, bad_argument
from assay.explain.records import WHY, Window
from assay.files import write_file

Arrays = dict[str, NDArray[Any]]
FORM = "assay-features/1"


@dataclass(frozen=True, eq=False)
class Block:
    """Some features as columns: what one shard holds. `records`: one JSON text per feature."""

    records: Sequence[str]
    columns: Arrays
    pieces: Sequence[tuple[int, str]]
    documents: Sequence[str]

    def arrays(self) -> Arrays:
        """Everything as arrays to write."""
        record_start, record_text = _joined(self.records)
        piece_start, piece_text = _joined([piece for _, piece in self.pieces])
        document_start, document_text = _joined(self.documents)
        small = len(self.pieces) <= np.iinfo(np.uint16).max + 1
        ids = _narrow(np.array([token for token, _ in self.pieces], np.int64), np.int32)
        return {**self.columns, "tokens": self.columns["tokens"].astype(np.uint16 if small else np.uint32),
                "record_start": record_start, "record_text": record_text,
                "piece_id": ids, "piece_start": piece_start, "piece_text": piece_text,
                "document_start": document_start, "document_text": document_text}  # fmt: skip


def pack(features: Iterable[tuple[str, Sequence[Window]]]) -> Block:
    """(record, windows) of some features as columns. Raises UsageError for a window whose parts do not fit each other."""
    pieces: dict[tuple[int, str], int] = {}
    documents: dict[str, int] = {}
    records: list[str] = []
    tokens: list[int] = []
    starts, token_start, value_start = [0], [0], [0]
    at, position, document, why = [], [], [], []
    value_at: list[int] = []
    values: list[float] = []
    for record, windows in features:
        records.append(record)
        starts.append(starts[-1] + len(windows))
        for window in windows:
            _check(window)
            tokens += [pieces.setdefault(pair, len(pieces)) for pair in zip(window.tokens, window.pieces, strict=True)]
            on = [place for place, value in enumerate(window.values) if value]
            value_at += on
            values += [window.values[place] for place in on]
            token_start.append(len(tokens))
            value_start.append(len(values))
            at.append(window.at)
            position.append(window.position)
            document.append(documents.setdefault(window.document, len(documents)))
            why.append(WHY.index(window.why))
    columns: Arrays = {
        "window_start": np.array(starts, np.int64), "token_start": np.array(token_start, np.uint32),
        "value_start": np.array(value_start, np.uint32), "at": np.array(at, np.uint16),
        "position": np.array(position, np.uint32), "document": np.array(document, np.uint32), "why": np.array(why, np.uint8),
        "tokens": np.array(tokens, np.uint32), "value_at": np.array(value_at, np.uint16),
        "values": np.array(values, np.float32),
    }  # fmt: skip
    return Block(records, columns, list(pieces), list(documents))


def _check(window: Window) -> None:
    sizes = {len(window.tokens), len(window.pieces), len(window.values)}
    if len(sizes) != 1 or not 0 <= window.at < len(window.tokens) < 2**16 or window.why not in WHY:
        got = f"{len(window.tokens)} tokens, {len(window.pieces)} pieces, {len(window.values)} values, at {window.at}," \
              f" why {window.why!r}"  # fmt: skip
        raise bad_argument("window", got, f"equal numbers (1 to 65,535), at inside them, why one of {', '.join(WHY)}")


def write_shard(path: Path, block: Block) -> None:
    """A block as one file, written beside and then renamed."""
    about = {"form": FORM, "features": str(len(block.records)), "why": json.dumps(WHY)}
    write_file(path, save(block.arrays(), about))


class Shard:
    """One file of features, open for reading; nothing is held but the map of the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file: Any = safe_open(path, "np").__enter__()
            about = self._file.metadata() or {}
            self.features, self._why = int(about["features"]), json.loads(about["why"])
        except (SafetensorError, KeyError, ValueError) as error:
            raise StoreError(f"{path}: is no shard of features ({error}). Map the model again: assay map MODEL") from error
        if about.get("form") != FORM:
            raise StoreError(f"{path}: has form {about.get('form')!r}; this Assay reads {FORM}. Update Assay.")

    def record(self, feature: int) -> dict[str, Any]:
        """The JSON of one feature."""
        return json.loads(self.record_text(feature))

    def record_text(self, feature: int) -> bytes:
        """The same, as it is in the file."""
        start, end = self._slice("record_start", feature, feature + 2)
        return self._slice("record_text", int(start), int(end)).tobytes()

    def records(self) -> Iterable[dict[str, Any]]:
        """The JSON of every feature, in order."""
        return (self.record(feature) for feature in range(self.features))

    def n_windows(self) -> list[int]:
        """How many contexts every feature has."""
        return np.diff(self._file.get_tensor("window_start")).tolist()

    def windows(self, feature: int) -> tuple[Window, ...]:
        """The contexts of one feature, as they were given (without `lead`)."""
        first, last = (int(each) for each in self._slice("window_start", feature, feature + 2))
        if first == last:
            return ()
        held = {name: self._slice(name, first, last) for name in ("at", "position", "document", "why")}
        token_start = self._slice("token_start", first, last + 1).astype(np.int64)
        value_start = self._slice("value_start", first, last + 1).astype(np.int64)
        tokens = self._slice("tokens", int(token_start[0]), int(token_start[-1]))
        used, tokens = np.unique(tokens, return_inverse=True)
        texts = self._texts("piece", used)
        ids = self._file.get_tensor("piece_id")[used].tolist()
        names = np.unique(held["document"])
        documents = dict(zip(names.tolist(), self._texts("document", names), strict=True))
        value_at, values = (self._slice(name, int(value_start[0]), int(value_start[-1])) for name in ("value_at", "values"))
        token_start, value_start = token_start - token_start[0], value_start - value_start[0]
        dense = np.zeros(len(tokens), np.float32)
        dense[np.repeat(token_start[:-1], np.diff(value_start)) + value_at] = values
        found, rows, on = [], tokens.tolist(), dense.tolist()
        for window in range(last - first):
            part = slice(int(token_start[window]), int(token_start[window + 1]))
            found.append(Window(
                tuple(ids[row] for row in rows[part]), tuple(texts[row] for row in rows[part]), tuple(on[part]),
                int(held["at"][window]), documents[int(held["document"][window])], int(held["position"][window]),
                self._why[held["why"][window]],
            ))  # fmt: skip
        return tuple(found)

    def _slice(self, name: str, start: int, end: int) -> NDArray[Any]:
        return self._file.get_slice(name)[start:end] if start < end else np.zeros(0, np.int64)

    def _texts(self, table: str, rows: NDArray[Any]) -> list[str]:
        starts, text = self._file.get_tensor(f"{table}_start"), self._file.get_tensor(f"{table}_text").tobytes()
        return [text[start:end].decode("utf-8", "surrogatepass")
                for start, end in zip(starts[rows].tolist(), starts[rows + 1].tolist(), strict=True)]  # fmt: skip


def _joined(texts: Sequence[str]) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    """Texts as one run of bytes, and where each begins."""
    parts = [text.encode("utf-8", "surrogatepass") for text in texts]
    starts = np.zeros(len(parts) + 1, np.int64)
    np.cumsum([len(part) for part in parts], out=starts[1:])
    return _narrow(starts, np.uint32), np.frombuffer(b"".join(parts), np.uint8)


def _narrow(numbers: NDArray[Any], kind: DTypeLike) -> NDArray[Any]:
    """The numbers as `kind`, where all of them fit."""
    narrow = numbers.astype(kind)
    return narrow if np.array_equal(narrow, numbers) else numbers
