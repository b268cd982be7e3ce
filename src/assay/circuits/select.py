"""Choosing a circuit from scores: which edges, in which order, and which of them are on a path at all.

1. Rank edges `by` |score| (`abs`) or by the score itself (`signed`, strongest support first). The two give different
   circuits and different curves; every curve names its rule. Ties: in the graph's order, readers first.
2. `top_k` keeps the k first, `at_share` the floor(share x edges) first, `threshold` all that reach tau. `greedy` grows
   backwards from the logits: of all edges into readers that feed the logits already through chosen edges, the best is
   added; a reader is reached when a writer of its node (`Graph.node_of`) has a chosen edge.
3. `connected` drops every edge that is on no path embed -> .. -> logits:

       writer u is fed       embed; or one of its readers has a kept edge from a fed writer. One is enough: a head whose
                             query alone is fed still writes something of its own
       reader v leads on     logits; or a writer of node_of(v) has a kept edge to a reader that leads on. A key or value
                             of grouped queries leads on when any head of its group does
       u->v stays            u is fed and v leads on

   Both are closures, so dead ends go in both directions however long they are, and doing it twice changes nothing.
   With resample ablation a circuit does the same before and after: what is not fed writes its ablated values anyway. With
   mean or zero ablation it need not: a head that reads means only does not write its mean.
4. Shares of `GRID` are those of MIB (Mueller et al. 2504.13151), of all edges and before any pruning.
"""

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from assay.circuits.graph import LOGITS, Graph
from assay.errors import bad_argument
from assay.sites import Site

BY = ("abs", "signed")
RULES = ("top_k", "greedy")
GRID = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
Mask = Bool[Tensor, "writer reader"]
Scores = Float[Tensor, "writer reader"]


@dataclass(frozen=True, eq=False)
class Curve:
    """Nested circuits of one rule. `shares` are nominal: `n_chosen` edges of the graph; `n_edges` are left after pruning."""

    rule: str
    by: str
    pruned: bool
    shares: tuple[float, ...]
    n_chosen: tuple[int, ...]
    n_edges: tuple[int, ...]
    masks: tuple[Mask, ...]

    @property
    def selection(self) -> str:
        """The rule's name, to stand beside every number."""
        return f"{self.rule} by {self.by}" + (", pruned" if self.pruned else "")


def top_k(graph: Graph, scores: Scores, k: int, by: str = "abs") -> Mask:
    """The k best edges. Where fewer than k have a score, zeros fill up in the graph's order (`abs`)."""
    return _first(graph, _ranked(graph, scores, by), _size(k, graph.n_edges))


def at_share(graph: Graph, scores: Scores, share: float, by: str = "abs") -> Mask:
    """The best share (0 to 1) of all edges, rounded down."""
    return top_k(graph, scores, n_at(graph, share), by)


def threshold(graph: Graph, scores: Scores, tau: float, by: str = "abs") -> Mask:
    """Every edge whose |score| (`abs`), or score (`signed`), is at least tau."""
    if not math.isfinite(tau) or (by == "abs" and tau < 0):
        raise bad_argument("tau", tau, "a finite number, not below 0 with by='abs'")
    return torch.from_numpy(_strengths(graph, scores, by) >= tau) & graph.exists


def greedy(graph: Graph, scores: Scores, k: int, by: str = "abs") -> Mask:
    """k edges grown backwards from the logits, best first: each leads to the logits; none need be fed from the embedding."""
    k = _size(k, graph.n_edges)
    return _first(graph, _grown(graph, _strengths(graph, scores, by), k), k)


def connected(graph: Graph, mask: Mask) -> Mask:
    """The edges of a circuit that are on a path embed -> .. -> logits; see step 3."""
    return torch.from_numpy(Wiring(graph).connected(checked_mask(graph, mask).numpy()))


def n_dropped(graph: Graph, mask: Mask) -> int:
    """How many edges of a circuit are on no such path."""
    return int(mask.sum()) - int(connected(graph, mask).sum())


def top_nodes(graph: Graph, node_scores: Float[Tensor, " node"], k: int, by: str = "abs") -> tuple[tuple[Site, ...], Mask]:
    """The k best writers, best first, and every edge out of them. The embedding competes like any other writer:
    a circuit without it is fed by nothing."""
    _check_by(by)
    n = len(graph.writers)
    if node_scores.shape != (n,):
        hint = "Node attributions hold readers too, after the writers: take scores[:len(graph.writers)]."
        raise bad_argument("node_scores", tuple(node_scores.shape), f"one score per writer ({n},)", hint)
    _check_finite("node_scores", node_scores)
    strength = node_scores.abs() if by == "abs" else node_scores
    order = strength.argsort(descending=True, stable=True)[: _size(k, n)].tolist()
    sites = tuple(graph.writers[number] for number in order)
    return sites, graph.node_mask(sites)


def curve_masks(
    graph: Graph, scores: Scores, by: str, grid: Sequence[float] = GRID, rule: str = "top_k", *, prune: bool = False
) -> Curve:
    """Circuits at rising shares of all edges, each inside the next. `prune`: only their connected edges."""
    if rule not in RULES:
        raise bad_argument("rule", rule, ", ".join(RULES))
    shares = tuple(float(share) for share in grid)
    if not shares or any(low >= high for low, high in zip(shares, shares[1:])):
        raise bad_argument("grid", grid, "one rising share or more")
    sizes = tuple(n_at(graph, share) for share in shares)
    order = _ranked(graph, scores, by) if rule == "top_k" else _grown(graph, _strengths(graph, scores, by), sizes[-1])
    masks = [_first(graph, order, size) for size in sizes]
    if prune:
        wiring = Wiring(graph)
        masks = [torch.from_numpy(wiring.connected(mask.numpy())) for mask in masks]
    return Curve(rule, by, prune, shares, sizes, tuple(int(mask.sum()) for mask in masks), tuple(masks))


