"""Find a circuit: from a behaviour to the smallest part that carries it.

1. On *discover*: score every edge (or node) by the chosen method; patch the top ones exactly, both ways, and see how
   stable the top is when templates are drawn anew.
2. Circuits of growing size, by |score|, dead ends removed (`select.py`): at the shares of MIB, and one below them.
3. On *tune*: how faithful each is, under three ablations; and how faithful matched random circuits of the same sizes are.
4. The smallest that reaches the target under resample ablation is taken; of a large graph none of more than a fifth of all
   edges, which would be no finding. Its rival is what the same search finds when
   the circuit's own edges (nodes) are forbidden, in as many edges.

Nothing here is a claim: sizes were chosen by looking. `assay circuit test` asks sealed data.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from assay.circuits.attribute import Attribution, AttributionPlan, attribute, nodes_of
from assay.circuits.exact import Verified, exact_edges, exact_nodes, verify_top
from assay.circuits.faithfulness import Faithfulness, faithfulness
from assay.circuits.formats import Circuit, measured
from assay.circuits.graph import Graph, graph_of
from assay.circuits.guards import check_metrics, check_task
from assay.circuits.positions import classes_of
from assay.circuits.random_circuits import matched, walks
from assay.circuits.select import GRID, connected, curve_masks, top_k
from assay.circuits.stability import MIN_RESAMPLES, Resampled, SplitHalf, bootstrap, split_half
from assay.circuits.subgraph import ABLATIONS, Bench
from assay.data.prepare import PreparedTask
from assay.errors import bad_argument
from assay.model.model import Model
from assay.model.run import Progress
from assay.records import digest

METHODS = ("eap-ig", "eap", "atp", "exact", "information-flow", "relevance")
OF_NODES = ("atp",)  # methods that score nodes alone
NODES_FIRST = (*OF_NODES, "relevance")  # whose level is node where none is asked for
EDGE_GRID = (0.0005, *GRID[:-1])
SMALL, MOST = 1000, 0.2  # edges of a graph of which every size may be chosen; share of a larger one
NODE_GRID = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96)
VERIFY_PAIRS = 8
CANCELS, SHOWN = 0.1, 3  # of its size; how many are named
VERSION = 3  # of the scores: goes up when the same plan would give other numbers
MOST_EXACT = 20_000  # (pair, edge) values
Step = Callable[[str, int, int], None]
Mask = Bool[Tensor, "writer reader"]


@dataclass(frozen=True)
class FindPlan:
    """How to look. `target`: faithfulness on tune that the circuit must reach; `verify`: top edges, or nodes, patched exactly.
    `grad_drop`: of eap, see `attribute.py`. `positions` "labels": nodes at classes of positions, see `positions.py`."""

    method: str = "eap-ig"
    level: str = "edge"
    target: float = 0.85
    metric: str = "logit_diff"
    steps: int | None = None
    verify: int = 20
    controls: int = 4
    seed: int = 0
    grad_drop: bool = False
    positions: str = "all"

    def check(self) -> None:
        """Raises UsageError for a plan that cannot be carried out."""
        if self.method not in METHODS:
            raise bad_argument("method", self.method, ", ".join(METHODS))
        if self.level not in ("edge", "node"):
            raise bad_argument("level", self.level, "edge or node")
        if self.method in OF_NODES and self.level == "edge":
            raise bad_argument("level", self.level, f"node, for {self.method}", "Add --level node.")
        if self.method == "information-flow" and self.level == "node":
            raise bad_argument("level", self.level, "edge, for information-flow")
        if self.steps is not None and self.method != "eap-ig":
            raise bad_argument("steps", f"{self.steps} with {self.method}", "steps with eap-ig alone")
        if self.grad_drop and self.method != "eap":
            raise bad_argument("grad_drop", f"with {self.method}", "with eap", "Add --method eap.")
        if self.positions not in ("all", "labels"):
            raise bad_argument("positions", self.positions, "all or labels")
        if self.positions == "labels" and (self.method not in ("eap", "eap-ig") or self.grad_drop):
            how = f"{self.method}{' with grad_drop' if self.grad_drop else ''}"
            raise bad_argument("positions", f"labels, by {how}", "all, or labels with eap or eap-ig")
        if self.controls < 2:
            raise bad_argument("controls", self.controls, "2 or more")
        if not 0 < self.target <= 1:
            raise bad_argument("target", self.target, "above 0, at most 1")


def level_of(method: str, level: str | None = None) -> str:
    """The level that was asked for, else the one that a method has."""
    return level or ("node" if method in NODES_FIRST else "edge")


@dataclass(frozen=True, eq=False)
class FoundCircuit:
    """A circuit as it was found. `parts`: its edges or nodes by name; `chosen`: which of the curve's circuits it is.

    `stability`, `resampled`: overlap of the top as many on halves, and on resamples, of the discover pairs.
    `curves`: faithfulness on tune by ablation; `controls`: the same, resample, of matched and walked random circuits, one
    list of values per size. `rival`: parts of the second solution.
    """

    plan: FindPlan
    graph: Graph
    scores: Float[Tensor, "writer reader"]
    mask: Mask
    parts: tuple[str, ...]
    chosen: int
    curves: dict[str, Faithfulness]
    controls: dict[int, list[float]]
    rival: tuple[str, ...]
    attribution: Attribution
    verified: Verified | None
    stability: SplitHalf | None
    resampled: Resampled | None
    warnings: tuple[str, ...]

    def circuit(self, model: Model, task: str) -> Circuit:
        """As it is written to files."""
        held = self.attribution
        node = held.scores[: len(self.graph.writers)] if self.plan.level == "node" else None
        return Circuit(
            self.graph, self.mask, self.scores, nodes=node, d_model=model.dims.d_model, model=model.name,
            digest=model.digest, task=task, plan=asdict(self.plan),
            faithfulness=tuple(point for curve in self.curves.values() for point in measured(curve)),
        )  # fmt: skip


@runtime_checkable
class Kept(Protocol):
    """Where finished scores are kept."""

    def get(self, graph: Graph) -> Attribution | None: ...

    def put(self, found: Attribution) -> None: ...


def scores_key(model: Model, task: PreparedTask, plan: FindPlan) -> str:
    """Names the measurement of the scores: equal keys mean equal numbers."""
    data = [task.clean, task.corrupted, task.answers, task.foils, task.templates,
            *([task.labels] if plan.positions == "labels" else [])]  # fmt: skip
    return digest([model.passport(), data, plan.method, plan.level, plan.metric, plan.steps, plan.seed, VERSION,
                   *(["grad drop"] if plan.grad_drop else [])])  # fmt: skip


def find_circuit(
    model: Model, discover: PreparedTask, tune: PreparedTask, plan: FindPlan = FindPlan(), step: Step | None = None,
    kept: Kept | None = None,
) -> FoundCircuit:  # fmt: skip
    """All four steps. `step(what, done, total)` reports progress; `kept`: scores that are finished are taken from
    there. Raises UsageError, SiteError or TaskError."""
    plan.check()
    tell = step or (lambda what, done, total: None)
    found = None if kept is None else kept.get(graph_of(model, classes_of(discover) if plan.positions == "labels" else ()))
    if found is None:
        found = scored(model, discover, plan, tell)
        if kept is not None:
            kept.put(found)
    graph, scores = found.graph, _matrix(found, plan)
    masks, sizes, rule = _sizes(graph, found, scores, plan)
    curves: dict[str, Faithfulness] = {}
    benches: dict[str, Bench] = {}
    for number, ablation in enumerate(ABLATIONS):
        tell(f"faithfulness, {ablation}", number, len(ABLATIONS))
        benches[ablation] = Bench(model, tune, graph, plan.metric, ablation, like=benches.get(ABLATIONS[0]))
        curves[ablation] = faithfulness(benches[ablation], masks, selection=rule, nominal=sizes, seed=plan.seed)
    most = MOST if plan.level == "edge" and graph.n_edges >= SMALL else 1.0
    chosen, warnings = _smallest(curves["resample"], plan.target, most)
    mask = masks[chosen]
    controls = _controls(benches["resample"], graph, masks, chosen, plan, tell)
    verified = None
    if plan.verify:
        tell(f"exact patching of the top {plan.level}s", 0, 1)
        dearer = 2 if graph.classes else 1
        few, each = range(min(VERIFY_PAIRS // dearer, len(discover))), max(1, plan.verify // dearer)
        verified = verify_top(model, discover.select(few), first_pairs(found, len(few)), each, each, plan.seed)
    parts, rival = _named(graph, found, mask, scores, plan)
    stable = _stability(found, int(mask.sum()) if plan.level == "edge" else len(parts), plan)
    return FoundCircuit(plan, graph, scores, mask, parts, chosen, curves, controls, rival, found, verified, *stable,
                        (*_left_out(discover, tune), *found.warnings, *warnings, *_doubts(curves, chosen, controls, verified),
                         *_cancelling(found, mask, plan)))  # fmt: skip


def first_pairs(found: Attribution, n: int) -> Attribution:
    """The scores of the first pairs alone."""
    return replace(found, values=found.values[:n], clean=found.clean[:n], corrupted=found.corrupted[:n],
                   steps=found.steps[:n], residual=found.residual[:n], templates=found.templates[:n], ends={})  # fmt: skip


# scores ------------------------------------------------------------------------------------------


def scored(model: Model, task: PreparedTask, plan: FindPlan, tell: Step) -> Attribution:
    """Scores of every edge or node by the plan's method."""
    done = 0

    def progress(n: int) -> None:
        nonlocal done
        done += n
        tell(f"scoring by {plan.method}", min(done, len(task)), len(task))

    tell(f"scoring by {plan.method}", 0, len(task))
    if plan.method in ("eap", "eap-ig"):
        how = AttributionPlan(plan.method, plan.level, metric=plan.metric, steps=plan.steps, seed=plan.seed,
                              grad_drop=plan.grad_drop, positions=plan.positions)  # fmt: skip
        return attribute(model, task, how, progress=progress)
    if plan.method == "atp":
        from assay.circuits.qk_fix import qk_fix

        return qk_fix(model, task, metric=plan.metric, progress=progress)
    if plan.method == "information-flow":
        return _flow(model, task, plan, progress)
    if plan.method == "relevance":
        from assay.circuits.relevance import relevance

        return relevance(model, task, level=plan.level, metric=plan.metric, progress=progress)
    return _exact(model, task, plan)


