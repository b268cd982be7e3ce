"""Sparse feature circuits: which latents of SAEs, and which errors, carry a behaviour, and which drive which.

1. At every site with an SAE, the activation is  x = sum over latents f_j W_dec[j] + b_dec + error,  in the clean and in the
   corrupted run; nothing is replaced, so the model does what it does. A node is a latent, or the error of a site.
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
5. Tokens a dictionary is not for (the first, massive ones) are error as a whole.

Effects are estimates: `exact` patches single nodes and says how far off they are.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

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


@dataclass(frozen=True)
class FeatureNode:
    """A latent of a site's dictionary, or what it leaves over (`latent` None)."""

    site: Site
    latent: int | None

    def __str__(self) -> str:
        return f"{self.site}.error" if self.latent is None else f"{self.site}.latent.{self.latent}"


@dataclass(frozen=True, eq=False)
class FeatureEffects:
    """Mean effects over pairs. `latents[site]`: (pair, latent), `errors[site]`: (pair,); metrics of both runs by pair."""

    plan: Mapping[str, Any]
    dictionaries: Mapping[Site, str]
    latents: Mapping[Site, Float[Tensor, "pair latent"]]
    errors: Mapping[Site, Float[Tensor, " pair"]]
    clean: np.ndarray
    corrupted: np.ndarray

    def nodes(self, n: int | None = None) -> list[tuple[FeatureNode, float]]:
        """Nodes with their mean effects, the largest in size first; latents that never differ are left out."""
        out = [(FeatureNode(site, None), float(found.mean())) for site, found in self.errors.items()]
        for site, found in self.latents.items():
            mean = found.mean(0)
            out += [(FeatureNode(site, int(j)), float(mean[j])) for j in (found != 0).any(0).nonzero()[:, 0]]
        out.sort(key=lambda each: -abs(each[1]))
        return out[:n]

    def error_share(self, site: Site) -> float:
        """|effects of errors| over that plus |effects of latents| at a site, over pairs: what the dictionary does not say."""
        error = float(self.errors[site].abs().sum())
        total = error + float(self.latents[site].abs().sum())
        return error / total if total else float("nan")

    def json(self, n: int = 200) -> dict[str, Any]:
        """As plain values, the strongest `n` nodes."""
        return {
            "plan": dict(self.plan), "sign": "carries", "n_pairs": len(self.clean), "clean": float(self.clean.mean()),
            "corrupted": float(self.corrupted.mean()),
            "dictionaries": {str(site): name for site, name in self.dictionaries.items()},
            "error_share": {str(site): self.error_share(site) for site in self.errors},
            "nodes": [{"node": str(node), "site": str(node.site), "latent": node.latent, "effect": effect}
                      for node, effect in self.nodes(n)],
        }  # fmt: skip


def feature_effects(
    model: Model, task: PreparedTask, dictionaries: Sequence[Dictionary], plan: FeaturePlan | None = None, *,
    progress: Progress | None = None,
) -> FeatureEffects:  # fmt: skip
    """Effects of all latents and errors of SAEs on a task. `progress` is called with the pairs done.

    Raises UsageError for dictionaries that are no SAEs of single stream sites, TaskError for a task that shows nothing.
    """
    plan = FeaturePlan() if plan is None else plan
    plan.check()
    check_task(model, task, plan.metric)
    run = _Run(model, task, dictionaries, plan)
    for rows in model.batches(task.clean, gradients=True):
        run.pairs(rows)
        if progress:
            progress(len(rows))
    check_metrics(plan.metric, run.clean, run.corrupted)
    return run.result()


@dataclass(frozen=True, eq=False)
class Parts:
    """An activation as a dictionary splits it: codes (token, latent), zero where it is not for the token, and the rest."""

    codes: Float[Tensor, "token latent"]
    error: Float[Tensor, "token d"]


