"""How much superposition: more features than dimensions, features spread over neurons. Numbers, no verdicts.

1. Dimensionality of feature i with weight row W_i (Elhage et al. 2022):
       D_i = |W_i|^2 / sum_j (W_i / |W_i| . W_j)^2
   1: a dimension of its own; 1/2: an antipodal pair; 2/3: a triangle; 3/4: a tetrahedron; 2/5: a pentagon.
   sum_i D_i is at most the number of dimensions, and equal to it where the rows form a tight frame.
2. Dimensions per feature of a whole layer: m / |W|_F^2, with features of norm 1 counting as one each.
3. Interference: |cosine| of every pair of directions, against as many random directions in as many dimensions. Of
   random ones E cos^2 = 1/d; no n > d directions have a largest |cosine| below sqrt((n - d) / (d (n - 1))) (Welch 1974).
4. Participation ratio of numbers x: (sum x^2)^2 / sum x^4, from 1 (all on one) to n (equal on all); n/3 for Gaussian
   numbers. Of activations: (sum l)^2 / sum l^2 over eigenvalues l of their covariance, the dimensions they fill.
5. A latent's spread over neurons: participation ratio of its weights on them. In a dictionary of `mlp_act` they are its
   decoder row; anywhere in the residual stream, the products of its direction with what each neuron writes.

Geometry only: that a direction lies across neurons does not say that the model uses it as one thing.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from assay.errors import ShapeError, SiteError, bad_argument
from assay.model.model import Model
from assay.model.readers import affine
from assay.sites import Site

CHUNK = 1024  # directions compared at a time
BINS = 200  # of |cosine|, from 0 to 1
QUANTILES = (0.5, 0.9, 0.99, 0.999)
FIRST = 1  # positions at the start of each text that are left out: massive activations sit there


# features in dimensions ---------------------------------------------------------------------------


def dimensionality(weights: Float[Tensor, "feature m"]) -> Float[Tensor, " feature"]:
    """D_i of every row; 0 for a row of zeros (a feature that is not represented)."""
    rows = weights.double()
    squares = rows.square().sum(1)
    overlap = torch.zeros_like(squares)
    for part in rows.split(CHUNK):
        overlap += (rows @ part.T).square().sum(1)  # |W_i|^2 sum_j (W_i_hat . W_j)^2
    return torch.where(squares > 0, squares.square() / overlap.clamp_min(torch.finfo(torch.float64).tiny), 0.0)


def dimensions_per_feature(weights: Float[Tensor, "*model feature m"]) -> Float[Tensor, "*model"]:
    """m / |W|_F^2; infinite where nothing is represented."""
    return weights.shape[-1] / weights.double().square().sum((-2, -1))


def participation_ratio(x: Float[Tensor, "*row n"]) -> Float[Tensor, "*row"]:
    """(sum x^2)^2 / sum x^4 along the last axis: over how many entries the weight is spread; 0 for zeros."""
    squares = x.double().square()
    total, fourth = squares.sum(-1).square(), squares.square().sum(-1)
    return torch.where(fourth > 0, total / fourth.clamp_min(torch.finfo(torch.float64).tiny), 0.0)


def effective_dimensions(rows: Float[Tensor, "n d"], centred: bool = True) -> float:
    """Participation ratio of the eigenvalues of the rows' covariance (second moments where not centred): 1 to d."""
    x = rows.double()
    x = x - x.mean(0) if centred else x
    moments = x.T @ x if x.shape[1] <= x.shape[0] else x @ x.T  # the same eigenvalues but for zeros
    return _effective(moments)


def _effective(moments: Float[Tensor, "d d"]) -> float:
    """(sum l)^2 / sum l^2 = trace^2 / |.|_F^2, without eigenvalues."""
    spread = float(moments.square().sum())
    return float(moments.trace()) ** 2 / spread if spread > 0 else 0.0


