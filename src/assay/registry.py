"""How things of one kind are registered: one name, one place, one decorator.

    TASKS: Registry[Task] = Registry("task")
    TASKS.add("ioi", task)            # or @TASKS.register("ioi") above a function or class
    TASKS.get("ioi")                  # UsageError, with what is close, for an unknown name

Other packages register through the entry point group `assay`: every entry point of that group is
loaded once, when a name is first looked up. Built-in things take the same road.
"""

import difflib
from collections.abc import Callable, Iterator
from functools import cache
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from assay.errors import bad_argument, missing

T = TypeVar("T")


class Registry(Generic[T]):
    """Named things of one kind, in order of registration."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._items: dict[str, T] = {}

    def add(self, name: str, item: T) -> T:
        """Make an item known. Raises UsageError when its name is taken by another item."""
        if self._items.get(name, item) is not item:
            hint = f"Taken: {', '.join(self._items)}. Your own from before goes with .remove({name!r})."
            raise bad_argument(f"{self.kind} name", name, "a name that is not taken", hint)
        self._items[name] = item
        return item

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator form of `add`."""
        return lambda item: self.add(name, item)

    def get(self, name: str) -> T:
        """The item of that name. Raises MissingError, naming what there is, for an unknown one."""
        load_plugins()
        if name not in self._items:
            close = difflib.get_close_matches(name, self._items, n=1)
            hint = f"Did you mean {close[0]!r}?" if close else ""
            raise missing(self.kind, name, ", ".join(self._items) or "none is registered", hint)
        return self._items[name]

    def remove(self, name: str) -> T:
        """Forget an item, so that a changed one may take its name (a notebook's cell that is run again). Raises as `get`."""
        item = self.get(name)
        del self._items[name]
        return item

    def names(self) -> list[str]:
        """All names, in order of registration."""
        load_plugins()
        return list(self._items)

    def __contains__(self, name: object) -> bool:
        load_plugins()
        return name in self._items

    def __iter__(self) -> Iterator[T]:
        load_plugins()
        return iter(list(self._items.values()))


@cache
def load_plugins() -> None:
    """Import what other packages offer under the entry point group `assay`, once."""
    for point in entry_points(group="assay"):
        point.load()
