"""Alerts, sent to an address as JSON. The log has them whatever happens here.

1. One thread sends one alert at a time: POST, JSON, `SECONDS` to answer, redirects not followed; 2xx is delivered.
2. What fails is tried again after 1, 2, 4, .. seconds, `TRIES` times. An alert that was refused, and one for which there was no
   more room (`ROOM` wait at most), is an event of the log: `webhook failed`, `webhook full`.
3. What waits when the server ends is tried once more, and is said in the log where that fails.
"""

import json
import queue
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from assay.errors import bad_argument

ROOM, TRIES, SECONDS, LONGEST_WAIT = 1000, 6, 5.0, 30.0
Told = Callable[[list[dict[str, Any]]], None]


class Webhook:
    """Sends alerts to `url`; `told(events)` writes to the log. Raises UsageError for an address that is none."""

    def __init__(self, url: str, told: Told) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise bad_argument("--webhook", url, "an http or https address")
        self.url, self.told = url, told
        self._queue: queue.Queue[dict[str, Any] | None] = queue.Queue(ROOM)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="assay-webhook", daemon=True)
        self._thread.start()

    def send(self, alert: Mapping[str, Any]) -> None:
        """Queue an alert; never waits."""
        try:
            self._queue.put_nowait(dict(alert))
        except queue.Full:
            self.told([{"kind": "webhook full", "alert": alert["id"]}])

    def close(self) -> None:
        """Try what waits once more, then end."""
        self._ending.set()
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (alert := self._queue.get()) is not None:
            self._deliver(alert)

    def _deliver(self, alert: Mapping[str, Any]) -> None:
        problem = ""
        for attempt in range(TRIES):
            problem = _post(self.url, alert)
            if not problem:
                self.told([{"kind": "webhook delivered", "alert": alert["id"], "tries": attempt + 1}])
                return
            if self._ending.wait(min(2.0**attempt, LONGEST_WAIT)) and attempt:
                break
        self.told([{"kind": "webhook failed", "alert": alert["id"], "why": problem[:200]}])


class _Straight(urllib.request.HTTPRedirectHandler):
    """An alert goes to the address that was given, nowhere else."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_Straight)


def _post(url: str, alert: Mapping[str, Any]) -> str:
    """What went wrong; "" where it was delivered."""
    body = json.dumps({**alert, "sent": time.time()}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json", "User-Agent": "assay"})
    try:
        with _OPENER.open(request, timeout=SECONDS) as answer:
            return "" if 200 <= answer.status < 300 else f"status {answer.status}"
    except (OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
