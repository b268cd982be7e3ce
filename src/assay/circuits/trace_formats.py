"""Attribution graphs as files: Assay's own JSON, the graph JSON of circuit-tracer and Neuronpedia, GraphML.

1. Assay's JSON: nodes with names, values and influence, edges `[from, to, effect]`, biases, scores, groups, validation, and
   where it comes from. Nothing is lost.
2. Graph JSON (`metadata`, `qParams`, `nodes`, `links`; circuit-tracer writes it, Neuronpedia shows it). Feature nodes are
   `LAYER_FEATURE_POS` with `feature` the Cantor pair of layer and number, tokens `E_TOKEN_POS`, logits
   `LAYERS+1_TOKEN_POS`. There, errors are `0_LAYER_POS`, which is also the id of feature LAYER of layer 0: here they are
   `error_LAYER_POS`, so that every id is one node. `influence` of a node is cumulative: the share that must be kept for
   the node to stay.
3. On reading, ids are resolved by what nodes say of themselves (layer, feature, position), not by their form. A file in
   which two nodes have one id is read as far as it is clear: what such an id is the target of belongs to the feature, since
   errors have no inputs; the rest is said in a note.
4. GraphML: nodes and effects, for graph tools.

Files are data: their size is limited, names and numbers are checked, and an error names the key.
"""

import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from assay.circuits.formats import _File
from assay.circuits.trace_graph import AttributionGraph, TraceNode
from assay.errors import bad_argument
from assay.files import write_file

FORMAT, VERSION = "assay-attribution-graph", 1
FORMATS = ("assay", "neuronpedia", "graphml")
MOST_NODES, MOST_EDGES = 20_000, 5_000_000
FEATURE, ERROR, TOKEN, LOGIT = "cross layer transcoder", "mlp reconstruction error", "embedding", "logit"
KIND = {FEATURE: "latent", ERROR: "error", TOKEN: "embed", LOGIT: "logit"}
OUTPUT = re.compile(r'Output "(.*)" \(p=[\d.]+\)', re.S)  # how theirs calls a logit
SLUG = re.compile(r"[^a-z0-9]+")


def write_trace(path: str | Path, graph: AttributionGraph, form: str = "assay") -> Path:
    """Write a graph in one of FORMATS. Raises UsageError for one too large for a file: prune it first."""
    if form not in FORMATS:
        raise bad_argument("format", form, ", ".join(FORMATS))
    if form == "graphml":
        content = graphml(graph)
    else:
        record = trace_json(graph) if form == "assay" else neuronpedia_json(graph, slug(Path(path).stem))
        content = json.dumps(record, indent=1, allow_nan=False).encode()
    write_file(Path(path), content)
    return Path(path)


def read_trace(path: str | Path) -> AttributionGraph:
    """Read a graph in Assay's or circuit-tracer's JSON, told apart by content. Raises UsageError with the key at fault."""
    file = _File(Path(path))
    data = file.object(file.json(), "the file")
    if data.get("format") == FORMAT:
        return _Own(file, data).graph()
    if "metadata" in data and "nodes" in data and "links" in data:
        return _Theirs(file, data).graph()
    raise file.wrong("format", data.get("format"), f"{FORMAT!r}, or a file with metadata, nodes and links")


# Assay's own -------------------------------------------------------------------------------------


def trace_json(graph: AttributionGraph) -> dict[str, Any]:
    """The graph as plain data."""
    _fits(graph)
    names = [node.name for node in graph.nodes]
    numbers = zip(graph.bias.tolist(), graph.influence.tolist(), graph.cumulative.tolist(), strict=True)
    about = [dict(zip(("bias", "influence", "cumulative"), row, strict=True)) for row in numbers]
    return {
        "format": FORMAT, "version": VERSION, "model": graph.model, "model_digest": graph.digest, "prompt": graph.prompt,
        "tokens": list(graph.tokens), "texts": list(graph.texts), "n_layers": graph.n_layers,
        "dictionaries": [dict(about) for about in graph.dictionaries], "plan": _plain(graph.plan),
        "scores": _plain(graph.scores), "notes": list(graph.notes),
        "validation": None if graph.validation is None else _plain(graph.validation),
        "nodes": [{"name": node.name, **asdict(node), **own} for node, own in zip(graph.nodes, about, strict=True)],
        "edges": [[names[s], names[t], effect] for s, t, effect in graph.edges()],
        "supernodes": [{"label": label, "nodes": list(members)} for label, members in graph.supernodes],
    }  # fmt: skip


