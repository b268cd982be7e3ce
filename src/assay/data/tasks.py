"""Tasks: bundled generators of minimal pairs, and one's own from a file.

A bundled task has templates and words of its own for every split (discover, tune, confirm, ood):
no template and no name of one split occurs in another.

`ioi`, indirect-object identification (Wang et al. 2022, arXiv 2211.00593): "Then, Mary and John
went to the store. John gave a book to" -> " Mary". Corruption `swap` makes the indirect object the
second subject, so that the other name becomes right; `abc` brings in a third name.
"""

import csv
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from assay.data.ioi import FRAMES, NAMES, SPLITS
from assay.errors import TaskError, bad_argument
from assay.records import Pair

TASKS = {"ioi": "indirect-object identification: which of two names was not repeated"}
CORRUPTIONS = {"ioi": ("swap", "abc")}
FIELDS = ("clean", "corrupted", "answer", "foil", "template")
LARGEST = 100 * 1024 * 1024


def load_task(
    task: str, split: str = "discover", n: int = 32, seed: int = 0, corruption: str = "swap"
) -> list[Pair]:
    """Pairs of a bundled task, or all pairs of a JSONL or CSV file.

    Raises TaskError for an unknown task or an unreadable file, naming line and field.
    """
    if n < 1:
        raise bad_argument("n", n, "1 or more")
    if task in TASKS:
        if split not in SPLITS:
            raise bad_argument("split", split, ", ".join(SPLITS))
        if corruption not in CORRUPTIONS[task]:
            raise bad_argument("corruption", corruption, ", ".join(CORRUPTIONS[task]))
        return list(_ioi(split, n, seed, corruption))
    if Path(task).suffix in (".jsonl", ".csv") or Path(task).exists():
        return read_task(Path(task))
    raise TaskError(f"task {task!r}: not bundled and no such file; bundled: {', '.join(TASKS)};"
                    " your own: a .jsonl or .csv file.")  # fmt: skip


def _ioi(split: str, n: int, seed: int, corruption: str) -> Iterator[Pair]:
    rng = random.Random(f"{split}-{seed}")
    frames, names = FRAMES[split], NAMES[split]
    for number in range(n):
        frame = frames[number % len(frames)]
        io, s, third = rng.sample(names, 3)
        first, second = (io, s) if (number // len(frames)) % 2 == 0 else (s, io)
        other = io if corruption == "swap" else third
        clean, places = _fill(frame, first, second, s)
        corrupted, _ = _fill(frame, first, second, other)
        where = {"IO": places[0 if first == io else 1], "S1": places[0 if first == s else 1], "S2": places[2]}
        yield Pair(clean, corrupted, (" " + io,), (" " + s,), frame,
                   {key: (at, at) for key, at in where.items()}, (io, s))  # fmt: skip


def _fill(frame: str, a: str, b: str, c: str) -> tuple[str, list[int]]:
    """The sentence, and the character offset of each of its three names."""
    pieces = frame.replace("[A]", "\0").replace("[B]", "\0").replace("[C]", "\0").split("\0")
    text, places = pieces[0], []
    for name, piece in zip((a, b, c), pieces[1:], strict=True):
        places.append(len(text))
        text += name + piece
    return text, places


def read_task(path: Path) -> list[Pair]:
    """Pairs of a JSONL or CSV file with the fields clean, corrupted, answer, foil, template."""
    if not path.is_file():
        raise TaskError(f"task file {path}: no such file.")
    if path.stat().st_size > LARGEST:
        raise TaskError(f"task file {path}: {path.stat().st_size} bytes; allowed: {LARGEST}.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise TaskError(f"task file {path}: byte {error.start} is not UTF-8. Save it as UTF-8.") from error
    rows = _csv_rows(path, text) if path.suffix == ".csv" else _jsonl_rows(path, text)
    pairs = [_pair(path, line, row) for line, row in rows]
    if not pairs:
        raise TaskError(f"task file {path}: it has no pairs. Write one JSON object a line.")
    return pairs


def _jsonl_rows(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    for line, content in enumerate(text.splitlines(), 1):
        if content.strip():
            try:
                yield line, json.loads(content)
            except ValueError as error:
                raise TaskError(f"task file {path}, line {line}: not JSON ({error}).") from error


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    reader = csv.DictReader(text.splitlines())
    for row in reader:
        yield reader.line_num, row


def _pair(path: Path, line: int, row: Any) -> Pair:
    if not isinstance(row, dict):
        raise TaskError(f"task file {path}, line {line}: got {type(row).__name__}; allowed: an object.")
    for name in FIELDS:
        value = row.get(name)
        many = name in ("answer", "foil") and isinstance(value, list) and value
        texts = value if many else [value]
        if not all(isinstance(item, str) and item for item in texts):
            allowed = "a text" + (" or a list of texts" if name in ("answer", "foil") else "")
            hint = " The template is the unit of independence." if name == "template" else ""
            raise TaskError(f"task file {path}, line {line}, field {name!r}: got {value!r};"
                            f" allowed: {allowed}.{hint}")  # fmt: skip
    answers, foils = ([row[k]] if isinstance(row[k], str) else row[k] for k in ("answer", "foil"))
    return Pair(row["clean"], row["corrupted"], tuple(answers), tuple(foils), row["template"])
