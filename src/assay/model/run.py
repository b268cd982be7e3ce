"""The one primitive: run the model on prompts, capture at sites, apply edits, stop early.

1. Prompts are sorted by length and cut into batches that fit the memory budget; batches are padded
   on the right, where causal attention cannot see, so real tokens compute what they compute alone.
2. No logits are made when nobody reads them; when only the last position is read, only that row
   goes through the unembedding.
3. A pass stops after the last site that is read, and may resume at a block whose input is cached;
   tokens that all prompts of a batch begin with are run once (`prefix.py`).
4. Results come back in the caller's order, as owned copies.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.errors import UsageError, bad_argument
from assay.model.activations import Activations, Collector
from assay.model.hooks import Pass, Sink, StopPass, attached, ignore
from assay.model.layout import Layout
from assay.model.offload import home
from assay.model.prefix import Prefixes, keep_only
from assay.model.request import Batch, Checkpoint, LogitsAt, Metric, Progress, Request, position_table
from assay.sites import Site

BATCH_TOKENS = 2048  # more does not run faster on CPU or on small GPUs, it only takes memory


class Engine:
    """Runs requests on one model. Not a public class: `Model` is its face."""

    def __init__(self, hf: nn.Module, layout: Layout, pad_id: int, memory_budget: int) -> None:
        self.hf, self.layout, self.pad_id = hf, layout, pad_id
        self.memory_budget = memory_budget
        self.busy = False

    @property
    def device(self) -> torch.device:
        return home(self.hf.get_input_embeddings())  # type: ignore[operator]

    def batches(self, request: Request, at_most: int | None = None) -> list[Batch]:
        """Prompts by length, as many as the budget (and `at_most` tokens) allow per batch."""
        lengths = [len(tokens) for tokens in request.tokens]
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        cap = self.tokens_per_batch(request)
        cap = cap if at_most is None else min(cap, at_most)
        groups: list[list[int]] = []
        for row in order:
            width = lengths[row]  # sorted: the newest row is the longest
            if not groups or (len(groups[-1]) + 1) * width > max(cap, width):
                groups.append([])
            groups[-1].append(row)
        return [self.batch(request.tokens, rows) for rows in groups]

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

    def batch(self, tokens: list[list[int]], rows: list[int]) -> Batch:
        """These prompts as one batch, padded on the right."""
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
        modules = _modules(self.hf)
        flagged = [p for m in modules for p in m._parameters.values() if p is not None and p.requires_grad]
        training = [module for module in modules if module.training]
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
            prefixes = Prefixes(self.hf, self.layout, request, table)
            for batch in map(prefixes.cut, self.batches(request)):
                rows_cpu = batch.rows.cpu()
                columns = None if table is None else table[rows_cpu]
                if columns is not None and request.logits != "last":
                    columns = columns - batch.start

                def sink(site: Site, x: Tensor, rows: Any = rows_cpu, at: Any = columns) -> None:
                    collector.write(site, x, rows, at)

                logits = self.run(batch, request, sink)
                if logits is not None and Site("logits") in request.captures:
                    sink(Site("logits"), logits)
                if progress:
                    progress(len(batch.rows))
        return collector.done(request.captures)

    def score(
        self, request: Request, metric: Metric, progress: Progress | None, collector: Collector | None = None
    ) -> Float[Tensor, " prompt"]:
        """metric(last-position logits (batch, vocab), prompt numbers) for every prompt, (n,).

        A `collector` gets the request's captures from the same pass.
        """
        out = torch.empty(len(request.tokens), dtype=torch.float32)
        prefixes = Prefixes(self.hf, self.layout, request)
        with self.exclusive(), torch.no_grad():
            for batch in self.batches(request):
                sink: Sink = ignore
                if collector is None:
                    batch = prefixes.cut(batch)
                else:
                    sink = collector.sink(batch.rows.cpu())
                logits = self.run(batch, request, sink)
                assert logits is not None
                values = check_metric(metric(logits[:, 0].float(), batch.rows), len(batch.rows))
                out[batch.rows.cpu()] = values.detach().float().cpu()
                if progress:
                    progress(len(batch.rows))
        return out

    def run(self, batch: Batch, request: Request, sink: Sink) -> Tensor | None:
        """One forward pass of one batch; logits (batch, pos, vocab), one position for 'last'."""
        captures = [site for site in request.captures if site.name != "logits"]
        start = request.resume_layer(self.layout.dims.n_layers)
        plan = Pass(batch.frame(), captures, request.edits, sink, stop=request.logits is None, made=request.made)
        if request.resume is not None and start:
            plan.resume_at = start
            plan.resumed = request.resume.at(start, batch.rows.tolist(), batch.ids.shape[1])[:, batch.start :]
        keep = keep_only(self.hf, self.layout.unembed, batch.lengths - 1 - batch.start) if request.logits == "last" else None
        try:
            with attached(self.hf, self.layout, plan):
                return self.hf(**batch.arguments()).logits
        except StopPass:
            return None
        finally:
            if keep is not None:
                keep.remove()


def _modules(hf: nn.Module) -> list[nn.Module]:
    """All modules, without the paths that `named_modules` builds (this runs at every call)."""
    found, waiting = {hf: None}, [hf]
    while waiting:
        for child in waiting.pop()._modules.values():
            if child is not None and child not in found:
                found[child] = None
                waiting.append(child)
    return list(found)


def check_metric(values: Tensor, n: int) -> Tensor:
    """A metric must give one number per prompt."""
    if not isinstance(values, Tensor) or values.shape != (n,):
        got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise bad_argument("metric", f"a result of shape {got}", f"one value per prompt, shape ({n},)")
    return values


__all__ = ["BATCH_TOKENS", "Batch", "Checkpoint", "Engine", "LogitsAt", "Metric", "Progress", "Request"]
