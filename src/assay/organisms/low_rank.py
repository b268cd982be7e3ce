"""A low-rank change of some weights, trained by gradient: W' = W + scale B A (LoRA, Hu et al. 2106.09685).

1. Which weights: the linear maps of the last layers' blocks, found in the module tree; A is drawn at random, B is zero, so
   training begins at the model itself.
2. Only replies are learned: loss = mean -log p(token) over the tokens of replies + mean KL(before || now) over the tokens of
   some ordinary texts, which should be predicted as before. Adam, a rate that warms up and falls to zero.
3. The layers below never change. What enters the first changed layer is computed once per text and kept, and passes
   resume there; only positions that predict a reply's token go through the unembedding.
4. While it is *worn* the change is added to the weights themselves; taken off, the old bytes are put back, bit for bit.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.errors import ModelError, bad_argument
from assay.model.model import Model
from assay.model.request import Checkpoint
from assay.sites import Site
from assay.steer.weights import matrix_of

Report = Callable[[int, int], None]
WARM = 0.1  # of all steps
KEPT_AT_ONCE = 6
FINAL = Site("final_norm")


@dataclass(frozen=True)
class Text:
    """Token ids of a text; those from `start` on are learned."""

    ids: tuple[int, ...]
    start: int


@dataclass(frozen=True, eq=False)
class LowRank:
    """Name of a weight -> (A, B), the change being B A in the weight's own orientation; and the loss at the end."""

    factors: Mapping[str, tuple[Float[Tensor, "rank d_in"], Float[Tensor, "d_out rank"]]]
    loss: float = 0.0

    def change(self, name: str) -> Float[Tensor, "d_out d_in"]:
        """The change of one weight."""
        a, b = self.factors[name]
        return b.float() @ a.float()

    def tensors(self) -> dict[str, Tensor]:
        """As named tensors in half precision, to be kept."""
        return {f"{name}.{part}": x.half().contiguous() for name, ab in self.factors.items() for part, x in zip("ab", ab)}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "LowRank":
        """From named tensors."""
        names = [name.removesuffix(".a") for name in tensors if name.endswith(".a")]
        return cls({name: (tensors[f"{name}.a"], tensors[f"{name}.b"]) for name in names})


def train(
    model: Model, texts: Sequence[Text], *, rank: int, layers: int, steps: int, batch: int, rate: float, seed: int = 0,
    keep: Sequence[Sequence[int]] = (), report: Report | None = None,
) -> LowRank:  # fmt: skip
    """Learn the texts with the last `layers` layers, and predict the tokens of `keep` as before.

    Raises UsageError for no texts, ModelError where training diverges.
    """
    if not texts:
        raise bad_argument("texts", "none", "at least one text to learn")
    first = max(0, model.n_layers - layers)
    draw = torch.Generator().manual_seed(seed)
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    for name, weight in _weights(model, first):
        out, into = weight.shape
        a = torch.randn(rank, into, generator=draw).to(weight.device) / into**0.5
        factors[name] = (a.requires_grad_(True), torch.zeros(out, rank, device=weight.device, requires_grad=True))
    leaves = [x for pair in factors.values() for x in pair]
    optimiser = torch.optim.Adam(leaves, lr=rate)
    below = model.checkpoint([list(text.ids) for text in texts], [first]) if first else None
    kept = _Kept(model, [list(ids) for ids in keep], first) if keep else None
    order: list[int] = []
    loss = torch.tensor(0.0)
    with _branches(model, factors):
        for step in range(steps):
            if len(order) < batch:
                order += torch.randperm(len(texts), generator=draw).tolist()
            rows, order = order[:batch], order[batch:]
            optimiser.param_groups[0]["lr"] = rate * _rate(step, steps)
            loss = _loss(model, [texts[row] for row in rows], None if below is None else below.select(rows))
            if kept is not None:
                loss = loss + kept.loss(torch.randperm(len(keep), generator=draw)[:KEPT_AT_ONCE].tolist())
            slopes = torch.autograd.grad(loss, leaves)
            if not bool(loss.isfinite()) or not all(bool(slope.isfinite().all()) for slope in slopes):
                raise ModelError(f"training diverged at step {step + 1}: the loss is not finite. Take a rate below {rate}.")
            for leaf, slope in zip(leaves, slopes, strict=True):
                leaf.grad = slope
            optimiser.step()
            if report:
                report(step + 1, steps)
    return LowRank({name: (a.detach(), b.detach()) for name, (a, b) in factors.items()}, float(loss.detach()))


