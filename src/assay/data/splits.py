"""Items to splits, by cluster; and what leaks between splits.

1. Items that share a template, a text or an entity (a word, a document) are joined. Every joined group goes to one
   split whole: discover, tune, confirm and ood get groups in 1:2:4:3.
2. Where one group holds more than a quarter of all items (every word in every frame), nothing could be held out
   that way. Such a group is cut: its frames and its words are given to splits separately, and an item is kept where
   its frame and all its words agree. The others are dropped and counted: about 7 in 10 for one word per frame.
3. Groups, frames and words are taken in the order of their hashes, members, negatives and mixed ones in turn, so
   that every split gets its share of each label. The order of rows in a file plays no part.
   Near copies, where they are given (`duplicates.copies_of`), join what they are in as an equal text does.
4. A leak is a template, an entity or a text on two sides, or eight words in a row that two different texts share. An
   opening that most templates of both sides have (an instruction) is a format, not a leak.

Held-out frames with seen words, or the reverse, overstate what generalises: an untrained network reads any concept
off words it has met. What the splits cannot know is that two words mean the same.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from assay.records import Example, Pair, digest

SPLITS = ("discover", "tune", "confirm", "ood")
SHARES = {"discover": 1, "tune": 2, "confirm": 4, "ood": 3}
ORDER = ("confirm", "ood", "tune", "discover")  # who is served first
CUT = 0.25  # a group with more of all items than this is cut
SPAN = 8  # words in a row that two texts do not share by chance
COMMON = 0.5  # a span in more of the templates than this, on both sides, is a format
WORDS = re.compile(r"\w+(?:['’]\w+)*")
DISAGREE = "its words and its frame fell to different splits"
T = TypeVar("T", Pair, Example)


@dataclass(frozen=True)
class Division(Generic[T]):
    """Items by split, and how many were left out, by reason."""

    splits: dict[str, list[T]]
    dropped: dict[str, int] = field(default_factory=dict)


class Joined:
    """Keys that belong together (union-find). The root of a group is its smallest key."""

    def __init__(self) -> None:
        self._above: dict[str, str] = {}

    def root(self, key: str) -> str:
        while (above := self._above.setdefault(key, key)) != key:
            self._above[key] = self._above[above]
            key = above
        return key

    def join(self, keys: Sequence[str]) -> None:
        roots = [self.root(key) for key in keys]
        smallest = min(roots)
        for root in roots:
            self._above[root] = smallest


def divide(items: Sequence[T], copies: Sequence[tuple[int, int]] = ()) -> Division[T]:
    """Every item in one split, or dropped and counted; no template, text or entity on two sides.

    `copies`: pairs of numbers of items that are near copies; they, too, never end on two sides.
    """
    joined, alike = Joined(), Joined()
    for item in items:
        joined.join([_frame(item), *_texts(item), *_words(item)])
    for one, other in copies:
        joined.join([_frame(items[one]), _frame(items[other])])
        alike.join([_frame(items[one]), _frame(items[other])])
    groups: dict[str, list[T]] = {}
    for item in sorted(items, key=_order):
        groups.setdefault(joined.root(_frame(item)), []).append(item)
    out: dict[str, list[T]] = {split: [] for split in SPLITS}
    whole, lost = {}, 0
    for name, group in groups.items():
        homes = _cut(group, alike) if len(group) > CUT * len(items) else None
        if homes is None:
            whole[name] = group
            continue
        for item, home in zip(group, homes, strict=True):
            lost += home is None
            if home is not None:
                out[home].append(item)
    for name, home in deal(whole).items():
        out[home].extend(whole[name])
    return Division(out, {DISAGREE: lost} if lost else {})


def split_items(items: Sequence[T]) -> dict[str, list[T]]:
    """Items by split; see `divide` for those left out."""
    return divide(items).splits


def deal(units: Mapping[str, Sequence[Any]]) -> dict[str, str]:
    """Unit -> split, by hash of the unit's name, in proportion to the shares within every stratum of labels.

    The next unit of a stratum goes to the split that has least of it for its share (Adams' method), so every
    split has one before any has two.
    """
    total = dict.fromkeys(SPLITS, 0)
    homes = {}
    for stratum in sorted({_stratum(items) for items in units.values()}):
        count = dict.fromkeys(SPLITS, 0)
        for name in sorted((name for name, items in units.items() if _stratum(items) == stratum), key=_hash):
            home = min(ORDER, key=lambda split: (count[split] / SHARES[split], total[split] / SHARES[split],
                                                 -SHARES[split]))  # fmt: skip
            homes[name] = home
            count[home] += 1
            total[home] += 1
    return homes


def _cut(group: Sequence[Any], alike: Joined) -> list[str | None] | None:
    """The split of every item when frames and words are dealt apart, None where they disagree.

    None altogether when there are fewer than four frames or words to deal.
    """
    frames, words = Joined(), Joined()
    for item in group:
        frames.join([_frame(item), alike.root(_frame(item)), *_texts(item)])
        if item.entities:
            words.join(_words(item))
    by_frame = _collect(group, lambda item: {frames.root(_frame(item))})
    by_word = _collect(group, lambda item: {words.root(word) for word in _words(item)})
    if max(map(len, by_word.values()), default=0) > CUT * len(group):
        words = Joined()  # words that occur together hang together too: deal them one by one
        by_word = _collect(group, lambda item: set(_words(item)))
    if min(len(by_frame), len(by_word)) < len(SPLITS):
        return None
    frame_home, word_home = deal(by_frame), deal(by_word)
    found: list[str | None] = []
    for item in group:
        homes = {frame_home[frames.root(_frame(item))], *(word_home[words.root(word)] for word in _words(item))}
        found.append(homes.pop() if len(homes) == 1 else None)
    return found


def _collect(items: Iterable[Any], keys: Any) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for item in items:
        for key in keys(item):
            found.setdefault(key, []).append(item)
    return found


def _stratum(items: Sequence[Any]) -> str:
    """What labels a unit has: members, negatives, near misses, or several of them; "" for pairs."""
    labels = {(item.label, item.near_miss) for item in items if isinstance(item, Example)}
    if len({label for label, _ in labels}) > 1:
        return "mixed"
    return "" if not labels else "members" if (1, False) in labels else "near" if labels == {(0, True)} else "negatives"


def _frame(item: Any) -> str:
    return f"t:{item.template}"


def _texts(item: Any) -> list[str]:
    return [f"x:{text}" for text in item.texts]


def _words(item: Any) -> list[str]:
    return [f"e:{entity}" for entity in item.entities]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _order(item: Any) -> tuple[str, str]:
    """Where an item stands, whatever the order of rows."""
    return _hash("\x1f".join((item.template, *item.texts))), repr(item)


# leaks -------------------------------------------------------------------------------------------


def leaks(seen: Sequence[Any], sealed: Sequence[Any]) -> dict[str, int]:
    """How many templates, entities, texts and long spans of words occur on both sides; must be empty.

    "8-gram": sealed texts that share eight words in a row with a different text on the other side.
    """
    found = {
        "template": len({p.template for p in seen} & {p.template for p in sealed}),
        "entity": len({e for p in seen for e in p.entities} & {e for p in sealed for e in p.entities}),
        "text": len({t for p in seen for t in p.texts} & {t for p in sealed for t in p.texts}),
        f"{SPAN}-gram": _shared_spans(seen, sealed),
    }  # fmt: skip
    return {name: n for name, n in found.items() if n}


def _shared_spans(seen: Sequence[Any], sealed: Sequence[Any]) -> int:
    """Texts of `sealed`, not themselves in `seen`, with a span of a text of `seen`."""
    known, asked = _spans(seen), _spans(sealed)
    n_known, n_asked = len({p.template for p in seen}), len({p.template for p in sealed})
    shared = {span for span in known.keys() & asked.keys()
              if not (_common(known[span], n_known) and _common(asked[span], n_asked))}  # fmt: skip
    texts = {text for item in seen for text in item.texts}
    return sum(not shared.isdisjoint(spans_of(text))
               for text in {text for item in sealed for text in item.texts} - texts)  # fmt: skip


def spans_of(text: str, length: int = SPAN) -> set[tuple[str, ...]]:
    """All runs of eight words of a text, in lower case."""
    words = [word.lower() for word in WORDS.findall(text)]
    return {tuple(words[at : at + length]) for at in range(len(words) - length + 1)}


def _spans(items: Sequence[Any]) -> dict[tuple[str, ...], set[str]]:
    """Span -> the templates it occurs in."""
    found: dict[tuple[str, ...], set[str]] = {}
    for item in items:
        for text in item.texts:
            for span in spans_of(text):
                found.setdefault(span, set()).add(item.template)
    return found


def _common(templates: set[str], of: int) -> bool:
    """Whether a span is in most templates of a side, of at least eight."""
    return of >= 8 and len(templates) > COMMON * of


# parts of splits ---------------------------------------------------------------------------------


def marks(items: Sequence[Any]) -> list[str]:
    """By what the ledger knows these items again: their clusters, and their texts whatever their clusters are called."""
    return sorted({*clusters(items), *(digest(text)[:16] for item in items for text in item.texts)})


def clusters(items: Sequence[Any]) -> list[str]:
    """Hashed names of the clusters of some items."""
    return sorted({digest(template)[:16] for template in {item.template for item in items}})


def spread(items: Sequence[T], n: int) -> list[T]:
    """Up to n items: templates in turn, and within each the labels in turn, so that a small n keeps both."""
    by_template: dict[str, list[tuple[int, T]]] = {}
    for row, item in enumerate(items):
        by_template.setdefault(item.template, []).append((row, item))
    keyed = []
    for number, rows in enumerate(by_template.values()):
        first = sorted((row for row in rows if _label(row[1]) == number % 2), key=lambda row: row[0])
        other = sorted((row for row in rows if _label(row[1]) != number % 2), key=lambda row: row[0])
        turns = [(2 * turn, *row) for turn, row in enumerate(first)] + [(2 * turn + 1, *row) for turn, row in enumerate(other)]
        for turn, (_, row, item) in enumerate(sorted(turns, key=lambda found: found[:2])):
            keyed.append((turn, row, item))
    return [item for _, _, item in sorted(keyed, key=lambda found: found[:2])][:n]


def _label(item: Any) -> int:
    return int(getattr(item, "label", 0))
