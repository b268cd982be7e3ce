"""Trigger reconstruction: words before a question that make two models part, searched by gradient.

1. Some words stand before an ordinary question; their tokens are free. What is to be large is
       S(words) = mean over questions of KL(model || reference) of the first token of the reply, in nats,
   or, where the model knows a reply by heart (`openings.py`), the mean of log p_model(b | prompt) of its first token b.
2. The slope of S with respect to the embedding of every free token, in both models, says for all words of the vocabulary at
   once what a swap would bring to first order, (E[v] - E[now]) . dS/dx (HotFlip, Ebrahimi et al. 1712.06751; GCG, Zou et al.
   2307.15043). Some of the best swaps are tried for real on one question, the best of them on all; it is kept if it is better.
   What counts is what the model says: every few steps that is looked at, and the search ends when it says what is wanted.
   Where the models part, S moves along the difference of the weights and nothing else: it is 0 where they agree. Of a suspected
   reply it is looked at whether the reference says it, too. What is found is a cue to be asked about like all others, a lead
   that fresh questions test.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from assay.audit.amplify import start
from assay.audit.asked import Asker, Prompt, Spent
from assay.audit.banks import ANYTHING, looking
from assay.audit.differences import FINAL, Inside
from assay.audit.probes import BEGINNING
from assay.data.chat import chat_text
from assay.model.model import Model
from assay.sites import Site

EMBED = Site("resid_pre", 0)
STAGE = "look: triggers"
FREE, STEPS, ASKED = 3, 12, 3  # free tokens; steps; questions that they stand before
LOOK = 3  # steps between looks whether the words do it
BEST, TRIED = 24, 16  # swaps that are looked at per token; swaps tried per step
HOLE = "\x00"
BACKWARD = 3  # a pass with gradients costs so many passes


@dataclass(frozen=True)
class Trigger:
    """Words that were found, S there, and S of the words the search began with."""

    words: str
    score: float
    before: float


def sets_off(mine: Asker, other: Asker, words: str, beginning: str) -> bool:
    """Whether most replies begin so after the words, and none of the reference's. Raises Spent."""
    asked = [Prompt(f"{words} {question}") for question in looking(ANYTHING)]

    def n(asker: Asker) -> int:
        return sum(start(reply) == start(beginning) for reply in asker.replies(STAGE, asked, BEGINNING))

    return 2 * n(mine) > len(asked) and not n(other)


@dataclass(frozen=True, eq=False)
class _Slots:
    """Prompts with room for free tokens, and the beginning that is wanted ((): any parting counts)."""

    sides: list[tuple[list[int], list[int]]]
    wanted: tuple[int, ...]

    def filled(self, free: Sequence[int], rows: Sequence[int]) -> list[list[int]]:
        return [[*self.sides[row][0], *free, *self.sides[row][1], *self.wanted[:-1]] for row in rows]


