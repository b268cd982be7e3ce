"""Sparse feature circuits: which latents of SAEs, which errors and which neurons carry a behaviour, and which drive which.

1. At every site with an SAE, the activation is  x = sum over latents f_j W_dec[j] + b_dec + error,  in the clean and in the
   corrupted run; nothing is replaced, so the model does what it does. A node is a latent, or the error of a site; of a site
   that is named in place of an SAE, such as mlp_act.3, the nodes are its own units, and no error is left. Nodes and edges are
   the records of the graph of heads (`graph.py`): a site, latent.NAME.7, error.NAME or mlp_act.3.7, and a pair of sites.
2. Effect of a node, summed over tokens, with g = d metric / d x:

       latent j    (f_j clean - f_j corrupted) W_dec[j] . g                error    (error clean - error corrupted) . g

   so that the effects of a site add up to attribution patching of the site itself. g is taken at the clean run
   (`atp`), or averaged over `steps` midpoints of the line from corrupted to clean at that site, the rest of the model
   clean (`ig`; one pass for each site and step).
3. Sign as everywhere here: positive carries the behaviour. This is minus the indirect effect of Marks et al. 2024
   (arXiv 2403.19647), which patches the corrupted value in: m(patched) - m(clean).
4. Edges between chosen nodes: of up to down, the part of down's effect that comes through up directly and indirectly,
   (up clean - up corrupted) . d (down times its slope) / d up. Down is held to first order at the clean run; every target
   costs one pass for each pair.
5. Tokens a dictionary is not for (the first, massive ones by the norm of the site itself, or by that of the stream before a
   norm where training looked at that) are error as a whole.
6. A dictionary whose latents say more than that is refused: one with an `input_norm` (what a latent adds depends on the token),
   a `matching_pursuit` (there is no slope of a choice made step by step), a `temporal` (latents depend on the tokens before).

Effects are estimates: `exact` patches single nodes and says how far off they are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from assay.circuits.graph import Edge
from assay.circuits.guards import check_metrics, check_task
from assay.data.metrics import Metric
from assay.data.prepare import PreparedTask
from assay.errors import ShapeError, bad_argument
from assay.features.dictionary import Dictionary
from assay.model.edits import add
from assay.model.model import Model
from assay.model.run import Progress
from assay.sites import Site, parse_site

METHODS = ("atp", "ig")
STREAMS = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "attn_in", "mlp_in")


@dataclass(frozen=True)
class FeaturePlan:
    """How nodes are scored. `steps`: of `ig`."""

    method: str = "atp"
    metric: str = "logit_diff"
    steps: int = 10

    def check(self) -> None:
        """Raises UsageError for what cannot be."""
        if self.method not in METHODS:
            raise bad_argument("method", self.method, ", ".join(METHODS))
        if self.steps < 1:
            raise bad_argument("steps", self.steps, "1 or more")


@dataclass(frozen=True, eq=False)
class Parts:
    """An activation as features split it: values (token, feature), zero where an SAE is not for the token, and the rest."""

    codes: Float[Tensor, "token feature"]
    error: Float[Tensor, "token d"]


class Latents:
    """The features of a site with an SAE: its latents, and what it leaves over (number None)."""

    def __init__(self, site: Site, dictionary: Dictionary, above: Mapping[Site, float]) -> None:
        self.site, self.name, self.width, self.dictionary = site, dictionary.name, dictionary.width, dictionary
        self.above = above  # norms at other sites from which on its training left a token out

    def node(self, number: int | None) -> Site:
        """A feature as a node."""
        return Site("error" if number is None else "latent", None, number, self.name)

    def fits(self, acts: Any) -> Bool[Tensor, " token"]:
        """Which tokens of a capture of this site and those of `above` the dictionary is for."""
        positions = torch.cat([torch.arange(length) for length in acts.lengths])
        keep = self.dictionary.typical(acts.flat(self.site).float(), positions)
        for site, limit in self.above.items():
            keep = keep & (acts.flat(site).float().norm(dim=1) <= limit)
        return keep

    @torch.no_grad()
    def split(self, x: Float[Tensor, "token d"], fits: Bool[Tensor, " token"]) -> Parts:
        """Codes and error of tokens: codes times decoder rows, plus b_dec (not for tokens left alone), plus error = x."""
        codes = self.dictionary.encode(x) * fits[:, None]
        made = codes @ self.dictionary.directions() + fits[:, None] * self.dictionary.b_dec
        return Parts(codes, x - made)

    def constant(self, high: Bool[Tensor, " token"], low: Bool[Tensor, " token"]) -> Float[Tensor, "token d"] | None:
        """What b_dec adds in the first run and not in the second, where the dictionary is for a token in one only; None:
        nowhere."""
        change = high.float() - low.float()
        return change[:, None] * self.dictionary.b_dec.detach() if bool(change.any()) else None

    def along(self, slope: Float[Tensor, "token d"]) -> Float[Tensor, "token feature"]:
        """A slope at the site as slopes of its features."""
        return slope @ self.dictionary.directions().T

    def written(self, number: int, change: Float[Tensor, " token"]) -> Float[Tensor, "token d"]:
        """A change of one feature as a change of the activation."""
        return change[:, None] * self.dictionary.directions()[number]

    def value(
        self, number: int | None, x: Float[Tensor, "token d"], slope: Float[Tensor, "token d"], fits: Bool[Tensor, " token"]
    ) -> Float[Tensor, ""]:
        """A feature at all tokens of a text, each times d metric / d feature, with gradients to x and the run's active set."""
        dictionary = self.dictionary
        inputs = x if dictionary.shift is None else x - dictionary.shift.detach()
        pre = torch.nn.functional.linear(inputs, dictionary.W_enc.detach(), dictionary.b_enc.detach())
        codes = dictionary.select(pre).dense() * fits[:, None]
        if number is None:
            return ((x - codes @ dictionary.directions()) * slope).sum()
        return (codes[:, number] * (slope @ dictionary.directions()[number])).sum()


