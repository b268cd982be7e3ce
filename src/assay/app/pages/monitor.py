"""Monitor: a page that says what it will hold."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from assay.app.blocks import link, term, text, words
from assay.app.documents import Made, page

if TYPE_CHECKING:
    from assay.app.workspace import Workspace


@page("monitor", "Monitor", "Watching a running model for what it should not do.", group="Model")
def monitor(workspace: "Workspace", arguments: Mapping[str, Any]) -> Made:
    """What can be done today, and what this page is for."""
    return Made([
        text("monitor", words("A ", term("monitor"), " reads activations of a running model and raises an alert. Fitting"
                              " one, setting its threshold and watching a stream are not in this version."),
             words("What there is: whether a property can be read at all (", link("probes", "probe"), "), and whether a reader"
                   " finds what it is for, as a claim of kind ", term("detects"), " (", link("claims", "claims"), ").")),
    ], empty=True)  # fmt: skip
