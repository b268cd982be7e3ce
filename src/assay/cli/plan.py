"""`assay plan MODEL`."""

from pathlib import Path
from typing import Any

import click

from assay.cli.common import Common, common_options

ACTIVE = 32  # latents, where nobody says

@click.command()
@click.argument("name", metavar="MODEL")
@click.option("--tokens", required=True, type=click.IntRange(1), metavar="N", help="Of the corpus.")
@click.option("--latents", required=True, type=click.IntRange(1), metavar="K", help="Of the dictionary.")
@click.option("--active", type=click.IntRange(1), metavar="N", help="Latents at one token. Default: 32, or all there are.")
@click.option("--gpus", default=0, show_default=True, type=click.IntRange(0), metavar="G", help="0: threads of this machine.")
@click.option("--gpu", default="h100", show_default=True, help="a100 or h100; on paper, nothing was measured there.")
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1), help="Threads, without GPUs.")
@click.option("--layers", type=click.IntRange(1), metavar="N", help="Run for the harvest. Default: all.")
@click.option("--sites", default=1, show_default=True, type=click.IntRange(1), help="Stored per token.")
@click.option("--context", default=256, show_default=True, type=click.IntRange(2), help="Tokens of a text at most.")
@click.option("--price", type=click.FloatRange(0), metavar="DOLLARS", help="Of an hour of one GPU or thread.")
@common_options
def plan(common: Common, name: str, gpus: int, gpu: str, workers: int, price: float | None, **given: Any) -> None:
    """Time, memory, disk and cost of harvesting, training and encoding, before any of it is run.

    MODEL: a packaged name, a local folder, or a config.json alone, for a model that is not here.
    """
    from assay.model.find import find_model
    from assay.scale import sizing

    path = Path(name)
    shape = sizing.read_shape(path if path.is_file() else Path(find_model(name).where), name)
    active = given["active"] or min(ACTIVE, given["latents"])
    job = sizing.Job(shape, given["tokens"], given["latents"], active, given["context"], given["layers"],
                     given["sites"], param_bytes=2 if gpus else 4)  # fmt: skip
    found = sizing.plan(job, gpus, gpu, workers, price)
    record = {**found.json(), "params": shape.params, "tokens": job.tokens, "latents": job.latents, "gpus": gpus}
    common.emit(record, lambda: shown(found, shape.params))


def shown(found: Any, params: int) -> Any:
    """The terminal's view."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for place, column in enumerate(("stage", "time", "memory each", "disk", "operations", "error on other runs")):
        table.add_column(column, justify="right" if place else "left")
    for stage in found.stages:
        error = "not measured" if stage.error is None else f"up to {stage.error:.0%}"
        table.add_row(stage.name, time_of(stage.seconds), size_of(stage.memory), size_of(stage.disk),
                      f"{stage.operations:.2g}", error)  # fmt: skip
    cost = "" if found.dollars is None else f", ${found.dollars:,.2f}"
    head = f"{found.model}, about {params / 1e6:,.0f}M parameters: {time_of(found.seconds)} in all{cost}"
    return Group(Text(head), table, *(Text(f"assumed: {text}", style="dim") for text in found.assumptions))


def time_of(seconds: float) -> str:
    """In the unit people would use."""
    for unit, size in (("years", 365 * 86400), ("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.1f} s"


def size_of(n_bytes: float) -> str:
    """Of memory or disk."""
    for unit, size in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if n_bytes >= size:
            return f"{n_bytes / size:,.1f} {unit}"
    return f"{n_bytes / 1e3:.1f} kB"
