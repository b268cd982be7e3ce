"""Hypothesis tests of circuits (Shi et al. 2410.13032), by their definitions.

s(C) is the metric of circuit C on one pair, M the whole graph, loss(C) = mean over pairs of |s(C) - s(M)|.

    test               null hypothesis                                                           rejecting it
    equivalence        |P(s(C) > s(M)) - 1/2| < eps, eps = .1                                    speaks against C
    independence       s(M without C) and s(M) are independent                                   speaks against C
    minimality         edge e: P(its effect in C > that of a random edge of an inflated C) >= q  speaks against C
    sufficiency        P(loss(C) < loss(random circuit)) <= q                                    speaks for C
    partial necessity  P(loss(M without C) > loss(M without random circuit)) <= q                speaks for C

1. Equivalence: t = |share of pairs with s(C) > s(M) - 1/2|. p = P(|B/n - 1/2| >= t) for B ~ Binomial(n, 1/2 + eps), the
   worst case of the null. Equal values (up to `tolerance`) count half: they point to neither side.
2. Independence: HSIC = tr(K H L H) / n^2 (Gretton et al. 2005), Gaussian kernels exp(-d^2 / 2 b^2), b the median distance
   between two values of the same variable; p = (1 + permutations that reach it) / (1 + permutations), never 0.
3. Minimality: the effect of e in C is the mean over pairs of |s(C) - s(C without e)|. Compared with it: a random walk from
   the embeddings to the logits is added to C, and a random one of the edges that are new is knocked out of that; n times.
   p = P(B <= edge's wins), B ~ Binomial(n, q), q = .9; Holm over edges.
4. Sufficiency and partial necessity: the wins among n random circuits; p = P(B >= wins), B ~ Binomial(n, q). Random circuits
   are unions of random walks with as many edges as C (`random_circuits.py`): circuits of single random edges connect nothing
   and lose to anything.
5. Holm over all tests of one circuit (`all_tests`); minimality enters with its smallest adjusted p.

In the first three a large p is no evidence: the null is the claim, and few pairs reject nothing. `share` with its interval
says more: C and M are shown to be equivalent when the interval lies within 1/2 -+ eps. All five take pairs (or random
circuits) for independent; with `unit` "template" the means of templates are what is counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats
from torch import Tensor

from assay.circuits.faithfulness import BenchLike, Mask, scores_of
from assay.circuits.random_circuits import one_walk_more, walks
from assay.errors import bad_argument
from assay.statistics import clopper_pearson, cluster_means, holm

UNITS = ("pair", "template")
Values = Float[np.ndarray, " n"]


@dataclass(frozen=True)
class Tested:
    """One test. `statistic`: |share - 1/2|, HSIC, or the share of wins; `against`: whether rejecting speaks against C.

    `share` with `low` and `high` (95%, exact): what was counted, where something was; `n`: pairs, templates or draws.
    """

    test: str
    statistic: float
    p: float
    against: bool
    n: int
    share: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class EdgeTest:
    """Minimality of one edge: its effect, how often it wins, and p, raw and after Holm over edges."""

    edge: str
    effect: float
    wins: float
    p: float
    p_holm: float


@dataclass(frozen=True)
class MinimalityTest:
    """All edges tested; `random` are the effects of random edges of inflated circuits."""

    edges: tuple[EdgeTest, ...]
    random: tuple[float, ...]
    quantile: float

    @property
    def p(self) -> float:
        """The smallest adjusted p: is there an edge too many?"""
        return min(edge.p_holm for edge in self.edges)

    def idle(self, alpha: float = 0.05) -> list[str]:
        """Edges that matter less than random ones at this level."""
        return [edge.edge for edge in self.edges if edge.p_holm <= alpha]


@dataclass(frozen=True)
class CircuitTests:
    """All tests of one circuit. `p_holm` by name of the test, adjusted over all of them."""

    n_edges: int
    unit: str
    metric: str
    ablation: str
    equivalence: Tested
    independence: Tested
    minimality: MinimalityTest
    sufficiency: Tested
    partial_necessity: Tested
    p_holm: dict[str, float]

    def against(self, alpha: float = 0.05) -> list[str]:
        """What speaks against the circuit: strict nulls rejected, and flexible ones that were not."""
        strict = [name for name in ("equivalence", "independence", "minimality") if self.p_holm[name] <= alpha]
        return strict + [name for name in ("sufficiency", "partial_necessity") if self.p_holm[name] > alpha]


# on arrays ---------------------------------------------------------------------------------------


def equivalence_test(circuit: Values, model: Values, *, eps: float = 0.1, tolerance: float = 1e-4) -> Tested:
    """`tolerance`: differences below this share of mean |s(M)| are ties."""
    if not 0 <= eps < 0.5:
        raise bad_argument("eps", eps, "at least 0 and below 0.5")
    n, change = len(model), circuit - model
    tie = np.abs(change) <= tolerance * np.abs(model).mean()
    above = float(((change > 0) & ~tie).sum() + 0.5 * tie.sum())
    reach = abs(above - n / 2)
    low, _ = clopper_pearson(int(np.floor(above)), n)
    _, high = clopper_pearson(int(np.ceil(above)), n)
    return Tested("equivalence", reach / n, two_tails(reach, n, 0.5 + eps), True, n, above / n, low, high)


def two_tails(reach: float, n: int, share: float) -> float:
    """P(|B - n/2| >= reach), B ~ Binomial(n, share)."""
    if reach == 0:
        return 1.0
    upper, lower = np.ceil(n / 2 + reach - 1e-9), np.floor(n / 2 - reach + 1e-9)
    return float(min(1.0, stats.binom.sf(upper - 1, n, share) + stats.binom.cdf(lower, n, share)))


def independence_test(complement: Values, model: Values, *, n_permutations: int = 1000, seed: int = 0) -> Tested:
    """A variable that does not vary is independent of everything: p = 1."""
    n = len(model)
    k, l = centred(gaussian_kernel(complement)), gaussian_kernel(model)  # noqa: E741
    observed = float((k * l).sum()) / n**2
    rng = np.random.default_rng(seed)
    order = (rng.permutation(n) for _ in range(n_permutations))
    drawn = np.array([(k * l[np.ix_(o, o)]).sum() for o in order]) / n**2
    reached = int((drawn >= observed - 1e-12).sum())
    return Tested("independence", observed, (1 + reached) / (1 + n_permutations), True, n)


def hsic(x: Values, y: Values) -> float:
    """HSIC of two variables (biased estimate, never below 0)."""
    return float((centred(gaussian_kernel(x)) * gaussian_kernel(y)).sum()) / len(x) ** 2


def gaussian_kernel(x: Values) -> Float[np.ndarray, "n n"]:
    """exp(-d^2 / 2 b^2), b the median distance between two different items; where that is 0, of those that differ."""
    distance = np.abs(x[:, None] - x[None])
    between = distance[np.triu_indices(len(x), 1)]
    width = float(np.median(between)) if len(between) else 0.0
    if width == 0:
        width = float(np.median(between[between > 0])) if (between > 0).any() else 1.0
    return np.exp(-(distance**2) / (2 * width**2))


def centred(kernel: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    """H K H."""
    return kernel - kernel.mean(0) - kernel.mean(1)[:, None] + kernel.mean()


def minimality_test(
    effects: Float[np.ndarray, " edge"], random: Values, names: Sequence[str], *, quantile: float = 0.9
) -> MinimalityTest:
    """Effects of the circuit's edges against those of random edges of inflated circuits."""
    _check_quantile(quantile)
    n = len(random)
    wins = [int((effect > random).sum()) for effect in effects]
    p = [float(stats.binom.cdf(won, n, quantile)) for won in wins]
    edges = tuple(EdgeTest(name, float(effect), won / n, raw, adjusted)
                  for name, effect, won, raw, adjusted in zip(names, effects, wins, p, holm(p), strict=True))  # fmt: skip
    return MinimalityTest(edges, tuple(float(effect) for effect in random), quantile)


