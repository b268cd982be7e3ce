"""The instrument of circuit claims: the metric on clean, corrupted, ablated and restored runs.

1. Ablated: the clean prompt with units at zero, at their tune mean, or at their values in the corrupted run
   (`resample`). Restored: the corrupted prompt with units at their clean values.
2. Means are taken over clean tune prompts; the first position has a mean of its own, because attention
   sinks make it hundreds of times larger than the rest.
3. Controls (random sets, sets with a unit less or more) are measured on the first few pairs of every
   template, many sets to a forward pass (`batched_controls.py`).
4. Passes resume at the first edited layer; pairs are taken in chunks so that memory stays bounded.

Every value is measured once and kept: gates may ask for the same thing twice.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from assay.circuits.patch import first_difference
from assay.data.prepare import PreparedTask
from assay.evidence.batched_controls import Bench, Set, first_layer, part, score_sets
from assay.model.edits import Edit, patch, zero
from assay.model.model import Model
from assay.sites import Site

CHUNK_FLOATS = 1 << 25
Column = list[float | None]
Means = Mapping[Site, tuple[Tensor, Tensor]]
SOURCES = {"resample": ("clean", "corrupted"), "restore": ("corrupted", "clean"), "same": ("corrupted", "corrupted")}


@dataclass(frozen=True)
class Setup:
    """What stays the same over the chunks of a measurement.

    `added`: units outside the subject, drawn at random, that minimality adds to it one at a time. `rivals`: other
    circuits that claim to do the same. Units of `edges_instrument.py` are edges and nodes, at `classes` of positions if any.
    """

    units: tuple[Any, ...]
    complement: tuple[Any, ...]
    random_sets: tuple[tuple[Any, ...], ...]
    means: Means
    metric: str
    positions: str
    control_pairs: int
    added: tuple[Any, ...] = ()
    rivals: tuple[tuple[Any, ...], ...] = ()
    classes: tuple[str, ...] = ()


class Instrument:
    """Measures one chunk of pairs. `how`: zero, mean, resample (on clean), restore or same (on corrupted)."""

    def __init__(self, model: Model, task: PreparedTask, rows: Sequence[int], setup: Setup) -> None:
        self.model, self.setup = model, setup
        self.units, self.complement, self.random_sets = setup.units, setup.complement, setup.random_sets
        self.prompts = {"clean": [task.clean[row] for row in rows], "corrupted": [task.corrupted[row] for row in rows]}
        self._metric = task.metric(setup.metric).select(list(rows))
        self._controls = control_rows(task.templates, rows, setup.control_pairs)
        self._checkpoints: dict[tuple[str, int], Any] = {}
        self._kept: dict[Any, Column] = {}
        self._values: dict[str, dict[Site, Tensor]] = {"clean": {}, "corrupted": {}}
        self._capture(wholes((*setup.units, *setup.complement)))

    @property
    def clean(self) -> Column:
        """The metric on clean prompts."""
        return self._score("clean", ())

    @property
    def corrupted(self) -> Column:
        """The metric on corrupted prompts."""
        return self._score("corrupted", ())

    def ablated(self, units: Set, how: str, controls: bool = False) -> Column:
        """Clean prompts with units at zero, at their mean, or at their corrupted values (`resample`)."""
        return self._score("clean", units, how, controls)

    def restored(self, units: Set, controls: bool = False) -> Column:
        """Corrupted prompts with units at their clean values."""
        return self._score("corrupted", units, "restore", controls)

    def scrubbed(self, units: Set, controls: bool = False) -> Column:
        """Clean prompts with every other unit of the kind at its value in another prompt of the same length; None where there
        is no such prompt."""
        length = {row: len(ids) for row, ids in enumerate(self.prompts["clean"])}
        others = {row: [other for other in length if other != row and length[other] == n] for row, n in length.items()}
        rows = [row for row in (self._controls if controls else list(length)) if others[row]]
        if not rows:
            return [None] * len(length)
        rng, edits = random.Random(f"scrub-{len(length)}"), []
        for unit in sorted({*self.units, *self.complement} - set(units), key=unit_key):
            drawn = [(rng.choice(("clean", "corrupted")), rng.choice(others[row])) for row in rows]
            value = torch.stack([part(self._values[run][unit.whole][[other]], unit, 2)[0] for run, other in drawn])
            edits.append(patch(unit, value[:, 0] if self.setup.positions == "last" else value, self.setup.positions))
        scores = self.model.score([self.prompts["clean"][row] for row in rows], self._metric.select(rows), edits=edits)
        return self._spread(rows, scores.tolist())

    def patched(self, units: Set, how: str) -> Column:
        """One plain run on the control pairs, patched as `how` says: what `many` must agree with."""
        return self._score(SOURCES[how][0], units, how, True)

    def everything(self) -> Site:
        """A site that holds all that is read after it: the stream where the subject begins, or where it ends."""
        if self.setup.positions == "last":
            return Site("resid_post", self.model.n_layers - 1)
        return Site("resid_pre", first_layer(self.units))

    def alone(self, units: Set, how: str) -> None:
        """Not asked of units: what is outside of them is the model."""
        return None

    def rivals(self, sets: Sequence[Set]) -> list[Column]:
        """Each of these sets restored alone, on all pairs."""
        return [self.restored(units) for units in sets]

    def many(self, sets: Sequence[Set], how: str) -> list[Column]:
        """Every set on the control pairs, patched as `how` says; many sets to a forward pass."""
        base, source = SOURCES[how]
        bare = self._score(base, (), "", True)
        todo = [units for units in dict.fromkeys(sets) if units and ("many", units, how) not in self._kept]
        if todo and self._controls:
            for units, scores in zip(todo, score_sets(self._bench(base, source, todo), todo).tolist(), strict=True):
                self._kept["many", units, how] = self._spread(self._controls, scores)
        return [self._kept.get(("many", units, how), bare) for units in sets]

    # internal --------------------------------------------------------------------------------

    def _bench(self, base: str, source: str, sets: Sequence[Set]) -> Bench:
        rows, needed = self._controls, wholes([unit for units in sets for unit in units])
        self._capture(needed)
        clean, corrupted = ([prompts[row] for row in rows] for prompts in self.prompts.values())
        layers = sorted({first_layer(units) for units in sets} - {0})
        prompts = clean if base == "clean" else corrupted
        last = self.setup.positions == "last"
        first = [len(a) - 1 if last else first_difference(a, b) for a, b in zip(clean, corrupted, strict=True)]
        return Bench(self.model, prompts, {site: self._values[source][site][rows] for site in needed}, first,
                     self._metric.select(rows), self.setup.positions,
                     self.model.checkpoint(prompts, layers) if layers else None)  # fmt: skip

    def _capture(self, sites: Sequence[Site]) -> None:
        missing = [site for site in sites if site not in self._values["clean"]]
        if missing:
            for run, prompts in self.prompts.items():
                acts = self.model.capture(prompts, missing, positions=self.setup.positions)
                self._values[run].update({site: acts[site] for site in missing})

    def _score(self, run: str, units: Set, how: str = "", controls: bool = False) -> Column:
        key = (run, units, how, controls)
        if key in self._kept:
            return self._kept[key]
        self._capture(wholes(units))
        rows = self._controls if controls else list(range(len(self.prompts[run])))
        out: Column = [None] * len(self.prompts[run])
        if rows:
            start = first_layer(units) if units else 0
            scores = self.model.score(
                [self.prompts[run][row] for row in rows], self._metric.select(rows),
                edits=[self._edit(unit, how, rows) for unit in units],
                resume=self._checkpoint(run, start).select(rows) if start > 0 else None,
            )  # fmt: skip
            out = self._spread(rows, scores.tolist())
        self._kept[key] = out
        return out

    def _spread(self, rows: Sequence[int], scores: Sequence[float]) -> Column:
        out: Column = [None] * len(self.prompts["clean"])
        for row, value in zip(rows, scores, strict=True):
            out[row] = value
        return out

    def _edit(self, unit: Site, how: str, rows: list[int]) -> Edit:
        if how == "zero":
            return zero(unit, self.setup.positions)
        if how == "mean":
            return self._mean_edit(unit)
        value = part(self._values[SOURCES[how][1]][unit.whole][rows], unit, 2)
        return patch(unit, value[:, 0] if self.setup.positions == "last" else value, self.setup.positions)

    def _mean_edit(self, unit: Site) -> Edit:
        first, later = self.setup.means[unit]
        if self.setup.positions == "last":
            return patch(unit, later, "last")
        longest = max(map(len, self.prompts["clean"]))
        return patch(unit, torch.stack([first, *[later] * (longest - 1)])[None])

    def _checkpoint(self, run: str, layer: int) -> Any:
        if (run, layer) not in self._checkpoints:
            self._checkpoints[run, layer] = self.model.checkpoint(self.prompts[run], [layer])
        return self._checkpoints[run, layer]


def control_rows(templates: Sequence[str], rows: Sequence[int], per_template: int) -> list[int]:
    """Places in `rows` of the pairs that controls are measured on: the first few of every template."""
    seen: dict[str, int] = {}
    allowed: set[int] = set()
    for number, template in enumerate(templates):
        seen[template] = seen.get(template, 0) + 1
        if seen[template] <= per_template:
            allowed.add(number)
    return [place for place, row in enumerate(rows) if row in allowed]


def site_means(model: Model, prompts: list[list[int]], units: Sequence[Site]) -> Means:
    """(mean at the first position, mean over all later ones) of every unit, over all prompts."""
    first: dict[Site, Tensor] = {}
    later: dict[Site, Tensor] = {}
    count = 0
    for rows in chunks([len(ids) for ids in prompts], width_of(model, units)):
        acts = model.capture([prompts[row] for row in rows], wholes(units))
        starts = torch.tensor([0, *acts.lengths[:-1]]).cumsum(0)
        count += sum(acts.lengths) - len(rows)
        for whole in wholes(units):
            flat = acts.flat(whole).double()
            at_first = flat[starts].sum(0)
            first[whole] = first.get(whole, 0) + at_first  # type: ignore[operator]
            later[whole] = later.get(whole, 0) + flat.sum(0) - at_first  # type: ignore[operator]
    return {unit: (part(first[unit.whole] / len(prompts), unit, 0).float(),
                   part(later[unit.whole] / max(1, count), unit, 0).float()) for unit in units}  # fmt: skip


def unit_key(unit: Site) -> tuple[int, int]:
    """Order of units: by layer, then head."""
    return unit.layer or 0, -1 if unit.index is None else unit.index


def wholes(units: Sequence[Site]) -> list[Site]:
    """The whole sites that hold some units, in order."""
    return sorted({unit.whole for unit in units}, key=unit_key)


def width_of(model: Model, units: Sequence[Site]) -> int:
    """Floats captured per token, both runs."""
    return 2 * len(wholes(units)) * max(model.dims.d_model, model.dims.n_heads * model.dims.d_head)


def chunks(lengths: Sequence[int], width: int) -> Iterator[list[int]]:
    """Rows in order, as many at a time as the memory bound allows."""
    chunk: list[int] = []
    for row in range(len(lengths)):
        longest = max(lengths[other] for other in (*chunk, row))
        if chunk and (len(chunk) + 1) * longest * width > CHUNK_FLOATS:
            yield chunk
            chunk = []
        chunk.append(row)
    if chunk:
        yield chunk
