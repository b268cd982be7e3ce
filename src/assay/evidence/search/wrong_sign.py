"""Wrong signs: confirm pairs on which ablating does not lower the metric, or restoring does not raise it.

1. Every confirm pair counts once, with the worse of its two effects.
2. The worst are measured again, alone; those that fail again are *verified*.

A mean effect can hide prompts on which the claim is wrong; this shows how many there are, and which.
"""

from collections.abc import Mapping, Sequence

from assay.evidence.mediates import recheck
from assay.evidence.search.base import Found, Hunt, SearchMethod, register_search
from assay.records import Counterexample


def find(hunt: Hunt) -> Found:
    """Failing pairs of the confirm split."""
    found = wrong_sign_pairs(hunt.columns)
    rows = [row for row, _, _ in found[: hunt.keep]]
    again = recheck(hunt.model, hunt.data, rows, hunt.setup, hunt.columns) if rows else []
    kept = []
    for (row, gate, score), same in zip(found, again, strict=False):
        pair = hunt.data.pairs[row]
        kept.append(Counterexample(hunt.claim.id, pair.clean, pair.corrupted, pair.template, gate, score, "above 0",
                                   "verified" if same else "open", "wrong sign"))  # fmt: skip
    return Found(len(hunt.data), len(found), tuple(kept), 4 * len(rows))


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
