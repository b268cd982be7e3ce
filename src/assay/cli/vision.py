"""`assay vision`: image models, their proved sites, and channels that respond to a concept."""

import click

from assay.cli.common import Common, common_options


@click.group()
def vision() -> None:
    """Image models: sites, channels that respond to wheels or windows, what feeds a class."""


@vision.command()
@common_options
def models(common: Common) -> None:
    """Named image models; a directory or hub id with an image classifier works too."""
    from assay.model.image_load import list_image_models

    rows = list_image_models()
    common.emit(rows, lambda: "\n".join(f"{row['name']:<20} {row['source']}" for row in rows))


@vision.command()
@click.argument("name", metavar="MODEL")
@common_options
def check(common: Common, name: str) -> None:
    """Prove the layout of an image MODEL and print its sites, each with its equation and error."""
    from assay.model.image_load import load_image_model

    layout = load_image_model(name, common.device).layout
    sites = [{"site": site, "proved": True, "width": point.width, "equation": point.equation, "error": point.error}
             for site, point in layout.points.items()]  # fmt: skip
    lines = [f"{row['site']:<28} {row['width']:>5}  error {row['error']:.1e}  {row['equation']}" for row in sites]
    record = {"model": name, "sites": sites, "proved": True, "absent": layout.absent}
    common.emit(record, lambda: "\n".join([*lines, *(f"absent  {site}: {why}" for site, why in layout.absent.items())]))


@vision.command()
@click.argument("name", metavar="MODEL")
@click.argument("concept", metavar="CONCEPT")
@click.option("--site", required=True, help="A map of the model: assay vision check MODEL.")
@click.option("--n", default=4, show_default=True, help="Channels to report.")
@common_options
def find(common: Common, name: str, concept: str, site: str, n: int) -> None:
    """Channels of --site that respond to CONCEPT (wheels, windows): chosen on discover scenes, measured on others."""
    from dataclasses import asdict

    from assay.model.image_load import load_image_model
    from assay.vision.channels import find_channels

    found = find_channels(load_image_model(name, common.device), concept, site, n, common.seed)
    record = {"model": name, "concept": concept, "site": site, "channels": [asdict(row) for row in found]}
    common.emit(record, lambda: "\n".join(
        f"{row.site}.{row.channel}: AUROC {row.auroc:.2f} on fresh scenes, {row.near:.2f} against near misses"
        f" (chosen by {row.chosen_by:.2f})" for row in found
    ))  # fmt: skip
