"""What a probe's direction is good for: taken out, pushed along, and looked for again.

A *behaviour* is a number m per prompt, and prompts of two sides (clean and corrupted, or label 1 and 0). Its contrast at a
prompt of side s = +1, -1 is c = s (m - (mean of m over + plus mean over -) / 2); effects are in units of the mean contrast:

    share = (c - c of the changed run) / mean c        0: nothing changed, 1: the sides no longer differ

1. *Erased*: the component along the direction is set to its mean over tune prompts, everywhere (first position apart).
   x - (x - mean) u u'. *Pushed*: the two prompts of a pair are moved along the direction in opposite senses, by `dose`
   times the distance between the class means of the probe's own texts, both ways round; the way that brings the sides
   nearer counts. Its share is halved: 1 is all the way to the other side. `as_read`: how often that is the way the
   direction itself says, from the end where a prompt lies towards the end of its partner.
2. The same is done with five pools of other directions: random ones (isotropic, drawn from the covariance, single units),
   *orthogonal probes*, trained for the same property after the direction was erased, and probes of a *control task*, random
   labels per word. Erasures are matched by energy on tune, pushes by norm; they are measured on the first prompts of every
   template. Only what exceeds the strongest of every pool, on the same prompts, speaks for this direction.
3. *Looked for again* (amnesic check; Elazar et al. 2021, Ravfogel et al. 2020): with the direction erased, probes are
   trained anew at this site and at later ones, and scored on confirm texts. Then what is left between the class means is
   erased as well, and so on, `rounds` times in all (where class means are equal no linear probe beats chance; Belrose et
   al. 2023); the share is given for everything erased so far. `left_over`: it can still be read at the site, so the
   direction did not hold all of it (a fitted one never quite does; or it is written twice). `cleared`: so many directions
   later it cannot. `came_back`: later sites where it can be read again although the site was cleared: it is computed anew,
   from elsewhere or not linearly.
4. Intervals are over clusters: bootstrap-t of cluster means for shares, groups drawn anew for AUROCs. Directions, means and
   penalties come from tune, everything reported from confirm.

Decodable and used are different findings. That an erasure changes nothing does not show that the property is unused: it
may be left over or come back. That it changes something does not show what the direction stands for. After some rounds any
small behaviour suffers, whatever the property: shares of later rounds have no controls.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from assay.data.metrics import Metric
from assay.data.prepare import PreparedTask
from assay.data.prepare_concept import PreparedConcept
from assay.errors import ShapeError, TaskError, bad_argument
from assay.model.edits import Edit, clamp
from assay.model.model import Model
from assay.probe.baselines import groups_of
from assay.probe.control import control_labels, unit_of
from assay.probe.path import can_fold, fit_path, folds_of
from assay.probe.read import read_all
from assay.probe.scores import Estimate, auroc
from assay.probe.variants import (
    Centre,
    Place,
    Variant,
    erasure,
    matched_gains,
    orthonormal,
    place_of,
    pushed,
    random_subspaces,
    run_variants,
    tune_tokens,
    width,
)
from assay.sites import Site
from assay.statistics import cluster_means, interval, interval_method

Array = NDArray[np.float64]
Progress = Callable[[str, int, int], Any]
Change = Callable[[int], Variant]  # side -> what is done to its prompts
CS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
BACK = 0.5  # share of a probe's lead over chance that counts as having come back
FOLDS = 5
AT_ONCE = 16  # changes between two reports of progress


@dataclass(frozen=True)
class CausalPlan:
    """How a direction is followed up.

    `position`: where texts are read, as for the probe; `dose`: of the push, in distances between class means; `draws`: random
    directions per pool; `control_tasks`: probes of random labels; `control_items`: prompts of each side that every template
    gives to the comparison; `rounds`: directions erased one after the other; `later`: later layers looked at; `least`: the
    smallest share that counts.
    """

    position: str = "concept"
    dose: float = 1.0
    draws: int = 9
    control_tasks: int = 5
    control_items: int = 1
    rounds: int = 3
    later: int = 4
    least: float = 0.1
    seed: int = 0

    def check(self) -> None:
        """Raises UsageError for a setting outside its limits."""
        for name, low in (("draws", 1), ("control_tasks", 0), ("control_items", 1), ("rounds", 1), ("later", 0)):
            if getattr(self, name) < low:
                raise bad_argument(name, getattr(self, name), f"{low} or more")
        if not 0 < self.dose < float("inf"):
            raise bad_argument("dose", self.dose, "a number above 0")
        if not 0 < self.least < 1:
            raise bad_argument("least", self.least, "a share between 0 and 1")


@dataclass(frozen=True, eq=False)
class Behaviour:
    """n prompts on two sides, and the number that tells them apart.

    `sides`: +1 where the metric should be high, -1 where low. `clusters`: templates. `paired`: the first half are the +1
    prompts, the second half their partners in the same order.
    """

    prompts: list[list[int]]
    sides: NDArray[np.int64]
    clusters: list[str]
    metric: Metric
    paired: bool = False

    @classmethod
    def of_task(cls, task: PreparedTask, metric: str = "logit_diff") -> "Behaviour":
        """Clean prompts are +1, corrupted ones -1; both are scored by the answer of the clean one."""
        n, bound = len(task), task.metric(metric)
        return cls([*task.clean, *task.corrupted], np.repeat([1, -1], n), [*task.templates] * 2,
                   bound.select([*range(n)] * 2), paired=True)  # fmt: skip

    @classmethod
    def of_concept(cls, texts: PreparedConcept, metric: Metric) -> "Behaviour":
        """Texts with label 1 are +1; `metric` is bound to these texts, such as Metric("logit_diff", answers, foils)."""
        labels = np.array(texts.labels)
        if len(set(texts.labels)) < 2:
            raise TaskError("behaviour: every text has the same label; allowed: texts with and without the concept.")
        return cls(list(texts.tokens), 2 * labels - 1, texts.templates, metric)

    def first(self, n: int) -> "Behaviour":
        """The first n prompts of each side of every template; of pairs both."""
        seen: Counter[tuple[str, int]] = Counter()
        kept = []
        for row, key in enumerate(zip(self.clusters, self.sides.tolist(), strict=True)):
            seen[key] += 1
            if seen[key] <= n:
                kept.append(row)
        return Behaviour([self.prompts[row] for row in kept], self.sides[kept], [self.clusters[row] for row in kept],
                         self.metric.select(kept), self.paired)  # fmt: skip

    def rows(self, side: int) -> list[int]:
        """Numbers of the prompts of a side."""
        return np.flatnonzero(self.sides == side).tolist()

    def run(self, model: Model, place: Place, changes: Sequence[Change]) -> Float[Tensor, "change prompt"]:
        """The metric of every prompt under every change."""
        out = torch.empty(len(changes), len(self.prompts))
        for side in (1, -1):
            rows = self.rows(side)
            out[:, rows] = run_variants(model, [self.prompts[row] for row in rows], self.metric.select(rows), place,
                                        [change(side) for change in changes])  # fmt: skip
        return out

    def contrast(self, values: Float[Tensor, "change prompt"]) -> Float[Tensor, "change prompt"]:
        """How far every prompt is on its own side of the middle."""
        middle = (values[:, self.sides == 1].mean(1) + values[:, self.sides == -1].mean(1)) / 2
        return torch.as_tensor(self.sides) * (values - middle[:, None])

    def together(self, values: Float[Tensor, "*any prompt"]) -> Float[Tensor, "*any unit"]:
        """Means over what is pushed in one sense: a pair, or where there are no pairs everything."""
        if not self.paired:
            return ((values[..., self.sides == 1].mean(-1) + values[..., self.sides == -1].mean(-1)) / 2)[..., None]
        return (values[..., self.rows(1)] + values[..., self.rows(-1)]) / 2


@dataclass(frozen=True)
class Pool:
    """Other directions that were changed as much: mean and largest share, and which that was.

    `above`: share of the claimed direction minus the largest, on the same prompts; `p`: (1 + as large) / (1 + n).
    """

    name: str
    n: int
    mean: float
    strongest: float
    which: str
    above: Estimate
    p: float


@dataclass(frozen=True)
class Effect:
    """What a change does: `share` of the behaviour's contrast, against every pool. `as_read`: of pushes, see above."""

    share: Estimate
    pools: tuple[Pool, ...]
    as_read: float | None = None

    @property
    def beats(self) -> bool:
        """Whether it does more than the strongest of every pool, interval included."""
        return bool(self.pools) and all((pool.above.low or 0.0) > 0 for pool in self.pools)