class _Own:
    """What `trace_json` made."""

    def __init__(self, file: _File, data: Mapping[str, Any]) -> None:
        self.file, self.data = file, data
        file.needs(data, ("nodes", "edges", "texts", "n_layers"))
        if data.get("version") != VERSION:
            raise file.wrong("version", data.get("version"), str(VERSION))
        given = [file.object(each, "dictionaries") for each in _list(file, data, "dictionaries", MOST_NODES, [])]
        for at, each in enumerate(given):
            file.needs(each, ("name", "digest"))
            if not isinstance(each["name"], str) or not isinstance(each["digest"], str):
                raise file.wrong(f"dictionaries[{at}]", dict(each), "name and digest as texts")
        self.dictionaries = tuple(dict(each) for each in given)

    def _part(self, key: str) -> dict[str, Any]:
        """An object, empty where there is none."""
        return dict(self.file.object(self.data.get(key) or {}, key))

    def _validation(self) -> dict[str, Any] | None:
        if self.data.get("validation") is None:
            return None
        found = self._part("validation")
        _finite(self.file, found.get("factor"), "validation.factor")
        rows = self.file.object(found.get("agreement"), "validation.agreement")
        for name, row in rows.items():
            self.file.object(row, f"validation.agreement.{name}")
        return found

    def graph(self) -> AttributionGraph:
        file, data = self.file, self.data
        rows = [file.object(row, f"nodes[{at}]") for at, row in enumerate(_list(file, data, "nodes", MOST_NODES))]
        nodes = tuple(self._node(at, row) for at, row in enumerate(rows))
        number = {node.name: at for at, node in enumerate(nodes)}
        if len(number) < len(nodes):
            raise file.wrong("nodes", "two nodes of one name", "one node for each name")
        effects = torch.zeros(len(nodes), len(nodes))
        for at, edge in enumerate(_list(file, data, "edges", MOST_EDGES)):
            ends = edge[:2] if isinstance(edge, list) and len(edge) == 3 else [None]
            if not all(isinstance(end, str) and end in number for end in ends):
                raise file.wrong(f"edges[{at}]", edge, "[from, to, effect] with names of nodes")
            effects[number[edge[1]], number[edge[0]]] = _finite(file, edge[2], f"edges[{at}]")
        if bool(effects.triu().any()):
            raise file.wrong("edges", "an edge to an earlier node", "edges from earlier to later nodes")
        bias, influence, ranks = (
            torch.tensor([_finite(file, row.get(key, 0.0), key) for row in rows]) for key in ("bias", "influence", "cumulative")
        )
        groups = [file.object(group, "supernodes") for group in _list(file, data, "supernodes", MOST_NODES, [])]
        graph = AttributionGraph(
            nodes, effects, bias, influence, _texts(file, data, "texts"), file.count(data, "n_layers", "the file"),
            tuple(_ints(file, data, "tokens")), file.text(data, "prompt"), file.text(data, "model"),
            file.text(data, "model_digest"),
            self.dictionaries, self._part("plan"), self._part("scores"), (), self._validation(),
            _texts(file, data, "notes"), ranks,
        )  # fmt: skip
        return graph.grouped([(file.text(group, "label"), _texts(file, group, "nodes")) for group in groups])

    def _node(self, at: int, row: Mapping[str, Any]) -> TraceNode:
        file, key = self.file, f"nodes[{at}]"
        kind = file.text(row, "kind")
        if kind not in KIND.values():
            raise file.wrong(f"{key}.kind", kind, ", ".join(KIND.values()))
        numbers = {name: _whole(file, row.get(name), f"{key}.{name}") for name in ("layer", "index", "dictionary")}
        needs = {"latent": ("layer", "index"), "error": ("layer",), "embed": (), "logit": ("index",)}[kind]
        if missing := [name for name in needs if numbers[name] is None]:
            raise file.wrong(f"{key}.{missing[0]}", None, "a whole number")
        if (of := numbers["dictionary"]) is not None and of >= len(self.dictionaries):
            raise file.wrong(f"{key}.dictionary", of, f"one of the {len(self.dictionaries)} dictionaries, counted from 0")
        value, probability = (
            None if row.get(name) is None else _finite(file, row[name], f"{key}.{name}") for name in ("value", "probability")
        )
        return TraceNode(kind, file.count(row, "position", key, 0), numbers["layer"], numbers["index"], value, probability,
                         numbers["dictionary"], file.text(row, "label"))  # fmt: skip


