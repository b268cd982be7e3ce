"""Dictionaries on channels: the channels of a map at one place are one vector, as those of a token are in a language model.

1. Harvest: up to `per_image` places of every picture, drawn by seed (tokens of a transformer's site likewise). Whole groups of
   pictures (backgrounds, digits, folders) are held out for scores.
2. Training and scores are those for language models (`features/train.py`, `features/evaluate.py`): FVU and L0 on held-out
   vectors, beside principal axes and raw channels with as many numbers, and a decoder that stayed random.
3. The untrained twin: the same recipe on its vectors, scored on its own held-out ones. Low FVU there as well says that the
   number alone does not tell features from statistics of pictures.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from assay.data.images import images_for
from assay.errors import UsageError, bad_argument
from assay.features.dictionary import Dictionary, Spec
from assay.features.evaluate import OWN, UNTRAINED, Column, Controls, Evaluation, EvaluationPlan, evaluate, same_recipe
from assay.features.stream import TensorStream
from assay.features.train import TrainPlan, train
from assay.model.image_untrained import untrained_image_model
from assay.model.images import BATCH, ImageModel
from assay.records import Example, digest

HELD = 0.25  # of the groups
KEPT_EVERY = 50  # steps: an interrupted training loses fewer
Progress = Callable[[str, int, int], Any]


@dataclass(frozen=True)
class ChannelPlan:
    """`width`: latents; `k`: active at a place; `per_image`: places read of a picture; `vectors`: seen in training in all."""

    architecture: str = "topk"
    width: int = 256
    k: int = 8
    per_image: int = 32
    vectors: int = 100_000
    batch: int = 512
    lr: float = 3e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.per_image < 1:
            raise bad_argument("per_image", self.per_image, "1 or more")


@dataclass(frozen=True, eq=False)
class ChannelDictionary:
    """The dictionary and its scores; `columns`: it, its controls, and the untrained twin's last. `train`, `held`: vectors."""

    dictionary: Dictionary
    evaluation: Evaluation
    columns: tuple[Column, ...]
    train: int
    held: int


def harvest_channels(
    model: ImageModel, items: Sequence[Example], site: str, per_image: int, seed: int = 0, progress: Progress | None = None
) -> Float[Tensor, "place channel"]:
    """Vectors of channels at random places, the same number of every picture."""
    whole, index = model.resolve(site)
    if index is not None:
        raise bad_argument("site", site, f"a whole site, {whole}")
    rng, found = np.random.default_rng(seed), []
    for start in range(0, len(items), BATCH):
        part = items[start : start + BATCH]
        images = images_for(model.pixels, [item.text for item in part])
        value = model.capture(images, [whole])[whole]
        flat = value if value.ndim == 3 else value.flatten(2).transpose(1, 2)
        for row in flat:
            found.append(row[np.sort(rng.permutation(len(row))[:per_image])].float().cpu())
        if progress is not None:
            progress("pictures read", min(start + BATCH, len(items)), len(items))
    return torch.cat(found)


def train_on_channels(
    model: ImageModel, items: Sequence[Example], site: str, plan: ChannelPlan | None = None, folder: Path | None = None,
    progress: Progress | None = None,
) -> ChannelDictionary:  # fmt: skip
    """A dictionary of one site's channels, with its controls. With `folder`, an interrupted training goes on.

    Raises UsageError for one group of pictures only, and for the kept state of another training.
    """
    plan = plan or ChannelPlan()
    site = model.resolve(site)[0]
    own = _halves(model, items, site, plan, progress)
    where = {
        "model": model.digest,
        "site": site,
        "pictures": digest([item.text for item in items]),
        "per_image": plan.per_image,
    }
    stream, held = (TensorStream({site: x}, where) for x in own)
    spec = Spec(plan.architecture, plan.width, own[0].shape[1], own[0].shape[1], plan.k, (site,), (site,), skip_first=0)
    recipe = TrainPlan(plan.vectors, min(plan.batch, stream.n_tokens), plan.lr, seed=plan.seed, checkpoint_every=KEPT_EVERY)
    dictionary = train(stream, [spec], recipe, folder, progress, names=[f"{model.name} {site}"])[0].dictionary
    frozen = same_recipe(dictionary, stream, seed=plan.seed, frozen=True, report=progress)
    how = EvaluationPlan(batch=max(1, min(512, held.n_tokens // 4)), seed=plan.seed)
    scored = evaluate(dictionary, held, plan=how, controls=Controls(frozen=frozen))
    twin = untrained_image_model(model, "all", plan.seed)
    others = _halves(twin, items, site, plan, progress)
    there, there_held = (TensorStream({site: x}, {"model": twin.name, "site": site}) for x in others)
    on_twin = evaluate(same_recipe(dictionary, there, seed=plan.seed, report=progress), there_held, plan=how)
    column = next(each for each in on_twin.columns if each.name == OWN)
    untrained = replace(column, name=UNTRAINED, says="the same recipe on the untrained twin, scored there")
    return ChannelDictionary(dictionary, scored, (*scored.columns, untrained), stream.n_tokens, held.n_tokens)


def _halves(
    model: ImageModel, items: Sequence[Example], site: str, plan: ChannelPlan, progress: Progress | None
) -> tuple[Tensor, Tensor]:
    """Vectors to train on and held-out ones, of different groups."""
    groups = sorted({item.template for item in items})
    if len(groups) < 2:
        raise UsageError(f"images: all {len(items)} are in one group; allowed: 2 groups or more, so that some can be held out.")
    n = max(1, round(HELD * len(groups)))
    out = {groups[i] for i in np.random.default_rng(plan.seed).permutation(len(groups))[:n]}
    sides = [[item for item in items if (item.template in out) == held] for held in (False, True)]
    first, second = (harvest_channels(model, side, site, plan.per_image, plan.seed, progress) for side in sides)
    return first, second
