"""A small model in which it is known what is used, what steers and what drives what, because it was written in.

`planted_effects` is a GPT-2 of two layers over a made-up vocabulary. Its residual stream is a sum of named parts,
each along a direction of its own in a random basis (`part_direction`), so that no single unit is a part.

    mood       written by head 0 of layer 0 from the mood words; read by the unembedding: p.. -> "yes", n.. -> "no"
    copy       the same property, written by head 1, read by nothing: decodable, not used
    topic      written by head 2 from the topic words, read by the unembedding: "red" or "blue"
    side       class of the current filler word; decides in ordinary text which words come next
    gate       added to the stream, raises mood after red topics and lowers it after blue ones (by MLP 1)
    ramp       raises mood when positive, does nothing when negative (by MLP 1)
    zigzag     raises mood only far out, lowers it before (by MLP 1)
    cause      on in some words; MLP 1 writes `effect` where it is on
    witness    on in the same words as `origin`; MLP 1 writes `echo` from `origin`: a common cause, no connection
    flood      on in some words; MLP 1 writes `drop` and with it all parts but KEPT
    shadow     on with the cause, larger, read by nothing
    idle       never written: nothing but an edit can reach it
    late_word, lever, drain    empty here; for effects of a known size (`effect_ladders.py`)

A large constant part keeps the layer norms nearly linear; adding to it changes the temperature of everything.
"""

import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from assay.evidence.source import MemorySource
from assay.model.load import load_model
from assay.model.model import Model
from assay.records import Example, Pair

D_MODEL, D_HEAD, N_HEADS, D_MLP = 64, 16, 4, 24
LONGEST = 40
CONSTANT = 30.0
ASKED = 8.0  # what keeps answers out of ordinary text
N_CONTENT = 12
PARTS = (
    "constant", "mood_word", "mood", "copy", "topic_word", "topic", "asked", "side", "gate", "ramp", "zigzag", "cause",
    "effect", "origin", "witness", "echo", "flood", "drop", "idle", "shadow",
    *(f"content{number}" for number in range(N_CONTENT)), "late_word", "lever", "drain",
)  # fmt: skip
KEPT = ("constant", "mood", "topic", "asked", "side", "effect", "echo")  # not flooded
ANSWERS = ("yes", "no", "red", "blue")
FILLERS = tuple(f"f{number}" for number in range(24))
MOODS = {+1: tuple(f"p{n}" for n in range(6)), -1: tuple(f"n{n}" for n in range(6))}
TOPICS = {+1: tuple(f"r{n}" for n in range(4)), -1: tuple(f"b{n}" for n in range(4))}
VOCABULARY = ("ask", *ANSWERS, *MOODS[1], *MOODS[-1], *TOPICS[1], *TOPICS[-1], *FILLERS)
CAUSES, ORIGINS, FLOODS = FILLERS[:4], FILLERS[4:8], FILLERS[8:12]
SPLITS = {"discover": 4, "tune": 8, "confirm": 10, "ood": 9}  # templates
TEXT_SPLITS = {"discover": 4, "tune": 8, "confirm": 14, "ood": 12}


def planted_effects(content: float = 1.0, copy: float = 8.0) -> Model:
    """The model. `content`: how much filler words differ; `copy`: how strongly mood is written where nothing reads it."""
    return effects_model(written_effects(content, copy))


def effects_model(hf: Any) -> Model:
    """What `written_effects` gives, with its tokenizer, as a model."""
    return load_model(hf, tokenizer=_tokenizer())


