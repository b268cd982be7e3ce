"""The web server: documents, verbs, jobs and the built front end, in one process.

    GET  /                                   the page that shows everything else
    GET  /api/pages                          which pages there are
    GET  /api/pages/NAME?..                  a page as a document
    GET  /api/pages/NAME/export.html?..      a page as one file that needs nothing else
    GET  /api/verbs                          what can be done
    POST /api/verbs/NAME                     do it: {"record", "blocks"}, or {"job": id} where it takes long
    GET  /api/jobs, /api/jobs/ID             jobs and how far they are
    POST /api/jobs/ID/cancel, …/resume
    GET  /api/jobs/ID/events                 progress as server-sent events
    GET  /api/openapi.json                   the description of all this

1. `security.Guard` stands before all of it. Roles and the audit log are those of the command line (`assay.permissions`).
2. Every refusal is {"error": {"message", "argument", "hint"}} with the status that fits (`STATUS`).
3. Pages and verbs run in threads; events are read from the job's list ten times a second.
"""

import asyncio
import json
import sys
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from anyio import to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from assay.app.arguments import checked, refuse
from assay.app.documents import clean, in_order, make_document, pages
from assay.app.jobs import Jobs, TooMany
from assay.app.security import Guard, problem, refusal
from assay.app.verbs import run_verb, verbs
from assay.app.workspace import Busy, Workspace
from assay.errors import AssayError, MissingError, MissingRecord, StoreError, TamperedError, UsageError, bad_argument, missing
from assay.serving.refused import Refused

STATIC = Path(__file__).parent / "static"
POLL, BEAT = 0.1, 15.0  # seconds between looks at a job's events; between signs of life on a quiet stream
ATTACHED = "default-src 'none'; sandbox"
NOT_BUILT = """<!doctype html><meta charset="utf-8"><title>Assay</title>
<h1>The front end is not built</h1>
<p>This is a source checkout. Build it once: <code>make web</code>. Then load this page again.</p>
<p>Everything it shows is at <code>/api</code> (description: <code>/api/openapi.json</code>), and on the command line.</p>
"""
Handler = Callable[[Request], Awaitable[Response]]


class NotAllowed(UsageError):
    """The role of this server is too low."""


class NotJson(UsageError):
    """A body that is no JSON object, or is not called one."""


STATUS: tuple[tuple[type[AssayError], int], ...] = (
    (MissingError, 404), (MissingRecord, 404), (NotAllowed, 403), (NotJson, 415), (TooMany, 429), (UsageError, 400),
    (Busy, 503), (TamperedError, 409), (StoreError, 409), (AssayError, 422),
)  # fmt: skip


def make_app(workspace: Workspace, token: str, host: str = "127.0.0.1", names: Sequence[str] = ()) -> Guard:
    """The ASGI app. `token`: what every call must carry; `host`: what it is bound to; `names`: further names it goes by."""
    server = _Server(workspace)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        from assay.atlas.database import start_engine

        await to_thread.run_sync(start_engine)
        yield
        await to_thread.run_sync(server.close)

    app = Starlette(routes=server.routes(), lifespan=lifespan, exception_handlers={
        HTTPException: _http_error, Exception: _defect,
    })  # fmt: skip
    return Guard(app, token, host, names)


