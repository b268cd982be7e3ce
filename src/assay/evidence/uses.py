"""*uses*: the model relies on this direction (or small subspace) for this task.

1. A claim names one direction, or a few, at one site. Whether a property can be read there is no part of it.
2. Erase it (mean projection): the component is set to its mean over tune prompts of both sides of the pairs
   (Singh et al. 2024, Belrose et al. 2023). Exchange it: the component is set to its value in the corrupted run.
   Both must lower the behaviour: what is needed but alike in the two runs comes out as ablation-dependent.
3. On a subset of pairs: random subspaces of the same rank from three pools, erased by an equal mean squared
   change (energy matched on tune). The claimed erasure must do more than the strongest of them.
4. The same erasure on ordinary texts must change little.
5. An exchange of nothing and one of everything go the same way, to see that the instrument works.
6. Reported where one matrix reads the site: the same with only the part that it reads. Where the options ask for
   `interchange`: do answers change as they should, more than by random subspaces, and more than on an untrained twin?

Erasing a subspace shows that the behaviour passes through it under this change. It does not show what the
subspace stands for, that nothing else would do, or that the change leaves activations the model could have
by itself; a direction that also reaches into an otherwise dormant pathway can pass (Makelov et al. 2023).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from assay.data.prepare import PreparedTask, prepare
from assay.evidence.effects import (
    Damage,
    Elsewhere,
    control_rows,
    deal,
    other_tasks,
    per_pool,
    record_of,
    site_features,
    spread_over,
)  # fmt: skip
from assay.evidence.features import Feature, feature_of
from assay.evidence.gates.base import get_gate
from assay.evidence.kinds import KINDS, Columns, Progress
from assay.evidence.neutral import TEXTS
from assay.model.model import Model
from assay.model.untrained import untrained_model
from assay.probe.readout import read_part, read_space
from assay.probe.variants import (
    Centre,
    Place,
    Variant,
    erasure,
    interchange,
    matched_gains,
    orthonormal,
    place_of,
    random_subspaces,
    run_variants,
    swapped,
    tune_tokens,
    unchanged,
)  # fmt: skip
from assay.records import GatePlan, Pair, Plan

Column = list[float | None]
READ = 1e-2  # of a basis that lies outside of what is read: less counts as none


@dataclass(frozen=True, eq=False)
class ErasureSetup:
    """What is fixed before sealed data are read. `controls`: name -> (basis, factor of its change). `read`: what later weights
    read of the subspace, where that is less than all; `twin`: an untrained model and a subspace fitted to it, where asked."""

    place: Place
    basis: Float[Tensor, "rank d"]
    centre: Centre
    controls: Mapping[str, tuple[Tensor, float]]
    damage: Damage
    metric: str
    control_pairs: int
    elsewhere: Elsewhere | None = None
    read: Float[Tensor, "rank2 d"] | None = None
    twin: tuple[Model, Float[Tensor, "rank d"]] | None = None


class ErasureInstrument:
    """Measures pairs of one split; scores are kept, so gates may ask for the same thing twice."""

    def __init__(self, model: Model, task: PreparedTask, setup: ErasureSetup) -> None:
        self.model, self.task, self.setup = model, task, setup
        self._kept: dict[str, Column] = {}

    @property
    def clean(self) -> Column:
        """The metric on clean prompts."""
        return self._plain("clean", self.task.clean)

    @property
    def corrupted(self) -> Column:
        """The metric on corrupted prompts."""
        return self._plain("corrupted", self.task.corrupted)

    def erased(self, how: str) -> Column:
        """Clean prompts with the component at its mean (`mean`) or at its corrupted value (`resample`)."""
        basis = self.setup.basis
        mean = erased(basis, self.setup.centre, self.setup.place)
        return self._run({"erased.mean": mean, "erased.resample": interchange(basis)}, f"erased.{how}")

    def exchanged(self, everything: bool) -> Column:
        """Clean prompts with the whole activation, or nothing, at its corrupted value."""
        return self._run({"exchanged.True": swapped, "exchanged.False": unchanged}, f"exchanged.{everything}")

    def controls(self) -> Columns:
        """Every random subspace erased, on the first few pairs of every template."""
        rows = control_rows(self.task.templates, self.setup.control_pairs)
        task = self.task.select(rows)
        setup = self.setup
        variants = [erased(basis, setup.centre, setup.place, gain) for basis, gain in setup.controls.values()]
        scores = run_variants(self.model, task.clean, task.metric(self.setup.metric), self.setup.place, variants)
        return {f"random.erased.{name}": spread_over(rows, values, len(self.task))
                for name, values in zip(self.setup.controls, scores.tolist(), strict=True)}  # fmt: skip

    def random_exchanges(self) -> Columns:
        """Every random subspace, without what it shares with the claimed one, exchanged; on the first few pairs of every
        template."""
        rows = control_rows(self.task.templates, self.setup.control_pairs)
        variants = [interchange(apart_from(basis, self.setup.basis)) for basis, _ in self.setup.controls.values()]
        found = self._scores(self.task.select(rows), variants)
        return {f"random.exchanged.{name}": spread_over(rows, values, len(self.task))
                for name, values in zip(self.setup.controls, found.tolist(), strict=True)}  # fmt: skip

    def twin_exchanged(self) -> Columns:
        """The untrained twin as it runs, and with the subspace that was fitted to it exchanged; nothing without a twin."""
        if self.setup.twin is None:
            return {}
        twin, basis = self.setup.twin
        before, after = self._scores(self.task, [unchanged, interchange(basis)], twin).tolist()
        return {"twin.clean": before, "twin.exchanged": after}

    def read_part_exchanged(self) -> Column | None:
        """What later weights read of the subspace exchanged; None where they read all of it, or where that is not known."""
        basis = self.setup.read
        if basis is None:
            return None
        return self.clean if not len(basis) else self._scores(self.task, [interchange(basis)])[0].tolist()

    def damage(self) -> Column:
        """KL on ordinary texts under the erasure."""
        return deal(self.setup.damage.of(self.model), self.task.templates)

    def elsewhere(self) -> Columns:
        """The drop under the erasure, and the change of every other task that was named."""
        found = {} if self.setup.elsewhere is None else self.setup.elsewhere.of(self.model)
        return {"erased.mean": self.erased("mean"),
                **{f"off.{name}": deal(values, self.task.templates) for name, values in found.items()}}  # fmt: skip

    def _scores(self, task: PreparedTask, variants: Sequence[Variant], model: Model | None = None) -> Tensor:
        """The metric of some pairs' clean prompts under variants that see the corrupted run: (variant, pair)."""
        model, metric = model or self.model, task.metric(self.setup.metric)
        return run_variants(model, task.clean, metric, self.setup.place, variants, task.corrupted)

    def _plain(self, name: str, prompts: Sequence[list[int]]) -> Column:
        if name not in self._kept:
            self._kept[name] = self.model.score(list(prompts), self.task.metric(self.setup.metric)).tolist()
        return self._kept[name]

    def _run(self, together: Mapping[str, Variant], name: str) -> Column:
        """One of some variants that are measured together: they share what is captured."""
        if name not in self._kept:
            scores = self._scores(self.task, list(together.values()))
            self._kept.update(zip(together, scores.tolist(), strict=True))
        return self._kept[name]


