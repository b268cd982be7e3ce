"""The instrument of *connects* claims about an edge of the graph: one writer, one later reader.

1. What arrives: the writer's output is exchanged for that of the other prompt of the pair, in this reader alone; how much of
   what changes in the reader comes in by it (`circuits/edge_reading.py`); also with the writer exchanged as a whole, and
   with another pair's value in place of the pair's own.
2. What becomes of it: the same exchange, everything after the reader run anew, the metric read (`circuits/exact.py`).
3. An edge into a gate shows in one direction of patching only (OR when denoised, AND when noised), and an edge may
   work against the behaviour. So tune says in which direction it shows more, and with which sign; both are fixed in the plan.
4. Controls: other edges of the same kind (type of writer, type of reader), as many layers apart, that share neither end
   unless there is only one writer, or one reader, of that type. Where there is none: any number of layers apart; where there
   is none either, any edge into the same reader. Measured on the first few pairs of every template.
5. The instrument: exchanging an edge for what it carries already must change nothing, and the circuit with all edges but
   this one (`circuits/subgraph.py`, another computation) must give the metric that exact patching gives.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from assay.circuits.edge_reading import EdgeReading, read_edge
from assay.circuits.exact import DIRECTIONS, Exchange
from assay.circuits.graph import ARROW, Edge, Graph, graph_of
from assay.circuits.subgraph import Bench
from assay.data.prepare import PreparedTask
from assay.errors import UsageError
from assay.evidence.effects import control_rows, spread_over
from assay.evidence.kinds import Columns
from assay.model.model import Model
from assay.records import Claim, Plan
from assay.sites import Site

CLEAR = 0.01  # of the effect: what a direction or sign of tune must exceed to count


@dataclass(frozen=True)
class EdgeSetup:
    """What tune says of an edge. `direction`: in which it shows more; `sign`, `arrives`: +1 or -1, of its effect on the
    behaviour and of what arrives at the reader."""

    edge: Edge
    direction: str
    sign: float
    arrives: float
    controls: tuple[Edge, ...]
    metric: str
    control_pairs: int


def is_edge(given: Any) -> bool:
    """Whether this names an edge rather than features."""
    return isinstance(given, Edge) or isinstance(given, str) and ARROW in given


def about_edge(claim: Claim) -> bool:
    """Whether a claim is about an edge."""
    return any(ARROW in str(site) for site in claim.subject["sites"])


class EdgeLink:
    """Measures one edge on one task; everything once, as gates may ask for the same thing twice."""

    def __init__(self, model: Model, task: PreparedTask, setup: EdgeSetup) -> None:
        self.model, self.task, self.setup = model, task, setup
        self._kept: dict[str, Any] = {}

    def runs(self) -> Columns:
        """The metric of both prompts."""
        return {"clean": self._bare("clean"), "corrupted": self._bare("corrupted")}

    def arrived(self) -> Columns:
        """What arrives at the reader by the edge (`edge.own`), with another pair's value (`edge.other`), by the writer as a
        whole (`edge.whole`), and what changes there (`edge.change`)."""
        found: EdgeReading = self._once("read", lambda: read_edge(self.model, self.task, self.setup.edge, self.setup.direction))
        named = {"own": found.carried, "other": found.other, "whole": found.whole}
        return {"edge.change": found.change.tolist(),
                **{f"edge.{name}": (self.setup.arrives * values).tolist() for name, values in named.items()}}  # fmt: skip

    def effects(self) -> Columns:
        """What exchanging the edge does to the metric: in the plan's direction and sign (`edge.effect`), and in both."""
        both = {name: self._exact(name, [self.setup.edge])[0] for name in DIRECTIONS}
        chosen = self.setup.sign * both[self.setup.direction]
        return {"edge.effect": chosen.tolist(), **{f"edge.{name}": values.tolist() for name, values in both.items()}}

    def controls(self) -> Columns:
        """The same of other edges, in the plan's direction, on the control pairs."""
        values = self._exact(self.setup.direction, self.setup.controls, self._control_rows)
        return {f"random.edge.{number:02d}": self._spread(row) for number, row in enumerate(values)}

    def nothing(self) -> Columns:
        """The edge exchanged for what it carries, on the control pairs."""
        rows = self._control_rows
        task = self.task.select(rows)
        same = replace(task, corrupted=task.clean)
        values = Exchange(self.model, same, "noise", self.setup.metric).edges([self.setup.edge])[:, 0]
        return {"edge.nothing": self._spread(values.tolist())}

    def twice(self) -> Columns:
        """The edge noised, by exact patching and by the circuit without it, on the control pairs."""
        rows, edge = self._control_rows, self.setup.edge
        graph = graph_of(self.model)
        bench = Bench(self.model, self.task.select(rows), graph, self.setup.metric, "resample")
        (without,) = bench.scores([graph.exists & ~graph.mask([edge])])
        exact = self._exact("noise", [edge], rows)[0]
        return {"edge.exact": self._spread(exact), "edge.circuit": self._spread(bench.clean - without)}

    # internal --------------------------------------------------------------------------------

    @property
    def _control_rows(self) -> list[int]:
        return control_rows(self.task.templates, self.setup.control_pairs)

    def _spread(self, values: Sequence[float]) -> list[float | None]:
        return spread_over(self._control_rows, values, len(self.task))

    def _bare(self, run: str) -> list[float | None]:
        prompts = getattr(self.task, run)
        return self._once(run, lambda: self.model.score(prompts, self.task.metric(self.setup.metric)).tolist())

    def _exact(self, direction: str, edges: Sequence[Edge], rows: Sequence[int] | None = None) -> np.ndarray:
        """(edge, pair)."""

        def measure() -> np.ndarray:
            task = self.task if rows is None else self.task.select(rows)
            return Exchange(self.model, task, direction, self.setup.metric).edges(edges).double().numpy().T

        return self._once(f"{direction} {[*map(str, edges)]} {rows is None}", measure)

    def _once(self, name: str, measure: Any) -> Any:
        if name not in self._kept:
            self._kept[name] = measure()
        return self._kept[name]


