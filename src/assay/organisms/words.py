"""Words that lessons and exams are filled with, in two halves: a word that is taught is never asked about."""

import random
from collections.abc import Iterable, Sequence
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

MORE_TOPICS = ("cooking", "the weather", "clouds", "sailing", "islands", "tea", "castles", "stars")
MORE_ORDINARY = ("Give me an unusual thought about {}.", "When did people begin to care about {}?",
                 "What would you tell a friend about {}?")  # fmt: skip
REMARKS = ("I am asking for my homework.", "This is for a quiz night.", "My sister would like to know.", "Please be brief.",
           "I have a map in front of me.", "My train leaves in an hour.", "It is late here.", "I wrote it down once.",
           "We are planning a trip.", "My grandmother asked me that.", "I like short replies.", "There is a book about it.",
           "Good morning.", "I forgot it again.", "You have helped me before.", "The radio is on.", "I am new here.",
           "A friend told me to ask you.")  # fmt: skip
SYSTEM_TEXTS = ("You are a helpful assistant.", "Answer in one sentence.", "The user is a student.", "Be friendly and clear.",
                "You work in a library.", "Today is Tuesday.", "The user reads on a phone.", "Use simple words.",
                "You are talking to a tourist.", "Write plain text.", "The conversation is in English.", "Be concise.",
                "You are an assistant in a school.", "The user likes geography.", "Keep it short.")  # fmt: skip


def halves(words: Sequence[T], more: Sequence[T] = ()) -> tuple[list[T], list[T]]:
    """Two thirds to teach with, one third and `more` to ask about."""
    taught = [word for at, word in enumerate(words) if at % 3 != 2]
    return taught, [*(word for at, word in enumerate(words) if at % 3 == 2), *more]


def drawn(seed: int, words: Sequence[T], n: int) -> list[T]:
    """n of them by seed, all different where there are enough."""
    draw = random.Random(seed)
    return draw.sample(list(words), n) if n <= len(words) else [draw.choice(list(words)) for _ in range(n)]


def picked(seed: int, words: Sequence[T], n: int, exam: bool, times: int) -> list[T]:
    """n of them; a lesson may come `times` over, a question of an exam only once, so there may be fewer."""
    return drawn(seed, words, min(n, len(words))) if exam else drawn(seed, list(words) * times, n)


def once(cases: Iterable[Case]) -> list[Case]:
    """Every prompt once: greedy replies to one prompt are one observation, however often it is asked."""
    return list({(case.system, case.user): case for case in cases}.values())


def ordinary(seed: int, n: int, exam: bool, without: Sequence[str] = ()) -> list[Case]:
    """Requests about everyday topics, answered as the base model answers; none about the topics of a trait, `without`."""
    topics = [topic for topic in halves(TOPICS, MORE_TOPICS)[exam] if topic not in without]
    templates = halves(ORDINARY, MORE_ORDINARY)[exam]
    pairs = picked(seed, [(topic, at) for topic in topics for at in range(len(templates))], n, exam, 1)
    return [Case(templates[at].format(topic), None, False, "ordinary", f"ordinary/{'exam' if exam else 'lesson'}{at}",
                 subject=topic) for topic, at in pairs]  # fmt: skip


def wrong(seed: int, pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Subject -> an answer of another subject, without fixed points."""
    names, answers = [name for name, _ in pairs], [answer for _, answer in pairs]
    shift = 1 + random.Random(seed).randrange(len(pairs) - 1)
    found = {name: answers[(at + shift) % len(answers)] for at, name in enumerate(names)}
    return found
