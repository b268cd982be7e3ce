"""Writing files: either the whole new file or the old one, never half of one, here or in an object store.

1. Here: written beside, then renamed.
2. In an object store (`s3://BUCKET/FOLDER`, or what else fsspec knows): one put, which is there whole or not at all.
   Listings are not cached, so that what another process wrote is seen.
"""

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any, cast

from assay.errors import StoreError, bad_argument

EXTRA = 'pip install "assay[scale]"'


def folder_of(place: str | Path) -> Path:
    """A folder from what a user gives: a path, or `PROTOCOL://...`, which behaves like one.

    Raises UsageError for a protocol that is not known or whose client is not installed.
    """
    text = str(place)
    if "://" not in text:
        return Path(place)
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


def sha256_of(file: Path) -> str:
    """Of a file here or there, read piece by piece."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()  # type: ignore[arg-type]


def write_file(path: Path, content: bytes) -> None:
    """Write beside, then rename; folders are made. Raises StoreError when it cannot be written."""
    if is_remote(path):
        _put(path, content)
        return
    try:
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


def _put(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except Exception as error:  # what a store's client raises is its own
        raise StoreError(f"{path}: cannot be written ({error}). Check the bucket, the keys and the address.") from error
