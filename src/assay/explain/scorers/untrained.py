"""What a score is worth: beside it, the same scorer with other features' explanations and with an untrained model.

1. The untrained model (`assay.model.untrained`) is read with the same units on the same rows; its features are sampled,
   explained and scored the same way. Explanations of random transformers often score as well as those of trained ones (Heap et
   al. 2025, arXiv 2501.17727), so a score that is no better says nothing about what training made.
2. Summaries are means over features with Student's t intervals; what could not be scored is in `skipped`, not in the mean.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from assay.explain.records import Cost, Score
from assay.explain.scorers.intervals import mean_of


@dataclass(frozen=True)
class Summary:
    """Of one scorer over features. `shuffled` and `untrained`: means over the features that have them, None without."""

    scorer: str
    features: int
    value: float
    low: float | None
    high: float | None
    chance: float
    shuffled: float | None
    untrained: float | None
    asked: int
    failed: int
    cost: Cost

    def json(self) -> dict[str, Any]:
        """As plain values."""
        cost = {name: getattr(self.cost, name) for name in ("calls", "prompt_tokens", "reply_tokens", "money")}
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ("scorer", "cost")}
        return {**plain, "cost": cost}


def summarise(scores: Iterable[Score], untrained: Iterable[Score] = ()) -> Mapping[str, Summary]:
    """Means by scorer. The untrained model's mean is over all of its features that were scored, whatever their names."""
    groups, twins = _by_scorer(scores), _by_scorer(untrained)
    return {name: _summary(name, group, [twin.value for twin in twins.get(name, [])]) for name, group in groups.items()}


def _by_scorer(scores: Iterable[Score]) -> dict[str, list[Score]]:
    groups: dict[str, list[Score]] = {}
    for score in scores:
        groups.setdefault(score.scorer, []).append(score)
    return groups


def _summary(name: str, group: Sequence[Score], twins: Sequence[float]) -> Summary:
    value, low, high = mean_of([score.value for score in group])
    shuffled = [score.shuffled for score in group if score.shuffled is not None]
    known = twins or [score.untrained for score in group if score.untrained is not None]
    cost = Cost()
    for score in group:
        cost = cost.plus(score.cost)
    return Summary(name, len(group), value, low, high, group[0].chance, mean_of(shuffled)[0] if shuffled else None,
                   mean_of(known)[0] if known else None, sum(score.n for score in group), sum(score.failed for score in group),
                   cost)  # fmt: skip
