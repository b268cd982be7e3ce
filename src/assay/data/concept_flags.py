"""What is wrong with a labelled data set, before a probe is fitted: named flags with numbers.

name               raised when
duplicate_leakage  a text has a near copy (`duplicates.py`) in another split
group_leakage      a group (template, document) or an entity is in two splits
length_confound    length and punctuation alone tell the labels apart: held-out AUROC of a logistic regression on
                   `SHAPE`, and its interval lies above `LENGTH_BAR`
label_noise        near copies have opposite labels, in more than `CONTRARY` of the examples; or a reader of words (or
                   given scores) that can do the task (AUROC above `ABLE`) is wrong where it is surest, more often than
                   `NOISE_BAR`, interval included
one_label_groups   most examples are in groups of several that have one label: what tells the groups apart tells the labels
few_groups         a split has fewer groups than `GROUPS` (8 in confirm and ood, or no claim can be supported)
imbalance          a split has less than `MINORITY` of one label

Held-out: five parts by group, each scored by a regression fitted on the others. Intervals of AUROC: groups drawn with
replacement (percentile bootstrap, 95%), those of error rates: Clopper & Pearson 1934.

Surest: of the texts scored highest as many as a tenth of the members, of those scored lowest a tenth of the others. Wrong
labels stay wrong there, hard texts do not get there. It is the idea of confident learning (Northcutt, Jiang & Chuang
2021, sections 2 and 3) with ranks for thresholds. It tells nothing where no score can do the task, nor where the score is
wrong clearly more often among its surest tenth than among its surest quarter: such a score follows something else.

Pairs of one template with opposite labels are made so on purpose (minimal pairs) and are no noise, unless equal.
A flag is a warning, not a verdict: a concept may be one whose members are long.
"""

import hashlib
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from assay.data.duplicates import all_copies, plain_form
from assay.errors import bad_argument
from assay.records import Example

FLAGS = ("duplicate_leakage", "group_leakage", "length_confound", "label_noise", "one_label_groups", "few_groups",
         "imbalance")  # fmt: skip
SHAPE = ("characters", "words", "punctuation", "capitals", "digits")
LENGTH_BAR = 0.6
CONTRARY = 0.01
ABLE, NOISE_BAR, SUREST, WIDER, FEWEST = 0.75, 0.03, 0.1, 0.25, 20
GROUPS = {"confirm": 8, "ood": 8}
GROUPS_ELSE = 4
MINORITY = 0.2
FOLDS, DRAWS, LEVEL = 5, 400, 0.95
MOST = 5000  # examples that are scored, taken by hash
Array = NDArray[np.float64]
Row = tuple[str, int]


@dataclass(frozen=True)
class Flag:
    """One warning. `estimate`: the number named in the message; `low`, `high`: its 95% interval where it has one.

    `rows`: (split, number within the split) of the examples concerned; empty where it concerns all.
    """

    name: str
    message: str
    estimate: float
    rows: tuple[Row, ...] = ()
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class _Set:
    """All examples in one row, and where each is."""

    examples: list[Example]
    rows: list[Row]
    copies: list[tuple[int, int]]
    seed: int

    @property
    def labels(self) -> NDArray[np.int64]:
        return np.array([example.label for example in self.examples], dtype=np.int64)

    def split(self, number: int) -> str:
        return self.rows[number][0]

    def at(self, numbers: Sequence[int] | set[int]) -> tuple[Row, ...]:
        return tuple(self.rows[number] for number in sorted(numbers))


