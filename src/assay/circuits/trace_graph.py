"""Attribution graphs: nodes of one prompt, the direct effect of every node on every later one, and what follows from them.

1. Nodes, in the order they run: embeddings (one per token), then layer by layer the active latents and the errors (one per
   token), then logits. `effects[t, s]` is what s adds to t, with everything between them held linear; it is 0 unless s runs
   before t. Errors and embeddings are sources only.
2. Influence.  A' = |effects|, each row divided by its sum.  I = w (A' + A'^2 + ..), w the probabilities of the logits: a
   finite sum, because the graph has no cycles.
3. replacement = I of embeddings / (I of embeddings + I of errors): how much of what reaches the logits comes through latents.
   completeness = mean over nodes, weighted by I + w, of the share of a node's inputs that are no errors; sources, which have
   no inputs, count as 1.
4. Pruning: nodes that together have `nodes` of the influence, embeddings and logits always; then edges that together have
   `edges` of the edge influence A'[t, s] (I + w)[t], made anew from what is left; then, repeatedly, whatever has no edge out
   or, being a latent, none in.

Definitions: Ameisen et al. 2025 (Circuit Tracing), as in its public implementation.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from assay.errors import bad_argument

KINDS = ("embed", "latent", "error", "logit")
NODES, EDGES = 0.8, 0.98  # shares that pruning keeps
ROWS = 1024
SIMILAR = 0.7  # cosine from which latents are proposed as one group


@dataclass(frozen=True)
class TraceNode:
    """One node. `index`: the latent's number in its dictionary, or the token id of an embedding or logit.

    `value`: activation of a latent, centred logit of a logit. `dictionary`: place in the graph's list of dictionaries;
    None for an error where there is none, so that the node is the whole output of the MLP.
    """

    kind: str
    position: int
    layer: int | None = None
    index: int | None = None
    value: float | None = None
    probability: float | None = None
    dictionary: int | None = None
    label: str = ""

    @property
    def name(self) -> str:
        """`embed@P`, `latent.L.N@P`, `error.L@P` or `logit.T@P`: one per node of a graph."""
        parts = {"embed": (), "latent": (self.layer, self.index), "error": (self.layer,), "logit": (self.index,)}[self.kind]
        return ".".join(map(str, (self.kind, *parts))) + f"@{self.position}"


@dataclass(frozen=True, eq=False)
class AttributionGraph:
    """Nodes in the order they run and the direct effects between them.

    `bias`: the part of a node that has no node for its source, the same for every prompt of these norms and patterns.
    `influence`: of each node on the logits, in the graph that was traced: pruning keeps the numbers.
    `ranks`: cumulative influence in it, where a part has been taken (see `cumulative`).
    `scores`: replacement and completeness of the graph that was traced. `supernodes`: (label, names of its nodes).
    """

    nodes: tuple[TraceNode, ...]
    effects: Float[Tensor, "target source"]
    bias: Float[Tensor, " target"]
    influence: Float[Tensor, " node"]
    texts: tuple[str, ...]
    n_layers: int
    tokens: tuple[int, ...] = ()
    prompt: str = ""
    model: str = ""
    digest: str = ""
    dictionaries: tuple[Mapping[str, Any], ...] = ()
    plan: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, Any] = field(default_factory=dict)
    supernodes: tuple[tuple[str, tuple[str, ...]], ...] = ()
    validation: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()
    ranks: Float[Tensor, " node"] | None = None

    def __post_init__(self) -> None:
        n = len(self.nodes)
        for name, tensor, shape in (
            ("effects", self.effects, (n, n)),
            ("bias", self.bias, (n,)),
            ("influence", self.influence, (n,)),
        ):
            if tuple(tensor.shape) != shape:
                raise bad_argument(name, tuple(tensor.shape), f"{shape}, {n} nodes")
        if backwards(self.effects):
            raise bad_argument("effects", "an effect of a node on an earlier one or on itself", "effects on later nodes")

    # looking up ------------------------------------------------------------------------------

    @cached_property
    def number(self) -> dict[str, int]:
        """Places of nodes by name."""
        return {node.name: place for place, node in enumerate(self.nodes)}

    def of(self, *kinds: str) -> Bool[Tensor, " node"]:
        """Which nodes are of these kinds."""
        return torch.tensor([node.kind in kinds for node in self.nodes], dtype=torch.bool)

    @cached_property
    def weights(self) -> Float[Tensor, " node"]:
        """Probabilities of logits; 0 for other nodes."""
        return torch.tensor([node.probability or 0.0 if node.kind == "logit" else 0.0 for node in self.nodes])

    @property
    def n_edges(self) -> int:
        return int(self.effects.count_nonzero())

    @cached_property
    def cumulative(self) -> Float[Tensor, " node"]:
        """The share of the traced graph's influence that must be kept for a node to stay: small is important."""
        if self.ranks is not None:
            return self.ranks
        order = self.influence.argsort(descending=True, stable=True)
        total = self.influence.sum().clamp_min(1e-30)
        out = torch.zeros_like(self.influence)
        out[order] = self.influence[order].cumsum(0) / total
        return out

    def edges(self) -> list[tuple[int, int, float]]:
        """(source, target, effect), the largest |effect| first."""
        targets, sources = self.effects.nonzero(as_tuple=True)
        values = self.effects[targets, sources]
        order = values.abs().argsort(descending=True, stable=True)
        return list(zip(sources[order].tolist(), targets[order].tolist(), values[order].tolist(), strict=True))

    def strongest(self, name: str, n: int = 10, out: bool = False) -> list[tuple[str, float]]:
        """Nodes with the largest direct effects on a node, or of it (`out`). Raises UsageError for an unknown one."""
        if name not in self.number:
            raise bad_argument("node", name, f"a node of this graph, e.g. {self.nodes[-1].name}")
        place = self.number[name]
        row = self.effects[:, place] if out else self.effects[place]
        best = row.abs().topk(min(n, len(row))).indices.tolist()
        return [(self.nodes[at].name, float(row[at])) for at in best if float(row[at]) != 0]

    # pruning ---------------------------------------------------------------------------------

    def prune(self, nodes: float = NODES, edges: float = EDGES) -> "AttributionGraph":
        """The part that has these shares of the influence of nodes, then of edges. Raises UsageError outside 0 to 1."""
        check_shares(nodes, edges)
        small = self.select(self.of("embed", "logit") | (self.influence >= threshold(self.influence, nodes)))
        shares = normalised(small.effects)
        score = shares * (influence_of(shares, small.weights) + small.weights)[:, None]
        chosen = (score >= threshold(score[score > 0], edges)) & (score > 0)
        kept = small._connected(chosen)
        effects = torch.where(chosen, small.effects, 0.0)
        return replace(small.select(kept, effects), plan={**self.plan, "kept_nodes": nodes, "kept_edges": edges})

    def _connected(self, chosen: Bool[Tensor, "target source"]) -> Bool[Tensor, " node"]:
        """Nodes without the inner ones that lead nowhere and the latents that come from nowhere."""
        inner, latent = self.of("latent", "error"), self.of("latent")
        kept = torch.ones_like(inner)
        while True:
            live = chosen & kept & kept[:, None]
            now = kept & (live.any(0) | ~inner) & (live.any(1) | ~latent)
            if bool((now == kept).all()):
                return kept
            kept = now

    def select(self, kept: Bool[Tensor, " node"], effects: Float[Tensor, "target source"] | None = None) -> "AttributionGraph":
        """Only these nodes, with their numbers as they are."""
        at = kept.nonzero()[:, 0]
        matrix = self.effects if effects is None else effects
        nodes = tuple(self.nodes[place] for place in at.tolist())
        names = {node.name for node in nodes}
        groups = ((label, tuple(name for name in members if name in names)) for label, members in self.supernodes)
        return replace(self, nodes=nodes, effects=matrix[at][:, at], bias=self.bias[at], influence=self.influence[at],
                       ranks=self.cumulative[at],
                       supernodes=tuple((label, members) for label, members in groups if members))  # fmt: skip

    # groups ----------------------------------------------------------------------------------

    def grouped(self, groups: Mapping[str, Iterable[str]] | Iterable[tuple[str, Iterable[str]]]) -> "AttributionGraph":
        """With supernodes: label -> names of nodes. Raises UsageError for an unknown node or one in two groups."""
        items = groups.items() if isinstance(groups, Mapping) else groups
        made = tuple((str(label), tuple(members)) for label, members in items)
        seen: set[str] = set()
        for label, members in made:
            for name in members:
                if name not in self.number or name in seen:
                    why = "a node of the graph" if name not in self.number else "each node in one group only"
                    raise bad_argument(f"group {label!r}", name, why)
                seen.add(name)
        return replace(self, supernodes=made)

    def collapsed(self) -> tuple[list[str], Float[Tensor, "target source"]]:
        """Labels and effects with every supernode as one node: effects between groups are sums, inside one they are gone."""
        group = {name: label for label, members in self.supernodes for name in members}
        labels = [group.get(node.name, node.name) for node in self.nodes]
        order = list(dict.fromkeys(labels))
        into = torch.zeros(len(order), len(labels))
        into[[order.index(label) for label in labels], range(len(labels))] = 1.0
        return order, (into @ self.effects @ into.T).fill_diagonal_(0.0)


