"""The computation graph of a transformer: who writes to the residual stream, who reads it, and every edge between.

    writers   embed                 all that enters the first block
              z.L.H, mlp_out.L      what a head, or an MLP, adds to the stream
    readers   q.L.H, k.L.H, v.L.H   the query, key or value of a head (keys and values per KV head)
              mlp_in.L, logits      an MLP, and the unembedding
    edges     every writer to every reader that comes after it

Attention reads what earlier layers wrote; an MLP reads the heads of its own layer as well, unless the block is
parallel; logits read everything. With L layers of H heads and K KV heads, a sequential model has
1 + L (H + 1) writers, L (H + 2K + 1) + 1 readers and

    L (L-1)/2 (H + 1)(H + 2K + 1)  +  L (H + 2K + 1)  +  L H  +  1 + L (H + 1)        edges

(layer to later layer; embed to layer; heads to their own MLP; all to logits); a parallel one lacks the L H.
Grouped queries stay grouped: a key head is one reader, not one per query head.

With C *classes of positions* (`positions.py`) every node is one per class, `z.3.1@subject`, but the logits, which read the
last position alone, class `end`. A writer at a class is what it writes there. A query or an MLP reads where it is; a key or
value at class d is the one that heads *at d* look at, wherever it was written, so that its edges go between classes,

    embed@subject->v.5.0@end      what stands at the subject, as head 5.0 takes it from there to the end

With E_q, E_m, E_kv, E_l the edges above that go into queries, MLPs, keys and values, and the logits, there are

    C (E_q + E_m)  +  (C (C - 1) + 1) E_kv  +  E_l        edges

(nothing but the end looks at the end). Cutting an edge out of all classes into all classes is cutting it in the plain graph.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from assay.errors import SiteError, UsageError, bad_argument
from assay.model.model import Model
from assay.sites import Site, parse_site

EMBED, LOGITS = Site("embed"), Site("logits")
READERS = ("q", "k", "v")
ARROW, AT = "->", "@"
REST, END = "rest", "end"  # classes that every graph with classes has


@dataclass(frozen=True)
class Node(Site):
    """A writer or reader at one class of positions, z.3.1@subject."""

    at: str = ""

    def __str__(self) -> str:
        return f"{Site.__str__(self)}{AT}{self.at}"


def parse_node(text: "str | Site") -> Site:
    """A writer or reader by name, with its class where it has one. Raises SiteError for what is no site."""
    if isinstance(text, Site):
        return text
    name, at, where = str(text).strip().partition(AT)
    return at_class(parse_site(name), where) if at else parse_site(name)


def at_class(site: Site, where: str) -> Site:
    """The node of a site at a class of positions; the logits are read at the end alone and stay what they are."""
    return site if site == LOGITS else Node(site.name, site.layer, site.index, site.path, where)


def site_of(node: Site) -> Site:
    """A node's site, wherever it is."""
    return Site(node.name, node.layer, node.index, node.path)


@dataclass(frozen=True)
class Edge:
    """One connection through the residual stream."""

    writer: Site
    reader: Site

    def __str__(self) -> str:
        return f"{self.writer}{ARROW}{self.reader}"


