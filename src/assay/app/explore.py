"""Data that verbs explore: what may be looked at, and that it was looked at.

1. Discover and tune are free. Confirm and ood are sealed: they are read by testing a claim, and asking for them is refused and
   written to the audit log.
2. A task or concept is a bundled one, or a file inside the working folder or the atlas: what a page or an agent asks for never
   makes this program read a file elsewhere. Of a file, too, only discover and tune are given.
3. Items that a model is run on are a *look* in the ledger, written before the run. So are texts that somebody types: where a
   claim's sealed data hold the same text, the claim is exploratory.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from assay.app.arguments import Schema, integer, string
from assay.errors import UsageError, bad_argument, missing
from assay.records import Example

if TYPE_CHECKING:
    from assay.app.verbs import Report
    from assay.app.workspace import Workspace
    from assay.evidence.source import ConceptSource, Source
    from assay.model.model import Model

FREE = ("discover", "tune")
SUFFIXES = (".jsonl", ".csv")
Arguments: TypeAlias = Mapping[str, Any]


# schemas -------------------------------------------------------------------------------------------


def model_name() -> Schema:
    """The argument `model`."""
    return string("The model. Default: the one that was named at the start.", longest=400)


def data_name(what: str) -> Schema:
    """The argument that names a task or concept."""
    return string(f"A bundled {what} by name (see: tasks), or a .jsonl or .csv file in the working folder.", longest=400)


def split_name() -> Schema:
    """The argument `split`."""
    return string("discover or tune. confirm and ood are sealed: they are read by testing a claim.", default="discover")


def size(default: int, high: int = 400) -> Schema:
    """The argument `n`."""
    return integer("How many items at most.", default, 1, high)


def seed() -> Schema:
    """The argument `seed`."""
    return integer("Of everything that is drawn at random.", 0, 0, (1 << 32) - 1)


# data ----------------------------------------------------------------------------------------------


def free_split(workspace: "Workspace", verb: str, split: str) -> str:
    """The split, where it may be looked at. A sealed one is refused, and the refusal is logged. Raises UsageError."""
    if split in FREE:
        return split
    error = bad_argument("split", split, ", ".join(FREE), "confirm and ood are sealed: they are read once, by testing a claim"
                         " (claim_state, then claim_test). This request is in the audit log.")  # fmt: skip
    workspace.log("refused: sealed data", {"verb": verb, "split": split})
    raise error


def known_data(workspace: "Workspace", name: str) -> str:
    """A bundled task or concept, or the path of a file that may be read. Raises UsageError for another."""
    from assay.data.concepts import CONCEPTS
    from assay.data.tasks import TASKS

    if name in TASKS or name in CONCEPTS:
        return name
    if _readable(workspace, name):
        return name
    known = f"a bundled task ({', '.join(TASKS.names())}) or concept ({', '.join(CONCEPTS.names())})"
    raise missing("data", name, f"{known}, or a .jsonl or .csv file in the working folder")


def _readable(workspace: "Workspace", name: str) -> bool:
    """Whether a name is a file of rows inside the working folder or the atlas, wherever links lead."""
    try:
        path = Path(name).resolve()
        inside = any(path.is_relative_to(place.resolve()) for place in (Path.cwd(), workspace.atlas))
        return inside and path.suffix.lower() in SUFFIXES and path.is_file()
    except (OSError, ValueError, RuntimeError):  # too long, a null byte, a loop of links
        return False


def task_of(workspace: "Workspace", name: str, corruption: str | None = None) -> "Source":
    """The source of a task. Raises UsageError for a concept or a file that is none."""
    from assay.evidence.source import ConceptSource, find_source

    found = find_source(known_data(workspace, name), corruption)
    if isinstance(found, ConceptSource):
        raise bad_argument("task", name, "a task (pairs of prompts); this is a concept", "See: tasks")
    return found


def concept_of(workspace: "Workspace", name: str) -> "ConceptSource":
    """The source of a concept. Raises UsageError for a task or a file that is none."""
    from assay.evidence.source import ConceptSource, find_source

    found = find_source(known_data(workspace, name))
    if not isinstance(found, ConceptSource):
        raise bad_argument("concept", name, "a concept (labelled texts); this is a task", "See: tasks")
    return found


def items_of(workspace: "Workspace", verb: str, source: Any, split: str, n: int, seed: int) -> list[Any]:
    """Up to n items of discover or tune. Raises UsageError for a sealed split, TaskError where there are none."""
    return source.items(free_split(workspace, verb, split), n, seed)


def also_needs(workspace: "Workspace", verb: str, role: str, argument: str) -> None:
    """An argument that needs a higher role than its verb. Raises UsageError; the refusal is logged."""
    try:
        workspace.require(role)
    except UsageError as error:
        workspace.log(f"refused: {verb}", {"argument": argument, "why": str(error)})
        raise


def own_dictionaries(workspace: "Workspace", model: str) -> list[dict[str, Any]]:
    """Kept and shipped dictionaries of a model, by its name or that of its folder."""
    known = {model, Path(model).name}
    return [row for row in workspace.dictionaries(model) if {row["model"], Path(row["model"]).name} & known]


# looks ---------------------------------------------------------------------------------------------


def look(workspace: "Workspace", model: "Model", what: str, items: Sequence[Any]) -> None:
    """These items are measured with this model, outside of a test."""
    from assay.evidence.claims import record_look

    record_look(workspace.store, model.digest, what, items)


def look_at_texts(workspace: "Workspace", model: "Model", what: str, texts: Sequence[str]) -> None:
    """Texts that somebody gave: known again by their content, with or without the space around them."""
    given = dict.fromkeys(form for text in texts for form in (text, text.strip()) if form)
    look(workspace, model, what, [Example(text, 0, text) for text in given])


# progress ------------------------------------------------------------------------------------------


def steps(report: "Report", label: str, total: int | None = None) -> Callable[..., None]:
    """Progress as library functions tell it (a number of steps, or label, done, total), handed on with a label."""
    done = 0

    def advance(step: int | str = 1, at: int = 0, of: int = 0) -> None:
        nonlocal done
        if isinstance(step, str):
            report(f"{label}: {step}", at, of)
            return
        done += step
        report(label, done, total or 0)

    return advance
