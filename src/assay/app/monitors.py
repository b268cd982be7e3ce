"""Monitors and audits that are kept in the atlas, as pages and verbs show them.

`monitors/NAME.safetensors`: a monitor. `audits/NAME/audit.json`: the record of an audit. Both are read with the checks of
their own loaders, and shown with what their signatures are worth here.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assay.errors import AssayError, StoreError, missing

if TYPE_CHECKING:
    from assay.app.workspace import Workspace
    from assay.monitor.records import Monitor

MONITORS, SUFFIX = "monitors", ".safetensors"
AUDITS, AUDIT = "audits", "audit.json"
LARGEST = 16 << 20  # bytes of an audit's record
MOST = 200


@dataclass(frozen=True, eq=False)
class Kept:
    """A monitor of the atlas. `signature`: status and what is wrong with it, in words; `why`: why it could not be read."""

    name: str
    monitor: "Monitor | None"
    signature: str
    why: str = ""


def monitor_names(workspace: "Workspace") -> list[str]:
    """Names of the kept monitors, newest first."""
    found = sorted((workspace.atlas / MONITORS).glob(f"*{SUFFIX}"), key=lambda path: -path.stat().st_mtime)
    return [path.stem for path in found[:MOST]]


def monitor_file(workspace: "Workspace", name: str) -> Path:
    """The file of a kept monitor. Raises UsageError for another name."""
    known = monitor_names(workspace)
    if name not in known:
        raise missing("monitor", name, ", ".join(known) or f"none is kept in {workspace.atlas / MONITORS}",
                           "Make one: assay monitor fit --help")  # fmt: skip
    return workspace.atlas / MONITORS / f"{name}{SUFFIX}"


def kept_monitor(workspace: "Workspace", name: str) -> Kept:
    """A kept monitor with its signature's status. One that is refused or damaged is shown as such, without its content."""
    from assay.monitor.files import load_monitor
    from assay.signing import check_signature, look

    path = monitor_file(workspace, name)
    try:
        signature = look(path, "monitor").sentence.removeprefix(f"{path}: ")
        check_signature(path, "monitor")
        return Kept(name, load_monitor(path), signature)
    except AssayError as error:
        return Kept(name, None, "", str(error).removeprefix(f"{path}: "))


def audits(workspace: "Workspace") -> list[dict[str, Any]]:
    """The kept audits, newest first: `name`, `model`, `verdict`, `record`, and in words `summary`, `cost`, `weights`,
    `not_looked_at`; of one that cannot be read, `why`."""
    places = sorted((workspace.atlas / AUDITS).glob(f"*/{AUDIT}"), key=lambda path: -path.stat().st_mtime)
    return [{"name": path.parent.name, **_audit(path)} for path in places[:MOST]]


def audit(workspace: "Workspace", name: str) -> dict[str, Any]:
    """One audit. Raises UsageError for another name, StoreError for one that cannot be read."""
    known = {found["name"]: found for found in audits(workspace)}
    if name not in known:
        raise missing("audit", name, ", ".join(known) or f"none is kept in {workspace.atlas / AUDITS}",
                           "Make one: assay audit --help")  # fmt: skip
    if "why" in known[name]:
        raise StoreError(str(known[name]["why"]))
    return known[name]


def _audit(path: Path) -> dict[str, Any]:
    from assay.report.audit_page import cost_words, summary, weights_words

    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"larger than {LARGEST >> 20} MB")
        record = json.loads(path.read_bytes())
        return {"model": str(record["model"]), "verdict": str(record["verdict"]), "record": record,
                "summary": summary(record), "cost": cost_words(record), "weights": weights_words(record),
                "not_looked_at": [str(line) for line in record["not_looked_at"]],
                "tested": [_tested(one) for one in record["tested"]]}  # fmt: skip
    except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError, StopIteration) as error:
        return {"why": f"{AUDITS}/{path.parent.name}/{AUDIT}: not the record of an audit ({type(error).__name__}: {error})."}


def _tested(one: dict[str, Any]) -> dict[str, Any]:
    """A suspicion that was tested, in a table."""
    told, out = one["hypothesis"], "found" if one["found"] else str(one["why_not"] or "did not hold")
    return {"family": str(told["family"]), "cue": str(told["cue"]), "predicts": str(told["predicts"]),
            "with": f"{one['shown']} of {one['n']}", "without": f"{one['control']} of {one['n_control']}",
            "p": float(one["adjusted"]), "came_out": out}  # fmt: skip
