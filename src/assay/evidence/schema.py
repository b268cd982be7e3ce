"""Records from JSON that others wrote: every field there, of its type, and nothing else.

Nothing is guessed and nothing is run: what does not fit the record is refused with its place and what was
expected there.
"""

import types
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from assay.errors import EvidenceError

T = TypeVar("T")
MOST_TEXT = 100_000


def record_from(kind: type[T], value: Any, place: str) -> T:
    """A record of this class. Raises EvidenceError naming the field that does not fit."""
    if not isinstance(value, dict):
        raise _misfit(place, value, f"an object ({kind.__name__})")
    hints, given = get_type_hints(kind), dict(value)
    found = {}
    for each in fields(kind):  # type: ignore[arg-type]
        if each.name in given:
            found[each.name] = fitted(hints[each.name], given.pop(each.name), f"{place}.{each.name}")
        elif each.default is MISSING and each.default_factory is MISSING:
            raise EvidenceError(f"card: {place}.{each.name} is missing.")
    if given:
        raise EvidenceError(f"card: {place} has the unknown field {min(given)!r}; allowed:"
                            f" {', '.join(each.name for each in fields(kind))}.")  # type: ignore[arg-type]  # fmt: skip
    return kind(**found)


def fitted(hint: Any, value: Any, place: str) -> Any:
    """A JSON value as the type of a field."""
    origin, parts = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if is_dataclass(hint) and isinstance(hint, type):
        return record_from(hint, value, place)
    if origin in (Union, types.UnionType):
        return _one_of(parts, value, place)
    if origin is tuple:
        return _row(parts, value, place)
    if origin is dict:
        if not isinstance(value, dict):
            raise _misfit(place, value, "an object")
        return {key: fitted(parts[1], item, f"{place}.{key}") for key, item in value.items()}
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return value
    if type(value) is not hint or (isinstance(value, str) and len(value) > MOST_TEXT):
        raise _misfit(place, value, getattr(hint, "__name__", str(hint)))
    return value


def _one_of(parts: tuple[Any, ...], value: Any, place: str) -> Any:
    if value is None and type(None) in parts:
        return None
    return fitted(next(part for part in parts if part is not type(None)), value, place)


def _row(parts: tuple[Any, ...], value: Any, place: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise _misfit(place, value, "a list")
    if parts[-1] is Ellipsis:
        return tuple(fitted(parts[0], item, f"{place}[{number}]") for number, item in enumerate(value))
    if len(value) != len(parts):
        raise _misfit(place, value, f"{len(parts)} items")
    return tuple(fitted(part, item, f"{place}[{number}]") for number, (part, item) in enumerate(zip(parts, value, strict=True)))


def _misfit(place: str, value: Any, allowed: str) -> EvidenceError:
    shown = repr(value)
    return EvidenceError(f"card: {place}: got {shown[:60]}{'…' if len(shown) > 60 else ''}; allowed: {allowed}.")