def concept_flags(
    splits: Mapping[str, Sequence[Example]], scores: Mapping[str, Sequence[float]] | None = None, seed: int = 0
) -> tuple[Flag, ...]:
    """The flags of a divided concept, in the order of `FLAGS`; none for a clean one.

    `scores`: split -> one score an example, higher for members, made by something that did not see the example's group
    (a probe's held-out scores); label noise is looked for with them, too. Raises UsageError when they do not fit.
    """
    rows = [(split, number) for split, examples in splits.items() for number in range(len(examples))]
    examples = [splits[split][number] for split, number in rows]
    if not examples:
        raise bad_argument("splits", "no examples", "at least one example")
    given = None if scores is None else _given(scores, splits)
    data = _Set(examples, rows, all_copies(examples), seed)
    sample = _sample(data)
    found = [_duplicates(data), _groups(data), _length(data, sample), _noise(data, sample, given), _one_label(data),
             _few(splits), _imbalance(splits)]  # fmt: skip
    return tuple(flag for flag in found if flag is not None)


def _given(scores: Mapping[str, Sequence[float]], splits: Mapping[str, Sequence[Example]]) -> Array:
    for split, examples in splits.items():
        if len(scores.get(split, ())) != len(examples):
            raise bad_argument("scores", f"{len(scores.get(split, ()))} of split {split}", f"{len(examples)}, one an example")
    found = np.array([score for split in splits for score in scores[split]], dtype=float)
    if not np.isfinite(found).all():
        raise bad_argument("scores", "numbers that are not finite", "finite numbers")
    return found


# leakage -----------------------------------------------------------------------------------------


def _duplicates(data: _Set) -> Flag | None:
    across = {number for pair in data.copies if data.split(pair[0]) != data.split(pair[1]) for number in pair}
    if not across:
        return None
    share = len(across) / len(data.examples)
    message = (f"{len(across)} texts ({share:.1%}) have a near copy in another split: what is learnt on one side is"
               " remembered, not found, on the other. Divide them again, near copies joined.")  # fmt: skip
    return Flag("duplicate_leakage", message, share, data.at(across))


def _groups(data: _Set) -> Flag | None:
    places: dict[str, set[str]] = {}
    for example, (split, _) in zip(data.examples, data.rows, strict=True):
        for key in _keys(example):
            places.setdefault(key, set()).add(split)
    leaked = {key for key, where in places.items() if len(where) > 1}
    if not leaked:
        return None
    numbers = [number for number, example in enumerate(data.examples) if not leaked.isdisjoint(_keys(example))]
    share = len(numbers) / len(data.examples)
    groups = sum(key.startswith("group ") for key in leaked)
    message = (f"{groups} groups and {len(leaked) - groups} entities are in more than one split, with {share:.1%} of the"
               " examples: a probe may know them again. Split by group.")  # fmt: skip
    return Flag("group_leakage", message, share, data.at(numbers))


def _keys(example: Example) -> list[str]:
    return [f"group {example.template}", *(f"entity {entity}" for entity in example.entities)]


# confounds and noise -----------------------------------------------------------------------------


def _length(data: _Set, sample: list[int]) -> Flag | None:
    features = np.array([_shape(data.examples[number]) for number in sample])
    scored = _held_out(data, sample, features)
    if scored is None:
        return None
    value, low, high = _auroc_interval(scored, data.labels[sample], _group_numbers(data, sample), data.seed)
    if low <= LENGTH_BAR:
        return None
    message = (f"length and punctuation alone tell the labels apart: AUROC {value:.2f} [{low:.2f}, {high:.2f}]. Show that"
               " baseline beside every probe, or match the lengths.")  # fmt: skip
    return Flag("length_confound", message, value, (), low, high)


def _shape(example: Example) -> list[float]:
    """`SHAPE` of what has been read of a text: logarithms of lengths, shares of characters."""
    text = example.text if example.position is None else example.text[: example.position + 1]
    n = max(len(text), 1)
    shares = (sum(letter in string.punctuation for letter in text), sum(letter.isupper() for letter in text),
              sum(letter.isdigit() for letter in text))  # fmt: skip
    return [float(np.log1p(len(text))), float(np.log1p(len(text.split()))), *(share / n for share in shares)]


