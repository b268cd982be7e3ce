"""Backgrounds: does a channel see the thing, or what it stands in front of?

1. `background.bare`: the background of every scene with nothing on it. Contrast per template: 1 where the score stays below the
   threshold that half of the members pass on tune.
2. `background.exchanged`: every member drawn on the background of the next template of its split. Contrast per member: 1 where
   it still passes the threshold that one in twenty non-members passes.

Members, near misses and others share their backgrounds (so no background can tell them apart); this asks besides whether the
score moves when the background alone does. Only drawn scenes can be taken apart like that: other claims have no such gates.
"""

from dataclasses import replace

from assay.data.images import bare, on_background
from assay.evidence.gates.base import Columns, Contrast, Gate, Table, column, register
from assay.records import Claim, GatePlan

KINDS = ("represents",)


def of_scenes(claim: Claim) -> bool:
    """Whether the claim is about drawn scenes."""
    return claim.task.get("type") == "scenes"


def measure_bare(instrument, gate: GatePlan) -> Columns:
    """Where the score fires on the background of every template's first scene; None for its other scenes."""
    rows: dict[str, int] = {}
    for row, example in enumerate(instrument.data.examples):
        rows.setdefault(example.template, row)
    changed = [replace(instrument.data.examples[row], text=bare(instrument.data.examples[row].text)) for row in rows.values()]
    fired = _fires(instrument, changed, instrument.setup.half)
    place = dict(zip(rows.values(), fired, strict=True))
    return {"fires.bare": [place.get(row) for row in range(len(instrument.data))]}


def measure_exchanged(instrument, gate: GatePlan) -> Columns:
    """Where the score fires on members in front of the next template's background; None for all others."""
    examples = instrument.data.examples
    names = list(dict.fromkeys(example.text.split("/")[2] for example in examples))
    following = dict(zip(names, [*names[1:], names[0]], strict=True))
    rows = [row for row, example in enumerate(examples) if example.label == 1]
    changed = [replace(examples[row], text=on_background(examples[row].text, following[examples[row].text.split("/")[2]]))
               for row in rows]  # fmt: skip
    place = dict(zip(rows, _fires(instrument, changed, instrument.setup.strict), strict=True))
    return {"fires.exchanged": [place.get(row) for row in range(len(examples))]}


def _fires(instrument, examples, threshold: float) -> list[float]:
    data = instrument.host.load(examples)
    return [float(value > threshold) for value in instrument.setup.score(instrument.host.read(instrument.setup.site, data))]


def silent(table: Table, gate: GatePlan) -> Contrast:
    """Whether it stays silent on each bare background."""
    return Contrast([None if fires is None else 1 - fires for fires in column(table, "fires.bare")])


def kept(table: Table, gate: GatePlan) -> Contrast:
    """Whether each member still fires."""
    return Contrast(list(column(table, "fires.exchanged")))


register(Gate("background.bare", "firing", KINDS, 0.9, True, measure_bare, silent, about=of_scenes,
              says="it stays silent on {estimate} of bare backgrounds"))  # fmt: skip
register(Gate("background.exchanged", "sensitivity", KINDS, 0.5, True, measure_exchanged, kept, about=of_scenes,
              says="it fires on {estimate} of members whose background was exchanged"))  # fmt: skip
