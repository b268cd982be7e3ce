"""Labelled texts as a dictionary sees them: one row per text, inputs, targets and latents.

Sentences are read as means over their typical tokens (what SAEBench does), words at one token. All that is fitted on
them is fitted on rows of other texts than those that are scored.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Float
from torch import Tensor

from assay.data.prepare_concept import PreparedConcept
from assay.errors import bad_argument
from assay.features.dictionary import Dictionary
from assay.features.held_out import HeldOut, Limits, positions_of, read_tokens
from assay.model.model import Model


@dataclass(frozen=True, eq=False)
class Labelled:
    """Rows of texts. `labels`: by name of a property, one bool per text; `clusters`: what texts of one frame share; `scaled`:
    codes times the size of each token, for a dictionary that normalises its inputs."""

    x: Float[Tensor, "text d_in"]
    y: Float[Tensor, "text d_out"]
    codes: Float[Tensor, "text latent"]
    labels: Mapping[str, np.ndarray]
    clusters: Sequence[str]
    scaled: Float[Tensor, "text latent"] | None = None

    @property
    def written(self) -> Float[Tensor, "text latent"]:
        """What latents add to targets, in decoder rows."""
        return self.codes if self.scaled is None else self.scaled

    def __post_init__(self) -> None:
        counts = {len(self.x), len(self.y), len(self.codes), len(self.clusters), *map(len, self.labels.values())}
        if len(counts) != 1 or counts == {0}:
            raise bad_argument("texts", f"{sorted(counts)} rows of different parts", "as many of each, 1 or more")
        for name in ("x", "y", "codes", "scaled"):
            part = getattr(self, name)
            if part is not None and not bool(torch.isfinite(part).all()):
                rows = (~torch.isfinite(part)).any(1).nonzero().flatten().tolist()
                said = f"numbers that are not finite in {len(rows)} of {len(part)} texts, e.g. text {rows[0]}"
                raise bad_argument(f"texts: {name}", said, "finite ones")

    def label(self, name: str) -> np.ndarray:
        """One property. Raises UsageError for one that is not there."""
        if name not in self.labels:
            raise bad_argument("label", name, ", ".join(self.labels))
        return self.labels[name]


def labelled(
    model: Model, dictionary: Dictionary, rows: Sequence[Sequence[int]], labels: Mapping[str, Sequence[int]],
    clusters: Sequence[str], at: Sequence[int] | None = None, limits: Limits | None = None, batch: int = 4096,
) -> Labelled:  # fmt: skip
    """Texts of token ids, read at one position each (`at`) or as means over typical tokens.

    A text with no typical token is read as the mean of all its tokens. Raises UsageError for a position a text does not have.
    """
    for number, (row, place) in enumerate(zip(rows, at or (), strict=False)):
        if not 0 <= place < len(row):
            raise bad_argument("at", f"{place} for text {number}", f"0 to {len(row) - 1}, its positions")
    limits = limits or Limits(dictionary.spec.skip_first, dictionary.spec.norm_limit, dictionary.spec.target_limit)
    held, names = HeldOut(tuple(map(tuple, rows)), tuple(map(str, range(len(rows))))), list(map(str, range(len(rows))))
    parts: list[list[Tensor]] = [[], [], [], []]
    for some in held.batches(batch):
        tokens = read_tokens(model, dictionary, some, limits, names)
        numbers = [int(name) for name in some.documents]
        weights = _means(tokens.documents, tokens.typical, numbers) if at is None else _picks(
            tokens.documents, positions_of(some), numbers, at)  # fmt: skip
        codes: Any = dictionary.codes(tokens.x, tokens.positions).scipy()  # sparse until they are one row a text
        made = [weights @ tokens.x.numpy(), weights @ tokens.y.numpy(), (weights @ codes).toarray()]
        if dictionary.input_norm != "none":
            made.append((weights @ codes.multiply(torch.as_tensor(dictionary.normed(tokens.x)[1]).numpy())).toarray())
        for kept, part in zip(parts, made, strict=False):
            kept.append(torch.as_tensor(part).float())
    x, y, found, *scaled = (torch.cat(kept) for kept in parts if kept)
    told = {name: np.asarray(each).astype(bool) for name, each in labels.items()}
    return Labelled(x, y, found, told, list(clusters), *scaled)


def of_concept(
    model: Model, dictionary: Dictionary, prepared: PreparedConcept, name: str, limits: Limits | None = None
) -> Labelled:
    """The texts of a concept, as means over typical tokens."""
    return labelled(model, dictionary, prepared.tokens, {name: prepared.labels}, prepared.templates, limits=limits)


def _means(documents: Tensor, typical: Tensor, numbers: Sequence[int]) -> sp.csr_array:
    """Sparse (text, token): 1 over the number of typical tokens of the text."""
    rows = documents - numbers[0]
    counts = torch.zeros(len(numbers)).index_add_(0, rows, typical.float())
    use = typical | (counts[rows] == 0)
    counts = torch.zeros(len(numbers)).index_add_(0, rows, use.float())
    places = use.nonzero()[:, 0]
    return _sparse(rows[places], places, 1 / counts[rows[places]], len(numbers), len(documents))


def _picks(documents: Tensor, positions: Tensor, numbers: Sequence[int], at: Sequence[int]) -> sp.csr_array:
    """Sparse (text, token): 1 at the token that is read."""
    wanted = torch.tensor([at[number] for number in numbers])
    places = (positions == wanted[documents - numbers[0]]).nonzero()[:, 0]
    return _sparse(documents[places] - numbers[0], places, torch.ones(len(places)), len(numbers), len(documents))


def _sparse(rows: Tensor, columns: Tensor, values: Tensor, n: int, width: int) -> sp.csr_array:
    return sp.csr_array((values.numpy(), (rows.numpy(), columns.numpy())), shape=(n, width))
