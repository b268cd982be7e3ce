"""What arrives at a reader by one edge, without asking what becomes of it.

1. Base and source run of a pair as in `exact.py` (`noise`: base clean, source corrupted; `denoise`: the other way round).
   r: what the reader reads in the base run, r': in the source run, r_u: in the base run with what writer u adds there
   exchanged for its source value, in this reader alone. All three come from streams, through the reader's own norm and
   projection: a query, key or value, an MLP's input; of the logits the last stream.

       change  = |r' - r|^2                   carried = (r_u - r) . (r' - r)                    sums over positions

   carried / change is the share of what changes in the reader that comes in by the edge. Without norms the shares of all
   writers add up to 1; a negative one works against the change.
2. `other`: the same with u's value from another pair's base run. Partners have the same template and length where there
   are such; prompts of other lengths are aligned at their ends, and only positions from the first difference on are
   exchanged, as in the pair's own exchange.
3. `whole`: u exchanged for all its readers, what lies in between recomputed; read where the edge arrives.

Nothing after the reader is run: that it reads something does not mean that anything depends on it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from assay.circuits.exact import Exchange, PairRuns
from assay.circuits.graph import LOGITS, Edge
from assay.circuits.patch import first_difference
from assay.data.prepare import PreparedTask
from assay.model.edits import patch
from assay.model.model import Model
from assay.sites import Site

Columns = Float[Tensor, " pair"]


@dataclass(frozen=True, eq=False)
class EdgeReading:
    """One edge on every pair (pair,), in squared units of what the reader reads."""

    carried: Columns
    change: Columns
    other: Columns
    whole: Columns

    @property
    def share(self) -> float:
        """Of what changes in the reader, over all pairs; 0 where nothing changes."""
        total = float(self.change.sum())
        return float(self.carried.sum()) / total if total > 0 else 0.0


def read_edge(model: Model, task: PreparedTask, edge: str | Edge, direction: str = "noise") -> EdgeReading:
    """What arrives by an edge. Raises UsageError for what is no edge or direction, SiteError for a model without a graph."""
    run = Exchange(model, task, direction, "logit_diff")
    writer, reader = run.graph.edge(edge)
    reading = _Reading(run, run.graph.writers[writer], run.graph.readers[reader], partners(task, run.base))
    parts = [reading.batch(rows) for rows in model.batches(run.base)]
    order = torch.tensor([row for rows in model.batches(run.base) for row in rows]).argsort()
    return EdgeReading(*(torch.cat(column)[order] for column in zip(*parts, strict=True)))


def partners(task: PreparedTask, prompts: Sequence[list[int]]) -> list[int]:
    """For every pair another whose prompt differs: the next of its template and length, else of its length, else any; itself
    where all prompts are the same."""
    n = len(task)
    found = []
    for row in range(n):
        others = [(row + step) % n for step in range(1, n) if prompts[(row + step) % n] != prompts[row]]
        long = [other for other in others if len(prompts[other]) == len(prompts[row])]
        near = [other for other in long if task.templates[other] == task.templates[row]]
        found.append((near or long or others or [row])[0])
    return found


class _Reading:
    """One edge of one task."""

    def __init__(self, run: Exchange, writer: Site, reader: Site, partner: Sequence[int]) -> None:
        self.run, self.writer, self.reader, self.partner = run, writer, reader, partner
        self.first = [first_difference(a, b) for a, b in zip(run.base, run.source, strict=True)]

    @torch.no_grad()
    def batch(self, rows: list[int]) -> tuple[Columns, ...]:
        """(carried, change, other, whole) of some pairs."""
        run, reader = self.run, self.reader
        runs = PairRuns(run, rows, [reader, self.writer], [self.writer, self.writer])
        stream = run.readers.stream(reader)
        site, value = runs.node(self.writer)
        source = runs.capture(runs.of(run.source), [stream])[stream]
        whole = runs.capture(runs.of(run.base), [stream], [patch(site, value)])[stream]
        before = runs.base[stream]
        own = runs.read(reader, before).double()
        real = self._real(rows, own)

        def moved(after: Tensor) -> Tensor:
            return (runs.read(reader, after.to(before.dtype)).double() - own) * real

        change = moved(source)
        by = [moved(before.float() + runs.change(self.writer, other)) for other in (None, self._other(runs, rows))]
        return tuple((part * change).flatten(1).sum(1).cpu() for part in (by[0], change, by[1], moved(whole)))

    def _real(self, rows: Sequence[int], like: Tensor) -> Tensor:
        """1 where there is a token, as (pair, pos, 1); 1 for the logits."""
        if self.reader == LOGITS:
            return torch.ones_like(like[:, :1])
        lengths = torch.tensor([len(self.run.base[row]) for row in rows])
        return (torch.arange(like.shape[1]) < lengths[:, None])[..., None].to(like)

    def _other(self, runs: PairRuns, rows: Sequence[int]) -> Tensor:
        """The writer's values with those of the partners' base runs, aligned at their ends, from the first difference on."""
        site = runs.blocks[self.writer].site
        out = runs.base[site].clone()
        given = runs.capture([self.run.base[self.partner[row]] for row in rows], [site])
        for place, (row, values) in enumerate(zip(rows, given.rows(site), strict=True)):
            n, shift = len(self.run.base[row]), len(values) - len(self.run.base[row])
            start = max(self.first[row], -shift)
            out[place, start:n] = values[start + shift :].to(out)
        return out
