"""What is fixed before confirm is read: probes at every site and position, baselines, and the choice among them.

1. All is fitted on discover and tune. Rows of one group are in one fold; a held-out score of a row is that of the fit that did
   not see its group.
2. The penalty of a site is the one with the least log loss on held-out rows of tune; site and position are those with the
   largest AUROC there. `embed` is read as a baseline and is only chosen where no other site is asked for.
3. The same holds for what the probe must beat (`baselines.py`): same rows, same folds, own choices.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from assay.data.prepare_concept import PreparedConcept, prepare_concept
from assay.errors import ModelError, SiteError, TaskError, UsageError, bad_argument
from assay.features.opened import dictionary_at, is_latent, read_latents, sources_of
from assay.model.model import Model
from assay.model.untrained import untrained_model
from assay.probe import baselines as simple
from assay.probe.baselines import Fitted, Rows
from assay.probe.control import control_labels, unit_of
from assay.probe.estimators import PROBES
from assay.probe.path import CS, fit_path, folds_of
from assay.probe.read import Kept, Read, position_names, read_all, read_key
from assay.probe.records import BaselineScore
from assay.probe.scores import Estimate, auroc
from assay.records import Example

Array = NDArray[np.float64]
Progress = Callable[[str, int, int], Any]
Keep = Callable[[str], Kept]
Examples = Mapping[str, Sequence[Example]]
Draws = Mapping[int, Fitted]  # by the number of the draw
DRAWS = 3  # of shuffled labels and of control tasks
ENCODERS = ("minilm", "none")
HALF_WAY = ("mean_difference", "pca")  # probes with a threshold between the class means, whatever the shares


@dataclass(frozen=True)
class ProbePlan:
    """How a property is looked for. `sites`: as the site grammar has them (None: embed and all resid_post);
    `positions`: see `read.py`; `probe`: see `estimators.py`, `k` of k_sparse; `n`: examples of a split at most;
    `encoder`: of the sentence baseline, minilm or none; `untrained`: whether the twin is read; `alpha`: of abstention.
    """

    sites: Any = None
    positions: tuple[str, ...] = ("last",)
    probe: str = "linear"
    Cs: tuple[float, ...] = CS
    n: int | None = None
    seed: int = 0
    folds: int = 5
    k: int = 5
    encoder: str = "minilm"
    untrained: bool = True
    alpha: float = 0.1

    def check(self) -> None:
        """Raises UsageError for a setting outside its limits."""
        if self.probe not in PROBES:
            raise bad_argument("probe", self.probe, ", ".join(PROBES.names()))
        places = position_names(self.positions)
        if (self.probe == "attention") != ("attention" in places) or ("attention" in places and len(places) > 1):
            raise bad_argument("position", ", ".join(places), f"attention{'' if self.probe == 'attention' else ' only'} with"
                               " --probe attention, which pools all tokens itself")  # fmt: skip
        if self.encoder not in ENCODERS:
            raise bad_argument("encoder", self.encoder, ", ".join(ENCODERS))
        if not self.Cs or min(self.Cs) <= 0:
            raise bad_argument("Cs", self.Cs, "numbers above 0")
        for name in ("n", "folds", "k"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < (2 if name == "folds" else 1)):
                raise bad_argument(name, value, "a whole number from 2 on" if name == "folds" else "a whole number from 1 on")
        if not 0 <= self.seed < 1 << 32:
            raise bad_argument("seed", self.seed, "a whole number from 0 to 4294967295")
        if not 0 < self.alpha < 1:
            raise bad_argument("alpha", self.alpha, "between 0 and 1")


@dataclass(frozen=True, eq=False)
class Candidate:
    """A probe at one site and position, and its AUROC on tune rows it had not seen."""

    site: str
    position: str
    fitted: Fitted
    tune: Estimate


@dataclass(frozen=True, eq=False)
class Selection:
    """Everything that is fixed before confirm is read. `pool`: the rows of discover and tune, `tune` marks those of tune;
    `baselines`: each with its AUROC on tune, `missing`: those that could not be had; `prior`: log odds of the share of members
    that a row's held-out fit was made from."""

    plan: ProbePlan
    name: str
    asked: str
    sites: tuple[str, ...]
    read_sites: tuple[str, ...]
    candidates: tuple[Candidate, ...]
    best: Candidate
    baselines: tuple[tuple[Fitted, Estimate], ...]
    missing: tuple[BaselineScore, ...]
    draws: Mapping[str, Draws]
    pool: Rows
    tune: NDArray[np.bool_]
    prior: Array
    seen: Examples