# circuit-tracer and Neuronpedia ------------------------------------------------------------------


def neuronpedia_json(graph: AttributionGraph, name: str, scan: str = "") -> dict[str, Any]:
    """The graph as circuit-tracer writes it. `scan`: what Neuronpedia knows the dictionaries as; default: their digests."""
    from importlib.metadata import version

    _fits(graph)
    last = max((node.position for node in graph.nodes if node.kind == "logit"), default=0)
    ids = [node_id(graph, node) for node in graph.nodes]
    first = next((at for at, node in enumerate(graph.nodes) if node.kind == "logit"), -1)
    scan = scan or "-".join(["assay", *(about["digest"][:8] for about in graph.dictionaries[:1]), str(len(graph.dictionaries))])
    return {
        "metadata": {
            "slug": name, "scan": scan, "transcoder_list": [str(about["name"]) for about in graph.dictionaries],
            "prompt_tokens": list(graph.texts), "prompt": graph.prompt or "".join(graph.texts), "schema_version": 1,
            "node_threshold": graph.plan.get("kept_nodes"),
            "info": {"generator": {"name": "assay", "version": version("assay")},
                     "description": "; ".join([f"model {graph.model}", *graph.notes])},
            "generation_settings": {"max_n_logits": graph.plan.get("logits"), "desired_logit_prob": graph.plan.get("mass"),
                                    "max_feature_nodes": graph.plan.get("most")},
            "pruning_settings": {"node_threshold": graph.plan.get("kept_nodes"),
                                 "edge_threshold": graph.plan.get("kept_edges")},
            "replacement_score": graph.scores.get("replacement"), "completeness_score": graph.scores.get("completeness"),
        },
        "qParams": {"pinnedIds": [], "supernodes": [[label, *(ids[graph.number[m]] for m in members)]
                                                    for label, members in graph.supernodes],
                    "linkType": "both", "clickedId": "", "sg_pos": ""},
        "nodes": [_their_node(graph, at, ids[at], at == first, last) for at in range(len(graph.nodes))],
        "links": [{"source": ids[s], "target": ids[t], "weight": effect} for s, t, effect in graph.edges()],
    }  # fmt: skip


def node_id(graph: AttributionGraph, node: TraceNode) -> str:
    """The id of a node in a graph JSON: one for each node, whatever its layer and number."""
    if node.kind == "latent":
        return f"{node.layer}_{own_number(graph, node)}_{node.position}"
    if node.kind == "error":
        return f"error_{node.layer}_{node.position}"
    return f"{'E' if node.kind == 'embed' else graph.n_layers + 1}_{node.index}_{node.position}"


def own_number(graph: AttributionGraph, node: TraceNode) -> int:
    """The number of a latent among those of its layer: in a cross-layer dictionary every layer has a group of its own."""
    about = graph.dictionaries[node.dictionary] if node.dictionary is not None and graph.dictionaries else {}
    return (node.index or 0) % (about.get("group") or (node.index or 0) + 1)


def cantor(a: int, b: int) -> int:
    """One number for two."""
    return (a + b) * (a + b + 1) // 2 + b


def uncantor(z: int) -> tuple[int, int]:
    """The two numbers of one."""
    w = (math.isqrt(8 * z + 1) - 1) // 2
    b = z - w * (w + 1) // 2
    return w - b, b


