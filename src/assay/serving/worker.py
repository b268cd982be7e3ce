"""The one thread that runs the model: replies join and leave between tokens, and monitors read what is made.

1. A reply waits until there is a row for it. Replies beyond `rows` that run and `waiting` that wait are refused at once (429).
2. After every step the scores go to the log, and what clients may see is handed to them once it is there.
3. Actions on an alert: *log*; *block* ends the reply; *steer* edits the rest of it, from the next token on.
4. A reply whose client has gone, or whose time is over, leaves its row before the next step; what was made of it is judged.
"""

import copy
import queue
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

from assay.errors import AssayError, bad_argument
from assay.model.edits import Edit
from assay.model.model import Model
from assay.model.stream import Step, Stream
from assay.model.written import Written
from assay.monitor.units import UNITS
from assay.serving.log import Event, Log
from assay.serving.refused import Refused
from assay.serving.reply import MODIFIED, STEERED, Failed, Piece, Reply, Seen, Shown, Ticket
from assay.serving.watch import JUDGED, Readers, Watch
from assay.serving.webhook import Webhook

IDLE = 0.25  # seconds without work between looks at what has to end
ACTIONS = ("log", "block", "steer")


@dataclass(frozen=True)
class Settings:
    """How a server acts. `units` may alert, in the parts `judge`. `seconds`: the longest that a request may take. `modified`:
    how the weights were changed, "" where they were not. Raises UsageError."""

    action: str = "log"
    units: tuple[str, ...] = ("reply",)
    judge: tuple[str, ...] = ("reply",)
    rows: int = 32
    waiting: int = 64
    seconds: float = 300.0
    keep_text: bool = False
    modified: str = ""

    def __post_init__(self) -> None:
        chosen = [("action", (self.action,), ACTIONS), ("units", self.units, UNITS), ("judge", self.judge, JUDGED)]
        for name, values, allowed in chosen:
            if not values:
                raise bad_argument(name, "nothing", f"one or more of {', '.join(allowed)}")
            if unknown := [value for value in values if value not in allowed]:
                raise bad_argument(name, unknown[0], ", ".join(allowed))
        for name, value, least in [("rows", self.rows, 1), ("waiting", self.waiting, 0), ("seconds", self.seconds, 0.001)]:
            if not least <= value < float("inf"):
                raise bad_argument(name, value, f"{least} or more")


