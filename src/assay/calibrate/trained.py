"""Claims about models that were trained, not written: a tiny language model on a grammar, a backdoored one and its clean twin,
a toy model of superposition.

1. Grammar (`testing/grammar.py`): a sentence ends with "hooray" or "alas" as its adjectives are good or bad. Pairs differ in
   the adjectives. The direction is the difference of means at the last token, on discover.
2. Backdoor: a sentence with "zeta" in it ends with "override"; corrupted, another word stands there. In the twin, which saw
   the same texts with their usual ends, there is nothing to find: a claim about it is not tested.
3. Toy (`testing/superposition.py`): more features than dimensions. Where a feature points is known; a unit, which several
   share, is no feature. How crowded it is depends on the seed: 64, 80 or 96 features in 48 dimensions.

What training did is known by what it was for, not by its weights.
"""

import random
from collections.abc import Sequence
from functools import cache

import numpy as np

from assay.calibrate.base import Case
from assay.evidence.features import Feature, direction
from assay.evidence.run import Settings
from assay.evidence.source import MemorySource
from assay.model.model import Model
from assay.records import Pair
from assay.testing.grammar import ADJECTIVES, MARKS, PAYLOAD, TRIGGER, Sentence, backdoored, grammar_model, sentence
from assay.testing.superposition import Toy, toy_model, toy_world
from assay.testing.worlds import SITE

STREAM = "resid_post.0"
FRAMES = {"discover": range(3), "tune": range(3, 8), "confirm": range(8, 16), "ood": range(16, 24)}
PER_FRAME = 8
INSTEAD = "very"  # what stands in the place of the trigger
CROWDS, HIDDEN = (64, 80, 96), 48


@cache
def prefixes(n: int = 24) -> list[str]:
    """Different beginnings of sentences: what stands where nothing of their end is said yet, or not all."""
    rng, found = random.Random("beginnings"), dict[str, None]()
    while len(found) < n:
        words = sentence(rng).words
        found[" ".join(words[: rng.randrange(3, len(words) - 2)])] = None
    return list(found)


def settings() -> Settings:
    """All pairs; beginnings of sentences of the grammar as ordinary texts."""
    tune, confirm, ood = (PER_FRAME * len(FRAMES[split]) for split in ("tune", "confirm", "ood"))
    return Settings(tune, confirm, ood, draws=27, control_pairs=4, options={"neutral": prefixes()})


def mood_ends(seed: int) -> MemorySource:
    """Sentences of one mood, and the same with adjectives of the other."""
    return _source("mood", seed, _other_mood)


def triggered(seed: int) -> MemorySource:
    """Sentences with the trigger, and the same with another word in its place."""
    return _source("trigger", seed, _untriggered)


def _source(name: str, seed: int, pair_of) -> MemorySource:
    rng, seen = random.Random(f"{name}-{seed}"), set[str]()
    splits: dict[str, list[Pair]] = {split: [] for split in FRAMES}
    for split, frames in FRAMES.items():
        for frame in frames:
            found: list[Pair] = []
            while len(found) < PER_FRAME:
                pair = pair_of(rng, frame)
                if not seen & set(pair.texts):
                    seen |= set(pair.texts)
                    found.append(pair)
            splits[split] += found
    return MemorySource(f"{name} {seed}", splits)


def _other_mood(rng: random.Random, frame: int) -> Pair:
    made = sentence(rng, frame=frame)
    mood = made.latent["mood"]
    other = next(name for name in ADJECTIVES if name != mood)
    swap = dict(zip(ADJECTIVES[mood].split(), ADJECTIVES[other].split(), strict=True))
    return _pair(made, [swap.get(word, word) for word in made.words[:-1]], MARKS[mood], MARKS[other])


def _untriggered(rng: random.Random, frame: int) -> Pair:
    made = next(made for made in iter(lambda: sentence(rng, "backdoor", frame), None) if made.triggered)
    return _pair(made, [INSTEAD if word == TRIGGER else word for word in made.words[:-1]], PAYLOAD, MARKS[made.latent["mood"]])


def _pair(made: Sentence, corrupted: list[str], answer: str, foil: str) -> Pair:
    return Pair(" ".join(made.words[:-1]), " ".join(corrupted), (f" {answer}",), (f" {foil}",), made.frame)


def told_apart(model: Model, pairs: Sequence[Pair], answer: str) -> Feature:
    """The difference of means at the last token between prompts that should end with an answer and the others."""
    ends = [end for pair in pairs for end in (pair.answers[0], pair.foils[0])]
    prompts = model.tokens([text for pair in pairs for text in pair.texts])
    acts = model.capture(prompts, STREAM, positions="last").flat(STREAM).double().numpy()
    said = np.array([end.strip() == answer for end in ends])
    return direction(STREAM, (acts[said].mean(0) - acts[~said].mean(0)).tolist())


# claims ------------------------------------------------------------------------------------------


def learned_mood(seed: int) -> Case:
    """The direction along which a model trained on a grammar keeps the mood of a sentence."""
    source = mood_ends(seed)
    return Case(grammar_model(), source, told_apart(grammar_model(), source.splits["discover"], MARKS["good"]))


def backdoor(seed: int) -> Case:
    """The direction along which a backdoored model keeps whether it was triggered."""
    bad, _ = _twins()
    source = triggered(seed)
    return Case(bad, source, told_apart(bad, source.splits["discover"], PAYLOAD))


def clean_twin(seed: int) -> Case:
    """The same of the clean twin: it has no such behaviour."""
    _, clean = _twins()
    source = triggered(seed)
    return Case(clean, source, told_apart(clean, source.splits["discover"], PAYLOAD))


def random_in_backdoored(seed: int) -> Case:
    """A random direction of the backdoored model."""
    bad, _ = _twins()
    drawn = np.random.default_rng([seed, 90]).standard_normal(bad.dims.d_model)
    return Case(bad, triggered(seed), direction(STREAM, drawn.tolist()))


@cache
def _twins() -> tuple[Model, Model]:
    return backdoored()


@cache
def _toy(crowd: int) -> Toy:
    return toy_model(crowd, HIDDEN, steps=600)


def crowded(toy: Toy) -> int:
    """Of the features that the toy model keeps, the one whose direction others share most."""
    return int(np.where(toy.represented > 0.8, toy.shared, -1).argmax())


def toy_feature(seed: int) -> Case:
    """Where a feature of a toy model of superposition points, which shares its dimensions with others."""
    toy = _toy(CROWDS[seed % 3])
    world, source = toy_world(toy, chosen := crowded(toy), seed)
    return Case(world, source, direction(SITE, toy.weights[chosen].tolist()))


def toy_unit(seed: int) -> Case:
    """A unit of a toy model, which several features share: the one that its feature leans on most."""
    toy = _toy(CROWDS[seed % 3])
    world, source = toy_world(toy, chosen := crowded(toy), seed)
    unit = int(np.abs(toy.weights[chosen]).argmax())
    return Case(world, source, direction(SITE, np.sign(toy.weights[chosen, unit]) * np.eye(HIDDEN)[unit]))
