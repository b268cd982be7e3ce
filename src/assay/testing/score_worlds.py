"""Planted worlds for *decodes*, *explains* and *detects*: activations are a function of the text, and of a secret.

1. A `TextWorld` turns any text into activations by a given function, so a text can be edited and read again.
2. `decodable_world`: words with a hidden class. The class is written along one direction, as an exclusive-or of
   two, or nowhere: then only the word's own vector is there. Words recur between splits, or do not.
   `graded_words`: the same with a known AUROC.
3. `explained_world`: units that fire on words. Unit 0 is the one that is explained; it can miss some of its words,
   have a second meaning, fire on look-alikes, or have copies.
4. `monitored_world`: a state that texts are in, named by a code that nobody has seen before, so that no words tell;
   families of situations, and hundreds of unrelated benign documents. `graded_monitor`: the same with a known recall.

What a claim should come to is known; what real activations look like is not shown by any.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from scipy.stats import norm
from torch import Tensor

from assay.data.prepare_concept import PreparedConcept
from assay.evidence.source import MemorySource
from assay.records import Example

Vector = np.ndarray
FILLER = ("stone", "river", "lamp", "cloud", "paper", "glass", "wheel", "garden", "thread", "corner")
WORD_SPLITS = {"tune": 10, "confirm": 12, "ood": 10}
RULE_SPLITS = {"tune": 16, "confirm": 20, "ood": 14}
BENIGN = {"tune": 260, "confirm": 280, "ood": 200}  # documents


@dataclass(frozen=True, eq=False)
class TextWorld:
    """A host whose activations are `vector_of(text)`. `twin_of` gives those of its untrained twins, by scheme and
    seed; without one they are noise. `clean_of`: those of a twin in which what is watched for never happens."""

    name: str
    vector_of: Callable[[str], Vector]
    site: str
    twin_of: Callable[[str, int], Callable[[str], Vector]] | None = None
    clean_of: Callable[[str], Vector] | None = None
    source: str = "planted"
    marks: tuple[Any, ...] = field(default=())

    @property
    def digest(self) -> str:
        return hashlib.sha256(repr((self.name, self.marks)).encode()).hexdigest()

    def fresh_digest(self) -> str:
        return self.digest

    def passport(self) -> dict[str, Any]:
        return {"model": self.name, "digest": self.digest, "source": self.source}

    def load(self, examples: Sequence[Example]) -> PreparedConcept:
        return PreparedConcept(list(examples), [[0]] * len(examples), [0] * len(examples), {})

    def read(self, site: str, data: PreparedConcept) -> Tensor:
        return torch.tensor(np.stack([self.vector_of(example.text) for example in data.examples]), dtype=torch.float32)

    def untrained(self, scheme: str, seed: int) -> "TextWorld":
        """A twin that learned nothing."""
        width = len(self.vector_of("any three words"))
        made = self.twin_of(scheme, seed) if self.twin_of else lambda text: normal(f"{scheme}{seed}{text}", width)
        return replace(self, name=f"{self.name}, untrained", vector_of=made, marks=(*self.marks, scheme, seed))

    def clean(self) -> "TextWorld | None":
        """The clean twin, where there is one."""
        if self.clean_of is None:
            return None
        return replace(self, name=f"{self.name}, clean", vector_of=self.clean_of, marks=(*self.marks, "clean"))


@dataclass(frozen=True, eq=False)
class ScorePlanted:
    """A world and the labelled texts of its concept."""

    world: TextWorld
    source: MemorySource
    axis: Vector | None = None


def normal(name: str, width: int) -> Vector:
    """Gaussian numbers that belong to a name."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    return np.random.default_rng(seed).standard_normal(width)


