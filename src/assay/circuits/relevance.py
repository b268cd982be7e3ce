"""Attribution with the slopes of relevance propagation in place of true ones (RelP, 2508.21258).

1. A pass whose values are the model's own, bit for bit but for the attention kernel's rounding, and whose slopes follow
   rules. A value y becomes  y + (r - r held constant),  so that only the slope of r is seen:

       norm              r = gain * (x - c mean x) * [1/sigma] + bias          [..]: held constant
       attention         z = [pattern] v                                       no slope into queries and keys
       activation f      r = [f(x)/x] x
       gated product     r = 1/2 [h/g] g + 1/2 [h/u] u,   h = f(g) u           f by its ratio, each factor half

   A ratio over |x| < 1e-10 is 0. Gate and up projections are the linear modules that read the MLP's input; that h is such a
   product, unit by unit, is measured on the model, else it is refused.
2. With these slopes every value is a sum of what it is made of: in a model without biases, and with a metric linear in
   the logits, value times slope sums to the metric itself at the embedding and at every later stream.
3. node u: sum over positions of (clean - corrupted) . slope at u;   edge u->v: (clean - corrupted) of u . slope of what v
   reads, pulled through v's norm with 1/sigma constant. The edges of a writer sum to its node. Slopes at the clean run
   (direction noise) or the corrupted run (denoise). Positive: it carries the behaviour.

Caveat: patterns are frozen, so queries and keys score exactly 0, and heads that act through the queries of others read
about zero (measured on the default model, IOI: patching head 20.0 changes the metric by -2.95, these slopes say -.02).
Published agreement with exact patching is for other models and sites; patch what matters exactly.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from assay.circuits.attribute import LEVELS, Attribution, AttributionPlan, Contraction, Point, nodes_of
from assay.circuits.graph import LOGITS, graph_of
from assay.circuits.guards import check_metrics, check_task
from assay.circuits.writers import Writers
from assay.data.metrics import Metric
from assay.data.prepare import PreparedTask
from assay.errors import SiteError, bad_argument
from assay.model.model import Model
from assay.model.readers import Norm, Readers
from assay.model.run import Progress
from assay.model.trace import Trace, trace
from assay.sites import Site

METHOD = "relevance"
SMALL = 1e-10  # ratios over less are 0
SAME = 1e-4  # of a unit, as a share of the layer's largest
ENTRY = Site("resid_pre", 0)
Values = dict[Site, Tensor]


def relevance(
    model: Model, task: PreparedTask, *, level: str = "node", direction: str = "noise", metric: str = "logit_diff",
    progress: Progress | None = None,
) -> Attribution:  # fmt: skip
    """Scores of all nodes or edges. `progress` is called with the number of pairs done.

    `residual` compares the embedding's score with the difference of the metric, as for eap. Raises UsageError, TaskError
    (`guards.py`), and SiteError for a model whose MLPs are not a product or an activation of projections.
    """
    for name, got, allowed in (("level", level, LEVELS), ("direction", direction, ("noise", "denoise"))):
        if got not in allowed:
            raise bad_argument(name, got, ", ".join(allowed))
    if metric == "rank":
        raise bad_argument("metric", metric, "a metric with a gradient", "Ranks have none; patch exactly instead.")
    check_task(model, task, metric)
    run = _Run(model, task, AttributionPlan(METHOD, level, direction, metric, steps=1))
    for rows in model.batches(task.clean, gradients=True):
        run.pairs(rows)
        if progress:
            progress(len(rows))
    return run.done()


# rules -------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class FrozenNorm(Norm):
    """A norm whose divisor is a constant: its derivative has no part along its input."""

    def at(self, x: Float[Tensor, "t d"]) -> tuple[Float[Tensor, "t d"], Float[Tensor, " t"]]:
        """(0, 1/sigma) of actual inputs."""
        unit, inverse = super().at(x)
        return torch.zeros_like(unit), inverse

    def linear(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """What the norm returns, as a linear function of x at the divisor it has there."""
        with torch.no_grad():
            inverse = self.at(x.flatten(0, -2))[1].unflatten(0, x.shape[:-1])
        return self.gain * self.centre(x.float()) * inverse[..., None] + self.bias


class FrozenReaders(Readers):
    """Readers whose norms are frozen."""

    def every_norm(self) -> Iterator[tuple[str, FrozenNorm]]:
        """All norms between writers and readers: modules of the kinds found in front of readers, attention's own left out."""
        kinds = {type(norm.module) for norm in self.norms.values() if norm.module is not None}
        inside = tuple(f"{block.attention}." for block in self.layout.blocks if block.attention)
        for path, module in self.hf.named_modules():
            if type(module) in kinds and path in self.layout.orders and not path.startswith(inside):
                norm = self._form(path)
                assert isinstance(norm, FrozenNorm)
                yield path, norm

    def _form(self, path: str) -> Norm:
        norm = super()._form(path)
        return FrozenNorm(norm.module, norm.gain, norm.bias, norm.centred)