@dataclass(frozen=True)
class Round:
    """With so many directions erased: AUROC of probes trained anew, by site, and the share of the behaviour that is gone."""

    erased: int
    auroc: dict[str, Estimate]
    share: Estimate | None


@dataclass(frozen=True)
class CausalReport:
    """All of it. `behaviour`: difference between the sides, in units of the metric; `reads`: AUROC of the direction itself;
    `push_norm`: norm that was added, `push_fraction`: as a fraction of the mean norm of the site there.

    `erased` and `pushed` are None where the model does not show the behaviour.
    """

    site: str
    least: float
    dose: float
    n_prompts: int
    n_texts: int
    behaviour: Estimate
    reads: Estimate
    erased: Effect | None
    pushed: Effect | None
    push_norm: float
    push_fraction: float
    rounds: tuple[Round, ...]

    @property
    def readable(self) -> bool:
        """Whether a probe reads the property at the site, before anything is erased."""
        return above(self.rounds[0].auroc[self.site], 0.5)

    @property
    def used(self) -> str:
        """Whether the difference depends on it: yes, no, unclear; or "no behaviour"."""
        return "no behaviour" if self.erased is None else _decided(self.erased, self.least)

    @property
    def steers(self) -> str:
        """The same of the push."""
        return "no behaviour" if self.pushed is None else _decided(self.pushed, self.least)

    @property
    def left_over(self) -> bool:
        """Whether the property can be read at the site with the direction erased, at least half as well as before."""
        return self._still(self.site, 1)

    @property
    def cleared(self) -> int | None:
        """How many directions were erased when that was no longer so; None where no round got there."""
        return next((each.erased for each in self.rounds[1:] if not self._still(self.site, each.erased)), None)

    @property
    def came_back(self) -> tuple[str, ...]:
        """Later sites where it can be read with the site cleared, at least half as well as before."""
        if self.cleared is None:
            return ()
        return tuple(site for site in self.rounds[0].auroc if site != self.site and self._still(site, self.cleared))

    def _still(self, site: str, number: int) -> bool:
        before, after = self.rounds[0].auroc[site], self.rounds[number].auroc[site]
        return above(before, 0.5) and above(after, 0.5) and after.value - 0.5 >= BACK * (before.value - 0.5)

    @property
    def sentence(self) -> str:
        """What was found, in words."""
        return " ".join(_sentences(self))

    def json(self) -> dict[str, Any]:
        """As plain values."""
        return {**asdict(self), "readable": self.readable, "used": self.used, "steers": self.steers,
                "left_over": self.left_over, "cleared": self.cleared, "came_back": list(self.came_back),
                "sentence": self.sentence}  # fmt: skip


