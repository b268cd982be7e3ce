"""The largest pre-activations of a token without making all of them in fp32: bf16 says which can be, fp32 what they are.

1. Wanted of s_j = x . w_j + b_j (d numbers each): the k largest, or those above a threshold. In bf16, x = x' + ex,
   w = w' + ew, b = b1 + b2 + eb; one product of (x', 1, 1) and (w', b1, b2), summed in fp32 and rounded to bf16, is s'.
2. |s - s'| <= |ex| |w| + |x'| |ew| + |eb| + what d fp32 sums lose + U |s'|, U = 2^-8 (Cauchy-Schwarz, and rounding).
   With the largest |w|, |ew|, |eb| of all latents this is one number per token, and U |s'|.
3. The `few` largest s' are contenders, their s made in fp32 (a few dozen dot products); of k largest only where s' and the
   bound reach what k of them have for certain. Any other latent is below the ceiling: the smallest s' among the contenders,
   plus the bound. A token whose ceiling is not below what was found gets all its s in fp32. So what is found is exact, as
   the whole product would have it.
4. The few largest of a row: of 8 strided parts the maximum at each place, the largest places, the largest among their 8.
   Numbers of bf16 that are not negative are in order as whole numbers of 16 bits, others after their bits are turned.

It pays where the processor multiplies bf16 by itself (`worth_it`): there a product takes a fifth of the time.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache, cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

U = 1 / 255  # bf16 rounds by at most 2^-8 of a value, so by at most 1 / 255 of the rounded one
EB = 2.0**-16  # of a bias, what two bf16 numbers do not hold
SUM = 2.0**-24  # of the sum of magnitudes, what one fp32 addition loses
PARTS, PLACES = 8, 1 << 16
THREADS = 8  # with more of them torch's own search is faster than one thread of numpy
MANY = 8  # where more than this part of all pairs may be above a threshold, the whole product is made
SMALLEST = (64, 1024, 128)  # tokens, latents, numbers read: below, bookkeeping costs more than the product
NEAR = 3 << 17  # numbers of a matrix that stay in the processor's cache while others are read
CACHED = 1 << 16  # numbers worked on at a time, where several passes follow each other: they stay in the processor's cache


@cache
def multiplies_bf16() -> bool:
    """Whether this processor has instructions for bf16 products, and torch a library that uses them."""
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return torch.backends.mkldnn.is_available() and any(getattr(torch.cpu, name, lambda: False)() for name in names)


def worth_it(x: Float[Tensor, "token d"], encoder: Float[Tensor, "latent d"], few: int) -> bool:
    """Whether looking in bf16 first is faster than the product in fp32."""
    sizes = (len(x), *encoder.shape)
    return (x.device.type == "cpu" and x.dtype == encoder.dtype == torch.float32 and 4 * few <= len(encoder)
            and all(size >= least for size, least in zip(sizes, SMALLEST, strict=True)) and multiplies_bf16())  # fmt: skip


@dataclass(frozen=True, eq=False)
class Lowered:
    """An encoder in bf16. `weights`: w', with two columns for a bias; `longest`, `lost`: the largest |w| and |ew|."""

    weights: Float[Tensor, "latent d_and_two"]
    longest: float
    lost: float

    @staticmethod
    def of(encoder: Float[Tensor, "latent d"]) -> "Lowered":
        """Made once for all tokens that are read with it."""
        weights = encoder.new_empty(len(encoder), encoder.shape[1] + 2, dtype=torch.bfloat16)
        longest, lost = [], []
        for rows, low in row_blocks(encoder, weights[:, :-2]):
            low.copy_(rows)
            longest.append(rows.norm(dim=1).max())
            lost.append((rows - low.float()).norm(dim=1).max())
        return Lowered(weights, float(torch.stack(longest).max()), float(torch.stack(lost).max()))


