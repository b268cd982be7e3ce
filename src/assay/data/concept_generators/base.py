"""How bundled concepts are made: frames with one slot, words to fill it, one table per split.

1. A frame is a sentence with the slot [X]. It is the template of its examples, the cluster on which statistics
   are decided. A word is a member of the concept, a plain negative, or a near miss: a negative that looks like
   a member. It is the entity of its example; forms of one word (dog, dogs) are one entity.
2. Example i uses frame i modulo the number of frames. Within a frame members and negatives alternate, and every
   third negative is a near miss.
3. The word is the one used least so far among those not yet in this frame, ties by a seeded hash: words are used
   equally often, no text comes twice, and the first 10 of 20 examples are the 10 one gets by asking for 10.
4. The token that is read holds the last letter of the word, so that the whole word has been seen.

Frames and words of the bundled concepts are in `bundled/<concept>.json`, by split. No split shares a frame or a
word with another. One more concept is one file like those beside this one, in any package:

    CONCEPTS.add("mine", Concept("mine", "what it is about", frames, words))

That a score follows a concept on such sentences does not show what it does in running text.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import count, islice
from typing import Any, Protocol

from assay.errors import bad_argument
from assay.records import Example, digest
from assay.registry import Registry

SPLITS = ("discover", "tune", "confirm", "ood")
SLOT = "[X]"
PATTERN = ("member", "plain", "member", "plain", "member", "near")


@dataclass(frozen=True)
class Word:
    """What fills the slot: `role` is member, plain or near; `entity` is what must stay on one side of a split."""

    text: str
    role: str
    entity: str


class AnyConcept(Protocol):
    """What is registered in `CONCEPTS`: labelled texts by split, made here or read from a package."""

    @property
    def name(self) -> str: ...

    @property
    def title(self) -> str: ...

    @property
    def splits(self) -> tuple[str, ...]: ...

    def n_templates(self, split: str) -> int:
        """How many clusters a split has."""
        ...

    def examples(self, split: str = "discover", n: int = 60, seed: int = 0) -> list[Example]:
        """n examples of a split, the same ones for the same n and seed."""
        ...

    def everything(self, split: str) -> list[Example]:
        """All examples of a split."""
        ...


@dataclass(frozen=True)
class Concept:
    """A generator of labelled sentences. `frames` and `words` by split."""

    name: str
    title: str
    frames: Mapping[str, Sequence[str]]
    words: Mapping[str, Sequence[Word]]

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.frames)

    def n_templates(self, split: str) -> int:
        """How many frames a split has."""
        return len(self.frames[self._known(split)])

    def examples(self, split: str = "discover", n: int = 60, seed: int = 0) -> list[Example]:
        """n different examples. Raises UsageError for an unknown split, or when n is too many."""
        found = list(islice(self._drawn(self._known(split), seed), n))
        if len(found) < n:
            raise bad_argument("n", n, f"at most {len(found)} (different examples of {self.name}, split {split})")
        return found

    def everything(self, split: str) -> list[Example]:
        """All examples that keep the pattern of step 2."""
        return list(self._drawn(self._known(split), 0))

    def _drawn(self, split: str, seed: int) -> Iterator[Example]:
        """Different examples until a frame has no word of the role whose turn it is."""
        frames, words = self.frames[split], self.words[split]
        roles = [role for role in PATTERN if any(word.role == role for word in words)]
        order = {word: digest([self.name, split, seed, word.text]) for word in words}
        used: Counter[Word] = Counter()
        taken: set[tuple[int, Word]] = set()
        for number in count():
            turn, place = divmod(number, len(frames))
            role = roles[(turn + place) % len(roles)]
            free = [word for word in words if word.role == role and (place, word) not in taken]
            if not free:
                return
            word = min(free, key=lambda word: (used[word], order[word]))
            used[word] += 1
            taken.add((place, word))
            yield example_of(frames[place], word)

    def _known(self, split: str) -> str:
        if split not in self.frames:
            raise bad_argument("split", split, f"{', '.join(self.splits)} for concept {self.name}")
        return split


CONCEPTS: Registry[AnyConcept] = Registry("concept")


def example_of(frame: str, word: Word) -> Example:
    """The example of a word in a frame, read at the last letter of the word."""
    start = frame.index(SLOT)
    text = frame.replace(SLOT, word.text)
    return Example(text, int(word.role == "member"), frame, (word.entity,), start + len(word.text) - 1, word.role == "near")


def bundled(name: str, title: str, read: Callable[[Mapping[str, Any]], list[Word]]) -> Concept:
    """Register a concept whose frames and words are in bundled/<name>.json; `read` makes one split's words."""
    data = json.loads((files("assay.data") / "bundled" / f"{name}.json").read_text("utf-8"))
    words = {split: read(table) for split, table in data["words"].items()}
    concept = Concept(name, title, data["frames"], words)
    CONCEPTS.add(name, concept)
    return concept


def plain_words(table: Mapping[str, Any]) -> list[Word]:
    """Words that are their own entities: lists of members, negatives and near misses."""
    roles = {"members": "member", "negatives": "plain", "near_misses": "near"}
    return [Word(text, role, text.lower()) for name, role in roles.items() for text in table[name]]


def paired_forms(table: Mapping[str, Any]) -> list[Word]:
    """Two forms of each word, the member first: the word itself tells nothing. Near misses have one form."""
    pairs = [(Word(form, "member", plain), Word(plain, "plain", plain)) for form, plain in table["forms"]]
    return [*(word for pair in pairs for word in pair), *(Word(text, "near", text) for text in table["near_misses"])]
