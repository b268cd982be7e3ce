"""Opening the database of an atlas: one writer, many readers, a clear error rather than corruption.

1. The database is opened for each operation and closed after it, so that one process can write while
   others read. A process that finds it locked waits up to `patience` seconds, then says who holds it.
2. Inside `with atlas:` it is opened once, for reading until the first write; others wait until the end, so
   such a block is for many short operations, never for a measurement. The lock is DuckDB's own in both
   cases, and every write is its own transaction: a longer block holds the lock longer, and changes nothing else.
3. To open it is to attach the file to an engine that the process keeps, to close it is to detach it: the start of
   an engine takes longer than most queries.
4. The ledger's head is kept in a table and, after the commit, in the file `ledger.head`.
"""

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Self, TypeVar

import duckdb
from duckdb import DuckDBPyConnection as Connection

from assay.atlas import index
from assay.atlas.migrations import NEWEST, migrate, version_of
from assay.errors import StoreError, TamperedError
from assay.files import write_file
from assay.records import canonical

FILE = "atlas.duckdb"
HEAD = "ledger.head"
MEMO = 8  # records that a block remembers
T = TypeVar("T")
# A query of some seconds draws on standard output, and with more than one thread does not always see Ctrl-C (DuckDB 2.0).
QUIET = "SET enable_progress_bar = false; SET threads = 1"
_IN_PROCESS, _STARTING = threading.RLock(), threading.Lock()
_HELD: dict[Path, "_Held"] = {}  # databases that this process has open: one operation, or a whole `with atlas:` block
_NAMES = itertools.count()


class _Held:
    """A database that stays open until the outermost block ends."""

    def __init__(self) -> None:
        self.depth = 0
        self.db: Connection | None = None
        self.read_only = True
        self.name = ""
        self.memo: dict[Any, Any] = {}  # what was read since it was opened or last written

    def open(self, file: Path, read_only: bool) -> None:
        """Attach a file to the kept engine, under a name of its own, and use its tables."""
        name, place = f"atlas_{next(_NAMES)}", str(file).replace("'", "''")
        self.db, self.name, self.read_only = new_cursor(), name, read_only
        try:
            self.db.execute(f"ATTACH '{place}' AS {name}{' (READ_ONLY)' if read_only else ''}")
            self.db.execute(f"USE {name}")
        except BaseException:  # Ctrl-C too: a file that stays attached could not be opened again
            self.close()
            raise

    def close(self) -> None:
        """Let go of the file. An engine that cannot is given up, and the file with it."""
        self.memo.clear()
        db, self.db = self.db, None
        if db is None:
            return
        try:
            db.execute("USE memory")
            db.execute(f"DETACH DATABASE IF EXISTS {self.name}")
        except duckdb.Error:
            _engine.cache_clear()
        finally:
            db.close()


