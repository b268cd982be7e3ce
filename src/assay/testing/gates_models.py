"""Small stock models whose edges are known, each built so that one way of attributing misses or misreads them.

Compiled like the programs of `programs.py` (GPT-2, saturated attention, norms that scale everything alike), then filled:
heads and neurons that the program leaves empty read at random and write next to nothing (`filled`), so that every edge of the
graph can be scored and most of them are false. Written heads are the last ones of their layer.

    or_gate             z.0.3 and z.0.2 each find a signal, one MLP says yes if either is there, min(1, a + b): exchanging
                        one in the clean run changes nothing
    and_gate            the same with max(0, a + b - 1): exchanging one in the corrupted run changes nothing
    backup              z.0.3 writes the answer, and by it keeps z.1.3 silent, which would write it as well: without z.0.3
                        nothing is lost (self-repair). z.1.3->logits carries nothing in either run, so no exchange of it
                        alone shows; it is not in `edges`
    opposite            z.0.3 reads two positions with opposite effect on the metric: embed->v.0.3 adds up to 0 over
                        positions; z.0.2 carries the difference that is left
    inhibition          a chain of three layers that ends in a query: z.0.3 hears a name, z.1.3 hands it on, and z.2.3
                        looks at the names but the one heard (as the heads of indirect object identification do)
    negative            z.1.3 looks for what z.0.3 is about to say and takes half of it away
    skip_trigram        z.0.3 with a finite score s: "S .. ?" -> A of S. Everything about it is a formula (`trigram_effects`)

`blind[direction]` names true edges that change nothing when they alone are exchanged in that direction. An edge is true if it
changes the metric when exchanged alone in at least one direction; `opposite` lists `cancels`, an edge that changes it at two
positions and not in sum.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from assay.model.load import load_model
from assay.model.model import Model
from assay.records import Pair
from assay.testing.compiler import SHARP, SINK, Compiler

LONGEST = 16
FILLERS = tuple(f"f{number}" for number in range(6))
SIZE = 4.0  # logits of an answer that is written out
TRIGRAM_SCORE = 3.0
READ, WRITE, AWAKE = 0.7, 5e-4, 3.0  # of what is filled in; its neurons are mostly on
EMPTY = 4  # neurons to be filled
NAMES = tuple("abcdef")
Draw = Callable[[random.Random, int], tuple[Sequence[str], Sequence[str], str, str]]


@dataclass(frozen=True, eq=False)
class Gate:
    """How a model is made, its true edges, those that one direction cannot see, and a way to draw texts: (rng, fillers) ->
    the words of clean and corrupted between "^" and "?", answer, foil."""

    name: str
    model: Callable[[], Model]
    edges: tuple[str, ...]
    draw: Draw
    blind: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    cancels: tuple[str, ...] = ()

    def pairs(self, n_templates: int, per_template: int, seed: int = 0) -> list[Pair]:
        """Pairs; a template is a number of fillers."""
        rng = random.Random(f"{self.name}-{seed}")
        found = []
        for number in range(n_templates):
            fillers = 2 + number % 4
            for _ in range(per_template):
                clean, corrupted, answer, foil = self.draw(rng, fillers)
                texts = [" ".join(("^", *words, "?")) for words in (clean, corrupted)]
                found.append(Pair(texts[0], texts[1], (f" {answer}",), (f" {foil}",), str(number)))
        return found


# the gates ---------------------------------------------------------------------------------------


def or_gate() -> Gate:
    """min(1, a + b), with room to either side of the corners so that both are exact."""
    model = _gate([(0.1, 1.0), (-0.9, -1.0)])
    return Gate("or_gate", model, GATE_EDGES, _signals, {"noise": GATE_EDGES[:-1]})


def and_gate() -> Gate:
    """max(0, a + b - 1.1): one signal alone is 0 exactly."""
    model = _gate([(-1.1, 1.0 / 0.9)])
    return Gate("and_gate", model, GATE_EDGES, _signals, {"denoise": GATE_EDGES[:-1]})


GATE_EDGES = ("embed->v.0.3", "embed->v.0.2", "z.0.3->mlp_in.0", "z.0.2->mlp_in.0", "mlp_out.0->logits")


def _gate(neurons: Sequence[tuple[float, float]]) -> Callable[[], Model]:
    """Signals x1 and y1, found by a head each; neurons (bias, weight) on their sum raise "yes" over a constant "no"."""
    words = ("^", "?", *FILLERS, "x0", "x1", "y0", "y1", "yes", "no")
    code = Compiler(words, LONGEST, 1)
    found = {}
    for letter in "xy":
        signals = _alias(code, letter, "token", words, (f"{letter}0", f"{letter}1"))
        _look(code, 0, "one", {0: {f"{letter}0": 1.0, f"{letter}1": 1.0}}, signals, code.part(f"found {letter}", 2))
        found[code.at(f"found {letter}", 1)] = 1.0
    yes, no = (code.at("output", words.index(word)) for word in ("yes", "no"))
    for bias, weight in neurons:
        code.neuron(0, found, bias, {yes: SIZE * weight})
    code.neuron(0, {code.at("one"): 1.0}, 0.0, {no: 0.55 * SIZE})
    return _maker(code)


def _signals(rng: random.Random, fillers: int) -> tuple[Sequence[str], Sequence[str], str, str]:
    words = [*rng.choices(FILLERS, k=fillers), "x1", "y1"]
    rng.shuffle(words)
    return words, [{"x1": "x0", "y1": "y0"}.get(word, word) for word in words], "yes", "no"


def backup() -> Gate:
    """A name, or "." where there is none: both are looked at, so that keys say nothing."""
    words = ("^", "?", ".", *FILLERS, *NAMES)
    code = Compiler(words, LONGEST, 2)
    names, out = _alias(code, "names", "token", words, NAMES), _alias(code, "say", "output", words, NAMES)
    looked = dict.fromkeys((*NAMES, "."), 1.0)
    _look(code, 0, "one", {0: looked}, names, out, SIZE)
    awake = {word: 2 * score for word, score in looked.items()}
    asleep = {word: -score for word, score in looked.items()}
    said = {1 + words.index(name): asleep for name in NAMES}
    _look(code, 1, _from_one(code, "output"), {0: {"^": 1.0, **awake}, **said}, names, out, SIZE)

    def draw(rng: random.Random, fillers: int) -> tuple[Sequence[str], Sequence[str], str, str]:
        answer, foil = rng.sample(NAMES, 2)
        around = rng.choices(FILLERS, k=fillers)
        place = rng.randrange(fillers + 1)
        clean, corrupted = ([*around[:place], word, *around[place:]] for word in (answer, "."))
        return clean, corrupted, answer, foil

    edges = ("embed->v.0.3", "z.0.3->logits", "z.0.3->q.1.3", "embed->v.1.3")
    blind = {"noise": ("embed->v.0.3", "embed->v.1.3"), "denoise": ("z.0.3->q.1.3",)}
    return Gate("backup", _maker(code), edges, draw, blind)


def opposite() -> Gate:
    """The answer is said half by z.0.3 and once by z.0.2, the foil half by z.0.3: what is left is z.0.2's."""
    left, right = tuple(f"p{n}" for n in range(4)), tuple(f"m{n}" for n in range(4))
    words = ("^", "?", *FILLERS, *left, *right)
    code = Compiler(words, LONGEST, 1)
    both, out = _alias(code, "both", "token", words, (*left, *right)), _alias(code, "say", "output", words, (*left, *right))
    _look(code, 0, "one", {0: dict.fromkeys((*left, *right), 1.0)}, both, out, SIZE)
    _look(code, 0, "one", {0: dict.fromkeys(left, 1.0)}, both, out, SIZE)

    def draw(rng: random.Random, fillers: int) -> tuple[Sequence[str], Sequence[str], str, str]:
        (a, b), (c, d) = rng.sample(left, 2), rng.sample(right, 2)
        clean = [*rng.choices(FILLERS, k=fillers), a, c]
        rng.shuffle(clean)
        return clean, [{a: b, c: d}.get(word, word) for word in clean], a, c

    edges = ("embed->v.0.2", "z.0.2->logits")
    return Gate("opposite", _maker(code), edges, draw, cancels=("embed->v.0.3",))


