"""*mediates* for circuits of edges, on models whose weights were written by hand: a calibration of its own.

1. Null: edges that are not true, drawn at random from those of a known circuit's graph (`testing/edge_truth.py`); both edges
   through a head that was left empty.
2. False: a path that is broken, in its reader or in its writer; a path through the head whose output nothing reads.
3. True: all paths through the copying heads, alone or with what feeds them; the edges of known circuits.
4. Ladder, necessity.mean (.2), as for heads (`mediates.py`): the path embed->v.1.0, z.1.0->logits has the share s of the
   copying, three other heads the rest, and the norms are constant. Cut under resampling it takes s of the effect, kept alone
   it has s, and cut under means it takes s/2: the answer goes and the foil is not written. Shares of .2, .4, .6 and .8.
"""

import random
from functools import cache

from assay.calibrate.base import CALIBRATIONS, Calibration, Case, Family, ladder
from assay.calibrate.edges import known_pairs
from assay.circuits.graph import graph_of
from assay.evidence.run import Settings
from assay.evidence.source import MemorySource
from assay.testing.edge_truth import TRUTHS
from assay.testing.induction import Induction, planted_induction, repeated_pairs

NAME = "mediates-edges"
SETTINGS = Settings(tune=24, confirm=56, ood=48, draws=6, control_pairs=1)
TEMPLATES = {"tune": 12, "confirm": 14, "ood": 12}
PER_TEMPLATE = 4
PLAIN = Induction()
SURE = ("previous", "most_frequent", "count", "induction-8")
N_UNTRUE = 3


@cache
def _known(name: str):
    return TRUTHS.get(name).model()


@cache
def _model(plan: Induction):
    return planted_induction(plan)


def _pairs(seed: int) -> MemorySource:
    found = {split: repeated_pairs(n, PER_TEMPLATE, seed, f"{split} ") for split, n in TEMPLATES.items()}
    return MemorySource(f"repeated words {seed}", found)


def path(head: int, layer: int = 1) -> tuple[str, str]:
    """What one head copies, and where it puts it."""
    return f"embed->v.{layer}.{head}", f"z.{layer}.{head}->logits"


def untrue_edges(seed: int) -> Case:
    """Edges of a known circuit's graph, drawn at random, that are not true."""
    name = TRUTHS.names()[seed % len(TRUTHS.names())]
    graph = graph_of(_known(name))
    edges = [str(edge) for edge in graph.edges(TRUTHS.get(name).asked(graph) & ~TRUTHS.get(name).mask(graph))]
    return Case(_known(name), known_pairs(name, seed), random.Random(seed).sample(edges, min(N_UNTRUE, len(edges))))


def empty_path(seed: int) -> Case:
    """Into and out of a head whose weights are all zero."""
    return Case(_model(PLAIN), _pairs(seed), path(2 + seed % 2))


def broken_path(seed: int) -> Case:
    """Into one head and out of another."""
    return Case(_model(PLAIN), _pairs(seed), (path(2 + seed % 2)[0], path(seed // 2 % 2)[1]))


def unread_path(seed: int) -> Case:
    """The answer is in what the head writes; nothing reads it."""
    return Case(_model(PLAIN), _pairs(seed), path(1, 0))


def copied_alone(seed: int) -> Case:
    """What feeds both copies, and nothing out of them."""
    return Case(_model(PLAIN), _pairs(seed), (*(f"z.0.0->k.1.{head}" for head in (0, 1)), "embed->v.0.0"))


def both_paths(seed: int) -> Case:
    """Into and out of both copies."""
    return Case(_model(PLAIN), _pairs(seed), (*path(0), *path(1)))


def with_what_feeds_them(seed: int) -> Case:
    """Both copies, the head before them, and what they look for."""
    more = [edge for head in (0, 1) for edge in (f"z.0.0->k.1.{head}", f"embed->q.1.{head}")]
    return Case(_model(PLAIN), _pairs(seed), ("embed->v.0.0", *more, *path(0), *path(1)))


def known_circuit(seed: int) -> Case:
    """All true edges of a known circuit."""
    name = SURE[seed % len(SURE)]
    return Case(_known(name), known_pairs(name, seed), TRUTHS.get(name).edges)


def rung(seed: int, effect: float) -> Case:
    """The path through z.1.0, with a share of the copying that puts necessity.mean at `effect` bars."""
    share = 0.4 * effect
    plan = Induction(copies=(share, *[(1 - share) / 3] * 3), linear=True, spread=0.5)
    truth = {"necessity.mean": share / 2, "necessity.resample": share, "sufficiency": share}
    return Case(_model(plan), _pairs(seed), path(0), truth)


def _family(truth, make) -> Family:
    return Family(make.__name__.replace("_", " "), truth, make, " ".join((make.__doc__ or "").split()))


FAMILIES = (
    *(_family("null", make) for make in (untrue_edges, empty_path)),
    *(_family("false", make) for make in (broken_path, unread_path, copied_alone)),
    *(_family("true", make) for make in (both_paths, with_what_feeds_them, known_circuit)),
    *ladder(rung, "the path through one of four copying heads, a known share of the behaviour"),
)

CALIBRATIONS.add(NAME, Calibration(
    "mediates", "necessity.mean", FAMILIES, SETTINGS,
    full={"null": 30, "false": 10, "true": 8, "ladder": 20}, quick={"null": 2, "false": 1, "true": 1, "ladder": 1},
    note="share of the effect lost when the circuit's edges are cut and carry their means; bar .2", name=NAME,
))  # fmt: skip
