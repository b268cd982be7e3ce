"""Circuits whose truth is known, each built so that one careless method gets it wrong; and rewrites that
change every weight and no output.

All are two-layer attention-only GPT-2s that complete a repeated sequence, like `planted_induction`, with one
difference: two large constants in the residual stream make every norm almost linear, so that what a head adds
to a logit does not depend on what the others add.

    cancelling()          z.1.2 helps on words of one half and hurts on those of the other; its mean effect is large
    ablation_sensitive()  z.1.2 carries the answer on top of a constant that favours the foils: resampling and the
                          mean take the answer away, zeros take the constant away as well and help
    redundant()           z.1.0 and z.1.1 each do the whole job, and a limit lets one alone do as well as both
    dormant_path()        z.1.2 writes the answer where nothing reads it; logits also read a part that nothing
                          writes: a patch along the sum of both works, though no part of the model uses it

How hard it is to see through them is a parameter: how much a head hurts, how large the constant is, what one head alone may
do, how loud the unread part is. `repeats` makes their texts; where it says so, answers are words of the first half
(`FIRST_HALF`) and foils of the second.
"""

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from assay.model.load import load_model
from assay.model.model import Model
from assay.records import Pair
from assay.testing.induction import D_HEAD, LONGEST, N_HEADS, WORDS, word_tokenizer