@dataclass(frozen=True)
class Part:
    """One factor of an MLP's activation: a projection's output, or a half of it."""

    site: Site
    half: int | None = None

    def of(self, x: Tensor) -> Tensor:
        return x if self.half is None else x.chunk(2, -1)[self.half]


@dataclass(eq=False)
class Rules:
    """Slopes for one pass after another: every value seen is replaced by `__call__` of it, then given to `hold`."""

    norms: dict[str, FrozenNorm]
    parts: dict[int, list[Part]]
    held: dict[Site, Tensor] = field(default_factory=dict)

    @property
    def sites(self) -> list[Site]:
        """Where values are seen."""
        norms = [_side(path, side) for path in self.norms for side in ("in", "out")]
        factors = [part.site for parts in self.parts.values() for part in parts]
        return [*norms, *factors, *(Site(name, layer) for layer in self.parts for name in ("pattern", "mlp_act"))]

    def __call__(self, site: Site, value: Tensor) -> Tensor:
        """The value with the slope of its rule, if there is one for this site."""
        if site.name == "pattern":
            return value.detach()
        if site.name == "mlp_act":
            assert site.layer is not None
            return _with_slope(value, self._ratios(value.detach(), self.parts[site.layer]))
        path, _, side = (site.path or "").rpartition(":")
        if side == "out" and path in self.norms:
            return _with_slope(value, self.norms[path].linear(self.held.pop(_side(path, "in"))))
        return value

    def hold(self, site: Site, value: Tensor) -> None:
        """Remember what a later value is made of."""
        if site.name == "path":
            self.held[site] = value.clone()

    def _ratios(self, act: Tensor, parts: list[Part]) -> Tensor:
        total = torch.zeros_like(act)
        for part in parts:
            x = part.of(self.held[part.site])
            tiny = x.detach().abs() < SMALL
            ratio = act / x.detach().masked_fill(tiny, 1.0)
            total = total + ratio.masked_fill(tiny, 0.0) * x / len(parts)
        for site in {part.site for part in parts}:
            del self.held[site]
        return total


def _with_slope(value: Tensor, slope: Tensor) -> Tensor:
    return value.detach() + (slope - slope.detach()).to(value.dtype)


def _side(path: str, side: str) -> Site:
    return Site("path", path=f"{path}:{side}")


def rules_of(model: Model, readers: FrozenReaders) -> Rules:
    """The rules of a model. Raises SiteError where a layer's MLP or attention has none."""
    layers = range(model.n_layers)
    try:
        model.sites([Site(name, layer) for layer in layers for name in ("pattern", "mlp_act")])
    except SiteError as error:
        raise SiteError(f"{model.name} has no relevance rules: {error}") from error
    parts = dict(enumerate(_parts(model)))
    _check_products(model, parts)
    return Rules(dict(readers.every_norm()), parts)


