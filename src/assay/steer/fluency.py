"""Is the text still text? What steering does to what a model writes, and to how it reads ordinary text.

1. Openings (the first words of ordinary texts) are continued under every push in one batch, with the KV cache.
2. Surprisal: mean negative log-probability per generated token under the *unsteered* model, in nats. The perplexity ratio of a
   push is exp(mean surprisal - that of unsteered continuations of the same openings).
3. Repetition: distinct-n, different n-grams of tokens over all n-grams of a continuation (Li et al. 2016), as a ratio to the
   unsteered ones. Greedy text repeats itself without any steering, so both ratios are to the model's own text.
4. Sequence KL: KL(unsteered || steered) of next-token distributions at *every* position of ordinary texts, mean over positions,
   in nats per token. The first token alone, or a prefix all texts share, would miss most damage. A number that is not finite is
   kept as infinity and counts as broken.

Low surprisal alone is not fluency (a loop is not surprising), and neither is variety: both are needed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from assay.data.metrics import kl
from assay.data.prepare import beginnings, longest_of
from assay.errors import bad_argument
from assay.model.model import Model, Prompts
from assay.steer.effects import How, Push, pushed_edits

OPENING_WORDS = 4
LOGIT_FLOATS = 1 << 25  # of logits held at a time


@dataclass(frozen=True)
class Continuation:
    """What a model wrote after a prompt: token ids and text, without the prompt."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    text: str


@dataclass(frozen=True)
class Fluency:
    """Continuations under one push: mean surprisal in nats, and mean distinct-2."""

    surprisal: float
    distinct: float


def openings(texts: Sequence[str], words: int = OPENING_WORDS) -> list[str]:
    """The first words of every text, once each."""
    return list(dict.fromkeys(" ".join(text.split()[:words]) for text in texts if text.strip()))


def continuations(
    model: Model, prompts: Sequence[str], pushes: Sequence[Push], how: How, max_new_tokens: int = 24,
    temperature: float = 0.0, seed: int = 0,
) -> list[list[Continuation]]:  # fmt: skip
    """What is written after every prompt under every push: [push][prompt]. Strength 0 is the unsteered model.

    Raises UsageError where a prompt and what is written after it are longer than the model's positions.
    """
    ids = model.tokens(list(prompts))
    check_room(model, ids, max_new_tokens)
    made = model.generate(ids * len(pushes), max_new_tokens=max_new_tokens, edits=pushed_edits(pushes, how, len(ids)),
                          temperature=temperature, seed=seed)  # fmt: skip
    flat = [Continuation(tuple(prompt), tuple(new), text)
            for prompt, new, text in zip(made.prompts, made.tokens, made.texts, strict=True)]  # fmt: skip
    return [flat[start : start + len(ids)] for start in range(0, len(flat), len(ids))]


def check_room(model: Model, prompts: Prompts, max_new_tokens: int) -> None:
    """Raises UsageError where a prompt and what is written after it are longer than the model's positions."""
    room, longest = longest_of(model), max(map(len, model.tokens(prompts)))
    if longest + max_new_tokens > room:
        raise bad_argument("max_new_tokens", max_new_tokens, f"at most {max(0, room - longest)} after a prompt of {longest}"
                           f" tokens: {model.name} has {room} positions")  # fmt: skip


def fluency(model: Model, written: Sequence[Continuation]) -> Fluency:
    """Surprisal and variety of continuations; of none that has a token NaN."""
    found = [value for value in surprisal(model, written) if not math.isnan(value)]
    varied = [value for one in written if (value := distinct(one.tokens)) is not None]
    return Fluency(_mean(found), _mean(varied))


def surprisal(model: Model, written: Sequence[Continuation]) -> list[float]:
    """Mean negative log-probability per token of every continuation under the unsteered model; NaN for an empty one."""
    out = [float("nan")] * len(written)
    rows = [row for row, one in enumerate(written) if one.tokens]
    longest = max((len(written[row].prompt) + len(written[row].tokens) for row in rows), default=1)
    step = max(1, LOGIT_FLOATS // (longest * model.dims.d_vocab))
    for start in range(0, len(rows), step):
        here = rows[start : start + step]
        logits = model.capture([[*written[row].prompt, *written[row].tokens] for row in here], "logits").rows("logits")
        for row, seen in zip(here, logits, strict=True):
            one = written[row]
            log_p = seen[len(one.prompt) - 1 : -1].float().log_softmax(-1)
            out[row] = -float(log_p.gather(1, torch.tensor(one.tokens)[:, None]).mean())
    return out


def distinct(tokens: Sequence[int], n: int = 2) -> float | None:
    """Different n-grams over all n-grams; None for fewer than two of them."""
    grams = [tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]
    return len(set(grams)) / len(grams) if len(grams) > 1 else None


def sequence_kl(model: Model, texts: Sequence[str], pushes: Sequence[Push], how: How) -> Float[Tensor, "push text"]:
    """KL(unsteered || steered) in nats per token, mean over all positions of every text, or at its last where only the last is
    steered (before it nothing changes); infinity where it is not finite. Of a text that is longer than the model's context the
    beginning is read."""
    if not len(texts):
        raise bad_argument("texts", "none", "one ordinary text or more")
    prompts, how = beginnings(model, list(texts)), how.on_texts()
    out = torch.empty(len(pushes), len(prompts))
    tokens = max(1, LOGIT_FLOATS // model.dims.d_vocab)
    for rows in _groups([len(ids) for ids in prompts], tokens):
        here = [prompts[row] for row in rows]
        plain = model.capture(here, "logits").rows("logits")
        step = max(1, tokens // (len(here) * max(map(len, here))))
        for start in range(0, len(pushes), step):
            group = pushes[start : start + step]
            steered = model.capture(here * len(group), "logits", edits=pushed_edits(group, how, len(here))).rows("logits")
            lost = [_kl(plain[number % len(here)], seen, how.positions == "last") for number, seen in enumerate(steered)]
            out[start : start + len(group), rows] = torch.tensor(lost).view(len(group), len(here))
    return out


def _kl(plain: Tensor, steered: Tensor, last: bool) -> float:
    """Mean KL over positions, or that of the last; rounding below 0 is 0."""
    each = kl(plain.float(), steered.float()).clamp_min(0)
    value = float(each[-1] if last else each.mean())
    return value if math.isfinite(value) else math.inf


def _groups(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Rows in order, padded to at most so many tokens each."""
    groups: list[list[int]] = []
    longest = 0
    for row, length in enumerate(lengths):
        longest = max(longest, length)
        if not groups or (len(groups[-1]) + 1) * longest > tokens:
            groups.append([])
            longest = length
        groups[-1].append(row)
    return groups


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
