"""Circuits as files: Assay's own JSON, EAP-IG graphs (JSON and .pt), MIB submissions, GraphML.

1. Assay's JSON: the circuit's edges with their scores, its nodes, what was measured of it, and where it comes from: model
   digest, task, plan, sign. A score that was not made is null.
2. EAP-IG (hannamw/EAP-IG, eap/graph.py) has the same sources, `input`, `aL.hH`, `mL`, but a key and a value input for
   every query head. So on writing, a key or value edge of a group of n heads becomes n edges, each with 1/n of the score
   and the same membership; on reading, scores are added up and an edge is in the circuit where any of the n is. Where
   the n disagree, a note says so. An edge without a score is written as 0, which is what their loaders give it, and marked
   (`"scored": false`, or a tensor `edges_scored`, which they pass over): NaN would be the first that their top-n takes.
3. Sign. Their score is (corrupted - clean) . gradient of what the tool was given. Given a loss, as MIB does, positive means
   what it means here, that the edge `carries` the behaviour; given the metric itself, that it `opposes` it. Files written
   here say which; `sign` says it of files that do not, and one that contradicts the file is an error.
4. MIB: a folder TASK_MODEL with one file of importances, or nine circuits of at most .1 .. 50% of the edges, counted in
   their graph, where an edge into a key or value of a group counts n times. Their evaluator takes one file in the folder
   for importances, of every edge or of every node, and several for the nine, whatever they are called.
5. GraphML: writers and readers as nodes. Edges of kind `stream` carry scores; those of kind `inside` join the readers of a
   head or MLP with what it writes, so that paths can be followed.

Files are data: their size is limited, every name, number and shape is checked against the graph, and an error names the
key. `.pt` files are read as tensors only, never as objects.
"""

import io
import json
import math
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from assay.circuits.faithfulness import Faithfulness
from assay.circuits.graph import ARROW, EMBED, LOGITS, Graph, Node, make_graph, parse_node
from assay.errors import SiteError, UsageError, bad_argument
from assay.files import write_file
from assay.sites import Site

FORMAT, VERSION = "assay-circuit", 1
LARGEST = 256 * 1024 * 1024
MOST_CELLS = 1 << 26  # of a graph that a file describes
SIGNS = {
    "carries": "positive: corrupting the edge lowers the metric, so it carries the behaviour",
    "opposes": "positive: corrupting the edge raises the metric, so it works against the behaviour",
}
GROUPED = ("keys and values of grouped heads: every query head of the group has an equal share of the score and the"
           " membership of the whole; shares add up to the group's score")  # fmt: skip
SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
MIB_TASKS = ("ioi", "mcqa", "arithmetic-addition", "arithmetic-subtraction", "arc-easy", "arc-challenge")
# layers and heads of its models
MIB_MODELS = {"interpbench": (6, 4), "gpt2": (12, 12), "qwen2.5": (24, 14), "gemma2": (26, 8), "llama3": (32, 32)}
IMPORTANCES = "importances"
ALL_SCORES = "A search keeps them with: assay circuit find .. --all-scores"
READERS = {"q": "query", "k": "key", "v": "value", "mlp_in": "mlp input", "logits": "logits"}
WRITERS = {"embed": "embedding", "z": "head", "mlp_out": "mlp"}

Matrix = Float[Tensor, "writer reader"]
Mask = Bool[Tensor, "writer reader"]


# records -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """How faithful the `n_edges` strongest edges are: normalised, with the interval there is."""

    n_edges: int
    ablation: str
    value: float
    low: float | None = None
    high: float | None = None
    selection: str = ""


