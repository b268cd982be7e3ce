"""One's own concept from a file: JSON Lines or CSV, one labelled text a line.

    {"text": "The dog slept.", "label": 1, "group": "The [N] slept."}

Label 1 says the concept is there, 0 that it is not. The group is the unit of independence: one name for all texts
of one sentence pattern, document or author. More fields, all optional:

    position    offset of a character inside the token that is read (default: the last token)
    near_miss   true for a negative that looks like a member
    entities    words that must not be on both sides of a split; default: the word at the position
    document    where the text comes from; texts of one document stay on one side of a split

In CSV, entities are separated by semicolons. Other fields are ignored. Files are data: their size is limited, every
field is checked, and an error names line and field.
"""

import re
from pathlib import Path
from typing import Any

from assay.data.rows import LARGEST, SUFFIXES, Layout, one_text, read_rows, show
from assay.errors import TaskError
from assay.records import Example

__all__ = ["FIELDS", "LARGEST", "OPTIONAL", "SUFFIXES", "is_concept_file", "read_concept"]
FIELDS = ("text", "label", "group")
OPTIONAL = ("position", "near_miss", "entities", "document")
LABELS: dict[Any, int] = {0: 0, 1: 1, "0": 0, "1": 1}
FLAGS: dict[Any, int] = {**LABELS, None: 0, "": 0, "false": 0, "true": 1}
UNIT = " It is the unit of independence: one name for all texts of one sentence pattern or document."
WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


def read_concept(path: Path) -> list[Example]:
    """All examples of a file. Raises TaskError, naming line and field, for anything that does not fit."""
    layout = Layout("concept", "example", FIELDS, OPTIONAL, LARGEST)
    found = [_example(row, layout.where(path, line)) for line, row in read_rows(path, layout)]
    absent = {0, 1} - {example.label for example in found}
    if absent:
        raise TaskError(f"concept file {path}, field 'label': no line has {absent.pop()}; a concept needs texts with 1"
                        " (it is there) and with 0 (it is not).")  # fmt: skip
    return found


def is_concept_file(path: Path) -> bool:
    """Whether the first row has a concept's fields and not a task's. Raises TaskError for an unreadable file."""
    _, first = read_rows(path, Layout("data", "row", (), (*FIELDS, "clean", "corrupted"), LARGEST))[0]
    return "clean" not in first and ("text" in first or "label" in first)


def _example(row: dict[str, Any], where: str) -> Example:
    text = one_text(row.get("text"), "text", where)
    group = one_text(row.get("group"), "group", where, hint=UNIT)
    label = _choice(row.get("label"), LABELS, "label", where, "0 or 1")
    near = _choice(row.get("near_miss"), FLAGS, "near_miss", where, "true or false")
    if near and label:
        raise TaskError(f"{where}, field 'near_miss': got true with label 1; allowed: only with label 0 (a near miss is a"
                        " negative that looks like a member).")  # fmt: skip
    position = _position(row.get("position"), text, where)
    entities = _entities(row.get("entities"), where) or _word_at(text, position)
    document = row.get("document")
    named = () if document in (None, "") else (f"document {one_text(document, 'document', where)}",)
    return Example(text, label, group, (*entities, *named), position, bool(near))


def _choice(value: Any, allowed: dict[Any, int], field: str, where: str, said: str) -> int:
    key = value.strip().lower() if isinstance(value, str) else value
    if isinstance(key, float) or not isinstance(key, str | int | None) or key not in allowed:
        raise TaskError(f"{where}, field {field!r}: got {show(value)}; allowed: {said}.")
    return allowed[key]


def _position(value: Any, text: str, where: str) -> int | None:
    if value is None or value == "":
        return None
    at = int(value) if isinstance(value, str) and value.strip().isdecimal() else value
    if type(at) is not int or not 0 <= at < len(text):
        raise TaskError(f"{where}, field 'position': got {show(value)}; allowed: the offset of a character of the text,"
                        f" 0 to {len(text) - 1}.")  # fmt: skip
    return at


def _entities(value: Any, where: str) -> tuple[str, ...]:
    if value in (None, "", []):
        return ()
    items = [item.strip() for item in value.split(";")] if isinstance(value, str) else value
    if not isinstance(items, list):
        raise TaskError(f"{where}, field 'entities': got {show(value)}; allowed: a list of texts, none of them empty.")
    return tuple(one_text(item, "entities", where, "a list of texts, none of them empty") for item in items)


def _word_at(text: str, position: int | None) -> tuple[str, ...]:
    """The word that holds a character, in lower case; nothing when no position is given."""
    if position is None:
        return ()
    return tuple(word[0].lower() for word in WORD.finditer(text) if word.start() <= position < word.end())
