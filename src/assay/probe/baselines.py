"""What a probe must beat: readings that never see the model, or see one that learned nothing.

    majority            one answer for every text
    length_punctuation  logistic regression on lengths, punctuation, capitals and digits
    bag_of_words        logistic regression on TF-IDF of words and pairs of words
    sentence_embedding  logistic regression on vectors of a sentence encoder that is not the model under study
    embedding_layer     the same probe at `embed`: the token alone, before any layer
    untrained           the whole run, choice of site included, on a twin whose weights were drawn again
    shuffled            the same probe fitted to labels dealt out anew: chance, and what choosing adds to it
    control_task        the same probe fitted to a random label per word (Hewitt & Liang 2019): what it can memorise

All are fitted on the rows, the folds and the penalties that the probe has. Words and their order are not the same as
meaning: where `bag_of_words` does as well, say "can be read off the words".
"""

import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from assay.data.duplicates import JOINED_FROM, copies_of
from assay.data.prepare_concept import PreparedConcept
from assay.data.splits import CUT, Joined
from assay.probe.control import WORD
from assay.probe.path import fit_path
from assay.probe.read import Read
from assay.records import Example

Array = NDArray[np.float64]
CS = tuple(float(c) for c in np.logspace(-3, 3, 7))  # of text features
TOKENS = r"(?u)\b\w+\b|[^\w\s]"
MARKS = ".,;:!?\"'()-"


@dataclass(frozen=True, eq=False)
class Rows:
    """Labelled texts as everything reads them. `groups`: what is kept together, in folds and in draws of rows."""

    prepared: PreparedConcept
    labels: NDArray[np.int64]
    groups: tuple[str, ...]
    read: Read
    twin: Read | None = None

    @property
    def texts(self) -> list[str]:
        return [example.text for example in self.prepared.examples]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Fitted:
    """Something fitted on discover and tune. `held_out`: scores of those rows by fits that had not seen their group;
    `score(rows)`: log odds of other rows. `direction`, `intercept`: where it is linear in the activations. `rates`: whether
    scores hold the log odds of the share of members that a fit has met; a threshold half-way between classes does not.
    `path`: of a regularisation path every C with its held-out scores."""

    name: str
    held_out: Array
    score: Callable[[Rows], Array]
    C: float | None = None
    direction: Array | None = None
    intercept: float | None = None
    note: str = ""
    rates: bool = True
    path: tuple[tuple[float, Array], ...] = ()


# groups ------------------------------------------------------------------------------------------


def groups_of(examples: Sequence[Example]) -> tuple[str, ...]:
    """What rows share that a probe could memorise, one name per row.

    Rows that share a template, a text or an entity are joined, and so are near copies (`copies_of`). Where one such group holds
    more than a quarter of all (every word in every frame), rows with one entity are a group, and without entities those with
    one template.
    """
    joined = Joined()
    for example in examples:
        joined.join([f"t:{example.template}", f"x:{example.text}", *(f"e:{entity}" for entity in example.entities)])
    for one, other in copies_of(examples, JOINED_FROM):
        joined.join([f"t:{examples[one].template}", f"t:{examples[other].template}"])
    names = [joined.root(f"t:{example.template}") for example in examples]
    if max(Counter(names).values(), default=0) <= max(1.0, CUT * len(names)):
        return tuple(names)
    crossed = all(example.entities for example in examples)
    return tuple(f"e:{each.entities[0]}" if crossed else f"t:{each.template}" for each in examples)


# readings of the text ----------------------------------------------------------------------------


def surface_features(texts: Sequence[str]) -> Array:
    """(text, feature): characters, words, mean length of a word, capitals, digits, every mark, how it begins and ends."""
    rows = []
    for text in texts:
        words = WORD.findall(text)
        letters = max(1, len(text))
        rows.append([
            len(text), np.log1p(len(text)), len(words), np.log1p(len(words)), sum(map(len, words)) / max(1, len(words)),
            sum(char.isupper() for char in text), sum(char.isupper() for char in text) / letters,
            sum(char.isdigit() for char in text), sum(char in string.punctuation for char in text) / letters,
            text.count("\n"), *(text.count(mark) for mark in MARKS),
            text[:1].isupper(), *(text[-1:] == mark for mark in ".!?"),
        ])  # fmt: skip
    return np.array(rows, dtype=float)


def dense_text_baseline(
    name: str, features: Callable[[Sequence[str]], Array], rows: Rows, tune: NDArray[np.bool_], folds: int, seed: int,
    note: str = "",
) -> Fitted:  # fmt: skip
    """Logistic regression on features of the texts; the penalty is chosen on held-out tune rows."""
    path = fit_path(features(rows.texts)[None], rows.labels, rows.groups, CS, folds, seed)
    place = int(np.argmin(_loss(path.held_out[0][:, tune], rows.labels[tune])))
    coef, intercept = path.coef[0, place], float(path.intercept[0, place])
    return Fitted(name, path.held_out[0, place], lambda asked: features(asked.texts) @ coef + intercept, path.Cs[place],
                  note=note)  # fmt: skip


def sentence_encoder(name: str) -> Callable[[Sequence[str]], Array]:
    """Texts to vectors (text, d), by a kept sentence encoder. Raises ModelError when it cannot be had."""
    from assay.features.sentences import encoder_of

    encoder = encoder_of(name)
    return lambda texts: np.asarray(encoder(texts), float)


def bag_of_words(rows: Rows, tune: NDArray[np.bool_], fold: NDArray[np.int64]) -> Fitted:
    """TF-IDF of words and pairs of words, fitted anew in every fold; the penalty is chosen on held-out tune rows."""
    texts, labels = np.array(rows.texts, dtype=object), rows.labels
    held = np.zeros((len(CS), len(labels)))
    for number in range(int(fold.max()) + 1):
        out = fold == number
        for place, c in enumerate(CS):
            held[place, out] = _word_model(texts[~out], labels[~out], c)(texts[out])
    place = int(np.argmin(_loss(held[:, tune], labels[tune])))
    score = _word_model(texts, labels, CS[place])
    return Fitted("bag_of_words", held[place], lambda asked: score(asked.texts), CS[place])


def _word_model(texts: Any, labels: NDArray[np.int64], C: float) -> Callable[[Any], Array]:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=TOKENS)
    pipe = make_pipeline(words, LogisticRegression(C=C, solver="liblinear"))
    try:
        pipe.fit(list(texts), labels)
    except ValueError:  # no text has a word
        odds = float(np.log(max(labels.mean(), 1e-6) / max(1 - labels.mean(), 1e-6)))
        return lambda asked: np.full(len(asked), odds)
    return lambda asked: pipe.decision_function(list(asked))


def majority(rows: Rows) -> Fitted:
    """One answer for every text: the label that more rows have."""
    odds = 1.0 if rows.labels.mean() > 0.5 else -1.0
    return Fitted("majority", np.full(len(rows), odds), lambda asked: np.full(len(asked), odds), rates=False)


def _loss(scores: Array, labels: NDArray[np.int64]) -> Array:
    """Mean log loss of (option, row) log odds."""
    return np.logaddexp(0.0, np.where(labels == 1, -scores, scores)).mean(-1)