def sites_of(model: Model, dictionaries: Sequence[Dictionary]) -> dict[Site, Dictionary]:
    """SAEs by site. Raises UsageError for other dictionaries and for two at one site."""
    out: dict[Site, Dictionary] = {}
    for dictionary in dictionaries:
        spec = dictionary.spec
        if spec.transcodes or len(spec.inputs) != 1 or parse_site(spec.inputs[0]).name not in STREAMS:
            got = f"{dictionary.name}: {', '.join(spec.inputs) or 'no site'} to {', '.join(spec.outputs) or 'no site'}"
            raise bad_argument("dictionaries", got, f"SAEs of one site: {', '.join(name + '.L' for name in STREAMS)}",
                               "Transcoders: see assay trace.")  # fmt: skip
        site = model.sites(spec.inputs[0])[0]
        if site in out:
            raise bad_argument("dictionaries", f"{out[site].name} and {dictionary.name}, both at {site}", "one for each site")
        if spec.d_in != model.dims.d_model:
            raise ShapeError(
                f"dictionary {dictionary.name}: {spec.d_in} features; {model.name} has {model.dims.d_model} at {site}."
            )
        out[site] = dictionary
    if not out:
        raise bad_argument("dictionaries", "none", "one SAE or more")
    return out


@torch.no_grad()
def split(dictionary: Dictionary, x: Float[Tensor, "token d"], positions: Tensor) -> Parts:
    """Codes and error of tokens: codes times decoder rows, plus b_dec (not for tokens left alone), plus error = x."""
    typical = dictionary.typical(x, positions)
    codes = dictionary.encode(x) * typical[:, None]
    made = codes @ dictionary.directions() + typical[:, None] * dictionary.b_dec
    return Parts(codes, x - made)


class _Run:
    """One plan on one model and task."""

    def __init__(self, model: Model, task: PreparedTask, dictionaries: Sequence[Dictionary], plan: FeaturePlan) -> None:
        self.model, self.task, self.plan = model, task, plan
        self.sites = sites_of(model, dictionaries)
        reference = model.logits(task.clean) if plan.metric == "kl" else None
        self.metric: Metric = task.metric(plan.metric, reference)
        n = len(task)
        self.latents = {site: torch.zeros(n, dictionary.width) for site, dictionary in self.sites.items()}
        self.errors = {site: torch.zeros(n) for site in self.sites}
        self.clean, self.corrupted = np.zeros(n), np.zeros(n)

    def result(self) -> FeatureEffects:
        names = {site: dictionary.name for site, dictionary in self.sites.items()}
        return FeatureEffects(asdict(self.plan), names, self.latents, self.errors, self.clean, self.corrupted)

    def pairs(self, rows: list[int]) -> None:
        """Effects of all nodes on some pairs."""
        metric = self.metric.select(rows)
        clean, corrupted = ([side[row] for row in rows] for side in (self.task.clean, self.task.corrupted))
        slopes, high, scores = self.model.gradients(clean, list(self.sites), metric)
        low, before = self.model.capture_and_score(corrupted, list(self.sites), metric)
        self.clean[rows], self.corrupted[rows] = scores.double().numpy(), before.double().numpy()
        for site, dictionary in self.sites.items():
            slope = slopes.flat(site) if self.plan.method == "atp" else self._along(site, clean, high, low, metric)
            self._keep(site, dictionary, rows, high.lengths, slope.float(), high.flat(site).float(), low.flat(site).float())

    def _along(self, site: Site, prompts: list[list[int]], high: Any, low: Any, metric: Metric) -> Float[Tensor, "token d"]:
        """The mean gradient at a site on the line from corrupted to clean, the rest of the model clean."""
        total = torch.zeros_like(high.flat(site).float())
        shift = low[site] - high[site]
        for step in range(self.plan.steps):
            share = 1 - (step + 0.5) / self.plan.steps  # of the way to corrupted
            found, _, _ = self.model.gradients(prompts, [site], metric, edits=[add(site, share * shift)])
            total += found.flat(site).float() / self.plan.steps
        return total

    def _keep(
        self, site: Site, dictionary: Dictionary, rows: list[int], lengths: list[int], slope: Float[Tensor, "token d"],
        high: Float[Tensor, "token d"], low: Float[Tensor, "token d"],
    ) -> None:  # fmt: skip
        positions = torch.cat([torch.arange(length) for length in lengths])
        of = torch.repeat_interleave(torch.tensor(rows), torch.tensor(lengths))
        a, b = split(dictionary, high, positions), split(dictionary, low, positions)
        self.latents[site].index_add_(0, of, (a.codes - b.codes) * (slope @ dictionary.directions().T))
        self.errors[site].index_add_(0, of, ((a.error - b.error) * slope).sum(1))
        constant = self._unlike(dictionary, high, low, positions)
        if bool(constant.any()):  # a token that is typical in one run only: b_dec comes and goes with it
            self.errors[site].index_add_(0, of, constant * (slope @ dictionary.b_dec.detach()))

    @staticmethod
    def _unlike(dictionary: Dictionary, high: Tensor, low: Tensor, positions: Tensor) -> Float[Tensor, " token"]:
        typical = [dictionary.typical(x, positions).float() for x in (high, low)]
        return typical[0] - typical[1]


