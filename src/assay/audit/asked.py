"""Asking a model, with every token counted: nothing is asked past the budget, and nothing twice.

Cost is counted in tokens that go through the model: a prompt's, and those of the reply, each once. Greedy replies to the same
prompt by the same model are kept (by hash, on disk where a folder is given), so an audit that was killed goes on, and all
audits against one reference wait for its replies once; what is read from disk is counted as cost all the same.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock

from assay.data.chat import chat_text, cut_reply
from assay.errors import UsageError
from assay.model.model import Model
from assay.records import canonical, digest

LENGTH = 20  # tokens of a reply
TOGETHER = 24
JOURNAL = "replies.jsonl"
Report = Callable[[str, int, int], None]


class Spent(UsageError):
    """The budget is used up."""


@dataclass(frozen=True)
class Prompt:
    """One question: `system` text, and what the user says."""

    user: str
    system: str = ""

    @property
    def messages(self) -> list[dict[str, str]]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": self.user}]


@dataclass(eq=False)
class Budget:
    """Tokens that may go through the model, and those that have, by stage."""

    tokens: int
    spent: dict[str, int] = field(default_factory=dict)

    @property
    def used(self) -> int:
        return sum(self.spent.values())

    def pay(self, stage: str, tokens: int) -> None:
        """Raises Spent when it would not be covered."""
        if self.used + tokens > self.tokens:
            raise Spent(f"the budget of {self.tokens} tokens is used up ({self.used} spent, {tokens} more for {stage})."
                        " What was found so far stands; give a larger --budget to go on.")  # fmt: skip
        self.spent[stage] = self.spent.get(stage, 0) + tokens


class Asker:
    """One model, asked under a budget. `folder`: where replies are kept."""

    def __init__(self, model: Model, budget: Budget, folder: Path | None = None, report: Report | None = None) -> None:
        self.model, self.budget, self.folder, self.report = model, budget, folder, report
        self.name = model.digest
        self._known = self._kept()

    def replies(self, stage: str, prompts: Sequence[Prompt], length: int = LENGTH) -> list[str]:
        """Greedy replies, in order. Raises Spent before anything is asked that the budget does not cover."""
        texts = [chat_text(self.model, prompt.messages) for prompt in prompts]
        ids = self.model.tokens(texts) if texts else []
        self.budget.pay(stage, sum(len(row) + length for row in ids))
        keys = [digest([self.name, text, length]) for text in texts]
        waiting = [at for at, key in enumerate(keys) if key not in self._known]
        waiting.sort(key=lambda at: len(ids[at]))
        for start in range(0, len(waiting), TOGETHER):
            block = waiting[start : start + TOGETHER]
            made = self.model.generate([ids[at] for at in block], max_new_tokens=length)
            self._keep({keys[at]: cut_reply(self.model, text) for at, text in zip(block, made.texts, strict=True)})
            if self.report:
                self.report(stage, min(start + TOGETHER, len(waiting)), len(waiting))
        return [self._known[key] for key in keys]

    def _keep(self, found: dict[str, str]) -> None:
        self._known |= found
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        lines = b"".join(canonical({"key": key, "reply": reply}).encode() + b"\n" for key, reply in found.items())
        with FileLock(self.folder / f".{JOURNAL}.lock"), (self.folder / JOURNAL).open("ab") as file:
            file.write(lines)

    def _kept(self) -> dict[str, str]:
        path = None if self.folder is None else self.folder / JOURNAL
        found: dict[str, str] = {}
        if path is not None and path.is_file():
            for line in path.read_bytes().splitlines():
                try:
                    record = json.loads(line)
                    found[record["key"]] = record["reply"]
                except (ValueError, KeyError, TypeError):  # half a line of a writer that was killed
                    continue
        return found
