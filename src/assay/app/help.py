"""Word-level help, wherever a word of the glossary stands alone as a name: titles, columns, facts and fields.

1. A title, column, fact or field that has no help of its own gets it where its name is a word of the glossary, in any case,
   also in the plural or after "the".
2. In a page's summary, the first mention of each word carries its help.

Texts of models, users and claims are never searched: only what this program itself calls things.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from assay.app.blocks import Inline, term
from assay.app.terms import meanings

NAMED = {"table": ("columns", "label"), "facts": ("items", "label"), "form": ("fields", "label")}


def helped(blocks: Sequence[Any]) -> list[Any]:
    """The blocks, with help where a name is a word of the glossary."""
    return [_helped(block) for block in blocks]


def _helped(block: Mapping[str, Any]) -> dict[str, Any]:
    found = _named(block, "title")
    if block["type"] in NAMED:
        parts, name = NAMED[block["type"]]
        found[parts] = [_named(part, name) for part in block[parts]]
    return found


def _named(part: Mapping[str, Any], name: str) -> dict[str, Any]:
    word = "" if part.get("help") else word_of(str(part.get(name, "")))
    return {**part, "help": word} if word else dict(part)


def word_of(name: str) -> str:
    """The word of the glossary that a name is, "" where it is none. What follows a colon explains the name."""
    wanted = name.partition(":")[0].strip().lower().removeprefix("the ")
    return next((_words()[each] for each in (wanted, wanted.removesuffix("s")) if each in _words()), "")


def explained(text: str) -> Inline:
    """A sentence of this program, in which the first mention of each word carries its help."""
    parts: Inline = []
    seen: set[str] = set()
    last = 0
    for hit in _mentions().finditer(text):
        word = _words()[hit[1].lower()]
        if word not in seen:
            seen.add(word)
            parts += [text[last : hit.start()], term(word, hit[0])]
            last = hit.end()
    return [part for part in [*parts, text[last:]] if part]


@cache
def _words() -> dict[str, str]:
    return {word.lower(): word for word in meanings()}


@cache
def _mentions() -> re.Pattern[str]:
    longest = sorted(_words(), key=len, reverse=True)
    return re.compile(rf"\b({'|'.join(map(re.escape, longest))})s?\b", re.IGNORECASE)
