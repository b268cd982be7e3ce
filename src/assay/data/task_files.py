"""One's own task from a file: JSON Lines or CSV, one pair a line.

    {"clean": "...", "corrupted": "...", "answer": " Mary", "foil": " John", "template": "a name for it"}

Answer and foil are written as they follow the prompt, leading space included; in JSON each may be a
list. The template is the unit of independence: give pairs made from one sentence pattern the same
one. JSON lines may have two more fields: "labels", {"subject": [offset in clean, offset in corrupted]}
(offsets count characters), and "entities", the list of content words. Other fields are ignored.

Files are data: their size is limited, every field is checked, and an error names line and field.
"""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from assay.errors import TaskError
from assay.records import Pair

FIELDS = ("clean", "corrupted", "answer", "foil", "template")
SUFFIXES = (".jsonl", ".csv")
LARGEST = 100 * 1024 * 1024
SHOWN = 60
Row = tuple[int, dict[str, Any]]


def read_task(path: Path) -> list[Pair]:
    """All pairs of a file. Raises TaskError, naming line and field, for anything that does not fit."""
    if path.suffix.lower() not in SUFFIXES:
        raise TaskError(f"task file {path}: got suffix {path.suffix!r}; allowed: {' or '.join(SUFFIXES)}.")
    text = _text(path)
    rows = _csv_rows(path, text) if path.suffix.lower() == ".csv" else _jsonl_rows(path, text)
    pairs = [_pair(row, f"task file {path}, line {line}") for line, row in rows]
    if not pairs:
        raise TaskError(f"task file {path}: it has no pairs. Write one {'row' if path.suffix == '.csv' else 'JSON object'}"
                        f" a line, with {', '.join(FIELDS)}.")  # fmt: skip
    return pairs


def _text(path: Path) -> str:
    try:
        if not path.is_file():
            raise TaskError(f"task file {path}: {'it is not a file' if path.exists() else 'no such file'}.")
        size = path.stat().st_size
        if size > LARGEST:
            raise TaskError(f"task file {path}: {size} bytes; allowed: {LARGEST}. Give a part of it.")
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TaskError(f"task file {path}: byte {error.start} is not UTF-8. Save it as UTF-8.") from error
    except OSError as error:
        raise TaskError(f"task file {path}: it cannot be read ({error.strerror}).") from error


def _jsonl_rows(path: Path, text: str) -> Iterator[Row]:
    for line, content in enumerate(text.split("\n"), 1):
        if not content.strip():
            continue
        try:
            row = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise TaskError(f"task file {path}, line {line}: not JSON ({error}).") from error
        if not isinstance(row, dict):
            raise TaskError(f"task file {path}, line {line}: got {type(row).__name__}; allowed: an object"
                            f" with {', '.join(FIELDS)}.")  # fmt: skip
        yield line, row


def _csv_rows(path: Path, text: str) -> Iterator[Row]:
    """Rows by header, with the line on which each begins: a quoted cell may have line breaks."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    line = 1
    try:
        for cells in reader:
            if cells and header is None:
                header = _header(path, line, cells)
            elif cells and header is not None:
                if len(cells) != len(header):
                    raise TaskError(f"task file {path}, line {line}: {len(cells)} cells; allowed: {len(header)}, one for"
                                    f" each of {', '.join(header)}. Put a text with commas in double quotes.")  # fmt: skip
                yield line, {name: cell for name, cell in zip(header, cells, strict=True) if name in FIELDS}
            line = reader.line_num + 1
    except csv.Error as error:
        raise TaskError(f"task file {path}, line {line}: not CSV ({error}).") from error


def _header(path: Path, line: int, cells: list[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    missing = [name for name in FIELDS if name not in names]
    if missing:
        raise TaskError(f"task file {path}, line {line}: the header has no field {', '.join(map(repr, missing))}; it has"
                        f" {_show(', '.join(names))}. Separate the fields by commas.")  # fmt: skip
    twice = [name for name in FIELDS if names.count(name) > 1]
    if twice:
        raise TaskError(f"task file {path}, line {line}, field {twice[0]!r}: it is in the header twice.")
    return names


def _pair(row: dict[str, Any], where: str) -> Pair:
    answers, foils = (_texts(row, name, where) for name in ("answer", "foil"))
    clean, corrupted, template = (_one_text(row.get(name), name, where) for name in ("clean", "corrupted", "template"))
    labels = {name: _offsets(name, at, (clean, corrupted), where) for name, at in _labels(row, where).items()}
    entities = _texts(row, "entities", where) if row.get("entities") else ()
    return Pair(clean, corrupted, answers, foils, template, labels, entities)


def _one_text(value: Any, field: str, where: str, allowed: str = "a text that is not empty") -> str:
    hint = " It is the unit of independence: one name for all pairs of one sentence pattern." if field == "template" else ""
    if not isinstance(value, str) or not value:
        raise TaskError(f"{where}, field {field!r}: got {_show(value)}; allowed: {allowed}.{hint}")
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise TaskError(f"{where}, field {field!r}: half of a surrogate pair in {_show(value)}; allowed: Unicode text.")
    return value


def _texts(row: dict[str, Any], field: str, where: str) -> tuple[str, ...]:
    value = row.get(field)
    items = value if isinstance(value, list) and value else [value]
    return tuple(_one_text(item, field, where, "a text, or a list of texts, none of them empty") for item in items)


def _labels(row: dict[str, Any], where: str) -> dict[str, Any]:
    labels = row.get("labels") or {}
    if not isinstance(labels, dict):
        raise TaskError(f"{where}, field 'labels': got {_show(labels)}; allowed: an object of names and offsets.")
    return labels


def _offsets(name: str, value: Any, texts: tuple[str, str], where: str) -> tuple[int, int]:
    offsets = value if isinstance(value, list) else [value, value]
    fits = len(offsets) == 2 and all(type(at) is int and 0 <= at < len(text) for at, text in zip(offsets, texts, strict=False))
    if not fits:
        raise TaskError(f"{where}, field 'labels': {name!r} is {_show(value)}; allowed: the offset of a character in both"
                        " texts, or [offset in clean, offset in corrupted].")  # fmt: skip
    return offsets[0], offsets[1]


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
