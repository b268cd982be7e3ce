"""`patch`: a sweep of one kind of site over a task. Where is the behaviour carried?"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from assay.app import explore
from assay.app.arguments import string
from assay.app.blocks import column as table_column
from assay.app.blocks import facts, heatmap, table
from assay.app.results import keep_result
from assay.app.verbs import Report, Result, verb

if TYPE_CHECKING:
    from assay.app.workspace import Workspace
    from assay.records import PatchResult

STRONGEST, WIDEST = 12, 64


@verb("patch", "intervene", "Activation patching: the share of a task's effect that every cell (layer by position, head or"
      " component) brings back. Exploration on free splits; finished layers are kept.", long=True, changes="edited",
      required=("task",),
      model=explore.model_name(), task=explore.data_name("task"), corruption=string("Of a bundled task. Default: its first."),
      site=string("resid_pre, resid_mid, resid_post, attn_out, mlp_out, q, k, v, z, components or mlp_act.L", "resid_post"),
      positions=string("all, last, or a label of the task", "all"),
      direction=string("denoise: clean into corrupted. noise: the other way.", "denoise", ("denoise", "noise")),
      method=string("exact, or attribution (a first-order estimate)", "exact", ("exact", "attribution")),
      split=explore.split_name(), n=explore.size(20), seed=explore.seed())  # fmt: skip
def patch(workspace: "Workspace", arguments: explore.Arguments, report: Report) -> Result:
    from assay.atlas.linked import keep_patch
    from assay.atlas.sweeps import SweepRows
    from assay.circuits.patch import PatchPlan, patch_sweep, sweep_key
    from assay.data.prepare import prepare

    source = explore.task_of(workspace, arguments["task"], arguments.get("corruption"))
    pairs = explore.items_of(workspace, "patch", source, arguments["split"], arguments["n"], arguments["seed"])
    plan = PatchPlan(arguments["site"], arguments["positions"], arguments["direction"], arguments["method"],
                     seed=arguments["seed"])  # fmt: skip
    report("loading the model", 0, 1)
    with workspace.using(arguments.get("model")) as model:
        prepared = prepare(pairs, model)
        explore.look(workspace, model, f"patch {source.name} {plan.site} {plan.method}", prepared.pairs)
        rows = SweepRows(workspace.atlas, sweep_key(model, prepared, plan))
        found = patch_sweep(model, prepared, plan, rows=rows,
                            progress=explore.steps(report, f"patching {plan.site}", model.n_layers))  # fmt: skip
        keep_patch(workspace.store, found, model.digest, source.name)
        found = replace(found, plan={**found.plan, "task": source.name, "passport": model.passport()})
        tokens = column_tokens(model, prepared, found)
        record = patch_record(found, tokens)
        title = f"{source.name}: {plan.site}, {plan.direction}, {plan.method}"
        return keep_result(workspace.atlas, "patch", arguments, model.digest, title,
                           {"record": record, "blocks": patch_blocks(found, tokens)})  # fmt: skip


def patch_record(found: "PatchResult", tokens: Sequence[str]) -> dict[str, Any]:
    """The sweep, small enough to read: the grid where it is not too wide, and its strongest cells with their intervals."""
    whole = found.to_json()
    kept = ("model", "task", "site", "metric", "direction", "method", "layers", found.axis, "clean", "corrupted", "n_pairs",
            "dropped", "checks")  # fmt: skip
    grid = {"effect": [[round(value, 4) for value in row] for row in found.effect]} if len(found.columns) <= WIDEST else {}
    return {**{key: whole[key] for key in kept}, **grid, "tokens": list(tokens), "strongest": strongest(found)}


def column_tokens(model: Any, task: Any, found: "PatchResult") -> list[str]:
    """The token of every position, `·` where pairs differ; empty for other columns or prompts of several lengths."""
    lengths = {len(ids) for ids in task.clean}
    if found.axis != "positions" or lengths != {len(found.columns)}:
        return []
    columns = zip(*task.clean, strict=True)
    return [model.piece(ids[0]) if len(set(ids)) == 1 else "·" for ids in columns]


def strongest(found: "PatchResult") -> list[dict[str, Any]]:
    """The cells with the largest effects."""
    cells = [{"layer": layer, found.axis.rstrip("s"): column, "effect": value, "low": found.low[row][place],
              "high": found.high[row][place]}
             for row, layer in enumerate(found.layers) for place, column in enumerate(found.columns)
             if (value := found.effect[row][place]) == value]  # fmt: skip
    return sorted(cells, key=lambda cell: -abs(cell["effect"]))[:STRONGEST]


def patch_blocks(found: "PatchResult", tokens: Sequence[str]) -> list[Any]:
    """The heat map, its strongest cells, and what the numbers mean."""
    labels = [f"{place} {token}" for place, token in enumerate(tokens)] or list(found.columns)
    name = found.axis.rstrip("s")
    cells = [{"cell": f"layer {row['layer']}, {name} {row[name]}", "effect": {"value": row["effect"], "low": row["low"],
                                                                           "high": row["high"]}}
             for row in strongest(found)]  # fmt: skip
    return [
        heatmap("patch", [str(layer) for layer in found.layers], labels, found.effect, low=[[*row] for row in found.low],
                high=[[*row] for row in found.high],
                row_label="layer", column_label=name, unit="share of the effect",
                title=f"{found.plan['site']}: how much of the behaviour each cell carries", help="patching",
                note="0: like the corrupted run, 1: like the clean run. Intervals: bootstrap over pairs. A map of a search,"
                     " not a finding: claims are tested on data that this did not read."),
        table("patch-strongest", [table_column("cell", "cell"), table_column("effect", "effect", "interval")], cells,
              title="Strongest cells"),
        facts("patch-facts", [{"label": "pairs", "value": found.n_pairs}, {"label": "clean", "value": found.clean},
                              {"label": "corrupted", "value": found.corrupted},
                              {"label": "method", "value": str(found.plan["method"])}]),
    ]  # fmt: skip
