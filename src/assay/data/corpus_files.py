"""Corpora from files: text, Markdown, JSONL, CSV and Parquet, one or a folder of them.

1. A folder is read in the order of its relative paths; files of other kinds are left alone.
2. Every reader yields one document after another: at most one document (one row group of Parquet) is in memory.
3. Document ids: the relative path for a whole file, else path:number, the number counted from 0 within its file.
4. The digest is over names, the SHA-256 of all files, and the settings. Files are data: nothing in them is executed.
"""

import csv
import gzip
import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from functools import cached_property
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from assay.data.corpora import Corpus, Document
from assay.errors import CorpusError, bad_argument
from assay.model.cache import file_sha256

TEXTS = (".txt", ".md")
KINDS = (*TEXTS, ".jsonl", ".ndjson", ".csv", ".parquet")
UNITS = ("file", "block", "line")
LONGEST = 64 << 20  # bytes of one document: a file above is cut into blocks only when asked
BLOCK = 1 << 20  # characters: a block that goes on and on is cut here
FETCHED = 256  # rows of Parquet held at a time


def open_files(path: Path, text_key: str = "text", documents: str | None = None) -> "Files":
    """The corpus of a file or folder. Raises CorpusError when nothing readable is there."""
    if documents not in (None, *UNITS):
        raise bad_argument("documents", documents, ", ".join(UNITS))
    if path.is_dir():
        files = tuple(file for file in sorted(path.rglob("*"), key=lambda f: f.relative_to(path).as_posix())
                      if file.is_file() and kind_of(file) in KINDS and not _hidden(file.relative_to(path)))  # fmt: skip
        return Files(path, files, text_key, documents or "file")
    return Files(path.parent, (path,) if kind_of(path) in KINDS else (), text_key, documents or "block", path.name)


def kind_of(path: Path) -> str:
    """What a file is, by its name; `.gz` around it is looked through."""
    inner = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    kind = inner.suffix.lower()
    return "" if kind == ".parquet" and inner != path else kind


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


class Files(Corpus):
    """Documents of some files under one folder."""

    def __init__(self, root: Path, files: tuple[Path, ...], text_key: str, unit: str, name: str | None = None) -> None:
        self.root, self.files, self.text_key, self.unit = root, files, text_key, unit
        self.name = name or root.resolve().name
        if not files:
            raise CorpusError(f"corpus {str(root / (name or ''))!r}: no file that can be read; allowed: {', '.join(KINDS)}"
                              " (each but the last also with .gz), or a folder of them.")  # fmt: skip

    @cached_property
    def _digest(self) -> str:
        state = hashlib.sha256(json.dumps(["files", self.text_key, self.unit]).encode())
        for file in self.files:
            state.update(f"{self._id(file)}\0{_sha256(file)}\0".encode("utf-8", "surrogatepass"))
        return state.hexdigest()

    @property
    def digest(self) -> str:
        return self._digest

    def read(self) -> Iterator[Document]:
        for file in self.files:
            yield from READERS.get(kind_of(file), _texts)(self, file)

    def _id(self, file: Path) -> str:
        return file.relative_to(self.root).as_posix()

    def numbered(self, file: Path, texts: Iterator[str]) -> Iterator[Document]:
        """Texts of one file as documents."""
        return (Document(f"{self._id(file)}:{number}", text) for number, text in enumerate(texts))


def _sha256(file: Path) -> str:
    try:
        return file_sha256(file)
    except OSError as error:
        raise CorpusError(f"corpus file {str(file)!r} cannot be read: {error.strerror}.") from error


def _open(file: Path) -> TextIOWrapper:
    """UTF-8 text, a leading byte order mark left out; `.gz` unpacked on the way."""
    if file.suffix.lower() == ".gz":
        return gzip.open(file, "rt", encoding="utf-8-sig", newline=None)
    return file.open("r", encoding="utf-8-sig", newline=None)


def _lines(file: Path, size: int = -1) -> Iterator[str]:
    """Lines with their ends, at most `size` characters at a time. CorpusError where the file is not UTF-8."""
    number = 0
    try:
        with _open(file) as source:
            while line := source.readline(size):
                number += 1
                yield line
    except UnicodeDecodeError as error:
        raise CorpusError(f"corpus file {str(file)!r}: after line {number} a byte is not UTF-8 ({error.reason})."
                          " Save it as UTF-8.") from error  # fmt: skip
    except (OSError, EOFError) as error:
        raise CorpusError(f"corpus file {str(file)!r} cannot be read: {error}.") from error


