"""Claims: the ledger of everything that was stated, tested and found, failures included."""

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from assay.app.arguments import integer, string
from assay.app.blocks import Bar, bars, column, facts, form, href, table, text
from assay.app.cards import VERDICTS, first_steps, ledger_facts, newest_claims
from assay.app.documents import Made, page
from assay.report.story import percent

if TYPE_CHECKING:
    from assay.app.workspace import Workspace

LIMIT, NEWEST = 50, 12
COLUMNS = [column("statement", "claim", "link", "claim"), column("verdict", "verdict", "verdict", "verdict"),
           column("kind", "kind"), column("created", "stated")]  # fmt: skip


@page("claims", "Claims", "Every claim that was stated and tested here, failures included: a finding is worth what it was"
      " chosen from.", group="Evidence", verdict=string("Only claims with this verdict.", choices=VERDICTS),
      kind=string("Only claims of this kind.", longest=40),
      offset=integer("Claims to skip, newest first.", 0, 0, 10_000_000))  # fmt: skip
def claims(workspace: "Workspace", arguments: Mapping[str, Any]) -> Made:
    """Counts, the list, what was entered last, and how often the tests themselves err."""
    from assay.evidence.kinds import KINDS

    kind = arguments.get("kind", "")
    if kind:
        KINDS.get(kind)
    if workspace.is_empty:
        return Made([text("start", *first_steps(
            ("assay demo", "states and tests two claims about the packaged model"),
            ("assay claim state MODEL TASK SITES", "states one of your own"),
        ))], empty=True)  # fmt: skip
    verdict, offset = arguments.get("verdict", ""), arguments["offset"]
    rows, total = newest_claims(workspace, offset, LIMIT, arguments)
    counts, entries = workspace.counts(), workspace.known("entries", lambda: newest_entries(workspace.store))
    listed = [{"statement": {"value": row.statement, "href": href("claim", claim=row.claim)},
               "verdict": row.verdict, "kind": row.kind + (", imported" if row.imported else ""),
               "created": row.created[:16].replace("T", " ")} for row in rows]  # fmt: skip
    chosen = " and ".join(filter(None, (verdict, kind and f"kind {kind}")))
    return Made([
        facts("counts", ledger_facts(counts), title="The ledger", help="ledger"),
        table("claims", COLUMNS, listed, total=total, offset=offset, limit=LIMIT, param="offset",
              title=f"Claims that are {chosen}" if chosen else "Claims, newest first"),
        table("entries", [column("index", "entry", "number"), column("time", "time"), column("kind", "what"),
                          column("about", "about", "link")], entries, title="Written last", help="ledger"),
        form("verify", "verify", "read", [], "Check everything",
             note="Checks the chain of the ledger and derives every verdict again from what is stored."),
        *error_rates(),
    ])  # fmt: skip


def newest_entries(store: Any) -> list[dict[str, Any]]:
    """The last lines of the ledger, newest first."""
    with store.reading() as db:
        found = db.execute('SELECT "index", "time", kind, body->>\'$.claim\' FROM ledger ORDER BY "index" DESC'
                           f" LIMIT {NEWEST}").fetchall()  # fmt: skip
    return [{"index": index, "time": str(time)[:16].replace("T", " "), "kind": kind,
             "about": {"value": claim, "href": href("claim", claim=claim)} if claim else ""}
            for index, time, kind, claim in found]  # fmt: skip


@cache
def error_rates() -> list[Any]:
    """How often the battery called a planted falsehood supported, by kind: the upper end of the 95% interval."""
    from assay.evidence.card import error_rates as rates_of
    from assay.evidence.kinds import KINDS

    found = [(name, rates_of(name)) for name in KINDS.names()]
    items: list[Bar] = [
        {"label": f"{name} ({rates['null']['supported']} of {rates['null']['n']})", "value": rates["null"]["upper95"]}
        for name, rates in found if rates and rates.get("null")
    ]  # fmt: skip
    if not items:
        return []
    return [bars("rates", items, "false claims called supported, at most", title="How often the tests are wrong",
                 help="error rate", note=f"With 95% confidence; {percent(0.05)} is allowed. In brackets: how often it happened."
                 )]  # fmt: skip
