"""Lexical rival: a rule of words that predicts where the score fires.

1. Naive Bayes over words and pairs of words predicts "the score passes the threshold that one in twenty
   non-members passes". It is fitted on the texts of half of the confirm templates, drawn by seed, and judged on the
   other half, and the other way round.
2. Its AUROC at predicting firing is compared with that of the concept's own labels. A rule of words that predicts
   firing at least as well says more about the score than the concept does.
3. Then the words with the largest weight are named as a narrower claim, which needs fresh data of its own.

Scores only, no model is run. Words that go together with the concept in these data are no proof of a lexical score.
"""

from collections.abc import Sequence

import numpy as np

from assay.evidence.hunting.labels import as_claimed
from assay.evidence.hunting.reading import nothing, reader_of
from assay.evidence.lexical import lexical_scorer
from assay.evidence.search.base import Found, Hunt, SearchMethod, register_search
from assay.evidence.search.corpus_mining import KINDS

MARGIN = 0.02


@as_claimed
def find(hunt: Hunt) -> Found:
    """How well words predict firing, and the narrower claim they suggest."""
    if reader_of(hunt) is None:
        return nothing("no texts can be read on this host")
    rows = [row for row, score in enumerate(hunt.columns["score"]) if score is not None]
    texts = [hunt.data.items[row].text for row in rows]
    fires = [int((hunt.columns["score"][row] or 0.0) > hunt.setup.strict) for row in rows]
    labels = [float(hunt.data.items[row].label) for row in rows]
    words = held_out(texts, fires, [hunt.data.templates[row] for row in rows], hunt.seed)
    if words is None or len(set(fires)) < 2:
        return nothing("the score fires everywhere or nowhere in half of the templates")
    notes: dict[str, object] = {"auroc_words": auroc(words, fires), "auroc_concept": auroc(labels, fires)}
    if auroc(words, fires) >= auroc(labels, fires) - MARGIN:
        told = telling_words(texts, fires)
        notes["narrower"] = f"fires on the words {', '.join(map(repr, told))}"
    return Found(len(rows), 0, notes=notes)


def held_out(texts: Sequence[str], fires: Sequence[int], templates: Sequence[str], seed: int) -> list[float] | None:
    """Log odds of firing by words, each half of the templates judged by the other; None without both outcomes."""
    names = sorted(set(templates))
    first = {names[place] for place in np.random.default_rng([seed, 17]).permutation(len(names))[: len(names) // 2]}
    out = [0.0] * len(texts)
    for side in (True, False):
        learn = [row for row, template in enumerate(templates) if (template in first) == side]
        judge = [row for row, template in enumerate(templates) if (template in first) != side]
        if len({fires[row] for row in learn}) < 2 or not judge:
            return None
        scorer = lexical_scorer([texts[row] for row in learn], [fires[row] for row in learn])
        for row, score in zip(judge, scorer([texts[row] for row in judge]), strict=True):
            out[row] = float(score)
    return out


def auroc(scores: Sequence[float], fires: Sequence[int]) -> float:
    """Area under the ROC curve, ties half."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(fires, scores))


def telling_words(texts: Sequence[str], fires: Sequence[int], n: int = 6) -> list[str]:
    """The words whose presence tells firing texts best: largest difference of shares, only words that favour firing."""
    from scipy.sparse import csr_matrix
    from sklearn.feature_extraction.text import CountVectorizer

    counter = CountVectorizer(binary=True, token_pattern=r"(?u)\b\w+\b")
    found, fired = csr_matrix(counter.fit_transform(texts)).toarray(), np.array(fires, dtype=bool)
    gap = found[fired].mean(0) - found[~fired].mean(0)
    names = counter.get_feature_names_out()
    return [str(names[place]) for place in np.argsort(-gap, kind="stable")[:n] if gap[place] > 0]


register_search(SearchMethod("lexical rival", KINDS, find))
