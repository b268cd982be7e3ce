"""The ledger: an append-only chain of everything that was stated, looked at, read and decided.

1. An entry is {"index", "time", "kind", "body", "previous"}; its hash is SHA-256 of its canonical
   JSON, and "previous" is the hash of the entry before it.
2. The head (count and last hash) is kept apart from the entries, so that dropping the last entries
   shows as well.
3. A read of confirm data is an entry ("ticket") written before the data are opened. Reads of the
   same clusters for the same subject are counted, and alpha is divided by the count.
4. Looks outside of claim tests (sweeps, exploration) name their clusters too; a claim tested on
   clusters that were looked at is *exploratory*.

The chain shows edits, deletions and reordering by anyone who does not rewrite the whole chain and
its head. Anchoring the head elsewhere (a commit, a mail) closes that gap.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol, runtime_checkable

from assay.errors import EvidenceError
from assay.records import digest, plain

GENESIS = "0" * 64
KINDS = ("state", "lock", "look", "ticket", "data", "evidence", "verdict", "replication")
Entry = dict[str, Any]


@runtime_checkable
class Ledger(Protocol):
    """What a place that keeps the ledger must offer."""

    def append(self, kind: str, body: Mapping[str, Any]) -> Entry:
        """Add one entry and return it, in one transaction."""
        ...

    def entries(self) -> list[Entry]:
        """All entries, oldest first."""
        ...


class MemoryLedger:
    """A ledger that lives as long as the process: for trials and tests."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []

    def append(self, kind: str, body: Mapping[str, Any]) -> Entry:
        entry = next_entry(self._entries[-1] if self._entries else None, kind, body)
        self._entries.append(entry)
        return entry

    def entries(self) -> list[Entry]:
        return list(self._entries)


def now() -> str:
    """UTC time, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def next_entry(last: Entry | None, kind: str, body: Mapping[str, Any], time: str | None = None) -> Entry:
    """The entry that follows `last` (None at the start of a chain)."""
    if kind not in KINDS:
        raise EvidenceError(f"ledger: got entry kind {kind!r}; allowed: {', '.join(KINDS)}.")
    index = 0 if last is None else last["index"] + 1
    previous = GENESIS if last is None else last["hash"]
    entry = {"index": index, "time": time or now(), "kind": kind, "body": plain(body), "previous": previous}
    return {**entry, "hash": digest(entry)}


def head_of(entries: Sequence[Entry]) -> dict[str, Any]:
    """Count and last hash of a chain."""
    return {"count": len(entries), "hash": entries[-1]["hash"] if entries else GENESIS}


def verify_chain(entries: Sequence[Entry], *heads: Mapping[str, Any] | None) -> list[str]:
    """What is wrong with a chain, one sentence each; an empty list when nothing is.

    A head may be behind the chain (a writer was killed between two writes) but must lie on it.
    """
    problems: list[str] = []
    previous = GENESIS
    for place, entry in enumerate(entries):
        content = {key: entry.get(key) for key in ("index", "time", "kind", "body", "previous")}
        if entry.get("index") != place:
            problems.append(f"entry {place} carries number {entry.get('index')}: an entry is missing or moved")
        if entry.get("previous") != previous:
            problems.append(f"entry {place} does not follow the entry before it")
        if entry.get("hash") != digest(content):
            problems.append(f"entry {place} was edited: its hash does not match its content")
        previous = str(entry.get("hash"))
    for head in heads:
        problems += [] if head is None else _head_problems(entries, head)
    return problems


def _head_problems(entries: Sequence[Entry], head: Mapping[str, Any]) -> list[str]:
    count = int(head["count"])
    if count > len(entries):
        return [f"the head counts {count} entries, the ledger has {len(entries)}: entries were deleted at the end"]
    expected = entries[count - 1]["hash"] if count else GENESIS
    return [] if head["hash"] == expected else [f"the head does not match entry {count - 1}"]


# reads of sealed splits --------------------------------------------------------------------------


def subject_key(kind: str, subject: Mapping[str, Any], task: Mapping[str, Any]) -> str:
    """What a ticket is charged to: claim kind, model digest, sites and positions, and task."""
    return digest([kind, subject["digest"], sorted(subject["sites"]), subject.get("positions"), task["name"]])


def count_reads(entries: Sequence[Entry], subject: str, data: str, clusters: Sequence[str]) -> int:
    """How many tickets of this subject met the same data or any of the same clusters."""
    wanted, met = set(clusters), set()
    for entry in entries:
        body = entry["body"]
        if body.get("subject") != subject or body.get("split") != "confirm":
            continue
        if entry["kind"] == "ticket" and body["data"] == data:
            met.add(body["ticket"])
        if entry["kind"] == "data" and wanted & set(body["clusters"]):
            met.add(body["ticket"])
    return len(met)


def looked_at(entries: Sequence[Entry], model: str, clusters: Sequence[str]) -> list[str]:
    """What was looked at on these clusters with this model (its digest), outside of claim tests."""
    wanted = set(clusters)
    return [f"{entry['body']['what']} ({entry['time']})" for entry in entries
            if entry["kind"] == "look" and entry["body"].get("model") == model
            and wanted & set(entry["body"].get("clusters", ()))]  # fmt: skip


def sharing(entries: Sequence[Entry], subject: str, clusters: Sequence[str]) -> list[str]:
    """Claims of other subjects whose confirm data share a cluster with these: the Holm family."""
    wanted, found = set(clusters), {}
    for entry in entries:
        body = entry["body"]
        if entry["kind"] == "data" and body.get("split") == "confirm" and body["subject"] != subject:
            if wanted & set(body["clusters"]):
                found[body["claim"]] = None
    return list(found)


def tally(entries: Sequence[Entry]) -> dict[str, int]:
    """Stated, tested and decided counts: the denominator of every supported claim."""
    latest = {entry["body"]["claim"]: entry["body"]["verdict"] for entry in entries if entry["kind"] == "verdict"}
    states = ("supported", "refuted", "inconclusive", "not tested")
    return {
        "stated": sum(entry["kind"] == "state" for entry in entries),
        "looks": sum(entry["kind"] == "look" for entry in entries),
        "tickets": sum(entry["kind"] == "ticket" for entry in entries),
        "tried": len(latest),
        **{state: sum(verdict == state for verdict in latest.values()) for state in states},
    }
