"""`assay vision`: image models, their proved sites, and channels that respond to a concept."""

import click

from assay.cli.common import Common, common_options
from assay.cli.vision_claims import VISION_CLAIM_COMMANDS
from assay.cli.vision_methods import METHODS


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


for _command in (*VISION_CLAIM_COMMANDS, *METHODS):
    vision.add_command(_command)
