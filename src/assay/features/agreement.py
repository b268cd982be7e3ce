"""Do two dictionaries have the same latents? Directions compared, and duplicates within one dictionary.

1. Matched cosine: latents of a and b one to one, so that the sum of cosines of their directions is largest (Hungarian
   method); the mean over matches is the MCC.
2. MMCS: mean over latents of a of the largest cosine with any latent of b; a latent of b may be taken many times.
3. Uniqueness: share of a's latents whose nearest latent of b is nobody else's nearest.
4. Shared: share of matches with a cosine of .7 or more (Paulo & Belrose 2025, arXiv 2501.16615).
5. Duplicates: share of latents that have another of the same dictionary within a cosine of .9.

Only latents that are active somewhere should be compared: dead ones keep their random start. Two random dictionaries
are not at 0: `chance` is the MMCS and MCC of directions drawn at random, as many in as many dimensions.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from assay.errors import ShapeError, bad_argument

SHARED, DUPLICATE = 0.7, 0.9
CHUNK = 1 << 24  # cosines at a time
MATCHABLE = 6000  # latents of each: the Hungarian method takes time as the cube of their number


@dataclass(frozen=True)
class Agreement:
    """Of dictionary a with b. `n`: latents compared, of a and b; `sampled`: whether a part of a's was matched with all of b."""

    mcc: float
    mmcs: float
    unique: float
    shared: float
    n: tuple[int, int]
    sampled: bool
    chance_mcc: float
    chance_mmcs: float


def agreement(
    a: Float[Tensor, "latent_a d"], b: Float[Tensor, "latent_b d"], seed: int = 0, most: int = MATCHABLE
) -> Agreement:
    """Directions of two dictionaries, active latents only. Raises ShapeError for other widths or for none,
    UsageError for numbers that are not finite.

    Where they have more than `most` x `most` pairs, as many of a are drawn as have so many with all of b: those that were left
    out take no partner away, so the matching may be a little too good, and identical dictionaries have 1.
    """
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[1] or not len(a) or not len(b):
        raise ShapeError(f"directions: got {tuple(a.shape)} and {tuple(b.shape)}; allowed: (latent, d) of one d, not empty.")
    for rows in (a, b):
        if broken := int((~rows.isfinite()).any(1).sum()):
            raise bad_argument("directions", f"{broken} of {len(rows)} with NaN or infinity", "finite numbers")
    generator = torch.Generator().manual_seed(seed)
    best, place = nearest(a, b)
    drawn = _drawn(a, max(1, most * most // len(b)), generator)
    cosines = matched(drawn, b)
    random = [torch.randn(len(x), x.shape[1], generator=generator) for x in (drawn, b)]
    counts = torch.bincount(place, minlength=len(b))
    return Agreement(
        mcc=float(cosines.mean()), mmcs=float(best.mean()), unique=float((counts[place] == 1).float().mean()),
        shared=float((cosines >= SHARED).float().mean()), n=(len(a), len(b)), sampled=len(drawn) < len(a),
        chance_mcc=float(matched(*random).mean()), chance_mmcs=float(nearest(*random)[0].mean()),
    )  # fmt: skip


def matched(a: Float[Tensor, "latent_a d"], b: Float[Tensor, "latent_b d"]) -> Float[Tensor, " match"]:
    """Cosines of the best one-to-one matching."""
    cosines = _unit(a) @ _unit(b).T
    rows, columns = linear_sum_assignment(cosines.numpy(), maximize=True)
    return cosines[torch.as_tensor(rows), torch.as_tensor(columns)]


def nearest(a: Float[Tensor, "latent_a d"], b: Float[Tensor, "latent_b d"]) -> tuple[Tensor, Tensor]:
    """For each direction of a the largest cosine with one of b, and which."""
    unit_b = _unit(b).T
    parts = [(rows @ unit_b).max(1) for rows in _unit(a).split(max(1, CHUNK // len(b)))]
    return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])


def duplicates(directions: Float[Tensor, "latent d"], alive: Bool[Tensor, " latent"] | None = None) -> float:
    """Share of (active) latents with another one within a cosine of .9; 0 where there are fewer than two."""
    rows = _unit(directions if alive is None else directions[alive])
    if len(rows) < 2:
        return 0.0
    found = 0
    size = max(1, CHUNK // len(rows))
    for start in range(0, len(rows), size):
        cosines = rows[start : start + size] @ rows.T
        own = torch.arange(len(cosines))
        cosines[own, own + start] = -1.0
        found += int((cosines.max(1).values > DUPLICATE).sum())
    return found / len(rows)


def _unit(rows: Float[Tensor, "row d"]) -> Float[Tensor, "row d"]:
    rows = rows.detach().float().cpu()
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)


def _drawn(rows: Float[Tensor, "row d"], most: int, generator: torch.Generator) -> Float[Tensor, "row d"]:
    return rows if len(rows) <= most else rows[torch.randperm(len(rows), generator=generator)[:most]]
