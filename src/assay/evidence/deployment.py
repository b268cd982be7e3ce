"""Deployment arithmetic: what a recall and a false-alarm rate come to where the thing watched for is rare.

Of texts at a given prevalence, Bayes' rule gives the share of alarms that are right. A monitor with recall .95 and a
false-alarm rate of .01 is right in half of its alarms at a prevalence of 1 in 100, and in 1 of 100 at 1 in 10,000.

Assumes that recall and false-alarm rate are those measured; a shift of the population changes both.
"""

from collections.abc import Sequence

from assay.errors import bad_argument

PREVALENCES = (0.1, 0.01, 0.001, 0.0001)


def precision_at(prevalence: float, recall: float, false_alarms: float) -> float:
    """Share of alarms that are right; 0 when there are none. Raises UsageError for rates outside 0 to 1."""
    for name, rate in (("prevalence", prevalence), ("recall", recall), ("false_alarms", false_alarms)):
        if not 0 <= rate <= 1:
            raise bad_argument(name, rate, "0 to 1")
    right = prevalence * recall
    wrong = (1 - prevalence) * false_alarms
    return right / (right + wrong) if right + wrong > 0 else 0.0


def alarms_per_hit(prevalence: float, recall: float, false_alarms: float) -> float | None:
    """Alarms that somebody has to look at per right one; None when none is right."""
    precision = precision_at(prevalence, recall, false_alarms)
    return 1 / precision if precision else None


def precision_table(recall: float, false_alarms: float, prevalences: Sequence[float] = PREVALENCES) -> dict[str, float]:
    """Prevalence -> share of alarms that are right."""
    return {f"{prevalence:g}": precision_at(prevalence, recall, false_alarms) for prevalence in prevalences}
