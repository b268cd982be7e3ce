"""The instrument of claims about circuits of edges, or of nodes of several kinds: what `circuits_instrument.py` is for units.

1. Ablated: the clean prompt with the claimed edges cut and all others kept, cut edges carrying zeros, means, or the
   corrupted run's values (`resample`). Restored: only the claimed edges kept, all others cut (`resample`), so that
   all cut is the corrupted run and all kept the clean one (`circuits/subgraph.py`).
2. A node in a circuit stands for every edge out of it. Edges and nodes at classes of positions (z.3.1@subject) are of the
   graph with the classes of the plan's tune pairs; a label that sealed pairs lack is of the rest.
3. Random sets: half match the circuit's edges class by class (layer and type of both ends), half are unions of random
   walks from the embedding to the logits with as many edges; edges drawn anyhow would form no path and score zero at any
   size. A draw with more than half of the circuit's own edges is the circuit again, not a control, and is left out; where
   layers have few edges to choose from, that leaves fewer draws (the plan says how many). What a draw shares with the
   circuit is not cut with it: one link of a chain that is cut is as bad as the whole chain, whoever's it is.
4. Controls are measured on the first few pairs of every template, many circuits to a pass.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from assay.circuits.graph import ARROW, AT, END, Edge, Graph, graph_of, parse_node
from assay.circuits.graph import REST as ELSEWHERE
from assay.circuits.positions import classes_of
from assay.circuits.random_circuits import RandomCircuit, matched, walks
from assay.circuits.subgraph import Bench, Means, writer_means
from assay.data.prepare import PreparedTask
from assay.errors import UsageError, bad_argument
from assay.evidence.circuits_instrument import Column, Setup, control_rows
from assay.model.model import Model
from assay.records import Plan, digest
from assay.sites import Site

Part = Edge | Site
Parts = tuple[Part, ...]
ALL, REST = Site("path", path="all edges"), Site("path", path="the other edges")  # stand for masks, are no sites
N_ADDED = 10


def is_circuit(names: Sequence[Any]) -> bool:
    """Whether these are edges, or nodes of several kinds, rather than units of one kind."""
    texts = [str(name) for name in names]
    kinds = {text.split(".")[0] for text in texts}
    return any(ARROW in text or AT in text for text in texts) or "embed" in kinds or len(kinds) > 1


def parts_of(model: Model, names: Sequence[Any]) -> Parts:
    """Edges and nodes by name, in the graph's order. Raises UsageError for what is neither."""
    graph, found = graph_of(model, named_classes(names)), {}
    for name in dict.fromkeys(map(str, names)):
        if ARROW in name:
            cell = graph.edge(name)
            found[cell[1], cell[0]] = graph.name(cell)
            continue
        site = parse_node(name)
        if site not in graph.writer_number:
            raise bad_argument("sites", name, "edges (WRITER->READER) and nodes: embed, z.L.H, mlp_out.L")
        found[-1, graph.writer_number[site]] = site
    return tuple(found[key] for key in sorted(found))


def named_classes(names: Sequence[Any]) -> tuple[str, ...]:
    """The classes of positions that edges and nodes are at, with those that every graph has; none where they name none."""
    found = {end.partition(AT)[2] for name in names for end in str(name).split(ARROW)} - {""}
    return (*sorted(found - {ELSEWHERE, END}), ELSEWHERE, END) if found else ()


def classes_for(names: Sequence[Any], task: PreparedTask) -> tuple[str, ...]:
    """The same, with all that the task knows. Raises UsageError for a class that its texts do not have."""
    named, known = named_classes(names), classes_of(task)
    if extra := sorted(set(named) - set(known)):
        raise bad_argument("sites", f"{AT}{extra[0]}", f"classes of positions of this task: {', '.join(known)}")
    return known if named else ()


