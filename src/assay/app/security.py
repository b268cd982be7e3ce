"""Who may talk to the server: a plain ASGI wrapper around the app, and the headers of every answer.

1. *Host*: only names this server was started under. A page elsewhere that resolves its own name to 127.0.0.1 (DNS rebinding)
   sends its own name. A server on all interfaces also answers to addresses in numbers, which no name can stand for.
2. *Origin*: where a browser names one, it must be this server; `Sec-Fetch-Site` of an API call must be same-origin or none.
3. *Token*: every address under /api wants `Authorization: Bearer TOKEN`, compared in constant time. There are no cookies, so
   another page cannot act in somebody's name. The page itself holds nothing secret.
4. *Size*: bodies above `LARGEST` are refused, by their announced length and while they come in.
5. *Answers*: a content security policy that allows this server alone, no framing, no sniffing, no referrer, no keeping of data.
"""

import hmac
import json
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from assay.serving.access import ANYWHERE, is_loopback, is_number, names_of, token_for

LARGEST = 2 << 20  # bytes of a request's body
POLICY = ("default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; font-src 'self';"
          " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")  # fmt: skip
HEADERS = {
    "Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer", "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
}  # fmt: skip


class TooLarge(Exception):
    """A body went over the limit while it came in."""


class Guard:
    """Checks 1 to 4 before the app sees a request, 5 on the way back."""

    def __init__(self, app: ASGIApp, token: str, host: str = "127.0.0.1", names: Iterable[str] = ()) -> None:
        self.app, self.token, self.anywhere = app, token.encode(), host in ANYWHERE
        self.names = names_of(host) | {name.lower() for name in names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # no web sockets
            return
        headers = Headers(scope=scope)
        refused = self.refusal(scope["path"], headers, scope.get("scheme", "http"))
        if refused is not None:
            await refused(scope, receive, _with_headers(send, scope["path"]))
            return
        await self.app(scope, _limited(receive), _with_headers(send, scope["path"]))

    def refusal(self, path: str, headers: Headers, scheme: str) -> Response | None:
        """The answer to a request that goes no further; None for one that may."""
        host = headers.get("host", "")
        if not self._knows(host):
            return problem(421, "This server does not go by that name.", "Host", "Open the address that `assay app` printed.")
        origin = headers.get("origin")
        if origin is not None and origin.lower() != f"{scheme}://{host}".lower():
            return problem(403, "Requests from another origin are refused.", "Origin", "Open the app itself.")
        if not path.startswith("/api"):
            return None
        if headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            return problem(403, "Requests from another site are refused.", "Sec-Fetch-Site", "Open the app itself.")
        if not self._admits(headers.get("authorization", "")):
            return problem(401, "This needs the token of this server.", "Authorization",
                           "Open the address that `assay app` printed: it carries the token.",
                           {"WWW-Authenticate": "Bearer"})  # fmt: skip
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > LARGEST:
            return too_large()
        return None

    def _knows(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name in self.names:
            return True
        return self.anywhere and is_number(name)

    def _admits(self, header: str) -> bool:
        kind, _, token = header.partition(" ")
        return kind.lower() == "bearer" and hmac.compare_digest(token.strip().encode(), self.token)


def problem(status: int, message: str, argument: str = "", hint: str = "", headers: dict[str, str] | None = None) -> Response:
    """An answer that says what was wrong, in the one form all of them have."""
    body = {"error": {"message": message, "argument": argument, "hint": hint}}
    return Response(json.dumps(body), status, headers, media_type="application/json")


def too_large() -> Response:
    """The answer to a body above the limit."""
    return problem(413, f"The body is larger than {LARGEST >> 20} MB.", "body", "Send less at once.")


def _limited(receive: Receive) -> Receive:
    """The body, as long as it stays below the limit."""
    seen = 0

    async def limited() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > LARGEST:
            raise TooLarge
        return message

    return limited


def _with_headers(send: Send, path: str) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
            if path.startswith("/api"):
                headers["Cache-Control"] = "no-store"
        await send(message)

    return sending


__all__ = ["LARGEST", "Guard", "TooLarge", "is_loopback", "names_of", "problem", "token_for", "too_large"]
