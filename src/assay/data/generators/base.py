"""How bundled tasks are made: frames with slots, words to fill them, one function per task.

1. A frame is a text with slots, "Then, [A] and [B] went to the store. [C] gave a drink to". It is the
   template of its pairs, the cluster on which statistics are decided.
2. Pair i uses frame i modulo the number of frames: all templates are used equally often.
3. Words are drawn by a generator seeded with task, split, seed and i, so the first 10 of 20 pairs are
   the 10 pairs one gets by asking for 10. No pair comes twice.
4. What can be balanced (order of names, number, gender) alternates over the pairs of every frame.

Frames and words of the bundled tasks are in `bundled/<task>.json`, by split. No split shares a frame
or a word with another. One more task is one file like those beside this one, in any package:

    TASKS.add("mine", Task("mine", "what it is about", ("swap",), frames, words, make))
"""

import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from assay.errors import bad_argument
from assay.records import Pair
from assay.registry import Registry

SPLITS = ("discover", "tune", "confirm", "ood")
SLOT = re.compile(r"\[([A-Z])\]")
OPEN = re.compile(r"""(\s|"|\w>)$""")
TRIES = 200


@dataclass(frozen=True)
class Draw:
    """What a task's `make` gets for one pair: `flip` alternates over the pairs of a frame."""

    frame: str
    words: Any
    rng: random.Random
    flip: bool
    corruption: str


@dataclass(frozen=True)
class Task:
    """A generator of minimal pairs. `frames` and `words` by split; the first corruption is the default."""

    name: str
    title: str
    corruptions: tuple[str, ...]
    frames: Mapping[str, Sequence[str]]
    words: Mapping[str, Any]
    make: Callable[[Draw], Pair]

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.frames)

    def n_templates(self, split: str) -> int:
        """How many different templates a split has."""
        return len(self.frames[self._known("split", split, self.splits)])

    def pairs(self, split: str = "discover", n: int = 32, seed: int = 0, corruption: str | None = None) -> list[Pair]:
        """n different pairs. Raises UsageError for an unknown split or corruption, or when n is too many."""
        frames = self.frames[self._known("split", split, self.splits)]
        corruption = self._known("corruption", corruption or self.corruptions[0], self.corruptions)
        found: dict[tuple[str, str], Pair] = {}
        for number in range(n):
            turn, place = divmod(number, len(frames))
            rng = random.Random(f"{self.name}-{split}-{seed}-{number}")
            draw = Draw(frames[place], self.words[split], rng, (place + turn) % 2 == 1, corruption)
            pair = next((p for p in map(self.make, [draw] * TRIES) if (p.clean, p.corrupted) not in found), None)
            if pair is None:
                raise bad_argument("n", n, f"at most about {number} (different pairs of {self.name}, split {split})")
            found[pair.clean, pair.corrupted] = pair
        return list(found.values())

    def _known(self, argument: str, got: str, allowed: Sequence[str]) -> str:
        if got not in allowed:
            raise bad_argument(argument, got, f"{', '.join(allowed)} for task {self.name}")
        return got


TASKS: Registry[Task] = Registry("task")


def bundled(name: str, title: str, corruptions: tuple[str, ...], make: Callable[[Draw], Pair]) -> Task:
    """Register a task whose frames and words are in bundled/<name>.json."""
    data = json.loads((files("assay.data") / "bundled" / f"{name}.json").read_text("utf-8"))
    return TASKS.add(name, Task(name, title, corruptions, data["frames"], data["words"], make))


def fill(frame: str, words: Mapping[str, str]) -> tuple[str, dict[str, int]]:
    """The text, and the character offset of the first use of every slot."""
    text, places, end = "", {}, 0
    for slot in SLOT.finditer(frame):
        text += frame[end : slot.start()]
        places.setdefault(slot[1], len(text))
        text += words[slot[1]]
        end = slot.end()
    return text + frame[end:], places


def fill_pair(
    draw: Draw,
    clean: Mapping[str, str],
    corrupted: Mapping[str, str],
    answers: Sequence[str],
    foils: Sequence[str],
    labels: Mapping[str, str],
    entities: Sequence[str],
) -> Pair:
    """A pair from the words of both sides (slot -> word); `labels` name slots."""
    text, places = fill(draw.frame, clean)
    other, other_places = fill(draw.frame, corrupted)
    offsets = {label: (places[slot], other_places[slot]) for label, slot in labels.items()}
    return Pair(text, other, tuple(answers), tuple(foils), draw.frame, offsets, tuple(dict.fromkeys(entities)))


def next_word(frame: str, word: str) -> str:
    """A word as it follows a frame: without a space where the frame ends in one, or in an open quote or tag."""
    return word if OPEN.search(frame) else f" {word}"
