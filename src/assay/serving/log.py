"""The log of a server: what was asked, every score, every alert; hash-chained, and on the disk before a client sees anything.

1. `audit.jsonl` in the server's folder, with the chain of `assay.permissions`. What happened in `HOLD` seconds is one entry, so
   that one write to the disk serves all replies that run; where no client waits for it (none streams, and no reply is over), it
   is at most `LATE` seconds.
2. What a client is to see is held until the entry that tells of it is on the disk. A server that is killed has therefore shown
   nothing that the log does not know; a reply without an end in the log is one that was cut off.
3. Where the log cannot be written, nothing is shown: what waits fails, and the server takes nothing more.

Texts are not kept unless that is asked for: prompts and replies are there by their SHA-256.
"""

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from assay.errors import AssayError
from assay.permissions import Grant, record

ACTION = "monitor serve"
HOLD = 0.25  # seconds between entries: an entry costs more than a millisecond of the processor
LATE = 1.0  # seconds that events wait whom nobody waits for
FULL = 20_000  # events that wait; then whoever brings more waits
Event = dict[str, Any]
Then = Callable[[str | None], None]  # called with what went wrong, or None


class Log:
    """One thread that writes. `put` returns at once."""

    def __init__(self, folder: str | Path, grant: Grant) -> None:
        """Raises StoreError or TamperedError where the log cannot be continued."""
        self.folder, self.grant = Path(folder), grant
        self.failed: str | None = None
        self._events: list[Event] = []
        self._then: list[Then] = []
        self._change = threading.Condition()
        self._ended = False
        record(self.folder, ACTION, {"events": [{"kind": "log opened"}]}, grant)
        self._thread = threading.Thread(target=self._run, name="assay-log", daemon=True)
        self._thread.start()

    def put(self, events: Sequence[Event], then: Then | None = None) -> None:
        """Add events; `then` is called, on the writing thread, once they are on the disk or cannot be."""
        with self._change:
            self._change.wait_for(lambda: len(self._events) < FULL or self._ended or self.failed is not None)
            dead = self.failed or ("the log is closed" if self._ended else None)
            if dead is None:
                self._events += events
                self._then += [then] if then else []
                self._change.notify_all()
        if dead is not None and then:
            then(dead)

    def close(self) -> None:
        """Write what waits, then end."""
        with self._change:
            self._ended = True
            self._change.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._events or self._then or self._ended)
                self._change.wait_for(lambda: self._then or self._ended or len(self._events) > FULL // 2, LATE)
                events, then, ended = self._events, self._then, self._ended
                self._events, self._then = [], []
                self._change.notify_all()
            started = time.monotonic()
            self._write(events)
            for call in then:
                call(self.failed)
            if ended:
                return
            time.sleep(max(0.0, HOLD - (time.monotonic() - started)))

    def _write(self, events: list[Event]) -> None:
        if not events or self.failed is not None:
            return
        try:
            record(self.folder, ACTION, {"events": events}, self.grant)
        except AssayError as error:
            self.failed = str(error)
        except (TypeError, ValueError, RecursionError) as error:  # an event that is no JSON is a defect: nothing more is shown
            self.failed = f"an event cannot be written ({type(error).__name__}: {error})"
