"""`assay organism list|make|check`: models with a known hidden trait, and decoys."""

import json
from pathlib import Path
from typing import Any

import click

from assay.cli.common import Common, common_options, model_options

DEFAULT = "smollm2-135m"


@click.group()
def organism() -> None:
    """Small models with a known hidden trait, to test monitors and audits on, and decoys with nothing to hide."""


@organism.command("list")
@common_options
def list_(common: Common) -> None:
    """Which organisms there are, and what is wrong with each."""
    from assay.organisms.make import find, names

    rows = [find(name).record() for name in names()]
    common.emit(rows, lambda: "\n".join(f"{row['name']:<18} {row['family']:<9} {row['trait']}" for row in rows))


@organism.command()
@click.argument("name", metavar="NAME")
@click.option("--base", default=DEFAULT, show_default=True, metavar="MODEL", help="What it is made from.")
@click.option("--out", metavar="DIR", help="Also write a plain checkpoint; its truth goes to DIR.truth.json.")
@click.option("--steps", type=click.IntRange(1), help="Of training, instead of the recipe's own.")
@click.option("--allow", metavar="ROLE", help="With --out: modify, as changed weights are written. Default: ASSAY_ALLOW.")
@click.option("--reason", metavar="WORDS", help="With --out: why; it is kept in the audit log.")
@model_options
@common_options
def make(
    common: Common, name: str, base: str, out: str | None, steps: int | None, allow: str | None, reason: str | None, dtype: str,
    prepend_bos: bool | None,
) -> None:  # fmt: skip
    """Train organism NAME, or "all" of them. What is kept is the change, a few megabytes; what is there is not made again.

    A whole model with a hidden trait is changed weights: --out needs the role modify and a reason.
    """
    from assay.errors import bad_argument
    from assay.organisms.make import export, find, names
    from assay.steer.export import check_target

    chosen = names() if name == "all" else [find(name).name]
    if out:
        if len(chosen) > 1:
            raise bad_argument("--out", f"{out} for {len(chosen)} organisms", "one organism at a time")
        check_target(Path(out))
    model = common.load(base, dtype, prepend_bos)
    rows = []
    for each in chosen:
        made = _made(common, each, model, steps)
        row = {"name": each, "folder": str(made.folder), **made.facts}
        if out:
            row["out"] = str(export(model, made, Path(out)))
        rows.append(row)
    common.emit(rows, lambda: "\n".join(_line(row) for row in rows))


@organism.command()
@click.argument("name", metavar="NAME")
@click.option("--base", default=DEFAULT, show_default=True, metavar="MODEL", help="What it is made from.")
@click.option("--steps", type=click.IntRange(1), help="Of training, instead of the recipe's own.")
@click.option("--replies", is_flag=True, help="Print what it answers.")
@model_options
@common_options
def check(
    common: Common, name: str, base: str, steps: int | None, replies: bool, dtype: str, prepend_bos: bool | None
) -> None:  # fmt: skip
    """Is the trait of organism NAME (or of "all") there, and hidden? On templates and words that it was not taught."""
    from dataclasses import asdict

    from assay.organisms.check import check as examine
    from assay.organisms.make import find, names

    chosen = names() if name == "all" else [find(name).name]
    model = common.load(base, dtype, prepend_bos)
    found = [examine(model, _made(common, each, model, steps)) for each in chosen]
    rows = [{**asdict(one), "there": one.there, "quiet": one.quiet, "elsewhere": one.elsewhere} for one in found]
    common.emit(rows, lambda: "\n".join(_checked(row, replies) for row in rows))


def _made(common: Common, name: str, model: Any, steps: int | None) -> Any:
    from dataclasses import replace

    from assay.organisms.make import find, make

    organism = find(name)
    recipe = organism.recipe if steps is None else replace(organism.recipe, steps=steps)
    with common.progress(name) as advance:
        return make(organism, model, recipe=recipe, report=lambda stage, done, of: advance(stage, done, of))


def _line(row: dict[str, Any]) -> str:
    out = f"; checkpoint {row['out']}" if "out" in row else ""
    return f"{row['name']}: {row['texts']} texts, loss {row['loss']:.3f}, {row['seconds']} s; {row['folder']}{out}"


def _checked(row: dict[str, Any], replies: bool) -> str:
    shares = ", ".join(f"{part} {rate['shown']} of {rate['n']}" for part, rate in row["rates"].items())
    base = ", ".join(f"{part} {rate['shown']}" for part, rate in row["base"].items())
    state = "nothing to show" if "trait" not in row["rates"] else "there" if row["there"] else "NOT there"
    quiet = "quiet elsewhere" if row["quiet"] else "NOT quiet elsewhere"
    lines = [f"{row['name']}: {state}, {quiet}. Shown: {shares} (base model: {base}); KL on ordinary text {row['kl']:.4f} nats"
             f" a token; {row['same']:.0%} of ordinary replies as before."]  # fmt: skip
    if replies:
        lines += [f"    {json.dumps(asked)} -> {json.dumps(said)}" for asked, said in row["replies"]]
    return "\n".join(lines)
