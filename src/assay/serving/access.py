"""Who may talk to a server: a plain ASGI wrapper that sees every request first.

1. *Host*: only names this server was started under. A page elsewhere that resolves its own name to 127.0.0.1 (DNS rebinding)
   sends its own name. A server on all interfaces also answers to addresses in numbers, which no name can stand for.
2. *Origin*: where a browser names one, it must be this server; `Sec-Fetch-Site` must be same-origin or none, except at
   addresses that are open (/health).
3. *Token*: every address that is not open wants `Authorization: Bearer TOKEN`, compared in constant time. There are no cookies.
4. *Size*: bodies above `LARGEST` are refused, by their announced length and while they come in, and those that do not come in
   `SLOWEST` seconds.
5. *Answers*: no sniffing, no framing, no keeping of data.

The app has the same guard with other words, other headers and other open addresses (`assay.app.security`).
"""

import asyncio
import hmac
import ipaddress
import json
import secrets
import socket
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from assay.errors import bad_argument
from assay.serving.refused import Refused

LARGEST = 2 << 20  # bytes of a request's body
SHORTEST = 16  # characters of a token that is chosen by hand
SLOWEST = 30.0  # seconds for a body
LOOPBACK = ("127.0.0.1", "localhost", "::1")
ANYWHERE = ("0.0.0.0", "::")
OPEN = ("/health",)
HEADERS = {"X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer",
           "Cache-Control": "no-store", "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
           "Cross-Origin-Resource-Policy": "same-origin"}  # fmt: skip


def token_for(host: str, given: str | None) -> str:
    """The token of a server: given, else 256 new random bits. Off loopback one must be given: somebody chose to open it."""
    if given is None and not is_loopback(host):
        raise bad_argument("--token", None, f"a token of at least {SHORTEST} characters, since --host {host} is not loopback",
                           "Make one: python3 -c 'import secrets; print(secrets.token_urlsafe(32))'")  # fmt: skip
    if given is not None and (len(given) < SHORTEST or not given.isascii() or not given.isprintable() or " " in given):
        raise bad_argument("--token", "…", f"at least {SHORTEST} printable ASCII characters without spaces")
    return given or secrets.token_urlsafe(32)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine and nothing else."""
    if host.lower() == "localhost":
        return True
    return is_number(host) and ipaddress.ip_address(host).is_loopback


def names_of(host: str) -> frozenset[str]:
    """The names a server on `host` answers to."""
    found = {host.lower()}
    if is_loopback(host):
        found.update(LOOPBACK)
    elif host in ANYWHERE:
        found.update({*LOOPBACK, socket.gethostname().lower(), socket.getfqdn().lower()})
    return frozenset(found)


class Guard:
    """Checks 1 to 4 before the app sees a request, 5 on the way back."""

    def __init__(self, app: ASGIApp, token: str, host: str = "127.0.0.1", names: Iterable[str] = ()) -> None:
        self.app, self.token, self.anywhere = app, token.encode(), host in ANYWHERE
        self.names = names_of(host) | {name.lower() for name in names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":  # no web sockets
            try:
                self.check(scope["path"], Headers(scope=scope), scope.get("scheme", "http"))
            except Refused as problem:
                await self.answer(problem)(scope, receive, self._with_headers(send, scope["path"]))
            else:
                await self.app(scope, _limited(receive), self._with_headers(send, scope["path"]))

    def is_open(self, path: str) -> bool:
        """Whether an address needs no token."""
        return path in OPEN

    def answer(self, problem: Refused) -> Response:
        """The answer to a request that goes no further."""
        return refusal(problem)

    def headers(self, path: str) -> Mapping[str, str]:
        """What every answer of an address carries."""
        return HEADERS

    def check(self, path: str, headers: Headers, scheme: str) -> None:
        """Raises Refused for a request that goes no further."""
        host = headers.get("host", "")
        if not self._knows(host):
            raise Refused(421, "This server does not go by that name: see --name.", "Host")
        origin = headers.get("origin")
        if origin is not None and origin.lower() != f"{scheme}://{host}".lower():
            raise Refused(403, "Requests from another origin are refused.", "Origin")
        if self.is_open(path):
            return
        if headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            raise Refused(403, "Requests from another site are refused.", "Sec-Fetch-Site")
        if not self._admits(headers.get("authorization", "")):
            raise Refused(401, "Incorrect API key provided: this needs the token that the server was started with.", None,
                          "invalid_api_key")  # fmt: skip
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > LARGEST:
            raise too_large()

    def _knows(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return name in self.names or self.anywhere and is_number(name)

    def _admits(self, header: str) -> bool:
        kind, _, token = header.partition(" ")
        return kind.lower() == "bearer" and hmac.compare_digest(token.strip().encode(), self.token)

    def _with_headers(self, send: Send, path: str) -> Send:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self.headers(path).items():
                    headers.setdefault(name, value)
            await send(message)

        return sending


def refusal(problem: Refused) -> Response:
    """The answer to a request that is not done."""
    headers = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}}.get(problem.status)
    return Response(json.dumps(problem.body()), problem.status, headers, media_type="application/json")


def too_large() -> Refused:
    """The problem of a body above the limit."""
    return Refused(413, f"The body is larger than {LARGEST >> 20} MB.", "body")


def is_number(name: str) -> bool:
    """Whether a host is an address in numbers."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _limited(receive: Receive) -> Receive:
    """The body, as long as it stays below the limit and comes in time."""
    seen, whole, end = 0, False, asyncio.get_running_loop().time() + SLOWEST

    async def limited() -> Message:
        nonlocal seen, whole
        if whole:  # what is waited for now is the client's going
            return await receive()
        try:
            message = await asyncio.wait_for(receive(), end - asyncio.get_running_loop().time())
        except TimeoutError as error:
            raise Refused(408, f"The body did not come within {SLOWEST:g} seconds.", "body") from error
        seen += len(message.get("body", b""))
        whole = not message.get("more_body", False)
        if seen > LARGEST:
            raise too_large()
        return message

    return limited
