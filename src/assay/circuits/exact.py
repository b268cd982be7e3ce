"""Exact patching of single edges and nodes, and how well estimates agree with it.

1. Run both prompts of a pair. An edge u->v: on the base run, reader v alone reads what u wrote in the source run,

       x_v = project(norm(stream + change of u))       change of u: what u adds there, source minus base

   and everything after v is recomputed. One edit at q, k, v or mlp_in (logits: at the last stream) says all of it; the
   prompt is repeated once per edge, and a pass resumes at the reader's layer. A head's change goes through the norm
   behind its attention, if there is one, at its full size: N(raw + z W_O) - N(raw); the same for an MLP's.
   At classes of positions (`positions.py`), where a key is one thing to each class that looks at it, a circuit without the
   edge is run instead (`subgraph.py`): the same number, from the first token on.
2. A node: its output is that of the source run, for every reader.
3. `noise`: base clean, source corrupted, value m(clean) - m(patched). `denoise`: base corrupted, source clean, value
   m(patched) - m(corrupted). Positive in both: it carries the behaviour, as in `attribute.py`.
4. `verify_top`: estimates of the k largest edges (nodes) and of random others, beside both exact values. Where noising is large
   and denoising is not, every one of several inputs is needed (AND); the other way round, one of them is enough (OR).

The k largest were chosen by their estimates, so over them alone estimates look too large and agreement is understated; random
edges have mostly no effect. The correlations are over both together.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import stats
from torch import Tensor

from assay.circuits.attribute import Attribution
from assay.circuits.graph import ARROW, AT, EMBED, LOGITS, Edge, Graph, graph_of, parse_node
from assay.circuits.guards import check_task
from assay.circuits.patch import first_difference
from assay.circuits.positions import classes_of
from assay.circuits.subgraph import Bench
from assay.circuits.writers import Block, Writers
from assay.data.prepare import PreparedTask
from assay.errors import bad_argument
from assay.model.activations import Activations
from assay.model.edits import Edit, patch
from assay.model.model import Model
from assay.model.readers import Projection
from assay.model.run import Checkpoint, Progress
from assay.sites import Site, parse_site

DIRECTIONS = ("noise", "denoise")
TOKENS_AT_ONCE = 1 << 13
LARGE, NONE = 0.05, 0.2  # of the whole effect; of the other direction

Value = tuple[Site, Tensor]


def exact_edges(
    model: Model, task: PreparedTask, edges: Sequence[str | Edge], direction: str = "noise", metric: str = "logit_diff",
    progress: Progress | None = None,
) -> Float[Tensor, "pair edge"]:  # fmt: skip
    """The exact change of the metric for every edge. `progress` is called with the number of (pair, edge) values done.

    Raises UsageError for what is no edge, SiteError for a model without a graph, TaskError for prompts refused by `guards.py`.
    """
    check_task(model, task, metric)
    if any(AT in str(edge) for edge in edges):
        return _cut_alone(model, task, edges, direction, metric, progress)
    return Exchange(model, task, direction, metric).edges(edges, progress)


def _cut_alone(
    model: Model, task: PreparedTask, parts: Sequence[str | Edge | Site], direction: str, metric: str, progress: Progress | None
) -> Float[Tensor, "pair part"]:
    """The same for edges and nodes at classes of positions: everything but the edge, or the edges out of the node, is kept."""
    _check_direction(direction)
    graph, reference = graph_of(model, classes_of(task)), model.logits(task.clean) if metric == "kl" else None
    masks = [graph.mask([str(part)]) if ARROW in str(part) else _out_of(graph, str(part)) for part in parts]
    sides = task if direction == "noise" else replace(task, clean=task.corrupted, corrupted=task.clean)
    bench = Bench(model, sides, graph, metric, reference=reference)
    tell = progress and (lambda n: progress(n * len(task)))
    done = bench.scores([graph.exists & ~mask for mask in masks], tell)
    change = torch.from_numpy(bench.clean[:, None] - done.T).float()
    return change if direction == "noise" else -change


def _out_of(graph: Graph, node: str) -> Bool[Tensor, "writer reader"]:
    """All edges out of a node."""
    writer = parse_node(node)
    if writer not in graph.writer_number:
        raise bad_argument("node", node, f"a writer of this model at one of its classes: {', '.join(graph.classes)}")
    return graph.node_mask([writer])


def _check_direction(direction: str) -> None:
    if direction not in DIRECTIONS:
        raise bad_argument("direction", direction, " or ".join(DIRECTIONS))


def exact_nodes(
    model: Model, task: PreparedTask, nodes: Sequence[str | Site], direction: str = "noise", metric: str = "logit_diff",
    progress: Progress | None = None,
) -> Float[Tensor, "pair node"]:  # fmt: skip
    """The exact change of the metric for every writer, exchanged for all its readers at once."""
    check_task(model, task, metric)
    if any(AT in str(node) for node in nodes):
        return _cut_alone(model, task, nodes, direction, metric, progress)
    run = Exchange(model, task, direction, metric)
    writers = [parse_site(node) for node in nodes]
    for writer in writers:
        if writer not in run.graph.writer_number:
            raise bad_argument("node", str(writer), "a writer of this model: embed, z.L.H, mlp_out.L")
    return run.values(writers, writers, progress)


class Exchange:
    """Cells of one task in one direction. A cell is a writer and where it is exchanged: a reader, or (a node) itself.

    `base`, `source`: token ids of the run that is patched, and of the one that its values come from. Prompts are not
    checked here.
    """

    def __init__(self, model: Model, task: PreparedTask, direction: str, metric: str) -> None:
        _check_direction(direction)
        self.model, self.task, self.graph, self.readers = model, task, graph_of(model), model.readers()
        self.writers = Writers(model, self.readers)
        self.base, self.source = task.clean, task.corrupted
        self.sign = 1.0
        if direction == "denoise":
            self.base, self.source, self.sign = task.corrupted, task.clean, -1.0
        self.metric = task.metric(metric, model.logits(task.clean) if metric == "kl" else None)
        self.projections: dict[tuple[str, int], Projection] = {}

    def edges(self, edges: Sequence[str | Edge], progress: Progress | None = None) -> Float[Tensor, "pair edge"]:
        """`values` of some edges."""
        cells = [self.graph.edge(edge) for edge in edges]
        return self.values([self.graph.readers[reader] for _, reader in cells],
                           [self.graph.writers[writer] for writer, _ in cells], progress)  # fmt: skip

    def values(
        self, places: Sequence[Site], writers: Sequence[Site], progress: Progress | None
    ) -> Float[Tensor, "pair cell"]:
        """m(clean) - m(patched), or m(patched) - m(corrupted), of every cell."""
        if not places:
            raise bad_argument("edges, nodes", "none", "at least one")
        out = torch.zeros(len(self.task), len(places))
        for rows in self.model.batches(self.base):
            part = PairRuns(self, rows, places, writers)
            for cells in _by_place(places):
                out[torch.tensor(rows)[:, None], torch.tensor(cells)] = self._group(part, places, writers, cells)
                if progress:
                    progress(len(rows) * len(cells))
        return self.sign * (self._plain[:, None] - out)

    @cached_property
    def _plain(self) -> Float[Tensor, " pair"]:
        return self.model.score(self.base, self.metric)

    def _group(
        self, part: "PairRuns", places: Sequence[Site], writers: Sequence[Site], cells: Sequence[int]
    ) -> Float[Tensor, "pair cell"]:
        """Cells that are exchanged at one site, a row each."""
        n, width = len(part.rows), max(len(self.base[row]) for row in part.rows)
        step = max(1, TOKENS_AT_ONCE // (n * width))
        out: list[Tensor] = []
        for start in range(0, len(cells), step):
            made = [part.exchanged(places[cell], writers[cell]) for cell in cells[start : start + step]]
            rows = part.rows * len(made)
            value = torch.cat([value for _, value in made])
            edit = patch(made[0][0], value, "last") if made[0][1].dim() == 2 else patch(
                made[0][0], value[:, part.first : width], list(range(part.first, width)))  # fmt: skip
            resume = None if part.checkpoint is None else part.checkpoint.select(list(range(n)) * len(made))
            scores = self.model.score([self.base[row] for row in rows], self.metric.select(rows), edits=[edit], resume=resume)
            out.append(scores.view(len(made), n))
        return torch.cat(out).T


class PairRuns:
    """What some pairs need of both their runs."""

    def __init__(self, exact: Exchange, rows: list[int], places: Sequence[Site], writers: Sequence[Site]) -> None:
        self.exact, self.rows = exact, rows
        self.first = min(first_difference(exact.base[row], exact.source[row]) for row in rows)
        self.blocks = {writer: self._block(writer) for writer in writers}
        edges = [place for place, writer in zip(places, writers, strict=True) if place != writer]
        streams = [exact.readers.stream(place) for place in edges]
        written = [block.site for block in self.blocks.values()]
        nodes = [node_site(writer) for writer, place in zip(writers, places, strict=True) if place == writer]
        raw = [block.raw for block in self.blocks.values() if block.raw is not None]
        heads = [place.whole for place in edges if place.name in ("q", "k", "v")]
        starts = [Site("resid_pre", layer) for layer in sorted({place.layer or 0 for place in places} - {0})]
        self.source = self.capture(self.of(exact.source), [*written, *nodes])
        self.base = self.capture(self.of(exact.base), [*written, *nodes, *raw, *streams, *heads, *starts])
        self.checkpoint = None
        if starts:
            layers = tuple(site.layer for site in starts if site.layer is not None)
            self.checkpoint = Checkpoint(layers, self.base, tuple(range(len(rows))), self.of(exact.base))

    def _block(self, writer: Site) -> Block:
        number = self.exact.graph.writer_number[writer]
        return next(block for block in self.exact.writers.blocks if block.first <= number < block.first + block.n)

    def of(self, prompts: Sequence[list[int]]) -> list[list[int]]:
        """Those of a task's prompts that belong to these pairs."""
        return [prompts[row] for row in self.rows]

    def capture(self, prompts: list[list[int]], sites: Iterable[Site], edits: Sequence[Edit] = ()) -> Activations:
        """Sites in the runs of some prompts, on the model's device."""
        model = self.exact.model
        return model.capture(prompts, list(dict.fromkeys(sites)), edits=edits, device=str(model.device))

    @torch.no_grad()
    def exchanged(self, place: Site, writer: Site) -> Value:
        """A whole site and its value (pair, pos, ..) with the writer's output exchanged; (pair, ..): the last position."""
        if place == writer:
            return self.node(writer)
        before = self.base[self.exact.readers.stream(place)]
        made = self.read(place, (before.float() + self.change(writer)).to(before.dtype))
        if place == LOGITS:
            return self.exact.readers.stream(place), made
        return place.whole, made if place.name == "mlp_in" else _with_head(self.base[place.whole], place.index, made)

    @torch.no_grad()
    def read(self, place: Site, stream: Float[Tensor, "pair pos d_model"]) -> Float[Tensor, "pair ..."]:
        """What a reader makes of a stream: its query, key or value (pair, pos, d_head), its MLP's input (pair, pos, d_model);
        of the logits the last stream (pair, d_model)."""
        if place == LOGITS:
            ends = torch.tensor(self.base.lengths, device=stream.device) - 1
            return stream[torch.arange(len(ends), device=stream.device), ends]
        normed = self.exact.readers.norm(place)(stream)
        if place.name == "mlp_in":
            return normed
        weight, bias = self._projection(place)
        return normed @ weight + bias

    def _projection(self, place: Site) -> tuple[Tensor, Tensor]:
        """Weight and bias of one query, key or value head."""
        assert place.layer is not None
        key = place.name, place.layer
        if key not in self.exact.projections:
            self.exact.projections[key] = self.exact.readers.projection(*key)
        whole = self.exact.projections[key]
        return whole.weight[place.index], whole.bias[place.index]

    def node(self, writer: Site) -> Value:
        """The whole site of a writer with its output that of the source run: exchanged for all readers."""
        site = node_site(writer)
        if writer.index is None:
            return site, self.source[site]
        return site, _with_head(self.base[site], writer.index, self.source[site][:, :, writer.index])

    def change(self, writer: Site, other: Tensor | None = None) -> Float[Tensor, "pair pos d_model"]:
        """What a writer adds to the stream, source minus base, at its full size. `other`: values of its block's site that
        take the place of the source run's."""
        block = self.blocks[writer]
        change = (self.source[block.site] if other is None else other).float() - self.base[block.site].float()
        if block.weight is not None:
            change = change[:, :, writer.index] @ block.weight[writer.index].float()
        if block.norm is not None:
            assert block.raw is not None
            raw = self.base[block.raw]
            change = block.norm((raw.float() + change).to(raw.dtype)).float() - block.norm(raw).float()
        return block.scale * change


