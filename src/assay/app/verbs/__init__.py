"""Verbs: what people do through the app, and agents through their own server. The same list, roles, ledger and log for both.

1. A verb is a function of a workspace, checked arguments and a report of its progress. It returns {"record": plain JSON,
   "blocks": blocks to show}; what an edited or changed model gave also has a `disclosure`. One file in this folder may register
   several:

       @verb("find_features", "read", "Features by what is said of them.", required=("query",), query=string("Words."))
       def find_features(workspace, arguments, report): return {"record": ..., "blocks": [...]}

2. `run_verb` is the only way in: arguments are checked against the schema, the role is required, and the call is written to the
   audit log before it runs, refusals too.
3. A `long` verb runs as a job: it tells `report` how far it is, and `report` raises `Cancelled` where it was asked to stop. It
   keeps what is finished as the command line does, so that the same call goes on from there.
"""

import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from assay.app.arguments import Schema, checked, schema, string
from assay.app.disclosed import noted, told
from assay.app.documents import clean
from assay.app.help import helped
from assay.errors import AssayError
from assay.records import canonical
from assay.registry import Registry

if TYPE_CHECKING:
    from assay.app.workspace import Workspace

LOGGED = 4096  # characters of arguments that are written to the audit log


class Cancelled(Exception):
    """A job was asked to stop. Finished parts are kept."""


class Report:
    """Where a verb says how far it is; this one says it to nobody. `report("layers", 3, 30)`, or `report(1)` per step.

    Every call is a place where a job can be cancelled (it raises `Cancelled`).
    """

    def __call__(self, step: int | str, done: int = 0, of: int = 0) -> None:
        """Progress: a number of steps, or a label with how many of how many are done."""

    def piece(self, side: str, text: str) -> None:
        """A piece of text that was just generated, for the column named `side`."""

    def partial(self, blocks: Sequence[Any]) -> None:
        """Blocks to show before all is done."""


Result = dict[str, Any]
Run = Callable[["Workspace", Mapping[str, Any], Report], Result]


@dataclass(frozen=True)
class Verb:
    """Something to do. `role`: what it needs (read, intervene, modify); `parameters`: the JSON schema of its arguments.

    `long`: runs as a job. `spends`: it reads sealed data, which is charged in the ledger. `changes`: what its answers are made
    with, a key of `permissions.CHANGED` ("" for the model as it was loaded); they then carry a `disclosure` (`app.disclosed`).
    """

    name: str
    role: str
    summary: str
    parameters: Schema
    run: Run
    long: bool = False
    spends: bool = False
    changes: str = ""


VERBS: Registry[Verb] = Registry("verb")


def verb(
    name: str, role: str, summary: str, *, long: bool = False, spends: bool = False, changes: str = "",
    required: Sequence[str] = (), **arguments: Schema,
) -> Callable[[Run], Run]:  # fmt: skip
    """Registers a function as a verb. A verb of role *modify* gets the argument `reason`."""

    def add(run: Run) -> Run:
        reason = {"reason": string("Why weights are changed, in words.")} if role == "modify" else {}
        VERBS.add(name, Verb(name, role, summary, schema(required, **arguments, **reason), run, long, spends, changes))
        return run

    return add


@cache
def verbs() -> Registry[Verb]:
    """All verbs: every module of this folder is imported once."""
    for found in pkgutil.iter_modules(__path__):
        import_module(f"{__name__}.{found.name}")
    return VERBS


def run_verb(workspace: "Workspace", name: str, given: Mapping[str, Any], report: Report | None = None) -> Result:
    """Run a verb: check, require the role, log, run.

    Raises UsageError for an unknown verb, wrong arguments, or a role that is too low; whatever the verb raises otherwise.
    """
    found = verbs().get(name)
    given = clean(dict(given))  # half characters, which no file and no tokenizer takes, are replaced
    logged = _logged(given)
    try:
        arguments = checked(found.parameters, given, f"verb {name}")
        grant = workspace.require(found.role, reason=arguments.get("reason"))
    except AssayError as error:
        workspace.log(f"refused: {name}", {**logged, "why": str(error)[:LOGGED]})
        raise
    workspace.log(name, logged, grant)
    with noted():
        done = found.run(workspace, arguments, report or Report())
        return {**done, "blocks": helped(done["blocks"]), **told(found.changes, by=name)}


def _logged(given: Mapping[str, Any]) -> dict[str, Any]:
    whole = canonical(given)
    return {"arguments": dict(given)} if len(whole) <= LOGGED else {"arguments": whole[:LOGGED], "cut": len(whole)}
