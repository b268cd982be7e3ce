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
MOST = 50


def set_name() -> Schema:
    """The argument `set`."""
    return string("A feature set: its id or the beginning of it. Default: the newest.", default="", longest=200)


def how() -> Schema:
    """The argument `how`."""
    ways = "; ".join(f"{name}: {words}" for name, words in WAYS.items())
    return string(f"What is searched. {ways}.", "words", tuple(WAYS))


def find(workspace: "Workspace", arguments: Mapping[str, Any], limit: int = MOST) -> "list[Hit]":
    """Features that a query finds. Raises UsageError for a query without words, no such set, or an index that is missing."""
    mapped, query, name = workspace.mapped, arguments["query"], arguments["set"]
    ways = {
        "words": lambda: mapped.find_text(query, name, limit), "meaning": lambda: mapped.find_similar(query, name, limit),
        "task": lambda: mapped.by_task(query, name, limit), "circuit": lambda: mapped.by_circuit(query, name, limit),
    }  # fmt: skip
    if arguments["how"] in ways:
        return ways[arguments["how"]]()
    return mapped.by_token(query, name, role=arguments["how"], limit=limit)


def hits_table(hits: "list[Hit]", how: str) -> Any:
    """What was found, best first."""
    rows = [{"feature": {"value": short(hit.feature), "href": href("feature", set=hit.set, feature=hit.feature)},
             "text": hit.text or "(none)", "value": hit.value, "why": hit.why} for hit in hits]  # fmt: skip
    label = {"words": "relevance", "meaning": "similarity", "fires": "share of the times it is on", "task": "effect"}
    return table("hits", [column("feature", "feature", "link", "feature"), column("text", "explanation", help="explanation"),
                          column("value", label.get(how, "value"), "bar"), column("why", "found by")], rows,
                 title=f"{len(rows)} found" if rows else "Nothing found")  # fmt: skip
