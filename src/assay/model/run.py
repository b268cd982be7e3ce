"""The one primitive: run the model on prompts, capture at sites, apply edits, stop early.

1. Prompts are sorted by length and cut into batches that fit the memory budget; batches are padded
   on the right, where causal attention cannot see, so real tokens compute what they compute alone.
2. No logits are made when nobody reads them; when only the last position is read, only that row
   goes through the unembedding.
3. A pass stops after the last site that is read, and may resume at a block whose input is cached.
4. Results come back in the caller's order, as owned copies.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from assay.errors import UsageError, bad_argument
from assay.model.activations import Activations, Collector
from assay.model.edits import Edit, Frame, Positions
from assay.model.hooks import Pass, StopPass, attached
from assay.model.layout import Layout
from assay.sites import Site

Metric = Callable[[Tensor, Tensor], Tensor]
LogitsAt = Literal["last", "all"] | None
Progress = Callable[[int], None]
BATCH_TOKENS = 2048  # more does not run faster on CPU or on small GPUs, it only takes memory


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Cached residual streams (resid_pre) of prompts, to resume later passes from any layer."""

    layers: tuple[int, ...]
    residuals: Activations
    index: tuple[int, ...]

    def select(self, rows: Sequence[int]) -> "Checkpoint":
        """The checkpoint of these prompts, in this order; repeats share memory."""
        return Checkpoint(self.layers, self.residuals, tuple(self.index[row] for row in rows))

    def at(self, layer: int, rows: Sequence[int], width: int) -> Tensor:
        """(batch, width, d_model): the residual entering `layer`, padded on the right."""
        parts = self.residuals.rows(Site("resid_pre", layer))
        first = parts[0]
        out = first.new_zeros(len(rows), width, first.shape[-1])
        for place, row in enumerate(rows):
            part = parts[self.index[row]]
            out[place, : len(part)] = part
        return out


@dataclass(frozen=True, eq=False)
class Request:
    """What one run should do, before it is cut into batches."""

    tokens: list[list[int]]
    captures: tuple[Site, ...] = ()
    edits: tuple[Edit, ...] = ()
    positions: Positions = "all"
    logits: LogitsAt = None
    resume: Checkpoint | None = None
    gradients: bool = False


@dataclass(frozen=True, eq=False)
class Batch:
    """Some prompts of a request, padded on the right."""

    rows: Tensor
    ids: Tensor
    lengths: Tensor

    @property
    def ragged(self) -> bool:
        return bool((self.lengths != self.lengths[0]).any())

    def frame(self) -> Frame:
        return Frame(self.rows, self.lengths, torch.zeros_like(self.rows))


