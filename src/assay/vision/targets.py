"""What a method on an image model is about: a number per picture.

block.blocks.10.84          a channel: its mean over all places
block.blocks.10.84@7,7      one neuron: that channel at one place, row and column
block.layer1[0]             a channel where block.layer1.0 is a module of its own
mlp_act.3.17                a unit of a transformer: its mean over all tokens; mlp_act.3.17@0: at one token
logit:207                   a class: its logit; its name works too
logit:436+817               classes: log-odds of all of them together against all others
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from assay.errors import bad_argument
from assay.model.images import BATCH, ImageEdit, ImageModel

ALLOWED = "a site with its channel (block.PATH.CHANNEL), a place after it (@ROW,COLUMN), or logit:CLASS"


@dataclass(frozen=True)
class Target:
    """`site` is None for logits. `index`: channel, unit or head; None: all of the site. `place`: where, None: mean."""

    site: str | None
    index: int | None = None
    place: tuple[int, ...] | None = None
    classes: tuple[int, ...] = ()
    unit: str = ""  # of site and index, as the model has it

    @property
    def name(self) -> str:
        """As `parse_target` reads it."""
        if self.site is None:
            return f"logit:{'+'.join(map(str, self.classes))}"
        unit = self.unit or (self.site if self.index is None else f"{self.site}.{self.index}")
        return unit + (f"@{','.join(map(str, self.place))}" if self.place is not None else "")

    @property
    def sites(self) -> list[str]:
        """What has to be captured."""
        return [] if self.site is None else [self.site]

    def of(self, logits: Tensor | None, found: dict[str, Tensor]) -> Tensor:
        """The number of each picture (n,), on the graph, from what one run gave."""
        if self.site is None:
            assert logits is not None
            return logits[:, self.classes[0]] if len(self.classes) == 1 else log_odds(logits, self.classes)
        value = found[self.site]
        return _at(value if value.ndim == 4 else value.transpose(1, 2), self.index, self.place)


def _at(value: Tensor, index: int | None, place: tuple[int, ...] | None) -> Tensor:
    """(n, channel, ..) at a channel and a place, means elsewhere."""
    value = value if index is None else value[:, index : index + 1]
    value = value if place is None else value[(slice(None), slice(None), *place)]
    return value.flatten(1).mean(1)


def parse_target(model: ImageModel, text: str) -> Target:
    """A target by name. Raises UsageError, and SiteError for what the model does not have."""
    if text.startswith("logit:"):
        return Target(None, classes=classes_of(model, text.removeprefix("logit:")))
    name, _, place = text.partition("@")
    site, index = model.resolve(name)
    if index is None or model.layout.points[site].heads:
        first, last = model.unit(site, 0), model.unit(site, model.width(site) - 1)
        raise bad_argument("target", text, ALLOWED, f"{site} has {first} to {last}, and a head is no number.")
    return Target(site, index, _place(model, site, text, place) if place else None, unit=model.unit(site, index))


def _place(model: ImageModel, site: str, text: str, place: str) -> tuple[int, ...]:
    sizes = places(model, site)
    parts = place.split(",")
    if len(parts) != len(sizes) or not all(p.isdigit() and int(p) < size for p, size in zip(parts, sizes, strict=False)):
        raise bad_argument("target", text, f"a place of {site}: {' and '.join(f'0 to {size - 1}' for size in sizes)}")
    return tuple(map(int, parts))


def places(model: ImageModel, site: str) -> tuple[int, ...]:
    """(height, width) of a map, (tokens,) of a transformer's site."""
    value = model.capture(blank(model), [site])[site]
    return tuple(value.shape[2:] if model.layout.points[site].kind == "map" else value.shape[1:2])


def blank(model: ImageModel) -> Tensor:
    """One grey picture (1, channel, size, size)."""
    return torch.full((1, model.pixels.channels, model.pixels.size, model.pixels.size), 0.5)


def classes_of(model: ImageModel, text: str) -> tuple[int, ...]:
    """Classes by number or name, joined by "+". Raises UsageError for one that the model does not have."""
    n, numbers = model.n_classes, {name.lower(): number for number, name in model.labels.items()}
    found = []
    for part in (each.strip() for each in text.split("+")):
        number = int(part) if part.isdigit() else numbers.get(part.lower(), -1)
        if not 0 <= number < n:
            named = ", ".join(list(model.labels.values())[:6])
            raise bad_argument("logit", part, f"0 to {n - 1}" + (f", or a name, e.g. {named}" if named else ""))
        found.append(number)
    if len(set(found)) == n:
        raise bad_argument("logit", text, "some of the classes, not all", "Their log-odds against no class do not exist.")
    return tuple(dict.fromkeys(found))


def log_odds(logits: Tensor, classes: Sequence[int]) -> Tensor:
    """Log-odds (n,) of a set of classes against all others."""
    chosen = torch.zeros(logits.shape[1], dtype=torch.bool, device=logits.device)
    chosen[list(classes)] = True
    return logits[:, chosen].logsumexp(1) - logits[:, ~chosen].logsumexp(1)


def measure(model: ImageModel, images: Tensor, target: Target, edits: Sequence[ImageEdit] = (), batch: int = BATCH) -> Tensor:
    """The target's number per picture (n,), without gradients, under edits."""
    if target.site is None:
        return target.of(model.logits(images, edits, batch), {})
    return target.of(None, model.capture(images, target.sites, edits, batch))
