"""LEX: what the words alone tell. A score that never sees the model.

Naive Bayes over lower-cased words, pairs of words and the text's length, fitted on tune texts. Where a
feature tells members from non-members no better than this, "it stands for the concept" says too much:
it may stand for the words.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from assay.evidence.scored import TextScorer


@runtime_checkable
class HasSurface(Protocol):
    """A host whose examples are no texts: what their surface alone tells."""

    def surface(self, names: Sequence[str], labels: Sequence[int]) -> Callable[[Sequence[str]], list[float]]: ...


def surface_scorer(host: Any, texts: Sequence[str], labels: Sequence[int]) -> TextScorer:
    """texts -> log odds of being a member, by the words alone, or by what the host says is the surface of its examples."""
    return host.surface(texts, labels) if isinstance(host, HasSurface) else lexical_scorer(texts, labels)


def lexical_scorer(texts: Sequence[str], labels: Sequence[int]) -> TextScorer:
    """texts -> log odds of being a member. Without both labels: 0 for every text."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.naive_bayes import MultinomialNB

    if len(set(labels)) < 2:
        return lambda asked: [0.0] * len(asked)
    words = CountVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b|[^\w\s]")

    def features(given: Sequence[str], counts):
        from scipy.sparse import csr_matrix, hstack

        lengths = csr_matrix(np.array([[len(text.split()) / 100] for text in given]))
        return hstack([counts, lengths]).tocsr()

    bayes = MultinomialNB().fit(features(texts, words.fit_transform(texts)), labels)

    def score(asked: Sequence[str]) -> list[float]:
        odds = bayes.predict_log_proba(features(asked, words.transform(asked)))
        return (odds[:, 1] - odds[:, 0]).tolist()

    return score
