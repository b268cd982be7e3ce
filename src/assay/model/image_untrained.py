"""Untrained twins of image models, for the control that asks whether training mattered (Adebayo et al. 2018).

1. `all`: every module that has parameters draws them again as its own `reset_parameters` does; bare parameters (class token,
   position embedding) are drawn from a normal with their own spread. `blocks`: the first and the last layer with weights stay.
2. `permuted`: every weight tensor is shuffled within itself, so that its distribution stays and its structure goes.
3. Running statistics of batch norms belong to the old weights; without new ones activations would die or explode, and a dead
   twin is no control. They are set on 32 smooth random pictures, one pass in training mode.
"""

import copy
from typing import Any

import torch
from torch import nn

from assay.errors import bad_argument
from assay.model.images import ImageModel
from assay.model.untrained import SCHEMES

N_PICTURES, COARSE, SPREAD = 32, 8, 0.02


def untrained_image_model(model: ImageModel, scheme: str, seed: int) -> ImageModel:
    """A twin of an image model without what it learned. Raises UsageError for an unknown scheme."""
    if scheme not in SCHEMES:
        raise bad_argument("scheme", scheme, ", ".join(SCHEMES))
    hf: Any = copy.deepcopy(model.hf)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        kept = _ends(hf) if scheme == "blocks" else set()
        for module in hf.modules():
            if module not in kept:
                (_shuffle if scheme == "permuted" else _redraw)(module)
        twin = ImageModel(hf, model.pixels, f"{model.name} untrained ({scheme})", model.source, model.labels)
        _settle_norms(twin)
    twin.__dict__["layout"] = model.layout  # same code: where its tensors are was proved on the trained model
    return twin


def _redraw(module: nn.Module) -> None:
    if callable(reset := getattr(module, "reset_parameters", None)):
        reset()
        return
    for parameter in module.parameters(recurse=False):
        parameter.normal_(0, float(parameter.std()) if parameter.numel() > 1 else SPREAD)


def _shuffle(module: nn.Module) -> None:
    for parameter in module.parameters(recurse=False):
        if parameter.dim() > 1:
            flat = parameter.flatten()
            parameter.copy_(flat[torch.randperm(len(flat), device=flat.device)].view_as(parameter))


def _ends(hf: nn.Module) -> set[nn.Module]:
    """The first and the last module with a weight matrix."""
    heavy = [module for module in hf.modules() if getattr(getattr(module, "weight", None), "ndim", 0) > 1]
    return {heavy[0], heavy[-1]} if heavy else set()


def _settle_norms(twin: ImageModel) -> None:
    """Batch norms take the statistics of smooth random pictures."""
    norms: list[Any] = [module for module in twin.hf.modules()
                        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats]  # fmt: skip
    if not norms:
        return
    coarse = torch.rand(N_PICTURES, twin.pixels.channels, COARSE, COARSE)
    images = nn.functional.interpolate(coarse, (twin.pixels.size, twin.pixels.size), mode="bicubic").clamp(0, 1)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    twin.hf(twin.pixels.normalise(images.to(twin.device)))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
