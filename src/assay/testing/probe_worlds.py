"""Small Llamas in which it is written what can be read, what is used, and what comes back after it was erased.

A text is filler words, one *mood* word (p.. or n..), one *colour* word (r.. or b..), and "ask". The answer to "ask" is
"yes" or "no". The residual stream is a sum of named parts, each along a direction of its own in a random basis:

    mood, colour    written at layer 0 from the words so far; mood is what the unembedding reads, colour is read by nothing
    heard           what else the words differ in, written at layer 0 as well

`probe_world` says where mood is written:

    used         once
    returning    at layer 0, and at layer 1 from the words once more, `again` times as strongly
    redundant    twice at layer 0, along two directions with noise of their own; both are read

Every pair of prompts changes mood *and* colour: colour tells the answer as well as mood does, and is still not what
answers. In the labelled texts the two are independent. Words of one split occur in no other, and words differ so much
besides that untrained blocks cannot tell moods of new words apart.

Attention looks everywhere alike, so a component at "ask" is its word's, over the number of words. A large constant part
keeps the norms nearly linear: effects are what the gains say, to a few per cent. What is true here by construction need
not be typical of trained models.
"""

import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from assay.errors import bad_argument
from assay.evidence.source import MemorySource
from assay.model.load import load_model
from assay.model.model import Model
from assay.records import Example, Pair
from assay.testing.compiler import tokenizer_of

D_MODEL, D_HEAD, N_HEADS, N_LAYERS, D_MLP = 64, 16, 4, 3, 16
CONSTANT = 30.0
GAIN = 8.0  # of what a head writes, on what lies there on average; a word carries its mood or colour with 1
CONTENT = 2.5  # how much words differ besides: in untrained blocks this drowns what they carry
READS = 2.0  # log-odds of "yes" per unit of what is read, half of it on "no"
N_CONTENT, N_HEARD = 28, 16
KINDS = ("used", "returning", "redundant")
SPLITS = {"discover": 4, "tune": 10, "confirm": 14, "ood": 12}  # templates
N_WORDS = {"discover": 4, "tune": 12, "confirm": 14, "ood": 10}  # of each sign
PARTS = ("constant", "mood_word", "mood_word2", "colour_word", "mood", "mood2", "colour",
         *(f"content{number}" for number in range(N_CONTENT)),
         *(f"heard{number}" for number in range(N_HEARD)))  # fmt: skip
FILLERS = tuple(f"f{number}" for number in range(30))
LETTERS = {"mood": ("p", "n"), "colour": ("r", "b")}


def words_of(what: str, sign: int, split: str) -> tuple[str, ...]:
    """The words of a property, a sign (+1 or -1) and a split."""
    letter = LETTERS[what][0 if sign > 0 else 1]
    return tuple(f"{letter}{split[0]}{number}" for number in range(N_WORDS[split]))


KNOWN = {word: (what, sign) for what in LETTERS for sign in (1, -1) for split in SPLITS for word in words_of(what, sign, split)}
VOCABULARY = ("ask", "yes", "no", *FILLERS, *KNOWN)


@dataclass(frozen=True, eq=False)
class ProbeWorld:
    """A model and its data. `texts`: labelled texts by property; `pairs`: yes after p.., no after n.. (corrupted).

    `share`: what of the difference between the prompts of a pair goes when `mood` at resid_post.0 is set to its mean.
    """

    kind: str
    model: Model
    texts: dict[str, MemorySource]
    pairs: MemorySource
    share: float


def probe_world(kind: str = "used", *, again: float = 1.5, noise: float = 0.1, seed: int = 0) -> ProbeWorld:
    """A world. `again`: times as strongly as layer 0 layer 1 writes (returning), or the first direction is written as the
    second (redundant). `noise`: spread of mood and colour in all words; words of a side have them at +1 or -1.

    Raises UsageError for an unknown kind.
    """
    if kind not in KINDS:
        raise bad_argument("kind", kind, ", ".join(KINDS))
    second = 1.0 / again
    share = {"used": 1.0, "returning": 1.0 / (1.0 + again), "redundant": 1.0 / (1.0 + second)}[kind]
    model = _model(kind, again, second, noise)
    texts = {what: MemorySource(f"{what} of probe world {seed}", _texts(what, seed)) for what in LETTERS}
    return ProbeWorld(kind, model, texts, MemorySource(f"pairs of probe world {seed}", _pairs(seed)), share)


def part(name: str) -> Tensor:
    """The unit direction (d_model,) of a part of the stream."""
    return _basis()[PARTS.index(name)]


def _basis() -> Tensor:
    drawn = torch.randn(D_MODEL, D_MODEL, generator=torch.Generator().manual_seed(11), dtype=torch.float64)
    return torch.linalg.qr(drawn)[0].T.float()


# weights -----------------------------------------------------------------------------------------


