"""What else the atlas knows of mapped features: circuits and graphs they are in, and what they do to tasks.

1. *Circuits*: files in `circuits/`. A head `z.L.H` is the unit `attn_out.L.H` of a map; neurons and latents have one name. A
   node at a class of positions is the unit itself.
2. *Attribution graphs* of the table `graphs`: latents by the digest of their transcoder, with their largest influence.
3. *Effects on tasks*: sweeps over heads or neurons (`keep_patch`, in `effects/`), and the drop that a tested claim measured
   when its one unit was mean-ablated. Of each unit and task one is kept: a tested one, else the latest sweep's.

What is linked belongs to the same weights (digest of the model), for latents to the same dictionary too; units that no set has
are left out. `link_all` after a map, `link` as each thing is made.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assay.atlas.database import FILE
from assay.atlas.features import graphs
from assay.atlas.mapped import Mapped
from assay.atlas.mapped_records import Effect
from assay.atlas.store import Atlas
from assay.circuits.formats import FORMAT
from assay.circuits.graph import AT
from assay.circuits.trace_formats import read_trace
from assay.circuits.trace_graph import AttributionGraph
from assay.errors import StoreError, UsageError
from assay.files import write_file
from assay.records import PatchResult, digest, plain

CIRCUITS, GRAPHS, EFFECTS = "circuits", "graphs", "effects"
TESTED = "necessity.mean"


@dataclass(frozen=True)
class Members:
    """Units that `target` (a circuit or graph, or a task) is about, of a model and, for latents, a dictionary (digests)."""

    target: str
    model: str
    units: Mapping[str, float | Effect | None]
    dictionary: str = ""


def unit_name(node: str) -> str:
    """The unit of a map that a node of a circuit is: `z.3.1@end` is `attn_out.3.1`."""
    name = node.partition(AT)[0]
    return f"attn_out.{name[2:]}" if name.startswith("z.") else name


# what there is ------------------------------------------------------------------------------------


def of_circuit(path: Path) -> Members | None:
    """Writers of a circuit file, with their scores where it has some; None for a file that is none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["format"] != FORMAT:
            return None
        scores: dict[str, float | None] = {}
        for node in data["nodes"]:
            name, score = unit_name(node), data.get("node_scores", {}).get(node)
            scores[name] = max((each for each in (scores.get(name), score) if each is not None), key=abs, default=None)
        return Members(path.stem, data["model_digest"], scores)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def of_graph(name: str, graph: AttributionGraph) -> list[Members]:
    """Latents of an attribution graph, by dictionary."""
    found: list[dict[str, float]] = [{} for _ in graph.dictionaries]
    for node, influence in zip(graph.nodes, graph.influence.tolist(), strict=True):
        if node.kind == "latent" and node.dictionary is not None and node.dictionary < len(found):
            own, unit = found[node.dictionary], f"latent.{graph.dictionaries[node.dictionary]['name']}.{node.index}"
            own[unit] = max(own.get(unit, 0.0), influence)
    return [Members(name, graph.digest, own, about["digest"]) for about, own in zip(graph.dictionaries, found, strict=True)]


def of_patch(result: PatchResult, model: str, task: str) -> Members | None:
    """Effects of a sweep over heads or neurons; None for one over positions or whole sites."""
    site = str(result.plan["site"])
    if result.axis not in ("heads", "neurons") or (result.axis == "heads" and site != "z"):
        return None
    how = {name: result.plan[name] for name in ("direction", "method")}
    metric = f"{result.plan['metric']}, share of clean against corrupted, {how['method']} {how['direction']}"
    stem, found = "attn_out" if result.axis == "heads" else "mlp_act", {}
    grid = zip(result.layers, result.effect, result.low, result.high, strict=True)
    for layer, *rows in grid:
        for column, value, low, high in zip(result.columns, *rows, strict=True):
            if value is not None and math.isfinite(value):
                bounds = (each if each is not None and math.isfinite(each) else None for each in (low, high))
                found[f"{stem}.{layer}.{column}"] = Effect(task, value, metric, *bounds, detail=how)
    return Members(task, model, found)


