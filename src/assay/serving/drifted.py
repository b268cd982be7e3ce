"""A drift lasts: what an earlier run of a server found holds for the next one, until the monitor is calibrated again.

1. The log has an event with `drifted` and the monitor's digest for every monitor that was disarmed.
2. The digest is of what was found wanting: what the monitor reads, its thresholds, its baseline and what it is bound to.
   Calibrating again changes it (another date, in any case); another name, or more on its card, does not.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from assay.errors import TamperedError
from assay.monitor.records import Monitor
from assay.permissions import LOG
from assay.records import digest
from assay.serving.log import ACTION

MARK = b'"drifted":'  # how the key stands in a line of the log; inside a text its quotes would be escaped


def identity(monitor: Monitor) -> str:
    """The same for a monitor and its file, and whatever its state."""
    held = monitor.baseline
    numbers = [each for head in monitor.heads for each in (head.weight, head.query)]
    numbers += [] if held is None else [held.scores, held.axes, held.places]
    return digest([
        [[head.site, float(head.bias)] for head in monitor.heads], asdict(monitor.pooling), dict(monitor.bound),
        {unit: asdict(made) for unit, made in monitor.thresholds.items()}, [_hash(each) for each in numbers],
    ])  # fmt: skip


def as_left(monitors: Sequence[Monitor], folder: str | Path) -> list[Monitor]:
    """Monitors as the earlier runs of the log in `folder` left them. Raises TamperedError for a line that is no entry."""
    known = dict(_found(Path(folder) / LOG))
    return [replace(monitor, drifted=monitor.drifted or known.get(identity(monitor), "")) for monitor in monitors]


def _found(path: Path) -> Iterator[tuple[str, str]]:
    """(digest, why) of every drift that a log holds. Only lines that speak of one are parsed: a log has many more."""
    if not path.is_file():
        return
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if MARK in line and line.endswith(b"\n"):
                yield from _drifts(line, f"audit log {path}: line {number}")


def _drifts(line: bytes, where: str) -> list[tuple[str, str]]:
    try:
        entry = json.loads(line)
        events = entry["body"]["events"] if entry["action"] == ACTION else []
        return [(str(event["digest"]), str(event["drifted"])) for event in events if "drifted" in event]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise TamperedError(f"{where} is no entry ({error}). Restore it from a copy.") from error


def _hash(numbers: Any) -> str:
    """Of numbers as a file has them."""
    return "" if numbers is None else hashlib.sha256(np.ascontiguousarray(numbers, np.float32).tobytes()).hexdigest()