# interference -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Interference:
    """|cosine| over all pairs of n directions in d dimensions. `mean_square`: of cosines; `quantiles`: of |cosine| at
    `QUANTILES`, to 1/200; `nearest`: mean over directions of their largest |cosine|; `welch`: no n directions have a
    smaller largest one. `random_*`: the same of n Gaussian directions. `histogram`: pairs per bin of |cosine|."""

    n: int
    d: int
    mean_square: float
    quantiles: tuple[float, ...]
    nearest: float
    largest: float
    welch: float
    random_mean_square: float
    random_quantiles: tuple[float, ...]
    random_nearest: float
    histogram: tuple[int, ...]
    random_histogram: tuple[int, ...]


def interference(directions: Float[Tensor, "n d"], seed: int = 0) -> Interference:
    """Cosines between directions, rows of zeros left out. Raises UsageError for fewer than two.

    Time grows with n^2 d, memory with n.
    """
    kept = directions.float()[directions.float().norm(dim=1) > 0]
    n, d = kept.shape
    if n < 2:
        raise bad_argument("directions", f"{n} that are not zero", "2 or more")
    drawn = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    own, random = _cosines(kept), _cosines(drawn)
    welch = math.sqrt((n - d) / (d * (n - 1))) if n > d else 0.0
    return Interference(n, d, own[1], _quantiles(own[0]), own[2], own[3], welch, random[1], _quantiles(random[0]),
                        random[2], tuple(own[0].tolist()), tuple(random[0].tolist()))  # fmt: skip


def _cosines(rows: Float[Tensor, "n d"]) -> tuple[np.ndarray, float, float, float]:
    """(pairs per bin of |cosine|, mean cos^2, mean of the largest per row, largest of all), each pair once."""
    n, units = len(rows), rows / rows.norm(dim=1, keepdim=True)
    counts, squares, nearest = torch.zeros(BINS, dtype=torch.float64), 0.0, torch.zeros(n)
    for start in range(0, n, CHUNK):
        found = (units[start : start + CHUNK] @ units.T).abs().clamp(max=1.0)
        found[torch.arange(len(found)), torch.arange(start, start + len(found))] = 0.0
        counts += torch.histc(found, BINS, 0.0, 1.0).double()
        counts[0] -= len(found)  # the diagonal
        squares += float(found.double().square().sum())
        nearest[start : start + len(found)] = found.max(1).values
    return (counts / 2).round().long().numpy(), squares / (n * (n - 1)), float(nearest.mean()), float(nearest.max())


def _quantiles(histogram: np.ndarray) -> tuple[float, ...]:
    """Upper edges of the bins that hold them."""
    share = np.cumsum(histogram) / max(1, histogram.sum())
    return tuple(float((np.searchsorted(share, q) + 1) / BINS) for q in QUANTILES)


# neurons ------------------------------------------------------------------------------------------


def neuron_outputs(model: Model, layer: int) -> Float[Tensor, "neuron d_model"]:
    """What each neuron of an MLP adds to the residual stream when it is 1 (before a norm behind it, if there is one).

    Raises SiteError where the model offers no neurons there.
    """
    (site,) = model.sites([Site("mlp_act", layer)])
    point = model.layout.points[site]
    if point.side != "in":
        raise SiteError(f"site {site}: what these neurons write is not one matrix in {model.name}.")
    weight, _ = affine(model.hf.get_submodule(point.path), model.dims.d_mlp)
    return weight.detach().float().cpu()


def spread_over_neurons(
    directions: Float[Tensor, "latent d"], neurons: Float[Tensor, "neuron d"] | None = None
) -> Float[Tensor, " latent"]:
    """Over how many neurons each direction is spread: participation ratio of directions @ neurons^T.

    Without `neurons` the directions are in the neuron basis already. Raises ShapeError when they do not fit.
    """
    if neurons is not None and neurons.shape[1] != directions.shape[1]:
        raise ShapeError(f"neurons: got shape {tuple(neurons.shape)}; allowed: (neuron, {directions.shape[1]}).")
    parts = [part if neurons is None else part.float() @ neurons.float().T for part in directions.split(CHUNK)]
    return torch.cat([participation_ratio(part) for part in parts]) if parts else directions.new_zeros(0)


