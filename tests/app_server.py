"""A real server for tests of the app: uvicorn in a thread, and a small client over plain sockets."""

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn

from assay.app.server import make_app
from assay.app.workspace import Workspace

TOKEN = "a-token-of-the-tests"


@dataclass(frozen=True)
class Answer:
    """A status, headers by lower-case name, and the body."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, str]:
        return self.json["error"]


@dataclass(frozen=True)
class Client:
    """Asks a server. Headers that are None are left out."""

    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self, method: str, path: str, body: Any = None, raw: bytes | None = None, **headers: str | None) -> Answer:
        given = {"Authorization": f"Bearer {TOKEN}", **{name.replace("_", "-"): value for name, value in headers.items()}}
        content = raw if raw is not None else None if body is None else json.dumps(body).encode()
        if content is not None and "Content-Type" not in given:
            given["Content-Type"] = "application/json"
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            link.request(method, path, content, {name: value for name, value in given.items() if value is not None})
            found = link.getresponse()
            return Answer(found.status, {name.lower(): value for name, value in found.getheaders()}, found.read())
        finally:
            link.close()

    def get(self, path: str, **headers: str | None) -> Answer:
        return self.ask("GET", path, **headers)

    def post(self, path: str, body: Any = None, **headers: str | None) -> Answer:
        return self.ask("POST", path, {} if body is None else body, **headers)

    def wait(self, job: str, *states: str, seconds: float = 30.0) -> dict[str, Any]:
        """A job once it is in one of these states."""
        deadline = time.monotonic() + seconds
        while True:
            found = self.get(f"/api/jobs/{job}").json
            if found["state"] in states:
                return found
            assert time.monotonic() < deadline, found
            time.sleep(0.02)

    def events(self, job: str, after: int = 0) -> list[tuple[str, dict[str, Any]]]:
        """All events of a job until the stream ends."""
        text = self.get(f"/api/jobs/{job}/events", Last_Event_ID=str(after)).body.decode()
        found = []
        for part in text.strip().split("\n\n"):
            lines = dict(line.split(": ", 1) for line in part.splitlines() if not line.startswith(":"))
            if "event" in lines:
                found.append((lines["event"], json.loads(lines["data"])))
        return found


@contextmanager
def running(workspace: Workspace, host: str = "127.0.0.1") -> Iterator[Client]:
    """A server of this workspace on a free port, ended at the end."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    config = uvicorn.Config(make_app(workspace, TOKEN, host), log_level="warning", lifespan="on", server_header=False,
                            timeout_graceful_shutdown=2)  # fmt: skip
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield Client(listening.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(20)
        listening.close()
