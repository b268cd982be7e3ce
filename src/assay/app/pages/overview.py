"""Overview: what is not known, what is known, and what was tried, on one screen."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from assay.app.blocks import LinkItem, Share, claims, column, facts, href, links, table, text, unexplained
from assay.app.cards import card_of, first_steps, ledger_facts
from assay.app.documents import Made, page
from assay.app.sets import name_of, share_words, unexplained_of
from assay.report.story import unexplained_rows

if TYPE_CHECKING:
    from assay.app.workspace import Workspace
    from assay.atlas.mapped_records import SetRecord

CARDS, SETS, LOOKED = 4, 20, 40
DECIDED = ("supported", "refuted", "inconclusive")
Summaries = list[tuple["SetRecord", Mapping[str, Any]]]


@page("overview", "Overview", "What is known about this model, what is not, and how many claims were tried.", group="Start")
def overview(workspace: "Workspace", arguments: Mapping[str, Any]) -> Made:
    """Unexplained shares first, then counts, maps, and the newest findings of each verdict."""
    if workspace.is_empty:
        return Made([_start(workspace), *_ways()], empty=True)
    mapped = workspace.mapped
    summaries: Summaries = [(record, mapped.summary(record.id)) for record in mapped.sets()[:SETS]]
    cards, rest, models = workspace.known("overview", lambda: _of_claims(workspace))
    names = sorted({*models, *(record.model for record, _ in summaries)})
    blocks: list[Any] = []
    shares = [*(unexplained_of(summaries[0][1]) if summaries else []), *rest]
    if shares:
        blocks.append(unexplained("unexplained", shares, title="Not explained", help="unexplained",
                                  note=f"Of the newest map: {name_of(summaries[0][0])}." if summaries else ""))  # fmt: skip
    blocks.append(facts("counts", ledger_facts(workspace.counts()), title="What was tried", help="ledger"))
    blocks += _maps(summaries) or [text("unmapped", *_how_to_map(workspace), title="No map yet", help="map")]
    if cards:
        blocks.append(claims("newest", cards, title="Newest findings", help="verdict"))
    title = f"What is inside {' and '.join(names)}?" if names else ""
    return Made([*blocks, *_ways()], title=title)


def _of_claims(workspace: "Workspace") -> tuple[list[Any], list[Share], list[str]]:
    """What the ledger gives: cards of the newest findings, what circuits leave open, and the models of the newest claims."""
    with workspace.store as store:
        total = store.listing(1)[1]
        rows = store.listing(LOOKED, max(0, total - LOOKED))[0][::-1]
        cards = [card_of(workspace, row.claim) for row in [row for row in rows if row.verdict in DECIDED][:CARDS]]
        return cards, _left_open(store), [str(model) for (model,) in _models(store, [row.claim for row in rows])]


def _start(workspace: "Workspace") -> Any:
    name = workspace.model or "smollm2-135m"
    return text("start", *first_steps(
        ("assay demo", "a first finding about the packaged model, tested, and a small map"),
        (f"assay tasks {name}", "which behaviours the model shows"),
        (f"assay map {name}", "features, what they respond to, and how sure that is"),
    ), title="This atlas is empty")  # fmt: skip


def _how_to_map(workspace: "Workspace") -> list[Any]:
    return [["Features with explanations and scores come from a map: ",
             {"text": f"assay map {workspace.model or 'MODEL'}", "strong": True}, "."]]  # fmt: skip


def _ways() -> list[Any]:
    items: list[LinkItem] = [
        {"label": "Search the map", "href": href("search"), "note": "features by words, meaning, token or task"},
        {"label": "Claims", "href": href("claims"), "note": "everything that was tested, failures included"},
        {"label": "Glossary", "href": href("glossary"), "note": "what the words mean"},
    ]  # fmt: skip
    return [links("ways", items, title="Go on")]


def _maps(summaries: Summaries) -> list[Any]:
    """One row for each map: how much of it is explained, and how much of that is supported."""
    rows = []
    for record, summary in summaries:
        found = summary["features"]
        active = found.get("active", 0)
        rows.append({
            "set": {"value": name_of(record), "href": href("search", set=record.id)}, "features": found.get("all", 0),
            "mapped": found.get("mapped", 0), "active": active, "explained": share_words(found.get("explained", 0), active),
            "supported": share_words(found.get("supported", 0), active), "refuted": found.get("refuted", 0),
            "tokens": record.tokens, "created": record.created[:10],
        })  # fmt: skip
    columns = [column("set", "map", "link", "map"), column("features", "features", "number", "feature"),
               column("mapped", "mapped", "number"), column("active", "of them active", "number"),
               column("explained", "with an explanation", help="explanation"),
               column("supported", "supported", help="supported"), column("refuted", "refuted", "number", "refuted"),
               column("tokens", "tokens read", "number", "token"), column("created", "made")]  # fmt: skip
    return [table("maps", columns, rows, title="Maps", help="map")] if rows else []


def _left_open(store: Any) -> list[Share]:
    """What the newest supported claims about circuits leave of their task, by their own measurement."""
    with store.reading() as db:
        found = db.execute("SELECT c.id, c.body->>'$.task.name' FROM standing s JOIN claims c ON c.id = s.claim"
                           " WHERE s.verdict = 'supported' AND c.kind = 'mediates' ORDER BY c.created DESC LIMIT 2"
                           ).fetchall()  # fmt: skip
    shares: list[Share] = []
    for claim, task in found:
        verdict = store.verdict(claim)
        rows = unexplained_rows((verdict.unexplained or {}).get("confirm") or {}) if verdict else []
        words = {"not restored": f"of task {task} is not brought back by the claimed parts alone",
                 "left when ablated": f"of task {task} is left when the claimed parts are switched off"}  # fmt: skip
        for row in rows:
            what = words.get(row["name"], f"{row['name']}, task {task}")
            shares.append({"what": what, "share": row["share"], "note": claim})
    return shares


def _models(store: Any, claims: list[str]) -> list[Any]:
    with store.reading() as db:
        return db.execute("SELECT DISTINCT body->>'$.subject.model' AS model FROM claims WHERE id IN (SELECT"
                          " unnest(?::VARCHAR[])) AND model IS NOT NULL LIMIT 5", [claims]).fetchall()  # fmt: skip
