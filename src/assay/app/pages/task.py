"""A task: can the model do it, where is it carried, and what was claimed about it. Without a task: all there are."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from assay.app import explore
from assay.app.arguments import string
from assay.app.blocks import column, href, link, links, table, text, words
from assay.app.documents import Made, page
from assay.app.forms import form_of
from assay.app.pages.kept import item_of
from assay.app.results import kept_result, results

if TYPE_CHECKING:
    from assay.app.workspace import Workspace

SITES = ("resid_post", "resid_pre", "attn_out", "mlp_out", "z", "q", "k", "v", "components")
SHOWN, CLAIMS = 8, 20


@page("task", "Tasks", "A behaviour: does the model have it, and where is it carried?", group="Model",
      task=string("A task by name. Without one: all.", longest=400), result=string("A kept one.", longest=80))  # fmt: skip
def task(workspace: "Workspace", arguments: Mapping[str, Any]) -> Made:
    """One task with its measurements, or the list."""
    name = arguments.get("task")
    if not name:
        return Made(_listed(workspace), title="Tasks")
    kept = results(workspace.atlas, "measure_task", "patch", "dose", task=name)
    claimed = _claims(workspace, name)
    if not kept and not claimed:
        explore.task_of(workspace, name)
    wanted = [arguments["result"]] if "result" in arguments else _newest(kept)
    blocks = [
        form_of("behaviour-form", "measure_task", "Measure", ("n", "split"), fixed={"task": name},
                choices={"split": ("discover", "tune")}, title="Does the model do it?", help="task"),
        *(block for each in wanted for block in kept_result(workspace.atlas, each)["blocks"]),
        form_of("patch-form", "patch", "Sweep", ("site", "positions", "direction", "method", "n"), fixed={"task": name},
                choices={"site": SITES}, title="Where is it carried?", help="patching"),
        *_kept(kept, name), *claimed,
        text("task-next", words("Next: ", link("find the circuit", "circuit", task=name), ", or ",
                                link("state a claim", "claims"), ". Everything here reads free splits; sealed data decide.")),
    ]  # fmt: skip
    return Made(blocks, title=f"Task: {name}", empty=not kept)


def _newest(kept: Sequence[Mapping[str, Any]]) -> list[str]:
    """The newest measurement of each kind that the page shows by itself."""
    found = {verb: [head["id"] for head in kept if head["verb"] == verb] for verb in ("measure_task", "patch")}
    return [ids[0] for ids in found.values() if ids]


def _listed(workspace: "Workspace") -> list[Any]:
    from assay.app.verbs.tasks import all_tasks, task_blocks

    blocks = task_blocks(all_tasks())
    measured = results(workspace.atlas, "measure_task")
    note = "" if measured else "Nothing was measured yet: open a task and measure it, or run: assay tasks MODEL"
    return [*([text("tasks-empty", note)] if note else []), *blocks]


def _kept(kept: list[Any], name: str) -> list[Any]:
    """Earlier measurements of the task."""
    items = [item_of(head, href("task", task=name, result=head["id"])) for head in kept[:SHOWN]]
    return [links("task-kept", items, title="Measured before")] if items else []


def _claims(workspace: "Workspace", name: str) -> list[Any]:
    """Claims about the task, newest first."""
    if workspace.is_empty:
        return []
    with workspace.store as store:
        with store.reading() as db:
            found = db.execute("SELECT c.id, c.statement, coalesce(s.verdict, 'not tested') FROM claims c LEFT JOIN standing s"
                               " ON s.claim = c.id WHERE c.body->>'$.task.name' = ? ORDER BY c.created DESC LIMIT ?",
                               [name, CLAIMS]).fetchall()  # fmt: skip
    rows = [{"statement": {"value": statement, "href": href("claim", claim=claim)}, "verdict": verdict}
            for claim, statement, verdict in found]  # fmt: skip
    columns = [column("statement", "claim", "link", "claim"), column("verdict", "verdict", "verdict", "verdict")]
    return [table("task-claims", columns, rows, title="Claims about it")] if rows else []