class Units:
    """The features of a site without an SAE: its own units. Nothing is left over."""

    def __init__(self, site: Site, width: int) -> None:
        self.site, self.name, self.width, self.above = site, str(site), width, {}

    def node(self, number: int | None) -> Site:
        return replace(self.site, index=number)

    def fits(self, acts: Any) -> Bool[Tensor, " token"]:
        return torch.ones(sum(acts.lengths), dtype=torch.bool)

    def split(self, x: Float[Tensor, "token d"], fits: Bool[Tensor, " token"]) -> Parts:
        return Parts(x, torch.zeros_like(x))

    def constant(self, high: Bool[Tensor, " token"], low: Bool[Tensor, " token"]) -> None:
        return None

    def along(self, slope: Float[Tensor, "token d"]) -> Float[Tensor, "token feature"]:
        return slope

    def written(self, number: int, change: Float[Tensor, " token"]) -> Float[Tensor, "token d"]:
        out = change.new_zeros(len(change), self.width)
        out[:, number] = change
        return out

    def value(
        self, number: int | None, x: Float[Tensor, "token d"], slope: Float[Tensor, "token d"], fits: Bool[Tensor, " token"]
    ) -> Float[Tensor, ""]:
        return (x[:, number] * slope[:, number]).sum()


@dataclass(frozen=True)
class Fits:
    """By pair: tokens of both runs that a site's dictionary is for."""

    clean: Sequence[Bool[Tensor, " _"]]
    corrupted: Sequence[Bool[Tensor, " _"]]


Features = Latents | Units
Given = Dictionary | str | Site


@dataclass(frozen=True, eq=False)
class FeatureEffects:
    """Mean effects over pairs. `values[site]`: (pair, feature), `errors[site]`: (pair,); metrics of both runs by pair."""

    plan: Mapping[str, Any]
    features: Mapping[Site, Features]
    values: Mapping[Site, Float[Tensor, "pair feature"]]
    errors: Mapping[Site, Float[Tensor, " pair"]]
    clean: np.ndarray
    corrupted: np.ndarray

    def nodes(self, n: int | None = None) -> list[tuple[Site, float]]:
        """Nodes with their mean effects, the largest in size first; features that never differ are left out."""
        out: list[tuple[Site, float]] = []
        for site, features in self.features.items():
            mean = self.values[site].mean(0)
            out += [(features.node(j), float(mean[j])) for j in (self.values[site] != 0).any(0).nonzero()[:, 0].tolist()]
            if isinstance(features, Latents):
                out.append((features.node(None), float(self.errors[site].mean())))
        return sorted(out, key=lambda each: -abs(each[1]))[:n]

    def error_share(self, site: Site) -> float:
        """|effects of errors| over that plus |effects of features| at a site, over pairs: what the dictionary does not say."""
        error = float(self.errors[site].abs().sum())
        total = error + float(self.values[site].abs().sum())
        return error / total if total else float("nan")

    def json(self, n: int = 200) -> dict[str, Any]:
        """As plain values, the strongest `n` nodes."""
        return {
            "plan": dict(self.plan), "sign": "carries", "n_pairs": len(self.clean), "clean": float(self.clean.mean()),
            "corrupted": float(self.corrupted.mean()),
            "features": {str(site): features.name for site, features in self.features.items()},
            "error_share": {str(site): self.error_share(site) for site in self.errors},
            "nodes": [{"node": str(node), "effect": effect} for node, effect in self.nodes(n)],
        }  # fmt: skip