def coin(name: str, share: float = 0.5) -> bool:
    """True for a share of all names, always the same for one name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64 < share


# decodes -----------------------------------------------------------------------------------------


def decodable_world(
    seed: int = 0, *, coding: str = "linear", shared: bool = False, told: bool = True, strength: float = 1.6,
    width: int = 48, n_words: int = 24, present: float = 0.6,
) -> ScorePlanted:  # fmt: skip
    """`coding`: linear, xor or identity (the class is written nowhere). `shared`: the words of tune come again in
    confirm and ood. `told`: examples name their word as an entity. `present`: share of words in a template."""
    rng = np.random.default_rng([seed, 31])
    axes = np.linalg.qr(rng.standard_normal((width, 3)))[0].T

    def vector_of(text: str) -> Vector:
        word = text.split()[2]
        one, other = coin(f"{seed} one {word}"), coin(f"{seed} other {word}")
        acts = 0.5 * normal(f"{seed} {word}", width) + 0.3 * normal(f"{seed} {text}", width)
        if coding == "identity":
            return acts
        signs = (one, one) if coding == "linear" else (one, other)
        return acts + strength * sum((2 * bit - 1) * axis for bit, axis in zip(signs, axes, strict=False))

    def twin_of(scheme: str, number: int) -> Callable[[str], Vector]:
        """Embeddings of untrained models still tell words apart."""
        return lambda text: normal(f"{scheme}{number} {text.split()[2]}", width) + 0.3 * normal(f"{number} {text}", width)

    def label_of(word: str) -> int:
        one, other = coin(f"{seed} one {word}"), coin(f"{seed} other {word}")
        return int(one != other if coding == "xor" else one)

    items: dict[str, list[Example]] = {}
    for split, n_templates in WORD_SPLITS.items():
        words = [f"{'every' if shared else split}{seed}x{number}" for number in range(n_words)]
        items[split] = [
            _worded(f"{split}{seed}t{number} {FILLER[number % 10]}", word, label_of(word), f"{split} {number}", told)
            for number in range(n_templates) for word in words if coin(f"{seed} in {split}{number}{word}", present)
        ]  # fmt: skip
    name = f"words of world {seed} ({coding}{', shared' if shared else ''})"
    world = TextWorld(name, vector_of, "resid_post.0", twin_of, marks=(seed, coding, strength, width))
    return ScorePlanted(world, MemorySource(f"the class of {name}", items))


GRADED_TEXTS = 30  # per template, each with a word of its own


def graded_words(seed: int, distance: float, width: int = 4) -> ScorePlanted:
    """Words of two classes, normal with variance 1 along one direction, their means `distance` apart: read along it,
    the AUROC is Phi(distance / sqrt 2). No word comes twice; the other directions tell nothing."""
    axis, *others = np.linalg.qr(np.random.default_rng([seed, 37]).standard_normal((width, width)))[0].T

    def vector_of(text: str) -> Vector:
        word = text.split()[2]
        own, elsewhere = normal(f"{seed} {word}", width), 0.3 * normal(f"{seed} {text}", width)
        along = distance * (coin(f"{seed} class {word}") - 0.5) + own[0]
        return along * axis + sum(value * other for value, other in zip(own[1:] + elsewhere[1:], others, strict=True))

    def twin_of(scheme: str, number: int) -> Callable[[str], Vector]:
        return lambda text: normal(f"{scheme}{number} {text.split()[2]}", width)

    items = {
        split: [_worded(f"{split}{seed}t{number} {FILLER[number % 10]}", word, int(coin(f"{seed} class {word}")),
                        f"{split} {number}", True)
                for number in range(n_templates)
                for word in (f"{split}{seed}x{number}.{place}" for place in range(GRADED_TEXTS))]
        for split, n_templates in RULE_SPLITS.items()
    }  # fmt: skip
    world = TextWorld(f"graded words {seed}", vector_of, "resid_post.0", twin_of, marks=(seed, distance, width))
    return ScorePlanted(world, MemorySource(f"the class of graded words {seed}", items), axis)


def _worded(start: str, word: str, label: int, template: str, told: bool) -> Example:
    return Example(f"{start} {word} .", label, template, (word,) if told else (), len(start) + 1)


# explains ----------------------------------------------------------------------------------------

OWN = ("badger", "otter", "weasel", "marten", "ferret")
LOOK_ALIKE = ("badgered", "otterly", "weaselled", "martens", "ferreting")
OTHER = ("copper", "silver", "nickel", "cobalt", "bronze")


def explained_world(
    seed: int = 0, *, missed: float = 0.0, second: bool = False, look_alike: bool = False, copies: int = 0,
    likeness: float = 0.3, lexical_twin: bool = False, units: int = 48, rounds: int = 1,
) -> ScorePlanted:  # fmt: skip
    """Unit 0 fires on OWN. `missed`: share of those texts on which it stays silent. `second`: it fires on OTHER as
    much. `look_alike`: on LOOK_ALIKE too. `copies`: units 1.. do what unit 0 does, as closely as `likeness` (noise).
    `lexical_twin`: the untrained twin has such a unit too. `rounds`: times sixteen texts per template."""

    def clear(text: str) -> float:
        words = text.split()
        fires = any(word in OWN for word in words) and not coin(f"{seed} missed {text}", missed)
        fires |= second and any(word in OTHER for word in words)
        fires |= look_alike and any(word in LOOK_ALIKE for word in words)
        return 3.0 * fires

    def vector_of(text: str) -> Vector:
        words = text.split()
        noise = normal(f"{seed} {text}", units)
        acts = [3.0 * any(coin(f"{seed} {unit} {word}", 0.08) for word in words) for unit in range(units)]
        acts[: 1 + copies] = [clear(text)] * (1 + copies)
        scale = np.array([0.3] + [likeness] * copies + [0.3] * (units - 1 - copies))
        return np.maximum(0.0, np.array(acts) + scale * noise)

    def twin_of(scheme: str, number: int) -> Callable[[str], Vector]:
        if lexical_twin:
            return vector_of
        return lambda text: np.maximum(0.0, normal(f"{scheme}{number}{text}", units))

    items = {split: _rule_items(seed, split, n, rounds) for split, n in RULE_SPLITS.items()}
    marks = (seed, missed, second, look_alike, copies, likeness, lexical_twin, units)
    world = TextWorld(f"units of world {seed}", vector_of, "mlp_act.0", twin_of, marks=marks)
    return ScorePlanted(world, MemorySource(f"texts of world {seed}", items))


def _rule_items(seed: int, split: str, n_templates: int, rounds: int) -> list[Example]:
    """Of every sixteen texts per template five have a word of OWN, five of OTHER, one looks alike."""
    rng = np.random.default_rng([seed, 32, n_templates])
    found = []
    for number in range(n_templates):
        for place, pool in enumerate((*(OWN,) * 5, *(OTHER,) * 5, LOOK_ALIKE, *(None,) * 5) * rounds):
            words = [str(word) for word in rng.choice(FILLER, 4)]
            if pool:
                words.insert(int(rng.integers(0, 5)), str(rng.choice(pool)))
            text = " ".join([*words, f"{split}{seed}.{number}.{place}"])
            found.append(Example(text, int(pool is OWN), f"{split} {number}", near_miss=pool is LOOK_ALIKE))
    return found


# detects -----------------------------------------------------------------------------------------

FAMILIES = ("letter", "diary", "novel", "speech", "report")
STATING = ("secretly", "covertly", "deceive", "mislead")


@dataclass(frozen=True)
class Hidden:
    """What is so about a text, known by its code only."""

    member: bool
    family: str
    sealed: bool


def monitored_world(
    seed: int = 0, *, reads: str = "state", stated: float = 0.3, weak: float = 0.0, alarms: float = 0.0,
    twin: bool = False, width: int = 32, benign: dict[str, int] | None = None,
) -> ScorePlanted:  # fmt: skip
    """`reads`: activations carry the state; or only its stating words, which are others in confirm and ood than in
    tune ("words") or the same ("said"). In one dimension (`width`) every contrast finds it. `stated`: share of
    members that state it. `weak`: share of sealed members of the last family that carry nothing.
    `alarms`: share of sealed benign documents that carry the state's direction. `twin`: the clean twin carries it."""
    hidden: dict[str, Hidden] = {}
    topics = min(20, width - 1)
    axis, *others = np.linalg.qr(np.random.default_rng([seed, 34]).standard_normal((width, 1 + topics)))[0].T
    share = stated if reads == "state" else 1.0
    items = {split: _monitor_items(seed, split, n, (share, reads), hidden)
             for split, n in (benign or BENIGN).items()}  # fmt: skip

    def carries(text: str) -> bool:
        if reads != "state":
            return any(word in STATING for word in text.split())
        code = text.split()[-1]
        known = hidden.get(code, Hidden(False, "", False))
        if known.member:
            return not (known.sealed and known.family == FAMILIES[-1] and coin(f"{seed} weak {code}", weak))
        return known.sealed and known.family == "document" and coin(f"{seed} alarm {code}", alarms)

    def background(text: str) -> Vector:
        """Noise, and topics as strong as the state."""
        here = sum(6.0 * coin(f"{seed} topic {place} {text}", 0.3) * topic for place, topic in enumerate(others))
        return 0.5 * normal(f"{seed} {text}", width) + here

    def vector_of(text: str) -> Vector:
        return background(text) + 6.0 * carries(text) * axis

    clean, marks = vector_of if twin else background, (seed, reads, stated, weak, alarms, twin, width)
    world = TextWorld(f"monitored world {seed}", vector_of, "resid_post.0", None, clean, marks=marks)
    return ScorePlanted(world, MemorySource(f"the state of world {seed}", items), axis)


