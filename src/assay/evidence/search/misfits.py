"""Misfits: confirm examples that fire without being members, and members that stay silent.

1. A non-member fires when its score passes the threshold that half of the members pass on tune.
2. A member is silent when its score stays below the threshold that one in twenty non-members passes.
3. The worst are read again, alone; those that misfit again are *verified*.
"""

from assay.evidence.hosts import as_host
from assay.evidence.search.base import Found, Hunt, SearchMethod, register_search
from assay.records import Counterexample

KINDS = ("represents", "decodes", "explains", "detects")


def find(hunt: Hunt) -> Found:
    """Misfits of the confirm split, the furthest beyond their threshold first."""
    half, strict = hunt.setup.half, hunt.setup.strict
    misfits = []
    for row, (example, score) in enumerate(zip(hunt.data.items, hunt.columns["score"], strict=True)):
        if score is None:
            continue
        beyond = score - half if example.label == 0 else strict - score
        if beyond > 0:
            misfits.append((beyond, row))
    misfits.sort(reverse=True)
    worst = [row for _, row in misfits[: hunt.keep]]
    again = _scores_again(hunt, worst) if worst else []
    kept = []
    for row, score in zip(worst, again, strict=True):
        example = hunt.data.items[row]
        member = example.label == 1
        fails = score <= strict if member else score > half
        expected = f"above {strict:.3g} (member)" if member else f"at most {half:.3g} (not a member)"
        kept.append(Counterexample(hunt.claim.id, example.text, "", example.template, "sensitivity" if member else "firing",
                                   score, expected, "verified" if fails else "open", "misfits"))  # fmt: skip
    return Found(len(hunt.data), len(misfits), tuple(kept), len(worst))


def _scores_again(hunt: Hunt, rows: list[int]) -> list[float]:
    host = as_host(hunt.model)
    return [float(hunt.setup.score(host.read(hunt.setup.site, hunt.data.select([row])))[0]) for row in rows]


register_search(SearchMethod("misfits", KINDS, find, sampled=True, required=True))
