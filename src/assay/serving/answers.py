"""What clients get: the objects of the completions APIs of OpenAI, with one key more, `assay`.

`assay` = {"reply", "monitors": [{"monitor", "watches", "state", "units": {unit: {"score", "threshold", "above"}}}], "alerts",
"disclosure"}: every choice has its own, a streamed reply in its last chunk. "disclosure" is null, or what was done to the
answer (`assay.permissions.disclosure`). In a stream it is also on every chunk from the first whose text was changed, on the
error that ends it, and once in a chat's `delta` as {what: note}, which clients gather into the message.
"""

import json
import time
from collections.abc import Sequence
from typing import Any

from assay.serving.asked import Asked
from assay.serving.refused import Refused
from assay.serving.reply import BLOCKED, Done, Piece, Ticket


class Answers:
    """Answers to one request."""

    def __init__(self, ticket: Ticket, served: str) -> None:
        self.asked: Asked = ticket.asked
        kind = "chat.completion" if ticket.asked.chat else "text_completion"
        self.kind, self.made = kind, int(time.time())
        self._told: dict[int, dict[str, Any]] = {}  # choice -> what was done -> its disclosure
        self.base = {"id": f"{'chatcmpl' if ticket.asked.chat else 'cmpl'}-{ticket.id}", "created": self.made, "model": served,
                     "system_fingerprint": f"seed-{ticket.asked.seed}"}  # fmt: skip

    def whole(self, pieces: Sequence[Sequence[Piece]], done: Sequence[Done]) -> dict[str, Any]:
        """The answer without streaming. A blocked choice has no text."""
        choices = [self._choice(mine, end) for mine, end in zip(pieces, done, strict=True)]
        return {**self.base, "object": self.kind, "choices": choices, "usage": self.usage(done)}

    def opening(self) -> list[dict[str, Any]]:
        """The first chunk of every choice of a chat, which says who speaks."""
        n = len(self.asked.picks) if self.asked.chat else 0
        return [self._chunk(at, {"role": "assistant", "content": ""}, None) for at in range(n)]

    def piece(self, piece: Piece) -> dict[str, Any]:
        """A chunk of text."""
        marked = self._marked(piece.choice, piece.disclosure)
        delta = {"content": piece.text, **marked} if self.asked.chat else piece.text
        about = {"token_scores": piece.scores} if piece.scores else {}
        about |= {"disclosure": piece.disclosure} if piece.disclosure else {}
        found = self._chunk(piece.choice, delta, None)
        return {**found, "assay": about} if about else found

    def done(self, done: Done) -> dict[str, Any]:
        """The last chunk of a choice."""
        marked = self._marked(done.choice, done.about["disclosure"])
        return {**self._chunk(done.choice, marked if self.asked.chat else "", done.finish), "assay": done.about}

    def failed(self, problem: Refused) -> dict[str, Any]:
        """The error that ends a stream, with what was done to the text before it."""
        told = list({what: each for known in self._told.values() for what, each in known.items()}.values())
        return {**problem.body(), **({"assay": {"disclosure": told}} if told else {})}

    def _marked(self, choice: int, disclosure: Sequence[dict[str, Any]] | None) -> dict[str, Any]:
        """What is new of what was done, for a delta."""
        known = self._told.setdefault(choice, {})
        new = {each["what"]: each for each in disclosure or () if each["what"] not in known}
        known.update(new)
        return {"assay": {"disclosure": {what: each["note"] for what, each in new.items()}}} if new else {}

    def totals(self, done: Sequence[Done]) -> dict[str, Any]:
        """The chunk with the usage, where it was asked for."""
        return {**self.base, "object": self._chunks, "choices": [], "usage": self.usage(done)}

    def usage(self, done: Sequence[Done]) -> dict[str, int]:
        """Tokens of prompts (each once) and of replies."""
        prompt, made = sum(map(len, self.asked.prompts)), sum(one.tokens for one in done)
        return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}

    @property
    def _chunks(self) -> str:
        return "chat.completion.chunk" if self.asked.chat else "text_completion"

    def _chunk(self, choice: int, delta: Any, finish: str | None) -> dict[str, Any]:
        body = {"delta": delta} if self.asked.chat else {"text": delta}
        return {**self.base, "object": self._chunks,
                "choices": [{"index": choice, **body, "logprobs": None, "finish_reason": finish}]}  # fmt: skip

    def _choice(self, pieces: Sequence[Piece], done: Done) -> dict[str, Any]:
        blocked = any(mark["what"] == BLOCKED for mark in done.about["disclosure"] or ())
        text = "" if blocked else "".join(piece.text for piece in pieces)
        body = {"message": {"role": "assistant", "content": text, "refusal": None}} if self.asked.chat else {"text": text}
        about = dict(done.about)
        if self.asked.scores:
            names = [monitor["monitor"] for monitor in about["monitors"]]
            about["token_scores"] = {name: [x for piece in pieces for x in piece.scores.get(name, [])] for name in names}
        return {"index": done.choice, **body, "logprobs": None, "finish_reason": done.finish, "assay": about}


def event(value: Any) -> bytes:
    """A server-sent event."""
    return f"data: {dumps(value)}\n\n".encode()


def dumps(value: Any) -> str:
    """JSON; characters above ASCII are escaped, so that no text of a model can break an encoding."""
    return json.dumps(value, allow_nan=False, separators=(",", ":"))
