"""Where a claim's data come from.

1. A source gives the items of a split: pairs of a task, or labelled texts of a concept. It is recorded
   in the claim and found again from that record (`source_of`).
2. Bundled tasks and concepts have templates and words of their own per split; n items are drawn by seed.
3. A file is split by connected groups of template, text (near copies too) and word, so nothing is seen twice. It
   is recorded by its name and content, without folders, and looked for again (`assay.data.whereabouts`).
4. The texts of every split are hashed into the plan when it is locked, before the model has seen any of
   them; they are hashed again when they are read.

`ood` of a file is only "templates not used before"; a real shift needs templates of another style.
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from assay.data.concept_files import is_concept_file, read_concept
from assay.data.concepts import CONCEPTS, concept_path, divide_examples, load_concept, n_frames
from assay.data.splits import SPLITS, Division, clusters, divide, leaks, marks, split_items, spread
from assay.data.tasks import TASKS, load_task, n_templates, read_task
from assay.data.whereabouts import file_of, file_record
from assay.errors import EvidenceError, TaskError, bad_argument
from assay.records import Example, Pair, digest
from assay.registry import Registry

__all__ = ["SOURCES", "SPLITS", "ConceptSource", "MemorySource", "Population", "ReadsMore", "Source", "clusters", "divide",
           "find_source", "leaks", "marks", "source_of", "split_items", "spread"]  # fmt: skip


@runtime_checkable
class Population(Protocol):
    """What a claim is about: items by split, the same ones for the same n and seed."""

    @property
    def name(self) -> str:
        """How people call it: a task, a concept, a file."""
        ...

    def record(self) -> dict[str, Any]:
        """What the claim keeps of it: {"type", "name", ..}."""
        ...

    def digest(self, split: str, n: int, seed: int) -> str:
        """Hash of the items of a split."""
        ...

    def items(self, split: str, n: int, seed: int) -> list[Any]:
        """Up to n items of a split. Raises TaskError when there are none."""
        ...

    def n_templates(self, split: str) -> int:
        """How many clusters a split can have."""
        ...


@runtime_checkable
class ReadsMore(Protocol):
    """A source whose claims read whole documents, not only the items drawn from them."""

    def marks(self, split: str) -> list[str]:
        """By what the ledger knows all that is read of a split."""
        ...

    def leaks(self, split: str, other: str) -> dict[str, int]:
        """What all that is read of two splits has in common; must be empty."""
        ...


@runtime_checkable
class OfCodes(Protocol):
    """A source whose items are read on codes of a whole corpus, not by running a model on each."""

    def host(self, model: Any) -> Any:
        """What its items are read on. Raises ReproduceError where a model cannot make the codes again."""
        ...


PICTURES = ("scenes", "cars", "pictures", "picture pairs")  # types of sources whose items are pictures

SOURCES: Registry[Callable[[Mapping[str, Any]], Population]] = Registry("source")


def source_of(record: Mapping[str, Any]) -> Population:
    """The source a claim was stated on. Raises EvidenceError for one that lives in memory only."""
    kind = record.get("type", "task")
    if kind == "memory":
        raise EvidenceError(f"{record['name']}: these examples were given in memory; give them again with source=.")
    return SOURCES.get(kind)(record)


@dataclass(frozen=True)
class Source:
    """A task by name, or by the path of its file; with the corruption of bundled ones."""

    data: str
    corruption: str | None = None

    @property
    def bundled(self) -> bool:
        return self.data in TASKS

    @property
    def name(self) -> str:
        """A bundled task's name, or a file's without its folders."""
        return self.data if self.bundled else Path(self.data).name

    def record(self) -> dict[str, Any]:
        """The task as a claim names it: a bundled one with the corruption that is used, a file with its content's hash."""
        if self.bundled:
            return {"type": "task", "name": self.data, "corruption": self.corruption or TASKS.get(self.data).corruptions[0]}
        self._divided()  # refuses a file that does not fit
        return {"type": "task", "corruption": None, **file_record(Path(self.data))}

    def digest(self, split: str, n: int, seed: int) -> str:
        """Hash of the texts of a split. No model sees them."""
        return digest(self.items(split, n, seed))

    def items(self, split: str, n: int, seed: int) -> list[Pair]:
        """The pairs of a split. Raises TaskError when there are none."""
        if self.bundled:
            return load_task(self.data, split, n, seed, self.corruption)
        found = self._divided().splits[split]
        if not found:
            raise TaskError(f"task file {self.name}: no template fell to the split {split!r}; a claim needs about"
                            " 30 templates (8 each in confirm and ood), and templates that share a text or an"
                            " entity count as one.")  # fmt: skip
        return spread(found, n)

    def explore(self, split: str | None, n: int, seed: int) -> list[Pair]:
        """Pairs to explore: discover or tune; of a file, None means all pairs.

        Raises UsageError for a sealed split: looking at it would spoil it for claims.
        """
        if split not in (None, "discover", "tune"):
            hint = "confirm and ood are sealed: they are read by testing a claim."
            raise bad_argument("split", split, "discover or tune", hint)
        if split is None and not self.bundled:
            return load_task(self.data, corruption=self.corruption)
        return self.items(split or "discover", n, seed)

    def n_templates(self, split: str) -> int:
        """How many clusters a split can have, without making its pairs."""
        if self.bundled:
            return n_templates(self.data, split)
        return len({pair.template for pair in self._divided().splits[split]})

    def dropped(self) -> dict[str, int]:
        """Pairs of a file that are in no split, by reason."""
        return {} if self.bundled else self._divided().dropped

    def _divided(self) -> Division[Pair]:
        if self.corruption is not None:
            load_task(self.data, corruption=self.corruption)  # refuses it
        return _divided_task(*_stamp(Path(self.data)))


