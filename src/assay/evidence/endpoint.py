"""An OpenAI-compatible endpoint: one prompt, one reply, at temperature 0.

Whoever asks says what for: hard cases for a counterexample search (`search/proposer.py`), or the same answer that a
monitor gives, from the text alone (`black_box.py`). The key is sent and never kept; a reply is data, never a command.
"""

import ssl
from dataclasses import dataclass
from functools import cache
from urllib.parse import urlsplit, urlunsplit

from assay.errors import NeedsExtra

SECONDS = 60.0
LARGEST_REPLY = 1 << 20


@dataclass(frozen=True)
class Endpoint:
    """Where to ask. The key is sent and never kept."""

    url: str
    model: str
    key: str = ""

    @property
    def address(self) -> str:
        """The address without user names, passwords and queries: only this is asked, kept and shown."""
        parts = urlsplit(self.url)
        host = parts.netloc.rsplit("@", 1)[-1]
        return urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", ""))

    def ask(self, prompt: str) -> str:
        """The reply to one prompt. Raises NeedsExtra, ConnectionError for an endpoint that does not answer."""
        try:
            import httpx2
        except ImportError as missing:
            raise NeedsExtra("Asking a language model", "explainers") from missing
        body = {"model": self.model, "messages": [{"role": "user", "content": prompt}], "temperature": 0}
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        try:
            reply = httpx2.post(f"{self.address}/chat/completions", json=body, headers=headers, timeout=SECONDS,
                                verify=_certificates())  # fmt: skip
            reply.raise_for_status()
            if len(reply.content) > LARGEST_REPLY:
                raise ConnectionError(f"a reply of {len(reply.content)} bytes; allowed: {LARGEST_REPLY}")
            return str(reply.json()["choices"][0]["message"]["content"])
        except (httpx2.HTTPError, KeyError, IndexError, TypeError, ValueError) as problem:
            raise ConnectionError(f"{self.address}: {type(problem).__name__}: {problem}") from problem


@cache
def _certificates() -> ssl.SSLContext:
    """Whom to trust, read once: reading it for each request costs more than a request to this machine."""
    import httpx2

    return httpx2.create_ssl_context()