def inhibition() -> Gate:
    """Two names, one of them heard (in capitals) before ",": the other one is the answer."""
    heard_names = tuple(name.upper() for name in NAMES)
    words = ("^", "?", ",", *FILLERS, *NAMES, *heard_names)
    code = Compiler(words, LONGEST, 3)
    heard, inhibited = code.part("heard", len(NAMES)), code.part("inhibited", len(NAMES))
    said = _alias(code, "said", "token", words, heard_names)
    names, out = _alias(code, "names", "token", words, NAMES), _alias(code, "say", "output", words, NAMES)
    code.select(0, "position", "position", np.eye(LONGEST, k=-1), said, heard)
    _look(code, 1, "one", {0: {",": 1.0}}, heard, inhibited)
    query = _from_one(code, inhibited)
    first = code.at(inhibited) - code.at("one")
    rows = {0: {"^": 1.0, **dict.fromkeys(NAMES, 2.0)}, **{first + i: {name: -2.0} for i, name in enumerate(NAMES)}}
    _look(code, 2, query, rows, names, out, SIZE)

    def draw(rng: random.Random, fillers: int) -> tuple[Sequence[str], Sequence[str], str, str]:
        a, b = rng.sample(NAMES, 2)
        start = [*rng.choices(FILLERS, k=fillers), a, b]
        rng.shuffle(start)
        end = rng.choices(FILLERS, k=2)
        return [*start, a.upper(), ",", *end], [*start, b.upper(), ",", *end], b, a

    edges = ("embed->v.0.3", "z.0.3->v.1.3", "z.1.3->q.2.3", "z.2.3->logits")
    return Gate("inhibition", _maker(code), edges, draw)


