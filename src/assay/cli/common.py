"""What every command has: the JSON twin, the device, progress on stderr."""

import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from assay.errors import UsageError


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """--json FILE, or - for standard output."""
    return click.option("--json", "json_to", metavar="FILE|-", help="Write the result as JSON.")(command)


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--device, --dtype and --prepend-bos/--no-prepend-bos."""
    for option in (
        click.option("--device", default="cpu", show_default=True),
        click.option("--dtype", default="float32", show_default=True),
        click.option("--prepend-bos/--no-prepend-bos", default=None, help="Default: per model."),
    ):
        command = option(command)
    return command


def check_json_target(target: str | None) -> None:
    """Refuse an unwritable target before any long work."""
    if target and target != "-" and not os.access(Path(target).resolve().parent, os.W_OK):
        raise UsageError(f"--json: {target!r} cannot be written; allowed: a file in a writable directory, or -.")


def write_json(record: Any, target: str) -> None:
    """Write beside, then rename. NaN and infinity become null."""
    text = json.dumps(_finite(record), indent=1, allow_nan=False)
    if target == "-":
        click.echo(text)
    else:
        write_file(Path(target), text.encode())


def write_file(path: Path, content: bytes) -> None:
    """Atomically: either the whole file or the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)  # mkstemp's own mode would hide the file from everybody else
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def progress(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        job = bar.add_task(description, total=total)
        yield lambda n: bar.advance(job, n)