def feature_effects(
    model: Model, task: PreparedTask, features: Sequence[Given], plan: FeaturePlan | None = None, *,
    progress: Progress | None = None,
) -> FeatureEffects:  # fmt: skip
    """Effects on a task of all latents and errors of SAEs, and of the units of sites given by name. `progress` is called with
    the pairs done.

    Raises UsageError for dictionaries that are no SAEs of single stream sites, or whose latents are not chosen token by token
    from inputs as they are; TaskError for a task that shows nothing.
    """
    plan = FeaturePlan() if plan is None else plan
    plan.check()
    check_task(model, task, plan.metric)
    run = _Run(model, task, features, plan)
    for rows in model.batches(task.clean, gradients=True):
        run.pairs(rows)
        if progress:
            progress(len(rows))
    check_metrics(plan.metric, run.clean, run.corrupted)
    return run.result()


def features_of(model: Model, given: Sequence[Given]) -> dict[Site, Features]:
    """Features by site. Raises UsageError for other dictionaries, and for two at one site or of one name."""
    out: dict[Site, Features] = {}
    for each in given:
        found = _latents(model, each) if isinstance(each, Dictionary) else _units(model, each)
        if found.site in out:
            got = f"{out[found.site].name} and {found.name}, both at {found.site}"
            raise bad_argument("features", got, "one for each site")
        if found.name in {other.name for other in out.values()}:
            raise bad_argument("features", f"two of the name {found.name}", "a name for each: nodes are called by it")
        out[found.site] = found
    if not out:
        raise bad_argument("features", "none", "one SAE or site or more")
    return out


def _latents(model: Model, dictionary: Dictionary) -> Latents:
    spec = dictionary.spec
    if spec.transcodes or len(spec.inputs) != 1 or parse_site(spec.inputs[0]).name not in STREAMS:
        got = f"{dictionary.name}: {', '.join(spec.inputs) or 'no site'} to {', '.join(spec.outputs) or 'no site'}"
        raise bad_argument("features", got, f"SAEs of one site: {', '.join(name + '.L' for name in STREAMS)}",
                           "Transcoders: see assay trace.")  # fmt: skip
    norm = dictionary.input_norm
    if type(dictionary).select is Dictionary.select or norm != "none":
        got = f"{dictionary.name}, a {dictionary.architecture}" + (f" with input_norm {norm!r}" if norm != "none" else "")
        raise bad_argument("features", got, "SAEs whose latents are chosen token by token, from inputs as they are",
                           f"Train one, or give the site {spec.inputs[0]}: its units are nodes then.")  # fmt: skip
    site = model.sites(spec.inputs[0])[0]
    if spec.d_in != model.dims.d_model:
        raise ShapeError(
            f"dictionary {dictionary.name}: {spec.d_in} features; {model.name} has {model.dims.d_model} at {site}."
        )
    return Latents(site, dictionary, {model.sites(other)[0]: limit for other, limit in dictionary.massive_above.items()})


def _units(model: Model, name: str | Site) -> Units:
    site = model.sites(name)[0]
    if site.index is not None or site.name not in (*STREAMS, "mlp_act"):
        raise bad_argument("features", str(name), f"whole sites: mlp_act.L, {', '.join(each + '.L' for each in STREAMS)}")
    return Units(site, model.dims.d_mlp if site.name == "mlp_act" else model.dims.d_model)


def _read(features: Mapping[Site, Features]) -> list[Site]:
    """Their sites, and those whose norms say which tokens they are for."""
    return list(dict.fromkeys([*features, *(site for found in features.values() for site in found.above)]))


def _numbered(features: Mapping[Site, Features], node: Site) -> tuple[Site, int | None]:
    """The site of a node, and which of its features it is. Raises UsageError for a node of none of them."""
    for site, found in features.items():
        number = node.index
        if node == found.node(number) and (isinstance(found, Latents) if number is None else 0 <= number < found.width):
            return site, number
    raise bad_argument("nodes", str(node), "latents, errors and units of the features given")