def _their_node(graph: AttributionGraph, at: int, own: str, target: bool, last: int) -> dict[str, Any]:
    node = graph.nodes[at]
    kind = next(theirs for theirs, ours in KIND.items() if ours == node.kind)
    layer = {"embed": "E", "logit": str(graph.n_layers + 1)}.get(node.kind, str(node.layer))
    number = own_number(graph, node) if node.kind == "latent" else 0
    feature = {"latent": cantor(node.layer or 0, number), "error": -1, "embed": node.position, "logit": node.index}[node.kind]
    js = {"latent": f"{node.layer}_{number}-0", "error": f"error_{node.layer}_{node.position}-0",
          "embed": f"E_{node.index}-{node.position}", "logit": f"L_{node.index}-{node.position}"}[node.kind]  # fmt: skip
    probability = node.probability or 0.0
    clerp = f'Output "{node.label.replace("(p=", "(p ")}" (p={probability:.3f})' if node.kind == "logit" else ""
    return {"node_id": own, "feature": feature, "layer": layer, "ctx_idx": node.position, "feature_type": kind, "jsNodeId": js,
            "token_prob": probability, "is_target_logit": target, "run_idx": 0, "reverse_ctx_idx": last - node.position,
            "clerp": clerp or (node.label if node.kind == "latent" else ""),
            "influence": None if node.kind == "logit" else float(graph.cumulative[at]),
            "activation": node.value if node.kind == "latent" else None}  # fmt: skip


