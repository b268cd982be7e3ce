"""Models whose true edges are known, in one list, and how well scores tell true edges from the others.

    for truth in TRUTHS:
        model = truth.model()
        found = roc(scores_of(model, truth.task(model)), truth.mask(graph_of(model)), graph_of(model))

1. `llama_induction.py` at three saturations of attention, the gates of `gates_models.py`, and the compiled programs of
   `programs.py`, filled: written heads last, what is empty random and next to silent.
2. An edge is true if exchanging what it carries between clean and corrupted runs, alone, changes the metric in at least one
   direction. It is read off the program: the writer writes a part that the reader reads, the task changes what is there,
   and the rest of the program uses it. Edges of attention that looks at positions, or at a class of words that both texts
   have in the same places, are read by the program and carry nothing of the task.
3. `blind[direction]`: true edges that show nothing when exchanged alone in that direction. `cancels`: edges whose effects at
   two positions are opposite; they are neither true nor false, and are left out of `roc`.
4. `roc`: ranked by the scores as they are given (take absolute values for methods with signs), over existing edges.
   AUROC, the chance that a true edge is above a false one, ties counting half; and average precision, which is low where a
   few false edges are on top of many true ones.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from jaxtyping import Bool, Float
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor

from assay.circuits.attribute import nodes_of
from assay.circuits.graph import Graph
from assay.data.prepare import PreparedTask, prepare
from assay.errors import ShapeError, bad_argument
from assay.model.model import Model
from assay.records import Pair
from assay.registry import Registry
from assay.testing import llama_induction
from assay.testing.gates_models import GATES, filled
from assay.testing.programs import PROGRAMS

PROGRAM_EDGES: dict[str, tuple[str, ...]] = {
    "previous": ("embed->v.0.3", "z.0.3->logits"),
    "reverse": ("embed->v.0.3", "z.0.3->logits"),
    # the share of attention that is left for "^" is what counts: keys, and not the values, say how many words are the same
    "count": ("embed->k.0.3", "z.0.3->mlp_in.0", "mlp_out.0->logits"),
    "most_frequent": ("embed->v.0.3", "z.0.3->mlp_in.0", "mlp_out.0->logits"),
    # "below" goes on through z.1.3, "uneven" to the second MLP directly
    "brackets": ("embed->v.0.3", "z.0.3->mlp_in.0", "mlp_out.0->v.1.3", "mlp_out.0->mlp_in.1", "z.1.3->mlp_in.1",
                 "mlp_out.1->logits"),
}  # fmt: skip
# a corrupted text is always uneven, and that alone says no: below or not, nothing changes
PROGRAM_BLIND = {"brackets": {"denoise": ("mlp_out.0->v.1.3", "z.1.3->mlp_in.1")}}
SPARE = 64  # pairs of programs drawn for every one needed: some end with their answer or foil


@dataclass(frozen=True, eq=False)
class Truth:
    """One known circuit: how its model and pairs are made, and its true edges. `pairs(templates, per_template, seed)`."""

    name: str
    model: Callable[[], Model]
    pairs: Callable[[int, int, int], list[Pair]]
    edges: tuple[str, ...]
    blind: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    cancels: tuple[str, ...] = ()

    def task(self, model: Model, n_templates: int = 6, per_template: int = 3, seed: int = 0) -> PreparedTask:
        """Pairs for this model."""
        return prepare(self.pairs(n_templates, per_template, seed), model)

    def mask(self, graph: Graph) -> Bool[Tensor, "writer reader"]:
        """The true edges as a matrix."""
        return graph.mask(self.edges)

    def asked(self, graph: Graph) -> Bool[Tensor, "writer reader"]:
        """The edges that are true or false."""
        return graph.exists & ~graph.mask(self.cancels)


@dataclass(frozen=True)
class Roc:
    """How well scores tell true edges from false ones."""

    auroc: float
    average_precision: float
    n_true: int
    n: int


def roc(
    scores: Float[Tensor, "writer reader"], truth: Bool[Tensor, "writer reader"], graph: Graph,
    asked: Bool[Tensor, "writer reader"] | None = None,
) -> Roc:  # fmt: skip
    """Scores of existing edges, or of those `asked` for, against the truth.

    Raises UsageError or ShapeError for what cannot be ranked.
    """
    for name, matrix in (("scores", scores), ("truth", truth)):
        if matrix.shape != graph.exists.shape:
            raise ShapeError(f"{name}: got {tuple(matrix.shape)}; allowed: (writer, reader) {tuple(graph.exists.shape)}.")
    cells = graph.exists if asked is None else graph.exists & asked
    return _roc(scores[cells], truth[cells])


def node_roc(scores: Float[Tensor, " node"], truth: Bool[Tensor, " node"]) -> Roc:
    """The same for nodes, in the order of `nodes_of`."""
    if scores.shape != truth.shape:
        raise ShapeError(f"scores: got {tuple(scores.shape)}; allowed: {tuple(truth.shape)}, one for each node.")
    return _roc(scores, truth)


def node_truth(edges: Iterable[str], graph: Graph) -> Bool[Tensor, " node"]:
    """Nodes at an end of a true edge, in the order of `nodes_of`: writers that one leaves, readers that one enters."""
    mask = graph.mask(edges)
    readers = mask.any(0)[: len(graph.readers) - 1]  # logits are no node
    found = torch.cat([mask.any(1), readers])
    assert len(found) == len(nodes_of(graph))
    return found


def _roc(scores: Tensor, truth: Tensor) -> Roc:
    n_true, n = int(truth.sum()), len(truth)
    if not 0 < n_true < n:
        raise bad_argument("truth", f"{n_true} true of {n}", "some true and some false")
    if not scores.isfinite().all():
        raise bad_argument("scores", "NaN or infinite", "finite numbers", "Score every edge, or ask for fewer.")
    y, s = truth.cpu().numpy(), scores.double().cpu().numpy()
    return Roc(float(roc_auc_score(y, s)), float(average_precision_score(y, s)), n_true, n)


TRUTHS: Registry[Truth] = Registry("truth")


def _add_all() -> None:
    for gain in llama_induction.GAINS:
        make = partial(llama_induction.llama_induction, llama_induction.LlamaInduction(gain))
        name = f"induction-{gain:g}"
        TRUTHS.add(name, Truth(name, make, llama_induction.repeated, llama_induction.EDGES))
    for name, gate in GATES.items():
        TRUTHS.add(name, Truth(name, gate.model, gate.pairs, gate.edges, gate.blind, gate.cancels))
    for name, edges in PROGRAM_EDGES.items():
        TRUTHS.add(name, Truth(name, partial(_program, name), partial(_program_pairs, name), edges,
                               PROGRAM_BLIND.get(name, {})))  # fmt: skip


def _program(name: str) -> Model:
    return filled(PROGRAMS[name]().model)


def _program_pairs(name: str, n_templates: int, per_template: int, seed: int) -> list[Pair]:
    drawn = PROGRAMS[name]().pairs(seed, n_templates, SPARE * per_template)
    usable = [pair for pair in drawn if not pair.clean.endswith((*pair.answers, *pair.foils))]
    by_template = {pair.template: [other for other in usable if other.template == pair.template] for pair in usable}
    return [pair for pairs in by_template.values() for pair in pairs[:per_template]]


_add_all()