def negative() -> Gate:
    """The head that takes away rests on "^" unless the name it looks for is there."""
    words = ("^", "?", *FILLERS, *NAMES)
    code = Compiler(words, LONGEST, 2)
    names, out = _alias(code, "names", "token", words, NAMES), _alias(code, "say", "output", words, NAMES)
    _look(code, 0, "one", {0: dict.fromkeys(NAMES, 1.0)}, names, out, SIZE)
    match = {1 + words.index(name): {name: 0.4} for name in NAMES}  # times SIZE: over "^" by .6
    _look(code, 1, _from_one(code, "output"), {0: {"^": 1.0}, **match}, names, out, -0.5 * SIZE)

    def draw(rng: random.Random, fillers: int) -> tuple[Sequence[str], Sequence[str], str, str]:
        a, b = rng.sample(NAMES, 2)
        clean = [*rng.choices(FILLERS, k=fillers), a]
        rng.shuffle(clean)
        return clean, [b if word == a else word for word in clean], a, b

    edges = ("embed->v.0.3", "z.0.3->logits", "z.0.3->q.1.3", "embed->k.1.3", "embed->v.1.3", "z.1.3->logits")
    return Gate("negative", _maker(code), edges, draw)


def skip_trigram() -> Gate:
    """A subject, or "." which is neither looked at nor says anything."""
    subjects, answers = tuple(f"s{n}" for n in range(6)), tuple(f"a{n}" for n in range(6))
    words = ("^", "?", ".", *FILLERS, *subjects, *answers)
    code = Compiler(words, LONGEST, 1)
    value, out = _alias(code, "subjects", "token", words, subjects), _alias(code, "say", "output", words, answers)
    rows = {words.index("?"): dict.fromkeys(subjects, TRIGRAM_SCORE / SHARP)}
    _look(code, 0, "token", rows, value, out, SIZE)

    def draw(rng: random.Random, fillers: int) -> tuple[Sequence[str], Sequence[str], str, str]:
        subject, foil = rng.sample(range(6), 2)
        clean = [*rng.choices(FILLERS, k=fillers), subjects[subject]]
        rng.shuffle(clean)
        return clean, [word if word in FILLERS else "." for word in clean], answers[subject], answers[foil]

    edges = ("embed->k.0.3", "embed->v.0.3", "z.0.3->logits")
    return Gate("skip_trigram", _maker(code), edges, draw, {"denoise": ("embed->k.0.3",)})


def trigram_effects(length: int) -> dict[str, float]:
    """What is true of a skip trigram in a text of so many tokens, in logits.

    With p = e^s / (e^s + n - 1) the attention to the subject, G the size of the answer: clean G p, corrupted 0; exact
    noise of the key G (p - 1/n), of the value G p; exact denoise of the value G / n, of the key 0. One gradient at the clean
    run says G p (1 - p) s of the key and G p of the value; at the corrupted run 0 and G / n.
    """
    p = math.exp(TRIGRAM_SCORE) / (math.exp(TRIGRAM_SCORE) + length - 1)
    return {
        "clean": SIZE * p, "noise key": SIZE * (p - 1 / length), "noise value": SIZE * p, "denoise value": SIZE / length,
        "slope key": SIZE * p * (1 - p) * TRIGRAM_SCORE,
    }  # fmt: skip


