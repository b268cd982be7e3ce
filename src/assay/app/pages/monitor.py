"""Monitor: what watches this model, what its alarms are worth, and what audits found."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from assay.app import monitors
from assay.app.arguments import string
from assay.app.blocks import link, strong, term, text, words
from assay.app.documents import Made, page
from assay.app.forms import form_of
from assay.app.pages.kept import kept_page
from assay.app.verbs.monitor import audit_blocks, audit_row, audit_table, monitor_blocks, monitor_table, row_of

if TYPE_CHECKING:
    from assay.app.workspace import Workspace


@page("monitor", "Monitor", "Watching a running model for what it should not do, and what audits of it found.", group="Model",
      monitor=string("A kept monitor.", longest=200), audit=string("A kept audit.", longest=200),
      result=string("A kept reading of a text.", longest=80))  # fmt: skip
def monitor(workspace: "Workspace", arguments: Mapping[str, Any]) -> Made:
    """A monitor's card, a kept reading, an audit, or the lists of them."""
    names = monitors.monitor_names(workspace)
    if "audit" in arguments:
        return Made(audit_blocks(monitors.audit(workspace, arguments["audit"])), title=f"Audit {arguments['audit']}")
    if "result" in arguments:
        return kept_page(workspace, arguments, ("monitor_watch",), "monitor", _form(names), "")
    if "monitor" in arguments:
        kept = monitors.kept_monitor(workspace, arguments["monitor"])
        return Made([*monitor_blocks(kept), *_form(names, kept.name)], title=kept.name)
    listed = [audit_row(found) for found in monitors.audits(workspace)]
    rows = [row_of(monitors.kept_monitor(workspace, name)) for name in names]
    return Made([
        *([monitor_table(rows), *_form(names)] if rows else [_none(workspace)]), *([audit_table(listed)] if listed else []),
    ], empty=not rows and not listed)  # fmt: skip


def _form(names: list[str], chosen: str = "") -> list[Any]:
    """The form that watches a text."""
    if not names:
        return []
    return [form_of("watch-form", "monitor_watch", "Watch", ("monitor", "text"), values={"monitor": chosen or names[0]},
                    choices={"monitor": names}, title="Watch a text", help="monitor")]  # fmt: skip


def _none(workspace: "Workspace") -> Any:
    what = words(
        "A ", term("monitor"), " reads activations of a running model and raises an alert. None is kept in"
        f" {workspace.atlas / monitors.MONITORS}. Fit one with --out in that folder: ", strong("assay monitor fit --help"),
        ". Watch a model while it answers: ", strong("assay monitor serve --help"), ".",
    )  # fmt: skip
    other = words("What else there is: whether a property can be read at all (", link("probes", "probe"), "), and whether a"
                  " reader finds what it is for, as a claim of kind ", term("detects"), " (", link("claims", "claims"),
                  ").")  # fmt: skip
    return text("monitor", what, other)
