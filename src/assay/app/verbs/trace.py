"""`trace`, `trace_show`, `intervene`: the attribution graph of one prompt, and what its nodes do when they are changed.

`intervene` compares what the graph says with what the model does. It needs the graph as it was traced, not the part that is
shown; the last one is held, others are traced again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assay.app import explore
from assay.app.arguments import integer, number, string, strings
from assay.app.blocks import Edge, Fact, Node, Point, column, facts, graph, href, scatter, table, text
from assay.app.results import keep_result
from assay.app.verbs import Report, Result, verb
from assay.errors import bad_argument, missing

if TYPE_CHECKING:
    from assay.app.workspace import Workspace
    from assay.circuits.trace_graph import AttributionGraph
    from assay.circuits.trace_validate import Changed
    from assay.features.dictionary import Dictionary
    from assay.model.model import Model

FOLDER = "graphs"
MOST_NODES, MOST_EDGES = 3000, 30_000  # of a picture
LISTED = 15
READS = ("mlp_in", "resid_mid", "resid_pre")
_HELD: dict[tuple[str, str], "AttributionGraph"] = {}  # the last whole graph, by atlas and id


@verb("trace", "read", "Attribution graph of one prompt, through transcoders: which latents make the model say what it"
      " says next. With validate, some are switched off in the model to test the graph (needs the role intervene).", long=True,
      required=("prompt",), model=explore.model_name(), prompt=string("The text whose next token is explained.", longest=4000),
      dictionaries=strings("Names of transcoders. Default: those kept or shipped for the model.", 400),
      nodes=number("Share of influence that the nodes kept must have.", 0.8, 0.01, 1.0),
      edges=number("Share of edge influence that the edges kept must have.", 0.98, 0.01, 1.0),
      logits=integer("Most logits to explain.", 5, 1, 50), most=integer("Most latents to trace.", 4096, 1, 16384),
      validate=integer("Latents to switch off in the model to test the graph.", 0, 0, 64), seed=explore.seed())  # fmt: skip
def trace(workspace: "Workspace", arguments: explore.Arguments, report: Report) -> Result:
    from assay.circuits.trace_validate import ValidatePlan, validate_trace

    if arguments["validate"]:
        explore.also_needs(workspace, "trace", "intervene", "validate")
    report("loading the model", 0, 1)
    with workspace.using(arguments.get("model")) as model:
        explore.look_at_texts(workspace, model, "trace", [arguments["prompt"]])
        dictionaries = transcoders(workspace, model, arguments.get("dictionaries") or ())
        whole = _traced(model, dictionaries, arguments, report)
        shown = _shown(whole, dictionaries, arguments)
        if arguments["validate"] and bool(whole.of("latent").any()):
            plan = ValidatePlan(arguments["validate"], seed=arguments["seed"])
            progress = explore.steps(report, "testing", 2 * plan.n)
            shown = replace(shown, validation=validate_trace(model, dictionaries, whole, plan, progress=progress).json())
        name = _keep(workspace, shown)
        _hold(workspace, name, whole)
        record = {"graph": name, **graph_record(shown)}
        given = {**arguments, "graph": name}
        return keep_result(workspace.atlas, "trace", given, model.digest, f"“{arguments['prompt'][:60]}”",
                           {"record": record, "blocks": graph_blocks(shown, name)})  # fmt: skip


@verb("trace_show", "read", "A kept attribution graph: its most influential nodes and what feeds one of them.",
      required=("graph",), graph=string("Its id, as trace gives it.", longest=64),
      node=string("A node, to see what feeds it and what it feeds.", longest=100))  # fmt: skip
def trace_show(workspace: "Workspace", arguments: explore.Arguments, report: Report) -> Result:
    held = read_graph(workspace, arguments["graph"])
    record = {"graph": arguments["graph"], **graph_record(held)}
    blocks = graph_blocks(held, arguments["graph"])
    if "node" in arguments:
        node = arguments["node"]
        record |= {"node": node, "fed_by": held.strongest(node, LISTED), "feeds": held.strongest(node, LISTED, out=True)}
        blocks = [*node_blocks(held, node), *blocks]
    return {"record": record, "blocks": blocks}


@verb("intervene", "intervene",
      "Change one latent of an attribution graph in the model: what the graph predicts, and what happens.",
      changes="edited", required=("graph", "node"), graph=string("Its id, as trace gives it.", longest=64),
      node=string("A latent of it, latent.LAYER.NUMBER@TOKEN.", longest=100),
      factor=number("What its activation is multiplied by; 0 switches it off.", 0.0, -10, 10))  # fmt: skip
def intervene(workspace: "Workspace", arguments: explore.Arguments, report: Report) -> Result:
    from assay.circuits.trace_validate import change_latent

    kept = read_graph(workspace, arguments["graph"])
    report("loading the model", 0, 2)
    with workspace.using(_name_of(workspace, kept)) as model:
        dictionaries = transcoders(workspace, model, [str(about["name"]) for about in kept.dictionaries])
        whole = _whole(workspace, model, dictionaries, kept, arguments["graph"], report)
        report("changing it", 1, 2)
        found = change_latent(model, dictionaries, whole, arguments["node"], arguments["factor"])
        record = changed_record(whole, found)
        return keep_result(workspace.atlas, "intervene", arguments, model.digest,
                           f"{arguments['node']} × {arguments['factor']:g}",
                           {"record": record, "blocks": changed_blocks(whole, found, record)})  # fmt: skip


# making and keeping --------------------------------------------------------------------------------


def transcoders(workspace: "Workspace", model: "Model", names: Sequence[str]) -> "list[Dictionary]":
    """The named dictionaries, else one transcoder per layer that is kept or shipped for the model; by layer written.

    Raises UsageError where there is none.
    """
    from assay.circuits.trace_run import is_transcoder

    if names:
        found = [workspace.dictionary(name) for name in names]
    else:
        by_output: dict[str, str] = {}
        for row in explore.own_dictionaries(workspace, model.name):
            if _transcodes(row["spec"]):
                by_output.setdefault(str(row["spec"]["outputs"]), row["digest"])
        found = [workspace.dictionary(digest) for digest in by_output.values()]
    kept = [each for each in found if is_transcoder(each)]
    if not kept or len(kept) < len(found):
        raise bad_argument("dictionaries", ", ".join(each.name for each in found) or f"none for {model.name}",
                           "transcoders, mlp_in.L to mlp_out.L", "Train some: assay dictionary train --help")  # fmt: skip
    return sorted(kept, key=lambda each: int(each.spec.outputs[0].split(".")[1]))


def _transcodes(spec: Mapping[str, Any]) -> bool:
    inputs, outputs = spec.get("inputs") or (), spec.get("outputs") or ()
    return bool(inputs and outputs) and all(site.startswith("mlp_out.") for site in outputs) and all(
        site.split(".")[0] in READS for site in inputs)  # fmt: skip


def _traced(model: "Model", dictionaries: "Sequence[Dictionary]", arguments: Mapping[str, Any], report: Report) -> Any:
    from assay.circuits.trace import TracePlan
    from assay.circuits.trace import trace as traced

    plan = TracePlan(logits=int(arguments["logits"]), most=int(arguments["most"]))
    plan.check()
    return traced(model, arguments["prompt"], dictionaries, plan, progress=explore.steps(report, "tracing"))


def _shown(whole: "AttributionGraph", dictionaries: "Sequence[Dictionary]", arguments: Mapping[str, Any]) -> Any:
    """The part with the shares of influence that were asked for, with groups proposed."""
    from assay.circuits.trace import decoders_of
    from assay.circuits.trace_graph import suggest_supernodes

    small = whole.prune(arguments["nodes"], arguments["edges"])
    return small.grouped(suggest_supernodes(small, decoders_of(small, dictionaries)))


def _keep(workspace: "Workspace", shown: "AttributionGraph") -> str:
    """Write the graph and its row in the atlas; its id."""
    from assay.atlas.features import record_graph
    from assay.atlas.linked import link_graph
    from assay.circuits.trace_formats import slug, trace_json, write_trace
    from assay.records import digest

    record = trace_json(shown)
    name = digest(record)[:16]
    title = shown.prompt or "".join(shown.texts)
    path = workspace.atlas / FOLDER / f"{slug(f'{Path(shown.model).name} {title}')[:80]}-{name[:8]}.json"
    write_trace(path, shown)
    body = {key: value for key, value in record.items() if key not in ("nodes", "edges")}
    record_graph(workspace.store, name, shown.model, str(shown.prompt), path, body)
    link_graph(workspace.store, name, shown)
    return name


def read_graph(workspace: "Workspace", name: str) -> "AttributionGraph":
    """A kept graph by id. Raises UsageError for another, or one whose file is gone."""
    from assay.atlas.features import graphs
    from assay.circuits.trace_formats import read_trace

    rows = {row["id"]: row for row in graphs(workspace.store)}
    if name not in rows:
        raise missing("graph", name, ", ".join([*rows][-4:]) or "none is kept yet", "Make one: trace.")
    path = Path(rows[name]["file"])
    path = path if path.is_file() else workspace.atlas / FOLDER / path.name  # an atlas that was moved
    if not path.is_file():
        raise bad_argument("graph", name, f"one whose file is there; {path} is gone", "Trace it again: trace.")
    return read_trace(path)


def _hold(workspace: "Workspace", name: str, whole: "AttributionGraph") -> None:
    """Only the last one: a whole graph has many thousand nodes."""
    _HELD.clear()
    _HELD[str(workspace.atlas.resolve()), name] = whole


def _whole(
    workspace: "Workspace", model: "Model", dictionaries: "Sequence[Dictionary]", kept: "AttributionGraph", name: str,
    report: Report,
) -> "AttributionGraph":  # fmt: skip
    """The graph as it was traced: held, or traced again by its plan."""
    from assay.circuits.trace import TracePlan
    from assay.circuits.trace import trace as traced

    held = _HELD.get((str(workspace.atlas.resolve()), name))
    if held is not None:
        return held
    plan = kept.plan
    again = TracePlan(int(plan.get("logits", 10)), float(plan.get("mass", 0.95)), int(plan.get("most", 8192)),
                      tuple(plan.get("targets", ())), int(plan.get("position", -1)))  # fmt: skip
    whole = traced(model, kept.prompt or list(kept.tokens), dictionaries, again, progress=explore.steps(report, "tracing"))
    _hold(workspace, name, whole)
    return whole


def _name_of(workspace: "Workspace", kept: "AttributionGraph") -> str | None:
    """The model of a graph where it is offered; else the workspace's own, which the graph is then checked against."""
    return kept.model if kept.model in workspace.models() else None


