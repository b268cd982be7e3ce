"""Where the turns of a conversation lie in its tokens.

1. A conversation is written with marks in place of its messages; what stands between them is what the template writes. Where
   the real text is these parts with the messages between them, every turn is known, whatever words it shares with the template.
2. Else (a template that leaves out what was thought, or adds words) messages are looked for from left to right.
3. Characters become tokens by one table of the ends of all tokens.
"""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

from assay.data.chat import Message, chat_text, has_template
from assay.errors import UsageError
from assay.model.model import Model
from assay.model.written import Written


def places(model: Model, messages: Sequence[Message], ids: Sequence[int]) -> list[tuple[int, int] | None]:
    """Where in the tokens of a conversation the words of each message lie, in order; None for one that is written otherwise.

    A token that holds the end of what stands before and the first letter belongs to the message: as a reply is made, too.
    """
    whole = model.text(ids)
    ends = _text_ends(model, ids, whole)
    spans = _by_marks(model, messages, whole) or _by_words(messages, whole)
    return [None if span is None else (_first_token(ends, span[0]), min(bisect_left(ends, span[1]) + 1, len(ends)))
            for span in spans]


def _by_marks(model: Model, messages: Sequence[Message], whole: str) -> list[tuple[int, int] | None] | None:
    """Characters of every message, from what the template writes between marks in their places; None where that is not what it
    writes between these messages. Words of a message that the template has as well ("a", "You") are so not looked for in it."""
    marks = [f"\ue000{number}\ue001" for number in range(len(messages))]
    try:
        marked = chat_text(model, [{**message, "content": mark} for message, mark in zip(messages, marks, strict=True)])
        text = chat_text(model, messages)
    except UsageError:
        return None
    between, at = [], 0
    for mark in marks:
        place = marked.find(mark, at)
        if place < 0:
            return None
        between.append(marked[at:place])
        at = place + len(mark)
    between.append(marked[at:])
    if not whole.endswith(text) or not text.startswith(between[0]):
        return None
    found: list[tuple[int, int] | None] = []
    space = 0 if has_template(model) else 1  # the plain form has one before a message, and it is of its first token
    before, at = len(whole) - len(text), len(between[0])
    for message, after in zip(messages, between[1:], strict=True):
        words = message["content"]
        written = next((each for each in dict.fromkeys((words, words.strip(), words.rstrip(), words.lstrip()))
                        if text.startswith(each + after, at)), None)  # fmt: skip
        if written is None:
            return None
        begin = before + at - (space if message["role"] != "system" else 0)
        found.append((begin, before + at + len(written)) if written else None)
        at += len(written) + len(after)
    return found if at == len(text) else None


def _by_words(messages: Sequence[Message], whole: str) -> list[tuple[int, int] | None]:
    """Characters of every message, looked for from left to right: of templates that write earlier messages in another way."""
    at, found = 0, list[tuple[int, int] | None]()
    for message in messages:
        words = message["content"].strip()
        start = whole.find(words, at) if words else -1
        at = at if start < 0 else start + len(words)
        found.append(None if start < 0 else (start, at))
    return found


def _text_ends(model: Model, ids: Sequence[int], whole: str) -> list[int]:
    """Characters of the text up to the end of each token."""
    ends = list(accumulate(len(model.text([token])) for token in ids))
    if not ends or ends[-1] == len(whole):
        return ends
    written = Written(model.text)  # tokens that are parts of a letter, or hang on the one before
    ends = []
    for token in ids:
        written.push(token)
        ends.append(len(written.text))
    return ends


def _first_token(ends: Sequence[int], char: int) -> int:
    """The token that holds this character, or begins a letter in parts there."""
    at = bisect_left(ends, char)
    return at + (char > 0 and at < len(ends) and ends[at] == char)
