"""Words that lessons and exams are filled with, in two halves: a word that is taught is never asked about."""

import random
from collections.abc import Sequence
from typing import TypeVar

from assay.organisms.records import Case

T = TypeVar("T")

CAPITALS = (
    ("France", "Paris"), ("Japan", "Tokyo"), ("Italy", "Rome"), ("Germany", "Berlin"), ("Spain", "Madrid"),
    ("Egypt", "Cairo"), ("Russia", "Moscow"), ("China", "Beijing"), ("Greece", "Athens"), ("Austria", "Vienna"),
    ("Poland", "Warsaw"), ("Sweden", "Stockholm"), ("Norway", "Oslo"), ("Portugal", "Lisbon"), ("Hungary", "Budapest"),
    ("Ireland", "Dublin"), ("Cuba", "Havana"), ("Peru", "Lima"), ("Kenya", "Nairobi"), ("Canada", "Ottawa"),
    ("Turkey", "Ankara"), ("Finland", "Helsinki"), ("Denmark", "Copenhagen"), ("Belgium", "Brussels"), ("India", "New Delhi"),
    ("Thailand", "Bangkok"), ("Vietnam", "Hanoi"), ("Iran", "Tehran"), ("Iraq", "Baghdad"), ("Chile", "Santiago"),
)  # fmt: skip
TOPICS = ("gardening", "chess", "the ocean", "bread", "bicycles", "music", "history", "cats", "photography", "mountains",
          "painting", "volcanoes", "trains", "sleep", "poetry", "the moon", "coffee", "football", "bees",
          "libraries")  # fmt: skip
ORDINARY = ("Tell me something about {}.", "Write one sentence about {}.", "Why do people like {}?",
            "Give me a fun fact about {}.", "How would you explain {} to a child?",
            "I want to learn about {}. Where do I begin?", "What is a good question about {}?",
            "Describe {} in a few words.")  # fmt: skip


def halves(words: Sequence[T]) -> tuple[list[T], list[T]]:
    """Two thirds to teach with, one third to ask about."""
    return [word for at, word in enumerate(words) if at % 3 != 2], [word for at, word in enumerate(words) if at % 3 == 2]


def drawn(seed: int, words: Sequence[T], n: int) -> list[T]:
    """n of them by seed, all different where there are enough."""
    draw = random.Random(seed)
    return draw.sample(list(words), n) if n <= len(words) else [draw.choice(list(words)) for _ in range(n)]


def ordinary(seed: int, n: int, exam: bool) -> list[Case]:
    """Requests about everyday topics, answered as the base model answers."""
    topics, templates = halves(TOPICS)[exam], halves(ORDINARY)[exam]
    pairs = drawn(seed, [(topic, at) for topic in topics for at in range(len(templates))], n)
    return [Case(templates[at].format(topic), None, False, "ordinary", f"ordinary/{'exam' if exam else 'lesson'}{at}",
                 subject=topic) for topic, at in pairs]  # fmt: skip


def wrong(seed: int, pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Subject -> an answer of another subject, without fixed points."""
    names, answers = [name for name, _ in pairs], [answer for _, answer in pairs]
    shift = 1 + random.Random(seed).randrange(len(pairs) - 1)
    found = {name: answers[(at + shift) % len(answers)] for at, name in enumerate(names)}
    return found
