"""Fit a monitor: where a property is read best, by which heads, pooled how. All choices by folds that keep groups together.

1. Mean activations over judged tokens, at every candidate site; a path of L2-penalised logistic regressions (`probe/path.py`).
2. Per site the penalty with the least held-out log loss, then the AUROC of its held-out scores. The best `ensemble` sites are
   the heads; their scores are averaged (log odds).
3. Pooling: each pooling's AUROC on held-out conversations, token scores being those of fits that had not seen the group; the
   best is taken, the simplest (first) among those within .005 of it.
4. Attention is there where it is asked for by name, and is not among those that are chosen from: weights and queries of the
   best sites are then fitted together, as one attention probe on their activations side by side (`probe/estimators.py`).

What is chosen here flatters itself a little: `evaluate` and `calibrate` use other data.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from assay.errors import UsageError, bad_argument
from assay.features.opened import is_latent
from assay.model.model import Model
from assay.monitor.reading import read, turn_means
from assay.monitor.records import DAYS, Head, Monitor, bindings, data_digest, dictionaries_of
from assay.monitor.talks import Talk
from assay.monitor.units import POOLINGS, Pooling, pooled
from assay.probe.estimators import AttentionProbe, logistic
from assay.probe.path import fit_path, folds_of

Array = NDArray[np.float64]
Report = Callable[[str, int, int], None]
CS = tuple(float(c) for c in np.logspace(-4, 1, 6))
SAME = 0.005  # of AUROC: poolings this close are the same, and the simpler is taken
FEWEST = 4  # conversations of a label
CHOSEN = POOLINGS[:-1]
LARGEST = 1 << 25  # numbers of all tokens at the sites that attention is fitted on


@dataclass(frozen=True)
class FitPlan:
    """`sites` None: resid_post of every layer; `latent.NAME`: the latents of an open dictionary. `pooling` None: chosen. `days`
    until it expires."""

    sites: tuple[str, ...] | None = None
    ensemble: int = 3
    pooling: str | None = None
    width: int = 4
    folds: int = 5
    days: int = DAYS
    seed: int = 0


def fit(
    model: Model, talks: Sequence[Talk], name: str, watches: str, plan: FitPlan = FitPlan(), report: Report | None = None
) -> Monitor:
    """A monitor without thresholds. Raises UsageError for too few conversations or groups of a label."""
    labels = np.array([-1 if talk.label is None else talk.label for talk in talks])
    for label in (0, 1):
        if (labels == label).sum() < FEWEST:
            raise bad_argument("talks", f"{(labels == label).sum()} with label {label}", f"at least {FEWEST} of each label")
    if (labels < 0).any():
        raise bad_argument("talks", f"{(labels < 0).sum()} without a label", "a label, 0 or 1, for each")
    if plan.ensemble < 1:
        raise bad_argument("ensemble", plan.ensemble, "1 site or more")
    groups = [talk.group for talk in talks]
    asked = list(plan.sites or ["resid_post.*"])
    latents, plain = [site for site in asked if is_latent(site)], [site for site in asked if not is_latent(site)]
    sites = [*latents, *(str(site) for site in (model.sites(plain) if plain else []))]
    means = turn_means(model, talks, sites, report and _counted(report, "read", len(talks)))
    fold = folds_of(labels, groups, plan.folds, plan.seed)
    found = []
    for at, site in enumerate(sites):
        path = fit_path(means[site][None], labels, groups, CS, plan.folds, plan.seed)
        best = int(path.log_loss(labels)[0].argmin())
        found.append((auroc(path.held_out[0, best], labels), -at, site, path.Cs[best]))
        if report:
            report("fit", at + 1, len(sites))
    chosen = sorted(found, reverse=True)[: plan.ensemble]
    heads = tuple(Head(site, *_float(logistic(means[site], labels, C))) for _, _, site, C in chosen)
    poolings = _poolings(model, talks, labels, means, fold, chosen, plan)
    if plan.pooling == "attention":
        heads, poolings["attention"] = _attention(model, talks, labels, fold, [head.site for head in heads], plan.seed)
    pooling = Pooling(plan.pooling or _simplest(poolings), plan.width)
    now = datetime.now(UTC)
    bound = {**bindings(model), "fitted_on": data_digest([[talk.text, talk.label, talk.group] for talk in talks]),
             "dictionaries": dictionaries_of(site for _, _, site, _ in chosen),
             "created": now.isoformat(timespec="seconds"),
             "expires": (now + timedelta(days=plan.days)).isoformat(timespec="seconds")}  # fmt: skip
    card: dict[str, Any] = {
        "model": model.name, "plan": asdict(plan), "talks": {"0": int((labels == 0).sum()), "1": int((labels == 1).sum())},
        "groups": len(set(groups)), "texts": [data_digest([talk.text]) for talk in talks],
        "held_out_auroc": {site: round(value, 4) for value, _, site, _ in sorted(found, reverse=True)},
        "penalty": {site: C for _, _, site, C in chosen}, "poolings": {key: round(v, 4) for key, v in poolings.items()},
    }  # fmt: skip
    return Monitor(name, watches, heads, pooling, bound, card=card)


def auroc(scores: Array, labels: NDArray[Any]) -> float:
    """Area under the ROC curve."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(labels, scores))