def above(estimate: Estimate, bar: float) -> bool:
    """Whether an estimate is above a bar with its whole interval."""
    return estimate.low is not None and estimate.low > bar


def follow_up(
    model: Model, direction: tuple[str | Site, Any], behaviour: Mapping[str, Behaviour | PreparedTask],
    texts: Mapping[str, PreparedConcept], plan: CausalPlan | None = None, progress: Progress | None = None,
) -> CausalReport:  # fmt: skip
    """Follow a direction up: (site, vector (d,)), + towards label 1 of the texts.

    `behaviour`, `texts`: by split, "tune" and "confirm". Raises UsageError for a site without vectors, ShapeError for a
    vector that does not fit, TaskError for a split with one label.
    """
    plan = plan or CausalPlan()
    plan.check()
    study = _Study(model, direction, behaviour, texts, plan, progress or (lambda what, done, of: None))
    return study.report()


class _Study:
    """One follow-up: what is fixed by tune, and what is then measured."""

    def __init__(self, model: Model, direction: tuple[str | Site, Any], behaviour: Mapping[str, Behaviour | PreparedTask],
                 texts: Mapping[str, PreparedConcept], plan: CausalPlan, progress: Progress) -> None:  # fmt: skip
        self.model, self.plan, self.progress = model, plan, progress
        self.place = place_of(model, str(direction[0]), "all")
        self.unit = _unit(direction[1], width(model, self.place.site))
        for name, given in (("behaviour", behaviour), ("texts", texts)):
            if missing := {"tune", "confirm"} - set(given):
                raise bad_argument(name, f"no split {', '.join(sorted(missing))}", "the splits tune and confirm")
        self.tune, self.held = (_behaviour(behaviour[split]) for split in ("tune", "confirm"))
        self.texts = texts
        for split in ("tune", "confirm"):
            if len(set(texts[split].labels)) < 2:
                raise TaskError(f"texts, {split}: every text has the same label; a probe needs both.")
        self.groups = {split: groups_of(texts[split].examples) for split in ("tune", "confirm")}
        self.labels = {split: np.array(texts[split].labels) for split in ("tune", "confirm")}
        folds_of(self.labels["tune"], self.groups["tune"])  # what trains a probe anew needs
        self.sites = [str(self.place.site), *_later(model, self.place.site, plan.later)]

    def report(self) -> CausalReport:
        """Everything."""
        rounds, basis, again = self.search()
        base = self.contrasts(self.held, [_unchanged])[0]
        scale = base.mean()
        behaviour = self.estimate(self.held, 2 * base)
        shown = above(behaviour, 0.0)
        erased = moved = None
        shares: list[Estimate | None] = [None] * len(rounds)
        if shown:
            controls = self.controls(again)
            gains = matched_gains(controls, self.unit[None], self.moved[1])
            erasures = {name: [self.erase(controls[name], gain)] for name, gain in gains.items()}
            erased = self.effect(scale, [self.erase(self.unit[None])], erasures, "erasing")
            pushes = {name: self.push(other[0]) for name, other in controls.items()}
            moved = self.effect(2 * scale, self.push(self.unit), pushes, "pushing")
            left = self.contrasts(self.held, [self.erase(orthonormal(list(basis[:n]))) for n in range(1, len(rounds))])
            shares = [None, *(self.estimate(self.held, (base - now) / scale) for now in left)]
        return CausalReport(
            str(self.place.site), self.plan.least, self.plan.dose, len(self.held.prompts), len(self.labels["confirm"]),
            behaviour, self.reading, erased, moved, self.distance, self.distance / self.norm,
            tuple(replace(each, share=share) for each, share in zip(rounds, shares, strict=True)),
        )  # fmt: skip

    # what tune fixes -----------------------------------------------------------------------------

    @cached_property
    def moved(self) -> tuple[Centre, Tensor]:
        """Means of tune prompts at the site, and the centred activations."""
        return tune_tokens(self.model, self.tune.prompts, self.place)

    @cached_property
    def norm(self) -> float:
        """Mean norm of the site over later positions of tune prompts."""
        centre, centred = self.moved
        return float((centred + centre.later).norm(dim=1).mean())

    @cached_property
    def centre(self) -> Centre:
        """Means of tune texts at the site."""
        return tune_tokens(self.model, self.texts["tune"].tokens, self.place)[0]

    @cached_property
    def plain(self) -> dict[str, list[Array]]:
        """Texts as they are: split -> one (text, d) per site."""
        return {split: self.read(split, []) for split in ("tune", "confirm")}

    @cached_property
    def distance(self) -> float:
        """How far a push goes: dose times the distance between class means of tune texts. Raises UsageError for none."""
        along = self.plain["tune"][0] @ self.unit.double().numpy()
        member = self.labels["tune"] == 1
        gap = float(along[member].mean() - along[~member].mean())
        if abs(gap) <= 1e-6 * float(np.linalg.norm(self.plain["tune"][0], axis=1).mean()):
            raise bad_argument("direction", "one along which the two classes of the texts have the same mean",
                               "a direction that separates them", "Was it fitted at another site or position?")  # fmt: skip
        return self.plan.dose * abs(gap)

    @cached_property
    def reading(self) -> Estimate:
        """AUROC of the direction itself on confirm texts."""
        return self.auroc(self.plain["confirm"][0] @ self.unit.double().numpy())

    # changes -------------------------------------------------------------------------------------

    def erase(self, basis: Float[Tensor, "rank d"], gain: float = 1.0) -> Change:
        """Mean projection."""
        return lambda side: erasure(basis, self.moved[0], gain)

    def push(self, unit: Float[Tensor, " d"]) -> list[Change]:
        """The sides moved in opposite senses, both ways round: the first suits sides that lie at their own ends."""
        return [lambda side, way=way: pushed(-side * way * self.distance * unit) for way in (1, -1)]

    @cached_property
    def read_way(self) -> NDArray[np.int64]:
        """Which of the two ways the direction says, per pair of confirm prompts: 0 or 1."""
        acts = self.model.capture(self.held.prompts, self.place.site).rows(self.place.site)
        ends = torch.stack([(part.float() @ self.unit).mean() for part in acts])
        return (self.held.together(torch.as_tensor(self.held.sides) * ends) < 0).long().numpy()

    def controls(self, orthogonal: Sequence[Tensor]) -> dict[str, Float[Tensor, "1 d"]]:
        """Other directions by name: pool and number."""
        found = random_subspaces(self.moved[1], self.unit[None], self.plan.draws, self.plan.seed)
        found.update({f"orthogonal_probe.{number:02d}": vector[None] for number, vector in enumerate(orthogonal)})
        units = [unit_of(example) for example in self.texts["tune"].examples]
        for number in range(self.plan.control_tasks):
            labels = control_labels(units, number, self.plan.seed)
            if can_fold(labels, self.groups["tune"]):
                weights = self.fit(self.plain["tune"][:1], labels)[0][0]
                if (vector := _free_of([self.unit], weights)) is not None:
                    found[f"control_task.{number:02d}"] = vector[None]
        return found

    # measuring -----------------------------------------------------------------------------------

    def contrasts(self, held: Behaviour, changes: Sequence[Change]) -> Float[Tensor, "change prompt"]:
        """Contrast of every prompt under every change."""
        return held.contrast(held.run(self.model, self.place, changes).double())

    def estimate(self, held: Behaviour, values: Tensor) -> Estimate:
        """Mean over clusters, with its interval."""
        means = list(cluster_means(values.tolist(), held.clusters).values())
        low, high = interval(means, seed=self.plan.seed)
        return Estimate(float(np.mean(means)), low, high, len(values), len(means), interval_method(len(means)))

    def effect(self, scale: Tensor, ways: Sequence[Change], others: Mapping[str, Sequence[Change]], what: str) -> Effect:
        """A change beside those of all pools; of several ways round the one with the largest share, pair by pair."""
        ((own, chosen),) = self.shares(self.held, scale, [ways])
        few, names, shares = self.held.first(self.plan.control_items), list(others), dict[str, Tensor]()
        ((claimed, _),) = self.shares(few, scale, [ways])
        for start in range(0, len(names), AT_ONCE):
            part = names[start : start + AT_ONCE]
            found = self.shares(few, scale, [others[name] for name in part])
            shares.update((name, share) for name, (share, _) in zip(part, found, strict=True))
            self.progress(what, len(shares), len(names))
        pools: dict[str, dict[str, Tensor]] = {}
        for name, share in shares.items():
            pools.setdefault(name.split(".")[0], {})[name] = share
        compared = tuple(self._pool(name, few, claimed, found) for name, found in pools.items())
        as_read = float((chosen.numpy() == self.read_way).mean()) if len(ways) > 1 else None
        return Effect(self.estimate(self.held, own), compared, as_read)

    def shares(self, held: Behaviour, scale: Tensor, changes: Sequence[Sequence[Change]]) -> list[tuple[Tensor, Tensor]]:
        """Per change its share at every prompt, and which way round that was, pair by pair."""
        base, *rest = self.contrasts(held, [_unchanged, *(way for ways in changes for way in ways)])
        flat = (base - torch.stack(rest)) / scale
        found = []
        for values in flat.split([len(ways) for ways in changes]):
            best = held.together(values).argmax(0)
            rows = torch.zeros(len(held.prompts), dtype=torch.long)
            if held.paired:
                rows[held.rows(1)], rows[held.rows(-1)] = best, best
            else:
                rows[:] = best
            found.append((values.gather(0, rows[None])[0], best))
        return found

    def _pool(self, name: str, held: Behaviour, own: Tensor, shares: Mapping[str, Tensor]) -> Pool:
        means = {key: self.estimate(held, value).value for key, value in shares.items()}
        strongest = max(means, key=means.__getitem__)
        reached = sum(value >= self.estimate(held, own).value for value in means.values())
        return Pool(name, len(means), float(np.mean(list(means.values()))), means[strongest], strongest,
                    self.estimate(held, own - shares[strongest]), (1 + reached) / (1 + len(means)))  # fmt: skip

    # looking again -------------------------------------------------------------------------------

    def search(self) -> tuple[list[Round], list[Float[Tensor, " d"]], list[Float[Tensor, " d"]]]:
        """Rounds of erasing and training anew; the directions that were erased, orthonormal, the claimed one first; and
        those of the new probes, free of the claimed one."""
        basis, probes, rounds, member = [self.unit], list[Array](), list[Round](), self.labels["tune"] == 1
        for number in range(self.plan.rounds + 1):
            now = {split: self.read(split, basis[:number]) for split in ("tune", "confirm")} if number else self.plain
            weights, scores = self.fit(now["tune"], self.labels["tune"], now["confirm"])
            rounds.append(Round(number, {site: self.auroc(each) for site, each in zip(self.sites, scores, strict=True)}, None))
            self.progress("probing again", number, self.plan.rounds)
            if number:
                probes.append(weights[0])
                between = now["tune"][0][member].mean(0) - now["tune"][0][~member].mean(0)
                if (vector := _free_of(basis, between)) is None:
                    break
                basis.append(vector)
        free = [_free_of([self.unit], weights) for weights in probes]
        return rounds, basis[: len(rounds) - 1], [vector for vector in free if vector is not None]

    def auroc(self, scores: Array) -> Estimate:
        """Of scores of confirm texts."""
        return auroc(scores, self.labels["confirm"], self.groups["confirm"], seed=self.plan.seed)

    def read(self, split: str, basis: Sequence[Float[Tensor, " d"]]) -> list[Array]:
        """Activations of texts, one (text, d) per site, with directions erased at the site."""
        edits = _erasing(self.place.site, basis, self.centre)
        found = read_all(self.model, self.texts[split], self.sites, (self.plan.position,), edits=edits)
        parts = [np.asarray(part, float) for part in found.stacked(found.positions[0])]
        if basis and self.plan.position != "max":  # what rounding left of it
            rows = torch.stack(list(basis)).double().numpy()
            level = rows @ self.centre.later.double().numpy()
            parts[0] = parts[0] - (parts[0] @ rows.T - level) @ rows
        eps = float(torch.finfo(self.model.dtype).eps)
        return [_without_rounding(part, eps) for part in parts] if basis else parts

    def fit(self, values: Sequence[Array], labels: NDArray[np.int64],
            held: Sequence[Array] = ()) -> tuple[list[Array], list[Array]]:  # fmt: skip
        """Weights (d,) per site with the penalty that folds of groups choose, and scores of other rows."""
        if len({rows.shape[1] for rows in values}) > 1:  # the site itself is of another width than the stream
            first, rest = (self.fit(values[part], labels, held[part]) for part in (slice(1), slice(1, None)))
            return first[0] + rest[0], first[1] + rest[1]
        path = fit_path(values, labels, self.groups["tune"], CS, FOLDS, self.plan.seed)
        best = path.log_loss(labels).argmin(1)
        places = range(len(values))
        weights = [path.coef[site, best[site]] for site in places]
        scores = [held[site] @ weights[site] + path.intercept[site, best[site]] for site in places if held]
        return weights, scores


