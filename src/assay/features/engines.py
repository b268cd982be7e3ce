"""Where work is done: jobs that do not depend on each other, in this process or in many.

    for result in engine.run(make, jobs): ...

1. `make()` gives each worker what it works with (a model, opened once); calling that with a job does the job.
2. Results come in the order they are finished. A job says where its result belongs, so the order does not matter.
3. Jobs are taken from their iterator only when a worker is free: memory holds those in flight, never all.
4. `in_order` gives results by their number, so that sums over them are the same whatever engine made them.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from assay.errors import UsageError
from assay.model.model import Model

Job = TypeVar("Job")
Result = TypeVar("Result")


class Engine(Protocol):
    """Does jobs somewhere."""

    def run(self, make: Callable[[], Callable[[Job], Result]], jobs: Iterable[Job]) -> Iterator[Result]:
        """Results of all jobs, as they are finished."""
        ...


class OneProcess:
    """Does jobs here, one after the other."""

    def run(self, make: Callable[[], Callable[[Job], Result]], jobs: Iterable[Job]) -> Iterator[Result]:
        """Results in the order of jobs."""
        work = make()
        for job in jobs:
            yield work(job)


@dataclass(frozen=True)
class Where:
    """`engine`: where jobs are done, None for here. `opener`: opens the same model there; None: it is sent."""

    engine: Engine | None = None
    opener: Callable[[], Model] | None = None

    def run(self, make: Callable[[], Callable[[Job], Result]], jobs: Iterable[Job]) -> Iterator[Result]:
        """Results of all jobs, as they are finished."""
        return (self.engine or OneProcess()).run(make, jobs)


HERE = Where()


def in_order(results: Iterable[tuple[int, Any]], number: int = 0) -> Iterator[Any]:
    """Numbered results from `number` on, each as soon as those before it are there."""
    waiting: dict[int, Any] = {}
    for at, result in results:
        waiting[at] = result
        while number in waiting:
            yield waiting.pop(number)
            number += 1


def opener_of(model: Model) -> Callable[[], Model]:
    """Opens the same model in another process, by sending it there. Raises UsageError for one that is not all in memory."""
    if type(model) is not Model:
        raise UsageError(f"opener: got none; allowed: what opens {model.name}, a {type(model).__name__}, in a worker.")
    return partial(Model, model.hf, model.tokenizer, model.name, model.source, model.prepend_bos, model.bos_id)


def opener_at(name: str, **options: Any) -> Callable[[], Model]:
    """Opens a model by its name in another process, which may work in another folder: a path is made absolute here."""
    from assay.model.load import load_model
    from assay.model.packaged import PACKAGED

    path = Path(name).expanduser()
    return partial(load_model, str(path.absolute()) if name not in PACKAGED and path.exists() else name, **options)


def opened_there(opener: Callable[[], Model], digest: str) -> Model:
    """A worker's model. Raises UsageError where it is another one than this digest's."""
    model = opener()
    if model.digest != digest:
        raise UsageError(f"a worker opened model {model.name} with digest {model.digest[:12]}, this process {digest[:12]}:"
                         " the files differ. Give all machines the same files.")  # fmt: skip
    return model
