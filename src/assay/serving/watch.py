"""Monitors over one reply while it is made: scores of tokens, units that are complete, alerts.

1. Every token after the first is scored, of the prompt and of the reply. What is judged are the reply (`judge` "reply"), the
   prompt from its first word on ("prompt"), or both; thresholds are those of the monitor, and promise their rate for
   what it was calibrated on.
2. A unit alerts when it is complete: a token at once; a segment with its last token; a reply at its end, a conversation (all
   that the assistant said in it) with it. Where the pooling can only grow (max; segment, once there is a whole one), a reply
   that is above its threshold stays there and alerts at once. A mean of the first few tokens is no reply.
3. Hysteresis: a unit that alerted alerts again only after `QUIET` tokens in a row at or below its threshold.
4. An uncalibrated monitor gives scores and never alerts: its state says why. The date of expiry is looked at before every step.
5. Drift is looked for in windows of `WINDOW` finished replies, in the part that is judged: the reply, or, where only the prompt
   is judged, the prompt. Of several choices for one prompt the first counts: the tests are of parts that are independent.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from assay.model.model import Model
from assay.monitor.drift import disarmed, drift
from assay.monitor.reading import finite
from assay.monitor.records import CALIBRATED, Monitor, at_site
from assay.monitor.units import Pooling, Running
from assay.serving.drifted import identity

QUIET = 16
WINDOW = 100  # replies between looks for drift
GROWING = ("max", "segment")
Array = NDArray[np.float64]
JUDGED = ("reply", "prompt")


@dataclass(frozen=True)
class Alert:
    """A unit above its threshold. `position`: of the last token that counts, in the prompt and reply together."""

    monitor: str
    part: str
    unit: str
    score: float
    threshold: float
    position: int

    def to_json(self) -> dict[str, Any]:
        return {"monitor": self.monitor, "part": self.part, "unit": self.unit, "score": rounded(self.score),
                "threshold": rounded(self.threshold), "position": self.position}  # fmt: skip


@dataclass(eq=False)
class Armed:
    """A monitor in a server: its state now, and the newest replies, to notice drift."""

    monitor: Monitor
    state: str
    scores: list[float] = field(default_factory=list)
    means: list[Array] = field(default_factory=list)
    expires: float = 0.0  # seconds since 1970

    def __post_init__(self) -> None:
        self.expires = datetime.fromisoformat(self.monitor.bound["expires"]).timestamp()

    @property
    def calibrated(self) -> bool:
        return self.state == CALIBRATED

    @property
    def sites(self) -> list[str]:
        """What must be read: its own sites, and the one that drift is looked for at."""
        held = self.monitor.baseline
        return list(dict.fromkeys([*self.monitor.sites, *([held.site] if held is not None else [])]))

    def expired(self) -> dict[str, Any] | None:
        """What changed, where its date has passed since it was last looked at."""
        if not self.calibrated or time.time() < self.expires:
            return None
        self.state = self.monitor.state()
        return {"kind": "state", **self.said()}

    def said(self) -> dict[str, Any]:
        """Which monitor it is, and its state, as the log has it."""
        return {"monitor": self.monitor.name, "digest": identity(self.monitor), "state": self.state}

    def add(self, score: float, mean: Array | None) -> dict[str, Any] | None:
        """The judged part of a finished reply; what changed, where its window says that the monitor has drifted."""
        if mean is None or not self.calibrated:
            return None
        self.scores.append(score)
        self.means.append(mean)
        if len(self.scores) < WINDOW:
            return None
        found = drift(self.monitor, self.scores, np.array(self.means))
        self.scores, self.means = [], []
        if not found.found:
            return None
        self.monitor = disarmed(self.monitor, found)
        self.state = self.monitor.state()
        return {"kind": "state", **self.said(), "drifted": self.monitor.drifted}


@dataclass(eq=False)
class _Part:
    """One part that is judged under one monitor. `total`: of the activations of `count` tokens, where drift is looked for."""

    how: Pooling
    pooled: Running
    quiet: dict[str, int] = field(default_factory=dict)
    total: Any = 0.0
    count: int = 0

    def add(self, activations: Array | None) -> None:
        """Activations of its next tokens, (n, d)."""
        if activations is not None:
            self.total = self.total + activations.sum(0)
            self.count += len(activations)

    @property
    def mean(self) -> Array | None:
        return self.total / self.count if self.count else None


class Watch:
    """One reply under all monitors. `units`: those that may alert. `counted`: whether drift counts it."""

    def __init__(
        self, armed: Sequence[Armed], units: Sequence[str], judge: Sequence[str], prompt: int,
        turns: Sequence[tuple[int, int]] = (), opening: int = 1, counted: bool = True,
    ) -> None:  # fmt: skip
        self.armed, self.units, self.judge, self.prompt, self.turns = armed, units, judge, prompt, turns
        self.opening, self.counted = max(1, opening), counted
        self._parts = [{part: _Part(a.monitor.pooling, Running(a.monitor.pooling)) for part in JUDGED} for a in armed]
        self._talks = [Running(a.monitor.pooling) for a in armed]

    def prompts(
        self, number: int, scores: Array, activations: Array | None = None, logits: Array | None = None
    ) -> list[Alert]:  # fmt: skip
        """Scores (activations, and logits of attention) of the prompt's tokens, the first left out, under one monitor; before
        anything else."""
        keys = [None] * len(scores) if logits is None else logits.tolist()
        for start, stop in self.turns:
            for at in range(max(0, start - 1), min(stop - 1, len(scores))):
                self._talks[number].push(scores[at], keys[at])
        told = list(enumerate(zip(scores.tolist(), keys, strict=True), 1))[self.opening - 1 :]
        if "prompt" not in self.judge or not told:
            return []
        self._parts[number]["prompt"].add(None if activations is None else activations[self.opening - 1 :])
        alerts = [alert for at, (score, key) in told for alert in self._token(number, "prompt", score, at, key)]
        return alerts + self._end(number, "prompt", self.prompt - 1)

    def token(
        self, number: int, score: float, position: int, activation: Array | None = None, logit: float | None = None
    ) -> list[Alert]:  # fmt: skip
        """The score of one token of the reply under one monitor."""
        self._talks[number].push(score, logit)
        self._parts[number]["reply"].add(None if activation is None else activation[None])
        alerts = self._token(number, "reply", score, position, logit)
        return alerts if "reply" in self.judge else []

    def end(self, number: int, position: int) -> list[Alert]:
        """The reply is over: alerts of units that are complete with it, or, where it was cut, as complete as they will be."""
        if "reply" not in self.judge or not self._parts[number]["reply"].pooled.n:
            return []
        alerts = self._end(number, "reply", position)
        return alerts + self._above(number, "reply", "conversation", self._talks[number].value, position)

    def count(self, number: int) -> dict[str, Any] | None:
        """One more reply for drift, once it is over: what changed in the monitor's state."""
        part = self._parts[number]["reply" if "reply" in self.judge else "prompt"]
        if not self.counted or not part.pooled.n:
            return None
        return self.armed[number].add(part.pooled.value, part.mean)

    def readings(self, number: int) -> dict[str, Any]:
        """What is said of one monitor in an answer: its state, and the score, threshold and verdict of each unit."""
        armed = self.armed[number]
        parts = {name: part.pooled for name, part in self._parts[number].items()}
        units: dict[str, Any] = {}
        for name, running in {**parts, "conversation": self._talks[number]}.items():
            if running.n:
                units[name] = self._reading(armed, "reply" if name == "prompt" else name, running.value)
        if "reply" in units and armed.monitor.card.get("odds_texts"):
            units["reply"]["probability"] = rounded(armed.monitor.probability(parts["reply"].value))
        return {"monitor": armed.monitor.name, "watches": armed.monitor.watches, "state": armed.state, "units": units}

    # internal --------------------------------------------------------------------------------

    def _reading(self, armed: Armed, unit: str, score: float) -> dict[str, Any]:
        bar = armed.monitor.thresholds.get(unit) if armed.calibrated else None
        return {"score": rounded(score), "threshold": None if bar is None else rounded(bar.value),
                "above": None if bar is None else bar.alert(score)}  # fmt: skip

    def _token(self, number: int, name: str, score: float, position: int, logit: float | None = None) -> list[Alert]:
        part = self._parts[number][name]
        value = part.pooled.push(score, logit)
        alerts = self._above(number, name, "token", score, position)
        whole = part.pooled.n >= part.how.width
        if whole:
            alerts += self._above(number, name, "segment", part.pooled.least or 0.0, position)
        if part.how.name in GROWING and (whole or part.how.name == "max"):
            alerts += self._above(number, name, "reply", value, position)
        return alerts

    def _end(self, number: int, name: str, position: int) -> list[Alert]:
        """Units that are complete with the last token of a part."""
        part, alerts = self._parts[number][name], []
        if part.pooled.n < part.how.width:
            alerts += self._above(number, name, "segment", part.pooled.least or 0.0, position)
        if "reply" not in part.quiet:
            alerts += self._above(number, name, "reply", part.pooled.value, position)
        return alerts

    def _above(self, number: int, name: str, unit: str, score: float, position: int) -> list[Alert]:
        armed, quiet = self.armed[number], self._parts[number][name].quiet
        bar = armed.monitor.thresholds.get(unit) if unit in self.units and armed.calibrated else None
        if bar is None:
            return []
        if not bar.alert(score):
            if unit in quiet:
                quiet[unit] += 1
            return []
        told = unit in quiet and quiet[unit] < QUIET
        quiet[unit] = 0
        return [] if told else [Alert(armed.monitor.name, name, unit, score, bar.value, position)]