@dataclass(frozen=True, eq=False)
class Screened:
    """Pre-activations x @ encoder.T + bias that are made where they are asked for; without gradients.

    `low`: the encoder in bf16, if it is there already. `made`: latents of pairs that were chosen, and what was made of them.
    """

    x: Float[Tensor, "token d"]
    encoder: Float[Tensor, "latent d"]
    bias: Float[Tensor, " latent"]
    low: Lowered | None = None
    made: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.x), len(self.encoder)

    def __len__(self) -> int:
        return len(self.x)

    def __mul__(self, factor: Float[Tensor, " latent"]) -> "Screened":
        """Each latent's times a number of its own."""
        return Screened(self.x, self.encoder * factor[:, None], self.bias * factor)

    @property
    def device(self) -> torch.device:
        return self.x.device

    def split(self, rows: int) -> list["Screened"]:
        """Parts of so many tokens; the encoder is made bf16 once."""
        return [replace(self, x=part, low=self._low, made=[]) for part in self.x.split(rows)]

    @cached_property
    def _low(self) -> Lowered:
        return self.low or Lowered.of(self.encoder)

    @cached_property
    def _rough(self) -> tuple[Tensor, Tensor]:
        """(x', the bound of step 2 per token, without U |s'| and |eb|)."""
        x = self.x.bfloat16()
        blocks = [(low.norm(dim=1), (rows - low).norm(dim=1)) for rows, part in row_blocks(self.x, x) for low in [part.float()]]
        size, away = (torch.cat(parts) for parts in zip(*blocks, strict=True))
        longest, lost = self._low.longest, self._low.lost
        summed = 2 * SUM * (x.shape[1] + 2) * size * (longest + lost)
        return x, (away * longest + size * lost + summed) * (1 + EB)

    def rough(self, less: Tensor | float = 0.0) -> tuple[Tensor, Float[Tensor, " token"]]:
        """s' of all pairs with `less` taken from the bias, and the bound of each token without U |s'|."""
        x, bound = self._rough
        bias, weights = self.bias - less, self._low.weights
        weights[:, -2] = bias
        weights[:, -1] = bias - weights[:, -2].float()
        found = torch.cat([x, x.new_ones(len(x), 2)], 1) @ weights.T
        return found, bound + (EB + 2 * SUM * (x.shape[1] + 2)) * float(bias.abs().max())

    def at(self, tokens: Int[Tensor, " pair"], latents: Int[Tensor, " pair"]) -> Float[Tensor, " pair"]:
        """Pre-activations of these pairs, in fp32; tokens in their order."""
        for known, values in self.made:
            if known is latents:
                return values
        return dots(self.x, self.encoder, tokens, latents) + self.bias[latents]

    def largest(self, few: int) -> tuple[Float[Tensor, "token few"], Int[Tensor, "token few"], Float[Tensor, " token"]]:
        """(values, latents, ceiling): the contenders of each token, and what no other latent exceeds."""
        rough, bound = self.rough()
        best, latents = few_largest(rough, few)
        low = best.min(1).values.float()
        tokens = torch.arange(len(self), device=self.device).repeat_interleave(few)
        return self.at(tokens, latents.flatten()).view_as(latents), latents, low + U * low.abs() + bound

    def top(self, k: int, few: int) -> Int[Tensor, " token_times_k"]:
        """The k largest of each token, one token after the other."""
        rough, bound = self.rough()
        best, latents = few_largest(rough, few)
        best, bound = best.float(), bound[:, None]
        low = best.min(1, keepdim=True).values
        kth = torch.from_numpy(np.partition(best.numpy(), few - k, axis=1)[:, few - k, None])
        maybe = best + U * best.abs() + bound >= kth - U * kth.abs() - bound  # the others are below k for certain
        pairs = maybe.flatten().nonzero()[:, 0]
        values = torch.full_like(best, -torch.inf)
        values.view(-1)[pairs] = self.at(pairs.div(few, rounding_mode="floor"), latents.flatten()[pairs])
        chosen = values.topk(k, dim=1, sorted=False)
        found, made = latents.gather(1, chosen.indices), chosen.values
        open_rows = (made.min(1, keepdim=True).values <= low + U * low.abs() + bound).nonzero()[:, 0]
        if len(open_rows):
            made[open_rows], found[open_rows] = self.whole(open_rows).topk(k, dim=1, sorted=False)
        found = found.flatten()
        self.made.append((found, made.flatten()))
        return found

    def above(self, threshold: Tensor | float) -> tuple[Int[Tensor, " pair"], Int[Tensor, " pair"]]:
        """(tokens, latents) whose pre-activation is above a threshold, one for all latents or one each."""
        rough, bound = self.rough(threshold)
        bar = (-bound * (1 + 8 * U)).bfloat16()  # s' + U |s'| + bound > 0 and no rounding of it is left out
        maybe = rough > bar[:, None]
        if int(maybe.count_nonzero()) * MANY > maybe.numel():
            return (self.whole() > threshold).nonzero(as_tuple=True)  # type: ignore[return-value]
        tokens, latents = maybe.nonzero(as_tuple=True)
        bars = self.bias.new_zeros(len(self.bias)) + threshold
        values = self.at(tokens, latents)
        keep = values > bars[latents]
        found = latents[keep]
        self.made.append((found, values[keep]))
        return tokens[keep], found

    def whole(self, rows: Int[Tensor, " token"] | slice = slice(None)) -> Float[Tensor, "token latent"]:
        """All pre-activations of some tokens."""
        return torch.nn.functional.linear(self.x[rows], self.encoder, self.bias)


