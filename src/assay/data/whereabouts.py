"""Where files and folders are on this machine: claims name a file by its own name and content, not by somebody's folders.

1. A record of a file is {"name", "file", "bytes"}: its name without folders, sha256 of its content, size. A model
   folder and a dictionary have digests of their own.
2. Where it was last seen is kept in the cache of this machine, by content, and in no record.
3. It is looked for where it was last seen, then in the working folder: under its name, then among all files of its
   suffix and size. Only a file of the same content counts. A file of that name with other content is given back
   last, for whoever can say what is different in it.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from assay.errors import ReproduceError, StoreError
from assay.files import write_file
from assay.model.cache import cache_dir

SEEN = "data_files.json"
LOCAL = "local:"
MOST = 1000  # files that are kept in mind


def file_record(path: Path) -> dict[str, Any]:
    """{"name", "file", "bytes"} of a file; where it is is kept in mind on this machine. Raises OSError."""
    found = {"name": path.name, "file": content_of(path), "bytes": path.stat().st_size}
    keep_in_mind(found["file"], path)
    return found


def file_of(record: Mapping[str, Any]) -> str:
    """The path of a recorded file here. Raises ReproduceError when it is nowhere to be found."""
    name = str(record["name"])
    if "file" not in record:  # a record from before files were known by content
        return name
    for path in _places(record):
        if content_of(path) == record["file"]:
            return str(path)
    for path in _named(record):
        return str(path)
    raise ReproduceError(f"file {name}: it is neither where it was last seen nor in this folder (content"
                         f" {str(record['file'])[:12]}). Give it with --file FILE, or run this beside it.")  # fmt: skip


def content_of(path: Path) -> str:
    """SHA-256 of what is in a file, read once as long as it is not changed."""
    found = path.stat()
    return _content(path.resolve(), found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=64)
def _content(path: Path, changed: int, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _places(record: Mapping[str, Any]) -> Iterator[Path]:
    yield from _named(record)
    for path in sorted(Path().glob(f"*{Path(str(record['name'])).suffix}")):
        if path.is_file() and path.stat().st_size == record.get("bytes"):
            yield path


def _named(record: Mapping[str, Any]) -> Iterator[Path]:
    """Where it was last seen, and its name in the working folder."""
    for path in (last_seen(str(record["file"])), Path(Path(str(record["name"])).name)):
        if path is not None and path.is_file():
            yield path


def last_seen(content: str) -> Path | None:
    """Where something of that digest was last seen on this machine."""
    found = _seen().get(content)
    return None if found is None else Path(found)


def keep_in_mind(content: str, path: Path) -> None:
    """Where something of that digest is, the newest last.

    A cache that cannot be written is no reason to stop: a file is then looked for by its name.
    """
    where, seen = str(path.resolve()), _seen()
    if seen.get(content) == where:
        return
    seen.pop(content, None)
    kept = dict([*seen.items(), (content, where)][-MOST:])
    with contextlib.suppress(StoreError):
        write_file(cache_dir() / SEEN, json.dumps(kept).encode())


def placeless(source: str, digest: str) -> str:
    """A model's source as records name it: of a local folder only its own name; where it is is kept in mind."""
    if not source.startswith(LOCAL):
        return source
    folder = Path(source.removeprefix(LOCAL))
    keep_in_mind(digest, folder)
    return f"{LOCAL}{folder.name}"


def _seen() -> dict[str, str]:
    """Content -> path; nothing where the list is missing or damaged."""
    try:
        found = json.loads((cache_dir() / SEEN).read_text())
    except (OSError, ValueError):
        return {}
    return {key: path for key, path in found.items() if isinstance(path, str)} if isinstance(found, dict) else {}
