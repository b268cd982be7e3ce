"""`models`, `tasks`, `measure_task`: what there is, and what a model can do before anything is looked for inside it."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from assay.app import explore
from assay.app.arguments import string
from assay.app.blocks import Fact, column, facts, href, link, table, text, words
from assay.app.results import keep_result
from assay.app.verbs import Report, Result, verb

if TYPE_CHECKING:
    from assay.app.workspace import Workspace
    from assay.records import TaskSummary


@verb("models", "read", "Models that may be named here, and which are on this machine.")
def models(workspace: "Workspace", arguments: explore.Arguments, report: Report) -> Result:
    from assay.model.packaged import list_models

    offered = workspace.models()
    rows = [{"name": row["name"], "source": row["source"], "params": row["params"], "here": row["path"] is not None}
            for row in list_models() if row["name"] in offered]  # fmt: skip
    rows += [{"name": name, "source": "given at the start", "params": None, "here": True}
             for name in offered if name not in {row["name"] for row in rows}]  # fmt: skip
    columns = [column("name", "model"), column("source", "from"), column("params", "parameters", "number"),
               column("here", "on this machine")]  # fmt: skip
    return {"record": rows, "blocks": [table("models", columns, [{**row, "here": "yes" if row["here"] else "not yet"}
                                                               for row in rows])]}  # fmt: skip


@verb("tasks", "read", "Bundled tasks (pairs of prompts) and concepts (labelled texts), and how many templates each split has.")
def tasks(workspace: "Workspace", arguments: explore.Arguments, report: Report) -> Result:
    rows = all_tasks()
    return {"record": rows, "blocks": task_blocks(rows)}


def all_tasks() -> list[dict[str, Any]]:
    """Every bundled task and concept."""
    from assay.data.concepts import CONCEPTS
    from assay.data.tasks import TASKS

    rows = [{"name": name, "kind": "task", "title": TASKS.get(name).title, "corruptions": list(TASKS.get(name).corruptions),
             "templates": {split: TASKS.get(name).n_templates(split) for split in TASKS.get(name).splits}}
            for name in TASKS.names()]  # fmt: skip
    rows += [{"name": name, "kind": "concept", "title": CONCEPTS.get(name).title, "corruptions": [], "templates": {}}
             for name in CONCEPTS.names()]  # fmt: skip
    return rows


def task_blocks(rows: Sequence[dict[str, Any]]) -> list[Any]:
    """Tasks and concepts as a table; a task leads to its page, a concept to probes."""
    pages = {"task": lambda name: href("task", task=name), "concept": lambda name: href("probe", concept=name)}
    shown = [{**row, "name": {"value": row["name"], "href": pages[row["kind"]](row["name"])}} for row in rows]
    columns = [column("name", "name", "link", "task"), column("kind", "kind", "text", "concept"),
               column("title", "what is asked")]  # fmt: skip
    return [table("tasks", columns, shown)]


@verb("measure_task", "read", "How well the model does a task, before anything is looked for inside it. Free splits only.",
      long=True, required=("task",), model=explore.model_name(), task=explore.data_name("task"),
      corruption=string("Of a bundled task. Default: its first."), split=explore.split_name(), n=explore.size(40),
      seed=explore.seed())  # fmt: skip
def measure_task(workspace: "Workspace", arguments: explore.Arguments, report: Report) -> Result:
    from assay.data.measure import measure_task as measure
    from assay.data.prepare import prepare

    source = explore.task_of(workspace, arguments["task"], arguments.get("corruption"))
    pairs = explore.items_of(workspace, "measure_task", source, arguments["split"], arguments["n"], arguments["seed"])
    report("loading the model", 0, 2)
    with workspace.using(arguments.get("model")) as model:
        prepared = prepare(pairs, model)
        explore.look(workspace, model, f"task {source.name} {arguments['split']}", prepared.pairs)
        report("measuring", 1, 2)
        summary = measure(model, prepared, source.name)
        record = {**asdict(summary), "model": model.name, "split": arguments["split"], "notes": prepared.notes,
                  "behaviour": summary.low > 0}  # fmt: skip
        return keep_result(workspace.atlas, "measure_task", arguments, model.digest, f"{source.name}: what {model.name} does",
                           {"record": record, "blocks": behaviour_blocks(summary, prepared.notes)})  # fmt: skip


def behaviour_blocks(summary: "TaskSummary", notes: dict[str, int]) -> list[Any]:
    """Accuracy and logit difference, and whether there is a behaviour to study."""
    there = summary.low > 0
    said = [f"{count} pairs dropped: {reason}" for reason, count in summary.dropped.items()]
    said += [f"{count} × {note}" for note, count in notes.items()]
    items: list[Fact] = [
        {"label": "accuracy", "value": summary.accuracy,
         "note": "share of clean prompts after which the answer is likelier than the foil"},
        {"label": "logit difference", "value": summary.logit_diff, "help": "logit difference",
         "note": f"95% interval {summary.low:.2f} to {summary.high:.2f}, over {summary.n_templates} templates"},
        {"label": "a behaviour to study", "value": "yes" if there else "no", "tone": "good" if there else "warn",
         "note": "" if there else "the interval is not above 0: there is nothing to explain here"},
        {"label": "pairs", "value": summary.n_pairs},
    ]  # fmt: skip
    more = [text("behaviour-notes", *said)] if said else []
    return [facts("behaviour", items, title="What the model does"), *more,
            text("behaviour-next", words("Next: where is it carried? See the sweep below, or ",
                                         link("circuits", "circuit"), "."))]  # fmt: skip
