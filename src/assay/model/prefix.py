"""Run the tokens that prompts of a batch begin with once, and only the rest for each row.

1. A batch may be cut where its prompts still agree and no edit, capture or asked logit lies before
   the cut: causal attention makes everything before it the same for all rows.
2. The shared tokens run as one row, as far up as the request goes, into the model's own KV cache;
   the cache is repeated for the batch, and the rest runs on it at its absolute positions.
3. A request that resumes from a checkpoint repeats the checkpoint's prompts, in one batch or over many
   calls. There each prompt's own first tokens, up to where anything is edited or read, run once for
   all calls; the checkpoint keeps what they leave in the cache.
4. It is done only where enough work is saved, and only on models for which it was measured at load
   that the rest of a cached run equals the whole run (`Layout.prefix_width`).

Positions outside the proved width are never cut: sliding windows are proved up to their window, and
rotary embeddings that change with the length of the prompt are not cut at all.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from assay.model.edits import Frame, listed_positions
from assay.model.hooks import Pass, StopPass, attached, ignore
from assay.model.layout import Layout
from assay.model.request import Batch, Checkpoint, Prefix, Request

MIN_SAVED = 96  # tokens through all layers; less does not pay for a second pass (measured: even at 60 to 100)
KEPT_BYTES = 1 << 28  # of a checkpoint's prefixes
WINDOWS = ("sliding_window", "window_size", "attention_chunk_size")
LENGTH_ROPES = ("dynamic", "longrope")
NO_CACHE = (RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError, NotImplementedError)


class Prefixes:
    """Cuts the batches of one request; keeps the cache of the newest prefix for the next batch."""

    def __init__(
        self, hf: nn.Module, layout: Layout, request: Request, table: Tensor | None = None
    ) -> None:
        self.hf, self.layout, self.request, self.table = hf, layout, request, table
        self.tokens: list[int] = []
        self.cache: Any = None

    def cut(self, batch: Batch) -> Batch:
        """The batch, with its prefix already run if that pays: the one all rows share, or each prompt's own."""
        free, total = self._free(batch), self.layout.dims.n_layers
        length = min(free, _agreeing(batch))
        start = self.request.resume_layer(total)
        first = 0 if batch.ids[0, :length].tolist() == self.tokens else total  # layers the prefix itself has to run
        saved = length * (len(batch.rows) * (total - start) - first) / total
        kept = self.request.resume
        if free > length and start and kept is not None and kept.tokens and self._fits(free * len(kept.tokens)):
            first = 0 if kept.prefix.length >= free else total * len(kept.tokens)
            own = free * (len(batch.rows) * (total - start) - first) / total
            if own >= max(saved, MIN_SAVED):
                return self._cut_own(batch, free, kept, start)
        return self.cut_at(batch, length) if saved >= MIN_SAVED else batch

    def _fits(self, tokens: int) -> bool:
        """Whether the cache of so many tokens is small enough to be kept."""
        dims = self.layout.dims
        size = next(self.hf.parameters()).element_size()
        return tokens * 2 * dims.n_layers * dims.n_kv_heads * dims.d_head * size <= KEPT_BYTES

    def _cut_own(self, batch: Batch, length: int, kept: Checkpoint, start: int) -> Batch:
        """The batch from position `length` on, with a cache of each row's own first tokens."""
        if kept.prefix.length < length:
            kept.prefix.cache, kept.prefix.length = self._run(_padded(kept.tokens, length, batch.ids)), length
        return continued(batch, length, kept.prefix, [kept.index[row] for row in batch.rows.tolist()], start)

    def begin(self, prompts: Sequence[Sequence[int]], length: int, like: Tensor) -> Prefix:
        """What the first `length` tokens of these prompts, none of them shorter, leave in the cache."""
        return Prefix(length, self._run(_padded(prompts, length, like)))

    def cut_at(self, batch: Batch, length: int) -> Batch:
        """The batch from position `length` on, with a cache of what comes before, a copy per row."""
        tokens = batch.ids[0, :length].tolist()
        if tokens != self.tokens:
            self.cache, self.tokens = self._run(batch.ids[:1, :length]), tokens
        cache = copy.copy(self.cache)
        cache.layers = [copy.copy(layer) for layer in cache.layers]
        cache.batch_repeat_interleave(len(batch.rows))
        return replace(batch, start=length, cache=cache)

    def _run(self, ids: Tensor) -> Any:
        """The KV cache of rows of tokens, run no further than the request reads."""
        from transformers import DynamicCache

        cache = DynamicCache()  # every layer whole: windows are a matter of the mask
        zero = torch.zeros(len(ids), dtype=torch.long, device=ids.device)
        length = zero + ids.shape[1]
        captures = [site for site in self.request.captures if site.name != "logits"]
        stop = self.request.logits is None
        plan = Pass(Frame(zero, length, zero), captures, (), ignore, stop)
        handle = keep_only(self.hf, self.layout.unembed, length - 1)
        try:
            with attached(self.hf, self.layout, plan):
                self.hf(input_ids=ids, past_key_values=cache, use_cache=True)
        except StopPass:
            pass
        finally:
            handle.remove()
        return cache

    def _free(self, batch: Batch) -> int:
        """How many first tokens have nothing to read or edit among them."""
        if batch.ids.shape[1] > self.layout.prefix_width or self.request.gradients:
            return 0
        return min(int(batch.lengths.min()) - 1, self._first_read(batch), self._first_edited(batch))

    def _first_read(self, batch: Batch) -> int:
        width = batch.ids.shape[1]
        if self.request.logits == "last" or not self.request.captures:
            return width
        whole = any(site.name in ("pattern", "path") for site in self.request.captures)
        return 0 if whole or self.table is None else int(self.table[batch.rows.cpu()].min())

    def _first_edited(self, batch: Batch) -> int:
        first = batch.ids.shape[1]
        for edit in self.request.edits:
            hit = torch.ones_like(batch.rows, dtype=torch.bool)
            if edit.rows is not None:
                hit = torch.isin(batch.rows, torch.tensor(edit.rows, device=batch.rows.device))
            if not bool(hit.any()):
                continue
            if edit.site.name in ("pattern", "path") or isinstance(edit.positions, str) and edit.positions == "all":
                return 0
            positions = listed_positions(edit, batch.frame())[hit]
            first = min(first, int(positions.min())) if positions.numel() else first
        return first