def _flow(model: Model, task: PreparedTask, plan: FindPlan, progress: Progress) -> Attribution:
    """Shares of all edges, with the metric of both runs, which the flow itself does not read: it decides on sizes."""
    from assay.circuits.flow import flow

    clean, corrupted = _both_runs(model, task, plan)
    found = flow(model, task, progress=progress)
    return replace(found, plan={**found.plan, "metric": plan.metric}, clean=clean, corrupted=corrupted)


def _both_runs(model: Model, task: PreparedTask, plan: FindPlan) -> tuple[np.ndarray, np.ndarray]:
    """The metric of clean and corrupted prompts. Raises TaskError for what would make scores meaningless."""
    check_task(model, task, plan.metric)
    metric = task.metric(plan.metric, model.logits(task.clean) if plan.metric == "kl" else None)
    clean, corrupted = (model.score(prompts, metric).double().numpy() for prompts in (task.clean, task.corrupted))
    check_metrics(plan.metric, clean, corrupted)
    return clean, corrupted


def _exact(model: Model, task: PreparedTask, plan: FindPlan) -> Attribution:
    """Every edge or writer, patched; as a record like those of estimates."""
    graph = graph_of(model)
    n = graph.n_edges if plan.level == "edge" else len(graph.writers)
    if n * len(task) > MOST_EXACT:
        raise bad_argument("method", f"exact over {n} {plan.level}s and {len(task)} pairs",
                           f"at most {MOST_EXACT} runs",
                           "Take fewer pairs (--n), --level node, or eap-ig, whose top is patched exactly.")  # fmt: skip
    clean, corrupted = _both_runs(model, task, plan)
    if plan.level == "edge":
        values = exact_edges(model, task, [graph.name(cell) for cell in graph.cells.tolist()], "noise", plan.metric)
    else:
        exact = exact_nodes(model, task, graph.writers, "noise", plan.metric)
        values = torch.cat([exact, torch.full((len(task), len(nodes_of(graph)) - n), float("nan"))], 1)
    record = {"model": model.name, **asdict(AttributionPlan("exact", plan.level, metric=plan.metric, steps=0))}
    unknown = np.full(len(task), np.nan)
    return Attribution(record, graph, values.float(), clean, corrupted, np.zeros(len(task), dtype=int), unknown,
                       torch.zeros(values.shape[1]), task.templates)  # fmt: skip


