"""The endpoint: what a client of OpenAI calls, over the worker.

    POST /v1/chat/completions, /v1/completions     streamed (server-sent events) or not
    GET  /v1/models, /v1/models/NAME               the one model that is served
    GET  /v1/monitors                              monitors, their states, and what they promise
    GET  /health                                   whether it answers, for a load balancer; needs no token

1. `access.Guard` stands before all of it.
2. A client that went away is noticed at once, and its rows are free at the next step. A client that reads slowly delays
   nobody: what was made waits for it, and after `SLOWEST` seconds in which it took nothing it is let go.
3. Errors have the form {"error": {"message", "type", "param", "code"}}; in a stream that began they are its last event.
"""

import asyncio
import json
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from threading import Lock
from typing import Any

from anyio import to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from assay.errors import AssayError
from assay.serving.access import Guard, refusal
from assay.serving.answers import Answers, dumps, event
from assay.serving.asked import Asked, read_chat, read_completion
from assay.serving.refused import Refused, no_model
from assay.serving.reply import Done, Failed, Piece, Shown, Ticket
from assay.serving.worker import Worker, tell

SLOWEST = 30.0  # seconds in which a client takes nothing of what it is sent
GRACE = 5.0  # seconds for replies to finish when the server ends
LAST = b"data: [DONE]\n\n"
Reader = Callable[..., Asked]


