"""Feature visualisation: the picture that a channel, a neuron or a class responds to most, by regularised optimisation.

1. The picture is x = sigmoid(A F(w)). F turns coefficients of frequencies into pixels, each divided by its frequency, so that
   a step moves all scales alike; A mixes colours as they vary together in photographs (A A' is their covariance), so that a
   step moves decorrelated colours (Olah, Mordvintsev & Schubert 2017, "Feature Visualization").
2. The start is the best of 24 pictures of noise, weak to strong: behind a ReLU most noise gives no gradient at all. Adam
   raises the target's number on a randomly shifted, scaled and turned copy of the picture, a new one in each
   step: what only one exact placing of pixels would give does not last.
3. The check, on the picture as it is and on 16 transformed copies: the number beside that of noise and of pictures of a
   dataset; and whether the picture drives this channel more than random other channels of the same site, each in
   standard deviations over the dataset.
4. The control: the same on untrained weights. Optimisation finds a picture above all of a dataset there as well, so beating
   the dataset shows that the search worked, not that the channel stands for what the picture shows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from assay.errors import bad_argument
from assay.model.images import ImageModel
from assay.vision.targets import Target, measure

STARTS = tuple(0.01 * 2**n for n in range(6))  # standard deviations of coefficients at the start
PER_START, COPIES, OTHERS = 4, 16, 19
Progress = Callable[[int], Any]


@dataclass(frozen=True)
class VisualisePlan:
    """`jitter`: shift as a share of the side; `scale`: relative; `rotate`: degrees; each at most, to either side."""

    steps: int = 256
    lr: float = 0.05
    jitter: float = 0.06
    scale: float = 0.1
    rotate: float = 10.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise bad_argument("steps", self.steps, "1 or more")
        for name, most in (("jitter", 0.5), ("scale", 0.9), ("rotate", 180.0)):
            if not 0 <= getattr(self, name) <= most:
                raise bad_argument(name, getattr(self, name), f"0 to {most}")
        if not self.lr > 0:
            raise bad_argument("lr", self.lr, "above 0")


@dataclass(frozen=True, eq=False)
class Visualisation:
    """A picture (channel, size, size) in 0..1, the target's number on it, on the best noise, and on transformed copies (mean).

    `moved`: False where no start had a gradient; the picture is then noise.
    """

    target: str
    image: Float[Tensor, "channel size size"]
    activation: float
    noise: float
    transformed: float
    history: tuple[float, ...]
    moved: bool = True


@dataclass(frozen=True)
class Checked:
    """Beside a dataset of n pictures and beside other channels. `z`: in standard deviations over the dataset.

    `others`: that of random other channels (or classes) on the same picture; `rank`: (1 + those at least as high) / (1 + all).
    """

    n: int
    highest: float
    mean: float
    above_all: bool
    transformed_above_all: bool
    z: float
    others: tuple[float, ...]
    rank: float


def visualise(
    model: ImageModel, target: Target, plan: VisualisePlan | None = None, progress: Progress | None = None
) -> Visualisation:
    """Search the picture that raises a target most. The same plan gives the same picture."""
    plan, size = plan or VisualisePlan(), model.pixels.size
    generator = torch.Generator().manual_seed(plan.seed)
    noise, weights = _start(model, target, generator)
    optimiser, history, moved = torch.optim.Adam([weights], lr=plan.lr), [], False
    for _ in range(plan.steps):
        x = transformed(picture(weights, size), plan, generator)
        logits, found = model.forward(x, target.sites, logits=target.site is None)
        reached = target.of(logits, found).sum()
        (grad,) = torch.autograd.grad(-reached, weights)
        weights.grad, moved = grad, moved or bool((grad != 0).any())
        optimiser.step()
        history.append(float(reached.detach()))
        if progress is not None:
            progress(1)
    image = picture(weights.detach(), size)
    copies = transformed(image.expand(COPIES, -1, -1, -1), plan, generator)
    return Visualisation(target.name, image[0].cpu(), float(measure(model, image, target)[0]), noise,
                         float(measure(model, copies, target).mean()), tuple(history), moved)  # fmt: skip


def _start(model: ImageModel, target: Target, generator: torch.Generator) -> tuple[float, Tensor]:
    """The target's number on the best picture of noise, and that picture's coefficients, to be optimised."""
    size = model.pixels.size
    shape = (PER_START * len(STARTS), model.pixels.channels, size, size // 2 + 1, 2)
    drawn = torch.randn(shape, generator=generator)
    drawn *= torch.tensor(STARTS).repeat_interleave(PER_START)[:, None, None, None, None]
    numbers = measure(model, picture(drawn, size), target)
    best = int(numbers.argmax())
    return float(numbers[best]), drawn[best : best + 1].clone().to(model.device).requires_grad_()


def picture(weights: Float[Tensor, "n channel size half 2"], size: int) -> Float[Tensor, "n channel size size"]:
    """Coefficients of frequencies as pixels in 0..1."""
    rows, columns = torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)[None]
    frequency = (rows**2 + columns**2).sqrt().clamp_min(1 / size).to(weights.device)
    spectrum = torch.view_as_complex(weights.contiguous()) / frequency
    pixels = torch.fft.irfft2(spectrum, s=(size, size), norm="ortho")
    if pixels.shape[1] == 3:
        pixels = torch.einsum("ij,njhw->nihw", colour_mix().to(pixels), pixels)
    return pixels.sigmoid()


@lru_cache(maxsize=1)
def colour_mix() -> Float[Tensor, "3 3"]:
    """A with A A' the covariance of colours in packaged photographs, scaled so that the longest column has length 1."""
    from assay.data.image_sets import photographs
    from assay.data.images import load_images

    pixels = load_images([str(path) for path in photographs()], 64).transpose(0, 1).flatten(1).double()
    values, vectors = np.linalg.eigh(torch.cov(pixels).numpy())
    mix = torch.tensor(vectors * np.sqrt(values.clip(0)))
    return (mix / mix.norm(dim=0).max()).float()