# influence ---------------------------------------------------------------------------------------


def check_shares(nodes: float, edges: float) -> None:
    """Raises UsageError for what `prune` cannot keep."""
    for name, share in (("nodes", nodes), ("edges", edges)):
        if not 0 < share <= 1:
            raise bad_argument(name, share, "a share above 0, up to 1")


def backwards(effects: Float[Tensor, "target source"]) -> bool:
    """Whether anything has an effect on itself or on what comes before it; looked at some rows at a time."""
    firsts = range(0, len(effects), ROWS)
    return any(bool(effects[first : first + ROWS, first:].triu().any()) for first in firsts)


def normalised(effects: Float[Tensor, "target source"]) -> Float[Tensor, "target source"]:
    """Absolute effects, each target's divided by their sum."""
    size = effects.abs()
    return size.div_(size.sum(1, keepdim=True).clamp_min(1e-30))


def influence_of(shares: Float[Tensor, "target source"], weights: Float[Tensor, " target"]) -> Float[Tensor, " source"]:
    """weights (shares + shares^2 + ..): how much of what is weighted comes through each node, along all paths."""
    now = weights.to(shares) @ shares
    total = now.clone()
    for _ in range(len(shares)):
        if not bool(now.any()):
            break
        now = now @ shares
        total += now
    return total