def _model(kind: str, again: float, second: float, noise: float) -> Model:
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=len(VOCABULARY), hidden_size=D_MODEL, num_hidden_layers=N_LAYERS, num_attention_heads=N_HEADS,
        num_key_value_heads=N_HEADS, intermediate_size=D_MLP, max_position_embeddings=64, tie_word_embeddings=False,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    hf: Any = transformers.LlamaForCausalLM(config).eval()
    rng = torch.Generator().manual_seed(12)
    with torch.no_grad():
        for parameter in hf.parameters():  # so little that it shows in proofs only
            parameter.normal_(0.0, 1e-3, generator=rng)
        _write_embeddings(hf, noise, rng)
        hf.model.norm.weight.fill_(CONSTANT / D_MODEL**0.5)
        for layer in hf.model.layers:
            for norm in (layer.input_layernorm, layer.post_attention_layernorm):
                norm.weight.fill_(CONSTANT / D_MODEL**0.5)
            for linear in (layer.self_attn.v_proj, layer.self_attn.o_proj, layer.mlp.down_proj):
                linear.weight.mul_(0.1)
        _write_head(hf, 0, 0, [("mood_word", "mood", GAIN)])
        _write_head(hf, 0, 1, [("colour_word", "colour", GAIN)])
        _write_head(hf, 0, 2, [(f"content{n}", f"heard{n}", 1.0) for n in range(N_HEARD)])
        if kind == "redundant":
            _write_head(hf, 0, 3, [("mood_word2", "mood2", GAIN * second)])
        if kind == "returning":
            _write_head(hf, 1, 0, [("mood_word", "mood", GAIN * again)])
        read = part("mood") + part("mood2")
        hf.lm_head.weight.zero_()
        for word, sign in (("yes", 0.5), ("no", -0.5)):
            hf.lm_head.weight[VOCABULARY.index(word)] = sign * READS * read
    return load_model(hf, tokenizer=tokenizer_of(VOCABULARY))


def _write_embeddings(hf: Any, noise: float, rng: torch.Generator) -> None:
    for number, word in enumerate(VOCABULARY):
        row = CONSTANT * part("constant")
        for name in ("mood_word", "mood_word2", "colour_word"):
            what, sign = KNOWN.get(word, ("", 0))
            here = float(sign) if name.startswith(what or "-") else 0.0
            row = row + (here + noise * torch.randn((), generator=rng)) * part(name)
        drawn = CONTENT * torch.randn(N_CONTENT, generator=rng)
        row = row + sum(value * part(f"content{n}") for n, value in enumerate(drawn))
        hf.model.embed_tokens.weight[number] = row


def _write_head(hf: Any, layer: int, head: int, carried: list[tuple[str, str, float]]) -> None:
    """A head that carries what lies along one part anywhere so far, on average, to another part."""
    attention = hf.model.layers[layer].self_attn
    rows = slice(head * D_HEAD, (head + 1) * D_HEAD)
    attention.v_proj.weight[rows] = 0.0
    attention.o_proj.weight[:, rows] = 0.0
    for place, (read, write, gain) in enumerate(carried):
        attention.v_proj.weight[head * D_HEAD + place] = part(read)
        attention.o_proj.weight[:, head * D_HEAD + place] = gain * part(write)


# data --------------------------------------------------------------------------------------------


def _texts(what: str, seed: int, per_template: int = 8) -> dict[str, list[Example]]:
    """Labelled texts: half of each template have the property, whatever the other word is."""
    found: dict[str, list[Example]] = {}
    for split, n_templates in SPLITS.items():
        rng = random.Random(f"{what}-{split}-{seed}")
        found[split] = []
        for number in range(n_templates):
            frame = _frame(rng)
            for turn in range(per_template):
                signs = {what: 1 if turn % 2 else -1, _other(what): 1 if turn % 4 < 2 else -1}
                text, words = _filled(rng, frame, signs, split)
                found[split].append(Example(text, turn % 2, f"{split} {number}", (words[what],)))
    return found


def _pairs(seed: int, per_template: int = 3) -> dict[str, list[Pair]]:
    found: dict[str, list[Pair]] = {}
    for split, n_templates in SPLITS.items():
        rng = random.Random(f"pairs-{split}-{seed}")
        found[split] = []
        for number in range(n_templates):
            frame = _frame(rng)
            for _ in range(per_template):
                clean, _ = _filled(rng, frame, {"mood": 1, "colour": 1}, split)
                corrupted, _ = _filled(rng, frame, {"mood": -1, "colour": -1}, split)
                found[split].append(Pair(clean, corrupted, (" yes",), (" no",), f"{split} {number}"))
    return found


def _other(what: str) -> str:
    return "colour" if what == "mood" else "mood"


def _frame(rng: random.Random) -> tuple[list[str], tuple[int, int]]:
    """Fillers, and where the two words go."""
    fillers = rng.sample(FILLERS, rng.randrange(6, 9))
    first, second = rng.sample(range(len(fillers)), 2)
    return fillers, (first, second)


def _filled(
    rng: random.Random, frame: tuple[list[str], tuple[int, int]], signs: dict[str, int], split: str
) -> tuple[str, dict[str, str]]:
    words, chosen = list(frame[0]), {what: rng.choice(words_of(what, signs[what], split)) for what in LETTERS}
    for place, what in zip(frame[1], LETTERS, strict=True):
        words[place] = chosen[what]
    return " ".join([*words, "ask"]), chosen
