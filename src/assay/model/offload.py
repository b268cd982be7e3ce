"""Weights that accelerate keeps elsewhere (disk, or main memory for an accelerator) and brings in module by module.

Such a parameter is on the meta device until its module runs: it has a shape but no numbers. Three things
need care: where a module computes, a weight that is read outside of a forward pass, and the bytes of all weights.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def home(module: Any) -> torch.device:
    """The device on which a module computes: where its weight is, or where accelerate brings it."""
    weight = module.weight
    if not weight.is_meta:
        return weight.device
    return torch.device(getattr(module._hf_hook, "execution_device", "cpu"))


@contextmanager
def brought_in(module: nn.Module) -> Iterator[None]:
    """The module's own weights have their numbers inside this block."""
    from accelerate.utils import align_module_device

    with align_module_device(module):
        yield


def state_items(hf: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor with numbers) of everything that is saved, by name; offloaded ones one at a time."""
    for key, value in sorted(hf.state_dict().items()):
        if not value.is_meta:
            yield key, value
            continue
        path, _, name = key.rpartition(".")
        module = hf.get_submodule(path)
        with brought_in(module):
            yield key, getattr(module, name)
