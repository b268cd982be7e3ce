"""Alerts, sent to an address as JSON. The log has them whatever happens here.

1. One thread sends one alert at a time: POST, JSON, `SECONDS` from connecting to the answer, however slowly it comes;
   redirects are not followed; 2xx is delivered.
2. What fails is tried again after 1, 2, 4, .. seconds, `TRIES` times. An alert that was refused, and one for which there was no
   more room (`ROOM` wait at most), is an event of the log: `webhook failed`, `webhook full`.
3. What waits when the server ends is tried once more each, for `ENDING` seconds in all; what was not delivered then is in the
   log as failed.
"""

import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from assay.errors import bad_argument

ROOM, TRIES, SECONDS, LONGEST_WAIT = 1000, 6, 5.0, 30.0
ENDING = 5.0  # seconds in which what waits is tried when the server ends
Event = dict[str, Any]
Told = Callable[[list[Event]], None]


class Webhook:
    """Sends alerts to `url`; `told(events)` writes to the log. Raises UsageError for an address that is none."""

    def __init__(self, url: str, told: Told) -> None:
        self.url, self.told = checked(url), told
        self._waiting: deque[dict[str, Any]] = deque()  # the first is the one that is being sent
        self._change = threading.Condition()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="assay-webhook", daemon=True)
        self._thread.start()

    def send(self, alert: Mapping[str, Any]) -> None:
        """Queue an alert; never waits for the receiver."""
        with self._change:
            if room := len(self._waiting) < ROOM:
                self._waiting.append(dict(alert))
                self._change.notify()
        if not room:
            self.told([{"kind": "webhook full", "alert": alert["id"]}])

    def close(self) -> None:
        """Try what waits once more, then end; after `ENDING` seconds in any case."""
        with self._change:
            self._ending.set()
            self._change.notify()
        self._thread.join(ENDING)
        with self._change:
            left = list(self._waiting)
            self._waiting.clear()
            self.told([_failed(alert, "the server ended before it was delivered") for alert in left])

    def _run(self) -> None:
        while (alert := self._next()) is not None:
            event = self._deliver(alert)
            with self._change:
                if self._waiting:  # else `close` has given up and told of it
                    self._waiting.popleft()
                    self.told([event])

    def _next(self) -> dict[str, Any] | None:
        """The alert that has waited longest; None at the end."""
        with self._change:
            self._change.wait_for(lambda: self._waiting or self._ending.is_set())
            return self._waiting[0] if self._waiting else None

    def _deliver(self, alert: Mapping[str, Any]) -> Event:
        """What became of an alert."""
        problem = ""
        for attempt in range(TRIES):
            last = self._ending.is_set()  # looked at before the try: the end may come while it waits for an answer
            problem = _post(self.url, alert)
            if not problem:
                return {"kind": "webhook delivered", "alert": alert["id"], "tries": attempt + 1}
            if last:
                break
            self._ending.wait(min(2.0**attempt, LONGEST_WAIT))
        return _failed(alert, problem)


def checked(url: str) -> str:
    """An address that alerts can be sent to. Raises UsageError for another, which would fail at the first alert."""
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and parts.username is None
    except ValueError:  # a port or an IPv6 host that is none
        fits = False
    if not fits or not all("!" <= letter <= "~" for letter in url):
        raise bad_argument("--webhook", url, "an http or https address in ASCII, without spaces, user or password",
                           "For example https://alerts.example:8443/assay.")  # fmt: skip
    return url


def _failed(alert: Mapping[str, Any], why: str) -> Event:
    return {"kind": "webhook failed", "alert": alert["id"], "why": why[:200]}


class _Straight(urllib.request.HTTPRedirectHandler):
    """An alert goes to the address that was given, nowhere else."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


class _Timed:
    """A connection that is cut `SECONDS` after it was made: the time-out of a socket is one for each read."""

    sock: Any

    def connect(self) -> None:
        super().connect()  # type: ignore[misc]
        clock = threading.Timer(SECONDS, _shut, [self.sock])
        clock.daemon = True
        clock.start()


class _Http(_Timed, HTTPConnection):
    pass


class _Https(_Timed, HTTPSConnection):
    pass


class _HttpHandler(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(_Http, req)


class _HttpsHandler(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(_Https, req)


def _shut(sock: socket.socket) -> None:
    with suppress(OSError):  # closed already
        sock.shutdown(socket.SHUT_RDWR)


_OPENER = urllib.request.build_opener(_Straight, _HttpHandler, _HttpsHandler)


def _post(url: str, alert: Mapping[str, Any]) -> str:
    """What went wrong; "" where it was delivered."""
    body = json.dumps({**alert, "sent": time.time()}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json", "User-Agent": "assay"})
    try:
        with _OPENER.open(request, timeout=SECONDS) as answer:
            return "" if 200 <= answer.status < 300 else f"status {answer.status}"
    except (OSError, ValueError, HTTPException) as error:  # the last: what answered does not speak HTTP
        return f"{type(error).__name__}: {error}"
