"""Finding mapped features: what the search page and the verb `find_features` do alike."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from assay.app.arguments import Schema, string
from assay.app.blocks import column, href, table
from assay.app.sets import short

if TYPE_CHECKING:
    from assay.app.workspace import Workspace
    from assay.atlas.mapped_records import Hit

WAYS = {
    "words": "explanations with all these words", "meaning": "explanations that mean the like",
    "fires": "is on at this token", "promoted": "raises this token", "suppressed": "lowers this token",
    "task": "matters for this task", "circuit": "is in this circuit",
}  # fmt: skip
ROLES = {"fires": "fires", "promoted": "promotes", "suppressed": "suppresses"}
MOST = 50


def set_name() -> Schema:
    """The argument `set`."""
    return string("A feature set: its id or the beginning of it. Default: the newest.", default="", longest=200)


def how() -> Schema:
    """The argument `how`."""
    ways = "; ".join(f"{name}: {words}" for name, words in WAYS.items())
    return string(f"What is searched. {ways}.", "words", tuple(WAYS))


def find(workspace: "Workspace", arguments: Mapping[str, Any], limit: int = MOST, verdict: str = "") -> "list[Hit]":
    """Features that a query finds; with `verdict` only those with a claim that stands so.

    Raises UsageError for a query without words, no such set, or an index that is missing.
    """
    mapped, query, name = workspace.mapped, arguments["query"], arguments["set"]
    ways: Mapping[str, Any] = {"words": mapped.find_text, "meaning": mapped.find_similar, "task": mapped.by_task,
                               "circuit": mapped.by_circuit}  # fmt: skip
    if arguments["how"] in ways:
        return ways[arguments["how"]](query, name, limit=limit, verdict=verdict)
    return mapped.by_token(query, name, role=ROLES[arguments["how"]], limit=limit, verdict=verdict)


def hits_table(hits: "list[Hit]", how: str) -> Any:
    """What was found, best first."""
    rows = [{"feature": {"value": short(hit.feature), "href": href("feature", set=hit.set, feature=hit.feature)},
             "text": hit.text or "(none)", "value": hit.value, "why": hit.why} for hit in hits]  # fmt: skip
    label = {"words": "relevance", "meaning": "similarity", "fires": "share of the times it is on", "task": "effect"}
    return table("hits", [column("feature", "feature", "link", "feature"), column("text", "explanation", help="explanation"),
                          column("value", label.get(how, "value"), "bar"), column("why", "found by")], rows,
                 title=f"{len(rows)} found" if rows else "Nothing found")  # fmt: skip
