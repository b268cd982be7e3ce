"""Documents to parts: what may be shown, what judges, and what stays sealed.

1. Near copies are joined: pairs of `near_duplicates` at a threshold below its own (what is a copy among some of the texts
   is one here), and texts with `RUN` words in a row in common, unless more than `COMMON` texts have them (a licence, a
   menu): such passages are counted, and windows are compared one by one later.
2. Every group of copies goes to one part whole: by u = first 8 bytes of SHA-256(seed, text) / 2^64 of its smallest member
   against the cumulative shares. The text decides, not its place or the others': more documents later move none, but for
   those that a new copy joins.
3. Fewer than `FEW` groups are dealt in the order of u instead, each to the part with the least for its share, so that every
   part gets one.
4. Of a group that holds more than `LARGEST` of all documents only one is kept; the others are counted as dropped.
"""

import hashlib
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from assay.data.duplicates import JOINED_FROM, near_duplicates
from assay.data.splits import Joined
from assay.errors import bad_argument

PARTS = ("shown", "scored", "tune", "confirm", "ood")
SHARES: Mapping[str, float] = MappingProxyType({"shown": 0.4, "scored": 0.2, "tune": 0.1, "confirm": 0.15, "ood": 0.15})
SEALED = ("confirm", "ood")
RUN, COMMON = 32, 8  # words in a row; texts that may have them before they are a phrase of the corpus
FEW = 100  # groups
LARGEST = 0.2
HEAD = 400  # characters of a text that decide where it goes: the same however much of it is read
WORD = re.compile(r"\w+")


@dataclass(frozen=True, eq=False)
class Assigned:
    """The part of every document. `dropped`: names left out and why; `groups`: of copies, single documents too;
    `joined`: documents in groups of two or more; `phrases`: long runs of words that too many texts share."""

    homes: Mapping[str, str]
    shares: Mapping[str, float]
    groups: int
    joined: int
    phrases: int
    dropped: Mapping[str, str]

    def of(self, part: str) -> tuple[str, ...]:
        """Names of a part, in the order they were given in."""
        return tuple(name for name, home in self.homes.items() if home == part)

    def record(self) -> dict[str, Any]:
        """As plain values, without names."""
        return {"shares": dict(self.shares), "documents": dict(Counter(self.homes.values())), "groups": self.groups,
                "joined": self.joined, "phrases": self.phrases, "dropped": dict(Counter(self.dropped.values()))}  # fmt: skip


def split_documents(
    documents: Iterable[tuple[str, str]], shares: Mapping[str, float] = SHARES, seed: int = 0, threshold: float = JOINED_FROM,
    outside: Iterable[tuple[str, str]] = (),
) -> Assigned:  # fmt: skip
    """(name, text) of every document to its part; see the steps above. `outside`: documents of another corpus, all of them
    *ood* but for those that are copies of a document of this one.

    Raises UsageError for shares that are not positive or do not add up to 1, for a part that is not known, for two documents
    of one name, and for fewer documents that are no copies than parts.
    """
    wanted = _shares(shares)
    given = list(documents)
    n = len(given)
    given += outside
    if len(given) > n and "ood" in wanted:
        raise bad_argument("shares", dict(shares), "none of 'ood'", "It is all of the other corpus.")
    names, texts = [name for name, _ in given], [text for _, text in given]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise bad_argument("documents", f"{len(twice)} names twice, as {twice[0]!r}", "a name of its own for each")
    runs, phrases = shared_passages(texts)
    whole = _groups(len(given), [*near_duplicates(texts, threshold), *runs])
    order = [_draw(seed, text) for text in texts]
    groups = [inside for group in whole if (inside := [row for row in group if row < n])]
    kept, dropped = _kept(groups, order, names[:n])
    if len(kept) < len(wanted):
        raise bad_argument("documents", f"{len(kept)} that are no copies of each other", f"{len(wanted)} or more, one for each"
                           f" of {', '.join(wanted)}", "Give a larger corpus, or one whose documents are shorter.")  # fmt: skip
    dealt = _deal(kept, order, wanted)
    dealt |= {row: "ood" for group in whole if group[0] >= n for row in group}
    dropped |= {names[row]: "a near copy of a document of the main corpus"
                for group in whole if group[0] < n for row in group if row >= n}  # fmt: skip
    homes = {names[row]: dealt[row] for row in sorted(dealt)}
    joined = sum(len(group) for group in kept if len(group) > 1)
    return Assigned(homes, wanted, len(kept), joined, phrases, dropped)


