"""Information flow: how much of what a reader reads came from each writer (Ferrando & Voita 2403.00824).

1. One pass of the prompts: no corrupted run, no gradient, no metric.
2. At one token let r be the residual stream in front of reader v's norm, and z_u what writer u added to it. Then

       closeness(u, v) = max(0, |r|_1 - |r - z_u|_1)          how much nearer u alone brings the stream
       share(u, v)     = closeness(u, v) / sum over writers of closeness

   A writer that points against the stream has share 0, and so has every writer where none brings it nearer.
3. Heads add z_h W_O[h], through the norm behind attention with its divisor as it was in the run, where there is one. The
   heads' parts and the output bias sum to attn_out; biases belong to no writer and get no share.
4. Mean over tokens: queries, keys, values and MLPs read at every position, and every token of a prompt counts the same,
   its first one (often BOS, an attention sink) included. The logits are read at the last token only. Values are per prompt;
   `scores` is the mean over prompts, each counting the same whatever its length.

What it does not say: whether a reader uses what it reads. Readers of one layer behind one norm have the same shares,
positions that attention never looks at count as much as others, and a share has no sign and no task in it.
Memory: tokens are expanded to (writer, d_model) some at a time; nothing grows with the number of prompts but the scores.
"""

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from assay.circuits.attribute import Attribution, AttributionPlan
from assay.circuits.graph import LOGITS, Graph, graph_of
from assay.circuits.writers import Block, Writers
from assay.data.prepare import PreparedTask
from assay.model.model import Model, Prompts
from assay.model.run import Progress
from assay.sites import Site

METHOD = "flow"
TOKEN_FLOATS = 1 << 22  # of expanded writers at once
STREAMS_AT_ONCE = 8
ENTRY = Site("resid_pre", 0)
Values = dict[Site, Tensor]


def flow(model: Model, prompts: PreparedTask | Prompts, *, progress: Progress | None = None) -> Attribution:
    """Shares of all edges: of a task's clean prompts, or of any prompts. `progress` is called with the prompts done.

    In the result, `clean`, `corrupted` and `residual` are NaN (no metric was read and nothing has to add up), `steps` is
    0, and `cancelled` is 0 (shares have no sign). Without a task every prompt is a template of its own.
    Raises SiteError for a model whose edges cannot be told apart.
    """
    task = prompts if isinstance(prompts, PreparedTask) else None
    tokens = model.tokens(prompts if task is None else task.clean)  # type: ignore[arg-type]
    run = _Flow(model)
    values = torch.zeros(len(tokens), run.graph.n_edges)
    for rows in model.batches(tokens, tokens=run.tokens_per_pass):
        values[rows] = run.pairs([tokens[row] for row in rows])
        if progress:
            progress(len(rows))
    plan = {"model": model.name, **asdict(AttributionPlan(METHOD, direction="none", metric="none", steps=0))}
    unknown = np.full(len(tokens), np.nan)
    templates = [str(number) for number in range(len(tokens))] if task is None else task.templates
    return Attribution(plan, run.graph, values, unknown, unknown.copy(), np.zeros(len(tokens), dtype=int), unknown.copy(),
                       torch.zeros(run.graph.n_edges), templates)  # fmt: skip


def shares(
    streams: Float[Tensor, "t stream d"], written: Float[Tensor, "t writer d"], exists: Bool[Tensor, "writer stream"]
) -> Float[Tensor, "t writer stream"]:
    """Step 2 for some tokens; writers that a stream does not hold get 0."""
    nearer = streams.abs().sum(-1)[:, None] - torch.cdist(written, streams, p=1)
    nearer = nearer.clamp_min(0) * exists
    return nearer / nearer.sum(1, keepdim=True).clamp_min(1e-30)