def n_at(graph: Graph, share: float) -> int:
    """Edges in a share of the graph, rounded down."""
    if not 0 <= share <= 1:
        raise bad_argument("share", share, "0 to 1")
    return math.floor(share * graph.n_edges + 1e-9)  # 0.29 x 100 is 29, not 28


class Wiring:
    """Which reader feeds which writer, as a matrix, for closures over whole graphs."""

    def __init__(self, graph: Graph) -> None:
        self.belongs = np.zeros((len(graph.readers), len(graph.writers)), dtype=np.float32)
        for number, reader in enumerate(graph.readers):
            self.belongs[number, [graph.writer_number[writer] for writer in graph.node_of(reader)]] = 1.0
        self.entries, self.logits = graph.entries, graph.reader_number[LOGITS]

    def connected(self, mask: Bool[np.ndarray, "writer reader"]) -> Bool[np.ndarray, "writer reader"]:
        """The edges whose writer is fed and whose reader leads on."""
        kept = mask.astype(np.float32)
        fed = _closure(self.entries, len(kept), lambda u: ((u @ kept) > 0).astype(np.float32) @ self.belongs)
        leads = _closure([self.logits], kept.shape[1], lambda v: self.belongs @ ((kept @ v) > 0).astype(np.float32))
        return mask & fed[:, None] & leads[None]


def checked_mask(graph: Graph, mask: Tensor, argument: str = "mask") -> Mask:
    """The circuit, on the CPU. Raises UsageError for what is none of this graph."""
    shape = tuple(graph.exists.shape)
    if mask.dtype != torch.bool or tuple(mask.shape) != shape:
        raise bad_argument(argument, f"{mask.dtype} {tuple(mask.shape)}", f"a Bool matrix (writer, reader) {shape}")
    mask = mask.cpu()
    if bool((mask & ~graph.exists).any()):
        raise bad_argument(argument, str(graph.name((mask & ~graph.exists).nonzero()[0].tolist())), "edges of this graph")
    return mask


# order -----------------------------------------------------------------------------------------


def _ranked(graph: Graph, scores: Scores, by: str) -> Int[np.ndarray, "edge 2"]:
    """All edges, best first."""
    cells = graph.cells.numpy()
    strength = _strengths(graph, scores, by)[cells[:, 0], cells[:, 1]]
    return cells[np.argsort(-strength, kind="stable")]


def _grown(graph: Graph, strength: Float[np.ndarray, "writer reader"], k: int) -> Int[np.ndarray, "edge 2"]:
    """k edges in the order in which `greedy` takes them. The heap holds the best edge left of every reached reader."""
    order = np.argsort(-strength, axis=0, kind="stable")
    cost = np.take_along_axis(-strength, order, 0).T.tolist()  # per reader, best first
    writer, n_in = order.T.tolist(), graph.exists.sum(0).tolist()
    behind = [[graph.reader_number[reader] for reader in graph.readers_of(site)] for site in graph.writers]
    logits = graph.reader_number[LOGITS]
    reached, heap, chosen = {logits}, [(cost[logits][0], logits, 0)], []
    while len(chosen) < k:
        _, reader, rank = heapq.heappop(heap)
        chosen.append((writer[reader][rank], reader))
        if rank + 1 < n_in[reader]:
            heapq.heappush(heap, (cost[reader][rank + 1], reader, rank + 1))
        for new in behind[writer[reader][rank]]:
            if new not in reached:
                reached.add(new)
                heapq.heappush(heap, (cost[new][0], new, 0))
    return np.array(chosen, dtype=np.int64).reshape(-1, 2)


def _first(graph: Graph, order: Int[np.ndarray, "edge 2"], k: int) -> Mask:
    out = torch.zeros_like(graph.exists)
    cells = torch.from_numpy(order[:k])
    out[cells[:, 0], cells[:, 1]] = True
    return out


def _strengths(graph: Graph, scores: Tensor, by: str) -> Float[np.ndarray, "writer reader"]:
    """What edges are ranked by; minus infinity where there is none."""
    _check_by(by)
    shape = tuple(graph.exists.shape)
    if tuple(scores.shape) != shape:
        raise bad_argument("scores", tuple(scores.shape), f"a matrix (writer, reader) {shape}", "See Attribution.matrix().")
    scores = scores.detach().cpu().double()
    _check_finite("scores", scores[graph.exists])
    strength = scores.abs() if by == "abs" else scores
    return strength.masked_fill(~graph.exists, -math.inf).numpy()


def _closure(
    start: list[int], n: int, step: Callable[[Float[np.ndarray, " n"]], Float[np.ndarray, " n"]]
) -> Bool[np.ndarray, " n"]:
    """All that can be got to from some places."""
    found = np.zeros(n, dtype=bool)
    found[start] = True
    while True:
        more = found | (step(found.astype(np.float32)) > 0)
        if (more == found).all():
            return found
        found = more


# checks ----------------------------------------------------------------------------------------


def _check_by(by: str) -> None:
    if by not in BY:
        raise bad_argument("by", by, ", ".join(BY))


def _check_finite(argument: str, scores: Tensor) -> None:
    if not bool(torch.isfinite(scores).all()):
        raise bad_argument(argument, f"{int((~torch.isfinite(scores)).sum())} that are not finite", "finite numbers")


def _size(k: int, most: int) -> int:
    if int(k) != k or not 0 <= k <= most:
        raise bad_argument("k", k, f"a whole number from 0 to {most}")
    return int(k)
