"""`assay replicate [NAME ..]`."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from assay.cli.common import Common, common_options, model_options

DEFAULT = "smollm2-135m"


@click.command()
@click.argument("names", metavar="[NAME].. | all", nargs=-1)
@click.option("--model", "models", multiple=True, metavar="MODEL", help=f"May be given again. Default: {DEFAULT}.")
@click.option("--pairs", default=48, show_default=True, type=click.IntRange(8), help="Pairs of each split of a task.")
@click.option("--again", is_flag=True, help="Measure again what this atlas holds already; tested claims keep their verdicts.")
@click.option("--out", metavar="DIR", help="The picture goes here instead of ATLAS/figures.")
@model_options
@common_options
def replicate(
    common: Common, names: tuple[str, ...], models: tuple[str, ...], pairs: int, again: bool, out: str | None, dtype: str,
    prepend_bos: bool | None,
) -> None:  # fmt: skip
    """Published findings, tried again: what the paper reports, what is measured here, and the outcome.

    Without NAME: which findings there are. Each is kept in the atlas when it is done, so that an interrupted run goes on.
    """
    from assay.replicate.run import FINDINGS

    if not names:
        rows = [{key: getattr(one, key) for key in ("name", "title", "paper", "published", "method", "differs")}
                for one in FINDINGS]  # fmt: skip
        common.emit(rows, lambda: "\n".join([*(f"{row['name']:<22} {row['title']}" for row in rows), "",
                                             "assay replicate NAME, or all"]))  # fmt: skip
        return
    chosen = FINDINGS.names() if names == ("all",) else [FINDINGS.get(name).name for name in names]
    rows = [row for name in models or (DEFAULT,) for row in _tried(common, name, chosen, pairs, again, dtype, prepend_bos)]
    record = {"replications": rows, "picture": _picture(common, rows, out)}
    common.emit(record, lambda: shown(record))


def _tried(
    common: Common, name: str, chosen: Sequence[str], pairs: int, again: bool, dtype: str, prepend_bos: bool | None
) -> Iterator[dict[str, Any]]:
    """A record per finding, from the atlas where it is there."""
    from assay.atlas.steers import KeptSteering
    from assay.atlas.store import Atlas
    from assay.records import digest, plain
    from assay.replicate.base import Sizes
    from assay.replicate.run import FINDINGS, Lab, replicate

    model = common.load(name, dtype, prepend_bos)
    sizes = Sizes(pairs=pairs)
    for one in chosen:
        key = digest(["replicate", model.passport(), common.seed, plain(sizes), _code(), "again" if again else ""])
        kept = KeptSteering(common.atlas, key)
        with _told(common, one) as report:
            lab = Lab(model, Atlas(common.atlas), common.seed, sizes, report)
            made = lambda lab=lab, one=one: asdict(replicate(lab, one))  # noqa: E731
            yield made() if again else kept.once(FINDINGS.get(one).name, made)


@contextmanager
def _told(common: Common, name: str) -> Iterator[Any]:
    with common.progress(name) as advance:
        yield lambda label, done, total: advance(label, done, total)


def _code() -> str:
    """Hash of the findings as they are written: what is kept belongs to it."""
    import assay.replicate as package

    files = sorted(Path(package.__path__[0]).rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _picture(common: Common, rows: Sequence[Mapping[str, Any]], out: str | None) -> str | None:
    """Every figure with its interval and its bar; None where nothing was measured."""
    from assay.report.figures import save_figure
    from assay.report.replication_figures import replication_figure

    if not any(row["found"]["figures"] for row in rows):
        return None
    folder = Path(out) if out else common.atlas / "figures"
    target = folder / "replications.png"
    save_figure(replication_figure(rows), target)
    return str(target)


def shown(record: Mapping[str, Any]) -> Any:
    """The terminal's view: a line per finding, then figures and claims of each."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from assay.replicate.records import Figure
    from assay.replicate.records import shown as said

    rows = record["replications"]
    table = Table("finding", "model", "outcome", "why", box=None, pad_edge=False)
    for row in rows:
        table.add_row(*map(Text, (row["name"], row["model"], row["outcome"], row["why"])))
    parts: list[Any] = [table]
    for row in rows if len(rows) == 1 else ():
        parts += [Text(f"\n{row['title']} ({row['paper']})", style="bold"), Text(f"published: {row['published']}"),
                  Text(f"here: {row['method']}"), Text(f"differs: {row['differs']}", style="dim")]  # fmt: skip
        found = row["found"]
        parts += [Text(f"  {each['name']}: {said(Figure(**each))}") for each in found["figures"]]
        parts += [Text(f"  claim {each['claim']}: {each['verdict']}. {each['statement']}") for each in found["claims"]]
        parts += [Text(f"  {note}", style="dim") for note in found["notes"]]
    return Group(*parts, *([Text(f"picture: {record['picture']}")] if record["picture"] else []))
