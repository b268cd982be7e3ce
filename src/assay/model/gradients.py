"""Gradients of a metric with respect to activations at sites.

1. Parameters are frozen, so nothing before the earliest asked site builds a graph.
2. At each asked site the value becomes a leaf unless it already depends on an earlier one.
3. One backward pass of the summed metric; prompts do not mix, so each row is its own gradient.

Which gradient: total (through everything downstream of the site), at the point of the actual run.
"""

from typing import Any

import torch
from torch import Tensor

from assay.errors import UsageError
from assay.model.activations import Activations, Collector
from assay.model.run import Engine, Metric, Progress, Request, check_metric
from assay.sites import Site


def gradients(
    engine: Engine, request: Request, metric: Metric, progress: Progress | None = None
) -> tuple[Activations, Activations, Tensor]:
    """d metric / d site for every prompt and position, the values there, and the metric (n,)."""
    lengths = [len(tokens) for tokens in request.tokens]
    slopes, values = (Collector(lengths, max(lengths), "cpu") for _ in range(2))
    scores = torch.empty(len(lengths))
    with engine.exclusive(), torch.enable_grad():
        for batch in engine.batches(request):
            held: dict[Site, Tensor] = {}
            logits = engine.run(batch, request, _leaf_maker(held))
            assert logits is not None
            metrics = check_metric(metric(logits[:, 0].float(), batch.rows), len(batch.rows))
            if not metrics.requires_grad:
                raise UsageError(f"the metric does not depend on {', '.join(map(str, held))}:"
                                 " there is no gradient to take.")  # fmt: skip
            grads = torch.autograd.grad(metrics.sum(), list(held.values()), allow_unused=True)
            rows = batch.rows.cpu()
            scores[rows] = metrics.detach().cpu()
            for (site, value), slope in zip(held.items(), grads, strict=True):
                values.write(site, value, rows, None)
                slopes.write(site, torch.zeros_like(value) if slope is None else slope, rows, None)
            if progress:
                progress(len(batch.rows))
    return slopes.done(), values.done(), scores


def _leaf_maker(held: dict[Site, Tensor]) -> Any:
    def sink(site: Site, value: Tensor) -> Tensor | None:
        if value.requires_grad:
            value = value.clone()  # its own node, whatever is written in place later
        else:
            value = value.detach().clone().requires_grad_(True)
        held[site] = value
        return value

    return sink