@dataclass(frozen=True)
class ConceptSource:
    """A concept by name, or by the path of its file."""

    data: str

    @property
    def bundled(self) -> bool:
        return self.data in CONCEPTS

    @property
    def name(self) -> str:
        """A bundled concept's name, or a file's without its folders."""
        return self.data if self.bundled else Path(self.data).name

    def record(self) -> dict[str, Any]:
        """The concept as a claim names it; a file with its content's hash."""
        if self.bundled:
            return {"type": "concept", "name": self.data}
        self._divided()  # refuses a file that does not fit
        return {"type": "concept", **file_record(concept_path(self.data))}

    def digest(self, split: str, n: int, seed: int) -> str:
        """Hash of the texts and labels of a split. No model sees them."""
        return digest(self.items(split, n, seed))

    def items(self, split: str, n: int, seed: int) -> list[Example]:
        """The examples of a split. Raises TaskError when there are none, or none with one of the labels."""
        if self.bundled:
            return load_concept(self.data, split, n, seed)
        found = self._divided().splits[split]
        if len({example.label for example in found}) < 2:
            has = "no example" if not found else f"only label {found[0].label}"
            raise TaskError(f"concept file {self.name}: {has} fell to the split {split!r}; a claim needs about 30 groups"
                            " (8 each in confirm and ood) with both labels, and groups that share a text or a word count"
                            " as one. See: assay concepts --file FILE.")  # fmt: skip
        return spread(found, n)

    def explore(self, split: str | None, n: int, seed: int) -> list[Example]:
        """Examples to explore: discover or tune; of a file, None means all of them.

        Raises UsageError for a sealed split: looking at it would spoil it for claims.
        """
        if split not in (None, "discover", "tune"):
            hint = "confirm and ood are sealed: they are read by testing a claim."
            raise bad_argument("split", split, "discover or tune", hint)
        if split is None and not self.bundled:
            return load_concept(self.data)
        return self.items(split or "discover", n, seed)

    def n_templates(self, split: str) -> int:
        """How many clusters a split can have, without making its examples."""
        if self.bundled:
            return n_frames(self.data, split)
        return len({example.template for example in self._divided().splits[split]})

    def dropped(self) -> dict[str, int]:
        """Examples of a file that are in no split, by reason."""
        return {} if self.bundled else self._divided().dropped

    def _divided(self) -> Division[Example]:
        return _divided_concept(*_stamp(concept_path(self.data)))


