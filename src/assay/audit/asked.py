"""Asking a model, with every token counted: nothing is asked past the budget, and nothing twice.

Cost is counted in tokens that go through a model: a prompt's, and those of the reply, each once, and once per audit for one
prompt; a pass with gradients counts three times. What is asked is refused when it might not be covered; what was not used is
given back. A share of the budget is kept for tests: looking cannot use it up. Greedy replies to the same prompt by the same
model are kept (by hash, on disk where a folder is given), so an audit that was killed goes on, and all audits against one
reference wait for its replies once; what is read from disk is counted as cost all the same.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from assay.data.chat import chat_text
from assay.data.replies import Replies
from assay.errors import UsageError
from assay.model.context import check_lengths, learned_positions
from assay.model.model import Model

LENGTH = 20  # tokens of a reply
RESERVE = 0.3  # of the budget, for tests
TEST = "test"  # what the name of a stage begins with that may use the reserve
Report = Callable[[str, int, int], None]


class Unlooked(UsageError):
    """What cannot be looked at in this model, and why."""


class Spent(Unlooked):
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
    """Tokens that may go through the models, and those that have, by stage."""

    tokens: int
    spent: dict[str, int] = field(default_factory=dict)

    @property
    def used(self) -> int:
        return sum(self.spent.values())

    def pay(self, stage: str, tokens: int) -> None:
        """Raises Spent when it would not be covered."""
        kept = 0 if stage.startswith(TEST) else round(RESERVE * self.tokens)
        if self.used + tokens > self.tokens - kept:
            raise Spent(f"{stage}: the budget of {self.tokens} tokens does not cover it ({self.used} spent, {tokens} more,"
                        f" {kept} kept for tests). What was found so far stands; give a larger --budget to go on.")  # fmt: skip
        self.spent[stage] = self.spent.get(stage, 0) + tokens

    def back(self, stage: str, tokens: int) -> None:
        """Give back what was paid and not used."""
        if tokens:
            self.spent[stage] -= tokens


class Asker:
    """One model, asked under a budget. `folder`: where replies are kept."""

    def __init__(self, model: Model, budget: Budget, folder: Path | None = None, report: Report | None = None) -> None:
        self.model, self.budget, self.report = model, budget, report
        self.kept = Replies(model, folder)
        self.name = self.kept.name
        self._paid: set[tuple[str, int]] = set()

    def replies(self, stage: str, prompts: Sequence[Prompt], length: int = LENGTH) -> list[str]:
        """Greedy replies, in order. Raises Spent before anything is asked that the budget does not cover, LengthError
        for what the model cannot read."""
        if not prompts:
            return []
        texts = [chat_text(self.model, prompt.messages) for prompt in prompts]
        first = {text: at for at, text in reversed(list(enumerate(texts)))}
        new = sorted(at for text, at in first.items() if (text, length) not in self._paid)
        if new:
            asked = self.model.tokens([texts[at] for at in new])
            check_lengths(asked, learned_positions(self.model.hf), length)
            self.budget.pay(stage, sum(len(ids) + length for ids in asked))
        replies = self.kept.of(texts, length, self.report and partial(self.report, stage))
        self.budget.back(stage, sum(length - min(length, len(self.ids(replies[at])) + 1) for at in new))
        self._paid |= {(text, length) for text in texts}
        return replies

    def ids(self, reply: str) -> list[int]:
        """Token ids of a reply, as they follow a prompt."""
        return list(self.model.tokenizer(reply, add_special_tokens=False)["input_ids"])
