"""Steering: a text continued with and without a push, and the dose curve of a direction on a task."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from assay.app.arguments import string
from assay.app.documents import Made, page
from assay.app.forms import form_of
from assay.app.pages.kept import kept_page

if TYPE_CHECKING:
    from assay.app.workspace import Workspace


@page("steer", "Steering", "Push the model along a direction: what it writes, what it does at every dose, where text breaks.",
      group="Model", result=string("A kept result to show.", longest=80),
      feature=string("A feature to push along.", longest=400))  # fmt: skip
def steer(workspace: "Workspace", arguments: Mapping[str, Any]) -> Made:
    """A kept curve or text, and the forms that make others."""
    from assay.app.directions import names
    from assay.data.concepts import CONCEPTS
    from assay.data.tasks import TASKS

    saved = names(workspace)
    given = {"feature": arguments["feature"]} if "feature" in arguments else {}
    along = ("feature",) if given or not saved else ("direction",)
    write = form_of("generate-form", "generate", "Write", ("prompt", *along, "concept", "dose", "max_new_tokens"), values=given,
                    choices={"concept": ["", *CONCEPTS.names()], "direction": ["", *saved]}, stream=True, help="steering",
                    title="Side by side: unsteered, steered, pushed at random")  # fmt: skip
    curve = form_of("dose-form", "dose", "Measure", ("task", *along, "concept", "mode", "openings"),
                    values={**given, "task": "opinion"},
                    choices={"task": TASKS.names(), "concept": ["", *CONCEPTS.names()], "direction": ["", *saved]},
                    title="Dose and response on a task", help="dose",
                    note="Without a concept, feature or direction: along the difference of the task's own pairs.")  # fmt: skip
    return kept_page(workspace, arguments, ("dose", "generate"), "steer", [write, curve],
                     "Nothing was steered yet. Try it below, or run: assay steer MODEL --concept CONCEPT")  # fmt: skip
