"""A judge of generated text that sees the text alone: never the model, never the direction.

1. `words`: tf-idf of words and pairs of words, logistic regression. `minilm`: logistic regression on a kept sentence encoder.
2. It is trained on the labelled texts a direction may be made from, and measured on texts of other templates: AUROC with the
   number of texts. Below `USEFUL` it is no judge, and nothing is judged.
3. Its verdict on a text is P(label 1); of a push, the mean over continuations.

A judge trained on short sentences says how much generated text is like them, no more.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from assay.errors import bad_argument

USEFUL = 0.7
JUDGES = ("words", "minilm")


@dataclass(frozen=True, eq=False)
class Judge:
    """P(label 1) of texts. `auroc`: on held-out texts, None where they have one label."""

    name: str
    model: Any
    auroc: float | None
    trained: int
    held_out: int

    @property
    def useful(self) -> bool:
        return self.auroc is not None and self.auroc >= USEFUL

    def record(self) -> dict[str, Any]:
        """What a result says about it."""
        return {"name": self.name, "auroc": self.auroc, "trained": self.trained, "held_out": self.held_out,
                "useful": self.useful}  # fmt: skip

    def __call__(self, texts: Sequence[str]) -> list[float]:
        """P(label 1) of every text; 0.5 for one without any text."""
        said = [text.strip() for text in texts]
        rows = [row for row, text in enumerate(said) if text]
        out = [0.5] * len(said)
        if rows:
            for row, value in zip(rows, self.model.predict_proba([said[row] for row in rows])[:, 1], strict=True):
                out[row] = float(value)
        return out


def train_judge(
    name: str, texts: Sequence[str], labels: Sequence[int], held_out: Sequence[str], held_labels: Sequence[int]
) -> Judge:
    """Trained on texts, measured on held-out ones. Raises UsageError for an unknown judge or texts of one label."""
    from sklearn.metrics import roc_auc_score

    if name not in JUDGES:
        raise bad_argument("judge", name, ", ".join(JUDGES))
    if len(set(labels)) != 2:
        raise bad_argument("labels", f"{sorted(set(labels))}", "texts of both labels")
    pipeline = _pipeline(name)
    pipeline.fit(list(texts), np.array(labels))
    both = len(set(held_labels)) == 2
    auroc = float(roc_auc_score(held_labels, pipeline.predict_proba(list(held_out))[:, 1])) if both else None
    return Judge(name, pipeline, auroc, len(texts), len(held_out))


def _pipeline(name: str) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer

    if name == "words":
        made: Any = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), token_pattern=r"(?u)\S+")
    else:
        from assay.features.sentences import encoder_of

        made = FunctionTransformer(encoder_of(name))
    return make_pipeline(made, LogisticRegression(C=10.0, max_iter=1000))