def _matrix(found: Attribution, plan: FindPlan) -> Tensor:
    """Edge scores; of nodes, every edge has the score of its writer."""
    if plan.level == "edge":
        return found.matrix()
    nodes = found.scores[: len(found.graph.writers)].float()
    return torch.where(found.graph.exists, nodes[:, None], torch.zeros(()))


# sizes -------------------------------------------------------------------------------------------


def _sizes(
    graph: Graph, found: Attribution, scores: Tensor, plan: FindPlan
) -> tuple[list[Mask], list[float], str]:
    """Circuits of growing size, the shares of edges asked for, and the rule's name."""
    if plan.level == "edge":
        shares = [share for share in EDGE_GRID if share * graph.n_edges >= 1] or [1 / graph.n_edges]
        if shares[0] * graph.n_edges > 4:  # small graphs: from a few edges on
            shares = [4 / graph.n_edges, *shares]
        if graph.n_edges < SMALL:
            shares = [k / graph.n_edges for k in (2, 3, 5, 8, 12, 18, 27, 40, 60, 90, 135, 200) if k < 0.6 * graph.n_edges]
        curve = curve_masks(graph, scores, "abs", shares, prune=True)
        kept = _rising([(mask, share) for mask, share in zip(curve.masks, curve.shares, strict=True)])
        return [mask for mask, _ in kept], [share for _, share in kept], curve.selection
    order = found.scores[: len(graph.writers)].abs().argsort(descending=True, stable=True).tolist()
    masks = [graph.node_mask([graph.writers[i] for i in order[:k]]) for k in NODE_GRID if k < len(order)]
    kept = _rising([(mask, int(mask.sum()) / graph.n_edges) for mask in masks])
    return [mask for mask, _ in kept], [share for _, share in kept], "top nodes by abs"