def keep_patch(atlas: Atlas, result: PatchResult, model: str, task: str) -> int:
    """Keep the effects of a sweep in `effects/`, and link them to mapped units; how many links."""
    found = of_patch(result, model, task)
    if found is None:
        return 0
    body = {"task": task, "model": model, "effects": {name: plain(each) for name, each in found.units.items()}}
    key = digest([task, model, result.axis, result.layers, *map(result.plan.get, ("direction", "method", "metric"))])
    write_file(atlas.path / EFFECTS / f"{key[:32]}.json", json.dumps(body).encode())
    return link(Mapped(atlas), "effect", [found])


def _circuits(atlas: Atlas) -> Iterator[Members]:
    for path in sorted((atlas.path / CIRCUITS).glob("*.json")):
        if (found := of_circuit(path)) is not None:
            yield found
    for row in graphs(atlas):
        path = Path(row["file"])
        path = path if path.is_file() else atlas.path / GRAPHS / path.name  # an atlas that was moved
        try:
            yield from of_graph(row["id"], read_trace(path))
        except (OSError, UsageError):  # gone, or written in a format of others
            continue


def _effects(atlas: Atlas) -> Iterator[Members]:
    """Sweeps, oldest first, then what claims measured."""
    for path in sorted((atlas.path / EFFECTS).glob("*.json"), key=lambda path: path.stat().st_mtime):
        try:
            body = json.loads(path.read_text(encoding="utf-8"))
            effects = {name: Effect(**each) for name, each in body["effects"].items()}
            yield Members(body["task"], body["model"], effects)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(f"{path}: is not readable ({error}). Remove it, and patch again: assay patch") from error
    yield from _tested(atlas)


def _tested(atlas: Atlas, claim: str = "") -> Iterator[Members]:
    """The drop by mean ablation on confirm, of all tested claims about one unit, or of one of them."""
    if not (atlas.path / FILE).is_file():
        return
    with atlas.reading() as db:
        rows = db.execute(
            "SELECT c.body->>'$.subject.digest', c.body->>'$.subject.sites[0]', c.body->>'$.task.name', c.id, g.estimate,"
            " g.low, g.high FROM claims c JOIN gates g ON g.claim = c.id WHERE g.name = ? AND g.split = 'confirm' AND"
            " g.estimate IS NOT NULL AND json_array_length(c.body->'$.subject.sites') = 1 AND ? IN ('', c.id)"
            " ORDER BY g.evidence", [TESTED, claim],
        ).fetchall()  # fmt: skip
    for model, site, task, about, value, low, high in rows:
        effect = Effect(task, value, "drop by mean ablation, share of clean against corrupted", low, high, {"claim": about})
        yield Members(task, model, {unit_name(site): effect})


# linking ------------------------------------------------------------------------------------------


def link(mapped: Mapped, kind: str, found: Iterable[Members]) -> int:
    """Link units of some things to the sets that have them: how many links. `kind`: circuit or effect."""
    sets, n = mapped.sets(), 0
    for each in found:
        for record in sets:
            if record.model_digest == each.model and each.dictionary in ("", record.dictionary_digest):
                n += mapped.link(record.id, kind, each.target, each.units)
    return n


def link_all(mapped: Mapped) -> dict[str, int]:
    """All that the atlas holds: links by kind."""
    return {"claim": mapped.link_claims(), "circuit": link(mapped, "circuit", _circuits(mapped.atlas)),
            "effect": link(mapped, "effect", _effects(mapped.atlas))}  # fmt: skip


def link_tested(atlas: Atlas, claim: str) -> int:
    """Link the effect that a claim about one unit measured, once it is tested."""
    return link(Mapped(atlas), "effect", _tested(atlas, claim))


def link_graph(atlas: Atlas, name: str, graph: Any) -> int:
    """Link the latents of an attribution graph that was just kept."""
    return link(Mapped(atlas), "circuit", of_graph(name, graph))


def link_circuit(atlas: Atlas, path: Path) -> int:
    """Link the units of a circuit that was just kept in `circuits/`; a file elsewhere is not part of the atlas."""
    found = of_circuit(path) if path.parent.resolve() == (atlas.path / CIRCUITS).resolve() else None
    return link(Mapped(atlas), "circuit", [] if found is None else [found])
