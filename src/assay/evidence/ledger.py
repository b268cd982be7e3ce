"""The ledger: an append-only chain of everything that was stated, looked at, read and decided.

1. An entry is {"index", "time", "kind", "body", "previous"}; its hash is SHA-256 of its canonical
   JSON, and "previous" is the hash of the entry before it.
2. The head (count and last hash) is kept apart from the entries, so that dropping the last entries
   shows as well.
3. A read of confirm data is an entry ("ticket") written before the data are opened. Reads of the
   same clusters for the same subject are counted, and the k-th is decided at alpha / k^2.
4. Looks outside of claim tests (sweeps, exploration) name their clusters too; a claim tested on
   clusters that were looked at is *exploratory*.
5. Questions about entries (reads, looks, family, counts) are answered from an index that every entry is
   added to, so their cost does not grow with the ledger. The index follows from the entries.
6. Claims of others are entries of their own kind (import): they are listed, and never count as reads,
   family members or verdicts of this ledger.

The chain shows edits, deletions and reordering by anyone who does not rewrite the whole chain and
its head. Anchoring the head elsewhere (a commit, a mail) closes that gap.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol, Self, runtime_checkable

from assay.errors import EvidenceError
from assay.records import digest, plain

GENESIS = "0" * 64
KINDS = ("state", "lock", "look", "ticket", "data", "evidence", "verdict", "replication", "deviation", "import", "hypothesis",
         "outcome")  # fmt: skip
STATES = ("supported", "refuted", "inconclusive", "not tested")
MOST_LOOKS = 20  # named one by one; the rest are counted
Entry = dict[str, Any]


@runtime_checkable
class Ledger(Protocol):
    """What a place that keeps the ledger must offer. `with ledger:` keeps it open for several operations."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...

    def append(self, kind: str, body: Mapping[str, Any]) -> Entry:
        """Add one entry and return it, in one transaction."""
        ...

    def entries(self) -> list[Entry]:
        """All entries, oldest first. Grows with the ledger: for small ones and for export."""
        ...

    def entry_count(self) -> int:
        """How many entries there are."""
        ...

    def entries_of(self, claim: str) -> list[Entry]:
        """The entries about one claim, oldest first."""
        ...

    def reads(self, subject: str, data: str, clusters: Sequence[str]) -> int:
        """How many tickets of this subject met the same confirm data or any of the same clusters."""
        ...

    def looks(self, model: str, clusters: Sequence[str]) -> list[str]:
        """What was looked at on these clusters with this model (its digest), outside of claim tests."""
        ...

    def sharing(self, subject: str, clusters: Sequence[str]) -> list[str]:
        """Claims of other subjects whose confirm data share a cluster with these: the Holm family."""
        ...

    def tally(self) -> dict[str, int]:
        """Stated, tested and decided counts: the denominator of every supported claim."""
        ...


class Index:
    """What a ledger answers, in dictionaries that entries are added to in order."""

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self._of: dict[str, list[Entry]] = {}
        self._kinds: Counter[str] = Counter()
        self._latest: dict[str, str] = {}
        self._by_data: dict[tuple[str, str], dict[str, None]] = {}
        self._by_cluster: dict[tuple[str, str], dict[str, None]] = {}
        self._confirm: dict[str, dict[tuple[int, str], str]] = {}
        self._looks: dict[tuple[str, str], dict[int, str]] = {}
        for entry in entries:
            self.add(entry)

    def add(self, entry: Entry) -> None:
        """One more entry."""
        kind, body = entry["kind"], entry["body"]
        self._kinds[kind] += 1
        self._kinds["failed replication"] += kind == "replication" and not body.get("same", True)
        if "claim" in body:
            self._of.setdefault(body["claim"], []).append(entry)
        if kind == "verdict":
            self._latest[body["claim"]] = body["verdict"]
        if kind == "look":
            for cluster in body.get("clusters", ()):
                self._looks.setdefault((body.get("model", ""), cluster), {})[entry["index"]] = look_words(entry)
        if body.get("split") == "confirm" and kind == "ticket":
            self._by_data.setdefault((body["subject"], body["data"]), {})[body["ticket"]] = None
        if body.get("split") == "confirm" and kind == "data":
            for cluster in body["clusters"]:
                self._by_cluster.setdefault((body["subject"], cluster), {})[body["ticket"]] = None
                self._confirm.setdefault(cluster, {})[entry["index"], body["claim"]] = body["subject"]

    def of(self, claim: str) -> list[Entry]:
        return list(self._of.get(claim, ()))

    def reads(self, subject: str, data: str, clusters: Sequence[str]) -> int:
        met = set(self._by_data.get((subject, data), ()))
        return len(met.union(*(self._by_cluster.get((subject, cluster), ()) for cluster in clusters)))

    def looks(self, model: str, clusters: Sequence[str]) -> list[str]:
        found: dict[int, str] = {}
        for cluster in clusters:
            found |= self._looks.get((model, cluster), {})
        return shortened([found[place] for place in sorted(found, reverse=True)[:MOST_LOOKS]], len(found))

    def sharing(self, subject: str, clusters: Sequence[str]) -> list[str]:
        found = {key for cluster in clusters for key, other in self._confirm.get(cluster, {}).items() if other != subject}
        return list(dict.fromkeys(claim for _, claim in sorted(found)))

    def tally(self) -> dict[str, int]:
        return counts(self._kinds, Counter(self._latest.values()))


