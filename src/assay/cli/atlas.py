"""`assay atlas list|find|show|diff|index`: the mapped features of an atlas."""

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from assay.cli.common import Common, common_options
from assay.errors import UsageError, bad_argument

if TYPE_CHECKING:
    from assay.atlas.mapped import Hit, Mapped

SET_HELP = "A set: its id or the beginning of it. Default: the newest."
VERDICTS = ("supported", "refuted", "inconclusive", "not tested")
ROLES = ("fires", "promotes", "suppresses")


@click.group()
def atlas() -> None:
    """What a map of a model left in the atlas: find features, show one, compare two maps. Made by assay map."""


@atlas.command("list")
@common_options
def list_(common: Common) -> None:
    """The sets of mapped features, newest first, with how many are explained and supported."""
    from assay.cli.atlas_text import set_lines

    mapped = _mapped(common)
    found = [{"id": each.id, **asdict(each), "summary": mapped.summary(each.id)} for each in mapped.sets()]
    common.emit({"sets": found}, lambda: "\n".join(line for each in found for line in set_lines(each)) or NONE)


@atlas.command()
@click.argument("words", metavar="[WORDS]", required=False)
@click.option("--set", "name", default="", metavar="SET", help=SET_HELP)
@click.option("--similar", metavar="TEXT", help="By meaning: explanations most like TEXT.")
@click.option("--token", metavar="TOKEN", help="Features that fire on TOKEN, or, with --role, promote or suppress it.")
@click.option("--role", default="fires", show_default=True, type=click.Choice(ROLES), help="With --token.")
@click.option("--exact", is_flag=True, help="With --token: case and spaces around it count.")
@click.option("--task", metavar="TASK", help="Features by the size of their effect on TASK.")
@click.option("--circuit", metavar="NAME", help="Features in a circuit or attribution graph.")
@click.option("--verdict", type=click.Choice(VERDICTS), help="Only features with a claim that stands so.")
@click.option("--unclaimed", is_flag=True, help="Only features that no claim is about.")
@click.option("--sort", default="row", show_default=True, metavar="COLUMN", help="Of the table; -COLUMN for largest first.")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1, 10_000), help="Features on one page.")
@click.option("--offset", default=0, show_default=True, type=click.IntRange(0), help="Of the table: features to skip.")
@common_options
def find(common: Common, words: str | None, name: str, similar: str | None, token: str | None, role: str, exact: bool,
         task: str | None, circuit: str | None, verdict: str | None, unclaimed: bool, sort: str, limit: int,
         offset: int) -> None:  # fmt: skip
    """Features whose explanations hold all WORDS ("phrases in quotes" and beginnings* are understood).

    Without WORDS and without another search: the table of all features, sorted and filtered.
    """
    from assay.cli.atlas_text import hit_line, row_line

    ways = {"WORDS": words, "--similar": similar, "--token": token, "--task": task, "--circuit": circuit}
    given = [way for way, value in ways.items() if value is not None]
    if len(given) > 1:
        raise bad_argument(" and ".join(given), "all of them", "one way to search at a time")
    table = {"--unclaimed": unclaimed, "--offset": offset > 0, "--sort": sort != "row"}
    if given and given != ["WORDS"] and any(table.values()):
        raise bad_argument(", ".join(option for option, is_given in table.items() if is_given), f"with {given[0]}",
                           "the table of features, or WORDS")  # fmt: skip
    mapped = _mapped(common)
    if not given or any(table.values()) or (words is not None and verdict):
        filters = {**({"query": words} if words is not None else {}), **({"verdict": verdict} if verdict else {}),
                   **({"claimed": False} if unclaimed else {})}  # fmt: skip
        rows, total = mapped.rows(name, sort, offset, limit, filters)
        shown = f"{offset + 1} to {offset + len(rows)} of {total}" if rows else f"none of {total}"
        common.emit({"set": mapped.set(name).id, "rows": rows, "total": total, "offset": offset},
                    lambda: "\n".join([*(row_line(row) for row in rows), shown]))  # fmt: skip
        return
    hits = _searched(mapped, name, ways, role, exact, limit, verdict or "")
    record = {"set": mapped.set(name).id, "hits": [asdict(hit) for hit in hits]}
    common.emit(record, lambda: "\n".join(hit_line(hit) for hit in hits) or "none")