def _rising(circuits: list[tuple[Mask, float]]) -> list[tuple[Mask, float]]:
    """Those with more edges than the one before."""
    out: list[tuple[Mask, float]] = []
    for mask, share in circuits:
        if int(mask.sum()) > (int(out[-1][0].sum()) if out else 0):
            out.append((mask, share))
    if not out:
        raise bad_argument("task", "scores of which no path from the embedding to the logits can be made",
                           "a task with an effect", "Take more pairs (--n), or another method.")  # fmt: skip
    return out


def _smallest(curve: Faithfulness, target: float, most: float) -> tuple[int, list[str]]:
    """The smallest circuit, of at most this share of all edges, that reaches the target; the most faithful one, and a warning,
    where none does."""
    small = [point.f.value for point in curve.points if point.nominal <= most]
    values = small or [point.f.value for point in curve.points]
    for number, value in enumerate(values):
        if value >= target:
            return number, []
    best = max(range(len(values)), key=values.__getitem__)
    limit = "" if most == 1 else f" of up to {most:.0%} of all edges"
    return best, [f"no circuit{limit} reaches {target:.0%} on tune; the best has {values[best]:.0%} with"
                  f" {curve.points[best].n_edges} edges"]  # fmt: skip


def _controls(
    bench: Bench, graph: Graph, masks: list[Mask], chosen: int, plan: FindPlan, tell: Step
) -> dict[int, list[float]]:
    """Faithfulness of random circuits as large as the chosen one and its neighbours on the curve."""
    out: dict[int, list[float]] = {}
    span = float(bench.clean.mean() - bench.empty.mean())
    near = [number for number in (chosen - 2, chosen, chosen + 2) if 0 <= number < len(masks)]
    for place, number in enumerate(near):
        tell("random circuits of the same size", place, len(near))
        half = (plan.controls + 1) // 2
        drawn = [*matched(graph, masks[number], half, plan.seed), *walks(graph, masks[number], plan.controls - half, plan.seed)]
        values = bench.scores([draw.mask for draw in drawn]).mean(1) if drawn else []
        out[number] = [(float(value) - float(bench.empty.mean())) / span for value in values]
    return out


# the result --------------------------------------------------------------------------------------


