"""Token ids as pieces of text that add up to the text, whatever the tokenizer.

1. The piece of a token is what it adds after an ordinary token: decode(a, token) without decode(a).
2. A character may be spread over several tokens (byte-level BPE): the last of them has it, the ones before have "".
   Bytes that are no character at all stay what the tokenizer makes of them (U+FFFD), at the last token of the run.
3. Where the pieces of a row do not add up to its decoded text, the row is decoded token by token: piece t is what the text
   of t + 1 tokens has beyond that of t. A blank at the start of a row in mid-document is kept: it is in the document.
4. The token that begins every row is no text: "".
"""

from collections.abc import Sequence
from typing import Any

from assay.model.model import Model

BROKEN = "\ufffd"


class Pieces:
    """Pieces of a model's tokens; every token is decoded once."""

    def __init__(self, model: Model) -> None:
        self._tokenizer: Any = model.tokenizer
        self._bos = model.bos_id if model.prepend_bos else None
        self._known: dict[int, str] = {}
        ids = self._tokenizer("a", add_special_tokens=False)["input_ids"]
        self._before = list(ids[:1])
        self._text = self._decode(self._before)

    def piece(self, token: int) -> str:
        """What one token adds to a text, U+FFFD where it is a part of a character."""
        if token not in self._known:
            both = self._decode([*self._before, token])
            self._known[token] = both[len(self._text) :] if both.startswith(self._text) else self._decode([token])
        return self._known[token]

    def of(self, tokens: Sequence[int], begins: bool = False) -> list[str]:
        """The pieces of a row; `begins`: whether it is the first of its document."""
        ids = [int(token) for token in tokens]
        start = int(bool(ids) and ids[0] == self._bos)
        body = ids[start:]
        pieces = self._joined_parts(body)
        text, made = self._decode(body) if body else "", "".join(pieces)
        if made.lstrip() != text.lstrip():
            pieces = self._one_by_one(body)
        elif begins and len(made) > len(text):
            pieces[0] = pieces[0][len(made) - len(text) :]
        return [""] * start + pieces

    def _joined_parts(self, ids: list[int]) -> list[str]:
        pieces = [self.piece(token) for token in ids]
        at = 0
        while at < len(ids):
            if BROKEN not in pieces[at]:
                at += 1
                continue
            end = at
            while end < len(ids) and BROKEN in pieces[end]:
                end += 1
            pieces[at:end] = self._run(ids[at:end])
            at = end
        return pieces

    def _run(self, ids: list[int]) -> list[str]:
        """Tokens none of which is text by itself."""
        found, start = [""] * len(ids), 0
        for at in range(len(ids)):
            whole = self._after(ids[start : at + 1])
            if BROKEN not in whole or at == len(ids) - 1:
                found[at], start = whole, at + 1
        return found

    def _after(self, ids: list[int]) -> str:
        both = self._decode([*self._before, *ids])
        return both[len(self._text) :] if both.startswith(self._text) else self._decode(ids)

    def _one_by_one(self, ids: list[int]) -> list[str]:
        """What each token adds to the decoded text; the last one has what earlier ones could not show."""
        whole = self._decode(ids)
        found, done = [], 0
        for at in range(1, len(ids) + 1):
            text = whole if at == len(ids) else self._decode(ids[:at])
            same = len(text) if whole.startswith(text) else _common(text, whole)
            end = max(done, same)
            found.append(whole[done:end])
            done = end
        return found

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


def _common(one: str, other: str) -> int:
    """Length of what two texts begin with."""
    for at, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return at
    return min(len(one), len(other))
