"""One claim: its card, what it is about, its controls, the search for exceptions, and how to check it."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from assay.app.arguments import string
from assay.app.blocks import LinkItem, claims, column, facts, href, links, table, text
from assay.app.cards import card_of, whole_card
from assay.app.documents import Made, page
from assay.errors import EvidenceError, MissingRecord, StoreError, TamperedError, UsageError, missing

if TYPE_CHECKING:
    from assay.app.workspace import Workspace


@page("claim", "A claim", "One claim with everything behind its verdict.", listed=False, required=("claim",),
      claim=string("Its id.", longest=80))  # fmt: skip
def claim(workspace: "Workspace", arguments: Mapping[str, Any]) -> Made:
    """The card first, then all that is stored. Records that do not hold are said to be so, and no card is made of them."""
    name = arguments["claim"]
    if workspace.is_empty:
        raise missing("claim", name, "none: there is no atlas yet")
    try:
        card = card_of(workspace, name)
    except MissingRecord as error:
        raise missing("claim", name, "a claim of this atlas", "See the page of claims.") from error
    blocks: list[Any] = [claims("card", [card])]
    try:
        blocks += _blocks(whole_card(workspace, name))
    except TamperedError as error:
        blocks.insert(0, text("tampered", str(error), title="The records of this claim do not hold"))
    except EvidenceError as error:
        blocks.insert(0, text("unjudged", str(error), title="Measured, not judged yet"))
    return Made([*blocks, *_features(workspace, name)], title=f"Claim {name}", intro=card["statement"])


def _blocks(view: Mapping[str, Any]) -> list[Any]:
    """What is stored about a claim."""
    found: list[Any] = []
    if view["stale"]:
        found.append(text("stale", *view["stale"], title="Changed since", help="stale"))
    found += [
        facts("scope", [{"label": name, "value": value} for name, value in view["scope"]], title="What it is about"),
        table("splits", [column("split", "split", help="split"), column("items", "items"), column("clusters", "clusters"),
                         column("dropped", "dropped"), column("looked", "looked at before")],
              view["splits"], title="Data", note=view["leaks"]),
        *_controls(view["controls"]),
        table("search", [column("method", "search"), column("tried", "tried"), column("hits", "found"),
                         column("finished", "finished"), column("bound", "share of such items")], view["search"],
              title="Search for exceptions", help="counterexample", note=view["counterexample_words"]),
        table("power", [column("gate", "gate"), column("K", "clusters"), column("N", "items"), column("icc", "alike within"),
                        column("planned", "smallest effect it could find"), column("found", "as measured")], view["power"],
              title="What the data could find"),
        *([text("searched", *view["searched"], title="What the searches say besides")] if view["searched"] else []),
        text("rivals", *view["rivals"], title="Rivals"),
        text("family", *view["family"], title="How it was decided", help="p"),
        text("rates", *view["rates"], title="How often such tests are wrong", help="error rate"),
        text("deviations", *view["deviations"], title="Deviations from the plan"),
        text("replications", *view["replications"], title="Replications", help="replication"),
        table("replay", [column("command", "command"), column("what", "what it does")], view["replay"], title="Check it"),
        facts("passport", [{"label": name, "value": value} for name, value in view["passport"]], title="Passport"),
    ]  # fmt: skip
    return [block for block in found if block.get("rows", True) and block.get("items", True)]


def _controls(controls: Sequence[Mapping[str, Any]]) -> list[Any]:
    if not controls:
        return []
    return [table("controls", [column("name", "control", help="control"), column("n", "how many"), column("mean", "mean"),
                               column("strongest", "strongest")], controls, title="Controls")]  # fmt: skip


def _features(workspace: "Workspace", name: str) -> list[Any]:
    """The mapped features that the claim is about."""
    try:
        found = workspace.mapped.features_of_claim(name)
    except (StoreError, UsageError):
        return []
    items: list[LinkItem] = [{"label": feature, "href": href("feature", set=where, feature=feature), "note": where}
                             for where, feature in found]  # fmt: skip
    return [links("features", items, title="Features it is about")] if items else []
