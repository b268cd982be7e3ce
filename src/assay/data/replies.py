"""Greedy replies of models, kept on disk: what was said to a prompt is not generated twice.

A key is the hash of model, prompt and length; a line of `replies.jsonl` holds one key and one reply. Lines are appended under
a file lock; half a line of a writer that was killed is no reply, and is made again.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from filelock import FileLock

from assay.data.chat import cut_reply
from assay.model.model import Model
from assay.records import canonical, digest

JOURNAL = "replies.jsonl"
TOGETHER = 24  # prompts that are answered at a time
Report = Callable[[int, int], None]


class Replies:
    """Replies of one model. `folder` None: kept in memory only."""

    def __init__(self, model: Model, folder: Path | None = None) -> None:
        self.model, self.folder = model, folder
        self.name = model.digest
        self._known = self._kept()

    def of(self, texts: Sequence[str], length: int, report: Report | None = None) -> list[str]:
        """Replies of at most `length` tokens, in order; `report(done, of)` of those that had to be made."""
        keys = [digest([self.name, text, length]) for text in texts]
        waiting = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._known}
        todo = sorted(waiting, key=lambda key: len(waiting[key]))
        for start in range(0, len(todo), TOGETHER):
            block = todo[start : start + TOGETHER]
            made = self.model.generate([waiting[key] for key in block], max_new_tokens=length)
            self._keep({key: cut_reply(self.model, text) for key, text in zip(block, made.texts, strict=True)})
            if report:
                report(min(start + TOGETHER, len(todo)), len(todo))
        return [self._known[key] for key in keys]

    def _keep(self, found: dict[str, str]) -> None:
        self._known |= found
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        lines = b"".join(canonical({"key": key, "reply": reply}).encode() + b"\n" for key, reply in found.items())
        path = self.folder / JOURNAL
        with FileLock(self.folder / f".{JOURNAL}.lock"), path.open("ab") as file:
            whole = not file.tell() or path.read_bytes()[-1:] == b"\n"
            file.write(lines if whole else b"\n" + lines)

    def _kept(self) -> dict[str, str]:
        path = None if self.folder is None else self.folder / JOURNAL
        found: dict[str, str] = {}
        if path is not None and path.is_file():
            for line in path.read_bytes().splitlines():
                try:
                    record = json.loads(line)
                    found[record["key"]] = record["reply"]
                except (ValueError, KeyError, TypeError):
                    continue
        return found
