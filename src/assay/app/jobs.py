"""Jobs: verbs that take long, in the background.

1. A job is a file `jobs/ID.json` in the atlas (verb, arguments, state, progress, error) and, when it is done, `ID.result.json`.
   States: queued, running, then done, failed, cancelled or interrupted.
2. One thread runs them one after another, since they share one model and two cores.
3. To cancel sets a mark that the verb meets at its next step of progress. To resume runs the same call again: verbs keep what
   is finished, so it goes on from there. Role and arguments are checked again, and the audit log has both.
4. A server holds a lock file as long as it lives. A job that is running in the files, and whose server holds its lock no more,
   was interrupted.
5. Who watches a job gets its events in order: `progress`, `piece` (generated text), `blocks`, and one last event named as the
   state the job ends in.
"""

import contextlib
import json
import re
import secrets
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from assay.app.arguments import refuse
from assay.app.documents import clean
from assay.app.verbs import Cancelled, Report, Result, run_verb
from assay.errors import AssayError, StoreError, UsageError, bad_argument, missing
from assay.files import write_file

if TYPE_CHECKING:
    from assay.app.workspace import Workspace

FOLDER = "jobs"
IDS = re.compile(r"\d{8}-\d{6}-[0-9a-f]{8}")
OPEN, AGAIN = ("queued", "running"), ("cancelled", "interrupted", "failed")
MOST_QUEUED, MOST_LISTED, MOST_EVENTS, MOST_KEPT = 20, 200, 5000, 50
EVERY = 0.5  # seconds between two writings of progress
LARGEST = 64 << 20  # bytes of a result that is kept


class TooMany(UsageError):
    """More jobs are waiting than this server takes."""


@dataclass
class Job:
    """A call of a long verb and how far it is. `server`: the one that runs it."""

    id: str
    verb: str
    arguments: dict[str, Any]
    state: str = "queued"
    message: str = ""
    done: int = 0
    total: int = 0
    made: str = ""
    started: str = ""
    ended: str = ""
    role: str = ""
    actor: str = ""
    server: str = ""
    error: dict[str, str] | None = None

    def to_json(self) -> dict[str, Any]:
        """What is told of it; which server runs it is nobody's business."""
        return {key: value for key, value in vars(self).items() if key != "server"}


@dataclass
class _Live:
    """A job of this process, with its events. `over`: its last event was told."""

    job: Job
    over: bool = False
    stop: threading.Event = field(default_factory=threading.Event)
    events: deque[tuple[int, str, dict[str, Any]]] = field(default_factory=lambda: deque(maxlen=MOST_EVENTS))
    count: int = 0

    def tell(self, name: str, data: dict[str, Any]) -> None:
        self.count += 1
        self.events.append((self.count, name, data))


