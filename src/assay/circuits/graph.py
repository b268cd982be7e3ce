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
Grouped queries stay grouped: a key head is one reader, not one per query head. Units inside an MLP
(`mlp_act.L.N`) and latents of dictionaries are writers of the same kind, with the same records.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from assay.errors import SiteError, bad_argument
from assay.model.model import Model
from assay.sites import Site, parse_site

EMBED, LOGITS = Site("embed"), Site("logits")
READERS = ("q", "k", "v")
ARROW = "->"


@dataclass(frozen=True)
class Edge:
    """One connection through the residual stream."""

    writer: Site
    reader: Site

    def __str__(self) -> str:
        return f"{self.writer}{ARROW}{self.reader}"


@dataclass(frozen=True)
class Graph:
    """Writers and readers of one model in the order they run. Edges are cells of a writer x reader matrix."""

    writers: tuple[Site, ...]
    readers: tuple[Site, ...]
    parallel: tuple[bool, ...]
    n_heads: int
    n_kv_heads: int

    @property
    def n_layers(self) -> int:
        return len(self.parallel)

    @cached_property
    def exists(self) -> Bool[Tensor, "writer reader"]:
        """Which cells are edges."""
        wrote = torch.tensor([self._wrote(site) for site in self.writers])
        reads = torch.tensor([self._reads(site) for site in self.readers])
        return wrote[:, None] <= reads[None]

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
        if isinstance(text, Edge):
            text = str(text)
        ends = str(text).split(ARROW)
        if len(ends) != 2:
            raise bad_argument("edge", text, "WRITER->READER, e.g. z.3.1->q.5.2")
        writer, reader = (parse_site(end.strip()) for end in ends)
        for site, known, what in ((writer, self.writer_number, "writer"), (reader, self.reader_number, "reader")):
            if site not in known:
                kinds = "embed, z.L.H, mlp_out.L" if what == "writer" else "q.L.H, k.L.H, v.L.H, mlp_in.L, logits"
                raise bad_argument("edge", text, f"a {what} of this model: {kinds}")
        cell = self.writer_number[writer], self.reader_number[reader]
        if not self.exists[cell]:
            raise bad_argument("edge", text, "a writer that comes before its reader")
        return cell

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
            return (Site("mlp_out", reader.layer),)
        assert reader.index is not None
        group = 1 if reader.name == "q" else self.n_heads // self.n_kv_heads
        return tuple(Site("z", reader.layer, head) for head in range(reader.index * group, (reader.index + 1) * group))

    def readers_of(self, writer: Site) -> tuple[Site, ...]:
        """The readers that feed a writer; none for embed."""
        if writer == EMBED:
            return ()
        if writer.name == "mlp_out":
            return (Site("mlp_in", writer.layer),)
        assert writer.index is not None
        shared = writer.index // (self.n_heads // self.n_kv_heads)
        return (Site("q", writer.layer, writer.index), Site("k", writer.layer, shared), Site("v", writer.layer, shared))

    def _wrote(self, site: Site) -> int:
        if site == EMBED:
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


def graph_of(model: Model) -> Graph:
    """The graph of a model. Raises SiteError where a block has no heads or MLP that were proved."""
    dims, layers = model.dims, range(model.n_layers)
    needed = [Site(name, layer) for layer in layers for name in ("q", "k", "v", "z", "mlp_in", "mlp_out")]
    try:
        model.sites(needed)
    except SiteError as error:
        raise SiteError(f"{model.name} has no graph of edges: {error} Nodes can still be patched one by one.") from error
    parallel = tuple(Site("resid_mid", layer) not in model.layout.points for layer in layers)
    return make_graph(dims.n_heads, dims.n_kv_heads, parallel)


def make_graph(n_heads: int, n_kv_heads: int, parallel: Sequence[bool]) -> Graph:
    """The graph of a model with these sizes; `parallel` says it of every layer."""
    layers = range(len(parallel))
    writers = [EMBED]
    readers: list[Site] = []
    for layer in layers:
        writers += [*(Site("z", layer, head) for head in range(n_heads)), Site("mlp_out", layer)]
        sizes = {"q": n_heads, "k": n_kv_heads, "v": n_kv_heads}
        readers += [Site(name, layer, head) for name in READERS for head in range(sizes[name])]
        readers.append(Site("mlp_in", layer))
    return Graph(tuple(writers), (*readers, LOGITS), tuple(parallel), n_heads, n_kv_heads)
