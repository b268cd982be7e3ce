"""*connects* for edges of the graph, on models whose weights were written by hand: a calibration of its own.

1. Null: edges that are not true, drawn at random from those of a known circuit's graph (`testing/edge_truth.py`); edges out
   of heads and MLPs that were left empty.
2. False: the writer is right and the reader wrong, or the reader is right and the writer wrong, or what the writer writes is
   read by nothing.
3. True: the true edges of the known circuits that show when they are exchanged alone.
4. Ladder, edge.effect (.05): z.1.0->logits, of two copying heads the one with the share s of the copying. The norms are
   made constant, so that exchanging the edge moves exactly s of the effect: .025, .05, .075 and .1; of what changes in the
   last stream as much arrives, which is above that gate's bar (.02) on every rung. The middle one of the edges of its kind
   is that of an empty head, so that the comparison with others is passed too. How strongly a word is copied varies by half
   of its mean.
"""

import random
from dataclasses import replace
from functools import cache

from assay.calibrate.base import CALIBRATIONS, Calibration, Case, Family, ladder
from assay.circuits.graph import graph_of
from assay.evidence.run import Settings
from assay.evidence.source import MemorySource
from assay.records import Pair
from assay.testing.edge_truth import TRUTHS
from assay.testing.induction import Induction, planted_induction, repeated_pairs

NAME = "connects-edges"
SETTINGS = Settings(tune=24, confirm=48, ood=48, draws=19, control_pairs=1)
STEPS = replace(SETTINGS, confirm=80, ood=56)
TEMPLATES = {"tune": 12, "confirm": 24, "ood": 24}
PER_TEMPLATE = 4
PLAIN = Induction()
SURE = ("induction-4", "induction-8", "opposite", "negative", "inhibition", "previous", "count", "most_frequent", "and_gate")
EMPTY = ("z.0.2", "z.0.3", "z.1.2", "z.1.3", "mlp_out.0", "mlp_out.1")
UNREAD = ("z.0.1->k.1.0", "z.0.1->v.1.1", "z.0.1->q.1.0")
OTHER_READER = ("z.0.0->q.1.0", "z.0.0->v.1.0", "z.0.0->logits", "z.0.0->k.1.2")
OTHER_WRITER = ("embed->k.1.0", "z.0.2->k.1.1", "mlp_out.0->v.1.0")


@cache
def _known(name: str):
    return TRUTHS.get(name).model()


@cache
def _induction(plan: Induction):
    return planted_induction(plan)


def known_pairs(name: str, seed: int) -> MemorySource:
    """Pairs of a known circuit; no text is in two splits."""
    seen: set[str] = set()
    found: dict[str, list[Pair]] = {}
    for number, (split, n) in enumerate(TEMPLATES.items()):
        made = TRUTHS.get(name).pairs(n, PER_TEMPLATE, 3 * seed + number)
        found[split] = [replace(pair, template=f"{split} {pair.template}") for pair in made if not seen & set(pair.texts)]
        seen |= {text for pair in made for text in pair.texts}
    return MemorySource(f"{name} {seed}", found)


def _repeats(seed: int) -> MemorySource:
    found = {split: repeated_pairs(n, PER_TEMPLATE, seed, f"{split} ") for split, n in TEMPLATES.items()}
    return MemorySource(f"repeated words {seed}", found)


def _written(seed: int, edges: tuple[str, ...]) -> Case:
    return Case(_induction(PLAIN), _repeats(seed), edges[seed % len(edges)])


def untrue(seed: int) -> Case:
    """An edge of a known circuit's graph, drawn at random, that is not true."""
    name = TRUTHS.names()[seed % len(TRUTHS.names())]
    graph = graph_of(_known(name))
    edges = [str(edge) for edge in graph.edges(TRUTHS.get(name).asked(graph) & ~TRUTHS.get(name).mask(graph))]
    return Case(_known(name), known_pairs(name, seed), random.Random(seed).choice(edges))


def empty_writer(seed: int) -> Case:
    """Out of a head or MLP that was left empty."""
    graph = graph_of(_induction(PLAIN))
    edges = [str(edge) for edge in graph.edges(graph.exists) if str(edge.writer) in EMPTY]
    return Case(_induction(PLAIN), _repeats(seed), random.Random(seed).choice(edges))


def unread_writer(seed: int) -> Case:
    """The answer is in what the writer writes; nothing reads it."""
    return _written(seed, UNREAD)


def other_reader(seed: int) -> Case:
    """The writer is in the circuit, and this is not where it is read."""
    return _written(seed, OTHER_READER)


def other_writer(seed: int) -> Case:
    """The reader is in the circuit, and reads something else."""
    return _written(seed, OTHER_WRITER)


def true_edge(seed: int) -> Case:
    """A true edge of a known circuit."""
    name = SURE[seed % len(SURE)]
    edges = TRUTHS.get(name).edges
    return Case(_known(name), known_pairs(name, seed), edges[seed // len(SURE) % len(edges)])


def rung(seed: int, effect: float) -> Case:
    """z.1.0->logits with a known share of the copying."""
    share = 0.05 * effect
    plan = Induction(copies=(share, 1 - share), linear=True, spread=0.5)
    return Case(_induction(plan), _repeats(seed), "z.1.0->logits", {"edge.effect": share, "edge.arrives": share})


def _family(truth, make) -> Family:
    return Family(make.__name__.replace("_", " "), truth, make, " ".join((make.__doc__ or "").split()))


FAMILIES = (
    *(_family("null", make) for make in (untrue, empty_writer)),
    *(_family("false", make) for make in (unread_writer, other_reader, other_writer)), _family("true", true_edge),
    *ladder(rung, "the edge of one of two copying heads, a known share of the behaviour", STEPS),
)

CALIBRATIONS.add(NAME, Calibration(
    "connects", "edge.effect", FAMILIES, SETTINGS,
    full={"null": 30, "false": 8, "true": 20, "ladder": 20}, quick={"null": 2, "false": 1, "true": 1, "ladder": 1},
    note="share of the task's effect that exchanging the edge alone moves; bar .05", name=NAME,
))  # fmt: skip
