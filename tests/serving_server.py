"""A server on a real socket in this process, with monitors made by hand."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import openai
import torch
import uvicorn

from assay import permissions
from assay.model.model import Model
from assay.monitor.records import Head, Monitor, bindings
from assay.monitor.thresholds import Threshold
from assay.monitor.units import Pooling
from assay.serving.server import Service
from assay.serving.start import start
from assay.serving.worker import Settings

TOKEN = "a-token-of-this-test"
SITE = "resid_post.1"


def monitor(model: Model, name: str = "hand", pooling: str = "mean", seed: int = 1, **bars: float) -> Monitor:
    """A monitor that reads one random direction; `bars`: thresholds by unit."""
    weight, query = np.random.default_rng(seed).normal(size=(2, model.dims.d_model)) / 10
    times = {"created": "2026-01-01T00:00:00+00:00", "expires": "2999-01-01T00:00:00+00:00"}
    thresholds = {unit: Threshold(unit, bar, 0.01, 500, 1, 0.0001, 0.01) for unit, bar in bars.items()}
    bound = {**bindings(model), **times}
    return Monitor(name, "a random direction", (Head(SITE, weight, 0.1, query),), Pooling(pooling), bound, thresholds)


def token_scores(model: Model, made: Monitor, tokens: list[int]) -> np.ndarray:
    """Scores of every token from one plain pass."""
    return made.token_scores({SITE: model.capture([tokens], SITE)[SITE][0].numpy()})


@dataclass
class Running:
    """A server and what talks to it."""

    service: Service
    server: uvicorn.Server
    port: int
    folder: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=TOKEN, max_retries=0, **options)

    def post(self, path: str, headers: dict[str, str] | None = None, **options: Any) -> httpx2.Response:
        return httpx2.post(self.url + path, headers={"Authorization": f"Bearer {TOKEN}", **(headers or {})}, **options)

    def body(self, **changes: Any) -> dict[str, Any]:
        """A small request for a chat."""
        messages = [{"role": "user", "content": "The old man"}]
        return {"model": self.service.served, "messages": messages, "max_tokens": 8, "temperature": 0, **changes}

    def raw(self, body: bytes, path: str = "/v1/chat/completions") -> socket.socket:
        """A connection that has sent a request and read nothing."""
        link = socket.socket()
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        link.connect(("127.0.0.1", self.port))
        head = (f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nAuthorization: Bearer {TOKEN}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n")  # fmt: skip
        link.sendall(head.encode() + body)
        return link

    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        return events(self.folder, kind)

    def wait(self, kind: str, n: int = 1, seconds: float = 20) -> list[dict[str, Any]]:
        """Events of a kind, once there are n."""
        return wait_for(lambda: found if len(found := self.events(kind)) >= n else None, seconds)


def events(folder: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """What the log of a server holds."""
    entries = [entry for entry in permissions.entries(folder) if entry["action"] == "monitor serve"]
    found = [event for entry in entries for event in entry["body"]["events"]]
    return [event for event in found if kind is None or event["kind"] == kind]


def wait_for(look: Any, seconds: float = 20) -> Any:
    """The first true answer."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := look():
            return found
        time.sleep(0.02)
    raise AssertionError("it did not happen in time")


@contextlib.contextmanager
def serving(
    model: Model, monitors: Any, folder: Path, settings: Settings | None = None, small_buffers: bool = False, pace: float = 0.0,
    **options: Any,
) -> Iterator[Running]:  # fmt: skip
    """A running server; it is ended, and its log verified, afterwards.

    `small_buffers`: little fits between it and a client. `pace`: seconds that a step takes longer than it does.
    """
    service = start(model, monitors, folder, settings, **options)
    step = service.worker.stream.step
    if pace:
        service.worker.stream.step = lambda: (time.sleep(pace), step())[1]
    listening = socket.socket()
    if small_buffers:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    listening.bind(("127.0.0.1", 0))
    listening.listen(128)
    config = uvicorn.Config(service.app(TOKEN), log_level="error", lifespan="on", timeout_graceful_shutdown=3)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        wait_for(lambda: server.started)
        yield Running(service, server, listening.getsockname()[1], folder)
    finally:
        server.should_exit = True
        thread.join(20)
        listening.close()
    assert permissions.verify(folder) == []


def greedy(model: Model, tokens: list[int], n: int) -> list[int]:
    """What the model says by itself."""
    return model.generate([tokens], max_new_tokens=n).tokens[0]


def direction(model: Model, seed: int = 5) -> torch.Tensor:
    return torch.randn(model.dims.d_model, generator=torch.Generator().manual_seed(seed))
