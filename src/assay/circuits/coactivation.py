"""Which features fire together, and is that a connection? A screening list, not a claim.

1. Features are units of sites or latents of dictionaries; where they fire is for `firing.py` to say. The first tokens of every
   text are left out (massive activations sit there).
2. Counts, text by text, never dense: tokens n, firings n_i, both n_ij (or B up to `lag` tokens after A, within the text). Texts
   are kept apart in blocks of whole documents; memory grows with blocks x pairs that ever fire together, not with the corpus.
3. Per pair
       PMI = log(n n_ij / (n_i n_j))        phi = (n n_ij - n_i n_j) / sqrt(n_i (n - n_i) n_j (n - n_j))
   with t intervals from the jackknife that leaves out one block after the other: tokens of one text are no independent
   observations. Where one block holds all joint firings, PMI has no interval.
4. p of "phi <= 0" from the same t; Benjamini-Hochberg over all pairs of features that fire often enough, also those never
   seen together (their p is 1).
5. Communities: Louvain (Blondel et al. 2008) on the listed pairs, weighted by phi; a group whose features are joined by no
   path inside of it is two, as Leiden (Traag et al. 2019) would have it. Null: the whole count again after every feature
   was shifted circularly within every text by an offset of its own, and as many of its strongest pairs.
6. `check_pairs`: A is set to its median wherever it fires (`firing.py`), and B is read at its peak among those tokens (and
   `lag` after them): its fall in its standard deviations, minus the median fall of features of B's site that fire as often. The
   interval is over documents. Features with a common cause fire together, but B stays where it was.

Circular shifts keep how often a feature fires in each text, so pairs that share no more than a topic show up in the null too.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import networkx as nx
import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Bool, Float, Int
from scipy import stats
from torch import Tensor

from assay.circuits.firing import Firing, SiteFiring, Texts, padded, reads, switched, unit_name, values_of, writes
from assay.errors import SiteError, TaskError, bad_argument
from assay.sites import Site
from assay.statistics import benjamini_hochberg, interval

BATCH = 4096  # tokens
CHUNK = 1 << 16  # pairs that are jackknifed at once
N_MATCHED = 9
BAR = 0.1  # standard deviations of B: less counts as no fall
FEWEST = 8  # documents a label needs
Report = Callable[[int], Any]
Label = Literal["connected", "correlated only", "undecided"]


@dataclass(frozen=True)
class CoactivationPlan:
    """What is counted and listed. `skip`: first tokens left out; `min_count`: firings that a feature needs to be screened;
    `level`: of false discoveries; `nulls`: shifted counts, each one more pass over the corpus."""

    skip: int = 1
    lag: int = 0
    blocks: int = 20
    min_count: int = 10
    level: float = 0.05
    nulls: int = 9
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("skip", 0), ("lag", 0), ("blocks", 2), ("min_count", 1), ("nulls", 0)):
            if getattr(self, name) < least:
                raise bad_argument(name, getattr(self, name), f"{least} or more")
        if not 0 < self.level < 1:
            raise bad_argument("level", self.level, "above 0, below 1")


# counting ----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Counts:
    """Counts per block of documents. `second` and the columns of `together` are B's, `lag` tokens included."""

    tokens: Int[np.ndarray, " block"]
    first: Int[np.ndarray, "block feature"]
    second: Int[np.ndarray, "block feature"]
    together: tuple[sp.csr_array, ...]
    lag: int

    @property
    def total(self) -> sp.csr_array:
        """n_ij: of every pair once without a lag (i < j), of both orders with one."""
        summed = self.together[0]
        for part in self.together[1:]:
            summed = summed + part
        return sp.csr_array(summed)


