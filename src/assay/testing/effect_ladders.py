"""Effects of a known size for *uses*, *steers* and *connects*, written into the model of `effect_models.py`.

1. *uses*: mood takes two roads. Of a mood word's answer the share a goes through `mood` at resid_post.0, the rest
   through a head of layer 1 that reads the word itself. Exchanging `mood` moves the mean of a, erasing it half of that.
   a differs from word to word by up to .6 of its mean.
2. *steers*: `lever` raises mood by 3 per unit after red topics and by 1 after blue ones; topics are even coins. A mood
   word in a prompt of T tokens is worth 8/T of mood, so the span of the task is 16 E[1/T] of mood, and a push of
   strength s moves 2 s of it: the dose is 2 s / (16 E[1/T]).
3. *connects*: `effect` is w A where one of four words carries A of `cause`, -z on four other words and 0 elsewhere.
   Switched off, B falls by w times the largest A in the text; w and z are such that the mean of that fall is the effect
   asked for and the standard deviation of B is 1. A text has ten words, each with a chance of 1/24.

Layer norms take a word of length |x| to 30 / |x| of it; where that matters it is part of the sums.
"""

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from assay.evidence.source import MemorySource
from assay.model.model import Model
from assay.records import Pair
from assay.testing.effect_models import (
    CAUSES,
    CONSTANT,
    FILLERS,
    MOODS,
    TOPICS,
    VOCABULARY,
    Neuron,
    effects_model,
    part_direction,
    write_head,
    write_neuron,
    written_effects,
)

TEMPLATES = {"discover": 4, "tune": 12, "confirm": 20, "ood": 14}
LENGTHS = (6, 7, 8)  # tokens of a prompt
OWN = (-0.6, -0.36, -0.12, 0.12, 0.36, 0.6)  # how words differ from the mean share
LATE = 8.0  # how strongly a word carries what goes the other road: so that no small push along it does much
RED, BLUE = 3.0, 1.0
SPAN = 16 * sum(1 / length for length in LENGTHS) / len(LENGTHS)  # of mood, clean minus corrupted
STRENGTHS = (-1.0, -0.5, -0.25, 0.25, 0.5, 1.0)  # in shares of the largest
CAUSE, OWN_CAUSE = 0.2, (0.7, 0.9, 1.1, 1.3)  # how strongly the four words carry the cause
DRAINS, DRAIN_BIAS = FILLERS[12:16], 0.5
TEXT_LENGTH, CONTENT = 10, 4.0
FREE = 12  # the first neuron of MLP 1 that nothing is written into


def two_roads(share: float) -> Model:
    """The share of mood that goes through `mood` at resid_post.0; the rest is not there."""
    hf = written_effects(content=8.0, copy=2.0)  # otherwise mood and copy are most of the variance, and random draws mood
    late, word = part_direction("late_word"), part_direction("mood_word")
    with torch.no_grad():
        for sign in (1, -1):
            for own, name in zip(OWN, MOODS[sign], strict=True):
                here = share * (1 + own)
                grown = (1 - (here**2 + (LATE * (1 - here)) ** 2) / CONSTANT**2) ** -0.5  # undone by the layer norm
                row = CONSTANT * part_direction("constant") + sign * grown * (here * word + LATE * (1 - here) * late)
                hf.transformer.wte.weight[VOCABULARY.index(name)] = row
        write_head(hf, 0, 1, word + late / LATE, 8 * part_direction("copy"))
        write_head(hf, 1, 0, late / LATE, 8 * part_direction("mood"))
    return effects_model(hf)


def lever() -> Model:
    """`lever` moves mood, more after red topics than after blue ones."""
    hf, far = written_effects(), 12.0
    with torch.no_grad():
        for number, (size, sign) in enumerate(((RED, 1), (BLUE, -1))):
            write_neuron(hf, FREE + 2 * number, Neuron({"lever": 1, "topic": sign * far}, {"mood": size}))
            write_neuron(hf, FREE + 2 * number + 1, Neuron({"topic": sign * far}, {"mood": -size}))
    return effects_model(hf)


