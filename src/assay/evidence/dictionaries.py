"""Dictionaries: what they are, and the instrument of claims about them.

1. A dictionary encodes activations into latents and decodes latents; nothing else is asked of it. A claim keeps
   its digest: whoever tests the claim opens the same dictionary first.
2. The instrument reads a site once per split and makes codes and reconstructions.
3. Behaviour is measured with the site replaced: by the reconstruction, by the reconstruction with the error of
   another example, by the tune mean. Errors are those of tune examples at the position that is read.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from assay.data.prepare_concept import PreparedConcept
from assay.errors import bad_argument
from assay.evidence.hosts import Host, ModelHost
from assay.evidence.random_dictionaries import unit
from assay.evidence.sparse_probes import SparseProbe
from assay.model.edits import patch
from assay.records import Claim

USES = ("listing features", "steering", "standing in the loss")
Replace = Callable[[Float[Tensor, "token d"]], Float[Tensor, "token d"]]


@runtime_checkable
class Dictionary(Protocol):
    """Latents for activations. One that also has `refit(acts)` can be trained again by its own recipe."""

    @property
    def name(self) -> str:
        """How people call it."""
        ...

    @property
    def digest(self) -> str:
        """Hash of all its numbers."""
        ...

    @property
    def width(self) -> int:
        """How many latents."""
        ...

    def encode(self, acts: Float[Tensor, "example d"]) -> Float[Tensor, "example latent"]: ...

    def decode(self, latents: Float[Tensor, "example latent"]) -> Float[Tensor, "example d"]: ...


_OPEN: dict[str, Dictionary] = {}


def opened(dictionary: Dictionary) -> Dictionary:
    """Make a dictionary known, so that a claim about it can be tested: claims keep only its digest."""
    _OPEN[dictionary.digest] = dictionary
    return dictionary


def is_open(digest: str) -> bool:
    """Whether a dictionary of that digest is known."""
    return digest in _OPEN


def directions_of(dictionary: Dictionary) -> Float[Tensor, "latent d"]:
    """What each latent adds when it is 1 and all others are 0, scaled to unit norm. One that has `directions()` says
    so itself; of any other each latent is decoded alone, which takes width x width numbers."""
    rows: Any = getattr(dictionary, "directions", None)
    if rows is not None:
        return unit(rows().float())
    nothing = torch.zeros(1, dictionary.width)
    return unit(dictionary.decode(torch.eye(dictionary.width)) - dictionary.decode(nothing))


@dataclass(frozen=True, eq=False)
class DictionarySetup:
    """What is fixed before sealed data are read. `total`: mean squared distance from the mean, on tune.

    `errors`: reconstruction errors of tune examples; `codes`: mean latents there; `twin`: an untrained host, the recipe
    refitted on it, and mean and total there; `main`: the latent that ranks members best; `truth`: planted directions, if known.
    """

    site: str
    dictionary: Dictionary
    mean: Tensor
    total: float
    errors: Tensor
    codes: Tensor
    random: Mapping[str, Tensor]
    twin: tuple[Host, Dictionary, Tensor, float] | None
    second: Dictionary | None
    probe: Tensor
    main: int
    truth: Tensor | None
    seed: int
    probes: Mapping[str, SparseProbe] = field(default_factory=dict)


class DictionaryInstrument:
    """Activations, codes and reconstructions of one split's examples, each made once."""

    def __init__(self, host: Host, data: PreparedConcept, setup: DictionarySetup) -> None:
        self.host, self.data, self.setup = host, data, setup
        self.acts = host.read(setup.site, data)
        self.codes = setup.dictionary.encode(self.acts)
        self.reconstruction = setup.dictionary.decode(self.codes)

    def explained(self, reconstruction: Tensor) -> list[float | None]:
        """1 - squared error / total, per example; a mean of 1 is perfect, of 0 no better than the mean."""
        return numbers(1 - (self.acts - reconstruction).square().sum(1) / self.setup.total)

    def sparse(self) -> dict[str, list[float | None]]:
        """Labels, and the score of every sparse probe; nothing without probes."""
        found = {f"sparse.{name}": numbers(probe(self.acts)) for name, probe in self.setup.probes.items()}
        return {"label": [float(label) for label in self.data.labels], **found} if found else {}

    def behaviour(self, replace: Replace | None) -> list[float | None]:
        """How well the host does with the site replaced, per example; higher is better. KeyError for none."""
        return numbers(behaviour_of(self.host, self.setup.site, self.data, replace))

    def resampled(self, acts: Float[Tensor, "token d"]) -> Float[Tensor, "token d"]:
        """The reconstruction with the error of some tune example."""
        generator = torch.Generator().manual_seed(self.setup.seed)
        picks = torch.randint(len(self.setup.errors), (len(acts),), generator=generator)
        return self.rebuilt(acts) + self.setup.errors[picks]

    def rebuilt(self, acts: Float[Tensor, "token d"]) -> Float[Tensor, "token d"]:
        """The reconstruction."""
        return self.setup.dictionary.decode(self.setup.dictionary.encode(acts))

    def ablated(self, acts: Float[Tensor, "token d"]) -> Float[Tensor, "token d"]:
        """The tune mean, whatever was there."""
        return self.setup.mean.expand_as(acts)


def behaves(host: Any) -> bool:
    """Whether a host does anything with its activations that can be measured."""
    return isinstance(host, ModelHost) or hasattr(host, "behaviour")


def behaviour_of(host: Any, site: str, data: PreparedConcept, replace: Replace | None) -> Float[Tensor, " example"]:
    """Behaviour under a replaced site; higher is better. KeyError when the host only holds activations.

    A language model: log-probability of the last token of each text, the site replaced at every position but
    the first (an attention sink). Other hosts: their own `behaviour(site, data, values)`.
    """
    if not isinstance(host, ModelHost):
        if not hasattr(host, "behaviour"):
            raise KeyError("behaviour")
        values = host.read(site, data)
        return host.behaviour(site, data, values if replace is None else replace(values))
    prompts, last = [ids[:-1] for ids in data.tokens], torch.tensor([ids[-1] for ids in data.tokens])
    if min(map(len, prompts)) < 2:
        raise KeyError("texts of fewer than three tokens")

    def metric(logits: Tensor, rows: Tensor) -> Tensor:
        return logits.log_softmax(-1)[torch.arange(len(rows)), last[rows.cpu()].to(logits.device)]

    if replace is None:
        return host.model.score(prompts, metric)
    value = host.model.capture(prompts, site)[site].clone()
    value[:, 1:] = replace(value[:, 1:].flatten(0, 1).float()).view_as(value[:, 1:]).to(value.dtype)
    return host.model.score(prompts, metric, edits=[patch(site, value)])


def for_use(*uses: str) -> Callable[[Claim], bool]:
    """A gate's `required` for claims about some uses."""
    return lambda claim: claim.subject.get("use") in uses


def known(record: Mapping[str, Any]) -> Dictionary:
    if record["digest"] not in _OPEN:
        raise bad_argument("dictionary", f"{record['name']} ({record['digest'][:12]}), which is not open", "an open one",
                           "Open it with opened(dictionary) in Python, or --dictionary PATH.")  # fmt: skip
    return _OPEN[record["digest"]]


def numbers(values: Tensor) -> list[float | None]:
    """A tensor (n,) as a column."""
    return values.detach().double().reshape(-1).tolist()