def _with_head(whole: Tensor, head: int | None, value: Tensor) -> Tensor:
    out = whole.clone()
    out[:, :, head] = value.to(out.dtype)
    return out


def node_site(writer: Site) -> Site:
    """The whole site at which a writer is exchanged for all its readers."""
    return Site("resid_pre", 0) if writer == EMBED else writer.whole


def _by_place(places: Sequence[Site]) -> Iterator[list[int]]:
    """Numbers of the cells that are exchanged at the same whole site."""
    groups: dict[Site, list[int]] = {}
    for number, place in enumerate(places):
        groups.setdefault(place.whole, []).append(number)
    yield from groups.values()


# estimates and exact values ----------------------------------------------------------------------


@dataclass(frozen=True)
class Agreement:
    """Estimates and exact values of the same edges. Correlations are None where one side is constant; `same_sign` is
    the share of edges with the estimate's sign, among those with an exact value that is not 0 (None: no such edge)."""

    pearson: float | None
    spearman: float | None
    same_sign: float | None


@dataclass(frozen=True)
class Verified:
    """Estimates and exact values of some edges, or nodes, means over pairs.

    `parts`: the `k` largest estimates, then random others. `agreement`: of the estimate with `noise`, with `denoise`
    and with their mean. `disagree`: part -> "and" or "or". `effect`: mean m(clean) - m(corrupted).
    """

    plan: dict[str, Any]
    parts: list[str]
    k: int
    estimate: list[float]
    noise: list[float]
    denoise: list[float]
    agreement: dict[str, Agreement]
    disagree: dict[str, str]
    effect: float
    n_pairs: int


