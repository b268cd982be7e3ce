"""Search: features by words, meaning, token, task or circuit, and the table of all of them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from assay.app.arguments import integer, string
from assay.app.blocks import Field, LinkItem, Point, Share, facts, form, href, links, scatter, table, text, unexplained
from assay.app.cards import VERDICTS, first_steps
from assay.app.documents import Made, page
from assay.app.forms import form_of
from assay.app.found import WAYS, find, hits_table, how, set_name
from assay.app.sets import UNITS, feature_columns, feature_rows, name_of, quiet, sets_of, share_words, short, unexplained_of

if TYPE_CHECKING:
    from assay.app.workspace import Workspace
    from assay.atlas.mapped_records import SetRecord

LIMIT = 50
LEFT_OUT = (("no explanation", "why_not"), ("not claimed", "not_claimed"), ("undecided", "reasons"))
ANY = "any"
OTHER_WAYS = ("words", "meaning", "fires")


@page("search", "Search the map", "Mapped features: find them, or read the table.", group="Features", set=set_name(),
      query=string("What to look for. Without it: the table.", default="", longest=400), how=how(),
      verdict=string("Only features with a claim of this verdict.", ANY, (ANY, *VERDICTS)),
      sort=string("A column of the table; with - before it, the largest first.", "-density", longest=80),
      offset=integer("Rows to skip.", 0, 0, 100_000_000))  # fmt: skip
def search(workspace: "Workspace", arguments: Mapping[str, Any]) -> Made:
    """A form, what it finds, and otherwise the table of the set."""
    sets = sets_of(workspace)
    if not sets and not arguments["set"]:
        name = workspace.model or "smollm2-135m"
        return Made([text("start", *first_steps((f"assay map {name}", "features with explanations and scores"))),
                     *_make(workspace)], empty=True)  # fmt: skip
    chosen = workspace.mapped.set(arguments["set"])
    blocks = [_form(arguments, sets, chosen)]
    if arguments["query"].strip():
        verdict = "" if arguments["verdict"] == ANY else arguments["verdict"]
        hits = find(workspace, arguments, verdict=verdict)
        blocks += [hits_table(hits, arguments["how"]), *([] if hits else _other_ways(arguments, chosen))]
    else:
        blocks += [_table(workspace, arguments, chosen), *_plane(workspace, chosen), *_about(workspace, chosen)]
    return Made([*blocks, *_others(sets, chosen)], intro=name_of(chosen))


def _make(workspace: "Workspace") -> list[Any]:
    """The form that makes a map, where there is a model to map."""
    if workspace.model is None:
        return []
    return [form_of("map-form", "map", "Map it", ("tokens", "features", "site", "seed"), title="Map the model", help="map",
                    note="200,000 tokens of a model of 135M parameters take two cores about a quarter of an hour.")]


def _form(arguments: Mapping[str, Any], sets: "list[SetRecord]", chosen: "SetRecord") -> Any:
    """Fields for the arguments of this page."""
    fields: list[Field] = [
        {"name": "query", "label": "Look for", "kind": "text", "value": arguments["query"]},
        {"name": "how", "label": "in", "kind": "choice", "value": arguments["how"], "choices": list(WAYS)},
        {"name": "verdict", "label": "with a claim that is", "kind": "choice", "value": arguments["verdict"],
         "choices": [ANY, *VERDICTS], "help": "verdict"},
    ]  # fmt: skip
    if len(sets) > 1:
        names = [one.id for one in sets]
        fields.append({"name": "set", "label": "set", "kind": "choice", "value": chosen.id, "choices": names})
    fixed = {"set": chosen.id} if len(sets) == 1 else {}
    return form("search", "find_features", "read", fields, "Search", page="search", fixed=fixed)


def _table(workspace: "Workspace", arguments: Mapping[str, Any], chosen: "SetRecord") -> Any:
    offset, sort, verdict = arguments["offset"], arguments["sort"], arguments["verdict"]
    filters = {} if verdict == ANY else {"verdict": verdict}
    rows, total = workspace.mapped.rows(chosen.id, sort, offset, LIMIT, filters)
    title = "All features" if verdict == ANY else f"Features with a claim that is {verdict}"
    return table("features", feature_columns(rows), feature_rows(chosen.id, rows), total=total, offset=offset, limit=LIMIT,
                 param="offset", sort=sort, title=title, help="feature")  # fmt: skip


def _plane(workspace: "Workspace", chosen: "SetRecord") -> list[Any]:
    """Features by what is said of them, like meanings near each other; nothing where meanings are not indexed yet."""
    placed = quiet(workspace.mapped.plane, chosen.id) or []
    points: list[Point] = [{"x": x, "y": y, "label": f"{short(hit.feature)}: {hit.text}", "group": hit.why or "no claim",
                            "href": href("feature", set=chosen.id, feature=hit.feature)} for hit, x, y in placed]  # fmt: skip
    if not points:
        return []
    return [scatter("plane", points, {"label": "first direction of meaning"}, {"label": "second direction of meaning"},
                    title="By what is said of them", help="explanation")]  # fmt: skip


def _other_ways(arguments: Mapping[str, Any], chosen: "SetRecord") -> list[Any]:
    """Where nothing was found: the same query in other ways."""
    items: list[LinkItem] = [{"label": words, "href": href("search", set=chosen.id, query=arguments["query"], how=name)}
                             for name, words in WAYS.items() if name in OTHER_WAYS and name != arguments["how"]]  # fmt: skip
    return [links("other-ways", items, title="Look for it in another way")]


def _about(workspace: "Workspace", chosen: "SetRecord") -> list[Any]:
    """What the map of this set leaves open, and what it holds."""
    summary = workspace.mapped.summary(chosen.id)
    found = summary["features"]
    shares: list[Share] = unexplained_of(summary)
    reasons = {f"{word}: {reason}": n for word, key in LEFT_OUT for reason, n in dict(summary.get(key) or {}).items()}
    return [
        *([unexplained("unexplained", shares, title="Not explained", help="unexplained")] if shares else []),
        facts("set", [
            {"label": UNITS[chosen.unit], "value": found["all"]}, {"label": "active", "value": found["active"]},
            {"label": "with an explanation", "value": share_words(found["explained"], found["active"]), "help": "explanation"},
            {"label": "with a claim", "value": share_words(found["claimed"], found["active"]), "help": "claim"},
            {"label": "supported", "value": share_words(found["supported"], found["active"]), "help": "supported"},
            {"label": "refuted", "value": found["refuted"], "help": "refuted"},
            *({"label": reason, "value": n, "help": "unexplained"} for reason, n in reasons.items()),
            {"label": "corpus", "value": chosen.corpus}, {"label": "tokens read", "value": chosen.tokens},
        ], title="This set"),
    ]  # fmt: skip


def _others(sets: "list[SetRecord]", chosen: "SetRecord") -> list[Any]:
    items: list[LinkItem] = [{"label": name_of(one), "href": href("search", set=one.id), "note": one.corpus}
                             for one in sets if one.id != chosen.id]  # fmt: skip
    return [links("sets", items, title="Other sets")] if items else []