def find_source(data: str, corruption: str | None = None) -> Source | ConceptSource:
    """The task or concept of that name, or what a file holds, by the fields of its first row.

    Raises TaskError for neither, UsageError for a corruption of a concept.
    """
    concept = data in CONCEPTS
    if not concept and data not in TASKS and Path(data).exists():
        concept = is_concept_file(Path(data))
    if concept and corruption is not None:
        raise bad_argument("corruption", corruption, f"none for {data}", "A concept has labels, not corrupted prompts.")
    if not concept and data not in TASKS and not Path(data).exists():
        known = [*TASKS.names(), *CONCEPTS.names()]
        close = difflib.get_close_matches(data, known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise TaskError(f"data {data!r}: not bundled and no such file.{hint} Tasks: {', '.join(TASKS.names())}; concepts:"
                        f" {', '.join(CONCEPTS.names())}; your own: a .jsonl or .csv file.")  # fmt: skip
    return ConceptSource(data) if concept else Source(data, corruption)


def _stamp(path: Path) -> tuple[Path, int, int]:
    """A file and what tells that it was changed, for the cache of what it holds."""
    try:
        found = path.stat()
    except OSError:
        return path, 0, 0
    return path.resolve(), found.st_mtime_ns, found.st_size


@lru_cache(maxsize=4)
def _divided_task(path: Path, changed: int, size: int) -> Division[Pair]:
    return divide(read_task(path))


@lru_cache(maxsize=4)
def _divided_concept(path: Path, changed: int, size: int) -> Division[Example]:
    return divide_examples(read_concept(path))


@dataclass(frozen=True, eq=False)
class MemorySource:
    """Labelled texts or pairs in memory: all of them split by cluster, or given split by split.

    A claim about them can be tested, replayed and verified as long as the same items are given again.
    """

    name: str
    splits: Mapping[str, Sequence[Any]]
    left_out: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def split(cls, name: str, items: Sequence[Any]) -> "MemorySource":
        """Items split by connected components of template, word and text."""
        divided = divide(items)
        return cls(name, divided.splits, divided.dropped)

    def dropped(self) -> dict[str, int]:
        """Items that are in no split, by reason."""
        return dict(self.left_out)

    def record(self) -> dict[str, Any]:
        return {"type": "memory", "name": self.name}

    def digest(self, split: str, n: int, seed: int) -> str:
        return digest(self.items(split, n, seed))

    def items(self, split: str, n: int, seed: int) -> list[Any]:
        found = list(self.splits.get(split, ()))
        if not found:
            raise TaskError(f"{self.name}: the split {split!r} has no items.")
        return spread(found, n)

    def n_templates(self, split: str) -> int:
        return len({item.template for item in self.splits.get(split, ())})


def given_again(record: Mapping[str, Any], path: str) -> Population:
    """The source of a claim about a file, at the path where the file is now.

    Raises UsageError for a claim about bundled data, EvidenceError for one about data in memory.
    """
    if record.get("name") in (*TASKS.names(), *CONCEPTS.names()):
        raise bad_argument("--file", path, f"nothing: this claim is about {record['name']}, which is bundled")
    by_path = {key: value for key, value in record.items() if key not in ("file", "bytes")} | {"name": path}
    return source_of(record if record.get("type") == "memory" else by_path)


SOURCES.add("task", lambda record: Source(file_of(record), record.get("corruption")))
SOURCES.add("concept", lambda record: ConceptSource(file_of(record)))


def _windows(record: Mapping[str, Any]) -> Population:
    from assay.evidence.corpus_reading import source_again

    return source_again(record)


SOURCES.add("corpus windows", _windows)


def _pictures(record: Mapping[str, Any]) -> Population:
    from assay.data.image_sources import picture_source_again

    return picture_source_again(record)


for _name in PICTURES:
    SOURCES.add(_name, _pictures)
