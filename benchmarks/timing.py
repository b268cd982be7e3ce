"""CPU and wall ratios of runs that take turns in one process.

1. Every round calls each run once; the order rotates, so no run always follows the same other one.
2. A round's ratio divides a run's time by the base run's time in that round: what slows the whole
   machine for a while slows both.
3. The result is the median over rounds, with the smallest and the largest CPU ratio.

CPU time is that of all threads of the process. It means something only if idle threads sleep:
`environment.prepare` sets the OpenMP wait policy before torch is imported.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Runs = Mapping[str, Callable[[], Any]]


@dataclass(frozen=True)
class Ratio:
    """One run against the base run, over rounds. `seconds` is its median CPU time."""

    cpu: float
    wall: float
    cpu_low: float
    cpu_high: float
    seconds: float


def timed(run: Callable[[], object]) -> tuple[float, float]:
    """(CPU, wall) seconds of one call."""
    cpu, wall = time.process_time(), time.perf_counter()
    run()
    return time.process_time() - cpu, time.perf_counter() - wall


def interleaved(runs: Runs, base: str, rounds: int) -> dict[str, Ratio]:
    """Ratios of every run to `base`. The runs must have been called before: nothing is warmed up."""
    names = list(runs)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            times[name].append(timed(runs[name]))
    return {name: _ratio(times[name], times[base]) for name in names}


def _ratio(mine: list[tuple[float, float]], base: list[tuple[float, float]]) -> Ratio:
    cpu = [a[0] / b[0] for a, b in zip(mine, base, strict=True)]
    wall = [a[1] / b[1] for a, b in zip(mine, base, strict=True)]
    return Ratio(
        statistics.median(cpu), statistics.median(wall), min(cpu), max(cpu), statistics.median(a[0] for a in mine)
    )
