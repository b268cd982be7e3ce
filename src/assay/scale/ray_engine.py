"""Jobs on Ray: the same `make` and jobs as in one process, in workers of a cluster.

1. A worker is an actor that holds what `make()` gave it (a model, opened once) and does one job after the other. It has
   as many threads as this process: sums over other numbers of threads may differ in the last bit. Workers of an engine stay
   for its next run, which gives them something else to hold. Jobs are given only to workers that have started: in a cluster
   with other users some may wait for processors that do not become free.
2. At most `AHEAD` jobs per worker are out at a time, the rest stay in their iterator (back-pressure). Results come as
   they are finished.
3. A worker that dies is replaced, and its jobs are given to others. The answer of a job it had just finished may be lost
   with it: jobs write files, and whoever gets such a job again finds the file there, alone on its worker. A job whose
   workers die `TRIES` times ends the run with its number.
4. What a job raises (an AssayError, a full disk) ends the run as it would in one process.

Ray moves jobs and results between processes with pickle; nothing of it is kept in a file or read from one. A cluster is
trusted by those who use it: whoever reaches its port runs code there.
"""

import logging
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from assay.errors import StoreError, UsageError, bad_argument
from assay.files import EXTRA

AHEAD, TRIES = 2, 3
PATIENCE = 30.0  # seconds until it is said that workers have not started
LOCAL, SCHEME = "ray", "ray://"


@dataclass(frozen=True)
class RayEngine:
    """Workers on Ray. `address`: None for a cluster of its own on this machine, "auto", HOST:PORT, or ray://HOST:PORT.

    `workers`: None for as many as the cluster has processors for, `threads` each (and `gpus`). `note`: is told of workers
    that do not start.
    """

    address: str | None = None
    workers: int | None = None
    threads: int = field(default_factory=torch.get_num_threads)
    gpus: int = 0
    note: Callable[[str], Any] = field(default=logging.getLogger(__name__).warning, compare=False, repr=False)
    crew: list[Any] = field(default_factory=list, compare=False, repr=False)  # workers that are there
    told: dict[str, str] = field(default_factory=dict, compare=False, repr=False)  # their environment

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise bad_argument("workers", self.workers, "1 or more")

    def run(self, make: Callable[[], Callable[[Any], Any]], jobs: Iterable[Any]) -> Iterator[Any]:
        """Results of all jobs, as they are finished. Raises StoreError for a job that kills its workers."""
        ray = connect(self.address, self.crew)
        if (environment := self._environment()) != self.told:
            for worker in self.crew:
                ray.kill(worker)
            self.crew.clear()
            self.told.clear()
            self.told.update(environment)
        options = {"num_cpus": self.threads, "num_gpus": self.gpus, "runtime_env": {"env_vars": environment}}
        actor = ray.remote(**options)(_Worker)
        for _ in range(self._size(ray) - len(self.crew)):
            self.crew.append(actor.remote(self.threads))
        pool = _Pool(ray, lambda: actor.remote(self.threads), self.crew, ray.put(_Made(make)), self.note)
        try:
            yield from pool.results(iter(jobs))
        finally:
            pool.close()

    def _size(self, ray: Any) -> int:
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        fit = room(machines, self.threads, self.gpus)
        if fit < 1:
            have = "; ".join(f"{each.get('CPU', 0):g} processors, {each.get('GPU', 0):g} GPUs" for each in machines)
            raise bad_argument("--engine", f"a cluster of {len(machines)} machines ({have})",
                               f"one of {self.threads} processors, {self.gpus} GPUs for one worker",
                               "Set OMP_NUM_THREADS lower for smaller workers.")  # fmt: skip
        if (self.workers or fit) > fit:
            raise bad_argument("--workers", self.workers, f"1 to {fit}, which is what fits",
                               f"Each takes {self.threads} processors; set OMP_NUM_THREADS lower.")  # fmt: skip
        return self.workers or fit

    def _environment(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in os.environ if name.startswith(("ASSAY_", "HF_", "AWS_"))}
        if "ASSAY_CACHE" in kept:
            kept["ASSAY_CACHE"] = os.path.abspath(kept["ASSAY_CACHE"])  # workers are in another folder
        return {**kept, "OMP_NUM_THREADS": str(self.threads)}


def room(machines: Iterable[Mapping[str, float]], threads: int, gpus: int = 0) -> int:
    """How many workers of so many threads and GPUs fit: each is on one machine."""

    def fit(have: Mapping[str, float]) -> int:
        by_threads = int(have.get("CPU", 0)) // threads
        return min(by_threads, int(have.get("GPU", 0)) // gpus) if gpus else by_threads

    return sum(map(fit, machines))


def engine_of(
    text: str | None, device: str = "cpu", workers: int | None = None, note: Callable[[str], Any] | None = None
) -> RayEngine | None:
    """From `--engine`: None for one process, ray, or ray://HOST:PORT. Raises UsageError for others."""
    if text is None:
        if workers is not None:
            raise bad_argument("--workers", workers, "with --engine ray")
        return None
    if text != LOCAL and not text.startswith(SCHEME):
        raise bad_argument("--engine", text, "ray, or ray://HOST:PORT")
    found = RayEngine(None if text == LOCAL else text, workers, gpus=int(device.startswith("cuda")))
    _ray()
    return found if note is None else replace(found, note=note)


def connect(address: str | None, crew: list[Any]) -> Any:
    """The ray module, connected. A cluster that is there already is used again; without one nobody is left of a crew."""
    ray = _ray()
    if ray.is_initialized():
        return ray
    crew.clear()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if address is None:
            ray.init(address="local", include_dashboard=False, num_cpus=os.cpu_count(), **quiet)  # whatever RAY_ADDRESS says
        else:
            ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        reason = str(error).strip().partition("\n")[0]
        if address is None:
            raise UsageError(f"--engine: Ray cannot start on this machine ({reason}). Give the address of a cluster that runs,"
                             " or leave --engine out.") from error  # fmt: skip
        raise bad_argument("--engine", address, "ray, or the address of a cluster that runs",
                           f"{reason}. Start one: ray start --head. One that wants a token: RAY_AUTH_MODE=token, and its token"
                           " in RAY_AUTH_TOKEN.") from error  # fmt: skip
    return ray


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise UsageError(f"--engine: ray is not installed; allowed: with it, or without --engine. {EXTRA}") from error
    return ray


class _Made:
    """Wraps `make`, so that workers get it as one object that is stored once."""

    def __init__(self, make: Callable[[], Callable[[Any], Any]]) -> None:
        self.make = make


class _Worker:
    """One process: makes what it works with once, then does jobs."""

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)
        self.held, self.work = "", None

    def ready(self) -> None:
        """Answered when the worker has started."""

    def do(self, made: list[Any], job: Any) -> Any:
        """`made`: the stored _Made, in a list so that it comes over only when it is another one."""
        if self.held != made[0].hex():
            self.work = None  # let go of the last before the next is made
            self.work = _ray().get(made[0]).make()
            self.held = made[0].hex()
        assert self.work is not None
        return self.work(job)