def transformed(images: Tensor, plan: VisualisePlan, generator: torch.Generator) -> Tensor:
    """Each picture shifted, scaled and turned at random, what lies outside mirrored."""
    draws = torch.rand(4, len(images), generator=generator) * 2 - 1
    turn, grow = draws[0] * plan.rotate * torch.pi / 180, 1 + draws[1] * plan.scale
    cos, sin = turn.cos() / grow, turn.sin() / grow
    theta = torch.stack([torch.stack([cos, -sin, 2 * plan.jitter * draws[2]], 1),
                         torch.stack([sin, cos, 2 * plan.jitter * draws[3]], 1)], 1)  # fmt: skip
    grid = F.affine_grid(theta.to(images), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def check(model: ImageModel, found: Visualisation, target: Target, images: Tensor, seed: int = 0) -> Checked:
    """A visualisation beside pictures of a dataset (n, channel, size, size), two at least, and beside other channels."""
    if len(images) < 2:
        raise bad_argument("images", len(images), "2 pictures at least")
    own = measure(model, images, target).double()
    spread = float(own.std())
    z = (found.activation - float(own.mean())) / max(spread, 1e-12)
    whole = Target(None, classes=(0,)) if target.site is None else Target(target.site, None, target.place)
    data, here = _profile(model, images, whole), _profile(model, found.image[None], whole)[0]
    others = (here - data.mean(0)) / data.std(0).clamp_min(1e-12)
    free = [c for c in range(len(others)) if c != target.index and c not in target.classes and float(data[:, c].std()) > 0]
    drawn = np.random.default_rng(seed).permutation(free)[:OTHERS].tolist()
    scores = tuple(float(others[c]) for c in drawn)
    highest = float(own.max())
    return Checked(len(images), highest, float(own.mean()), found.activation > highest, found.transformed > highest, z, scores,
                   (1 + sum(score >= z for score in scores)) / (1 + len(scores)))  # fmt: skip


def _profile(model: ImageModel, images: Tensor, target: Target) -> Float[Tensor, "n channel"]:
    """The number of every channel of a site, or of every class."""
    if target.site is None:
        return model.logits(images).double()
    if target.place is None:
        return model.pooled(images, target.site, "mean").double()
    value = model.capture(images, [target.site])[target.site]
    value = value if value.ndim == 4 else value.transpose(1, 2)
    return value[(slice(None), slice(None), *target.place)].double()
