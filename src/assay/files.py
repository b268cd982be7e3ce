"""Files here or in an object store. Writing leaves either the whole new file or the old one, never half of one.

1. Here: written beside, then renamed.
2. In an object store (`s3://BUCKET/FOLDER`, or what else fsspec knows): one put, which is there whole or not at all.
   Listings are not cached, so that what another process wrote is seen.
3. What a store's client raises is its own: all reading and writing there goes through `reaching`.
"""

import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from assay.errors import StoreError, bad_argument

EXTRA = 'pip install "assay[scale]"'


def folder_of(place: str | Path) -> Path:
    """A folder from what a user gives: a path, or `PROTOCOL://...`, which behaves like one.

    A path is made absolute: other processes, to which it may be sent, work in other folders. Raises UsageError for a
    protocol that is not known or whose client is not installed.
    """
    text = str(place)
    if "://" not in text:
        return Path(place).absolute()
    try:
        from upath import UPath

        found = UPath(text, use_listings_cache=False)
        _ = found.fs  # the client, now
    except (ImportError, ValueError) as error:
        raise bad_argument("folder", text, "a path, or s3://BUCKET/FOLDER with its client installed",
                           f"{error}. {EXTRA}") from error  # fmt: skip
    return cast(Path, found)


def is_remote(place: Any) -> bool:
    """Whether a folder or file is in an object store."""
    return "://" in str(place)


@contextmanager
def reaching(place: Path, what: str = "read") -> Iterator[None]:
    """Around what asks an object store: what its client raises becomes a StoreError. Here errors stay what they are.

    When something is read, it is an answer that there is none, and stays, too.
    """
    try:
        yield
    except Exception as error:
        if not is_remote(place) or (what == "read" and isinstance(error, FileNotFoundError | NotADirectoryError)):
            raise
        raise StoreError(f"{place}: cannot be {what} ({error or type(error).__name__}). Check the bucket, the keys and the"
                         " address.") from error  # fmt: skip


def size_of(file: Path) -> int | None:
    """Bytes of a file here or there; None where there is none."""
    try:
        with reaching(file):
            found = file.stat()  # is_file() would take an error of a store for no
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def names_in(folder: Path) -> list[str]:
    """Of what is in a folder here or there, sorted; none where there is no folder."""
    try:
        with reaching(folder):
            return sorted(file.name for file in folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def read_file(file: Path) -> bytes:
    """All of a file here or there. Raises OSError, StoreError."""
    with reaching(file):
        return file.read_bytes()


def sha256_of(file: Path) -> str:
    """Of a file here or there, read piece by piece."""
    with reaching(file), file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()  # type: ignore[arg-type]


def is_device(path: Path) -> bool:
    """Whether there is a pipe or a device: `/dev/null`, `/dev/stdout`, what a shell makes of `>(...)`."""
    return path.exists() and not path.is_file() and not path.is_dir()


def write_file(path: Path, content: bytes) -> None:
    """Write beside, then rename; folders are made. Raises StoreError when it cannot be written."""
    if is_remote(path):
        with reaching(path, "written"):
            path.write_bytes(content)
        return
    try:
        if is_device(path):  # nothing is renamed over it
            path.write_bytes(content)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise StoreError(f"{path}: cannot be written ({error.strerror or error}). Choose another place.") from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)  # mkstemp's own mode would hide the file from everybody else
        os.replace(name, path)
    except OSError as error:
        os.unlink(name)
        raise StoreError(f"{path}: cannot be written ({error.strerror or error}). Choose another place.") from error
    except BaseException:
        os.unlink(name)
        raise
