"""A run's passport: what made this result, so that it can be made again.

Together with `Model.passport` (weights digest, dtype, device, kernel, BOS) and the digests of the data it
says everything a result depends on: versions, arguments as given and as resolved, commit and dirty flag.
"""

import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from assay.records import plain

PACKAGES = ("assay", "torch", "transformers", "numpy", "scipy")
_KEPT: list[dict[str, Any] | None] = []


def run_passport(resolved: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Versions, command line as given, settings as resolved, and the git state of the working directory."""
    return {
        "versions": dict(_versions()),
        "python": platform.python_version(), "machine": platform.machine(),
        "command": [_placeless(word) for word in sys.argv], "resolved": plain(dict(resolved or {})), "git": git_state(),
    }  # fmt: skip


def _placeless(word: str) -> str:
    """A word of a command line, for others to read: of a file or folder that is named from the root only its own name, of an
    address no user name, password or query."""
    word = re.sub(r"(https?://)(?:[^/@\s]*@)?([^?#\s]*)\S*", r"\1\2", word)
    name, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
    return f"{name}{equals}{Path(value).name if Path(value).is_absolute() else value}"


@cache
def _versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in PACKAGES}


@contextmanager
def one_git_state() -> Iterator[None]:
    """Inside, git is asked once: for hundreds of small runs that are one run to their reader."""
    _KEPT.append(git_state())
    try:
        yield
    finally:
        _KEPT.pop()


def git_state() -> dict[str, Any] | None:
    """{"commit", "dirty"} of the working directory; None outside of a repository or without git."""
    if _KEPT:
        return _KEPT[-1]
    commit, status = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--untracked-files=no")
    return None if commit is None or status is None else {"commit": commit, "dirty": bool(status)}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
