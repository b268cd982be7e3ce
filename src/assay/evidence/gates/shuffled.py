"""Shuffled labels: is there any association beyond the template?

1. Permute labels inside every template, 499 times, and take the mean placement each time.
2. Contrast per member: placement minus the .95 quantile of those means.

Kills associations that come from templates or topics alone. (Permutation inside strata; Phipson & Smyth 2010.)
"""

import numpy as np

from assay.evidence.gates.base import Contrast, Gate, Table, column, register
from assay.evidence.gates.detection import KINDS, measure, placed
from assay.records import GatePlan
from assay.statistics import comparison_groups

DRAWS = 499


def contrast(table: Table, gate: GatePlan) -> Contrast:
    """Placement minus the .95 quantile of mean placements under shuffled labels."""
    real = placed(table)
    null = shuffled_means(column(table, "score"), column(table, "label"), table["templates"], gate.options["draws"])
    bar = float(np.quantile(null, 0.95))
    values = [None if value is None else value - bar for value in real]
    return Contrast(values, notes={"null": [round(float(x), 4) for x in null], "quantile95": bar})


def shuffled_means(scores, labels, templates, draws: int, seed: int = 0) -> np.ndarray:
    """Mean placement (draws,) under labels permuted inside templates; mean of template AUROCs."""
    from scipy.stats import rankdata

    rng = np.random.default_rng(seed)
    value = np.array([np.nan if score is None else score for score in scores], dtype=float)
    member, names = np.array(labels) == 1, np.array(comparison_groups(labels, templates))
    total, groups = np.zeros(draws), 0
    for name in sorted(set(names.tolist())):
        inside = np.flatnonzero(names == name)
        m, n = int(member[inside].sum()), len(inside)
        if 0 < m < n:
            one = np.zeros(n)
            one[:m] = 1.0
            ranks = rankdata(value[inside])
            shuffled = rng.permuted(np.tile(one, (draws, 1)), axis=1)
            total += (shuffled @ ranks - m * (m + 1) / 2) / (m * (n - m))
            groups += 1
    return total / groups if groups else np.full(draws, 0.5)


register(Gate("shuffled", "shuffled", KINDS, 0.0, True, measure, contrast, {"draws": DRAWS},
              says="it beats 95% of label shuffles by {estimate}"))  # fmt: skip
