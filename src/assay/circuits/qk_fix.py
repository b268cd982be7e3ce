"""Node attribution with queries and keys put through the softmax (the QK fix of AtP*, Kramar et al. 2403.00745).

Where attention is saturated, the slope of the softmax is about zero and says that a query does not matter, although
exchanging it moves the whole pattern. So

1. every node is scored by attribution patching (`attribute`, method eap, level node);
2. queries and keys are then scored anew, with A the attention pattern of the base run and A(q') that of the same run
   when the head's query is replaced by the other run's, at all positions:

       query of a head      sum over its pattern (query position, key position)  [A(clean) - A(corrupted)] . dm/dA
       key of a KV head     the same with its key replaced, summed over the query heads that share it

   base run = clean (direction noise): A(clean) = A, A(corrupted) = A(q'). base run = corrupted (denoise): the other way
   round. dm/dA at the base run. Positive: it carries the behaviour.
3. A(q') and A(k') of all layers come from one pass of three copies of a prompt: in the second copy queries are replaced,
   in the third keys, and after the pattern their head outputs are set back to those of the first. The kernel is the
   model's own; all heads are replaced at once, because a head's pattern depends on its own query and key only.

The softmax is exact; what follows it is still linear: dm/dA is a slope at the base run, so a query whose head feeds a
later saturated query is still missed (default model, IOI, 5 pairs: q.24.4 exact -3.00, linear -6.45, here -3.36; but
q.17.4 exact 2.59, linear .30, here .07). Keys of all positions are replaced
together, as a patch of the node does, not position by position as in the paper. GradDrop is not part of this: it is an
option of one-gradient attribution (`attribute.py`, `grad_drop`).
Memory: some pairs and some layers at a time, so that patterns and their slopes stay within the model's memory budget.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from assay.circuits.attribute import Attribution, AttributionPlan, attribute, nodes_of
from assay.circuits.graph import Graph
from assay.data.metrics import Metric
from assay.data.prepare import PreparedTask
from assay.model.activations import Activations
from assay.model.model import Model
from assay.model.run import Progress
from assay.sites import Site

METHOD = "qk-fix"
COPIES = 3  # of a prompt: as it is, with other queries, with other keys
KEPT = 10  # tensors of a pattern's size that are held per layer and pair


def qk_fix(
    model: Model, task: PreparedTask, *, direction: str = "noise", metric: str = "logit_diff",
    progress: Progress | None = None,
) -> Attribution:  # fmt: skip
    """Scores of all nodes, queries and keys through the softmax. `progress` is called with the number of pairs done.

    `residual` is that of the one gradient, as for eap. `cancelled` of queries and keys counts query positions as terms.
    Raises what `attribute` raises, and SiteError for a model whose attention patterns are not seen.
    """
    patterns = [Site("pattern", layer) for layer in range(model.n_layers)]
    model.sites(patterns)
    found = attribute(model, task, AttributionPlan("eap", "node", direction, metric))
    fix = _Fix(model, task, found.graph, direction, metric)
    for rows, layers in fix.parts():
        fix.part(rows, layers)
        if progress and layers[-1] == model.n_layers - 1:
            progress(len(rows))
    return fix.into(found)


class _Fix:
    """Queries and keys of one task."""

    def __init__(self, model: Model, task: PreparedTask, graph: Graph, direction: str, metric: str) -> None:
        self.model, self.task, self.graph = model, task, graph
        self.sign = 1.0 if direction == "noise" else -1.0
        sides = (task.clean, task.corrupted)
        self.base, self.source = sides if direction == "noise" else sides[::-1]
        self.metric: Metric = task.metric(metric, model.logits(task.clean) if metric == "kl" else None)
        heads, kv_heads = graph.n_heads, graph.n_kv_heads
        shape = {"q": (len(task), model.n_layers, heads), "k": (len(task), model.n_layers, kv_heads)}
        self.values = {name: torch.zeros(shape[name]) for name in "qk"}
        self.absolute = {name: torch.zeros(shape[name][1:]) for name in "qk"}

    def parts(self) -> Iterator[tuple[list[int], list[int]]]:
        """(pairs, layers) whose patterns fit the memory budget together."""
        longest, every = max(map(len, self.base)), list(range(self.model.n_layers))
        fit = max(1, self.model.memory_budget // (4 * KEPT * self.graph.n_heads * longest * longest))
        step = min(fit, len(every))
        for rows in self.model.batches(self.base, gradients=True, tokens=max(1, fit // len(every)) * longest):
            for start in range(0, len(every), step):
                yield rows, every[start : start + step]

    def part(self, rows: list[int], layers: list[int]) -> None:
        """Some layers of some pairs."""
        base, source = ([side[row] for row in rows] for side in (self.base, self.source))
        patterns = [Site("pattern", layer) for layer in layers]
        slopes, _, _ = self.model.gradients(base, patterns, self.metric.select(rows))
        other = self.model.capture(source, [Site(name, layer) for layer in layers for name in "qk"])
        n = len(rows)
        real = torch.tensor([len(ids) for ids in base])[:, None] > torch.arange(max(map(len, base)))  # (pair, pos)

        def visit(site: Site, value: Tensor) -> Tensor | None:
            if site.name == "pattern":
                self._score(site, value, slopes, rows, real)
                return None
            out = value.clone()
            if site.name == "z":
                out[n:] = value[:n].repeat(COPIES - 1, 1, 1, 1)
            else:
                copy = 1 if site.name == "q" else 2
                out[copy * n : (copy + 1) * n] = other[site].to(value)
            return out

        self.model.walk(base * COPIES, [Site(name, layer) for layer in layers for name in ("q", "k", "pattern", "z")], visit)

    def _score(
        self, site: Site, pattern: Float[Tensor, "row query head key"], slopes: Activations, rows: Sequence[int], real: Tensor
    ) -> None:
        n, layer = len(rows), site.layer
        slope = slopes[site].transpose(1, 2).float()  # (pair, query, head, key)
        for copy, name in ((1, "q"), (2, "k")):
            change = (pattern[:n] - pattern[copy * n : (copy + 1) * n]).float().cpu()
            terms = self.sign * (change * slope).sum(-1) * real[..., None]  # (pair, query, head)
            terms = terms.unflatten(-1, (self.values[name].shape[-1], -1)).sum(-1)  # heads that share a key
            self.values[name][list(rows), layer] = terms.sum(1)
            self.absolute[name][layer] += terms.abs().sum((0, 1))

    def into(self, found: Attribution) -> Attribution:
        """The attribution with its queries and keys exchanged for these."""
        number = {site: place for place, site in enumerate(nodes_of(self.graph))}
        assert found.sizes is not None
        values, cancelled, sizes = found.values.clone(), found.cancelled.clone(), found.sizes.clone()
        for name in "qk":
            n_heads = self.values[name].shape[-1]
            cells = [number[Site(name, layer, head)] for layer in range(self.model.n_layers) for head in range(n_heads)]
            each, absolute = self.values[name].flatten(1), self.absolute[name].flatten()
            values[:, cells] = each
            sizes[cells] = absolute / len(each)
            cancelled[cells] = (1 - each.sum(0).abs() / absolute.clamp_min(1e-30)).clamp(0, 1)
        return replace(found, plan={**found.plan, "method": METHOD}, values=values, cancelled=cancelled, sizes=sizes)
