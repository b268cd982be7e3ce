"""Which explanations become claims, and the road they take together.

1. Every explanation that is a rule is screened on *tune*: at the tokens of that part the rule must name `BARS` of what the unit
   is on at (precision), and the unit be on at as much of what the rule names (recall). Estimates only: a screen decides what is
   worth a claim, not what is true.
2. By the texts alone, the rule must say on in at least `DOCUMENTS` documents of *confirm* and of *ood*: with fewer no claim can
   be supported, and more where many claims are corrected for together (`supportable`).
3. What is not claimed is counted, with the first reason that holds.
4. Near misses of a claim are tokens that the unit's neighbours, its companions and the other units that its rule fits best on
   *tune* are on at, and its own, where the rule says off.
5. All claims are stated and locked, all tickets paid, then the sealed parts are read, then all are tested and judged together
   (`assay.evidence.bulk`). More claims make each harder to support: Holm's correction is over all of them.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import sparse

from assay.evidence.bulk import Wanted, draws_for
from assay.evidence.corpus_windows import CorpusHost, CorpusSource, CorpusTexts
from assay.evidence.run import Settings, Statement
from assay.evidence.verdicts import MIN_CLUSTERS
from assay.explain.reading import CodedPart, Reading
from assay.explain.records import Explanation
from assay.mapping.units import MapUnits

BARS = 0.6
DOCUMENTS = MIN_CLUSTERS
OWN, OTHERS, PARTNERS = 8, 4, 5  # token ids of near misses: of the unit, of each partner, partners of a kind
RIVALS = 9
TUNE, CONFIRM, OOD = 640, 960, 960  # items, sixteen of a document
DRAWS = 19
SKIPPED = ("rival units", "polysemy")  # searches that look at all units again, for every claim
TOO_FEW = "the rule says on in too few documents of a sealed part for the correction over all claims"
NO_RULE, WORDS = "no rule found", "words only: nothing that can be applied without a judge"


@dataclass(frozen=True)
class Screened:
    """One explanation on *tune*. `why_not`: why it is not claimed; empty where it is."""

    feature: str
    precision: float
    recall: float
    documents: tuple[int, int]
    why_not: str


def screen(explanations: Iterable[Explanation], host: CorpusHost, texts: CorpusTexts) -> list[Screened]:
    """Every explanation, in order."""
    return [_screened(each, host, texts) for each in explanations]


def _screened(each: Explanation, host: CorpusHost, texts: CorpusTexts) -> Screened:
    if each.rule is None:
        return Screened(each.feature, 0.0, 0.0, (0, 0), NO_RULE if each.explainer.startswith("lexical") else WORDS)
    unit = host.columns[each.feature]
    fires, rule = host.everywhere(unit, 0.0, "tune"), host.ruled(each.rule, "tune")
    both = int((fires & rule).sum())
    precision, recall = both / max(1, int(fires.sum())), both / max(1, int(rule.sum()))
    counts = texts.member_documents(each.rule, "confirm"), texts.member_documents(each.rule, "ood")
    return Screened(each.feature, precision, recall, counts, _why_not(int(fires.sum()), precision, recall, counts))


def _why_not(fired: int, precision: float, recall: float, documents: tuple[int, int]) -> str:
    if not fired:
        return "silent on tune"
    if recall < BARS:
        return f"on tune the unit is on at less than {BARS:.0%} of what the rule names"
    if precision < BARS:
        return f"on tune the rule names less than {BARS:.0%} of what the unit is on at"
    if min(documents) < DOCUMENTS:
        return f"the rule says on in fewer than {DOCUMENTS} documents of a sealed part"
    return ""


def supportable(screened: Sequence[Screened], alpha: float) -> list[Screened]:
    """Without claims that hardly any data could support: with K documents no sign-flip p is below 2^-K, and Holm's first step
    asks n claims for alpha / n, later steps only after others passed. Fewer claims ask for less, so it is looked at again until
    all that are left can pass the first step."""
    kept = list(screened)
    while True:
        n = sum(not each.why_not for each in kept)
        doomed = [not each.why_not and n * 2.0 ** -min(each.documents) > alpha for each in kept]
        if not any(doomed):
            return kept
        kept = [replace(each, why_not=TOO_FEW) if gone else each for each, gone in zip(kept, doomed, strict=True)]


def why_not(screened: Sequence[Screened]) -> dict[str, int]:
    """How many are not claimed, by reason."""
    return dict(Counter(each.why_not for each in screened if each.why_not).most_common())


def settings_for(claims: int, alpha: float, seed: int) -> Settings:
    """What all claims of a map are tested with; enough resamples for so many of them."""
    return Settings(tune=TUNE, confirm=CONFIRM, ood=OOD, seed=seed, alpha=alpha, draws=DRAWS, options={"whole_corpus": True},
                    search=dict.fromkeys(SKIPPED, 0), resamples=draws_for(claims, alpha))  # fmt: skip


def wanted_claims(
    explanations: Mapping[str, Explanation], screened: Sequence[Screened], units: MapUnits, reading: Reading, host: CorpusHost
) -> dict[str, Wanted]:
    """Feature -> its claim, for those that pass; the ones with most documents together, which share resamples."""
    near, texts, found = NearTokens(reading), host.texts, {}
    for each in sorted((each for each in screened if not each.why_not), key=lambda each: (*each.documents, each.feature)):
        explanation = explanations[each.feature]
        rule = dict(explanation.rule or {})
        subject = {"feature": units.feature(each.feature), "rule": rule}
        rivals = fitting(host, host.ruled(rule, "tune"), host.columns[each.feature])
        source = CorpusSource(texts, rule, near.of(each.feature, rivals))
        found[each.feature] = Wanted(subject, source, Statement("explains"))
    return found


def fitting(host: CorpusHost, rule: np.ndarray, unit: int) -> list[int]:
    """Other units whose firing on *tune* overlaps most with what a rule says there."""
    on = host.codes["tune"].values > 0
    both = on.T @ rule.astype(np.float64)
    overlap = both / np.maximum(1, np.asarray(on.sum(0)).ravel() + rule.sum() - both)
    overlap[unit] = -1
    return [int(other) for other in np.argsort(-overlap, kind="stable")[:RIVALS] if overlap[other] > 0]


class NearTokens:
    """Token ids at which a unit and its partners are on most often, on *shown*."""

    def __init__(self, reading: Reading) -> None:
        from assay.explain.sampling import coactivation

        self.reading = reading
        part = reading.part("shown")
        self.counts = counts_of(part)
        near, together = reading.neighbours(), coactivation(reading, PARTNERS)
        self.partners = [together[0]] + ([] if near is None else [near[0][:, :PARTNERS]])

    def of(self, name: str, rivals: Sequence[int] = ()) -> tuple[int, ...]:
        """Ids of near misses: where its partners and rivals are on, and where it is itself."""
        column = self.reading.column(name)
        units = dict.fromkeys([*rivals, *(int(unit) for found in self.partners for unit in found[column] if unit >= 0)])
        ids = dict.fromkeys(self._most(column, OWN))
        for unit in units:
            ids |= dict.fromkeys(self._most(unit, OTHERS))
        return tuple(sorted(ids))

    def _most(self, unit: int, n: int) -> list[int]:
        start, end = self.counts.indptr[unit], self.counts.indptr[unit + 1]
        order = np.argsort(-self.counts.data[start:end], kind="stable")[:n]
        return self.counts.indices[start:end][order].tolist()


def counts_of(part: CodedPart) -> Any:
    """How often each unit is on at each token id, (unit, id) as scipy CSR."""
    codes = part.codes.tocoo()
    ids = np.asarray(part.tokens)[codes.row]
    shape = (part.codes.shape[1], int(part.tokens.max()) + 1)
    found = sparse.csr_array((np.ones(len(ids), np.int32), (codes.col, ids)), shape=shape)
    found.sum_duplicates()
    return found
