"""One reply while it is made: tokens become text, activations become scores, and nothing is shown before it was judged.

1. A token is shown once it was scored, which is one step after it was picked; without monitors at once.
2. A token of which nothing is shown (it is, or may become, part of a stop text) is judged when it is settled that it belongs
   to the reply, in the order of the tokens, so that the units of a monitor are those of the text that is shown.
3. When the action is to block, an alert ends the reply before what alerted is shown. Without streaming nothing of it is shown.
"""

import asyncio
import hashlib
import time
import uuid
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from numpy.typing import NDArray

from assay.model.stream import Step
from assay.model.written import Written
from assay.permissions import disclosure
from assay.serving.asked import Asked
from assay.serving.log import Event
from assay.serving.refused import Refused
from assay.serving.watch import Alert, Watch, rounded

BLOCKED, STEERED, MODIFIED = "blocked", "steered", "weights"  # words of `permissions.disclosure`
FILTERED = "content_filter"
CUT = ("failed", "timeout", "cancelled")  # how a reply ends before its end
TOGETHER = 16  # tokens whose scores the log takes at a time, where nobody has read them


@dataclass(frozen=True)
class Piece:
    """Text of a choice that may be shown now, the scores of the tokens it is made of, by monitor, and what was done to it."""

    choice: int
    text: str
    scores: dict[str, list[float]]
    disclosure: list[dict[str, Any]] | None = None


@dataclass(frozen=True)
class Done:
    """A choice is over."""

    choice: int
    finish: str
    tokens: int
    about: dict[str, Any]


@dataclass(frozen=True)
class Failed:
    """The whole request is over, without an answer."""

    problem: Refused


Shown = Piece | Done | Failed


@dataclass(eq=False)
class Ticket:
    """A request that is being done. `shown` is read by the task of the client."""

    asked: Asked
    loop: asyncio.AbstractEventLoop
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    shown: asyncio.Queue[Shown] = field(default_factory=asyncio.Queue)
    began: float = field(default_factory=time.monotonic)
    cancelled: bool = False
    held: list[Shown] = field(default_factory=list)  # of one that is not streamed, until a reply is over

    @property
    def rows(self) -> int:
        return len(self.asked.prompts) * len(self.asked.picks)

    def tell(self, what: Sequence[Shown]) -> None:
        """From any thread."""
        try:
            self.loop.call_soon_threadsafe(lambda: [self.shown.put_nowait(one) for one in what])
        except RuntimeError:  # the loop has ended, and the client with it
            self.cancelled = True


@dataclass(eq=False)
class Seen:
    """What one monitor made of a step: scores (n,), the activations (n, d) that drift is looked for in, and what attention
    weighs the tokens by (n,)."""

    scores: NDArray[Any]
    activations: NDArray[Any] | None
    logits: NDArray[Any] | None = None


@dataclass(eq=False)
class _Token:
    position: int
    start: int  # characters of the reply before its own, and up to their end
    end: int
    settled: bool = False
    seen: list[tuple[float, Any, float | None]] | None = None  # by monitor: score, activations, logit