class EdgeInstrument:
    """Measures a task; the same questions as `circuits_instrument.Instrument`."""

    def __init__(self, model: Model, task: PreparedTask, rows: Sequence[int], setup: Setup) -> None:
        self.model, self.setup, self.graph = model, setup, graph_of(model, setup.classes)
        self.units, self.complement, self.random_sets = setup.units, setup.complement, setup.random_sets
        self.task = task.select(list(rows))
        self._controls = control_rows(task.templates, rows, setup.control_pairs)
        self._benches: dict[tuple[str, bool], Bench] = {}
        self._kept: dict[Any, Column] = {}

    @property
    def clean(self) -> Column:
        """The metric on clean prompts."""
        return self._bench("resample", False).clean.tolist()

    @property
    def corrupted(self) -> Column:
        """The metric on corrupted prompts."""
        return self._bench("resample", False).corrupted.tolist()

    def ablated(self, units: Parts, how: str, controls: bool = False) -> Column:
        """Clean prompts with these edges cut."""
        return self._one(self.graph.exists & ~self.mask(units), how, controls)

    def restored(self, units: Parts, controls: bool = False) -> Column:
        """Only these edges kept, the others at their corrupted values."""
        return self._one(self.mask(units), "resample", controls)

    def patched(self, units: Parts, how: str) -> Column:
        """One plain run on the control pairs: what `many` must agree with."""
        return self._scores([self._patched_mask(units, how)], "resample", True)[0]

    def everything(self) -> Site:
        """All edges."""
        return ALL

    def many(self, sets: Sequence[Parts], how: str) -> list[Column]:
        """Every set on the control pairs, many circuits to a pass."""
        todo = [units for units in dict.fromkeys(sets) if ("many", units, how) not in self._kept]
        masks = [self._patched_mask(units, how) for units in todo]
        for units, column in zip(todo, self._scores(masks, "resample", True), strict=True):
            self._kept["many", units, how] = column
        return [self._kept["many", units, how] for units in sets]

    def alone(self, units: Parts, how: str) -> tuple[Column, Column]:
        """Only these edges kept, and none, with all others at zero or at their means; on the control pairs."""
        return self._one(self.mask(units), how, True), self._one(torch.zeros_like(self.graph.exists), how, True)

    def rivals(self, sets: Sequence[Parts]) -> list[Column]:
        """Each of these circuits alone, on all pairs."""
        return [self.restored(units) for units in sets]

    # internal --------------------------------------------------------------------------------

    def mask(self, units: Parts) -> Bool[Tensor, "writer reader"]:
        """The edges of some parts."""
        if ALL in units:
            return self.graph.exists
        if REST in units:
            return self.graph.exists & ~self.mask(self.units)
        return mask_of(self.graph, units)

    def _patched_mask(self, units: Parts, how: str) -> Tensor:
        if how == "same":  # patched with what it already has: all edges at their corrupted values
            return torch.zeros_like(self.graph.exists)
        mask = self.mask(units)
        if how == "restore":
            return mask
        if units in self.random_sets:  # a link that both have breaks either: what the others do is asked
            mask = mask & ~self.mask(self.units)
        return self.graph.exists & ~mask

    def _bench(self, ablation: str, controls: bool) -> Bench:
        key = (ablation, controls)
        if key not in self._benches:
            task = self.task.select(self._controls) if controls else self.task
            means: Means | None = self.setup.means if ablation == "mean" else None
            self._benches[key] = Bench(self.model, task, self.graph, self.setup.metric, ablation, means)
        return self._benches[key]

    def _one(self, mask: Tensor, ablation: str, controls: bool = False) -> Column:
        """Of one circuit, once: what cuts a part keeps the rest, so that gates ask for the same in other words."""
        key = (mask.cpu().numpy().tobytes(), ablation, controls)
        if key not in self._kept:
            self._kept[key] = self._scores([mask], ablation, controls)[0]
        return self._kept[key]

    def _scores(self, masks: Sequence[Tensor], ablation: str, controls: bool) -> list[Column]:
        if controls and not self._controls or not masks:
            return [[None] * len(self.task) for _ in masks]
        values = self._bench(ablation, controls).scores(masks)
        return [self._spread(row) if controls else row.tolist() for row in values]

    def _spread(self, values: Any) -> Column:
        out: Column = [None] * len(self.task)
        for row, value in zip(self._controls, values.tolist(), strict=True):
            out[row] = value
        return out


def mask_of(graph: Graph, units: Parts) -> Bool[Tensor, "writer reader"]:
    """The edges of some edges and nodes."""
    nodes = [unit for unit in units if isinstance(unit, Site)]
    return graph.mask([unit for unit in units if isinstance(unit, Edge)]) | graph.node_mask(nodes)


def other_circuits(graph: Graph, mask: Bool[Tensor, "writer reader"], n: int, seed: int) -> list[RandomCircuit]:
    """Up to n random circuits, half of them matched, with at most half of their edges in `mask`."""
    most, half = int(mask.sum()) / 2, (n + 1) // 2
    pools = (matched(graph, mask, 2 * half, seed), walks(graph, mask, 2 * n, seed))
    usable = [[draw for draw in pool if (draw.n_shared or 0) <= most] for pool in pools]
    first = usable[0][:half]
    return [*first, *usable[1][: n - len(first)]]


def edge_setup(
    model: Model, plan: Plan, subject: Mapping[str, Any], tune: PreparedTask
) -> tuple[Setup, dict[str, Any]]:
    """What is fixed before sealed data are read, and a record of the controls. Raises UsageError for last-position claims."""
    settings, classes = plan.settings, classes_for(subject["sites"], tune)
    graph = graph_of(model, classes)
    if settings["positions"] != "all":
        raise bad_argument("positions", settings["positions"], "all, for a circuit of edges")
    units = parts_of(model, subject["sites"])
    mask = mask_of(graph, units)
    if bool((mask == graph.exists).all()):
        raise UsageError("subject: these are all edges of the model; allowed: a part of them.")
    drawn = other_circuits(graph, mask, settings["draws"], settings["seed"])
    sets = tuple(tuple(graph.edges(draw.mask)) for draw in drawn)
    rivals = tuple(parts_of(model, names) for names in [settings["options"].get("rival", [])] if names)
    outside = graph.edges(graph.exists & ~mask)
    step = max(1, len(outside) // N_ADDED)
    added = tuple(outside[settings["seed"] % step :: step][:N_ADDED])
    setup = Setup(units, (REST,), sets, writer_means(model, tune.clean), plan.metric, "all", settings["control_pairs"],
                  added, rivals, classes)  # fmt: skip
    record = {"random": [digest([str(edge) for edge in draw]) for draw in sets],
              "rules": [f"{draw.rule}: {draw.n_shared} shared, {draw.n_live} on a path" for draw in drawn],
              "edges": int(mask.sum()), "complement": int((graph.exists & ~mask).sum()),
              "added": [str(edge) for edge in added]}  # fmt: skip
    return setup, record