# parts -------------------------------------------------------------------------------------------


def _unchanged(side: int) -> Variant:
    return lambda acts, other: acts


def _behaviour(given: Behaviour | PreparedTask) -> Behaviour:
    return Behaviour.of_task(given) if isinstance(given, PreparedTask) else given


def _unit(vector: Any, d: int) -> Float[Tensor, " d"]:
    """The vector at norm 1. Raises ShapeError, UsageError."""
    found = torch.as_tensor(vector).detach().cpu().double()
    if found.shape != (d,):
        raise ShapeError(f"direction: got shape {tuple(found.shape)}; allowed: {(d,)}, as wide as the site.")
    if not 0 < float(found.norm()) < float("inf"):
        raise bad_argument("direction", f"norm {float(found.norm()):g}", "a finite, non-zero vector")
    return (found / found.norm()).float()


def _later(model: Model, site: Site, n: int) -> list[str]:
    """Up to n later residual streams, evenly spread, the last one among them."""
    first = model.n_layers if site.name == "final_norm" else (site.layer or 0) + (site.name == "resid_post")
    layers = list(range(first, model.n_layers))
    if n == 1:
        layers = layers[-1:]
    picked = sorted({round(place) for place in np.linspace(0, len(layers) - 1, n)}) if layers else []
    return [f"resid_post.{layers[place]}" for place in picked]


