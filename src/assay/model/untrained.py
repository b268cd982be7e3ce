"""Untrained twins: the same architecture without what was learned, for the control that asks whether training mattered."""

import copy
from typing import Any

import torch

from assay.errors import bad_argument
from assay.model.load import load_model
from assay.model.model import Model

SCHEMES = ("all", "blocks", "permuted")  # which weights are drawn again


def untrained_model(model: Model, scheme: str, seed: int) -> Model:
    """A twin of a model without what it learned (Adebayo et al. 2018; Heap et al. 2025).

    `all`: every weight is drawn again as the architecture does before training. `blocks`: embeddings and
    unembedding stay, the rest is drawn again. `permuted`: every weight matrix is shuffled, so its
    distribution stays and its structure goes.
    """
    if scheme not in SCHEMES:
        raise bad_argument("scheme", scheme, ", ".join(SCHEMES))
    hf: Any = copy.deepcopy(model.hf)
    keep = _ends(hf) if scheme == "blocks" else set()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        if scheme == "permuted":
            for parameter in hf.parameters():
                if parameter.dim() > 1:
                    flat = parameter.flatten()
                    parameter.copy_(flat[torch.randperm(len(flat))].view_as(parameter))
        else:
            fresh: Any = type(hf)(hf.config).to(model.dtype)
            fresh.tie_weights()
            for (name, parameter), drawn in zip(hf.named_parameters(), fresh.parameters(), strict=True):
                if name not in keep:
                    parameter.copy_(drawn)
    twin = load_model(hf, tokenizer=model.tokenizer, prepend_bos=model.prepend_bos, check=False)
    twin.__dict__["proof"] = model.proof  # same code, same config: where its tensors are was proved on the trained model
    return twin


def _ends(hf: Any) -> set[str]:
    """Names of the embedding and unembedding weights."""
    ends = {id(module.weight) for module in (hf.get_input_embeddings(), hf.get_output_embeddings()) if module is not None}
    return {name for name, parameter in hf.named_parameters() if id(parameter) in ends}
