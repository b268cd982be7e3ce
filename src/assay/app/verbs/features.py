"""Verbs that read mapped features: find them, read one, list a set, list the sets."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from assay.app.arguments import integer, string
from assay.app.blocks import column, facts, href, table
from assay.app.cards import VERDICTS
from assay.app.documents import make_document
from assay.app.found import MOST, find, hits_table, how, set_name
from assay.app.sets import feature_columns, feature_rows, name_of, sets_of, share_words, unexplained_of
from assay.app.verbs import Report, Result, verb
from assay.records import plain

if TYPE_CHECKING:
    from assay.app.workspace import Workspace

Arguments = Mapping[str, Any]


@verb("find_features", "read", "Mapped features by words or meaning of their explanations, by token, by task or by circuit.",
      required=("query",), query=string("What to look for.", longest=400), how=how(), set=set_name(),
      verdict=string("Only features with a claim of this verdict.", choices=VERDICTS),
      limit=integer("How many at most.", 20, 1, MOST))  # fmt: skip
def find_features(workspace: "Workspace", arguments: Arguments, report: Report) -> Result:
    hits = find(workspace, arguments, arguments["limit"], arguments.get("verdict", ""))
    return {"record": {"hits": plain(hits)}, "blocks": [hits_table(hits, arguments["how"])]}


@verb("feature_show", "read", "One mapped feature: explanations with scores and baselines, contexts, output, claims.",
      required=("feature",), feature=string("Its name, or its row in the set.", longest=400), set=set_name())  # fmt: skip
def feature_show(workspace: "Workspace", arguments: Arguments, report: Report) -> Result:
    from assay.app.pages.feature import find_feature

    found = find_feature(workspace, arguments["set"], arguments["feature"])
    document = make_document(workspace, "feature", {"set": found.set.id, "feature": found.record.name})
    return {"record": found.to_json(), "blocks": document["blocks"]}


@verb("feature_list", "read", "The table of a feature set, sorted and filtered.", set=set_name(),
      sort=string("row, name, density, largest, fired, contexts, explained, score_<scorer>, spread_<basis>; - before it: the"
                  " largest first.", "-density", longest=80),
      verdict=string("Only features with a claim of this verdict.", choices=VERDICTS),
      query=string("Only features whose explanations hold these words.", longest=400),
      offset=integer("Rows to skip.", 0, 0, 100_000_000), limit=integer("How many at most.", 20, 1, 200))  # fmt: skip
def feature_list(workspace: "Workspace", arguments: Arguments, report: Report) -> Result:
    chosen = workspace.mapped.set(arguments["set"])
    filters = {name: arguments[name] for name in ("verdict", "query") if arguments.get(name)}
    rows, total = workspace.mapped.rows(chosen.id, arguments["sort"], arguments["offset"], arguments["limit"], filters)
    shown = table("features", feature_columns(rows), feature_rows(chosen.id, rows), title=f"{len(rows)} of {total}")
    return {"record": {"set": chosen.id, "total": total, "offset": arguments["offset"], "features": rows}, "blocks": [shown]}


@verb("feature_sets", "read", "The mapped feature sets, with what share of each is explained and what is not.")
def feature_sets(workspace: "Workspace", arguments: Arguments, report: Report) -> Result:
    sets = sets_of(workspace)
    summaries = [workspace.mapped.summary(one.id) for one in sets]
    rows = [{"set": {"value": name_of(one), "href": href("search", set=one.id)}, "id": one.id,
             "features": summary["features"]["all"],
             "explained": share_words(summary["features"]["explained"], summary["features"]["active"]),
             "supported": share_words(summary["features"]["supported"], summary["features"]["active"])}
            for one, summary in zip(sets, summaries, strict=True)]  # fmt: skip
    columns = [column("set", "set", "link"), column("id", "id"), column("features", "features", "number"),
               column("explained", "with an explanation"), column("supported", "supported")]  # fmt: skip
    records = [{"id": one.id, **plain(one), **summary, "unexplained": unexplained_of(summary)}
               for one, summary in zip(sets, summaries, strict=True)]  # fmt: skip
    blocks = [table("sets", columns, rows)] if rows else [facts("none", [{"label": "feature sets", "value": 0, "note":
                                                                           "Make one: assay map MODEL"}])]  # fmt: skip
    return {"record": {"sets": records}, "blocks": blocks}


@verb("feature_sets_compare", "read", "Two mapped sets: features in pairs, which changed and how, which have no partner.",
      required=("a", "b"), a=string("A feature set: its id or the beginning of it.", longest=200),
      b=string("The other.", longest=200),
      how=string("How features are paired. Default: by name for the same units, else by tokens.",
                 choices=("name", "tokens")))  # fmt: skip
def feature_sets_compare(workspace: "Workspace", arguments: Arguments, report: Report) -> Result:
    from assay.app.pages.compare import changes_of

    found = workspace.mapped.diff(arguments["a"], arguments["b"], how=arguments.get("how", ""))
    return {"record": found.to_json(), "blocks": changes_of(found)}
