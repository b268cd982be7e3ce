"""One's own task from a file: JSON Lines or CSV, one pair a line.

    {"clean": "...", "corrupted": "...", "answer": " Mary", "foil": " John", "template": "a name for it"}

Answer and foil are written as they follow the prompt, leading space included; in JSON each may be a
list. The template is the unit of independence: give pairs made from one sentence pattern the same
one. JSON lines may have two more fields: "labels", {"subject": [offset in clean, offset in corrupted]}
(offsets count characters), and "entities", the list of content words. Other fields are ignored.

Files are data: their size is limited, every field is checked, and an error names line and field.
"""

from pathlib import Path
from typing import Any

from assay.data.rows import LARGEST, SUFFIXES, Layout, one_text, read_rows, show
from assay.errors import TaskError
from assay.records import Pair

__all__ = ["FIELDS", "LARGEST", "SUFFIXES", "read_task"]
FIELDS = ("clean", "corrupted", "answer", "foil", "template")
UNIT = " It is the unit of independence: one name for all pairs of one sentence pattern."


def read_task(path: Path) -> list[Pair]:
    """All pairs of a file. Raises TaskError, naming line and field, for anything that does not fit."""
    layout = Layout("task", "pair", FIELDS, largest=LARGEST)
    return [_pair(row, layout.where(path, line)) for line, row in read_rows(path, layout)]


def _pair(row: dict[str, Any], where: str) -> Pair:
    answers, foils = (_texts(row, name, where) for name in ("answer", "foil"))
    clean, corrupted = (one_text(row.get(name), name, where) for name in ("clean", "corrupted"))
    template = one_text(row.get("template"), "template", where, hint=UNIT)
    labels = {name: _offsets(name, at, (clean, corrupted), where) for name, at in _labels(row, where).items()}
    entities = _texts(row, "entities", where) if row.get("entities") else ()
    return Pair(clean, corrupted, answers, foils, template, labels, entities)


def _texts(row: dict[str, Any], field: str, where: str) -> tuple[str, ...]:
    value = row.get(field)
    items = value if isinstance(value, list) and value else [value]
    return tuple(one_text(item, field, where, "a text, or a list of texts, none of them empty") for item in items)


def _labels(row: dict[str, Any], where: str) -> dict[str, Any]:
    labels = row.get("labels") or {}
    if not isinstance(labels, dict):
        raise TaskError(f"{where}, field 'labels': got {show(labels)}; allowed: an object of names and offsets.")
    return labels


def _offsets(name: str, value: Any, texts: tuple[str, str], where: str) -> tuple[int, int]:
    offsets = value if isinstance(value, list) else [value, value]
    fits = len(offsets) == 2 and all(type(at) is int and 0 <= at < len(text) for at, text in zip(offsets, texts, strict=False))
    if not fits:
        raise TaskError(f"{where}, field 'labels': {name!r} is {show(value)}; allowed: the offset of a character in both"
                        " texts, or [offset in clean, offset in corrupted].")  # fmt: skip
    return offsets[0], offsets[1]
