"""*mediates*: these heads, MLPs or residual sites carry this task.

1. A claim names units of one kind: heads (`z.L.H`), MLPs (`mlp_out.L`), attention layers
   (`attn_out.L`) or residual sites (`resid_pre|mid|post.L`), at all positions or the last one.
2. The instrument measures them on aligned pairs: clean, corrupted, ablated (clean run with units at
   their tune mean, or at their corrupted values), restored (corrupted run with clean values).
3. Means are taken over clean tune prompts; the first position has a mean of its own, because attention
   sinks make it hundreds of times larger than the rest.
4. It also measures random sets of the same size, layers and kind, and the complement.
5. Passes resume at the first edited layer; pairs are taken in chunks so that memory stays bounded.

Patching shows that information needed for the task flows through the units. It does not show what
they compute, that they are the only ones, or that the finding holds for other corruptions.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from assay.data.prepare import PreparedTask, prepare
from assay.errors import bad_argument
from assay.evidence.gates.base import evaluate, get_gate
from assay.evidence.kinds import KINDS, Columns, Progress
from assay.model.edits import Edit, patch
from assay.model.model import Model
from assay.records import GatePlan, Pair, Plan
from assay.sites import Site

UNIT_NAMES = ("z", "mlp_out", "attn_out", "resid_pre", "resid_mid", "resid_post")
CHUNK_FLOATS = 1 << 25
Means = dict[Site, tuple[Tensor, Tensor]]


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
    """Up to n distinct sets of the size of `units`, in the same layers; how many had to leave them.

    Where the layers do not have n such sets, units of other layers fill up. Empty when the pool has
    too few units outside the subject.
    """
    rng, claimed = random.Random(f"random-sets-{seed}"), set(units)
    free = [unit for unit in pool if unit not in claimed]
    if len(free) < len(units):
        return [], 0
    drawn: dict[tuple[Site, ...], bool] = {}
    for attempt in range(40 * n):
        chosen: list[Site] = []
        for unit in units:
            left = [other for other in free if other not in chosen]
            here = [other for other in left if other.layer == unit.layer]
            chosen.append(rng.choice(here if here and attempt < 20 * n else left))
        moved = sorted(unit.layer or 0 for unit in chosen) != sorted(unit.layer or 0 for unit in units)
        drawn.setdefault(tuple(sorted(chosen, key=unit_key)), moved)
        if len(drawn) == n:
            break
    return list(drawn), sum(drawn.values())


def site_means(model: Model, prompts: list[list[int]], units: Sequence[Site]) -> Means:
    """(mean at the first position, mean over all later ones) of every unit, over all prompts."""
    first: dict[Site, Tensor] = {}
    later: dict[Site, Tensor] = {}
    count = 0
    for rows in _chunks([len(ids) for ids in prompts], _width(model, units)):
        acts = model.capture([prompts[row] for row in rows], _wholes(units))
        starts = torch.tensor([0, *acts.lengths[:-1]]).cumsum(0)
        count += sum(acts.lengths) - len(rows)
        for whole in _wholes(units):
            flat = acts.flat(whole).double()
            at_first = flat[starts].sum(0)
            first[whole] = first.get(whole, 0) + at_first  # type: ignore[operator]
            later[whole] = later.get(whole, 0) + flat.sum(0) - at_first  # type: ignore[operator]
    return {unit: (_part(first[unit.whole] / len(prompts), unit, 0).float(),
                   _part(later[unit.whole] / max(1, count), unit, 0).float()) for unit in units}  # fmt: skip


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
            return self._mean_edit(unit)
        source = self._values["corrupted" if how == "resample" else "clean"]
        value = _part(source[unit.whole][rows], unit, 2)
        return patch(unit, value[:, 0] if self.setup.positions == "last" else value, self.setup.positions)

    def _mean_edit(self, unit: Site) -> Edit:
        first, later = self.setup.means[unit]
        if self.setup.positions == "last":
            return patch(unit, later, "last")
        longest = max(map(len, self._clean))
        return patch(unit, torch.stack([first, *[later] * (longest - 1)])[None])

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


def set_effects(model: Model, task: PreparedTask, sites: str | Sequence[str | Site]) -> dict[str, float]:
    """Necessity (mean and resample ablation) and sufficiency of a set of units on a task, as shares of
    the effect, means over templates. For exploration: no controls, no verdict."""
    units = units_of(model, sites)
    setup = Setup(units, (), (), site_means(model, task.clean, units), "logit_diff", "all", 0)
    plans = [get_gate(name).plan() for name in ("necessity.mean", "necessity.resample", "sufficiency")]
    base = get_gate("behaviour.span").plan()
    table = {"templates": task.templates, "columns": measure_split(model, task, setup, [base, *plans])}
    found = {plan.name: evaluate(plan, "explore", table, 0.05, 0) for plan in plans}
    return {name: result.estimate for name, result in found.items() if result and result.estimate is not None}


def recheck(
    model: Model, task: PreparedTask, rows: Sequence[int], setup: Setup, columns: Mapping[str, Sequence[float | None]]
) -> list[bool]:
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


# the kind ----------------------------------------------------------------------------------------


class Mediates:
    """The kind *mediates*, as the trial uses it."""

    name = "mediates"
    score = "clean"

    def subject(self, model: Model, given: Any) -> dict[str, Any]:
        """Canonical unit names. Raises UsageError for a site that cannot be a unit."""
        return {"sites": [str(unit) for unit in units_of(model, given)]}

    def words(self, subject: Mapping[str, Any], quantifier: str, data: str) -> str:
        """The claim as one sentence."""
        verb = {"tends": "tend to", "usually": "usually", "always": "always"}[quantifier]
        return f"{', '.join(subject['sites'])} {verb} carry the task {data}"

    def load(self, model: Model, items: Sequence[Pair]) -> PreparedTask:
        """Pairs, aligned for the model's tokenizer."""
        return prepare(items, model)

    def prepare(
        self, model: Model, plan: Plan, subject: Mapping[str, Any], tune: PreparedTask
    ) -> tuple[Setup, dict[str, Any]]:
        """Units, controls and means as the plan says; and a record of the controls that were drawn."""
        units = units_of(model, subject["sites"])
        pool, settings = all_units(model, units[0].name), plan.settings
        draws, moved = random_sets(pool, units, settings["draws"], settings["seed"])
        setup = Setup(
            units, tuple(unit for unit in pool if unit not in set(units)), tuple(draws),
            site_means(model, tune.clean, units), plan.metric, settings["positions"], settings["control_pairs"],
        )  # fmt: skip
        record = {"random": [[str(unit) for unit in draw] for draw in draws], "left_their_layer": moved,
                  "complement": len(setup.complement)}  # fmt: skip
        return setup, record

    def measure(
        self, model: Model, data: PreparedTask, setup: Setup, gates: Sequence[GatePlan], report: Progress | None = None
    ) -> Columns:
        """All columns the gates need, over all pairs of a split."""
        return measure_split(model, data, setup, gates, report)


KINDS.add("mediates", Mediates())
