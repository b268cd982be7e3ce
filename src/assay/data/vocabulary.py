"""Random tokens as words: the part of a model's own vocabulary that survives a round trip through text.

A token is taken when it is one word of letters, begins with a space, and that text is tokenised as this
one token again. Every word belongs to one split by its hash, whatever the model.

    words = vocabulary_words(model)
    pairs = replace(TASKS.get("induction"), words=words).pairs("discover", n=50)
"""

import hashlib
import re
from typing import Any

from assay.data.generators.base import SPLITS

WORD = re.compile(r"[a-z]{3,}")


def vocabulary_words(model: Any) -> dict[str, list[str]]:
    """Words that are one token of this model after a space, by split, in alphabetical order."""
    found: dict[str, list[str]] = {split: [] for split in SPLITS}
    words = {model.text([token]).strip() for token in range(model.layout.dims.d_vocab)}
    for word in sorted(word for word in words if WORD.fullmatch(word)):
        if len(model.tokenizer(f" {word}", add_special_tokens=False)["input_ids"]) == 1:
            found[SPLITS[hashlib.sha256(word.encode()).digest()[0] % len(SPLITS)]].append(word)
    return found