def shared_passages(texts: Sequence[str], run: int = RUN, most: int = COMMON) -> tuple[list[tuple[int, int]], int]:
    """Pairs of texts with `run` words in a row in common, each with the first that has the run; and how many runs more than
    `most` texts have, which join nothing. Words are compared without case, by 64-bit sums of their hashes."""
    hashes, owners = [], []
    for number, text in enumerate(texts):
        found = WORD.findall(text.casefold())
        words = np.array([zlib.crc32(word.encode("utf-8", "surrogatepass")) for word in found], np.uint64)
        if len(words) >= run:
            windows = np.lib.stride_tricks.sliding_window_view(words, run)
            hashes.append(np.unique(windows @ _multipliers(run)))
            owners.append(np.full(len(hashes[-1]), number))
    if not hashes:
        return [], 0
    found, owner = np.concatenate(hashes), np.concatenate(owners)
    order = np.lexsort((owner, found))
    found, owner = found[order], owner[order]
    starts = np.flatnonzero(np.concatenate([[True], found[1:] != found[:-1]]))
    sizes = np.diff(starts, append=len(found))
    place = np.repeat(np.arange(len(starts)), sizes)
    paired = (sizes[place] > 1) & (sizes[place] <= most) & (np.arange(len(found)) != starts[place])
    pairs = np.unique(np.stack([owner[starts[place]][paired], owner[paired]], 1), axis=0)
    return [(int(one), int(other)) for one, other in pairs], int((sizes > most).sum())


def _multipliers(run: int) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 2**63, run, dtype=np.uint64) * np.uint64(2) + np.uint64(1)


def _shares(shares: Mapping[str, float]) -> dict[str, float]:
    if unknown := [part for part in shares if part not in PARTS]:
        raise bad_argument("shares", unknown, ", ".join(PARTS))
    if not shares or min(shares.values()) <= 0 or abs(sum(shares.values()) - 1) > 1e-6:
        raise bad_argument("shares", dict(shares), "numbers above 0 that add up to 1", "Leave a part out for none of it.")
    return {part: float(shares[part]) for part in PARTS if part in shares}


def _draw(seed: int, text: str) -> float:
    """A number from 0 to 1 that belongs to the beginning of a text."""
    content = f"deal {seed} {text.strip()[:HEAD]}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big") / 2**64


def _groups(n: int, pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    joined = Joined()
    for one, other in pairs:
        joined.join([f"{one:09d}", f"{other:09d}"])
    groups: dict[str, list[int]] = {}
    for row in range(n):
        groups.setdefault(joined.root(f"{row:09d}"), []).append(row)
    return list(groups.values())


def _kept(groups: list[list[int]], order: list[float], names: list[str]) -> tuple[list[list[int]], dict[str, str]]:
    """Groups as they are dealt, the largest cut to one document."""
    most = max(1.0, LARGEST * len(names))
    kept, dropped = [], {}
    for group in groups:
        if len(group) > most:
            first = min(group, key=lambda row: (order[row], names[row]))
            dropped |= {names[row]: "a near copy of too many others" for row in group if row != first}
            group = [first]
        kept.append(group)
    return kept, dropped


def _deal(groups: list[list[int]], order: list[float], shares: Mapping[str, float]) -> dict[int, str]:
    """The part of every row."""
    parts, homes = list(shares), {}
    ends = np.cumsum([shares[part] for part in parts])
    count = dict.fromkeys(parts, 0)
    for group in sorted(groups, key=lambda group: min(order[row] for row in group)):
        if len(groups) < FEW:
            home = min(parts, key=lambda part: (count[part] / shares[part], -shares[part]))
        else:
            u = min(order[row] for row in group)
            home = parts[min(int(np.searchsorted(ends, u, side="right")), len(parts) - 1)]
        count[home] += 1
        homes |= dict.fromkeys(group, home)
    return homes
