"""Random circuits to compare a circuit with.

Edges drawn at random from a whole graph hardly ever form a path: such circuits score zero at any size that is of
interest, and to beat them is no evidence (`uniform`, for showing just that). Three controls that have more in common with it:

1. `matched`: as many edges of every class (layer and type of the writer, layer and type of the reader) as the circuit has,
   drawn at random from those of the class; edges of the circuit only where its class has no others left. MLPs, the
   embedding and the logits are alone in their layer, so that edges between them can only coincide: `n_forced` of them.
   A circuit that is mostly such edges is its own control, and this one says nothing about it. Nor need the draws be
   connected: heads are drawn one by one, and in deep models a head that is written to need not be read.
2. `walks`: unions of random walks embed -> .. -> logits of the circuit's size (after Shi et al. 2410.13032).
   Every walk goes through an edge of its own, drawn without replacement; from there it steps back to the embedding
   and on to the logits, every step uniform over the edges there. A walk that would make the union too
   large is left out (after `TRIES` of them the last is cut at its embedding end, by `n_trimmed` edges). So unions much
   smaller than a typical walk consist of short ones. To be on a path is not yet to carry anything: in a small union nearly
   all inputs of every reader stay ablated, and it can score zero too. Where it does, to beat it is no evidence either.
3. `inflated`: the circuit and such walks, until `n_extra` edges were added: edges for its own to be compared with.
   `one_walk_more`: the circuit and one walk, through an edge that it does not have.

Every record says how many of its edges are on a path at all (`n_live`, see `select.connected`) and how many are the
circuit's own (`n_shared`). Draw number i depends on the seed and i alone, not on how many are drawn.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from assay.circuits.graph import LOGITS, Graph, Node
from assay.circuits.select import Wiring, checked_mask
from assay.errors import bad_argument
from assay.sites import Site

TRIES = 2000  # walks that do not fit
FEWEST = 256  # walks made at once
Mask = Bool[Tensor, "writer reader"]
Flat = Bool[np.ndarray, " cell"]


@dataclass(frozen=True, eq=False)
class RandomCircuit:
    """One draw. `n_forced`: edges that coincide with the circuit's because their class has too few others;
    `n_trimmed`: edges cut off the last walk; `n_shared` None: there was no circuit to compare with."""

    mask: Mask
    rule: str
    seed: int
    number: int
    n_edges: int
    n_live: int
    n_shared: int | None
    n_forced: int = 0
    n_trimmed: int = 0


@dataclass(frozen=True, eq=False)
class Inflated:
    """A circuit with random walks added: all of it, and what was added."""

    mask: Mask
    added: Mask
    seed: int
    n_added: int
    n_trimmed: int


def matched(graph: Graph, mask: Mask, n: int, seed: int = 0) -> tuple[RandomCircuit, ...]:
    """n circuits with as many edges of every class as `mask`."""
    mask = _circuit(graph, mask)
    cells = graph.cells.numpy()
    inside, kind = mask.numpy()[cells[:, 0], cells[:, 1]], _classes(graph)
    wanted, there = np.bincount(kind[inside], minlength=kind.max() + 1), np.bincount(kind)
    n_forced = int(np.maximum(0, 2 * wanted - there).sum())
    pool = np.flatnonzero(wanted[kind] > 0)
    group = 2 * kind[pool] + inside[pool]  # by class, the circuit's own edges last
    in_order = np.sort(kind[pool])
    rank = np.arange(len(pool)) - np.searchsorted(in_order, in_order)
    take = rank < wanted[in_order]
    out = []
    for number, rng in _streams(n, seed):
        drawn = pool[np.argsort(group + rng.random(len(pool)))[take]]
        out.append((number, _matrix(graph, cells[drawn]), n_forced, 0))
    return _records(graph, "matched", seed, mask, out)


def walks(
    graph: Graph, mask: Mask, n: int, seed: int = 0, *, n_edges: int | None = None, allowed: Mask | None = None
) -> tuple[RandomCircuit, ...]:
    """n unions of random walks with as many edges as `mask` (or all that are on a path, if it has more), or `n_edges`. Give a
    connected circuit: all edges of walks are. `allowed`: the edges they may take. Raises UsageError where those form no path,
    or too few."""
    mask = _circuit(graph, mask)
    walker, none = _Walker(graph, allowed), np.zeros(mask.numel(), dtype=bool)
    most = len(walker.cells)
    size = n_edges if n_edges is not None else int(mask.sum()) if allowed is not None else min(int(mask.sum()), most)
    if int(size) != size or not 1 <= size <= most:
        raise bad_argument("n_edges", size, f"1 to {most}, the edges that are on a path")
    out = []
    for number, rng in _streams(n, seed):
        added, n_trimmed = walker.grow(none, int(size), rng)
        out.append((number, torch.from_numpy(added).view(mask.shape), 0, n_trimmed))
    return _records(graph, "walks", seed, mask, out)


def inflated(graph: Graph, mask: Mask, n_extra: int, seed: int = 0) -> Inflated:
    """The circuit and random walks that add exactly `n_extra` edges to it."""
    mask = checked_mask(graph, mask)
    most = graph.n_edges - int(mask.sum())
    if int(n_extra) != n_extra or not 1 <= n_extra <= most:
        raise bad_argument("n_extra", n_extra, f"1 to {most}, the edges outside the circuit")
    added, n_trimmed = _Walker(graph).grow(mask.numpy().ravel(), int(n_extra), np.random.default_rng([seed, 0]))
    new = torch.from_numpy(added).view(mask.shape)
    return Inflated(mask | new, new, seed, int(new.sum()), n_trimmed)


def one_walk_more(graph: Graph, mask: Mask, n: int, seed: int = 0) -> tuple[Inflated, ...]:
    """n times the circuit with a random walk through an edge outside of it."""
    mask = checked_mask(graph, mask)
    walker, own = _Walker(graph), mask.numpy()
    outside = walker.cells[~own[walker.cells[:, 0], walker.cells[:, 1]]]
    if not len(outside):
        raise bad_argument("mask", f"{int(mask.sum())} edges", "a circuit that leaves paths of the graph out")
    out = []
    for _, rng in _streams(n, seed):
        _, cells = walker.walks(outside[rng.integers(len(outside))][None], rng)
        new = np.zeros(mask.numel(), dtype=bool)
        new[cells] = True
        added = torch.from_numpy(new).view(mask.shape) & ~mask
        out.append(Inflated(mask | added, added, seed, int(added.sum()), 0))
    return tuple(out)


def uniform(graph: Graph, n_edges: int, n: int, seed: int = 0) -> tuple[RandomCircuit, ...]:
    """n circuits of edges drawn from the whole graph. A weak control; see above."""
    if int(n_edges) != n_edges or not 1 <= n_edges <= graph.n_edges:
        raise bad_argument("n_edges", n_edges, f"1 to {graph.n_edges}")
    cells = graph.cells.numpy()
    out = [(number, _matrix(graph, cells[rng.permutation(len(cells))[: int(n_edges)]]), 0, 0)
           for number, rng in _streams(n, seed)]  # fmt: skip
    return _records(graph, "uniform", seed, None, out)


class _Walker:
    """Random walks embed -> .. -> logits, many at once, over all edges or some that are allowed, without their dead ends."""

    def __init__(self, graph: Graph, allowed: Mask | None = None) -> None:
        mask = graph.exists if allowed is None else checked_mask(graph, allowed, "allowed")
        live = Wiring(graph).connected(mask.numpy())
        if not live.any():
            raise bad_argument("allowed", f"{int(mask.sum())} edges", "edges that connect the embeddings with the logits")
        self.cells, self.shape = np.argwhere(live.T)[:, ::-1], live.shape
        self.logits = graph.reader_number[LOGITS]
        self.fed = np.isin(np.arange(len(graph.writers)), graph.entries, invert=True)  # the embedding is fed by nothing
        fed, leads = np.asarray(live.any(0)), np.asarray(live.any(1))
        self.writers = _Choice([column.nonzero()[0].tolist() for column in live.T])
        self.readers = _Choice([row.nonzero()[0].tolist() for row in live])
        self.behind = _Choice([[v for v in map(graph.reader_number.__getitem__, graph.readers_of(u)) if fed[v]]
                               for u in graph.writers])  # fmt: skip
        self.ahead = _Choice([[u for u in map(graph.writer_number.__getitem__, graph.node_of(v)) if leads[u]]
                              for v in graph.readers])  # fmt: skip

    def grow(self, have: Flat, n_new: int, rng: np.random.Generator) -> tuple[Flat, int]:
        """Walks through edges in random order until `n_new` are there that were not in `have`, and how many edges the last
        walk lost for that."""
        union, through = have.copy(), self.cells[rng.permutation(len(self.cells))]
        left, start, tries, spare = n_new, 0, 0, np.zeros(0, dtype=np.int64)
        while left and start < len(through) and tries < TRIES:
            size = min(max(FEWEST, left // 2), len(through) - start)
            walk, cell = self.walks(through[start : start + size], rng)
            start += size
            n_fit, n_got = _fitting(walk, cell, union, left)
            union[cell[walk < n_fit]] = True
            left -= n_got
            bounds = np.searchsorted(walk, np.arange(size + 1))
            for number in range(n_fit, size):
                one = cell[bounds[number] : bounds[number + 1]]
                n_one = int((~union[one]).sum())
                if n_one <= left:
                    union[one], left = True, left - n_one
                else:
                    tries, spare = tries + 1, one
                if not left or tries >= TRIES:
                    break
        new = spare[~union[spare]] if left else spare[:0]
        union[new[len(new) - left :]] = True
        return union & ~have, len(new) - left

    def walks(
        self, through: Int[np.ndarray, "walk 2"], rng: np.random.Generator
    ) -> tuple[Int[np.ndarray, " step"], Int[np.ndarray, " step"]]:
        """One walk through every edge given: (number of the walk, cell) of all steps, walk by walk from the embedding on."""
        everyone = np.arange(len(through))
        back, ahead = list(self._back(through[:, 0], rng)), list(self._ahead(through[:, 1], rng))
        steps = [*back[::-1], (everyone, through[:, 0], through[:, 1]), *ahead]
        walk, writer, reader = (np.concatenate(column) for column in zip(*steps, strict=True))
        order = np.argsort(walk, kind="stable")
        return walk[order], (writer * self.shape[1] + reader)[order]

    def _back(self, writer: Int[np.ndarray, " walk"], rng: np.random.Generator) -> Iterator[tuple[np.ndarray, ...]]:
        """(walk, writer, reader) of the steps from the embedding to these writers, the last first."""
        walk = np.arange(len(writer))
        while len(walk := walk[self.fed[writer]]):
            reader = self.behind(writer[self.fed[writer]], rng)
            writer = self.writers(reader, rng)
            yield walk, writer, reader

    def _ahead(self, reader: Int[np.ndarray, " walk"], rng: np.random.Generator) -> Iterator[tuple[np.ndarray, ...]]:
        """(walk, writer, reader) of the steps from these readers to the logits, the first first."""
        walk = np.arange(len(reader))
        while len(walk := walk[reader != self.logits]):
            writer = self.ahead(reader[reader != self.logits], rng)
            reader = self.readers(writer, rng)
            yield walk, writer, reader


class _Choice:
    """One of several numbers, uniformly, for many lists at once."""

    def __init__(self, lists: Sequence[Sequence[int]]) -> None:
        self.n = np.array([len(one) for one in lists])
        self.table = np.zeros((len(lists), self.n.max()), dtype=np.int64)
        for number, one in enumerate(lists):
            self.table[number, : len(one)] = one

    def __call__(self, which: Int[np.ndarray, " one"], rng: np.random.Generator) -> Int[np.ndarray, " one"]:
        return self.table[which, rng.integers(0, self.n[which])]


def _fitting(walk: np.ndarray, cell: np.ndarray, union: Flat, left: int) -> tuple[int, int]:
    """How many of the first walks bring no more than `left` new cells together, and how many they bring."""
    fresh = ~union[cell]
    _, first = np.unique(cell[fresh], return_index=True)
    brought = np.bincount(walk[fresh][first], minlength=walk[-1] + 1).cumsum()
    n_fit = int(np.searchsorted(brought, left, side="right"))
    return n_fit, int(brought[n_fit - 1]) if n_fit else 0


def _classes(graph: Graph) -> Int[np.ndarray, " edge"]:
    """A number for the class of every edge: layers and types of its ends, and where they are."""
    ends = [_kinds(sites)[graph.cells.numpy()[:, side]] for side, sites in enumerate((graph.writers, graph.readers))]
    return ends[0] * (ends[1].max() + 1) + ends[1]


def _kinds(sites: Sequence[Site]) -> Int[np.ndarray, " site"]:
    numbers: dict[tuple[str, int | None, str], int] = {}
    kinds = [(site.name, site.layer, site.at if isinstance(site, Node) else "") for site in sites]
    return np.array([numbers.setdefault(kind, len(numbers)) for kind in kinds])


def _circuit(graph: Graph, mask: Tensor) -> Mask:
    mask = checked_mask(graph, mask)
    if not bool(mask.any()):
        raise bad_argument("mask", "no edges", "a circuit of one edge or more")
    return mask


def _streams(n: int, seed: int) -> Iterator[tuple[int, np.random.Generator]]:
    if int(n) != n or n < 1:
        raise bad_argument("n", n, "a whole number from 1")
    for number in range(int(n)):
        yield number, np.random.default_rng([seed, number])


def _matrix(graph: Graph, cells: Int[np.ndarray, "edge 2"]) -> Mask:
    out = np.zeros(tuple(graph.exists.shape), dtype=bool)
    out[cells[:, 0], cells[:, 1]] = True
    return torch.from_numpy(out)


def _records(
    graph: Graph, rule: str, seed: int, base: Mask | None, drawn: Sequence[tuple[int, Mask, int, int]]
) -> tuple[RandomCircuit, ...]:
    """Draws (number, mask, n_forced, n_trimmed) with what can be counted of them."""
    wiring, out = Wiring(graph), []
    for number, mask, n_forced, n_trimmed in drawn:
        n_live = int(wiring.connected(mask.numpy()).sum())
        n_shared = None if base is None else int((mask & base).sum())
        out.append(RandomCircuit(mask, rule, seed, number, int(mask.sum()), n_live, n_shared, n_forced, n_trimmed))
    return tuple(out)
