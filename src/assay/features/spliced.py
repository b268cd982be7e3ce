"""What a model loses when reconstructions take the place of its own activations.

1. At typical tokens the target sites are set to the reconstruction of what the inputs were; all other tokens keep their
   own values: a dictionary says nothing about tokens it was not made for. For a transcoder the MLP's output is set to
   what the dictionary makes of its input.
2. Cross-entropy of the next token and KL(model || spliced), at every position but the last of each row. With `zero` and
   `mean` ablation at the same tokens of the same sites
       CE recovered = 1 - (CE_spliced - CE) / (CE_ablated - CE)        KL recovered = 1 - KL_spliced / KL_ablated
3. `everywhere` splices at all tokens: a warning, not a score. A few massive activations decide it.

Zero ablation breaks models more than anything that happens in them, so shares of it flatter; mean ablation is the fairer
measure. Where several sites are replaced, reconstructions are made of what they were in the plain run. Where sites are of two
models, each is spliced with its own, and sums are over the predictions of both.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from assay.errors import bad_argument
from assay.features.held_out import HeldOut, SideBySide
from assay.features.ratios import Measure, complement, ratio
from assay.model.edits import patch
from assay.model.model import Model

LOGITS = 1 << 26  # numbers of one batch's logits: 256 MB in fp32
PLAIN, ZERO, MEAN = "plain", "zero", "mean"


@dataclass(eq=False)
class Losses:
    """Sums over next-token predictions, per document: cross-entropy and KL to the plain model, by what was spliced."""

    documents: int
    n: Tensor = field(init=False)
    ce: dict[str, Tensor] = field(default_factory=dict)
    kl: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.n = torch.zeros(self.documents, dtype=torch.double)

    def add(self, name: str, places: Tensor, ce: Tensor, kl: Tensor) -> None:
        """One batch: numbers per prediction and the document of each."""
        for sums, values in ((self.ce, ce), (self.kl, kl)):
            sums.setdefault(name, torch.zeros(self.documents, dtype=torch.double)).index_add_(0, places, values.double())
        if name == PLAIN:
            self.n.index_add_(0, places, torch.ones(len(places), dtype=torch.double))

    def merge(self, part: "Losses", places: Tensor) -> None:
        """Add sums of another batch; `places`: the number here of each of its documents."""
        self.n.index_add_(0, places, part.n)
        for sums, others in ((self.ce, part.ce), (self.kl, part.kl)):
            for name, values in others.items():
                sums.setdefault(name, torch.zeros(self.documents, dtype=torch.double)).index_add_(0, places, values)

    def tensors(self) -> dict[str, Tensor]:
        """All sums, by name."""
        kinds = {"ce": self.ce, "kl": self.kl}
        return {"n": self.n, **{f"{kind}.{name}": value for kind, sums in kinds.items() for name, value in sums.items()}}

    def take(self, kept: Mapping[str, Tensor]) -> None:
        """Go on from what `tensors` gave."""
        self.n = kept["n"]
        for kind, sums in (("ce", self.ce), ("kl", self.kl)):
            sums.update({name[3:]: value for name, value in kept.items() if name.startswith(f"{kind}.")})

    def mean(self, name: str) -> Measure | None:
        """Cross-entropy per prediction, in nats."""
        return ratio(self.ce[name].numpy(), self.n.numpy())

    def recovered(self, name: str, against: str) -> Measure | None:
        """Share of the cross-entropy that ablation costs and this does not; None where ablation costs nothing."""
        lost, most = self.ce[name] - self.ce[PLAIN], self.ce[against] - self.ce[PLAIN]
        if float(most.sum()) <= 0:
            return None
        return complement(ratio(lost.numpy(), most.numpy()))

    def kl_recovered(self, name: str, against: str) -> Measure | None:
        """The same of the divergence from the plain model."""
        return complement(ratio(self.kl[name].numpy(), self.kl[against].numpy()))


def tokens_at_once(model: Model | SideBySide, most: int) -> int:
    """How many tokens' logits fit into the budget."""
    hosts = model.models.values() if isinstance(model, SideBySide) else [model]
    return max(1, min(most, LOGITS // max(host.dims.d_vocab for host in hosts)))


def splice(
    model: Model | SideBySide, held: HeldOut, sites: Sequence[str], values: Mapping[str, Float[Tensor, "token d"]],
    losses: Losses, places: Sequence[int],
) -> None:  # fmt: skip
    """Add one batch of rows to `losses`: the plain model, and with each of `values` at the sites, side by side.

    `places`: the document number of each row.
    """
    if isinstance(model, SideBySide):
        for host, own, columns in _by_model(model, sites):
            splice(host, held, own, {name: value[:, columns] for name, value in values.items()}, losses, places)
        return
    rows = [list(row) for row in held.rows]
    plain = predictions(model, rows, [])
    wanted = torch.cat([torch.tensor(row[1:]) for row in rows])
    documents = torch.tensor(list(places)).repeat_interleave(torch.tensor([len(row) - 1 for row in rows]))
    truth = plain.log_softmax(-1)
    at = torch.arange(len(wanted))
    losses.add(PLAIN, documents, -truth[at, wanted], torch.zeros(len(wanted)))
    for name, value in values.items():
        found = predictions(model, rows, edits_of(model, sites, value, [len(row) for row in rows])).log_softmax(-1)
        losses.add(name, documents, -found[at, wanted], divergence(truth, found))


def divergence(truth: Float[Tensor, "token vocab"], found: Float[Tensor, "token vocab"]) -> Float[Tensor, " token"]:
    """KL of log-probabilities; what never occurs (-inf) adds nothing."""
    share = truth.exp()
    return torch.where(share > 0, share * (truth - found), 0.0).sum(1)


def _by_model(models: SideBySide, sites: Sequence[str]) -> list[tuple[Model, list[str], list[int]]]:
    """(model, its own sites, their columns among those of all sites) of each model that has some."""
    found: dict[int, tuple[Model, list[str], list[int]]] = {}
    start = 0
    for host, own in models.hosts(sites):
        shape = host.feature_shape(host.sites([own])[0])
        if shape is None:
            raise bad_argument("site", own, "one whose size is always the same")
        end = start + math.prod(shape)
        _, names, columns = found.setdefault(id(host), (host, [], []))
        names.append(own)
        columns.extend(range(start, end))
        start = end
    return list(found.values())


def edits_of(model: Model, sites: Sequence[str], value: Float[Tensor, "token d"], lengths: Sequence[int]) -> list:
    """Patches that put values, rows after each other and sites side by side, where they belong."""
    wanted = model.sites(list(sites))
    shapes = [model.feature_shape(site) or (value.shape[1],) for site in wanted]
    sizes = [int(torch.tensor(shape).prod()) for shape in shapes]
    edits = []
    for site, shape, part in zip(wanted, shapes, value.split(sizes, dim=1), strict=True):
        padded = torch.nn.utils.rnn.pad_sequence(list(part.split(list(lengths))), batch_first=True)
        edits.append(patch(site, padded.unflatten(2, shape).to(model.dtype)))
    return edits


def predictions(model: Model, rows: Sequence[Sequence[int]], edits: Sequence) -> Float[Tensor, "prediction vocab"]:
    """Logits at every position but the last of each row, rows after each other, fp32."""
    acts = model.capture([list(row) for row in rows], "logits", edits=list(edits))
    return torch.cat([part[:-1].float() for part in acts.rows("logits")])
