"""What every command has: `--json FILE|-`, `--seed`, `--device`, `--atlas DIR`, `--quiet`, `--require-signature`.

    @click.command()
    @common_options
    def patch(common: Common, ...): ...

Progress goes to stderr and is not shown with --quiet; what a command finds goes to stdout, or, with
`--json -`, only its machine-readable twin.
"""

import functools
import json
import logging
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from assay.cli.roles import permitted
from assay.errors import UsageError, bad_argument
from assay.files import is_device, write_file

if TYPE_CHECKING:
    from assay.model.model import Model

REQUIRE = "ASSAY_REQUIRE_SIGNATURE"  # as in assay.signing, which is not loaded here
LARGEST_SEED = 2**32 - 1
PIPED_WIDTH = 110  # columns where the output is no terminal
OPTIONS = (
    click.option("--json", "json_to", metavar="FILE|-", help="Write the result as JSON; - for standard output."),
    click.option("--seed", default=0, show_default=True, help="Of everything that is drawn at random."),
    click.option("--device", default="cpu", show_default=True, help="As torch names it."),
    click.option("--atlas", default="./atlas", show_default=True, metavar="DIR", help="Where results are kept."),
    click.option("--quiet", is_flag=True, help="No progress and no notes."),
    click.option("--require-signature", is_flag=True, help="Take only files that a trusted key signed: assay sign --help."),
)


@dataclass(frozen=True)
class Common:
    """The options every command has."""

    json_to: str | None
    seed: int
    device: str
    atlas: Path
    quiet: bool

    def load(self, name: str, dtype: str, prepend_bos: bool | None) -> "Model":
        """The model of a command, on its device."""
        from assay.model.load import load_model

        return load_model(name, device=self.device, dtype=dtype, prepend_bos=prepend_bos)

    def emit(self, record: Any, show: Callable[[], Any]) -> None:
        """Write the JSON twin where asked for; print `show()` unless standard output is the JSON."""
        if self.json_to:
            write_json(record, self.json_to)
        if self.json_to == "-":
            return
        shown = show()
        if isinstance(shown, str):
            click.echo(shown)
        elif shown is not None:
            from rich.console import Console

            console = Console()
            console.width = console.width if console.is_terminal else max(console.width, PIPED_WIDTH)
            console.print(shown)

    def note(self, text: str) -> None:
        """One line on stderr."""
        if not self.quiet:
            click.echo(text, err=True)

    @contextmanager
    def progress(self, description: str, total: int | None = None) -> Iterator[Callable[..., None]]:
        """A progress bar on stderr: call it with the steps done, or with (label, done, total)."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True, disable=self.quiet) as bar:
            job = bar.add_task(description, total=total)

            def advance(step: int | str, done: int = 0, of: int = 0) -> None:
                if isinstance(step, int):
                    bar.advance(job, step)
                else:
                    bar.update(job, description=f"{description}: {step}", completed=done, total=of)

            yield advance


def common_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options and hands them to the command as `common`. Refuses an unwritable --json or --out DIR early.

    The command's role is required and its entry written to the audit log before it runs (`roles.py`).
    """

    @functools.wraps(command)
    def wrapped(
        *, json_to: str | None, seed: int, device: str, atlas: str, quiet: bool, require_signature: bool, **options: Any
    ) -> Any:
        check_json_target(json_to)
        if not 0 <= seed <= LARGEST_SEED:
            raise bad_argument("--seed", seed, f"0 to {LARGEST_SEED}")
        with permitted(Path(atlas), options), signatures_told(quiet, require_signature):
            if (folder := options.get("out")) is not None and _is_folder("out"):
                check_place("--out", folder, folder=True)
            return command(common=Common(json_to, seed, device, Path(atlas), quiet), **options)

    for option in reversed(OPTIONS):
        wrapped = option(wrapped)
    return wrapped


