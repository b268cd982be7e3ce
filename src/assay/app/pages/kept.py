"""What pages of kept results have in common: the newest or a named one, the form that makes another, and the list."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from assay.app.blocks import LinkItem, href, links, text
from assay.app.documents import Made
from assay.app.forms import form_of
from assay.app.results import kept_result, results

if TYPE_CHECKING:
    from assay.app.workspace import Workspace

NEWEST = 20


def kept_page(
    workspace: "Workspace", arguments: Mapping[str, Any], verbs: Sequence[str], page: str, ask: Any, empty: str
) -> Made:
    """A page about the results of some verbs. `ask`: the form that makes one, or several; `empty`: what to run at first."""
    heads = results(workspace.atlas, *verbs)
    asked = list(ask) if isinstance(ask, list) else [ask]
    items = [item_of(head, href(page, result=head["id"])) for head in heads[:NEWEST]]
    listed = [links("kept", items, title="Kept results")] if items else []
    if "result" not in arguments:
        return Made([*([] if items else [text("empty", empty)]), *asked, *listed], empty=not items)
    found = kept_result(workspace.atlas, arguments["result"])
    claim = found["record"].get("claim") if isinstance(found["record"], dict) else None
    told = _disclosed(found["head"].get("disclosure"))
    return Made([*told, *found["blocks"], *_state(claim), *asked, *listed], title=found["head"]["title"])


def _disclosed(told: Any) -> list[Any]:
    """What the verb did to the model. How a model was changed before (`models`) is in the blocks of the result already."""
    note = told.get("note") if isinstance(told, dict) and "models" not in told else None
    return [text("disclosure", note)] if isinstance(note, str) else []


def item_of(head: Mapping[str, Any], address: str) -> LinkItem:
    """A kept result in a list."""
    made = str(head["made"])[:16].replace("T", " ")
    return {"label": head["title"], "href": address, "note": f"{str(head['verb']).replace('_', ' ')}, {made}"}


def _state(claim: Any) -> list[Any]:
    """The form that states the claim a result suggests, if it suggests one."""
    if not isinstance(claim, dict):
        return []
    return [form_of("state-form", "claim_state", "State it", ("confirm", "ood"), fixed=claim, title="Say it as a claim",
                    note="Locks a plan. Nothing sealed is read before the claim is tested.", help="claim")]  # fmt: skip
