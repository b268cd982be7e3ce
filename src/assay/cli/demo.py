"""`assay demo`: the main job on the embedded default model."""

import webbrowser
from typing import Any

import click

from assay.cli.common import Common, common_options, model_options
from assay.files import write_file

MODEL, TASK = "smollm2-135m", "ioi"


@click.command()
@click.argument("name", metavar="[MODEL]", default=MODEL)
@click.option("--task", default=TASK, show_default=True, help="Which bundled task to explain.")
@click.option("--open", "show_page", is_flag=True, help="Open the report in a browser.")
@model_options
@common_options
def demo(common: Common, name: str, task: str, show_page: bool, dtype: str, prepend_bos: bool | None) -> None:
    """A real finding about a real language model, tested, in words and pictures.

    Needs no network once the model is installed. Takes a few minutes; a second run takes what is finished
    from the atlas.
    """
    from assay.data.tasks import TASKS
    from assay.demo import DemoRun, run_demo
    from assay.report.html import render_report
    from assay.report.markdown import render_markdown

    TASKS.get(task)
    common.note(f"loading {name}, and proving on it what every name means")
    model = common.load(name, dtype, prepend_bos)
    report = run_demo(DemoRun(model, common.atlas, task, common.seed, common.progress))
    page = common.atlas / "reports" / f"demo-{model.name.replace('/', '_')}-{task}.html"
    write_file(page, render_report(report).encode())
    write_file(page.with_suffix(".md"), render_markdown(report).encode())
    record = {
        "report": str(page), "tasks": [vars(item) for item in report.tasks], "claims": list(report.claims),
        "unexplained": dict(report.unexplained), "ledger": dict(report.ledger), "run": dict(report.run),
    }  # fmt: skip
    common.emit(record, lambda: story(report, str(page)))
    if show_page:
        webbrowser.open(page.resolve().as_uri())


def story(report: Any, page: str) -> Any:
    """The finding in the terminal: tasks, where, which heads, both verdicts, what is left, what to do next."""
    from rich.console import Group
    from rich.text import Text

    from assay.report.story import percent, unexplained_rows
    from assay.report.terminal import patch_table, tasks_table, verdict_panel

    def title(text: str) -> Text:
        return Text(f"\n{text}", style="bold")

    left = [f"{percent(row['share'])} {row['name']}" for row in unexplained_rows(report.unexplained)]
    reused = [step for step, cached in report.run["cached"].items() if cached]
    parts = [
        title("1  What the model can do"), tasks_table(report.tasks),
        title("2  Where the answer is carried"), patch_table(report.positions, report.tokens, 5),
        title("3  Which heads move it"), patch_table(report.heads, n=10),
        title("4  The claim, tested"), verdict_panel(report.claims[0]),
        title("5  A wrong claim, tested the same way"), verdict_panel(report.claims[1]),
        title("6  Still unexplained"), Text("\n".join(left) or "not measured"),
        title("7  A map of features"), Text(mapped(report.run.get("map") or {})),
        title("Report"), Text(page), Text(f"open it in a browser; it needs no network ({seconds(report)})"),
        Text(f"{report.run['commands'][0]['command']}    shows the atlas: features, claims, what is unexplained"),
    ]  # fmt: skip
    if reused:
        parts.append(Text(f"taken from the atlas, not measured again: {', '.join(reused)}", style="dim"))
    return Group(*parts)


def mapped(found: Any) -> str:
    """What the map of features says, the unexplained first."""
    from assay.report.story import percent

    if "features" not in found:
        return f"none: {found.get('skipped', 'it was not made')}"
    features, left = found["features"], found["unexplained"]
    return (f"unexplained: {percent(left['active_latents'])} of active latents, {percent(left['tokens'])} of tokens\n"
            f"{features['mapped']} of {features['all']} latents mapped: {features['explained']} have a rule,"
            f" {features['claimed']} were claimed, {features['supported']} supported, {features['refuted']} refuted,"
            f" {features['inconclusive']} inconclusive")  # fmt: skip


def seconds(report: Any) -> str:
    """How long the run took."""
    total = sum(report.run["timings"].values())
    return f"{total:.0f} s of measuring"
