"""The cache of converted models: directories that are whole, or not there.

1. A directory is built beside its final place under a lock and renamed: a killed run leaves only a
   hidden temporary folder, which the next run removes.
2. `manifest.json` inside says what it was made from, and lists size and sha256 of every file.
3. Each use compares all sizes, and the sha256 of files up to 16 MiB. A damaged directory is said,
   and built again. Damage inside a larger file that keeps its size is found by `deep=True` only.

This module does not import torch, so that listing models is quick.
"""

import hashlib
import importlib.metadata
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from assay.errors import ModelError

LOG = logging.getLogger("assay")
FORMAT = 1  # of manifest.json and of the conversion; raise it to have every cache built again
HASH_ALWAYS = (
    16 * 2**20
)  # bytes; larger files are hashed when written and by check_folder(deep=True)


def say(message: str) -> None:
    """One line of progress on stderr; silent when the logger "assay" is set above INFO."""
    if LOG.level <= logging.INFO:
        sys.stderr.write(f"assay: {message}\n")


def cache_dir() -> Path:
    """Folder of what can be made again: $ASSAY_CACHE, $XDG_CACHE_HOME/assay or ~/.cache/assay."""
    if chosen := os.environ.get("ASSAY_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "assay"


def models_dir() -> Path:
    """Converted models; one folder per major `transformers`, whose config files differ."""
    major = importlib.metadata.version("transformers").partition(".")[0]
    return cache_dir() / "models" / f"transformers-{major}"


def ready_folder(key: str, sha256: str) -> Path | None:
    """The converted folder of that key if it is whole and made from those bytes."""
    folder = models_dir() / key
    manifest = read_manifest(folder)
    same = manifest is not None and (manifest["format"], manifest["sha256"]) == (FORMAT, sha256)
    return folder if same and check_folder(folder) is None else None


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """What a converted folder says about itself; None when it is not one, or is unreadable."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    known = isinstance(manifest, dict) and {"assay", "format", "sha256", "files"} <= set(manifest)
    return manifest if known else None


def check_folder(folder: Path, deep: bool = False) -> str | None:
    """None when a converted folder is as it was written, else what is wrong.

    Compares every size, and the sha256 of files up to 16 MiB; of all files when `deep`.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return "manifest.json is missing or unreadable"
    for name, expected in manifest["files"].items():
        file = folder / name
        size = file.stat().st_size if file.is_file() else -1
        if size != expected["size"]:
            got = "is missing" if size < 0 else f"has {size} bytes"
            return f"{name} {got}, expected {expected['size']} bytes"
        if (deep or size <= HASH_ALWAYS) and (got := file_sha256(file)) != expected["sha256"]:
            return f"{name} has sha256 {got}, expected {expected['sha256']}"
    return None


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_space(folder: Path, n_bytes: int, what: str) -> None:
    """ModelError unless the disk under `folder` has room for `n_bytes`."""
    free = shutil.disk_usage(folder).free
    if free < n_bytes:
        raise ModelError(
            f"{what} needs {n_bytes / 1e9:.1f} GB in {cache_dir()}; {free / 1e9:.1f} GB are free. "
            f"Free some, or set ASSAY_CACHE to a folder on another disk."
        )


def cached(key: str, manifest: dict[str, Any], build: Callable[[Path, Path], int]) -> Path:
    """The folder `key` of the cache; `build(work, folder)` fills it when it is not there whole."""
    if ready := ready_folder(key, manifest["sha256"]):
        return ready
    target = models_dir() / key
    try:
        with _locked(target):
            if ready := ready_folder(key, manifest["sha256"]):
                return ready  # another process made it while we waited
            if target.exists():
                wrong = check_folder(target) or "made from other bytes"
                say(f"{target}: {wrong}; building it again")
            for stale in target.parent.glob(f".{key}.tmp-*"):
                shutil.rmtree(stale)  # left by a killed run: the lock says nobody is at work
            with tempfile.TemporaryDirectory(prefix=f".{key}.tmp-", dir=target.parent) as work:
                folder = Path(work) / "model"
                folder.mkdir()
                params = build(Path(work), folder)
                write_manifest(folder, {**manifest, "params": params})
                if target.exists():
                    os.replace(target, Path(work) / "old")
                os.replace(folder, target)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"Cannot write the model cache {target}: {error}. "
            f"Set ASSAY_CACHE to a folder that can be written."
        ) from error
    say(f"{key} is in {target}")
    return target


def write_manifest(folder: Path, facts: dict[str, Any]) -> None:
    """Record what `folder` was made from, and size and sha256 of each file in it."""
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors writes 0600; a cache may be shared
    files = {
        file.name: {"size": file.stat().st_size, "sha256": file_sha256(file)}
        for file in sorted(folder.iterdir())
    }
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    manifest = {"assay": "model", "format": FORMAT, **facts, "made_with": versions, "files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """One builder at a time; the system frees the lock of a process that dies."""
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(target.parent / f".{target.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"another process is converting {target.name}; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