# building ----------------------------------------------------------------------------------------


def _alias(code: Compiler, name: str, part: str, words: Sequence[str], chosen: Sequence[str]) -> str:
    """Neighbouring words of a part, as a part."""
    start = code.at(part, words.index(chosen[0]))
    assert list(words[words.index(chosen[0]) :][: len(chosen)]) == list(chosen)
    code.parts[name] = slice(start, start + len(chosen))
    return name


def _from_one(code: Compiler, part: str) -> str:
    """All from the constant to the end of a part, as a part: symbol 0 is the constant."""
    code.parts[f"one to {part}"] = slice(code.at("one"), code.parts[part].stop)
    return f"one to {part}"


def _look(
    code: Compiler, layer: int, query: str, rows: Mapping[int, Mapping[str, float]], value: str, out: str, gain: float = 1.0
) -> str:
    """A head that looks at words: row of the query -> score of every word."""
    table = np.zeros((code.size(query), len(code.words)))
    for row, scores in rows.items():
        for word, score in scores.items():
            table[row, code.words.index(word)] = score
    return code.select(layer, query, "token", table, value, out, gain)


def _maker(code: Compiler) -> Callable[[], Model]:
    """Makes the program's model, filled, with some neurons that it does not need."""
    for _ in range(EMPTY):
        code.neuron(0, {}, 0.0, {})
    return lambda: filled(code.model())


def filled(model: Model, seed: int = 0) -> Model:
    """A compiled model with its heads in reverse order and what is empty filled, its layout proved anew.

    Written heads come first in compiled models. A proof nudges head L of layer L, and nothing tells where a saturated head
    looks from a small nudge; so written heads go to the end, and random ones are nudged.
    """
    reverse_heads(model.hf)
    fill(model.hf, seed)
    return load_model(model.hf, tokenizer=model.tokenizer)


@torch.no_grad()
def reverse_heads(hf: Any) -> None:
    """Head h of a GPT-2 becomes head H - 1 - h: the same function."""
    d_model, n_heads = hf.config.n_embd, hf.config.n_head
    size = d_model // n_heads
    order = torch.arange(d_model).view(n_heads, size).flip(0).flatten()
    columns = torch.cat([part * d_model + order for part in range(3)])
    for block in hf.transformer.h:
        for values in (block.attn.c_attn.weight, block.attn.c_attn.bias[None]):
            values.copy_(values[:, columns])
        block.attn.c_proj.weight.copy_(block.attn.c_proj.weight[order])


@torch.no_grad()
def fill(hf: Any, seed: int = 0) -> None:
    """Empty heads and neurons of a compiled GPT-2 read at random and write next to nothing (standard deviation WRITE).

    Empty is what has no way out: output weights that are all 0. Reading leaves the compiler's own coordinates alone.
    """
    rng = torch.Generator().manual_seed(seed)
    d_model, n_heads = hf.config.n_embd, hf.config.n_head
    size = d_model // n_heads
    for block in hf.transformer.h:
        attention, mlp = block.attn, block.mlp
        heads = [slice(head * size, (head + 1) * size) for head in range(n_heads)]
        for rows in (rows for rows in heads if not attention.c_proj.weight[rows].any()):
            for part in range(3):
                columns = slice(part * d_model + rows.start, part * d_model + rows.stop)
                attention.c_attn.weight[:SINK, columns] = READ * torch.randn(d_model + SINK, size, generator=rng)
            attention.c_proj.weight[rows] = WRITE * torch.randn(size, d_model, generator=rng)
        empty = ~mlp.c_proj.weight.any(1)
        n = int(empty.sum())
        mlp.c_fc.weight[:SINK, empty] = READ * torch.randn(d_model + SINK, n, generator=rng)
        mlp.c_fc.bias[empty] = AWAKE
        mlp.c_proj.weight[empty] = WRITE * torch.randn(n, d_model, generator=rng)


GATES: dict[str, Gate] = {
    made.__name__: made() for made in (or_gate, and_gate, backup, opposite, inhibition, negative, skip_trigram)
}
