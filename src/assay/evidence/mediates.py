"""*mediates*: these heads, MLPs or residual sites carry this task.

1. A claim names units of one kind: heads (`z.L.H`), MLPs (`mlp_out.L`), attention layers
   (`attn_out.L`) or residual sites (`resid_pre|mid|post.L`), at all positions or the last one.
2. The instrument measures them on aligned pairs: clean, corrupted, ablated (clean run with units at
   their tune mean, or at their corrupted values), restored (corrupted run with clean values).
3. It also measures random sets of the same size, layers and kind, and the complement.
4. Passes resume at the first edited layer; pairs are taken in chunks so that memory stays bounded.

Patching shows that information needed for the task flows through the units. It does not show what
they compute, that they are the only ones, or that the finding holds for other corruptions.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from assay.data.prepare import PreparedTask
from assay.errors import EvidenceError, bad_argument
from assay.evidence.gates.base import Columns, get_gate
from assay.model.edits import Edit, patch
from assay.model.model import Model
from assay.records import GatePlan, Plan
from assay.sites import Site

KIND = "mediates"
UNIT_NAMES = ("z", "mlp_out", "attn_out", "resid_pre", "resid_mid", "resid_post")
CHUNK_FLOATS = 1 << 25
Means = dict[Site, Tensor]
Progress = Callable[[str, int, int], None]


def units_of(model: Model, sites: str | Sequence[str | Site]) -> tuple[Site, ...]:
    """The units a claim names, whole `z.L` spelled out as heads, sorted. Raises UsageError."""
    found: set[Site] = set()
    for site in model.sites(sites):
        if site.name not in UNIT_NAMES or (site.name == "attn_out" and site.index is not None):
            hint = f" Write z.{site.layer}.{site.index} for a head." if site.name == "attn_out" else ""
            raise bad_argument("sites", str(site), "z.L.H, mlp_out.L, attn_out.L, resid_pre|mid|post.L", hint)
        heads = range(model.n_heads) if site.name == "z" and site.index is None else [site.index]
        found.update(Site(site.name, site.layer, head) for head in heads)
    if len(names := sorted({unit.name for unit in found})) > 1:
        raise bad_argument("sites", " and ".join(names), "one kind of site per claim", "State one claim per kind.")
    return tuple(sorted(found, key=unit_key))


def unit_key(unit: Site) -> tuple[int, int]:
    """Order of units: by layer, then head."""
    return unit.layer or 0, -1 if unit.index is None else unit.index


def all_units(model: Model, name: str) -> list[Site]:
    """Every unit of one kind in a model."""
    heads = range(model.n_heads) if name == "z" else [None]
    return [Site(name, layer, head) for layer in range(model.n_layers) for head in heads]


def random_sets(
    pool: Sequence[Site], units: Sequence[Site], n: int, seed: int
) -> tuple[list[tuple[Site, ...]], int]:
    """Up to n distinct sets matched to `units` in size and layers; how many had to leave a layer.

    Empty when the pool has too few units outside the subject.
    """
    rng, claimed = random.Random(f"random-sets-{seed}"), set(units)
    free = [unit for unit in pool if unit not in claimed]
    if len(free) < len(units):
        return [], 0
    drawn: dict[tuple[Site, ...], int] = {}
    for _ in range(20 * n):
        chosen: list[Site] = []
        moved = 0
        for unit in units:
            here = [other for other in free if other.layer == unit.layer and other not in chosen]
            moved += not here
            chosen.append(rng.choice(here or [other for other in free if other not in chosen]))
        drawn.setdefault(tuple(sorted(chosen, key=unit_key)), moved)
        if len(drawn) == n:
            break
    return list(drawn), sum(moved > 0 for moved in drawn.values())


def site_means(model: Model, prompts: list[list[int]], units: Sequence[Site]) -> Means:
    """Mean activation of every unit over all positions of all prompts."""
    totals: dict[Site, Tensor] = {}
    count = 0
    for rows in _chunks([len(ids) for ids in prompts], _width(model, units)):
        acts = model.capture([prompts[row] for row in rows], _wholes(units))
        count += sum(acts.lengths)
        for whole in _wholes(units):
            totals[whole] = totals.get(whole, 0) + acts.flat(whole).double().sum(0)  # type: ignore[operator]
    return {unit: _part(totals[unit.whole] / count, unit, 0).float() for unit in units}


# the instrument ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setup:
    """What stays the same over the chunks of a measurement."""

    units: tuple[Site, ...]
    complement: tuple[Site, ...]
    random_sets: tuple[tuple[Site, ...], ...]
    means: Means
    metric: str
    positions: str
    control_pairs: int


class Instrument:
    """Measures one chunk of pairs; scores are kept, so gates may ask for the same thing twice."""

    def __init__(self, model: Model, task: PreparedTask, rows: Sequence[int], setup: Setup) -> None:
        self.model, self.setup = model, setup
        self.units, self.complement, self.random_sets = setup.units, setup.complement, setup.random_sets
        self._clean = [task.clean[row] for row in rows]
        self._corrupted = [task.corrupted[row] for row in rows]
        self._metric = task.metric(setup.metric).select(list(rows))
        self._controls = control_rows(task.templates, rows, setup.control_pairs)
        self._checkpoints: dict[tuple[str, int], Any] = {}
        self._kept: dict[Any, list[float | None]] = {}
        wholes = _wholes((*setup.units, *setup.complement))
        self._values: dict[str, dict[Site, Tensor]] = {}
        for run, prompts in (("clean", self._clean), ("corrupted", self._corrupted)):
            acts = model.capture(prompts, wholes, positions=setup.positions)
            self._values[run] = {whole: acts[whole] for whole in wholes}

    @property
    def clean(self) -> list[float | None]:
        """The metric on clean prompts."""
        return self._score("clean", ())

    @property
    def corrupted(self) -> list[float | None]:
        """The metric on corrupted prompts."""
        return self._score("corrupted", ())

    def ablated(self, units: tuple[Site, ...], how: str, controls: bool = False) -> list[float | None]:
        """Clean prompts with units at their mean (`mean`) or corrupted values (`resample`)."""
        return self._score("clean", units, how, controls)

    def restored(self, units: tuple[Site, ...], controls: bool = False) -> list[float | None]:
        """Corrupted prompts with units at their clean values."""
        return self._score("corrupted", units, "restore", controls)

    def _score(self, run: str, units: tuple[Site, ...], how: str = "", controls: bool = False) -> list[float | None]:
        key = (run, units, how, controls)
        if key in self._kept:
            return self._kept[key]
        prompts = self._clean if run == "clean" else self._corrupted
        rows = self._controls if controls else list(range(len(prompts)))
        out: list[float | None] = [None] * len(prompts)
        if rows:
            start = min((unit.layer or 0 for unit in units), default=0)
            scores = self.model.score(
                [prompts[row] for row in rows], self._metric.select(rows),
                edits=[self._edit(unit, how, rows) for unit in units],
                resume=self._checkpoint(run, start).select(rows) if start > 0 else None,
            )  # fmt: skip
            for row, value in zip(rows, scores.tolist(), strict=True):
                out[row] = value
        self._kept[key] = out
        return out

    def _edit(self, unit: Site, how: str, rows: list[int]) -> Edit:
        if how == "mean":
            return patch(unit, self.setup.means[unit], self.setup.positions)
        source = self._values["corrupted" if how == "resample" else "clean"]
        value = _part(source[unit.whole][rows], unit, 2)
        return patch(unit, value[:, 0] if self.setup.positions == "last" else value, self.setup.positions)

    def _checkpoint(self, run: str, layer: int) -> Any:
        if (run, layer) not in self._checkpoints:
            prompts = self._clean if run == "clean" else self._corrupted
            self._checkpoints[run, layer] = self.model.checkpoint(prompts, [layer])
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


def measure_split(
    model: Model, task: PreparedTask, setup: Setup, gates: Sequence[GatePlan], report: Progress | None = None
) -> Columns:
    """All columns the gates need, over all pairs of a split."""
    columns: Columns = {}
    chunks = list(_chunks([len(ids) for ids in task.clean], _width(model, (*setup.units, *setup.complement))))
    for number, rows in enumerate(chunks):
        instrument = Instrument(model, task, rows, setup)
        for gate in gates:
            for name, values in get_gate(gate.name).measure(instrument, gate).items():
                whole = columns.setdefault(name, [None] * len(task))
                for row, value in zip(rows, values, strict=True):
                    whole[row] = value
        if report:
            report("measuring", number + 1, len(chunks))
    return columns


def prepare_setup(model: Model, plan: Plan, sites: Sequence[str], tune: PreparedTask) -> tuple[Setup, dict[str, Any]]:
    """Units, controls and means as the plan says; and a record of the controls that were drawn."""
    units = units_of(model, sites)
    pool, settings = all_units(model, units[0].name), plan.settings
    draws, moved = random_sets(pool, units, settings["draws"], settings["seed"])
    setup = Setup(
        units, tuple(unit for unit in pool if unit not in set(units)), tuple(draws),
        site_means(model, tune.clean, units), plan.metric, settings["positions"], settings["control_pairs"],
    )  # fmt: skip
    record = {"random": [[str(unit) for unit in draw] for draw in draws], "left_their_layer": moved,
              "complement": len(setup.complement)}  # fmt: skip
    return setup, record


def recheck(model: Model, task: PreparedTask, rows: Sequence[int], setup: Setup, columns: Columns) -> list[bool]:
    """Measure some pairs again, alone; True where drop and recovery have the sign they had."""
    again = Instrument(model, task, rows, setup)
    new = {"clean": again.clean, "ablated.resample": again.ablated(setup.units, "resample"),
           "corrupted": again.corrupted, "restored": again.restored(setup.units)}  # fmt: skip
    same = []
    for place, row in enumerate(rows):
        old = {name: columns[name][row] for name in new}
        fresh = {name: values[place] for name, values in new.items()}
        same.append(_signs(old) == _signs(fresh))
    return same


def _signs(scores: dict[str, float | None]) -> tuple[bool, bool]:
    values = {name: 0.0 if value is None else value for name, value in scores.items()}
    return (values["clean"] - values["ablated.resample"] > 0, values["restored"] - values["corrupted"] > 0)


def _wholes(units: Sequence[Site]) -> list[Site]:
    return sorted({unit.whole for unit in units}, key=unit_key)


def _part(value: Tensor, unit: Site, axis: int) -> Tensor:
    """One head of a whole-layer value, heads on `axis`; other units are whole already."""
    return value if unit.index is None else value.select(axis, unit.index)


def _width(model: Model, units: Sequence[Site]) -> int:
    """Floats captured per token, both runs."""
    return 2 * len(_wholes(units)) * max(model.dims.d_model, model.dims.n_heads * model.dims.d_head)


def _chunks(lengths: Sequence[int], width: int) -> Iterator[list[int]]:
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


def check_direction(task: PreparedTask) -> None:
    """Pairs must be aligned token by token. Raises EvidenceError otherwise."""
    bad = [i for i, (a, b) in enumerate(zip(task.clean, task.corrupted, strict=True)) if len(a) != len(b)]
    if bad:
        raise EvidenceError(f"pair {bad[0]}: clean and corrupted have different numbers of tokens;"
                            " prepare() the task for this model first.")  # fmt: skip


