"""Connection by an edge: does what one writer says arrive at one reader, and does something become of it?

1. `edge.span`: clean prompts score above corrupted ones; otherwise there is nothing to connect.
2. `edge.arrives`: of what changes in the reader between the prompts of a pair, the share that comes in by the edge when the
   writer's output is exchanged in this reader alone.
3. `edge.effect`: that exchange moves the metric by a share of the task's effect, in the direction and with the sign that
   tune gave.
4. `edge.own_pair`: that share minus the same with another pair's value in the writer's place.
5. `edge.random`: the effect minus that of the middle one of other edges of the same kind, ranked by how much they move the
   metric in either sense. They are edges of the same model, and some of them work: to be weaker than one of those says
   nothing against an edge. To be like most of them does.
6. `edge.nothing`, `edge.twice`: exchanging what is there changes nothing; another computation of the same edge agrees.
7. Reported: `edge.noise` and `edge.denoise`, the effect in both directions of patching (one of them small: a gate);
   `edge.strongest`, the effect minus that of the strongest of the others, with its rank among them; `edge.whole`, the share
   that arrives when the writer is exchanged for everything that reads it; `edge.direct`, the edge's share of that.

Shares have one denominator per split, as all effects here. Arriving alone is cheap: in the first layer everything a reader
reads comes from the embedding. The effect is what tells edges apart; arriving says that it is this reader that got it.
"""

from assay.evidence.edge_link import about_edge
from assay.evidence.gates import behaviour
from assay.evidence.gates.base import Columns, Contrast, Gate, Table, column, difference, mean, register, span
from assay.evidence.gates.connection import either_sense
from assay.evidence.gates.erasure import against_strongest
from assay.records import GatePlan

KINDS = ("connects",)


def measure(instrument, gate: GatePlan) -> Columns:
    """Both runs, what arrives, and what becomes of it."""
    return {**instrument.runs(), **instrument.arrived(), **instrument.effects()}


def measure_runs(instrument, gate: GatePlan) -> Columns:
    """Both runs."""
    return instrument.runs()


def measure_random(instrument, gate: GatePlan) -> Columns:
    """The effect of the edge and of others."""
    return {**instrument.runs(), **instrument.effects(), **instrument.controls()}


def measure_nothing(instrument, gate: GatePlan) -> Columns:
    """An exchange that changes nothing."""
    return {**instrument.runs(), **instrument.nothing()}


def measure_twice(instrument, gate: GatePlan) -> Columns:
    """Two computations of one thing."""
    return {**instrument.runs(), **instrument.twice()}


def arriving(table: Table, name: str) -> list[float | None]:
    """A reading as a share of what changes in the reader. KeyError where nothing changes."""
    change = mean(column(table, "edge.change"))
    if change <= 0:
        raise KeyError("nothing changes in the reader")
    return [None if value is None else value / change for value in column(table, name)]


def arrives(table: Table, gate: GatePlan) -> Contrast:
    """The share by the edge."""
    return Contrast(arriving(table, "edge.own"))


def whole(table: Table, gate: GatePlan) -> Contrast:
    """The share by the writer as a whole."""
    return Contrast(arriving(table, "edge.whole"))


def own_pair(table: Table, gate: GatePlan) -> Contrast:
    """The share by the edge minus that with another pair's value."""
    return Contrast(difference(arriving(table, "edge.own"), arriving(table, "edge.other")))


def direct(table: Table, gate: GatePlan) -> Contrast:
    """The share by the edge, as a share of the mean by the writer as a whole. KeyError where that is nothing."""
    total = mean(arriving(table, "edge.whole"))
    if total <= 0:
        raise KeyError("nothing arrives by the writer as a whole")
    return Contrast([None if value is None else value / total for value in arriving(table, "edge.own")])


def effect_of(name: str):
    """A column of effects, normalised."""

    def contrast(table: Table, gate: GatePlan) -> Contrast:
        size = span(table)
        return Contrast([None if value is None else value / size for value in column(table, name)])

    return contrast


def random(table: Table, gate: GatePlan) -> Contrast:
    """The effect minus that of the middle one of the others; of the two in the middle the weaker. KeyError without others."""
    own, others = _against(table)
    means = {name: mean(values) for name, values in others.items()}
    if not means:
        raise KeyError("other edges")
    middle = sorted(means, key=lambda name: (means[name], name))[(len(means) - 1) // 2]
    return Contrast(difference(own, others[middle]), means, {"middle": middle, "draws": len(means)})


def strongest(table: Table, gate: GatePlan) -> Contrast:
    """The effect minus that of the strongest of the others."""
    return against_strongest(*_against(table))


def _against(table: Table) -> tuple[list[float | None], dict[str, list[float | None]]]:
    """Effects of the edge, and of the others in the sense in which each of them goes; shares of the task's effect."""
    zeros = [0.0] * len(table["templates"])
    others = either_sense(table, "random.edge.").items()
    return (difference(column(table, "edge.effect"), zeros, span(table)),
            {name: difference(values, zeros, span(table)) for name, values in others})  # fmt: skip


def nothing(table: Table, gate: GatePlan) -> Contrast:
    """1 - normalised change."""
    size = span(table)
    return Contrast([None if value is None else 1 - abs(value) / size for value in column(table, "edge.nothing")])


def twice(table: Table, gate: GatePlan) -> Contrast:
    """1 - normalised difference."""
    apart = difference(column(table, "edge.exact"), column(table, "edge.circuit"), span(table))
    return Contrast([None if value is None else 1 - abs(value) for value in apart])


def _add(name, group, sesoi, measured, contrast, says="", required=True, **options) -> None:
    register(Gate(f"edge.{name}", group, KINDS, sesoi, required, measured, contrast, says=says, about=about_edge, **options))


_add("span", "behaviour", 0.0, measure_runs, behaviour.spread, required=False, precondition=True)
_add("arrives", "link", 0.02, measure, arrives, "{estimate} of what changes in the reader comes in by it")
_add("effect", "effect", 0.05, measure, effect_of("edge.effect"), "exchanging it alone moves {estimate} of the task's effect")
_add("own_pair", "random", 0.0, measure, own_pair, "{estimate} more arrives than with another pair's value")
_add("random", "random", 0.02, measure_random, random, "{estimate} more than most other edges of its kind")
_add("strongest", "rank", 0.0, measure_random, strongest, required=False)
_add("noise", "direction", 0.05, measure, effect_of("edge.noise"), required=False)
_add("denoise", "direction", 0.05, measure, effect_of("edge.denoise"), required=False)
_add("whole", "whole", 0.05, measure, whole, required=False)
_add("direct", "direct", 0.5, measure, direct, "{estimate} of what arrives is direct", required=False)
_add("nothing", "instrument", 0.95, measure_nothing, nothing, required=False)
_add("twice", "instrument", 0.95, measure_twice, twice, required=False)