class Engine:
    """Runs requests on one model. Not a public class: `Model` is its face."""

    def __init__(self, hf: nn.Module, layout: Layout, pad_id: int, memory_budget: int) -> None:
        self.hf, self.layout, self.pad_id = hf, layout, pad_id
        self.memory_budget = memory_budget
        self.busy = False

    @property
    def device(self) -> torch.device:
        return self.hf.get_input_embeddings().weight.device  # type: ignore[operator]

    def batches(self, request: Request) -> list[Batch]:
        """Prompts by length, as many as the budget allows per batch."""
        lengths = [len(tokens) for tokens in request.tokens]
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        cap = self.tokens_per_batch(request)
        groups: list[list[int]] = []
        for row in order:
            width = lengths[row]  # sorted: the newest row is the longest
            if not groups or (len(groups[-1]) + 1) * width > max(cap, width):
                groups.append([])
            groups[-1].append(row)
        return [self._batch(request.tokens, rows) for rows in groups]

    def tokens_per_batch(self, request: Request) -> int:
        """How many tokens a batch may hold within the memory budget."""
        dims = self.layout.dims
        width = 8 * dims.d_model + 3 * max(dims.d_mlp, dims.d_model) + 6 * dims.n_heads * dims.d_head
        if request.gradients:
            width *= dims.n_layers
        if request.logits == "all":
            width += 3 * dims.d_vocab
        elif request.logits == "last":
            shortest = min(len(tokens) for tokens in request.tokens)
            width += 3 * dims.d_vocab // max(1, shortest)
        if any(site.name == "pattern" for site in request.captures):
            width += 3 * dims.n_heads * max(len(tokens) for tokens in request.tokens)
        size = next(self.hf.parameters()).element_size()
        return max(1, min(BATCH_TOKENS, self.memory_budget // (width * size)))

    def _batch(self, tokens: list[list[int]], rows: list[int]) -> Batch:
        lengths = [len(tokens[row]) for row in rows]
        ids = torch.full((len(rows), max(lengths)), self.pad_id, device=self.device)
        for place, row in enumerate(rows):
            ids[place, : lengths[place]] = torch.tensor(tokens[row], device=self.device)
        return Batch(torch.tensor(rows, device=self.device), ids, torch.tensor(lengths, device=self.device))

    # running ---------------------------------------------------------------------------------

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """One run at a time; parameters without gradients; training mode and flags as found."""
        if self.busy:
            raise UsageError("this model is already running: a run cannot start inside another run.")
        flagged = [p for p in self.hf.parameters() if p.requires_grad]
        training = [module for module in self.hf.modules() if module.training]
        self.busy = True
        try:
            for parameter in flagged:
                parameter.requires_grad_(False)
            if training:
                self.hf.eval()
            yield
        finally:
            for parameter in flagged:
                parameter.requires_grad_(True)
            for module in training:
                module.training = True
            self.busy = False

    def capture(self, request: Request, device: str, progress: Progress | None) -> Activations:
        """Captured activations of all prompts (sites, and the logits when asked for)."""
        table = position_table(request.positions, [len(t) for t in request.tokens])
        lengths = [len(t) for t in request.tokens] if table is None else [table.shape[1]] * len(table)
        collector = Collector(lengths, max(len(t) for t in request.tokens), device)
        with self.exclusive(), torch.no_grad():
            for batch in self.batches(request):
                rows_cpu = batch.rows.cpu()
                columns = None if table is None else table[rows_cpu]

                def sink(site: Site, x: Tensor, rows: Any = rows_cpu, at: Any = columns) -> None:
                    collector.write(site, x, rows, at)

                logits = self.run(batch, request, sink)
                if logits is not None and Site("logits") in request.captures:
                    sink(Site("logits"), logits)
                if progress:
                    progress(len(batch.rows))
        return collector.done()

    def score(self, request: Request, metric: Metric, progress: Progress | None) -> Tensor:
        """metric(last-position logits (batch, vocab), prompt numbers) for every prompt, (n,)."""
        out = torch.empty(len(request.tokens), dtype=torch.float32)
        with self.exclusive(), torch.no_grad():
            for batch in self.batches(request):
                logits = self.run(batch, request, lambda site, x: None)
                assert logits is not None
                values = check_metric(metric(logits[:, 0].float(), batch.rows), len(batch.rows))
                out[batch.rows.cpu()] = values.detach().float().cpu()
                if progress:
                    progress(len(batch.rows))
        return out

    def run(self, batch: Batch, request: Request, sink: Any) -> Tensor | None:
        """One forward pass of one batch; logits (batch, pos, vocab), one position for 'last'."""
        captures = [site for site in request.captures if site.name != "logits"]
        start = self._resume_layer(request)
        plan = Pass(batch.frame(), captures, request.edits, sink, stop=request.logits is None)
        if request.resume is not None and start:
            plan.resume_at = start
            plan.resumed = request.resume.at(start, batch.rows.tolist(), batch.ids.shape[1])
        arguments: dict[str, Any] = {"input_ids": batch.ids, "use_cache": False}
        if batch.ragged:
            steps = torch.arange(batch.ids.shape[1], device=batch.ids.device)
            arguments["attention_mask"] = (steps < batch.lengths[:, None]).long()
        keep = self._keep_last(batch) if request.logits == "last" else None
        try:
            with attached(self.hf, self.layout, plan):
                return self.hf(**arguments).logits
        except StopPass:
            return None
        finally:
            if keep is not None:
                keep.remove()

    def _keep_last(self, batch: Batch) -> Any:
        """Only the last real position of each row goes through the unembedding."""
        rows = torch.arange(len(batch.lengths), device=batch.lengths.device)

        def gather(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            hidden = args[0]
            at = (batch.lengths - 1).to(hidden.device)
            return (hidden[rows.to(hidden.device), at][:, None], *args[1:])

        return self.hf.get_submodule(self.layout.unembed).register_forward_pre_hook(gather)

    def _resume_layer(self, request: Request) -> int:
        """The first block anything touches: earlier ones need not run again."""
        if request.resume is None:
            return 0
        touched = [self._first_layer(site) for site in (*request.captures, *(e.site for e in request.edits))]
        earliest = min(touched, default=self.layout.dims.n_layers)
        return max((layer for layer in request.resume.layers if layer <= earliest), default=0)

    def _first_layer(self, site: Site) -> int:
        if site.layer is not None:
            return site.layer
        return self.layout.dims.n_layers if site.name in ("final_norm", "logits") else 0


def position_table(positions: Positions, lengths: Sequence[int]) -> Tensor | None:
    """(n, k) absolute positions, or None for all of them. Raises UsageError outside a prompt."""
    size = torch.tensor(list(lengths))
    if isinstance(positions, str):
        if positions not in ("all", "last"):
            raise bad_argument("positions", positions, "'all', 'last', a list of ints or (n, k)")
        return None if positions == "all" else size[:, None] - 1
    table = torch.as_tensor(positions).long()
    table = table[None].expand(len(size), -1) if table.dim() == 1 else table
    if len(table) != len(size):
        raise bad_argument("positions", f"{len(table)} rows", f"{len(size)} rows, one per prompt")
    table = torch.where(table < 0, table + size[:, None], table)
    outside = (table < 0) | (table >= size[:, None])
    if outside.any():
        row = int(outside.any(1).nonzero()[0])
        raise bad_argument(
            "positions", positions, f"positions inside every prompt; prompt {row} has {lengths[row]} tokens"
        )
    return table


def check_metric(values: Tensor, n: int) -> Tensor:
    """A metric must give one number per prompt."""
    if not isinstance(values, Tensor) or values.shape != (n,):
        got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise bad_argument("metric", f"a result of shape {got}", f"one value per prompt, shape ({n},)")
    return values
