"""A Model Context Protocol server for AI agents, on the official SDK: its tools are the verbs of the app, all of them.

1. Every tool call goes through `run_verb`: the same schemas, roles, ledger and audit log as for people. A verb whose role is
   too low is listed, says so, and is refused when called; the refusal is logged.
2. An agent explores discover and tune freely. Confirm and ood are read by testing a claim, which is charged: there is no
   other way in, and asking for one is logged.
3. A verb runs in a thread. Its progress goes to the client; a call that the client gives up is stopped at its next step, and
   what is finished is kept, so that the same call goes on from there.
4. Answers are the record of a verb as JSON, at most `LARGEST` characters; the whole of a kept result, with what a page would
   show, is a resource (`assay://results/ID`). So are pages (`assay://pages/NAME?argument=value`).

Over stdio, or as streamable HTTP on loopback behind the guard of the web server (host, origin and token are checked).
"""

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

import anyio
import mcp_types as types
from anyio import from_thread, to_thread
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from mcp.shared.exceptions import MCPError

from assay.app.arguments import refuse
from assay.app.documents import clean, make_document, pages
from assay.app.results import kept_result, results
from assay.app.verbs import Cancelled, Report, Verb, run_verb, verbs
from assay.errors import AssayError, bad_argument

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from assay.app.workspace import Workspace

NAME, SCHEME, JSON = "assay", "assay", "application/json"
PATH = "/api/mcp"  # of the HTTP server: the guard asks for the token under /api
LARGEST, WHOLE = 60_000, 400_000  # characters of an answer as text, and as structured content
SHOWN = 50  # kept results that are listed
OFTEN = 0.25  # seconds between two signs of progress
INSTRUCTIONS = """\
Assay tests what is said about the inside of a model. Work like this:
1. Observe: models, tasks, measure_task (is there a behaviour?), patch, circuit_find, trace, probe, live, dose. They read
   the splits discover and tune, which are free.
2. State what you believe with claim_state (see claim_kinds). The plan is locked; nothing sealed has been read.
3. Test it once with claim_test. Only tests read confirm and ood (circuit_test, map and repair test claims, too). A second
   test of the same subject on the same data is decided at a stricter level (alpha / k^2), and claims that share data are
   corrected together: restating until it passes does not help.
4. Report the verdict with its reasons, counterexamples and what it does not show, and how many claims were tried.
Asking for sealed data by any other way is refused and logged. Refuted and inconclusive claims stay: report them."""
Context = ServerRequestContext[Any, Any]


class ClientReport(Report):
    """Progress that is sent to the client now and then, and the place where a call that was given up ends."""

    def __init__(self, session: Any) -> None:
        self.session, self.given_up = session, threading.Event()
        self._steps, self._last = 0, 0.0

    def __call__(self, step: int | str, done: int = 0, of: int = 0) -> None:
        if self.given_up.is_set():
            raise Cancelled("the client gave the call up; what is finished is kept, and the same call goes on from there")
        self._steps += 1
        now = time.monotonic()
        if now - self._last < OFTEN:
            return
        self._last = now
        words = f"{step} {done}/{of}" if isinstance(step, str) and of else str(step)
        from_thread.run(self.session.report_progress, float(self._steps), None, words)


class Agents:
    """The handlers of one server: tools and resources of a workspace."""

    def __init__(self, workspace: "Workspace") -> None:
        self.workspace = workspace

    async def list_tools(self, ctx: Context, params: types.PaginatedRequestParams | None) -> types.ListToolsResult:
        """Every verb."""
        return types.ListToolsResult(tools=[tool_of(found, self.workspace.allows(found.role)) for found in verbs()])

    async def call_tool(self, ctx: Context, params: types.CallToolRequestParams) -> types.CallToolResult:
        """Run a verb. What it refuses is an answer with `is_error`, which says what is allowed."""
        report = ClientReport(ctx.session)
        work = lambda: self._run(params.name, dict(params.arguments or {}), report)  # noqa: E731
        try:
            return await to_thread.run_sync(work, abandon_on_cancel=True)
        except anyio.get_cancelled_exc_class():
            report.given_up.set()
            raise

    def _run(self, name: str, arguments: Mapping[str, Any], report: ClientReport) -> types.CallToolResult:
        try:
            found = run_verb(self.workspace, name, arguments, report)
        except (AssayError, Cancelled) as error:
            about = refuse(error) if isinstance(error, AssayError) else {"message": str(error), "argument": "", "hint": ""}
            return answer({"error": about}, str(error), failed=True)
        record = clean(found["record"])
        kept = found.get("head", {}).get("id")
        told = {"disclosure": found["disclosure"]} if "disclosure" in found else {}  # first: it is never cut off
        whole = {**told, "record": record, **({"result": f"{SCHEME}://results/{kept}"} if kept else {})}
        return answer(bounded(whole), shortened(whole))

    async def list_resources(self, ctx: Context, params: types.PaginatedRequestParams | None) -> types.ListResourcesResult:
        """Pages, and the newest kept results."""
        return types.ListResourcesResult(resources=await to_thread.run_sync(self._resources))

    def _resources(self) -> list[types.Resource]:
        listed = [types.Resource(name=each.name, title=each.title, uri=f"{SCHEME}://pages/{each.name}", mime_type=JSON,
                                 description=each.summary) for each in pages() if each.listed]  # fmt: skip
        return listed + [types.Resource(name=head["id"], title=head["title"], uri=f"{SCHEME}://results/{head['id']}",
                                        mime_type=JSON, description=f"{head['verb']}, {head['made']}")
                         for head in results(self.workspace.atlas)[:SHOWN]]  # fmt: skip

    async def list_templates(
        self, ctx: Context, params: types.PaginatedRequestParams | None
    ) -> types.ListResourceTemplatesResult:
        """How pages with arguments, and results, are addressed."""
        found = [
            types.ResourceTemplate(name=each.name, title=each.title, mime_type=JSON, description=each.summary,
                                   uri_template=f"{SCHEME}://pages/{each.name}" + _query(each.parameters))
            for each in pages()
        ]  # fmt: skip
        kept = types.ResourceTemplate(name="result", uri_template=f"{SCHEME}://results/{{id}}", mime_type=JSON,
                                      description="A kept result of a verb, whole.")  # fmt: skip
        return types.ListResourceTemplatesResult(resource_templates=[*found, kept])

    async def read_resource(self, ctx: Context, params: types.ReadResourceRequestParams) -> types.ReadResourceResult:
        """A page as a document, or a kept result."""
        try:
            text = await to_thread.run_sync(lambda: json.dumps(self.resource(str(params.uri)), ensure_ascii=False))
        except AssayError as error:
            raise MCPError(types.INVALID_PARAMS, str(error)) from error
        return types.ReadResourceResult(contents=[types.TextResourceContents(uri=str(params.uri), mime_type=JSON, text=text)])

    def resource(self, uri: str) -> Any:
        """What an address leads to. Raises UsageError for one that leads nowhere."""
        parts = urlsplit(uri)
        name = parts.path.strip("/")
        if parts.scheme != SCHEME or parts.netloc not in ("pages", "results"):
            raise bad_argument("uri", uri, f"{SCHEME}://pages/NAME?argument=value or {SCHEME}://results/ID")
        if parts.netloc == "results":
            self.workspace.viewed("result", {"result": name})
            return kept_result(self.workspace.atlas, name)
        document = make_document(self.workspace, name, dict(parse_qsl(parts.query)))
        self.workspace.viewed(name, document["params"])
        return document


