"""`assay explain FEATURES` and `assay score FEATURES`: some features by name, from a map that is there."""

from pathlib import Path
from typing import Any

import click

from assay.cli.common import Common, common_options
from assay.errors import bad_argument


def newest_map(atlas: Path, given: str | None) -> Path:
    """The folder of a map: the one that is named, or the newest of the atlas. Raises UsageError with what there is."""
    maps = sorted((atlas / "maps").glob("*/reading/reading.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    folders = [path.parent.parent for path in maps]
    if given is None and folders:
        return folders[0]
    found = next((folder for folder in folders if folder.name == given or str(folder) == given), None)
    if found is None:
        there = ", ".join(folder.name for folder in folders[:5]) or "none in this atlas"
        raise bad_argument("--map", given or "none", there, "Make one: assay map MODEL")
    return found


@click.command()
@click.argument("features", nargs=-1, required=True, metavar="FEATURE...")
@click.option("--map", "of", metavar="NAME", help="A folder of maps/ in the atlas. Default: the newest.")
@common_options
def explain(common: Common, features: tuple[str, ...], of: str | None) -> None:
    """Explain features by rules on the text read so far, from what a map has read. Nothing is claimed."""
    from assay.mapping.some import explain_some

    found = explain_some(newest_map(common.atlas, of), features)
    record = {"explanations": [plain_explanation(each) for each in found]}
    common.emit(record, lambda: "\n".join(f"{each['feature']}: {each['text']}" for each in record["explanations"]))


@click.command()
@click.argument("features", nargs=-1, required=True, metavar="FEATURE...")
@click.option("--map", "of", metavar="NAME", help="A folder of maps/ in the atlas. Default: the newest.")
@click.option("--scorers", default="detection,fuzzing,simulation,intruder", show_default=True, help="Also: embedding.")
@common_options
def score(common: Common, features: tuple[str, ...], of: str | None, scorers: str) -> None:
    """Score the rules of features on windows that were not shown, beside rules of other features."""
    from assay.mapping.run import names_in
    from assay.mapping.some import score_some
    from assay.records import plain

    found, skipped = score_some(newest_map(common.atlas, of), features, names_in(scorers), common.seed)
    record = {"scores": [plain(each) for each in found], "skipped": [[*names, why] for names, why in skipped.items()]}
    common.emit(record, lambda: shown(record))


def plain_explanation(explanation: Any) -> dict[str, Any]:
    """An explanation as JSON has it."""
    from assay.records import plain

    return plain(explanation)


def shown(record: dict[str, Any]) -> Any:
    """Scores as a table."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("feature", "scorer", "value", "95% interval", "shuffled", "chance", "windows"):
        table.add_column(column, justify="left" if column in ("feature", "scorer") else "right")
    for row in record["scores"]:
        interval = "" if row["low"] is None else f"{row['low']:.2f} to {row['high']:.2f}"
        shuffled = "" if row["shuffled"] is None else f"{row['shuffled']:.2f}"
        table.add_row(row["feature"], row["scorer"], f"{row['value']:.2f}", interval, shuffled, f"{row['chance']:.2f}",
                      str(row["n"]))  # fmt: skip
    return table
