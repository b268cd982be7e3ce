"""Reversals: confirm items on which the claimed effect has the wrong sign.

1. The effect of an item: drop by exchange (*uses*), slope over the strengths (*steers*), fall of B or effect of the edge
   (*connects*).
   Of an edge that *tends* to drive a reader, items on which nothing depends on it are none: its effect must be clearly below 0.
2. The worst are measured again, apart from all others; those that fail again are *verified*. Pairs of prompts are shown token
   by token, the first of them shortened as far as they still fail.

A mean can hide items on which the claim is wrong; this shows how many there are, and which.
"""

from collections.abc import Mapping, Sequence

from assay.data.prepare import PreparedTask
from assay.evidence.edge_link import CLEAR
from assay.evidence.gates.base import get_gate, mean
from assay.evidence.gates.steering import slopes
from assay.evidence.hunting.pairs import MINIMISED, shown_pair
from assay.evidence.kinds import Data
from assay.evidence.search.base import Found, Hunt, SearchMethod, register_search
from assay.records import Counterexample

GATES = {"uses": "erasure.resample", "steers": "steering.dose", "connects": "link.effect"}
EDGE = "edge.effect"


def effects(kind: str, columns: Mapping[str, Sequence[float | None]]) -> list[float | None]:
    """The claimed effect of every item, in the units it was measured in."""
    if kind == "uses":
        pairs = zip(columns["clean"], columns["erased.resample"], strict=True)
        return [None if clean is None or erased is None else clean - erased for clean, erased in pairs]
    if kind == "steers":
        return slopes({"columns": columns}).tolist()
    return list(columns[EDGE if EDGE in columns else "link"])


def find(hunt: Hunt) -> Found:
    """Items of the confirm split whose effect is not above 0 (of an edge: see above), worst first."""
    kind, deciding = hunt.claim.kind, _deciding(hunt)
    measured = [(value, row) for row, value in enumerate(effects(kind, hunt.columns)) if value is not None]
    floor = _floor(hunt)
    wrong = sorted((value, row) for value, row in measured if value <= floor)
    rows = [row for _, row in wrong[: hunt.keep]]
    again = _again(hunt, kind, rows) if rows else []

    def fails(task: PreparedTask) -> list[bool]:
        return [effect is not None and effect <= floor for effect in _measured(hunt, kind, task)]

    kept, cuts = [], 0
    for (value, row), fresh in zip(wrong, again, strict=False):
        item, same = hunt.data.items[row], fresh is not None and fresh <= floor
        shown = shown_pair(hunt, hunt.data, row, fails if same and len(kept) < MINIMISED else None)
        cuts += shown.measured
        kept.append(Counterexample(
            hunt.claim.id, item.texts[0], item.texts[1] if len(item.texts) > 1 else "", item.template, deciding, value,
            "above 0", "verified" if same else "open", "reversals", shown.tokens, shown.minimal,
        ))  # fmt: skip
    return Found(len(measured), len(wrong), tuple(kept), 2 * (len(rows) + cuts), failed=tuple(row for _, row in wrong))


def _deciding(hunt: Hunt) -> str:
    """The gate whose effect is asked for."""
    return EDGE if EDGE in hunt.columns else GATES[hunt.claim.kind]


def _floor(hunt: Hunt) -> float:
    """At and below this effect an item goes the wrong way."""
    if _deciding(hunt) != EDGE or hunt.claim.quantifier != "tends":
        return 0.0
    return -CLEAR * abs(mean(hunt.columns["clean"]) - mean(hunt.columns["corrupted"]))


def _again(hunt: Hunt, kind: str, rows: list[int]) -> list[float | None]:
    return _measured(hunt, kind, hunt.data.select(rows))


def _measured(hunt: Hunt, kind: str, data: Data) -> list[float | None]:
    """The claimed effect on any items."""
    name = _deciding(hunt)
    gates = [gate for gate in hunt.plan.gates if gate.name == name] or [get_gate(name).plan()]
    return effects(kind, hunt.kind.measure(hunt.model, data, hunt.setup, gates))


register_search(SearchMethod("reversals", tuple(GATES), find, sampled=True, required=True))
