"""Arguments of pages and verbs: a JSON schema for each, and the check of what was given against it.

1. Values in an address are texts; they become what the schema says before they are checked (`loose`). Values in a JSON body
   are of their type or refused, but for a list of texts, which may be one text with commas.
2. Every refusal names the argument, what was got and what is allowed.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from assay.errors import AssayError, bad_argument

Schema: TypeAlias = dict[str, Any]
LONGEST = 20_000  # characters of a text
MOST = 10_000  # items of a list
WORDS = {"true": True, "false": False}
NUMBER = {"integer": re.compile(r"-?\d{1,18}"), "number": re.compile(r"-?\d{1,18}(\.\d{1,18})?([eE][+-]?\d{1,3})?")}


def string(help: str, default: str | None = None, choices: Sequence[str] = (), longest: int = LONGEST) -> Schema:
    """A text, or one of `choices`."""
    found: Schema = {"type": "string", "description": help, "maxLength": longest}
    if choices:
        found = {"type": "string", "description": help, "enum": list(choices)}
    return found if default is None else {**found, "default": default}


def integer(help: str, default: int | None = None, low: int | None = None, high: int | None = None) -> Schema:
    """A whole number from `low` to `high`."""
    return _number("integer", help, default, low, high)


def number(help: str, default: float | None = None, low: float | None = None, high: float | None = None) -> Schema:
    """A number from `low` to `high`."""
    return _number("number", help, default, low, high)


def flag(help: str, default: bool = False) -> Schema:
    """True or false."""
    return {"type": "boolean", "description": help, "default": default}


def strings(help: str, most: int = MOST, longest: int = LONGEST) -> Schema:
    """A list of texts, or one text with commas between them."""
    items = {"type": "string", "maxLength": longest}
    return {"type": ["array", "string"], "description": help, "items": items, "maxItems": most, "maxLength": LONGEST}


def record(help: str) -> Schema:
    """An object whose content the verb checks itself."""
    return {"type": "object", "description": help}


def schema(required: Sequence[str] = (), **properties: Schema) -> Schema:
    """The schema of all arguments: these and no others. A text that is required is not empty."""
    for name in required:
        if properties[name]["type"] == "string" and "enum" not in properties[name]:
            properties[name] = {**properties[name], "minLength": 1}
    found: Schema = {"type": "object", "properties": properties, "additionalProperties": False}
    return {**found, "required": list(required)} if required else found


def checked(whole: Schema, given: Mapping[str, Any], where: str, loose: bool = False) -> dict[str, Any]:
    """The arguments as the schema has them, defaults filled in. `loose`: texts may stand for what they read as.

    Raises UsageError for an argument that is not there, not known, or not allowed.
    """
    properties, required = whole["properties"], whole.get("required", ())
    for name in given:
        if name not in properties:
            raise bad_argument(f"{where}: argument", name[:80], ", ".join(properties) or "none")
    found = {}
    for name, part in properties.items():
        if name in given and not (loose and given[name] in ("", None)):
            found[name] = _fitted(part, given[name], name, loose)
        elif name in required:
            raise bad_argument(name, None, allowed(part), f"{where[0].upper()}{where[1:]} needs it.")
        elif "default" in part:
            found[name] = part["default"]
    return found


def allowed(part: Schema) -> str:
    """What a schema allows, in words."""
    if "enum" in part:
        return ", ".join(part["enum"])
    low, high = part.get("minimum"), part.get("maximum")
    bounds = [f"from {low}"] * (low is not None) + [f"to {high}" if low is not None else f"up to {high}"] * (high is not None)
    kinds = {"string": f"a text of {part.get('minLength', 0)} to {part.get('maxLength', LONGEST)} characters",
             "integer": "a whole number", "number": "a number", "boolean": "true or false", "object": "an object",
             "array": f"a list of up to {part.get('maxItems', MOST)} texts"}  # fmt: skip
    return " ".join([kinds[_kind(part)], *bounds])


def refuse(error: AssayError) -> dict[str, str]:
    """An error as the parts that people and programs read: message, the argument it is about, what to do next."""
    message = str(error)
    argument, _, rest = message.partition(": got ")
    hint = rest.partition("; allowed: ")[2].partition(". ")[2]
    return {"message": message, "argument": argument if rest else "", "hint": hint.strip()}


# one value -----------------------------------------------------------------------------------------


def _number(kind: str, help: str, default: float | None, low: float | None, high: float | None) -> Schema:
    named = {"default": default, "minimum": low, "maximum": high}
    return {"type": kind, "description": help, **{key: value for key, value in named.items() if value is not None}}


def _kind(part: Schema) -> str:
    return part["type"] if isinstance(part["type"], str) else part["type"][0]


def _fitted(part: Schema, value: Any, name: str, loose: bool) -> Any:
    """A value as its schema has it."""
    kind = _kind(part)
    read = _read_text(kind, value) if isinstance(value, str) and (loose or kind == "array") else value
    if not _is(kind, read) or not _fits(part, kind, read):
        shown = value if len(repr(value)) < 200 else f"{str(value)[:160]}…"
        raise bad_argument(name, shown, allowed(part))
    return int(read) if kind == "integer" else read


def _read_text(kind: str, text: str) -> Any:
    """What a text stands for; the text itself where it stands for nothing of that kind."""
    if kind == "boolean":
        return WORDS.get(text, text)
    if kind in NUMBER:
        return (int if kind == "integer" else float)(text) if NUMBER[kind].fullmatch(text) else text
    if kind == "object" or (kind == "array" and text.lstrip().startswith("[")):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text
    return [part.strip() for part in text.split(",") if part.strip()] if kind == "array" else text


def _is(kind: str, value: Any) -> bool:
    """Whether a value is of a kind, as JSON has them: 1.0 is a whole number, true is none."""
    if kind in ("integer", "number"):
        if isinstance(value, int):
            return not isinstance(value, bool) and abs(value) < 1 << 63
        return isinstance(value, float) and math.isfinite(value) and (kind == "number" or value.is_integer())
    return isinstance(value, {"string": str, "boolean": bool, "object": dict, "array": list}[kind])


def _fits(part: Schema, kind: str, value: Any) -> bool:
    """Whether a value of the right kind is allowed."""
    if "enum" in part:
        return value in part["enum"]
    if kind == "array":
        longest = part["items"].get("maxLength", LONGEST)
        return len(value) <= part["maxItems"] and all(isinstance(each, str) and len(each) <= longest for each in value)
    if kind == "string":
        return "\0" not in value and part.get("minLength", 0) <= len(value) <= part.get("maxLength", LONGEST)
    return kind in ("object", "boolean") or part.get("minimum", value) <= value <= part.get("maximum", value)