def graph_scores(graph: AttributionGraph) -> dict[str, float]:
    """`replacement` and `completeness` of a graph as it is; NaN without inputs."""
    shares = normalised(graph.effects)
    weights = graph.weights
    reach = influence_of(shares, weights)
    errors, embeds = graph.of("error"), graph.of("embed")
    from_tokens, from_errors = float(reach[embeds].sum()), float(reach[errors].sum())
    importance = reach + weights
    known = 1 - shares[:, errors].sum(1)
    total = from_tokens + from_errors
    return {
        "replacement": from_tokens / total if total else float("nan"),
        "completeness": float((known * importance).sum() / importance.sum()) if float(importance.sum()) else float("nan"),
    }  # fmt: skip


def threshold(scores: Float[Tensor, " n"], share: float) -> float:
    """The smallest of the largest scores that together have this share of the sum."""
    if not len(scores):
        return 0.0
    ordered = scores.sort(descending=True).values.double()
    sums = ordered.cumsum(0)
    place = int(torch.searchsorted(sums, share * float(sums[-1]) * (1 - 1e-12)))
    return float(ordered[min(place, len(ordered) - 1)])


# groups ------------------------------------------------------------------------------------------


def suggest_supernodes(
    graph: AttributionGraph, decoders: Mapping[str, Tensor] | None = None, similar: float = SIMILAR
) -> list[tuple[str, tuple[str, ...]]]:
    """Latents that could be one group: the same one at several tokens, and such as write or are wired alike.

    Similarity of two latents: 1 for the same latent, else the larger of the cosine of their decoder rows (`decoders`, by
    node name) and the cosine of their effects in and out. Complete linkage: every two of a group are `similar`.
    """
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    check_cosine(similar)
    places = graph.of("latent").nonzero()[:, 0].tolist()
    if len(places) < 2:
        return []
    wiring = torch.cat([_units(graph.effects[places]), _units(graph.effects[:, places].T)], 1)
    likeness = _units(wiring) @ _units(wiring).T
    names = [graph.nodes[place].name for place in places]
    if decoders is not None:
        likeness = torch.maximum(likeness, _decoder_cosines([decoders.get(name) for name in names]))
    keys = [(graph.nodes[p].dictionary, graph.nodes[p].layer, graph.nodes[p].index) for p in places]
    which = torch.tensor([keys.index(key) for key in keys])
    likeness = torch.where(which == which[:, None], 1.0, likeness).fill_diagonal_(1.0)
    far = (1 - likeness).clamp_min(0)
    tree = linkage(squareform(((far + far.T) / 2).numpy(), checks=False), "complete")
    of = fcluster(tree, 1 - similar + 1e-9, "distance")
    groups: dict[int, list[int]] = {}
    for place, group in zip(places, of.tolist(), strict=True):
        groups.setdefault(group, []).append(place)
    found = [members for members in groups.values() if len(members) > 1]
    found.sort(key=lambda members: -float(graph.influence[members].sum()))
    return [_named(graph, members) for members in found]


def check_cosine(similar: float) -> None:
    """Raises UsageError for what is none."""
    if not -1 <= similar <= 1:
        raise bad_argument("similar", similar, "a cosine, -1 to 1")


def _named(graph: AttributionGraph, members: Sequence[int]) -> tuple[str, tuple[str, ...]]:
    best = graph.nodes[max(members, key=lambda place: float(graph.influence[place]))]
    others = len({(graph.nodes[p].layer, graph.nodes[p].index) for p in members}) - 1
    label = best.label or f"latent.{best.layer}.{best.index}"
    return label + (f" and {others} more" if others else ""), tuple(graph.nodes[place].name for place in members)


def _units(rows: Float[Tensor, "row d"]) -> Float[Tensor, "row d"]:
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-30)


def _decoder_cosines(rows: Sequence[Tensor | None]) -> Float[Tensor, "row row"]:
    """-1 where there is none, or one of another size."""
    out = torch.full((len(rows), len(rows)), -1.0)
    by_size: dict[int, list[int]] = {}
    for place, row in enumerate(rows):
        if row is not None:
            by_size.setdefault(row.numel(), []).append(place)
    for members in by_size.values():
        units = _units(torch.stack([row.flatten().float() for place in members if (row := rows[place]) is not None]))
        out[torch.tensor(members)[:, None], torch.tensor(members)] = units @ units.T
    return out
