"""Probes: where a property can be read, and how much of that the words alone give."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from assay.app import explore
from assay.app.arguments import string
from assay.app.documents import Made, page
from assay.app.forms import form_of
from assay.app.pages.kept import kept_page

if TYPE_CHECKING:
    from assay.app.workspace import Workspace


@page("probe", "Probes", "Where in the model can a property be read, better than from the words alone?", group="Model",
      result=string("A kept result to show.", longest=80), concept=string("A concept to read.", longest=400))  # fmt: skip
def probe(workspace: "Workspace", arguments: Mapping[str, Any]) -> Made:
    """A kept probe and its claim form, or the form that fits one."""
    from assay.data.concepts import CONCEPTS

    known = CONCEPTS.names()
    wanted = arguments.get("concept", known[0])
    explore.concept_of(workspace, wanted)
    ask = form_of("probe-form", "probe", "Read", ("concept", "probe", "n", "untrained"), values={"concept": wanted},
                  choices={"concept": list(dict.fromkeys([wanted, *known]))}, title="Read a concept", help="probe")  # fmt: skip
    return kept_page(workspace, arguments, ("probe",), "probe", ask,
                     "No probe was fitted yet. Fit one below, or run: assay probe MODEL CONCEPT")  # fmt: skip
