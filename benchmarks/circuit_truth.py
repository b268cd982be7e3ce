"""How well each method finds the edges of circuits that are known because they were written: AUROC by truth and method.

    .venv/bin/python benchmarks/circuit_truth.py [--truth NAME ...] [--seed N] [--floor SHARE] [--precision] [--nodes]

Edges are ranked by |score|, but for `signed`, which ranks eap-ig by its signed score. A star: the method itself warned. The
last row counts the truths at .95 or more. `exact` exchanges every edge alone; where it fails, no estimate of it can be
trusted there: one direction of exchange does not see that circuit. AUROC is generous: a true edge that was missed may still be
above the false ones by a hair. With --floor, scores below that share of the whole effect are ties (flow has no such unit and
is left as it is). Prints Markdown; --precision prints average precision.

--nodes: methods that score nodes. A node is true if a true edge leaves it (writers) or enters it (queries, keys, values, MLP
inputs). `exact` exchanges writers only, and is ranked among them.
"""

import argparse
import sys
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from assay.circuits.attribute import Attribution, AttributionPlan, attribute
from assay.circuits.exact import exact_edges, exact_nodes
from assay.circuits.flow import flow
from assay.circuits.graph import graph_of
from assay.circuits.qk_fix import qk_fix
from assay.circuits.relevance import relevance
from assay.data.prepare import PreparedTask
from assay.model.model import Model
from assay.testing.edge_truth import TRUTHS, Roc, Truth, node_roc, node_truth, roc

FOUND = 0.95
Cell = tuple[Roc, bool]


