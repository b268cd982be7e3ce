"""Circuits: found ones with their edges and claims, and the form that finds another."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from assay.app import explore
from assay.app.arguments import string
from assay.app.blocks import href, links, text
from assay.app.cards import card_of
from assay.app.documents import Made, page
from assay.app.forms import form_of
from assay.app.results import kept_result, results
from assay.errors import AssayError

if TYPE_CHECKING:
    from assay.app.workspace import Workspace


@page("circuit", "Circuits", "The smallest part of the model that carries a behaviour: found by looking, tested on sealed"
      " data.", group="Model", circuit=string("A circuit by name.", longest=400),
      task=string("A task to find one for.", longest=400))  # fmt: skip
def circuit(workspace: "Workspace", arguments: Mapping[str, Any]) -> Made:
    """One circuit, or all of them and how to find another."""
    from assay.app.verbs.circuit import circuit_blocks, names, read
    from assay.data.tasks import TASKS

    wanted = arguments.get("task", "ioi")
    explore.task_of(workspace, wanted)
    find = form_of("circuit-find", "circuit_find", "Find", ("task", "method", "target", "n"),
                   values={"task": wanted}, title="Find a circuit", help="circuit",
                   choices={"task": TASKS.names()} if wanted in TASKS else {})  # fmt: skip
    known = names(workspace)
    listed = [links("circuits", [{"label": name, "href": href("circuit", circuit=name)} for name in known],
                    title="Circuits of this atlas")] if known else []  # fmt: skip
    name = arguments.get("circuit")
    if not name:
        empty = [] if known else [text("circuits-empty", "No circuit was found yet. Find one below, or run: assay circuit find"
                                       " MODEL TASK")]  # fmt: skip
        return Made([*empty, *listed, find], empty=not known)
    held = read(workspace, name)
    claim = held.plan.get("claim")
    return Made([*circuit_blocks(held), *_curve(workspace, name), *_claim(workspace, name, claim), *listed],
                title=f"Circuit: {name}")  # fmt: skip


def _curve(workspace: "Workspace", name: str) -> list[Any]:
    """The curves that were measured when it was found here."""
    for head in results(workspace.atlas, "circuit_find"):
        kept = kept_result(workspace.atlas, head["id"])
        if kept["record"].get("circuit") == name:
            return [block for block in kept["blocks"] if block["id"] in ("circuit-curve", "circuit-unexplained")]
    return []


def _claim(workspace: "Workspace", name: str, claim: Any) -> list[Any]:
    """Its claim as a card, with the form that tests it."""
    if not isinstance(claim, str):
        return [text("circuit-claim", "No claim is stated about this circuit.")]
    try:
        card = card_of(workspace, claim)
    except AssayError as error:
        return [text("circuit-claim", f"Its claim {claim} is not in this atlas ({error})")]
    shown: list[Any] = [{"type": "claims", "id": "circuit-claim", "cards": [card], "title": "The claim about it"}]
    if card["verdict"] == "not tested":
        shown.append(form_of("circuit-test", "circuit_test", "Test on sealed data", fixed={"circuit": name},
                             note="This reads confirm and ood, once. A second read is decided more strictly."))  # fmt: skip
    return shown
