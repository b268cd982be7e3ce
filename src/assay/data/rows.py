"""Rows of a data file, JSON Lines or CSV, whatever they are about.

Files are data: their size is limited, they must be UTF-8, and an error names the file, the line and the field.
A `Layout` says what the rows are called, which fields they must have, and which they may have in a CSV header.
"""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assay.errors import TaskError

SUFFIXES = (".jsonl", ".csv")
LARGEST = 100 * 1024 * 1024
SHOWN = 60
Row = tuple[int, dict[str, Any]]


@dataclass(frozen=True)
class Layout:
    """`what`: "task"; `each`: what one row is; `fields` must be there, `optional` may be."""

    what: str
    each: str
    fields: tuple[str, ...]
    optional: tuple[str, ...] = ()
    largest: int = LARGEST

    def where(self, path: Path, line: int) -> str:
        """How errors name a row."""
        return f"{self.what} file {path}, line {line}"


def read_rows(path: Path, layout: Layout) -> list[Row]:
    """(line, row) of all rows. Raises TaskError for anything that is not such a file, or has no rows."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise TaskError(f"{layout.what} file {path}: got suffix {path.suffix!r}; allowed: {' or '.join(SUFFIXES)}.")
    text = _text(path, layout)
    rows = list((_csv_rows if suffix == ".csv" else _jsonl_rows)(path, text, layout))
    if not rows:
        each = "row" if suffix == ".csv" else "JSON object"
        raise TaskError(f"{layout.what} file {path}: it has no {layout.each}s. Write one {each} a line"
                        f"{', with ' if layout.fields else ''}{', '.join(layout.fields)}.")  # fmt: skip
    return rows


def one_text(value: Any, field: str, where: str, allowed: str = "a text that is not empty", hint: str = "") -> str:
    """A text that is not empty and is Unicode. Raises TaskError naming the field."""
    if not isinstance(value, str) or not value:
        raise TaskError(f"{where}, field {field!r}: got {show(value)}; allowed: {allowed}.{hint}")
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise TaskError(f"{where}, field {field!r}: half of a surrogate pair in {show(value)}; allowed: Unicode text.")
    return value


def show(value: object) -> str:
    """A value as errors quote it."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _text(path: Path, layout: Layout) -> str:
    name = f"{layout.what} file {path}"
    try:
        if not path.is_file():
            raise TaskError(f"{name}: {'it is not a file' if path.exists() else 'no such file'}.")
        size = path.stat().st_size
        if size > layout.largest:
            raise TaskError(f"{name}: {size} bytes; allowed: {layout.largest}. Give a part of it.")
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TaskError(f"{name}: byte {error.start} is not UTF-8. Save it as UTF-8.") from error
    except OSError as error:
        raise TaskError(f"{name}: it cannot be read ({error.strerror}).") from error


def _jsonl_rows(path: Path, text: str, layout: Layout) -> Iterator[Row]:
    for line, content in enumerate(text.split("\n"), 1):
        if not content.strip():
            continue
        try:
            row = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise TaskError(f"{layout.where(path, line)}: not JSON ({error}).") from error
        if not isinstance(row, dict):
            raise TaskError(f"{layout.where(path, line)}: got {type(row).__name__}; allowed: an object"
                            f" with {', '.join(layout.fields)}.")  # fmt: skip
        yield line, row


def _csv_rows(path: Path, text: str, layout: Layout) -> Iterator[Row]:
    """Rows by header, with the line on which each begins: a quoted cell may have line breaks."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    known = {*layout.fields, *layout.optional}
    header: list[str] | None = None
    line = 1
    try:
        for cells in reader:
            if cells and header is None:
                header = _header(path, line, cells, layout)
            elif cells and header is not None:
                if len(cells) != len(header):
                    raise TaskError(f"{layout.where(path, line)}: {len(cells)} cells; allowed: {len(header)}, one for"
                                    f" each of {', '.join(header)}. Put a text with commas in double quotes.")  # fmt: skip
                yield line, {name: cell for name, cell in zip(header, cells, strict=True) if name in known}
            line = reader.line_num + 1
    except csv.Error as error:
        raise TaskError(f"{layout.where(path, line)}: not CSV ({error}).") from error


def _header(path: Path, line: int, cells: list[str], layout: Layout) -> list[str]:
    names = [cell.strip() for cell in cells]
    missing = [name for name in layout.fields if name not in names]
    if missing:
        hint = "Separate the fields by commas." if len(names) == 1 else f"Name the columns {', '.join(layout.fields)}."
        raise TaskError(f"{layout.where(path, line)}: the header has no field {', '.join(map(repr, missing))}; it has"
                        f" {show(', '.join(names))}. {hint}")  # fmt: skip
    twice = [name for name in (*layout.fields, *layout.optional) if names.count(name) > 1]
    if twice:
        raise TaskError(f"{layout.where(path, line)}, field {twice[0]!r}: it is in the header twice.")
    return names
