"""Hosts: what holds a feature. A language model, or anything else with activations per text.

A feature claim needs two things of a host: activations at a site, one vector per example, read at the
example's token; and an untrained twin of it, for the control that asks whether training mattered.
Latents of an open dictionary (`assay.features.opened`) are read like a site, from the sites that it reads.
Image models are hosts of pictures (`image_host.py`). Planted worlds (`assay.testing`) are hosts themselves, so that gates meet
known truths on the same road.
"""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from assay.data.prepare_concept import PreparedConcept, prepare_concept
from assay.evidence.image_host import ImageHost
from assay.features.opened import is_latent, read_latents
from assay.model.images import ImageModel
from assay.model.model import Model
from assay.model.untrained import SCHEMES, untrained_model
from assay.records import Example

__all__ = ["SCHEMES", "Host", "ModelHost", "as_host", "untrained_model"]


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
    if isinstance(model, ImageModel):
        return ImageHost(model)
    return ModelHost(model) if isinstance(model, Model) else model