def choose(
    model: Model, seen: Examples, plan: ProbePlan, name: str = "given examples", progress: Progress | None = None,
    keep: Keep | None = None,
) -> Selection:  # fmt: skip
    """Fit every site, position and baseline on discover and tune, and choose on tune. Nothing else is read.

    Raises TaskError where tune has not both labels, UsageError where there are fewer than two groups of a label.
    """
    plan.check()
    if not seen.get("tune"):
        raise TaskError(f"{name}: no example fell to the split tune. A concept needs groups for every split.")
    sites = _sites(model, plan)
    read_sites = tuple(dict.fromkeys(source for site in _with_embed(model, sites) for source in sources_of(site)))
    examples = [*seen.get("discover", ()), *seen["tune"]]
    pool = rows_of(model, examples, read_sites, plan, "discover and tune", progress, keep)
    of_tune = {id(example) for example in seen["tune"]}
    tune = np.array([id(example) in of_tune for example in pool.prepared.examples])
    for label in (0, 1):
        if not (pool.labels[tune] == label).any():
            why = "".join(f" {n} left out: {reason}." for reason, n in pool.prepared.dropped.items())
            raise TaskError(f"{name}: no usable example of tune has label {label}; a probe needs both.{why}")
    fitting = Fitting(pool, tune, plan, folds_of(pool.labels, pool.groups, plan.folds, plan.seed))
    places = position_names(plan.positions)
    candidates = fitting.candidates(sites, places, progress)
    named = [each for each in candidates if each.site != "embed"] or candidates
    best = max(named, key=lambda each: each.tune.value)
    found, missing = _baselines(model, fitting, sites, best, progress)
    return Selection(plan, name, _asked(plan), sites, read_sites, tuple(candidates), best,
                     tuple((fit, fitting.on_tune(fit)) for fit in found), tuple(missing), fitting.draws(best), pool, tune,
                     fitting.prior, seen)  # fmt: skip


def _sites(model: Model, plan: ProbePlan) -> tuple[str, ...]:
    """The sites asked for; embed and all resid_post where none are."""
    if plan.sites is None:
        return tuple(map(str, [*_embed(model), *model.sites("resid_post.*")]))
    asked = [plan.sites] if isinstance(plan.sites, str) else list(plan.sites)
    latents = [str(site) for site in asked if is_latent(str(site))]
    for site in latents:
        dictionary_at(site)
        if set(position_names(plan.positions)) & {"mean", "max", "attention"}:
            raise bad_argument("position", ", ".join(plan.positions), "concept, last or -2, -3, .. for latents")
    others = [site for site in asked if str(site) not in latents]
    return (*latents, *(map(str, model.sites(others)) if others else ()))


def _asked(plan: ProbePlan) -> str:
    if plan.sites is None:
        return "embed,resid_post.*"
    return plan.sites if isinstance(plan.sites, str) else ",".join(map(str, plan.sites))


def _embed(model: Model) -> list[Any]:
    try:
        return list(model.sites("embed"))
    except SiteError:
        return []


def _with_embed(model: Model, sites: Sequence[str]) -> list[str]:
    return [*sites, *(str(site) for site in _embed(model) if str(site) not in sites)]