def quantile_test(name: str, better: Bool[np.ndarray, " draw"], *, quantile: float = 0.9) -> Tested:
    """Whether the circuit beats random ones in more than `quantile` of all draws."""
    _check_quantile(quantile)
    n, wins = len(better), int(better.sum())
    low, high = clopper_pearson(wins, n)
    return Tested(name, wins / n, float(stats.binom.sf(wins - 1, n, quantile)), False, n, wins / n, low, high)


def loss_of(circuits: Float[np.ndarray, "circuit n"], model: Values) -> Float[np.ndarray, " circuit"]:
    """Mean |s(C) - s(M)|."""
    return np.abs(circuits - model).mean(1)


# on a bench --------------------------------------------------------------------------------------


def equivalence(bench: BenchLike, mask: Mask, *, eps: float = 0.1, unit: str = "pair") -> Tested:
    """Does the circuit do as well as the model, pair by pair?"""
    return equivalence_test(_by_unit(bench, unit, bench.scores([mask])[0]), _by_unit(bench, unit, bench.clean), eps=eps)


def independence(
    bench: BenchLike, mask: Mask, *, n_permutations: int = 1000, unit: str = "pair", seed: int = 0
) -> Tested:
    """Does the rest of the graph still know what the model does?"""
    rest = _by_unit(bench, unit, bench.scores([bench.graph.exists & ~mask])[0])
    return independence_test(rest, _by_unit(bench, unit, bench.clean), n_permutations=n_permutations, seed=seed)