# exact -------------------------------------------------------------------------------------------


def exact(
    model: Model, task: PreparedTask, dictionaries: Sequence[Dictionary], nodes: Sequence[FeatureNode],
    metric: str = "logit_diff", *, progress: Progress | None = None,
) -> Float[Tensor, "node pair"]:  # fmt: skip
    """m(clean) - m(clean with one node at its corrupted value), at all tokens, for each node: what effects estimate."""
    sites = sites_of(model, dictionaries)
    for node in nodes:
        if node.site not in sites or not -1 < (node.latent or 0) < sites[node.site].width:
            raise bad_argument("nodes", str(node), "latents and errors of the dictionaries given")
    bound = task.metric(metric, model.logits(task.clean) if metric == "kl" else None)
    high, clean = model.capture_and_score(task.clean, list(sites), bound)
    low = model.capture(task.corrupted, list(sites))
    out = torch.zeros(len(nodes), len(task))
    for at, node in enumerate(nodes):
        shift = _shift(sites[node.site], node, high, low)
        out[at] = clean - model.score(task.clean, bound, edits=[add(node.site, shift)])
        if progress:
            progress(1)
    return out


def _shift(dictionary: Dictionary, node: FeatureNode, high: Any, low: Any) -> Float[Tensor, "pair pos d"]:
    """What is added to a clean activation so that one node has its corrupted value."""
    positions = torch.cat([torch.arange(length) for length in high.lengths])
    a, b = (split(dictionary, acts.flat(node.site).float(), positions) for acts in (high, low))
    if node.latent is None:
        constant = _Run._unlike(dictionary, high.flat(node.site).float(), low.flat(node.site).float(), positions)
        flat = b.error - a.error - constant[:, None] * dictionary.b_dec.detach()
    else:
        change = (b.codes - a.codes)[:, node.latent]
        flat = change[:, None] * dictionary.directions()[node.latent]
    out = flat.new_zeros(len(high.lengths), max(high.lengths), flat.shape[1])
    for row, part in enumerate(flat.split(high.lengths)):
        out[row, : len(part)] = part
    return out


# edges -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FeatureEdge:
    """How much of what `target` carries comes from `source`, a mean over pairs."""

    source: FeatureNode
    target: FeatureNode
    effect: float


def feature_edges(
    model: Model, task: PreparedTask, dictionaries: Sequence[Dictionary], nodes: Sequence[FeatureNode],
    metric: str = "logit_diff", *, progress: Progress | None = None,
) -> list[FeatureEdge]:  # fmt: skip
    """Edges between chosen nodes at different sites, strongest first. `progress`: nodes done as targets.

    The target's change with its inputs is taken at the clean run, weighted by its slope d metric / d target there.
    """
    sites = sites_of(model, dictionaries)
    order = {site: place for place, site in enumerate(_in_order(model, sites))}
    for node in nodes:
        if node.site not in sites:
            raise bad_argument("nodes", str(node), "nodes of the dictionaries given")
    bound = task.metric(metric, model.logits(task.clean) if metric == "kl" else None)
    low = model.capture(task.corrupted, list(sites))
    out: dict[tuple[int, int], float] = {}
    for at, node in enumerate(nodes):
        sources = [k for k, other in enumerate(nodes) if order[other.site] < order[node.site]]
        for rows in model.batches(task.clean, gradients=True) if sources else []:
            for k, value in _edge_rows(model, task, sites, nodes, at, sources, rows, bound, low):
                out[k, at] = out.get((k, at), 0.0) + value / len(task)
        if progress:
            progress(1)
    edges = [FeatureEdge(nodes[k], nodes[t], value) for (k, t), value in out.items() if value]
    return sorted(edges, key=lambda edge: -abs(edge.effect))