def rows_of(
    model: Model, examples: Sequence[Example], sites: Sequence[str], plan: ProbePlan, what: str, progress: Progress | None,
    keep: Keep | None,
) -> Rows:  # fmt: skip
    """Examples read at all sites, by the model and by its untrained twin, one pass each. The twin lives no longer than that;
    the same seed gives the same one."""
    prepared = prepare_concept(examples, model)
    read = _read(model, prepared, sites, plan, f"reading {what}", progress, keep)
    twin = None
    if plan.untrained:
        untrained = untrained_model(model, "all", plan.seed)
        twin = _read(untrained, prepared, sites, plan, f"reading the untrained twin on {what}", progress, keep)
    return Rows(prepared, np.array(prepared.labels, np.int64), simple.groups_of(prepared.examples), read, twin)


def _read(
    model: Model, prepared: PreparedConcept, sites: Sequence[str], plan: ProbePlan, words: str, progress: Progress | None,
    keep: Keep | None,
) -> Read:  # fmt: skip
    told = None if progress is None else _counted(progress, words, len(prepared))
    kept = None if keep is None else keep(read_key(model, prepared, sites, plan.positions))
    return read_all(model, prepared, list(sites), plan.positions, kept, told)


def acts(read: Read, site: str, position: str, prepared: PreparedConcept) -> Any:
    """(n, d) of a site, or of latents computed from what a dictionary reads; per text (tokens, d) for attention."""
    if not is_latent(site):
        return read.X[site][position]
    import torch

    at = [len(ids) - 1 if position == "last" else len(ids) + int(position) if position.startswith("-") else place
          for ids, place in zip(prepared.tokens, prepared.at, strict=True)]  # fmt: skip
    return read_latents(site, lambda source: torch.from_numpy(read.X[source][position]), torch.tensor(at)).numpy()