class _Theirs:
    """A graph JSON of circuit-tracer or Neuronpedia."""

    def __init__(self, file: _File, data: Mapping[str, Any]) -> None:
        self.file, self.data, self.notes = file, data, list[str]()
        self.meta = file.object(data["metadata"], "metadata")
        self.texts = _texts(file, self.meta, "prompt_tokens")
        self.rows = [file.object(row, f"nodes[{at}]") for at, row in enumerate(_list(file, data, "nodes", MOST_NODES))]

    def graph(self) -> AttributionGraph:
        found = [self._node(at, row) for at, row in enumerate(self.rows)]
        depth = {"embed": -1, "logit": 1 << 30}
        keys = [(depth.get(node.kind, node.layer or 0), node.kind == "error", node.position) for node in found]
        order = sorted(range(len(found)), key=keys.__getitem__)
        nodes = tuple(found[at] for at in order)
        self.place = {at: new for new, at in enumerate(order)}
        self._check_names(nodes)
        effects = self._effects(nodes)
        given = [self.rows[at].get("influence") for at in order]
        cumulative = [None if value is None else _finite(self.file, value, "influence") for value in given]
        influence, ranks = _shares(cumulative), torch.tensor([1.0 if value is None else value for value in cumulative])
        layers = [node.layer for node in nodes if node.layer is not None]
        tokens = {node.position: node.index for node in nodes if node.kind == "embed"}
        known = len(tokens) == len(self.texts) and all(value is not None for value in tokens.values())
        settings = self.file.object(self.meta.get("generation_settings") or {}, "generation_settings")
        plan = {"kept_nodes": self.meta.get("node_threshold"), **settings}
        graph = AttributionGraph(
            nodes, effects, torch.zeros(len(nodes)), influence, self.texts, self._n_layers(layers),
            tuple(int(tokens[at] or 0) for at in sorted(tokens)) if known else (), self.file.text(self.meta, "prompt"),
            model=str(self.meta.get("scan", "")), dictionaries=self._dictionaries(), plan=plan, scores=self._scores(),
            notes=tuple(self.notes), ranks=ranks,
        )  # fmt: skip
        return graph.grouped(self._groups(nodes))

    def _scores(self) -> dict[str, float]:
        """Of the graph that was traced, where a file has them."""
        given = {name: self.meta.get(f"{name}_score") for name in ("replacement", "completeness")}
        return {name: float(value) for name, value in given.items() if isinstance(value, int | float) and math.isfinite(value)}

    def _n_layers(self, layers: Sequence[int]) -> int:
        """From logits, which are at layer n + 1, where a file has one; else as many as there are nodes of."""
        said = [
            int(row["layer"]) - 1 for row in self.rows if row.get("feature_type") == LOGIT and _digits(str(row.get("layer")))
        ]
        most = max(layers, default=-1) + 1
        return max(most, min(said)) if said else most

    def _dictionaries(self) -> tuple[Mapping[str, Any], ...]:
        names = self.meta.get("transcoder_list") or []
        if not isinstance(names, list):
            raise self.file.wrong("transcoder_list", names, "a list of names")
        return tuple({"name": str(name), "digest": "", "group": None} for name in names if isinstance(name, str))

    def _node(self, at: int, row: Mapping[str, Any]) -> TraceNode:
        file, key = self.file, f"nodes[{at}]"
        file.needs(row, ("node_id", "layer", "ctx_idx", "feature_type"))
        kind = KIND.get(str(row["feature_type"]))
        if kind is None:
            raise file.wrong(f"{key}.feature_type", row["feature_type"], ", ".join(KIND))
        position = file.count(row, "ctx_idx", key, 0)
        layer = None
        if kind in ("latent", "error"):
            if not re.fullmatch(r"[0-9]{1,6}", str(row["layer"])):
                raise file.wrong(f"{key}.layer", row["layer"], "a layer number")
            layer = int(row["layer"])
        value, probability = (
            None if row.get(k) is None else _finite(file, row[k], f"{key}.{k}") for k in ("activation", "token_prob")
        )
        label = file.text(row, "clerp")
        if kind == "embed":
            label = self.texts[position] if position < len(self.texts) else ""
        elif kind == "logit" and (said := OUTPUT.fullmatch(label)):
            label = said[1]
        return TraceNode(kind, position, layer, self._index(row, kind, layer, position), value,
                         probability if kind == "logit" else None, None, label)  # fmt: skip

    def _index(self, row: Mapping[str, Any], kind: str, layer: int | None, position: int) -> int | None:
        """The number of a feature, or the token of an embedding or logit, as the id or else the `feature` says."""
        if kind == "error":
            return None
        parts = str(row["node_id"]).split("_")
        plain = len(parts) == 3 and all(map(_digits, parts[1:])) and int(parts[2]) == position
        feature = row.get("feature")
        if kind == "latent":
            if plain and parts[0] == str(layer):
                return int(parts[1])
            if type(feature) is int and feature >= 0:
                pair = uncantor(feature)
                return pair[1] if self.meta.get("schema_version") == 1 and pair[0] == layer else feature
            raise self.file.wrong("node_id", row["node_id"], "LAYER_FEATURE_POS, or a feature number")
        if plain:
            return int(parts[1])
        return feature if type(feature) is int and kind == "logit" else None

    def _check_names(self, nodes: Sequence[TraceNode]) -> None:
        names = [node.name for node in nodes]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise self.file.wrong("nodes", f"{twice} twice", "every feature, error, token and logit once")

    def _effects(self, nodes: Sequence[TraceNode]) -> Tensor:
        by_id: dict[str, list[int]] = {}
        for at, row in enumerate(self.rows):
            by_id.setdefault(str(row["node_id"]), []).append(self.place[at])
        shared = {own for own, places in by_id.items() if len(places) > 1}
        effects, seen, backwards = torch.zeros(len(nodes), len(nodes)), set[tuple[int, int]](), 0
        for number, link in enumerate(_list(self.file, self.data, "links", MOST_EDGES)):
            link, key = self.file.object(link, f"links[{number}]"), f"links[{number}]"
            ends = [by_id.get(str(link.get(side))) for side in ("source", "target")]
            if ends[0] is None or ends[1] is None:
                raise self.file.wrong(key, [link.get("source"), link.get("target")], "ids of nodes")
            target = next((p for p in ends[1] if nodes[p].kind != "error"), ends[1][0])
            before = [p for p in ends[0] if p < target] or ends[0]
            source = next((p for p in before if (p, target) not in seen), before[0])
            seen.add((source, target))
            if source >= target:
                backwards += 1
                continue
            effects[target, source] = _finite(self.file, link.get("weight"), f"{key}.weight")
        if shared:
            self.notes.append(f"{len(shared)} ids stand for two nodes each ({', '.join(sorted(shared)[:3])}): of links"
                              " from them the first is taken as the feature's, a second as the error's")  # fmt: skip
        if backwards:
            self.notes.append(f"{backwards} links run backwards or within a layer and are left out")
        return effects

    def _groups(self, nodes: Sequence[TraceNode]) -> list[tuple[str, list[str]]]:
        ids: dict[str, str] = {}
        for at, row in enumerate(self.rows):
            ids.setdefault(str(row["node_id"]), nodes[self.place[at]].name)
        held = self.data.get("qParams")
        groups = held.get("supernodes") if isinstance(held, Mapping) else None
        out, used = [], set[str]()
        for group in groups if isinstance(groups, list) else []:
            if not isinstance(group, list) or not all(isinstance(item, str) for item in group) or not group:
                raise self.file.wrong("qParams.supernodes", group, "[label, ids of nodes ..]")
            members = [ids[item] for item in group[1:] if item in ids and ids[item] not in used]
            used.update(members)
            if members:
                out.append((group[0], members))
        return out