def _noise(data: _Set, sample: list[int], given: Array | None) -> Flag | None:
    said, rows = [], set[int]()
    estimates: list[tuple[float, float | None, float | None]] = []
    contrary = {number for i, j in data.copies if _contrary(data.examples[i], data.examples[j]) for number in (i, j)}
    if len(contrary) > CONTRARY * len(data.examples):
        share = len(contrary) / len(data.examples)
        said.append(f"{len(contrary)} examples ({share:.1%}) have a near copy with the other label")
        estimates.append((share / 2, None, None))
        rows |= contrary
    scored = _held_out(data, sample, [data.examples[number].text for number in sample])
    for name, numbers, scores in (("the words", sample, scored), ("the scores", list(range(len(data.examples))), given)):
        wrong = None if scores is None else _sure_and_wrong(data, numbers, scores)
        if wrong is not None:
            (rate, low, high), which = wrong
            said.append(f"where {name} are surest, {rate:.1%} [{low:.1%}, {high:.1%}] of the labels are the other one")
            estimates.append((rate, low, high))
            rows |= which
    if not said:
        return None
    estimate, low, high = max(estimates, key=lambda found: found[0])
    message = f"{'; '.join(said)}: some labels are wrong. Look at these rows."
    return Flag("label_noise", message, estimate, data.at(rows), low, high)


def _contrary(one: Example, other: Example) -> bool:
    same = one.template == other.template and plain_form(one.text) != plain_form(other.text)
    return one.label != other.label and not same and one.position == other.position


def _sure_and_wrong(data: _Set, numbers: Sequence[int], scores: Array) -> tuple[tuple[float, float, float], set[int]] | None:
    """(rate, low, high) of labels that are the other one where scores are most extreme, and which; None when that is
    no more than the bar, or the scores cannot do the task."""
    from scipy.stats import beta

    labels = data.labels[list(numbers)]
    n, wrong = _extremes(scores, labels, SUREST)
    if n < 2 * FEWEST or _auroc(scores, labels) < ABLE:
        return None
    wide, wide_wrong = _extremes(scores, labels, WIDER)
    k, tail = len(wrong), (1 - LEVEL) / 2
    low = float(beta.ppf(tail, k, n - k + 1)) if k else 0.0
    high = float(beta.ppf(1 - tail, k + 1, n - k)) if k < n else 1.0
    misled = low > len(wide_wrong) / wide
    return None if misled or low <= NOISE_BAR else ((k / n, low, high), {numbers[at] for at in wrong})


def _extremes(scores: Array, labels: NDArray[np.int64], share: float) -> tuple[int, list[int]]:
    """How many texts have the most extreme scores, that share of each label, and which of them have the other label."""
    members, others = int(labels.sum() * share), int((1 - labels).sum() * share)
    order = np.argsort(scores, kind="stable").tolist()
    top, bottom = order[len(order) - members :], order[:others]
    return members + others, [*(at for at in top if not labels[at]), *(at for at in bottom if labels[at])]


# groups and labels -------------------------------------------------------------------------------


def _one_label(data: _Set) -> Flag | None:
    labels: dict[str, list[int]] = {}
    for example in data.examples:
        labels.setdefault(example.template, []).append(example.label)
    single = {name for name, found in labels.items() if len(found) > 1 and len(set(found)) == 1}
    numbers = [number for number, example in enumerate(data.examples) if example.template in single]
    share = len(numbers) / len(data.examples)
    if share <= 0.5:
        return None
    message = (f"{share:.1%} of the examples are in groups of several texts with one label: whatever tells the groups apart"
               " tells the labels. Count groups, not texts, and look for groups with both.")  # fmt: skip
    return Flag("one_label_groups", message, share, data.at(numbers))


def _few(splits: Mapping[str, Sequence[Example]]) -> Flag | None:
    counts = {split: len({example.template for example in examples}) for split, examples in splits.items()}
    few = {split: n for split, n in counts.items() if n < GROUPS.get(split, GROUPS_ELSE)}
    if not few:
        return None
    said = "; ".join(f"{split} has {n} groups, fewer than {GROUPS.get(split, GROUPS_ELSE)}" for split, n in few.items())
    message = f"{said}. Fewer than 8 in confirm or ood can never support a claim."
    return Flag("few_groups", message, float(min(few.values())))


