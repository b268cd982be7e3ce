"""Finished measurements of a steering run or a repair, kept in the atlas so that an interrupted run goes on from there.

One JSON file per measurement in `kept/<kind>-<key>/`, written beside and then renamed. The key names model, tokenizer, data and
plan, the name of a measurement its direction; a file that cannot be read counts as not there.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from assay.files import write_file
from assay.records import digest


class KeptSteering:
    """Measurements of one run, in the atlas directory. `found`: how many an earlier run had left."""

    def __init__(self, atlas: Path, key: str, kind: str = "steer") -> None:
        self.folder, self.found = atlas / "kept" / f"{kind}-{key[:32]}", 0
        self._met: set[str] = set()

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """What was kept under a name, or what `make` gives, kept."""
        path = self.folder / f"{digest(name)[:32]}.json"
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if record["name"] == name:
                self.found += name not in self._met
                self._met.add(name)
                return record["value"]
        except (OSError, ValueError, KeyError, TypeError):
            pass
        value = make()
        write_file(path, json.dumps({"name": name, "value": value}).encode())
        self._met.add(name)
        return value
