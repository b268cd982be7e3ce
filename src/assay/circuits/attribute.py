"""Attribution: gradient estimates of what every edge, or every node, carries.

1. Run clean and corrupted prompts; keep what every writer wrote. d_u = output of u, clean minus corrupted.
2. Run with gradients; g_v = d metric / d (what reader v reads), pulled back through v's norm at that run.
3. edge u->v:  sum over positions  d_u . g_v           (EAP; Syed et al. 2310.10348)
   node u:     sum over positions  d_u . d metric/d u  = sum over v of the edges u->v   (attribution patching)
   Positive means: it carries the behaviour. Patching it with the corrupted value lowers the metric by about this.
4. Where g is taken: `eap` at the clean run (direction noise) or the corrupted run (denoise). `eap-ig`: the mean along
   the straight line between the two embeddings (Hanna et al. 2403.17806), trapezoid rule; the number of steps is
   doubled for every pair until its completeness residual

       | sum_v score(embed->v) - (m_clean - m_corrupted) | / |m_clean - m_corrupted|

   is small (`tolerance`), earlier steps kept. Its ends are `eap` in both directions. `steps` fixes a number (midpoints).

5. `grad_drop` (with eap; AtP*, Kramar et al. 2403.00745): effects of a node by way of different later layers may cancel in
   one gradient and not in truth. So the backward pass is repeated once per layer l, with no gradient through what layer l
   writes to the stream (its heads and its MLP), and the score is

       sum over l of |score without l| / (L - 1)          L - 1: dropping a node's own layer leaves nothing of it

   It has no sign, and is an average of magnitudes, not an estimate of the effect: for ranking, so that what cancels is not
   missed. Cost: 2 F + (L + 1) B instead of 2 F + B, in one forward pass whose graph is kept.

6. `positions` "labels": of the graph whose nodes are at classes of positions (`positions.py`). A key or value at class d has
   the gradient that comes back through what heads at class d make of it, and an edge into it sums over the positions of
   its writer's class; summed over classes scores are those of the plain graph.

Memory: gradients stay in head space; they are expanded to d_model for some tokens and some layers at a time and
contracted at once, so that no tensor holds all nodes at full width. Only tokens from the first difference of
a pair on are contracted: before it nothing differs.

An estimate is an estimate: `residual` says how far it is from complete (of the edges out of the embedding together: a
residual of zero does not make each edge right), `cancelled` how much of an edge's score over positions cancels, and
`exact.py` patches the top ones exactly.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from assay.circuits.graph import LOGITS, READERS, Graph, graph_of
from assay.circuits.guards import check_metrics, check_task
from assay.circuits.patch import first_difference
from assay.circuits.positions import classes_of, copies, merged, padded, positions_of
from assay.circuits.writers import Writers
from assay.data.metrics import Metric
from assay.data.prepare import PreparedTask
from assay.errors import bad_argument
from assay.model.model import Model
from assay.model.readers import Readers
from assay.model.run import Progress
from assay.sites import Site

METHODS = ("eap", "eap-ig")
LEVELS = ("edge", "node")
MAX_STEPS = 65
FEWEST_INTERVALS = 4  # two ends can be complete by accident, with what lies between them unseen
CHUNK_FLOATS = 1 << 24  # expanded writers held at once
LAYERS_AT_ONCE = 4
ENTRY = Site("resid_pre", 0)
Values = dict[Site, Tensor]


@dataclass(frozen=True)
class AttributionPlan:
    """What to estimate, and how. `steps` None: as many as the residual asks for, up to `max_steps`. `positions` "labels":
    nodes are at classes of positions, see 6. `grad_drop`: see 5."""

    method: str = "eap-ig"
    level: str = "edge"
    direction: str = "noise"
    metric: str = "logit_diff"
    steps: int | None = None
    tolerance: float = 0.02
    max_steps: int = MAX_STEPS
    positions: str = "all"
    seed: int = 0
    grad_drop: bool = False


@dataclass(frozen=True, eq=False)
class Attribution:
    """Scores of one plan on one task. `values` (pair, cell) in units of the metric; positive: carries the behaviour.

    Cells are the graph's edges in its order, or for nodes the writers, then the readers but the logits.
    `ends`: the same estimate at the clean and at the corrupted run alone (pair, cell), where both were made.
    `cancelled` (cell,): 1 - |sum| / sum of |score| over positions and pairs, at one run with gradients: the clean one,
    that of `eap`, or the middle one of a fixed number of steps. `sizes` (cell,): that sum of |score|, a mean over pairs.
    """

    plan: dict[str, Any]
    graph: Graph
    values: Float[Tensor, "pair cell"]
    clean: np.ndarray
    corrupted: np.ndarray
    steps: np.ndarray
    residual: np.ndarray
    cancelled: Float[Tensor, " cell"]
    templates: list[str]
    ends: dict[str, Float[Tensor, "pair cell"]] = field(default_factory=dict)
    sizes: Float[Tensor, " cell"] | None = None

    @property
    def scores(self) -> Float[Tensor, " cell"]:
        """Means over pairs."""
        return self.values.mean(0)

    @cached_property
    def names(self) -> list[str]:
        """What the cells are called."""
        if self.plan["level"] == "edge":
            return [str(self.graph.name(cell)) for cell in self.graph.cells.tolist()]
        return [str(site) for site in nodes_of(self.graph)]

    def matrix(self, values: Tensor | None = None) -> Float[Tensor, "writer reader"]:
        """Edge scores as a matrix, zero where there is no edge."""
        cells, out = self.graph.cells, torch.zeros(self.graph.exists.shape)
        out[cells[:, 0], cells[:, 1]] = (self.scores if values is None else values).float()
        return out

    @property
    def warnings(self) -> list[str]:
        """What a reader of these numbers must know."""
        return _warnings(self)


def nodes_of(graph: Graph) -> list[Site]:
    """Cells of node scores: writers, then queries, keys, values and MLP inputs."""
    return [*graph.writers, *graph.readers[:-1]]


def attribute(
    model: Model, task: PreparedTask, plan: AttributionPlan = AttributionPlan(), *, progress: Progress | None = None
) -> Attribution:
    """Estimate every edge or node. `progress` is called with the number of pairs done.

    Raises UsageError for a plan that does not fit, SiteError for a model whose edges cannot be told apart, TaskError for
    prompts that would make the numbers meaningless (`guards.py`).
    """
    _check(plan)
    check_task(model, task, plan.metric)
    run = _Run(model, task, plan)
    for batch in model.batches(task.clean, gradients=True):
        step = max(1, len(batch) // (len(run.graph.classes) or 1))  # every pair is run once per class
        for rows in (batch[start : start + step] for start in range(0, len(batch), step)):
            run.pairs(rows)
            if progress:
                progress(len(rows))
    return run.done()


def _check(plan: AttributionPlan) -> None:
    choices = {"method": METHODS, "level": LEVELS, "direction": ("noise", "denoise"), "positions": ("all", "labels")}
    for name, allowed in choices.items():
        if getattr(plan, name) not in allowed:
            raise bad_argument(name, getattr(plan, name), ", ".join(allowed))
    if plan.steps is not None and plan.steps < 1:
        raise bad_argument("steps", plan.steps, "1 or more, or none for as many as the residual asks for")
    if not plan.tolerance > 0:
        raise bad_argument("tolerance", plan.tolerance, "more than 0")
    if plan.grad_drop and (plan.method, plan.positions) != ("eap", "all"):
        raise bad_argument("grad_drop", f"with {plan.method}, positions {plan.positions}", "with eap and all positions")
    if plan.metric == "rank":
        raise bad_argument("metric", plan.metric, "a metric with a gradient", "Ranks have none; patch exactly instead.")


@dataclass(eq=False)
class Point:
    """One run with gradients: (pair, alpha) per row, alpha 1 = clean. Values and slopes are (row, pos, ..); with classes of
    positions, slopes of keys and values (row, class that looks, pos, ..)."""

    rows: list[int]
    alphas: list[float]
    values: Values
    slopes: Values
    metric: Tensor
    without: Callable[[int], Values] | None = None  # slopes without the write of a layer; keeps the pass's graph


class _Run:
    """One plan on one model and task."""

    def __init__(self, model: Model, task: PreparedTask, plan: AttributionPlan) -> None:
        self.model, self.task, self.plan = model, task, plan
        self.graph = graph_of(model, classes_of(task) if plan.positions == "labels" else ())
        self.class_of = positions_of(task, self.graph.classes) if self.graph.classes else None
        self.n_copies, self.readers = len(self.graph.classes) or 1, model.readers()
        self.writers = Writers(model, self.readers)
        reference = model.logits(task.clean) if plan.metric == "kl" else None
        self.metric: Metric = task.metric(plan.metric, reference)
        self.edges = plan.level == "edge"
        self.contraction = Contraction(self.graph.plain, self.readers, self.writers)
        layers = range(model.n_layers)
        self.reading = [Site(name, layer) for layer in layers for name in ("q", "k", "v", "mlp_in")]
        dropped = ("attn_out", "mlp_out") if plan.grad_drop else ()
        self.writes = {Site(name, layer): layer for layer in layers for name in dropped}
        if plan.grad_drop and model.n_layers < 2:
            raise bad_argument("grad_drop", "a model of one layer", "two layers or more: what cancels are ways through others")
        if self.writes:
            model.sites(list(self.writes))  # refuses what was not proved
        self.dropping: int | None = None  # the layer whose write passes no gradient on
        self.changing = [*self.writers.sites, *([] if self.edges else self.reading)]
        n = len(task)
        n_cells = len(self.graph.cells) if self.edges else len(nodes_of(self.graph))
        self.values = torch.zeros(n, n_cells)
        self.signed, self.absolute = (torch.zeros(n_cells) for _ in range(2))
        self.ends: dict[str, Tensor] = {}
        if plan.method == "eap-ig" and plan.steps is None:
            self.ends = {name: torch.zeros(n, n_cells) for name in ("clean", "corrupted")}
        self.clean, self.corrupted, self.residual = (np.zeros(n) for _ in range(3))
        self.steps = np.zeros(n, dtype=int)
        self.first = [first_difference(a, b) for a, b in zip(task.clean, task.corrupted, strict=True)]

    # a batch of pairs ------------------------------------------------------------------------

    def pairs(self, rows: list[int]) -> None:
        """All that is asked for these pairs."""
        with_gradient = self._ends_with_gradient()
        low, high = (self._end(rows, alpha, alpha in with_gradient) for alpha in (0.0, 1.0))
        self.clean[rows], self.corrupted[rows] = (end.metric.double().cpu().numpy() for end in (high, low))
        self.change = {site: high.values[site] - low.values[site] for site in self.changing}
        self.start, self.back = high.values[ENTRY], low.values[ENTRY]
        self.place = {row: place for place, row in enumerate(rows)}
        if self.plan.method == "eap":
            point = high if with_gradient == (1.0,) else low
            scores, absolute, slope = self._scores(point)
            one = scores, absolute
            if self.plan.grad_drop:
                scores, slope = self._averaged(point), torch.full_like(slope, torch.nan)
            self._keep(rows, scores, one, slope, 1)
        elif self.plan.steps is not None:
            self._fixed(rows, self.plan.steps)
        else:
            self._adaptive(rows, low, high)

    def _averaged(self, point: Point) -> Tensor:
        """|Scores| averaged over the layers whose writes are dropped."""
        total = torch.zeros(len(point.rows), self.values.shape[1])
        assert point.without is not None
        for layer in range(self.model.n_layers):
            total += self._scores(replace(point, slopes=point.without(layer)), absolute=False)[0].abs()
        return total / (self.model.n_layers - 1)

    def _ends_with_gradient(self) -> tuple[float, ...]:
        if self.plan.method == "eap":
            return (1.0,) if self.plan.direction == "noise" else (0.0,)
        return () if self.plan.steps is not None else (0.0, 1.0)

    def _fixed(self, rows: list[int], steps: int) -> None:
        """Midpoints of equal parts."""
        total, slope = torch.zeros(len(rows), self.values.shape[1]), torch.zeros(len(rows))
        middle = None
        for number in range(steps):
            found = self._scores(self._between(rows, [(number + 0.5) / steps] * len(rows)), absolute=number == steps // 2)
            total, slope = total + found[0] / steps, slope + found[2] / steps
            middle = found[:2] if number == steps // 2 else middle
        assert middle is not None
        self._keep(rows, total, middle, slope, steps)

    def _adaptive(self, rows: list[int], low: Point, high: Point) -> None:
        """Trapezoid rule with doubled steps for the pairs that are not complete yet."""
        (s_low, _, f_low), (s_high, absolute, f_high) = self._scores(low, absolute=False), self._scores(high)
        self.ends["corrupted"][rows], self.ends["clean"][rows] = s_low, s_high
        scores, slope, steps = (s_low + s_high) / 2, (f_low + f_high) / 2, torch.full((len(rows),), 2)
        span = torch.from_numpy(self.clean[rows] - self.corrupted[rows]).to(slope)
        floor = 0.1 * span.abs().mean()
        intervals = 1
        while True:
            far = (slope - span).abs() > self.plan.tolerance * span.abs().clamp_min(floor)
            open_ = (far | (intervals < FEWEST_INTERVALS)).nonzero()[:, 0].tolist()
            if not open_ or 2 * intervals + 1 > self.plan.max_steps:
                break
            alphas = [(2 * k + 1) / (2 * intervals) for k in range(intervals)]
            fresh, f_fresh = self._sum_over([rows[place] for place in open_], alphas)
            scores[open_] = scores[open_] / 2 + fresh / (2 * intervals)
            slope[open_] = slope[open_] / 2 + f_fresh / (2 * intervals)
            intervals *= 2
            steps[open_] = intervals + 1
        self._keep(rows, scores, (s_high, absolute), slope, steps.numpy())

    def _sum_over(self, rows: list[int], alphas: Sequence[float]) -> tuple[Tensor, Tensor]:
        """Scores (pair, cell) and slopes along the line (pair,), summed over alphas; several to a pass."""
        todo = [(row, alpha) for alpha in alphas for row in rows]
        order = {row: place for place, row in enumerate(rows)}
        total, slope = torch.zeros(len(rows), self.values.shape[1]), torch.zeros(len(rows))
        for batch in self.model.batches([self.task.clean[row] for row, _ in todo], gradients=True):
            chosen = [todo[number] for number in batch]
            scores, _, f = self._scores(self._between([row for row, _ in chosen], [alpha for _, alpha in chosen]), False)
            places = torch.tensor([order[row] for row, _ in chosen])
            total.index_add_(0, places, scores)
            slope.index_add_(0, places, f)
        return total, slope

    def _keep(self, rows: list[int], scores: Tensor, one: tuple[Tensor, Tensor], slope: Tensor, steps: Any) -> None:
        """Keep the result of some pairs. `one`: scores and absolute scores of a single run."""
        span = self.clean[rows] - self.corrupted[rows]
        with np.errstate(divide="ignore", invalid="ignore"):
            self.residual[rows] = np.abs(slope.double().numpy() - span) / np.abs(span)
        self.values[rows], self.steps[rows] = scores, steps
        self.signed += one[0].sum(0)
        self.absolute += one[1]

    # one run ---------------------------------------------------------------------------------

    def _leaves(self) -> list[Site]:
        """Where gradients are taken, beside the embeddings."""
        ends = [self.readers.stream(LOGITS)] if self.edges else self.writers.sites[1:]
        return [*self.reading, *ends]

    def _points(self) -> list[Site]:
        """What must be known of a run with gradients to pull them through norms."""
        streams = [self.readers.stream(reader) for reader in self.graph.readers] if self.edges else []
        return [*streams, *self.writers.raw_sites]

    def _end(self, rows: list[int], alpha: float, gradient: bool) -> Point:
        prompts = self.task.clean if alpha else self.task.corrupted
        return self._pass([prompts[row] for row in rows], rows, [alpha] * len(rows), None, gradient, self.changing)

    def _between(self, rows: list[int], alphas: list[float]) -> Point:
        """Gradients with the embeddings on the line between corrupted (0) and clean (1)."""
        places = [self.place[row] for row in rows]
        weights = torch.tensor(alphas, device=self.start.device)[:, None, None]
        width = max(len(self.task.clean[row]) for row in rows)
        embeddings = torch.lerp(self.back[places], self.start[places], weights.to(self.start.dtype))[:, :width]
        embeddings = embeddings.repeat_interleave(self.n_copies, 0)
        return self._pass([self.task.clean[row] for row in rows], rows, alphas, embeddings, True, ())

    def _pass(
        self, prompts: list[list[int]], rows: list[int], alphas: list[float], embeddings: Tensor | None, gradient: bool,
        keep: Sequence[Site],
    ) -> Point:  # fmt: skip
        leaves = [ENTRY, *self._leaves()] if gradient else []
        kept = {ENTRY, *keep, *(self._points() if gradient else [])}
        held: Values = {}
        values: Values = {}
        of = None if self.class_of is None or not gradient else padded([self.class_of[row] for row in rows])
        n_copies = 1 if of is None else self.n_copies

        def visit(site: Site, value: Tensor) -> Tensor | None:
            if site == ENTRY and embeddings is not None:
                value = embeddings.to(value)
            if site.name == "z" and of is not None:
                value = merged(value, of, n_copies)
            if site in kept:
                values[site] = value[::n_copies].detach().clone()
            if site in leaves:
                held[site] = value.clone() if value.requires_grad else value.detach().clone().requires_grad_(True)
                return self._gated(site, held[site].clone())
            if site in self.writes and gradient:
                return self._gated(site, value.clone())
            return value if site == ENTRY or (site.name == "z" and of is not None) else None

        mixing = [] if of is None else [site for site in self.writers.sites if site.name == "z"]
        seen = list(dict.fromkeys([*kept, *leaves, *mixing, *(self.writes if gradient else ())]))
        run = prompts if of is None else copies(prompts, self.graph)
        logits = self.model.walk(run, seen, visit, logits=True, gradients=gradient)
        assert logits is not None
        logits = logits[::n_copies]
        with torch.set_grad_enabled(gradient):
            metric = self.metric(logits, torch.tensor(rows, device=logits.device))
        if not gradient:
            return Point(rows, alphas, values, {}, metric.detach())
        slopes = partial(self._slopes, metric, held, leaves)
        return Point(rows, alphas, values, slopes(None), metric.detach(), slopes if self.writes else None)

    def _gated(self, site: Site, value: Tensor) -> Tensor:
        """What a layer writes: no gradient passes while it is the one that is dropped."""
        if site in self.writes and value.requires_grad:
            value.register_hook(lambda g: torch.zeros_like(g) if self.dropping == self.writes[site] else None)
        return value

    def _slopes(self, metric: Tensor, held: Values, leaves: Sequence[Site], drop: int | None) -> Values:
        """Gradients at the leaves, without what passes through the write of a layer."""
        self.dropping = drop
        with torch.enable_grad():
            found = torch.autograd.grad(metric.sum(), [held[site] for site in leaves], allow_unused=True,
                                        retain_graph=bool(self.writes))  # fmt: skip
        self.dropping = None
        slopes = {site: torch.zeros_like(held[site]) if g is None else g for site, g in zip(leaves, found, strict=True)}
        if self.n_copies == 1:
            return slopes
        apart = {site: g.unflatten(0, (-1, self.n_copies)) for site, g in slopes.items()}
        return {site: g if site.name in ("k", "v") else g.sum(1) for site, g in apart.items()}

    # contraction -----------------------------------------------------------------------------

    @torch.no_grad()
    def _scores(self, point: Point, absolute: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        """(row, cell) scores, their absolute sums over tokens (cell,) if wanted, and the slope along the line (row,)."""
        places = [self.place[row] for row in point.rows]
        width = point.slopes[ENTRY].shape[1]
        change = {site: x[places, :width] for site, x in self.change.items()}
        slope = (change[ENTRY] * point.slopes[ENTRY]).flatten(1).sum(1).float().cpu()
        at = _active([self.first[row] for row in point.rows], [len(self.task.clean[row]) for row in point.rows])
        cells = self._cells if self.class_of is None else self._at_classes
        return *cells(point, change, at, absolute), slope

    def _cells(
        self, point: Point, change: Values, at: tuple[Tensor, Tensor], absolute: bool
    ) -> tuple[Tensor, Tensor]:
        """(row, cell) scores of some tokens in the graph without classes, and their absolute sums (cell,)."""
        return self.contraction(point, change, at, absolute) if self.edges else self._node_scores(point, change, at)

    def _node_scores(self, point: Point, change: Values, at: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Differences times slopes: writers, then readers but the logits."""
        pick, n = _Picked(*at), len(point.rows)
        sums, absolute = [], []
        for site in (*self.writers.sites, *self.reading):
            each = (pick(change[site]).float() * pick(point.slopes[site]).float()).sum(-1).cpu()
            each = each if each.dim() == 2 else each[:, None]  # (token, unit)
            sums.append(torch.zeros(n, each.shape[1]).index_add_(0, at[0], each))
            absolute.append(each.abs().sum(0))
        return torch.cat(sums, 1), torch.cat(absolute)

    def _at_classes(
        self, point: Point, change: Values, at: tuple[Tensor, Tensor], absolute: bool
    ) -> tuple[Tensor, Tensor]:
        """The same of the graph with classes of positions: scores of the writers' tokens of one class, through what one class
        looks at, put where they belong."""
        sums = torch.zeros(len(point.rows), self.values.shape[1])
        sizes, tokens = torch.zeros(self.values.shape[1]), self._by_class(point, at)
        for looks in range(self.n_copies):
            seen = {site: g[:, looks] if site.name in ("k", "v") else g for site, g in point.slopes.items()}
            for wrote, part in enumerate(tokens):
                now, size = self._cells(replace(point, slopes=seen), change, part, absolute)
                there = self._places(wrote, looks)
                sums[:, there[there >= 0]] += now[:, there >= 0]
                if len(size):
                    sizes[there[there >= 0]] += size[there >= 0]
        return sums, sizes

    def _places(self, wrote: int, looks: int) -> Tensor:
        """Where cells of the plain graph are in this one, by the class that is written at and the one that looks; -1: nowhere.
        Keys and values are the looking class's, all else is where it is written."""
        n, plain = self.n_copies, self.graph.plain
        if self.edges:
            writer, reader = plain.cells.unbind(1)
            last = reader == len(plain.readers) - 1
            found = self.number[writer * n + wrote, torch.where(last, len(self.graph.readers) - 1, reader * n + looks)]
            return torch.where(last & (wrote != looks), -1, found)
        sites = nodes_of(plain)
        keys = torch.tensor([site.name in ("k", "v") for site in sites])
        return torch.where(keys | (wrote == looks), torch.arange(len(sites)) * n + looks, -1)

    @cached_property
    def number(self) -> Tensor:
        """The number of every edge, -1 where there is none."""
        cells, out = self.graph.cells, torch.full(self.graph.exists.shape, -1)
        out[cells[:, 0], cells[:, 1]] = torch.arange(len(cells))
        return out

    def _by_class(self, point: Point, at: tuple[Tensor, Tensor]) -> list[tuple[Tensor, Tensor]]:
        """The tokens of every class of positions."""
        assert self.class_of is not None
        places = zip(*(x.tolist() for x in at), strict=True)
        of = torch.tensor([self.class_of[point.rows[row]][position] for row, position in places])
        return [(at[0][of == number], at[1][of == number]) for number in range(self.n_copies)]

    def done(self) -> Attribution:
        """The result of all pairs."""
        check_metrics(self.plan.metric, self.clean, self.corrupted)
        cancelled = 1 - self.signed.abs() / self.absolute.clamp_min(1e-30)
        plan = {"model": self.model.name, **asdict(self.plan)}
        return Attribution(plan, self.graph, self.values, self.clean, self.corrupted, self.steps, self.residual,
                           cancelled.clamp(0, 1), self.task.templates, self.ends, self.absolute / len(self.task))  # fmt: skip