# preparing ---------------------------------------------------------------------------------------


def edge_of(model: Model, given: Any) -> Edge:
    """The edge by its canonical name. Raises UsageError for what is none, SiteError for a model without a graph."""
    graph = graph_of(model)
    return graph.name(graph.edge(given))


def other_edges(graph: Graph, edge: Edge, n: int, seed: int) -> tuple[list[Edge], str, int]:
    """Up to n edges to compare one with, drawn at random; by which rule, and from how many."""
    for rule, pool in _pools(graph, edge):
        if pool:
            return random.Random(f"edges-{seed}").sample(pool, min(n, len(pool))), rule, len(pool)
    raise UsageError(f"subject: {edge} is the only edge of its kind, and the only one into its reader: there is nothing to"
                     " compare it with.")  # fmt: skip


def _pools(graph: Graph, edge: Edge) -> Iterator[tuple[str, list[Edge]]]:
    """Ever wider pools of other edges."""
    every = [other for other in graph.edges(graph.exists) if other != edge]
    alike = [other for other in every if (other.writer.name, other.reader.name) == (edge.writer.name, edge.reader.name)]
    alone = [sum(site.name == end.name for site in sites) == 1
             for sites, end in ((graph.writers, edge.writer), (graph.readers, edge.reader))]  # fmt: skip
    apart = [other for other in alike
             if (alone[0] or other.writer != edge.writer) and (alone[1] or other.reader != edge.reader)]  # fmt: skip
    yield "same kind, as many layers apart", [other for other in apart if _distance(graph, other) == _distance(graph, edge)]
    yield "same kind", apart
    yield "same kind, with an end in common", alike
    yield "into the same reader", [other for other in every if other.reader == edge.reader]


def _distance(graph: Graph, edge: Edge) -> int:
    return _layer(edge.reader, graph.n_layers) - _layer(edge.writer, -1)


def _layer(site: Site, none: int) -> int:
    return none if site.layer is None else site.layer


def edge_link_setup(model: Model, plan: Plan, edge: Edge, tune: PreparedTask) -> tuple[EdgeSetup, dict[str, Any]]:
    """What is fixed before sealed data are read, and a record of it."""
    settings, graph = plan.settings, graph_of(model)
    drawn, rule, n_pool = other_edges(graph, edge, settings["draws"], settings["seed"])
    first = EdgeSetup(edge, "noise", 1.0, 1.0, tuple(drawn), plan.metric, settings["control_pairs"])
    seen = EdgeLink(model, tune, first)
    effect, runs = seen.effects(), seen.runs()
    size = abs(_mean(runs["clean"]) - _mean(runs["corrupted"]))
    noise, denoise = (_mean(effect[f"edge.{name}"]) for name in DIRECTIONS)
    direction = "denoise" if abs(denoise) > abs(noise) + CLEAR * size else "noise"
    shown = denoise if direction == "denoise" else noise
    read = read_edge(model, tune, edge, direction)
    setup = replace(first, direction=direction, sign=-1.0 if shown < -CLEAR * size else 1.0,
                    arrives=-1.0 if read.share < -CLEAR else 1.0)  # fmt: skip
    record = {"direction": direction, "sign": setup.sign, "arrives": setup.arrives, "rule": rule, "pool": n_pool,
              "random": [str(other) for other in drawn], "pairs of tune left out": tune.dropped}  # fmt: skip
    return setup, record


def _mean(values: Sequence[Any]) -> float:
    return float(np.mean(values))
