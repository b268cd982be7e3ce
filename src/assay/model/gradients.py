"""Gradients of a metric with respect to activations at sites.

1. Parameters are frozen, so nothing before the earliest asked site builds a graph.
2. At each asked site the value becomes a leaf unless it already depends on an earlier one. The pass
   goes on with a copy of it, because some families write into their tensors in place.
3. resid_mid is read on the MLP's branch only, so its gradient is taken at attn_out: both add to the
   same sum, and the gradient of a sum is that of each term.
4. One backward pass of the summed metric; prompts do not mix, so each row is its own gradient.

Which gradient: total (through everything downstream of the site), at the point of the actual run.
"""

from dataclasses import replace
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
    sources = {site: _source(site) for site in request.captures}
    leaves = tuple(dict.fromkeys(sources.values()))
    inner = replace(request, captures=(*leaves, *(site for site in sources if site not in leaves)))
    with engine.exclusive(), torch.enable_grad():
        for batch in engine.batches(inner):
            held: dict[Site, Tensor] = {}
            logits = engine.run(batch, inner, _leaf_maker(held, leaves))
            assert logits is not None
            metrics = check_metric(metric(logits[:, 0].float(), batch.rows), len(batch.rows))
            if not metrics.requires_grad:
                raise UsageError(f"the metric does not depend on {', '.join(map(str, held))}:"
                                 " there is no gradient to take.")  # fmt: skip
            found = torch.autograd.grad(metrics.sum(), [held[site] for site in leaves], allow_unused=True)
            grads = dict(zip(leaves, found, strict=True))
            rows = batch.rows.cpu()
            scores[rows] = metrics.detach().cpu()
            for site, source in sources.items():
                slope = grads[source]
                values.write(site, held[site], rows, None)
                slopes.write(site, torch.zeros_like(held[site]) if slope is None else slope, rows, None)
            if progress:
                progress(len(batch.rows))
    return slopes.done(request.captures), values.done(request.captures), scores


def _source(site: Site) -> Site:
    """Where the gradient of a site is taken."""
    return Site("attn_out", site.layer) if site.name == "resid_mid" else site


def _leaf_maker(held: dict[Site, Tensor], leaves: tuple[Site, ...]) -> Any:
    def sink(site: Site, value: Tensor) -> Tensor | None:
        if site not in leaves:
            held[site] = value.detach().clone()
            return None
        held[site] = value.clone() if value.requires_grad else value.detach().clone().requires_grad_(True)
        return held[site].clone()

    return sink