class Readers:
    """All monitors of a server over activations of many rows at once: one matrix product per site."""

    def __init__(self, monitors: Sequence[Monitor], model: Model) -> None:
        self.armed = [Armed(monitor, monitor.state(model)) for monitor in monitors]
        self.sites = list(dict.fromkeys(site for armed in self.armed for site in armed.sites))
        vectors: dict[str, list[Array]] = {}
        self._scores = [[_column(vectors, head.site, head.weight) for head in monitor.heads] for monitor in monitors]
        self._logits = [[_column(vectors, head.site, head.query) for head in monitor.heads if head.query is not None]
                        for monitor in monitors]  # fmt: skip
        self._biases = [float(np.mean([head.bias for head in monitor.heads])) for monitor in monitors]
        self._vectors = {site: np.array(found, np.float64).T for site, found in vectors.items()}

    def scores(self, acts: Mapping[str, NDArray[np.float32]]) -> list[tuple[Array, Array | None]]:
        """Scores of all tokens under every monitor, and their logits where it pools by attention. A token whose activations are
        no numbers (half precision overflows) has the score `BROKEN`, which is above every threshold."""
        read = {site: np.asarray(at_site(site, acts), np.float64) @ vectors for site, vectors in self._vectors.items()}

        def mean(columns: Sequence[tuple[str, int]]) -> Array:
            return sum((read[site][:, at] for site, at in columns[1:]), read[columns[0][0]][:, columns[0][1]]) / len(columns)

        return [(finite(mean(scored) + bias), finite(mean(weighed)) if weighed else None)
                for scored, weighed, bias in zip(self._scores, self._logits, self._biases, strict=True)]  # fmt: skip


def _column(vectors: dict[str, list[Array]], site: str, vector: Array) -> tuple[str, int]:
    """Where a vector's products are found: its site, and its place among those read there."""
    vectors.setdefault(site, []).append(vector)
    return site, len(vectors[site]) - 1


def rounded(score: float) -> float:
    """Five significant digits, as answers and the log have it."""
    return float(f"{score:.5g}")
