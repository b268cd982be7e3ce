"""Pages as typed JSON documents: what the app, an export, a notebook and an agent all read.

1. A document is a list of blocks (`blocks.py`).
2. A page is a function of a workspace and arguments. One file in `pages/` and one registration adds one:

       @page("feature", "A feature", "Everything known about one feature.", required=("feature",), feature=string("Its name."))
       def feature(workspace, arguments): return Made([text("intro", "…")], title="…")

3. `make_document` checks the arguments against the page's schema, makes the blocks, and adds what every page has: help behind
   words (`help.py`), the ledger's counts, the time, and the arguments, so that a link to the page holds its whole state.
"""

import math
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from assay.app.arguments import Schema, checked, schema
from assay.app.blocks import *  # noqa: F403
from assay.app.blocks import DocumentRecord, Inline
from assay.app.help import explained, helped
from assay.registry import Registry

if TYPE_CHECKING:
    from assay.app.workspace import Workspace


# pages ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Made:
    """What a page function returns. `title` and `intro` replace the page's own; `empty`: nothing is there to show yet."""

    blocks: Sequence[Any]
    title: str = ""
    intro: str | Inline = ""
    empty: bool = False


Maker = Callable[["Workspace", Mapping[str, Any]], Made]


@dataclass(frozen=True)
class Page:
    """A page: its name (in addresses), title, one sentence about it, the schema of its arguments, and what makes it.

    `listed`: whether it is in the navigation, `group` under which heading. A page that needs an argument to say anything
    (one claim) is not listed.
    """

    name: str
    title: str
    summary: str
    parameters: Schema
    make: Maker
    listed: bool = True
    group: str = ""


PAGES: Registry[Page] = Registry("page")
ORDER = ("overview", "search", "feature", "neurons", "compare", "task", "circuit", "graph", "probe", "steer", "live", "monitor",
         "claims", "claim", "glossary")  # fmt: skip


def page(
    name: str, title: str, summary: str, *, listed: bool = True, group: str = "", required: Sequence[str] = (),
    **arguments: Schema,
) -> Callable[[Maker], Maker]:  # fmt: skip
    """Registers a function as a page. `arguments`: a schema each, made by `assay.app.arguments`."""

    def add(make: Maker) -> Maker:
        PAGES.add(name, Page(name, title, summary, schema(required, **arguments), make, listed, group))
        return make

    return add


@cache
def pages() -> Registry[Page]:
    """All pages: every module of `pages/` is imported once. Other packages register as for every registry."""
    from assay.app import pages as package

    for found in pkgutil.iter_modules(package.__path__):
        import_module(f"{package.__name__}.{found.name}")
    return PAGES


def in_order() -> list[Page]:
    """All pages, as they stand in the navigation: those of `ORDER`, then the others in order of registration."""
    found = list(pages())
    return sorted(found, key=lambda each: ORDER.index(each.name) if each.name in ORDER else len(ORDER))


def make_document(workspace: "Workspace", name: str, given: Mapping[str, Any] | None = None) -> DocumentRecord:
    """The document of a page. `given`: its arguments, as text or as values.

    Raises UsageError for a page that is none or arguments that do not fit its schema; StoreError for an atlas that cannot be
    read.
    """
    entry = pages().get(name)
    arguments = checked(entry.parameters, given or {}, f"page {name}", loose=True)
    with workspace.reading():
        made, counts = entry.make(workspace, arguments), workspace.counts()
    intro = made.intro or explained(entry.summary)
    return clean({
        "page": name, "title": made.title or entry.title, "intro": [intro] if isinstance(intro, str) else intro,
        "params": arguments, "blocks": helped(made.blocks), "counts": counts,
        "made": datetime.now(UTC).isoformat(timespec="seconds"), "empty": made.empty,
    })  # fmt: skip


def clean(value: Any) -> Any:
    """Plain JSON: arrays become lists, NaN and infinities null, half characters the replacement character."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(clean(key)): clean(item) for key, item in value.items()}
    if hasattr(value, "tolist"):
        return clean(value.tolist())
    return [clean(item) for item in value]
