"""Watch a model's own attention kernel, whatever the family calls it.

1. While an attention module runs, the torch calls it makes are seen through a function mode.
2. Fused kernel (`scaled_dot_product_attention`): the real kernel still computes the output; the
   pattern is computed beside it, from the very queries, keys, mask and scale it was given.
3. Eager kernel (`softmax` over the key axis): its result is the pattern.
4. An edited pattern replaces that layer's output only: fused, `pattern @ v`; eager, the softmax result.

Only whole prompts are watched (as many keys as queries, plus a sink column in some families).
Patterns of kernels that are neither (flash attention, custom CUDA) are not seen, hence not offered.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

PatternHook = Callable[[Tensor], Tensor | None]
_SOFTMAX = (F.softmax, torch.softmax, Tensor.softmax)


class KernelWatch(TorchFunctionMode):
    """Calls `on_pattern(pattern)` for each attention pattern while `on_pattern` is set.

    `on_pattern` gets (batch, head, query, key) and returns None, or the pattern to use instead.
    """

    def __init__(self) -> None:
        super().__init__()
        self.on_pattern: PatternHook | None = None
        self.calls = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.on_pattern is None:
            return func(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            return self._fused(func, args, kwargs)
        result = func(*args, **kwargs)
        if func in _SOFTMAX and isinstance(result, Tensor) and result.dim() == 4:
            return self._eager(result)
        return result

    def _eager(self, result: Tensor) -> Tensor:
        """The softmax of an eager kernel; a last column beyond the keys is an attention sink."""
        assert self.on_pattern is not None
        self.calls += 1
        n_keys = min(result.shape[-1], result.shape[-2])
        edited = self.on_pattern(result[..., :n_keys])
        return result if edited is None else torch.cat([edited, result[..., n_keys:]], -1)

    def _fused(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
        call = {**dict(zip(names, args, strict=False)), **kwargs}
        query, key, value = call["query"], call["key"], call["value"]
        self.calls += 1
        pattern = fused_pattern(
            query, key, call.get("attn_mask"), bool(call.get("is_causal")), call.get("scale")
        )
        edited = self.on_pattern(pattern) if self.on_pattern else None
        if edited is None:
            return func(*args, **kwargs)
        return edited @ _per_query_head(value, query.shape[1])


def fused_pattern(
    query: Float[Tensor, "batch head query d_head"],
    key: Float[Tensor, "batch kv_head key d_head"],
    mask: Tensor | None,
    is_causal: bool,
    scale: float | None,
) -> Float[Tensor, "batch head query key"]:
    """The pattern a fused kernel uses: softmax(q k^T scale + mask), softmax in fp32."""
    scores = query @ _per_query_head(key, query.shape[1]).transpose(-1, -2)
    scores = scores.float() * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(future, float("-inf"))
    if mask is not None:
        masked = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
        scores = masked
    pattern = scores.softmax(-1)
    return pattern.nan_to_num(0.0).to(query.dtype)  # rows of padding see nothing: NaN


def _per_query_head(x: Tensor, n_heads: int) -> Tensor:
    """Keys or values repeated so that there is one per query head."""
    return x if x.shape[1] == n_heads else x.repeat_interleave(n_heads // x.shape[1], dim=1)
