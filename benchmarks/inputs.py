"""What is measured: the same token ids for Assay, for the limits and for every peer."""

from dataclasses import dataclass

import torch
from torch import Tensor

from assay import Model, load_task, prepare
from assay.data.prepare import PreparedTask
from assay.records import Pair

PROMPT = "Once upon a time there was a small village by the sea"


@dataclass(frozen=True, eq=False)
class SweepInput:
    """One pair, the tokens whose logit difference is the metric, and the layers to sweep."""

    clean: list[int]
    corrupted: list[int]
    answer: int
    foil: int
    layers: tuple[int, ...]

    def difference(self, logits: Tensor) -> Tensor:
        """(..., vocab) -> (...)."""
        return logits[..., self.answer] - logits[..., self.foil]

    def task(self) -> PreparedTask:
        pair = Pair("", "", (), (), "")
        return PreparedTask([pair], [self.clean], [self.corrupted], [(self.answer,)], [(self.foil,)], {}, {})


@dataclass(frozen=True, eq=False)
class HeadsInput:
    """Pairs as right-padded batches; `last` is each row's last real position."""

    task: PreparedTask
    clean: Tensor
    corrupted: Tensor
    mask: Tensor
    last: Tensor
    answers: Tensor
    foils: Tensor
    layers: tuple[int, ...]
    n_heads: int
    d_head: int

    def difference(self, logits: Tensor) -> Tensor:
        """Logits (pair, pos, vocab) -> logit difference (pair,) at each row's last real position."""
        rows = torch.arange(len(logits))
        at_end = logits[rows, self.last]
        return at_end[rows, self.answers] - at_end[rows, self.foils]


@dataclass(frozen=True, eq=False)
class GenerationInput:
    """A prompt and a steering vector that changes what the model says."""

    ids: Tensor
    layer: int
    vector: Tensor
    n_tokens: int = 32


def random_ids(model: Model, n_prompts: int, width: int) -> Tensor:
    """(n_prompts, width) token ids, without the special ones."""
    top = min(40_000, model.dims.d_vocab)
    return torch.randint(20, top, (n_prompts, width), generator=torch.Generator().manual_seed(0))


def sampled(n_layers: int) -> tuple[int, ...]:
    """Every fifth layer, of the same mean depth as all of them (for a multiple of five)."""
    return tuple(range(2, n_layers, 5))


def sweep_input(model: Model, layers: tuple[int, ...], width: int = 16) -> SweepInput:
    """An indirect-object pair of `width` tokens whose first token differs too, so no cell is trivial."""
    task = prepare(load_task("ioi", n=64), model)
    row = next(row for row, ids in enumerate(task.clean) if len(ids) == width)
    answer, foil = task.answers[row][0], task.foils[row][0]
    return SweepInput(task.clean[row], [21, *task.corrupted[row][1:]], answer, foil, layers)


def heads_input(model: Model, layers: tuple[int, ...], n_pairs: int = 32) -> HeadsInput:
    """Indirect-object pairs of several lengths."""
    task = prepare(load_task("ioi", n=n_pairs), model)
    lengths = torch.tensor([len(ids) for ids in task.clean])
    mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
    answers, foils = (torch.tensor([ids[0] for ids in side]) for side in (task.answers, task.foils))
    return HeadsInput(task, _padded(task.clean, mask), _padded(task.corrupted, mask), mask, lengths - 1,
                      answers, foils, layers, model.n_heads, model.dims.d_head)  # fmt: skip


def generation_input(model: Model, layer: int) -> GenerationInput:
    """The steering vector has about twice the typical norm of the residual stream it is added to."""
    ids = torch.tensor(model.tokens(PROMPT))
    residual = model.capture(ids, f"resid_post.{layer}")[f"resid_post.{layer}"][0]
    noise = torch.randn(model.dims.d_model, generator=torch.Generator().manual_seed(0))
    return GenerationInput(ids, layer, noise / noise.norm() * 2 * residual.norm(dim=-1).median())


def _padded(rows: list[list[int]], mask: Tensor) -> Tensor:
    out = torch.zeros_like(mask)
    out[mask.bool()] = torch.tensor([token for row in rows for token in row])
    return out
