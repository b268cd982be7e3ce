"""The app: pages as documents, verbs, a local web server, and a server for AI agents. `show` puts a page into a notebook."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from assay.app.export import Shown


def show(page: str = "overview", atlas: Any = "./atlas", **params: Any) -> "Shown":
    """A page in a notebook: an object that shows itself, and writes itself with `.save(path)`.

    `params`: the page's arguments. Raises UsageError for a page that is none or arguments that do not fit, StoreError for an
    atlas that cannot be read.
    """
    from assay.app.export import shown

    return shown(page, atlas, **params)
