"""Page views in the audit log: who looked at what, without a page waiting for the disk.

1. A view is noted in memory. What was noted is written as one entry, {"views": [{"page", "params", "time"}, ..]}, `EVERY`
   seconds after the first of them, when there are `MOST`, and when the server ends. The entry is flushed to the disk.
2. A process that is killed loses the views of the last `EVERY` seconds, and nothing else: verbs are written before they run.
3. Nothing is written where there is no atlas: there was nothing to see. Where the log cannot be written, that is said once
   on the server's own output, and pages go on.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from assay.errors import AssayError

EVERY, MOST = 5.0, 500  # seconds, views
LONGEST = 200  # characters of an argument that are kept
warned = logging.getLogger(__name__)


class Views:
    """`write` gets the body of an entry."""

    def __init__(self, write: Callable[[Mapping[str, Any]], None], every: float = EVERY) -> None:
        self._write, self._every = write, every
        self._lock = threading.Lock()
        self._noted: list[dict[str, Any]] = []
        self._timer: threading.Timer | None = None
        self._told = False

    def note(self, page: str, params: Mapping[str, Any]) -> None:
        """A page was shown. Costs no more than an entry in a list."""
        cut = {key: value[:LONGEST] if isinstance(value, str) else value for key, value in params.items()}
        view = {"page": page, "params": cut, "time": datetime.now(UTC).isoformat(timespec="seconds")}
        with self._lock:
            self._noted.append(view)
            full = len(self._noted) >= MOST
            if self._timer is None:
                self._timer = threading.Timer(self._every, self.flush)
                self._timer.daemon = True
                self._timer.start()
        if full:
            self.flush()

    def flush(self) -> None:
        """Write what was noted."""
        with self._lock:
            noted, self._noted = self._noted, []
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
        if not noted:
            return
        try:
            self._write({"views": noted})
        except AssayError as error:
            if not self._told:
                warned.warning("page views are not in the audit log: %s", error)
            self._told = True