@dataclass(eq=False)
class Reply:
    """One row: a choice of a ticket. `action`: what an alert does."""

    ticket: Ticket
    choice: int
    row: int
    prompt: int
    written: Written
    watch: Watch
    action: str
    keep_text: bool = False
    tokens: int = 0
    marks: dict[str, str] = field(default_factory=dict)
    alerts: list[dict[str, Any]] = field(default_factory=list)
    text: str = ""
    over: bool = False
    closing: bool = False  # its text has ended, its last token is being scored
    _scores: dict[str, list[float]] = field(default_factory=dict)  # by monitor, that are not in the log yet
    _from: int = 0  # position of the first of them
    _queue: deque[_Token] = field(default_factory=deque)
    _shown: int = 0  # characters of `written.text`

    @property
    def name(self) -> str:
        return f"{self.ticket.id}/{self.choice}"

    @property
    def blocked(self) -> bool:
        return BLOCKED in self.marks

    def take(self, step: Step, seen: Sequence[Seen], stop: bool) -> tuple[list[Event], list[Shown], list[Alert]]:
        """A step of this row; `stop`: its token ends the text. Events for the log, what is shown then, and what alerted."""
        alerts = self._scored(step, seen)
        if step.token is not None:
            self.tokens += 1
            if not stop:
                self._add(step.token, not seen)
        self._keep(step, seen)
        piece, changed = self._judge(alerts), []
        finish = "stop" if step.finish is not None and self.written.stopped else step.finish
        if finish is not None and not self.blocked:
            piece, changed = self._last(piece, alerts)
        if self.blocked:
            finish = FILTERED
        waits = not (self.ticket.asked.stream or alerts or changed or finish)
        events = [] if waits and step.start - self._from < TOGETHER else self._logged()
        events += changed
        shown: list[Shown] = []
        events += [self._alert(alert) for alert in alerts]
        self.text += piece.text
        if piece.text or piece.scores:
            shown.append(replace(piece, disclosure=self._disclosed()))
        if finish is not None:
            events.append(self.end(finish))
            shown.append(Done(self.choice, finish, self.tokens, self.about()))
        return events, shown, alerts

    def begin(self, text: str) -> Event:
        """What the log says when a reply is taken on."""
        pick = self.ticket.asked.picks[self.choice % len(self.ticket.asked.picks)]
        return {"kind": "begin", "reply": self.name, "prompt": sha(text), "tokens": self.prompt,
                "temperature": pick.temperature, "top_p": pick.top_p, "seed": pick.seed, "most": pick.max_new_tokens,
                **({"text": text} if self.keep_text else {})}  # fmt: skip

    def end(self, finish: str) -> Event:
        """What the log says when it is over."""
        self.over = True
        kept = not self.ticket.asked.stream and (self.blocked or finish in CUT)  # without streaming, nothing of it is shown
        shown = "" if kept else self.text
        return {"kind": "end", "reply": self.name, "finish": finish, "tokens": self.tokens, "shown": sha(shown),
                "disclosure": sorted(self.marks), "monitors": self._readings(),
                **({"text": shown} if self.keep_text else {}),
                **({"withheld": sha(self.text)} if kept else {}),
                **({"withheld_text": self.text} if kept and self.keep_text else {})}  # fmt: skip

    def cut(self, finish: str) -> list[Event]:
        """What the log says when it is ended before its end. Its units are judged by the tokens that were: a client that leaves
        before the last one has read the others. Drift does not count it: one so short is unlike those of the calibration."""
        last = self._queue[0].position - 1 if self._queue else self.prompt + self.tokens - 1
        alerts = [alert for number in range(len(self.watch.armed)) for alert in self.watch.end(number, last)]
        return [*self._logged(), *(self._alert(alert) for alert in alerts), self.end(finish)]

    def about(self) -> dict[str, Any]:
        """What an answer says about how it was made."""
        return {"reply": self.name, "monitors": self._readings(), "alerts": self.alerts,
                "disclosure": self._disclosed()}  # fmt: skip

    # internal --------------------------------------------------------------------------------

    def _disclosed(self) -> list[dict[str, Any]] | None:
        return [disclosure(mark, why=why) for mark, why in self.marks.items()] or None

    def _scored(self, step: Step, seen: Sequence[Seen]) -> list[Alert]:
        """Scores of a step go to the tokens they are of; the prompt's are judged now."""
        if not seen:
            return []
        if step.start == 0:
            return [alert for number, one in enumerate(seen) for alert in self.watch.prompts(
                number, one.scores[1:], None if one.activations is None else one.activations[1:],
                None if one.logits is None else one.logits[1:])]  # fmt: skip
        for token in self._queue:
            if token.position == step.start:
                token.seen = [(float(one.scores[0]), None if one.activations is None else one.activations[0],
                               None if one.logits is None else float(one.logits[0])) for one in seen]  # fmt: skip
        return []

    def _add(self, token: int, unseen: bool) -> None:
        start = self.written.length
        self.written.push(token)
        self._queue.append(_Token(self.prompt + self.tokens - 1, start, self.written.length, seen=[] if unseen else None))
        clear, given = not self.written.holding and not self.written.stopped, len(self.written.text)
        for each in self._queue:
            each.settled = each.settled or clear or each.start < given

    def _judge(self, alerts: list[Alert]) -> Piece:
        """Tokens that were scored and are settled, in order; stops where a block begins."""
        text, scores = "", {armed.monitor.name: [] for armed in self.watch.armed} if self.ticket.asked.scores else {}
        while not self._block(alerts) and self._queue and self._queue[0].seen is not None and self._queue[0].settled:
            token = self._queue.popleft()
            for number, (score, activation, logit) in enumerate(token.seen or ()):
                alerts += self.watch.token(number, score, token.position, activation, logit)
                if scores:
                    scores[self.watch.armed[number].monitor.name].append(rounded(score))
            text += "" if self._block(alerts) else self._until(token.end)
        return Piece(self.choice, text, {name: found for name, found in scores.items() if found})

    def _until(self, end: int) -> str:
        """What is new of the text up to here; nothing of what may be a stop text."""
        start, self._shown = self._shown, max(self._shown, min(end, len(self.written.text)))
        return self.written.text[start : self._shown]

    def _last(self, piece: Piece, alerts: list[Alert]) -> tuple[Piece, list[Event]]:
        """The end of a reply: what was held back, and the units that are complete with it."""
        self.written.end()
        if not self.written.stopped:
            for token in self._queue:
                token.settled = True
        more, events = self._judge(alerts), []
        for number in range(len(self.watch.armed)):
            alerts += self.watch.end(number, self.prompt + self.tokens - 1)
        if not self._block(alerts) and STEERED not in self.marks:  # what monitors did to a reply is no drift of its own
            changed = [self.watch.count(number) for number in range(len(self.watch.armed))]
            events += [event for event in changed if event]
        text = "" if self._block(alerts) else piece.text + more.text + self._until(len(self.written.text))
        scores = {name: piece.scores.get(name, []) + more.scores.get(name, []) for name in {**piece.scores, **more.scores}}
        return Piece(self.choice, text, scores), events

    def _block(self, alerts: Sequence[Alert]) -> bool:
        """Whether these alerts, or earlier ones, end the reply."""
        if alerts and self.action == "block" and not self.blocked:
            self.marks[BLOCKED] = f"{alerts[0].monitor}, {alerts[0].unit} of the {alerts[0].part}"
        return self.blocked

    def _alert(self, alert: Alert) -> Event:
        found = {"id": f"{self.name}/{len(self.alerts)}", **alert.to_json()}
        self.alerts.append(found)
        return {"kind": "alert", "reply": self.name, "action": self.action, "time": time.time(), **found}

    def _keep(self, step: Step, seen: Sequence[Seen]) -> None:
        """Scores of a step, for the log. Of a reply that is not streamed nobody has read: it takes `TOGETHER` at a time."""
        first = 1 if step.start == 0 else 0
        if seen and not self._scores:
            self._from = step.start + first
        for armed, one in zip(self.watch.armed, seen, strict=False):
            self._scores.setdefault(armed.monitor.name, []).extend(rounded(x) for x in one.scores[first:].tolist())

    def _logged(self) -> list[Event]:
        """What the log says of the scores that it has not."""
        scores, self._scores = self._scores, {}
        return [{"kind": "scores", "reply": self.name, "from": self._from, "scores": scores}] if scores else []

    def _readings(self) -> list[dict[str, Any]]:
        return [self.watch.readings(number) for number in range(len(self.watch.armed))]


def sha(text: str) -> str:
    """SHA-256 of a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
