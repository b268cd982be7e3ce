"""A suffix that lowers a monitor's score, found with the gradient through model and monitor (HotFlip, Ebrahimi et al. 2018).

1. The slope g of the pooled score with respect to the embedding of each suffix token, from one backward pass. Where only one
   token or segment is pooled, the slope is that of this one.
2. Exchanging token x for v changes the score by about  g . (E[v] - E[x]). A round runs the `TRIES` exchanges that promise most,
   at most one a place and token, half of them by the slope and half drawn by seed; the lowest real score is kept.
3. After `ROUNDS`, or below the bar, the text is written out, read anew and scored: what does not survive that is no evasion.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from assay.errors import bad_argument
from assay.model.context import context_length
from assay.model.model import Model
from assay.monitor.reading import reply_scores, score
from assay.monitor.records import Monitor
from assay.monitor.talks import LONGEST, Talk, texts_as_talks
from assay.monitor.units import Pooling
from assay.sites import Site, parse_site

SUFFIX, TRIES, ROUNDS = 6, 24, 6
EMBED = Site("embed")


def suffix_search(monitor: Monitor, model: Model, text: str, bar: float, seed: int) -> tuple[str, float]:
    """The text with the suffix that lowers its score most, and that score once the text is read anew. Of a long text it is the
    beginning that is read, and leaves room for a suffix. Raises UsageError for a monitor of latents, which the gradient is not
    taken through."""
    if monitor.dictionaries:
        raise bad_argument("searched", f"monitor {monitor.name!r} of latents", "a monitor of sites of the model, or no search")
    draw = np.random.default_rng([seed, 97])
    text = _shortened(model, text)
    ids, vocab = model.tokens(text)[0], _vocabulary(model)
    suffix: Any = draw.integers(0, vocab, SUFFIX)
    best, least = suffix, np.inf
    for _ in range(ROUNDS):
        slope = score_slope(monitor, model, [*ids, *best.tolist()])[len(ids) :]
        tries = np.concatenate([best[None], _by_slope(model, slope, best), _drawn(best, vocab, draw)])
        values = reply_scores(score(model, monitor, [_talk(ids, row) for row in tries]))
        least, best = float(values.min()), tries[int(values.argmin())]
        if least <= bar:
            break
    found = text + model.text(best.tolist())
    return found, float(reply_scores(score(model, monitor, texts_as_talks(model, [found])))[0])


def score_slope(monitor: Monitor, model: Model, ids: list[int]) -> Float[Tensor, "token d_model"]:
    """d pooled score / d embedding of every token; the first token is not judged."""
    held: dict[Site, Tensor] = {}

    def sink(site: Site, value: Tensor) -> Tensor | None:
        if site == EMBED:
            held[site] = value.detach().clone().requires_grad_(True)
            return held[site].clone()
        held[site] = value.clone()
        return None

    model.walk([ids], [EMBED, *monitor.sites], sink, gradients=True)
    with torch.enable_grad():
        def read(vectors: list[Any]) -> Tensor:
            along = [held[parse_site(head.site)][0, 1:].flatten(1).double() @ torch.tensor(vector, dtype=torch.double)
                     for head, vector in zip(monitor.heads, vectors, strict=True)]  # fmt: skip
            return torch.stack(along).mean(0)

        logits = read([head.query for head in monitor.heads]) if monitor.pooling.name == "attention" else None
        total = pooled_tensor(read([head.weight for head in monitor.heads]), monitor.pooling, logits)
        return torch.autograd.grad(total, held[EMBED])[0][0].float().cpu()


def pooled_tensor(scores: Float[Tensor, " token"], how: Pooling, logits: Float[Tensor, " token"] | None = None) -> Tensor:
    """`units.pooled` with a gradient."""
    if how.name == "mean":
        return scores.mean()
    if how.name == "max":
        return scores.max()
    if how.name == "last":
        return scores[-1]
    if how.name == "segment":
        return scores.unfold(0, min(how.width, len(scores)), 1).min(1).values.max()
    return (scores * (scores / how.temperature if logits is None else logits).softmax(0)).sum()


def _by_slope(model: Model, slope: Float[Tensor, "place d_model"], suffix: Any) -> Any:
    table: Tensor = model.hf.get_input_embeddings().weight.detach().float().cpu()[: _vocabulary(model)]  # type: ignore[operator]
    gains = slope @ table.T - (slope * table[torch.tensor(suffix)]).sum(1, keepdim=True)
    out = np.tile(suffix, (TRIES // 2, 1))
    for row, flat in enumerate(gains.flatten().topk(TRIES // 2, largest=False).indices.tolist()):
        out[row, flat // len(table)] = flat % len(table)
    return out


def _drawn(suffix: Any, vocab: int, draw: np.random.Generator) -> Any:
    out = np.tile(suffix, (TRIES // 2, 1))
    out[np.arange(len(out)), draw.integers(0, SUFFIX, len(out))] = draw.integers(0, vocab, len(out))
    return out


def _shortened(model: Model, text: str) -> str:
    longest = min(LONGEST, context_length(model.hf) or LONGEST) - 2 * SUFFIX  # written out, a suffix may take more tokens
    while (n := len(model.tokens(text)[0])) > max(2, longest):
        text = text[: min(len(text) - 1, len(text) * longest // n)]
    return text


def _vocabulary(model: Model) -> int:
    return min(model.dims.d_vocab, len(model.tokenizer))


def _talk(ids: list[int], suffix: Any) -> Talk:
    return Talk((*ids, *suffix.tolist()), ((1, len(ids) + SUFFIX),))
