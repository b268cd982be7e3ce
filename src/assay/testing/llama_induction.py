"""A stock grouped-query Llama that does induction, with the edges that carry it known because they were written.

Two layers, d = 64, 4 query and 2 KV heads of 16, RMSNorm, RoPE with theta 1e12. The stream is four blocks and one constant:

    one | code (10) | previous (10) | output (10) | junk (33)

1. A word is +e_i or -e_i in `code`, so 20 words are told apart; "^", which starts every text, has more junk instead. With
   the constant all embeddings have one norm, so RMSNorm is a known factor.
2. z.0.0, previous token. Its query and key are constants, and RoPE turns them: with angle f per position

       score(m, n) = w0 cos((m - n - 1) f0) + w1 cos((m - n - 1) f1),       f0 = 1, f1 = 10^-1.5

   which is largest one token back (the first pair tells neighbours apart, the second the turns of the first). It writes
   the code of that token to `previous`.
3. z.1.0, induction. Its query is the code, its key is `previous`, in the pairs of dimensions that RoPE turns by less than
   a thousandth of a radian in any text here. A match scores C (up to 5% less, for what decoys add to the norm) and
   everything else 0 or -C: C says how saturated attention is. It copies the code of the token found to
   `output`, which the unembedding reads.
4. All other heads and both MLPs are random readers of everything and write to junk, which no written part reads: they act
   through the norms alone.

What is true of edges: embed reaches the previous-token head's values, and the induction head's queries and values; the
previous-token head reaches the induction head's keys; the induction head reaches the logits. The queries and keys of the
previous-token head read the constant, which no prompt changes: exchanging them between prompts does nothing.

No single pair needs all five: clean and corrupted repeat sequences of the same shape would attend to the same place. So there
are three kinds of pairs (`repeated`): another last word (query), two words exchanged in the first copy (previous token, key),
another word in the answer's place (value).
"""

import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from assay.model.load import load_model
from assay.model.model import Model
from assay.records import Pair
from assay.testing.compiler import tokenizer_of

D_MODEL, D_HEAD, N_HEADS, N_KV_HEADS, D_MLP = 64, 16, 4, 2, 32
THETA = 1e12
CODE = 10
WORDS = ("^", *(f"w{number}" for number in range(2 * CODE)))
LONGEST = 24
ONE, JUNK = 0, slice(1 + 3 * CODE, D_MODEL)
BLOCKS = {name: slice(1 + CODE * place, 1 + CODE * (place + 1)) for place, name in enumerate(("code", "previous", "output"))}
CONSTANT = 4.0  # beside codes of norm 1
JUNK_NORM, DECOY = 0.5, 0.012
NEAR, FAR = 60.0, 300.0  # w0, w1
WRITES, READS = 2.0, 6.0  # of the induction head's output; of the logits on it
STILL = (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)  # dimensions of a head that RoPE hardly turns
GAINS = (4.0, 8.0, 60.0)
KINDS = ("query", "key", "value")
EDGES = ("embed->v.0.0", "embed->q.1.0", "embed->v.1.0", "z.0.0->k.1.0", "z.1.0->logits")


@dataclass(frozen=True)
class LlamaInduction:
    """`gain`: the score of a match, C. `seed`: of the decoys."""

    gain: float = 8.0
    seed: int = 0


def llama_induction(plan: LlamaInduction = LlamaInduction()) -> Model:
    """The model, with a tokenizer of "^" and w0 .. w19."""
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=len(WORDS), hidden_size=D_MODEL, num_hidden_layers=2, num_attention_heads=N_HEADS,
        num_key_value_heads=N_KV_HEADS, intermediate_size=D_MLP, max_position_embeddings=LONGEST,
        rope_parameters={"rope_type": "default", "rope_theta": THETA}, tie_word_embeddings=False, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    hf: Any = transformers.LlamaForCausalLM(config).eval()
    rng = torch.Generator().manual_seed(plan.seed)
    with torch.no_grad():
        for layer in hf.model.layers:
            _write_decoys(layer, rng)
        _write_ends(hf, rng)
        _write_previous(hf.model.layers[0].self_attn)
        _write_induction(hf.model.layers[1].self_attn, plan.gain)
    return load_model(hf, tokenizer=tokenizer_of(WORDS))


def codes() -> Tensor:
    """(word, CODE): +e_i, then -e_i; "^" has none."""
    eye = torch.eye(CODE)
    return torch.cat([torch.zeros(1, CODE), eye, -eye])


def _scale(norm_squared: float) -> float:
    """What RMSNorm multiplies a stream of this squared norm by."""
    return (D_MODEL / norm_squared) ** 0.5


