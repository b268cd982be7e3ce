"""What a rule may look at: the text up to and including one token, and where that token begins.

1. A text is cut into items: words (letters, digits and apostrophes inside; of Chinese and Japanese every sign by itself),
   line ends, and every other mark by itself.
2. A `View` is one prefix so cut: the item that it ends in, so far as it was read (`word`; nothing after white space), and
   the items before it (`earlier`).
3. `view` cuts one text. `Row.views` gives the same for every token of a row at the cost of cutting it once.

Nothing after the token is ever seen: at " walk" of " walking" the word is "walk".
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from assay.records import Example

SIGNS = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
ITEM = re.compile(rf"[^\W{SIGNS}]+(?:['’][^\W{SIGNS}]+)*|[{SIGNS}]|\n+|[^\w\s]")
CHUNK = re.compile(r"'(?:s|t|re|ve|m|ll|d)| ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+")
LINE_END = "\n"


@dataclass(frozen=True)
class Prefix:
    """`text`: all that was read; `start`: where its last token begins, in characters (0 to its length)."""

    text: str
    start: int


@dataclass(frozen=True)
class View:
    """A prefix cut into items. `text[:end]` is what was read: what lies behind `end` must not be looked at."""

    text: str
    start: int
    end: int
    earlier: Sequence[str]
    word: str

    @property
    def token(self) -> str:
        """The last token."""
        return self.text[self.start : self.end]

    @property
    def previous(self) -> str:
        """The item before the word; nothing at the start."""
        return self.earlier[-1] if self.earlier else ""

    def tail(self, most: int) -> str:
        """The last so many characters of the prefix."""
        return self.text[max(0, self.end - most) : self.end]


@lru_cache(maxsize=4096)
def view(prefix: Prefix) -> View:
    """One prefix, cut from its start."""
    items = _items(prefix.text)
    return View(prefix.text, prefix.start, len(prefix.text), *_parted(items, prefix.text))


def prefix_of(example: Example) -> Prefix:
    """The prefix that an example is read at.

    A text that ends with the token that is read has `position` at that token's first character. Where there is no position,
    or the text goes on, tokens are taken to be the chunks that byte-level tokenizers split a text into first: a word or
    number or run of marks, with the space before it.
    """
    return _prefix_at(example.text, example.position)


def as_prefix(given: Prefix | str) -> Prefix:
    """A prefix as it is; of a text alone, the last of its chunks is taken to be the token."""
    return _prefix_at(given, None) if isinstance(given, str) else given


def _prefix_at(text: str, position: int | None) -> Prefix:
    chunks = [match.span() for match in CHUNK.finditer(text)] or [(0, len(text))]
    if position is None or position >= len(text):
        return Prefix(text, chunks[-1][0] if position is None else len(text))
    start, end = next(span for span in chunks if span[1] > position)
    return Prefix(text, position) if end == len(text) else Prefix(text[:end], start)


@dataclass(frozen=True)
class Row:
    """Tokens of a row as text. Joined they are what the model read."""

    pieces: Sequence[str]

    @cached_property
    def text(self) -> str:
        return "".join(self.pieces)

    @cached_property
    def views(self) -> list[View]:
        """The view of every token, in order."""
        return list(self._views())

    def _views(self) -> Iterator[View]:
        spans = [match.span() for match in ITEM.finditer(self.text)]
        items = [_clean(self.text[start:end]) for start, end in spans]
        done, end = 0, 0  # items that end before `end`
        for piece in self.pieces:
            start, end = end, end + len(piece)
            while done < len(spans) and spans[done][1] <= end:
                done += 1
            if done < len(spans) and spans[done][0] < end:
                tail = _items(self.text[spans[done][0] : end])
                yield View(self.text, start, end, items[:done] + tail[:-1], tail[-1])
            elif done and spans[done - 1][1] == end:
                yield View(self.text, start, end, items[: done - 1], items[done - 1])
            else:
                yield View(self.text, start, end, items[:done], "")

    def prefixes(self) -> Iterator[Prefix]:
        """The prefix of every token, in order."""
        end = 0
        for piece in self.pieces:
            start, end = end, end + len(piece)
            yield Prefix(self.text[:end], start)


def _items(text: str) -> list[str]:
    return [_clean(item) for item in ITEM.findall(text)]


def _clean(item: str) -> str:
    return LINE_END if item[0] == LINE_END else item


def _parted(items: list[str], text: str) -> tuple[list[str], str]:
    """Items before the last word, and that word: none after white space that is no line end."""
    inside = bool(items) and (not text[-1:].isspace() or text[-1:] == LINE_END)
    return (items[:-1], items[-1]) if inside else (items, "")
