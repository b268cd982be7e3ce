"""From scores of tokens to the units that alert, all at once or as tokens come.

1. token: the score of a token. segment: the least of `width` tokens in a row, so all of them must agree (cf. Segment
   coherence, 2604.14865). reply: the pooled score of one turn. conversation: the same over all its turns.
2. Pooling of n scores s: mean; max; softmax, sum of s w with w = softmax(s / T); last; segment, the largest segment score;
   attention, sum of s w with w = softmax(a), where a are further numbers of the tokens, by queries that were fitted.
   A turn shorter than a segment is one segment.
3. As tokens come, each pooling is kept as a few numbers; what `push` says after the last token is what `pooled` says of all.

A false-alarm rate per token says nothing about replies: 1% a token flags 99% of replies of 500 tokens that are independent.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from assay.errors import bad_argument

UNITS = ("token", "segment", "reply", "conversation")
POOLINGS = ("mean", "max", "softmax", "last", "segment", "attention")
WIDTH = 4
TEMPERATURE = 1.0
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Pooling:
    """How scores of tokens become one: `name` of POOLINGS, tokens of a segment, temperature of softmax."""

    name: str = "mean"
    width: int = WIDTH
    temperature: float = TEMPERATURE

    def __post_init__(self) -> None:
        if self.name not in POOLINGS:
            raise bad_argument("pooling", self.name, ", ".join(POOLINGS))
        if self.width < 1:
            raise bad_argument("width", self.width, "1 token or more")
        if not self.temperature > 0:
            raise bad_argument("temperature", self.temperature, "more than 0")

    def of_controls(self) -> "Pooling":
        """How scores that know nothing are pooled beside it: alike, but not by an attention that has learned where to look."""
        return replace(self, name="mean") if self.name == "attention" else self


def segments(scores: Float[np.ndarray, " token"], width: int) -> Float[np.ndarray, " segment"]:
    """The least score of every `width` tokens in a row; of fewer tokens, of all of them."""
    scores = np.asarray(scores, np.float64)
    if len(scores) <= width:
        return scores.min(0, keepdims=True) if len(scores) else scores
    return np.lib.stride_tricks.sliding_window_view(scores, width, 0).min(-1)


def pooled(scores: Float[np.ndarray, " token"], how: Pooling, logits: Float[np.ndarray, " token"] | None = None) -> float:
    """One score of a turn; `logits`: what attention weighs the tokens by. Raises UsageError for a turn without tokens, and for
    attention without logits."""
    return float(pooled_columns(np.asarray(scores, np.float64)[:, None], how, logits)[0])


def pooled_columns(
    scores: Float[np.ndarray, "token k"], how: Pooling, logits: Float[np.ndarray, " token"] | None = None
) -> Float[np.ndarray, " k"]:
    """`pooled` of k scores of every token, each by itself."""
    if not len(scores):
        raise bad_argument("scores", "none", "at least one token")
    if how.name == "mean":
        return scores.mean(0)
    if how.name == "max":
        return scores.max(0)
    if how.name == "last":
        return scores[-1]
    if how.name == "segment":
        return segments(scores, how.width).max(0)
    keys = np.asarray(_needed(logits), np.float64)[:, None] if how.name == "attention" else scores / how.temperature
    weights = np.exp(keys - keys.max(0))
    return (scores * weights).sum(0) / weights.sum(0)


@dataclass(eq=False)
class Running:
    """One pooling as tokens come."""

    how: Pooling
    n: int = 0
    total: float = 0.0
    largest: float = -math.inf
    top: float = -math.inf
    last: float = 0.0
    weight: float = 0.0
    weighted: float = 0.0
    window: deque[float] = field(default_factory=deque)
    segment: float = -math.inf

    def push(self, score: float, logit: float | None = None) -> float:
        """The pooled score so far."""
        score = float(score)
        self.n, self.total, self.last, self.largest = self.n + 1, self.total + score, score, max(self.largest, score)
        if self.how.name in ("softmax", "attention"):
            self._weigh(score, float(_needed(logits=logit)) if self.how.name == "attention" else score / self.how.temperature)
        self.window.append(score)
        if len(self.window) > self.how.width:
            self.window.popleft()
        least = min(self.window)
        full = len(self.window) == self.how.width
        self.segment = max(self.segment, least) if full and self.n > self.how.width else least
        return self.value

    def _weigh(self, score: float, key: float) -> None:
        if key > self.top:
            shrink = math.exp(self.top - key)
            self.weight, self.weighted, self.top = self.weight * shrink, self.weighted * shrink, key
        share = math.exp(key - self.top)
        self.weight, self.weighted = self.weight + share, self.weighted + share * score

    @property
    def least(self) -> float | None:
        """The score of the segment that ends here; of fewer tokens, of all so far."""
        return min(self.window) if self.window else None

    @property
    def value(self) -> float:
        """The pooled score. Raises UsageError before the first token."""
        if not self.n:
            raise bad_argument("scores", "none", "at least one token")
        name = self.how.name
        if name == "mean":
            return self.total / self.n
        if name == "max":
            return self.largest
        if name == "last":
            return self.last
        return self.segment if name == "segment" else self.weighted / self.weight


def unit_scores(
    turns: Sequence[Float[np.ndarray, " token"]], how: Pooling, logits: Sequence[Float[np.ndarray, " token"]] | None = None
) -> dict[str, Array]:
    """Scores of every unit of one conversation, given the scores (and, for attention, the logits) of its turns' tokens."""
    every = np.concatenate([np.asarray(turn, np.float64) for turn in turns]) if turns else np.zeros(0)
    keys = None if logits is None else np.concatenate([np.asarray(turn, np.float64) for turn in logits])
    told = [turn for turn in turns if len(turn)]
    weighed = [None] * len(told) if logits is None else [turn for turn in logits if len(turn)]
    return {
        "token": every,
        "segment": np.concatenate([segments(turn, how.width) for turn in told]) if told else every,
        "reply": np.array([pooled(turn, how, own) for turn, own in zip(told, weighed, strict=True)]),
        "conversation": np.array([pooled(every, how, keys)]) if len(every) else every,
    }


def _needed(logits: Any) -> Any:
    if logits is None:
        raise bad_argument("logits", None, "one per token, for the pooling attention")
    return logits