def written_effects(content: float = 1.0, copy: float = 8.0) -> Any:
    """The GPT-2 with its weights written, not yet a model: more can be written in."""
    import transformers

    config = transformers.GPT2Config(
        vocab_size=len(VOCABULARY), n_positions=LONGEST, n_embd=D_MODEL, n_layer=2, n_head=N_HEADS, n_inner=D_MLP,
        activation_function="relu", tie_word_embeddings=False, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    hf: Any = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.zero_()
        for norm in (hf.transformer.ln_f, *(n for block in hf.transformer.h for n in (block.ln_1, block.ln_2))):
            norm.weight.fill_(CONSTANT / D_MODEL**0.5)
        _write_embeddings(hf, content)
        _write_heads(hf, copy)
        _write_neurons(hf)
        _write_unembedding(hf)
    return hf


def part_direction(*parts: str, weights: tuple[float, ...] | None = None) -> Tensor:
    """The unit direction (d_model,) of a part, or of a weighted sum of parts."""
    scales = weights or (1.0,) * len(parts)
    total = sum(scale * _basis()[PARTS.index(part)] for part, scale in zip(parts, scales, strict=True))
    assert isinstance(total, Tensor)
    return total / total.norm()


def _basis() -> Tensor:
    """Orthonormal directions, none with a mean, so that layer norms take nothing off: (d_model - 1, d_model)."""
    random_rows = torch.randn(D_MODEL, D_MODEL, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    random_rows[0] = 1.0
    return torch.linalg.qr(random_rows.T).Q.T[1:].float()


def _tokenizer() -> Any:
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(VOCABULARY)}, unk_token="ask"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words)


# weights -----------------------------------------------------------------------------------------


def _write_embeddings(hf: Any, content: float) -> None:
    basis, rng = _basis(), torch.Generator().manual_seed(4)
    level = dict(zip(PARTS, basis, strict=False))
    inside = torch.stack([level[f"content{n}"] for n in range(N_CONTENT)])
    for number, word in enumerate(VOCABULARY):
        row = CONSTANT * level["constant"]
        for sign in (1, -1):
            row = row + sign * (word in MOODS[sign]) * level["mood_word"] + sign * (word in TOPICS[sign]) * level["topic_word"]
        row = row + (word == "ask") * level["asked"]
        if word in FILLERS:
            row = row + (1 if FILLERS.index(word) % 2 else -1) * level["side"]
            row = row + content * torch.randn(N_CONTENT, generator=rng) / N_CONTENT**0.5 @ inside
        row = row + (word in CAUSES) * (level["cause"] + 2 * level["shadow"]) + (word in FLOODS) * level["flood"]
        row = row + (word in ORIGINS) * (level["origin"] + level["witness"])
        hf.transformer.wte.weight[number] = row


def _write_heads(hf: Any, copy: float) -> None:
    """Heads that look everywhere alike and carry one part each."""
    rng = torch.Generator().manual_seed(6)
    for block, size in ((hf.transformer.h[0], 0.0), (hf.transformer.h[1], 1e-3)):  # so little that it shows in proofs only
        nn.init.normal_(block.attn.c_attn.weight, std=1e-3, generator=rng)
        nn.init.normal_(block.attn.c_proj.weight, std=size, generator=rng)
    heads = (("mood_word", "mood", 8.0), ("mood_word", "copy", copy), ("topic_word", "topic", 8.0))
    for head, (read, write, gain) in enumerate(heads):
        write_head(hf, 0, head, part_direction(read), gain * part_direction(write))


def write_head(hf: Any, layer: int, head: int, read: Tensor, write: Tensor) -> None:
    """A head that carries what lies along `read` (d_model,) at any position so far, on average, to `write` (d_model,)."""
    attention = hf.transformer.h[layer].attn
    attention.c_attn.weight[:, 2 * D_MODEL + head * D_HEAD] = read
    attention.c_proj.weight[head * D_HEAD] = write


@dataclass(frozen=True)
class Neuron:
    """relu(reads - bias), written with these weights; `flood` writes over the whole stream."""

    reads: dict[str, float]
    writes: dict[str, float]
    bias: float = 0.0
    flood: float = 0.0


