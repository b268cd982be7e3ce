"""Who may do what, and the log of what was done.

1. Roles, each with all rights of those before it: read (observe), intervene (edit activations, and weights of a copy in
   memory), modify (export changed weights). A command line has *intervene* unless `--allow ROLE` or the environment
   variable ASSAY_ALLOW says another; *modify* also needs a typed reason.
2. The audit log is `audit.jsonl` in the atlas: one entry a line, {"index", "time", "who", "role", "action", "why",
   "body", "previous", "hash"}; the hash is SHA-256 of the entry's canonical JSON without it, "previous" the hash of the
   entry before. Count and last hash are kept apart in `audit.head`, so that dropping the last entries shows as well.
3. An entry is written under a file lock and flushed to the disk before `record` returns. A writer that is killed leaves
   at most half a line, which the next writer replaces by an entry that says so, or a head that is one entry behind.

4. An answer of an edited or changed model carries `disclosure(..)`, so that no program takes it for the model's own.

Anyone who may write the directory may rewrite log and head together; the chain makes anything less visible.
"""

import getpass
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from assay.errors import StoreError, TamperedError, UsageError, bad_argument
from assay.files import write_file
from assay.records import canonical, digest, plain

ROLES = ("read", "intervene", "modify")
DEFAULT = "intervene"
VARIABLE = "ASSAY_ALLOW"
LOG, HEAD, LOCK = "audit.jsonl", "audit.head", ".audit.lock"
GENESIS = "0" * 64
CHANGED = {
    "steered": "Activations were pushed along a direction while this was written: it is not what the model says by itself.",
    "edited": "Activations were edited while this was measured: it is not what the model does by itself.",
    "weights": "Weights were changed: this is not the model as it was published.",
    "blocked": "A monitor raised an alert, and the answer was withheld or cut.",
}  # what was done to an answer: what people are told
SHORTEST = 8  # letters and digits of a reason
PATIENCE = 30.0  # seconds to wait for another writer
RETRIES = 20  # readings of a log that is being written to
KINDS = {"index": int, "time": str, "who": str, "role": str, "action": str, "why": str, "body": dict, "previous": str,
         "hash": str}  # fmt: skip
KEYS = tuple(KINDS)[:-1]
LOST = "an interrupted entry was dropped"
Entry = dict[str, Any]


@dataclass(frozen=True)
class Grant:
    """A role that was granted, and the reason that was typed for it ("" where none is needed)."""

    role: str
    reason: str = ""


def granted_role(given: str | None = None) -> str:
    """The role of this command: `given` (--allow), else ASSAY_ALLOW, else *intervene*. UsageError for an unknown one."""
    for where, role in (("--allow", given), (VARIABLE, os.environ.get(VARIABLE))):
        if role:
            if role not in ROLES:
                raise bad_argument(where, role, ", ".join(ROLES))
            return role
    return DEFAULT


def require(role: str, *, reason: str | None = None, granted: str | None = None) -> Grant:
    """The grant that an action needs. `granted`: the role of the caller; None: `granted_role()`.

    Raises UsageError, naming how to grant it, for a role that is too low; for *modify* also without a reason in words.
    """
    if role not in ROLES:
        raise bad_argument("role", role, ", ".join(ROLES))
    has = granted_role(granted)
    if ROLES.index(has) < ROLES.index(role):
        more = ' and say why: --reason "..."' if role == "modify" else ""
        raise UsageError(f"this needs the role {role!r}; granted: {has!r}. Nothing was changed."
                         f" Grant it with {VARIABLE}={role}, or --allow {role} where the command has it{more}.")  # fmt: skip
    words = (reason or "").strip()
    if role == "modify" and sum(letter.isalnum() for letter in words) < SHORTEST:
        raise bad_argument("--reason", words, f"why weights are changed, in words (at least {SHORTEST} letters)",
                           "It is kept in the audit log. Nothing was changed.")  # fmt: skip
    return Grant(role, words)