class Fitting:
    """Everything that is fitted on the pool, on the same folds."""

    def __init__(self, pool: Rows, tune: NDArray[np.bool_], plan: ProbePlan, fold: NDArray[np.int64]) -> None:
        self.pool, self.tune, self.plan, self.fold = pool, tune, plan, fold
        rates = np.array([pool.labels[fold != number].mean() for number in range(int(fold.max()) + 1)])
        self.prior = np.log(rates / (1 - rates))[fold]

    def candidates(self, sites: Sequence[str], places: Sequence[str], progress: Progress | None) -> list[Candidate]:
        """The probe of the plan at every site and position."""
        found = []
        for number, place in enumerate(places):
            if progress:
                progress(f"fitting probes at {place}", number * len(sites), len(places) * len(sites))
            fits = self.fits(sites, place, self.pool.labels, progress)
            found += [Candidate(site, place, fit, self.on_tune(fit)) for site, fit in zip(sites, fits, strict=True)]
        return found

    def fits(
        self, sites: Sequence[str], place: str, labels: NDArray[np.int64], progress: Progress | None = None, twin: bool = False,
        probe: str | None = None,
    ) -> list[Fitted]:  # fmt: skip
        """One fit per site. `twin`: of the untrained twin; `probe`: another kind than the plan's."""
        kind = probe or self.plan.probe
        values = [acts(source_of(self.pool, twin), site, place, self.pool.prepared) for site in sites]
        if kind == "linear":
            told = None if progress is None else _counted(progress, f"fitting probes at {place}", len(values))
            made = self._linear(values, labels, told)
        else:
            made = []
            for number, value in enumerate(values):
                made.append(self._other(value, labels, kind))
                if progress:
                    progress(f"fitting probes at {place}", number + 1, len(values))
        return [fit.at(site, place, twin, kind) for fit, site in zip(made, sites, strict=True)]

    def _linear(self, values: Sequence[Any], labels: NDArray[np.int64], told: Callable[[int], Any] | None) -> list["_Fit"]:
        """The whole path of all sites of one width at once; of each the penalty with the least loss on held-out tune rows."""
        made: dict[int, _Fit] = {}
        plan, member = self.plan, labels[self.tune]
        for width in dict.fromkeys(value.shape[1] for value in values):
            places = [number for number, value in enumerate(values) if value.shape[1] == width]
            path = fit_path([values[number] for number in places], labels, self.pool.groups, plan.Cs, plan.folds, plan.seed,
                            progress=told)  # fmt: skip
            for row, number in enumerate(places):
                held, best = path.held_out[row], int(np.argmin(log_loss(path.held_out[row][:, self.tune], member)))
                made[number] = _Fit(held[best], path.Cs[best], path.coef[row, best], float(path.intercept[row, best]),
                                    path=tuple(zip(path.Cs, held, strict=True)))  # fmt: skip
        return [made[number] for number in range(len(values))]

    def _other(self, values: Any, labels: NDArray[np.int64], kind: str) -> "_Fit":
        """A probe of another kind: fitted in every fold, and on all rows."""
        options = {"k": self.plan.k} if kind == "k_sparse" else {}
        held = np.zeros(len(labels))
        for number in range(int(self.fold.max()) + 1):
            out = self.fold == number
            made = PROBES.get(kind)(**options).fit(take(values, ~out), labels[~out])
            held[out] = made.decision_function(take(values, out))
        whole: Any = PROBES.get(kind)(**options).fit(values, labels)
        return _Fit(held, getattr(whole, "C", None), getattr(whole, "direction_", None), getattr(whole, "intercept_", None),
                    whole.decision_function)  # fmt: skip

    def on_tune(self, fit: Fitted) -> Estimate:
        """AUROC of tune rows by fits that had not seen their groups.

        What a fit knows of the shares of labels is taken off: folds with fewer members leave more of them to learn from, so
        that fits which know nothing else would rank rows the wrong way round. Of fits that do not know them nothing is taken:
        it would tell them the labels.
        """
        groups = [group for group, of_tune in zip(self.pool.groups, self.tune, strict=True) if of_tune]
        scores = level(fit, self.prior)[self.tune]
        return auroc(scores, self.pool.labels[self.tune], groups, seed=self.plan.seed)

    def draws(self, best: Candidate) -> dict[str, Draws]:
        """The probe of the chosen site on shuffled labels and on control tasks, several of each; fewer where a draw leaves a
        label without two groups."""
        seed, units = self.plan.seed, [unit_of(example) for example in self.pool.prepared.examples]
        drawn = {"shuffled": [np.random.default_rng([seed, draw]).permutation(self.pool.labels) for draw in range(DRAWS)],
                 "control_task": [control_labels(units, draw, seed) for draw in range(DRAWS)]}  # fmt: skip
        return {name: {draw: self.fits([best.site], best.position, labels)[0] for draw, labels in enumerate(each)
                       if self._usable(labels)} for name, each in drawn.items()}  # fmt: skip

    def _usable(self, labels: NDArray[np.int64]) -> bool:
        """Whether random labels leave both labels wherever something is fitted."""
        try:
            folds_of(labels, self.pool.groups, self.plan.folds, self.plan.seed)
        except UsageError:
            return False
        folds = (labels[self.fold != number] for number in range(int(self.fold.max()) + 1))
        return all(len(set(rest.tolist())) == 2 for rest in (labels[self.tune], *folds))


@dataclass(frozen=True, eq=False)
class _Fit:
    """A fit on the pool, before it is said where its activations come from."""

    held_out: Array
    C: float | None
    direction: Array | None
    intercept: float | None
    decide: Callable[[Any], Array] | None = None
    path: tuple[tuple[float, Array], ...] = ()

    def at(self, site: str, place: str, twin: bool, kind: str) -> Fitted:
        """The same, as a reader of rows."""

        def score(rows: Rows) -> Array:
            found = acts(source_of(rows, twin), site, place, rows.prepared)
            if self.decide is not None:
                return self.decide(found)
            return found @ self.direction + self.intercept

        return Fitted(kind, self.held_out, score, self.C, self.direction, self.intercept, rates=kind not in HALF_WAY,
                      path=self.path)  # fmt: skip


def level(fit: Fitted, prior: Array) -> Array:
    """Held-out scores that can be compared over folds: without the log odds `prior` of the shares that each fit has met."""
    return fit.held_out - prior if fit.rates else fit.held_out


