"""Measurements that several findings share. Each reads the model through the engine and gives one number per text or pair.

Passages are ordinary text: short statements about unrelated things, four at a time, so that each passage is a cluster.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from assay.circuits.patch import PatchPlan, patch_sweep
from assay.data.ordinary import TEXTS
from assay.data.prepare import PreparedTask
from assay.evidence.mediates import set_effects
from assay.model.edits import patch
from assay.model.model import Model
from assay.replicate.base import Lab

SET_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24)
MARGIN = 0.3  # on tune, above the bar of the gates: what is chosen by looking shrinks later
TOGETHER = 4  # texts whose logits are held at once


def passages(n: int = 10) -> list[str]:
    """`n` passages of four statements each (10 at most)."""
    return [" ".join(TEXTS[start : start + 4]) for start in range(0, 4 * n, 4)][:n]


def ranked(lab: Lab, task: PreparedTask, site: str = "z") -> list[tuple[str, float]]:
    """Units with their attributed share of the task's effect, the largest first. `site`: z, or components."""
    found = patch_sweep(lab.model, task, PatchPlan(site, method="attribution", seed=lab.seed))
    names = (lambda layer, n: f"z.{layer}.{n}") if site == "z" else (lambda layer, n: f"{('attn_out', 'mlp_out')[n]}.{layer}")
    every = [(names(layer, n), effect) for layer, row in zip(found.layers, found.effect, strict=True)
             for n, effect in enumerate(row)]  # fmt: skip
    return sorted(every, key=lambda pair: -pair[1])


def enough(lab: Lab, task: PreparedTask, order: Sequence[str]) -> list[str]:
    """The fewest of the first units that carry a task with a margin; the largest set tried where none does."""
    chosen: list[str] = list(order[:1])
    for number, size in enumerate(SET_SIZES):
        lab.report("how many units", number, len(SET_SIZES))
        chosen = list(order[:size])
        if min(set_effects(lab.model, task, chosen).values(), default=0.0) >= MARGIN:
            break
    return chosen


def restored(model: Model, task: PreparedTask, sites: Sequence[str]) -> list[float]:
    """Per pair: what these units alone bring back when they are as in the clean run; shares of the mean clean-corrupted gap."""
    metric = task.metric("logit_diff")
    clean = model.capture(task.clean, list(sites))
    base, top = model.score(task.corrupted, metric).double(), model.score(task.clean, metric).double()
    got = model.score(task.corrupted, metric, edits=[patch(site, clean[site]) for site in sites]).double()
    return ((got - base) / (top - base).mean()).tolist()


def losses(model: Model, tokens: Sequence[Sequence[int]], start: int = 0, edits: Sequence[Any] = ()) -> list[float]:
    """Per text: mean of -log p over its tokens from position `start` + 1 on, in nats.

    `edits` hold for all texts: a value per text is not meant here.
    """
    found = []
    for first in range(0, len(tokens), TOGETHER):
        some = [list(row) for row in tokens[first : first + TOGETHER]]
        for row, logits in zip(some, model.capture(some, "logits", edits=edits).rows("logits"), strict=True):
            says = logits[start:-1].float().log_softmax(-1)
            found.append(-float(says.gather(1, torch.tensor(row[start + 1 :])[:, None]).mean()))
    return found


def mean_of(model: Model, tokens: Sequence[Sequence[int]], site: str) -> Float[Tensor, " d"]:
    """Mean activation over all positions of all texts."""
    return model.capture([list(row) for row in tokens], site).flat(site).double().mean(0).float()


def first_ids(model: Model, words: Sequence[str]) -> list[int]:
    """First token of each word as it follows a text."""
    return [model.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in words]