def _write_neurons(hf: Any) -> None:
    """MLP 1. Pairs of neurons that cancel when nothing is added to the stream."""
    far = 12.0
    neurons = [
        Neuron({"gate": 1, "topic": far}, {"mood": 1.5}), Neuron({"topic": far}, {"mood": -1.5}),
        Neuron({"gate": 1, "topic": -far}, {"mood": -0.5}), Neuron({"topic": -far}, {"mood": 0.5}),
        Neuron({"ramp": 1}, {"mood": 1.0}),
        Neuron({"zigzag": 1}, {"mood": -1.0}), Neuron({"zigzag": 1}, {"mood": 12.0}, bias=4.0),
        Neuron({"zigzag": -1}, {"mood": 1.0}), Neuron({"zigzag": -1}, {"mood": -12.0}, bias=4.0),
        Neuron({"cause": 1, "content0": 0.4}, {"effect": 3.0}, bias=0.3),
        Neuron({"origin": 1, "content1": 0.4}, {"echo": 3.0}, bias=0.3),
        Neuron({"flood": 1, "content2": 0.4}, {"drop": 3.0}, bias=0.3, flood=4.0),
    ]  # fmt: skip
    mlp = hf.transformer.h[1].mlp
    shares = torch.randn(D_MODEL - 1, generator=torch.Generator().manual_seed(5))
    shares[[PARTS.index(part) for part in KEPT]] = 0.0
    everywhere = shares @ _basis()
    for number, neuron in enumerate(neurons):
        write_neuron(hf, number, neuron)
        mlp.c_proj.weight[number] += neuron.flood * everywhere
    nn.init.normal_(hf.transformer.h[0].mlp.c_fc.weight, std=0.02, generator=torch.Generator().manual_seed(0))
    nn.init.normal_(hf.transformer.h[0].mlp.c_proj.weight, std=1e-4, generator=torch.Generator().manual_seed(1))


def write_neuron(hf: Any, number: int, neuron: Neuron) -> None:
    """A neuron of MLP 1, in the place of the one with that number."""
    mlp = hf.transformer.h[1].mlp
    mlp.c_fc.weight[:, number] = sum(weight * part_direction(part) for part, weight in neuron.reads.items())
    mlp.c_fc.bias[number] = -neuron.bias
    mlp.c_proj.weight[number] = sum(weight * part_direction(part) for part, weight in neuron.writes.items())


def _write_unembedding(hf: Any) -> None:
    """Answers when asked; otherwise words of the other side."""
    weight = hf.lm_head.weight
    for place, word in enumerate(VOCABULARY):
        if word in ANSWERS:
            part, sign = ("mood", 1) if word in ("yes", "no") else ("topic", 1)
            sign = 1 if word in ("yes", "red") else -1
            weight[place] += sign * 2.0 * part_direction(part)
            weight[place] += ASKED * (part_direction("asked") - part_direction("constant") / CONSTANT)
        if word in FILLERS:
            weight[place] -= (4.0 if FILLERS.index(word) % 2 else -4.0) * part_direction("side")


# data --------------------------------------------------------------------------------------------


def mood_source(seed: int = 0, per_template: int = 4) -> MemorySource:
    """Pairs "fillers, a mood word, a topic word, fillers, ask" -> yes after p.., no after n.. (corrupted)."""
    splits: dict[str, list[Pair]] = {}
    for split, n_templates in SPLITS.items():
        rng = random.Random(f"mood-{split}-{seed}")
        splits[split] = []
        for number in range(n_templates):
            frame = rng.sample(FILLERS, rng.randrange(5, 8))
            places = rng.sample(range(len(frame)), 2)
            for turn in range(per_template):
                topic = -1 if turn % 4 == 3 else 1  # three red to one blue
                words = [*frame]
                words[places[1]] = rng.choice(TOPICS[topic])
                clean, corrupted = [*words], [*words]
                clean[places[0]], corrupted[places[0]] = rng.choice(MOODS[1]), rng.choice(MOODS[-1])
                splits[split].append(Pair(" ".join([*clean, "ask"]), " ".join([*corrupted, "ask"]), (" yes",), (" no",),
                                          f"{split} {number}"))  # fmt: skip
    return MemorySource("mood", splits)


def filler_source(seed: int = 0, per_template: int = 4) -> MemorySource:
    """Texts of ten filler words, for claims about connections."""
    splits: dict[str, list[Example]] = {}
    for split, n_templates in TEXT_SPLITS.items():
        rng = random.Random(f"fillers-{split}-{seed}")
        splits[split] = [Example(" ".join(rng.choices(FILLERS, k=10)), 0, f"{split} {number}")
                         for number in range(n_templates) for _ in range(per_template)]  # fmt: skip
    return MemorySource("filler texts", splits)


def neutral_texts(n: int = 28, seed: int = 0) -> list[str]:
    """Ordinary texts of this model's language: filler words."""
    rng = random.Random(f"neutral-{seed}")
    return [" ".join(rng.choices(FILLERS, k=8)) for _ in range(n)]
