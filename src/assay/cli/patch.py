"""`assay patch MODEL TASK`."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from assay.cli.common import Common, common_options, model_options, task_source
from assay.files import write_file
from assay.records import PatchResult


@click.command()
@click.argument("name", metavar="MODEL")
@click.argument("task", metavar="TASK", required=False)
@click.option("--file", "task_file", metavar="FILE", help="Your own task, JSONL or CSV.")
@click.option("--site", default="resid_post", show_default=True,
              help="resid_pre|mid|post, attn_out, mlp_out, q, k, v, z, components or mlp_act.L")  # fmt: skip
@click.option("--positions", default="all", show_default=True, help="all, last or a label of the task")
@click.option("--direction", default="denoise", show_default=True, help="denoise or noise")
@click.option("--method", default="exact", show_default=True, help="exact or attribution")
@click.option("--metric", default="logit_diff", show_default=True, help="logit_diff, prob, prob_diff, loss, rank or kl")
@click.option("--n", default=20, show_default=True, help="Pairs of a bundled task.")
@click.option("--split", default=None, help="discover or tune. Default: discover; of a file: all pairs.")
@click.option("--corruption", default=None, help="Of a bundled task; see: assay tasks")
@click.option("--out", metavar="DIR", help="Pictures go here instead of ATLAS/figures.")
@model_options
@common_options
def patch(
    common: Common, name: str, task: str | None, task_file: str | None, dtype: str, prepend_bos: bool | None, **options: Any
) -> None:
    """Sweep a site of MODEL over TASK: which cell carries the behaviour?

    Finished layers are kept in the atlas: an interrupted sweep goes on where it was.
    """
    source, out = task_source(task, task_file), options.pop("out")
    from assay.atlas.linked import keep_patch
    from assay.atlas.store import Atlas
    from assay.atlas.sweeps import SweepRows
    from assay.circuits.patch import PatchPlan, patch_sweep, sweep_key
    from assay.data.prepare import prepare
    from assay.evidence.claims import record_look
    from assay.evidence.source import Source

    n, split, corruption = options.pop("n"), options.pop("split"), options.pop("corruption")
    pairs = Source(source, corruption).explore(split, n, common.seed)
    plan = PatchPlan(**options, seed=common.seed)
    model = common.load(name, dtype, prepend_bos)
    prepared = prepare(pairs, model)
    rows = SweepRows(common.atlas, sweep_key(model, prepared, plan))
    with common.progress(f"patching {plan.site}", model.n_layers) as advance:
        result = patch_sweep(model, prepared, plan, progress=advance, rows=rows)
    record_look(Atlas(common.atlas), model.digest, f"patch {source} {plan.site} {plan.method}", prepared.pairs)
    keep_patch(Atlas(common.atlas), result, model.digest, source)
    result = replace(result, plan={**result.plan, "task": source, "passport": model.passport()})
    tokens = column_tokens(model, prepared, result)
    stem = f"patch-{Path(name).name}-{Path(source).stem}-{plan.site}-{plan.direction}-{plan.method}"
    paths = pictures(result, Path(out) if out else common.atlas / "figures", stem, tokens)

    def show() -> Any:
        from rich.console import Group

        from assay.report.terminal import patch_table

        return Group(patch_table(result, tokens), *(f"picture: {path}" for path in paths))

    common.emit({**result.to_json(), "tokens": tokens}, show)


def column_tokens(model: Any, task: Any, result: PatchResult) -> list[str]:
    """The token at every position where it is the same in all pairs, else `·`; empty for other columns."""
    if result.axis != "positions" or len({len(ids) for ids in task.clean}) != 1:
        return []
    if len(result.columns) != len(task.clean[0]):
        return []
    columns = zip(*task.clean, strict=True)
    return [model.piece(ids[0]) if len(set(ids)) == 1 else "·" for ids in columns]


def pictures(result: PatchResult, folder: Path, stem: str, tokens: list[str] | None = None) -> list[Path]:
    """Write the heat map as PNG, SVG and interactive page; where they are."""
    from assay.report.figures import heat_map, save_figure
    from assay.report.html import heat_map_html

    figure, page = heat_map(result, tokens), folder / f"{stem}.html"
    paths = [save_figure(figure, folder / f"{stem}{suffix}") for suffix in (".png", ".svg")]
    write_file(page, heat_map_html(result, tokens).encode())
    return [*paths, page]
