"""Asking a model, with every token counted: nothing is asked past the budget, and nothing twice.

Cost is counted in tokens that go through the model: a prompt's, and those of the reply, each once. Greedy replies to the same
prompt by the same model are kept (by hash, on disk where a folder is given), so an audit that was killed goes on, and all
audits against one reference wait for its replies once; what is read from disk is counted as cost all the same.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from assay.data.chat import chat_text
from assay.data.replies import Replies
from assay.errors import UsageError
from assay.model.model import Model

LENGTH = 20  # tokens of a reply
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
        self.model, self.budget, self.report = model, budget, report
        self.kept = Replies(model, folder)
        self.name = self.kept.name

    def replies(self, stage: str, prompts: Sequence[Prompt], length: int = LENGTH) -> list[str]:
        """Greedy replies, in order. Raises Spent before anything is asked that the budget does not cover."""
        texts = [chat_text(self.model, prompt.messages) for prompt in prompts]
        self.budget.pay(stage, sum(len(ids) + length for ids in self.model.tokens(texts)) if texts else 0)
        return self.kept.of(texts, length, self.report and partial(self.report, stage))
