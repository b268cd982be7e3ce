"""Compiled programs with their exact circuits: what a circuit method should find, and nothing besides.

    program = PROGRAMS["count"]()
    program.model, program.heads, program.mlps      # the module; the sites that carry the program
    program.pairs(seed, n_templates, per_template)  # clean and corrupted texts with answers

    previous        the token before this one
    reverse         the words so far, backwards, after "|"
    count           how often the last word was said
    most_frequent   the commonest word
    brackets        whether brackets are balanced: "yes" or "no" after "|"; two layers, heads and MLPs

Texts start with "^". The last token is where the answer is read.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from assay.model.model import Model
from assay.records import Pair
from assay.testing.compiler import Compiler

LETTERS = tuple("abcdefgh")
LONGEST = 24
Draw = Callable[[random.Random, int], tuple[str, str, str, str]]


@dataclass(frozen=True, eq=False)
class Program:
    """A compiled model, the sites of its circuit, and a way to draw texts: (rng, length) -> clean, corrupted,
    answer, foil."""

    name: str
    model: Model
    heads: tuple[str, ...]
    mlps: tuple[str, ...]
    draw: Draw

    def pairs(self, seed: int, n_templates: int, per_template: int, prefix: str = "") -> list[Pair]:
        """Pairs; a template is a length and a stream of its own."""
        rng = random.Random(f"{self.name}-{prefix}-{seed}")
        found = []
        for number in range(n_templates):
            length = rng.randrange(3, 8)
            for _ in range(per_template):
                clean, corrupted, answer, foil = self.draw(rng, length)
                found.append(Pair(clean, corrupted, (f" {answer}",), (f" {foil}",), f"{prefix}{number}"))
        return found


def previous() -> Program:
    """At every place: the token before."""
    code = Compiler(("^", *LETTERS), LONGEST, 1)
    back = np.eye(LONGEST, k=-1)
    head = code.select(0, "position", "position", back, "token", "output")

    def draw(rng: random.Random, length: int) -> tuple[str, str, str, str]:
        words = rng.choices(LETTERS, k=length + 1)
        foil = rng.choice([word for word in LETTERS if word != words[-2]])
        return _text(words), _text([*words[:-2], foil, words[-1]]), words[-2], foil

    return Program("previous", code.model(), (head,), (), draw)


def reverse() -> Program:
    """After "^ a b c |": c, then b, then a. Every text has the bar at the same place, so a table of positions does."""
    half = 8
    code = Compiler(("^", "|", ".", *LETTERS), LONGEST, 1)
    table = np.zeros((LONGEST, LONGEST))
    for step in range(half):
        table[half + 1 + step, half - step] = 1.0
    head = code.select(0, "position", "position", table, "token", "output")

    def draw(rng: random.Random, length: int) -> tuple[str, str, str, str]:
        words = rng.choices(LETTERS, k=half)
        said = words[::-1][: length - 1]
        asked = half - 1 - len(said)
        foil = rng.choice([word for word in LETTERS if word != words[asked]])
        other = [foil if place == asked else word for place, word in enumerate(words)]
        return _text([*words, "|", *said]), _text([*other, "|", *said]), words[asked], foil

    return Program("reverse", code.model(), (head,), (), draw)


def count() -> Program:
    """How often the last word was said, itself included: attention to the same word and the start, whose share is
    1 / (1 + count); the MLP turns the share into a symbol."""
    most = 6
    numbers = tuple(str(number) for number in range(1, most + 1))
    words = ("^", *LETTERS, *numbers)
    code = Compiler(words, LONGEST, 1)
    same = np.eye(len(words))
    same[:, 0] = 1.0  # the start is always looked at
    found = code.part("found", len(words))
    head = code.select(0, "token", "token", same, "token", found)
    first = code.at("output", words.index("1"))
    bars = [0.5 * (1 / (1 + n) + 1 / (2 + n)) for n in range(1, most)]  # between the shares of n and n + 1
    writes = [{first + n: -1.0, first + n - 1: 1.0} for n in range(1, most)]
    mlp = code.steps(0, {code.at(found, 0): 1.0}, bars, writes)
    code.steps(0, {code.at("one"): 1.0}, [0.5], [{first + most - 1: 1.0}])

    def draw(rng: random.Random, length: int) -> tuple[str, str, str, str]:
        asked, *others = rng.sample(LETTERS, 4)
        n = rng.randrange(1, 4)
        rest = [asked] * n + rng.choices(others, k=length)
        rng.shuffle(rest)
        more = list(rest)
        more[rng.choice([i for i, word in enumerate(rest) if word != asked])] = asked
        return _text([*rest, asked]), _text([*more, asked]), str(n + 1), str(n + 2)

    return Program("count", code.model(), (head,), (mlp,), draw)


def most_frequent() -> Program:
    """The commonest word: even attention to everything adds up shares."""
    code = Compiler(("^", *LETTERS), LONGEST, 1)
    keep = code.part("share", len(code.words))
    head = code.select(0, "one", "one", np.ones((1, 1)), "token", keep, gain=1.0)
    for word in range(1, len(code.words)):  # from shares to logits: a neuron a word, linear above 0
        code.neuron(0, {code.at(keep, word): 1.0}, 0.0, {code.at("output", word): 10.0})

    def draw(rng: random.Random, length: int) -> tuple[str, str, str, str]:
        a, b, *others = rng.sample(LETTERS, 5)
        rest = rng.choices(others, k=1) + [a] * (length // 2 + 2) + [b] * (length // 2)
        rng.shuffle(rest)
        swapped = [{a: b, b: a}.get(word, word) for word in rest]
        return _text(rest), _text(swapped), a, b

    return Program("most_frequent", code.model(), (head,), ("mlp_out.0",), draw)


def brackets() -> Program:
    """Balanced when no prefix closes more than it opens, and the whole opens as often as it closes.

    Layer 0: the mean of +1 for "(" and -1 for ")" over all places so far; its MLP marks a mean below 0, and one that
    is not 0. Layer 1: has any place so far a mark? Its MLP says yes or no.
    """
    words = ("^", "(", ")", "|", "yes", "no")
    code = Compiler(words, LONGEST, 2)
    share, below, uneven, ever = (code.part(name, size) for name, size in
                                  (("share", len(words)), ("below", 1), ("uneven", 1), ("ever", 1)))  # fmt: skip
    even = np.ones((1, 1))
    depth_head = code.select(0, "one", "one", even, "token", share)
    depth = {code.at(share, 1): 1.0, code.at(share, 2): -1.0}
    flat, bar = {place: -weight for place, weight in depth.items()}, 0.5 / LONGEST
    code.steps(0, flat, [bar], [{code.at(below): 1.0, code.at(uneven): 1.0}])
    code.steps(0, depth, [bar], [{code.at(uneven): 1.0}])
    any_head = code.select(1, "one", "one", even, below, ever)
    yes, no = code.at("output", 4), code.at("output", 5)
    code.steps(1, {code.at(ever): 1.0, code.at(uneven): 1.0}, [bar], [{no: 2.0, yes: -2.0}])
    code.steps(1, {code.at("one"): 1.0}, [0.5], [{yes: 1.0, no: -1.0}])

    def draw(rng: random.Random, length: int) -> tuple[str, str, str, str]:
        good = _balanced(rng, length)
        place = rng.randrange(len(good))
        bad = [{"(": ")", ")": "("}[sign] if at == place else sign for at, sign in enumerate(good)]
        return _text([*good, "|"]), _text([*bad, "|"]), "yes", "no"

    return Program("brackets", code.model(), (depth_head, any_head), ("mlp_out.0", "mlp_out.1"), draw)


def _balanced(rng: random.Random, pairs: int) -> list[str]:
    open_, depth, out = pairs, 0, []
    while open_ or depth:
        if open_ and (depth == 0 or rng.random() < 0.5):
            out.append("(")
            open_, depth = open_ - 1, depth + 1
        else:
            out.append(")")
            depth -= 1
    return out


def _text(words: list[str]) -> str:
    return " ".join(["^", *words])


PROGRAMS: dict[str, Callable[[], Program]] = {
    made.__name__: made for made in (previous, reverse, count, most_frequent, brackets)
}