def source_of(rows: Rows, twin: bool) -> Read:
    if not twin:
        return rows.read
    assert rows.twin is not None
    return rows.twin


def _counted(progress: Progress, words: str, of: int) -> Callable[[int], Any]:
    """Told of n more, it says how many of all are done."""
    done = 0

    def told(n: int) -> None:
        nonlocal done
        done += n
        progress(words, done, of)

    return told


def take(values: Any, rows: NDArray[Any]) -> Any:
    """Some rows of an array, or of a list of arrays."""
    return [values[row] for row in np.flatnonzero(rows)] if isinstance(values, list) else values[rows]


def log_loss(scores: Array, labels: NDArray[np.int64]) -> Array:
    """Mean log loss (option,) of log odds (option, row)."""
    return np.logaddexp(0.0, np.where(labels == 1, -scores, scores)).mean(-1)


def _baselines(
    model: Model, fitting: Fitting, sites: Sequence[str], best: Candidate, progress: Progress | None
) -> tuple[list[Fitted], list[BaselineScore]]:
    """Fitted baselines, and those that could not be had, with the reason."""
    pool, plan, missing = fitting.pool, fitting.plan, []
    if progress:
        progress("fitting baselines", 0, 1)
    common = (pool, fitting.tune, plan.folds, plan.seed)
    found = [simple.majority(pool), simple.dense_text_baseline("length_punctuation", simple.surface_features, *common),
             simple.bag_of_words(pool, fitting.tune, fitting.fold)]  # fmt: skip
    try:
        if plan.encoder != "none":
            note = "vectors of a sentence encoder that is not the model under study"
            found.append(simple.dense_text_baseline("sentence_embedding", simple.sentence_encoder(plan.encoder), *common, note))
        else:
            missing.append(absent("sentence_embedding", "not asked for"))
    except ModelError as error:
        missing.append(absent("sentence_embedding", str(error)))
    if embed := _embed(model):
        fits = [fitting.fits([str(embed[0])], place, pool.labels)[0] for place in position_names(plan.positions)]
        found.append(replace(max(fits, key=lambda fit: fitting.on_tune(fit).value), name="embedding_layer"))
    else:
        missing.append(absent("embedding_layer", "the model has no site embed"))
    if pool.twin is None:
        missing.append(absent("untrained", "not asked for"))
    else:
        found.append(_untrained(fitting, sites, position_names(plan.positions)))
    if is_latent(best.site):
        found.append(_raw(fitting, best))
    return found, missing


def absent(name: str, why: str) -> BaselineScore:
    return BaselineScore(name, None, None, None, None, None, f"not measured: {why}")


def _untrained(fitting: Fitting, sites: Sequence[str], positions: Sequence[str]) -> Fitted:
    """The run on the twin: its best site and position of tune. Latents have no untrained twin; what they are made of has."""
    sources = tuple(dict.fromkeys(source for site in sites for source in sources_of(site)))
    labels = fitting.pool.labels
    fits = {(site, place): fit for place in positions
            for site, fit in zip(sources, fitting.fits(sources, place, labels, twin=True), strict=True)}  # fmt: skip
    able = [each for each in fits if each[0] != "embed"] or list(fits)
    site, place = max(able, key=lambda each: fitting.on_tune(fits[each]).value)
    where = site if len(positions) == 1 else f"{site}, {place}"
    return replace(fits[site, place], name="untrained", note=f"its best site on tune is {where}")


def _raw(fitting: Fitting, best: Candidate) -> Fitted:
    """A linear probe on what the latents are computed from."""
    sources = sources_of(best.site)
    fits = fitting.fits(sources, best.position, fitting.pool.labels, probe="linear")
    top = max(range(len(fits)), key=lambda number: fitting.on_tune(fits[number]).value)
    return replace(fits[top], name="raw_activations", note=f"a linear probe at {sources[top]}, which the latents are made of")