def disclosure(what: str, **facts: Any) -> dict[str, Any]:
    """The marker that goes with every answer that is not the model's own: {"modified", "what", "note", ..}.

    `what`: a key of `CHANGED`; `facts`: what it was changed with (a direction, a site, a monitor), as plain JSON values.
    Raises UsageError for another word.
    """
    if what not in CHANGED:
        raise bad_argument("what", what, ", ".join(CHANGED))
    return {"modified": True, "what": what, "note": CHANGED[what], **plain(facts)}


# the log -----------------------------------------------------------------------------------------


def record(folder: str | Path, action: str, body: Mapping[str, Any], grant: Grant | None = None) -> Entry:
    """Append one entry to the audit log of `folder` (made when needed) and return it, its hash included.

    `body`: what was done, as plain JSON values. Raises TamperedError when the end of the log is not the one that its
    head names, StoreError when it cannot be written.
    """
    given, path = grant or Grant("read"), Path(folder) / LOG
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.parent / LOCK, timeout=PATIENCE):
            last, torn = _end(path)
            head = _head(path.parent)
            _check_end(path, last, head)
            if torn:
                _cut(path, len(torn))
                lost = {"bytes": len(torn), "sha256": digest(torn.decode("utf-8", "replace"))}
                last = _append(path, _next(last, LOST, lost, Grant("read")))
            return _append(path, _next(last, action, body, given))
    except Timeout as error:
        raise StoreError(f"audit log {path}: another process has held it for {PATIENCE:g} seconds. Try again.") from error
    except OSError as error:
        why = error.strerror or error
        raise StoreError(f"audit log {path}: cannot be written ({why}), so {action!r} is not in it.") from error


def forget_only_entry(folder: str | Path) -> None:
    """Remove a folder that holds nothing but a log of one entry: what was asked for was refused, and nothing was done."""
    place = Path(folder)
    try:
        with FileLock(place / LOCK, timeout=PATIENCE):
            last, torn = _end(place / LOG)
            if last is None or last["index"] or torn or {each.name for each in place.iterdir()} - {LOG, HEAD, LOCK}:
                return
            for name in (LOG, HEAD, LOCK):
                (place / name).unlink(missing_ok=True)
        place.rmdir()
    except (OSError, Timeout):  # somebody else is at work in it: then it stays
        return


def entries(folder: str | Path) -> Iterator[Entry]:
    """All whole entries of the log, oldest first; none where there is no log. TamperedError for a line that is none."""
    path = Path(folder) / LOG
    if not path.is_file():
        return
    with path.open("rb") as lines:
        for number, line in enumerate(lines):
            if line.endswith(b"\n"):
                yield _entry(path, line, number)


def verify(folder: str | Path) -> list[str]:
    """What is wrong with the audit log, one sentence each; an empty list when nothing is. Reads it line by line.

    A log that others write to meanwhile is read again until its head is the one it began with.
    """
    problems: list[str] = []
    for _ in range(RETRIES):
        head = _head(Path(folder))
        problems = _problems(folder, head)
        if not problems or _head(Path(folder)) == head:
            break
    return problems


def _problems(folder: str | Path, head: Mapping[str, Any] | None) -> list[str]:
    """What is wrong, given the head as it was before the log is read."""
    problems, previous, count = [], GENESIS, 0
    at_head = GENESIS
    for entry in entries(folder):
        if entry["index"] != count:
            problems.append(f"entry {count} carries number {entry['index']}: an entry is missing or moved")
        if entry["previous"] != previous:
            problems.append(f"entry {count} does not follow the entry before it")
        if entry["hash"] != _hash(entry):
            problems.append(f"entry {count} was edited: its hash does not match its content")
        previous, count = entry["hash"], count + 1
        at_head = previous if head is not None and count == head["count"] else at_head
    if head is None:
        return [*problems, *([f"the head ({HEAD}) is missing"] if count > 1 else [])]
    if head["count"] > count:
        return [*problems, f"the head counts {head['count']} entries, the log has {count}: entries were deleted at the end"]
    if head["hash"] != at_head:
        problems.append(f"the head does not match entry {head['count'] - 1}")
    if count > head["count"] + 1:
        problems.append(f"the log has {count} entries, the head counts {head['count']}: entries were added past it")
    return problems