class MemoryLedger:
    """A ledger that lives as long as the process: for trials and tests."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []
        self._index = Index()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def append(self, kind: str, body: Mapping[str, Any]) -> Entry:
        entry = next_entry(self._entries[-1] if self._entries else None, kind, body)
        self._entries.append(entry)
        self._index.add(entry)
        return entry

    def entries(self) -> list[Entry]:
        return list(self._entries)

    def entry_count(self) -> int:
        return len(self._entries)

    def entries_of(self, claim: str) -> list[Entry]:
        return self._index.of(claim)

    def reads(self, subject: str, data: str, clusters: Sequence[str]) -> int:
        return self._index.reads(subject, data, clusters)

    def looks(self, model: str, clusters: Sequence[str]) -> list[str]:
        return self._index.looks(model, clusters)

    def sharing(self, subject: str, clusters: Sequence[str]) -> list[str]:
        return self._index.sharing(subject, clusters)

    def tally(self) -> dict[str, int]:
        return self._index.tally()


def look_words(entry: Entry) -> str:
    """A look in words."""
    return f"{entry['body'].get('what', 'a look')} ({entry['time']})"


def shortened(newest: Sequence[str], total: int) -> list[str]:
    """The looks that are named, and how many more there are."""
    return [*newest, *([f"and {total - len(newest)} more"] if total > len(newest) else [])]


def counts(kinds: Mapping[str, int], verdicts: Mapping[str, int]) -> dict[str, int]:
    """The tally, from how often each kind of entry occurs and how many claims have each verdict."""
    return {
        "stated": kinds.get("state", 0), "looks": kinds.get("look", 0), "tickets": kinds.get("ticket", 0),
        "tried": sum(verdicts.values()), **{state: verdicts.get(state, 0) for state in STATES},
        "deviations": kinds.get("deviation", 0), "replications": kinds.get("replication", 0),
        "failed replications": kinds.get("failed replication", 0), "imported": kinds.get("import", 0),
    }  # fmt: skip


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


class ChainCheck:
    """Checks a chain entry by entry, so that a ledger of any length is read once and never held.

    A head may be behind the chain (a writer was killed between two writes) but must lie on it.
    """

    def __init__(self, *heads: Mapping[str, Any] | None) -> None:
        self.problems: list[str] = []
        self.count = 0
        self._previous = GENESIS
        self._heads = [head for head in heads if head is not None]
        self._at_head: dict[int, str] = {0: GENESIS}

    def feed(self, entries: Iterable[Entry]) -> None:
        """The next entries."""
        wanted = {int(head["count"]) for head in self._heads}
        for entry in entries:
            place = self.count
            content = {key: entry.get(key) for key in ("index", "time", "kind", "body", "previous")}
            if entry.get("index") != place:
                self.problems.append(f"entry {place} carries number {entry.get('index')}: an entry is missing or moved")
            if entry.get("previous") != self._previous:
                self.problems.append(f"entry {place} does not follow the entry before it")
            if entry.get("hash") != digest(content):
                self.problems.append(f"entry {place} was edited: its hash does not match its content")
            self._previous, self.count = str(entry.get("hash")), place + 1
            if self.count in wanted:
                self._at_head[self.count] = self._previous

    def done(self) -> list[str]:
        """What is wrong, one sentence each; an empty list when nothing is."""
        return [*self.problems, *(problem for head in self._heads for problem in self._head_problems(head))]

    def _head_problems(self, head: Mapping[str, Any]) -> list[str]:
        count = int(head["count"])
        if count > self.count:
            return [f"the head counts {count} entries, the ledger has {self.count}: entries were deleted at the end"]
        return [] if head["hash"] == self._at_head.get(count) else [f"the head does not match entry {count - 1}"]


def verify_chain(entries: Iterable[Entry], *heads: Mapping[str, Any] | None) -> list[str]:
    """What is wrong with a chain, one sentence each; an empty list when nothing is."""
    check = ChainCheck(*heads)
    check.feed(entries)
    return check.done()


# reads of sealed splits --------------------------------------------------------------------------


def subject_key(kind: str, subject: Mapping[str, Any]) -> str:
    """What a ticket is charged to: claim kind, model digest, sites and positions. The data are told by their
    clusters and texts, not by a name or path that can be spelled in several ways."""
    return digest([kind, subject["digest"], sorted(subject["sites"]), subject.get("positions")])


def check_ticket(entries: Sequence[Entry]) -> None:
    """Raises EvidenceError where every ticket among the entries of a claim has its evidence: somebody else was faster."""
    kinds = Counter(entry["kind"] for entry in entries)
    if kinds["ticket"] and kinds["evidence"] >= kinds["ticket"]:
        raise EvidenceError(f"claim {entries[0]['body']['claim']}: it was tested meanwhile with the same ticket, by another"
                            " process. That evidence stands; this one is not kept. See: assay claim show.")  # fmt: skip


def unjudged(entries: Sequence[Entry]) -> bool:
    """Whether the newest evidence among the entries of a claim has no verdict yet: whoever recorded it was killed then."""
    kinds = [entry["kind"] for entry in entries if entry["kind"] in ("evidence", "verdict")]
    return kinds[-1:] == ["evidence"]


def tally(entries: Iterable[Entry]) -> dict[str, int]:
    """The counts of some entries."""
    return Index(entries).tally()
