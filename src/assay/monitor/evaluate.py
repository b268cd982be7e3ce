"""How good is a monitor, beside what costs nothing? On labelled conversations that nothing was chosen on.

1. AUROC with a bootstrap interval over groups; recall at its own threshold (a conversation is found where any of its units is
   above), and at the least thresholds that let at most 1% and 0.1% of these negatives through (points of the ROC curve; refused
   where there are fewer than `thresholds.needed`), with exact intervals. These promise nothing on other data.
2. Its false-alarm rate here, in all and by slice, worst first, and whether so many are in the 95% that calibration lets expect.
3. Brier score and expected calibration error of its probabilities; the share of conversations with an alarm in which it is
   right at assumed base rates (Bayes' rule), as measured and at the worse ends of the intervals: no false alarm of 40 is no
   promise of none.
4. Beside it, on the same conversations: words (TF-IDF logistic regression), a sentence encoder that is not the model (where one
   is named), random directions at the same site (the best of 20), the last token alone, and the model itself asked in
   words, where it can read a question. Words and sentences are fitted on what the monitor was fitted on, where that is given,
   else on these conversations, each scored by a fit without its group. What cannot be measured is said (`unmeasured`).
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from assay.data.chat import chat_text, has_template
from assay.errors import UsageError, bad_argument
from assay.model.model import Model
from assay.monitor.fit import auroc
from assay.monitor.reading import finite, read, reply_scores, score
from assay.monitor.records import Monitor, data_digest
from assay.monitor.talks import Talk, refuse_seen
from assay.monitor.thresholds import Rate, mean_rate, needed, rate
from assay.monitor.units import pooled_columns
from assay.probe.baselines import sentence_encoder
from assay.probe.calibration import brier, ece
from assay.probe.estimators import logistic
from assay.probe.path import folds_of

Array = NDArray[np.float64]
Report = Callable[[int], None]
TARGETS, BASE_RATES = (0.01, 0.001), (0.1, 0.01, 0.001)
DRAWS, RANDOM, FOLDS = 1000, 20, 5
ROUNDING = 1e-9
ASK = "Does this text show {watches}? Answer yes or no.\n\n{text}"
ENCODER_C = 0.1  # of the logistic regression on sentence vectors, standardised
WORDS = (("Yes", "yes"), ("No", "no"))
LEAST_MASS = 0.001  # of the answers yes and no together, at half of the texts: with less their odds say nothing
LONGEST_ASKED = 1500  # characters of a text that the model is asked about


@dataclass(frozen=True)
class Evaluation:
    """`recall`: at its own thresholds, by unit; `at`: target -> recall at a threshold set on these negatives, the threshold and
    the share of them above it, or why not."""

    monitor: str
    state: str
    n: dict[str, int]
    auroc: tuple[float, float, float]
    recall: dict[str, Rate]
    false_alarms: dict[str, Rate]
    inside: dict[str, bool]
    at: dict[str, Any]
    slices: list[dict[str, Any]]
    brier: float
    ece: float
    precision: dict[str, dict[str, float]]
    precision_low: dict[str, dict[str, float]]
    baselines: dict[str, dict[str, Any]] = field(default_factory=dict)
    unmeasured: dict[str, str] = field(default_factory=dict)


def evaluate(
    monitor: Monitor, model: Model, talks: Sequence[Talk], train: Sequence[Talk] = (), seed: int = 0,
    report: Report | None = None, encoder: str = "none",
) -> Evaluation:  # fmt: skip
    """Measure a monitor. `train`: what it was fitted on, for the baselines of words; `encoder`: of sentences, minilm or none
    (`features/sentences.py`; ModelError where it cannot be had). Raises UsageError for one label only, for texts
    that it was fitted or calibrated on, and for some that are in `train` as well."""
    labels = np.array([-1 if talk.label is None else talk.label for talk in talks])
    if set(labels.tolist()) != {0, 1}:
        raise bad_argument("talks", f"labels {sorted(set(labels.tolist()))}", "both labels, 0 and 1, and no others")
    refuse_seen("talks", talks, monitor.seen, "fitted or calibrated on")
    refuse_seen("talks", talks, {data_digest([talk.text]) for talk in train}, "compared with, fitted on them")
    scored = score(model, monitor, talks, report)
    scores, groups = finite(reply_scores(scored)), [talk.group for talk in talks]
    per_unit = {unit: [finite(one.units[unit]) for one in scored] for unit in monitor.thresholds}
    hit = {unit: np.array([float(values.max()) for values in found]) for unit, found in per_unit.items()}
    recall = {unit: rate(hit[unit][labels == 1], made.value) for unit, made in monitor.thresholds.items()}
    alarmed = {unit: rate(hit[unit][labels == 0], made.value) for unit, made in monitor.thresholds.items()}
    wrong = {unit: _of_units(per_unit[unit], labels == 0, made.value, seed) for unit, made in monitor.thresholds.items()}
    inside = {unit: made.holds(wrong[unit]) for unit, made in monitor.thresholds.items()}
    probability = np.array([monitor.probability(value) for value in scores])
    unit = "conversation" if "conversation" in wrong else next(iter(wrong), "")
    return Evaluation(
        monitor.name, monitor.state(model), {"0": int((labels == 0).sum()), "1": int((labels == 1).sum())},
        _interval(scores, labels, groups, seed), recall, wrong, inside, _at(scores, labels),
        _slices(talks, hit.get(unit, scores), labels, monitor.thresholds[unit].value) if unit else [],
        brier(probability, labels), ece(probability, labels),
        {name: _precision(recall[name].share, alarmed[name].share) for name in recall},
        {name: _precision(recall[name].low, alarmed[name].high) for name in recall},
        *_baselines(monitor, model, talks, labels, train, seed, encoder),
    )  # fmt: skip


def _of_units(found: Sequence[Array], which: NDArray[np.bool_], at: float, seed: int) -> Rate:
    """Alarms among units of benign conversations; where these have several, the mean rate of a conversation."""
    benign = [values for values, chosen in zip(found, which, strict=True) if chosen]
    if all(len(values) == 1 for values in benign):
        return rate(np.concatenate(benign), at)
    return mean_rate(benign, at, seed)


def _interval(scores: Array, labels: NDArray[Any], groups: Sequence[str], seed: int) -> tuple[float, float, float]:
    """AUROC, and the 2.5 and 97.5 percentile over draws of groups."""
    draw, names = np.random.default_rng([seed, 83]), sorted(set(groups))
    rows = [np.flatnonzero(np.array(groups) == name) for name in names]
    found = []
    for _ in range(DRAWS):
        taken = np.concatenate([rows[at] for at in draw.integers(len(rows), size=len(rows))])
        if 0 < labels[taken].sum() < len(taken):
            found.append(auroc(scores[taken], labels[taken]))
    low, high = np.quantile(found, [0.025, 0.975]) if found else (0.0, 1.0)
    return auroc(scores, labels), float(low), float(high)


def _at(scores: Array, labels: NDArray[Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    negatives = np.sort(scores[labels == 0])[::-1]
    for target in TARGETS:
        if len(negatives) < needed(target):
            out[f"{target:g}"] = f"not said: {needed(target)} negatives are needed, {len(negatives)} are there"
            continue
        bar = float(negatives[int(target * len(negatives) + ROUNDING)])
        out[f"{target:g}"] = {**asdict(rate(scores[labels == 1], bar)), "threshold": bar,
                              "false_alarms": float((negatives > bar).mean())}  # fmt: skip
    return out


def _slices(talks: Sequence[Talk], hits: Array, labels: NDArray[Any], at: float) -> list[dict[str, Any]]:
    """Per slice of negatives: alarms, worst first."""
    found = []
    for name in dict.fromkeys(talk.slice for talk, label in zip(talks, labels, strict=True) if label == 0):
        rows = [row for row, talk in enumerate(talks) if talk.slice == name and labels[row] == 0]
        found.append({"slice": name, **asdict(rate(hits[rows], at))})
    return sorted(found, key=lambda row: (-row["hits"] / max(1, row["n"]), -row["high"]))


def _precision(recall: float, wrong: float) -> dict[str, float]:
    out = {}
    for base in BASE_RATES:
        right, false = base * recall, (1 - base) * wrong
        out[f"{base:g}"] = right / (right + false) if right + false else 0.0
    return out


# what costs nothing ------------------------------------------------------------------------------


def _baselines(
    monitor: Monitor, model: Model, talks: Sequence[Talk], labels: NDArray[Any], train: Sequence[Talk], seed: int, encoder: str
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:  # fmt: skip
    """AUROC of each, and why others were not measured."""
    out: dict[str, dict[str, Any]] = {}
    missing: dict[str, str] = {}
    texts = {"words": _words, **({"sentence encoder": partial(_meant, encoder=encoder)} if encoder != "none" else {})}
    for name, made in texts.items():
        try:
            out[name] = {"auroc": auroc(_beside(made, train, talks, labels, seed), labels)}
        except UsageError as error:
            missing[name] = f"{error} Give what it was fitted on."
    site = monitor.heads[0].site
    last: list[float] = []
    drawn: list[Array] = []
    width = len(monitor.heads[0].weight)
    ways = np.random.default_rng([seed, 89]).standard_normal((width, RANDOM))
    for number, acts in read(model, talks, sorted({head.site for head in monitor.heads})):
        judged = np.concatenate([np.arange(*turn) for turn in talks[number].turns])
        last.append(float(monitor.token_scores({name: x[judged[-1:]] for name, x in acts.items()})[0]))
        drawn.append(pooled_columns(acts[site][judged] @ ways, monitor.pooling.of_controls()))
    each = [auroc(finite(column), labels) for column in zip(*drawn, strict=True)]
    either = [max(value, 1 - value) for value in each]
    out["random directions"] = {"auroc": float(np.mean(either)), "best": max(either)}
    out["last token"] = {"auroc": auroc(finite(last), labels)}
    try:
        out["asked in words"] = {"auroc": auroc(finite(_asked(monitor, model, talks)), labels)}
    except UsageError as error:
        missing["asked in words"] = str(error)
    return out, missing


def _beside(made: Callable[..., Array], train: Sequence[Talk], talks: Sequence[Talk], labels: NDArray[Any], seed: int) -> Array:
    """Scores by a fit on `train`; without it by fits on the other groups. Raises UsageError for too few groups."""
    if {talk.label for talk in train} >= {0, 1}:
        return made(train, talks)
    fold = folds_of(labels, [talk.group for talk in talks], FOLDS, seed)
    scores = np.empty(len(talks))
    for number in np.unique(fold):
        apart = [[talk for talk, own in zip(talks, fold, strict=True) if bool(own == number) is out]
                 for out in (False, True)]  # fmt: skip
        scores[fold == number] = made(*apart)
    return scores


def _words(train: Sequence[Talk], talks: Sequence[Talk]) -> Array:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    known = [talk for talk in train if talk.label is not None]
    pipe = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b|[^\w\s]"),
                         LogisticRegression(C=10.0, solver="liblinear"))  # fmt: skip
    pipe.fit([talk.text for talk in known], [talk.label for talk in known])
    return pipe.decision_function([talk.text for talk in talks])


def _meant(train: Sequence[Talk], talks: Sequence[Talk], encoder: str) -> Array:
    """Log odds by logistic regression on vectors of a sentence encoder that is not the model."""
    known = [talk for talk in train if talk.label is not None]
    vectors = sentence_encoder(encoder)([talk.text for talk in [*known, *talks]])
    weights, bias = logistic(vectors[: len(known)], np.array([talk.label for talk in known]), C=ENCODER_C)
    return vectors[len(known) :] @ weights + bias


def _asked(monitor: Monitor, model: Model, talks: Sequence[Talk]) -> list[float]:
    """Log odds of "yes" against "no" when the model is asked, as the words follow the question. Raises UsageError for a model
    that has no such tokens, hardly ever answers by them, or cannot read as long a question."""
    if model.tokenizer is None:
        raise UsageError("The model has no tokenizer.")
    gap = "" if has_template(model) else " "  # as in `reply_text`
    yes, no = ([token for word in words if (token := _whole(model, gap + word)) is not None] for words in WORDS)
    if not yes or not no or set(yes) & set(no):  # one token for whatever is not known
        raise UsageError("The model has no tokens for the words yes and no.")
    found: list[float] = []
    prompts = [chat_text(model, [{"role": "user", "content": ASK.format(watches=monitor.watches, text=t.text[:LONGEST_ASKED])}])
               for t in talks]  # fmt: skip
    longest = getattr(getattr(model.hf, "config", None), "max_position_embeddings", None)
    if longest is not None and max(len(row) for row in model.tokens(prompts)) > longest:
        raise UsageError("The model cannot read as long a question.")
    mass = []
    for at in range(0, len(prompts), 32):
        p = model.logits(prompts[at : at + 32]).float().log_softmax(-1)
        of_yes, of_no = p[:, yes].logsumexp(-1), p[:, no].logsumexp(-1)
        found += (of_yes - of_no).tolist()
        mass += of_yes.logaddexp(of_no).exp().tolist()
    if float(np.nanmedian(mass)) < LEAST_MASS:
        raise UsageError(f"The model hardly ever answers yes or no (median probability of both {np.nanmedian(mass):.1g}).")
    return found


def _whole(model: Model, word: str) -> int | None:
    """The token that is this word; None where it takes several."""
    ids = model.tokenizer(word, add_special_tokens=False)["input_ids"]
    return int(ids[0]) if len(ids) == 1 else None