# what is shown -------------------------------------------------------------------------------------


def graph_record(shown: "AttributionGraph") -> dict[str, Any]:
    """What a graph says, small enough to read: logits, the most influential latents, scores, groups, its test."""
    from assay.report.trace_figures import about, label_of

    order = [at for at in shown.influence.argsort(descending=True).tolist() if shown.nodes[at].kind == "latent"]
    logits = [node for node in shown.nodes if node.kind == "logit"]
    return {
        "model": shown.model, "prompt": shown.prompt, "tokens": list(shown.texts), "nodes": len(shown.nodes),
        "edges": shown.n_edges, "scores": dict(shown.scores), "notes": list(shown.notes),
        "logits": [{"token": node.label, "probability": node.probability} for node in logits],
        "latents": [{"node": shown.nodes[at].name, "label": label_of(shown, shown.nodes[at]),
                     "where": about(shown, shown.nodes[at]), "influence": float(shown.influence[at])}
                    for at in order[:LISTED]],
        "groups": [{"label": label, "nodes": list(members)} for label, members in shown.supernodes[:LISTED]],
        "validation": shown.validation,
    }  # fmt: skip


def graph_blocks(shown: "AttributionGraph", name: str) -> list[Any]:
    """The layered graph with what can be done to its nodes, its logits and its test."""
    from assay.report.trace_figures import label_of, scores_words, title_of, validation_rows

    nodes, edges = _drawn(shown)
    layers = ["tokens", *(f"layer {layer}" for layer in range(shown.n_layers)), "logits"]
    logits = [{"token": label_of(shown, node), "probability": node.probability} for node in shown.nodes if node.kind == "logit"]
    items: list[Fact] = [{"label": "prompt", "value": title_of(shown)}, {"label": "model", "value": shown.model},
                         {"label": "nodes", "value": len(shown.nodes)}, {"label": "direct effects", "value": shown.n_edges},
                         {"label": "scores", "value": scores_words(shown)}]  # fmt: skip
    test = [table("graph-test", [column("what", "changes of"), column("pearson", "Pearson"), column("spearman", "Spearman"),
                                 column("slope", "slope"), column("n", "changed"), column("pairs", "pairs")],
                  validation_rows(shown), title="Latents switched off in the model: predicted against measured")
            ] if shown.validation else [text("graph-test", "This graph was not tested in the model. Run trace with validate, or"
                                             " change a node below.")]  # fmt: skip
    return [
        facts("graph-facts", items),
        graph("graph", nodes, edges, layers, list(shown.texts), title="Attribution graph", help="attribution graph",
              note="Attention patterns and norms are held as they are on this prompt. Errors are what the transcoders leave"
                   " over.", intervene={"verb": "intervene", "arguments": {"graph": name}}),
        table("graph-logits", [column("token", "what would come next"), column("probability", "probability", "percent")],
              logits),
        *test,
        *([text("graph-notes", *shown.notes)] if shown.notes else []),
    ]  # fmt: skip


