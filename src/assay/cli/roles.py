"""What each command may do, and its entry in the audit log.

1. Every command stands in `COMMANDS` with its role: *read* (looks at models, data and records; writes what it found),
   *intervene* (runs a model with edited activations or weights of a copy in memory, or reads sealed data, or vouches for
   something, or takes that back) or *modify* (writes changed weights). A command that is not there counts as *intervene*, and
   so does one that is asked for a sealed split.
2. Before a command of a role above *read* runs, the role is required, and one entry with its arguments is written to the
   audit log of its atlas: an action that cannot be written down is not done. Refusals are written where there is an atlas.
   A mistake that is refused in words leaves no atlas behind that holds nothing but its own entry.
3. A command in `EXPORTS` that is given the option named there writes changed weights, and needs *modify*.
4. A command in `ACTING` intervenes only where its option has the value named there, and reads otherwise. (`monitor serve` makes
   an entry of its own besides, once it listens.)
5. Arguments are written down as given, but for those in `SECRET`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from assay.errors import AssayError, UsageError

COMMANDS: Mapping[str, str] = {
    "app": "read", "mcp": "read", "models": "read", "model check": "read", "tasks": "read", "concepts": "read",
    "atlas list": "read", "atlas find": "read", "atlas show": "read", "atlas diff": "read", "atlas index": "read",
    "claim kinds": "read", "claim list": "read", "claim show": "read", "claim verify": "read", "claim export": "read",
    "claim anchor": "read", "claim import": "intervene", "claim state": "intervene", "claim test": "intervene",
    "claim replay": "intervene", "claim deviate": "intervene", "calibrate": "intervene",
    "circuit show": "read", "circuit export": "read", "circuit import": "read", "circuit find": "intervene",
    "circuit test": "intervene", "circuit edge": "intervene", "circuit coactive": "intervene", "circuit heads": "read",
    "dictionary list": "read", "dictionary show": "read", "dictionary encode": "read", "dictionary train": "read",
    "dictionary import": "read", "dictionary export": "read", "dictionary eval": "intervene",
    "harvest": "read", "explain": "read", "score": "read", "map": "intervene", "superposition": "read", "probe": "intervene",
    "patch": "intervene", "trace": "intervene", "steer": "intervene", "demo": "intervene",
    "replicate": "intervene", "vision models": "read", "vision check": "read", "vision find": "intervene", "plan": "read",
    "vision claim": "intervene", "vision test": "intervene", "vision feeds": "intervene", "vision page": "read",
    "vision visualise": "read", "vision examples": "read", "vision probe": "read", "vision dictionary": "read",
    "vision weights": "read", "vision edges": "intervene", "vision patch": "intervene",
    "organism list": "read", "organism make": "intervene", "organism check": "intervene",
    "monitor fit": "intervene", "monitor eval": "intervene", "monitor watch": "read", "monitor show": "read",
    "monitor calibrate": "intervene", "monitor drift": "intervene", "monitor selftest": "intervene",
    "monitor serve": "intervene", "monitor claim": "intervene",
    "audit": "intervene",
    "repair run": "intervene", "repair log": "read",
    "sign key": "intervene", "sign trust": "intervene", "sign card": "intervene", "sign revoke": "intervene",
    "sign verify": "read", "sign list": "read",
}  # fmt: skip
EXPORTS = {"organism make": "out", "repair run": "out"}
ACTING = {"monitor serve": ("action", "steer")}
SECRET = ("token", "webhook")  # the address of a webhook may hold a key
SEALED = ("confirm", "ood")  # of --split
LONGEST = 4096  # characters of arguments in an entry


def command_name() -> str:
    """The command that runs, as it is typed after `assay` (a noun may also be run by itself, without `assay` above it)."""
    context: click.Context | None = click.get_current_context()
    names: list[str] = []
    while context is not None:
        names.insert(0, context.command.name or "")
        context = context.parent
    whole = " ".join(names)
    return whole if whole in COMMANDS else " ".join(names[1:]) or whole


@contextmanager
def permitted(atlas: Path, options: Mapping[str, Any]) -> Iterator[None]:
    """Require the role of the command that runs inside, and write it down. Raises UsageError for a role that is too low."""
    name = command_name()
    role = needed_role(name, options)
    if role == "read":
        yield
        return
    from assay import permissions
    from assay.cli.common import check_place

    body = _body(options)
    try:
        grant = permissions.require(role, reason=options.get("reason"), granted=_granted(options.get("allow")))
    except UsageError as error:
        if atlas.is_dir():
            permissions.record(atlas, f"refused: {name}", {**body, "why": str(error)})
        raise
    check_place("--atlas", atlas, folder=True)
    fresh = not atlas.exists()
    permissions.record(atlas, name, body, grant)
    try:
        yield
    except (AssayError, click.ClickException):
        if fresh:
            permissions.forget_only_entry(atlas)
        raise


def needed_role(name: str, options: Mapping[str, Any]) -> str:
    """The role that a command needs with these options."""
    if options.get(EXPORTS.get(name, "")):
        return "modify"
    if options.get("split") in SEALED:
        return "intervene"
    option, value = ACTING.get(name, ("", None))
    return "read" if option and options.get(option) != value else COMMANDS.get(name, "intervene")


def _granted(allow: str | Sequence[str] | None) -> str | None:
    """The role among what --allow was given: one word, or several, some of which allow other things."""
    from assay.permissions import ROLES

    return allow if allow is None or isinstance(allow, str) else next((each for each in allow if each in ROLES), None)


def _body(options: Mapping[str, Any]) -> dict[str, Any]:
    """What an entry says: the arguments as given, long ones cut, secret ones left out."""
    from assay.records import canonical

    asked = {key: _shown(value) for key, value in options.items() if value not in (None, (), False) and key not in SECRET}
    whole = canonical(asked)
    cut = {"arguments": asked} if len(whole) <= LONGEST else {"arguments": whole[:LONGEST], "cut": len(whole)}
    return {"actor": "command line", **cut}


def _shown(value: Any) -> Any:
    """An argument as JSON has it. Half characters are replaced; NaN and infinity are words."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, int | float) and math.isfinite(value):
        return value
    return [_shown(each) for each in value] if isinstance(value, list | tuple) else _shown(str(value))
