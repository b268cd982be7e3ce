"""Do channels point at it? Whether a channel's map is larger inside marked boxes of a photograph than outside them.

1. A cell of the map is inside when its middle lies in a box of the concept.
2. Per photograph and channel: AUROC of the cells inside against those outside, ties half.
3. `rank`: the share of all other channels of the site with an AUROC at least as high, mean over photographs: a random channel
   has one half.

Cells of deep maps see far beyond their own place, so that the edge of a box is not the edge of what they read. Boxes are shares
of a whole cut, so the model gets it whole, also where its own processor would crop.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from assay.data.images import load_images
from assay.data.photographs import CUTS, fetched_photographs
from assay.errors import bad_argument
from assay.model.images import ImageModel
from assay.probe.scores import aurocs


@dataclass(frozen=True)
class Pointing:
    """One channel. `auroc`: by photograph; `rank`: see above."""

    site: str
    channel: int
    auroc: dict[str, float]
    rank: float


def pointing(model: ImageModel, site: str, channels: Sequence[int], concept: str) -> list[Pointing]:
    """On the packaged photographs that show the concept (wheels, windows). Raises UsageError for a site that is no map."""
    if concept not in ("wheels", "windows"):
        raise bad_argument("concept", concept, "wheels, windows")
    site = model.resolve(site)[0]
    if model.layout.points[site].kind != "map":
        raise bad_argument("site", site, "a map: block.PATH")
    files, scores = fetched_photographs(), {}
    for cut in (cut for cut in CUTS if cut.marked(concept)):
        maps = model.capture(load_images([str(files[cut.name])], model.pixels.size, model.pixels.channels), [site])[site][0]
        inside = cells_inside(cut.marked(concept), maps.shape[1], maps.shape[2])
        if 0 < int(inside.sum()) < inside.numel():
            scores[cut.name] = inside_auroc(maps.float().cpu(), inside)
    rows = []
    for c in channels:
        shares = [float(((each >= each[c]).sum() - 1) / (len(each) - 1)) for each in scores.values()]
        rows.append(Pointing(site, c, {name: float(each[c]) for name, each in scores.items()}, sum(shares) / len(shares)))
    return rows


def cells_inside(boxes: Sequence[tuple[float, float, float, float]], height: int, width: int) -> Bool[Tensor, "height width"]:
    """Cells whose middle lies in a box (left, top, right, bottom, in shares of the side)."""
    y = (torch.arange(height)[:, None] + 0.5) / height
    x = (torch.arange(width)[None] + 0.5) / width
    inside = torch.zeros(height, width, dtype=torch.bool)
    for left, top, right, bottom in boxes:
        inside |= (x >= left) & (x < right) & (y >= top) & (y < bottom)
    return inside


def inside_auroc(maps: Tensor, inside: Tensor) -> Tensor:
    """AUROC (channel,) of cells inside against outside."""
    return torch.from_numpy(aurocs(maps.flatten(1).numpy().T, inside.flatten().numpy()))
