"""*mediates*: these heads, MLPs or residual sites carry this task.

1. A claim names units of one kind: heads (`z.L.H`), MLPs (`mlp_out.L`), attention layers
   (`attn_out.L`) or residual sites (`resid_pre|mid|post.L`), at all positions or the last one; or a circuit of
   edges (`z.3.1->q.5.2`) and nodes (`edges_instrument.py`); or, of an image model, channels (`image_circuits.py`).
2. They are ablated in three ways and restored (`circuits_instrument.py`); so are random sets of the same
   size, layers and kind, and everything of the kind that is not claimed.
3. Every claimed unit is left out of the set once, and random units are added to it: which are padding?
4. A patch of everything and a patch of nothing go the same way, to see that the instrument works.

Patching shows that information needed for the task flows through the units. It does not show what
they compute, that they are the only ones, or that the finding holds for other corruptions. Directions inside
a site are not split into what later weights read and what they do not: a claim about a whole site does not
meet the illusion of patched subspaces, and says nothing about any of its directions.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from assay.circuits.graph import ARROW, Edge
from assay.circuits.guards import check_bos
from assay.data.prepare import PreparedTask, prepare
from assay.errors import bad_argument
from assay.evidence.circuits_instrument import Instrument, Setup, chunks, site_means, unit_key, width_of
from assay.evidence.edges_instrument import EdgeInstrument, edge_setup, is_circuit, parts_of
from assay.evidence.gates.base import evaluate, get_gate
from assay.evidence.image_circuits import ImageInstrument, PreparedPictures, channels_of, image_setup, prepare_pictures
from assay.evidence.kinds import KINDS, Columns, Progress
from assay.model.images import ImageModel
from assay.model.model import Model
from assay.records import GatePlan, Pair, Plan
from assay.sites import Site

UNIT_NAMES = ("z", "mlp_out", "attn_out", "resid_pre", "resid_mid", "resid_post")
N_ADDED = 10  # random units that minimality compares the claimed ones with


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


def added_units(pool: Sequence[Site], units: Sequence[Site], n: int, seed: int) -> tuple[Site, ...]:
    """Up to n units outside the subject, drawn at random, those of its layers first."""
    free = [unit for unit in pool if unit not in set(units)]
    random.Random(f"added-{seed}").shuffle(free)
    layers = {unit.layer for unit in units}
    return tuple(sorted(free, key=lambda unit: unit.layer not in layers)[:n])


# measuring ---------------------------------------------------------------------------------------


def measure_split(
    model: Model, task: PreparedTask, setup: Setup, gates: Sequence[GatePlan], report: Progress | None = None
) -> Columns:
    """All columns the gates need, over all pairs of a split."""
    columns: Columns = {}
    for number, (rows, parts) in enumerate(parts_of_split(model, task, setup)):
        instrument = instrument_of(model, task, rows, setup)
        for gate in gates:
            for name, values in get_gate(gate.name).measure(instrument, gate).items():
                whole = columns.setdefault(name, [None] * len(task))
                for row, value in zip(rows, values, strict=True):
                    whole[row] = value
        if report:
            report("measuring", number + 1, parts)
    return columns


def parts_of_split(model: Model, task: PreparedTask, setup: Setup) -> list[tuple[list[int], int]]:
    """Rows that are measured together, and how many such parts there are. Circuits look after their memory themselves."""
    if isinstance(task, PreparedPictures) or is_circuit(setup.units):
        return [(list(range(len(task))), 1)]
    parts = list(chunks([len(ids) for ids in task.clean], width_of(model, (*setup.units, *setup.complement))))
    return [(rows, len(parts)) for rows in parts]


def instrument_of(
    model: Any, task: Any, rows: Sequence[int], setup: Setup
) -> Instrument | EdgeInstrument | ImageInstrument:
    """What measures a claim about these units, this circuit, or these channels."""
    if isinstance(task, PreparedPictures):
        return ImageInstrument(model, task, rows, setup)
    return (EdgeInstrument if is_circuit(setup.units) else Instrument)(model, task, rows, setup)


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
    new, same = both_ways(model, task, rows, setup), []
    for place, row in enumerate(rows):
        old = {name: columns[name][row] for name in new}
        fresh = {name: values[place] for name, values in new.items()}
        same.append(_signs(old) == _signs(fresh))
    return same


def both_ways(model: Any, task: Any, rows: Sequence[int], setup: Setup) -> Columns:
    """Some pairs as they are, with the units exchanged in the clean run, and restored in the corrupted one."""
    at = instrument_of(model, task, rows, setup)
    return {"clean": at.clean, "ablated.resample": at.ablated(setup.units, "resample"),
            "corrupted": at.corrupted, "restored": at.restored(setup.units)}  # fmt: skip


def _signs(scores: dict[str, float | None]) -> tuple[bool, bool]:
    values = {name: 0.0 if value is None else value for name, value in scores.items()}
    return (values["clean"] - values["ablated.resample"] > 0, values["restored"] - values["corrupted"] > 0)


# the kind ----------------------------------------------------------------------------------------


class Mediates:
    """The kind *mediates*, as the trial uses it."""

    name = "mediates"
    score = "clean"

    def subject(self, model: Model, given: Any) -> dict[str, Any]:
        """Canonical names of units, or of the edges and nodes of a circuit. Raises UsageError for what cannot be one."""
        names = [given] if isinstance(given, str | Site | Edge) else list(given)
        names = [part.strip() for name in names for part in str(name).split(",")]
        if isinstance(model, ImageModel):
            return {"sites": list(channels_of(model, names))}
        if is_circuit(names):
            return {"sites": [str(part) for part in parts_of(model, names)]}
        return {"sites": [str(unit) for unit in units_of(model, names)]}

    def words(self, subject: Mapping[str, Any], quantifier: str, data: str) -> str:
        """The claim as one sentence."""
        verb = {"tends": "tend to", "usually": "usually", "always": "always"}[quantifier]
        if is_circuit(subject["sites"]):
            what = "edges" if any(ARROW in name for name in subject["sites"]) else "nodes"
            return f"these {len(subject['sites'])} {what}, as a circuit, {verb} carry the task {data}"
        return f"{', '.join(subject['sites'])} {verb} carry the task {data}"

    def load(self, model: Any, items: Sequence[Pair]) -> PreparedTask | PreparedPictures:
        """Pairs, aligned for the model's tokenizer; of an image model pairs of pictures."""
        return prepare_pictures(model, items) if isinstance(model, ImageModel) else prepare(items, model)

    def prepare(
        self, model: Any, plan: Plan, subject: Mapping[str, Any], tune: PreparedTask | PreparedPictures
    ) -> tuple[Setup, dict[str, Any]]:
        """Units, controls and means as the plan says; and a record of the controls that were drawn. Raises TaskError for
        prompts that would make the numbers meaningless."""
        if isinstance(tune, PreparedPictures):
            return image_setup(model, plan, subject["sites"], tune)
        check_bos(model, tune)
        if is_circuit(subject["sites"]):
            return edge_setup(model, plan, subject, tune)
        units = units_of(model, subject["sites"])
        pool, settings = all_units(model, units[0].name), plan.settings
        draws, moved = random_sets(pool, units, settings["draws"], settings["seed"])
        setup = Setup(
            units, tuple(unit for unit in pool if unit not in set(units)), tuple(draws),
            site_means(model, tune.clean, units), plan.metric, settings["positions"], settings["control_pairs"],
            added_units(pool, units, N_ADDED, settings["seed"]),
        )  # fmt: skip
        record = {"random": [[str(unit) for unit in draw] for draw in draws], "left_their_layer": moved,
                  "complement": len(setup.complement), "added": [str(unit) for unit in setup.added]}  # fmt: skip
        return setup, record

    def measure(
        self, model: Model, data: PreparedTask, setup: Setup, gates: Sequence[GatePlan], report: Progress | None = None
    ) -> Columns:
        """All columns the gates need, over all pairs of a split."""
        return measure_split(model, data, setup, gates, report)


KINDS.add("mediates", Mediates())