def _imbalance(splits: Mapping[str, Sequence[Example]]) -> Flag | None:
    shares = {split: sum(example.label for example in examples) / len(examples)
              for split, examples in splits.items() if examples}  # fmt: skip
    uneven = {split: share for split, share in shares.items() if min(share, 1 - share) < MINORITY}
    if not uneven:
        return None
    said = "; ".join(f"{split}: {share:.1%} are members" for split, share in uneven.items())
    message = f"{said}. Below {MINORITY:.0%} of one label, accuracy says little: read AUROC, or balance them."
    return Flag("imbalance", message, min(min(share, 1 - share) for share in uneven.values()))


# held-out scores ---------------------------------------------------------------------------------


def _sample(data: _Set) -> list[int]:
    """Numbers of at most `MOST` examples, groups by the hashes of their names, an eighth of all from one group at most."""
    taken = []
    groups: dict[str, list[int]] = {}
    for number, example in enumerate(data.examples):
        groups.setdefault(example.template, []).append(number)
    for name in sorted(groups, key=lambda name: _hash(data.seed, name)):
        some = groups[name][: MOST // 8]
        if len(taken) + len(some) <= MOST:
            taken += some
    return sorted(taken)


def _held_out(data: _Set, sample: Sequence[int], features: Any) -> Array | None:
    """Log odds of being a member, of examples by regressions that did not see their group; None without enough of both."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    labels = data.labels[list(sample)]
    parts = np.array([_hash(data.seed, data.examples[number].template) % FOLDS for number in sample])
    words = isinstance(features, list)
    scores = np.zeros(len(sample))
    for part in range(FOLDS):
        held, rest = np.flatnonzero(parts == part), np.flatnonzero(parts != part)
        if len(held) == 0:
            continue
        if len(set(labels[rest].tolist())) < 2:
            return None
        first = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\w+") if words else StandardScaler()
        model = make_pipeline(first, LogisticRegression(C=10.0 if words else 1.0, max_iter=1000, class_weight="balanced"))
        chosen = [[features[at] for at in side] if words else features[side] for side in (rest, held)]
        try:
            model.fit(chosen[0], labels[rest])
        except ValueError:  # no word at all
            return None
        scores[held] = model.decision_function(chosen[1])
    return scores


def _group_numbers(data: _Set, sample: Sequence[int]) -> NDArray[np.int64]:
    return np.unique([data.examples[number].template for number in sample], return_inverse=True)[1]


def _auroc(scores: Array, labels: NDArray[np.int64], weights: Array | None = None) -> float:
    """P(member scores above other) + half of ties, weighted."""
    weights = np.ones(len(scores)) if weights is None else weights
    _, place = np.unique(scores, return_inverse=True)
    members = np.bincount(place, weights * labels)
    others = np.bincount(place, weights * (1 - labels))
    total = members.sum() * others.sum()
    return float((members * (np.cumsum(others) - others / 2)).sum() / total) if total else float("nan")


def _auroc_interval(
    scores: Array, labels: NDArray[np.int64], groups: NDArray[np.int64], seed: int
) -> tuple[float, float, float]:
    rng, n = np.random.default_rng(seed), int(groups.max()) + 1
    times = (np.bincount(rng.integers(0, n, n), minlength=n)[groups].astype(float) for _ in range(DRAWS))
    draws = [_auroc(scores, labels, weights) for weights in times]
    low, high = np.nanpercentile(draws, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return _auroc(scores, labels), float(low), float(high)


def _hash(seed: int, name: str) -> int:
    return int(hashlib.sha256(f"{seed} {name}".encode("utf-8", "surrogatepass")).hexdigest()[:15], 16)
