"""What an answer says about the model that gave it: the `disclosure` of verbs and kept results.

1. A verb that edits the model says so itself (`Verb.changes`).
2. A model that was loaded with changed weights (`Model.modified`) says so in the answer of every verb that used it. `noted`
   stands around a verb, and the workspace tells `use` of each model that it hands out inside.
3. Where both hold, the second is in the first, under `also`.
4. What the second says to programs is also the first block of a kept result, for people.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from assay.app.blocks import text
from assay.permissions import CHANGED, disclosure

if TYPE_CHECKING:
    from assay.model.model import Model

_modified: ContextVar[dict[str, str] | None] = ContextVar("modified", default=None)  # of models that were used: name -> how


@contextmanager
def noted() -> Iterator[None]:
    """Models that are used inside are in what `told` says there."""
    before = _modified.set({})
    try:
        yield
    finally:
        _modified.reset(before)


def use(model: "Model") -> None:
    """A model is used for an answer."""
    known = _modified.get()
    if known is not None and model.modified:
        known[model.name] = model.modified


def told(changes: str, by: str) -> dict[str, Any]:
    """{"disclosure": ..} of an answer of the verb `by`; {} where all of it is what a model says by itself.

    `changes`: what the verb did to the model, a key of `permissions.CHANGED`, or "".
    """
    used = _modified.get() or {}
    loaded = disclosure("weights", by=by, models=used) if used else {}
    if not changes:
        return {"disclosure": loaded} if loaded else {}
    return {"disclosure": {**disclosure(changes, by=by), **({"also": loaded} if loaded else {})}}


def marked(blocks: Sequence[Any], verb: str) -> list[Any]:
    """The blocks of a result; where a model with changed weights was used for it, that comes first."""
    said = [f"{name}: {how}." for name, how in (_modified.get() or {}).items()]
    return [*([text(f"disclosure-{verb}", CHANGED["weights"], *said)] if said else []), *blocks]
