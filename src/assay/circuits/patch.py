"""Activation patching sweeps: how much of a behaviour does each cell of a grid carry?

1. Run base and source prompts once and keep their activations. `denoise`: base = corrupted, source =
   clean. `noise`: the other way round.
2. For every cell (layer x position, head, component or neuron) run the base prompt with the source's
   activation written there, all cells of a layer together, resumed from that layer and, within each
   prompt, from the first token in which base and source differ.
3. effect = (mean patched - mean corrupted) / (mean clean - mean corrupted): 0 = like corrupted,
   1 = like clean, whichever direction. 95% bootstrap intervals over pairs.

`attribution` replaces step 2 by its first-order estimate, gradient at the base run times (source -
base): two forwards and a backward for all cells. It is an approximation, so its correlation with
exact patching on a subsample of layers is part of the result (Nanda 2023; Syed et al. 2310.10348).

Cells whose source and base activations are bit-identical (a shared prefix) cannot change anything:
their effect is that of the base run, and they are counted in `checks["cells_without_difference"]`.

A sweep can be given a place to keep finished layers (`Rows`): after an interruption the same call goes
on where it was, and says how many layers it did not have to run again.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from assay.data.prepare import PreparedTask
from assay.errors import TaskError, bad_argument
from assay.model.activations import Activations
from assay.model.edits import patch
from assay.model.model import Model
from assay.model.run import Checkpoint, Progress
from assay.records import PatchResult, digest
from assay.sites import Site, parse_site

STREAMS = ("resid_pre", "resid_mid", "resid_post", "attn_in", "attn_out", "mlp_in", "mlp_out")
HEADS = ("q", "k", "v", "z")
ROWS_AT_ONCE = 96  # rows that change from about the same position on; fewer run slower, more save less
EXACT_PAIRS = 8


@dataclass(frozen=True)
class PatchPlan:
    """What to sweep. `site`: a residual-stream site (layer x position), q, k, v or z (layer x head),
    "components" (layer x {attn, mlp}), or mlp_act.L (neurons of one layer)."""

    site: str = "resid_post"
    positions: str = "all"
    direction: str = "denoise"
    method: str = "exact"
    metric: str = "logit_diff"
    layers: tuple[int, ...] | None = None
    n_bootstrap: int = 1000
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Row:
    """One finished layer of a sweep: metric values (pair, column), and how many cells had no difference."""

    values: np.ndarray
    n_same: int


@runtime_checkable
class Rows(Protocol):
    """Where finished layers of a sweep are kept, by layer."""

    def get(self, layer: int) -> Row | None: ...

    def put(self, layer: int, row: Row) -> None: ...


def sweep_key(model: Model, task: PreparedTask, plan: PatchPlan) -> str:
    """Names the measurement: equal keys mean equal numbers. Everything that decides them is in it."""
    settings = {key: value for key, value in asdict(plan).items() if key not in ("layers", "n_bootstrap", "seed")}
    data = [task.clean, task.corrupted, task.answers, task.foils, sorted(task.labels.items())]
    return digest([model.passport(), settings, data])


def patch_sweep(
    model: Model,
    task: PreparedTask,
    plan: PatchPlan | None = None,
    *,
    progress: Progress | None = None,
    rows: Rows | None = None,
) -> PatchResult:
    """Sweep one kind of site over a task. `progress` is called with 1 after every layer.

    Raises UsageError for a plan that does not fit the model, TaskError when clean and corrupted
    prompts do not differ on the metric.
    """
    plan = PatchPlan() if plan is None else plan
    grid = _Grid(model, task, plan)
    if not has_effect(grid.clean, grid.corrupted):
        raise TaskError(f"clean and corrupted prompts have the same mean {plan.metric} up to rounding"
                        f" ({grid.clean.mean():.4g}): there is no effect to locate. Pairs whose differences"
                        " cancel (each other's mirror image) do this too.")  # fmt: skip
    if plan.method == "exact":
        values = grid.exact(grid.layers, progress, rows)
        checks: dict[str, Any] = {"cells_without_difference": grid.n_same, "layers_reused": grid.n_reused}
    else:
        values = grid.attribution()
        checks = grid.compare_with_exact(values)
    effect, low, high = normalised(values, grid.clean, grid.corrupted, plan.n_bootstrap, plan.seed)
    return PatchResult(
        plan={"model": model.name, "task": "", "site": plan.site, "metric": plan.metric, **{
            key: value for key, value in asdict(plan).items() if key in ("direction", "method", "seed")}},
        layers=grid.layers, axis=grid.axis, columns=grid.columns,
        effect=effect.tolist(), low=low.tolist(), high=high.tolist(),
        clean=float(grid.clean.mean()), corrupted=float(grid.corrupted.mean()),
        n_pairs=len(task), dropped=task.dropped, checks=checks,
    )  # fmt: skip


def normalised(
    values: np.ndarray, clean: np.ndarray, corrupted: np.ndarray, n_bootstrap: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(pair, layer, column) metric values (NaN: no such cell) -> effect and 95% bounds per cell.

    Percentile bootstrap over pairs: numerator and denominator are resampled together. One pair says
    nothing about the spread over pairs: its bounds are NaN, not an interval of no width.
    """
    n = len(clean)
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=n_bootstrap)
    present = ~np.isnan(values)
    filled = np.where(present, values - corrupted[:, None, None], 0.0)

    def ratio(weights: np.ndarray) -> np.ndarray:
        total = np.tensordot(weights, filled, 1)
        seen = np.tensordot(weights, present.astype(float), 1)
        span = weights @ (clean - corrupted) / weights.sum(-1)
        with np.errstate(divide="ignore", invalid="ignore"):
            return total / seen / span.reshape(span.shape + (1, 1))

    draws = ratio(counts.astype(float))
    low, high = np.nanquantile(draws, [0.025, 0.975], axis=0)
    unknown = present.sum(0) < 2
    return ratio(np.ones(n)), np.where(unknown, np.nan, low), np.where(unknown, np.nan, high)


