"""The rest of a run: logits from the values of one site on, without running what comes before it.

1. One run notes which modules end before the site's own module does, and what shape they give.
2. In a tail run the picture, and what each of them gives, is a tensor of its shape that is all NaN and takes no memory; the
   site is set to the values.
3. Proved on this very model: from a site's own values on, two random pictures must get the logits of the whole run, bit for
   bit. Whatever passes by the site (a skip connection around it) would bring the NaN along; such a site has no tail.

Hooks and weights stay as they are; the modules run again as before when the run is over.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from assay.model.images import BATCH, ImageEdit, ImageModel


class ImageTail:
    """What `tail_of` proved. `shapes`: of the modules that need not run, without the picture's axis."""

    def __init__(self, model: ImageModel, site: str, shapes: dict[nn.Module, tuple[int, ...]]) -> None:
        self.model, self.site, self.shapes = model, site, shapes

    def logits(self, values: Tensor, batch: int = BATCH) -> Tensor:
        """(n, class) without gradients, of the site's values (n, ..)."""
        parts, pixels = [], self.model.pixels
        for part in values.split(batch):
            blank = torch.full((1, 1, 1, 1), float("nan")).expand(len(part), pixels.channels, pixels.size, pixels.size)
            with torch.no_grad(), self._skipping(len(part)):
                found, _ = self.model.forward(blank, (), [ImageEdit(self.site, part)])
            assert found is not None
            parts.append(found)
        return torch.cat(parts)

    @contextmanager
    def _skipping(self, n: int) -> Iterator[None]:
        nan = torch.tensor(float("nan"), dtype=self.model.dtype, device=self.model.device)
        try:
            for module, shape in self.shapes.items():
                empty = nan.expand(n, *shape)
                module.__dict__["forward"] = lambda *_, empty=empty, **__: empty
            yield
        finally:
            for module in self.shapes:
                module.__dict__.pop("forward", None)


def tail_of(model: ImageModel, site: str) -> ImageTail | None:
    """The tail from a whole site on; None where the model has none there."""
    point = model.layout.points[model.resolve(site)[0]]
    if point.side != "out":
        return None
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(2, model.pixels.channels, model.pixels.size, model.pixels.size, generator=generator)
    tail = ImageTail(model, site, _before(model, images, model.hf.get_submodule(point.path)))
    try:
        same = torch.equal(tail.logits(model.capture(images, [site])[site]), model.logits(images))
    except (RuntimeError, ValueError, TypeError):  # something that is computed between modules does not take it
        return None
    return tail if same else None


def _before(model: ImageModel, images: Tensor, last: nn.Module) -> dict[nn.Module, tuple[int, ...]]:
    """Modules that run once, give one tensor, and end before or with `last`."""
    ended: list[tuple[nn.Module, Any]] = []
    handles = [module.register_forward_hook(lambda m, _, out: ended.append((m, out))) for module in model.hf.modules()]
    try:
        model.logits(images)
    finally:
        for handle in handles:
            handle.remove()
    place = next(i for i, (module, _) in enumerate(ended) if module is last)
    calls = [module for module, _ in ended]
    return {module: tuple(out.shape[1:]) for module, out in ended[: place + 1]
            if isinstance(out, Tensor) and out.ndim > 1 and len(out) == len(images) and calls.count(module) == 1
            and "forward" not in module.__dict__}  # fmt: skip