def continued(batch: Batch, length: int, prefix: Prefix, which: Sequence[int], start: int = 0) -> Batch:
    """The batch from position `length` on: its rows begin like the prefix's rows `which`. Layers below `start` do not run."""
    rows = torch.tensor(list(which), device=batch.ids.device)
    cache = copy.copy(prefix.cache)
    cache.layers = [copy.copy(layer) for layer in cache.layers]
    for number, layer in enumerate(cache.layers):
        for name in ("keys", "values"):  # layers that do not run say only how long the cache is
            whole = getattr(layer, name)[:, :, :length]
            setattr(layer, name, whole[:1].expand(len(rows), -1, -1, -1) if number < start else whole[rows])
    return replace(batch, start=length, cache=cache)


def _agreeing(batch: Batch) -> int:
    """How many first tokens all rows share."""
    return int((batch.ids == batch.ids[:1]).all(0).long().cumprod(0).sum())


def _padded(prompts: Sequence[Sequence[int]], length: int, like: Tensor) -> Tensor:
    """The first tokens of prompts, (prompt, length); a shorter prompt is filled up with what no row of it reads."""
    rows = [list(prompt[:length]) + [prompt[-1]] * (length - len(prompt)) for prompt in prompts]
    return torch.tensor(rows, device=like.device, dtype=like.dtype)


def keep_only(hf: nn.Module, unembed: str, columns: Tensor) -> Any:
    """Only one column of each row goes through the unembedding; returns the hook's handle."""

    def gather(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = args[0]
        rows = torch.arange(len(columns), device=hidden.device)
        return (hidden[rows, columns.to(hidden.device)][:, None], *args[1:])

    return hf.get_submodule(unembed).register_forward_pre_hook(gather)


def provable_width(hf: nn.Module, length: int) -> int:
    """The widest prompt for which a proof on `length` tokens speaks; 0 if it speaks for none."""
    if any(getattr(module, "rope_type", None) in LENGTH_ROPES for module in hf.modules()):
        return 0
    config: Any = getattr(hf, "config", None)
    found = [getattr(config, name, None) for name in WINDOWS]
    windows = [size for size in found if isinstance(size, int) and size >= length]
    return min(windows, default=1 << 30)