def has_effect(clean: np.ndarray, corrupted: np.ndarray) -> bool:
    """Whether mean(clean - corrupted) is more than rounding, of the values and of a cancelling sum.

    The effect divides by this mean; where it is noise, every cell would be noise over noise.
    """
    change = clean - corrupted
    rounding = 1e-6 * (np.abs(clean) + np.abs(corrupted)).mean()
    return bool(abs(change.mean()) > max(rounding, 1e-3 * np.abs(change).mean()))


def first_difference(a: Sequence[int], b: Sequence[int]) -> int:
    """The first place at which two token lists of one length differ; their end where they do not."""
    return next((place for place, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(a) - 1)


class _Grid:
    """One sweep: the runs it stands on, and the cells."""

    def __init__(self, model: Model, task: PreparedTask, plan: PatchPlan) -> None:
        _check(plan)
        self.model, self.task, self.plan = model, task, plan
        denoise = plan.direction == "denoise"
        self.base, self.source = (task.corrupted, task.clean) if denoise else (task.clean, task.corrupted)
        reference = model.logits(task.clean) if plan.metric == "kl" else None
        self.metric = task.metric(plan.metric, reference)
        self.n_same = self.n_reused = 0
        self.first = torch.tensor([first_difference(a, b) for a, b in zip(self.base, self.source, strict=True)])
        self._layout()
        base, source = self._runs()
        self.base_values = base
        self.clean, self.corrupted = (source, base) if denoise else (base, source)

    def _runs(self) -> tuple[np.ndarray, np.ndarray]:
        """The metric of base and source; for attribution also gradients and values, in the same passes."""
        if self.plan.method == "exact":
            base, source = (self.model.score(prompts, self.metric) for prompts in (self.base, self.source))
        else:
            sites = self.sites(self.layers)
            self.slopes, self.base_acts, base = self.model.gradients(self.base, sites, self.metric)
            self.source_acts, source = self.model.capture_and_score(self.source, sites, self.metric)
        return base.double().numpy(), source.double().numpy()

    def _layout(self) -> None:
        """Layers, columns and sites of the grid."""
        site, every = self.plan.site, list(range(self.model.n_layers))
        self.layers = every if self.plan.layers is None else list(self.plan.layers)
        self.places = self._positions()
        if site == "components":
            self.axis, self.columns, self.names = "components", ["attn", "mlp"], ["attn_out", "mlp_out"]
        elif site in STREAMS:
            self.axis, self.columns, self.names = "positions", self.place_names, [site]
        elif site in HEADS:
            heads = self.model.dims.n_kv_heads if site in "kv" else self.model.n_heads
            self.axis, self.columns, self.names = "heads", [str(h) for h in range(heads)], [site]
        else:
            one = parse_site(site).resolve(self.model.n_layers)
            assert one.layer is not None
            self.layers, self.names = [one.layer], ["mlp_act"]
            self.axis, self.columns = "neurons", [str(n) for n in range(self.model.dims.d_mlp)]

    def _positions(self) -> Tensor:
        """(pair, k) token positions, -1 where a pair has no such position; and their names."""
        lengths = [len(tokens) for tokens in self.base]
        wanted = self.plan.positions
        if wanted == "all":
            width = max(lengths)
            table = torch.arange(width).expand(len(lengths), -1) - width + torch.tensor(lengths)[:, None]
            same = len(set(lengths)) == 1
            self.place_names = [str(p if same else p - width) for p in range(width)]
            return table.clamp_min(-1)
        labels = {**self.task.labels, "last": [length - 1 for length in lengths]}
        if wanted not in labels:
            raise bad_argument("positions", wanted, f"all, {', '.join(sorted(labels))}")
        self.place_names = [wanted]
        return torch.tensor(labels[wanted])[:, None]

    def sites(self, layers: Sequence[int]) -> list[Site]:
        return [Site(name, layer) for layer in layers for name in self.names]

    def exact(
        self, layers: Sequence[int], progress: Progress | None = None, rows: Rows | None = None
    ) -> np.ndarray:
        """(pair, layer, column) metric with that one cell patched."""
        self.model.sites(self.sites(layers))
        done = {} if rows is None else {layer: row for layer in layers if (row := rows.get(layer)) is not None}
        self.n_reused = len(done)
        todo = [layer for layer in layers if layer not in done]
        if progress and done:
            progress(len(done))
        checkpoint = self.model.checkpoint(self.base) if todo else None
        step = self._layers_at_once()
        for start in range(0, len(todo), step):
            ahead = todo[start : start + step]
            base, source = (self.model.capture(p, self.sites(ahead)) for p in (self.base, self.source))
            for layer in ahead:
                assert checkpoint is not None
                done[layer] = self._row(layer, base, source, checkpoint)
                if rows is not None:
                    rows.put(layer, done[layer])
                if progress:
                    progress(1)
        self.n_same = sum(row.n_same for row in done.values())
        return np.stack([done[layer].values for layer in layers], axis=1)

    def _row(self, layer: int, base: Activations, source: Activations, checkpoint: Checkpoint) -> Row:
        """One layer: every cell that has something to patch, all in few batches."""
        values = np.full((len(self.task), len(self.columns)), np.nan)
        n_same = 0
        for column_set, site in self._column_sets(self.sites([layer])):
            pairs, columns, same = self._cells(base[site], source[site], column_set, values)
            n_same += same
            first = self._first_changed(pairs, columns)
            for some in first.argsort(descending=True, stable=True).split(ROWS_AT_ONCE):
                p, c = pairs[some], columns[some]
                patched = self._patched(base[site], source[site], p, c)
                values[p.numpy(), c.numpy()] = self._score(site, patched, p.tolist(), checkpoint, int(first[some].min()))
        return Row(values, n_same)

    def _first_changed(self, pairs: Tensor, columns: Tensor) -> Tensor:
        """The first position that a cell can change: where base and source begin to differ, or the cell itself."""
        return self.places[pairs, columns] if self.axis == "positions" else self.first[pairs]

    def _layers_at_once(self) -> int:
        """Layers whose base and source activations fit a quarter of the model's memory budget."""
        shapes = [self.model.feature_shape(site) or () for site in self.sites([self.layers[0]])]
        width = sum(int(np.prod(shape)) for shape in shapes)
        tokens = sum(map(len, self.base)) + sum(map(len, self.source))
        return max(1, self.model.memory_budget // 4 // (4 * width * tokens))

    def _column_sets(self, sites: list[Site]) -> list[tuple[list[int], Site]]:
        if self.axis == "components":
            return [([column], site) for column, site in enumerate(sites)]
        return [(list(range(len(self.columns))), sites[0])]

    def _cells(
        self, base: Tensor, source: Tensor, columns: list[int], values: np.ndarray
    ) -> tuple[Tensor, Tensor, int]:
        """Pairs and columns that need a run; cells without any difference get the base value, counted."""
        differs = self._picked(base != source, columns)  # (pair, column)
        exists = torch.ones_like(differs)
        if self.axis == "positions":
            exists = self.places >= 0
        same = exists & ~differs
        row, column = same.nonzero(as_tuple=True)
        values[row.numpy(), torch.tensor(columns)[column].numpy()] = self.base_values[row.numpy()]
        n_same = len(row)
        row, column = (exists & differs).nonzero(as_tuple=True)
        return row, torch.tensor(columns)[column], n_same

    def _picked(self, x: Tensor, columns: list[int]) -> Tensor:
        """(pair, pos, *feature) -> (pair, column): any / sum over what a cell covers."""
        n = torch.arange(len(x))[:, None]
        at = x[n, self.places.clamp_min(0)]  # (pair, k, *feature)
        reduce = torch.any if x.dtype == torch.bool else torch.sum
        at = at & self._mask(at) if x.dtype == torch.bool else at * self._mask(at)
        if self.axis == "positions":
            return reduce(at.flatten(2), 2)
        over_positions = reduce(at, 1)  # (pair, *feature)
        if self.axis == "components":
            return reduce(over_positions, -1)[:, None]
        return reduce(over_positions, -1) if self.axis == "heads" else over_positions

    def _mask(self, at: Tensor) -> Tensor:
        mask = self.places >= 0
        return mask.view(*mask.shape, *(1,) * (at.dim() - 2))

    def _patched(self, base: Tensor, source: Tensor, pairs: Tensor, columns: Tensor) -> Tensor:
        """(rows, pos, *feature): the base's activations with one cell of the source each."""
        out = base[pairs].clone()
        rows = torch.arange(len(pairs))
        places = self.places[pairs]
        if self.axis == "positions":
            at = places[rows, columns]
            out[rows, at] = source[pairs, at]
            return out
        for place in places.unbind(1):
            row = rows[place >= 0]
            at, pair, column = place[row], pairs[row], columns[row]
            if self.axis == "components":
                out[row, at] = source[pair, at]
            else:
                out[row, at, column] = source[pair, at, column]
        return out

    def _score(self, site: Site, patched: Tensor, pairs: list[int], start: Checkpoint, first: int) -> np.ndarray:
        """The metric under the patch, written from position `first` on: before it, the prompts of the pairs are the same."""
        prompts = [self.base[pair] for pair in pairs]
        if site.name == "resid_post" and site.layer is not None and site.layer + 1 < self.model.n_layers:
            site = Site("resid_pre", site.layer + 1)  # the same tensor, one block later to resume from
        width = max(map(len, prompts))
        edit = patch(site, patched[:, first:width], list(range(first, width)))
        scores = self.model.score(
            prompts, self.metric.select(pairs), edits=[edit], resume=start.select(pairs)
        )
        return scores.double().numpy()

    def attribution(self) -> np.ndarray:
        """First-order estimate of `exact`: base value + gradient . (source - base)."""
        slopes, base, source = self.slopes, self.base_acts, self.source_acts
        out = np.full((len(self.task), len(self.layers), len(self.columns)), np.nan)
        for number, layer in enumerate(self.layers):
            for columns, site in self._column_sets(self.sites([layer])):
                change = self._picked(slopes[site] * (source[site] - base[site]), columns).double().numpy()
                out[:, number, columns] = self.base_values[:, None] + change
        if self.axis == "positions":
            out[~(self.places >= 0).numpy()[:, None, :].repeat(len(self.layers), 1)] = np.nan
        return out

    def compare_with_exact(self, estimate: np.ndarray) -> dict[str, Any]:
        """Pearson correlation of mean effects with exact patching, on up to three layers and eight pairs."""
        picks = sorted({0, len(self.layers) // 2, len(self.layers) - 1})
        rows = list(range(0, len(self.task), -(-len(self.task) // EXACT_PAIRS)))
        some = _Grid(self.model, self.task.select(rows), replace(self.plan, method="exact"))
        exact = some.exact([self.layers[pick] for pick in picks])
        width = exact.shape[2]  # a selection of ragged prompts may be narrower; positions end together
        a, b = (np.nanmean(x, 0).ravel() for x in (estimate[rows][:, picks, -width:], exact))
        constant = np.std(a) == 0 or np.std(b) == 0
        return {"exact_layers": [self.layers[pick] for pick in picks], "exact_pairs": len(rows),
                "correlation_with_exact": None if constant else float(np.corrcoef(a, b)[0, 1])}  # fmt: skip


def _check(plan: PatchPlan) -> None:
    neurons = plan.site.startswith("mlp_act.")
    if plan.site not in (*STREAMS, *HEADS, "components") and not neurons:
        raise bad_argument("site", plan.site, f"{', '.join((*STREAMS, *HEADS))}, components or mlp_act.LAYER")
    if plan.direction not in ("denoise", "noise"):
        raise bad_argument("direction", plan.direction, "denoise or noise")
    if plan.method not in ("exact", "attribution"):
        raise bad_argument("method", plan.method, "exact or attribution")
