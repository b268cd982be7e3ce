"""Can this model do this task? Asked before anything is looked for inside it.

1. Run the clean prompts; logit difference = logsumexp of the answers' logits - that of the foils'.
2. Accuracy is the share of prompts with a positive one; a tie is not right.
3. The interval of the mean is over templates, not prompts: `statistics.interval` of template means.

The mean is the mean of template means, so a template with more surviving pairs weighs no more.
"""

from typing import Any

from assay.data.prepare import PreparedTask
from assay.records import TaskSummary
from assay.statistics import cluster_means, interval


def measure_task(model: Any, prepared: PreparedTask, name: str = "") -> TaskSummary:
    """Accuracy and mean logit difference of a prepared task, with a 95% interval by template.

    Below two templates there is no interval: its bounds are NaN.
    """
    scores = model.score(prepared.clean, prepared.metric("logit_diff")).double()
    means = list(cluster_means(scores.tolist(), prepared.templates).values())
    low, high = interval(means)
    return TaskSummary(
        task=name,
        n_pairs=len(prepared),
        dropped=prepared.dropped,
        accuracy=float((scores > 0).double().mean()),
        logit_diff=sum(means) / len(means),
        low=float("nan") if low is None else low,
        high=float("nan") if high is None else high,
        n_templates=len(means),
    )
