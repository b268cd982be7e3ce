"""`assay patch MODEL TASK`."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from assay.cli.common import check_json_target, json_option, model_options, progress, write_file, write_json
from assay.records import PatchResult


@click.command()
@click.argument("name", metavar="MODEL")
@click.argument("task", metavar="TASK", required=False)
@click.option("--file", "task_file", metavar="FILE", help="Your own task, JSONL or CSV.")
@click.option("--site", default="resid_post", show_default=True)
@click.option("--positions", default="all", show_default=True, help="all, last or a label of the task")
@click.option("--direction", default="denoise", show_default=True, help="denoise or noise")
@click.option("--method", default="exact", show_default=True, help="exact or attribution")
@click.option("--metric", default="logit_diff", show_default=True)
@click.option("--n", default=20, show_default=True, help="Pairs of a bundled task.")
@click.option("--seed", default=0, show_default=True)
@click.option("--atlas", default="./atlas", show_default=True, help="Pictures go to DIR/figures.")
@click.option("--out", metavar="DIR", help="Pictures go here instead.")
@model_options
@json_option
def patch(
    name: str, task: str | None, task_file: str | None, n: int, atlas: str, json_to: str | None, **options: Any
) -> None:
    """Sweep a site of MODEL over TASK: which cell carries the behaviour?"""
    from assay.circuits.patch import PatchPlan, patch_sweep
    from assay.data.prepare import prepare
    from assay.data.tasks import load_task
    from assay.errors import bad_argument
    from assay.model.load import load_model

    check_json_target(json_to)
    source, out = task_file or task, options.pop("out")
    if source is None:
        raise bad_argument("TASK", None, "a bundled task (ioi), or --file FILE")
    plan = PatchPlan(**{key: options.pop(key) for key in
                        ("site", "positions", "direction", "method", "metric", "seed")})  # fmt: skip
    pairs = load_task(source, n=n, seed=plan.seed)
    model = load_model(name, **options)
    prepared = prepare(pairs, model)
    with progress(f"patching {plan.site}", model.n_layers) as advance:
        result = patch_sweep(model, prepared, plan, progress=advance)
    result = replace(result, plan={**result.plan, "task": source, "passport": model.passport()})
    if json_to:
        write_json(result.to_json(), json_to)
    if json_to != "-":
        from rich.console import Console

        from assay.report.terminal import patch_table

        Console().print(patch_table(result))
        stem = f"patch-{name.replace('/', '_')}-{Path(source).stem}-{plan.site}"
        for path in pictures(result, Path(out) if out else Path(atlas) / "figures", stem):
            click.echo(f"picture: {path}")


def pictures(result: PatchResult, folder: Path, stem: str) -> list[Path]:
    """Write the heat map as PNG, SVG and interactive page; where they are."""
    from assay.report.figures import heat_map, save_figure
    from assay.report.html import heat_map_html

    figure, page = heat_map(result), folder / f"{stem}.html"
    paths = [save_figure(figure, folder / f"{stem}{suffix}") for suffix in (".png", ".svg")]
    write_file(page, heat_map_html(result).encode())
    return [*paths, page]