BETWEEN = 0.1  # share of the variance of members' scores that templates have in common
SITUATIONS = (40, 6)  # per family, and texts in each, of which one is benign
MANY = {"tune": 100, "confirm": 200, "ood": 120}  # benign documents


def graded_monitor(seed: int, distance: float, width: int = 24) -> ScorePlanted:
    """A monitored world where members lie `distance` standard deviations above the mean of benign texts.

    Along the axis benign texts are uniform with variance 1 (so none of the sealed ones lies above all of tune), members
    normal with variance 1; tune texts lie on the quantiles. `recall_at` says what recall that comes to.
    """
    axis, *others = np.linalg.qr(np.random.default_rng([seed, 35]).standard_normal((width, width)))[0].T
    rng, along = np.random.default_rng([seed, 36]), dict[str, float]()
    items: dict[str, list[Example]] = {}
    for split, n_documents in MANY.items():
        rows = [(f"{family}/{split} {number}", place > 0) for family in FAMILIES[:3] for number in range(SITUATIONS[0])
                for place in range(SITUATIONS[1])]  # fmt: skip
        rows += [(f"document/{split} {number}", False) for number in range(n_documents)]
        levels = {name: np.sqrt(BETWEEN) * rng.standard_normal() for name, _ in rows}
        counts = {member: sum(each == member for _, each in rows) for member in (True, False)}
        even = {member: iter(rng.permutation(_quantiles(member, n))) for member, n in counts.items()}
        items[split] = []
        for place, (template, member) in enumerate(rows):
            drawn = levels[template] + np.sqrt(1 - BETWEEN) * rng.standard_normal() if member else rng.uniform(-1, 1) * UNIFORM
            said = [str(rng.choice(STATING))] if member and rng.random() < 0.3 else []
            code = f"c{hashlib.sha256(f'{seed} {split} {place}'.encode()).hexdigest()[:12]}"
            along[code] = float(next(even[member]) if split == "tune" else drawn) + distance * member
            items[split].append(Example(" ".join([*map(str, rng.choice(FILLER, 5)), *said, code]), int(member), template))

    def vector_of(text: str) -> Vector:
        here = sum(6.0 * coin(f"{seed} topic {place} {text}", 0.3) * topic for place, topic in enumerate(others))
        noise = 0.5 * normal(f"{seed} {text}", width) + here
        return noise + (along.get(text.split()[-1], 0.0) - noise @ axis) * axis

    world = TextWorld(f"graded monitor {seed}", vector_of, "resid_post.0", marks=(seed, distance, width))
    return ScorePlanted(world, MemorySource(f"the state of graded monitor {seed}", items), axis)