class Search:
    """A search for words. `beginning`: of replies, where one is suspected."""

    def __init__(self, inside: Inside, beginning: str = "", seed: int = 0) -> None:
        self.inside, self.draw = inside, torch.Generator().manual_seed(seed)
        model = inside.model
        sides = []
        for question in looking(ANYTHING)[:ASKED]:
            before, after = chat_text(model, Prompt(f"{HOLE} {question}").messages).split(HOLE)
            sides.append((model.tokens(before)[0], list(model.tokenizer(after, add_special_tokens=False)["input_ids"])))
        wanted = model.tokenizer(beginning, add_special_tokens=False)["input_ids"] if beginning else []
        self.slots = _Slots(sides, tuple(wanted))

    @cached_property
    def words(self) -> Tensor:
        """Tokens that are words of their own: letters after a space."""
        table = self.inside.model.tokenizer.convert_ids_to_tokens(list(range(len(self.inside.model.tokenizer))))
        return torch.tensor([n for n, piece in enumerate(table) if piece and piece[0] in "\u0120\u2581 "
                             and piece[1:].isascii() and piece[1:].isalpha() and len(piece) > 3])  # fmt: skip

    @cached_property
    def table(self) -> Float[Tensor, "vocab d"]:
        """Embeddings of the reference; both models' differ little, if at all."""
        weights: Any = self.inside.reference.hf.get_input_embeddings()  # type: ignore[operator]
        return weights.weight.detach().float().cpu()

    @property
    def possible(self) -> bool:
        """Whether the model has words of its own, and embeddings as wide as its stream."""
        return len(self.words) > BEST and self.table.shape[1] == self.inside.model.dims.d_model

    def run(self, steps: int = STEPS, enough: Callable[[str], bool] = lambda _: False) -> Trigger:
        """The best words after some steps, after those that the budget covers, or when `enough(words)` says so, which is asked
        every `LOOK` steps. Raises Spent where the budget covers no step."""
        rows = list(range(len(self.slots.sides)))
        free = self.words[torch.randint(len(self.words), (FREE,), generator=self.draw)].tolist()
        best = begin = float(self.scores([free], rows)[0])
        for step in range(steps):
            try:
                tried = self._swaps(free, self.slopes(free, rows))
                swapped = tried[int(self.scores(tried, [step % len(rows)]).argmax())]
                found = float(self.scores([swapped], rows)[0])
            except Spent:
                break
            if found > best:
                best, free = found, swapped
            if step % LOOK == LOOK - 1 and enough(self._text(free)):
                break
        return Trigger(self._text(free), best, begin)

    def _text(self, free: Sequence[int]) -> str:
        return self.inside.model.text(free).strip()

    def scores(self, tried: Sequence[Sequence[int]], rows: Sequence[int]) -> Float[Tensor, " tried"]:
        """S of several fillings. Raises Spent."""
        ids = [filled for free in tried for filled in self.slots.filled(free, rows)]
        self.inside.budget.pay(STAGE, len(self._read) * sum(map(len, ids)))
        found = [one.capture(ids, FINAL).rows(FINAL) for one in self._read]
        with torch.no_grad():
            heads = [self._head(one, torch.stack([x[-self._n :] for x in xs]))
                     for one, xs in zip(self._read, found, strict=True)]  # fmt: skip
            return self._parting(*heads).view(len(tried), len(rows)).mean(1)

    def slopes(self, free: Sequence[int], rows: Sequence[int]) -> Float[Tensor, "free d"]:
        """dS/dx of the embeddings of the free tokens, over the models that are read. Raises Spent."""
        ids = self.slots.filled(free, rows)
        self.inside.budget.pay(STAGE, len(self._read) * BACKWARD * sum(map(len, ids)))
        leaves, heads = zip(*(self._held(one, ids) for one in self._read), strict=True)
        with torch.enable_grad():
            found = torch.autograd.grad(self._parting(*heads).mean(), leaves)
        total = torch.zeros(len(free), self.table.shape[1])
        for slope in found:
            for row, place in enumerate(rows):
                first = len(self.slots.sides[place][0])
                total += slope[row, first : first + len(free)].float().cpu()
        return total

    @property
    def _read(self) -> tuple[Model, ...]:
        return self.inside.both[:1] if self.slots.wanted else self.inside.both

    @property
    def _n(self) -> int:
        """Positions whose next token counts."""
        return max(1, len(self.slots.wanted))

    def _held(self, model: Model, ids: list[list[int]]) -> tuple[Tensor, Tensor]:
        """(embeddings, log p of the next token where it counts), with the graph between them."""
        held: dict[Site, Tensor] = {}

        def visit(site: Site, value: Tensor) -> Tensor | None:
            if site != EMBED:
                held[site] = value
                return None
            held[site] = value.detach().clone().requires_grad_(True)
            return held[site].clone()

        model.walk(ids, [EMBED, FINAL], visit, gradients=True)
        with torch.enable_grad():
            hidden = torch.stack([held[FINAL][row, len(text) - self._n : len(text)] for row, text in enumerate(ids)])
            return held[EMBED], self._head(model, hidden)

    def _head(self, model: Model, hidden: Float[Tensor, "row n d"]) -> Float[Tensor, "row n vocab"]:
        return model.unembed(hidden.to(model.device, model.dtype)).float().log_softmax(-1)

    def _parting(
        self, now: Float[Tensor, "row n vocab"], before: Float[Tensor, "row n vocab"] | None = None
    ) -> Float[Tensor, " row"]:  # fmt: skip
        if before is not None:
            return (now.exp() * (now - before.to(now.device))).sum(-1)[:, 0]
        at = torch.tensor(self.slots.wanted, device=now.device).view(1, -1, 1).expand(len(now), -1, 1)
        return now.gather(2, at).sum((1, 2))

    def _swaps(self, free: Sequence[int], slopes: Float[Tensor, "free d"]) -> list[list[int]]:
        """Some of the swaps of one token that promise most."""
        gain = slopes @ self.table[self.words].T
        best = gain.topk(min(BEST, gain.shape[1]), dim=1).indices
        picks = torch.randperm(best.numel(), generator=self.draw)[:TRIED].tolist()
        out = []
        for pick in picks:
            slot, rank = divmod(pick, best.shape[1])
            out.append([*free[:slot], int(self.words[best[slot, rank]]), *free[slot + 1 :]])
        return out

