"""Start a server: a model, its monitors, and what they may do."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from assay.errors import UsageError, bad_argument
from assay.model.edits import Edit
from assay.model.model import Model
from assay.monitor.records import Monitor
from assay.permissions import Grant, require
from assay.serving.drifted import as_left
from assay.serving.log import Log
from assay.serving.server import Service
from assay.serving.watch import Readers
from assay.serving.webhook import Webhook, checked
from assay.serving.worker import Settings, Worker

MOST = 1024  # tokens of a reply


def start(
    model: Model,
    monitors: Sequence[Monitor],
    folder: str | Path,
    settings: Settings | None = None,
    *,
    steering: Sequence[Edit] = (),
    webhook: str | None = None,
    most: int = MOST,
    role: str | None = None,
    named: str | None = None,
) -> Service:
    """The service, its threads running; `Service.app` makes the ASGI app of it. The log is in `folder`; a monitor that drifted
    in an earlier run of that log is uncalibrated.

    `steering`: edits of one row (without rows) for the action *steer*, which needs the role *intervene*. `most`: tokens of a
    reply. `named`: what clients call the model. Raises UsageError for an action that could not be kept: steering without
    edits, blocking or steering by a monitor that is not calibrated, or for a unit that it has no threshold for; for a
    calibrated monitor that could never alert; TamperedError for a log that cannot be read.
    """
    settings = settings or Settings()
    if model.tokenizer is None:
        raise UsageError(f"model {model.name} has no tokenizer, so it cannot be talked to.")
    if most < 1:
        raise bad_argument("--max-tokens", most, "1 or more")
    grant = require("intervene", granted=role) if settings.action == "steer" else Grant("read")
    names = [monitor.name for monitor in monitors]
    if twice := [name for name in names if names.count(name) > 1]:
        raise bad_argument("monitors", f"two of the name {twice[0]!r}", "names of their own", "The log tells them by it.")
    readers = Readers(as_left(monitors, folder), model)
    _check(readers, settings, steering)
    address = checked(webhook) if webhook else None  # before the log is opened: nothing is written where it is refused
    modified = settings.modified or model.modified
    log = Log(folder, grant)
    hook = Webhook(address, log.put) if address else None
    worker = Worker(model, readers, log, replace(settings, modified=modified), steering, hook)
    log.put([_opening(model, readers, worker.settings, steering)])
    return Service(worker, named or model.name, most)


def _check(readers: Readers, settings: Settings, steering: Sequence[Edit]) -> None:
    if settings.action == "steer" and not steering:
        raise bad_argument("--on-alert", "steer", "with a direction to steer by", "Give --direction FILE.")
    if "conversation" in settings.units and "reply" not in settings.judge:
        raise bad_argument("--unit", "conversation", "with --judge reply", "A conversation is judged at the end of a reply.")
    for armed in readers.armed:
        bars = armed.monitor.thresholds
        if armed.calibrated and not any(unit in bars for unit in settings.units):
            raise bad_argument("--unit", ", ".join(settings.units), ", ".join(bars),
                               f"Monitor {armed.monitor.name!r} has no other threshold, and would never alert.")  # fmt: skip
    if settings.action == "log":
        return
    if not readers.armed:
        raise bad_argument("--on-alert", settings.action, "log, without a monitor", "Give --monitor FILE.")
    for armed in readers.armed:
        if not armed.calibrated:
            raise UsageError(f"monitor {armed.monitor.name!r} is {armed.state}; so it cannot {settings.action}."
                             " Calibrate it on this model, or serve with --on-alert log.")  # fmt: skip
        if missing := [unit for unit in settings.units if unit not in armed.monitor.thresholds]:
            raise bad_argument("--unit", missing[0], ", ".join(armed.monitor.thresholds),
                               f"Monitor {armed.monitor.name!r} has no threshold for it.")  # fmt: skip


def _opening(model: Model, readers: Readers, settings: Settings, steering: Sequence[Edit]) -> dict[str, object]:
    """What the log says when a server starts."""
    return {
        "kind": "server started", "model": model.name, "digest": model.digest, "action": settings.action,
        "units": list(settings.units), "judge": list(settings.judge), "keep_text": settings.keep_text,
        "modified": settings.modified, "steering": [edit.describe() for edit in steering],
        "monitors": [armed.said() for armed in readers.armed],
    }  # fmt: skip
