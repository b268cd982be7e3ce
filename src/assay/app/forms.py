"""Forms made from what a verb asks for: one field per argument that is named, with its limits and its meaning."""

from collections.abc import Mapping, Sequence
from typing import Any

from assay.app.blocks import Field, FormBlock, form
from assay.app.verbs import verbs

AREA = ("text", "prompt", "statement")  # arguments that are written out, in a larger field
KINDS: Mapping[str, Any] = {"string": "text", "integer": "number", "number": "number", "boolean": "flag", "array": "text",
                            "object": "area"}  # fmt: skip


def form_of(
    id: str, verb: str, submit: str, fields: Sequence[str] = (), *, values: Mapping[str, Any] | None = None,
    choices: Mapping[str, Sequence[str]] | None = None, **more: Any,
) -> FormBlock:  # fmt: skip
    """A form for a verb. `fields`: the arguments that are asked for; `values`: what stands in them at first; `choices`: to pick
    from, for arguments that are free texts; `more`: title, note, fixed, auto, stream."""
    found = verbs().get(verb)
    wanted = found.parameters.get("required", ())
    made = [_field(name, found.parameters["properties"][name], (values or {}).get(name), (choices or {}).get(name),
                   name in wanted) for name in fields]  # fmt: skip
    return form(id, verb, found.role, made, submit, **more)


def _field(name: str, part: Mapping[str, Any], value: Any, choices: Sequence[str] | None, required: bool) -> Field:
    own = part["type"] if isinstance(part["type"], str) else part["type"][0]
    kind = KINDS[own]
    if name in AREA and not choices:
        kind = "area"
    made: Field = {"name": name, "label": f"{name.replace('_', ' ')}: {part['description']}", "kind": kind}
    start = part.get("default") if value is None else value
    if start is not None:
        made["value"] = start
    if options := list(choices or part.get("enum") or ()):
        made["kind"], made["choices"] = "choice", options
    if "minimum" in part:
        made["min"] = part["minimum"]
    if "maximum" in part:
        made["max"] = part["maximum"]
    if required:
        made["required"] = True
    return made