def random_spread(n_neurons: int) -> float:
    """What random directions have: n / 3 for many neurons, exactly E[(sum x^2)^2] / E[sum x^4] = (n + 2) / 3."""
    return (n_neurons + 2) / 3


# layers -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LayerSummary:
    """One MLP. `neurons_per_token`: mean participation ratio of a token's activations over neurons. `filled`: dimensions that
    the activations of neurons fill, `stream_filled`: those of the residual stream behind the block. `output_interference`:
    mean cos^2 of what neurons write, in units of random directions. `kurtosis`: of a neuron's activation, the median over
    neurons (3 for a Gaussian; sparse ones have more)."""

    layer: int
    n_neurons: int
    d_model: int
    n_tokens: int
    neurons_per_token: float
    filled: float
    stream_filled: float
    output_interference: float
    kurtosis: float


class _Moments:
    """Sums over tokens of one site."""

    def __init__(self, width: int) -> None:
        self.n, self.spread = 0, 0.0
        self.outer = torch.zeros(width, width, dtype=torch.float64)
        self.powers = torch.zeros(4, width, dtype=torch.float64)

    def add(self, x: Float[Tensor, "token d"]) -> None:
        x = x.double()
        self.n += len(x)
        self.outer.addmm_(x.T, x)
        self.powers += torch.stack([x.sum(0), x.square().sum(0), x.pow(3).sum(0), x.pow(4).sum(0)])
        self.spread += float(participation_ratio(x).sum())

    @property
    def filled(self) -> float:
        mean = self.powers[0] / self.n
        return _effective(self.outer / self.n - torch.outer(mean, mean))

    @property
    def kurtosis(self) -> float:
        m, m2, m3, m4 = self.powers / self.n
        variance = m2 - m.square()
        fourth = m4 - 4 * m * m3 + 6 * m.square() * m2 - 3 * m.pow(4)
        alive = variance > 1e-12 * m2.clamp_min(1e-30)
        return float((fourth / variance.square())[alive].median()) if bool(alive.any()) else float("nan")


def layer_summaries(
    model: Model, texts: Iterable[Sequence[Sequence[int]]], layers: Sequence[int], first: int = FIRST
) -> list[LayerSummary]:
    """Summaries of some layers from batches of token ids, read once; memory grows with d_mlp^2 per layer.

    `first` positions of every text are left out. Raises UsageError when no token is left.
    """
    sites = {layer: (model.sites([Site("mlp_act", layer)])[0], Site("resid_post", layer)) for layer in layers}
    sums = {layer: (_Moments(model.dims.d_mlp), _Moments(model.dims.d_model)) for layer in sites}
    for batch in texts:
        acts = model.capture([list(ids) for ids in batch], [site for pair in sites.values() for site in pair])
        keep = torch.cat([torch.arange(length) >= first for length in acts.lengths])
        for layer, pair in sites.items():
            for held, site in zip(sums[layer], pair, strict=True):
                held.add(acts.flat(site)[keep].float())
    if not sums or not next(iter(sums.values()))[0].n:
        raise bad_argument("texts", "no tokens", f"texts of more than {first} tokens")
    return [_summary(model, layer, *held) for layer, held in sums.items()]


def _summary(model: Model, layer: int, neurons: _Moments, stream: _Moments) -> LayerSummary:
    written = neuron_outputs(model, layer)
    written = written[written.norm(dim=1) > 0]
    overlap = _cosines(written)[1] * written.shape[1] if len(written) > 1 else float("nan")
    return LayerSummary(layer, model.dims.d_mlp, model.dims.d_model, neurons.n, neurons.spread / neurons.n, neurons.filled,
                        stream.filled, overlap, neurons.kurtosis)  # fmt: skip