def _searched(
    mapped: "Mapped", name: str, ways: dict[str, str | None], role: str, exact: bool, limit: int, verdict: str
) -> "list[Hit]":  # fmt: skip
    if (text := ways["--similar"]) is not None:
        return mapped.find_similar(text, name, limit, verdict=verdict)
    if (token := ways["--token"]) is not None:
        return mapped.by_token(token, name, role, exact, limit, verdict)
    if (task := ways["--task"]) is not None:
        return mapped.by_task(task, name, limit, verdict)
    if (circuit := ways["--circuit"]) is not None:
        return mapped.by_circuit(circuit, name, limit, verdict)
    return mapped.find_text(ways["WORDS"] or "", name, limit)


@atlas.command()
@click.argument("feature")
@click.option("--set", "name", default="", metavar="SET", help=SET_HELP)
@click.option("--contexts", default=12, show_default=True, type=click.IntRange(0), help="Contexts to print; JSON has all.")
@common_options
def show(common: Common, feature: str, name: str, contexts: int) -> None:
    """Everything the atlas knows of FEATURE: its name, or the number of the unit."""
    from assay.cli.atlas_text import page_lines

    mapped = _mapped(common)
    page = mapped.page(name, _named(mapped, name, feature))
    common.emit(page.to_json(), lambda: "\n".join(page_lines(page, contexts)))


def _named(mapped: "Mapped", name: str, feature: str) -> str:
    """A feature's name; of a bare number the one with this unit."""
    if not feature.isdigit():
        return feature
    rows, _ = mapped.rows(name, limit=1, filters={"unit": int(feature)})
    if not rows:
        raise bad_argument("FEATURE", feature, f"names or numbers of units in set {mapped.set(name).id}",
                           "See: assay atlas find")  # fmt: skip
    return rows[0]["name"]


@atlas.command()
@click.argument("first", metavar="SET")
@click.argument("second", metavar="OTHER_SET")
@click.option("--other-atlas", metavar="DIR", help="The atlas of OTHER_SET. Default: the same one.")
@click.option("--how", default="", metavar="WAY", help="name or tokens. Default: by name where the units are the same ones.")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(0, 10_000), help="Features of each list.")
@common_options
def diff(common: Common, first: str, second: str, other_atlas: str | None, how: str, limit: int) -> None:
    """What changed between two maps: features that are the same, changed, or only in one."""
    from assay.atlas.mapped import Mapped
    from assay.cli.atlas_text import diff_lines

    if how == "given":
        raise bad_argument("--how", how, "name, tokens")
    other = Mapped(other_atlas) if other_atlas else None
    found = _mapped(common).diff(first, second, other, how, limit=limit)
    common.emit(found.to_json(), lambda: "\n".join(diff_lines(found)))


@atlas.command()
@click.argument("name", metavar="[SET]", default="")
@common_options
def index(common: Common, name: str) -> None:
    """Make the index that find --similar needs, over all explanations of a set, and link what names its features.

    That is claims, circuits, attribution graphs and effects on tasks that this atlas holds. Interrupted, the same command
    goes on.
    """
    from assay.atlas.linked import link_all

    mapped = _mapped(common)
    chosen = mapped.set(name)
    with common.progress("explanations", chosen.features) as report:
        mapped.index_meaning(chosen.id, report=report)
    links = link_all(mapped)
    record = {"set": chosen.id, "features": chosen.features, "claim_links": links["claim"], "links": links}
    words = ", ".join(f"{n:,} to {kind}s" for kind, n in links.items())
    shown = f"{chosen.id}: explanations of {chosen.features:,} features can be found by meaning; links: {words}"
    common.emit(record, lambda: shown)


NONE = "no features are mapped in this atlas yet: assay map MODEL"


def _mapped(common: Common) -> "Mapped":
    from assay.atlas.mapped import Mapped

    if not common.atlas.is_dir():
        raise UsageError(f"atlas {common.atlas}: there is none here. Make one: assay map MODEL, or give --atlas DIR.")
    return Mapped(common.atlas)
