"""What a claim about pictures is about, to be looked at: tune pictures and where its channels respond.

1. *represents*: members, near misses and others of tune, each with the map of the claimed channel.
2. *mediates*: pairs of tune, clean above corrupted, with the sum of the claimed channels' maps, each channel as a share of its
   largest value on these pictures.
3. *decodes*, and features of a transformer: pictures without maps.

Only tune is shown: confirm and ood are read once, by the test.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from assay.data.images import images_for
from assay.evidence.image_circuits import by_site
from assay.evidence.source import source_of
from assay.model.images import ImageModel
from assay.records import Claim

MANY = 1 << 30


@dataclass(frozen=True, eq=False)
class Row:
    """Pictures (n, h, w, channel) in 0..1, and a map (n, h', w') of what the channels say, or none."""

    title: str
    images: np.ndarray
    maps: np.ndarray | None


def seen(model: ImageModel, claim: Claim, n: int = 6) -> list[Row]:
    """Rows of up to n tune pictures. Raises ReproduceError where the data are nowhere to be found."""
    items = source_of(claim.task).items("tune", MANY, 0)
    if claim.kind == "mediates":
        chosen = _spread(items, n)
        named = {"with all parts" if claim.task["type"] == "cars" else "clean": [item.clean for item in chosen],
                 _without(claim): [item.corrupted for item in chosen]}  # fmt: skip
    else:
        roles = {"members": [i for i in items if i.label], "near misses": [i for i in items if i.near_miss],
                 "others": [i for i in items if not i.label and not i.near_miss]}  # fmt: skip
        named = {title: [item.text for item in _spread(found, n)] for title, found in roles.items() if found}
    images = {title: images_for(model.pixels, names) for title, names in named.items()}
    maps = _maps(model, claim, images)
    return [Row(title, found.permute(0, 2, 3, 1).numpy(), None if maps is None else maps[title])
            for title, found in images.items()]  # fmt: skip


def _maps(model: ImageModel, claim: Claim, images: dict[str, Tensor]) -> dict[str, np.ndarray] | None:
    """The channels' maps on every row, on one scale; None where the claim has no channels of a map."""
    direction = claim.subject.get("feature", {}).get("vector") is not None
    sites = {} if claim.kind == "decodes" or direction else by_site(claim.subject["sites"])
    if not sites or any(site not in model.layout.points or model.layout.points[site].kind != "map" for site in sites):
        return None
    found: dict[str, Any] = {}
    for site, channels in sites.items():
        acts = {title: model.capture(x, [site])[site][:, list(channels)].clamp_min(0) for title, x in images.items()}
        top = torch.cat([each.amax((0, 2, 3))[None] for each in acts.values()]).amax(0).clamp_min(1e-9)
        for title, each in acts.items():
            shares = (each / top[None, :, None, None]).sum(1, keepdim=True)
            even = torch.nn.functional.interpolate(shares, (28, 28), mode="bilinear")
            found[title] = found.get(title, 0) + even[:, 0].numpy()
    return found


def _without(claim: Claim) -> str:
    parts = {"wheels": "without wheels", "windows": "without windows", "both": "without wheels and windows"}
    return parts[claim.task["corruption"]] if claim.task["type"] == "cars" else "corrupted"


def _spread(items: Sequence[Any], n: int) -> list[Any]:
    """Up to n items, of as many templates as there are."""
    by_template: dict[str, list[Any]] = {}
    for item in items:
        by_template.setdefault(item.template, []).append(item)
    turns = max((len(found) for found in by_template.values()), default=0)
    return [found[turn] for turn in range(turns) for found in by_template.values() if turn < len(found)][:n]
