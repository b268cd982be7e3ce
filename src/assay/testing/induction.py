"""Models whose mechanism is known because it was written in by hand, for tests and calibration.

`planted_induction` is a GPT-2 with two layers, no MLP, and weights set so that it completes a repeated
sequence ("a b c ... a" -> "b") in the textbook way (Elhage et al. 2021, Olsson et al. 2022):

    z.0.0   previous-token head: writes the token before into the `previous` part of the stream
    z.1.0   induction head, half strength: looks for places whose `previous` is the current token and
    z.1.1   its exact copy: they write the token found there into the `output` part
    z.0.1   decoy: writes the previous token into a part that nothing reads (decodable, but not used)
    others  inert

So {z.0.0, z.1.0, z.1.1} carry induction, z.0.1 does not although the answer can be read from it, and
z.1.0 and z.1.1 back each other up.
"""

from typing import Any

import torch
from torch import nn

from assay.model.load import load_model
from assay.model.model import Model

WORDS = 24
LONGEST = 40
D_HEAD = 48
N_HEADS = 4
SHARP = 60.0
COPY = 8.0
PARTS = ("token", "previous", "unread", "output")


def planted_induction() -> Model:
    """The model, with a tokenizer of the words w0 .. w23. Its layout is proved like any other's."""
    import transformers

    width = len(PARTS) * WORDS + LONGEST
    d_model = N_HEADS * D_HEAD
    config = transformers.GPT2Config(
        vocab_size=WORDS, n_positions=LONGEST, n_embd=d_model, n_layer=2, n_head=N_HEADS, n_inner=8,
        tie_word_embeddings=False, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    assert width <= d_model
    hf: Any = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.zero_()
        _write_ends(hf)
        _write_head(hf, 0, 0, read="position", look="position", copy_to="previous")
        _write_head(hf, 0, 1, read="position", look="position", copy_to="unread")
        for head in (0, 1):
            _write_head(hf, 1, head, read="token", look="previous", copy_to="output")
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
        attention.c_proj.weight[head * size + word, _at(copy_to, word)] = COPY / (2.0 if layer == 1 else 8.0)