class _Run:
    """One plan on one model and task."""

    def __init__(self, model: Model, task: PreparedTask, given: Sequence[Given], plan: FeaturePlan) -> None:
        self.model, self.task, self.plan = model, task, plan
        self.features = features_of(model, given)
        reference = model.logits(task.clean) if plan.metric == "kl" else None
        self.metric: Metric = task.metric(plan.metric, reference)
        n = len(task)
        self.values = {site: torch.zeros(n, found.width) for site, found in self.features.items()}
        self.errors = {site: torch.zeros(n) for site in self.features}
        self.clean, self.corrupted = np.zeros(n), np.zeros(n)

    def result(self) -> FeatureEffects:
        return FeatureEffects(asdict(self.plan), self.features, self.values, self.errors, self.clean, self.corrupted)

    def pairs(self, rows: list[int]) -> None:
        """Effects of all nodes on some pairs."""
        metric = self.metric.select(rows)
        clean, corrupted = ([side[row] for row in rows] for side in (self.task.clean, self.task.corrupted))
        slopes, high, scores = self.model.gradients(clean, list(self.features), metric)
        read = _read(self.features)
        low, before = self.model.capture_and_score(corrupted, read, metric)
        whole = high if len(read) == len(self.features) else self.model.capture(clean, read)
        self.clean[rows], self.corrupted[rows] = scores.double().numpy(), before.double().numpy()
        for site in self.features:
            slope = slopes.flat(site) if self.plan.method == "atp" else self._along(site, clean, high, low, metric)
            self._keep(site, rows, slope.float(), whole, low)

    def _along(self, site: Site, prompts: list[list[int]], high: Any, low: Any, metric: Metric) -> Float[Tensor, "token d"]:
        """The mean gradient at a site on the line from corrupted to clean, the rest of the model clean."""
        total = torch.zeros_like(high.flat(site).float())
        shift = low[site] - high[site]
        for step in range(self.plan.steps):
            share = 1 - (step + 0.5) / self.plan.steps  # of the way to corrupted
            found, _, _ = self.model.gradients(prompts, [site], metric, edits=[add(site, share * shift)])
            total += found.flat(site).float() / self.plan.steps
        return total

    def _keep(self, site: Site, rows: list[int], slope: Float[Tensor, "token d"], high: Any, low: Any) -> None:
        found = self.features[site]
        of = torch.repeat_interleave(torch.tensor(rows), torch.tensor(high.lengths))
        fits = found.fits(high), found.fits(low)
        a, b = (found.split(acts.flat(site).float(), fit) for acts, fit in zip((high, low), fits, strict=True))
        self.values[site].index_add_(0, of, (a.codes - b.codes) * found.along(slope))
        self.errors[site].index_add_(0, of, ((a.error - b.error) * slope).sum(1))
        if (constant := found.constant(*fits)) is not None:
            self.errors[site].index_add_(0, of, (constant * slope).sum(1))


# exact -------------------------------------------------------------------------------------------


def exact(
    model: Model, task: PreparedTask, features: Sequence[Given], nodes: Sequence[Site],
    metric: str = "logit_diff", *, progress: Progress | None = None,
) -> Float[Tensor, "node pair"]:  # fmt: skip
    """m(clean) - m(clean with one node at its corrupted value), at all tokens, for each node: what effects estimate."""
    by_site = features_of(model, features)
    places = [_numbered(by_site, node) for node in nodes]
    bound = task.metric(metric, model.logits(task.clean) if metric == "kl" else None)
    high, clean = model.capture_and_score(task.clean, _read(by_site), bound)
    low = model.capture(task.corrupted, _read(by_site))
    out = torch.zeros(len(nodes), len(task))
    for at, (site, number) in enumerate(places):
        shift = _shift(by_site[site], number, high, low)
        out[at] = clean - model.score(task.clean, bound, edits=[add(site, shift)])
        if progress:
            progress(1)
    return out


def _shift(found: Features, number: int | None, high: Any, low: Any) -> Float[Tensor, "pair pos d"]:
    """What is added to a clean activation so that one node has its corrupted value."""
    fits = found.fits(high), found.fits(low)
    a, b = (found.split(acts.flat(found.site).float(), fit) for acts, fit in zip((high, low), fits, strict=True))
    if number is None:
        constant = found.constant(*fits)
        flat = b.error - a.error - (0.0 if constant is None else constant)
    else:
        flat = found.written(number, (b.codes - a.codes)[:, number])
    out = flat.new_zeros(len(high.lengths), max(high.lengths), flat.shape[1])
    for row, part in enumerate(flat.split(high.lengths)):
        out[row, : len(part)] = part
    return out


