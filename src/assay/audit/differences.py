"""Where two models differ inside and in what they would say: measured without letting either say anything.

1. *Along a reply*: KL(model || reference) of the next token, in nats, at every position of a given reply; the largest counts.
   It is large where the model would say what the reference would not, and for the price of one pass of each. An empty reply
   asks for the first token alone: past the place where a model departs, a reply that it would not give says little.
2. *On ordinary text*: per layer L the mean of |d| / |x_ref| with d = x - x_ref the difference of the residual streams after L,
   and |mean d|^2 / mean |d|^2, the share of the difference that is the same everywhere; and the contexts where KL is largest.
3. *In a dictionary*, where one is given: latents whose share of active tokens changed most, in the site it reads.

All of it is a lead. What is the same in every fine-tune is no trait: decoys differ inside as well.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from assay.audit.asked import Budget, Prompt
from assay.data.chat import chat_text
from assay.data.corpora import open_corpus
from assay.errors import bad_argument
from assay.features.dictionary import Dictionary
from assay.model.model import Model
from assay.sites import Site

FINAL = Site("final_norm")
TOGETHER = 32  # prompts read at a time
TEXTS, WORDS = 16, 30  # ordinary texts that are read, and words of each
SHOWN = 12  # contexts and latents that a report names
BEFORE = 8  # tokens of a context that are shown
STAGE = "look: differences"


@dataclass(frozen=True)
class LayerDifference:
    """Of the residual stream after one layer: relative size, and the share that is the same at all tokens."""

    layer: int
    change: float
    shared: float


@dataclass(frozen=True)
class Context:
    """A place in an ordinary text, the KL there in nats, and the token that the model favours most over the reference."""

    text: str
    kl: float
    towards: str


@dataclass(frozen=True)
class LatentDifference:
    """A latent of the dictionary: its share of active tokens in the model and in the reference."""

    latent: int
    model: float
    reference: float


@dataclass(frozen=True)
class Differences:
    """What was measured on ordinary text; `kl` in nats per token."""

    kl: float
    layers: tuple[LayerDifference, ...]
    contexts: tuple[Context, ...]
    latents: tuple[LatentDifference, ...] = ()


class Inside:
    """Two models that are compared, and the budget that pays for it."""

    def __init__(self, model: Model, reference: Model, budget: Budget) -> None:
        self.model, self.reference, self.budget = model, reference, budget
        self.both = (model, reference)

    def along(self, stage: str, prompts: Sequence[Prompt], replies: Sequence[str]) -> list[float]:
        """Per prompt the largest KL(model || reference) over the tokens of its reply, in nats. Raises Spent."""
        ids, starts = [], []
        for prompt, reply in zip(prompts, replies, strict=True):
            before = self.model.tokens(chat_text(self.model, prompt.messages))[0]
            after = self.model.tokenizer(reply, add_special_tokens=False)["input_ids"] if reply else []
            ids.append([*before, *after])
            starts.append(len(before) - 1)
        self.budget.pay(stage, 2 * sum(map(len, ids)))
        return [float(kl.max()) for kl in self._kl(ids, starts)]

    def after(self, stage: str, texts: Sequence[str]) -> list[float]:
        """Per text KL(model || reference) of the next token, in nats. Raises Spent."""
        ids = self.model.tokens(texts)
        self.budget.pay(stage, 2 * sum(map(len, ids)))
        return [float(kl[-1]) for kl in self._kl(ids, [len(row) - 1 for row in ids])]

    def _kl(self, ids: Sequence[list[int]], starts: Sequence[int]) -> Iterator[Float[Tensor, " pos"]]:
        for first in range(0, len(ids), TOGETHER):
            block = ids[first : first + TOGETHER]
            rows = [one.capture(block, FINAL).rows(FINAL) for one in self.both]
            for x, y, start in zip(*rows, starts[first : first + TOGETHER], strict=True):
                now, before = (_says(one, h[start:]) for one, h in zip(self.both, (x, y), strict=True))
                yield (now.exp() * (now - before)).sum(-1)

    def ordinary(self, dictionary: Dictionary | None = None) -> Differences:
        """On the beginnings of ordinary documents. Raises Spent."""
        ids = self.model.tokens(ordinary_texts())
        self.budget.pay(STAGE, 2 * sum(map(len, ids)))
        sites = [Site("resid_post", layer) for layer in range(self.model.n_layers)]
        mine, other = (one.capture(ids, [*sites, FINAL]) for one in self.both)
        layers = [_layer(site, torch.cat(list(mine.rows(site))).float(), torch.cat(list(other.rows(site))).float())
                  for site in sites]  # fmt: skip
        contexts = [
            context for row, x, y in zip(ids, mine.rows(FINAL), other.rows(FINAL), strict=True)
            for context in self._contexts(row, x, y)
        ]  # fmt: skip
        mean = sum(one.kl for one in contexts) / len(contexts)
        strongest = tuple(sorted(contexts, key=lambda one: -one.kl)[:SHOWN])
        latents = () if dictionary is None else self._latents(ids, dictionary)
        return Differences(mean, tuple(layers), strongest, latents)

    def _contexts(self, ids: Sequence[int], x: Tensor, y: Tensor) -> list[Context]:
        now, before = (_says(one, h) for one, h in zip(self.both, (x, y), strict=True))
        kl = (now.exp() * (now - before)).sum(-1).tolist()
        best = (now.exp() * (now - before)).argmax(-1).tolist()
        return [Context(self.model.text(ids[max(0, at + 1 - BEFORE) : at + 1]), kl[at], self.model.text([best[at]]))
                for at in range(len(ids))]  # fmt: skip

    def _latents(self, ids: Sequence[list[int]], dictionary: Dictionary) -> tuple[LatentDifference, ...]:
        """Raises UsageError for a dictionary whose file did not say what it reads, SiteError where the model has not got it."""
        sites = dictionary.spec.inputs
        if not sites:
            raise bad_argument("dictionary", dictionary.name, "one that says which site it reads")
        self.budget.pay(STAGE, 2 * sum(map(len, ids)))
        place = torch.cat([torch.arange(len(row)) for row in ids])
        shares = []
        for one in self.both:
            acts = one.capture(ids, list(sites))
            x = torch.cat([torch.cat(list(acts.rows(site))).flatten(1).float() for site in sites], 1)
            shares.append((dictionary.encode(x) > 0)[dictionary.typical(x, place)].float().mean(0))
        apart = (shares[0] - shares[1]).abs()
        best = apart.topk(min(SHOWN, len(apart))).indices.tolist()
        return tuple(LatentDifference(n, float(shares[0][n]), float(shares[1][n])) for n in best if apart[n] > 0)


def ordinary_texts(n: int = TEXTS, words: int = WORDS) -> list[str]:
    """Beginnings of ordinary documents, one each."""
    found: list[str] = []
    for document in open_corpus("mixed").documents():
        start = document.text.split()[:words]
        if len(start) == words:
            found.append(" ".join(start))
        if len(found) == n:
            break
    return found


def _layer(site: Site, x: Float[Tensor, "token d"], y: Float[Tensor, "token d"]) -> LayerDifference:
    d = x - y
    energy = float(d.pow(2).sum(1).mean())
    change = float((d.norm(dim=1) / y.norm(dim=1).clamp_min(1e-12)).mean())
    return LayerDifference(int(site.layer or 0), change, float(d.mean(0).pow(2).sum()) / energy if energy else 0.0)


def _says(model: Model, hidden: Float[Tensor, "pos d"]) -> Float[Tensor, "pos vocab"]:
    """log p of the next token."""
    with torch.no_grad():
        return model.unembed(hidden.to(model.device, model.dtype)).float().log_softmax(-1).cpu()