def verify_top(
    model: Model, task: PreparedTask, attribution: Attribution, k: int = 20, n_random: int = 20, seed: int = 0,
    progress: Progress | None = None,
) -> Verified:  # fmt: skip
    """Patch the k largest edges, or writers, (by |score|) and `n_random` others exactly, in both directions.

    `progress` is called with the number of (pair, part) values done; there are 2 x pairs x parts. Raises UsageError for
    scores of another task.
    """
    cells = chosen_parts(attribution, task, k, n_random, seed)
    names, metric = [attribution.names[cell] for cell in cells], attribution.plan["metric"]
    estimate = attribution.scores[cells].double().numpy()
    exact = exact_edges if attribution.plan["level"] == "edge" else exact_nodes
    found = {direction: exact(model, task, names, direction, metric, progress).double().mean(0).numpy()
             for direction in DIRECTIONS}  # fmt: skip
    against = {**found, "mean": (found["noise"] + found["denoise"]) / 2}
    effect = float((attribution.clean - attribution.corrupted).mean())
    split = gates(found["noise"], found["denoise"], effect)
    return Verified(
        plan={**attribution.plan, "verify_seed": seed}, parts=names, k=min(k, len(names)), estimate=estimate.tolist(),
        noise=found["noise"].tolist(), denoise=found["denoise"].tolist(),
        agreement={name: agreement(estimate, values) for name, values in against.items()},
        disagree={name: gate for name, gate in zip(names, split, strict=True) if gate}, effect=effect, n_pairs=len(task),
    )  # fmt: skip


