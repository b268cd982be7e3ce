"""What a probe can learn by heart: control tasks (Hewitt & Liang 2019).

A *unit* is what a probe could memorise: an entity, the word that is read, the last word. The control task gives every unit a
random label, the same wherever it occurs. What a probe reads of it, on units that it was fitted on, is memory.
"""

import hashlib
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from assay.records import Example

WORD = re.compile(r"\w+(?:['’]\w+)*")


def unit_of(example: Example) -> str:
    """What a probe could memorise: the entity; else the word that is read; else the last word; else the text."""
    if example.entities:
        return example.entities[0].lower()
    words = list(WORD.finditer(example.text))
    if example.position is not None:
        words = [found for found in words if found.start() <= example.position < found.end()]
    return words[-1].group().lower() if words else example.text


def control_labels(units: Sequence[object], draw: int = 0, seed: int = 0) -> NDArray[np.int64]:
    """A random label (n,) per unit, the same wherever the unit occurs."""
    return np.array([hashlib.sha256(f"{seed}/{draw}/{unit}".encode()).digest()[0] % 2 for unit in units], np.int64)
