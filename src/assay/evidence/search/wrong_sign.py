"""Wrong signs: confirm pairs on which ablating does not lower the metric, or restoring does not raise it.

1. Every confirm pair counts once, with the worse of its two effects.
2. The worst are measured again, alone; those that fail again are *verified*. They are shown token by token, the first of them
   shortened as far as they still fail.

A mean effect can hide prompts on which the claim is wrong; this shows how many there are, and which.
"""

from collections.abc import Mapping, Sequence

from assay.data.prepare import PreparedTask
from assay.evidence.hunting.pairs import MINIMISED, shown_pair
from assay.evidence.mediates import both_ways, recheck
from assay.evidence.search.base import Found, Hunt, SearchMethod, register_search
from assay.records import Counterexample

PROMPTS = 4  # run per pair: two plain, one ablated, one restored


def find(hunt: Hunt) -> Found:
    """Failing pairs of the confirm split."""
    found = wrong_sign_pairs(hunt.columns)
    rows = [row for row, _, _ in found[: hunt.keep]]
    again = recheck(hunt.model, hunt.data, rows, hunt.setup, hunt.columns) if rows else []
    kept, cuts = [], 0
    for (row, gate, score), same in zip(found, again, strict=False):
        pair, shorten = hunt.data.pairs[row], same and len(kept) < MINIMISED
        shown = shown_pair(hunt, hunt.data, row, (lambda task: failing(hunt, task)) if shorten else None)
        cuts += shown.measured
        kept.append(Counterexample(hunt.claim.id, pair.clean, pair.corrupted, pair.template, gate, score, "above 0",
                                   "verified" if same else "open", "wrong sign", shown.tokens, shown.minimal))  # fmt: skip
    failed = tuple(row for row, _, _ in found)
    return Found(len(hunt.data), len(found), tuple(kept), PROMPTS * (len(rows) + cuts), failed=failed)


def failing(hunt: Hunt, task: PreparedTask) -> list[bool]:
    """Which pairs of a task go the wrong way."""
    wrong = {row for row, _, _ in wrong_sign_pairs(both_ways(hunt.model, task, range(len(task)), hunt.setup))}
    return [row in wrong for row in range(len(task))]


def wrong_sign_pairs(columns: Mapping[str, Sequence[float | None]]) -> list[tuple[int, str, float]]:
    """(row, gate, effect) of pairs whose ablation does not lower or restoring does not raise the
    metric, worst first; one line per pair, with the worse of its two effects."""
    found = []
    clean, ablated = columns["clean"], columns["ablated.resample"]
    corrupted, restored = columns["corrupted"], columns["restored"]
    for row, values in enumerate(zip(clean, ablated, corrupted, restored, strict=True)):
        if any(value is None for value in values):
            continue
        whole, without, broken, back = (float(value) for value in values if value is not None)
        effect, gate = min((whole - without, "necessity.resample"), (back - broken, "sufficiency"))
        if effect <= 0:
            found.append((row, gate, effect))
    return sorted(found, key=lambda item: item[2])


register_search(SearchMethod("wrong sign", ("mediates",), find, sampled=True, required=True))
