"""Compare: two maps side by side, of two models or two dictionaries."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from assay.app.arguments import string
from assay.app.blocks import Field, Point, column, facts, form, href, scatter, table, term, text, words
from assay.app.cards import first_steps
from assay.app.documents import Made, page
from assay.app.sets import UNITS, name_of, score_label, sets_of, share_words, short, unexplained_of
from assay.report.story import percent

if TYPE_CHECKING:
    from assay.app.workspace import Workspace
    from assay.atlas.mapped_diff import Change, MapDiff
    from assay.atlas.mapped_records import SetRecord

SET = "A feature set: its id or the beginning of it."
HOW = {"name": "by name", "tokens": "by the tokens they are on at", "given": "as given"}
CHANGES = ("density", "tokens", "explanation", "verdict")
COLUMNS = [column("a", "first", "link", "feature"), column("b", "second", "link"), column("changes", "changed"),
           column("da", "first: is on at", "percent", "density"), column("db", "second: is on at", "percent", "density"),
           column("overlap", "tokens in common", "percent", "token"), column("said", "explanation", help="explanation"),
           column("similarity", "similarity", "number")]  # fmt: skip


@page("compare", "Compare", "Two maps side by side: a model and its fine-tuned copy, or two dictionaries.", group="Features",
      a=string(f"{SET} Default: the one before the newest.", default="", longest=200),
      b=string(f"{SET} Default: the newest.", default="", longest=200),
      how=string("How features are paired. Default: by name for the same units, else by the tokens they fire on.",
                 choices=("name", "tokens")))  # fmt: skip
def compare(workspace: "Workspace", arguments: Mapping[str, Any]) -> Made:
    """Counts of both, and their features in pairs: which changed, and which have no partner."""
    sets = sets_of(workspace)
    named = {side: workspace.mapped.set(arguments[side]) for side in ("a", "b") if arguments[side]}
    if len(sets) < 2:
        return Made([text("start", *first_steps(
            ("assay map MODEL", "a first map"), ("assay map MODEL --dictionary OTHER", "a second one, to compare with"),
        ))], empty=True, intro=words("There are fewer than two maps (", term("map"), ") in this atlas."))  # fmt: skip
    mapped = workspace.mapped
    a, b = named.get("a", sets[1]), named.get("b", sets[0])
    blocks = [_form(sets, a, b), _counts(workspace, a, b)]
    if a.id == b.id:
        blocks.append(text("same", "These are the same set."))
    else:
        blocks += changes_of(mapped.diff(a.id, b.id, how=arguments.get("how", "")))
    return Made(blocks, intro=f"{name_of(a)}, and {name_of(b)}.")


def _form(sets: "list[SetRecord]", a: "SetRecord", b: "SetRecord") -> Any:
    names = [one.id for one in sets]
    fields: list[Field] = [{"name": "a", "label": "first", "kind": "choice", "value": a.id, "choices": names},
                           {"name": "b", "label": "second", "kind": "choice", "value": b.id, "choices": names}]  # fmt: skip
    return form("sets", "feature_sets", "read", fields, "Compare", page="compare")


def _counts(workspace: "Workspace", a: "SetRecord", b: "SetRecord") -> Any:
    """What both maps say of themselves."""
    sides = [(one, workspace.mapped.summary(one.id)) for one in (a, b)]
    rows: list[dict[str, Any]] = []

    def line(what: str, values: list[Any]) -> None:
        rows.append({"what": what, "a": values[0], "b": values[1]})

    line("model", [one.model for one, _ in sides])
    line("units", [f"{summary['features']['all']:,} {UNITS[one.unit]}" for one, summary in sides])
    line("corpus", [one.corpus for one, _ in sides])
    line("tokens read", [f"{one.tokens:,}" for one, _ in sides])
    for name, label in (("explained", "with an explanation"), ("supported", "supported"), ("refuted", "refuted")):
        line(label, [share_words(summary["features"][name], summary["features"]["active"]) for _, summary in sides])
    left = [{item["what"].removeprefix("of "): percent(item["share"]) for item in unexplained_of(summary)
             if item["share"] is not None} for _, summary in sides]  # fmt: skip
    for what in dict.fromkeys(what for side in left for what in side):
        line(what, [side.get(what) for side in left])
    scores = [dict(summary.get("scores") or {}) for _, summary in sides]
    for name in dict.fromkeys(name for side in scores for name in side):
        line(f"{score_label(name)}: {name}" if score_label(name) != name else name, [_value(side.get(name)) for side in scores])
    columns = [column("what", ""), column("a", "first"), column("b", "second")]
    return table("counts", columns, rows, title="Both maps", width="full")


def _value(score: Any) -> Any:
    return score.get("value") if isinstance(score, Mapping) else score


def changes_of(found: "MapDiff") -> list[Any]:
    """What a comparison found: counts, pairs that changed, features without a partner."""
    counts = found.counts
    made: list[Any] = [facts("pairs", [
        {"label": "pairs", "value": counts["pairs"], "note": HOW[found.how]}, {"label": "the same", "value": counts["same"]},
        {"label": "changed", "value": counts["changed"]}, {"label": "only in the first", "value": counts["only_a"]},
        {"label": "only in the second", "value": counts["only_b"]},
        *({"label": f"changed: {name}", "value": counts[name]} for name in CHANGES if name in counts),
    ], title="What changed", note=_bars(found))]  # fmt: skip
    if found.changed:
        made += [_densities(found), table("changed", COLUMNS, [_row(each, found) for each in found.changed],
                                          title="Changed most", help="feature")]  # fmt: skip
    for side, name, listed in ((found.a, "first", found.only_a), (found.b, "second", found.only_b)):
        rows = [{"name": {"value": short(feature), "href": href("feature", set=side.id, feature=feature)}, "text": said or "–"}
                for feature, said in listed]  # fmt: skip
        if rows:
            made.append(table(f"only-{name}", [column("name", "feature", "link"), column("text", "explanation")], rows,
                              title=f"Only in the {name}"))  # fmt: skip
    return made


def _bars(found: "MapDiff") -> str:
    bars = found.bars
    return (f"Changed: on more than {bars['density']:g} times as often, less than {percent(bars['overlap'])} of its tokens the"
            " same, explained otherwise, or with other verdicts.")  # fmt: skip


def _densities(found: "MapDiff") -> Any:
    points: list[Point] = [{"x": each.density[0], "y": each.density[1], "label": each.a, "group": ", ".join(each.changes),
                            "href": href("feature", set=found.b.id, feature=each.b)} for each in found.changed]  # fmt: skip
    return scatter("densities", points, {"label": "share of tokens, first", "log": True},
                   {"label": "share of tokens, second", "log": True}, title="How often changed features are on",
                   help="density")  # fmt: skip


def _row(each: "Change", found: "MapDiff") -> dict[str, Any]:
    return {
        "a": {"value": short(each.a), "href": href("feature", set=found.a.id, feature=each.a)},
        "b": {"value": short(each.b), "href": href("feature", set=found.b.id, feature=each.b)}, "similarity": each.similarity,
        "da": each.density[0], "db": each.density[1], "overlap": each.overlap, "changes": ", ".join(each.changes),
        "said": " | ".join(each.text) if each.text[0] != each.text[1] else each.text[0] or "–",
    }  # fmt: skip
