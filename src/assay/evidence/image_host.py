"""An image model as a host: what holds a feature of claims about pictures.

1. An example's text names a picture (`assay.data.images`). A site is read as one number per channel or unit: its largest value
   over all places or tokens. So a channel answers "is there something like this anywhere".
2. The reading of the words alone becomes one of the pixels alone (`surface`): logistic regression on an 8 x 8 thumbnail, the
   mean and spread of every colour, and how strong edges are, fitted on tune. A channel that does no better may see brightness.
3. Untrained twins: `assay.model.image_untrained`.

Pictures that cannot be read are dropped and counted.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from assay.data.images import images_for, load_images
from assay.data.prepare_concept import PreparedConcept
from assay.errors import TaskError
from assay.model.image_untrained import untrained_image_model
from assay.model.images import BATCH, ImageModel
from assay.records import Example

THUMBNAIL, PENALTY = 8, 0.1


class ImageHost:
    """An image model as a host."""

    def __init__(self, model: ImageModel) -> None:
        self.model = model

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def digest(self) -> str:
        return self.model.digest

    def load(self, examples: Sequence[Example]) -> PreparedConcept:
        """Examples whose pictures can be read. Raises TaskError when there are none."""
        kept, dropped = readable([example.texts for example in examples])
        if not kept:
            raise TaskError(f"none of {len(examples)} pictures can be read ({'; '.join(dropped)}).")
        return PreparedConcept([examples[row] for row in kept], [[]] * len(kept), [0] * len(kept), dropped)

    def read(self, site: str, data: PreparedConcept) -> Float[Tensor, "example d"]:
        """The largest value of every channel or unit, over places. A few pictures are in memory at a time."""
        names = [example.text for example in data.examples]
        parts = [self.model.pooled(images_for(self.model.pixels, names[start : start + BATCH]), site)
                 for start in range(0, len(names), BATCH)]  # fmt: skip
        return torch.cat(parts).cpu()

    def untrained(self, scheme: str, seed: int) -> "ImageHost":
        return ImageHost(untrained_image_model(self.model, scheme, seed))

    def surface(self, names: Sequence[str], labels: Sequence[int]) -> Callable[[Sequence[str]], list[float]]:
        """Names of pictures -> log odds of being a member, by their pixels alone. Without both labels: 0 for all."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        if len(set(labels)) < 2:
            return lambda asked: [0.0] * len(asked)
        fitted = make_pipeline(StandardScaler(), LogisticRegression(C=PENALTY, max_iter=1000))
        fitted.fit(self._pixel_facts(names), list(labels))
        return lambda asked: fitted.decision_function(self._pixel_facts(asked)).tolist()

    def _pixel_facts(self, names: Sequence[str]) -> np.ndarray:
        images = [images_for(self.model.pixels, [name]) for name in names]
        return np.stack([pixel_facts(image[0]) for image in images])


def pixel_facts(image: Float[Tensor, "channel h w"]) -> np.ndarray:
    """Thumbnail, mean and spread of every colour, and mean size of steps between neighbours."""
    grey = image.mean(0)
    small = F.adaptive_avg_pool2d(grey[None], THUMBNAIL).flatten()
    steps = torch.stack([grey.diff(dim=0).abs().mean(), grey.diff(dim=1).abs().mean()])
    return torch.cat([small, image.mean((1, 2)), image.std((1, 2)), steps]).double().numpy()


def readable(names: Sequence[Sequence[str]]) -> tuple[list[int], dict[str, int]]:
    """Rows whose pictures can all be read, and how many cannot."""
    kept = []
    for row, texts in enumerate(names):
        try:
            load_images(texts, 1)
        except TaskError:
            continue
        kept.append(row)
    lost = len(names) - len(kept)
    return kept, {"a picture that cannot be read": lost} if lost else {}