class _Pool:
    """Workers and what they are at."""

    def __init__(
        self, ray: Any, start: Callable[[], Any], workers: list[Any], made: Any, note: Callable[[str], Any]
    ) -> None:  # fmt: skip
        self.ray, self.start, self.workers, self.made, self.note = ray, start, workers, [made], note
        self.starting = {worker.ready.remote(): worker for worker in workers}
        self.failed, self.due = 0, time.monotonic() + PATIENCE  # when it is said that workers have not started
        self.out: dict[Any, tuple[Any, Any, int]] = {}  # reference: (worker, job, times tried)
        self.again: deque[tuple[Any, int]] = deque()

    def results(self, jobs: Iterator[Any]) -> Iterator[Any]:
        while True:
            waiting = {id(worker) for worker in self.starting.values()}
            for worker in self.workers:
                while id(worker) not in waiting and self._free(worker) and (next_ := self._next(jobs)):
                    self.out[worker.do.remote(self.made, next_[0])] = (worker, *next_)
            if not self.out and not self._left(jobs):
                return
            told = not self.starting or self.due == math.inf
            patience = None if told else max(0.0, self.due - time.monotonic())
            for reference in self.ray.wait([*self.starting, *self.out], num_returns=1, timeout=patience)[0]:
                if reference in self.starting:
                    self._started(reference)
                else:
                    yield from self._taken(reference)
            if self.starting and time.monotonic() >= self.due:
                self.note(f"{len(self.workers) - len(self.starting)} of {len(self.workers)} workers have started; the others"
                          " wait for processors or memory of the cluster")  # fmt: skip
                self.due = math.inf

    def close(self) -> None:
        """Workers that are still at something are ended; the others stay."""
        busy = {id(worker): worker for worker, _, _ in self.out.values()}
        self.workers[:] = [worker for worker in self.workers if id(worker) not in busy]
        for worker in busy.values():
            self.ray.kill(worker)

    def _free(self, worker: Any) -> bool:
        """Whether it may get another job. One at which a worker died is alone with its next, so that blame is exact."""
        tried = [times for holder, _, times in self.out.values() if holder is worker]
        suspect = bool(self.again) and self.again[0][1] > 0
        return len(tried) < AHEAD and not any(tried) and not (tried and suspect)

    def _next(self, jobs: Iterator[Any]) -> tuple[Any, int] | None:
        if self.again:
            return self.again.popleft()
        for job in jobs:
            return job, 0
        return None

    def _left(self, jobs: Iterator[Any]) -> bool:
        """Whether there is a job that nobody is at."""
        if not self.again and (found := self._next(jobs)):
            self.again.append(found)
        return bool(self.again)

    def _started(self, reference: Any) -> None:
        """A worker that may get jobs now, or another one in its place."""
        worker = self.starting.pop(reference)
        try:
            self.ray.get(reference)
            self.failed = 0
        except self.ray.exceptions.RayError as error:
            self.failed += 1
            lines = str(error).strip().splitlines()
            if "creation task" in lines[0] or self.failed == TRIES:
                raise StoreError(f"--engine: workers cannot start ({lines[-1]}). They need this process's packages.") from None
            self._replace(worker)

    def _replace(self, worker: Any) -> None:
        new = self.workers[self.workers.index(worker)] = self.start()
        self.starting[new.ready.remote()] = new

    def _taken(self, reference: Any) -> Iterator[Any]:
        """The result of a job; where its worker died, what else that worker had finished, and all its jobs again."""
        worker = self.out[reference][0]
        try:
            yield self._got(reference)
            return
        except self.ray.exceptions.RayError as error:
            reason = str(error).strip().partition("\n")[0]
        self._replace(worker)
        blamed = False
        for each in [one for one, (holder, _, _) in self.out.items() if holder is worker]:  # in the order they were given
            _, job, tried = self.out[each]
            try:
                yield self._got(each)
            except self.ray.exceptions.RayError:
                tried, blamed = tried + (not blamed), True  # it was at the first of them; the others only waited
                if tried == TRIES:
                    raise StoreError(f"job {getattr(job, 'number', job)}: {TRIES} workers died at it ({reason}). Look at"
                                     " their memory.") from None  # fmt: skip
                self.again.append((job, tried))
                del self.out[each]

    def _got(self, reference: Any) -> Any:
        try:
            found = self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:
            raise error.cause or error from None
        del self.out[reference]
        return found
