"""Circuits between channels by weights: the linear map that convolutions make from one site to another.

1. Between two maps only convolutions, batch norms (constants in use), pooling and additions are left when activation functions
   are taken out: what is left is affine, and its slope is the product of all weights between, with norms folded in, through
   depthwise and pointwise convolutions and around skips ("expanded weights": Voss et al. 2021, "Visualizing Weights").
2. The slope is read off the model itself: for each channel t of the target at its middle place,
       K[t, s, y, x] = d target_t(middle) / d source_s(y, x)              (target, source, height, width)
   cut to the box where any of it is not zero. Its sum over places is what a constant change of the source channel does.
3. That it is affine is proved: f(a) + f(b) - f(0) = f(a + b) on random maps. What multiplies (gates, attention, norms of the
   picture's own statistics) fails, and is refused; so does a site the target does not depend on.

Weights say what could flow, for any picture; which ReLUs are open on a picture they do not say (`attribution.py` does).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.errors import LayoutError, bad_argument
from assay.model.images import ImageEdit, ImageModel
from assay.vision.targets import blank

TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class Weights:
    """`kernel` (target, source, height, width) of the channels `targets` and `sources`; `top`, `left`: where its box begins in
    the source's map; `error`: of the proof that it is affine; `replaced`: activation functions that were taken out."""

    source: str
    target: str
    targets: tuple[int, ...]
    sources: tuple[int, ...]
    kernel: Float[Tensor, "target source height width"]
    top: int
    left: int
    error: float
    replaced: int

    @property
    def total(self) -> Float[Tensor, "target source"]:
        """Sum over places."""
        return self.kernel.sum((2, 3))

    @property
    def norm(self) -> Float[Tensor, "target source"]:
        """Root of the sum of squares over places."""
        return self.kernel.square().sum((2, 3)).sqrt()

    def strongest(self, n: int) -> list[tuple[int, int]]:
        """(target channel, source channel) of the n largest norms."""
        order = self.norm.flatten().argsort(descending=True, stable=True)[:n].tolist()
        return [(self.targets[i // len(self.sources)], self.sources[i % len(self.sources)]) for i in order]


def effective_weights(model: ImageModel, source: str, target: str, channels: Sequence[int] = ()) -> Weights:
    """The linear map from a map's channels to some of a later map's (all of them by default).

    Raises UsageError for sites that are no maps or in the wrong order, LayoutError where what lies between is not affine.
    """
    source, index = model.resolve(source)
    target, one = model.resolve(target)
    for name, site in (("source", source), ("target", target)):
        if model.layout.points[site].kind != "map":
            raise bad_argument(name, site, "a map: block.PATH", "Between tokens attention multiplies.")
    chosen = tuple(channels) or ((one,) if one is not None else tuple(range(model.width(target))))
    if wrong := [c for c in chosen if not 0 <= c < model.width(target)]:
        raise bad_argument("channels", wrong[0], f"0 to {model.width(target) - 1}")
    points = model.layout.points
    if points[source].order >= points[target].order:
        raise bad_argument("target", target, f"a site after {source}")
    with _linear(model.hf) as replaced:
        error = _affine_error(model, source, target)
        if not error < TOLERANCE:
            raise LayoutError(
                f"from {source} to {target} the map is not affine without activation functions (error {error:.1e}): something"
                " between multiplies or takes a maximum, or an activation function is no module of its own. Use attribution."
            )
        kernel = torch.cat([_slope(model, source, target, c) for c in chosen])
    kernel = kernel if index is None else kernel[:, index : index + 1]
    inside = (kernel != 0).any(0).any(0)
    if not bool(inside.any()):
        raise bad_argument("source", source, f"a site that {target} depends on")
    rows, columns = (torch.nonzero(inside.any(axis)).flatten() for axis in (1, 0))
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    sources = (index,) if index is not None else tuple(range(kernel.shape[1]))
    return Weights(source, target, chosen, sources, kernel[:, :, top:bottom, left:right].cpu(), top, left, error, replaced)


@contextmanager
def _linear(hf: nn.Module) -> Iterator[int]:
    """Activation functions hand on what they get, while this lasts."""
    acts = [module for module in hf.modules() if _is_activation(module)]
    try:
        for module in acts:
            module.forward = lambda x: x  # type: ignore[method-assign]
        yield len(acts)
    finally:
        for module in acts:
            module.__dict__.pop("forward", None)


def _is_activation(module: nn.Module) -> bool:
    """A module without parameters or children from a library's file of activation functions."""
    home = type(module).__module__.rpartition(".")[2]
    empty = not any(True for _ in module.parameters()) and not any(True for _ in module.children())
    return empty and home.startswith("activation") and not isinstance(module, nn.Softmax | nn.MultiheadAttention)


def _affine_error(model: ImageModel, source: str, target: str) -> float:
    shape = model.capture(blank(model), [source])[source].shape[1:]
    a, b = torch.randn(2, 1, *shape, generator=torch.Generator().manual_seed(0)).to(model.device)
    both = torch.stack([a, b, torch.zeros_like(a), a + b])[:, 0]
    f = model.capture(blank(model).expand(4, -1, -1, -1), [target], [ImageEdit(source, both)])[target].double()
    scale = (f[3] - f[2]).norm().clamp_min(1e-30)
    return float((f[0] + f[1] - f[2] - f[3]).norm() / scale)


def _slope(model: ImageModel, source: str, target: str, channel: int) -> Float[Tensor, "1 source height width"]:
    x = blank(model).requires_grad_()
    _, found = model.forward(x, [source, target], logits=False)
    middle = [side // 2 for side in found[target].shape[2:]]
    number = found[target][0, channel, middle[0], middle[1]]
    (grad,) = torch.autograd.grad(number, found[source], allow_unused=True) if number.grad_fn else (None,)
    return torch.zeros_like(found[source]) if grad is None else grad