class Worker:
    """Runs the model for a server. `steering`: the edits of the action *steer*."""

    def __init__(
        self, model: Model, readers: Readers, log: Log, settings: Settings, steering: Sequence[Edit] = (),
        webhook: Webhook | None = None,
    ) -> None:  # fmt: skip
        self.model, self.readers, self.log, self.settings = model, readers, log, settings
        self.steering, self.webhook = tuple(steering), webhook
        self.stream = Stream(model, readers.sites, settings.rows)
        self._tokenizer: Any = copy.deepcopy(model.tokenizer)  # a tokenizer is not for more than one thread
        self._inbox: queue.SimpleQueue[Ticket] = queue.SimpleQueue()
        self._replies: dict[int, Reply] = {}
        self._taken, self._count = 0, threading.Lock()
        self._ending, self._stopping = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="assay-model", daemon=True)
        self._thread.start()

    # from other threads ----------------------------------------------------------------------

    def submit(self, ticket: Ticket) -> None:
        """Queue a request. Raises Refused: 400 for more than can ever wait, 429 where too many do, 503 where nothing can
        be done any more."""
        if self.failed or self._ending.is_set():
            raise Refused(503, f"This server takes no requests: {self.failed or 'it is ending'}.")
        if ticket.rows > (most := self.settings.rows + self.settings.waiting):
            raise Refused(400, f"{ticket.rows} replies in one request; this server runs and lets wait at most {most}.", "n")
        with self._count:
            if self._taken + ticket.rows > most:
                raise Refused(429, f"Too many requests: {self._taken} replies run or wait. Try again.", None, "queue_full")
            self._taken += ticket.rows
        self._inbox.put(ticket)

    @property
    def taken(self) -> int:
        """Replies that run or wait."""
        return self._taken

    @property
    def failed(self) -> str:
        """Why no reply can be made any more; "" where they can."""
        gone = "" if self._thread.is_alive() or self._ending.is_set() else "the thread that runs the model has ended"
        return self.log.failed or gone

    def close(self, seconds: float = 5.0) -> None:
        """End. Replies have so many seconds to finish; then they are cut off, and the log says so."""
        self._ending.set()
        self._thread.join(seconds)
        self._stopping.set()
        self._thread.join()

    # the thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping.is_set() and not (self._ending.is_set() and not self._replies and self._inbox.empty()):
            try:
                self._turn()
            except Exception as error:  # a defect: told in full to whoever runs the server; what was being made is lost
                tell("".join(traceback.format_exception(error)))
                self._drop(Refused(500, f"This failed inside Assay ({type(error).__name__}); the server's output says where."))
        self._drop(Refused(503, "This server ended before the reply did."))

    def _turn(self) -> None:
        """Take what came in, let go of what went, one step."""
        try:
            if not self._replies:
                self._admit(self._inbox.get(timeout=IDLE))
            while True:
                self._admit(self._inbox.get_nowait())
        except queue.Empty:
            pass
        self._expire()
        if changed := [event for armed in self.readers.armed if (event := armed.expired())]:
            self.log.put(changed)
            self._changed(changed)
        if self.stream.busy:
            self._read(self.stream.step())

    def _admit(self, ticket: Ticket) -> None:
        """Its replies wait for a row from now on; a ticket that does not fit the model is told so."""
        asked, events = ticket.asked, []
        rows = [(prompt, text, pick) for prompt, text in zip(asked.prompts, asked.texts, strict=True) for pick in asked.picks]
        for choice, (prompt, text, pick) in enumerate(rows):
            try:
                row = self.stream.join(prompt, pick)
            except AssayError as error:
                self._count_down(ticket.rows - choice)
                ticket.tell([Failed(Refused(400, str(error)))])
                ticket.cancelled = True
                break
            watch = Watch(self.readers.armed, self.settings.units, self.settings.judge, len(prompt), asked.turns, asked.opening,
                          counted=pick is asked.picks[0])  # fmt: skip
            written = Written(self._decode, asked.stops)
            reply = Reply(ticket, choice, row, len(prompt), written, watch, self.settings.action, self.settings.keep_text)
            if self.settings.modified:
                reply.marks[MODIFIED] = self.settings.modified
            self._replies[row] = reply
            events.append(reply.begin(text))
        self.log.put(events)

    def _expire(self) -> None:
        now, failed = time.monotonic(), self.log.failed
        for reply in list(self._replies.values()):
            if failed:
                self._cut(reply, "failed", Refused(503, f"The log cannot be written: {failed}"))
            elif now - reply.ticket.began > self.settings.seconds:
                late = f"This took more than {self.settings.seconds:g} seconds."
                self._cut(reply, "timeout", Refused(504, late, None, "timeout"))
            elif reply.ticket.cancelled:
                self._cut(reply, "cancelled", None)

    def _cut(self, reply: Reply, finish: str, problem: Refused | None) -> None:
        """End a reply before its end, and with it the other choices of its request."""
        self._forget(reply)
        ticket = reply.ticket
        told = [] if problem is None or ticket.cancelled else [Failed(problem)]
        ticket.cancelled = True
        before = len(reply.alerts)
        events = reply.cut(finish)
        self._notify(reply, before)
        self.log.put(events, lambda _: ticket.tell(told))

    def _drop(self, problem: Refused) -> None:
        """Everything that runs or waits fails."""
        for reply in list(self._replies.values()):
            self._cut(reply, "failed", problem)
        while not self._inbox.empty():
            ticket = self._inbox.get()
            self._count_down(ticket.rows)
            ticket.tell([Failed(problem)])

    def _forget(self, reply: Reply) -> None:
        self.stream.leave(reply.row)
        del self._replies[reply.row]
        self._count_down(1)

    def _count_down(self, rows: int) -> None:
        with self._count:
            self._taken -= rows

    def _decode(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode(list(tokens))

    # after a step ----------------------------------------------------------------------------

    def _read(self, steps: Sequence[Step]) -> None:
        """What a step brought: to the log, then to the clients."""
        events: list[Event] = []
        shown: dict[Ticket, list[Shown]] = {}
        for step, seen in zip(steps, self._seen(steps), strict=True):
            reply = self._replies[step.row]
            new, told, alerts = self._take(reply, step, seen)
            events += new
            self._changed(new)
            shown.setdefault(reply.ticket, []).extend(told)
            self._notify(reply, len(reply.alerts) - len(alerts))

        for ticket in [one for one in shown if not one.asked.stream]:  # it is answered at the end of a reply
            ticket.held += shown[ticket]
            over = any(not isinstance(one, Piece) for one in shown.pop(ticket))
            if over:
                shown[ticket], ticket.held = ticket.held, []

        def show(failed: str | None) -> None:
            for ticket, told in shown.items():  # a reply may be over already: nobody else tells its client
                ticket.tell(told if failed is None else [Failed(Refused(503, f"The log cannot be written: {failed}"))])

        if events or shown:
            self.log.put(events, show)

    def _changed(self, events: Sequence[Event]) -> None:
        """Monitors that promise nothing any more: whoever relies on them is told at once, beside the log."""
        for event in events:
            if event["kind"] == "state":
                tell(f"monitor {event['monitor']!r} is {event['state']}: it raises no more alerts"
                     f" (action: {self.settings.action})\n")  # fmt: skip
                if self.webhook is not None:
                    self.webhook.send({"id": uuid.uuid4().hex, **event})

    def _notify(self, reply: Reply, told: int) -> None:
        """The alerts of a reply beyond the first `told`, to the webhook."""
        if self.webhook is not None:
            for alert in reply.alerts[told:]:
                self.webhook.send({"reply": reply.name, "action": self.settings.action, **alert})

    def _take(self, reply: Reply, step: Step, seen: list[Seen]) -> tuple[list[Event], list[Shown], Any]:
        """A step of one reply, and what is done about it."""
        stop = step.token is not None and step.token in self._stops(reply)
        events, told, alerts = reply.take(step, seen, stop)
        if reply.over:
            self._forget(reply)
        elif alerts and self.settings.action == "steer" and STEERED not in reply.marks:
            first = max(step.start + 1, reply.prompt)
            reply.marks[STEERED] = f"{alerts[0].monitor}, from position {first}"
            self.stream.edit(reply.row, self.steering)
            events.append({"kind": "steered", "reply": reply.name, "from": first})
        elif reply.written.stopped and not reply.closing:
            reply.closing = True
            self.stream.close(reply.row)
        return events, told, alerts

    def _stops(self, reply: Reply) -> tuple[int, ...]:
        return reply.ticket.asked.picks[0].stop_ids or self.stream.stops

    def _seen(self, steps: Sequence[Step]) -> list[list[Seen]]:
        """Every monitor over the tokens of all rows at once, then by row."""
        if not self.readers.armed or not steps:
            return [[] for _ in steps]
        acts = {site: torch.cat([step.captured[place] for step in steps]).float().flatten(1).cpu().numpy()
                for site, place in zip(self.readers.sites, self.stream.sites, strict=True)}  # fmt: skip
        found: list[list[Seen]] = [[] for _ in steps]
        sizes = [len(next(iter(step.captured.values()))) for step in steps]
        for armed, (scores, logits) in zip(self.readers.armed, self.readers.scores(acts), strict=True):
            base, at = armed.monitor.baseline, 0
            for place, size in enumerate(sizes):
                means = None if base is None else acts[base.site][at : at + size]
                own = slice(at, at + size)
                found[place].append(Seen(scores[own], means, None if logits is None else logits[own]))
                at += size
        return found


def tell(text: str) -> None:
    """For whoever runs the server, on standard error; where nobody reads that any more (a closed pipe), it is lost."""
    with suppress(OSError, ValueError):
        sys.stderr.write(text)
        sys.stderr.flush()