class Jobs:
    """The jobs of one atlas, and the thread that runs those of this server. `close()` ends it."""

    def __init__(self, workspace: "Workspace") -> None:
        self.workspace = workspace
        self.folder = workspace.atlas / FOLDER
        self.server = secrets.token_hex(8)
        self._own: FileLock | None = None
        self._live: dict[str, _Live] = {}
        self._queue: deque[str] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._thread: threading.Thread | None = None

    # asking ----------------------------------------------------------------------------------

    def add(self, verb: str, arguments: Mapping[str, Any]) -> Job:
        """Queue a call. Raises `TooMany`, StoreError."""
        now = datetime.now(UTC)
        job = Job(f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(4)}", verb, clean(dict(arguments)), made=_now(),
                  role=self.workspace.role, actor=self.workspace.actor)  # fmt: skip
        return self._enqueue(job)

    def listing(self) -> list[Job]:
        """Jobs of the atlas, newest first."""
        paths = sorted((path for path in self.folder.glob("*.json") if IDS.fullmatch(path.stem)), reverse=True)
        found = []
        for path in paths[:MOST_LISTED]:
            with contextlib.suppress(StoreError, UsageError):  # a damaged file hides no other job
                found.append(self.get(path.stem))
        return found

    def get(self, name: str) -> Job:
        """A job by its id. Raises UsageError for an unknown one, StoreError for one that cannot be read."""
        if name in self._live:
            return self._live[name].job
        path = self.folder / f"{name}.json"
        if not IDS.fullmatch(name) or not path.is_file():
            raise missing("job", name[:80], "the id of a job of this atlas")
        try:
            job = Job(**json.loads(path.read_bytes()))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise StoreError(f"job {name}: {path} cannot be read ({error}). Delete it.") from error
        if job.state in OPEN and not self._runs(job.server):
            job.state, job.message = "interrupted", "The server ended before it was done."
            self._write(job)
        return job

    def result(self, name: str) -> Result | None:
        """The result of a job that is done; None for another. Raises StoreError for one that cannot be read."""
        if self.get(name).state != "done":
            return None
        path = self.folder / f"{name}.result.json"
        try:
            return json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise StoreError(f"job {name}: its result cannot be read ({error}). Run it again.") from error

    def cancel(self, name: str) -> Job:
        """Ask a job to stop. Raises UsageError for one that is not waiting or running here."""
        with self._changed:
            job = self.get(name)
            live = self._live.get(name)
            if live is None or job.state not in OPEN:
                raise bad_argument("job", f"{name} ({job.state})", "one that is queued or running in this server")
            live.stop.set()
            if job.state == "queued":
                self._queue.remove(name)
                self._end(live, "cancelled")
        self.workspace.log("job cancel", {"job": name, "verb": job.verb})
        return job

    def resume(self, name: str) -> Job:
        """Run a job's call again under its id. Raises UsageError for one that is running or done, `TooMany`."""
        with self._changed:
            job = self.get(name)
            if job.state not in AGAIN:
                raise bad_argument("job", f"{name} ({job.state})", f"one that is {', '.join(AGAIN)}")
            self._check_room()  # a job that is refused stays as it was
            self.workspace.log("job resume", {"job": name, "verb": job.verb})
            job.state, job.error, job.message, job.ended = "queued", None, "", ""
            return self._enqueue(job)

    def events(self, name: str, after: int = 0) -> tuple[list[tuple[int, str, dict[str, Any]]], bool]:
        """Events with numbers above `after`, and whether no more will come. A finished job has its last one."""
        job, live = self.get(name), self._live.get(name)
        if live is None:
            return [(after + 1, job.state, self._last(job))], True
        with self._changed:
            return [event for event in live.events if event[0] > after], live.over

    # running ---------------------------------------------------------------------------------

    def close(self, patience: float = 10.0) -> None:
        """Stop what runs, keep what is finished; what was not done is interrupted."""
        with self._changed:
            self._closing = True
            for live in self._live.values():
                live.stop.set()
            for name in list(self._queue):
                self._end(self._live[name], "interrupted")
            self._queue.clear()
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(patience)
        if self._own is not None:
            self._own.release()
            Path(self._own.lock_file).unlink(missing_ok=True)

    def _enqueue(self, job: Job) -> Job:
        with self._changed:
            self._check_room()
            self._hold()
            job.server = self.server
            self._live[job.id] = _Live(job)
            self._write(job)
            self._queue.append(job.id)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="assay-jobs", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        return job

    def _check_room(self) -> None:
        """Raises `TooMany` where no further job is taken."""
        if self._closing:
            raise TooMany("this server is ending; start it again.")
        if len(self._queue) >= MOST_QUEUED:
            raise TooMany(f"{len(self._queue)} jobs are waiting; allowed: {MOST_QUEUED}. Cancel one, or wait.")

    def _hold(self) -> None:
        """The lock that says this server lives, from its first job on."""
        if self._own is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._own = FileLock(self.folder / f".{self.server}.lock", timeout=0)
            self._own.acquire()

    def _runs(self, server: str) -> bool:
        """Whether the server of a job still holds its lock."""
        if server == self.server:
            return False  # its jobs are in `_live`
        path = self.folder / f".{server}.lock"
        if not re.fullmatch("[0-9a-f]{16}", server) or not path.exists():
            return False
        try:
            with FileLock(path, timeout=0):
                pass
        except Timeout:
            return True
        path.unlink(missing_ok=True)
        return False

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._queue and not self._closing:
                    self._changed.wait()
                if self._closing:
                    return
                live = self._live[self._queue.popleft()]
                live.job.state, live.job.started = "running", _now()
                self._write(live.job)
            self._run(live)

    def _run(self, live: _Live) -> None:
        job = live.job
        live.tell("progress", {"done": job.done, "total": job.total, "message": job.message})
        try:
            found = clean(run_verb(self.workspace, job.verb, job.arguments, _JobReport(self, live)))
            content = json.dumps(found, allow_nan=False).encode()
            if len(content) > LARGEST:
                raise StoreError(f"the result of {job.verb} is larger than {LARGEST >> 20} MB. Ask for less.")
            write_file(self.folder / f"{job.id}.result.json", content)
        except Cancelled:
            self._end(live, "interrupted" if self._closing else "cancelled")
        except AssayError as error:
            self._end(live, "failed", refuse(error))
        except Exception as error:  # a defect: named to whoever runs the server, and in short to whoever asked
            traceback.print_exc(file=sys.stderr)
            self._end(live, "failed", {"message": f"{job.verb} failed ({type(error).__name__}); the server's output says why.",
                                       "argument": "", "hint": ""})  # fmt: skip
        else:
            self._end(live, "done")

    def _end(self, live: _Live, state: str, error: dict[str, str] | None = None) -> None:
        job = live.job
        job.error, job.ended = error, _now()
        if state == "done":
            job.done = job.total = max(job.total, job.done)
        job.state = state  # last: who reads it may then ask for the rest
        try:
            self._write(job)
        except StoreError as problem:  # the atlas is gone or full: the job's end is still told
            job.error = job.error or refuse(problem)
        last = self._last(job)
        with self._changed:
            live.tell(state, last)
            live.over = True
            over = [name for name, each in self._live.items() if each.over]
            for name in over[:-MOST_KEPT]:
                del self._live[name]

    def _last(self, job: Job) -> dict[str, Any]:
        """What the last event of a job says."""
        try:
            found = self.result(job.id)
        except StoreError as error:
            return {"error": refuse(error)}
        return {"result": found} if found is not None else {"error": job.error} if job.error else {"state": job.state}

    def _write(self, job: Job) -> None:
        write_file(self.folder / f"{job.id}.json", json.dumps(clean(vars(job)), allow_nan=False).encode())


class _JobReport(Report):
    """Progress of a job: into its record and its events; the place where it meets a mark to stop."""

    def __init__(self, jobs: Jobs, live: _Live) -> None:
        self.jobs, self.live, self.written = jobs, live, time.monotonic()

    def __call__(self, step: int | str = 1, done: int = 0, of: int = 0) -> None:
        job = self.live.job
        if isinstance(step, str):
            job.message, job.done, job.total = step, int(done), int(of or 0)
        else:
            job.done += step
        self._tell("progress", {"done": job.done, "total": job.total, "message": job.message})
        if time.monotonic() - self.written > EVERY:
            self.written = time.monotonic()
            self.jobs._write(job)

    def piece(self, side: str, text: str) -> None:
        self._tell("piece", {"side": side, "text": clean(text)})

    def partial(self, blocks: Sequence[Any]) -> None:
        self._tell("blocks", {"blocks": clean(list(blocks))})

    def _tell(self, name: str, data: dict[str, Any]) -> None:
        if self.live.stop.is_set():
            raise Cancelled
        with self.jobs._changed:
            self.live.tell(name, data)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
