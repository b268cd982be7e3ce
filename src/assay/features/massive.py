"""Massive positions: the few tokens whose norm is far above all others, and the first of each text.

1. At a site the limit is `factor` (10) times the median norm of a first sample of tokens that are not at the start of
   their row (Sun et al. 2024, "Massive activations in large language models": a few positions carry most of the norm).
2. A site behind a norm (attn_in, mlp_in, q, k, v, z, mlp_act, final_norm) does not show it: the residual stream that
   enters its layer is read as a guard, with a limit of its own.
3. A token is typical if its position is at least `skip_first` and no site and no guard is above its limit.
4. For classes c = first positions, massive others, typical: share of variance_c = sum_c |x - mean|^2 / sum |x - mean|^2,
   from sums that add up over shards: |x|^2, x and counts per class, in float64.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from assay.data.corpus_rows import Rows
from assay.errors import CorpusError, ModelError, bad_argument
from assay.features.passes import Group, walk_rows
from assay.model.model import Model
from assay.sites import Site

BEHIND_NORM = ("attn_in", "mlp_in", "q", "k", "v", "z", "mlp_act")
SAMPLE = 2048  # tokens the medians are from
CLASSES = ("first", "massive", "typical")


@dataclass(frozen=True)
class Limits:
    """Norms above which a token is massive. `guards`: residual site for each site behind a norm. No limit: `factor` None."""

    skip_first: int
    factor: float | None
    medians: Mapping[str, float]
    guards: Mapping[str, str]
    sizes: Mapping[str, int]
    sample: int = SAMPLE

    def of(self, site: str | Site) -> float | None:
        """The limit at a site or guard; None where the usual token has norm 0 (one neuron, say, that seldom fires)."""
        return (self.factor or 0.0) * self.medians[str(site)] or None

    @staticmethod
    def of_json(record: Mapping[str, Any], sizes: Mapping[str, int]) -> "Limits":
        """From what `json` made."""
        guards = {site: record["guards"].get(site, {"site": site})["site"] for site in record["norm_limits"]}
        return Limits(record["skip_first"], record["factor"], record["medians"], guards, sizes, record["sample"])

    @property
    def norm_limits(self) -> dict[str, float | None]:
        """The limit of each site that is kept."""
        return {site: self.of(site) for site in self.guards}

    def json(self) -> dict[str, Any]:
        """As plain values."""
        guards = {site: {"site": guard, "limit": self.of(guard)} for site, guard in self.guards.items() if guard != site}
        return {"skip_first": self.skip_first, "factor": self.factor, "sample": self.sample,
                "medians": dict(self.medians), "norm_limits": self.norm_limits, "guards": guards}  # fmt: skip


def guard_of(model: Model, site: Site) -> Site:
    """Where massive positions of a site show: itself, or the residual stream that its layer reads."""
    if site.name == "final_norm":
        wanted = Site("resid_post", model.n_layers - 1)
    elif site.name in BEHIND_NORM:
        wanted = Site("resid_pre", site.layer)
    else:
        return site
    return wanted if wanted in model.layout.points and wanted not in model.layout.refused else site


def check_factor(factor: float | None) -> None:
    """Raises UsageError for one that is no limit."""
    if factor is not None and not 1 < factor < math.inf:
        raise bad_argument("factor", factor, "a number above 1, or None for no limit")


def measure_limits(
    model: Model, rows: Rows, sites: Sequence[Site], skip_first: int = 1, factor: float | None = 10.0, seed: int = 0
) -> Limits:
    """Limits of these sites on a sample of rows, drawn by seed. Raises CorpusError where no row is long enough."""
    if skip_first < 0:
        raise bad_argument("skip_first", skip_first, "0 or more")
    check_factor(factor)
    guards = {str(site): str(guard_of(model, site)) for site in sites}
    read = list(dict.fromkeys([*sites, *(guard_of(model, site) for site in sites)]))
    norms: dict[str, list[Tensor]] = {str(site): [] for site in read}
    sizes: dict[str, int] = {}

    def take(group: Group, site: Site, values: Tensor) -> None:
        sizes[str(site)] = values.shape[1]
        norms[str(site)].append(norms_of(site, values)[group.positions >= skip_first])

    sample = _sample(rows, skip_first, seed)
    walk_rows(model, sample, read, take)
    medians = {site: float(torch.cat(found).median()) for site, found in norms.items()}
    return Limits(skip_first, factor, medians, guards, {str(site): sizes[str(site)] for site in sites})


def _sample(rows: Rows, skip_first: int, seed: int) -> list[np.ndarray]:
    able = np.flatnonzero(rows.lengths > skip_first)
    if not len(able):
        raise CorpusError(f"corpus: no row is longer than {skip_first} tokens, the part that is left out (skip_first).")
    chosen, size = [], 0
    for row in np.random.default_rng([seed, 3]).permutation(len(able))[:SAMPLE]:
        chosen.append(np.asarray(rows.tokens(int(able[row]))))
        size += len(chosen[-1])
        if size >= SAMPLE:
            break
    return chosen


def norms_of(site: Site | str, values: Float[Tensor, "token d"]) -> Float[Tensor, " token"]:
    """Norms on the CPU in fp32. Raises ModelError for values that are not finite."""
    norms = torch.linalg.vector_norm(values, dim=1, dtype=torch.float32).cpu()
    if not bool(torch.isfinite(norms).all()):
        raise ModelError(f"site {site}: the model gives values that are not finite. Run it with another --dtype.")
    return norms


@dataclass(eq=False)
class Mask:
    """Which of some tokens are massive, filled pass by pass."""

    limits: Limits
    massive: Bool[Tensor, " token"]

    def see(self, group: Group, site: Site, norms: Float[Tensor, " token"]) -> None:
        """Norms of one site in one pass."""
        limit = self.limits.of(site)
        if limit is not None and (over := norms > limit).any():
            self.massive[group.slots[over]] = True


@dataclass(eq=False)
class Sums:
    """Counts, sums and squares of one site per class; they add up over shards. total (3, d), squares (3,), counts (3,)."""

    total: Float[Tensor, "3 d"]
    squares: Float[Tensor, "3"]
    counts: Float[Tensor, "3"]

    @staticmethod
    def of(values: Float[Tensor, "token d"], kinds: Tensor) -> "Sums":
        """Of tokens; `kinds`: the number of each one's class in CLASSES."""
        total = torch.zeros(3, values.shape[1], dtype=torch.float64)
        squares, counts = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
        for part, kind in zip(values.split(8192), kinds.split(8192), strict=True):
            part = part.float()
            norms = torch.linalg.vector_norm(part, dim=1).double().square()
            squares.index_add_(0, kind, norms)
            counts.index_add_(0, kind, torch.ones_like(norms))
            odd = kind != 2
            total[2] += part.sum(0, dtype=torch.float64)
            if odd.any():
                rest = part[odd].double()
                total.index_add_(0, kind[odd], rest)
                total[2] -= rest.sum(0)
        return Sums(total, squares, counts)

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(self.total + other.total, self.squares + other.squares, self.counts + other.counts)

    def record(self) -> dict[str, Any]:
        """{class: {"tokens", "share_of_variance", "mean_square"}} with the mean over all tokens."""
        mean = self.total.sum(0) / self.counts.sum()
        around = self.squares - 2 * self.total @ mean + self.counts * mean.square().sum()
        whole = float(around.sum())
        return {name: {"tokens": int(self.counts[at]), "share_of_variance": float(around[at]) / whole if whole > 0 else 0.0,
                       "mean_square": float(self.squares[at] / self.counts[at]) if self.counts[at] else None}
                for at, name in enumerate(CLASSES)}  # fmt: skip


def kinds_of(positions: Tensor, massive: Bool[Tensor, " token"], skip_first: int) -> Tensor:
    """Numbers in CLASSES: first positions are first, whatever their norm."""
    kinds = torch.full((len(positions),), 2)
    kinds[massive] = 1
    kinds[positions < skip_first] = 0
    return kinds
