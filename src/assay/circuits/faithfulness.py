"""How much of a behaviour a circuit carries, and what of it is missing or idle.

With m(C) the metric when exactly the edges of C are kept, averaged over pairs, M the whole graph and 0 the empty one:

1. faithfulness   f(C) = (m(C) - m(0)) / (m(M) - m(0)),   unexplained = 1 - f(C).   Both may leave 0..1: f > 1 is a
   circuit that does better than the model, not a more faithful one. Only `Point.shown` is clipped.
2. Beside it, per circuit: KL from the clean run, and the share of pairs whose most likely token is the clean run's.
3. Over circuits of growing share k of the graph's edges (nominal: the share asked for; actual: the share kept):

       linear   CPR = integral of f dk            CMD = integral of |1 - f| dk              not divided by anything
       log      the same over ln k, divided by ln(k_last / k_first): a mean over the logarithm of the size

   by the trapezoid rule between the shares measured; what lies below the smallest share counts as nothing. The axis
   always ends at the whole graph, where f = 1 by definition. Linear is the area of MIB (2504.13151): four fifths of it
   lie above a share of 20%, so that a circuit that fails below 1% has a CMD near 0. Log sees it. Areas of circuits chosen
   by |score| and by signed score are different quantities: `selection` goes with every number.
4. completeness (Wang et al. 2211.00593): for K in C,  |m(M without K) - m(C without K)| / |m(M) - m(0)|.  K = C leaves
   the complement against the empty graph, K = nothing is 1 - f(C); in between, unions of nodes or edges at random.
   Large where something outside of C stands in for what is cut.
5. minimality: for every node (edges out of a writer), edge or group v of C,  (m(C without K) - m(C without K and v)) /
   (m(M) - m(0)):  `drop` at K = nothing, `most` the largest in size over K = nothing and some random K. With K = nothing
   alone each of two parts that back each other up looks idle.

Intervals: 95% percentile bootstrap over templates, numerator and denominator in the same resamples; none below 2
templates, and too narrow below 8. The one of CMD leans upwards, as it averages absolute values.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from assay.circuits.graph import Graph
from assay.circuits.guards import NoDifference
from assay.circuits.patch import has_effect
from assay.errors import bad_argument
from assay.statistics import MIN_BOOTSTRAP

Mask = Bool[Tensor, "writer reader"]
AT_ONCE = 64  # circuits given to a bench together
SMALL, HIDDEN = 0.01, 0.1  # a linear CMD below HIDDEN with |1 - f| above a half at shares below SMALL


@runtime_checkable
class HasTemplates(Protocol):
    """Pairs, each with the template it was made from."""

    @property
    def templates(self) -> list[str]: ...


@runtime_checkable
class BenchLike(Protocol):
    """What runs circuits: `subgraph.Bench`, or anything with the same answers."""

    @property
    def graph(self) -> Graph: ...
    @property
    def task(self) -> HasTemplates: ...
    @property
    def metric(self) -> str: ...
    @property
    def ablation(self) -> str: ...
    @property
    def clean(self) -> np.ndarray: ...
    @property
    def empty(self) -> np.ndarray: ...

    def scores(self, masks: Sequence[Mask]) -> np.ndarray: ...

    def outputs(self, masks: Sequence[Mask], names: Sequence[str]) -> dict[str, np.ndarray]: ...


# records -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """A number with its 95% interval over templates; no bounds where there are too few templates."""

    value: float
    low: float | None = None
    high: float | None = None

    def rest(self) -> "Estimate":
        """One minus it."""
        return Estimate(1 - self.value, None if self.high is None else 1 - self.high,
                        None if self.low is None else 1 - self.low)  # fmt: skip


@dataclass(frozen=True)
class Point:
    """One circuit: edges kept, share asked for and share kept, and what it does."""

    n_edges: int
    nominal: float
    share: float
    f: Estimate
    unexplained: Estimate
    kl: Estimate | None = None
    agree: Estimate | None = None

    @property
    def shown(self) -> Estimate:
        """`unexplained` for display: clipped to 0..1."""
        low, high = self.unexplained.low, self.unexplained.high
        return Estimate(_clipped(self.unexplained.value), None if low is None else _clipped(low),
                        None if high is None else _clipped(high))  # fmt: skip


@dataclass(frozen=True)
class Areas:
    """Areas over one axis of shares, "nominal" or "actual", from share `first` on. None where there is none: the whole
    graph alone, or the logarithm of a share of 0."""

    axis: str
    first: float
    cpr: Estimate | None
    cmd: Estimate | None
    cpr_log: Estimate | None
    cmd_log: Estimate | None


@dataclass(frozen=True)
class Faithfulness:
    """Circuits of growing size chosen by one rule (`selection`). `points` are those measured, without the whole graph."""

    selection: str
    metric: str
    ablation: str
    clean: float
    empty: float
    n_pairs: int
    n_templates: int
    points: tuple[Point, ...]
    nominal: Areas
    actual: Areas

    @property
    def warnings(self) -> list[str]:
        """What a reader of these numbers must know."""
        return [*_few(self.n_templates), *_hidden(self)]


@dataclass(frozen=True)
class Cut:
    """One K of completeness: both sides normalised as f, `gap` = with the whole graph minus within the circuit."""

    name: str
    n_edges: int
    whole: Estimate
    circuit: Estimate
    gap: Estimate


@dataclass(frozen=True)
class Completeness:
    """`worst` is the K with the largest |gap|; `complement` is f of the graph without the circuit."""

    metric: str
    ablation: str
    n_edges: int
    n_pairs: int
    n_templates: int
    cuts: tuple[Cut, ...]
    complement: Estimate

    @property
    def worst(self) -> Cut:
        return max(self.cuts, key=lambda cut: abs(cut.gap.value))


@dataclass(frozen=True)
class Dropped:
    """One part of a circuit: share of the task effect lost with it, and the largest loss or gain over all K tried."""

    name: str
    n_edges: int
    drop: Estimate
    most: Estimate


@dataclass(frozen=True)
class Minimality:
    """Every part of a circuit; `n_subsets` random K were tried beside K = nothing."""

    metric: str
    ablation: str
    n_edges: int
    n_pairs: int
    n_templates: int
    n_subsets: int
    parts: tuple[Dropped, ...]

    def idle(self, bar: float) -> list[str]:
        """Parts that matter less than `bar` of the task effect, whatever was cut beside them."""
        return [part.name for part in self.parts if abs(part.most.value) < bar]


# faithfulness ------------------------------------------------------------------------------------


def faithfulness(
    bench: BenchLike, masks: Sequence[Mask], *, selection: str, nominal: Sequence[float] | None = None,
    n_bootstrap: int = 1000, seed: int = 0,
) -> Faithfulness:  # fmt: skip
    """Circuits from small to large. `selection` names the rule that chose them, e.g. "abs" or "signed"; `nominal`: the
    shares of edges asked for (default: those kept)."""
    if not masks:
        raise bad_argument("masks", "none", "one circuit or more")
    exists = bench.graph.exists
    kept = [mask & exists for mask in masks]
    found = bench.outputs(kept, tuple(dict.fromkeys((bench.metric, "kl", "agree"))))
    return faithfulness_of(
        found[bench.metric], bench.clean, bench.empty, bench.task.templates, n_edges=[int(mask.sum()) for mask in kept],
        n_all=int(exists.sum()), selection=selection, nominal=nominal, kl=found["kl"], agree=found["agree"],
        metric=bench.metric, ablation=bench.ablation, n_bootstrap=n_bootstrap, seed=seed)  # fmt: skip


def faithfulness_of(
    scores: Float[np.ndarray, "circuit pair"], clean: Float[np.ndarray, " pair"], empty: Float[np.ndarray, " pair"],
    templates: Sequence[str], *, n_edges: Sequence[int], n_all: int, selection: str, nominal: Sequence[float] | None = None,
    kl: np.ndarray | None = None, agree: np.ndarray | None = None, metric: str = "logit_diff", ablation: str = "resample",
    n_bootstrap: int = 1000, seed: int = 0,
) -> Faithfulness:  # fmt: skip
    """The same from arrays that were measured already."""
    if not selection.strip():
        raise bad_argument("selection", selection, "the name of the rule that chose the circuits, e.g. abs or signed")
    actual = np.array(n_edges) / n_all
    asked = actual if nominal is None else np.array(nominal, float)
    _check_axis("n_edges", actual, len(scores))
    _check_axis("nominal", asked, len(scores))
    over = Over(templates, n_bootstrap, seed)
    f, draws = over.normalised(scores, clean, empty)
    values = over.estimates(f, draws)
    points = tuple(
        Point(int(n), float(asked[row]), float(actual[row]), f_row, f_row.rest(), over.one(kl, row), over.one(agree, row))
        for row, (n, f_row) in enumerate(zip(n_edges, values, strict=True)))  # fmt: skip
    areas = [_areas(over, name, axis, f, draws) for name, axis in (("nominal", asked), ("actual", actual))]
    return Faithfulness(selection, metric, ablation, float(clean.mean()), float(empty.mean()), len(clean),
                        over.n_templates, points, areas[0], areas[1])  # fmt: skip


def area(
    shares: Float[np.ndarray, " share"], y: Float[np.ndarray, "row share"], *, log: bool = False
) -> Float[np.ndarray, " row"]:
    """Trapezoid of every row of y over shares; log: over ln(share), divided by the length of that axis."""
    x = np.log(shares) if log else shares
    total = (np.diff(x) * (y[:, 1:] + y[:, :-1]) / 2).sum(1)
    return total / (x[-1] - x[0]) if log else total


def areas_of(shares: Sequence[float], f: Sequence[float]) -> Areas:
    """Areas of a curve of which only the shares kept, from small to large, and the faithfulness are known; no intervals."""
    _check_axis("shares", np.array(shares, float), len(f))
    values = np.array(f, float)
    return _areas(Over(["all"]), "actual", np.array(shares, float), values, np.zeros((0, len(values))))


def _areas(over: "Over", name: str, shares: np.ndarray, f: np.ndarray, draws: np.ndarray) -> Areas:
    rows = np.concatenate([f[None], draws])
    if shares[-1] < 1:  # the whole graph: the clean run
        shares, rows = np.append(shares, 1.0), np.concatenate([rows, np.ones((len(rows), 1))], 1)

    def of(change: Callable[[np.ndarray], np.ndarray], log: bool) -> Estimate | None:
        if len(shares) < 2 or (log and not 0 < shares[0] < 1):
            return None
        found = area(shares, change(rows), log=log)
        return over.estimates(found[:1], found[1:, None])[0]

    kinds = [(change, log) for log in (False, True) for change in (lambda y: y, lambda y: np.abs(1 - y))]
    return Areas(name, float(shares[0]), *(of(change, log) for change, log in kinds))


# completeness and minimality ---------------------------------------------------------------------


def groups_of(graph: Graph, mask: Mask, by: str = "node") -> dict[str, Mask]:
    """Parts of a circuit: the edges out of every writer in it ("node"), or every edge ("edge")."""
    if by not in ("node", "edge"):
        raise bad_argument("by", by, "node, edge, or parts of your own by name")
    mask = mask & graph.exists
    if by == "node":
        return {str(graph.writers[w]): _only(mask, w) for w in mask.any(1).nonzero()[:, 0].tolist()}
    return {str(edge): graph.mask([edge]) for edge in graph.edges(mask)}


def completeness(
    bench: BenchLike, mask: Mask, *, by: str | Mapping[str, Mask] = "node", n_subsets: int = 20, n_bootstrap: int = 1000,
    seed: int = 0,
) -> Completeness:  # fmt: skip
    """K = nothing, K = C and `n_subsets` random unions of parts, their number uniform between 1 and all but one."""
    exists = bench.graph.exists
    mask = mask & exists
    parts = _parts(bench.graph, mask, by)
    chosen = _subsets(len(parts), n_subsets, np.random.default_rng(seed))
    nothing = torch.zeros_like(mask)
    named = [("nothing", nothing), ("the circuit", mask)]
    named += [(" + ".join(list(parts)[p] for p in picks), _union(list(parts.values()), picks, nothing)) for picks in chosen]
    both = scores_of(bench, (m for _, cut in named for m in (exists & ~cut, mask & ~cut)))
    over = Over(bench.task.templates, n_bootstrap, seed)
    f, draws = over.normalised(both, bench.clean, bench.empty)
    levels, gaps = over.estimates(f, draws), over.estimates(f[::2] - f[1::2], draws[:, ::2] - draws[:, 1::2])
    cuts = tuple(Cut(name, int(cut.sum()), levels[2 * n], levels[2 * n + 1], gaps[n]) for n, (name, cut) in enumerate(named))
    return Completeness(bench.metric, bench.ablation, int(mask.sum()), len(bench.clean), over.n_templates, cuts, levels[2])


def minimality(
    bench: BenchLike, mask: Mask, *, by: str | Mapping[str, Mask] = "node", n_subsets: int = 0, n_bootstrap: int = 1000,
    seed: int = 0,
) -> Minimality:  # fmt: skip
    """Every part dropped, (1 + n_subsets) (1 + parts) circuits in all. For a part inside K, K without it is meant."""
    mask = mask & bench.graph.exists
    parts = _parts(bench.graph, mask, by)
    chosen = [[], *_subsets(len(parts), n_subsets, np.random.default_rng(seed))]
    over = Over(bench.task.templates, n_bootstrap, seed)
    masks = (m for picks in chosen for m in _with_and_without(mask, list(parts.values()), picks))
    f, draws = over.normalised(scores_of(bench, masks), bench.clean, bench.empty)
    side = np.array([[-1.0 if p in picks else 1.0 for p in range(len(parts))] for picks in chosen])
    f, draws = f.reshape(len(chosen), -1), draws.reshape(len(draws), len(chosen), -1)
    loss, spread = side * (f[:, :1] - f[:, 1:]), side * (draws[:, :, :1] - draws[:, :, 1:])
    most = np.abs(loss).argmax(0)
    every = np.arange(len(parts))
    drop, largest = over.estimates(loss[0], spread[:, 0]), over.estimates(loss[most, every], spread[:, most, every])
    found = tuple(Dropped(name, int(part.sum()), a, b) for (name, part), a, b in zip(parts.items(), drop, largest, strict=True))
    return Minimality(bench.metric, bench.ablation, int(mask.sum()), len(bench.clean), over.n_templates, n_subsets, found)


def _with_and_without(mask: Mask, parts: list[Mask], picks: Sequence[int]) -> Iterator[Mask]:
    """C without K; then for every part, the same without (or, for a part of K, with) it."""
    nothing = torch.zeros_like(mask)
    yield mask & ~_union(parts, picks, nothing)
    for number in range(len(parts)):
        rest = [p for p in picks if p != number] if number in picks else [*picks, number]
        yield mask & ~_union(parts, rest, nothing)


def _parts(graph: Graph, mask: Mask, by: str | Mapping[str, Mask]) -> dict[str, Mask]:
    parts = groups_of(graph, mask, by) if isinstance(by, str) else {name: part & mask for name, part in by.items()}
    if not parts:
        raise bad_argument("mask", "a circuit without edges", "a circuit with one part or more")
    return parts


def _subsets(n: int, count: int, rng: np.random.Generator) -> list[list[int]]:
    """Random sets of 1 to n - 1 of n parts, their size uniform; none of one part."""
    return [sorted(rng.permutation(n)[: rng.integers(1, n)].tolist()) for _ in range(count)] if n > 1 else []


def _union(parts: list[Mask], picks: Sequence[int], nothing: Mask) -> Mask:
    return torch.stack([nothing, *(parts[p] for p in picks)]).any(0)


def _only(mask: Mask, writer: int) -> Mask:
    out = torch.zeros_like(mask)
    out[writer] = mask[writer]
    return out


def scores_of(bench: BenchLike, masks: Iterable[Mask]) -> np.ndarray:
    """(circuit, pair), some at a time: one mask of a large graph is large."""
    masks = iter(masks)
    return np.concatenate([bench.scores(some) for some in iter(lambda: list(islice(masks, AT_ONCE)), [])])


# resampling --------------------------------------------------------------------------------------


class Over:
    """Resamples of templates: how often (draw, template) each is drawn, the same for every number of one record."""

    def __init__(self, templates: Sequence[str], n_bootstrap: int = 1000, seed: int = 0) -> None:
        names, place = np.unique(np.array(templates), return_inverse=True)
        self.n_templates = k = len(names)
        self.member = np.eye(k)[place.reshape(-1)]  # (pair, template)
        self.counts = np.random.default_rng(seed).multinomial(k, np.full(k, 1 / k), size=n_bootstrap).astype(float)

    def ratio(self, top: np.ndarray, bottom: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sums over pairs of top (row, pair) over bottom (pair,): the value (row,) and its draws (draw, row)."""
        up, down = top @ self.member, bottom @ self.member
        with np.errstate(divide="ignore", invalid="ignore"):
            return up.sum(1) / down.sum(), self.counts @ up.T / (self.counts @ down)[:, None]

    def normalised(self, scores: np.ndarray, clean: np.ndarray, empty: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """f of every circuit (circuit, pair) and its draws. Raises NoDifference where clean and empty are the same."""
        if not has_effect(clean, empty):
            raise NoDifference(f"the model and the empty circuit have the same mean metric up to rounding ({clean.mean():.4g}):"
                               " there is no effect that a circuit could carry.")  # fmt: skip
        return self.ratio(scores - empty, clean - empty)

    def estimates(self, values: np.ndarray, draws: np.ndarray) -> list[Estimate]:
        """Values (row,) with their intervals."""
        if self.n_templates < 2:
            return [Estimate(float(value)) for value in values]
        bounds = np.quantile(draws, [0.025, 0.975], axis=0).T
        return [Estimate(float(v), _finite(low), _finite(high)) for v, (low, high) in zip(values, bounds, strict=True)]

    def one(self, values: np.ndarray | None, row: int) -> Estimate | None:
        """The mean of one row of (row, pair), if it was measured."""
        if values is None:
            return None
        return self.estimates(*self.ratio(values[row : row + 1], np.ones(values.shape[1])))[0]


def _finite(bound: float) -> float | None:
    """None where resamples without an effect leave the interval without an end."""
    return float(bound) if np.isfinite(bound) else None


def _clipped(value: float) -> float:
    return min(1.0, max(0.0, value))


def _check_axis(name: str, shares: np.ndarray, n: int) -> None:
    if len(shares) != n:
        raise bad_argument(name, f"{len(shares)} sizes", f"one for each of {n} circuits")
    if (np.diff(shares) < 0).any() or shares[0] < 0 or shares[-1] > 1:
        raise bad_argument(name, np.round(shares, 6).tolist(), "shares of the graph between 0 and 1, from small to large")


def _few(n_templates: int) -> list[str]:
    if n_templates < 2:
        return ["all pairs are of one template: nothing is known about others, so there are no intervals."]
    few = n_templates < MIN_BOOTSTRAP
    return [f"{n_templates} templates: intervals over fewer than {MIN_BOOTSTRAP} are too narrow."] if few else []


def _hidden(found: Faithfulness) -> list[str]:
    failed = [p for p in found.points if p.nominal < SMALL and abs(1 - p.f.value) > 0.5]
    linear, log = found.nominal.cmd, found.nominal.cmd_log
    if not failed or linear is None or log is None or linear.value >= HIDDEN:
        return []
    return [f"linear CMD {linear.value:.3f} hides that circuits of {failed[0].nominal:.1%} to"
            f" {failed[-1].nominal:.1%} of the edges fail (f {failed[0].f.value:.2f} to {failed[-1].f.value:.2f});"
            f" on a log axis it is {log.value:.3f}."]  # fmt: skip