@dataclass(frozen=True)
class Graph:
    """Writers and readers of one model in the order they run. Edges are cells of a writer x reader matrix. `classes` of
    positions: node i of the plain graph is nodes i C to i C + C - 1 here, one per class in this order."""

    writers: tuple[Site, ...]
    readers: tuple[Site, ...]
    parallel: tuple[bool, ...]
    n_heads: int
    n_kv_heads: int
    classes: tuple[str, ...] = ()

    @property
    def n_layers(self) -> int:
        return len(self.parallel)

    @cached_property
    def exists(self) -> Bool[Tensor, "writer reader"]:
        """Which cells are edges."""
        wrote = torch.tensor([self._wrote(site) for site in self.writers])
        reads = torch.tensor([self._reads(site) for site in self.readers])
        before = wrote[:, None] <= reads[None]
        return before & self._meet() if self.classes else before

    @cached_property
    def plain(self) -> "Graph":
        """The graph without classes."""
        return make_graph(self.n_heads, self.n_kv_heads, self.parallel)

    @cached_property
    def entries(self) -> list[int]:
        """Numbers of the writers that nothing feeds: the embedding, at every class."""
        return [number for number, site in enumerate(self.writers) if site.name == "embed"]

    @property
    def n_edges(self) -> int:
        return int(self.exists.sum())

    @cached_property
    def cells(self) -> Int[Tensor, "edge 2"]:
        """(writer, reader) numbers of every edge, readers in order."""
        return self.exists.T.nonzero()[:, [1, 0]]

    @cached_property
    def writer_number(self) -> dict[Site, int]:
        return {site: number for number, site in enumerate(self.writers)}

    @cached_property
    def reader_number(self) -> dict[Site, int]:
        return {site: number for number, site in enumerate(self.readers)}

    def edge(self, text: "str | Edge") -> tuple[int, int]:
        """(writer, reader) numbers of an edge "z.3.1->q.5.2". Raises UsageError for what is none."""
        if isinstance(text, Edge) and text.writer in self.writer_number and text.reader in self.reader_number:
            cell = self.writer_number[text.writer], self.reader_number[text.reader]
            return self._checked(cell, text)
        text = str(text)
        ends = text.split(ARROW)
        if len(ends) != 2:
            raise bad_argument("edge", text, "WRITER->READER, e.g. z.3.1->q.5.2")
        writer, reader = (self._node(end, text) for end in ends)
        for site, known, what in ((writer, self.writer_number, "writer"), (reader, self.reader_number, "reader")):
            if site not in known:
                kinds = "embed, z.L.H, mlp_out.L" if what == "writer" else "q.L.H, k.L.H, v.L.H, mlp_in.L, logits"
                raise bad_argument("edge", text, f"a {what} of this model: {kinds}", self._hint)
        return self._checked((self.writer_number[writer], self.reader_number[reader]), text)

    def _checked(self, cell: tuple[int, int], text: "str | Edge") -> tuple[int, int]:
        if not self.exists[cell]:
            where = " and is read at its class (keys and values: at any, but only the end looks at the end)"
            raise bad_argument("edge", text, f"a writer that comes before its reader{where if self.classes else ''}")
        return cell

    def _node(self, name: str, text: str) -> Site:
        site = parse_node(name)
        if isinstance(site, Node) and site.at not in self.classes:
            got = ", ".join(self.classes) or "none: this graph has no classes of positions"
            raise bad_argument("edge", text, f"classes of positions of this graph: {got}")
        return site

    @property
    def _hint(self) -> str:
        return f"Each with a class of positions, z.3.1{AT}CLASS: {', '.join(self.classes)}." if self.classes else ""

    def name(self, cell: Sequence[int]) -> Edge:
        """The edge of a cell."""
        return Edge(self.writers[cell[0]], self.readers[cell[1]])

    def mask(self, edges: Iterable["str | Edge"]) -> Bool[Tensor, "writer reader"]:
        """The edges as a matrix."""
        out = torch.zeros_like(self.exists)
        for edge in edges:
            out[self.edge(edge)] = True
        return out

    def edges(self, mask: Bool[Tensor, "writer reader"]) -> list[Edge]:
        """The edges of a matrix, readers in order."""
        return [self.name(cell) for cell in (mask & self.exists).T.nonzero()[:, [1, 0]].tolist()]

    def node_mask(self, writers: Iterable[Site]) -> Bool[Tensor, "writer reader"]:
        """Every edge out of these writers: a circuit of nodes as a circuit of edges."""
        out = torch.zeros_like(self.exists)
        for writer in writers:
            out[self.writer_number[writer]] = True
        return out & self.exists

    def node_of(self, reader: Site) -> tuple[Site, ...]:
        """The writers a reader belongs to: a query its head, a key or value the heads of its group; none for logits."""
        if reader == LOGITS:
            return ()
        if reader.name == "mlp_in":
            return (replace(reader, name="mlp_out"),)
        assert reader.index is not None
        group = 1 if reader.name == "q" else self.n_heads // self.n_kv_heads
        heads = range(reader.index * group, (reader.index + 1) * group)
        return tuple(replace(reader, name="z", index=head) for head in heads)

    def readers_of(self, writer: Site) -> tuple[Site, ...]:
        """The readers that feed a writer; none for embed."""
        if writer.name == "embed":
            return ()
        if writer.name == "mlp_out":
            return (replace(writer, name="mlp_in"),)
        assert writer.index is not None
        shared = writer.index // (self.n_heads // self.n_kv_heads)
        key, value = (replace(writer, name=name, index=shared) for name in ("k", "v"))
        return (replace(writer, name="q"), key, value)

    def _meet(self) -> Bool[Tensor, "writer reader"]:
        """Which writers are at positions that these readers read."""
        wrote = torch.tensor([self.classes.index(site.at) for site in self.writers if isinstance(site, Node)])
        read = torch.tensor([self.classes.index(site.at) if isinstance(site, Node) else -1 for site in self.readers])
        looks = torch.tensor([site.name in ("k", "v") for site in self.readers])
        end = self.classes.index(END)
        own = wrote[:, None] == torch.where(read < 0, end, read)[None]
        return own | (looks & ((wrote[:, None] != end) | (read == end)[None]))

    def _wrote(self, site: Site) -> int:
        if site.name == "embed":
            return 0
        assert site.layer is not None
        return 2 * site.layer + (1 if site.name == "z" else 2)

    def _reads(self, site: Site) -> int:
        """Everything written up to this stage is read."""
        if site == LOGITS:
            return 2 * self.n_layers
        assert site.layer is not None
        own_heads = site.name == "mlp_in" and not self.parallel[site.layer]
        return 2 * site.layer + (1 if own_heads else 0)


