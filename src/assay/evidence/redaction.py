"""Text-evidence removal: texts without the words that say what a monitor is asked to find.

1. The words: those given with the claim, and those that occur in more members than non-members of tune beyond
   chance (chi-square test of word against label, p below .001).
2. They are taken out of every text, member or not, and the texts are read again.

A monitor that only reads what the text states falls to chance there (textual-evidence leakage, 2509.21344).
Paraphrases that neither list contains stay in.
"""

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from assay.records import Example

LEVEL = 0.001
MOST = 50


def telling_words(texts: Sequence[str], labels: Sequence[int]) -> list[str]:
    """Words that members have more often than chance allows, the most telling first."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.feature_selection import chi2

    member = np.array(labels) == 1
    counter = CountVectorizer(binary=True, token_pattern=r"(?u)\b\w+\b")
    counts = counter.fit_transform(texts)
    _, p = chi2(counts, member)
    more = np.asarray(counts[member].mean(0)).ravel() > np.asarray(counts[~member].mean(0)).ravel()
    words = counter.get_feature_names_out()
    order = sorted((float(p[column]), str(words[column])) for column in np.flatnonzero((p < LEVEL) & more))
    return [word for _, word in order[:MOST]]


def redact(example: Example, words: Sequence[str]) -> Example | None:
    """The example without these words; its position moves along, to what stands before it where the word that is
    read was taken out. None when nothing is left."""
    if not words:
        return example
    pattern = re.compile(r"(?<!\w)(?:" + "|".join(re.escape(word) for word in words) + r")(?!\w)\s?", re.IGNORECASE)
    cuts = [found.span() for found in pattern.finditer(example.text)]
    text = pattern.sub("", example.text)
    if not text.strip():
        return None
    if example.position is None:
        return replace(example, text=text)
    gone = sum(min(end, example.position + 1) - start for start, end in cuts if start <= example.position)
    return replace(example, text=text, position=min(max(0, example.position - gone), len(text) - 1))
