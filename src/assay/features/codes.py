"""Sparse codes: which latents are active at which token, and the sums made from them without a dense matrix.

1. A code is a list of (token, latent, value) triples, kept token by token: `offsets` say where each token's begin.
2. `spread`: reconstruction = for each token, the sum of value x decoder row (an embedding bag).
3. Gradients touch active pairs only. With g the gradient at the reconstruction, and for one pair (t, j):
   d value = g_t . W_dec[j];  d W_dec[j] = sum over tokens of value x g_t;  d W_enc[j] = sum over tokens of d pre x x_t.
   Both weight sums are embedding bags of the transposed code, whose one sort `Pairs` keeps.
4. Selections: the k largest per token (`top_k`), the k x n largest of a batch (`top_batch`), all above a threshold.

Exact: the same numbers as dense autograd, with the terms that are zero left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from assay.errors import bad_argument
from assay.features.screened import NEAR, Scores, Screened, dots, few_largest, whole
from assay.features.world import world

HALF, NOTHING = 1e-3, 1e-7  # of a value, and of the largest one: may be lost in half precision
FEWEST = 64  # columns of a table, below which its rows are too short to be read in parts
CANDIDATES = 4  # times k: latents of one token that may be among the largest of a batch, before more are looked at


@dataclass(frozen=True, eq=False)
class Pairs:
    """Where codes are active: latents of token t are `latents[offsets[t]:offsets[t + 1]]`, out of `width`."""

    offsets: Int[Tensor, " token_and_one"]
    latents: Int[Tensor, " active"]
    width: int

    @property
    def n_tokens(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def tokens(self) -> Int[Tensor, " active"]:
        """The token of each pair."""
        return torch.repeat_interleave(torch.arange(self.n_tokens, device=self.offsets.device), self.offsets.diff())

    @cached_property
    def by_latent(self) -> tuple[Int[Tensor, " active"], Int[Tensor, " latent_and_one"]]:
        """The order that sorts pairs by latent, and where each latent begins in it."""
        short = self.width <= 1 << 15
        order = (self.latents.short() if short else self.latents).argsort(stable=True)
        counts = torch.bincount(self.latents, minlength=self.width)
        return order, torch.cat([counts.new_zeros(1), counts.cumsum(0)])

    def where(self, keep: Bool[Tensor, " active"]) -> "Pairs":
        """Only some of the pairs."""
        counts = torch.zeros_like(self.offsets)
        counts[1:] = torch.zeros_like(self.offsets[1:]).index_add(0, self.tokens[keep], torch.ones_like(self.latents[keep]))
        return Pairs(counts.cumsum(0), self.latents[keep], self.width)


@dataclass(frozen=True, eq=False)
class Codes:
    """Latents of some tokens, active ones only."""

    pairs: Pairs
    values: Float[Tensor, " active"]

    @property
    def offsets(self) -> Int[Tensor, " token_and_one"]:
        return self.pairs.offsets

    @property
    def latents(self) -> Int[Tensor, " active"]:
        return self.pairs.latents

    @property
    def width(self) -> int:
        return self.pairs.width

    @property
    def n_tokens(self) -> int:
        return self.pairs.n_tokens

    @property
    def l0(self) -> Float[Tensor, " token"]:
        """Active latents of each token."""
        return self.offsets.diff().to(self.values.dtype)

    def dense(self) -> Float[Tensor, "token latent"]:
        """The same as a matrix."""
        found = torch.zeros(self.n_tokens, self.width, dtype=self.values.dtype, device=self.values.device)
        found[self.pairs.tokens, self.latents] = self.values
        return found

    def scipy(self) -> sp.csr_array:
        """The same as a scipy matrix (token, latent)."""
        parts = (self.values.float().cpu().numpy(), self.latents.cpu().numpy(), self.offsets.cpu().numpy())
        return sp.csr_array(parts, shape=(self.n_tokens, self.width))

    def active(self) -> "Codes":
        """Without pairs of value zero."""
        keep = self.values > 0
        return self if bool(keep.all()) else Codes(self.pairs.where(keep), self.values[keep])

    def only(self, latents: Sequence[int]) -> "Codes":
        """All other latents set to zero."""
        wanted = torch.zeros(self.width, dtype=torch.bool, device=self.latents.device)
        wanted[list(latents)] = True
        keep = wanted[self.latents]
        return Codes(self.pairs.where(keep), self.values[keep])


def codes_of(dense: Float[Tensor, "token latent"]) -> Codes:
    """The non-zero entries of a matrix."""
    active = dense != 0
    tokens, latents = active.nonzero(as_tuple=True)
    return Codes(_grouped(active.sum(1), latents, dense.shape[1]), dense[tokens, latents])


def join(parts: Sequence[Codes]) -> Codes:
    """Codes of several runs of tokens, one after the other."""
    if not parts:
        raise bad_argument("parts", "none", "codes of at least one batch")
    counts = torch.cat([part.offsets.diff() for part in parts])
    pairs = _grouped(counts, torch.cat([part.latents for part in parts]), parts[0].width)
    return Codes(pairs, torch.cat([part.values for part in parts]))


# what is selected --------------------------------------------------------------------------------


def contenders(k: int) -> int:
    """Latents of a token that bf16 puts among the largest and fp32 decides about: with twice k, nearly always enough."""
    return max(2 * k, k + 16)


def top_k(pre: Scores, k: int) -> Pairs:
    """The k largest pre-activations of each token; in a slice of the latents, those of them that are in it."""
    if world().slices > 1 and isinstance(pre, Tensor):
        best = pre.topk(min(k, pre.shape[1]), dim=1, sorted=False)
        keep = world().largest(best.values, k)
        return _grouped(keep.sum(1), best.indices[keep], pre.shape[1])
    found = pre.top(k, contenders(k)) if isinstance(pre, Screened) else few_largest(pre, k)[1].flatten()
    offsets = torch.arange(len(pre) + 1, device=pre.device) * k
    return Pairs(offsets, found, pre.shape[1])


def top_batch(pre: Scores, k: int) -> Pairs:
    """The k x n_tokens largest positive pre-activations of the batch: k per token on average (Bussmann et al. 2024).

    Looks at the largest few of each token first, then at more of them while one token may have more. Where several
    processes have parts of a batch, or of the latents, the bar is that of all.
    """
    n, width = pre.shape
    wanted, few = k * n * world().parts, min(width, CANDIDATES * k)
    while True:
        values, latents, ceiling = _largest(pre, few)
        flat = world().gather(values.reshape(-1))
        bar = flat.kthvalue(len(flat) - wanted + 1).values if wanted < len(flat) else flat.min()
        if few == width or world().all(bool((ceiling < bar).all())):
            break
        few, pre = min(width, 2 * few), whole(pre)
    keep = (values >= bar) & (values > 0)
    found = _grouped(keep.sum(1), latents[keep], width)
    if isinstance(pre, Screened):
        pre.made.append((found.latents, values[keep]))
    return found


def _largest(pre: Scores, few: int) -> tuple[Tensor, Tensor, Tensor]:
    """The largest few of each token: their values, their latents, and what no other exceeds."""
    if isinstance(pre, Screened):
        return pre.largest(few)
    values, latents = few_largest(pre, few)
    return values, latents, values.min(1).values


def above(pre: Scores, threshold: Tensor | float) -> Pairs:
    """All pre-activations above a threshold, one for all latents or one each."""
    if isinstance(pre, Screened):
        tokens, latents = pre.above(threshold)
        return _grouped(torch.bincount(tokens, minlength=len(pre)), latents, pre.shape[1])
    return _grouped((active := pre > threshold).sum(1), active.nonzero(as_tuple=True)[1], pre.shape[1])


def values_at(pre: Scores, pairs: Pairs) -> Float[Tensor, " active"]:
    """Pre-activations of the chosen pairs."""
    return pre.at(pairs.tokens, pairs.latents) if isinstance(pre, Screened) else pre[pairs.tokens, pairs.latents]


def _grouped(counts: Int[Tensor, " token"], latents: Int[Tensor, " active"], width: int) -> Pairs:
    return Pairs(torch.cat([counts.new_zeros(1), counts.cumsum(0)]), latents, width)


# sums over active pairs --------------------------------------------------------------------------


def read(
    pre: Scores,
    x: Float[Tensor, "token d"],
    encoder: Float[Tensor, "latent d"],
    bias: Float[Tensor, " latent"],
    shift: Float[Tensor, " d"] | None,
    pairs: Pairs,
) -> Float[Tensor, " active"]:
    """Pre-activations of the chosen pairs; their gradients reach encoder, bias and shift, never x.

    `pre` must be (x - shift) @ encoder.T + bias, made without gradients.
    """
    return _Read.apply(values_at(pre, pairs), x, encoder, bias, shift, pairs)  # type: ignore[return-value]


def spread(values: Float[Tensor, " active"], decoder: Float[Tensor, "latent d"], pairs: Pairs) -> Float[Tensor, "token d"]:
    """For each token the sum of its values times their decoder rows; differentiable in both."""
    return _Spread.apply(values, decoder, pairs)  # type: ignore[return-value]


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, read: Tensor, x: Tensor, encoder: Tensor, bias: Tensor, shift: Tensor | None, pairs: Pairs) -> Tensor:
        ctx.save_for_backward(x, encoder, shift)
        ctx.pairs = pairs
        return read.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (x, encoder, shift), pairs = grads, ctx.saved_tensors, ctx.pairs
        bias = torch.zeros(pairs.width, dtype=grad.dtype, device=grad.device).index_add(0, pairs.latents, grad)
        weights = transposed(grad, x, pairs)
        if shift is None:
            return None, None, weights, bias, None, None
        return None, None, weights.addr_(bias, shift, alpha=-1), bias, -(encoder.T @ bias), None


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, decoder: Tensor, pairs: Pairs) -> Tensor:
        ctx.save_for_backward(values, decoder)
        ctx.pairs = pairs
        return bag(values, pairs.latents, pairs.offsets, decoder)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (values, decoder), pairs, grad = ctx.saved_tensors, ctx.pairs, grads[0].contiguous()
        found = None
        if ctx.needs_input_grad[0]:
            found = products(grad, decoder, pairs)
        return found, transposed(values, grad, pairs) if ctx.needs_input_grad[1] else None, None


def bag(values: Tensor, rows: Tensor, offsets: Tensor, table: Tensor) -> Tensor:
    """Sums of table rows, each row times its value, over the stretches that offsets begin.

    Where rows are read several times, some columns at a time: as many as stay in the processor's cache.
    """
    if not len(rows):
        return table.new_zeros(len(offsets) - 1, table.shape[1])
    columns = NEAR // len(table)
    again = table.device.type == "cpu" and len(rows) >= 4 * len(table) and FEWEST <= columns < table.shape[1]
    parts = [
        torch.nn.functional.embedding_bag(
            rows, part.contiguous(), offsets, mode="sum", per_sample_weights=values, include_last_offset=True
        )
        for part in (table.split(columns, 1) if again else [table])
    ]
    return torch.cat(parts, 1) if again else parts[0]


def transposed(values: Tensor, table: Float[Tensor, "token d"], pairs: Pairs) -> Float[Tensor, "latent d"]:
    """For each latent the sum of its values times the rows of its tokens."""
    order, offsets = pairs.by_latent
    return bag(values[order], pairs.tokens[order], offsets, table)


def products(grad: Float[Tensor, "token d"], decoder: Float[Tensor, "latent d"], pairs: Pairs) -> Float[Tensor, " active"]:
    """grad[token] . decoder[latent] of each pair."""
    return dots(grad, decoder, pairs.tokens, pairs.latents, pairs.offsets[:-1])


def to_arrays(codes: Codes) -> dict[str, np.ndarray]:
    """Codes as small arrays to write: counts uint16, latents uint32 (or uint16 where they fit), values float16, or float32
    where half precision would lose more than rounding (values above 65,504, or all of them tiny)."""
    counts = codes.offsets.diff().cpu().numpy()
    if len(counts) and counts.max() > np.iinfo(np.uint16).max:
        raise bad_argument("codes", f"{counts.max()} active latents of one token", f"at most {np.iinfo(np.uint16).max}")
    kind = np.uint16 if codes.width <= np.iinfo(np.uint16).max + 1 else np.uint32
    values = codes.values.float().cpu().numpy()
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    lost, size = np.abs(half.astype(np.float32) - values), np.abs(values)
    fits = bool((lost <= HALF * size + NOTHING * size.max(initial=0.0)).all())
    return {"counts": counts.astype(np.uint16), "latents": codes.latents.cpu().numpy().astype(kind),
            "values": half if fits else values}  # fmt: skip


def from_arrays(arrays: dict[str, np.ndarray], width: int) -> Codes:
    """What `to_arrays` wrote."""
    counts = torch.from_numpy(arrays["counts"].astype(np.int64))
    pairs = _grouped(counts, torch.from_numpy(arrays["latents"].astype(np.int64)), width)
    return Codes(pairs, torch.from_numpy(arrays["values"].astype(np.float32)))