class _Server:
    """The routes, over one workspace and its jobs."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace, self.jobs = workspace, Jobs(workspace)
        self.ending = False

    def routes(self) -> list[Route | Mount]:
        handlers: list[tuple[str, str, Any]] = [
            ("GET", "/api/pages", self.pages), ("GET", "/api/pages/{name}", self.page),
            ("GET", "/api/pages/{name}/export.html", self.export), ("GET", "/api/verbs", self.verbs),
            ("POST", "/api/verbs/{name}", self.verb), ("GET", "/api/jobs", self.listing), ("GET", "/api/jobs/{id}", self.job),
            ("POST", "/api/jobs/{id}/cancel", self.cancel), ("POST", "/api/jobs/{id}/resume", self.resume),
            ("GET", "/api/jobs/{id}/events", self.events), ("GET", "/api/openapi.json", self.openapi),
        ]  # fmt: skip
        routes: list[Route | Mount] = [Route(path, _answering(handler), methods=[method]) for method, path, handler in handlers]
        return [*routes, Route("/", _index), Mount("/assets", StaticFiles(directory=STATIC / "assets", check_dir=False))]

    def close(self) -> None:
        """Streams end at their next look; jobs stop at their next step and are interrupted."""
        self.ending = True
        self.jobs.close()
        self.workspace.views.flush()

    # pages -----------------------------------------------------------------------------------

    async def pages(self, request: Request) -> Response:
        listed = [{"page": page.name, "title": page.title, "summary": page.summary, "group": page.group,
                   "listed": page.listed, "parameters": page.parameters} for page in in_order()]  # fmt: skip
        return answer({"pages": listed, "model": self.workspace.model, "role": self.workspace.role,
                       "atlas": str(self.workspace.atlas), "version": metadata.version("assay")})  # fmt: skip

    async def page(self, request: Request) -> Response:
        return answer(await self._document(request))

    async def export(self, request: Request) -> Response:
        from assay.app.export import render

        document = await self._document(request)
        name = "".join(letter for letter in document["page"] if letter.isalnum() or letter in "-_")
        text = await to_thread.run_sync(render, document)
        return Response(text, media_type="text/html", headers={
            "Content-Disposition": f'attachment; filename="assay-{name}.html"', "Content-Security-Policy": ATTACHED,
        })  # fmt: skip

    async def _document(self, request: Request) -> Any:
        name = request.path_params["name"]
        if name not in pages():
            raise missing("page", name[:80], ", ".join(pages().names()))
        document = await to_thread.run_sync(make_document, self.workspace, name, single(request.query_params.multi_items()))
        self.workspace.viewed(name, document["params"])
        return document

    # verbs -----------------------------------------------------------------------------------

    async def verbs(self, request: Request) -> Response:
        return answer({"verbs": [
            {"name": verb.name, "role": verb.role, "summary": verb.summary, "long": verb.long, "spends": verb.spends,
             "allowed": self.workspace.allows(verb.role), "parameters": verb.parameters} for verb in verbs()]})  # fmt: skip

    async def verb(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in verbs():
            raise missing("verb", name[:80], ", ".join(verbs().names()))
        given = clean(await read_body(request))
        return answer(await to_thread.run_sync(self._do, name, given))

    def _do(self, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
        found = verbs().get(name)
        if not self.workspace.allows(found.role):
            try:
                run_verb(self.workspace, name, given)  # refuses it, and writes that down
            except UsageError as error:
                raise NotAllowed(str(error)) from error
        if not found.long:
            return run_verb(self.workspace, name, given)
        try:
            self.workspace.require(found.role, checked(found.parameters, given, f"verb {name}").get("reason"))
        except AssayError:
            run_verb(self.workspace, name, given)  # refuses it as well, and writes that down
            raise
        return {"job": self.jobs.add(name, given).id}

    # jobs ------------------------------------------------------------------------------------

    async def listing(self, request: Request) -> Response:
        found = await to_thread.run_sync(self.jobs.listing)
        return answer({"jobs": [job.to_json() for job in found]})

    async def job(self, request: Request) -> Response:
        return answer(await to_thread.run_sync(self._job, request.path_params["id"]))

    def _job(self, name: str) -> dict[str, Any]:
        job = self.jobs.get(name)
        result = self.jobs.result(name)
        return {**job.to_json(), **({"result": result} if result is not None else {})}

    async def cancel(self, request: Request) -> Response:
        return answer(await to_thread.run_sync(self._act, self.jobs.cancel, request.path_params["id"]))

    async def resume(self, request: Request) -> Response:
        return answer(await to_thread.run_sync(self._act, self.jobs.resume, request.path_params["id"]))

    def _act(self, act: Callable[[str], Any], name: str) -> dict[str, Any]:
        self.jobs.get(name)
        return act(name).to_json()

    async def events(self, request: Request) -> Response:
        name = request.path_params["id"]
        await to_thread.run_sync(self.jobs.get, name)
        last = request.headers.get("last-event-id", "0")
        after = int(last) if last.isdecimal() and len(last) < 10 else 0
        return StreamingResponse(self._stream(name, after), media_type="text/event-stream")

    async def _stream(self, name: str, after: int) -> AsyncIterator[str]:
        quiet = 0.0
        while not self.ending:
            found, over = await to_thread.run_sync(self.jobs.events, name, after)
            for after, kind, data in found:  # noqa: B020
                yield f"id: {after}\nevent: {kind}\ndata: {json.dumps(data, allow_nan=False)}\n\n"
            if over:
                return
            quiet = 0.0 if found else quiet + POLL
            if quiet > BEAT:
                quiet = 0.0
                yield ": still here\n\n"
            await asyncio.sleep(POLL)

    # description -----------------------------------------------------------------------------

    async def openapi(self, request: Request) -> Response:
        from assay.app.openapi import describe

        return answer(await to_thread.run_sync(describe))


# answers -------------------------------------------------------------------------------------------


def answer(value: Any, status: int = 200) -> Response:
    """JSON. Characters above ASCII are escaped, so that no text of a model can break an encoding."""
    return Response(json.dumps(value, allow_nan=False, separators=(",", ":")), status, media_type="application/json")


def single(items: list[tuple[str, str]]) -> dict[str, str]:
    """Arguments of an address. Raises UsageError for one that is given twice."""
    found = dict(items)
    if len(found) != len(items):
        raise bad_argument("address", "an argument given twice", "each argument once")
    return found


async def read_body(request: Request) -> dict[str, Any]:
    """The JSON object of a request. Raises `NotJson`."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise NotJson(str(bad_argument("Content-Type", request.headers.get("content-type", ""), "application/json")))
    content = await request.body()
    try:
        found = json.loads(content, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise bad_argument("body", type(error).__name__, "a JSON object with the arguments") from error
    if not isinstance(found, dict):
        raise bad_argument("body", type(found).__name__, "a JSON object with the arguments")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _answering(handler: Handler) -> Handler:
    """A handler whose refusals are answers."""

    async def run(request: Request) -> Response:
        try:
            return await handler(request)
        except Refused as error:
            return refusal(error)
        except AssayError as error:
            status = next(code for kind, code in STATUS if isinstance(error, kind))
            return answer({"error": refuse(error)}, status)
        except ClientDisconnect:
            return problem(400, "The body ended early.", "body")
        except Exception as error:
            return await _defect(request, error)

    return run


async def _http_error(request: Request, error: Exception) -> Response:
    """What the router refuses: an address that is none, a method that is not allowed."""
    assert isinstance(error, HTTPException)
    hint = "See /api/openapi.json." if request.url.path.startswith("/api") else ""
    return problem(error.status_code, str(error.detail), "", hint, dict(error.headers or {}))


async def _defect(request: Request, error: Exception) -> Response:
    """A defect of this program: told in full to whoever runs the server."""
    traceback.print_exception(error, file=sys.stderr)
    return problem(500, f"This failed inside Assay ({type(error).__name__}); the server's output says where.")


async def _index(request: Request) -> Response:
    """The front end; a page that says how to build it, where that was not done."""
    try:
        return Response((STATIC / "index.html").read_bytes(), media_type="text/html", headers={"Cache-Control": "no-cache"})
    except OSError:
        return Response(NOT_BUILT, 503, media_type="text/html")