@dataclass(frozen=True, eq=False)
class Circuit:
    """A circuit with scores. Positive: carries the behaviour; NaN: not scored.

    `nodes` are scores of writers, `members` the writers in the circuit: those with an edge in it, unless a file says
    otherwise. `notes`: what a reader of a file must know.
    """

    graph: Graph
    mask: Mask
    scores: Matrix
    nodes: Float[Tensor, " writer"] | None = None
    members: Bool[Tensor, " writer"] | None = None
    d_model: int | None = None
    model: str = ""
    digest: str = ""
    task: str = ""
    plan: Mapping[str, Any] = field(default_factory=dict)
    faithfulness: tuple[Measured, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, matrix in (("mask", self.mask), ("scores", self.scores)):
            if matrix.shape != self.graph.exists.shape:
                raise bad_argument(name, tuple(matrix.shape), f"{tuple(self.graph.exists.shape)}, writers by readers")
        if bool((self.mask & ~self.graph.exists).any()):
            raise bad_argument("mask", "cells that are no edges", "edges of the graph")

    @property
    def writers(self) -> Bool[Tensor, " writer"]:
        """Writers in the circuit."""
        return self.mask.any(1) if self.members is None else self.members

    def strongest(self) -> list[tuple[int, int]]:
        """Cells of the circuit's edges, the largest |score| first, edges without a score last."""
        cells = (self.mask & self.graph.exists).nonzero()
        size = self.scores[cells[:, 0], cells[:, 1]].abs().nan_to_num(nan=-1.0)
        return [(int(w), int(r)) for w, r in cells[size.argsort(descending=True, stable=True)].tolist()]


def measured(found: Faithfulness) -> tuple[Measured, ...]:
    """Points of a faithfulness curve as they are kept with a circuit."""
    return tuple(Measured(p.n_edges, found.ablation, p.f.value, p.f.low, p.f.high, found.selection) for p in found.points)


# Assay's own JSON --------------------------------------------------------------------------------


def circuit_json(circuit: Circuit, *, others: bool = False) -> dict[str, Any]:
    """The circuit as plain data. `others`: also the scores of edges that are not in it."""
    graph, scored = circuit.graph, ~circuit.scores.isnan() & circuit.graph.exists
    out = {
        "format": FORMAT, "version": VERSION, "model": circuit.model, "model_digest": circuit.digest,
        "task": circuit.task, "plan": dict(circuit.plan), "sign": "carries", "sign_means": SIGNS["carries"],
        "graph": {"n_layers": graph.n_layers, "n_heads": graph.n_heads, "n_kv_heads": graph.n_kv_heads,
                  "parallel": list(graph.parallel), "d_model": circuit.d_model, "n_edges": graph.n_edges,
                  **({"classes": list(graph.classes)} if graph.classes else {})},
        "edges": _rows(circuit, circuit.strongest()),
        "nodes": [str(site) for site, kept in zip(graph.writers, circuit.writers.tolist(), strict=True) if kept],
        "faithfulness": [{"n_edges": m.n_edges, "ablation": m.ablation, "value": _number(m.value), "low": m.low,
                          "high": m.high, "selection": m.selection} for m in circuit.faithfulness],
    }  # fmt: skip
    if circuit.nodes is not None:
        named = zip(graph.writers, circuit.nodes.tolist(), strict=True)
        out["node_scores"] = {str(site): score for site, score in named if not math.isnan(score)}
    if others:
        out["other_edges"] = _rows(circuit, (scored & ~circuit.mask).nonzero().tolist())
    return out


def write_circuit(path: str | Path, circuit: Circuit, *, others: bool = False) -> Path:
    """Write Assay's JSON."""
    text = json.dumps(circuit_json(circuit, others=others), indent=1, ensure_ascii=False, allow_nan=False)
    return _write(path, text.encode() + b"\n")


def read_circuit(path: str | Path, graph: Graph | None = None) -> Circuit:
    """Read Assay's JSON. `graph`: of the model it should fit. Raises UsageError naming the key that does not."""
    file = _File(Path(path))
    data = file.object(file.json(), "the file")
    if data.get("format") != FORMAT or data.get("version") != VERSION:
        raise file.wrong("format", data.get("format"), f"{FORMAT!r}, version {VERSION}")
    own = _own_graph(file, file.object(data.get("graph"), "graph"))
    if graph is not None and not _same(own.plain, graph.plain):
        raise file.wrong("graph", _sizes(own), f"the model's, {_sizes(graph)}")
    sign = file.sign(data.get("sign"), None)
    width = None if data["graph"].get("d_model") is None else file.count(data["graph"], "d_model", "graph")
    out = Circuit(own, torch.zeros_like(own.exists), torch.full(own.exists.shape, math.nan))
    _own_edges(file, data, "edges", out, sign)
    _own_edges(file, data, "other_edges", out, sign)
    return replace(
        out, nodes=_own_nodes(file, data, own, sign), members=_own_members(file, data, own), d_model=width,
        model=file.text(data, "model"), digest=file.text(data, "model_digest"), task=file.text(data, "task"),
        plan=file.object(data.get("plan", {}), "plan"), faithfulness=_own_measured(file, data),
    )  # fmt: skip


def _rows(circuit: Circuit, cells: Iterable[Sequence[int]]) -> list[dict[str, Any]]:
    writers, readers = circuit.graph.writers, circuit.graph.readers
    return [{"from": str(writers[w]), "to": str(readers[r]), "score": _number(float(circuit.scores[w, r]))} for w, r in cells]


def _own_graph(file: "_File", sizes: Mapping[str, Any]) -> Graph:
    layers, heads, kv = (file.count(sizes, name, "graph") for name in ("n_layers", "n_heads", "n_kv_heads"))
    parallel = sizes.get("parallel")
    if not isinstance(parallel, list) or len(parallel) != layers or not all(type(each) is bool for each in parallel):
        raise file.wrong("graph.parallel", parallel, f"true or false for each of {layers} layers")
    if heads % kv:
        raise file.wrong("graph.n_kv_heads", kv, f"a divisor of {heads} heads")
    classes = sizes.get("classes", [])
    if not isinstance(classes, list) or not all(type(each) is str for each in classes):
        raise file.wrong("graph.classes", classes, "a list of names")
    file.fits(layers, heads, len(classes) or 1)
    try:
        return make_graph(heads, kv, parallel, classes)
    except UsageError as error:
        raise file.wrong("graph.classes", classes, str(error)) from error


def _own_edges(file: "_File", data: Mapping[str, Any], key: str, out: Circuit, sign: int) -> None:
    rows = data.get(key, [] if key == "other_edges" else None)
    if not isinstance(rows, list):
        raise file.wrong(key, rows, "a list of edges")
    seen: set[tuple[int, int]] = set()
    for number, row in enumerate(rows):
        where = f"{key}[{number}]"
        row = file.object(row, where)
        name = f"{row.get('from')}{ARROW}{row.get('to')}"
        try:
            cell = out.graph.edge(name)
        except UsageError as error:
            raise UsageError(f"{file.path}, key {where!r}: {error}") from error
        if cell in seen or not math.isnan(float(out.scores[cell])):
            raise file.wrong(where, name, "every edge once")
        seen.add(cell)
        out.scores[cell] = sign * file.score(row.get("score"), f"{where}.score")
        out.mask[cell] = key == "edges"


def _own_nodes(file: "_File", data: Mapping[str, Any], graph: Graph, sign: int) -> Tensor | None:
    if "node_scores" not in data:
        return None
    out = torch.full((len(graph.writers),), math.nan)
    for name, score in file.object(data["node_scores"], "node_scores").items():
        out[_writer(file, graph, name, "node_scores")] = sign * file.score(score, f"node_scores.{name}")
    return out


def _own_members(file: "_File", data: Mapping[str, Any], graph: Graph) -> Tensor:
    names = data.get("nodes")
    if not isinstance(names, list):
        raise file.wrong("nodes", names, "a list of nodes")
    out = torch.zeros(len(graph.writers), dtype=torch.bool)
    for name in names:
        out[_writer(file, graph, name, "nodes")] = True
    return out


def _writer(file: "_File", graph: Graph, name: Any, key: str) -> int:
    try:
        return graph.writer_number[parse_node(str(name))]
    except (KeyError, SiteError) as error:
        raise file.wrong(key, name, "writers of this model: embed, z.L.H, mlp_out.L") from error


def _own_measured(file: "_File", data: Mapping[str, Any]) -> tuple[Measured, ...]:
    rows = data.get("faithfulness", [])
    if not isinstance(rows, list):
        raise file.wrong("faithfulness", rows, "a list")
    out = []
    for number, row in enumerate(rows):
        key = f"faithfulness[{number}]"
        row = file.object(row, key)
        low, high = (None if row.get(k) is None else file.score(row[k], f"{key}.{k}") for k in ("low", "high"))
        out.append(Measured(file.count(row, "n_edges", key, least=0), file.text(row, "ablation"),
                            file.score(row.get("value"), f"{key}.value"), low, high, file.text(row, "selection")))  # fmt: skip
    return tuple(out)


# EAP-IG ------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Ungrouped:
    """A graph as EAP-IG has it: `column` is our reader of each of their destinations."""

    graph: Graph

    @cached_property
    def sources(self) -> list[str]:
        return [_their_name(site) for site in self.graph.writers]

    @cached_property
    def targets(self) -> list[str]:
        """Queries, keys, values of a layer's heads, then its MLP; logits last."""
        return [name for reader in self.graph.readers for name in self._names(reader)]

    @cached_property
    def column(self) -> Int[Tensor, " theirs"]:
        return torch.tensor([n for n, reader in enumerate(self.graph.readers) for _ in self._names(reader)])

    @cached_property
    def heads(self) -> Int[Tensor, " reader"]:
        """Their edges for each edge into this reader."""
        return torch.bincount(self.column, minlength=len(self.graph.readers))

    @cached_property
    def exists(self) -> Bool[Tensor, "writer theirs"]:
        return self.graph.exists[:, self.column]

    @cached_property
    def n_edges(self) -> int:
        return int(self.exists.sum())

    def count(self, mask: Mask) -> int:
        """Edges of a circuit, in their graph."""
        return int((mask & self.graph.exists).long().sum(0) @ self.heads)

    def spread(self, scores: Matrix) -> Float[Tensor, "writer theirs"]:
        """Our scores in equal shares."""
        return (scores / self.heads)[:, self.column]

    def folded(self, scores: Float[Tensor, "writer theirs"]) -> tuple[Matrix, int]:
        """Sums over groups, NaN where nothing was scored; how many edges were scored in part."""
        scored = self._sum((~scores.isnan()).float())
        sums = self._sum(scores.nan_to_num(nan=0.0, posinf=math.inf, neginf=-math.inf))
        partly = (scored > 0) & (scored < self.heads) & self.graph.exists
        return sums.masked_fill((scored == 0) | ~self.graph.exists, math.nan), int(partly.sum())

    def joined(self, kept: Bool[Tensor, "writer theirs"]) -> tuple[Mask, int]:
        """Membership, any of a group; how many groups disagree."""
        count = self._sum(kept.float())
        return (count > 0) & self.graph.exists, int(((count > 0) & (count < self.heads)).sum())

    def _sum(self, values: Float[Tensor, "writer theirs"]) -> Matrix:
        return torch.zeros(self.graph.exists.shape).index_add_(1, self.column, values.float())

    def _names(self, reader: Site) -> list[str]:
        if reader == LOGITS or reader.name == "mlp_in":
            return [_their_name(reader)]
        return [f"{_their_name(head)}<{reader.name}>" for head in self.graph.node_of(reader)]


def write_eap_json(path: str | Path, circuit: Circuit) -> Path:
    """An EAP-IG graph as JSON. Needs `d_model`; a model with parallel blocks in some layers only cannot be written."""
    cfg, theirs = _cfg(circuit), Ungrouped(circuit.graph)
    scores, kept = theirs.spread(circuit.scores), circuit.mask[:, theirs.column].tolist()
    known, shown = (~scores.isnan()).tolist(), scores.nan_to_num(nan=0.0).tolist()
    members = zip(theirs.sources, circuit.writers.tolist(), strict=True)
    named: dict[str, dict[str, Any]] = {name: {"in_graph": flag} for name, flag in members}
    if circuit.nodes is not None:
        for name, score in zip(theirs.sources, circuit.nodes.tolist(), strict=True):
            named[name]["score"] = score
    edges = {f"{theirs.sources[s]}{ARROW}{theirs.targets[t]}":
             {"score": shown[s][t], "in_graph": kept[s][t], **({} if known[s][t] else {"scored": False})}
             for s, t in theirs.exists.nonzero().tolist()}  # fmt: skip
    data = {"cfg": cfg, "nodes": {**named, "logits": {"in_graph": True}}, "edges": edges, "assay": _about(circuit)}
    return _write(path, json.dumps(data).encode())


def write_eap_pt(path: str | Path, circuit: Circuit) -> Path:
    """The same as tensors in a .pt file."""
    cfg, theirs = _cfg(circuit), Ungrouped(circuit.graph)
    scores = theirs.spread(circuit.scores).masked_fill(~theirs.exists, 0.0)
    data: dict[str, Any] = {
        "cfg": cfg, "src_nodes": theirs.sources, "dst_nodes": theirs.targets,
        "edges_scores": scores.nan_to_num(nan=0.0).contiguous(), "edges_scored": ~scores.isnan() & theirs.exists,
        "edges_in_graph": circuit.mask[:, theirs.column].contiguous(), "nodes_in_graph": circuit.writers.clone(),
        "assay": _about(circuit),
    }  # fmt: skip
    if circuit.nodes is not None:
        data["nodes_scores"] = circuit.nodes.float().clone()
    buffer = io.BytesIO()
    torch.save(data, buffer)
    return _write(path, buffer.getvalue())


def read_eap(path: str | Path, graph: Graph | None = None, *, sign: str | None = None) -> Circuit:
    """An EAP-IG graph, .json or .pt. Without a `graph`, the file's own, every head with its own key and value.

    `sign`: what positive means in the file, "carries" or "opposes"; None: what the file says, else "carries", with a note.
    """
    file = _File(Path(path))
    if file.path.suffix.lower() not in (".json", ".pt"):
        raise bad_argument("path", str(path), ".json or .pt")
    return (_read_json if file.path.suffix.lower() == ".json" else _read_pt)(file, graph, sign)


@dataclass(frozen=True, eq=False)
class _Theirs:
    """What a file holds, in their graph."""

    cfg: Mapping[str, Any]
    scores: Float[Tensor, "writer theirs"]
    kept: Bool[Tensor, "writer theirs"]
    nodes: Float[Tensor, " writer"] | None
    members: Bool[Tensor, " writer"]
    about: Any
    notes: list[str]


def _read_json(file: "_File", graph: Graph | None, sign: str | None) -> Circuit:
    data = file.object(file.json(), "the file")
    file.needs(data, ("cfg", "nodes", "edges"))
    cfg = file.object(data["cfg"], "cfg")
    theirs = Ungrouped(_their_graph(file, cfg, graph))
    notes: list[str] = []
    nodes, members = _json_nodes(file, file.object(data["nodes"], "nodes"), theirs, notes)
    scores, kept = _json_edges(file, file.object(data["edges"], "edges"), theirs, notes)
    return _folded(file, theirs, _Theirs(cfg, scores, kept, nodes, members, data.get("assay"), notes), sign)


def _json_nodes(
    file: "_File", named: Mapping[str, Any], theirs: Ungrouped, notes: list[str]
) -> tuple[Tensor | None, Tensor]:
    place = {name: number for number, name in enumerate(theirs.sources)}
    scores, kept = torch.full((len(place),), math.nan), torch.zeros(len(place), dtype=torch.bool)
    for name, row in named.items():
        row = file.object(row, f"nodes.{name}")
        if name == "logits":
            continue
        if name not in place:
            raise file.wrong(f"nodes.{name}", name, f"nodes of this graph: {_kinds(theirs)}")
        kept[place[name]] = file.flag(row, "in_graph", f"nodes.{name}")
        if row.get("score") is not None:
            scores[place[name]] = file.score(row["score"], f"nodes.{name}.score")
    if any("neurons" in row or "neurons_scores" in row for row in named.values()):
        notes.append("single neurons of the file are not read")
    missing = len(place) - sum(name in place for name in named)
    if missing:
        notes.append(f"{missing} of {len(place)} nodes are not in the file: not in the circuit")
    return (None if bool(scores.isnan().all()) else scores), kept


def _json_edges(
    file: "_File", named: Mapping[str, Any], theirs: Ungrouped, notes: list[str]
) -> tuple[Tensor, Tensor]:
    exists = theirs.exists.numpy()  # one cell at a time is slow in torch
    scores, kept = np.full(exists.shape, math.nan, np.float32), np.zeros_like(exists)
    source = {name: number for number, name in enumerate(theirs.sources)}
    target = {name: number for number, name in enumerate(theirs.targets)}
    for name, row in named.items():
        key = f"edges.{name}"
        ends = name.split(ARROW)
        if len(ends) != 2 or ends[0] not in source or ends[1] not in target:
            raise file.wrong(key, name, f"SOURCE{ARROW}TARGET between nodes of this graph: {_kinds(theirs)}")
        cell = source[ends[0]], target[ends[1]]
        if not exists[cell]:
            raise file.wrong(key, name, "a source that comes before its target in this model")
        row = file.object(row, key)
        kept[cell] = file.flag(row, "in_graph", key)
        if "scored" not in row or file.flag(row, "scored", key):
            scores[cell] = file.score(row.get("score"), f"{key}.score")
    if len(named) < theirs.n_edges:
        notes.append(f"{theirs.n_edges - len(named)} of {theirs.n_edges} edges are not in the file:"
                     " not scored, not in the circuit")  # fmt: skip
    return torch.from_numpy(scores), torch.from_numpy(kept)


def _read_pt(file: "_File", graph: Graph | None, sign: str | None) -> Circuit:
    data = file.tensors()
    file.needs(data, ("cfg", "src_nodes", "dst_nodes", "edges_scores", "edges_in_graph", "nodes_in_graph"))
    cfg = file.object(data["cfg"], "cfg")
    theirs = Ungrouped(_their_graph(file, cfg, graph))
    for key, names in (("src_nodes", theirs.sources), ("dst_nodes", theirs.targets)):
        if data[key] != names:
            allowed = f"the {len(names)} names of this graph in order: {_kinds(theirs)}"
            raise file.wrong(key, _difference(data[key], names), allowed)
    shape, n = tuple(theirs.exists.shape), len(theirs.sources)
    scores = file.tensor(data, "edges_scores", shape).float()
    if "edges_scored" in data:
        scores = scores.masked_fill(~file.tensor(data, "edges_scored", shape, torch.bool), math.nan)
    kept = file.tensor(data, "edges_in_graph", shape, torch.bool)
    if strange := int((kept & ~theirs.exists).sum()):
        raise file.wrong("edges_in_graph", f"{strange} cells that are no edges", "edges of this graph")
    nodes = file.tensor(data, "nodes_scores", (n,)).float() if data.get("nodes_scores") is not None else None
    members = file.tensor(data, "nodes_in_graph", (n,), torch.bool)
    notes = ["single neurons of the file are not read"] if data.get("neurons_in_graph") is not None else []
    return _folded(file, theirs, _Theirs(cfg, scores, kept, nodes, members, data.get("assay"), notes), sign)


def _folded(file: "_File", theirs: Ungrouped, read: _Theirs, sign: str | None) -> Circuit:
    notes = list(read.notes)
    about = read.about if isinstance(read.about, Mapping) else {}
    direction = file.sign(about.get("sign"), sign)
    if sign is None and about.get("sign") is None:
        notes.append("the file does not say its sign; read as: " + SIGNS["carries"])
    scores, partly = theirs.folded(read.scores)
    mask, split = theirs.joined(read.kept)
    if partly:
        notes.append(f"{partly} edges into keys or values were scored for some query heads of their group only: sums of those")
    if split:
        notes.append(f"{split} edges into keys or values are in the circuit for some query heads of their group only:"
                     " taken as in the circuit")  # fmt: skip
    if bool((mask.any(1) & ~read.members).any()):
        notes.append("some nodes have edges in the circuit and are not in it themselves")
    return Circuit(theirs.graph, mask, direction * scores, None if read.nodes is None else direction * read.nodes, read.members,
                   read.cfg["d_model"], notes=tuple(notes))  # fmt: skip


def _their_graph(file: "_File", cfg: Mapping[str, Any], graph: Graph | None) -> Graph:
    layers, heads = (file.count(cfg, name, "cfg") for name in ("n_layers", "n_heads"))
    file.count(cfg, "d_model", "cfg")
    parallel = file.flag(cfg, "parallel_attn_mlp", "cfg")
    if graph is None:
        file.fits(layers, heads)
        return make_graph(heads, heads, [parallel] * layers)
    for key, got, own in (("n_layers", layers, graph.n_layers), ("n_heads", heads, graph.n_heads)):
        if got != own:
            raise file.wrong(f"cfg.{key}", got, f"{own}, as in the model")
    if set(graph.parallel) != {parallel}:
        raise file.wrong("cfg.parallel_attn_mlp", parallel, f"as in the model, whose blocks are {_blocks(graph)}")
    return graph


def _cfg(circuit: Circuit) -> dict[str, Any]:
    graph = circuit.graph
    if graph.classes:
        raise bad_argument("circuit", f"nodes at classes of positions ({', '.join(graph.classes)})", "nodes at all positions",
                           "EAP-IG and MIB have no others; GraphML holds them.")  # fmt: skip
    if len(set(graph.parallel)) != 1:
        blocks = f"blocks that are {_blocks(graph)}"
        raise bad_argument("circuit", blocks, "one kind of block in all layers", "EAP-IG has no other.")
    if circuit.d_model is None:
        raise bad_argument("d_model", None, "the width of the model's residual stream", "EAP-IG files need it.")
    return {"n_layers": graph.n_layers, "n_heads": graph.n_heads, "parallel_attn_mlp": graph.parallel[0],
            "d_model": circuit.d_model}  # fmt: skip


def _about(circuit: Circuit) -> dict[str, str]:
    """Their reader passes over this key."""
    return {"sign": "carries", "sign_means": SIGNS["carries"], "groups": GROUPED, "model": circuit.model,
            "model_digest": circuit.digest, "task": circuit.task}  # fmt: skip


def _their_name(site: Site) -> str:
    if site == EMBED:
        return "input"
    if site == LOGITS:
        return "logits"
    return f"a{site.layer}.h{site.index}" if site.name == "z" else f"m{site.layer}"


def _kinds(theirs: Ungrouped) -> str:
    layers, heads = theirs.graph.n_layers, theirs.graph.n_heads
    return f"input, aL.hH, mL, logits with L below {layers} and H below {heads}; heads are read as aL.hH<q>, <k> or <v>"


def _difference(got: Any, names: list[str]) -> str:
    if not isinstance(got, list) or len(got) != len(names):
        return f"{len(got)} names" if isinstance(got, list) else type(got).__name__
    return next(f"{a!r} in place of {b!r}" for a, b in zip(got, names, strict=True) if a != b)


# MIB ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class MibEntry:
    """One folder of a submission: importances, or nine circuits from small to large."""

    task: str
    model: str
    importances: Circuit | None
    circuits: tuple[Circuit, ...] = ()


def write_mib(
    folder: str | Path, circuit: Circuit, *, task: str, model: str, select: str | None = None, suffix: str = ".json"
) -> Path:
    """The folder TASK_MODEL of a submission: one file of importances, or nine circuits chosen by `select`.

    Raises UsageError for edges without a score (importances may also be those of nodes alone, each with a score), and
    for a folder that holds other files, which their evaluator would read with these.
    """
    target = Path(folder) / mib_name(task, model)
    if suffix not in (".json", ".pt"):
        raise bad_argument("suffix", suffix, ".json or .pt")
    if select is None:
        _importances(circuit)
        found = {f"{IMPORTANCES}{suffix}": circuit}
    else:
        found = {f"circuit_{100 * share:g}{suffix}": replace(circuit, mask=mask, members=None)
                 for share, mask in zip(SHARES, mib_circuits(circuit, select), strict=True)}  # fmt: skip
    if others := sorted({path.name for path in target.glob("*")} - set(found)):
        raise bad_argument("folder", f"{target} with {', '.join(others[:3])}", "a folder without other files",
                           "Their evaluator reads all there is in it: write to another, or remove them.")  # fmt: skip
    for name, each in found.items():
        (write_eap_json if suffix == ".json" else write_eap_pt)(target / name, each)
    return target


def mib_mismatch(graph: Graph, model: str) -> str | None:
    """What keeps MIB's evaluator from running a circuit of this graph as one of `model`, in words."""
    layers, heads = MIB_MODELS[model]
    if (graph.n_layers, graph.n_heads) == (layers, heads):
        return None
    return (f"{model} of MIB has {layers} layers of {heads} heads, this circuit's model {graph.n_layers} of {graph.n_heads}:"
            " their evaluator will not run it")  # fmt: skip


def _importances(circuit: Circuit) -> None:
    scored = ~circuit.scores.isnan() & circuit.graph.exists
    by_node = not bool(scored.any()) and circuit.nodes is not None
    lacking = int(circuit.nodes.isnan().sum()) if by_node and circuit.nodes is not None else _unscored(circuit)
    if lacking:
        kind = "nodes" if by_node else "edges"
        raise bad_argument("scores", f"{lacking} {kind} without a score", f"a score for every one of the {kind}", ALL_SCORES)


def _unscored(circuit: Circuit) -> int:
    return int((circuit.scores.isnan() & circuit.graph.exists).sum())


def mib_circuits(circuit: Circuit, select: str) -> list[Mask]:
    """Nine circuits: as many of the strongest edges as fit, by "abs" (|score|) or "signed" score, counted in their graph."""
    if select not in ("abs", "signed"):
        raise bad_argument("select", select, "abs or signed")
    theirs, cells = Ungrouped(circuit.graph), circuit.graph.cells
    values = circuit.scores[cells[:, 0], cells[:, 1]]
    if lacking := _unscored(circuit):
        raise bad_argument("scores", f"{lacking} edges without a score", "a score for every one of the edges", ALL_SCORES)
    order = cells[(values.abs() if select == "abs" else values).argsort(descending=True, stable=True)]
    cost = theirs.heads[order[:, 1]].cumsum(0)
    out = []
    for share in SHARES:
        kept = order[cost <= share * theirs.n_edges + 1e-9]
        mask = torch.zeros_like(circuit.graph.exists)
        mask[kept[:, 0], kept[:, 1]] = True
        out.append(mask)
    return out


def read_mib(folder: str | Path, graph: Graph | None = None, *, sign: str | None = None) -> MibEntry:
    """One folder of a submission. Nine circuits must keep to their shares."""
    folder = Path(folder)
    task, _, model = folder.name.partition("_")
    if mib_name(task, model) != folder.name:
        raise bad_argument("folder", folder.name, "TASK_MODEL")
    files = sorted(path for path in folder.glob("*") if path.suffix.lower() in (".json", ".pt")) if folder.is_dir() else []
    if len(files) not in (1, len(SHARES)):
        raise bad_argument("folder", f"{len(files)} files", f"one .json or .pt file of importances, or {len(SHARES)} circuits")
    found = [read_eap(path, graph, sign=sign) for path in files]
    if len(found) == 1:
        return MibEntry(task, model, found[0])
    counted = sorted(((Ungrouped(c.graph).count(c.mask), path.name, c) for c, path in zip(found, files, strict=True)),
                     key=lambda each: each[0])  # fmt: skip
    for share, (count, name, circuit) in zip(SHARES, counted, strict=True):
        most = share * Ungrouped(circuit.graph).n_edges
        if count > most + 1e-9:
            raise bad_argument(name, f"{count} edges", f"at most {most:.0f}, {100 * share:g}% of the graph as EAP-IG counts it")
    return MibEntry(task, model, None, tuple(circuit for _, _, circuit in counted))


def mib_name(task: str, model: str) -> str:
    """The name of a folder. Underscores of a task become hyphens."""
    task = task.replace("_", "-")
    for argument, got, allowed in (("task", task, MIB_TASKS), ("model", model, MIB_MODELS)):
        if got not in allowed:
            raise bad_argument(argument, got, ", ".join(allowed), "MIB has no other.")
    return f"{task}_{model}"


# GraphML -----------------------------------------------------------------------------------------


def write_graphml(path: str | Path, circuit: Circuit) -> Path:
    """The circuit's edges with scores and kinds. Nodes: the writers and readers they join, and `logits`."""
    import networkx

    graph = networkx.DiGraph(sign=SIGNS["carries"], model=circuit.model, task=circuit.task, model_digest=circuit.digest)
    cells = circuit.strongest()
    for rank, (w, r) in enumerate(cells, 1):
        writer, reader = circuit.graph.writers[w], circuit.graph.readers[r]
        for site, kinds in ((writer, WRITERS), (reader, READERS)):
            graph.add_node(str(site), **_node(site, kinds))
        score = float(circuit.scores[w, r])
        known = {} if math.isnan(score) else {"score": score, "size": abs(score)}
        graph.add_edge(str(writer), str(reader), kind="stream", rank=rank, **known)
    for reader in {circuit.graph.readers[r] for _, r in cells}:
        for node in circuit.graph.node_of(reader):
            if str(node) in graph:
                graph.add_edge(str(reader), str(node), kind="inside")
    if circuit.nodes is not None:
        for site, score in zip(circuit.graph.writers, circuit.nodes.tolist(), strict=True):
            if str(site) in graph and not math.isnan(score):
                graph.nodes[str(site)]["score"] = score
    buffer = io.BytesIO()
    networkx.write_graphml_xml(graph, buffer, named_key_ids=True)
    return _write(path, buffer.getvalue())


def _node(site: Site, kinds: Mapping[str, str]) -> dict[str, Any]:
    out: dict[str, Any] = {"kind": kinds[site.name]}
    if site.layer is not None:
        out["layer"] = site.layer
    if site.index is not None:
        out["index"] = site.index
    if isinstance(site, Node):
        out["at"] = site.at
    return out


# reading with checks -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _File:
    """A file whose errors name the key."""

    path: Path

    def wrong(self, key: str, got: Any, allowed: str) -> UsageError:
        shown = repr(got)
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        return UsageError(f"{self.path}, key {key!r}: got {shown}; allowed: {allowed}.")

    def json(self) -> Any:
        try:
            return json.loads(self._bytes(), object_pairs_hook=self._once)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{self.path}: not JSON that can be read ({error}).") from error

    def tensors(self) -> Mapping[str, Any]:
        content = self._bytes()
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as packed:
                size = sum(each.file_size for each in packed.infolist())
        except zipfile.BadZipFile as error:
            raise UsageError(f"{self.path}: not a .pt file of torch.save.") from error
        if size > LARGEST:
            raise UsageError(f"{self.path}: {size} bytes unpacked; allowed: {LARGEST}.")
        try:
            data = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except Exception as error:  # whatever the unpickler of torch says
            raise UsageError(f"{self.path}: holds more than tensors, texts and numbers, or is damaged; it is not read."
                             f" ({str(error).splitlines()[0] if str(error) else type(error).__name__})") from error  # fmt: skip
        return self.object(data, "the file")

    def _bytes(self) -> bytes:
        try:
            size = self.path.stat().st_size
            if size > LARGEST:
                raise UsageError(f"{self.path}: {size} bytes; allowed: {LARGEST}.")
            return self.path.read_bytes()
        except OSError as error:
            raise UsageError(f"{self.path}: cannot be read ({error.strerror}).") from error

    def _once(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        out = dict(pairs)
        if len(out) < len(pairs):
            names = [name for name, _ in pairs]
            raise self.wrong(next(n for n in out if names.count(n) > 1), "the same key twice", "every key once")
        return out

    def needs(self, data: Mapping[str, Any], keys: Iterable[str]) -> None:
        for key in keys:
            if key not in data:
                raise UsageError(f"{self.path}, key {key!r}: missing.")

    def object(self, value: Any, key: str) -> Mapping[str, Any]:
        if not isinstance(value, Mapping):
            raise self.wrong(key, value, "an object")
        return value

    def text(self, row: Mapping[str, Any], key: str) -> str:
        value = row.get(key, "")
        if not isinstance(value, str):
            raise self.wrong(key, value, "a text")
        return value

    def count(self, row: Mapping[str, Any], name: str, key: str, least: int = 1) -> int:
        value = row.get(name)
        if type(value) is not int or value < least:
            raise self.wrong(f"{key}.{name}", value, f"a whole number from {least}")
        return value

    def flag(self, row: Mapping[str, Any], name: str, key: str) -> bool:
        value = row.get(name)
        if type(value) is not bool:
            raise self.wrong(f"{key}.{name}", value, "true or false")
        return value

    def score(self, value: Any, key: str) -> float:
        """A number; NaN where there is none."""
        if value is None:
            return math.nan
        if type(value) not in (int, float) or math.isinf(value) or abs(value) > 3e38:
            raise self.wrong(key, value, "a number, or NaN for an edge or node without a score")
        return float(value)

    def tensor(self, data: Mapping[str, Any], key: str, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> Tensor:
        value = data[key]
        if not isinstance(value, Tensor) or tuple(value.shape) != shape or value.layout != torch.strided:
            raise self.wrong(key, tuple(value.shape) if isinstance(value, Tensor) else value, f"a tensor of shape {shape}")
        fits = value.dtype == dtype if dtype else value.is_floating_point()
        if not fits or (dtype is None and bool(value.isinf().any())):
            got = "infinite values" if fits else str(value.dtype)
            raise self.wrong(key, got, str(dtype or "finite floats, NaN for no score"))
        return value.detach().clone()

    def fits(self, layers: int, heads: int, classes: int = 1) -> None:
        cells = (1 + layers * (heads + 1)) * (1 + layers * (3 * heads + 1)) * classes**2
        if cells > MOST_CELLS:
            graph = f"a graph of {layers} layers with {heads} heads"
            raise UsageError(f"{self.path}: {graph} has {cells} cells; allowed: {MOST_CELLS}.")

    def sign(self, stated: Any, asked: str | None) -> int:
        """1 or -1, to turn scores of the file into ours."""
        if asked is not None and asked not in SIGNS:
            raise bad_argument("sign", asked, ", ".join(f"{name} ({means})" for name, means in SIGNS.items()))
        if stated is not None and stated not in SIGNS:
            raise self.wrong("sign", stated, " or ".join(SIGNS))
        if asked and stated and asked != stated:
            raise bad_argument("sign", asked, f"{stated}, which {self.path.name} says itself")
        return -1 if (asked or stated) == "opposes" else 1


def _same(a: Graph, b: Graph) -> bool:
    return a.writers == b.writers and a.readers == b.readers and a.parallel == b.parallel


def _sizes(graph: Graph) -> str:
    return f"{graph.n_layers} layers, {graph.n_heads} heads, {graph.n_kv_heads} KV heads, blocks {_blocks(graph)}"


def _blocks(graph: Graph) -> str:
    kinds = {True: "parallel", False: "sequential"}
    return " and ".join(kinds[kind] for kind in sorted(set(graph.parallel)))


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _write(path: str | Path, content: bytes) -> Path:
    write_file(Path(path), content)
    return Path(path)
