"""Circuits at work: the metric when only some edges carry what they should.

1. One pass of the clean prompts. Every reader reads a stream of its own: the actual one, with the outputs of all writers
   that it is cut from exchanged for their ablated values,

       r_v = r + sum over u cut from v of (ablated_u - actual_u)          actual_u: in this very pass

2. Its norm and its projection are the model's own; queries, keys, values, MLP inputs and the last stream are replaced by
   what comes out. All edges kept: the clean run. All edges cut, `resample`: the corrupted run.
3. Ablated values: those of the corrupted run at the same position (`resample`), the mean over clean prompts, one for the
   first position and one for the rest (`mean`; first positions are attention sinks), or 0 (`zero`).
4. Circuits and prompts go through passes together, a row each. Under `resample` the tokens before the first difference of a
   pair are run once for all circuits: nothing differs there, whichever edges are cut.
5. A reader that is cut from most of what it could read is put together from what is left,

       r_v = sum over u cut from v of ablated_u + sum over u kept of actual_u + biases of attention,

   because a difference of large streams leaves rounding errors, which a norm makes as large as anything: without it, a
   reader that is cut from everything under `zero` reads noise. Few edges are added up one by one, many as a matrix product.

A head is exchanged before the norm that it shares with its layer, where there is one, and that norm is recomputed.

With classes of positions (`positions.py`) a reader is cut from what a writer wrote at one class. A prompt runs in a copy per
class; the stream is the same in all of them, and what is cut is so much smaller that changes are multiplied position by
position.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from assay.circuits.graph import LOGITS, READERS, Graph, graph_of
from assay.circuits.patch import first_difference
from assay.circuits.positions import copies, merged, padded, positions_of
from assay.circuits.writers import Block, Writers
from assay.data.metrics import kl
from assay.data.prepare import PreparedTask
from assay.errors import bad_argument
from assay.model.model import Model
from assay.model.readers import Readers
from assay.model.request import Prefix
from assay.model.run import Progress
from assay.sites import Site

ABLATIONS = ("resample", "mean", "zero")
MASKS = Sequence[Bool[Tensor, "writer reader"]]
FLOATS = 1 << 26  # of writers' changes held in one pass
WASTE = 0.25  # of the tokens of a pass: pairs that begin to differ elsewhere go along up to here
BEGUN_SHARE = 0.25  # of a prompt's tokens: fewer are not worth a pass of their own
BEGUN_TOKENS = 1 << 12  # of which the cache is kept for later passes
NEWEST = 3  # sums of ablated writers that are kept: readers of parallel blocks do not read their own layer
SPARSE = 0.1  # of the edges of some readers: up to here they are added up one by one
Values = dict[Site, Tensor]
Ablated = tuple[Values, Values]  # by writer's site: outputs of each, and what those of a block add together
Means = Mapping[Site, tuple[Tensor, Tensor]]


class Bench:
    """Runs circuits of one model on one task. Raises UsageError, or SiteError for a model without a graph.

    `means`: of `writer_means`, for mean ablation; from the task's own clean prompts where none are given.
    `reference`: logits of the clean run, where they are not those of the task's own clean prompts. `like`: a bench of the
    same model and pairs, which plain runs are taken from.
    """

    def __init__(
        self, model: Model, task: PreparedTask, graph: Graph | None = None, metric: str = "logit_diff",
        ablation: str = "resample", means: Means | None = None, reference: Tensor | None = None, like: "Bench | None" = None,
    ) -> None:  # fmt: skip
        if ablation not in ABLATIONS:
            raise bad_argument("ablation", ablation, ", ".join(ABLATIONS))
        self.model, self.task, self.metric, self.ablation = model, task, metric, ablation
        self.graph = graph_of(model) if graph is None else graph
        self.readers = model.readers()
        self.writers = Writers(model, self.readers)
        self.means = writer_means(model, task.clean, self.writers) if ablation == "mean" and means is None else means
        self.class_of = positions_of(task, self.graph.classes) if self.graph.classes else None
        self._reference = reference
        self._base: tuple[list[int], Ablated] | None = None
        self._kept: dict[str, np.ndarray] = {}
        if like is not None:
            self._reference = like.reference
            self._kept = {"clean": like.clean, "corrupted": like.corrupted}
        self._begun: dict[tuple[int, ...], Prefix] = {}

    @property
    def clean(self) -> Float[np.ndarray, " pair"]:
        """The metric of the clean run."""
        return self._once("clean", lambda: self._plain(self.task.clean))

    @property
    def corrupted(self) -> Float[np.ndarray, " pair"]:
        """The metric of the corrupted run."""
        return self._once("corrupted", lambda: self._plain(self.task.corrupted))

    @property
    def empty(self) -> Float[np.ndarray, " pair"]:
        """The metric with every edge cut."""
        if self.ablation == "resample":
            return self.corrupted
        return self._once("empty", lambda: self.scores([torch.zeros_like(self.graph.exists)])[0])

    def _once(self, name: str, measure: Callable[[], np.ndarray]) -> np.ndarray:
        if name not in self._kept:
            self._kept[name] = measure()
        return self._kept[name]

    def scores(self, masks: MASKS, progress: Progress | None = None) -> Float[np.ndarray, "circuit pair"]:
        """The metric with exactly the edges of each mask kept. `progress` is called with the circuits done."""
        return self.outputs(masks, (self.metric,), progress)[self.metric]

    def outputs(
        self, masks: MASKS, names: Sequence[str], progress: Progress | None = None
    ) -> dict[str, Float[np.ndarray, "circuit pair"]]:
        """Several metrics of the same passes: those of tasks, `kl` from the clean run, and `agree`, 1 where the most
        likely token is the clean run's."""
        found = {name: np.zeros((len(masks), len(self.task))) for name in names}
        metrics = {name: self._measure(name) for name in names}
        done = told = 0
        for rows in self._parts():
            base = self._ablated(rows)
            for circuits, pairs, begun in self._passes(len(masks), rows):
                logits = self._run(self._dropped(masks, circuits), pairs, base, rows, begun)
                for name, measure in metrics.items():
                    found[name][circuits, pairs] = measure(logits, torch.tensor(pairs)).double().cpu().numpy()
                done += len(pairs)
                if progress and done // len(self.task) > told:
                    progress(done // len(self.task) - told)
                    told = done // len(self.task)
        return found

    # metrics ---------------------------------------------------------------------------------

    def _plain(self, prompts: list[list[int]]) -> np.ndarray:
        reference = self.reference if self.metric == "kl" else None
        return self.model.score(prompts, self.task.metric(self.metric, reference)).double().numpy()

    @property
    def reference(self) -> Float[Tensor, "pair vocab"]:
        """Logits of the clean run."""
        if self._reference is None:
            self._reference = self.model.logits(self.task.clean).float()
        return self._reference

    def _measure(self, name: str) -> Any:
        if name == "agree":
            return lambda logits, rows: (logits.argmax(-1).cpu() == self.reference[rows].argmax(-1)).float()
        if name == "kl":
            return lambda logits, rows: kl(self.reference[rows].to(logits.device), logits)
        return self.task.metric(name)

    # parts -----------------------------------------------------------------------------------

    def _parts(self) -> list[list[int]]:
        """Pairs whose ablated values fit the memory budget together."""
        width = self.model.dims.d_model * len(self.writers.blocks)
        return _cut(self.task.clean, max(1, self.model.memory_budget // 4 // (4 * width)))

    def _passes(self, n_masks: int, rows: Sequence[int]) -> Iterator[tuple[list[int], list[int], list[int]]]:
        """(circuits, pairs) of the rows of every pass, and the pairs whose first tokens are run together for them."""
        cap = FLOATS // (self.writers.n * self.model.dims.d_model)  # tokens
        most = max(1, FLOATS // self.graph.exists.numel())
        for group in self._groups(rows):
            items = [(circuit, pair) for circuit in range(n_masks) for pair in group]
            start = self._start(group)
            for part in _cut([self.task.clean[pair][start:] for _, pair in items], cap, most):
                yield [items[place][0] for place in part], [items[place][1] for place in part], group

    def _groups(self, rows: Sequence[int]) -> list[list[int]]:
        """Pairs that begin to differ at about the same place; all of them where nothing is run before."""
        if self.ablation != "resample":
            return [list(rows)]
        out: list[list[int]] = []
        for row in sorted(rows, key=lambda row: (self._first(row), len(self.task.clean[row]))):
            ids, start = self.task.clean[row], self._first(out[-1][0]) if out else 0
            fits = out and sum(len(self.task.clean[other]) for other in out[-1]) + len(ids) <= BEGUN_TOKENS
            if not fits or self._first(row) - start > WASTE * (len(ids) - start):
                out.append([])
            out[-1].append(row)
        return out

    def _first(self, row: int) -> int:
        """The first position of a pair at which anything can differ; 0 unless its first tokens may be run apart."""
        clean, corrupted = self.task.clean[row], self.task.corrupted[row]
        if self.ablation != "resample" or not self.model.beginnable(len(clean)):
            return 0
        first = min(first_difference(clean, corrupted), len(clean) - 1)
        return first if first >= BEGUN_SHARE * len(clean) else 0

    def _start(self, group: Sequence[int]) -> int:
        return min(self._first(row) for row in group)

    def _begin(self, group: list[int]) -> Prefix:
        """What the first tokens of these pairs leave behind, run once for all circuits."""
        key = tuple(group)
        if key not in self._begun:
            if sum(prefix.length * len(pairs) for pairs, prefix in self._begun.items()) > BEGUN_TOKENS:
                self._begun.clear()
            self._begun[key] = self.model.begin(copies([self.task.clean[row] for row in group], self.graph), self._start(group))
        return self._begun[key]

    def _dropped(self, masks: MASKS, circuits: list[int]) -> Bool[Tensor, "reader row writer"]:
        """The edges that every row is without."""
        some = sorted(set(circuits))
        cut = torch.stack([(self.graph.exists & ~masks[circuit]).T for circuit in some], 1)
        return cut[:, [some.index(circuit) for circuit in circuits]] if len(circuits) > 1 else cut

    def _ablated(self, rows: list[int]) -> Ablated:
        """Writers' ablated outputs, (pair or 1, pos, ..), for these pairs; what those of every block add together."""
        if self._base is not None and self._base[0] == rows:
            return self._base[1]
        prompts = [self.task.corrupted[row] for row in rows]
        sites = self.writers.sites
        if self.ablation == "resample":
            acts = self.model.capture(prompts, sites)
            values = {site: acts[site] for site in sites}
        else:
            width = max(map(len, prompts))
            values = {site: self._constant(site, width) for site in sites}
        together = {}
        for block in self.writers.blocks:
            value = values[block.site].float()
            together[block.site] = block.together(value.flatten(0, 1)).unflatten(0, value.shape[:2])
        self._base = (list(rows), (values, together))
        return self._base[1]

    def _constant(self, site: Site, width: int) -> Tensor:
        if self.ablation == "mean":
            assert self.means is not None
            first, later = self.means[site]
            return torch.stack([first, *[later] * (width - 1)])[None]
        shape = self.model.feature_shape(site) or (self.model.dims.d_model,)
        return torch.zeros(1, width, *shape)

    # one pass --------------------------------------------------------------------------------

    @torch.no_grad()
    def _run(
        self, drop: Bool[Tensor, "reader row writer"], pairs: list[int], base: Ablated, rows: list[int], group: list[int]
    ) -> Tensor:
        prompts = [self.task.clean[pair] for pair in pairs]
        start, width = self._start(group), max(map(len, prompts))
        places = [rows.index(pair) for pair in pairs]
        values, together = ({site: x[:, start:width][places] if len(x) > 1 or len(rows) == 1 else x[:, start:width]
                             for site, x in part.items()} for part in base)  # fmt: skip
        parts = self.graph, self.readers, self.writers, drop.to(self.model.device), (values, together)
        run = _Cut(*parts)
        if self.class_of is not None:
            run = _CutAtClasses(*parts, padded([self.class_of[pair] for pair in pairs])[:, start:].to(self.model.device))
        begun = None
        if start:
            each = len(self.graph.classes) or 1
            begun = self._begin(group), [group.index(pair) * each + copy for pair in pairs for copy in range(each)]
        logits = self.model.walk(copies(prompts, self.graph), run.sites, run.visit, logits=True, begun=begun, made=run.made)
        assert logits is not None
        return logits[:: len(self.graph.classes) or 1]


def writer_means(model: Model, prompts: Sequence[list[int]], writers: Writers | None = None) -> Means:
    """(mean at the first position, mean over all later ones) of what every writer puts out, over prompts."""
    writers = Writers(model, model.readers()) if writers is None else writers
    sums: dict[Site, list[Tensor]] = {}
    counts = [0, 0]
    for rows in model.batches(list(prompts)):
        acts = model.capture([prompts[row] for row in rows], writers.sites)
        starts = torch.tensor([0, *acts.lengths[:-1]]).cumsum(0)
        counts = [counts[0] + len(rows), counts[1] + sum(acts.lengths) - len(rows)]
        for site in writers.sites:
            flat = acts.flat(site).double()
            first = flat[starts].sum(0)
            now = sums.setdefault(site, [torch.zeros_like(first), torch.zeros_like(first)])
            now[0] += first
            now[1] += flat.sum(0) - first
    return {site: ((a / counts[0]).float(), (b / max(1, counts[1])).float()) for site, (a, b) in sums.items()}


def _cut(prompts: Sequence[list[int]], tokens: int, most: int = 1 << 30) -> list[list[int]]:
    """Numbers of prompts, in order, at most `most`, that hold at most `tokens` padded tokens together."""
    out: list[list[int]] = []
    longest = 0
    for number, ids in enumerate(prompts):
        longest = max(longest, len(ids))
        if not out or (len(out[-1]) + 1) * longest > tokens or len(out[-1]) >= most:
            out.append([])
            longest = len(ids)
        out[-1].append(number)
    return out


@dataclass(eq=False)
class _Behind:
    """Writers behind a norm of their own: how what they put in front of it would change, what it would be with all of them
    ablated, (row or 1, pos, d_model), and what it is in this pass."""

    block: Block
    change: Tensor  # (row, writer, pos * d_model)
    bare: Tensor
    raw: Tensor | None = None

    def added(self, raw: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """What they add to the stream when this is what the norm reads."""
        norm = self.block.norm
        assert norm is not None
        like = norm.gain.dtype if norm.module is None else next(norm.module.parameters()).dtype
        return self.block.scale * norm(raw.to(like)).float()


class _Cut:
    """One pass in which readers are cut from writers: `drop` (reader, row, writer) is true where they are."""

    def __init__(self, graph: Graph, readers: Readers, writers: Writers, drop: Tensor, ablated: Ablated) -> None:
        self.graph, self.readers, self.writers, self.drop = graph, readers, writers, drop
        self.values, self.together = ablated
        self.streams: Values = {}
        self.change: Tensor | None = None  # (row, writer, pos * d_model); 0 for writers behind a norm of their own
        self.bare: dict[int, Tensor] = {0: drop.new_zeros((), dtype=torch.float)}  # see `_noted`
        self.normed: Values = {}  # what the heads of a layer read, by stream
        self.exists = graph.plain.exists.T.to(drop.device)
        self.behind: list[_Behind] = []
        self.known = 0  # writers that ran
        self.blocks = {block.site: block for block in writers.blocks}
        self.raw = {block.raw: block for block in writers.blocks if block.raw is not None}
        self.last = readers.stream(LOGITS)
        self.stream_sites = {readers.stream(reader) for reader in graph.readers}

    @property
    def sites(self) -> list[Site]:
        """Everything that is read or replaced."""
        reading = [Site(name, layer) for layer in range(self.graph.n_layers) for name in (*READERS, "mlp_in")]
        return list(dict.fromkeys([*self.stream_sites, *self.writers.sites, *self.raw, *reading]))

    @property
    def made(self) -> list[Site]:
        """Queries, keys and values of whole layers, which are put together without those of the model."""
        return [Site(name, layer) for layer in range(self.graph.n_layers) for name in READERS]

    def visit(self, site: Site, value: Tensor) -> Tensor | None:
        """The engine's callback: writers are noted, readers replaced."""
        if site in self.blocks:
            self._wrote(self.blocks[site], value)
        if site in self.raw:
            self._before_norm(self.raw[site], value)
        if site == self.last:
            return self._read(value, slice(self.graph.reader_number[LOGITS], None))[0].to(value.dtype)
        if site in self.stream_sites:
            self.streams[site] = self._one(value).clone()
        if site.name in READERS:
            return self._heads(site, value)
        return self._mlp(site, value) if site.name == "mlp_in" else None

    def _one(self, value: Tensor) -> Tensor:
        """The rows, without copies of them."""
        return value

    # writing ---------------------------------------------------------------------------------

    def _wrote(self, block: Block, value: Tensor) -> None:
        added, bare = self._noted(block, value)
        change = added.transpose(1, 2)  # (row, writer, pos, d)
        if self.change is None:
            shape = len(change), self.writers.n, change[0, 0].numel()
            self.change = change.new_zeros(shape) if self.raw else change.new_empty(shape)
        if block.norm is None:
            torch.mul(change, block.scale, out=self.change[:, block.slice].unflatten(2, change.shape[2:]))
        else:
            self.behind.append(_Behind(block, change.flatten(2), bare))

    def _noted(self, block: Block, value: Tensor) -> tuple[Float[Tensor, "row pos writer d_model"], Tensor]:
        """Changes of what these writers put in front of their norm, and the whole with all of them ablated. `bare` at n: what
        the first n writers add, all ablated, those behind norms left out; of the newest n."""
        ablated = self.values[block.site].to(value.device).float()  # (row or 1, pos, ..)
        change = ablated - self._one(value).float()
        bare = self.together[block.site].to(value.device)
        before, self.known = self.bare[self.known], block.first + block.n
        self.bare[self.known] = before + block.scale * bare if block.norm is None else before
        for old in list(self.bare)[:-NEWEST]:
            del self.bare[old]
        return block.before_norm(change.flatten(0, 1)).unflatten(0, change.shape[:2]), bare

    def _before_norm(self, block: Block, value: Tensor) -> None:
        for waiting in self.behind:
            if waiting.block is block:
                waiting.raw = value.float().clone()

    # reading ---------------------------------------------------------------------------------

    def _read(self, stream: Tensor, readers: slice) -> Float[Tensor, "reader row pos d_model"]:
        """What each of these readers, which could all read the same writers, reads."""
        n = int(self.exists[readers.start].sum())
        cut = self.drop[readers, :, :n]  # (reader, row, writer)
        if 2 * int(cut.sum()) <= cut.numel():
            return self._from_stream(stream.float(), cut)
        out = self.bare[n] - self._added(~cut).unflatten(2, stream.shape[1:])
        for waiting in self.behind:
            if waiting.block.first < n:
                out = out + waiting.added(waiting.bare - self._mixed(waiting, ~cut, stream))
        return out

    def _from_stream(self, stream: Tensor, cut: Bool[Tensor, "reader row writer"]) -> Tensor:
        out = stream + self._added(cut).unflatten(2, stream.shape[1:])
        for waiting in self.behind:
            if waiting.raw is not None and bool(cut[:, :, waiting.block.slice].any()):
                out = out + waiting.added(waiting.raw + self._mixed(waiting, cut, stream)) - waiting.added(waiting.raw)
        return out

    def _mixed(self, waiting: _Behind, edges: Tensor, like: Tensor) -> Float[Tensor, "reader row pos d_model"]:
        """The changes of these edges in front of a norm."""
        part = edges[:, :, waiting.block.slice].transpose(0, 1).float()
        return (part @ waiting.change).transpose(0, 1).unflatten(2, like.shape[1:])

    def _added(self, edges: Bool[Tensor, "reader row writer"]) -> Float[Tensor, "reader row pos_d"]:
        """The changes of these edges' writers, added up for every reader."""
        assert self.change is not None
        counts = edges.sum(2)
        if int(counts.sum()) > SPARSE * edges.numel():
            few = edges.flatten(0, 1).any(0).nonzero()[:, 0]
            few = few if 2 * len(few) < edges.shape[2] else slice(edges.shape[2])
            return torch.bmm(edges[:, :, few].transpose(0, 1).float(), self.change[:, few]).transpose(0, 1)
        _, row, writer = edges.nonzero(as_tuple=True)
        ends = counts.flatten().cumsum(0)
        number = row * self.change.shape[1] + writer
        total = nn.functional.embedding_bag(number, self.change.flatten(0, 1), ends - counts.flatten(), mode="sum")
        return total.unflatten(0, edges.shape[:2])

    def _heads(self, site: Site, value: Tensor) -> Tensor:
        """Queries, keys or values; what all heads of a layer read is put together when the first of the three is asked for."""
        assert site.layer is not None
        numbers, stream = self.graph.reader_number, Site("resid_pre", site.layer)
        first, n = numbers[Site(site.name, site.layer, 0)], value.shape[2]
        start = numbers[Site(READERS[0], site.layer, 0)]
        if stream not in self.normed:
            read = self._read(self.streams[stream], slice(start, numbers[Site("mlp_in", site.layer)]))
            self.normed = {stream: self.readers.norm(site)(read.to(value.dtype))}  # (head, row, pos, d)
        made = self.normed[stream][first - start : first - start + n].flatten(1, 2)
        return self.readers.projection(site.name, site.layer)(made.transpose(0, 1)).unflatten(0, value.shape[:2])

    def _mlp(self, site: Site, value: Tensor) -> Tensor:
        number = self.graph.reader_number[site]
        read = self._read(self.streams[self.readers.stream(site)], slice(number, number + 1))[0]
        return self.readers.norm(site)(read.to(value.dtype))


class _CutAtClasses(_Cut):
    """The same where nodes are at classes of positions: `of` (row, pos). Rows come in copies, one per class that looks at
    keys and values. Changes are (row, pos, writer, d_model), of the plain graph's writers."""

    def __init__(
        self, graph: Graph, readers: Readers, writers: Writers, drop: Tensor, ablated: Ablated, of: Int[Tensor, "row pos"]
    ) -> None:
        super().__init__(graph, readers, writers, drop, ablated)
        self.drop = drop.permute(1, 2, 0).float()  # (row, writer, reader)
        self.of, self.n = of, len(graph.classes)
        self.at = torch.arange(len(of), device=of.device)[:, None]

    def visit(self, site: Site, value: Tensor) -> Tensor | None:
        """The engine's callback: the copies of what heads put out are made one."""
        if site.name == "z":
            value = merged(value, self.of, self.n)
            self._wrote(self.blocks[site], value)
            return value
        if site == self.last:
            cut = self.drop[:, : self.known * self.n, -1].unflatten(1, (-1, self.n))  # (row, writer, class)
            each = cut.transpose(1, 2)[self.at, self.of][:, :, None]
            read = self._changed(value[:: self.n], each, slice(len(self.exists) - 1, None))[:, :, 0]
            return self._all(read).to(value.dtype)
        return super().visit(site, value)

    def _one(self, value: Tensor) -> Tensor:
        return value[:: self.n]

    def _all(self, x: Tensor) -> Tensor:
        return x.repeat_interleave(self.n, 0)

    def _wrote(self, block: Block, value: Tensor) -> None:
        added, bare = self._noted(block, value)
        if self.change is None:
            self.change = added.new_zeros(*added.shape[:2], self.writers.n, added.shape[3])
        if block.norm is None:
            self.change[:, :, block.slice] = block.scale * added
        else:
            self.behind.append(_Behind(block, added, bare))

    def _before_norm(self, block: Block, value: Tensor) -> None:
        super()._before_norm(block, value[:: self.n])

    def _changed(
        self, stream: Float[Tensor, "row pos d"], cut: Float[Tensor, "row pos reader writer"], readers: slice
    ) -> Float[Tensor, "row pos reader d"]:
        """What readers of the plain graph read; see `_read`."""
        assert self.change is not None
        n = int(self.exists[readers.start].sum())
        cut = cut[..., :n]
        if 2 * float(cut.sum()) <= cut.numel():
            out = stream.float()[:, :, None] + cut @ self.change[:, :, :n]
            for waiting in self.behind:
                part = cut[..., waiting.block.slice]
                if waiting.raw is not None and bool(part.any()):
                    raw = waiting.raw[:, :, None]
                    out = out + waiting.added(raw + part @ waiting.change) - waiting.added(raw)
            return out
        kept = 1 - cut
        out = self.bare[n][:, :, None] - kept @ self.change[:, :, :n]
        for waiting in self.behind:
            if waiting.block.first < n:
                out = out + waiting.added(waiting.bare[:, :, None] - kept[..., waiting.block.slice] @ waiting.change)
        return out

    def _drops(self, readers: slice) -> Float[Tensor, "row class looks reader writer"]:
        """Cut edges into some of the plain graph's readers: from writers at a class, to readers at another."""
        part = self.drop[:, : self.known * self.n, readers.start * self.n : readers.stop * self.n]
        return part.unflatten(2, (-1, self.n)).unflatten(1, (-1, self.n)).permute(0, 2, 4, 3, 1)

    def _heads(self, site: Site, value: Tensor) -> Tensor:
        assert site.layer is not None
        first = self.graph.plain.reader_number[Site(site.name, site.layer, 0)]
        cut = self._drops(slice(first, first + value.shape[2]))
        if site.name == "q":
            each = cut[self.at, self.of, self.of]  # (row, pos, head, writer)
        else:
            each = cut[self.at, self.of].flatten(2, 3)  # (row, pos, class that looks and head, writer)
        read = self._changed(self.streams[Site("resid_pre", site.layer)], each, slice(first, first + value.shape[2]))
        normed = self.readers.norm(site)(read.to(value.dtype))
        made = normed.unflatten(2, (-1, value.shape[2])).transpose(1, 2).flatten(0, 2)  # (row class pos, head, d)
        out = self.readers.projection(site.name, site.layer)(made).unflatten(0, (-1, value.shape[1]))
        return self._all(out) if site.name == "q" else out

    def _mlp(self, site: Site, value: Tensor) -> Tensor:
        number = self.graph.plain.reader_number[site]
        cut = self._drops(slice(number, number + 1))[self.at, self.of, self.of]  # (row, pos, 1, writer)
        read = self._changed(self.streams[self.readers.stream(site)], cut, slice(number, number + 1))[:, :, 0]
        return self._all(self.readers.norm(site)(read.to(value.dtype)))
