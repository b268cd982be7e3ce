"""Verbs that read what was stated and measured: the overview, claims and their cards, the ledger."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from assay.app.arguments import integer, string
from assay.app.blocks import claims, facts
from assay.app.cards import VERDICTS, card_of, ledger_facts, newest_claims
from assay.app.documents import make_document
from assay.app.sets import name_of, sets_of, unexplained_of
from assay.app.verbs import Report, Result, verb
from assay.records import plain

if TYPE_CHECKING:
    from assay.app.workspace import Workspace

Arguments = Mapping[str, Any]
MOST = 200


@verb("overview", "read", "What is known in this atlas, what is not explained, and how much was tried.")
def overview(workspace: "Workspace", arguments: Arguments, report: Report) -> Result:
    document = make_document(workspace, "overview")
    maps = [{"set": one.id, "about": name_of(one), **workspace.mapped.summary(one.id)} for one in sets_of(workspace)]
    record = {"counts": document["counts"], "maps": maps, "unexplained": unexplained_of(maps[0]) if maps else [],
              "empty": document["empty"], "title": document["title"]}  # fmt: skip
    return {"record": record, "blocks": document["blocks"]}


@verb("claim_list", "read", "Claims with their verdicts, newest first, and the counts of all, failures included.",
      verdict=string("Only this verdict.", choices=VERDICTS), kind=string("Only this kind.", longest=40),
      offset=integer("Claims to skip.", 0, 0, 10_000_000), limit=integer("How many at most.", 20, 1, MOST))  # fmt: skip
def claim_list(workspace: "Workspace", arguments: Arguments, report: Report) -> Result:
    counts = workspace.counts()
    if workspace.is_empty:
        return {"record": {"claims": [], "total": 0, "counts": counts}, "blocks": [facts("counts", ledger_facts(counts))]}
    rows, total = newest_claims(workspace, arguments["offset"], arguments["limit"], arguments)
    given = {name: arguments[name] for name in ("verdict", "kind", "offset") if name in arguments}
    blocks = [block for block in make_document(workspace, "claims", given)["blocks"] if block["id"] in ("counts", "claims")]
    return {"record": {"claims": [plain(row) for row in rows], "total": total, "counts": counts}, "blocks": blocks}


@verb("claim_show", "read", "One claim: statement, plan, verdict with its reasons, gates and counterexamples, what it does not"
      " show.", required=("claim",), claim=string("Its id, c-…", longest=80))  # fmt: skip
def claim_show(workspace: "Workspace", arguments: Arguments, report: Report) -> Result:
    name, store = arguments["claim"], workspace.store
    card = card_of(workspace, name)
    record: dict[str, Any] = dict(card)
    if store.imported(name) is None:
        verdict = store.verdict(name)
        record |= {"record": plain(store.claim(name)), "plan": plain(store.plan(name)),
                   "verdict_record": None if verdict is None else verdict.to_json(),
                   "deviations": plain(store.deviations(name)), "replications": plain(store.replications(name))}  # fmt: skip
    return {"record": record, "blocks": [claims("card", [card])]}


@verb("ledger", "read", "The ledger's counts and its last entries: everything stated, looked at, read and decided.",
      claim=string("Only entries about this claim.", longest=80),
      limit=integer("Entries, newest first.", 30, 1, MOST))  # fmt: skip
def ledger(workspace: "Workspace", arguments: Arguments, report: Report) -> Result:
    counts = workspace.counts()
    entries: list[Any] = []
    if not workspace.is_empty:
        with workspace.store.reading() as db:
            chosen = "WHERE body->>'$.claim' = ?" if "claim" in arguments else ""
            rows = db.execute(f'SELECT "index", "time", kind, body FROM ledger {chosen} ORDER BY "index" DESC LIMIT ?',
                              [*([arguments["claim"]] if chosen else []), arguments["limit"]]).fetchall()  # fmt: skip
        entries = [{"index": index, "time": time, "kind": kind, "about": _about(body)} for index, time, kind, body in rows]
    return {"record": {"counts": counts, "entries": entries}, "blocks": [facts("counts", ledger_facts(counts))]}


def _about(body: str) -> dict[str, Any]:
    """What an entry says, without long lists and without names of sealed clusters."""
    return {key: value for key, value in json.loads(body).items() if isinstance(value, str | int | float)}