class _Flow:
    """One model: where its writers and streams are read."""

    def __init__(self, model: Model) -> None:
        self.model, self.graph, self.readers = model, graph_of(model), model.readers()
        self.writers = Writers(model, self.readers)
        outputs = [Site(name, layer) for layer in range(model.n_layers) for name in ("z", "mlp_out")]
        self.blocks = list(zip([ENTRY, *outputs], self.writers.blocks, strict=True))
        self.streams = list(dict.fromkeys(self.readers.stream(reader) for reader in self.graph.readers))
        self.n_held = _held(self.graph, self.streams, [self.readers.stream(reader) for reader in self.graph.readers])
        kept = len(self.blocks) + len(self.streams)
        self.tokens_per_pass = max(1, model.memory_budget // 4 // (4 * kept * model.dims.d_model))
        self.sites = list(dict.fromkeys([*self.streams, *(site for site, _ in self.blocks), *self._divisors]))

    @property
    def _divisors(self) -> list[Site]:
        """Inputs of norms behind attention."""
        return [block.raw for _, block in self.blocks if block.weight is not None and block.raw is not None]

    @torch.no_grad()
    def pairs(self, prompts: list[list[int]]) -> Float[Tensor, "prompt edge"]:
        """Mean shares of these prompts, from one pass."""
        values: Values = {}

        def visit(site: Site, value: Tensor) -> None:
            values[site] = value.detach().clone()

        self.model.walk(prompts, self.sites, visit)
        lengths = torch.tensor([len(ids) for ids in prompts])
        row, place = (lengths[:, None] > torch.arange(int(lengths.max()))).nonzero(as_tuple=True)
        found = torch.zeros(2, len(prompts), self.writers.n, len(self.streams))
        step = max(1, TOKEN_FLOATS // (self.writers.n * self.writers.d_model))
        for start in range(0, len(row), step):
            r, p = row[start : start + step], place[start : start + step]
            each = self._tokens({site: x[r.to(x.device), p.to(x.device)].float() for site, x in values.items()}).cpu()
            found[0].index_add_(0, r, each)
            ends = p == lengths[r] - 1
            found[1].index_add_(0, r[ends], each[ends])
        return self._edges(found[0] / lengths[:, None, None], found[1])

    def _tokens(self, values: Values) -> Float[Tensor, "t writer stream"]:
        """Shares at some tokens."""
        like = values[ENTRY]
        written = torch.empty(len(like), self.writers.n, self.writers.d_model, device=like.device)
        for site, block in self.blocks:
            written[:, block.slice] = _added(block, values[site], values)
        out = torch.zeros(len(like), self.writers.n, len(self.streams), device=like.device)
        for start in range(0, len(self.streams), STREAMS_AT_ONCE):
            part = slice(start, start + STREAMS_AT_ONCE)
            held = self.n_held[part].to(like.device)
            last = int(held.max())
            streams = torch.stack([values[site] for site in self.streams[part]], 1)
            exists = torch.arange(last, device=like.device)[:, None] < held
            out[:, :last, part] = shares(streams, written[:, :last], exists)
        return out

    def _edges(self, everywhere: Tensor, at_end: Tensor) -> Float[Tensor, "prompt edge"]:
        """From streams to readers: logits at the end, all others everywhere."""
        stream = torch.tensor([self.streams.index(self.readers.stream(reader)) for reader in self.graph.readers])
        writer, reader = self.graph.cells.unbind(1)
        is_end = torch.tensor([site == LOGITS for site in self.graph.readers])[reader]
        return torch.where(is_end, at_end[:, writer, stream[reader]], everywhere[:, writer, stream[reader]])


def _held(graph: Graph, streams: Sequence[Site], of_reader: Sequence[Site]) -> Tensor:
    """How many writers, in order, each stream holds."""
    counts = graph.exists.sum(0)
    return torch.tensor([int(counts[of_reader.index(stream)]) for stream in streams])


def _added(block: Block, output: Tensor, values: Values) -> Float[Tensor, "t n d_model"]:
    """What the block's writers add to the stream in this run."""
    if block.weight is None:
        return output[:, None]
    parts = block.before_norm(output)
    if block.norm is not None:
        assert block.raw is not None
        inverse = block.norm.at(values[block.raw])[1]
        parts = block.norm.centre(parts) * block.norm.gain * inverse[:, None, None]
    return parts * block.scale