PARTS = ("token", "previous", "unread", "middle", "output", "dormant")
D_MODEL = N_HEADS * D_HEAD
LARGE = 100.0
FLAT = LARGE * (2 / D_MODEL) ** 0.5  # what the norms divide by, almost exactly
SHARP = 400.0
FIRST_HALF = range(WORDS // 2)
SECOND_HALF = range(WORDS // 2, WORDS)


def at(part: str, number: int = 0) -> int:
    """Coordinate of the residual stream that holds a word in a part; positions and constants come last.

    `unread` and `dormant` share no coordinate with anything that is written or read otherwise.
    """
    return PARTS.index(part) * WORDS + number


def cancelling(helps: float = 4.0, hurts: float = 0.3) -> Model:
    """z.1.2 adds `helps` for words of the first half and takes `hurts` away for the others; its twins add 1."""
    hf = _blank()
    _induction(hf, (0, 1), 0.5)
    weights = torch.tensor([helps] * len(FIRST_HALF) + [-hurts] * len(SECOND_HALF))
    _copy_head(hf, 2, "output", weights)
    return load_model(hf, tokenizer=word_tokenizer())


def ablation_sensitive(constant: float = 0.75) -> Model:
    """z.1.2 adds the answer, and always `constant` to second-half words and as much less to first-half ones. From a half on
    zeros help."""
    hf = _blank()
    _induction(hf, (0, 1), 0.5)
    _copy_head(hf, 2, "output", torch.ones(WORDS))
    start = 2 * D_MODEL + 2 * D_HEAD
    hf.transformer.h[1].attn.c_attn.bias.data[start : start + WORDS] = torch.tensor(
        [-constant] * len(FIRST_HALF) + [constant] * len(SECOND_HALF)
    )
    return load_model(hf, tokenizer=word_tokenizer())


def redundant(one_sided: bool = False, limit: float = 0.8) -> Model:
    """z.1.0 and z.1.1 each write 1 of the answer to `middle`; the MLP hands on what is between .3 and `limit` of it, times 2.
    `one_sided`: only words of the first half are copied, so that what the corrupted run says does not stand against what one of
    them restores."""
    hf = _blank()
    copied = torch.tensor([1.0] * len(FIRST_HALF) + [0.0 if one_sided else 1.0] * len(SECOND_HALF))
    for head in (0, 1):
        _copy_head(hf, head, "middle", copied)
    mlp, steep = hf.transformer.h[1].mlp, 20.0
    with torch.no_grad():
        mlp.c_fc.weight.zero_()
        mlp.c_proj.weight.zero_()
        for word in range(WORDS):
            for place, (start, sign) in enumerate(((0.3, 1.0), (limit, -1.0))):
                neuron = 2 * word + place
                mlp.c_fc.weight[at("middle", word), neuron] = steep * FLAT
                mlp.c_fc.bias[neuron] = -steep * start
                mlp.c_proj.weight[neuron, at("output", word)] = sign / (0.5 * steep)
    return load_model(hf, tokenizer=word_tokenizer())


def dormant_path(loud: float = 1.0) -> Model:
    """z.1.0 and z.1.1 carry the answer; z.1.2 writes it `loud` times as strongly to `unread`; logits read `output` and
    `dormant`."""
    hf = _blank()
    _induction(hf, (0, 1), 0.5)
    _copy_head(hf, 2, "unread", torch.full((WORDS,), loud))
    with torch.no_grad():
        for word in range(WORDS):
            hf.lm_head.weight[word, at("dormant", word)] = FLAT
    return load_model(hf, tokenizer=word_tokenizer())


def _blank() -> Any:
    """Embeddings, a previous-token head z.0.0 and the read-out; nothing else."""
    import transformers

    config = transformers.GPT2Config(
        vocab_size=WORDS, n_positions=LONGEST, n_embd=D_MODEL, n_layer=2, n_head=N_HEADS, n_inner=2 * WORDS,
        tie_word_embeddings=False, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    hf: Any = transformers.GPT2LMHeadModel(config).eval()
    positions = len(PARTS) * WORDS
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.zero_()
        for norm in (hf.transformer.ln_f, *(n for block in hf.transformer.h for n in (block.ln_1, block.ln_2))):
            norm.weight.fill_(1.0)
        for word in range(WORDS):
            hf.transformer.wte.weight[word, at("token", word)] = 1.0
            hf.lm_head.weight[word, at("output", word)] = FLAT
        for position in range(LONGEST):
            hf.transformer.wpe.weight[position, positions + position] = 1.0
            hf.transformer.wpe.weight[position, -2:] = torch.tensor([LARGE, -LARGE])
        q, k = _slices(0)[:2]
        attention = hf.transformer.h[0].attn
        for position in range(LONGEST - 1):
            attention.c_attn.weight[positions + position + 1, q.start + position] = SHARP * FLAT
            attention.c_attn.weight[positions + position, k.start + position] = FLAT
        _values(hf, 0, 0, "previous", torch.ones(WORDS))
        for block in hf.transformer.h:  # a whisper, so that the layout of the MLPs can be proved
            nn.init.normal_(block.mlp.c_fc.weight, std=0.02, generator=torch.Generator().manual_seed(0))
            nn.init.normal_(block.mlp.c_proj.weight, std=1e-5, generator=torch.Generator().manual_seed(1))
    return hf


def _induction(hf: Any, heads: Sequence[int], strength: float) -> None:
    for head in heads:
        _copy_head(hf, head, "output", torch.full((WORDS,), strength))


def _copy_head(hf: Any, head: int, part: str, weights: Tensor) -> None:
    """An induction head of layer 1 that writes what it finds, times the word's weight, to a part."""
    q, k, _ = _slices(head)
    weight = hf.transformer.h[1].attn.c_attn.weight
    with torch.no_grad():
        for word in range(WORDS):
            weight[at("token", word), q.start + word] = SHARP * FLAT
            weight[at("previous", word), k.start + word] = FLAT
    _values(hf, 1, head, part, weights)


def _values(hf: Any, layer: int, head: int, part: str, weights: Tensor) -> None:
    attention = hf.transformer.h[layer].attn
    with torch.no_grad():
        for word in range(WORDS):
            attention.c_attn.weight[at("token", word), _slices(head)[2].start + word] = FLAT * weights[word]
            attention.c_proj.weight[head * D_HEAD + word, at(part, word)] = 1.0


def _slices(head: int) -> tuple[slice, slice, slice]:
    """Columns of a head's queries, keys and values."""
    starts = [part * D_MODEL + head * D_HEAD for part in range(3)]
    return tuple(slice(start, start + D_HEAD) for start in starts)  # type: ignore[return-value]


# texts -------------------------------------------------------------------------------------------


def repeats(rng: random.Random, name: str, n_templates: int, per_template: int, halves: bool = False) -> list[Pair]:
    """ "x a b c  a b" -> "c"; corrupted: another word in the place of the first "c". A template is a length, a place and a
    lead. `halves`: answers are words of the first half, foils of the second."""
    found = []
    for number in range(n_templates):
        length, lead = rng.randrange(5, 9), rng.randrange(1, 4)
        back = rng.randrange(1, length - 1)
        for _ in range(per_template):
            answer = rng.choice(FIRST_HALF if halves else range(WORDS))
            foil = rng.choice([word for word in (SECOND_HALF if halves else range(WORDS)) if word != answer])
            rest = rng.sample([word for word in range(WORDS) if word not in (answer, foil)], length + lead - 1)
            before, first = rest[:lead], rest[lead:]
            first.insert(back, answer)
            other = [foil if place == back else word for place, word in enumerate(first)]
            found.append(Pair(_text(before + first + first[:back]), _text(before + other + first[:back]),
                              (f" w{answer}",), (f" w{foil}",), f"{name} {number}"))  # fmt: skip
    return found


def _text(words: Sequence[int]) -> str:
    return " ".join(f"w{word}" for word in words)


# rewrites of llama-like models that change no output ---------------------------------------------


def permute_heads(hf: Any, layer: int, order: Sequence[int]) -> None:
    """Head i becomes what head order[i] was. Raises ValueError where heads that share keys would be parted."""
    attention, config = hf.model.layers[layer].self_attn, hf.config
    size = attention.q_proj.weight.shape[0] // config.num_attention_heads
    shared = config.num_attention_heads // config.num_key_value_heads
    groups = [{head // shared for head in order[start : start + shared]} for start in range(0, len(order), shared)]
    if any(len(group) > 1 for group in groups):
        raise ValueError(f"permute_heads: got {list(order)}; heads that share keys and values must stay together")
    rows, kv_rows = (_head_rows(heads, size) for heads in (order, [group.pop() for group in groups]))
    with torch.no_grad():
        attention.q_proj.weight.copy_(attention.q_proj.weight[rows])
        for projection in (attention.k_proj, attention.v_proj):
            projection.weight.copy_(projection.weight[kv_rows])
        attention.o_proj.weight.copy_(attention.o_proj.weight[:, rows])


def _head_rows(heads: Sequence[int], size: int) -> Tensor:
    return torch.cat([torch.arange(head * size, (head + 1) * size) for head in heads])


def rewrite_neurons(hf: Any, layer: int, order: Sequence[int], scale: Tensor) -> None:
    """Neuron i becomes what neuron order[i] was, its value times scale[i], its outgoing weight divided by it."""
    mlp, rows = hf.model.layers[layer].mlp, torch.as_tensor(list(order))
    with torch.no_grad():
        mlp.gate_proj.weight.copy_(mlp.gate_proj.weight[rows])
        mlp.up_proj.weight.copy_(mlp.up_proj.weight[rows] * scale[:, None])
        mlp.down_proj.weight.copy_(mlp.down_proj.weight[:, rows] / scale)


def rotate_residual(hf: Any, rotation: Tensor) -> None:
    """The residual stream in another basis, (d_model, d_model) orthogonal; norm weights are folded away first.

    An RMS norm does not see a rotation once its weights are ones. Raises ValueError when embedding and
    unembedding are one tensor.
    """
    if hf.lm_head.weight is hf.model.embed_tokens.weight:
        raise ValueError("rotate_residual: embedding and unembedding are tied; folding the last norm needs two")
    with torch.no_grad():
        for layer in hf.model.layers:
            attention, mlp = layer.self_attn, layer.mlp
            _fold(layer.input_layernorm, [attention.q_proj, attention.k_proj, attention.v_proj], rotation)
            _fold(layer.post_attention_layernorm, [mlp.gate_proj, mlp.up_proj], rotation)
            for writer in (attention.o_proj, mlp.down_proj):
                writer.weight.copy_(rotation.T @ writer.weight)
        _fold(hf.model.norm, [hf.lm_head], rotation)
        hf.model.embed_tokens.weight.copy_(hf.model.embed_tokens.weight @ rotation)


def _fold(norm: Any, readers: Sequence[Any], rotation: Tensor) -> None:
    for reader in readers:
        reader.weight.copy_((reader.weight * norm.weight) @ rotation)
    norm.weight.fill_(1.0)
