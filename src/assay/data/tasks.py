"""Tasks: bundled generators of minimal pairs, and one's own from a file.

A bundled task has templates and words of its own for every split (discover, tune, confirm, ood): no
template and no content word of one split occurs in another, so that what is found on one split can be
tested on another. How they are made, and how to add one: `generators/base.py`. One's own: `task_files.py`.

    load_task("ioi", "discover", n=32, seed=0, corruption="abc")
    load_task("my_pairs.jsonl")
"""

import difflib
import os
from pathlib import Path

from assay.data.generators.base import SPLITS, TASKS, Draw, Task
from assay.data.task_files import SUFFIXES, read_task
from assay.errors import TaskError, bad_argument
from assay.records import Pair

__all__ = ["SPLITS", "TASKS", "Draw", "Task", "load_task", "n_templates", "read_task", "task_path"]


def load_task(
    task: str, split: str = "discover", n: int = 32, seed: int = 0, corruption: str | None = None
) -> list[Pair]:
    """n pairs of a bundled task (corruption None: its first), or all pairs of a JSONL or CSV file.

    Raises TaskError for an unknown task or a file that does not fit, naming line and field; UsageError
    for a wrong split, n or corruption.
    """
    if n < 1:
        raise bad_argument("n", n, "1 or more")
    if task in TASKS:
        return TASKS.get(task).pairs(split, n, seed, corruption)
    if corruption is not None:
        raise bad_argument("corruption", corruption, f"none for {task}", "A file has its own corrupted prompts.")
    return read_task(task_path(task))


def n_templates(task: str, split: str = "discover") -> int:
    """How many templates a split of a bundled task has, or a file. No model is needed."""
    if task in TASKS:
        return TASKS.get(task).n_templates(split)
    return len({pair.template for pair in read_task(task_path(task))})


def task_path(task: str) -> Path:
    """Of a task that is a file. Raises TaskError for a name that is neither bundled nor a file, with the nearest."""
    if Path(task).suffix.lower() in SUFFIXES or os.path.exists(task):
        return Path(task)
    close = difflib.get_close_matches(task, TASKS.names(), n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise TaskError(f"task {task!r}: not bundled and no such file.{hint} Bundled: {', '.join(TASKS.names())};"
                    f" your own: a {' or '.join(SUFFIXES)} file.")  # fmt: skip
