"""Circuits at work: the metric when only some edges carry what they should.

1. One pass of the clean prompts. Every reader reads a stream of its own: the actual one, with the outputs of all writers
   that it is cut from exchanged for their ablated values,

       r_v = r + sum over u cut from v of (ablated_u - actual_u)          actual_u: in this very pass

2. Its norm and its projection are the model's own; queries, keys, values, MLP inputs and the last stream are replaced by
   what comes out. All edges kept: the clean run. All edges cut, `resample`: the corrupted run.
3. Ablated values: those of the corrupted run at the same position (`resample`), the mean over clean prompts, one for the
   first position and one for the rest (`mean`; first positions are attention sinks), or 0 (`zero`).
4. Many circuits go through one pass, a row each. Where they share a prompt, and ablation is `resample`, the tokens before the
   first difference are run once: nothing differs there, whichever edges are cut.

A head is exchanged before the norm that it shares with its layer, where there is one, and that norm is recomputed.

With classes of positions (`positions.py`) a reader is cut from what a writer wrote at one class. A prompt runs in a copy per
class; the stream is the same in all of them, and what is cut is so much smaller that changes are multiplied position by
position.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from assay.circuits.graph import LOGITS, READERS, Graph, graph_of
from assay.circuits.patch import first_difference
from assay.circuits.positions import copies, merged, padded, positions_of
from assay.circuits.writers import Block, Writers
from assay.data.metrics import kl
from assay.data.prepare import PreparedTask
from assay.errors import bad_argument
from assay.model.model import Model
from assay.model.readers import Readers
from assay.model.run import Progress
from assay.sites import Site

ABLATIONS = ("resample", "mean", "zero")
MASKS = Sequence[Bool[Tensor, "writer reader"]]
FLOATS = 1 << 26  # of writers' changes held in one pass
SHARE_FROM = 3  # circuits per prompt from which on its first tokens are run once
Values = dict[Site, Tensor]
Means = Mapping[Site, tuple[Tensor, Tensor]]


class Bench:
    """Runs circuits of one model on one task. Raises UsageError, or SiteError for a model without a graph.

    `means`: of `writer_means`, for mean ablation; from the task's own clean prompts where none are given.
    `reference`: logits of the clean run, where they are not those of the task's own clean prompts.
    """

    def __init__(
        self, model: Model, task: PreparedTask, graph: Graph | None = None, metric: str = "logit_diff",
        ablation: str = "resample", means: Means | None = None, reference: Tensor | None = None,
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
        self._base: tuple[list[int], Values] | None = None
        self._kept: dict[str, np.ndarray] = {}

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

    def scores(
        self, masks: MASKS, progress: Progress | None = None, together: bool | None = None
    ) -> Float[np.ndarray, "circuit pair"]:
        """The metric with exactly the edges of each mask kept. `progress` is called with the circuits done.

        `together`: circuits in one pass and pairs one after the other (True), or the reverse (False); None: as is faster.
        """
        return self.outputs(masks, (self.metric,), progress, together)[self.metric]

    def outputs(
        self, masks: MASKS, names: Sequence[str], progress: Progress | None = None, together: bool | None = None
    ) -> dict[str, Float[np.ndarray, "circuit pair"]]:
        """Several metrics of the same passes: those of tasks, `kl` from the clean run, and `agree`, 1 where the most
        likely token is the clean run's."""
        together = len(masks) >= SHARE_FROM and self.ablation == "resample" if together is None else together
        found = {name: np.zeros((len(masks), len(self.task))) for name in names}
        metrics = {name: self._measure(name) for name in names}
        done = told = 0
        for rows in self._parts():
            base = self._ablated(rows)
            for circuits, pairs in self._tiles(len(masks), rows, together):
                drop = torch.stack([self.graph.exists & ~masks[circuit] for circuit in circuits]).float()
                logits = self._run(drop, pairs, base, rows)
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

    def _tiles(self, n_masks: int, rows: Sequence[int], together: bool) -> list[tuple[list[int], list[int]]]:
        """(circuits, pairs) of every pass: the same prompt in all rows where enough circuits share it."""
        first = self._first
        out: list[tuple[list[int], list[int]]] = []
        cap = FLOATS // (self.writers.n * self.model.dims.d_model)  # tokens
        most = max(1, FLOATS // self.graph.exists.numel())
        if together:
            for row in rows:
                at_once = min(most, max(1, cap // max(1, len(self.task.clean[row]) - first(row))))
                for start in range(0, n_masks, at_once):
                    circuits = list(range(start, min(start + at_once, n_masks)))
                    out.append((circuits, [row] * len(circuits)))
            return out
        for circuit in range(n_masks):
            for part in _cut([self.task.clean[row] for row in rows], cap, most):
                out.append(([circuit] * len(part), [rows[place] for place in part]))
        return out

    def _first(self, row: int) -> int:
        """The first position of a pair at which anything can differ; 0 unless its prefix may be run apart."""
        clean, corrupted = self.task.clean[row], self.task.corrupted[row]
        if self.ablation != "resample" or not self.model.shareable(len(clean)):
            return 0
        return first_difference(clean, corrupted)

    def _ablated(self, rows: list[int]) -> Values:
        """Writers' ablated outputs, (pair, pos, ..), for these pairs."""
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
        self._base = (list(rows), values)
        return values

    def _constant(self, site: Site, width: int) -> Tensor:
        if self.ablation == "mean":
            assert self.means is not None
            first, later = self.means[site]
            return torch.stack([first, *[later] * (width - 1)])[None]
        shape = self.model.feature_shape(site) or (self.model.dims.d_model,)
        return torch.zeros(1, width, *shape)

    # one pass --------------------------------------------------------------------------------

    @torch.no_grad()
    def _run(self, drop: Float[Tensor, "row writer reader"], pairs: list[int], base: Values, rows: list[int]) -> Tensor:
        prompts = [self.task.clean[pair] for pair in pairs]
        same = len(pairs) > 1 and len(set(pairs)) == 1
        shared = self._first(pairs[0]) if same else 0
        shared = min(shared, len(prompts[0]) - 1)
        width = max(map(len, prompts))
        places = [rows.index(pair) for pair in pairs]
        values = {site: (x[places] if len(x) > 1 or len(rows) == 1 else x)[:, shared:width] for site, x in base.items()}
        parts = self.graph, self.readers, self.writers, drop.to(self.model.device), values
        run = _Cut(*parts)
        if self.class_of is not None:
            run = _CutAtClasses(*parts, padded([self.class_of[pair] for pair in pairs])[:, shared:].to(self.model.device))
        logits = self.model.walk(copies(prompts, self.graph), run.sites, run.visit, logits=True, shared=shared)
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
    """Writers behind a norm of their own: what they would change before it, and what it reads in this pass."""

    block: Block
    change: Tensor  # (row, writer, pos * d_model)
    raw: Tensor | None = None


class _Cut:
    """One pass in which readers are cut from writers: `drop` (row, writer, reader) is 1 where they are."""

    def __init__(self, graph: Graph, readers: Readers, writers: Writers, drop: Tensor, values: Values) -> None:
        self.graph, self.readers, self.writers, self.drop, self.values = graph, readers, writers, drop, values
        self.streams: Values = {}
        self.change: Tensor | None = None  # (row, writer, pos * d_model); 0 for writers behind a norm of their own
        self.total: Tensor | None = None  # its sum over writers
        self.exists = graph.exists.to(drop)
        self.behind: list[_Behind] = []
        self.known = 0
        self.blocks = {block.site: block for block in writers.blocks}
        self.raw = {block.raw: block for block in writers.blocks if block.raw is not None}
        self.last = readers.stream(LOGITS)
        self.stream_sites = {readers.stream(reader) for reader in graph.readers}

    @property
    def sites(self) -> list[Site]:
        """Everything that is read or replaced."""
        reading = [Site(name, layer) for layer in range(self.graph.n_layers) for name in (*READERS, "mlp_in")]
        return list(dict.fromkeys([*self.stream_sites, *self.writers.sites, *self.raw, *reading]))

    def visit(self, site: Site, value: Tensor) -> Tensor | None:
        """The engine's callback: writers are noted, readers replaced."""
        if site in self.blocks:
            self._wrote(self.blocks[site], value)
        if site in self.raw:
            self._before_norm(self.raw[site], value)
        if site == self.last:
            return self._read(value, slice(self.graph.reader_number[LOGITS], None))[:, 0].to(value.dtype)
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
        change = self.values[block.site].to(value.device).float() - value.float()  # (row, pos, ..)
        added = block.before_norm(change.flatten(0, 1)).unflatten(0, change.shape[:2])  # (row, pos, writer, d)
        if block.norm is not None:
            self.behind.append(_Behind(block, added.transpose(1, 2).flatten(2)))
            return
        rows, width, n, d = added.shape
        if self.change is None:
            self.change = added.new_zeros(rows, self.writers.n, width * d)
            self.total = added.new_zeros(rows, width * d)
        assert self.total is not None
        written = (added if block.scale == 1.0 else block.scale * added).transpose(1, 2).flatten(2)
        self.change[:, block.slice] = written
        self.total += written.sum(1)
        self.known = block.first + n

    def _before_norm(self, block: Block, value: Tensor) -> None:
        for waiting in self.behind:
            if waiting.block is block:
                waiting.raw = value.float().clone()

    # reading ---------------------------------------------------------------------------------

    def _read(self, stream: Tensor, readers: slice) -> Float[Tensor, "row reader pos d_model"]:
        """What each of these readers reads."""
        rows, width, d = stream.shape
        cut = self.drop[:, :, readers].transpose(1, 2)  # (row, reader, writer)
        out = stream.float()[:, None].flatten(2)
        if self.change is not None and self.total is not None:
            exists, gone = self.exists[: self.known, readers].T, cut[:, :, : self.known]
            kept = exists - gone
            if bool(exists.all()) and 2 * len(few := _writers(kept)) < self.known:  # all cut, but for a few
                whole = (out + self.total[:, None]).expand(-1, cut.shape[1], -1)
                out = torch.baddbmm(whole, kept[:, :, few], self.change[:, few], alpha=-1)
            else:
                few = _writers(gone)
                few = few if 2 * len(few) < self.known else slice(self.known)
                out = torch.baddbmm(out.expand(-1, cut.shape[1], -1), gone[:, :, few], self.change[:, few])
        out = out.expand(-1, cut.shape[1], -1)
        for waiting in self.behind:
            part = cut[:, :, waiting.block.slice]
            if waiting.raw is not None and bool(part.any()):
                out = out + self._through_norm(waiting, part)
        return out.unflatten(2, (width, d))

    def _through_norm(self, waiting: _Behind, cut: Tensor) -> Tensor:
        norm, raw = waiting.block.norm, waiting.raw
        assert norm is not None and raw is not None
        mixed = raw[:, None] + (cut @ waiting.change).unflatten(2, raw.shape[1:])
        like = norm.gain.dtype if norm.module is None else next(norm.module.parameters()).dtype
        change = norm(mixed.to(like)).float() - norm(raw.to(like)).float()[:, None]
        return (waiting.block.scale * change).flatten(2)

    def _heads(self, site: Site, value: Tensor) -> Tensor:
        assert site.layer is not None
        first = self.graph.reader_number[Site(site.name, site.layer, 0)]
        readers = slice(first, first + value.shape[2])
        read = self._read(self.streams[Site("resid_pre", site.layer)], readers)
        normed = self.readers.norm(site)(read.to(value.dtype))  # (row, head, pos, d)
        projection = self.readers.projection(site.name, site.layer)
        made = normed.transpose(1, 2).flatten(0, 1)
        return projection(made).unflatten(0, value.shape[:2])

    def _mlp(self, site: Site, value: Tensor) -> Tensor:
        number = self.graph.reader_number[site]
        read = self._read(self.streams[self.readers.stream(site)], slice(number, number + 1))[:, 0]
        return self.readers.norm(site)(read.to(value.dtype))


def _writers(edges: Float[Tensor, "row reader writer"]) -> Int[Tensor, " some"]:
    """Writers that have any of these edges."""
    return edges.flatten(0, 1).any(0).nonzero()[:, 0]


class _CutAtClasses(_Cut):
    """The same where nodes are at classes of positions: `of` (row, pos). Rows come in copies, one per class that looks at
    keys and values. Changes are (row, pos, writer, d_model), of the plain graph's writers."""

    def __init__(
        self, graph: Graph, readers: Readers, writers: Writers, drop: Tensor, values: Values, of: Int[Tensor, "row pos"]
    ) -> None:
        super().__init__(graph, readers, writers, drop, values)
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
            read = self._changed(value[:: self.n], cut.transpose(1, 2)[self.at, self.of][:, :, None])[:, :, 0]
            return self._all(read).to(value.dtype)
        return super().visit(site, value)

    def _one(self, value: Tensor) -> Tensor:
        return value[:: self.n]

    def _all(self, x: Tensor) -> Tensor:
        return x.repeat_interleave(self.n, 0)

    def _wrote(self, block: Block, value: Tensor) -> None:
        change = self.values[block.site].to(value.device).float() - value[:: self.n].float()  # (row, pos, ..)
        added = block.before_norm(change.flatten(0, 1)).unflatten(0, change.shape[:2])  # (row, pos, writer, d)
        if self.change is None:
            self.change = added.new_zeros(*added.shape[:2], self.writers.n, added.shape[3])
        self.known = block.first + block.n
        if block.norm is None:
            self.change[:, :, block.slice] = block.scale * added
        else:
            self.behind.append(_Behind(block, added))

    def _before_norm(self, block: Block, value: Tensor) -> None:
        super()._before_norm(block, value[:: self.n])

    def _changed(self, stream: Float[Tensor, "row pos d"], cut: Float[Tensor, "row pos reader writer"]) -> Tensor:
        """(row, pos, reader, d_model) of what readers read."""
        out = stream.float()[:, :, None].expand(-1, -1, cut.shape[2], -1)
        if self.change is not None:
            out = out + cut @ self.change[:, :, : self.known]
        for waiting in self.behind:
            part = cut[..., waiting.block.slice]
            if waiting.raw is not None and bool(part.any()):
                out = out + self._through_norm_at(waiting, part)
        return out

    def _through_norm_at(self, waiting: _Behind, cut: Tensor) -> Tensor:
        norm, raw = waiting.block.norm, waiting.raw
        assert norm is not None and raw is not None
        like = norm.gain.dtype if norm.module is None else next(norm.module.parameters()).dtype
        mixed = raw[:, :, None] + cut @ waiting.change
        return waiting.block.scale * (norm(mixed.to(like)).float() - norm(raw.to(like)).float()[:, :, None])

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
        read = self._changed(self.streams[Site("resid_pre", site.layer)], each)
        normed = self.readers.norm(site)(read.to(value.dtype))
        made = normed.unflatten(2, (-1, value.shape[2])).transpose(1, 2).flatten(0, 2)  # (row class pos, head, d)
        out = self.readers.projection(site.name, site.layer)(made).unflatten(0, (-1, value.shape[1]))
        return self._all(out) if site.name == "q" else out

    def _mlp(self, site: Site, value: Tensor) -> Tensor:
        number = self.graph.plain.reader_number[site]
        cut = self._drops(slice(number, number + 1))[self.at, self.of, self.of]  # (row, pos, 1, writer)
        read = self._changed(self.streams[self.readers.stream(site)], cut)[:, :, 0]
        return self._all(self.readers.norm(site)(read.to(value.dtype)))