def _named(
    graph: Graph, found: Attribution, mask: Mask, scores: Tensor, plan: FindPlan
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The circuit's parts, and those of the rival: the same search with them forbidden."""
    if plan.level == "edge":
        left = torch.where(mask, torch.zeros(()), scores)
        rival = connected(graph, top_k(graph, left, int(mask.sum())) & ~mask)
        return tuple(map(str, graph.edges(mask))), tuple(map(str, graph.edges(rival)))
    inside = mask.any(1)
    parts = [str(site) for site, kept in zip(graph.writers, inside.tolist(), strict=True) if kept]
    strength = found.scores[: len(graph.writers)].abs().masked_fill(inside, -1.0)
    order = strength.argsort(descending=True, stable=True)[: len(parts)].tolist()
    return tuple(parts), tuple(str(graph.writers[i]) for i in order if not inside[i])


def _stability(found: Attribution, k: int, plan: FindPlan) -> tuple[SplitHalf | None, Resampled | None]:
    values = found.values if plan.level == "edge" else found.values[:, : len(found.graph.writers)]
    if len(values) < 4 or not 0 < k < values.shape[1]:
        return None, None
    return (split_half(values, found.templates, [k], n_draws=50, seed=plan.seed),
            bootstrap(values, found.templates, [k], n_draws=MIN_RESAMPLES, seed=plan.seed))  # fmt: skip


def _doubts(
    curves: dict[str, Faithfulness], chosen: int, controls: dict[int, list[float]], verified: Verified | None
) -> list[str]:
    at = {name: curve.points[chosen].f.value for name, curve in curves.items()}
    out = []
    if low := [f"{name} {value:.0%}" for name, value in at.items() if value < at["resample"] / 2]:
        out.append(f"faithful under resample ablation ({at['resample']:.0%}) only: {', '.join(low)}")
    if (random := max(controls.get(chosen, [0.0]))) > at["resample"] / 2:
        out.append(f"a random circuit of the same make reaches {random:.0%}: size alone does much of it")
    if verified is not None and verified.disagree:
        some = ", ".join(f"{name} ({gate.upper()})" for name, gate in list(verified.disagree.items())[:SHOWN])
        out.append(f"{len(verified.disagree)} of the {verified.plan['level']}s patched exactly matter in one direction only:"
                   f" {some}{', ..' if len(verified.disagree) > SHOWN else ''}. AND: every one of several is needed; OR: one"
                   " of several is enough")  # fmt: skip
    return out


def _left_out(discover: PreparedTask, tune: PreparedTask) -> list[str]:
    """Pairs that could not be used, by reason, and answers of which one token is read."""
    out = []
    for split, task in (("discover", discover), ("tune", tune)):
        reasons = "; ".join(f"{reason} ({n})" for reason, n in task.dropped.items())
        if reasons:
            lost = sum(task.dropped.values())
            out.append(f"{lost} of {lost + len(task)} pairs of {split} were left out: {reasons}")
        out += [f"{n} of {len(task)} pairs of {split} have answers of several tokens: {note}"
                for note, n in task.notes.items() if note.startswith("scored on")]  # fmt: skip
    return out


def _cancelling(found: Attribution, mask: Mask, plan: FindPlan) -> list[str]:
    """Edges or nodes that were left out since what they do at one position undoes what they do at another: a sum over
    positions below a tenth of their size, which is at least half of the score of the circuit's middle one."""
    if found.sizes is None or plan.grad_drop:
        return []
    cells = found.graph.cells
    inside = mask[cells[:, 0], cells[:, 1]] if plan.level == "edge" else mask.any(1)
    values, sizes = found.values[:, : len(inside)], found.sizes[: len(inside)]
    large = sizes >= values.mean(0).abs()[inside].median() / 2
    hidden = (large & ~inside & (values.abs().mean(0) < CANCELS * sizes)).nonzero()[:, 0]
    if not len(hidden):
        return []
    first = hidden[sizes[hidden].argsort(descending=True, stable=True)][:SHOWN].tolist()
    names = ", ".join(found.names[number] for number in first)
    return [f"{len(hidden)} {plan.level}s outside of the circuit are about as large as its own and cancel over positions:"
            f" {names}{', ..' if len(hidden) > SHOWN else ''}. A sum over positions does not show them"]  # fmt: skip
