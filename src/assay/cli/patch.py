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
@click.option("--atlas", default="./atlas", show_default=True, help="The picture goes to DIR/figures.")
@model_options
@json_option
def patch(
    name: str, task: str | None, task_file: str | None, n: int, atlas: str, json_to: str | None, **options: Any
) -> None:
    """Sweep a site of MODEL over TASK: which cell carries the behaviour?"""
    from assay.circuits.figure import heat_map_png
    from assay.circuits.patch import PatchPlan, patch_sweep
    from assay.data.prepare import prepare
    from assay.data.tasks import load_task
    from assay.errors import bad_argument
    from assay.model.load import load_model

    check_json_target(json_to)
    source = task_file or task
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
        picture = Path(atlas) / "figures" / f"patch-{name.replace('/', '_')}-{Path(source).stem}-{plan.site}.png"
        write_file(picture, heat_map_png(result))
        click.echo(table(result))
        click.echo(f"picture: {picture}")


def table(result: PatchResult) -> str:
    """The strongest cells, in words."""
    cells = [(result.effect[i][j], result.low[i][j], result.high[i][j], layer, column)
             for i, layer in enumerate(result.layers) for j, column in enumerate(result.columns)]  # fmt: skip
    kind = result.axis.rstrip("s")
    lines = [f"{result.n_pairs} pairs, {sum(result.dropped.values())} dropped; {result.plan['metric']}: clean"
             f" {result.clean:.3f}, corrupted {result.corrupted:.3f}. Effect 0 = like corrupted, 1 = like clean."]  # fmt: skip
    baseline = 0.0 if result.plan["direction"] == "denoise" else 1.0
    ranked = sorted((c for c in cells if c[0] == c[0]), key=lambda c: -abs(c[0] - baseline))
    for effect, low, high, layer, column in ranked[:12]:
        lines.append(f"  layer {layer:>2}  {kind} {column:>4}   {effect:+.3f}  [{low:+.3f}, {high:+.3f}]")
    lines += [f"{key.replace('_', ' ')}: {value}" for key, value in result.checks.items()]
    return "\n".join(lines)