def _erasing(site: Site, basis: Sequence[Tensor], centre: Centre) -> list[Edit]:
    """Every component at its mean; that of the first position apart."""
    edits = []
    for vector in basis:
        edits.append(clamp(site, vector, float(centre.later @ vector)))
        edits.append(clamp(site, vector, float(centre.first @ vector), positions=[0]))
    return edits


def _free_of(basis: Sequence[Tensor], weights: Array) -> Float[Tensor, " d"] | None:
    """The unit direction of what is left of some weights outside a span; None for nothing."""
    rows = torch.stack(list(basis)).double()
    left = torch.as_tensor(weights, dtype=torch.float64)
    for _ in range(2):  # once more for rounding
        left = left - (left @ rows.T) @ rows
    size = float(left.norm())
    return (left / size).float() if size > 1e-9 * max(float(np.linalg.norm(weights)), 1e-12) and size > 0 else None


def _without_rounding(values: Array, eps: float) -> Array:
    """Columns that vary by no more than rounding are constant: a standardised probe would read the rounding."""
    spread, middle = values.std(0), values.mean(0)
    floor = 2 * eps * np.maximum(np.abs(middle), np.median(spread))
    return np.where(spread <= floor, middle, values)


def _decided(effect: Effect, least: float) -> str:
    if above(effect.share, least) and effect.beats:
        return "yes"
    return "no" if effect.share.high is not None and effect.share.high < least else "unclear"


