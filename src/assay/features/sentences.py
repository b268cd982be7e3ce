"""What makes contexts alike: encoders of short texts, chosen by name, never swapped silently.

    minilm      a kept sentence encoder (all-MiniLM-L6-v2, from the package that carries it): meaning
    tfidf       words, weighted by how rare they are among the texts given: wording only

An encoder maps texts to unit vectors. `tfidf` is fitted on the texts it is given, so all that will be compared must be given
at once. Both look at the text only, not at the model under study.
"""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from assay.errors import bad_argument

COMPONENTS = 20  # of tf-idf vectors


@runtime_checkable
class Encoder(Protocol):
    """Texts to unit vectors; `record` says which encoder it is."""

    @property
    def record(self) -> dict[str, Any]: ...

    def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, "text d"]: ...


class MiniLM:
    """The kept sentence encoder; fetched on first use. Raises ModelError when it cannot be had."""

    def __init__(self) -> None:
        from assay.model.encoders import SentenceEncoder

        self._encoder = SentenceEncoder("minilm")

    @property
    def record(self) -> dict[str, Any]:
        return self._encoder.record

    def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, "text d"]:
        return self._encoder(texts).double().numpy()


class TfIdf:
    """Words of these very texts; at most `COMPONENTS` components (latent semantic analysis)."""

    @property
    def record(self) -> dict[str, Any]:
        return {"name": "tfidf", "components": COMPONENTS}

    def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, "text d"]:
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfVectorizer

        if not any(text.strip() for text in texts):
            raise bad_argument("texts", "nothing but blanks", "texts with words")
        made = TfidfVectorizer(sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
        counts = made.fit_transform(texts)
        most = min(COMPONENTS, min(counts.shape) - 1)
        found = counts.toarray() if most < 2 else TruncatedSVD(most, random_state=0).fit_transform(counts)
        return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)


ENCODERS: dict[str, type] = {"minilm": MiniLM, "tfidf": TfIdf}


def encoder_of(name: str) -> Encoder:
    """An encoder by name. Raises UsageError for another name, ModelError when it cannot be fetched (no fallback)."""
    if name not in ENCODERS:
        raise bad_argument("encoder", name, ", ".join(ENCODERS))
    return ENCODERS[name]()