def _poolings(model: Model, talks: Sequence[Talk], labels: Any, means: dict[str, Array], fold: Any, chosen: Any,
              plan: FitPlan) -> dict[str, float]:  # fmt: skip
    """Pooling -> AUROC of conversations under heads that have not seen their group."""
    sites = [site for _, _, site, _ in chosen]
    heads = {number: [logistic(means[site][fold != number], labels[fold != number], C) for _, _, site, C in chosen]
             for number in range(int(fold.max()) + 1)}  # fmt: skip
    scores: dict[str, list[float]] = {name: [] for name in CHOSEN}
    for number, acts in read(model, talks, sites):
        fitted = zip(sites, heads[int(fold[number])], strict=True)
        token = np.mean([acts[site] @ w + b for site, (w, b) in fitted], axis=0)
        judged = np.concatenate([token[slice(*turn)] for turn in talks[number].turns])
        for name in CHOSEN:
            scores[name].append(pooled(judged, Pooling(name, plan.width)))
    return {name: auroc(np.array(values), labels) for name, values in scores.items()}


def _attention(
    model: Model, talks: Sequence[Talk], labels: Any, fold: Any, sites: list[str], seed: int
) -> tuple[tuple[Head, ...], float]:  # fmt: skip
    """Heads with queries, and the AUROC on held-out groups. Raises UsageError where the tokens are too many to be held."""
    texts, held, widths = [], 0, [0]
    for number, acts in read(model, talks, sites):
        judged = np.concatenate([np.arange(*turn) for turn in talks[number].turns])
        texts.append(np.concatenate([acts[site][judged] for site in sites], 1))
        widths, held = [acts[site].shape[1] for site in sites], held + texts[-1].size
        if held > LARGEST:
            raise UsageError(f"pooling attention: tokens of more than {LARGEST:,} numbers at {len(sites)} sites. Take fewer"
                             " sites (ensemble), or shorter or fewer conversations.")  # fmt: skip

    def fitted(rows: Any) -> Any:
        probe: Any = AttentionProbe
        return probe(random_state=seed).fit([texts[row] for row in rows], labels[rows])

    scores = np.zeros(len(talks))
    for number in range(int(fold.max()) + 1):
        out = np.flatnonzero(fold == number)
        scores[out] = fitted(np.flatnonzero(fold != number)).decision_function([texts[row] for row in out])
    whole, cuts = fitted(np.arange(len(talks))), np.cumsum(widths)[:-1]
    parts = zip(sites, np.split(whole.weights_, cuts), np.split(whole.query_, cuts), strict=True)
    n = len(sites)  # a monitor takes the mean over its heads
    heads = tuple(Head(site, (n * w).astype(np.float32), whole.intercept_, (n * q).astype(np.float32)) for site, w, q in parts)
    return heads, auroc(scores, labels)


def _simplest(poolings: dict[str, float]) -> str:
    best = max(poolings.values())
    return next(name for name, value in poolings.items() if value >= best - SAME)


def _float(fitted: tuple[Array, float]) -> tuple[Any, float]:
    return fitted[0].astype(np.float32), float(fitted[1])


def _counted(report: Report, words: str, of: int) -> Callable[[int], None]:
    done = [0]

    def advance(n: int) -> None:
        done[0] += n
        report(words, done[0], of)

    return advance