def _sentences(report: CausalReport) -> list[str]:
    first = report.rounds[0].auroc[report.site]
    found = [f"{'Readable' if report.readable else 'Not shown to be readable'} at {report.site} (AUROC {_shown(first)})."]
    if report.erased is None or report.pushed is None:
        found.append(f"The model does not show the behaviour (difference {_shown(report.behaviour)}): nothing to explain.")
    else:
        ends = {"yes": "the difference depends on it", "no": "the difference does not depend on it",
                "unclear": "whether the difference depends on it is not clear"}  # fmt: skip
        rival = min(report.erased.pools, key=lambda pool: pool.above.value)
        found.append(f"Erasing the direction takes {_shown(report.erased.share)} of the difference between the two sides;"
                     f" of all controls {rival.name} takes the most, {rival.strongest:.2f}: {ends[report.used]}.")  # fmt: skip
        found.append(f"Pushing by {report.push_fraction:.2f} of the site's norm goes {_shown(report.pushed.share)} of the way"
                     f" to the other side, {report.pushed.as_read or 0:.0%} of the time the way round that the direction"
                     " says.")  # fmt: skip
    return [*found, *_again(report)] if report.readable else found


def _again(report: CausalReport) -> list[str]:
    """What was found when it was looked for again."""
    if report.cleared is None:
        return [f"With {report.rounds[-1].erased} directions erased it can still be read there: whether it comes back later is"
                " not known."]  # fmt: skip
    here = report.rounds[report.cleared]
    found = ["With it erased no new probe reads the property there."]
    if report.left_over:
        found = [f"The direction did not hold all of it: a new probe reads it there, until {report.cleared} directions are"
                 f" erased; then {_shown(here.share)} of the difference is gone."]  # fmt: skip
    if report.came_back:
        shown = ", ".join(f"{site} (AUROC {_shown(here.auroc[site])})" for site in report.came_back)
        found.append(f"It comes back at {shown}: it is computed again, or was there in another form.")
    return found


def _shown(estimate: Estimate | None) -> str:
    if estimate is None:
        return "-"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.2f}"
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"