def _drawn(shown: "AttributionGraph") -> tuple[list[Node], list[Edge]]:
    """Nodes at layer and token; the most influential, and the strongest effects between them."""
    from assay.report.trace_figures import about, label_of

    groups = {name: label for label, members in shown.supernodes for name in members}
    outer = [at for at, node in enumerate(shown.nodes) if node.kind in ("embed", "logit")]
    inner = [at for at in shown.influence.argsort(descending=True).tolist() if shown.nodes[at].kind in ("latent", "error")]
    chosen = sorted([*outer, *inner][:MOST_NODES])
    nodes: list[Node] = []
    for at in chosen:
        node = shown.nodes[at]
        row = 0 if node.kind == "embed" else shown.n_layers + 1 if node.kind == "logit" else 1 + (node.layer or 0)
        made: Node = {"id": node.name, "label": label_of(shown, node), "layer": row, "position": node.position,
                      "value": float(shown.influence[at]), "kind": node.kind, "text": about(shown, node)}  # fmt: skip
        if node.name in groups:
            made["group"] = groups[node.name]
        nodes.append(made)
    drawn = set(chosen)
    edges: list[Edge] = [{"from": shown.nodes[a].name, "to": shown.nodes[b].name, "weight": weight}
                         for a, b, weight in shown.edges() if a in drawn and b in drawn]  # fmt: skip
    return nodes, edges[:MOST_EDGES]


