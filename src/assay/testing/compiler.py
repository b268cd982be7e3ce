"""A small compiler from programs to transformer weights, after RASP (Weiss et al. 2021) and Tracr (Lindner et al. 2023).

1. The residual stream is divided into named parts. A symbol is a one-hot vector in a part; a number is one
   coordinate. Token and position come from the embeddings.
2. `select`: an attention head that looks where a table over (symbol here, symbol there) says so, evenly; where no
   place fits it rests on the first token. It adds what it finds in one part to another part.
3. `lookup`: MLP neurons, one per pair of symbols: relu(a + b - 1) is 1 where both are there.
4. `steps`: two MLP neurons per threshold: a number becomes "above this threshold", 0 or 1.
5. The result is an ordinary GPT-2 module with relu. A constant in two coordinates makes the layer norms the same
   for all inputs, so that they can be undone by their weights; whatever is written is taken off again from a
   coordinate that nobody reads, so that the mean of the stream, which the norms subtract, is always 0.

What runs is exactly what was written, and heads that were not written are zero: real networks share neither. Sites
where nothing can change anything (the input of an MLP without neurons, queries of a head that looks everywhere) cannot
be proved, and so are not offered.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from assay.model.load import load_model
from assay.model.model import Model

BALLAST = 300.0
SHARP = 14.0
SINK = -3  # the coordinate that takes off what is written; the last two hold the constant
STEEP = 200.0  # of a threshold; numbers must keep 1 / STEEP away from it


@dataclass(frozen=True, eq=False)
class Head:
    """One attention head of a program, as tables between parts."""

    query: str
    key: str
    table: np.ndarray
    value: str
    out: str
    gain: float


@dataclass
class Compiler:
    """A program under construction. `words`: the vocabulary; the first one starts every text."""

    words: Sequence[str]
    longest: int
    n_layers: int
    parts: dict[str, slice] = field(default_factory=dict)
    heads: dict[int, list[Head]] = field(default_factory=dict)
    neurons: dict[int, list[tuple[dict[int, float], float, dict[int, float]]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.part("token", len(self.words))
        self.part("position", self.longest)
        self.part("one", 1)
        self.part("output", len(self.words))

    def part(self, name: str, size: int) -> str:
        """A new part of the residual stream."""
        start = max((place.stop for place in self.parts.values()), default=0)
        self.parts[name] = slice(start, start + size)
        return name

    def size(self, name: str) -> int:
        """How many coordinates a part has."""
        return self.parts[name].stop - self.parts[name].start

    def at(self, name: str, number: int = 0) -> int:
        """The coordinate of a symbol."""
        return self.parts[name].start + number

    def select(self, layer: int, query: str, key: str, table: np.ndarray, value: str, out: str, gain: float = 1.0) -> str:
        """A head; the site it has, `z.L.H`."""
        heads = self.heads.setdefault(layer, [])
        heads.append(Head(query, key, np.asarray(table, float), value, out, gain))
        return f"z.{layer}.{len(heads) - 1}"

    def lookup(self, layer: int, a: str, b: str, table: Mapping[tuple[int, int], tuple[str, int]], gain: float = 1.0) -> str:
        """Neurons: (symbol of a, symbol of b) -> symbol of a part; the site of the MLP, `mlp_out.L`."""
        for (i, j), (out, symbol) in table.items():
            self.neuron(layer, {self.at(a, i): 1.0, self.at(b, j): 1.0}, -1.0, {self.at(out, symbol): gain})
        return f"mlp_out.{layer}"

    def steps(
        self, layer: int, number: Mapping[int, float], thresholds: Sequence[float], writes: Sequence[Mapping[int, float]]
    ) -> str:
        """Neurons: where the weighted sum of coordinates is above a threshold, a vector is added."""
        for threshold, write in zip(thresholds, writes, strict=True):
            steep = {place: STEEP * weight for place, weight in number.items()}
            self.neuron(layer, steep, -STEEP * threshold + 0.5, write)
            self.neuron(layer, steep, -STEEP * threshold - 0.5, {place: -weight for place, weight in write.items()})
        return f"mlp_out.{layer}"

    def neuron(self, layer: int, reads: Mapping[int, float], bias: float, writes: Mapping[int, float]) -> None:
        """One neuron: relu of a weighted sum of coordinates and a bias, added to other coordinates."""
        self.neurons.setdefault(layer, []).append((dict(reads), bias, dict(writes)))

    # weights -------------------------------------------------------------------------------------

    def model(self, n_heads: int = 4) -> Model:
        """The program as a GPT-2 with that many heads a layer; those that were not written are zero."""
        import transformers

        used = [max(self.size(head.key), self.size(head.value)) for heads in self.heads.values() for head in heads]
        width = max(place.stop for place in self.parts.values()) + 3
        d_head = max(*used, -(-width // n_heads))
        inner = max((len(neurons) for neurons in self.neurons.values()), default=1)
        config = transformers.GPT2Config(
            vocab_size=len(self.words), n_positions=self.longest, n_embd=n_heads * d_head, n_layer=self.n_layers,
            n_head=n_heads, n_inner=inner, activation_function="relu", tie_word_embeddings=False, resid_pdrop=0.0,
            embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        hf: Any = transformers.GPT2LMHeadModel(config).eval()
        with torch.no_grad():
            for parameter in hf.parameters():
                parameter.zero_()
            self._write_ends(hf, n_heads * d_head)
            for layer, heads in self.heads.items():
                for number, head in enumerate(heads):
                    self._write_head(hf.transformer.h[layer].attn, number, head, d_head, n_heads * d_head)
            for layer, neurons in self.neurons.items():
                self._write_neurons(hf.transformer.h[layer].mlp, neurons)
        return load_model(hf, tokenizer=tokenizer_of(self.words))

    def _write_ends(self, hf: Any, d_model: int) -> None:
        trunk = hf.transformer
        for word in range(len(self.words)):
            trunk.wte.weight[word, self.at("token", word)] = 1.0
            hf.lm_head.weight[word, self.at("output", word)] = 1.0
        for position in range(self.longest):
            trunk.wpe.weight[position, self.at("position", position)] = 1.0
        trunk.wpe.weight[:, self.at("one")] = 1.0
        for table in (trunk.wte.weight, trunk.wpe.weight):
            table[:, SINK] = -table.sum(1)
        trunk.wpe.weight[:, d_model - 2], trunk.wpe.weight[:, d_model - 1] = BALLAST, -BALLAST
        for norm in (trunk.ln_f, *(norm for block in trunk.h for norm in (block.ln_1, block.ln_2))):
            norm.weight.fill_(BALLAST * (2.0 / d_model) ** 0.5)
            norm.weight[SINK:] = 0.0

    def _write_head(self, attention: Any, number: int, head: Head, d_head: int, d_model: int) -> None:
        weight = attention.c_attn.weight  # (in, out), as GPT-2 keeps it
        q, k, v = (block * d_model + number * d_head for block in range(3))
        scale = SHARP * d_head**0.5
        for symbol in range(self.size(head.key)):
            weight[self.at(head.key, symbol), k + symbol] = 1.0
        table = torch.tensor(head.table, dtype=torch.float32) * scale
        weight[self.parts[head.query], q : q + self.size(head.key)] = table
        for symbol in range(self.size(head.value)):
            weight[self.at(head.value, symbol), v + symbol] = 1.0
            attention.c_proj.weight[number * d_head + symbol, self.at(head.out, symbol)] = head.gain
            attention.c_proj.weight[number * d_head + symbol, SINK] = -head.gain

    def _write_neurons(self, mlp: Any, neurons: Sequence[tuple[dict[int, float], float, dict[int, float]]]) -> None:
        for number, (reads, bias, writes) in enumerate(neurons):
            mlp.c_fc.bias[number] = bias
            for place, value in reads.items():
                mlp.c_fc.weight[place, number] = value
            for place, value in writes.items():
                mlp.c_proj.weight[number, place] = value
            mlp.c_proj.weight[number, SINK] = -sum(writes.values())


def tokenizer_of(words: Sequence[str]) -> Any:
    """One token per word, split at spaces."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=words[0]))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made)