def make_server(workspace: "Workspace") -> Server[Any]:
    """The server of a workspace, for any transport."""
    agents = Agents(workspace)
    return Server(
        NAME, version=metadata.version("assay"), title="Assay", instructions=INSTRUCTIONS, on_list_tools=agents.list_tools,
        on_call_tool=agents.call_tool, on_list_resources=agents.list_resources,
        on_list_resource_templates=agents.list_templates, on_read_resource=agents.read_resource,
    )  # fmt: skip


def tool_of(found: Verb, allowed: bool) -> types.Tool:
    """A verb as a tool. What spends sealed data or needs a role that was not granted says so."""
    needs = "" if allowed else f" Needs the role {found.role}, which was not granted."
    hints = types.ToolAnnotations(read_only_hint=found.role == "read", destructive_hint=found.spends or found.role == "modify",
                                  idempotent_hint=not found.spends, open_world_hint=False)  # fmt: skip
    return types.Tool(name=found.name, description=found.summary + needs, input_schema=dict(found.parameters),
                      annotations=hints)  # fmt: skip


def answer(structured: Mapping[str, Any], text: str, failed: bool = False) -> types.CallToolResult:
    """A result of a tool: text for people and models, the same as values for programs."""
    return types.CallToolResult(content=[types.TextContent(text=text)], structured_content=dict(structured), is_error=failed)


def shortened(whole: Mapping[str, Any]) -> str:
    """An answer as JSON text; a long one is cut, and says where the whole is."""
    text = json.dumps(whole, ensure_ascii=False)
    if len(text) <= LARGEST:
        return text
    where = whole.get("result", "the structured content of this answer")
    return f"{text[:LARGEST]}… cut: {len(text)} characters in all, whole in {where}"


def bounded(whole: Mapping[str, Any]) -> Mapping[str, Any]:
    """An answer as values; of one that is too long for a message of the protocol, where it is."""
    length = len(json.dumps(whole))
    return whole if length <= WHOLE else {"cut": length, **{key: whole[key] for key in whole if key != "record"}}


def _query(parameters: Mapping[str, Any]) -> str:
    names: Sequence[str] = list(parameters["properties"])
    return f"{{?{','.join(names)}}}" if names else ""


# transports ----------------------------------------------------------------------------------------


async def _over_stdio(workspace: "Workspace") -> None:
    server = make_server(workspace)
    async with stdio_server() as (reading, writing):
        await server.run(reading, writing, server.create_initialization_options())


def serve_stdio(workspace: "Workspace") -> None:
    """Serve one client over standard input and output, until it closes them."""
    try:
        anyio.run(_over_stdio, workspace)
    finally:
        workspace.views.flush()


def http_app(workspace: "Workspace", token: str, host: str = "127.0.0.1") -> "ASGIApp":
    """Streamable HTTP at `PATH`, behind the guard of the web server. `token`: what every request must carry."""
    from assay.app.security import LARGEST as BODY
    from assay.app.security import Guard

    made = make_server(workspace).streamable_http_app(streamable_http_path=PATH, host=host, max_request_body_size=BODY)
    return Guard(made, token, host)


def serve_http(workspace: "Workspace", token: str, port: int, ready: Callable[[str], None], host: str = "127.0.0.1") -> None:
    """Serve on loopback until interrupted; `ready` is called with the address once the port is bound."""
    import socket

    import uvicorn

    with socket.socket() as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind((host, port))
        except OSError as error:
            raise bad_argument("--port", port, f"a port that is free ({error.strerror or error}); 0 takes any") from error
        ready(f"http://{host}:{bound.getsockname()[1]}{PATH}")
        config = uvicorn.Config(http_app(workspace, token, host), log_level="warning", access_log=False)
        try:
            uvicorn.Server(config).run(sockets=[bound])
        finally:
            workspace.views.flush()
