"""Writing a set of mapped features into an atlas: in blocks, by one writer, visible to readers only when it is whole.

1. Records go into shards (`contexts_store`) in `features/<set>/writing/`. A killed writer leaves its whole shards there; the
   next writer of the same set record goes on after them (`done`), and what readers see is still the old state.
2. `finish` makes from the shards what searches need (`search.build`), renames the folder, and then the file `current`, which
   names the folder that readers use: one rename is the switch.
3. Links (claims, circuits, effects) go into `notes.sqlite`, which outlives the folder. The table `feature_sets` of the
   database lists the sets for other tools; it follows from the folders.
"""

import json
import shutil
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout

from assay.atlas.contexts_store import Block, Shard, pack, write_shard
from assay.atlas.mapped_records import FeatureRecord, SetRecord, record_text, to_text
from assay.atlas.notes import Link, Notes, links_from
from assay.atlas.search import build
from assay.atlas.store import Atlas
from assay.errors import StoreError, UsageError, bad_argument
from assay.files import write_file
from assay.records import digest, plain

FOLDER, CURRENT, ABOUT, WRITING, NOTES = "features", "current", "set.json", "writing", "notes.sqlite"
SHARD = 1024  # features
TRIES = 3  # openings of a set that is replaced meanwhile
Report = Callable[[int], Any]


class MappedWriter:
    """A writer of one set. `done`: features that an earlier, killed writer of the same record had written: give the rest.

        with MappedWriter(atlas, record) as writer:
            writer.add(records[writer.done :])
            writer.finish(summary)

    Raises StoreError when another process writes the same set.
    """

    def __init__(self, atlas: Atlas, record: SetRecord, shard: int = SHARD) -> None:
        if shard < 1:
            raise bad_argument("shard", shard, "1 or more")
        self.atlas, self.record, self.shard = atlas, record, shard
        self.folder = atlas.path / FOLDER / record.id
        self.work = self.folder / WRITING
        self._make(self.folder)
        self._lock = FileLock(self.folder / ".lock", timeout=0)
        try:
            self._lock.acquire()
        except Timeout as error:
            raise StoreError(f"atlas {atlas.path}: set {record.id} is being written by another process."
                             " Wait until it is done or end it.") from error  # fmt: skip
        self._pending: list[FeatureRecord] = []
        self.done = self._resume()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Let others write. What is not finished stays as it is."""
        self._lock.release()

    def _make(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"atlas {self.atlas.path}: {folder} cannot be made ({error.strerror}).") from error

    def _resume(self) -> int:
        """Features in whole shards of an unfinished writing of the same record; a writing of another one is removed."""
        plan = to_text({"set": digest(to_text(replace(self.record, created="", summary={}))), "shard": self.shard}).encode()
        file = self.work / "plan.json"
        if not (file.is_file() and file.read_bytes() == plan):
            shutil.rmtree(self.work, ignore_errors=True)
            write_file(file, plan)
            return 0
        done = 0
        while self._path(done // self.shard).is_file() and Shard(self._path(done // self.shard)).features == self.shard:
            done += self.shard
        for path in self.work.glob("*.safetensors"):
            if int(path.stem) * self.shard >= done:
                path.unlink()  # a last, short shard: its features are given again
        return done

    def _path(self, number: int) -> Path:
        return self.work / f"{number:06d}.safetensors"

    # features --------------------------------------------------------------------------------

    def add(self, features: Iterable[FeatureRecord]) -> None:
        """Features in the order of the set; written to disk a shard at a time."""
        for feature in features:
            self._pending.append(feature)
            if len(self._pending) == self.shard:
                self._flush()

    def add_block(self, block: Block, links: Iterable[Link] = ()) -> None:
        """A whole shard made elsewhere: `shard` features, fewer only in the last. Raises UsageError for another size."""
        if self._pending or len(block.records) > self.shard or self.done % self.shard:
            raise bad_argument("block", f"{len(block.records)} features", f"{self.shard}, after whole shards")
        write_shard(self._path(self.done // self.shard), block)
        Notes(self.folder / NOTES).add(tuple(links))
        self.done += len(block.records)

    def _flush(self) -> None:
        block = pack((record_text(feature), feature.contexts) for feature in self._pending)
        links = [link for feature in self._pending for link in links_from(feature)]
        self._pending = []
        self.add_block(block, links)

    # end -------------------------------------------------------------------------------------

    def finish(self, summary: Mapping[str, Any] | None = None, report: Report | None = None) -> SetRecord:
        """Make the set visible, in place of an older one of the same id. `report` is called with features done.

        Raises UsageError for two features of one name; nothing that readers see has changed then.
        """
        if self._pending:
            self._flush()
        record = replace(self.record, created=self.record.created or _now(), features=self.done,
                         summary=dict(summary if summary is not None else self.record.summary))  # fmt: skip
        build(self.work, record.id, self.done, self.shard, report or (lambda _: None))
        write_file(self.work / ABOUT, to_text({"record": plain(record), "shard": self.shard}).encode())
        (self.work / "plan.json").unlink()
        name = f"{uuid.uuid4().hex[:12]}"
        self.work.rename(self.folder / name)
        write_file(self.folder / CURRENT, name.encode())
        for other in self.folder.iterdir():
            if other.is_dir() and other.name not in (name, WRITING):
                shutil.rmtree(other, ignore_errors=True)
        list_sets(self.atlas)
        self.close()
        return record


def folder_of(atlas: Path, set_id: str) -> Path | None:
    """The folder that readers of a set use now; None where there is none."""
    folder = atlas / FOLDER / set_id
    try:
        return folder / (folder / CURRENT).read_text()
    except (FileNotFoundError, NotADirectoryError):
        return None


def current(atlas: Path, set_id: str) -> tuple[SetRecord, Path, int] | None:
    """The record of a set, the folder that readers use now, and how many features a shard holds; None where there is none.

    Raises StoreError for a folder that is none.
    """
    for _ in range(TRIES):
        folder = folder_of(atlas, set_id)
        if folder is None:
            return None
        try:
            about = json.loads((folder / ABOUT).read_text())
            return SetRecord(**about["record"]), folder, int(about["shard"])
        except FileNotFoundError:  # replaced since
            continue
        except (OSError, ValueError, KeyError, TypeError, UsageError) as error:
            raise StoreError(f"{folder / ABOUT}: is not readable ({error}). Map the model again: assay map MODEL") from error
    raise StoreError(
        f"{atlas / FOLDER / set_id}: the folder that {CURRENT} names is gone. Map the model again: assay map MODEL"
    )


def read_sets(atlas: Path) -> list[tuple[SetRecord, Path, int]]:
    """Every set of an atlas with its folder and the size of its shards, newest first."""
    places = sorted((atlas / FOLDER).glob(f"*/{CURRENT}"))
    found = [held for place in places if (held := current(atlas, place.parent.name)) is not None]
    return sorted(found, key=lambda each: each[0].created, reverse=True)


def list_sets(atlas: Atlas) -> None:
    """Bring the table of sets in line with the folders."""
    sets = read_sets(atlas.path)
    with atlas.writing() as db:
        db.execute("DELETE FROM feature_sets")
        for record, folder, _ in sets:
            db.execute("INSERT INTO feature_sets VALUES (?, ?, ?, ?, ?, ?, ?, ?)", [
                record.id, record.model_digest, record.dictionary_digest, record.site, record.corpus, record.created,
                str(folder.relative_to(atlas.path)), to_text(record)])  # fmt: skip


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
