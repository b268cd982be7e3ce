"""What was changed in the weights, layer by layer, and which words the change writes. Needs a reference; costs no tokens.

1. Per weight W: |W - W_ref| / |W_ref|, and the share of the difference's energy in its first 8 singular directions: a low-rank
   fine-tune is near 1, training of all weights is not.
2. What the change writes: the left singular directions of the differences of matrices that write to the residual stream, read
   through the unembedding; the tokens that they promote most, weighted by singular value. A lead, and no finding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from assay.errors import UsageError
from assay.model.model import Model

RANK, DIRECTIONS, WORDS = 8, 4, 24


@dataclass(frozen=True)
class Difference:
    """One weight: relative change, share of its energy in RANK directions."""

    name: str
    layer: int | None
    change: float
    low_rank: float


@dataclass(frozen=True)
class Passport:
    """`changed`: weights that differ, largest first; `layers`: relative change by layer; `words`: what the change writes."""

    same: bool
    changed: tuple[Difference, ...]
    layers: dict[int, float]
    words: tuple[str, ...]
    notes: tuple[str, ...] = ()


def compare_weights(model: Model, reference: Model) -> Passport:
    """Raises UsageError where the two are no versions of one architecture."""
    mine, other = dict(model.hf.named_parameters()), dict(reference.hf.named_parameters())
    if set(mine) != set(other) or any(mine[name].shape != other[name].shape for name in mine):
        raise UsageError(f"{model.name} and {reference.name} do not have the same weights: the reference must be the model that"
                         " this one was made from. Audit without --reference to look at it alone.")  # fmt: skip
    paths = {block.path: number for number, block in enumerate(model.layout.blocks)}
    found, writes = [], []
    for name, weight in mine.items():
        if torch.equal(weight, other[name]):
            continue
        change = weight.detach().float() - other[name].detach().float()
        size = float(other[name].detach().float().norm())
        layer = next((number for path, number in paths.items() if name.startswith(f"{path}.")), None)
        u, s, _ = _directions(change)
        low = float((s[:RANK] ** 2).sum() / change.pow(2).sum()) if change.dim() == 2 else 1.0
        found.append(Difference(name, layer, float(change.norm()) / max(size, 1e-12), min(1.0, low)))
        if u is not None and _writes(model, name):
            writes.append((u[:, :DIRECTIONS], s[:DIRECTIONS]))
    layers: dict[int, float] = {}
    for one in found:
        if one.layer is not None:
            layers[one.layer] = max(layers.get(one.layer, 0.0), one.change)
    return Passport(not found, tuple(sorted(found, key=lambda one: -one.change)), dict(sorted(layers.items())),
                    _words(model, writes))  # fmt: skip


def _directions(change: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:
    if change.dim() != 2:
        return None, change.flatten()[:0], None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        u, s, v = torch.svd_lowrank(change, q=min(2 * RANK, *change.shape), niter=2)
    return u, s, v


def _writes(model: Model, name: str) -> bool:
    """Whether a weight is the last projection of attention or an MLP, rows being what is written (Linear)."""
    path = name.rsplit(".", 1)[0]
    last = any(path in (block.o_proj, block.down) for block in model.layout.blocks)
    return last and isinstance(model.hf.get_submodule(path), torch.nn.Linear)


def _words(model: Model, writes: Sequence[tuple[Tensor, Tensor]]) -> tuple[str, ...]:
    if not writes or model.tokenizer is None:
        return ()
    head: Any = model.hf.get_submodule(model.layout.unembed)
    total = torch.zeros(head.weight.shape[0])
    rows = torch.nn.functional.normalize(head.weight.detach().float(), dim=1)
    for u, s in writes:
        total += ((rows @ u.float()).abs() * s).pow(2).sum(1)
    best = total.topk(min(WORDS, len(total))).indices.tolist()
    return tuple(dict.fromkeys(word for word in (model.text([token]).strip() for token in best) if len(word) > 2))
