"""`repair`: change weights to mend a fault, prove what else changed, and export the model into the atlas.

It needs the role *modify* and a reason in words. The order, the judging and the log are those of `assay repair`.
"""

import re
from typing import TYPE_CHECKING, Any

from assay.app import directions, explore
from assay.app.arguments import integer, string, strings
from assay.app.blocks import column, facts, table, text
from assay.app.repairs import METHODS, TEXT, Job, Order, write_repair
from assay.app.results import keep_result
from assay.app.verbs import Report, Result, verb
from assay.errors import bad_argument, missing

if TYPE_CHECKING:
    from assay.app.workspace import Workspace

FOLDER = "repaired"  # of the atlas
NAMES = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
NUMBERS = 8  # factors or strengths that are tried


@verb("repair", "modify", "Mend a fault (a task the model answers wrongly) by changing weights, judged on confirm and ood, with"
      " what else changed. With `export` the changed model is exported into the atlas; else it is a dry run on a copy.",
      long=True, spends=True, changes="weights", required=("task", "method"), model=explore.model_name(),
      task=explore.data_name("task"), method=string("How.", choices=METHODS),
      units=string("Heads (z.L.H) or neurons (mlp_act.L.N), separated by commas.", longest=4000),
      factors=strings("scale-*: numbers to try. Default: 0, 0.5, 1.5, 2.", NUMBERS, 20),
      layers=string("rank-one: where to write; project-out: only there.", longest=400), direction=directions.SAVED,
      subject=string("rank-one: the label that marks the subject, or end.", longest=80),
      strengths=strings("rank-one: numbers to try. Default: 0.5, 1.", NUMBERS, 20),
      n=integer("Pairs per split of a bundled fault.", 60, 8, 400),
      text=string("Ordinary text, a .jsonl file in the working folder. Default: wikipedia, fetched once.", longest=400),
      tokens=integer("Of ordinary text.", 6144, 256, 100_000), export=string("A name: write the changed model.", longest=64),
      seed=explore.seed())  # fmt: skip
def repair(workspace: "Workspace", arguments: explore.Arguments, report: Report) -> Result:
    from assay.steer.export import check_target

    name = arguments.get("export")
    if name is not None and not NAMES.fullmatch(name):
        raise bad_argument("export", name, "letters, digits, dots and dashes, beginning with a letter or digit")
    folder = None if name is None else workspace.atlas / FOLDER / name
    if folder is not None:
        check_target(folder)
    explore.task_of(workspace, arguments["task"])
    job = Job(workspace.atlas, _order(workspace, arguments))
    grant = workspace.require("modify", arguments["reason"])
    report("loading the model", 0, 1)
    with workspace.using(arguments.get("model")) as model:
        found = job.run(model, report)
        record = job.record(model, found, grant.reason)
        write_repair(workspace.atlas, found, record, folder, grant)
        return keep_result(workspace.atlas, "repair", arguments, model.digest, f"{job.fault.name}: {found.verdict}",
                           {"record": record, "blocks": repair_blocks(record)})  # fmt: skip


def _order(workspace: "Workspace", arguments: explore.Arguments) -> Order:
    """The order that the arguments give. Raises UsageError for numbers that are none, and a direction that is not saved."""
    given = arguments.get("direction")
    if given is not None and given not in directions.names(workspace):
        raise missing("direction", given, ", ".join(directions.names(workspace)) or "none is saved yet")
    file = None if given is None else str(workspace.atlas / directions.FOLDER / f"{given}.safetensors")
    corpus = explore.known_data(workspace, arguments["text"]) if "text" in arguments else TEXT
    return Order(
        explore.known_data(workspace, arguments["task"]), arguments["method"], units=arguments.get("units"),
        factors=_numbers(arguments, "factors"), layers=arguments.get("layers"), direction=file,
        subject=arguments.get("subject"), strengths=_numbers(arguments, "strengths"), corpus=corpus,
        tokens=arguments["tokens"], n=arguments["n"], seed=arguments["seed"],
    )  # fmt: skip


def _numbers(arguments: explore.Arguments, name: str) -> tuple[float, ...]:
    try:
        return tuple(float(each) for each in arguments.get(name, ()))
    except ValueError as error:
        raise bad_argument(name, arguments[name], "numbers") from error


def repair_blocks(record: dict[str, Any]) -> list[Any]:
    """The verdict, what was checked, and where the model is."""
    rows = [{"check": each["name"], "before": each["before"], "after": each["after"],
             "passed": "yes" if each["passed"] else "no"} for each in record["checks"]]  # fmt: skip
    where = record["out"] or "nothing was written: a dry run on a copy in memory"
    return [
        text("repair-verdict", record["sentence"], *record["reasons"]),
        facts("repair-facts", [{"label": "verdict", "value": record["verdict"]}, {"label": "method", "value": record["method"]},
                               {"label": "exported as", "value": where}, {"label": "why", "value": record["reason"]}]),
        table("repair-checks", [column("check", "check"), column("before", "before", "number"),
                                column("after", "after", "number"), column("passed", "holds")], rows),
    ]  # fmt: skip
