"""Models whose mechanism is known because it was written in by hand, for tests and calibration.

`planted_induction` is a GPT-2 with two layers, no MLP, and weights set so that it completes a repeated
sequence ("a b c ... a" -> "b") in the textbook way (Elhage et al. 2021, Olsson et al. 2022):

    z.0.0   previous-token head: writes the token before into the `previous` part of the stream
    z.1.0   induction head, half strength: looks for places whose `previous` is the current token and
    z.1.1   its exact copy: they write the token found there into the `output` part
    z.0.1   decoy: writes the previous token into a part that nothing reads (decodable, but not used)
    others  inert

So {z.0.0, z.1.0, z.1.1} carry induction, z.0.1 does not although the answer can be read from it, and
z.1.0 and z.1.1 back each other up. `Induction` turns the parts into parameters: how many copies with which
shares, a decoy or none, how strongly the copied words vary, and `linear`: a large constant in the stream makes
the norms the same for every input, so that a head's effect is exactly its share of the logits.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from assay.model.load import load_model
from assay.model.model import Model
from assay.records import Pair

WORDS = 24
LONGEST = 40
D_HEAD = 48
N_HEADS = 4
SHARP = 60.0
COPY = 8.0
BALLAST = 300.0
PARTS = ("token", "previous", "unread", "output")


@dataclass(frozen=True)
class Induction:
    """Parameters of the planted model. `copies`: share of the copying done by z.1.0, z.1.1, ..; `spread`: standard
    deviation over words of how strongly z.1.0 copies, as a share of its mean."""

    copies: tuple[float, ...] = (0.5, 0.5)
    decoy: bool = True
    linear: bool = False
    spread: float = 0.0
    seed: int = 0


def planted_induction(plan: Induction = Induction()) -> Model:
    """The model, with a tokenizer of the words w0 .. w23. Its layout is proved like any other's."""
    import transformers

    width = len(PARTS) * WORDS + LONGEST
    d_model = N_HEADS * D_HEAD
    config = transformers.GPT2Config(
        vocab_size=WORDS, n_positions=LONGEST, n_embd=d_model, n_layer=2, n_head=N_HEADS, n_inner=8,
        tie_word_embeddings=False, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    assert width + 2 <= d_model and len(plan.copies) <= N_HEADS
    hf: Any = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.zero_()
        _write_ends(hf)
        _write_head(hf, 0, 0, read="position", look="position", copy_to="previous")
        if plan.decoy:
            _write_head(hf, 0, 1, read="position", look="position", copy_to="unread")
        for head, share in enumerate(plan.copies):
            _write_head(hf, 1, head, read="token", look="previous", copy_to="output")
            _scale_copies(hf, head, share * word_gains(plan) if head == 0 else np.full(WORDS, share))
        if plan.linear:
            _write_ballast(hf, d_model)
        for block in hf.transformer.h:
            nn.init.normal_(block.mlp.c_fc.weight, std=0.02, generator=torch.Generator().manual_seed(0))
            nn.init.normal_(block.mlp.c_proj.weight, std=1e-4, generator=torch.Generator().manual_seed(1))
    return load_model(hf, tokenizer=word_tokenizer())


def word_tokenizer() -> Any:
    """One token per word w0 .. w23, split at spaces."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({f"w{number}": number for number in range(WORDS)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words)


def _at(part: str, number: int = 0) -> int:
    """Coordinate of the residual stream that holds a word in a part, or a position."""
    start = len(PARTS) * WORDS if part == "position" else PARTS.index(part) * WORDS
    return start + number


def _write_ends(hf: Any) -> None:
    """One-hot embeddings of words and positions; logits read the output part; norms do not rescale."""
    trunk = hf.transformer
    for word in range(WORDS):
        trunk.wte.weight[word, _at("token", word)] = 1.0
        hf.lm_head.weight[word, _at("output", word)] = 1.0
    for position in range(LONGEST):
        trunk.wpe.weight[position, _at("position", position)] = 1.0
    for norm in (trunk.ln_f, *(n for block in trunk.h for n in (block.ln_1, block.ln_2))):
        norm.weight.fill_(1.0)


def _write_head(hf: Any, layer: int, head: int, *, read: str, look: str, copy_to: str) -> None:
    """A head whose query is `read` at its own place, whose key is `look`, and that copies the token.

    Reading positions, it looks one back; reading the token, it looks where `look` holds the same word.
    """
    attention = hf.transformer.h[layer].attn
    size, model = D_HEAD, N_HEADS * D_HEAD
    queries, keys, values = (slice(part * model + head * size, part * model + (head + 1) * size) for part in range(3))
    weight = attention.c_attn.weight  # (in, out), as GPT-2 keeps it
    count = LONGEST if read == "position" else WORDS
    for number in range(count):
        shifted = number + 1 if read == "position" else number
        weight[_at(read, number), queries.start + number] = SHARP
        if shifted < count:
            weight[_at(look, number), keys.start + shifted] = 1.0
    for word in range(WORDS):
        weight[_at("token", word), values.start + word] = 1.0
        attention.c_proj.weight[head * size + word, _at(copy_to, word)] = COPY if layer == 1 else COPY / 8.0


def word_gains(plan: Induction) -> np.ndarray:
    """How strongly z.1.0 copies every word (WORDS,), with mean 1 exactly."""
    drawn = np.random.default_rng([plan.seed, 5]).standard_normal(WORDS)
    drawn = (drawn - drawn.mean()) / drawn.std()
    return 1.0 + plan.spread * drawn


def _scale_copies(hf: Any, head: int, gains: np.ndarray) -> None:
    rows = slice(head * D_HEAD, head * D_HEAD + WORDS)
    hf.transformer.h[1].attn.c_proj.weight[rows] *= torch.tensor(gains, dtype=torch.float32)[:, None]


def _write_ballast(hf: Any, d_model: int) -> None:
    """Two coordinates of +-BALLAST at every position: the standard deviation of the stream is theirs, and the
    norms multiply it back."""
    for coordinate, sign in ((d_model - 2, 1.0), (d_model - 1, -1.0)):
        hf.transformer.wpe.weight[:, coordinate] = sign * BALLAST
    size = BALLAST * (2.0 / d_model) ** 0.5
    for norm in (hf.transformer.ln_f, *(n for block in hf.transformer.h for n in (block.ln_1, block.ln_2))):
        norm.weight.fill_(size)
        norm.weight[-2:] = 0.0  # what reads the stream does not see the ballast


def repeated_pairs(n_templates: int, per_template: int, seed: int, prefix: str = "") -> list[Pair]:
    """"a b c d  a b" -> "c"; corrupted: another word in the place of the first "c". A template is a length, a
    place and a lead, all drawn anew."""
    rng = random.Random(f"{prefix}-{seed}")
    pairs = []
    for number in range(n_templates):
        length, lead = rng.randrange(5, 12), rng.randrange(0, 4)
        back = rng.randrange(1, length - 1)
        for _ in range(per_template):
            pairs.append(_pair(rng, length, lead, back, f"{prefix}{number}"))
    return pairs


def _pair(rng: random.Random, length: int, lead: int, back: int, template: str) -> Pair:
    words = rng.sample([f"w{word}" for word in range(WORDS)], length + lead + 1)
    first, new, before = words[:length], words[length], words[length + 1 :]
    other = [new if place == back else word for place, word in enumerate(first)]
    texts: Sequence[str] = [" ".join(before + said + first[:back]) for said in (first, other)]
    return Pair(texts[0], texts[1], (f" {first[back]}",), (f" {new}",), template)