def _shares(cumulative: Sequence[float | None]) -> Tensor:
    """Shares of influence out of cumulative ones: differences in order; 0 for nodes without one.

    Shares fall in that order, so one larger than the share before it holds those of nodes that were pruned, and is cut to that:
    after a gap it is an upper bound.
    """
    out = torch.zeros(len(cumulative))
    before, last = 0.0, math.inf
    for value, at in sorted((value, at) for at, value in enumerate(cumulative) if value is not None):
        share = min(max(0.0, value - before), last)
        out[at], before, last = share, value, share or last
    return out


# GraphML -----------------------------------------------------------------------------------------


def graphml(graph: AttributionGraph) -> bytes:
    """Nodes with kind, layer, position, value and influence; edges with their effects."""
    import networkx

    _fits(graph)
    about = {key: value for key, value in graph.scores.items() if isinstance(value, int | float) and math.isfinite(value)}
    out = networkx.DiGraph()
    out.graph.update(model=graph.model, model_digest=graph.digest, prompt=_xml(graph.prompt), **about)
    groups = {name: label for label, members in graph.supernodes for name in members}
    for at, node in enumerate(graph.nodes):
        known = {key: _xml(value) for key, value in asdict(node).items() if value not in (None, "")}
        grouped = {"group": _xml(groups[node.name])} if node.name in groups else {}
        out.add_node(node.name, **known, **grouped, influence=float(graph.influence[at]))
    for rank, (source, target, effect) in enumerate(graph.edges(), 1):
        out.add_edge(graph.nodes[source].name, graph.nodes[target].name, effect=effect, size=abs(effect), rank=rank)
    buffer = io.BytesIO()
    networkx.write_graphml_xml(out, buffer, named_key_ids=True)
    return buffer.getvalue()


def _xml(value: Any) -> Any:
    """Without the characters that XML cannot hold."""
    return (
        re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", value) if isinstance(value, str) else value
    )


# checks ------------------------------------------------------------------------------------------


def _digits(text: str) -> bool:
    return text.isascii() and text.isdecimal()


def slug(text: str) -> str:
    """A name for files and addresses."""
    return SLUG.sub("-", text.lower()).strip("-")[:60] or "graph"


def _fits(graph: AttributionGraph) -> None:
    if len(graph.nodes) > MOST_NODES or graph.n_edges > MOST_EDGES:
        got = f"{len(graph.nodes)} nodes and {graph.n_edges} edges"
        raise bad_argument("graph", got, f"up to {MOST_NODES} and {MOST_EDGES}", "Prune it first: graph.prune().")


def _list(file: _File, data: Mapping[str, Any], key: str, most: int, default: list[Any] | None = None) -> list[Any]:
    value = data.get(key, default)
    if not isinstance(value, list) or len(value) > most:
        raise file.wrong(key, f"{len(value)} items" if isinstance(value, list) else value, f"a list of up to {most}")
    return value


def _texts(file: _File, data: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = _list(file, data, key, MOST_NODES, [])
    if not all(isinstance(item, str) for item in value):
        raise file.wrong(key, value, "a list of texts")
    return tuple(value)


def _ints(file: _File, data: Mapping[str, Any], key: str) -> list[int]:
    value = _list(file, data, key, MOST_NODES, [])
    if not all(type(item) is int for item in value):
        raise file.wrong(key, value, "a list of whole numbers")
    return value


def _whole(file: _File, value: Any, key: str) -> int | None:
    if value is not None and (type(value) is not int or value < 0):
        raise file.wrong(key, value, "a whole number from 0")
    return value


def _finite(file: _File, value: Any, key: str) -> float:
    if type(value) not in (int, float) or not abs(value) < 3e38:
        raise file.wrong(key, value, "a finite number")
    return float(value)


def _plain(value: Any) -> Any:
    """Without NaN and tuples."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
