"""Concepts: bundled labelled sentences, sets of labelled texts in packages, and one's own from a file.

A bundled concept has frames and words of its own for every split (discover, tune, confirm, ood): no frame and
no word of one split occurs in another. Holding out frames alone is not enough: an untrained model "decodes" any
concept whose words it has met. How they are made, and how to add one: `concept_generators/base.py`. A packaged one is
fetched when it is first used: `concept_packages.py`. One's own: `concept_files.py`; `divide_examples` deals its
examples to splits, near copies on one side.

    load_concept("animals", "discover", n=60, seed=0)
    load_concept("sentiment", "tune", n=200)
    load_concept("my_examples.jsonl")
    all_examples("my_examples.jsonl").splits["confirm"]
"""

import difflib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from assay.data.concept_files import SUFFIXES, read_concept
from assay.data.concept_generators.base import CONCEPTS, SPLITS, AnyConcept, Concept, Word
from assay.data.concept_packages import PackagedConcept
from assay.data.duplicates import JOINED_FROM, copies_of
from assay.data.splits import Division, Joined, divide
from assay.errors import TaskError, bad_argument
from assay.records import Example

__all__ = ["CONCEPTS", "SPLITS", "AnyConcept", "Concept", "PackagedConcept", "Word", "all_examples", "divide_examples",
           "load_concept", "n_frames", "read_concept"]  # fmt: skip


def load_concept(concept: str, split: str = "discover", n: int = 60, seed: int = 0) -> list[Example]:
    """n examples of a bundled concept, up to n of a packaged one, or all examples of a JSONL or CSV file.

    Raises CorpusError for a packaged one that cannot be fetched; TaskError for an unknown concept or a file that does not
    fit, naming line and field; UsageError for a wrong split or n.
    """
    if n < 1:
        raise bad_argument("n", n, "1 or more")
    if concept in CONCEPTS:
        return CONCEPTS.get(concept).examples(split, n, seed)
    return read_concept(concept_path(concept))


def all_examples(concept: str | Path) -> Division[Example]:
    """All examples of any concept, bundled, packaged or in a file, by split, and how many are in none, by reason.

    No template, entity, text or near copy is on two sides. Raises what `load_concept` raises.
    """
    if concept not in CONCEPTS:
        return divide_examples(read_concept(concept_path(str(concept))))
    known = CONCEPTS.get(str(concept))
    if isinstance(known, PackagedConcept):
        return Division({split: known.everything(split) for split in known.splits}, known.division.dropped)
    return Division({split: known.everything(split) for split in known.splits})


def divide_examples(examples: Sequence[Example]) -> Division[Example]:
    """Examples of a file by split; near copies (`duplicates.py`) are on one side, and one group: they are no independent
    observations."""
    copies, together = copies_of(examples, JOINED_FROM), Joined()
    for one, other in copies:
        together.join([examples[one].template, examples[other].template])
    found = divide(examples, copies)
    splits = {split: [replace(item, template=together.root(item.template)) for item in items]
              for split, items in found.splits.items()}  # fmt: skip
    return Division(splits, found.dropped)


def n_frames(concept: str, split: str = "discover") -> int:
    """How many frames or groups a split of a bundled or packaged concept has, or groups a file. No model is needed."""
    if concept in CONCEPTS:
        return CONCEPTS.get(concept).n_templates(split)
    return len({example.template for example in read_concept(concept_path(concept))})


def concept_path(concept: str) -> Path:
    """The file a name stands for. Raises TaskError when it can be none."""
    if Path(concept).suffix.lower() in SUFFIXES or os.path.exists(concept):
        return Path(concept)
    close = difflib.get_close_matches(concept, CONCEPTS.names(), n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise TaskError(f"concept {concept!r}: not bundled and no such file.{hint} Known: {', '.join(CONCEPTS.names())};"
                    f" your own: a {' or '.join(SUFFIXES)} file.")  # fmt: skip