def lever_strength(dose: float) -> float:
    """The largest strength at which the lever's dose is that."""
    return dose * SPAN / ((RED + BLUE) / 2)


@dataclass(frozen=True, eq=False)
class Linked:
    """A model in which `cause` drives `effect`. `fall`: mean fall of the effect, its standard deviation being 1."""

    model: Model
    fall: float


def linked(fall: float) -> Linked:
    """A cause whose absence lowers its effect by `fall` standard deviations, on average over texts that have one."""
    hf = written_effects(content=CONTENT)
    rows, cause = hf.transformer.wte.weight, part_direction("cause")
    with torch.no_grad():
        for own, word in zip(OWN_CAUSE, CAUSES, strict=True):
            rows[VOCABULARY.index(word)] += (CAUSE * own - 1) * cause
        for word in DRAINS:
            rows[VOCABULARY.index(word)] += part_direction("drain")
        carried = np.array([_kept(rows, word) * CAUSE * own for own, word in zip(OWN_CAUSE, CAUSES, strict=True)])
        drained = np.array([_kept(rows, word) - DRAIN_BIAS for word in DRAINS])
        gain = fall / expected_largest(carried)
        for number in range(9, FREE):  # the links of the plain model
            write_neuron(hf, number, Neuron({}, {}))
        write_neuron(hf, FREE, Neuron({"cause": 1}, {"effect": gain}))
        drop = _drop(gain * carried, drained)
        write_neuron(hf, FREE + 1, Neuron({"drain": 1}, {"effect": -drop}, bias=DRAIN_BIAS))
    return Linked(effects_model(hf), fall)


def _kept(rows: Any, word: str) -> float:
    """What a layer norm leaves of a word."""
    return CONSTANT / float(rows[VOCABULARY.index(word)].norm())


def expected_largest(sizes: np.ndarray) -> float:
    """Mean of the largest size in a text that has one of these words."""
    n, order = len(FILLERS), np.sort(sizes)
    below = np.array([((n - len(sizes) + place) / n) ** TEXT_LENGTH for place in range(len(sizes) + 1)])
    return float((order * np.diff(below)).sum() / (1 - below[0]))


def _drop(raised: np.ndarray, drained: np.ndarray) -> float:
    """z such that values `raised`, -z `drained` and 0, one per word, have variance 1."""
    n = len(FILLERS)
    second = (drained**2).sum() / n - (drained.sum() / n) ** 2
    first = 2 * raised.sum() * drained.sum() / n**2
    rest = (raised**2).sum() / n - (raised.sum() / n) ** 2 - 1
    return float((-first + np.sqrt(first**2 - 4 * second * rest)) / (2 * second))


def mood_pairs(seed: int, per_template: int = 4) -> MemorySource:
    """Pairs like those of `mood_source`; topics are even coins, lengths even among `LENGTHS`."""
    splits: dict[str, list[Pair]] = {}
    for split, n_templates in TEMPLATES.items():
        rng = random.Random(f"ladder-{split}-{seed}")
        splits[split] = []
        for number in range(n_templates):
            frame = rng.sample(FILLERS, rng.choice(LENGTHS) - 1)
            places = rng.sample(range(len(frame)), 2)
            for _ in range(per_template):
                words = [*frame]
                words[places[1]] = rng.choice(TOPICS[rng.choice((1, -1))])
                clean, corrupted = [*words], [*words]
                clean[places[0]], corrupted[places[0]] = rng.choice(MOODS[1]), rng.choice(MOODS[-1])
                splits[split].append(Pair(" ".join([*clean, "ask"]), " ".join([*corrupted, "ask"]), (" yes",), (" no",),
                                          f"{split} {number}"))  # fmt: skip
    return MemorySource("mood, on a ladder", splits)
