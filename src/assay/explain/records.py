"""What the parts of an explanation hand to each other.

A *window* is a stretch of a document around one token, with a feature's activation at each of its tokens. A *sample* is what is
kept of one feature: windows that may be shown to whoever explains it, and windows of other documents that judge what was said.
An *explanation* is a text, with a rule where a machine can apply it. A *score* says how well it predicts, beside what the same
scorer gives to explanations of other features and to features of an untrained model.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

WHY = ("top", "quantile", "random", "coactive", "neighbour", "similar", "other")
FIRING = WHY[:3]


@dataclass(frozen=True)
class Window:
    """Tokens around one token of a document, as the model read them.

    `tokens` and `pieces`: ids and texts, of equal length; `values`: the feature's activation at each, 0 where it is off or
    where the dictionary is not meant for the token. `at`: the token (index into `tokens`) that the window was chosen by.
    `lead`: the pieces from the start of the row that the model read up to the window. `position`: of `at` in that row.
    `why`: one of `WHY`: *top*, *quantile* and *random* windows fire at `at`; the others do not fire anywhere: where its
    most coactive features fire (*coactive*), where its nearest neighbours by decoder do (*neighbour*), whose text is like
    that of a firing one (*similar*), and any other (*other*).
    """

    tokens: tuple[int, ...]
    pieces: tuple[str, ...]
    values: tuple[float, ...]
    at: int
    document: str
    position: int
    why: str
    lead: tuple[str, ...] = ()

    @property
    def value(self) -> float:
        """The activation at the token it was chosen by."""
        return self.values[self.at]

    @property
    def text(self) -> str:
        """The text of the window."""
        return "".join(self.pieces)

    @property
    def prefix(self) -> str:
        """All that the model had read when it came to `at`, that token included."""
        return "".join(self.lead) + "".join(self.pieces[: self.at + 1])

    @property
    def fires(self) -> bool:
        """Whether the feature is on anywhere in it."""
        return any(value > 0 for value in self.values)


@dataclass(frozen=True, eq=False)
class Sample:
    """One feature. `shown` and `scored` share no document, and no document of one is a near copy of one of the other.

    `density`: share of tokens it is on at; `largest`: its largest activation; both over the documents of `shown`.
    `neighbours` and `coactive`: (feature, cosine of decoder rows) and (feature, correlation of being on), strongest first.
    """

    feature: str
    density: float
    largest: float
    fired: int
    shown: tuple[Window, ...]
    scored: tuple[Window, ...]
    neighbours: tuple[tuple[str, float], ...] = ()
    coactive: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Cost:
    """What was spent on an endpoint. `calls` are those that were paid, by whichever run; a prompt that comes again is free."""

    calls: int = 0
    prompt_tokens: int = 0
    reply_tokens: int = 0
    money: float = 0.0

    def plus(self, other: "Cost") -> "Cost":
        """Both together."""
        return Cost(self.calls + other.calls, self.prompt_tokens + other.prompt_tokens,
                    self.reply_tokens + other.reply_tokens, self.money + other.money)  # fmt: skip


@dataclass(frozen=True)
class Explanation:
    """What one explainer says of one feature.

    `explainer`: its name and version, as `lexical/1` or `openai:MODEL/top/1`. `rule`: a record that `assay.explain.rules`
    can apply to a text, None for words alone. `bits`: description length of the windows' on and off with the rule, without
    it, and of the rule itself, where it was chosen by that. `output`: what the feature does to the next token (promoted,
    suppressed), where it was read.
    """

    feature: str
    text: str
    explainer: str
    rule: Mapping[str, Any] | None = None
    bits: Mapping[str, float] | None = None
    output: Mapping[str, Any] | None = None
    cost: Cost = field(default_factory=Cost)


@dataclass(frozen=True)
class Score:
    """How well an explanation does by one scorer. `value` is on the scorer's own scale (`chance` is what knowing nothing
    gives).

    `n`: windows asked about; `failed`: of them without a usable answer, counted as wrong. `shuffled`: the same scorer with
    explanations of other features; `untrained`: with features of an untrained model, explained the same way; None where it
    was not measured.
    """

    feature: str
    explainer: str
    scorer: str
    value: float
    chance: float
    n: int
    failed: int = 0
    low: float | None = None
    high: float | None = None
    shuffled: float | None = None
    untrained: float | None = None
    cost: Cost = field(default_factory=Cost)
    detail: Mapping[str, Any] = field(default_factory=dict)