def count(
    firing: Firing, texts: Texts, plan: CoactivationPlan, documents: Sequence[str] | None = None,
    shift: int | None = None, progress: Report | None = None,
) -> Counts:  # fmt: skip
    """Count a corpus. `documents`: which texts belong together; default: each is its own. `shift`: seed of circular shifts."""
    blocks = _blocks(len(texts), documents, plan.blocks)
    size, width = max(blocks) + 1, len(firing.features)
    tokens = np.zeros(size, np.int64)
    first, second = np.zeros((size, width), np.int64), np.zeros((size, width), np.int64)
    together = [sp.csr_array((width, width), dtype=np.int64) for _ in range(size)]
    rng = None if shift is None else np.random.default_rng([shift, 17])
    for rows in batches(texts, BATCH):
        matrix = sp.coo_array(firing([texts[row] for row in rows]))
        layout = _Layout([len(texts[row]) for row in rows], plan.skip)
        at, unit = layout.kept(matrix.row, matrix.col)
        if rng is not None:
            at = layout.shifted(at, unit, rng.integers(1 << 30, size=(len(rows), width)))
        late, late_unit = layout.soon(at, unit, plan.lag)
        place = np.array([blocks[row] for row in rows])[layout.text]
        for block in np.unique(place).tolist():
            a, b = (_picked(*pair, place, block, width) for pair in ((at, unit), (late, late_unit)))
            tokens[block] += int((layout.inside & (place == block)).sum())
            first[block] += np.asarray(a.sum(0)).reshape(-1)
            second[block] += np.asarray(b.sum(0)).reshape(-1)
            together[block] = together[block] + _pairs_only(sp.csr_array(a.T @ b), plan.lag)
        if progress:
            progress(len(rows))
    return Counts(tokens, first, second, tuple(map(sp.csr_array, together)), plan.lag)


def batches(texts: Texts, at_most: int) -> Iterator[list[int]]:
    """Numbers of texts, in order, of up to so many tokens."""
    group: list[int] = []
    held = 0
    for row, ids in enumerate(texts):
        if group and held + len(ids) > at_most:
            yield group
            group, held = [], 0
        group.append(row)
        held += len(ids)
    if group:
        yield group


def _blocks(n: int, documents: Sequence[str] | None, most: int) -> list[int]:
    """The block of every text; all texts of a document are in one."""
    names = [str(row) for row in range(n)] if documents is None else list(documents)
    if len(names) != n:
        raise bad_argument("documents", f"{len(names)} names", f"one for each of {n} texts")
    order = {name: number % most for number, name in enumerate(dict.fromkeys(names))}
    if len(order) < 2:
        raise TaskError(f"the corpus has {len(order)} document: intervals are over documents and need two at least.")
    return [order[name] for name in names]