def _texts(corpus: Files, file: Path) -> Iterator[Document]:
    if corpus.unit == "block":
        return corpus.numbered(file, _blocks(file))
    if corpus.unit == "line":
        return corpus.numbered(file, (line.rstrip("\n") for line in _lines(file, BLOCK)))
    return _whole(corpus, file)


def _whole(corpus: Files, file: Path) -> Iterator[Document]:
    pieces: list[str] = []
    size = 0
    for line in _lines(file, BLOCK):
        pieces.append(line)
        size += len(line)
        if size > LONGEST:
            raise CorpusError(f"corpus file {str(file)!r} is longer than {LONGEST >> 20} M characters, too much for one"
                              " document. Read it in blocks: --documents block.")  # fmt: skip
    yield Document(corpus._id(file), "".join(pieces))


def _blocks(file: Path) -> Iterator[str]:
    """What lies between blank lines."""
    pieces: list[str] = []
    size = 0
    for line in _lines(file, BLOCK):
        blank = not line.strip()
        if not blank:
            pieces.append(line)
            size += len(line)
        if pieces and (blank or size >= BLOCK):
            yield "".join(pieces).rstrip("\n")
            pieces, size = [], 0
    if pieces:
        yield "".join(pieces).rstrip("\n")


def _jsonl(corpus: Files, file: Path) -> Iterator[Document]:
    def texts() -> Iterator[str]:
        for number, line in enumerate(_lines(file), 1):
            if line.strip():
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise CorpusError(f"corpus file {str(file)!r}, line {number}: not JSON ({error}).") from error
                yield _text(row if isinstance(row, dict) else {}, corpus.text_key, f"{str(file)!r}, line {number}")

    return corpus.numbered(file, texts())


def _csv(corpus: Files, file: Path) -> Iterator[Document]:
    def texts() -> Iterator[str]:
        csv.field_size_limit(min(sys.maxsize, LONGEST))
        rows = csv.DictReader(_lines(file))
        try:
            for row in rows:
                yield _text(row, corpus.text_key, f"{str(file)!r}, line {rows.line_num}")
        except csv.Error as error:
            raise CorpusError(f"corpus file {str(file)!r}, line {rows.line_num}: {error}.") from error

    return corpus.numbered(file, texts())


def _parquet(corpus: Files, file: Path) -> Iterator[Document]:
    return corpus.numbered(file, table_texts(file, "parquet", corpus.text_key))


def _text(row: dict[Any, Any], key: str, where: str) -> str:
    text = row.get(key)
    if text is None and key in row:
        return ""
    if key in row and not isinstance(text, str):
        raise CorpusError(f"corpus file {where}: what is under {key!r} is a {type(text).__name__}, not a text.")
    if not isinstance(text, str):
        raise CorpusError(f"corpus file {where}: no text under {key!r}; there are {sorted(map(str, row))[:12]}."
                          " Name the right one: --text-key KEY.")  # fmt: skip
    return text if text.isascii() else _whole_characters(text)


def _whole_characters(text: str) -> str:
    """Halves of surrogate pairs, which JSON may hold and no encoding has, as U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def table_texts(file: Path, kind: str, column: str) -> Iterator[str]:
    """One column of a Parquet or CSV file (`.zst` too) in its order, a few rows at a time."""
    import duckdb

    quoted, name = str(file).replace("'", "''"), column.replace('"', '""')
    options = ", header=true, all_varchar=true, parallel=false, quote='\"', escape='\"'" if kind == "csv" else ""
    with duckdb.connect(":memory:", config={"threads": 1, "enable_external_file_cache": "false"}) as connection:
        try:
            source = f"read_{kind}('{quoted}'{options})"
            described = connection.execute(f"DESCRIBE SELECT * FROM {source}").fetchall()
            if column not in [row[0] for row in described]:
                raise CorpusError(f"corpus file {str(file)!r}: no column {column!r}; there are"
                                  f" {[row[0] for row in described][:12]}. Name the right one: --text-key KEY.")  # fmt: skip
            found = connection.execute(f'SELECT "{name}"::VARCHAR FROM {source}')
            while rows := found.fetchmany(FETCHED):
                yield from (row[0] or "" for row in rows)
        except duckdb.Error as error:
            raise CorpusError(f"corpus file {str(file)!r} cannot be read as {kind}: {str(error).splitlines()[0]}") from error
        except RuntimeError as error:
            if str(error) == "Query interrupted":  # DuckDB's word for Ctrl-C
                raise KeyboardInterrupt from error
            raise


READERS: dict[str, Callable[[Files, Path], Iterator[Document]]] = {
    ".jsonl": _jsonl, ".ndjson": _jsonl, ".csv": _csv, ".parquet": _parquet}  # fmt: skip
