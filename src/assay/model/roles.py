"""Which tensor may move when one site is perturbed at one position: the roles of sites.

Each role names an outcome site and the region of it that may move; everything outside must stay,
up to rounding, and something inside must move. Sums cannot tell q from k or v; this can.
"""

from collections.abc import Callable

import torch
from torch import Tensor

PLACE = 3  # the position that is perturbed

Region = Callable[[Tensor, int | None, int], Tensor]


def _here(moved: Tensor, head: int | None, group: int) -> Tensor:
    """Only position PLACE (and only one head, where heads are perturbed)."""
    mask = torch.zeros_like(moved, dtype=torch.bool)
    if head is None:
        mask[PLACE] = True
    else:
        mask[PLACE, head * group : (head + 1) * group] = True
    return mask


def _onwards(moved: Tensor, head: int | None, group: int) -> Tensor:
    """Position PLACE and later (and only one KV group's heads, where heads are perturbed)."""
    mask = torch.zeros_like(moved, dtype=torch.bool)
    if head is None:
        mask[PLACE:] = True
    else:
        mask[PLACE:, head * group : (head + 1) * group] = True
    return mask


def _later(moved: Tensor, head: int | None, group: int) -> Tensor:
    """As `_onwards`; the caller also demands that later positions did move."""
    return _onwards(moved, head, group)


def leak(moved: Tensor, base: Tensor, region: Region, head: int | None, group: int) -> float:
    """Movement outside the allowed region, relative to that inside; inf if nothing moved where it must.

    `moved` compares two runs of one batch, so outside it is 0 but for kernels whose shapes depend on
    the data (mixtures of experts): a few roundings are forgiven where the movement is far above them.
    """
    allowed = region(moved, head, group)
    size = moved.float().abs()
    inside = size[allowed].max()
    if region is _later:
        inside = torch.minimum(inside, size[PLACE + 1 :][allowed[PLACE + 1 :]].max())
    if not bool(inside > 0):
        return float("inf")
    outside = size[~allowed].max() if bool((~allowed).any()) else torch.zeros(())
    noise = 4 * torch.finfo(base.dtype).eps * base.float().abs().max()
    forgiven = noise if bool(inside > 4 * noise) else torch.zeros_like(noise)
    return float((outside - forgiven).clamp_min(0) / inside)


ROLES: dict[str, tuple[str, Region, str]] = {
    "q": ("z", _here, "q at p moves z at p, in its own head, and nothing else"),
    "k": ("z", _later, "k at p moves z from p on, in its own KV group, and nothing else"),
    "v": ("z", _later, "v at p moves z from p on, in its own KV group, and nothing else"),
    "attn_in": ("attn_out", _later, "attn_in at p moves attn_out from p on, and nothing else"),
    "mlp_in": ("mlp_out", _here, "mlp_in at p moves mlp_out at p, and nothing else"),
    "resid_pre": ("resid_post", _onwards, "resid_pre at p moves resid_post from p on, and nothing else"),
    "resid_mid": ("resid_post", _here, "resid_mid at p moves resid_post at p, and nothing else"),
    "embed": ("logits", _onwards, "embed at p moves the logits from p on, and nothing else"),
    "final_norm": ("logits", _here, "final_norm at p moves the logits at p, and nothing else"),
    "resid_post": ("logits", _onwards, "resid_post at p moves the logits from p on, and nothing else"),
}
