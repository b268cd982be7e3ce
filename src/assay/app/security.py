"""Who may talk to the app: the guard of `assay.serving.access` with the app's own words and headers.

1. The page and its files hold nothing secret and need no token; everything under /api does. The address that `assay app` prints
   carries it. There are no cookies, so another page cannot act in somebody's name.
2. Refusals have the one form of this API, {"error": {"message", "argument", "hint"}}.
3. Every answer carries a content security policy that allows this server alone: no framing, no sniffing, no referrer.
"""

import json
from collections.abc import Mapping

from starlette.responses import Response

from assay.serving import access
from assay.serving.access import LARGEST, is_loopback, names_of, token_for
from assay.serving.refused import Refused

__all__ = ["LARGEST", "Guard", "is_loopback", "names_of", "problem", "refusal", "token_for"]

POLICY = ("default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; font-src 'self';"
          " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")  # fmt: skip
HEADERS = {
    "Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer", "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
}  # fmt: skip
HINTS = {
    401: "Open the address that `assay app` printed: it carries the token.", 403: "Open the app itself.",
    408: "Send it at once.", 413: "Send less at once.", 421: "Open the address that `assay app` printed.",
}  # fmt: skip


class Guard(access.Guard):
    """Checks every request before the app sees it, and adds the headers on the way back."""

    def is_open(self, path: str) -> bool:
        return not path.startswith("/api")

    def answer(self, problem: Refused) -> Response:
        return refusal(problem)

    def headers(self, path: str) -> Mapping[str, str]:
        return HEADERS if self.is_open(path) else {**HEADERS, "Cache-Control": "no-store"}


def refusal(found: Refused) -> Response:
    """The answer to what the guard refuses."""
    if found.status == 401:
        return problem(401, "This needs the token of this server.", "Authorization", HINTS[401], {"WWW-Authenticate": "Bearer"})
    return problem(found.status, str(found), found.param or "", HINTS.get(found.status, ""))


def problem(status: int, message: str, argument: str = "", hint: str = "", headers: dict[str, str] | None = None) -> Response:
    """An answer that says what was wrong, in the one form all of them have."""
    body = {"error": {"message": message, "argument": argument, "hint": hint}}
    return Response(json.dumps(body), status, headers, media_type="application/json")
