"""Which way of singling out a feature depends on the feature, and which on how many members a document has?

    python benchmarks/discrimination.py            the table of docs/decisions/011-map.md, about two minutes

1. Thirty documents, each with 1, 2 or 4 members and 20 other tokens. The feature is on at .85 of the members, its nine
   rivals each at a share q of them; off members: .02 and .04. All draws are independent, values uniform.
2. *picked*: in each document the candidate that ranks members highest is picked, ties shared; the mean against .5.
3. *elsewhere*: placement under the feature minus that under the rival that is best over all other documents; against .05.
4. *best*: the same with the rival that is best over all documents; against .05. The gate `discrimination`.
5. Per world the mean estimate of each, and how often it passes at alpha .05.

The truth does not depend on the number of members: below q = .75 the feature fits better by more than .05, at .75 by just
that, where an honest test passes in 5 of 100 worlds at most.
"""

import argparse
import sys
from collections.abc import Sequence

import numpy as np

from assay.statistics import cluster_means, placements, summarise

RECALL, FALSE, DOCUMENTS, OTHERS, RIVALS = 0.85, 0.02, 30, 20, 9
MEMBERS, SHARES = (1, 2, 4), (0.1, 0.3, 0.5, 0.65, 0.75, 0.85)
BAR_PICK, BAR_DIFFERENCE = 0.5, 0.05
Fits = np.ndarray  # (1 + RIVALS, DOCUMENTS)


def world(rng: np.random.Generator, members: int, share: float) -> Fits:
    """Per candidate, the feature first, and document: mean placement of its members."""
    labels = np.tile(np.r_[np.ones(members), np.zeros(OTHERS)], DOCUMENTS)
    documents = np.repeat([f"{number:03d}" for number in range(DOCUMENTS)], members + OTHERS).tolist()
    fits = []
    for candidate in range(1 + RIVALS):
        on, off = (RECALL, FALSE) if candidate == 0 else (share, 2 * FALSE)
        values = (rng.random(len(labels)) < np.where(labels == 1, on, off)) * rng.uniform(1, 3, len(labels))
        placed = placements(values.tolist(), labels.tolist(), documents)
        kept = [(value, name) for value, name in zip(placed, documents, strict=True) if value is not None]
        fits.append(list(cluster_means([value for value, _ in kept], [name for _, name in kept]).values()))
    return np.array(fits)


def picked(fits: Fits) -> tuple[float, bool]:
    """Mean chance of being picked document by document, and whether that passes."""
    best = np.isclose(fits, fits.max(0))
    return _judged(np.where(best[0], 1 / best.sum(0), 0.0), BAR_PICK)


def elsewhere(fits: Fits) -> tuple[float, bool]:
    """Mean advantage over the rival that is best over the other documents."""
    others = fits[1:]
    rival = (others.sum(1, keepdims=True) - others).argmax(0)
    return _judged(fits[0] - others[rival, np.arange(DOCUMENTS)], BAR_DIFFERENCE)


def best(fits: Fits) -> tuple[float, bool]:
    """Mean advantage over the rival that is best over all documents."""
    return _judged(fits[0] - fits[1 + fits[1:].mean(1).argmax()], BAR_DIFFERENCE)


def _judged(values: np.ndarray, bar: float) -> tuple[float, bool]:
    found = summarise(values.tolist(), [str(number) for number in range(len(values))], bar)
    return found.estimate or 0.0, found.p_above < 0.05


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--worlds", type=int, default=200, help="drawn per row")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    rng = np.random.default_rng(given.seed)
    write = sys.stdout.write
    write("| members per document | rivals are on at | picked | passes | elsewhere | passes | best | passes |\n")
    write("|---|---|---|---|---|---|---|---|\n")
    for members in MEMBERS:
        for share in SHARES:
            worlds = [world(rng, members, share) for _ in range(given.worlds)]
            found = [np.array([way(one) for one in worlds]).mean(0) for way in (picked, elsewhere, best)]
            cells = " | ".join(f"{estimate:.2f} | {passes:.2f}" for estimate, passes in found)
            write(f"| {members} | {share:g} | {cells} |\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
