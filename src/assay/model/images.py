"""Image models: one primitive for CNNs and vision transformers, as `run.py` is for language models.

1. A picture is a float tensor (channel, height, width) in 0..1. Normalisation happens inside, so that gradients reach pixels.
2. `forward` runs once: it captures at sites, applies edits, keeps the graph where gradients are wanted, and stops after the
   last capture when nobody reads the logits. `capture` and `logits` do the same in batches, without gradients.
3. Sites of a CNN are maps `block.<module path>[.channel]`, of a ViT the transformer names (`resid_post.3`, `z.3.1`, tensors
   (image, token, d)). Where they are is found and proved on the model itself (`image_sites.py`). Where `layer1.0` is a
   module, `block.layer1.0` is its map and channel 0 of `block.layer1` is `block.layer1[0]` (`unit`).
4. Captures are owned copies. Hooks are taken off again, also after an error; weights and grad flags stay as they are.

An edit is *set*, *add* or *scale* at channels (or heads, neurons) and places. Patching is *set* with another run's capture.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn

from assay.errors import ShapeError, SiteError, bad_argument
from assay.model.fingerprint import weights_state
from assay.model.image_sites import ImageLayout, ImagePoint, hook, logits_of, prove_image_layout
from assay.sites import parse_site

BATCH = 16
SLACK = 1e-3  # pixels may lie outside 0..1 by this, as rounding leaves them
FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # by Pillow's number


@dataclass(frozen=True)
class Fit:
    """How a picture of any shape becomes a square, by Pillow: resized, then a square cut from the middle.

    `resize`: the new shorter side (shape kept), or height and width (squashed). `crop`: the side of the cut; None: no cut.
    `even`: where half a pixel is left over before the cut, its start is the even number (torchvision), else the lower one.
    """

    resize: int | tuple[int, int]
    crop: int | None = None
    filter: str = "bilinear"
    even: bool = False

    def __post_init__(self) -> None:
        if self.filter not in FILTERS:
            raise bad_argument("filter", self.filter, ", ".join(FILTERS))
        sides = (self.resize,) if isinstance(self.resize, int) else self.resize
        if self.crop is None and (len(sides) == 1 or len(set(sides)) > 1):
            raise bad_argument("resize", self.resize, "height and width the same, or a cut from the middle besides")
        if not 0 < (self.crop or 1) <= min(sides):
            raise bad_argument("crop", self.crop, f"1 to {min(sides)}, the resized side: nothing is padded")

    @property
    def side(self) -> int:
        """Of the square that comes out."""
        return self.crop or min(self.resize if isinstance(self.resize, tuple) else (self.resize,))

    def of(self, image: Any) -> Any:
        """The square, of a picture of Pillow."""
        short = min(image.size)
        size = self.resize[::-1] if isinstance(self.resize, tuple) else [int(self.resize * side / short) for side in image.size]
        image = image.resize(size, FILTERS.index(self.filter))
        if self.crop is None:
            return image
        over = [side - self.crop for side in image.size]
        left, top = (round(each / 2) if self.even else each // 2 for each in over)
        return image.crop((left, top, left + self.crop, top + self.crop))


@dataclass(frozen=True)
class Pixels:
    """What a model takes: square pictures of `size`, `channels` colours, normalised by (x - mean) / std, x in 0..1.

    `fit`: how a picture becomes that square; None: its middle square, scaled. It stands in no repr, which digests are made of.
    """

    size: int
    channels: int = 3
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    fit: Fit | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.size, int) or self.size < 1:
            raise bad_argument("size", self.size, "one whole number: pictures are square")
        if self.channels not in (1, 3):
            raise bad_argument("channels", self.channels, "1 or 3: pictures are grey or have three colours")
        if self.fit is not None and self.fit.side != self.size:
            raise bad_argument("fit", self.fit, f"one that gives pictures of {self.size}, which is the size")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, self.channels):
                raise bad_argument(name, values, f"1 or {self.channels} numbers, as the pictures have channels")

    def normalise(self, images: Tensor) -> Tensor:
        """(n, channel, size, size) in 0..1 as the model reads it. Raises ShapeError, and UsageError for other numbers."""
        expected = (self.channels, self.size, self.size)
        if images.ndim != 4 or tuple(images.shape[1:]) != expected:
            raise ShapeError(
                f"images: got {tuple(images.shape)}; allowed: (n, {', '.join(map(str, expected))}), floats 0 to 1."
            )
        if not images.is_floating_point():
            raise bad_argument("images", str(images.dtype), "floats 0 to 1", "For 0 to 255: images.float() / 255.")
        if images.numel() and bool(((images < -SLACK) | (images > 1 + SLACK)).any()):
            got = f"{float(images.min()):.3g} to {float(images.max()):.3g}"
            raise bad_argument("images", got, "floats 0 to 1", "Divide 0 to 255 by 255; do not normalise: that is done here.")
        mean, std = (images.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (images - mean) / std


@dataclass(frozen=True, eq=False)
class ImageEdit:
    """An intervention: at `site`, on `channels` (None: all; units of the last axis for tokens), where `mask` is true.

    `value` is what is set, added, or multiplied by; it broadcasts against (image, channel, height, width) or
    (image, token, unit), with all channels. `mask`: (height, width), (token,) or with images in front; None: everywhere.
    """

    site: str
    value: Tensor | float
    how: Literal["set", "add", "scale"] = "set"
    channels: tuple[int, ...] | None = None
    mask: Tensor | None = None


class _Done(Exception):
    """All captures are there."""


class ImageModel:
    """An unmodified image classifier in eval mode, and where its sites are.

    `hf`: any module whose call on a batch (n, channel, h, w) gives logits (n, class), or an object with `.logits`.
    """

    def __init__(
        self,
        hf: nn.Module,
        pixels: Pixels,
        name: str = "image model",
        source: str = "memory",
        labels: Mapping[int, str] | None = None,
    ) -> None:
        self.hf, self.pixels, self.name, self.source = hf.eval(), pixels, name, source
        self.labels = dict(labels or {})
        self._digest: str | None = None

    @cached_property
    def layout(self) -> ImageLayout:
        """Sites, found and proved. Raises LayoutError when nothing can be proved."""
        sample = torch.rand(
            2, self.pixels.channels, self.pixels.size, self.pixels.size, generator=torch.Generator().manual_seed(0)
        )
        return prove_image_layout(self.hf, self.pixels.normalise(sample).to(self.device, self.dtype))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._some.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights; pictures are float32 outside."""
        return self._some.dtype

    @property
    def _some(self) -> Tensor:
        """A weight, or a buffer of a module that has none."""
        own = chain(self.hf.parameters(), self.hf.buffers())
        return next((each for each in own if each.is_floating_point()), torch.empty(0))

    @property
    def digest(self) -> str:
        """Hash of weights, module tree, normalisation, and how pictures are fitted where that is the model's own."""
        return self._digest or self.fresh_digest()

    def fresh_digest(self) -> str:
        """The digest, read off the weights now."""
        found = weights_state(self.hf)
        found.update(repr((self.hf, self.pixels, *self._fits)).encode())
        self._digest = digest = found.hexdigest()
        return digest

    def passport(self) -> dict[str, Any]:
        """What this model is, as plain values."""
        kind = f"{type(self.hf).__module__}.{type(self.hf).__name__}"
        return {
            "model": self.name,
            "source": self.source,
            "digest": self.digest,
            "class": kind,
            "device": str(self.device),
            "dtype": str(self.dtype),
            "pixels": hashlib.sha256("".join(map(repr, (self.pixels, *self._fits))).encode()).hexdigest()[:12],
        }

    @property
    def _fits(self) -> tuple[Fit, ...]:
        return () if self.pixels.fit is None else (self.pixels.fit,)

    def resolve(self, site: str) -> tuple[str, int | None]:
        """(whole site, channel or head or unit or None). Raises SiteError for what this model does not have."""
        points = self.layout.points
        if site in points:
            return site, None
        if site in self.layout.absent:
            raise SiteError(f"site {site!r} is not offered: {self.layout.absent[site]}.")
        head, _, tail = site[:-1].rpartition("[") if site.endswith("]") else site.rpartition(".")
        if head in points and tail.isdecimal():
            if (width := points[head].width) <= int(tail):
                raise SiteError(f"site {site!r}: {head} has 0 to {width - 1}; got {tail}.")
            return head, int(tail)
        parsed = str(parse_site(site))
        if parsed != site:
            return self.resolve(parsed)
        near = [name for name in points if name.startswith(site.rsplit(".", 1)[0])][:4] or list(points)[:4]
        raise SiteError(f"site {site!r}: not one of {self.name}; it has e.g. {', '.join(near)}. See: assay vision check MODEL.")

    def unit(self, whole: str, index: int) -> str:
        """The name of one channel, head or unit of a whole site: SITE.INDEX, or SITE[INDEX] where a module has that name."""
        name = f"{whole}.{index}"
        return f"{whole}[{index}]" if name in self.layout.points or name in self.layout.absent else name

    def width(self, site: str) -> int:
        """Channels of a map, heads of z, units of any other site."""
        return self.layout.points[self.resolve(site)[0]].width

    @cached_property
    def n_classes(self) -> int:
        """How many classes the logits have, read off one run."""
        size = self.pixels.size
        return self.logits(torch.zeros(1, self.pixels.channels, size, size)).shape[1]

    def label(self, number: int) -> str:
        """The name of a class, or its number."""
        return self.labels.get(number, str(number))

    def forward(
        self, images: Tensor, sites: Sequence[str] = (), edits: Sequence[ImageEdit] = (), logits: bool = True
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """One run on images (n, channel, h, w): (logits (n, class) or None, {site: whole tensor}), on the graph where grad is
        on. Sites are whole. Raises SiteError and ShapeError."""
        found: dict[str, Tensor] = {}
        whole = [self.resolve(site)[0] for site in sites]
        planned = [(self.resolve(edit.site), edit) for edit in edits]
        for (site, _), edit in planned:
            if wrong := [c for c in edit.channels or () if not 0 <= c < self.layout.points[site].width]:
                raise SiteError(f"channels of {site}: got {wrong[0]}; allowed: 0 to {self.layout.points[site].width - 1}.")
        x = self.pixels.normalise(images.to(self.device)).to(self.dtype)
        with self._hooked(whole, planned, found, None if logits else set(whole)):
            try:
                out = self.hf(x)
            except _Done:
                return None, found
        return (logits_of(out, self.hf) if logits else None), found

    def capture(
        self, images: Tensor, sites: Sequence[str], edits: Sequence[ImageEdit] = (), batch: int = BATCH
    ) -> dict[str, Tensor]:
        """{site: (n, ..)} without gradients, in batches; a site with an index gives that channel or unit alone."""
        parts: dict[str, list[Tensor]] = {site: [] for site in sites}
        with torch.no_grad():
            for rows, part in _batches(images, batch):
                _, found = self.forward(part, sites, _for_rows(edits, rows, len(images)), logits=False)
                for site in sites:
                    whole, index = self.resolve(site)
                    value = found[whole]
                    parts[site].append(value if index is None else self.layout.points[whole].take(value, index))
        return {site: torch.cat(values) for site, values in parts.items()}

    def logits(self, images: Tensor, edits: Sequence[ImageEdit] = (), batch: int = BATCH) -> Tensor:
        """(n, class) without gradients, in batches."""
        with torch.no_grad():
            runs = [self.forward(part, (), _for_rows(edits, rows, len(images))) for rows, part in _batches(images, batch)]
        return torch.cat([found for found, _ in runs if found is not None])

    def pooled(self, images: Tensor, site: str, how: str = "max", batch: int = BATCH) -> Tensor:
        """One vector per image (n, width): `max` or `mean` over places or tokens; `first`: the first token (CLS of a ViT)."""
        return self.pooled_sites(images, [site], how, batch)[self.resolve(site)[0]]

    def pooled_sites(self, images: Tensor, sites: Sequence[str], how: str = "max", batch: int = BATCH) -> dict[str, Tensor]:
        """One vector per image and whole site (n, width), all sites in one run."""
        whole = list(dict.fromkeys(self.resolve(site)[0] for site in sites))
        if how not in ("max", "mean", "first"):
            raise bad_argument("how", how, "max, mean, first")
        if how == "first" and (maps := [site for site in whole if self.layout.points[site].kind == "map"]):
            raise bad_argument("how", how, "max or mean", f"{maps[0]} is a map, which has no first token.")
        parts: dict[str, list[Tensor]] = {site: [] for site in whole}
        for _, part in _batches(images, batch):
            for site, value in self.capture(part, whole, batch=batch).items():
                flat = value.flatten(2).transpose(1, 2) if self.layout.points[site].kind == "map" else value
                parts[site].append(flat[:, 0] if how == "first" else flat.amax(1) if how == "max" else flat.mean(1))
        return {site: torch.cat(values).float() for site, values in parts.items()}

    @contextmanager
    def _hooked(
        self,
        sites: Sequence[str],
        edits: Sequence[tuple[tuple[str, int | None], ImageEdit]],
        found: dict[str, Tensor],
        wanted: set[str] | None,
    ) -> Iterator[None]:
        points = self.layout.points
        handles = []
        try:
            for site in dict.fromkeys([*(place for (place, _), _ in edits), *sites]):
                point, asked = points[site], site in sites
                mine = [(index, edit) for (place, index), edit in edits if place == site]

                def meet(
                    value: Tensor, site: str = site, point: ImagePoint = point, mine: Any = mine, asked: bool = asked
                ) -> Tensor:
                    for index, edit in mine:
                        value = edited(value, edit, index, point)
                    if not asked:
                        return value
                    found[site] = value.clone()
                    if wanted is not None and wanted <= set(found):
                        raise _Done
                    return found[site].clone() if value.requires_grad else value

                handles.append(hook(self.hf, point, meet))
            yield
        finally:
            for handle in handles:
                handle.remove()


def edited(value: Tensor, edit: ImageEdit, index: int | None, point: ImagePoint) -> Tensor:
    """A site's tensor after one edit. Raises ShapeError and UsageError where the edit does not fit."""
    if edit.how not in ("set", "add", "scale"):
        raise bad_argument("how", edit.how, "set, add, scale")
    given = edit.value if isinstance(edit.value, Tensor) else torch.tensor(float(edit.value))
    given = given.to(value.device, value.dtype)
    try:
        new = {"set": given, "add": value + given, "scale": value * given}[edit.how].expand_as(value)
    except RuntimeError as error:
        raise ShapeError(f"edit at {edit.site}: got {tuple(given.shape)}; allowed: what fits {tuple(value.shape)}.") from error
    channels = edit.channels if index is None else (index,)
    where = torch.ones((), dtype=torch.bool)
    if channels is not None:
        where = point.select(value, channels)
    if edit.mask is not None:
        mask = edit.mask.to(value.device).bool()
        n_places = 2 if point.kind == "map" else 1
        places = value.shape[2:] if point.kind == "map" else value.shape[1:2]
        if tuple(mask.shape[-n_places:]) != tuple(places) or mask.ndim > n_places + 1:
            raise ShapeError(
                f"mask at {edit.site}: got {tuple(mask.shape)}; allowed: {tuple(places)}, or with images in front."
            )
        mask = mask if mask.ndim > n_places else mask[None]
        where = where & (mask[:, None] if point.kind == "map" else mask[..., None])
    return torch.where(where.to(value.device), new, value)


def _batches(images: Tensor, batch: int) -> Iterator[tuple[slice, Tensor]]:
    if batch < 1 or not len(images):
        raise bad_argument("images, batch", (len(images), batch), "one image and a batch of one at least")
    for start in range(0, len(images), batch):
        rows = slice(start, start + batch)
        yield rows, images[rows]


def _for_rows(edits: Sequence[ImageEdit], rows: slice, n: int) -> list[ImageEdit]:
    """The edits of some images: values and masks that have all n images in front are cut."""

    def cut(value: Any, ndim: int) -> Any:
        return value[rows] if isinstance(value, Tensor) and value.ndim >= ndim and n > 1 and len(value) == n else value

    found = []
    for e in edits:
        places = 2 if e.site.startswith("block") else 1  # axes of places; values have images and channels beside them
        found.append(ImageEdit(e.site, cut(e.value, places + 2), e.how, e.channels, cut(e.mask, places + 1)))
    return found
