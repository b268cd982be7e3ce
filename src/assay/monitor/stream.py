"""A monitor at work while a model writes: scores of tokens in, readings and alerts out.

1. `push` takes the scores of the tokens that are new (a whole prompt, then one at a time) and gives the value of every unit so
   far; after the last token these are what `unit_scores` makes of the whole turn.
2. An alert of a unit begins where its value is above the threshold, and ends where it was at or below threshold - `gap` for
   `hold` tokens in a row: a value that hovers at the threshold alerts once.
3. Alerts count for what the state of the monitor is worth: an uncalibrated monitor's are marked so.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from assay.errors import bad_argument
from assay.monitor.records import Monitor
from assay.monitor.units import Running

GAP, HOLD = 0.5, 8  # log odds, tokens


@dataclass(frozen=True)
class Reading:
    """After some tokens: `values` by unit, units that are alerting, those that began and ended with these tokens; the largest
    `peak` of a unit so far."""

    tokens: int
    values: Mapping[str, float]
    peak: Mapping[str, float]
    alerting: tuple[str, ...]
    raised: tuple[str, ...]
    cleared: tuple[str, ...]


@dataclass(eq=False)
class _Alert:
    at: float
    gap: float
    hold: int
    on: bool = False
    calm: int = 0

    def see(self, value: float) -> None:
        """One more value of the unit."""
        if value > self.at:
            self.on, self.calm = True, 0
        elif self.on:
            self.calm = self.calm + 1 if value <= self.at - self.gap else 0
            if self.calm >= self.hold:
                self.on, self.calm = False, 0


@dataclass(eq=False)
class Aggregator:
    """One conversation under one monitor. Not shared between threads."""

    monitor: Monitor
    gap: float = GAP
    hold: int = HOLD
    tokens: int = 0
    _reply: Running = field(init=False)
    _talk: Running = field(init=False)
    _alerts: dict[str, _Alert] = field(init=False)
    _peak: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.gap < 0 or self.hold < 1:
            raise bad_argument("gap, hold", (self.gap, self.hold), "a gap of 0 or more, and 1 token or more")
        self._reply, self._talk = Running(self.monitor.pooling), Running(self.monitor.pooling)
        self._alerts = {unit: _Alert(made.value, self.gap, self.hold) for unit, made in self.monitor.thresholds.items()}

    def turn(self) -> None:
        """A new turn begins: segments and replies start anew, the conversation goes on."""
        self._reply = Running(self.monitor.pooling)
        for unit in ("token", "segment", "reply"):
            if unit in self._alerts:
                self._alerts[unit].on = False

    def push(self, token_scores: Iterable[float]) -> Reading:
        """Tokens that are new, in order. Raises UsageError for none before the first."""
        before = {unit for unit, alert in self._alerts.items() if alert.on}
        values: dict[str, float] = {}
        for score in token_scores:
            self.tokens += 1
            reply, talk = self._reply.push(float(score)), self._talk.push(float(score))
            values = {"token": float(score), "reply": reply, "conversation": talk}
            least = self._reply.least
            assert least is not None
            values["segment"] = least
            for unit, value in values.items():
                self._peak[unit] = max(self._peak.get(unit, value), value)
            for unit, alert in self._alerts.items():
                alert.see(values[unit])
        if not self.tokens:
            raise bad_argument("token_scores", "none", "the scores of at least one token")
        now = {unit for unit, alert in self._alerts.items() if alert.on}
        return Reading(self.tokens, values, dict(self._peak), tuple(sorted(now)), tuple(sorted(now - before)),
                       tuple(sorted(before - now)))  # fmt: skip