def _in_order(model: Model, sites: Mapping[Site, Dictionary]) -> list[Site]:
    return sorted(sites, key=lambda site: model.layout.points[site].order)


def _edge_rows(
    model: Model, task: PreparedTask, sites: Mapping[Site, Dictionary], nodes: Sequence[FeatureNode], at: int,
    sources: Sequence[int], rows: list[int], metric: Metric, low: Any,
) -> Iterator[tuple[int, float]]:  # fmt: skip
    """(source, sum over these pairs) of one target's edges: gradients of the target, weighted by its slope, at sources."""
    target, prompts = nodes[at], [task.clean[row] for row in rows]
    slopes, high, _ = model.gradients(prompts, [target.site], metric.select(rows))
    wanted = list(dict.fromkeys(nodes[k].site for k in sources))
    held: dict[Site, Tensor] = {}
    made: list[Tensor] = []

    def visit(site: Site, value: Tensor) -> Tensor | None:
        if site == target.site:
            made.append(_read(sites[site], target, value, slopes[site].to(value), high.lengths))
            return None
        held[site] = value.clone() if value.requires_grad else value.detach().clone().requires_grad_(True)
        return held[site].clone()

    model.walk(prompts, [*wanted, target.site], visit, gradients=True)
    found = torch.autograd.grad(made[0], [held[site] for site in wanted], allow_unused=True)
    for k in sources:
        gradient = found[wanted.index(nodes[k].site)]
        if gradient is not None:
            yield k, _through(sites[nodes[k].site], nodes[k], held[nodes[k].site].detach(), low, rows, gradient)


def _read(dictionary: Dictionary, node: FeatureNode, value: Tensor, slope: Tensor, lengths: Sequence[int]) -> Float[Tensor, ""]:
    """A node's value at all tokens, each times d metric / d value, with the active set of the run."""
    total = value.new_zeros(())
    for row, length in enumerate(lengths):
        x = value[row, :length].float()
        typical = dictionary.typical(x.detach(), torch.arange(length))
        codes = _differentiable(dictionary, x) * typical[:, None]
        along = slope[row, :length].float().detach()
        if node.latent is not None:
            total = total + (codes[:, node.latent] * (along @ dictionary.directions()[node.latent])).sum()
        else:
            total = total + ((x - codes @ dictionary.directions()) * along).sum()
    return total


def _differentiable(dictionary: Dictionary, x: Float[Tensor, "token d"]) -> Float[Tensor, "token latent"]:
    """Codes with gradients to x."""
    inputs = x if dictionary.shift is None else x - dictionary.shift.detach()
    pre = torch.nn.functional.linear(inputs, dictionary.W_enc.detach(), dictionary.b_enc.detach())
    return dictionary.select(pre).dense()


def _through(
    dictionary: Dictionary, node: FeatureNode, value: Float[Tensor, "row pos d"], low: Any, rows: Sequence[int],
    gradient: Float[Tensor, "row pos d"],
) -> float:  # fmt: skip
    """(node clean - node corrupted) . gradient, over all tokens of these pairs."""
    total, before = 0.0, low.rows(node.site)
    for place, row in enumerate(rows):
        length = len(before[row])
        positions = torch.arange(length)
        a = split(dictionary, value[place, :length].float(), positions)
        b = split(dictionary, before[row].float(), positions)
        g = gradient[place, :length].float()
        if node.latent is None:
            total += float(((a.error - b.error) * g).sum())
        else:
            change = (a.codes - b.codes)[:, node.latent]
            total += float((change * (g @ dictionary.directions()[node.latent])).sum())
    return total
