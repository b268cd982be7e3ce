"""Circuits that are searched for, claimed and tested, as an atlas keeps them.

1. Search: what will be looked at is said in the ledger, then the search runs (`circuits/find.py`; finished scores are kept, so
   that an interrupted one goes on), then the claim that the circuit carries the task is stated, unless the same was stated
   before, and the circuit is written to `circuits/` with its claim and linked to mapped units.
2. Test: the circuit of a tested claim is kept and linked the same way, wherever its file came from.
"""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from assay.atlas.attributions import KeptScores
from assay.atlas.linked import CIRCUITS, link_circuit
from assay.atlas.store import Atlas
from assay.circuits.find import FindPlan, FoundCircuit, Step, find_circuit, scores_key
from assay.circuits.formats import Circuit, write_circuit
from assay.circuits.graph import ARROW, graph_of, parse_node
from assay.data.prepare import prepare
from assay.errors import UsageError, bad_argument
from assay.evidence.cautions import warnings_of
from assay.evidence.claims import record_look
from assay.evidence.edges_instrument import is_circuit, mask_of, named_classes, parts_of
from assay.evidence.known import state_once
from assay.evidence.run import Settings
from assay.evidence.source import Source
from assay.model.model import Model
from assay.records import Claim, Pair

Pairs = dict[str, list[Pair]]


@dataclass(frozen=True)
class Search:
    """What is asked: how to look, pairs of every split, and random circuits that the claim is compared with."""

    plan: FindPlan
    discover: int = 20
    tune: int = 16
    confirm: int = 60
    ood: int = 30
    draws: int = 19

    def pairs(self, source: Source) -> Pairs:
        """The pairs to look at. Raises UsageError for no pairs and what the source raises, before any model is loaded."""
        for name in ("discover", "tune", "confirm", "ood", "draws"):
            if getattr(self, name) < 1:
                raise bad_argument({"discover": "n"}.get(name, name), getattr(self, name), "1 or more")
        return {split: source.items(split, getattr(self, split), self.plan.seed) for split in ("discover", "tune")}

    def settings(self, found: FoundCircuit) -> Settings:
        """How the claim will be tested."""
        return Settings(tune=self.tune, confirm=self.confirm, ood=self.ood, seed=self.plan.seed, draws=self.draws,
                        options={"rival": list(found.rival)} if found.rival else {})  # fmt: skip


@dataclass(frozen=True, eq=False)
class KeptCircuit:
    """A circuit that was found, where it is kept, and the claim about it. `before`: it was stated by an earlier search."""

    found: FoundCircuit
    circuit: Circuit
    path: Path
    claim: Claim | None
    before: bool
    warnings: tuple[str, ...]


def search_circuit(
    atlas: Atlas, model: Model, source: Source, search: Search, pairs: Pairs, tell: Step | None = None, *, state: bool = True,
    folder: Path | None = None, others: bool = False,
) -> KeptCircuit:  # fmt: skip
    """Step 1. `pairs`: of `search.pairs`. `state`: also the claim. `folder`: the file goes there, and is no part of the atlas.
    `others`: it keeps the scores of all edges. Raises what `find_circuit` and `state_claim` raise."""
    plan, tell = search.plan, tell or (lambda what, done, of: None)
    data = {split: prepare(items, model) for split, items in pairs.items()}
    for split, task in data.items():
        record_look(atlas, model.digest, f"circuit find {source.name} {plan.method} {plan.level}, {split}", task.pairs)
    kept = KeptScores(atlas.path, scores_key(model, data["discover"], plan))
    found = find_circuit(model, data["discover"], data["tune"], plan, tell, kept)
    made, claim, before, warnings = found.circuit(model, source.name), None, False, list(found.warnings)
    if state:
        tell("stating the claim", 0, 1)
        claim, locked, before = state_once(atlas, model, source, list(found.parts), settings=search.settings(found))
        made, warnings = with_claim(made, claim), [*warnings, *warnings_of(locked)]
    path = write_circuit((folder or atlas.path / CIRCUITS) / f"{circuit_name(model, source, plan)}.json", made, others=others)
    link_circuit(atlas, path)
    return KeptCircuit(found, made, path, claim, before, tuple(warnings))


def circuit_name(model: Model, source: Source, plan: FindPlan) -> str:
    """What the file of a circuit is called: model, task, corruption where one was asked for, and how it was looked for."""
    parts = [Path(model.name).name, Path(source.name).stem, source.corruption or "", plan.method, plan.level,
             "positions" if plan.positions == "labels" else ""]  # fmt: skip
    return "-".join(part for part in parts if part)


def kept_circuit(atlas: Atlas, model: str, named: str) -> Path:
    """The file of a circuit that the atlas keeps, by its name, or by the task of the one circuit of this model and task. Raises
    UsageError for none, or several."""
    known = sorted((atlas.path / CIRCUITS).glob("*.json"))
    begins = f"{Path(model).name}-{Path(named).stem}-"
    found = [path for path in known if path.stem == named] or [path for path in known if path.stem.startswith(begins)]
    if len(found) != 1:
        there = ", ".join(path.stem for path in found or known) or "there is none yet"
        raise bad_argument("CIRCUIT", named, f"a circuit file, a claim, or one of the circuits of this atlas: {there}",
                           "Name one of them." if found else "Make one: assay circuit find")  # fmt: skip
    return found[0]


def with_claim(circuit: Circuit, claim: Claim) -> Circuit:
    """The circuit, naming the claim that is about it."""
    return replace(circuit, plan={**circuit.plan, "claim": claim.id})


def keep_tested(atlas: Atlas, model: Model, claim: Claim, held: Circuit | None = None) -> Path | None:
    """Step 2: where the circuit of a claim is kept. `held`: as it was read from a file elsewhere. None for a claim about units
    that are no circuit."""
    if claim.kind != "mediates" or not is_circuit(claim.subject["sites"]):
        return None
    known = [path for path in sorted((atlas.path / CIRCUITS).glob("*.json")) if _claim_of(path) == claim.id]
    path = known[0] if known else atlas.path / CIRCUITS / f"{claim.id}.json"
    if not known:
        made = _of_claim(model, claim) if held is None else held
        about = replace(made, model=model.name, digest=model.digest, task=claim.task["name"], d_model=model.dims.d_model)
        write_circuit(path, with_claim(about, claim))
    link_circuit(atlas, path)
    return path


def check_same(held: Circuit, claim: Claim, path: Path) -> None:
    """Raises UsageError for a file whose edges are not those of the claim that it names."""
    graph, names = held.graph, claim.subject["sites"]
    try:
        mask = graph.mask(name for name in names if ARROW in name)
        mask |= graph.node_mask(parse_node(name) for name in names if ARROW not in name)
        same = bool((mask == held.mask).all())
    except (KeyError, UsageError):  # of another graph
        same = False
    if not same:
        raise bad_argument("CIRCUIT", f"{path}, with other edges than its claim {claim.id}", "a file as it was when it was"
                           " claimed", "State a claim about these edges: --task TASK.")  # fmt: skip


def _claim_of(path: Path) -> Any:
    """The claim that a circuit's file names, if it is one."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))["plan"]["claim"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _of_claim(model: Model, claim: Claim) -> Circuit:
    """The edges that a claim names, without scores."""
    names = claim.subject["sites"]
    graph = graph_of(model, named_classes(names))
    return Circuit(graph, mask_of(graph, parts_of(model, names)), torch.full(graph.exists.shape, math.nan))