def node_blocks(held: "AttributionGraph", node: str) -> list[Any]:
    """What feeds a node, and what it feeds."""
    columns = [column("node", "node"), column("effect", "direct effect", "bar")]
    sides = (("graph-into", "What feeds it", False), ("graph-out", "What it feeds", True))
    return [table(name, columns, [{"node": other, "effect": effect} for other, effect in held.strongest(node, LISTED, out)],
                  title=f"{node}: {title[0].lower()}{title[1:]}") for name, title, out in sides]  # fmt: skip


def changed_record(whole: "AttributionGraph", found: "Changed") -> dict[str, Any]:
    """Predicted and measured changes: how well they agree, and the largest."""
    import numpy as np

    from assay.circuits.trace_validate import pearson

    said, seen = np.array(found.predicted), np.array(found.measured)
    logits = [at for at, name in enumerate(found.nodes) if name.startswith("logit.")]
    order = sorted(range(len(found.nodes)), key=lambda at: -abs(found.measured[at]))
    shown = list(dict.fromkeys([*logits, *order[:LISTED]]))
    return {
        "node": found.node, "factor": found.factor, "reached": len(found.nodes), "pearson": pearson(said, seen),
        "slope": float(said @ seen / (said @ said)) if said @ said else None,
        "changes": [{"node": found.nodes[at], "label": whole.nodes[whole.number[found.nodes[at]]].label,
                     "predicted": found.predicted[at], "direct": found.direct[at], "measured": found.measured[at]}
                    for at in shown],
    }  # fmt: skip


def changed_blocks(whole: "AttributionGraph", found: "Changed", record: Mapping[str, Any]) -> list[Any]:
    """Predicted against real, as points and as rows."""
    points: list[Point] = [{"x": x, "y": y, "label": name, "group": "logits" if name.startswith("logit.") else "latents"}
              for name, x, y in zip(found.nodes, found.predicted, found.measured, strict=True)]  # fmt: skip
    columns = [column("node", "node"), column("label", "token"), column("predicted", "predicted", "number"),
               column("direct", "by the direct effect alone", "number"), column("measured", "in the model", "number")]
    agree = "not defined" if record["pearson"] is None else f"{record['pearson']:.2f}"
    slope = "not defined" if record["slope"] is None else f"{record['slope']:.2f}"
    return [
        facts("changed-facts", [{"label": "changed", "value": found.node}, {"label": "multiplied by", "value": found.factor},
                                {"label": "correlation of predicted and real", "value": agree},
                                {"label": "slope", "value": slope, "note": "1: as large as predicted"}]),
        scatter("changed", points[:MOST_NODES], {"label": "change that the graph predicts"}, {"label": "change in the model"},
                title="Predicted against real", note="One latent says little: with validate, many are tested, with controls."),
        table("changed-rows", columns, record["changes"], title="Largest changes, and the logits"),
    ]  # fmt: skip


def graph_href(name: str) -> str:
    """The page of a graph."""
    return href("graph", graph=name)
