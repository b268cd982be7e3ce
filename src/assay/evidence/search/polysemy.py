"""Polysemy: do the contexts that fire fall into two groups, and does one of them lack the concept?

1. Confirm items whose score passes its threshold are taken with their activations at the site; the claimed
   score itself does not separate them, because all of them pass.
2. They are split in two by k-means; the mean silhouette is compared with Gaussian clouds of the same covariance.
3. Each group's own rate of members is reported. Where the groups are real (p <= .05) and members are a minority
   in one of them (95% bound below one half), that group is a second meaning: its non-members are hits, those
   that fire most are read again alone.

Groups of sentence frames are found as well; the rate of members says whether they matter.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from assay.evidence.hosts import as_host
from assay.evidence.hunting.clusters import MOST, Split, split_in_two
from assay.evidence.hunting.labels import as_claimed
from assay.evidence.hunting.reading import nothing, reader_of
from assay.evidence.hunting.showing import Candidate, show
from assay.evidence.scored import ScoreSetup
from assay.evidence.search.base import Found, Hunt, SearchMethod, register_search
from assay.evidence.search.corpus_mining import KINDS, SHOWN
from assay.records import Counterexample
from assay.statistics import clopper_pearson

ALPHA = 0.05
DRAWS = 19


@as_claimed
def find(hunt: Hunt) -> Found:
    """Non-members of a group of firing contexts that is not about the concept."""
    host = as_host(hunt.model)
    if not isinstance(hunt.setup, ScoreSetup) or hunt.setup.host is not None or not hasattr(hunt.data, "select"):
        return nothing("activations of single items cannot be read")
    fires = [row for row, score in enumerate(hunt.columns["score"]) if score is not None and score > hunt.setup.half]
    if len(fires) < 8 or hunt.budget < min(MOST, len(fires)):
        return nothing("fewer than 8 items fire, or more than the budget")
    fires = [fires[place] for place in np.random.default_rng([hunt.seed, 19]).permutation(len(fires))[:MOST]]
    acts = host.read(hunt.setup.site, hunt.data.select(fires)).double().numpy()
    split = split_in_two(acts, DRAWS, hunt.seed)
    if split is None:
        return nothing("the items that fire are all the same", len(fires))
    rates = [rate_of(hunt, fires, split, side) for side in (0, 1)]
    foreign = [side for side in (0, 1) if split.p <= ALPHA and rates[side]["high"] < 0.5]
    rows = [row for row, side in zip(fires, split.groups.tolist(), strict=True)
            if side in foreign and hunt.data.items[row].label == 0]  # fmt: skip
    rows.sort(key=lambda row: (-(hunt.columns["score"][row] or 0.0), row))
    kept, notes, passes = _shown(hunt, rows[: min(hunt.keep, SHOWN)])
    notes = {**notes, "silhouette": split.silhouette, "p": split.p, "groups": rates}
    return Found(len(fires), len(rows), tuple(kept), len(fires) + passes, notes=notes)


def rate_of(hunt: Hunt, fires: Sequence[int], split: Split, side: int) -> dict[str, Any]:
    """One group: its size, share of members with bounds, and the text that fires most in it."""
    rows = [row for row, group in zip(fires, split.groups.tolist(), strict=True) if group == side]
    members = sum(hunt.data.items[row].label for row in rows)
    low, high = clopper_pearson(members, len(rows))
    top = max(rows, key=lambda row: hunt.columns["score"][row] or 0.0, default=None)
    return {"n": len(rows), "members": members, "share": members / len(rows) if rows else None, "low": low, "high": high,
            "example": None if top is None else hunt.data.items[top].text}  # fmt: skip


def _shown(hunt: Hunt, rows: Sequence[int]) -> tuple[list[Counterexample], dict[str, Any], int]:
    """Items of the confirm split run again: by a reader where there is one, else as they are."""
    reader = reader_of(hunt)
    if reader is not None:
        found = [Candidate(hunt.data.items[row].text, tuple(hunt.data.tokens[row]), hunt.data.at[row], 0,
                           hunt.data.items[row].template, made=False) for row in rows]  # fmt: skip
        kept, notes = show(hunt, reader, found, "polysemy")
        return kept, notes, reader.passes
    kept = []
    for row in rows:
        again = host_score(hunt, row)
        item = hunt.data.items[row]
        kept.append(Counterexample(hunt.claim.id, item.text, "", item.template, "firing", again,
                                   f"at most {hunt.setup.half:.3g} (not a member)",
                                   "verified" if again > hunt.setup.half else "open", "polysemy"))  # fmt: skip
    return kept, {}, len(rows)


def host_score(hunt: Hunt, row: int) -> float:
    """The score of one item, read alone."""
    return float(hunt.setup.score(as_host(hunt.model).read(hunt.setup.site, hunt.data.select([row])))[0])


register_search(SearchMethod("polysemy", KINDS, find))
