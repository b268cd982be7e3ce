"""Corpus codes: every token of the confirm documents, where rule and feature disagree.

1. On a host that has read whole documents nothing is drawn: all tokens are tried at which the rule says on or the feature is
   above its threshold. A disagreement is a hit: it fires where the rule says off, or is silent where the rule says on.
2. The strongest firings without the rule are shown, and members that stay silent in as many documents.
3. Where significantly more than half of the tried tokens disagree, a claim that the feature *tends to* follow the rule is not
   supported, however well it does on drawn items.
"""

import numpy as np

from assay.evidence.corpus_windows import CorpusHost, PartTexts
from assay.evidence.hosts import as_host
from assay.evidence.search.base import Found, Hunt, SearchMethod, register_search
from assay.records import Counterexample

KINDS = ("explains",)
SHOWN = 4  # of each kind


def find(hunt: Hunt) -> Found:
    """Tokens at which the rule and the feature disagree."""
    host = as_host(hunt.model)
    if not isinstance(host, CorpusHost) or hunt.setup.unit is None:
        return Found(0, 0, notes={"skipped": "this host has not read whole documents"})
    part, unit = host.part_of(hunt.data), hunt.setup.unit
    fires, rule = host.everywhere(unit, hunt.setup.half, part), host.ruled(hunt.setup.record, part)
    either, both = int((fires | rule).sum()), int((fires & rule).sum())
    notes = {"tokens": len(fires), "fires": int(fires.sum()), "rule": int(rule.sum()), "both": both,
             "precision": both / max(1, int(fires.sum())), "recall": both / max(1, int(rule.sum()))}  # fmt: skip
    foreign = np.flatnonzero(fires & ~rule)
    values = np.array(host.values_at(unit, part, foreign.tolist()))
    loud = foreign[np.argsort(-values, kind="stable")][:SHOWN]
    silent = np.flatnonzero(rule & ~fires)
    silent = silent[np.random.default_rng([hunt.seed, 23]).permutation(len(silent))[:SHOWN]]
    kept = [_shown(hunt, host, part, int(token)) for token in [*loud, *silent]]
    return Found(either, either - both, tuple(kept), notes=notes)


def _shown(hunt: Hunt, host: CorpusHost, part: str, token: int) -> Counterexample:
    texts: PartTexts = host.texts.parts[part]
    text, start = texts.prefix(token)
    (score,) = host.values_at(hunt.setup.unit, part, [token])
    member = score <= hunt.setup.half
    expected = f"above {hunt.setup.half:.3g} (member)" if member else f"at most {hunt.setup.half:.3g} (not a member)"
    return Counterexample(hunt.claim.id, text, "", texts.names[texts.document[token]],
                          "sensitivity" if member else "corpus.precision", score, expected, "verified", "corpus codes",
                          ((text[start:], score),))  # fmt: skip


register_search(SearchMethod("corpus codes", KINDS, find, sampled=True, required=True))