def erased(basis: Float[Tensor, "rank d"], centre: Centre, place: Place, gain: float = 1.0) -> Variant:
    """The variant that erases a subspace."""
    return erasure(basis, centre, gain, last=place.positions == "last")


def narrower(model: Model, place: Place, basis: Float[Tensor, "rank d"]) -> Float[Tensor, "rank2 d"] | None:
    """What later weights read of a subspace; None where they read all of it, or where that is not known."""
    space = read_space(model, place.site)
    if space is None or float((basis - basis @ space.T @ space).norm()) < READ:
        return None
    return read_part(basis, space)


def apart_from(basis: Float[Tensor, "rank d"], claimed: Float[Tensor, "rank d"]) -> Float[Tensor, "rank2 d"]:
    """An orthonormal basis of what one subspace has outside of another."""
    rest = (basis - basis @ claimed.T @ claimed).double()
    _, sizes, rows = torch.linalg.svd(rest, full_matrices=False)
    return rows[sizes > READ].float()


def fitted_twin(
    model: Model, place: Place, rank: int, tune: PreparedTask, seed: int
) -> tuple[Model, Float[Tensor, "rank d"]]:  # fmt: skip
    """An untrained twin, and the leading directions of what differs there between the two runs of tune pairs."""
    twin = untrained_model(model, "all", seed)
    clean, corrupted = (twin.capture(prompts, place.site).rows(place.site) for prompts in (tune.clean, tune.corrupted))
    apart = torch.cat([(a - b).float() for a, b in zip(clean, corrupted, strict=True)])
    return twin, torch.linalg.svd(apart.double(), full_matrices=False).Vh[:rank].float().contiguous()


