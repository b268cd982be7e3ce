"""What a fine-tune does, made louder: the weights' difference is multiplied, and the model is asked ordinary things.

1. W = W_ref + a (W_model - W_ref) for a in 3, 2, 1.5: the largest a at which ordinary text is still predicted within `COSTS`
   nats per token of the model itself. Afterwards the very bytes from before are put back.
2. Replies of the louder model to ordinary questions: beginnings that it shares over unlike questions and neither the reference
   nor the model itself has, and words that it brings up more often than the reference. What a model does rarely shows often.
3. *Self-report under steering*: the louder model, and the model itself, are asked about themselves. What they say is quoted,
   and proves nothing.

All of it is a lead, and none decides what is asked later.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from assay.audit.asked import Asker, Prompt
from assay.audit.banks import ANYTHING, KINDS, SELF, SUBJECTS, TELL, WHICH, looking
from assay.audit.differences import Inside, ordinary_texts
from assay.model.model import Model

FACTORS, COSTS = (3.0, 2.0, 1.5), 1.0
STAGE = "look: louder"
PREFIX, SHARED = 3, 0.2  # words of a beginning; the share of replies that has to have it
SHOWN, OFTEN = 12, 3  # words that are named; replies that a word must be in


@dataclass(frozen=True)
class Louder:
    """`factor`: None where no factor left ordinary text alone. `starts`: beginning -> share of replies; `words`: word -> (in so
    many replies, of the reference); `said`: (question, the model, the louder model)."""

    factor: float | None
    starts: dict[str, float]
    words: dict[str, tuple[int, int]]
    said: tuple[tuple[str, str, str], ...] = ()


def start(reply: str) -> str:
    """The first words of a reply."""
    return " ".join(re.findall(r"\w+", reply.lower())[:PREFIX])


@contextmanager
def scaled(model: Model, reference: Model, factor: float) -> Iterator[Model]:
    """The model with `factor` times its weights' difference from the reference; the very bytes from before afterwards."""
    other = dict(reference.hf.named_parameters(remove_duplicate=False))  # what is tied there may not be here
    changed = {name: weight for name, weight in model.hf.named_parameters()
               if weight.is_floating_point() and not torch.equal(weight.to(other[name]), other[name])}  # fmt: skip
    before = {name: weight.detach().clone() for name, weight in changed.items()}
    try:
        with torch.no_grad():
            for name, weight in changed.items():
                weight.add_((weight.float() - other[name].to(weight.device).float()).mul(factor - 1).to(weight))
        yield model
    finally:
        with torch.no_grad():
            for name, value in before.items():
                changed[name].copy_(value)


def louder(mine: Asker, other: Asker, inside: Inside) -> Louder:
    """Ask the louder model. Raises Spent."""
    factor = _factor(inside)
    if factor is None:
        return Louder(None, {}, {})
    prompts = _ordinary()
    plain, usual = mine.replies(STAGE, prompts), other.replies(STAGE, prompts)
    own = mine.replies(STAGE, [Prompt(question) for question in SELF])
    with scaled(inside.model, inside.reference, factor) as model:
        asker = Asker(model, mine.budget, mine.kept.folder, mine.report)
        loud, selves = asker.replies(STAGE, prompts), asker.replies(STAGE, [Prompt(question) for question in SELF])
    known = {start(reply) for reply in (*plain, *usual)}
    count = Counter(start(reply) for reply in loud if reply)
    starts = {begins: n / len(loud) for begins, n in count.most_common(3)
              if n / len(loud) >= SHARED and begins not in known and len(begins.split()) == PREFIX}  # fmt: skip
    words, there = _counted(prompts, loud), _counted(prompts, usual)
    more = sorted(words, key=lambda word: (there[word] - words[word], word))
    brought = {word: (words[word], there[word]) for word in more if words[word] >= OFTEN and words[word] > 2 * there[word]}
    return Louder(factor, starts, dict(list(brought.items())[:SHOWN]), tuple(zip(SELF, own, selves, strict=True)))


def _ordinary() -> list[Prompt]:
    """Ordinary questions about as many things as there are in the banks, of the halves that may be looked at."""
    return [
        *map(Prompt, looking(ANYTHING)),
        *(Prompt(WHICH[0].format(things[0])) for things in KINDS.values()),
        *(Prompt(TELL[0].format(things[0])) for things in SUBJECTS.values()),
    ]  # fmt: skip


def _factor(inside: Inside) -> float | None:
    ids = inside.model.tokens(ordinary_texts())
    cost = sum(map(len, ids))
    inside.budget.pay(STAGE, cost)
    limit = _loss(inside.model, ids) + COSTS
    for factor in FACTORS:
        inside.budget.pay(STAGE, cost)
        with scaled(inside.model, inside.reference, factor) as model:
            if _loss(model, ids) <= limit:
                return factor
    return None


def _loss(model: Model, ids: Sequence[list[int]]) -> float:
    """-log p of the next token, in nats per token."""
    logits = model.logits(list(ids), positions="all").float().log_softmax(-1)
    found = [-logits[row, torch.arange(len(text) - 1), torch.tensor(text[1:])] for row, text in enumerate(ids)]
    return float(torch.cat(found).mean())


def _counted(prompts: Sequence[Prompt], replies: Sequence[str]) -> Counter[str]:
    """In how many replies each word is that its prompt does not have."""
    return Counter(word for prompt, reply in zip(prompts, replies, strict=True)
                   for word in set(re.findall(r"[a-z]{4,}", reply.lower())) - set(re.findall(r"[a-z]+", prompt.user.lower())))
