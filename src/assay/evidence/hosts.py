"""Hosts: what holds a feature. A language model, or anything else with activations per text.

A feature claim needs two things of a host: activations at a site, one vector per example, read at the
example's token; and an untrained twin of it, for the control that asks whether training mattered.
Latents of an open dictionary (`assay.features.opened`) are read like a site, from the sites that it reads.
Planted worlds (`assay.testing`) are hosts themselves, so that gates meet known truths on the same road.
"""

import copy
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from assay.data.prepare_concept import PreparedConcept, prepare_concept
from assay.errors import bad_argument
from assay.features.opened import is_latent, read_latents
from assay.model.load import load_model
from assay.model.model import Model
from assay.records import Example

SCHEMES = ("all", "blocks", "permuted")  # which weights are drawn again


@runtime_checkable
class Host(Protocol):
    """Activations by site and example."""

    @property
    def name(self) -> str:
        """How people call it."""
        ...

    @property
    def digest(self) -> str:
        """Hash of everything its activations depend on."""
        ...

    def load(self, examples: Sequence[Example]) -> PreparedConcept:
        """Examples ready to be read; those that cannot be are dropped and counted."""
        ...

    def read(self, site: str, data: PreparedConcept) -> Float[Tensor, "example d"]:
        """Activations of a whole site at every example's token."""
        ...

    def untrained(self, scheme: str, seed: int) -> "Host":
        """A twin whose weights were drawn again. Raises UsageError for an unknown scheme."""
        ...


class ModelHost:
    """A language model as a host."""

    def __init__(self, model: Model) -> None:
        self.model = model

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def digest(self) -> str:
        return self.model.digest

    def load(self, examples: Sequence[Example]) -> PreparedConcept:
        return prepare_concept(examples, self.model)

    def read(self, site: str, data: PreparedConcept) -> Float[Tensor, "example d"]:
        if is_latent(site):
            return read_latents(site, lambda source: self.read(source, data), torch.tensor(data.at))
        places = torch.tensor(data.at)[:, None]
        acts = self.model.capture(data.tokens, site, positions=places)[site]
        return acts.reshape(len(data), -1).float()

    def untrained(self, scheme: str, seed: int) -> "ModelHost":
        return ModelHost(untrained_model(self.model, scheme, seed))


def as_host(model: Any) -> Host:
    """A model as a host; hosts stay what they are."""
    return ModelHost(model) if isinstance(model, Model) else model


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