@contextmanager
def signatures_told(quiet: bool, require: bool) -> Iterator[None]:
    """What is loaded unsigned, or with a signature that is not a trusted one, is said on stderr, once each.

    `require`: such files are refused while this lasts.
    """
    heard = _Heard(quiet)
    logger, before = logging.getLogger("assay.signing"), os.environ.get(REQUIRE)
    level = logger.level
    logger.addHandler(heard)
    logger.setLevel(logging.INFO)
    if require:
        os.environ[REQUIRE] = "1"
    try:
        yield
    finally:
        logger.removeHandler(heard)
        logger.setLevel(level)
        if require:
            os.environ.pop(REQUIRE)
            os.environ.update({} if before is None else {REQUIRE: before})


class _Heard(logging.Handler):
    """Prints each message once."""

    def __init__(self, quiet: bool) -> None:
        super().__init__(logging.INFO)
        self.quiet, self.told = quiet, set[str]()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if not self.quiet and text not in self.told:
            self.told.add(text)
            click.echo(f"note: {text}", err=True)


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--dtype and --prepend-bos/--no-prepend-bos."""
    for option in (
        click.option("--prepend-bos/--no-prepend-bos", default=None, help="Put BOS before texts. Default: per model."),
        click.option("--dtype", default="float32", show_default=True, help="float32, bfloat16 or float16"),
    ):
        command = option(command)
    return command


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--engine and --workers."""
    for option in (
        click.option("--workers", type=click.IntRange(1), metavar="N", help="With --engine: processes. Default: what fits."),
        click.option("--engine", metavar="ray|ray://HOST:PORT", help="Do the work in Ray workers. Default: one process."),
    ):
        command = option(command)
    return command


def task_source(task: str | None, task_file: str | None) -> str:
    """The one task a command is about: TASK or --file. Raises UsageError for none or both."""
    if (task is None) == (task_file is None):
        got = "neither" if task is None else "both"
        raise bad_argument("TASK, --file", got, "one of them: a bundled task, or --file FILE", "See: assay tasks")
    if task is None:
        return task_file or ""
    from assay.data.concepts import CONCEPTS
    from assay.data.tasks import TASKS, task_path

    return task if task in TASKS or task in CONCEPTS else str(task_path(task))  # a concept has errors of its own


def _is_folder(name: str) -> bool:
    """Whether an option of the command that runs takes a folder of this machine."""
    command = click.get_current_context().command
    return any(option.name == name and option.metavar == "DIR" for option in command.params)


def check_place(option: str, given: str | Path, folder: bool) -> None:
    """Refuse, before any long work, a file or folder that cannot be made: a file is written beside it, and removed."""
    if why := _unwritable(Path(given).absolute(), folder):
        raise bad_argument(option, str(given), f"a {'folder' if folder else 'file'} that can be written ({why})")


def check_json_target(target: str | None) -> None:
    """Refuse an unwritable target before any long work."""
    if not target or target == "-":
        return
    path = Path(target).absolute()
    if why := _unwritable(path, False) if path.parent.is_dir() else "there is no such directory":
        raise UsageError(f"--json: {target!r} cannot be written ({why}); allowed: a file in a writable directory, or -.")


def _unwritable(path: Path, folder: bool) -> str:
    """Why a file or folder cannot be made there; empty where it can."""
    try:
        if is_device(path) and not folder:
            return "" if os.access(path, os.W_OK) else "no permission"
        there = next(each for each in (path, *path.parents) if each.exists())
        if there == path and there.is_dir() != folder:
            return f"it is a {'file' if folder else 'directory'}"
        missing = path.relative_to(there).parts
        place = there if folder or missing else there.parent
        handle, name = tempfile.mkstemp(dir=place, prefix=f".{max(missing, key=len, default=path.name)}.")
    except (OSError, ValueError) as error:
        return str(getattr(error, "strerror", None) or error)
    os.close(handle)
    os.unlink(name)
    return ""


def write_json(record: Any, target: str) -> None:
    """Write beside, then rename. NaN and infinity become null."""
    text = json.dumps(finite(record), indent=1, allow_nan=False)
    if target == "-":
        click.echo(text)
    else:
        write_file(Path(target), text.encode())


def finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