def _parts(model: Model) -> Iterator[list[Part]]:
    """Of every layer, what its MLP's activation is made of."""
    record = trace(model.hf, (torch.arange(10, device=model.device) % model.dims.d_vocab).view(2, 5))
    for layer in range(model.n_layers):
        found = _reading(model, record, layer)
        act = record.of(model.layout.points[Site("mlp_act", layer)].path)
        assert act is not None
        d_mlp = next(iter(act.inputs.values())).shape[-1]
        sizes = [size for _, size in found]
        if sizes in ([d_mlp], [d_mlp, d_mlp]):
            yield [Part(site) for site, _ in found]
        elif sizes == [2 * d_mlp]:
            yield [Part(found[0][0], half) for half in (0, 1)]
        else:
            raise SiteError(f"{model.name} has no relevance rule for the MLP of layer {layer}: linear modules of"
                            f" widths {sizes} read its input, for {d_mlp} units; known: one, or a gate and an up projection.")


def _reading(model: Model, record: Trace, layer: int) -> list[tuple[Site, int]]:
    """Linear modules that read what the MLP reads, and their widths."""
    block, point = model.layout.blocks[layer], model.layout.points[Site("mlp_in", layer)]
    call = record.of(point.path)
    assert call is not None
    read = next(iter(call.inputs.values())) if point.key == "first" else call.inputs[point.key]
    out: list[tuple[Site, int]] = []
    for call in record.under(block.path):
        inside_attention = block.attention is not None and (call.path + ".").startswith(block.attention + ".")
        if call.has_matrix and not inside_attention and call.path != block.down and call.outputs:
            if any(x.shape == read.shape and torch.equal(x, read) for x in call.inputs.values()):
                out.append((_side(call.path, "out"), call.outputs[0].shape[-1]))
    return out


def _check_products(model: Model, parts: dict[int, list[Part]]) -> None:
    """Units are apart, and of two factors one is a plain factor: doubled, it doubles the unit. Raises SiteError."""
    ids = (torch.arange(12, device=model.device) * 5 + 3).remainder(model.dims.d_vocab).tolist()
    bad: dict[int, str] = {}

    def visit(site: Site, value: Tensor) -> Tensor:
        out = value.clone()
        if site.name != "mlp_act":
            layer = owner[site]
            for number, part in enumerate(parts[layer]):
                if part.site == site:
                    part.of(out)[2 + number] *= 2
                    part.of(out)[1, :, 1::2] *= 3
            return out
        assert site.layer is not None
        base, scale = value[0], SAME * value[0].abs().max()
        if (value[1] - base)[:, ::2].abs().max() > scale:
            bad[site.layer] = "its units depend on each other"
        elif len(parts[site.layer]) == 2 and min((value[row] - 2 * base).abs().max() for row in (2, 3)) > scale:
            bad[site.layer] = "its activation is not a product with one of its projections"
        return value[:1].repeat(len(value), *[1] * (value.dim() - 1))

    owner = {part.site: layer for layer, some in parts.items() for part in some}
    model.walk([ids] * 4, [*owner, *(Site("mlp_act", layer) for layer in parts)], visit)
    for layer, why in bad.items():
        raise SiteError(f"{model.name} has no relevance rule for the MLP of layer {layer}: {why}.")


# scores ------------------------------------------------------------------------------------------


