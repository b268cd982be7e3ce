"""Has what the monitor sees changed since it was calibrated? Then its thresholds promise nothing any more.

1. Of benign replies at calibration are kept: their scores, and their mean activations along the main axes of these (principal
   components of one site).
2. A window of new replies is compared with them by two-sample Kolmogorov-Smirnov tests: of the scores and of each axis. The
   smallest p times the number of tests is the p of "nothing changed" (Bonferroni), so a window that did not change is called
   drifted in at most `ALPHA` of the cases; each window that is looked at is another test.
3. A changed model, tokenizer or chat template is noticed by its hash, not here.

A window with many alarms has drifted in scores as well: both are said, and a person must look.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from scipy import stats

from assay.errors import bad_argument
from assay.model.model import Model
from assay.monitor.reading import read
from assay.monitor.records import Baseline, Monitor, bindings
from assay.monitor.talks import Talk
from assay.monitor.thresholds import rounding
from assay.monitor.units import pooled

ALPHA = 0.001
AXES, KEPT, FEWEST = 8, 512, 30
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Drift:
    """`p`: of a window like the calibration; `what` differs most; `n` replies in the window."""

    p: float
    what: str
    n: int
    tests: int

    @property
    def found(self) -> bool:
        return self.p < ALPHA


def baseline(scores: Sequence[float] | Array, means: Float[np.ndarray, "n d"], site: str) -> Baseline:
    """What is kept of benign replies: at most KEPT of them, evenly taken."""
    values, means = np.asarray(scores, np.float64), np.asarray(means, np.float64)
    taken = np.linspace(0, len(values) - 1, min(KEPT, len(values))).round().astype(int)
    centred = means - means.mean(0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    axes = axes[: min(AXES, len(axes))]
    return Baseline(values[taken], site, axes, means[taken] @ axes.T)


def drift(monitor: Monitor, scores: Sequence[float] | Array, means: Float[np.ndarray, "n d"]) -> Drift:
    """Compare a window of replies: their scores (n,) and mean activations at the baseline's site (n, d).

    Raises UsageError for a monitor that was not calibrated, and for fewer than FEWEST replies.
    """
    held = monitor.baseline
    if held is None:
        raise bad_argument("monitor", f"{monitor.name!r} without a baseline", "a calibrated monitor")
    values, means = np.asarray(scores, np.float64), np.asarray(means, np.float64)
    if len(values) < FEWEST or len(means) != len(values):
        raise bad_argument("window", f"{len(values)} replies", f"at least {FEWEST}")
    with np.errstate(invalid="ignore"):  # of a reply that half precision broke
        places = means @ held.axes.T
    found = {"scores": _p(held.scores, values)}
    for at in range(len(held.axes)):
        found[f"activations at {held.site}, axis {at + 1}"] = _p(held.places[:, at], places[:, at])
    what = min(found, key=lambda name: found[name])
    return Drift(min(1.0, found[what] * len(found)), what, len(values), len(found))


def window(monitor: Monitor, model: Model, talks: Sequence[Talk], report: Callable[[int], None] | None = None) -> Drift:
    """Compare conversations of now, read by the model, with those of calibration. Raises UsageError as `drift` does."""
    if monitor.baseline is None:
        raise bad_argument("monitor", f"{monitor.name!r} without a baseline", "a calibrated monitor")
    if wrong := [name for name, value in bindings(model).items() if monitor.bound.get(name) != value]:
        raise bad_argument("model", f"another {wrong[0]} than {monitor.name!r} was calibrated with", "the one it is bound to",
                           "On others it is uncalibrated anyway.")  # fmt: skip
    site, scores, means = monitor.baseline.site, [], []
    for number, acts in read(model, talks, list(dict.fromkeys([*monitor.sites, site])), report):
        judged = np.concatenate([np.arange(*turn) for turn in talks[number].turns])
        logits = monitor.token_logits(acts)
        scores.append(pooled(monitor.token_scores(acts)[judged], monitor.pooling, None if logits is None else logits[judged]))
        means.append(acts[site][judged].mean(0))
    return drift(monitor, scores, np.array(means))


def disarmed(monitor: Monitor, found: Drift) -> Monitor:
    """The monitor with its state: uncalibrated where the window drifted."""
    if not found.found:
        return monitor
    return replace(monitor, drifted=f"drift in {found.what} over {found.n} replies (p {found.p:.2g})")


def _p(one: Array, other: Array) -> float:
    """Two-sample Kolmogorov-Smirnov over ranks; values that rounding alone tells apart have one rank. Pooled by max, many texts
    have the very score of a token that all of them begin with, and a last digit of it would be drift. What is no number ranks
    last, and neither it nor one huge value says how coarse the others are."""
    every = np.r_[one, other]
    known = np.isfinite(every)
    ordered = np.sort(every[known])
    rank = np.r_[0, np.cumsum(np.diff(ordered) > rounding(ordered))]
    ranks = np.full(len(every), len(every))
    ranks[known] = rank[np.searchsorted(ordered, every[known])]
    found: Any = stats.ks_2samp(ranks[: len(one)], ranks[len(one) :], method="auto")
    return float(found.pvalue)