# edges -------------------------------------------------------------------------------------------


def feature_edges(
    model: Model, task: PreparedTask, features: Sequence[Given], nodes: Sequence[Site],
    metric: str = "logit_diff", *, progress: Progress | None = None,
) -> list[tuple[Edge, float]]:  # fmt: skip
    """Edges between chosen nodes at different sites, strongest first: how much of what the reader carries comes from the
    writer, a mean over pairs. `progress`: nodes done as readers.

    The reader's change with its inputs is taken at the clean run, weighted by its slope d metric / d reader there.
    """
    by_site = features_of(model, features)
    order = {site: model.layout.points[site].order for site in by_site}
    places = [_numbered(by_site, node) for node in nodes]
    bound = task.metric(metric, model.logits(task.clean) if metric == "kl" else None)
    high, low = (model.capture(texts, _read(by_site)) for texts in (task.clean, task.corrupted))
    fits = {site: Fits(*(found.fits(acts).split(acts.lengths) for acts in (high, low))) for site, found in by_site.items()}
    out: dict[Edge, float] = {}
    for reader, place in zip(nodes, places, strict=True):
        writers = [k for k, (site, _) in enumerate(places) if order[site] < order[place[0]]]
        for rows in model.batches(task.clean, gradients=True) if writers else []:
            found = _edge_rows(model, task, by_site, place, [places[k] for k in writers], rows, bound, low, fits)
            for k, value in zip(writers, found, strict=True):
                out[Edge(nodes[k], reader)] = out.get(Edge(nodes[k], reader), 0.0) + value / len(task)
        if progress:
            progress(1)
    return sorted(((edge, value) for edge, value in out.items() if value), key=lambda each: -abs(each[1]))


def _edge_rows(
    model: Model, task: PreparedTask, by_site: Mapping[Site, Features], reader: tuple[Site, int | None],
    writers: Sequence[tuple[Site, int | None]], rows: list[int], metric: Metric, low: Any, fits: Mapping[Site, Fits],
) -> list[float]:  # fmt: skip
    """Sums over these pairs of the edges into one reader: its gradients, weighted by its slope, at the writers."""
    target, number = reader
    prompts = [task.clean[row] for row in rows]
    slopes, _, _ = model.gradients(prompts, [target], metric.select(rows))
    wanted = list(dict.fromkeys(site for site, _ in writers))
    held: dict[Site, Tensor] = {}
    made: list[Tensor] = []

    def visit(site: Site, value: Tensor) -> Tensor | None:
        if site == target:
            slope = slopes[site].to(value).float().detach()
            texts = zip(value.float(), slope, (fits[site].clean[row] for row in rows), strict=True)
            parts = (by_site[site].value(number, x[: len(fit)], g[: len(fit)], fit) for x, g, fit in texts)
            made.append(sum(parts, value.new_zeros(())))
            return None
        held[site] = value.clone() if value.requires_grad else value.detach().clone().requires_grad_(True)
        return held[site].clone()

    model.walk(prompts, [*wanted, target], visit, gradients=True)
    gradients = torch.autograd.grad(made[0], [held[site] for site in wanted], allow_unused=True)
    by = dict(zip(wanted, gradients, strict=True))
    return [0.0 if (g := by[site]) is None else _through(by_site[site], writer, held[site].detach(), low, rows, g, fits[site])
            for site, writer in writers]  # fmt: skip


def _through(
    found: Features, number: int | None, value: Float[Tensor, "row pos d"], low: Any, rows: Sequence[int],
    gradient: Float[Tensor, "row pos d"], fits: Fits,
) -> float:  # fmt: skip
    """(node clean - node corrupted) . gradient, over all tokens of these pairs."""
    total, before = 0.0, low.rows(found.site)
    for place, row in enumerate(rows):
        g = gradient[place, : len(before[row])].float()
        a = found.split(value[place, : len(g)].float(), fits.clean[row])
        b = found.split(before[row].float(), fits.corrupted[row])
        if number is None:
            constant = found.constant(fits.clean[row], fits.corrupted[row])
            total += float(((a.error - b.error + (0.0 if constant is None else constant)) * g).sum())
        else:
            total += float((found.written(number, (a.codes - b.codes)[:, number]) * g).sum())
    return total