def chosen_parts(attribution: Attribution, task: PreparedTask, k: int, n_random: int, seed: int) -> list[int]:
    """Numbers of the k largest edges or writers, largest first, then of random others."""
    if attribution.values.shape[0] != len(task):
        raise bad_argument("task", f"{len(task)} pairs", f"the {attribution.values.shape[0]} pairs that were attributed")
    if k < 0 or n_random < 0 or k + n_random < 2:
        raise bad_argument("k, n_random", f"{k}, {n_random}", "2 or more parts together")
    n = len(attribution.names) if attribution.plan["level"] == "edge" else len(attribution.graph.writers)
    order = attribution.scores[:n].abs().argsort(descending=True, stable=True).tolist()
    rest = np.random.default_rng(seed).permutation(order[k:])[:n_random]
    return [*order[:k], *map(int, rest)]


def agreement(estimate: np.ndarray, exact: np.ndarray) -> Agreement:
    """Correlations and signs of estimates against exact values."""
    real = np.abs(exact) > 1e-6 * np.abs(exact).max(initial=0.0)
    same = float((np.sign(estimate) == np.sign(exact))[real].mean()) if real.any() else None
    if len(exact) < 2 or np.ptp(estimate) == 0 or np.ptp(exact) == 0:
        return Agreement(None, None, same)
    ranks = stats.rankdata(estimate), stats.rankdata(exact)
    return Agreement(float(np.corrcoef(estimate, exact)[0, 1]), float(np.corrcoef(*ranks)[0, 1]), same)


def gates(noise: np.ndarray, denoise: np.ndarray, effect: float) -> list[str]:
    """"and" where only noising is large, "or" where only denoising is, else "", for every edge."""
    a, b = np.abs(noise), np.abs(denoise)
    large = LARGE * abs(effect)
    both = zip((a >= large) & (b <= NONE * a), (b >= large) & (a <= NONE * b), strict=True)
    return ["and" if needed else "or" if enough else "" for needed, enough in both]