def _next(last: Entry | None, action: str, body: Mapping[str, Any], grant: Grant) -> Entry:
    entry = {
        "index": 0 if last is None else last["index"] + 1, "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "who": _who(), "role": grant.role, "action": action, "why": grant.reason, "body": plain(dict(body)),
        "previous": GENESIS if last is None else last["hash"],
    }  # fmt: skip
    return {**entry, "hash": digest(entry)}


def _hash(entry: Entry) -> str:
    return digest({key: entry[key] for key in KEYS})


def _who() -> str:
    """The name of the user as the system has it."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container without a user table
        return f"uid {os.getuid()}" if hasattr(os, "getuid") else "unknown"


def _append(path: Path, entry: Entry) -> Entry:
    """One line, whole and on the disk, or nothing of it; then the head."""
    with open(path, "ab", buffering=0) as file:
        before, left = file.seek(0, os.SEEK_END), memoryview(canonical(entry).encode() + b"\n")
        try:
            while left:  # a disk that fills up takes a part, and says so at the next try
                left = left[file.write(left) :]
            os.fsync(file.fileno())
        except OSError:
            with suppress(OSError):  # a line that stays half is dropped by the next writer
                file.truncate(before)
            raise
    write_file(path.parent / HEAD, canonical({"count": entry["index"] + 1, "hash": entry["hash"]}).encode())
    return entry


def _end(path: Path) -> tuple[Entry | None, bytes]:
    """The last whole entry, and what stands after it: half a line of a writer that was killed."""
    if not path.is_file():
        return None, b""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        tail, start = b"", size
        while start > 0 and tail.count(b"\n") < 2:
            step = min(start, 1 << 16)
            start -= step
            file.seek(start)
            tail = file.read(step) + tail
    whole, newline, torn = tail.rpartition(b"\n")
    if not newline:
        return None, torn
    return _entry(path, whole.rpartition(b"\n")[2], None), torn


def _entry(path: Path, line: bytes, number: int | None) -> Entry:
    try:
        entry = json.loads(line)
        if not isinstance(entry, dict) or any(type(entry.get(name)) is not kind for name, kind in KINDS.items()):
            raise ValueError("it has not the fields of an entry")
        _hash(entry)  # numbers that are none have no hash
    except (ValueError, TypeError, RecursionError) as error:
        where = "the last line" if number is None else f"line {number + 1}"
        raise TamperedError(f"audit log {path}: {where} is no entry ({error}). Restore it from a copy.") from error
    return entry


def _head(folder: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((folder / HEAD).read_text())
        return {"count": int(found["count"]), "hash": str(found["hash"])}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise TamperedError(f"audit log: {folder / HEAD} is not readable ({error}). Restore it from a copy.") from error


def _check_end(path: Path, last: Entry | None, head: Mapping[str, Any] | None) -> None:
    """The end of the log must be where the head says, or one entry after it (a writer was killed between the two)."""
    count = 0 if last is None else last["index"] + 1
    known = (0, GENESIS) if head is None else (head["count"], head["hash"])
    here = (count, GENESIS if last is None else last["hash"])
    before = (count - 1, GENESIS if last is None else last["previous"])
    honest = last is None or last["hash"] == _hash(last)
    if not honest or known not in (here, before):
        raise TamperedError(f"audit log {path}: its end ({count} entries) is not the one its head names ({known[0]})."
                            " See: assay repair log --verify. Nothing was changed.")  # fmt: skip


def _cut(path: Path, torn: int) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - torn)
        os.fsync(file.fileno())
