"""Metrics of the next-token distribution, bound to each prompt's answers and foils.

With sets of tokens A (answers) and F (foils), z the logits and p = softmax z at the last position:

    logit_diff = logsumexp z[A] - logsumexp z[F]     (plain difference for single tokens)
    prob       = sum p[A]
    prob_diff  = sum p[A] - sum p[F]
    loss       = -log sum p[A]
    rank       = tokens with a higher logit than the best answer (0 = top)
    kl         = KL(reference || p), reference = the clean run's distribution

Your own is any function of the same three tensors: logits, answers, foils -> one number per prompt.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from assay.errors import ShapeError, bad_argument

Ids = Sequence[tuple[int, ...]]
Function = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Metric:
    """A metric of prompts 0..n-1. `metric(logits (batch, vocab), rows (batch,)) -> (batch,)`.

    `select(index)` is the same metric for a list of prompts that repeats or reorders these.
    `function`, if given, is used instead of the one called `name`.
    """

    name: str
    answers: Ids
    foils: Ids
    reference: Tensor | None = None
    index: tuple[int, ...] | None = None
    function: Function | None = None

    def __call__(self, logits: Tensor, rows: Tensor) -> Tensor:
        places = rows.tolist() if self.index is None else [self.index[row] for row in rows.tolist()]
        if self.name == "kl" and self.function is None:
            if self.reference is None:
                raise bad_argument("metric", "kl without a reference", "kl with the clean run's logits")
            return kl(self.reference[places].to(logits.device), logits)
        answers, foils = (_table([side[place] for place in places], logits) for side in (self.answers, self.foils))
        values = (self.function or METRICS[self.name])(logits, answers, foils)
        if not isinstance(values, Tensor) or values.shape != rows.shape:
            got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ShapeError(f"metric {self.name!r}: got {got}; allowed: a tensor {tuple(rows.shape)}, one number per prompt.")
        return values

    def select(self, index: Sequence[int]) -> "Metric":
        base = index if self.index is None else [self.index[i] for i in index]
        return replace(self, index=tuple(base))


def logit_diff(logits: Tensor, answers: Tensor, foils: Tensor) -> Tensor:
    """(batch, vocab), token ids (batch, k) padded with -1 -> (batch,)."""
    return _gather(logits, answers).logsumexp(-1) - _gather(logits, foils).logsumexp(-1)


def prob(logits: Tensor, answers: Tensor, foils: Tensor) -> Tensor:
    """Probability of the answers."""
    return _gather(logits.log_softmax(-1), answers).logsumexp(-1).exp()


def prob_diff(logits: Tensor, answers: Tensor, foils: Tensor) -> Tensor:
    """Probability of the answers minus that of the foils."""
    return prob(logits, answers, foils) - prob(logits, foils, answers)


def loss(logits: Tensor, answers: Tensor, foils: Tensor) -> Tensor:
    """Negative log probability of the answers, in nats."""
    return -_gather(logits.log_softmax(-1), answers).logsumexp(-1)


def rank(logits: Tensor, answers: Tensor, foils: Tensor) -> Tensor:
    """How many tokens have a higher logit than the best answer."""
    best = _gather(logits, answers).amax(-1, keepdim=True)
    return (logits > best).sum(-1).float()


def kl(reference: Tensor, logits: Tensor) -> Tensor:
    """KL(reference || logits' distribution) in nats; both are logits, (batch, vocab)."""
    log_p, log_q = reference.float().log_softmax(-1), logits.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


METRICS: dict[str, Function] = {
    "logit_diff": logit_diff, "prob": prob, "prob_diff": prob_diff, "loss": loss, "rank": rank,
}  # fmt: skip
NAMES = (*METRICS, "kl")


def _gather(scores: Tensor, ids: Tensor) -> Tensor:
    picked = scores.gather(-1, ids.clamp_min(0))
    return picked.masked_fill(ids < 0, float("-inf"))


def _table(ids: Ids, like: Tensor) -> Tensor:
    width = max(map(len, ids))
    rows = [list(row) + [-1] * (width - len(row)) for row in ids]
    return torch.tensor(rows, device=like.device)
