"""`assay calibrate [MODEL]`: the battery's own error rates."""

from collections.abc import Callable
from typing import Any

import click

from assay.cli.common import Common, common_options, model_options
from assay.errors import bad_argument


@click.command()
@click.argument("name", metavar="[MODEL]", required=False)
@click.option("--kind", "kinds", multiple=True, metavar="KIND",
              help="Only this kind, or the gates that this option asks for; may be given again.")
@click.option("--full", is_flag=True, help="As many claims as the published rates (minutes to hours).")
@click.option("--n", default=None, type=click.IntRange(1), help="Claims per family; negative controls with MODEL (60).")
@click.option("--data", default="animals", show_default=True, help="With MODEL: concept, task or file whose texts are used.")
@click.option("--site", default=None, help="With MODEL: a whole site. Default: resid_post of the middle layer.")
@model_options
@common_options
def calibrate(
    common: Common, name: str | None, kinds: tuple[str, ...], full: bool, n: int | None, **options: Any
) -> None:
    """Put the battery to the test: how often is nothing called something?

    Without MODEL, claims whose truth is planted: null claims, false ones, and effects of known size. With MODEL,
    negative controls on that model: directions nobody chose, labels that mean nothing. If they look significant
    more often than they may, claims about that model get no verdict. An interrupted run goes on where it was.
    """
    if name is None:
        _planted(common, kinds, full, n)
    elif kinds or full:
        raise bad_argument("--kind, --full", "given with MODEL", "without MODEL", "With MODEL only --n, --data and --site.")
    else:
        _on_model(common, name, n, options)


def _planted(common: Common, kinds: tuple[str, ...], full: bool, n: int | None) -> None:
    from assay.calibrate import calibrate as run
    from assay.calibrate.tables import plain_text
    from assay.model.cache import cache_dir

    with common.progress("calibrating") as report:
        found = run(kinds, full=full, n=n, seed=common.seed, keep=cache_dir() / "calibration", report=report)
    common.emit(found, lambda: plain_text(found))


def _on_model(common: Common, name: str, n: int | None, options: dict[str, Any]) -> None:
    from assay.atlas.store import Atlas
    from assay.calibrate.on_model import calibrate_model
    from assay.calibrate.tables import model_text
    from assay.evidence.source import find_source

    source = find_source(options["data"])
    model = common.load(name, options["dtype"], options["prepend_bos"])
    store: Any = Atlas(common.atlas)
    with common.progress("calibrating") as report:
        found = calibrate_model(model, source, site=options["site"], n=n or 60, seed=common.seed, store=store,
                                report=report)  # fmt: skip
    record = found.to_json()
    show: Callable[[], str] = lambda: model_text(record)  # noqa: E731
    common.emit(record, show)