def graph_of(model: Model, classes: Sequence[str] = ()) -> Graph:
    """The graph of a model, with nodes at these classes of positions if any. Raises SiteError where a block has no heads or
    MLP that were proved."""
    dims, layers = model.dims, range(model.n_layers)
    needed = [Site(name, layer) for layer in layers for name in ("q", "k", "v", "z", "mlp_in", "mlp_out")]
    try:
        model.sites(needed)
    except SiteError as error:
        raise SiteError(f"{model.name} has no graph of edges: {error} Nodes can still be patched one by one.") from error
    parallel = tuple(Site("resid_mid", layer) not in model.layout.points for layer in layers)
    return make_graph(dims.n_heads, dims.n_kv_heads, parallel, classes)


def make_graph(n_heads: int, n_kv_heads: int, parallel: Sequence[bool], classes: Sequence[str] = ()) -> Graph:
    """The graph of a model with these sizes; `parallel` says it of every layer. Raises UsageError for `classes` that are no
    names, or without `rest` and `end`."""
    _check_classes(classes)
    layers = range(len(parallel))
    writers = [EMBED]
    readers: list[Site] = []
    for layer in layers:
        writers += [*(Site("z", layer, head) for head in range(n_heads)), Site("mlp_out", layer)]
        sizes = {"q": n_heads, "k": n_kv_heads, "v": n_kv_heads}
        readers += [Site(name, layer, head) for name in READERS for head in range(sizes[name])]
        readers.append(Site("mlp_in", layer))
    if classes:
        writers, readers = ([at_class(site, where) for site in sites for where in classes] for sites in (writers, readers))
    return Graph(tuple(writers), (*readers, LOGITS), tuple(parallel), n_heads, n_kv_heads, tuple(classes))


def _check_classes(classes: Sequence[str]) -> None:
    odd = [name for name in classes if not name or set(name) & set(f"{AT}>,;") or name != name.strip()]
    if odd or len(set(classes)) < len(classes) or (classes and not {REST, END} <= set(classes)):
        raise UsageError(f"classes of positions: got {list(classes)}; allowed: different names without {AT}, > and commas,"
                         f" {REST!r} and {END!r} among them.")  # fmt: skip
