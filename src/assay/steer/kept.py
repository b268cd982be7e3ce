"""Finished measurements of a run, kept by whoever runs it so that an interrupted one goes on from there."""

from collections.abc import Callable
from typing import Any, Protocol


class Kept(Protocol):
    """Where finished measurements are kept: `once` gives what was kept under a name, or makes and keeps it (plain data)."""

    def once(self, name: str, make: Callable[[], Any]) -> Any: ...


class Nowhere:
    """Nothing is kept."""

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        return make()