class Uses:
    """The kind *uses*, as the trial uses it."""

    name = "uses"
    score = "clean"

    def subject(self, model: Model, given: Any) -> dict[str, Any]:
        """One direction or unit, or a list of them at one site. Raises UsageError for anything else."""
        many = isinstance(given, Sequence) and not isinstance(given, str)
        features: list[Feature] = [feature_of(each) for each in (given if many else [given])]
        _, names = site_features(model, features)
        return {"sites": names, "features": [feature.record() for feature in features]}

    def words(self, subject: Mapping[str, Any], quantifier: str, data: str) -> str:
        """The claim as one sentence."""
        verb = {"tends": "tends to rely", "usually": "usually relies", "always": "always relies"}[quantifier]
        sites = subject["sites"]
        shown = ", ".join(sites[:4]) + (f" and {len(sites) - 4} more" if len(sites) > 4 else "")
        return f"the model {verb} on {shown} for {data}"

    def load(self, model: Model, items: Sequence[Pair]) -> PreparedTask:
        """Pairs, aligned for the model's tokenizer."""
        return prepare(items, model)

    def prepare(
        self, model: Model, plan: Plan, subject: Mapping[str, Any], tune: PreparedTask
    ) -> tuple[ErasureSetup, dict[str, Any]]:
        """Basis, means and energy-matched controls, from tune."""
        settings = plan.settings
        features = [feature_of(record) for record in subject["features"]]
        place = place_of(model, features[0].site, settings["positions"])
        centre, centred = tune_tokens(model, [*tune.clean, *tune.corrupted], place)
        basis = orthonormal([feature.direction(centred.shape[1]) for feature in features])
        drawn = random_subspaces(centred, basis, per_pool(settings["draws"]), settings["seed"])
        gains = matched_gains(drawn, basis, centred)
        neutral = list(settings["options"].get("neutral", TEXTS))
        damage = Damage(neutral, place, [erased(basis, centre, place)])
        tasks = other_tasks(model, settings["options"].get("off_target", ()), tune.templates)
        setup = ErasureSetup(
            place, basis, centre, {name: (drawn[name], gain) for name, gain in gains.items()}, damage, plan.metric,
            settings["control_pairs"], Elsewhere(tasks, place, {"erased": erased(basis, centre, place)}) if tasks else None,
            narrower(model, place, basis),
            fitted_twin(model, place, len(basis), tune, settings["seed"]) if "interchange" in settings["options"] else None,
        )  # fmt: skip
        record = {"random": record_of({name: drawn[name] for name in gains}),
                  "gains": {name: float(f"{gain:.3g}") for name, gain in gains.items()}, "neutral": len(neutral)}  # fmt: skip
        return setup, record

    def measure(
        self, model: Model, data: PreparedTask, setup: ErasureSetup, gates: Sequence[GatePlan], report: Progress | None = None
    ) -> Columns:
        """All columns the gates need, over all pairs of a split."""
        instrument = ErasureInstrument(model, data, setup)
        columns: Columns = {}
        for number, gate in enumerate(gates):
            columns.update(get_gate(gate.name).measure(instrument, gate))
            if report:
                report("measuring", number + 1, len(gates))
        return columns


KINDS.add("uses", Uses())
