"""What a dictionary must beat: directions that were never fitted, read with the best sparse code there is.

1. Frozen decoder: isotropic unit directions. Soft-frozen: the same, each turned towards the tune activation that
   lies nearest to it, up to a cosine of .8 with where it was. Covariance: drawn from the covariance of tune
   activations. As many as the claimed dictionary has. (Korznikov et al. 2026.)
2. Codes: orthogonal matching pursuit (Pati et al. 1993) around the tune mean, with as many latents per example as
   the claimed dictionary uses on it; only directions that point towards the rest are taken. A trained encoder
   would do worse with the same directions, so the baselines are not weaker than their names say.

A frozen *encoder* is not among them: it needs training. Beating random directions in explained variance does
not make the claimed ones meaningful.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

SOFT_COSINE = 0.8


def baselines(tune: Float[Tensor, "example d"], n: int, seed: int) -> dict[str, Float[Tensor, "latent d"]]:
    """Unit directions of three pools; `tune` holds centred activations."""
    rng = np.random.default_rng([seed, 31])
    frozen = unit(torch.tensor(rng.standard_normal((n, tune.shape[1])), dtype=torch.float32))
    mixed = torch.tensor(rng.standard_normal((n, len(tune))), dtype=torch.float32) @ tune
    return {"frozen": frozen, "soft frozen": soft_frozen(frozen, unit(tune)), "covariance": unit(mixed)}


def soft_frozen(
    frozen: Float[Tensor, "latent d"], towards: Float[Tensor, "example d"]
) -> Float[Tensor, "latent d"]:
    """Every direction turned towards the nearest of `towards`, to a cosine of .8 with itself at most."""
    cosines = frozen @ towards.T
    best, place = cosines.max(1)
    rest = unit(towards[place] - best[:, None] * frozen)
    angle = torch.arccos(best.clamp(-1, 1)).clamp(max=float(np.arccos(SOFT_COSINE)))
    return torch.cos(angle)[:, None] * frozen + torch.sin(angle)[:, None] * rest


def unit(rows: Float[Tensor, "row d"]) -> Float[Tensor, "row d"]:
    """Rows of norm 1; zeros stay."""
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)


def greedy_codes(
    acts: Float[Tensor, "example d"], directions: Float[Tensor, "latent d"], counts: Sequence[int]
) -> Float[Tensor, "example latent"]:
    """Orthogonal matching pursuit: `counts[i]` unit directions for centred example i, fitted by least squares."""
    left = torch.as_tensor(list(counts)).clamp(max=min(directions.shape))
    chosen, basis, rest = torch.zeros(len(acts), 0, dtype=torch.long), torch.zeros(len(acts), 0, acts.shape[1]), acts.clone()
    for _ in range(int(left.max()) if len(left) else 0):
        scores = (rest @ directions.T).scatter_(1, chosen, -float("inf"))
        newest = scores.argmax(1, keepdim=True)
        new = directions[newest[:, 0]]
        for _ in range(2):  # once is not enough in single precision
            new = new - torch.einsum("ns,nsd->nd", torch.einsum("nsd,nd->ns", basis, new), basis)
        new = unit(new)
        rest = rest - (rest * new).sum(1, keepdim=True) * new
        chosen, basis = torch.cat([chosen, newest], 1), torch.cat([basis, new[:, None]], 1)
    codes = torch.zeros(len(acts), len(directions))
    for count in sorted(set(left.tolist()) - {0}):
        rows = (left == count).nonzero()[:, 0]
        picked = chosen[rows, :count]
        fitted = torch.linalg.lstsq(directions[picked].transpose(1, 2), acts[rows][:, :, None], driver="gelsd").solution
        codes[rows[:, None], picked] = fitted[:, :, 0]
    return codes
