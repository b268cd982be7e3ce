"""Intervals of shares: what is 0 or 1 per item, by cluster (Korn & Graubard 1998).

1. Share p: the mean of K cluster means; V = their variance / K. Effective size m = p (1 - p) / V, times the square of
   t(N - 1) / t(K - 1) at the level, and at most N, the number of items. Where all clusters are alike, m = N.
2. Clopper-Pearson for m p of m, which need not be whole numbers: quantiles of Beta(m p, m - m p + 1) and
   Beta(m p + 1, m - m p).

A bootstrap learns from spread, and near 0 or 1 there is none: with almost all clusters alike it gives almost no width. Here
the number of items says how much can be hidden. p-values are not touched, nor is a verdict.
"""

from collections.abc import Sequence
from dataclasses import replace

from scipy import stats

from assay.statistics import Summary

METHOD = "Korn-Graubard by template"


def with_share_interval(summary: Summary, values: Sequence[float | None]) -> Summary:
    """A summary whose interval is that of a share, where all values are 0 or 1 and there are two clusters or more."""
    kept = {value for value in values if value is not None}
    means = list(summary.per_template.values())
    if not kept or kept - {0.0, 1.0} or len(means) < 2:
        return summary
    low, high = share_interval(means, sum(value is not None for value in values))
    return replace(summary, low=low, high=high, sample={**summary.sample, "method": METHOD})


def share_interval(means: Sequence[float], n: int, level: float = 0.95) -> tuple[float, float]:
    """Two-sided interval of the mean of cluster shares (K >= 2), of n >= K items in all."""
    k, tail = len(means), (1 - level) / 2
    share = sum(means) / k
    spread = sum((mean - share) ** 2 for mean in means) / (k - 1) / k
    size = float(n)
    if spread > 1e-15 and 0 < share < 1:
        freedom = float(stats.t.ppf(1 - tail, n - 1) / stats.t.ppf(1 - tail, k - 1))
        size = min(size, share * (1 - share) / spread * freedom**2)
    hits = size * share
    low = float(stats.beta.ppf(tail, hits, size - hits + 1)) if share > 0 else 0.0
    high = float(stats.beta.ppf(1 - tail, hits + 1, size - hits)) if share < 1 else 1.0
    return low, high
