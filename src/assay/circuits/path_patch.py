"""Path patching: what senders carry to receivers on the paths between them that are left open.

1. Base and source runs. `noise`: base clean, source corrupted; `denoise`: the other way round.
2. A run on the base prompt in which every sender puts out what it did in the source run. All other heads put out what they
   did in the base run (`freeze="heads"`: MLPs are recomputed, so paths through them are open; `freeze="all"`: MLPs
   are frozen too, only direct edges are open). Record what the receivers read: queries, keys, values, MLP inputs, the last
   stream.
3. A run on the base prompt with only these receivers replaced by what was recorded, everything else recomputed.
   noise: m(clean) - m(patched), denoise: m(patched) - m(corrupted); positive means the paths carry the behaviour.

(Wang et al. 2211.00593, who leave MLPs open; Goldowsky-Dill et al. 2304.05969.) With one sender, one receiver and
freeze="all" this is the exact edge of `exact.py`, by another way. Under grouped queries a key or a value belongs to all
query heads of its group: it is one receiver. Captures and patches only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from assay.circuits.exact import DIRECTIONS, node_site
from assay.circuits.graph import LOGITS, Graph, graph_of
from assay.circuits.guards import check_task
from assay.data.metrics import Metric
from assay.data.prepare import PreparedTask
from assay.errors import bad_argument
from assay.model.activations import Activations
from assay.model.edits import Edit, add, patch
from assay.model.model import Model
from assay.model.run import Checkpoint, Progress
from assay.sites import Site, parse_site

FREEZE = ("heads", "all")
Sites = str | Site | Sequence[str | Site]


@dataclass(frozen=True, eq=False)
class PathPatch:
    """What the open paths carry: `values` (pair,) in units of the metric, positive: the behaviour.

    `clean`, `corrupted`: the metric of the two runs (pair,).
    """

    plan: dict[str, Any]
    values: np.ndarray
    clean: np.ndarray
    corrupted: np.ndarray
    templates: list[str]


def path_patch(
    model: Model, task: PreparedTask, senders: Sites, receivers: Sites, *, direction: str = "noise",
    freeze: str = "heads", metric: str = "logit_diff", progress: Progress | None = None,
) -> PathPatch:  # fmt: skip
    """Patch the paths from senders (embed, z.L.H, mlp_out.L) to receivers (q.L.H, k.L.H, v.L.H, mlp_in.L, logits).

    `progress` is called with the number of pairs done. Raises UsageError for what is no sender or receiver, and for a
    sender or receiver without any partner that comes after, or before, it; TaskError for prompts refused by `guards.py`.
    """
    for name, got, allowed in (("direction", direction, DIRECTIONS), ("freeze", freeze, FREEZE)):
        if got not in allowed:
            raise bad_argument(name, got, " or ".join(allowed))
    check_task(model, task, metric)
    graph = graph_of(model)
    chosen = _Ends(graph, _listed(senders), _listed(receivers))
    bound = task.metric(metric, model.logits(task.clean) if metric == "kl" else None)
    clean, corrupted = (model.score(prompts, bound).double().numpy() for prompts in (task.clean, task.corrupted))
    base, source = (task.clean, task.corrupted) if direction == "noise" else (task.corrupted, task.clean)
    patched = np.zeros(len(task))
    for rows in model.batches(base):
        run = _Paths(model, chosen, freeze == "all", [base[row] for row in rows], [source[row] for row in rows])
        patched[rows] = run.score(bound.select(rows)).double().numpy()
        if progress:
            progress(len(rows))
    plan = {"model": model.name, "senders": [str(site) for site in chosen.senders], "direction": direction,
            "receivers": [str(site) for site in chosen.receivers], "freeze": freeze, "metric": metric}  # fmt: skip
    values = clean - patched if direction == "noise" else patched - corrupted
    return PathPatch(plan, values, clean, corrupted, task.templates)


def _listed(sites: Sites) -> list[Site]:
    return [parse_site(site) for site in ([sites] if isinstance(sites, str | Site) else sites)]


class _Ends:
    """Senders and receivers that fit together."""

    def __init__(self, graph: Graph, senders: list[Site], receivers: list[Site]) -> None:
        self.graph, self.senders, self.receivers = graph, senders, receivers
        kinds = (("senders", senders, graph.writer_number, "embed, z.L.H, mlp_out.L"),
                 ("receivers", receivers, graph.reader_number, "q.L.H, k.L.H, v.L.H, mlp_in.L, logits"))  # fmt: skip
        for argument, given, known, allowed in kinds:
            if not given:
                raise bad_argument(argument, "none", f"at least one of {allowed}")
            for site in given:
                if site not in known:
                    raise bad_argument(argument, str(site), f"those of this model: {allowed}")
        writers = torch.tensor([graph.writer_number[site] for site in senders])
        reached = graph.exists[writers][:, [graph.reader_number[site] for site in receivers]]
        for argument, given, alone in (("senders", senders, ~reached.any(1)), ("receivers", receivers, ~reached.any(0))):
            if bool(alone.any()):
                raise bad_argument(argument, str(given[int(alone.nonzero()[0])]), "senders that come before a receiver")

    @property
    def first(self) -> int:
        """The layer of the first sender."""
        return min(site.layer or 0 for site in self.senders)

    @property
    def last(self) -> int:
        """The layer up to which receivers are recorded."""
        return max(self.graph.n_layers - 1 if site.layer is None else site.layer for site in self.receivers)


class _Paths:
    """The four runs of some pairs."""

    def __init__(
        self, model: Model, ends: _Ends, freeze_all: bool, base: list[list[int]], source: list[list[int]]
    ) -> None:
        self.model, self.ends, self.prompts = model, ends, base
        kinds = ("z", "mlp_out") if freeze_all else ("z",)
        frozen = [Site(name, layer) for layer in range(ends.first, ends.last + 1) for name in kinds]
        sent = list(dict.fromkeys(node_site(sender) for sender in ends.senders))
        self.exchanged = list(dict.fromkeys([*frozen, *sent]))
        self.reading = list(dict.fromkeys(_read_at(model, receiver) for receiver in ends.receivers))
        self.start = min(site.layer or 0 for site in self.reading)
        start = [Site("resid_pre", self.start)]
        self.base = model.capture(base, list(dict.fromkeys([*self.exchanged, *self.reading, *start])))
        self.source = model.capture(source, sent)

    def score(self, metric: Metric) -> Tensor:
        """The metric with only the receivers replaced."""
        recorded = self.model.capture(self.prompts, self.reading, edits=[self._held(site) for site in self.exchanged])
        resume = None
        if self.start:
            resume = Checkpoint((self.start,), self.base, tuple(range(len(self.prompts))))
        edits = [self._replaced(receiver, recorded) for receiver in self.ends.receivers]
        return self.model.score(self.prompts, metric, edits=edits, resume=resume)

    def _held(self, site: Site) -> Edit:
        """A site with its senders' source values, and the base's for all others."""
        senders = [sender for sender in self.ends.senders if node_site(sender) == site]
        value = self.base[site]
        if senders and senders[0].index is None:
            value = self.source[site]
        elif senders:
            value = value.clone()
            heads = [sender.index for sender in senders]
            value[:, :, heads] = self.source[site][:, :, heads]
        return patch(site, value)

    def _replaced(self, receiver: Site, recorded: Activations) -> Edit:
        """A receiver replaced; logits get the change of their stream, on top of what other receivers change."""
        site = _read_at(self.model, receiver)
        if receiver == LOGITS:
            return add(site, recorded[site] - self.base[site])
        return patch(receiver, recorded[site] if receiver.index is None else recorded[site][:, :, receiver.index])


def _read_at(model: Model, receiver: Site) -> Site:
    return Site("resid_post", model.n_layers - 1) if receiver == LOGITS else receiver.whole
