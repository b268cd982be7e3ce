"""What attention heads look at, on random tokens that are repeated: a check of circuits that owes nothing to them.

1. Texts: `length` random tokens, twice (with what the model puts before texts). Tokens are drawn from those that are one
   word, so nothing but the repetition can be attended to.
2. For a head and the second copy, mean attention from position i to
   previous token: i - 1;   duplicate: i - length (the same token before);   induction: i - length + 1 (what followed it).
3. Beside each, `even`: what attention spread evenly over all positions would give there, the mean of 1 / (i + 1).

A high score says where a head looks, not what it does with it (Olsson et al. 2022): whether a behaviour runs through it is
for patching and for circuits. `agreement` puts both together: is the head's strength in a circuit higher where its score
is? AUROC of heads above `BAR` against the rest, by the summed |score| of a head's edges.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from sklearn.metrics import roc_auc_score
from torch import Tensor

from assay.data.vocabulary import vocabulary_words
from assay.errors import bad_argument
from assay.model.model import Model

KINDS = ("previous", "duplicate", "induction")
BAR = 0.3


@dataclass(frozen=True, eq=False)
class HeadPatterns:
    """Scores (layer, head) of each kind, and what even attention gives."""

    previous: Float[np.ndarray, "layer head"]
    duplicate: Float[np.ndarray, "layer head"]
    induction: Float[np.ndarray, "layer head"]
    even: float
    n_texts: int
    length: int

    def strongest(self, kind: str, n: int = 10) -> list[tuple[str, float]]:
        """Heads with the highest score of a kind, as (z.L.H, score)."""
        if kind not in KINDS:
            raise bad_argument("kind", kind, ", ".join(KINDS))
        scores = getattr(self, kind)
        order = np.argsort(-scores, axis=None, kind="stable")[:n]
        places = [np.unravel_index(int(place), scores.shape) for place in order]
        return [(f"z.{layer}.{head}", float(scores[layer, head])) for layer, head in places]

    def json(self) -> dict[str, Any]:
        """As plain values."""
        return {**{kind: getattr(self, kind).tolist() for kind in KINDS}, "even": self.even, "n_texts": self.n_texts,
                "length": self.length}  # fmt: skip


def head_patterns(model: Model, n_texts: int = 16, length: int = 32, seed: int = 0) -> HeadPatterns:
    """Scores of every head. Raises SiteError for a model whose patterns are not offered, UsageError for too few words."""
    for name, value, least in (("n_texts", n_texts, 1), ("length", length, 2)):
        if value < least:
            raise bad_argument(name, value, f"{least} or more")
    texts, before = repeated_texts(model, n_texts, length, seed)
    positions = torch.arange(before + length, before + 2 * length)
    sites = [f"pattern.{layer}" for layer in range(model.n_layers)]
    found = {kind: np.zeros((model.n_layers, model.n_heads)) for kind in KINDS}
    for site in sites:  # one layer's patterns at a time: flat in memory
        patterns = model.capture(texts, site)[site].double()
        for kind, back in (("previous", 1), ("duplicate", length), ("induction", length - 1)):
            found[kind][sites.index(site)] = patterns[:, :, positions, positions - back].mean((0, 2)).numpy()
    return HeadPatterns(**found, even=float((1 / (positions + 1)).mean()), n_texts=n_texts, length=length)


def repeated_texts(model: Model, n_texts: int, length: int, seed: int) -> tuple[list[list[int]], int]:
    """Texts of `length` different random tokens, said twice, and how many tokens the model puts before them.

    Raises UsageError where the vocabulary has fewer tokens that are one word.
    """
    pool = _tokens(model)
    if len(pool) < length:
        raise bad_argument("length", length, f"at most {len(pool)}, the tokens that are one word")
    generator = torch.Generator().manual_seed(seed)
    rows = [pool[torch.randperm(len(pool), generator=generator)[:length]].tolist() for _ in range(n_texts)]
    before = [model.bos_id] if model.prepend_bos and model.bos_id is not None else []
    return [[*before, *row, *row] for row in rows], len(before)


def agreement(patterns: Float[np.ndarray, "layer head"], strength: Float[np.ndarray, "layer head"]) -> float | None:
    """How often a head above `BAR` is stronger in a circuit than one below; None where all heads are on one side."""
    above = patterns.flatten() > BAR
    return None if above.all() or not above.any() else float(roc_auc_score(above, strength.flatten()))


def strength_of(circuit: Any) -> Float[np.ndarray, "layer head"]:
    """Summed |score| of the edges out of and into each head, of the edges in a circuit."""
    graph = circuit.graph
    found = np.zeros((graph.n_layers, graph.n_heads))
    scores = torch.where(circuit.mask & ~circuit.scores.isnan(), circuit.scores.abs(), 0.0)
    for place, site in enumerate(graph.writers):
        if site.name == "z":
            found[site.layer, site.index] += float(scores[place].sum())
    for place, site in enumerate(graph.readers):
        if site.name == "q":
            found[site.layer, site.index] += float(scores[:, place].sum())
    return found


def _tokens(model: Model) -> Tensor:
    """Ids of tokens that are one word; where the vocabulary has none of those, all but the special ones."""
    words = sorted({word for split in vocabulary_words(model).values() for word in split})
    ids = [model.tokenizer(f" {word}", add_special_tokens=False)["input_ids"] for word in words]
    found = [each[0] for each in ids if len(each) == 1]
    special = set(getattr(model.tokenizer, "all_special_ids", []))
    return torch.tensor(found or [i for i in range(model.dims.d_vocab) if i not in special])
