"""Stages of a map on disk: what is finished is not done again, what has other inputs is.

`stages.json` of a folder holds, for every finished stage, the hash of its inputs, its seconds of all runs together, and its
result as plain data. A stage is finished when its result is there; what it leaves in files of its own it must go on with itself
after a kill. Changed inputs make a stage, and all that were given its result, run again.
"""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from assay.errors import StoreError
from assay.files import write_file
from assay.records import digest, plain

FILE = "stages.json"


class Stages:
    """The stages of one folder. Raises StoreError where its file is damaged."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        try:
            self._kept: dict[str, dict[str, Any]] = json.loads(self.path.read_text()) if self.path.is_file() else {}
        except (OSError, ValueError) as error:
            raise StoreError(f"{self.path}: cannot be read ({error}). Remove it to have its stages run again.") from error

    def run(self, name: str, inputs: Any, work: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """The result of a stage: kept, or made now. What it took counts even when it is interrupted."""
        key = digest(inputs)
        kept = self._kept.get(name, {})
        if kept.get("inputs") == key and kept.get("result") is not None:
            return kept["result"]
        spent = kept.get("seconds", 0.0) if kept.get("inputs") == key else 0.0
        start = time.perf_counter()

        def keep(result: dict[str, Any] | None) -> None:
            self._kept[name] = {"inputs": key, "seconds": spent + time.perf_counter() - start, "result": result}
            write_file(self.path, json.dumps(self._kept, indent=1).encode())

        try:
            result = plain(dict(work()))
        except BaseException:
            keep(None)
            raise
        keep(result)
        return result

    def finished(self, name: str) -> bool:
        """Whether a stage has a result, of whatever inputs."""
        return self._kept.get(name, {}).get("result") is not None

    @property
    def seconds(self) -> dict[str, float]:
        """What each stage took."""
        return {name: round(kept["seconds"], 2) for name, kept in self._kept.items()}
