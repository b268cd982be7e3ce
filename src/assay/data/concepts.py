"""Concepts: bundled labelled sentences, and one's own from a file.

A bundled concept has frames and words of its own for every split (discover, tune, confirm, ood): no frame and
no word of one split occurs in another. Holding out frames alone is not enough: an untrained model "decodes" any
concept whose words it has met. How they are made, and how to add one: `concept_generators/base.py`. One's own:
`concept_files.py`.

    load_concept("animals", "discover", n=60, seed=0)
    load_concept("my_examples.jsonl")
"""

import difflib
import os
from pathlib import Path

from assay.data.concept_files import SUFFIXES, read_concept
from assay.data.concept_generators.base import CONCEPTS, SPLITS, Concept, Word
from assay.errors import TaskError, bad_argument
from assay.records import Example

__all__ = ["CONCEPTS", "SPLITS", "Concept", "Word", "load_concept", "n_frames", "read_concept"]


def load_concept(concept: str, split: str = "discover", n: int = 60, seed: int = 0) -> list[Example]:
    """n examples of a bundled concept, or all examples of a JSONL or CSV file.

    Raises TaskError for an unknown concept or a file that does not fit, naming line and field; UsageError for a
    wrong split or n.
    """
    if n < 1:
        raise bad_argument("n", n, "1 or more")
    if concept in CONCEPTS:
        return CONCEPTS.get(concept).examples(split, n, seed)
    return read_concept(concept_path(concept))


def n_frames(concept: str, split: str = "discover") -> int:
    """How many frames a split of a bundled concept has, or groups a file. No model is needed."""
    if concept in CONCEPTS:
        return CONCEPTS.get(concept).n_templates(split)
    return len({example.template for example in read_concept(concept_path(concept))})


def concept_path(concept: str) -> Path:
    """The file a name stands for. Raises TaskError when it can be none."""
    if Path(concept).suffix.lower() in SUFFIXES or os.path.exists(concept):
        return Path(concept)
    close = difflib.get_close_matches(concept, CONCEPTS.names(), n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise TaskError(f"concept {concept!r}: not bundled and no such file.{hint} Bundled: {', '.join(CONCEPTS.names())};"
                    f" your own: a {' or '.join(SUFFIXES)} file.")  # fmt: skip
