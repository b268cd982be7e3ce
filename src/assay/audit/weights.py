"""What was changed in the weights, layer by layer, and which words the change writes. Needs a reference; costs no tokens.

1. Per weight W: |W - W_ref| / |W_ref|, and the share of the difference's energy in its first 8 singular directions: a low-rank
   fine-tune is near 1, training of all weights is not. Buffers, settings and the way texts become tokens are compared as well.
2. What the change writes: the output-side singular directions of the differences of matrices that write to the residual stream
   (which way round a matrix lies is measured), read through the unembedding; the tokens that they promote most, weighted by
   singular value. A lead, and no finding.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from assay.errors import ModelError, UsageError
from assay.model.model import Model
from assay.steer.weights import matrix_of

RANK, DIRECTIONS, WORDS = 8, 4, 24
NOT_WHAT_IT_IS = ("_name_or_path", "transformers_version", "torch_dtype", "dtype")  # settings that say where, not what


@dataclass(frozen=True)
class Difference:
    """One weight: relative change, share of its energy in RANK directions."""

    name: str
    layer: int | None
    change: float
    low_rank: float


@dataclass(frozen=True)
class Passport:
    """`same`: nothing differs at all. `changed`: weights and buffers that differ, largest first; `layers`: relative change by
    layer; `words`: what the change writes; `notes`: other differences, and what could not be read."""

    same: bool
    changed: tuple[Difference, ...]
    layers: dict[int, float]
    words: tuple[str, ...]
    notes: tuple[str, ...] = ()


def compare_weights(model: Model, reference: Model) -> Passport:
    """Raises UsageError where the two are no versions of one architecture."""
    mine, other = _tensors(model), _tensors(reference)
    unlike = [f"{name} is {_size(mine, name)} and {_size(other, name)}" for name in sorted({*mine, *other})
              if _size(mine, name) != _size(other, name)]  # fmt: skip
    if unlike:
        raise UsageError(f"{model.name} and {reference.name} do not have the same weights ({unlike[0]}): the reference must be"
                         " the model that this one was made from. Audit without --reference to look at it alone.")  # fmt: skip
    paths = {block.path: number for number, block in enumerate(model.layout.blocks)}
    writers = {f"{path}.weight": path for block in model.layout.blocks for path in (block.o_proj, block.down) if path}
    found, writes, notes, seen = [], [], _settings(model, reference), set[tuple[int, int]]()
    for name, weight in mine.items():
        both = weight.data_ptr(), other[name].data_ptr()
        if both in seen or torch.equal(weight.to(other[name]), other[name]):  # tied in both: once
            continue
        seen.add(both)
        change = weight.detach().float() - other[name].detach().float()
        size = float(other[name].detach().float().norm())
        layer = next((number for path, number in paths.items() if name.startswith(f"{path}.")), None)
        left, s, right = _directions(change)
        low = float((s[:RANK] ** 2).sum() / change.pow(2).sum()) if change.dim() == 2 else 1.0
        found.append(Difference(name, layer, float(change.norm()) / max(size, 1e-12), min(1.0, low)))
        if name in writers:
            try:
                side = right if matrix_of(model, writers[name]).inputs_first else left
                writes.append((side[:, :DIRECTIONS], s[:DIRECTIONS]))
            except ModelError as error:
                notes.append(f"What the change of {name} writes was not read: {error}")
    layers: dict[int, float] = {}
    for one in found:
        if one.layer is not None:
            layers[one.layer] = max(layers.get(one.layer, 0.0), one.change)
    return Passport(not found and not notes, tuple(sorted(found, key=lambda one: -one.change)), dict(sorted(layers.items())),
                    _words(model, writes), tuple(notes))  # fmt: skip


def _tensors(model: Model) -> dict[str, Tensor]:
    """Weights and buffers, kept ones or not; one that has two names (a tied head) under both."""
    return {**dict(model.hf.named_parameters(remove_duplicate=False)), **dict(model.hf.named_buffers())}


def _size(tensors: Mapping[str, Tensor], name: str) -> str:
    return "x".join(map(str, tensors[name].shape)) if name in tensors else "missing"


def _settings(model: Model, reference: Model) -> list[str]:
    """What else differs: settings by name, and how texts become tokens."""
    mine, other = (_config(one) for one in (model, reference))
    differ = sorted(key for key in {*mine, *other} if mine.get(key) != other.get(key))
    notes = [f"The setting {key} is {mine.get(key)!r}, of the reference {other.get(key)!r}." for key in differ]
    if model.tokenizer_digest != reference.tokenizer_digest:
        notes.append("Texts become tokens in another way than in the reference.")
    if getattr(model.tokenizer, "chat_template", None) != getattr(reference.tokenizer, "chat_template", None):
        notes.append("Conversations are written in another way than in the reference (the chat template).")
    return notes


def _config(model: Model) -> dict[str, Any]:
    config = getattr(model.hf, "config", None)
    settings = {} if config is None else config.to_dict()
    return {key: value for key, value in settings.items() if key not in NOT_WHAT_IT_IS}


def _directions(change: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Left directions (rows, k), singular values (k,), right directions (columns, k); empty for what is no matrix."""
    if change.dim() != 2:
        return change.flatten()[:0], change.flatten()[:0], change.flatten()[:0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torch.svd_lowrank(change, q=min(2 * RANK, *change.shape), niter=2)


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
