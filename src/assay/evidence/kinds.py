"""Claim kinds: what a claim of each kind names, and how it is measured.

A kind is one object in one file, registered by name. The trial (`run.py`), the gates, the rule and
the store know only this interface:

1. `subject(model, given)`: the canonical parts that a claim names, as plain data with at least "sites".
2. `load(model, items)`: items of a split (pairs of a task, labelled texts), ready for the model.
3. `prepare(model, plan, subject, tune)`: everything fixed before sealed data are read (means, random
   sets, thresholds); also a plain record of it, which is locked with the plan.
4. `measure(model, data, setup, gates)`: one column of numbers per quantity, one number per item.

Counterexamples are looked for by the methods in `search/`, which say themselves which kinds they serve.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any, Protocol, get_args, get_type_hints, runtime_checkable

from assay.errors import bad_argument
from assay.model.images import ImageModel
from assay.records import Example, GatePlan, Pair, Plan
from assay.registry import Registry

Columns = dict[str, list[float | None]]
Progress = Callable[[str, int, int], None]
Item = Any  # assay.records.Pair or Example: has .template, .entities, .texts


@runtime_checkable
class Data(Protocol):
    """Items of one split, ready for the model; those that do not fit it are dropped and counted."""

    def __len__(self) -> int: ...

    @property
    def dropped(self) -> dict[str, int]:
        """Items that were left out, by reason."""
        ...

    @property
    def items(self) -> Sequence[Item]:
        """What is measured, in order."""
        ...

    @property
    def templates(self) -> list[str]:
        """The cluster of every item."""
        ...

    @property
    def words(self) -> list[str] | None:
        """The word or entity of every item, where words cross templates; else None."""
        ...


@runtime_checkable
class Kind(Protocol):
    """What the trial needs of a claim kind. `score`: the column that must not be constant."""

    name: str
    score: str

    def subject(self, model: Any, given: Any) -> dict[str, Any]:
        """The parts a claim names: {"sites": [..], ..}. Raises UsageError for parts of another kind."""
        ...

    def words(self, subject: Mapping[str, Any], quantifier: str, data: str) -> str:
        """The claim as one sentence, when whoever states it gives none."""
        ...

    def load(self, model: Any, items: Sequence[Item]) -> Data:
        """Items ready for the model. Raises TaskError when none fits."""
        ...

    def prepare(self, model: Any, plan: Plan, subject: Mapping[str, Any], tune: Any) -> tuple[Any, dict[str, Any]]:
        """(setup for `measure`, plain record of the controls)."""
        ...

    def measure(
        self, model: Any, data: Any, setup: Any, gates: Sequence[GatePlan], report: Progress | None = None
    ) -> Columns:
        """All columns the gates need, over all items."""
        ...


def made_of(record: type, given: Any) -> Any:
    """The record that a mapping names the parts of; anything else as it is. Raises UsageError for other parts."""
    if not isinstance(given, Mapping):
        return given
    parts = {each.name: each.default is MISSING and each.default_factory is MISSING for each in fields(record)}
    if unknown := sorted(str(name) for name in given if name not in parts):
        raise bad_argument("subject", ", ".join(unknown), ", ".join(parts))
    if missing := [name for name, needed in parts.items() if needed and name not in given]:
        raise bad_argument("subject", ", ".join(map(str, given)) or "nothing", f"also {', '.join(missing)}")
    return record(**given)


@runtime_checkable
class ChecksTexts(Protocol):
    """A kind that can tell from texts alone that there would be nothing to test."""

    def check_texts(self, subject: Mapping[str, Any], split: str, items: Sequence[Item]) -> None:
        """Raises TaskError. No model sees the texts."""
        ...


KINDS: Registry[Kind] = Registry("claim kind")


OF_PICTURES = ("represents", "decodes", "mediates")


def check_model(kind: Kind, model: Any) -> None:
    """Raises UsageError for an image model where a kind reads texts."""
    if isinstance(model, ImageModel) and kind.name not in OF_PICTURES:
        raise bad_argument("kind", kind.name, f"{', '.join(OF_PICTURES)}, of an image model")


def check_items(kind: Kind, items: Sequence[Item], data: str) -> None:
    """Raises UsageError for pairs where a kind takes labelled texts, or the reverse, as its `load` is annotated."""
    names = {Pair: "a task (pairs of prompts)", Example: "a concept (labelled texts)"}
    wanted = [taken for taken in get_args(get_type_hints(kind.load).get("items")) if taken in names]
    if wanted and items and not isinstance(items[0], tuple(wanted)):
        hint = f"{data} is {names[type(items[0])]}. See: assay {'tasks' if Pair in wanted else 'concepts'}."
        raise bad_argument("data", data, f"{' or '.join(names[taken] for taken in wanted)} for kind {kind.name}", hint)