class _Layout:
    """Rows of a firing matrix: which text each belongs to, and which are kept."""

    def __init__(self, lengths: Sequence[int], skip: int) -> None:
        sizes = np.array(lengths)
        ends = np.cumsum(sizes)
        self.text = np.repeat(np.arange(len(sizes)), sizes)
        self.start = np.minimum(ends - sizes + skip, ends)
        self.size = ends - self.start
        self.inside = np.arange(len(self.text)) >= self.start[self.text]

    def kept(self, at: np.ndarray, unit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        keep = self.inside[at]
        return at[keep], unit[keep]

    def shifted(self, at: np.ndarray, unit: np.ndarray, offsets: Int[np.ndarray, "text feature"]) -> np.ndarray:
        """Rows after every feature of every text moved round by its offset."""
        text = self.text[at]
        return self.start[text] + (at - self.start[text] + offsets[text, unit]) % self.size[text]

    def soon(self, at: np.ndarray, unit: np.ndarray, lag: int) -> tuple[np.ndarray, np.ndarray]:
        """Where the feature fires now or up to `lag` tokens later in the same text, each place once."""
        start = self.start[self.text[at]]
        early = [(at - step, unit) for step in range(lag + 1)]
        found = [np.stack([rows[rows >= start], units[rows >= start]]) for rows, units in early]
        both = found[0] if lag == 0 else np.unique(np.concatenate(found, 1), axis=1)
        return both[0], both[1]


def _picked(at: np.ndarray, unit: np.ndarray, place: np.ndarray, block: int, width: int) -> sp.csr_array:
    keep = place[at] == block
    ones = np.ones(int(keep.sum()), np.int64)
    return sp.csr_array((ones, (at[keep], unit[keep])), shape=(len(place), width))


def _pairs_only(counts: sp.csr_array, lag: int) -> sp.csr_array:
    """Without a feature with itself; without a lag only i < j."""
    upper = sp.csr_array(sp.triu(counts, k=1))
    return upper if lag == 0 else sp.csr_array(upper + sp.tril(counts, k=-1))


# pairs -------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs that fired together at least once, columns of equal length. NaN: no interval. `screened`: how many pairs of
    features that fire often enough there are, those never seen together included; `q` is adjusted for all of them."""

    first: Int[np.ndarray, " pair"]
    second: Int[np.ndarray, " pair"]
    together: Int[np.ndarray, " pair"]
    expected: Float[np.ndarray, " pair"]
    pmi: Float[np.ndarray, " pair"]
    pmi_low: Float[np.ndarray, " pair"]
    pmi_high: Float[np.ndarray, " pair"]
    phi: Float[np.ndarray, " pair"]
    phi_low: Float[np.ndarray, " pair"]
    phi_high: Float[np.ndarray, " pair"]
    p: Float[np.ndarray, " pair"]
    q: Float[np.ndarray, " pair"]
    screened: int

    def __len__(self) -> int:
        return len(self.first)

    def listed(self, level: float) -> Int[np.ndarray, " listed"]:
        """Rows with q up to the level, the strongest phi first."""
        rows = np.flatnonzero(self.q <= level)
        return rows[np.argsort(-self.phi[rows], kind="stable")]

    def strongest(self, n: int) -> Int[np.ndarray, " strongest"]:
        """The n rows of smallest p, ties by phi."""
        return np.lexsort((-self.phi, self.p))[:n]


def pairs_of(counts: Counts, min_count: int = 10) -> Pairs:
    """PMI and phi of all pairs seen together, with jackknife intervals over blocks and adjusted p."""
    n, a, b = counts.tokens.sum(), counts.first.sum(0), counts.second.sum(0)
    alive = (a >= min_count) & (n - a >= min_count) & (b >= min_count) & (n - b >= min_count)
    usable = int(alive.sum())
    screened = usable * (usable - 1) // (2 if counts.lag == 0 else 1)
    total = sp.coo_array(counts.total)
    keep = alive[total.row] & alive[total.col] & (total.data > 0)
    first, second, together = (np.asarray(x[keep], np.int64) for x in (total.row, total.col, total.data))
    columns = [_jackknifed(counts, first[at : at + CHUNK], second[at : at + CHUNK], together[at : at + CHUNK])
               for at in range(0, len(first), CHUNK)]  # fmt: skip
    pmi, pmi_low, pmi_high, phi, phi_low, phi_high, p = np.concatenate(columns, 1) if columns else np.zeros((7, 0))
    adjusted = np.array(benjamini_hochberg(p.tolist()), dtype=float) * (screened / max(1, len(p)))
    expected = a[first] * b[second] / max(1, n)
    return Pairs(first, second, together, expected, pmi, pmi_low, pmi_high, phi, phi_low, phi_high, p,
                 np.minimum(1.0, adjusted), screened)  # fmt: skip


def _jackknifed(counts: Counts, i: np.ndarray, j: np.ndarray, both: np.ndarray) -> Float[np.ndarray, "seven pair"]:
    blocks = len(counts.tokens)
    whole = counts.tokens.sum(), counts.first.sum(0)[i], counts.second.sum(0)[j], both
    left = [(whole[0] - counts.tokens[k], whole[1] - counts.first[k, i], whole[2] - counts.second[k, j],
             both - np.asarray(counts.together[k][i, j]).reshape(-1)) for k in range(blocks)]  # fmt: skip
    reach = float(stats.t.ppf(0.975, blocks - 1))
    pmi, phi = _pmi(*whole), _phi(*whole)
    pmi_error, phi_error = (_error(np.stack([of(*parts) for parts in left])) for of in (_pmi, _phi))
    # no spread at all: every block shows the same sign, which is what is left to count
    with np.errstate(divide="ignore", invalid="ignore"):
        p = np.where(phi_error > 1e-12, stats.t.sf(phi / phi_error, blocks - 1), np.where(phi > 0, 0.5**blocks, 1.0))
    return np.stack([pmi, pmi - reach * pmi_error, pmi + reach * pmi_error, phi, np.maximum(-1.0, phi - reach * phi_error),
                     np.minimum(1.0, phi + reach * phi_error), np.where(np.isfinite(p), p, 1.0)])  # fmt: skip


def _pmi(n: Any, a: np.ndarray, b: np.ndarray, both: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.log(float(n) * both) - np.log(a.astype(float)) - np.log(b.astype(float))
    return np.where(np.isfinite(found), found, np.nan)


def _phi(n: Any, a: np.ndarray, b: np.ndarray, both: np.ndarray) -> np.ndarray:
    n, a, b, both = float(n), a.astype(float), b.astype(float), both.astype(float)
    spread = np.sqrt(a * (n - a)) * np.sqrt(b * (n - b))
    return np.where(spread > 0, (n * both - a * b) / np.where(spread > 0, spread, 1.0), 0.0)


def _error(left: Float[np.ndarray, "block pair"]) -> Float[np.ndarray, " pair"]:
    """Standard error from the values without one block each."""
    blocks = len(left)
    return np.sqrt((blocks - 1) / blocks * ((left - left.mean(0)) ** 2).sum(0))


# communities -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Communities:
    """Groups of features (their columns), the largest first. `null`: modularity of as many strongest pairs of every shifted
    count, `null_listed`: how many pairs of each pass the screen; `p`: rank of the modularity, None without shifts."""

    groups: tuple[tuple[int, ...], ...]
    modularity: float | None
    null: tuple[float, ...]
    null_listed: tuple[int, ...]
    p: float | None


def communities_of(pairs: Pairs, rows: np.ndarray, seed: int = 0) -> tuple[tuple[tuple[int, ...], ...], float | None]:
    """Louvain communities and their modularity on these pairs; none and None without pairs of positive phi."""
    graph: nx.Graph = nx.Graph()
    for row in rows.tolist():
        i, j, phi = int(pairs.first[row]), int(pairs.second[row]), float(pairs.phi[row])
        if phi > 0:
            old = graph.get_edge_data(i, j, {"weight": 0.0})["weight"]
            graph.add_edge(i, j, weight=max(phi, old))
    if not graph.number_of_edges():
        return (), None
    found: Any = nx.community.louvain_communities(graph, weight="weight", seed=seed)
    whole = [part for group in found for part in nx.connected_components(graph.subgraph(group))]
    groups = sorted((tuple(sorted(group)) for group in whole), key=lambda group: (-len(group), group))
    return tuple(groups), float(nx.community.modularity(graph, groups, weight="weight"))


@dataclass(frozen=True, eq=False)
class Coactivation:
    """What a corpus says about pairs of features. Screening lists, not individually confirmed."""

    features: tuple[str, ...]
    plan: CoactivationPlan
    n_tokens: int
    n_texts: int
    n_blocks: int
    rates: Float[np.ndarray, " feature"]
    pairs: Pairs
    listed: Int[np.ndarray, " listed"]
    communities: Communities
    notes: tuple[str, ...] = field(default=())


def coactivation(
    firing: Firing, texts: Texts, plan: CoactivationPlan | None = None, documents: Sequence[str] | None = None,
    progress: Report | None = None,
) -> Coactivation:  # fmt: skip
    """Count, test and group. `progress` is called with texts read: (1 + nulls) times the corpus in all."""
    plan = CoactivationPlan() if plan is None else plan
    counts = count(firing, texts, plan, documents, None, progress)
    n = int(counts.tokens.sum())
    if n == 0:
        raise TaskError(f"no text has more than the {plan.skip} tokens left out: nothing was counted.")
    pairs = pairs_of(counts, plan.min_count)
    listed = pairs.listed(plan.level)
    groups, modularity = communities_of(pairs, listed, plan.seed)
    null, null_listed = [], []
    for draw in range(plan.nulls):
        shifted = pairs_of(count(firing, texts, plan, documents, plan.seed + draw, progress), plan.min_count)
        null.append(communities_of(shifted, shifted.strongest(len(listed)), plan.seed)[1] or 0.0)
        null_listed.append(len(shifted.listed(plan.level)))
    p = None
    if modularity is not None and null:
        p = (1 + sum(other >= modularity for other in null)) / (1 + len(null))
    found = Communities(groups, modularity, tuple(null), tuple(null_listed), p)
    return Coactivation(tuple(firing.features), plan, n, len(texts), len(counts.tokens), counts.first.sum(0) / n,
                        pairs, listed, found)  # fmt: skip


# cause -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Checked:
    """A pair after switching the first feature off. In standard deviations of each feature: `fall` of B, `matched` the median
    of features that fire as often, and their difference with a 95% interval over documents (of this pair alone)."""

    first: str
    second: str
    fall: float | None
    matched: float | None
    difference: float | None
    low: float | None
    high: float | None
    documents: int
    n_matched: int
    label: Label


def checkable(firing: SiteFiring, pair: tuple[int, int]) -> bool:
    """Whether the first feature is computed before the second."""
    (a, _), (b, _) = firing.place(pair[0]), firing.place(pair[1])
    return firing.before(a, b)


def check_pairs(
    firing: SiteFiring, texts: Texts, pairs: Sequence[tuple[int, int]], plan: CoactivationPlan | None = None,
    documents: Sequence[str] | None = None, progress: Report | None = None,
) -> list[Checked]:  # fmt: skip
    """Switch A off where it fires and read B, for pairs of columns (A, B). Raises SiteError where A does not come first."""
    plan = CoactivationPlan() if plan is None else plan
    for pair in pairs:
        if not checkable(firing, pair):
            a, b = (unit_name(*firing.place(each)) for each in pair)
            raise SiteError(f"pair {a}, {b}: the first is not computed before the second; what comes later drives nothing.")
    names = [str(row) for row in range(len(texts))] if documents is None else list(documents)
    partners: dict[int, list[int]] = {}
    for a, b in pairs:
        partners.setdefault(a, []).append(b)
    found: dict[tuple[int, int], Checked] = {}
    for a, targets in partners.items():
        for b, checked in zip(targets, _check(firing, texts, names, a, targets, plan), strict=True):
            found[a, b] = checked
        if progress:
            progress(len(targets))
    return [found[pair] for pair in pairs]


def _check(
    firing: SiteFiring, texts: Texts, names: Sequence[str], a: int, targets: Sequence[int], plan: CoactivationPlan
) -> list[Checked]:
    peers = [_peers(firing, b, plan.seed) for b in targets]
    falls: list[list[tuple[str, float, float]]] = [[] for _ in targets]
    for rows in batches(texts, BATCH):
        off = _Off(firing, [list(texts[row]) for row in rows], a, {firing.place(b)[0] for b in targets}, plan)
        for place, (b, others) in enumerate(zip(targets, peers, strict=True)):
            site, unit = firing.place(b)
            own, like = off.falls(site, [unit])[:, 0], off.falls(site, others)
            middle = like.median(1).values if others else torch.zeros_like(own)
            for row, fires, x, y in zip(rows, off.fires.tolist(), own.tolist(), middle.tolist(), strict=True):
                if fires:
                    falls[place].append((names[row], x, y))
    return [_judged(firing, (a, b), rows, len(others)) for b, rows, others in zip(targets, falls, peers, strict=True)]


class _Off:
    """Some texts with A at its off value wherever it fires: `open` are the tokens at which its targets are read."""

    def __init__(
        self, firing: SiteFiring, tokens: list[list[int]], a: int, sites: set[Site], plan: CoactivationPlan
    ) -> None:
        self.firing = firing
        site, unit = firing.place(a)
        wanted, levels = reads(sorted(sites)), firing.levels[site]
        self.clean = firing.model.capture(tokens, list(dict.fromkeys([*reads([site]), *writes(site), *wanted])))
        values = values_of(self.clean, site)[:, unit]
        steps = torch.cat([torch.arange(len(ids)) for ids in tokens])
        on = (values > levels.threshold[unit]) & (steps >= plan.skip)
        fires, real = (padded(part, self.clean.lengths) for part in (on, steps >= plan.skip))
        self.open = _after(fires, plan.lag) & real
        self.fires = fires.any(1)
        change = torch.where(on, levels.off[unit] - values, 0.0)
        off = [switched(firing.model, self.clean, site, unit, change)]
        self.after = firing.model.capture(tokens, wanted, edits=off) if bool(on.any()) else self.clean

    def falls(self, site: Site, units: Sequence[int]) -> Float[Tensor, "text unit"]:
        """Per unit, the fall at its clean peak among the open tokens, in its standard deviations."""
        before, after = (padded(values_of(acts, site)[:, list(units)], acts.lengths) for acts in (self.clean, self.after))
        peak = before.masked_fill(~self.open[..., None], float("-inf")).argmax(1, keepdim=True)
        return (before - after).gather(1, peak)[:, 0] / self.firing.levels[site].spread[list(units)]


def _after(on: Bool[Tensor, "text pos"], lag: int) -> Bool[Tensor, "text pos"]:
    """Tokens where it fires, and up to `lag` after them."""
    found = on.clone()
    for step in range(1, lag + 1):
        found[:, step:] |= on[:, :-step]
    return found


def _peers(firing: SiteFiring, b: int, seed: int) -> list[int]:
    """Units of B's site that fire about as often, ties drawn at random; without those that never or always fire."""
    site, unit = firing.place(b)
    levels = firing.levels[site]
    order = np.random.default_rng([seed, 23]).permutation(len(levels.rate)).tolist()
    alive = [u for u in order if u != unit and 0 < float(levels.rate[u]) < 1 and float(levels.spread[u]) > 0]
    return sorted(alive, key=lambda u: abs(float(levels.rate[u] - levels.rate[unit])))[:N_MATCHED]


def _judged(
    firing: SiteFiring, pair: tuple[int, int], rows: Sequence[tuple[str, float, float]], n_matched: int
) -> Checked:
    a, b = (unit_name(*firing.place(each)) for each in pair)
    site, unit = firing.place(pair[1])
    if not rows or not n_matched or not float(firing.levels[site].spread[unit]) > 0:
        return Checked(a, b, None, None, None, None, None, len({name for name, _, _ in rows}), n_matched, "undecided")
    by_document: dict[str, list[tuple[float, float]]] = {}
    for name, own, like in rows:
        by_document.setdefault(name, []).append((own, like))
    own, like = np.array([np.mean(values, axis=0) for values in by_document.values()]).T
    low, high = interval(own - like)
    return Checked(a, b, float(own.mean()), float(like.mean()), float((own - like).mean()), low, high, len(own), n_matched,
                   label_of(low, high, len(own)))  # fmt: skip


def label_of(low: float | None, high: float | None, documents: int) -> Label:
    """connected: all of the interval is a change beyond the bar, either way; correlated only: all of it is within."""
    if low is None or high is None or documents < FEWEST:
        return "undecided"
    if low > BAR or high < -BAR:
        return "connected"
    return "correlated only" if low > -BAR and high < BAR else "undecided"