class Database:
    """The database file of one atlas. Nothing is opened or made before it is used."""

    def __init__(self, path: str | Path = "./atlas", *, patience: float = 10.0) -> None:
        self.path = Path(path)
        self.patience = patience

    def __enter__(self) -> Self:
        _IN_PROCESS.acquire()
        _HELD.setdefault(self._file, _Held()).depth += 1
        return self

    def __exit__(self, *error: object) -> None:
        held = _HELD[self._file]
        held.depth -= 1
        if held.depth == 0:
            del _HELD[self._file]
            held.close()
        _IN_PROCESS.release()

    @property
    def _file(self) -> Path:
        return (self.path / FILE).absolute()

    # opening ---------------------------------------------------------------------------------

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A read-only connection. Raises StoreError when there is no atlas, or it cannot be read."""
        if not self._file.is_file():
            raise StoreError(f"atlas {self.path}: there is none here. State a claim first, or give --atlas DIR.")
        with _IN_PROCESS:
            with self._open(read_only=True) as db:
                version = self._version(db)
                if version == NEWEST:
                    yield db
                    return
            self._check_version(version)
            with self.writing():
                pass  # brings an older atlas up to date
            with self._open(read_only=True) as db:
                yield db

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A connection inside one transaction; makes or updates the atlas when needed."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"atlas {self.path}: cannot be made ({error.strerror}).") from error
        with _IN_PROCESS:
            with self._open(read_only=False) as db:
                self._check_version(version_of(db))
                migrate(db)
                db.execute("BEGIN")
                self._forget()
                try:
                    yield db
                    head = index.head_of(db)
                    db.execute("COMMIT")
                except BaseException:
                    db.execute("ROLLBACK")
                    raise
                finally:
                    self._forget()
            if head is not None:
                write_file(self.path / HEAD, canonical(head).encode())

    @contextmanager
    def _open(self, read_only: bool) -> Iterator[Connection]:
        """A connection for one operation; the one that is held, where there is one."""
        with self:
            held = _HELD[self._file]
            if held.db is None or (held.read_only and not read_only):
                held.close()
                with interrupts():
                    self._patiently(lambda: held.open(self._file, read_only))
            assert held.db is not None
            with self._readable():
                yield held.db

    @contextmanager
    def _readable(self) -> Iterator[None]:
        """Raises TamperedError where the file's content is not what this program wrote: blocks whose checksums are wrong,
        tables that are gone, columns of other types; StoreError where memory or disk are full."""
        try:
            with interrupts():
                yield
        except duckdb.Error as error:
            told = _first_line(error)
            if isinstance(error, duckdb.OutOfMemoryException) or "write" in told:
                raise StoreError(f"atlas {self.path}: {FILE} cannot be used: {told}") from error
            raise TamperedError(f"atlas {self.path}: {FILE} is damaged, or was changed by another program ({told})."
                                " Restore the atlas from a copy.") from error  # fmt: skip

    def _once(self, key: Any, read: Callable[[Connection], T]) -> T:
        """What `read` finds; inside a `with atlas:` block that was not written to since, what it found before."""
        with self.reading() as db:
            memo = _HELD[self._file].memo
            if key not in memo:
                if len(memo) >= MEMO:
                    memo.clear()
                memo[key] = read(db)
            return memo[key]

    def _version(self, db: Connection) -> int:
        """The version of the schema; asked once while the file is held open and not written."""
        memo = _HELD[self._file].memo
        if "version" not in memo:
            memo["version"] = version_of(db)
        return memo["version"]

    def _forget(self) -> None:
        _HELD[self._file].memo.clear()

    def _patiently(self, connect: Callable[[], T]) -> T:
        """What opens the file, tried again while another process holds it."""
        deadline = time.monotonic() + self.patience
        while True:
            try:
                return connect()
            except duckdb.IOException as error:
                if "lock" not in str(error):
                    raise StoreError(f"atlas {self.path}: {FILE} cannot be opened: {_first_line(error)}") from error
                if time.monotonic() > deadline:
                    raise StoreError(
                        f"atlas {self.path} is being written by another process: {_first_line(error)}."
                        " Wait until it is done or end it, or give another --atlas DIR."
                    ) from error
                time.sleep(0.05)
            except duckdb.Error as error:
                raise StoreError(f"atlas {self.path}: {FILE} cannot be opened: {_first_line(error)}") from error

    def _check_version(self, version: int) -> None:
        if version > NEWEST:
            raise StoreError(f"atlas {self.path} has schema version {version}; this Assay knows up to {NEWEST}."
                             " Update Assay.")  # fmt: skip

    # head ------------------------------------------------------------------------------------

    def _head_in_file(self) -> dict[str, Any] | None:
        try:
            found = json.loads((self.path / HEAD).read_text())
            return {"count": int(found["count"]), "hash": str(found["hash"])}
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"atlas {self.path}: {HEAD} is not readable ({error}).") from error


@contextmanager
def engine() -> Iterator[Connection]:
    """A cursor of the one engine in memory that a process keeps."""
    db = new_cursor()
    try:
        with interrupts():
            yield db
    finally:
        db.close()


def new_cursor() -> Connection:
    """A connection to the kept engine, to be closed by the caller."""
    with _STARTING:
        db = _engine().cursor()
    db.execute(QUIET)
    return db


def start_engine() -> None:
    """Start the engine now; that takes longer than a page that needs it."""
    with engine():
        pass


@cache
def _engine() -> Connection:
    return duckdb.connect(config={"threads": 1})


@contextmanager
def interrupts() -> Iterator[None]:
    """Ctrl-C during a query reaches Python as DuckDB's own error; here it is KeyboardInterrupt again."""
    try:
        yield
    except RuntimeError as error:
        if str(error) == "Query interrupted":
            raise KeyboardInterrupt from error
        raise


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0].split(". See also")[0]
