"""How many unrelated concepts the contexts of a unit hold, measured against random contexts.

1. Contexts become unit vectors (`sentences.py`); the mean of the pool of random contexts is taken out, and all are scaled to
   unit norm again. Similarity s is their cosine: about 0 for two random contexts of this corpus.
2. Ward clustering (scipy) of a unit's n contexts, cut into k = 2 .. `most` clusters.
3. A cluster of c contexts is *coherent* when z = mean s x sqrt(c (c - 1) / 2) is above the bar of k. Bars come from `draws`
   sets of n contexts from the pool (contexts shuffled among units), cut the same way: a multiple of the median largest z at
   each k, such that 1 - `alpha` / 2 of the sets pass at no k: the null of the whole procedure, its choices included. And mean s
   must be `alike` above that of a random cluster of the median z: windows around the same token are a little alike, whatever
   they are about. Each random set is taken out of the pool's mean before it is compared, as a unit's contexts are not in it.
4. k: the one whose coherent clusters hold most contexts; among those within a tenth, the largest mean silhouette (Rousseeuw
   1987). Without any coherent cluster all contexts are tried as one, with the other half of `alpha`.
5. Two coherent clusters A, B are the *same* concept when s_AB / sqrt(s_AA s_BB), the cosine between their mean directions
   without the noise of single contexts, is above `related`. Concepts are the groups that remain: sub-topics of one concept
   do not count twice.
6. Interval: percentiles over bootstrap resamples of the contexts, each kept once (a context is not like itself). A resample
   holds about 63% of the contexts and so finds less: the interval, and `several`, lean low. `p`: share of random sets with as
   many concepts.

0 concepts: contexts are no more alike than random ones, in this encoder's eyes; the unit may still respond to a single token
or to something that texts do not show. `token_share` says how often the most frequent firing token fires. It is about the
contexts that were given: rare meanings are not among the top ones. It does not show what the model uses the unit for.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int
from scipy.cluster.hierarchy import fcluster, linkage

from assay.errors import TaskError, bad_argument
from assay.features.contexts import UnitContexts, fired_token, texts_of
from assay.features.sentences import Encoder
from assay.model.model import Model

Vectors = Float[np.ndarray, "context d"]
Label = Literal["no concept found", "one concept", "several concepts", "one token"]
FEWEST = 8  # contexts a unit needs
SHOWN = 5  # words and examples of a cluster
ONE_TOKEN = 0.5


@dataclass(frozen=True)
class PolysemyPlan:
    """`most`: clusters; `least`: contexts of a cluster that counts; `draws`: random sets; `resamples`: for the interval."""

    most: int = 8
    least: int = 4
    alpha: float = 0.05
    alike: float = 0.15
    related: float = 0.4
    draws: int = 99
    resamples: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("most", 2), ("least", 2), ("draws", 19), ("resamples", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise bad_argument(name, getattr(self, name), f"{least} or more")
        for name in ("alpha", "alike", "related"):
            if not 0 < getattr(self, name) < 1:
                raise bad_argument(name, getattr(self, name), "above 0, below 1")


@dataclass(frozen=True)
class Concept:
    """Contexts that belong together: how many, how alike (mean cosine), and which rows, the most typical first."""

    n: int
    similarity: float
    rows: tuple[int, ...]
    words: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class Polysemy:
    """One unit. `low`, `high`: 95% interval of `concepts`; `several`: share of resamples with two or more; `clusters`: k;
    `coherence`: mean cosine of all its contexts, `p_coherence` its rank among random sets; `p`: share of random sets with as
    many concepts; `token_share`: of the most frequent firing token, None where tokens were not given."""

    unit: str
    n: int
    concepts: int
    low: int
    high: int
    several: float
    clusters: int
    coherence: float
    p_coherence: float
    p: float
    label: Label
    found: tuple[Concept, ...]
    token_share: float | None = None
    token: str | None = None


@dataclass(frozen=True)
class _Bar:
    """What random contexts reach: the median of their largest z, and the z that counts."""

    typical: float
    least: float


Bars = Mapping[int, _Bar]


@dataclass(frozen=True, eq=False)
class _Null:
    """Of sets of n random contexts: bars for every k, mean similarity and number of concepts of every set."""

    bars: Bars
    coherence: Float[np.ndarray, " draw"]
    concepts: Int[np.ndarray, " draw"]


@dataclass(eq=False)
class Pool:
    """Random contexts, as vectors: what a corpus looks like without a unit. Nulls are made once per number of contexts."""

    vectors: Vectors
    plan: PolysemyPlan
    centre: Float[np.ndarray, " d"] = field(init=False)
    _nulls: dict[int, _Null] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.vectors) < 2 * FEWEST:
            raise TaskError(f"the pool has {len(self.vectors)} random contexts; {2 * FEWEST} are needed at least.")
        self.centre = self.vectors.mean(0)

    def placed(self, vectors: Vectors) -> Vectors:
        """Without the mean of the pool, at unit norm."""
        return _placed(vectors, self.centre)

    def drawn(self, rng: np.random.Generator, n: int) -> Vectors:
        """n random contexts, as if they were not of the pool: without the mean of the others."""
        order = rng.permutation(len(self.vectors))
        return _placed(self.vectors[order[:n]], self.vectors[order[n:]].mean(0))

    def null(self, n: int) -> _Null:
        """Raises TaskError when the pool is too small for sets of n."""
        if n > len(self.vectors) // 2:
            raise TaskError(f"{n} contexts are compared with a pool of {len(self.vectors)}; {2 * n} are needed at least."
                            " Give a larger pool, or fewer contexts.")  # fmt: skip
        if n not in self._nulls:
            self._nulls[n] = self._made(n)
        return self._nulls[n]

    def _made(self, n: int) -> _Null:
        rng = np.random.default_rng([self.plan.seed, n, 31])
        sets = [_Cut(self.drawn(rng, n), self.plan) for _ in range(self.plan.draws)]
        largest = np.array([[drawn.largest(k) for k in range(1, self.plan.most + 1)] for drawn in sets])
        typical = np.maximum(np.median(largest, axis=0), 1e-9)
        one, beyond = (float(np.quantile(values, 1 - self.plan.alpha / 2, method="higher"))
                       for values in (largest[:, 0], (largest / typical)[:, 1:].max(1)))  # fmt: skip
        bars = {k + 1: _Bar(middle, beyond * middle if k else one) for k, middle in enumerate(typical.tolist())}
        counts = [len(drawn.concepts(bars)) for drawn in sets]
        return _Null(bars, np.array([drawn.coherence for drawn in sets]), np.array(counts))


class _Cut:
    """One set of contexts and every way to cut its tree."""

    def __init__(self, vectors: Vectors, plan: PolysemyPlan) -> None:
        self.plan, self.n = plan, len(vectors)
        self.similarity = vectors @ vectors.T
        self.tree = linkage(vectors, "ward")
        self.most = min(plan.most, self.n // 2)
        self.labels = {k: fcluster(self.tree, k, "maxclust") for k in range(1, self.most + 1)}

    @property
    def coherence(self) -> float:
        return within(self.similarity)

    def z(self, k: int) -> dict[int, float]:
        """Of every cluster that is large enough."""
        found = {}
        for label, size in zip(*np.unique(self.labels[min(k, self.most)], return_counts=True), strict=True):
            if size >= self.plan.least:
                inside = self.rows(k, int(label))
                found[int(label)] = within(self.similarity[np.ix_(inside, inside)]) * _pairs(int(size)) ** 0.5
        return found

    def largest(self, k: int) -> float:
        return max(self.z(k).values(), default=0.0)

    def coherent(self, k: int, bars: Bars) -> list[Int[np.ndarray, " row"]]:
        """Rows of the clusters that are above the bar of k, and more alike than random ones by enough."""
        found = [(self.rows(k, label), z) for label, z in self.z(k).items() if z > bars[k].least]
        return [rows for rows, z in found if (z - bars[k].typical) / _pairs(len(rows)) ** 0.5 >= self.plan.alike]

    def rows(self, k: int, label: int) -> Int[np.ndarray, " row"]:
        return np.flatnonzero(self.labels[min(k, self.most)] == label)

    def best(self, bars: Bars) -> int:
        """k whose coherent clusters hold most contexts; of those within a tenth of that, the one of largest silhouette."""
        held = {k: sum(map(len, self.coherent(k, bars))) for k in range(2, self.most + 1)}
        most = max(held.values(), default=0)
        if not most:
            return 1
        close = [k for k, n in held.items() if n >= 0.9 * most]
        return max(close, key=lambda k: silhouette(1 - self.similarity, self.labels[k]))

    def concepts(self, bars: Bars) -> list[Int[np.ndarray, " row"]]:
        """Rows of every concept, the largest first."""
        return sorted(self._joined(self.coherent(self.best(bars), bars)), key=len, reverse=True)

    def _joined(self, groups: list[np.ndarray]) -> list[np.ndarray]:
        """Related groups made one, the closest first, until none are."""
        while len(groups) > 1:
            pairs = [(self._shared(a, b), i, j) for i, a in enumerate(groups) for j, b in enumerate(groups[:i])]
            closest, i, j = max(pairs)
            if closest <= self.plan.related:
                break
            both = np.concatenate([groups[i], groups[j]])
            groups = [*(group for place, group in enumerate(groups) if place not in (i, j)), both]
        return groups

    def _shared(self, a: np.ndarray, b: np.ndarray) -> float:
        """Cosine between the mean directions of two groups, corrected for the noise of single contexts."""
        sizes = [within(self.similarity[np.ix_(rows, rows)]) for rows in (a, b)]
        between = float(self.similarity[np.ix_(a, b)].mean())
        return between / float(np.sqrt(sizes[0] * sizes[1])) if min(sizes) > 0 else 1.0


def _placed(vectors: Vectors, centre: Float[np.ndarray, " d"]) -> Vectors:
    moved = vectors - centre
    return moved / np.maximum(np.linalg.norm(moved, axis=1, keepdims=True), 1e-12)


def _pairs(n: int) -> float:
    return n * (n - 1) / 2


def within(similarity: Float[np.ndarray, "n n"]) -> float:
    """Mean similarity of pairs."""
    n = len(similarity)
    return float((similarity.sum() - np.trace(similarity)) / (n * (n - 1))) if n > 1 else 0.0


def silhouette(distance: Float[np.ndarray, "n n"], labels: Int[np.ndarray, " n"]) -> float:
    """Mean silhouette (Rousseeuw 1987); rows that are alone count 0, as in scikit-learn."""
    _, groups, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    if len(sizes) < 2:
        return 0.0
    sums = distance @ np.eye(len(sizes))[groups]
    rows = np.arange(len(groups))
    own = sums[rows, groups] / np.maximum(sizes[groups] - 1, 1)
    means = sums / sizes
    means[rows, groups] = np.inf
    other = means.min(1)
    scores = (other - own) / np.maximum(np.maximum(own, other), 1e-12)
    return float(np.where(sizes[groups] > 1, scores, 0.0).mean())


def polysemy_of(vectors: Vectors, pool: Pool, unit: str = "", tokens: Sequence[str] | None = None) -> Polysemy:
    """Concepts of one unit from the vectors of its contexts, as the encoder made them; `tokens`: which token fired in each.

    Raises TaskError for fewer than 8 contexts, or a pool that is too small.
    """
    n, plan = len(vectors), pool.plan
    if n < FEWEST:
        raise TaskError(f"unit {unit}: {n} contexts; {FEWEST} are needed at least. Read more of the corpus.")
    null, placed = pool.null(n), pool.placed(vectors)
    cut = _Cut(placed, plan)
    groups = cut.concepts(null.bars)
    own, coherence = len(groups), cut.coherence
    counts = np.array(_resampled(placed, pool, plan) or [own])
    low, high = np.quantile(counts, [0.025, 0.975], method="nearest").astype(int).tolist()
    share, token = _token_share(tokens)
    return Polysemy(
        unit, n, own, min(low, own), max(high, own), float((counts > 1).mean()), cut.best(null.bars), coherence,
        _rank(null.coherence, coherence), _rank(null.concepts, own), _label(own, share),
        tuple(_concept(cut, rows) for rows in groups), share, token,
    )  # fmt: skip


def _resampled(placed: Vectors, pool: Pool, plan: PolysemyPlan) -> list[int]:
    """Concepts of bootstrap resamples, each context kept once; bars are those of as many random contexts."""
    rng = np.random.default_rng([plan.seed, len(placed), 32])
    found = []
    for _ in range(plan.resamples):
        rows = np.unique(rng.integers(0, len(placed), len(placed)))
        size = max(FEWEST // 2, len(rows) - len(rows) % 4)  # few sizes, so that few nulls are made
        rows = rng.permutation(rows)[:size]
        if len(rows) >= 2 * plan.least:
            found.append(len(_Cut(placed[rows], plan).concepts(pool.null(len(rows)).bars)))
    return found


def _concept(cut: _Cut, rows: np.ndarray) -> Concept:
    inside = cut.similarity[np.ix_(rows, rows)]
    typical = rows[np.argsort(-inside.mean(1), kind="stable")]
    return Concept(len(rows), within(inside), tuple(typical.tolist()))


def _rank(null: np.ndarray, value: float) -> float:
    return float((1 + (null >= value - 1e-12).sum()) / (1 + len(null)))


def _token_share(tokens: Sequence[str] | None) -> tuple[float | None, str | None]:
    if not tokens:
        return None, None
    ((token, n),) = Counter(token.strip().lower() for token in tokens).most_common(1)
    return n / len(tokens), token


def _label(concepts: int, share: float | None) -> Label:
    if concepts == 0:
        return "one token" if share is not None and share >= ONE_TOKEN else "no concept found"
    return "one concept" if concepts == 1 else "several concepts"


# from texts ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class UnitTexts:
    """Texts of the contexts of one unit, and which token fired in each."""

    name: str
    texts: Sequence[str]
    tokens: Sequence[str] | None = None


def unit_texts(model: Model, unit: UnitContexts, most: int | None = None) -> UnitTexts:
    """Texts that differ, largest activation first, `most` at most; of a unit that does not reach above 0 none."""
    fires = [context for context in unit.top if context.value > 0]
    different = dict(reversed(list(zip(texts_of(model, fires), fires, strict=True))))
    kept = sorted(different.items(), key=lambda pair: -pair[1].value)[:most]
    return UnitTexts(unit.name, [text for text, _ in kept], [fired_token(model, context) for _, context in kept])


def polysemy(
    units: Sequence[UnitTexts], encoder: Encoder, pool: Sequence[str] | None = None, plan: PolysemyPlan | None = None,
    progress: Callable[[int], Any] | None = None,
) -> list[Polysemy]:  # fmt: skip
    """Concepts of many units. `pool`: random contexts of the corpus; without it the contexts of all units, shuffled.

    Texts of all units and the pool are encoded together. `progress` is called for every unit. Raises TaskError for a unit with
    fewer than 8 contexts, or a pool smaller than twice the largest number of contexts.
    """
    plan = PolysemyPlan() if plan is None else plan
    random = [text for unit in units for text in unit.texts] if pool is None else list(pool)
    every = list(dict.fromkeys([*random, *(text for unit in units for text in unit.texts)]))
    vectors = encoder(every) if every else np.zeros((0, 1))
    place = {text: row for row, text in enumerate(every)}
    drawn = Pool(vectors[[place[text] for text in dict.fromkeys(random)]], plan)
    found = []
    for unit in units:
        one = polysemy_of(vectors[[place[text] for text in unit.texts]], drawn, unit.name, unit.tokens)
        found.append(_told(one, unit.texts, random))
        if progress:
            progress(1)
    return found


def _told(found: Polysemy, texts: Sequence[str], random: Sequence[str]) -> Polysemy:
    """With words and examples of every concept."""
    common = Counter(word for text in random for word in set(_words(text)))
    told = [replace(concept, words=_typical([texts[row] for row in concept.rows], common, len(random)),
                    examples=tuple(texts[row] for row in concept.rows[:SHOWN])) for concept in found.found]  # fmt: skip
    return replace(found, found=tuple(told))


def _typical(texts: Sequence[str], common: Counter[str], n: int) -> tuple[str, ...]:
    """Words in more of these texts than in random ones, by log ratio times count."""
    here = Counter(word for text in texts for word in set(_words(text)))
    score = {word: count * float(np.log((count / len(texts)) / ((common[word] + 1) / (n + 1)))) for word, count in here.items()}
    return tuple(sorted((word for word in score if here[word] > 1), key=lambda word: (-score[word], word))[:SHOWN])


def _words(text: str) -> list[str]:
    return [word for word in "".join(char.lower() if char.isalnum() else " " for char in text).split() if len(word) > 2]