def minimal_edges(
    bench: BenchLike, mask: Mask, *, n_random: int = 100, quantile: float = 0.9, n_edges: int | None = None, seed: int = 0
) -> MinimalityTest:
    """Is every edge of use? `n_edges`: test a random choice of that many (default: all)."""
    graph, rng = bench.graph, np.random.default_rng(seed)
    mask = mask & graph.exists
    grown = one_walk_more(graph, mask, n_random, seed)
    gone = [drawn.added.nonzero()[rng.integers(drawn.n_added)].tolist() for drawn in grown]
    whole = scores_of(bench, (drawn.mask for drawn in grown))
    cut = scores_of(bench, (_without(drawn.mask, cell) for drawn, cell in zip(grown, gone, strict=True)))
    cells = mask.nonzero().tolist()
    if n_edges is not None and n_edges < len(cells):
        cells = [cells[place] for place in sorted(rng.permutation(len(cells))[:n_edges])]
    if not cells:
        raise bad_argument("mask", "a circuit without edges", "a circuit with one edge or more")
    own = scores_of(bench, (mask, *(_without(mask, cell) for cell in cells)))
    names = [str(graph.name(cell)) for cell in cells]
    return minimality_test(np.abs(own[1:] - own[0]).mean(1), np.abs(whole - cut).mean(1), names, quantile=quantile)


def sufficiency(
    bench: BenchLike, mask: Mask, *, n_random: int = 100, quantile: float = 0.9, size: int | None = None, seed: int = 0
) -> Tested:
    """Is the circuit closer to the model than random ones (of `size` edges; default: as many)?"""
    drawn = _random_circuits(bench, mask, n_random, size, "all", seed)
    losses = loss_of(scores_of(bench, (mask, *drawn)), bench.clean)
    return quantile_test("sufficiency", losses[0] < losses[1:], quantile=quantile)


def partial_necessity(
    bench: BenchLike, mask: Mask, *, n_random: int = 100, quantile: float = 0.9, size: int | None = None,
    pool: str = "all", seed: int = 0,
) -> Tested:  # fmt: skip
    """Does the model lose more without the circuit than without random ones? `pool`: those are drawn from all edges
    ("all") or from those outside of the circuit ("complement")."""
    exists = bench.graph.exists
    drawn = _random_circuits(bench, mask, n_random, size, pool, seed)
    losses = loss_of(scores_of(bench, (exists & ~one for one in (mask, *drawn))), bench.clean)
    return quantile_test("partial_necessity", losses[0] > losses[1:], quantile=quantile)


def all_tests(
    bench: BenchLike, mask: Mask, *, eps: float = 0.1, n_permutations: int = 1000, n_random: int = 100, quantile: float = 0.9,
    n_inflated: int | None = None, n_edges: int | None = None, unit: str = "pair", seed: int = 0,
) -> CircuitTests:  # fmt: skip
    """All five tests, with Holm over them. `n_inflated`: inflated circuits of minimality (default: `n_random`). Runs
    2 n_random + 2 n_inflated + edges + 5 circuits."""
    mask = mask & bench.graph.exists
    equal = equivalence(bench, mask, eps=eps, unit=unit)
    apart = independence(bench, mask, n_permutations=n_permutations, unit=unit, seed=seed)
    minimal = minimal_edges(bench, mask, n_random=n_inflated or n_random, quantile=quantile, n_edges=n_edges, seed=seed)
    enough = sufficiency(bench, mask, n_random=n_random, quantile=quantile, seed=seed)
    needed = partial_necessity(bench, mask, n_random=n_random, quantile=quantile, seed=seed)
    p = {"equivalence": equal.p, "independence": apart.p, "minimality": minimal.p, "sufficiency": enough.p,
         "partial_necessity": needed.p}  # fmt: skip
    return CircuitTests(int(mask.sum()), unit, bench.metric, bench.ablation, equal, apart, minimal, enough, needed,
                        dict(zip(p, holm(list(p.values())), strict=True)))  # fmt: skip


def _by_unit(bench: BenchLike, unit: str, values: np.ndarray) -> np.ndarray:
    if unit not in UNITS:
        raise bad_argument("unit", unit, ", ".join(UNITS))
    return values if unit == "pair" else np.array(list(cluster_means(values.tolist(), bench.task.templates).values()))


def _random_circuits(bench: BenchLike, mask: Mask, n: int, size: int | None, pool: str, seed: int) -> list[Tensor]:
    if pool not in ("all", "complement"):
        raise bad_argument("pool", pool, "all or complement")
    exists = bench.graph.exists
    allowed = None if pool == "all" else exists & ~mask
    return [drawn.mask for drawn in walks(bench.graph, mask & exists, n, seed, n_edges=size, allowed=allowed)]


def _without(mask: Mask, cell: Sequence[int]) -> Mask:
    out = mask.clone()
    out[cell[0], cell[1]] = False
    return out


def _check_quantile(quantile: float) -> None:
    if not 0 < quantile < 1:
        raise bad_argument("quantile", quantile, "between 0 and 1")
