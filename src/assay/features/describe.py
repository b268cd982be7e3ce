"""What can be said of a dictionary from its numbers alone: sizes, norms, what encoder and decoder share, near-duplicates.

Near-duplicates: latents whose decoder row has a cosine above `bar` with another's. All pairs are looked at, a block of rows
at a time; above `most` latents, a sample of that many against all, which is said.

Of a crosscoder: at which of its sites latents write, by the share of each site in their decoder norms (Lindsey et al. 2024).
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from assay.features.architectures.crosscoder import Crosscoder
from assay.features.dictionary import Dictionary

BAR, MOST, BLOCK, SHOWN = 0.9, 16384, 1024, 10
ALONE = 0.9  # share of a site from which a latent is of that site alone


@dataclass(frozen=True)
class Duplicates:
    """`count` of `looked_at` latents have a near-duplicate; `closest`: (latent, other, cosine), the most alike first."""

    bar: float
    looked_at: int
    count: int
    closest: tuple[tuple[int, int, float], ...]


@dataclass(frozen=True)
class Alone:
    """Latents of a crosscoder that write at one site alone: how many, and those with the largest share of it."""

    site: str
    count: int
    most: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Description:
    """Numbers of a dictionary. Norms are least, median and greatest; `tied`: mean cosine of encoder and decoder rows;
    `alone`: for each site of a crosscoder."""

    numbers: int
    decoder_norms: tuple[float, float, float]
    encoder_norms: tuple[float, float, float]
    bias_norm: float
    never_written: int
    tied: float | None
    duplicates: Duplicates
    settings: dict[str, Any]
    alone: tuple[Alone, ...] = ()


def describe(dictionary: Dictionary, bar: float = BAR, most: int = MOST) -> Description:
    """Of any dictionary. `never_written`: latents whose decoder row is zero; `settings`: what the architecture adds."""
    encoder, decoder = dictionary.W_enc.detach().float(), dictionary.directions().float()
    tied = None
    if encoder.shape == decoder.shape:
        tied = float(torch.nn.functional.cosine_similarity(encoder, decoder, dim=1).mean())
    norms = decoder.norm(dim=1)
    threshold = dictionary.state_dict().get("threshold")
    settings = {} if threshold is None else {"threshold": _three(threshold.float().reshape(-1))}
    return Description(
        sum(value.numel() for value in dictionary.state_dict().values()),
        _three(norms),
        _three(encoder.norm(dim=1)),
        float(dictionary.b_dec.detach().norm()),
        int((norms == 0).sum()),
        tied,
        duplicates(decoder, bar, most),
        settings,
        alone(dictionary) if isinstance(dictionary, Crosscoder) else (),
    )


def alone(crosscoder: Crosscoder) -> tuple[Alone, ...]:
    """Latents of each site alone, those that are never active included: they stay as training began."""
    shares, sites = crosscoder.shares(), crosscoder.spec.inputs or tuple(map(str, range(len(crosscoder.sizes))))
    found = []
    for site, column in zip(sites, shares.T, strict=True):
        count = int((column > ALONE).sum())
        best = column.topk(min(SHOWN, count))
        found.append(Alone(site, count, tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))))
    return tuple(found)


def duplicates(decoder: Float[Tensor, "latent d"], bar: float = BAR, most: int = MOST) -> Duplicates:
    """Decoder rows that point almost the same way."""
    rows = torch.nn.functional.normalize(decoder, dim=1)
    chosen = torch.arange(len(rows))
    if len(rows) > most:
        chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:most].sort().values
    count, found = 0, []
    for part in chosen.split(BLOCK):
        cosines = rows[part] @ rows.T
        cosines[torch.arange(len(part)), part] = -1.0  # not with itself
        best = cosines.max(dim=1)
        alike = best.values > bar
        count += int(alike.sum())
        found += zip(part[alike].tolist(), best.indices[alike].tolist(), best.values[alike].tolist(), strict=True)
    pairs = {(min(one, other), max(one, other)): cosine for one, other, cosine in found}
    closest = sorted(((*pair, cosine) for pair, cosine in pairs.items()), key=lambda row: (-row[2], row[:2]))[:SHOWN]
    return Duplicates(bar, len(chosen), count, tuple(closest))


def _three(values: Float[Tensor, " n"]) -> tuple[float, float, float]:
    """Least, median, greatest."""
    return float(values.min()), float(values.median()), float(values.max())
