"""Jobs on Ray: the same `make` and jobs as in one process, in workers of a cluster.

1. A worker is an actor that holds what `make()` gave it (a model, opened once) and does one job after the other. It has
   as many threads as this process: sums over other numbers of threads may differ in the last bit. Workers of an engine stay
   for its next run, which gives them something else to hold.
2. At most `AHEAD` jobs per worker are out at a time, the rest stay in their iterator (back-pressure). Results come as
   they are finished.
3. A worker that dies is replaced, and its jobs are given to others. The answer of a job it had just finished may be lost
   with it: jobs write files, and whoever gets such a job again finds the file there, alone on its worker. A job whose
   workers die `TRIES` times ends the run with its number.
4. What a job raises (an AssayError, a full disk) ends the run as it would in one process.

Ray moves jobs and results between processes with pickle; nothing of it is kept in a file or read from one. A cluster is
trusted by those who use it: whoever reaches its port runs code there.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from assay.errors import StoreError, UsageError, bad_argument
from assay.files import EXTRA

AHEAD, TRIES = 2, 3
LOCAL, SCHEME = "ray", "ray://"


@dataclass(frozen=True)
class RayEngine:
    """Workers on Ray. `address`: None for a cluster of this machine, "auto", HOST:PORT, or ray://HOST:PORT.

    `workers`: None for as many as the cluster has processors (GPUs where `gpus`) for `threads` each.
    """

    address: str | None = None
    workers: int | None = None
    threads: int = field(default_factory=torch.get_num_threads)
    gpus: int = 0
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
        pool = _Pool(ray, lambda: actor.remote(self.threads), self.crew, ray.put(_Made(make)))
        try:
            yield from pool.results(iter(jobs))
        finally:
            pool.close()

    def _size(self, ray: Any) -> int:
        have = ray.cluster_resources()
        fit = int(have.get("GPU", 0)) // self.gpus if self.gpus else int(have.get("CPU", 0)) // self.threads
        if fit < 1:
            raise bad_argument("--engine", f"a cluster with {have.get('CPU', 0):g} processors, {have.get('GPU', 0):g} GPUs",
                               f"{self.gpus} GPUs, {self.threads} processors for one worker",
                               "Set OMP_NUM_THREADS lower for smaller workers.")  # fmt: skip
        if (self.workers or fit) > fit:
            raise bad_argument("--workers", self.workers, f"1 to {fit}, which is what fits",
                               f"Each takes {self.threads} processors; set OMP_NUM_THREADS lower.")  # fmt: skip
        return self.workers or fit

    def _environment(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in os.environ if name.startswith(("ASSAY_", "HF_", "AWS_"))}
        return {**kept, "OMP_NUM_THREADS": str(self.threads)}


def engine_of(text: str | None, device: str = "cpu", workers: int | None = None) -> RayEngine | None:
    """From `--engine`: None for one process, ray, or ray://HOST:PORT. Raises UsageError for others."""
    if text is None:
        if workers is not None:
            raise bad_argument("--workers", workers, "with --engine ray")
        return None
    if text != LOCAL and not text.startswith(SCHEME):
        raise bad_argument("--engine", text, "ray, or ray://HOST:PORT")
    found = RayEngine(None if text == LOCAL else text, workers, gpus=int(device.startswith("cuda")))
    _ray()
    return found


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
            ray.init(include_dashboard=False, num_cpus=os.cpu_count(), **quiet)
        else:
            ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise bad_argument("--engine", address or LOCAL, "ray, or the address of a cluster that runs",
                           f"{str(error).splitlines()[0]}. Start one: ray start --head") from error  # fmt: skip
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

    def __init__(self, ray: Any, start: Callable[[], Any], workers: list[Any], made: Any) -> None:
        self.ray, self.start, self.workers, self.made = ray, start, workers, [made]
        self.out: dict[Any, tuple[Any, Any, int]] = {}  # reference: (worker, job, times tried)
        self.again: deque[tuple[Any, int]] = deque()

    def results(self, jobs: Iterator[Any]) -> Iterator[Any]:
        while True:
            for worker in self.workers:
                while self._free(worker) and (next_ := self._next(jobs)):
                    self.out[worker.do.remote(self.made, next_[0])] = (worker, *next_)
            if not self.out:
                return
            done, _ = self.ray.wait(list(self.out), num_returns=1)
            yield from self._taken(done[0])

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

    def _taken(self, reference: Any) -> Iterator[Any]:
        """The result of a job; where its worker died, what else that worker had finished, and all its jobs again."""
        worker = self.out[reference][0]
        try:
            yield self._got(reference)
            return
        except self.ray.exceptions.RayError as error:
            lines = str(error).strip().splitlines()
            if "creation task" in lines[0]:
                raise StoreError(f"--engine: workers cannot start ({lines[-1]}). They need this process's packages.") from None
            reason = lines[0]
        self.workers[self.workers.index(worker)] = self.start()
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
