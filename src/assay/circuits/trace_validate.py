"""Does an attribution graph say what the model does? Latents are changed in the model, and the change is compared.

1. Intervention: latent s is set to `factor` times its activation a: (factor - 1) a x decoder row is added to the MLP outputs
   it writes, at its token, in the unmodified model. Everything after it runs: attention, norms, real MLPs.
2. Prediction, from the graph alone: `direct`, the effect of s on a target times (factor - 1); `total`, along all paths:

       change = (1 - B)^-1 (factor - 1) a e_s,     B[t, s] = effects[t, s] / a_s  for latents s, 0 for other sources

   so latents answer in proportion, and errors, attention patterns and norms are held.
3. Measured: the change of what every later latent of the graph would read (its pre-activation in units of its value), at its
   own token, and of the centred logits.
4. Agreement: Pearson and Spearman correlation over (intervention, target) pairs, 95% percentile intervals from a bootstrap over
   interventions; the slope of measured on predicted through 0.
5. Controls with the same prediction. `direction`: a random direction of the same norm is added at the same place. `latent`:
   the prediction is that of another active latent of the same layer, scaled to the same norm. Both should agree
   much less; where they do not, a correlation says little about the latents.

Half of the interventions are at the most influential latents, half at latents drawn from the others.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import stats
from torch import Tensor

from assay.circuits.trace_graph import AttributionGraph
from assay.circuits.trace_run import Active, CleanRun, Slots
from assay.errors import UsageError, bad_argument
from assay.features.dictionary import Dictionary
from assay.model.edits import Edit, add
from assay.model.model import Model
from assay.model.readers import affine
from assay.model.run import Progress
from assay.sites import Site

FEWEST = 3  # interventions for an interval


@dataclass(frozen=True)
class ValidatePlan:
    """`n`: latents to change, `factor`: what their activation is multiplied by (0: switched off, 2: doubled)."""

    n: int = 24
    factor: float = 0.0
    draws: int = 1000
    seed: int = 0

    def check(self) -> None:
        """Raises UsageError for what cannot be."""
        if self.n < 1:
            raise bad_argument("n", self.n, "1 or more")
        if self.factor == 1:
            raise bad_argument("factor", 1, "another number: 1 changes nothing")


@dataclass(frozen=True)
class Agreement:
    """Correlation of predicted and measured changes. Bounds are None with fewer than 3 interventions."""

    pearson: float | None
    pearson_low: float | None
    pearson_high: float | None
    spearman: float | None
    spearman_low: float | None
    spearman_high: float | None
    slope: float | None
    n_pairs: int
    n_interventions: int


@dataclass(frozen=True)
class TraceValidation:
    """Agreement by kind of target (`latents`, `logits`) and of prediction (`total`, `direct`) or control."""

    factor: float
    agreement: dict[str, Agreement]
    changed: tuple[str, ...]

    def json(self) -> dict[str, Any]:
        """As plain values."""
        return {"factor": self.factor, "changed": list(self.changed),
                "agreement": {name: asdict(found) for name, found in self.agreement.items()}}  # fmt: skip


def validate_trace(
    model: Model, dictionaries: Sequence[Dictionary], graph: AttributionGraph, plan: ValidatePlan | None = None, *,
    progress: Progress | None = None,
) -> TraceValidation:  # fmt: skip
    """Change latents of a graph in the model it was traced in. `progress` is called with prompts done.

    Raises UsageError when the graph is of another model, has other dictionaries or no latents.
    """
    plan = ValidatePlan() if plan is None else plan
    plan.check()
    world = _World(model, dictionaries, graph)
    changed = world.chosen(plan)
    pushes = [world.push(place, plan.factor) for place in changed]
    generator = torch.Generator().manual_seed(plan.seed)
    blind = [[(site, _random_like(vector, generator)) for site, vector in push] for push in pushes]
    measured = world.measured(changed, pushes, progress)
    control = world.measured(changed, blind, progress)
    total, direct = world.predicted(changed, plan.factor)
    other = world.swapped(changed, pushes, plan, generator)
    parts = {"total": (total, measured), "direct": (direct, measured), "control: direction": (total, control),
             "control: latent": (other, measured)}  # fmt: skip
    agreement = {}
    for kind, columns in (("latents", world.latents), ("logits", world.logits)):
        for name, (said, seen) in parts.items():
            agreement[f"{kind}, {name}"] = _agreement(said, seen, world.later(changed, columns), plan)
    return TraceValidation(plan.factor, agreement, tuple(graph.nodes[place].name for place in changed))


@dataclass(frozen=True)
class Changed:
    """One latent changed in the model: what every node it can reach should do by the graph, and what it did.

    `predicted` goes along all paths, `direct` by the one effect alone; `measured` is the model's. Units are those of the nodes:
    activations of latents, centred logits.
    """

    node: str
    factor: float
    nodes: tuple[str, ...]
    predicted: tuple[float, ...]
    direct: tuple[float, ...]
    measured: tuple[float, ...]


def change_latent(
    model: Model, dictionaries: Sequence[Dictionary], graph: AttributionGraph, node: str, factor: float = 0.0
) -> Changed:
    """Set a latent of the graph to `factor` times its activation in the model: predicted against measured changes.

    Raises UsageError when the graph is of another model, has other dictionaries, or no such latent.
    """
    ValidatePlan(1, factor).check()
    world = _World(model, dictionaries, graph)
    place = graph.number.get(node)
    if place is None or graph.nodes[place].kind != "latent":
        known = ", ".join(graph.nodes[at].name for at in world.latents[:3].tolist())
        raise bad_argument("node", node, f"a latent of this graph, such as {known}")
    total, direct = world.predicted([place], factor)
    measured = world.measured([place], [world.push(place, factor)], None)
    (reached,) = world.later([place], torch.cat([world.latents, world.logits]))
    names = tuple(graph.nodes[at].name for at in reached.tolist())
    said, alone, seen = (tuple(row[0, reached].tolist()) for row in (total, direct, measured))
    return Changed(node, factor, names, said, alone, seen)


class _World:
    """A graph beside the model it is about."""

    def __init__(self, model: Model, dictionaries: Sequence[Dictionary], graph: AttributionGraph) -> None:
        if graph.digest != model.digest:
            raise UsageError(f"graph: traced in {graph.model or 'another model'}; allowed: a graph of this {model.name}.")
        found = [dictionary.digest for dictionary in dictionaries]
        if found != [about["digest"] for about in graph.dictionaries]:
            raise bad_argument("dictionaries", [d.name for d in dictionaries], "those of the graph, in its order")
        self.model, self.graph = model, graph
        self.run = CleanRun(model, graph.tokens, dictionaries)
        self.latents = graph.of("latent").nonzero()[:, 0]
        self.logits = graph.of("logit").nonzero()[:, 0]
        if not len(self.latents):
            raise bad_argument("graph", "no latents", "a graph with active latents")
        self.value = torch.tensor([graph.nodes[place].value or 0.0 for place in self.latents.tolist()])

    # interventions ---------------------------------------------------------------------------

    def chosen(self, plan: ValidatePlan) -> list[int]:
        """Places of latents to change: the most influential, and others drawn at random."""
        order = self.latents[self.graph.influence[self.latents].argsort(descending=True, stable=True)].tolist()
        n = min(plan.n, len(order))
        top, rest = order[: (n + 1) // 2], order[(n + 1) // 2 :]
        drawn = np.random.default_rng(plan.seed).choice(len(rest), n - len(top), replace=False) if rest else []
        return top + [rest[at] for at in drawn]

    def push(self, place: int, factor: float) -> list[tuple[Site, Float[Tensor, " d"]]]:
        """What is added to the MLP outputs that a latent writes."""
        node = self.graph.nodes[place]
        slots = self._slots(place)
        latent = torch.tensor([node.index])
        change = (factor - 1) * (node.value or 0.0)
        first = int(slots.slot(latent)[0])
        return [
            (site, change * slots.decoder(latent, output)[0]) for output, site in enumerate(slots.outputs) if output >= first
        ]

    def _slots(self, place: int) -> Slots:
        at = self.graph.nodes[place].dictionary
        assert at is not None
        return self.run.slots[at]

    # measured --------------------------------------------------------------------------------

    def measured(
        self, changed: Sequence[int], pushes: Sequence[list[tuple[Site, Tensor]]], progress: Progress | None
    ) -> Float[Tensor, "intervention node"]:
        """Changes of everything the graph reads, in the model as it runs."""
        edits: list[Edit] = []
        for row, (place, push) in enumerate(zip(changed, pushes, strict=True)):
            position = self.graph.nodes[place].position
            edits += [add(site, vector, positions=[position], rows=[row]) for site, vector in push]
        sites = sorted({site for slots in self.run.slots for site in slots.inputs} | {Site("final_norm")}, key=str)
        acts = self.model.capture([self.run.tokens] * len(changed), sites, edits=edits, progress=progress)
        out = torch.zeros(len(changed), len(self.graph.nodes))
        for site, columns, position, reading in self._readings():
            shift = acts[site].float() - self.run.value(site)
            out[:, columns] = torch.einsum("ikd,kd->ik", shift[:, position], reading)
        return out

    def _readings(self) -> list[tuple[Site, Int[Tensor, " k"], Int[Tensor, " k"], Float[Tensor, "k d"]]]:
        """(site, nodes, positions, vectors) of all that is read of one site."""
        out = []
        for at, active in enumerate(self.run.active):
            own = [place for place in self.latents.tolist() if self.graph.nodes[place].dictionary == at]
            slot = active.slots.slot(torch.tensor([self.graph.nodes[place].index for place in own], dtype=torch.long))
            for number, site in enumerate(active.slots.inputs):
                places = [place for place, s in zip(own, slot.tolist(), strict=True) if s == number]
                if places:
                    found = self._found(active, places)
                    out.append((site, torch.tensor(places), active.position[found], active.reading(found)))
        model = self.model
        weight, _ = affine(model.hf.get_submodule(model.layout.unembed), model.dims.d_model)
        tokens = [self.graph.nodes[place].index for place in self.logits.tolist()]
        position = torch.tensor([self.graph.nodes[place].position for place in self.logits.tolist()])
        weight = weight.detach().float().cpu()
        at = int(position[0])
        scale = self.run.logit_scale(model.logits([self.run.tokens], positions=[at])[0, 0].float().cpu(), at)
        vectors = scale * (weight[:, tokens] - weight.mean(1, keepdim=True)).T
        return [*out, (Site("final_norm"), self.logits, position, vectors)]

    def _found(self, active: Active, places: Sequence[int]) -> Int[Tensor, " k"]:
        """Where nodes are among the active latents. Raises UsageError for one that is not active on this run."""
        at = {(p, j): n for n, (p, j) in enumerate(zip(active.position.tolist(), active.latent.tolist(), strict=True))}
        keys = [(self.graph.nodes[place].position, self.graph.nodes[place].index) for place in places]
        if missing := [key for key in keys if key not in at]:
            raise bad_argument("graph", f"latent {missing[0][1]} at {missing[0][0]}", "latents that are active on its prompt")
        return torch.tensor([at[key] for key in keys])  # type: ignore[index]

    # predicted -------------------------------------------------------------------------------

    def predicted(self, changed: Sequence[int], factor: float) -> tuple[Tensor, Tensor]:
        """(total, direct) changes of all nodes, (intervention, node)."""
        start = torch.zeros(len(changed), len(self.graph.nodes))
        for row, place in enumerate(changed):
            start[row, place] = (factor - 1) * (self.graph.nodes[place].value or 0.0)
        return self._spread(start)

    def _spread(self, start: Float[Tensor, "intervention node"]) -> tuple[Tensor, Tensor]:
        gains = torch.zeros_like(self.graph.effects)
        gains[:, self.latents] = self.graph.effects[:, self.latents] / self.value
        direct = start @ gains.T
        gains.neg_().fill_diagonal_(1.0)
        total = torch.linalg.solve_triangular(gains, start.T, upper=False, unitriangular=True).T
        return total - start, direct

    def swapped(
        self,
        changed: Sequence[int],
        pushes: Sequence[list[tuple[Site, Tensor]]],
        plan: ValidatePlan,
        generator: torch.Generator,
    ) -> Float[Tensor, "intervention node"]:
        """Predictions for another latent of the same layer and, where there is one, token, with a push of the same norm."""
        start = torch.zeros(len(changed), len(self.graph.nodes))
        for row, (place, push) in enumerate(zip(changed, pushes, strict=True)):
            node = self.graph.nodes[place]
            others = [p for p in self.latents.tolist() if self.graph.nodes[p].layer == node.layer and p != place]
            here = [p for p in others if self.graph.nodes[p].position == node.position] or others
            if not here:
                continue
            other = here[int(torch.randint(len(here), (1,), generator=generator))]
            size = float(
                torch.cat([v for _, v in push]).norm() / torch.cat([v for _, v in self.push(other, plan.factor)]).norm()
            )
            start[row, other] = (plan.factor - 1) * (self.graph.nodes[other].value or 0.0) * size
        return self._spread(start)[0]

    def later(self, changed: Sequence[int], columns: Int[Tensor, " k"]) -> list[Int[Tensor, " _"]]:
        """For every intervention the nodes that it can reach: of later layers, at its token or after it."""
        nodes, out = self.graph.nodes, []
        for place in changed:
            base = nodes[place]
            out.append(torch.tensor([c for c in columns.tolist() if nodes[c].position >= base.position and (
                nodes[c].layer is None or (nodes[c].layer or 0) > (base.layer or 0))], dtype=torch.long))  # fmt: skip
        return out


# agreement ---------------------------------------------------------------------------------------


def _agreement(
    said: Float[Tensor, "intervention node"],
    seen: Float[Tensor, "intervention node"],
    later: Sequence[Tensor],
    plan: ValidatePlan,
) -> Agreement:
    pairs = [(said[row, at].double().numpy(), seen[row, at].double().numpy()) for row, at in enumerate(later) if len(at)]
    n_pairs = sum(len(x) for x, _ in pairs)
    if not pairs:
        return Agreement(None, None, None, None, None, None, None, 0, 0)
    x, y = (np.concatenate([pair[side] for pair in pairs]) for side in (0, 1))
    slope = float(x @ y / (x @ x)) if x @ x else None
    bounds = _bounds(pairs, plan) if len(pairs) >= FEWEST else [(None, None)] * 2
    return Agreement(pearson(x, y), *bounds[0], spearman(x, y), *bounds[1], slope, n_pairs, len(pairs))


def _bounds(pairs: Sequence[tuple[np.ndarray, np.ndarray]], plan: ValidatePlan) -> list[tuple[float | None, float | None]]:
    """95% percentile intervals of both correlations: interventions are drawn again, with all their targets.

    Ranks are those of all pairs, made once.
    """
    x, y = (np.concatenate([pair[side] for pair in pairs]) for side in (0, 1))
    of = np.repeat(np.arange(len(pairs)), [len(pair[0]) for pair in pairs])
    weights = np.random.default_rng(plan.seed).multinomial(len(pairs), np.full(len(pairs), 1 / len(pairs)), size=plan.draws)
    out: list[tuple[float | None, float | None]] = []
    for a, b in ((x, y), (stats.rankdata(x), stats.rankdata(y))):
        sums = [np.bincount(of, values, len(pairs)) for values in (np.ones_like(a), a, b, a * a, b * b, a * b)]
        n, sa, sb, saa, sbb, sab = (weights @ part for part in sums)
        with np.errstate(divide="ignore", invalid="ignore"):
            r = (n * sab - sa * sb) / np.sqrt((n * saa - sa**2) * (n * sbb - sb**2))
        r = r[np.isfinite(r)]
        out.append((float(np.quantile(r, 0.025)), float(np.quantile(r, 0.975))) if len(r) else (None, None))
    return out


def pearson(x: np.ndarray, y: np.ndarray) -> float | None:
    """Correlation, None where one side does not vary."""
    if len(x) < 2 or not np.ptp(x) or not np.ptp(y):
        return None
    return float(np.corrcoef(x, y)[0, 1])


def spearman(x: np.ndarray, y: np.ndarray) -> float | None:
    """Correlation of ranks."""
    return pearson(stats.rankdata(x), stats.rankdata(y))


def _random_like(vector: Float[Tensor, " d"], generator: torch.Generator) -> Float[Tensor, " d"]:
    made = torch.randn(vector.shape, generator=generator)
    return made * (vector.norm() / made.norm().clamp_min(1e-30))


__all__ = ["Agreement", "TraceValidation", "ValidatePlan", "validate_trace"]