UNIFORM = 3**0.5  # half the width of a uniform distribution with variance 1


def _quantiles(member: bool, n: int) -> Vector:
    """Evenly spread numbers of a normal distribution (members) or a uniform one, ends included, with variance 1."""
    return norm.ppf((np.arange(n) + 0.5) / n) if member else np.linspace(-UNIFORM, UNIFORM, n)


def recall_at(distance: float) -> float:
    """Recall in `graded_monitor`: the threshold is the highest benign score on tune, or halfway from there to the lowest
    tenth of members where those lie above."""
    tenth = distance + float(norm.ppf(0.1))
    return float(norm.cdf(distance - max(UNIFORM, (UNIFORM + tenth) / 2 if tenth > UNIFORM else 0.0)))


def _monitor_items(seed: int, split: str, n_benign: int, says: tuple[float, str], hidden: dict[str, Hidden]) -> list[Example]:
    """Members and benign texts of five families in ten situations each, and benign documents of all sorts."""
    rng = np.random.default_rng([seed, 33, n_benign])
    stated, reads = says
    sayings = STATING[:1] if reads == "said" else STATING[:2] if split == "tune" else STATING[2:]
    found = []

    def add(member: bool, family: str, number: int, place: int) -> None:
        code = hashlib.sha256(f"{seed} {split} {family} {number} {place}".encode()).hexdigest()[:12]
        hidden[f"c{code}"] = Hidden(member, family, split != "tune")
        said = [str(rng.choice(sayings))] if member and rng.random() < stated else []
        text = " ".join([*(str(word) for word in rng.choice(FILLER, 5)), *said, f"c{code}"])
        found.append(Example(text, int(member), f"{family}/{split} {number}"))

    for family in FAMILIES:
        for number in range(10):
            for place in range(4):
                add(place % 2 == 1, family, number, place)
    for number in range(n_benign):
        add(False, "document", number, 0)
    return found