def few_largest(scores: Float[Tensor, "token latent"], few: int) -> tuple[Tensor, Int[Tensor, "token few"]]:
    """Values and places of the few largest of each row."""
    places, left = divmod(scores.shape[1], PARTS)
    plain = scores.device.type != "cpu" or torch.get_num_threads() > THREADS or not len(scores)
    if plain or left or not few < places <= PLACES:
        return tuple(scores.topk(few, dim=1, sorted=False))  # type: ignore[return-value]
    scores = scores.detach()
    if scores.dtype != torch.bfloat16:
        return _few_largest(scores, few)
    bits = scores.contiguous().view(torch.int16)
    best, found = _few_largest(bits, few)
    if int(best.min()) < 0:  # bits of negative numbers are in the wrong order
        best, found = _few_largest(turned(bits), few)
        best = turned(best)
    return best.view(torch.bfloat16), found


def _few_largest(keys: Tensor, few: int) -> tuple[Tensor, Int[Tensor, "token few"]]:
    parts = keys.reshape(len(keys), PARTS, -1)
    top = _largest_places(parts.amax(1), few)
    keys = parts.gather(2, top[:, None, :].expand(-1, PARTS, -1)).flatten(1)
    best = _largest_places(keys, few)
    part = best.div(few, rounding_mode="floor")
    return keys.gather(1, best), part * parts.shape[2] + top.gather(1, best - part * few)


def _largest_places(keys: Tensor, few: int) -> Int[Tensor, "token few"]:
    """Where the few largest of each row are, in any order. Of 16 bits, each key and its place are one number."""
    if keys.dtype != torch.int16:
        return torch.from_numpy(np.argpartition(keys.numpy(), -few, axis=1)[:, -few:])
    packed = (keys.int() << 16) | torch.arange(keys.shape[1], dtype=torch.int32)
    return torch.from_numpy(np.partition(packed.numpy(), -few, axis=1)[:, -few:]).long() & (PLACES - 1)


def turned(bits: Int[Tensor, "token number"]) -> Int[Tensor, "token number"]:
    """Bits of bf16 as whole numbers in the same order; once more, the bits again."""
    return bits ^ ((bits >> 15) & 0x7FFF)


def row_blocks(*matrices: Float[Tensor, "row number"]) -> Iterator[tuple[Tensor, ...]]:
    """Some rows of each at a time, as many as stay in the processor's cache."""
    rows = max(1, CACHED // matrices[0].shape[1]) if matrices[0].device.type == "cpu" else len(matrices[0])
    return zip(*(matrix.split(rows) for matrix in matrices), strict=True)


def dots(
    a: Float[Tensor, "token d"], rows: Float[Tensor, "latent d"], tokens: Tensor, latents: Tensor, offsets: Tensor | None = None
) -> Float[Tensor, " pair"]:
    """a[token] . row[latent] of each pair; pairs are sorted by token, and `offsets` say where each token's begin.

    Where there are many, those of some tokens are made latent by latent: the tokens stay in the processor's cache.
    """
    if not len(latents):
        return a.new_zeros(0)
    if offsets is None:
        offsets = torch.searchsorted(tokens.contiguous(), torch.arange(len(a), device=a.device))
    near = max(1, NEAR // a.shape[1])  # tokens
    if a.device.type != "cpu" or len(latents) < 4 * len(rows) or (-(-len(a) // near)) * len(rows) > PLACES:
        return _dots(a, rows, latents, offsets, tokens)
    key = (tokens.div(near, rounding_mode="floor") * len(rows) + latents).to(torch.uint16).numpy()
    order = torch.from_numpy(np.argsort(key, kind="stable"))
    found = a.new_empty(len(latents))
    found[order] = _dots(a, rows, latents[order], offsets, tokens[order])
    return found


def _dots(a: Tensor, rows: Tensor, latents: Tensor, offsets: Tensor, tokens: Tensor) -> Tensor:
    """By the kernel that reads each row once."""
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(a, rows, latents, offsets, tokens, 0)


Scores = Tensor | Screened


def whole(pre: Scores) -> Float[Tensor, "token latent"]:
    """All of them, as a matrix."""
    return pre.whole() if isinstance(pre, Screened) else pre
