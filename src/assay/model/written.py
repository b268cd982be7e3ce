"""Tokens that come one by one, as text that can be shown.

1. Tokens are not texts: some are part of a letter, and the text of a token may hang on the one before. So the text of a short
   window is decoded again with each token, and what it adds is new. A text that ends within a letter is held back.
2. The text ends before the first stop text. An end of the text that could be the begin of one is held back until it is settled.
"""

from collections.abc import Callable, Sequence

BROKEN = "�"  # what half a letter is decoded to
WINDOW = 6  # tokens before the new ones that may change how these are written


class Written:
    """One reply being written. `stopped` once a stop text was met; `text` is what was given out so far."""

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str] = ()) -> None:
        self.decode, self.stops = decode, tuple(filter(None, stops))
        self.stopped = False
        self.text = ""
        self._tokens: list[int] = []
        self._settled = 0  # tokens whose text was taken
        self._held = ""

    @property
    def holding(self) -> bool:
        """Whether text is held back that may turn out to be a stop text."""
        return bool(self._held)

    @property
    def length(self) -> int:
        """Characters that were given out or are held back."""
        return len(self.text) + len(self._held)

    def push(self, token: int) -> str:
        """The text that may be shown now: "" while it is held back."""
        if self.stopped:
            return ""
        self._tokens.append(token)
        return self._give(self._new())

    def end(self) -> str:
        """What was held back, once nothing more comes."""
        if self.stopped:
            return ""
        rest = self._held + self._new(last=True)
        self._held = ""
        self.text += rest
        return rest

    def _new(self, last: bool = False) -> str:
        """Text that the newest tokens add."""
        first = max(0, self._settled - WINDOW)
        before = self.decode(self._tokens[first : self._settled])
        after = self.decode(self._tokens[first:])
        if not last and after.endswith(BROKEN):
            return ""
        self._settled = len(self._tokens)
        return after[len(before) :]

    def _give(self, new: str) -> str:
        whole = self._held + new
        found = [place for place in (whole.find(stop) for stop in self.stops) if place >= 0]
        if found:
            self.stopped, self._held = True, ""
            out = whole[: min(found)]
        else:
            keep = max((_overlap(whole, stop) for stop in self.stops), default=0)
            out, self._held = whole[: len(whole) - keep], whole[len(whole) - keep :]
        self.text += out
        return out


def _overlap(text: str, stop: str) -> int:
    """The longest end of a text with which a stop text begins."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