def _active(first: list[int], lengths: list[int]) -> tuple[Tensor, Tensor]:
    """(row, position) of every token that can differ."""
    rows = [row for row, (start, end) in enumerate(zip(first, lengths, strict=True)) for _ in range(start, end)]
    positions = [p for start, end in zip(first, lengths, strict=True) for p in range(start, end)]
    return torch.tensor(rows), torch.tensor(positions)


class Contraction:
    """d_u . g_v for all writers and readers, tokens and layers in parts."""

    def __init__(self, graph: Graph, readers: Readers, writers: Writers) -> None:
        self.graph, self.readers, self.writers = graph, readers, writers
        self.groups = list(self._layer_groups())
        self.starts = torch.cat([torch.zeros(1, dtype=torch.long), graph.exists.sum(0).cumsum(0)])  # edges before each reader

    def _layer_groups(self) -> Iterator[list[list[Site]]]:
        """Readers by norm: the queries, keys and values of a layer together, an MLP and the logits alone."""
        parts: list[list[Site]] = []
        for reader in self.graph.readers:
            same = parts and reader.name in ("q", "k", "v") and parts[-1][0].name in ("q", "k", "v")
            if same and parts[-1][0].layer == reader.layer:
                parts[-1].append(reader)
            else:
                parts.append([reader])
        for start in range(0, len(parts), 2 * LAYERS_AT_ONCE):
            yield parts[start : start + 2 * LAYERS_AT_ONCE]

    def __call__(
        self, point: Point, change: Values, at: tuple[Tensor, Tensor], absolute: bool = True
    ) -> tuple[Tensor, Tensor]:
        """(row, edge) sums over positions of the score and, where asked for, (edge,) over all tokens of its absolute value."""
        rows, positions = at
        sums = torch.zeros(len(point.rows), self.graph.n_edges)
        sizes = torch.zeros(self.graph.n_edges if absolute else 0)
        tokens = max(1, CHUNK_FLOATS // (self.writers.n * self.writers.d_model))
        for start in range(0, len(rows), tokens):
            row, position = rows[start : start + tokens], positions[start : start + tokens]
            pick = _Picked(row, position)
            raw = {site: pick(point.values[site]) for site in self.writers.raw_sites}
            written = self.writers.small({site: pick(x) for site, x in change.items()}, raw)
            for parts in self.groups:
                first = self.graph.reader_number[parts[0][0]]
                last = int(self.graph.exists[:, self.graph.reader_number[parts[-1][-1]]].sum())  # writers come in order
                read = torch.cat([self._pulled(part, point, pick) for part in parts])
                there = self.graph.exists[:last, first : first + len(read)].T  # edges come in order, readers first
                cells = slice(int(self.starts[first]), int(self.starts[first + len(read)]))
                if absolute:
                    each = (read.transpose(0, 1) @ written[:last].permute(1, 2, 0)).cpu()[:, there]  # (token, edge)
                    sums[:, cells].index_add_(0, row, each)
                    sizes[cells] += each.abs().sum(0)
                else:
                    for number, (begin, end) in _runs(row):
                        each = read[:, begin:end].flatten(1) @ written[:last, begin:end].flatten(1).T
                        sums[number, cells] += each.cpu()[there]
        return sums, sizes

    def _pulled(self, part: list[Site], point: Point, pick: "_Picked") -> Float[Tensor, "reader t d_model"]:
        """Gradients of what the readers behind one norm read."""
        first, stream = part[0], self.readers.stream(part[0])
        if first == LOGITS:  # its slope is taken at the stream itself
            return pick(point.slopes[stream]).float()[None]
        norm = self.readers.norm(first)
        if first.name == "mlp_in":
            g = pick(point.slopes[first]).float()[None]
        else:
            assert first.layer is not None
            sites = [Site(name, first.layer) for name in READERS]
            g = torch.cat([self.readers.projection(site.name, first.layer).pull(pick(point.slopes[site]).float())
                           for site in sites])  # fmt: skip
        return norm.pull(pick(point.values[stream]), g)


def _runs(rows: Tensor) -> Iterator[tuple[int, tuple[int, int]]]:
    """(row, (first token, one past the last)) of every row, tokens of a row being neighbours."""
    names, counts = rows.unique_consecutive(return_counts=True)
    end = 0
    for name, count in zip(names.tolist(), counts.tolist(), strict=True):
        end += count
        yield name, (end - count, end)


@dataclass(frozen=True, eq=False)
class _Picked:
    """Some tokens of (row, pos, ..) tensors, flat."""

    rows: Tensor
    positions: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return x[self.rows.to(x.device), self.positions.to(x.device)]


def _warnings(found: Attribution) -> list[str]:
    out: list[str] = []
    if np.isnan(found.residual).all():  # a method without one
        return out
    open_ = [number for number, left in enumerate(found.residual) if not left <= 2 * found.plan["tolerance"]]
    if open_:
        out.append(f"{len(open_)} of {len(found.residual)} pairs are not complete (median residual"
                   f" {float(np.nanmedian(found.residual)):.0%} of the effect): scores miss or invent that much."
                   + (" eap takes one gradient; try eap-ig." if found.plan["method"] == "eap" else ""))  # fmt: skip
    return out