class _Run:
    """One plan on one model and task."""

    def __init__(self, model: Model, task: PreparedTask, plan: AttributionPlan) -> None:
        self.model, self.task, self.plan = model, task, plan
        self.graph, self.readers = graph_of(model), FrozenReaders(model.hf, model.layout)
        self.rules, self.writers = rules_of(model, self.readers), Writers(model, self.readers)
        self.metric: Metric = task.metric(plan.metric, model.logits(task.clean) if plan.metric == "kl" else None)
        self.reading = [Site(name, layer) for layer in range(model.n_layers) for name in ("q", "k", "v", "mlp_in")]
        streams = [self.readers.stream(reader) for reader in self.graph.readers]
        self.leaves = list(dict.fromkeys([ENTRY, *self.writers.sites, *self.reading, self.readers.stream(LOGITS)]))
        self.kept = list(dict.fromkeys([*self.leaves, *streams, *self.writers.raw_sites]))
        self.edges = plan.level == "edge"
        self.contraction = Contraction(self.graph, self.readers, self.writers)
        n, n_cells = len(task), self.graph.n_edges if self.edges else len(nodes_of(self.graph))
        self.values, self.absolute = torch.zeros(n, n_cells), torch.zeros(n_cells)
        self.clean, self.corrupted, self.residual = (np.zeros(n) for _ in range(3))

    def pairs(self, rows: list[int]) -> None:
        """Scores of these pairs."""
        noise = self.plan.direction == "noise"
        clean = self._pass(rows, self.task.clean, noise)
        corrupted = self._pass(rows, self.task.corrupted, not noise)
        self.clean[rows], self.corrupted[rows] = (end.metric.double().cpu().numpy() for end in (clean, corrupted))
        point = clean if noise else corrupted
        lengths = torch.tensor([len(self.task.clean[row]) for row in rows])
        real = lengths[:, None] > torch.arange(int(lengths.max()))
        change = {site: clean.values[site] - corrupted.values[site] for site in (*self.writers.sites, *self.reading)}
        with torch.no_grad():
            found = self._edge_scores if self.edges else self._node_scores
            scores, absolute = found(point, change, real)
            slope = (change[ENTRY] * point.slopes[ENTRY]).sum(-1).cpu().double() * real
        self.values[rows] = scores
        self.absolute += absolute
        span = self.clean[rows] - self.corrupted[rows]
        with np.errstate(divide="ignore", invalid="ignore"):
            self.residual[rows] = np.abs(slope.sum(1).numpy() - span) / np.abs(span)

    def _pass(self, rows: list[int], prompts: Sequence[list[int]], slopes: bool) -> Point:
        """One run, its slopes under the rules where asked for."""
        held: Values = {}
        values: Values = {}
        seen = set(self.rules.sites) if slopes else set[Site]()
        kept, leaves = set(self.kept), set(self.leaves) if slopes else set[Site]()

        def visit(site: Site, value: Tensor) -> Tensor:
            value = self.rules(site, value) if site in seen else value
            if site in kept:
                values[site] = value.detach().clone()
            if site in leaves:
                held[site] = value.clone() if value.requires_grad else value.detach().clone().requires_grad_(True)
                value = held[site].clone()
            if site in seen:
                self.rules.hold(site, value)
            return value

        sites = list(dict.fromkeys([*self.kept, *(self.rules.sites if slopes else ())]))
        logits = self.model.walk([prompts[row] for row in rows], sites, visit, logits=True, gradients=slopes)
        assert logits is not None
        with torch.set_grad_enabled(slopes):
            metric = self.metric(logits, torch.tensor(rows, device=logits.device))
        taken: Values = {}
        if slopes:
            found = torch.autograd.grad(metric.sum(), [held[site] for site in self.leaves], allow_unused=True)
            taken = {site: torch.zeros_like(held[site]) if g is None else g for site, g in zip(self.leaves, found, strict=True)}
        return Point(rows, [float(slopes)] * len(rows), values, taken, metric.detach())

    def _node_scores(self, point: Point, change: Values, real: Tensor) -> tuple[Tensor, Tensor]:
        """Writers, then readers but the logits: (row, cell) sums over positions, and (cell,) of absolute values."""
        sums, absolute = [], []
        for site in (*self.writers.sites, *self.reading):
            each = (change[site].float() * point.slopes[site].float()).sum(-1).cpu()
            each = (each if each.dim() == 3 else each[..., None]) * real[..., None]
            sums.append(each.sum(1))
            absolute.append(each.abs().sum((0, 1)))
        return torch.cat(sums, 1), torch.cat(absolute)

    def _edge_scores(self, point: Point, change: Values, real: Tensor) -> tuple[Tensor, Tensor]:
        row, position = real.nonzero(as_tuple=True)
        return self.contraction(point, change, (row, position))

    def done(self) -> Attribution:
        """The result of all pairs."""
        check_metrics(self.plan.metric, self.clean, self.corrupted)
        cancelled = 1 - self.values.sum(0).abs() / self.absolute.clamp_min(1e-30)
        plan = {"model": self.model.name, **asdict(self.plan)}
        steps = np.ones(len(self.task), dtype=int)
        return Attribution(plan, self.graph, self.values, self.clean, self.corrupted, steps, self.residual,
                           cancelled.clamp(0, 1), self.task.templates, sizes=self.absolute / len(self.task))  # fmt: skip