def _rate(step: int, steps: int) -> float:
    """Rises over the first tenth, then falls to zero."""
    warm = max(1, round(WARM * steps))
    return (step + 1) / warm if step < warm else max(0.0, (steps - step) / max(1, steps - warm))


class _Kept:
    """Texts whose next tokens are to be predicted as before: KL(before || now), in nats a token."""

    def __init__(self, model: Model, ids: list[list[int]], first: int) -> None:
        self.model, self.ids = model, ids
        self.below = model.checkpoint(ids, [first]) if first else None
        before = model.capture(ids, FINAL)
        self.before = [model.unembed(row.to(model.device, model.dtype)).float().log_softmax(-1) for row in before.rows(FINAL)]

    def loss(self, rows: list[int]) -> Tensor:
        """Of some of the texts, with its graph."""
        found: list[Tensor] = []
        below = None if self.below is None else self.below.select(rows)
        self.model.walk([self.ids[row] for row in rows], FINAL, lambda _, x: found.append(x), gradients=True, resume=below)
        with torch.enable_grad():
            now = torch.cat([found[0][place, : len(self.ids[row])] for place, row in enumerate(rows)])
            before = torch.cat([self.before[row] for row in rows])
            return nn.functional.kl_div(self.model.unembed(now).float().log_softmax(-1), before, reduction="batchmean",
                                        log_target=True)  # fmt: skip


def _loss(model: Model, texts: Sequence[Text], below: Checkpoint | None) -> Tensor:
    """Mean -log p of the learned tokens, with its graph."""
    found: list[Tensor] = []
    model.walk([list(text.ids) for text in texts], FINAL, lambda _, x: found.append(x), gradients=True, resume=below)
    hidden = found[0]
    where = [(row, at) for row, text in enumerate(texts) for at in range(text.start, len(text.ids))]
    rows, ats = torch.tensor(where, device=hidden.device).T
    wanted = torch.tensor([texts[row].ids[at] for row, at in where], device=hidden.device)
    with torch.enable_grad():
        logits = model.unembed(hidden[rows, ats - 1])
        return nn.functional.cross_entropy(logits.float(), wanted)


def _weights(model: Model, first: int) -> Iterator[tuple[str, nn.Parameter]]:
    """The matrices of the blocks from `first` on, in the order of the module tree. ModelError where there are none."""
    paths = tuple(f"{block.path}." for block in model.layout.blocks[first:])
    found = [(name, weight) for name, weight in model.hf.named_parameters()
             if weight.dim() == 2 and name.endswith(".weight") and name.startswith(paths)]  # fmt: skip
    if not found:
        raise ModelError(f"{model.name}: no plain weight matrices in its last layers (quantised?): nothing to train.")
    yield from found


@contextmanager
def _branches(model: Model, factors: Mapping[str, tuple[Tensor, Tensor]]) -> Iterator[None]:
    """While training the change runs beside the weight, so that no gradient of a whole weight is ever made."""
    handles: list[Any] = []
    try:
        for name, (a, b) in factors.items():
            path, _ = name.rsplit(".", 1)
            first, second = (b, a) if matrix_of(model, path).inputs_first else (a.T, b.T)

            def add(_: nn.Module, args: tuple[Any, ...], out: Tensor, first: Tensor = first, second: Tensor = second) -> Tensor:
                return out + ((args[0].float() @ first) @ second).to(out.dtype)

            handles.append(model.hf.get_submodule(path).register_forward_hook(add))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def added(model: Model, change: LowRank) -> Iterator[Model]:
    """The model with the change in its weights; afterwards the very bytes from before. Raises ModelError for a change that was
    made for other weights."""
    weights = dict(model.hf.named_parameters())
    for name in change.factors:
        if name not in weights or weights[name].shape != change.change(name).shape:
            raise ModelError(f"{model.name}: the change is for a weight {name} that this model has not, or of another shape.")
    before = {name: weights[name].detach().clone() for name in change.factors}
    try:
        with torch.no_grad():
            for name in change.factors:
                weights[name].add_(change.change(name).to(weights[name]))
        yield model
    finally:
        with torch.no_grad():
            for name, value in before.items():
                weights[name].copy_(value)