EMBEDDED = CONSTANT**2 + 1.0 + JUNK_NORM**2  # squared norm of every embedding
SCALES = (_scale(EMBEDDED), _scale(EMBEDDED + 1.0))  # layer 1 has `previous` as well; what decoys add is left out


def _write_ends(hf: Any, rng: torch.Generator) -> None:
    embedding, unembedding = hf.model.embed_tokens.weight, hf.lm_head.weight
    embedding.zero_()
    unembedding.zero_()
    embedding[:, ONE] = CONSTANT
    embedding[:, BLOCKS["code"]] = codes()
    junk = torch.randn(len(WORDS), D_MODEL - JUNK.start, generator=rng)
    junk = JUNK_NORM * junk / junk.norm(dim=1, keepdim=True)
    junk[0] *= (1.0 + JUNK_NORM**2) ** 0.5 / JUNK_NORM
    embedding[:, JUNK] = junk
    unembedding[:, BLOCKS["output"]] = READS * codes()


def _write_decoys(layer: Any, rng: torch.Generator) -> None:
    """Random readers of everything that write to junk alone."""
    attention, mlp = layer.self_attn, layer.mlp
    for part in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj):
        part.weight.normal_(0.0, 0.4 / SCALES[0], generator=rng)
    for part, size in ((attention.o_proj, DECOY), (mlp.down_proj, 0.5 * DECOY)):
        part.weight.zero_()
        part.weight[JUNK] = size * torch.randn(D_MODEL - JUNK.start, part.weight.shape[1], generator=rng)


def _clear(attention: Any) -> None:
    """Head 0 and the keys and values of its group, empty."""
    for part in (attention.q_proj, attention.k_proj, attention.v_proj):
        part.weight[:D_HEAD] = 0.0
    attention.o_proj.weight[:, :D_HEAD] = 0.0


def _write_previous(attention: Any) -> None:
    _clear(attention)
    constant = CONSTANT * SCALES[0]  # what the norm makes of it
    for pair, weight in enumerate((NEAR, FAR)):
        angle = torch.tensor(THETA ** (-2 * pair / D_HEAD))
        size = weight * D_HEAD**0.5 / constant
        attention.q_proj.weight[pair, ONE] = size * angle.cos()  # turned back by one position
        attention.q_proj.weight[pair + D_HEAD // 2, ONE] = -size * angle.sin()
        attention.k_proj.weight[pair, ONE] = 1.0 / constant
    _copy(attention, "code", "previous", 1.0 / SCALES[0])


def _write_induction(attention: Any, gain: float) -> None:
    _clear(attention)
    size = (gain * D_HEAD**0.5) ** 0.5 / SCALES[1]
    for place, dimension in enumerate(STILL):
        attention.q_proj.weight[dimension, BLOCKS["code"].start + place] = size
        attention.k_proj.weight[dimension, BLOCKS["previous"].start + place] = size
    _copy(attention, "code", "output", WRITES / SCALES[1])


def _copy(attention: Any, read: str, write: str, size: float) -> None:
    for place in range(CODE):
        attention.v_proj.weight[place, BLOCKS[read].start + place] = size
        attention.o_proj.weight[BLOCKS[write].start + place, place] = 1.0


def repeated(n_templates: int, per_template: int, seed: int = 0) -> list[Pair]:
    """"^ a b c d e  a" -> "b". A template is a kind of change, a length and how much is repeated; kinds take turns.

    query: the last word becomes one from further on. key: the last word changes places with one from further on, in the first
    copy. value: the word that is asked for becomes a new one. The foil is what is right after the corrupted text.
    """
    rng = random.Random(f"llama-induction-{seed}")
    pairs = []
    for number in range(n_templates):
        kind, length = KINDS[number % len(KINDS)], rng.randrange(5, 9)
        back = rng.randrange(1, length - 2)
        for _ in range(per_template):
            pairs.append(_pair(rng, kind, length, back, f"{kind}-{number}"))
    return pairs


def _pair(rng: random.Random, kind: str, length: int, back: int, template: str) -> Pair:
    *first, new = rng.sample(WORDS[1:], length + 1)
    last, answer = back - 1, first[back]
    other, end, foil = list(first), first[last], new
    place = rng.randrange(back + (kind == "key"), length - 1)  # the words after it follow it in both
    if kind == "query":
        end, foil = first[place], first[place + 1]
    elif kind == "key":
        other[last], other[place], foil = first[place], first[last], first[place + 1]
    else:
        other[back] = new
    said = first[:last]
    texts = (" ".join(("^", *first, *said, first[last])), " ".join(("^", *other, *said, end)))
    return Pair(texts[0], texts[1], (f" {answer}",), (f" {foil}",), template)
