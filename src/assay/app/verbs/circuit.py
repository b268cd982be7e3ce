"""`circuit_find`, `circuit_test`, `circuit_show`: from a behaviour to a tested subgraph."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from assay.app import explore
from assay.app.arguments import flag, integer, number, string
from assay.app.blocks import Edge, Fact, Line, Node, facts, graph, line, table
from assay.app.blocks import column as table_column
from assay.app.blocks import text as paragraphs
from assay.app.results import keep_result
from assay.app.verbs import Report, Result, verb
from assay.errors import bad_argument, missing

if TYPE_CHECKING:
    from assay.app.workspace import Workspace
    from assay.circuits.find import FoundCircuit
    from assay.circuits.formats import Circuit
    from assay.circuits.graph import Graph
    from assay.sites import Site

FOLDER = "circuits"
SHOWN = 20  # edges that are listed
METHODS = ("eap-ig", "eap", "atp", "exact", "information-flow", "relevance")


@verb("circuit_find", "intervene", "Find the smallest circuit that carries a task: scored on discover, sized on tune. States"
      " the claim that it does; nothing sealed is read. Test it with circuit_test.", long=True, changes="edited",
      required=("task",),
      model=explore.model_name(), task=explore.data_name("task"), corruption=string("Of a bundled task. Default: its first."),
      method=string("How edges are scored.", "eap-ig", METHODS),
      level=string("edge or node. Default: edge; of atp and relevance node.", choices=("edge", "node")),
      target=number("Share of the effect on tune that it must carry.", 0.85, 0.01, 1.0),
      n=explore.size(20), tune=explore.size(16), confirm=integer("Pairs the claim will be tested on.", 60, 8, 2000),
      ood=integer("Pairs of further templates it will be tested on.", 30, 8, 2000),
      draws=integer("Random circuits the claim will be compared with.", 19, 1, 200),
      state=flag("State the claim that it carries the task.", True), seed=explore.seed())  # fmt: skip
def circuit_find(workspace: "Workspace", arguments: explore.Arguments, report: Report) -> Result:
    from assay.atlas.circuits import Search, search_circuit
    from assay.circuits.find import FindPlan, level_of

    level = level_of(arguments["method"], arguments.get("level"))
    plan = FindPlan(arguments["method"], level, arguments["target"], seed=arguments["seed"])
    plan.check()
    source = explore.task_of(workspace, arguments["task"], arguments.get("corruption"))
    search = Search(plan, arguments["n"], *(arguments[size] for size in ("tune", "confirm", "ood", "draws")))
    pairs = search.pairs(source)
    report("loading the model", 0, 1)
    with workspace.using(arguments.get("model")) as model:
        kept = search_circuit(workspace.store, model, source, search, pairs, report, state=arguments["state"])
        record = {**_summary(kept.circuit, kept.found), "circuit": kept.path.stem, "claim": kept.claim and kept.claim.id,
                  "stated_before": kept.before, "warnings": list(kept.warnings)}  # fmt: skip
        result: Result = {"record": record, "blocks": [*circuit_blocks(kept.circuit), *curve_blocks(kept.found)]}
        title = f"{source.name}: circuit by {plan.method}"
        return keep_result(workspace.atlas, "circuit_find", arguments, model.digest, title, result)


@verb("circuit_test", "intervene", "Test the claim about a circuit on sealed data, once. This spends its confirm data.",
      long=True, spends=True, required=("circuit",), circuit=string("Its name, as circuit_find gives it.", longest=400),
      model=explore.model_name())  # fmt: skip
def circuit_test(workspace: "Workspace", arguments: explore.Arguments, report: Report) -> Result:
    from assay.app.verbs.claims import tested

    held = read(workspace, arguments["circuit"])
    claim = held.plan.get("claim")
    if not isinstance(claim, str):
        raise bad_argument("circuit", arguments["circuit"], "a circuit that a claim was stated about", "Run circuit_find.")
    return tested(workspace, claim, arguments.get("model"), report)


@verb("circuit_show", "read", "A kept circuit: its edges, strongest first, and how faithful circuits of other sizes are.",
      required=("circuit",), circuit=string("Its name.", longest=400))  # fmt: skip
def circuit_show(workspace: "Workspace", arguments: explore.Arguments, report: Report) -> Result:
    held = read(workspace, arguments["circuit"])
    record = {"circuit": arguments["circuit"], **_edges(held, None), "claim": held.plan.get("claim")}
    return {"record": record, "blocks": circuit_blocks(held)}


# kept circuits -------------------------------------------------------------------------------------


def names(workspace: "Workspace") -> list[str]:
    """Circuits of the atlas, newest first."""
    found = sorted((workspace.atlas / FOLDER).glob("*.json"), key=lambda path: -path.stat().st_mtime)
    return [path.stem for path in found]


def read(workspace: "Workspace", name: str) -> "Circuit":
    """A circuit of the atlas by name. Raises UsageError for another."""
    from assay.circuits.formats import read_circuit

    known = names(workspace)
    if name not in known:
        raise missing("circuit", name, ", ".join(known) or "none is kept yet", "Make one: circuit_find.")
    return read_circuit(workspace.atlas / FOLDER / f"{name}.json")


# what is shown -------------------------------------------------------------------------------------


def _edges(held: "Circuit", most: int | None = SHOWN) -> dict[str, Any]:
    """How many edges, and the strongest."""
    cells = held.strongest()
    rows = [{"edge": str(held.graph.name(cell)), "score": score if (score := float(held.scores[cell])) == score else None}
            for cell in cells[:most]]  # fmt: skip
    return {"task": held.task, "model": held.model, "n_edges": len(cells), "of": held.graph.n_edges, "edges": rows}


def _summary(made: "Circuit", found: "FoundCircuit") -> dict[str, Any]:
    """What was found, small enough to read."""
    from assay.records import plain

    chosen = {how: curve.points[found.chosen] for how, curve in found.curves.items()}
    return {
        **_edges(made), "parts": len(found.parts), "level": found.plan.level, "method": found.plan.method,
        "faithfulness": {how: plain(point.f) for how, point in chosen.items()},
        "unexplained": plain(chosen["resample"].unexplained), "random": found.controls.get(found.chosen, []),
    }  # fmt: skip


def circuit_blocks(held: "Circuit", most: int = 400) -> list[Any]:
    """The layered graph and its strongest edges."""
    cells = held.strongest()[:most]
    nodes, edges = _layered(held, cells)
    shown = _edges(held)
    share = shown["n_edges"] / max(1, shown["of"])
    items: list[Fact] = [{"label": "task", "value": held.task or "not named"}, {"label": "edges", "value": shown["n_edges"],
                          "note": f"of {shown['of']} ({share:.1%})"},
                         {"label": "model", "value": held.model or "not named"}]  # fmt: skip
    if isinstance(claim := held.plan.get("claim"), str):
        items.append({"label": "claim", "value": claim, "href": f"#/claim?claim={claim}"})
    rows = [{"edge": row["edge"], "score": row["score"]} for row in shown["edges"]]
    return [
        facts("circuit-facts", items),
        graph("circuit-graph", nodes, edges, layer_names(held.graph), position_names(held.graph), title="The circuit",
              note="Edges into a head are summed over its query, key and value. Width: |score|; the sign says whether the edge"
                   " works for or against the behaviour."),
        table("circuit-edges", [table_column("edge", "edge"), table_column("score", "score", "bar")], rows,
              title="Strongest edges"),
    ]  # fmt: skip


def curve_blocks(found: "FoundCircuit") -> list[Any]:
    """Faithfulness on tune over the size of the circuit, by ablation, and that of random circuits."""
    points = found.curves["resample"].points
    series: list[Line] = [
        {"label": how, "points": [{"x": float(point.share), "y": point.f.value, "low": point.f.low, "high": point.f.high}
                                  for point in curve.points]} for how, curve in found.curves.items()]  # fmt: skip
    random: Line = {"label": "random circuits", "points": [{"x": float(points[at].share), "y": value} for at in found.controls
                                                           for value in found.controls[at]]}  # fmt: skip
    chosen = points[found.chosen]
    return [
        line("circuit-curve", [*series, random], {"label": "share of all edges", "log": True},
             {"label": "faithfulness on tune"}, marks=[{"x": float(chosen.share), "label": "chosen"}, {"y": found.plan.target,
             "label": "target"}], title="How much of the behaviour circuits of each size carry", help="faithfulness"),
        paragraphs("circuit-unexplained", f"Not explained by the chosen circuit: {chosen.unexplained.value:.0%} of the effect"
                   " on tune. The size was chosen by looking; sealed data decide."),
    ]  # fmt: skip


def layer_names(whole: "Graph") -> list[str]:
    """Rows of the picture, from the embedding up."""
    inner = [f"{part} {layer}" for layer in range(whole.n_layers) for part in ("heads", "MLP")]
    return ["embedding", *inner, "logits"]


def position_names(whole: "Graph") -> list[str]:
    """Columns of the picture: heads and the MLP, or classes of positions."""
    return list(whole.classes) or [*(f"head {head}" for head in range(whole.n_heads)), "MLP"]


def _layered(held: "Circuit", cells: Sequence[tuple[int, int]]) -> tuple[list[Node], list[Edge]]:
    """Nodes at their layer, and one edge between two nodes: the sum over what the reader reads with."""
    weights: dict[tuple[str, str], float] = {}
    for cell in cells:
        score = float(held.scores[cell])
        writer, reader = held.graph.writers[cell[0]], held.graph.readers[cell[1]]
        targets = held.graph.node_of(reader) or (reader,)
        for target in targets:
            key = str(writer), str(target)
            weights[key] = weights.get(key, 0.0) + (score if score == score else 0.0) / len(targets)
    sites = {str(site): site for site in (*held.graph.writers, *(r for r in held.graph.readers if r.name == "logits"))}
    used = {name for pair in weights for name in pair}
    size = {name: sum(abs(weight) for pair, weight in weights.items() if name in pair) for name in used}
    nodes = [_node(held.graph, sites[name], size[name]) for name in sites if name in used]
    return nodes, [{"from": a, "to": b, "weight": weight} for (a, b), weight in weights.items()]


def _node(whole: "Graph", site: "Site", value: float) -> Node:
    from assay.circuits.graph import END, site_of

    head = site.name == "z" and site.index is not None
    row = {"embed": 0, "logits": 2 * whole.n_layers + 1}.get(site.name, 2 * (site.layer or 0) + (1 if head else 2))
    place = float(site.index or 0) if head else float(whole.n_heads) if site.layer is not None else whole.n_heads / 2
    if whole.classes:
        place = float(whole.classes.index(getattr(site, "at", END)))
    kind = "head" if head else site.name if site.layer is None else "mlp"
    return {"id": str(site), "label": str(site_of(site)), "layer": row, "position": place, "value": value, "kind": kind}