class Service:
    """The routes. `served`: the name of the model; `most`: tokens of a reply."""

    def __init__(self, worker: Worker, served: str, most: int) -> None:
        self.worker, self.served, self.most = worker, served, most
        self._closed = False
        self._reading = Lock()  # tokenizers are not for more than one thread

    def app(self, token: str, host: str = "127.0.0.1", names: tuple[str, ...] = ()) -> Guard:
        """The ASGI app; when it ends, the worker, the webhook and the log end, in this order."""

        @asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[None]:
            yield
            await to_thread.run_sync(self.close)

        routes = [
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/completions", self.completion, methods=["POST"]), Route("/v1/models", self.models),
            Route("/v1/models/{name:path}", self.model), Route("/v1/monitors", self.monitors), Route("/health", self.health),
        ]  # fmt: skip
        handlers: Any = {HTTPException: _http, Refused: _refused, ClientDisconnect: _gone, Exception: _defect}
        return Guard(Starlette(routes=routes, lifespan=lifespan, exception_handlers=handlers), token, host, names)

    def close(self) -> None:
        """End everything; nothing of the log is lost."""
        if self._closed:
            return
        self._closed = True
        self.worker.close(GRACE)
        if self.worker.webhook is not None:
            self.worker.webhook.close()
        self.worker.log.put([{"kind": "server ended"}])
        self.worker.log.close()

    # completions -----------------------------------------------------------------------------

    async def chat(self, request: Request) -> "Response | Streamed":
        return await self._complete(request, read_chat)

    async def completion(self, request: Request) -> "Response | Streamed":
        return await self._complete(request, read_completion)

    async def _complete(self, request: Request, read: Reader) -> "Response | Streamed":
        body = await _body(request)
        asked = await to_thread.run_sync(self._read, read, body)
        ticket = Ticket(asked, asyncio.get_running_loop())
        self.worker.submit(ticket)
        answers = Answers(ticket, self.served)
        if asked.stream:
            return Streamed(ticket, answers)
        try:
            return await self._whole(request, ticket, answers)
        finally:
            ticket.cancelled = True  # when it is over this changes nothing

    def _read(self, read: Reader, body: dict[str, Any]) -> Asked:
        with self._reading:
            return read(self.worker.model, self.served, body, self.most)

    async def _whole(self, request: Request, ticket: Ticket, answers: Answers) -> Response:
        pieces: list[list[Piece]] = [[] for _ in range(ticket.rows)]
        done: dict[int, Done] = {}
        gone = asyncio.ensure_future(_disconnected(request.receive))
        try:
            while len(done) < ticket.rows:
                shown = await _next(ticket, gone)
                if isinstance(shown, Failed):
                    raise shown.problem
                if isinstance(shown, Piece):
                    pieces[shown.choice].append(shown)
                else:
                    done[shown.choice] = shown
        finally:
            gone.cancel()
        return _json(answers.whole(pieces, [done[at] for at in range(ticket.rows)]))

    # what there is ---------------------------------------------------------------------------

    async def models(self, request: Request) -> Response:
        return _json({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name != self.served:
            raise no_model(name, self.served)
        return _json(self._model())

    def _model(self) -> dict[str, Any]:
        settings = self.worker.settings
        return {"id": self.served, "object": "model", "created": 0, "owned_by": "assay",
                "assay": {"monitors": self._monitors(), "action": settings.action, "units": list(settings.units),
                          "judge": list(settings.judge), "modified": settings.modified or None}}  # fmt: skip

    async def monitors(self, request: Request) -> Response:
        return _json({"object": "list", "data": self._monitors()})

    def _monitors(self) -> list[dict[str, Any]]:
        return [{"monitor": armed.monitor.name, "watches": armed.monitor.watches, "state": armed.state,
                 "sites": armed.monitor.sites,
                 "thresholds": {unit: asdict(made) for unit, made in armed.monitor.thresholds.items()}}
                for armed in self.worker.readers.armed]  # fmt: skip

    async def health(self, request: Request) -> Response:
        failed, armed = self.worker.failed, self.worker.readers.armed
        open_gate = self.worker.settings.action != "log" and any(not one.calibrated for one in armed)
        status = "failed" if failed else "unprotected" if open_gate else "ok"
        return _json({"status": status, "replies": self.worker.taken,
                      "monitors": {one.monitor.name: one.state for one in armed}}, 503 if failed else 200)  # fmt: skip


class Streamed:
    """A reply as server-sent events; ends when it is over, when the client has gone, or takes nothing any more."""

    def __init__(self, ticket: Ticket, answers: Answers) -> None:
        self.ticket, self.answers = ticket, answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            with suppress(TimeoutError, ClientDisconnect, OSError):
                await self._send(send, gone)
        finally:
            self.ticket.cancelled = True  # when it is over this changes nothing
            gone.cancel()

    async def _send(self, send: Send, gone: "asyncio.Future[None]") -> None:
        shown = await _next(self.ticket, gone)  # before the status: a reply that fails at once has that of its error
        if isinstance(shown, Failed):
            raise shown.problem
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"x-accel-buffering", b"no")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await _give(send, b"".join(map(event, self.answers.opening())))
        done: list[Done] = []
        while True:
            await _give(send, event(self._event(shown)))
            done += [shown] if isinstance(shown, Done) else []
            if isinstance(shown, Failed) or len(done) == self.ticket.rows:
                break
            shown = await _next(self.ticket, gone)
        if len(done) == self.ticket.rows:
            totals = event(self.answers.totals(done)) if self.ticket.asked.usage else b""
            await _give(send, totals + LAST)
        await send({"type": "http.response.body", "body": b""})

    def _event(self, shown: Shown) -> dict[str, Any]:
        if isinstance(shown, Failed):
            return self.answers.failed(shown.problem)
        return self.answers.piece(shown) if isinstance(shown, Piece) else self.answers.done(shown)


async def _give(send: Send, content: bytes) -> None:
    """Send a part of an answer. Raises TimeoutError where the client takes nothing."""
    await asyncio.wait_for(send({"type": "http.response.body", "body": content, "more_body": True}), SLOWEST)


async def _next(ticket: Ticket, gone: "asyncio.Future[None]") -> Shown:
    """What is shown next. Raises ClientDisconnect when the client has gone."""
    if not ticket.shown.empty():
        return ticket.shown.get_nowait()
    coming = asyncio.ensure_future(ticket.shown.get())
    await asyncio.wait({coming, gone}, return_when=asyncio.FIRST_COMPLETED)
    if coming.done():
        return coming.result()
    coming.cancel()
    raise ClientDisconnect


async def _disconnected(receive: Receive) -> None:
    """Returns when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _body(request: Request) -> dict[str, Any]:
    """The JSON object of a request. Raises Refused."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refused(415, f"Content-Type: got {kind[:60]!r}; allowed: application/json.", "Content-Type")
    try:
        found = json.loads(await request.body(), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise Refused(400, "The body is not JSON.", "body") from error
    if not isinstance(found, dict):
        raise Refused(400, "The body must be a JSON object.", "body")
    return found


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _json(value: Any, status: int = 200) -> Response:
    return Response(dumps(value), status, media_type="application/json")


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return refusal(error)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return refusal(Refused(error.status_code, f"{request.method} {request.url.path[:200]}: {error.detail}."))


async def _gone(request: Request, error: Exception) -> Response:
    return refusal(Refused(400, "The client went away."))


async def _defect(request: Request, error: Exception) -> Response:
    """A mistake of the caller that the parts below found, or a defect of this program."""
    if isinstance(error, AssayError):
        return refusal(Refused(400, str(error)))
    tell("".join(traceback.format_exception(error)))
    return refusal(Refused(500, f"This failed inside Assay ({type(error).__name__}); the server's output says where."))