def main() -> int:
    """Score every truth with every method and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--truth", action="append", default=[], choices=TRUTHS.names())
    parser.add_argument("--templates", type=int, default=6)
    parser.add_argument("--pairs", type=int, default=3, help="pairs per template")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", action="store_true", help="average precision instead of AUROC")
    parser.add_argument("--floor", type=float, default=0.0, help="share of the whole effect below which a score is none")
    parser.add_argument("--nodes", action="store_true", help="methods that score nodes")
    given = parser.parse_args()
    rows = {}
    for name in given.truth or TRUTHS.names():
        sys.stderr.write(f"{name}\n")
        score = scored_nodes if given.nodes else scored
        rows[name] = score(TRUTHS.get(name), given.templates, given.pairs, given.seed, given.floor)
    sys.stdout.write(markdown(rows, given.precision) + "\n")
    return 0


def scored(truth: Truth, n_templates: int, per_template: int, seed: int, floor: float) -> dict[str, Cell]:
    """One truth: how well each method ranks its edges, and whether the method warned."""
    model = truth.model()
    graph, task = graph_of(model), truth.task(model, n_templates, per_template, seed)
    true, asked = truth.mask(graph), truth.asked(graph)
    least = floor * _effect(model, task)
    out = {}
    for name, method in METHODS.items():
        if name == "grad drop" and model.n_layers < 2:  # no ways through other layers
            continue
        scores, warned = method(model, task)
        if name != "flow":
            scores = scores.where(scores.abs() >= least, 0.0)
        out[name] = roc(scores if name == "signed" else scores.abs(), true, graph, asked), warned
    return out


def scored_nodes(truth: Truth, n_templates: int, per_template: int, seed: int, floor: float) -> dict[str, Cell]:
    """The same for nodes."""
    model = truth.model()
    graph, task = graph_of(model), truth.task(model, n_templates, per_template, seed)
    true, least = node_truth(truth.edges, graph), floor * _effect(model, task)
    out = {}
    for name, method in NODE_METHODS.items():
        scores, warned = method(model, task)
        out[name] = node_roc(scores.abs().where(scores.abs() >= least, 0.0), true[: len(scores)]), warned
    return out


def _effect(model: Model, task: PreparedTask) -> float:
    clean, corrupted = (model.score(prompts, task.metric()).mean() for prompts in (task.clean, task.corrupted))
    return float(clean - corrupted)


def nodes(run: Callable[[Model, PreparedTask], Attribution]) -> Callable[[Model, PreparedTask], tuple[Tensor, bool]]:
    """A method that scores nodes."""

    def of(model: Model, task: PreparedTask) -> tuple[Tensor, bool]:
        found = run(model, task)
        return found.scores, bool(found.warnings)

    return of


def exact_writers(direction: str) -> Callable[[Model, PreparedTask], tuple[Tensor, bool]]:
    """Every writer exchanged alone."""
    return lambda model, task: (exact_nodes(model, task, graph_of(model).writers, direction).mean(0), False)


def estimated(**plan: object) -> Callable[[Model, PreparedTask], tuple[Tensor, bool]]:
    """A method of `attribute`."""

    def run(model: Model, task: PreparedTask) -> tuple[Tensor, bool]:
        found = attribute(model, task, AttributionPlan(**plan))  # type: ignore[arg-type]
        return found.matrix(), bool(found.warnings)

    return run


def relevant(model: Model, task: PreparedTask) -> tuple[Tensor, bool]:
    """Relevance slopes of edges."""
    found = relevance(model, task, level="edge")
    return found.matrix(), bool(found.warnings)


def exact(direction: str) -> Callable[[Model, PreparedTask], tuple[Tensor, bool]]:
    """Every edge exchanged alone."""

    def run(model: Model, task: PreparedTask) -> tuple[Tensor, bool]:
        graph = graph_of(model)
        values = exact_edges(model, task, graph.edges(graph.exists), direction).mean(0)
        out = torch.zeros(graph.exists.shape)
        out[graph.cells[:, 0], graph.cells[:, 1]] = values.float()
        return out, False

    return run


METHODS: dict[str, Callable[[Model, PreparedTask], tuple[Tensor, bool]]] = {
    "eap noise": estimated(method="eap"),
    "eap denoise": estimated(method="eap", direction="denoise"),
    "eap-ig adaptive": estimated(method="eap-ig"),
    "signed": estimated(method="eap-ig"),
    "eap-ig 5 steps": estimated(method="eap-ig", steps=5),
    "grad drop": estimated(method="eap", grad_drop=True),
    "relevance": relevant,
    "exact noise": exact("noise"),
    "exact denoise": exact("denoise"),
    "flow": lambda model, task: (flow(model, task).matrix(), False),
}


NODE_METHODS: dict[str, Callable[[Model, PreparedTask], tuple[Tensor, bool]]] = {
    "eap": nodes(lambda model, task: attribute(model, task, AttributionPlan("eap", "node"))),
    "eap-ig adaptive": nodes(lambda model, task: attribute(model, task, AttributionPlan("eap-ig", "node"))),
    "atp": nodes(qk_fix),
    "relevance": nodes(relevance),
    "exact noise": exact_writers("noise"),
    "exact denoise": exact_writers("denoise"),
}


def markdown(rows: dict[str, dict[str, Cell]], precision: bool) -> str:
    """Truths down, methods across."""
    nodes = "atp" in next(iter(rows.values()))
    methods, what = (list(NODE_METHODS), "nodes") if nodes else (list(METHODS), "edges")
    lines = [_line(["truth", "true", what, *methods]), _line(["---", *["---:"] * (2 + len(methods))])]
    values = {name: {method: _number(cell[0], precision) for method, cell in row.items()} for name, row in rows.items()}
    for name, row in rows.items():
        first = next(iter(row.values()))[0]
        shown = [f"{values[name][method]:.3f}{'*' if row[method][1] else ''}" if method in row else "" for method in methods]
        lines.append(_line([name, str(first.n_true), str(first.n), *shown]))
    counts = [_count([row[method] for row in values.values() if method in row], len(rows)) for method in methods]
    return "\n".join([*lines, _line([f"at {FOUND} or more, of {len(rows)}", "", "", *counts])])


def _count(values: Sequence[float], n: int) -> str:
    found = sum(value >= FOUND for value in values)
    return str(found) if len(values) == n else f"{found} of {len(values)}"


def _number(found: Roc, precision: bool) -> float:
    return found.average_precision if precision else found.auroc


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
