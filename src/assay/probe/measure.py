"""A selection measured on confirm and ood, once.

1. Rows that share a template, a text or an entity with rows used for fitting are refused.
2. AUROC of every site and baseline with bounds by group, on all rows and for members against near misses alone; the margin of
   a site is its AUROC minus that of the baseline that is strongest on confirm, on the same rows and draws.
3. Probabilities come from held-out scores of tune; conformal sets say where the probe should abstain.
4. Optimism: AUROC of the chosen site on tune minus confirm. A maximum over many sites is too good.
5. The regularisation path at the chosen site, the difference of class means beside its probe, and how much alike directions are
   that come from other texts (`agreement.py`).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from assay.data.concept_flags import Flag, concept_flags
from assay.data.prepare_concept import prepare_concept
from assay.data.splits import leaks
from assay.errors import TaskError
from assay.features.opened import is_latent
from assay.model.model import Model
from assay.probe.agreement import Agreement, agreement
from assay.probe.baselines import Fitted, Rows
from assay.probe.calibration import Calibrated, brier, conformal, ece, reliability
from assay.probe.choose import (
    Candidate,
    Examples,
    Keep,
    Progress,
    Selection,
    absent,
    acts,
    level,
    log_loss,
    rows_of,
    source_of,
)  # fmt: skip
from assay.probe.code_length import online_bits
from assay.probe.control import control_labels, unit_of
from assay.probe.estimators import PROBES
from assay.probe.read import check_offsets, position_names
from assay.probe.records import BASELINES, BaselineScore, Calibration, PathPoint, ProbeReport, Reading, SiteScore
from assay.probe.scarcity import curve
from assay.probe.scores import Estimate, accuracy, auroc, auroc_difference, bootstrap_auroc

Array = NDArray[np.float64]
CHANCE = ("majority", "shuffled", "control_task")  # shown, but no rivals
LEAST_GROUPS = 4  # below it labels cannot be sent block by block
OPTIMISM = "layer_selection_optimism"
NO_DRAW = "the rows leave a random label without two groups"
MET = 20  # rows with a word that was met in fitting: with fewer, memory is asked for on all


def measure(
    model: Model, chosen: Selection, sealed: Examples, progress: Progress | None = None, keep: Keep | None = None
) -> ProbeReport:
    """Everything that was fixed, on confirm and ood. Nothing is chosen here.

    Raises TaskError for rows that share a template, a text or an entity with those used for fitting, or one label only.
    """
    check_sealed(model, chosen, sealed)
    rows = rows_of(model, [each for split in ("confirm", "ood") for each in sealed.get(split, ())],
                 chosen.read_sites, chosen.plan, "confirm and ood", progress, keep)  # fmt: skip
    if progress:
        progress("measuring", 0, 1)
    held = _Sealed(rows, sealed, chosen.plan.seed)
    scored = [_scored_baseline(held, fit, tune) for fit, tune in chosen.baselines]
    control, selectivity = _control_task(held, chosen)
    drawn = [_shuffled(held, chosen), control]
    shown = [*(score for score, _ in scored), *chosen.missing, *drawn]
    rivals = {score.name: values for score, values in scored if score.name not in CHANCE}
    top = max(rivals, key=lambda name: held.on("confirm", rivals[name]).value)
    scores = tuple(_site_score(held, each, rivals[top]) for each in chosen.candidates)
    place = next(n for n, each in enumerate(chosen.candidates) if each is chosen.best)
    confirm = scores[place].confirm
    optimism = difference_of(chosen.best.tune, confirm)
    over_words = held.gap(chosen.best.fitted.score(held.rows), rivals["bag_of_words"])
    fitted = chosen.best.fitted
    return ProbeReport(
        model.name, chosen.name, chosen.asked, chosen.plan.probe, chosen.best.site, chosen.best.position, scores,
        tuple(sorted(shown, key=_in_order)), top, over_words, optimism, _calibration(held, chosen),
        selectivity, _code_lengths(chosen),
        _scarcity(held, chosen), (*_data_flags(held, chosen, sealed), *optimism_flags(chosen, confirm)),
        _counts(chosen, held), Reading(chosen.best.site, chosen.best.position, fitted.name, fitted.direction, fitted.intercept),
        _notes(rows, chosen), _plan_record(chosen), _path(chosen), _agreement(held, chosen),
    )  # fmt: skip


def check_sealed(model: Model, chosen: Selection, sealed: Examples) -> None:
    """What `measure` would refuse, from the texts alone: whoever states a claim asks before confirm is spent on it.

    Raises TaskError for rows that were used for fitting, and where the usable ones of confirm have one label; UsageError for
    positions that some text does not have.
    """
    refuse_leaks(chosen, sealed)
    if not sealed.get("confirm"):
        raise TaskError(f"{chosen.name}: no example fell to the split confirm. A concept needs groups for every split.")
    usable = prepare_concept(sealed["confirm"], model)
    if len(set(usable.labels)) < 2:
        why = "".join(f" {n} left out: {reason}." for reason, n in usable.dropped.items())
        raise TaskError(f"{chosen.name}: the {len(usable)} usable examples of confirm have one label; a probe needs both.{why}")
    for examples in filter(None, sealed.values()):
        check_offsets(prepare_concept(examples, model), position_names(chosen.plan.positions))


def refuse_leaks(chosen: Selection, sealed: Examples) -> None:
    """Raises TaskError where sealed rows share a template, text or entity with rows that were used for fitting."""
    seen = [example for examples in chosen.seen.values() for example in examples]
    for split, examples in sealed.items():
        shared = {what: n for what, n in leaks(seen, examples).items() if not what.endswith("-gram")}
        if shared:
            found = ", ".join(f"{n} {what}" for what, n in shared.items())
            raise TaskError(f"{chosen.name}: {split} shares {found} with discover or tune; allowed: none. A probe that has met"
                            " them remembers them. How a file is split: assay concepts --file FILE.")  # fmt: skip


class _Sealed:
    """Sealed rows and their splits; "near" are the members and near misses of confirm."""

    def __init__(self, rows: Rows, sealed: Examples, seed: int) -> None:
        self.rows, self.seed = rows, seed
        home = {id(example): split for split, examples in sealed.items() for example in examples}
        of = np.array([home[id(example)] for example in rows.prepared.examples])
        self.masks = {split: of == split for split in ("confirm", "ood") if (of == split).any()}
        near = np.array([example.near_miss for example in rows.prepared.examples])
        if (near & (of == "confirm")).any():
            self.masks["near"] = (of == "confirm") & (near | (rows.labels == 1))

    def labels(self, split: str) -> NDArray[np.int64]:
        return self.rows.labels[self.masks[split]] if split in self.masks else np.zeros(0, np.int64)

    def groups(self, split: str) -> list[str]:
        return [group for group, inside in zip(self.rows.groups, self.masks[split], strict=True) if inside]

    def on(self, split: str, scores: Array) -> Estimate:
        """AUROC of scores of all sealed rows on one split."""
        return auroc(scores[self.masks[split]], self.labels(split), self.groups(split), seed=self.seed)

    def maybe(self, split: str, scores: Array) -> Estimate | None:
        """The same, None where the split has not both labels."""
        return self.on(split, scores) if len(set(self.labels(split).tolist())) == 2 else None

    def right(self, scores: Array) -> Estimate:
        """Accuracy on confirm at log odds 0."""
        return accuracy(scores[self.masks["confirm"]], self.labels("confirm"), self.groups("confirm"), seed=self.seed)

    def gap(self, scores: Array, other: Array) -> Estimate:
        """AUROC on confirm minus that of other scores of the same rows."""
        inside = self.masks["confirm"]
        return auroc_difference(scores[inside], other[inside], self.labels("confirm"), self.groups("confirm"), seed=self.seed)


def _site_score(held: _Sealed, each: Candidate, rival: Array) -> SiteScore:
    scores = each.fitted.score(held.rows)
    return SiteScore(each.site, each.position, each.fitted.C, each.tune, held.on("confirm", scores), held.maybe("near", scores),
                     held.maybe("ood", scores), held.right(scores), held.gap(scores, rival))  # fmt: skip


def _scored_baseline(held: _Sealed, fit: Fitted, tune: Estimate) -> tuple[BaselineScore, Array]:
    scores = np.asarray(fit.score(held.rows), float)
    return BaselineScore(fit.name, tune, held.on("confirm", scores), held.maybe("near", scores), held.maybe("ood", scores),
                         held.right(scores), fit.note), scores  # fmt: skip


def _on_confirm(held: _Sealed, fits: Sequence[Fitted]) -> Array:
    """(fit, row) scores."""
    return np.stack([np.asarray(fit.score(held.rows), float)[held.masks["confirm"]] for fit in fits])


def _shuffled(held: _Sealed, chosen: Selection) -> BaselineScore:
    """Probes of labels dealt out anew, against the true ones; the mean of the draws."""
    labels, groups, fits = held.labels("confirm"), held.groups("confirm"), list(chosen.draws["shuffled"].values())
    if not fits:
        return absent("shuffled", NO_DRAW)
    values, low, high = bootstrap_auroc(_on_confirm(held, fits), labels, groups, seed=held.seed)
    found = Estimate(float(np.mean(values)), low, high, len(labels), len(set(groups)), "bootstrap over groups and draws")
    return BaselineScore("shuffled", None, found, None, None, None, f"mean of {len(fits)} draws")


def _control_task(held: _Sealed, chosen: Selection) -> tuple[BaselineScore, float | None]:
    """Control tasks against their own labels, the mean of the draws; and the selectivity: how much better the probe is.

    Both on rows whose word was met in fitting, for only those can be known by heart; on all rows where too few were.
    """
    fits, labels = chosen.draws["control_task"], held.labels("confirm")
    units = [unit_of(each) for each, here in zip(held.rows.prepared.examples, held.masks["confirm"], strict=True) if here]
    known = {unit_of(example) for example in chosen.pool.prepared.examples}
    met = np.array([unit in known for unit in units])
    use = met if met.sum() >= MET and len(set(labels[met].tolist())) == 2 else np.ones_like(met)
    groups = [group for group, inside in zip(held.groups("confirm"), use, strict=True) if inside]
    asked = [unit for unit, inside in zip(units, use, strict=True) if inside]
    made = []
    for draw, scores in zip(fits, _on_confirm(held, list(fits.values())) if fits else (), strict=True):
        truth = control_labels(asked, draw, chosen.plan.seed)
        if len(set(truth.tolist())) == 2:
            made.append(auroc(scores[use], truth, groups, seed=held.seed))
    if not made:
        return absent("control_task", NO_DRAW if not fits else "all rows have the same word"), None
    own = auroc(_on_confirm(held, [chosen.best.fitted])[0, use], labels[use], groups, seed=held.seed)
    control = _mean_of(made)
    where = f"on the {len(asked)} of {len(units)} rows whose word was met in fitting" if use is met else (
        f"on all rows: only {met.sum()} of {len(units)} have a word that was met in fitting")  # fmt: skip
    note = f"mean of {len(made)} draws, {where}"
    return BaselineScore("control_task", None, control, None, None, None, note), own.value - control.value


def _mean_of(found: Sequence[Estimate]) -> Estimate:
    """Mean of estimates and of their bounds."""
    low, high = ([getattr(each, side) for each in found] for side in ("low", "high"))
    return Estimate(float(np.mean([each.value for each in found])), None if None in low else float(np.mean(low)),
                    None if None in high else float(np.mean(high)), found[0].n, found[0].groups, "mean of draws")  # fmt: skip


def difference_of(tune: Estimate, confirm: Estimate) -> Estimate:
    """Tune minus confirm of one probe, on different rows: bounds by the two standard errors, as their intervals give them."""
    value = tune.value - confirm.value
    if None in (tune.low, tune.high, confirm.low, confirm.high):
        return Estimate(value, None, None, confirm.n, confirm.groups, "no interval")
    reach = float(np.hypot(*((each.high - each.low) / 2 for each in (tune, confirm))))  # type: ignore[operator]
    return Estimate(value, value - reach, value + reach, confirm.n, confirm.groups, "two independent intervals")


def _data_flags(held: _Sealed, chosen: Selection, sealed: Examples) -> tuple[Flag, ...]:
    """What is wrong with the texts and labels themselves. The probe's scores help to find wrong labels, where it has one for
    every example."""
    splits = {**chosen.seen, **sealed}
    by_row = {id(example): float(score) for rows, scores in ((chosen.pool, level(chosen.best.fitted, chosen.prior)),
                                                             (held.rows, chosen.best.fitted.score(held.rows)))
              for example, score in zip(rows.prepared.examples, scores, strict=True)}  # fmt: skip
    whole = all(id(example) in by_row for examples in splits.values() for example in examples)
    scores = {split: [by_row[id(each)] for each in examples] for split, examples in splits.items()} if whole else None
    return concept_flags(splits, scores, chosen.plan.seed)


def optimism_flags(chosen: Selection, confirm: Estimate) -> tuple[Flag, ...]:
    """A flag where the chosen site looked better on tune than it is: the bound of the difference is above 0."""
    gap, n = difference_of(chosen.best.tune, confirm), len(chosen.candidates)
    if n < 2 or gap.low is None or gap.low <= 0:
        return ()
    message = (f"{chosen.best.site} was chosen among {n} cells by an AUROC of {chosen.best.tune.value:.2f} on tune, and has"
               f" {confirm.value:.2f} on confirm: report the second.")  # fmt: skip
    return (Flag(OPTIMISM, message, gap.value, (), gap.low, gap.high),)


def _calibration(held: _Sealed, chosen: Selection) -> Calibration:
    """Probabilities from held-out scores of tune rows, on confirm."""
    known, labels = chosen.best.fitted.held_out[chosen.tune], chosen.pool.labels[chosen.tune]
    groups = [group for group, inside in zip(chosen.pool.groups, chosen.tune, strict=True) if inside]
    curve_of = Calibrated.fit(known, labels)
    scores, truth = chosen.best.fitted.score(held.rows)[held.masks["confirm"]], held.labels("confirm")
    proba = curve_of.proba(scores)
    sets = conformal(curve_of.proba(known), labels, proba, chosen.plan.alpha, groups, chosen.plan.seed)
    rate = np.full(len(truth), labels.mean())
    return Calibration(reliability(proba, truth), ece(proba, truth), brier(proba, truth), brier(rate, truth), chosen.plan.alpha,
                       sets.summary(truth))  # fmt: skip


def _path(chosen: Selection) -> tuple[PathPoint, ...]:
    """The regularisation path at the chosen site; nothing for probes that have none."""
    labels = chosen.pool.labels[chosen.tune]
    return tuple(PathPoint(c, float(log_loss(held[chosen.tune], labels)),
                           float(roc_auc_score(labels, (held - chosen.prior)[chosen.tune])))
                 for c, held in chosen.best.fitted.path)  # fmt: skip


def _agreement(held: _Sealed, chosen: Selection) -> Agreement | None:
    """The difference of means at the chosen site, and directions of halves of the groups."""
    pool, best, kind = chosen.pool, chosen.best, chosen.plan.probe
    if best.fitted.direction is None:
        return None
    options = {"k": chosen.plan.k} if kind == "k_sparse" else {"C": best.fitted.C} if kind == "linear" else {}
    values, sealed = (acts(rows.read, best.site, best.position, rows.prepared) for rows in (pool, held.rows))
    return agreement(lambda: PROBES.get(kind)(**options), best.fitted.direction, values, pool.labels, pool.groups,
                     sealed[held.masks["confirm"]], held.labels("confirm"), held.groups("confirm"), held.seed)  # fmt: skip


def _code_lengths(chosen: Selection) -> dict[str, Any]:
    """Bits of the labels of discover and tune: at the chosen site, at embed, on the untrained twin."""
    pool, best = chosen.pool, chosen.best
    if best.position == "attention" or len(set(pool.groups)) < LEAST_GROUPS:
        return {}
    by_name = {fit.name: fit for fit, _ in chosen.baselines}
    found = {}
    for name, twin, site in (("best", False, best.site), ("embedding_layer", False, "embed"), ("untrained", True, best.site)):
        if (name != "best" and name not in by_name) or (twin and is_latent(site)):
            continue
        c = (best.fitted if name != "embedding_layer" else by_name[name]).C or 0.01
        values = acts(source_of(pool, twin), site, best.position, pool.prepared)
        found[name] = online_bits(values, pool.labels, pool.groups, c, seed=chosen.plan.seed).json()
    return found


def _scarcity(held: _Sealed, chosen: Selection) -> tuple[dict[str, Any], ...]:
    """A linear probe at the chosen site on fewer groups, scored on confirm."""
    pool, best = chosen.pool, chosen.best
    if best.position == "attention" or len(set(pool.groups)) < 2:
        return ()
    values = acts(held.rows.read, best.site, best.position, held.rows.prepared)[held.masks["confirm"]]
    points = curve(acts(pool.read, best.site, best.position, pool.prepared), pool.labels, pool.groups, values,
                   held.labels("confirm"), held.groups("confirm"), C=best.fitted.C or 0.01, seed=chosen.plan.seed)  # fmt: skip
    return tuple(point.json() for point in points)


def _counts(chosen: Selection, held: _Sealed) -> dict[str, dict[str, Any]]:
    """Rows, members and groups of every split."""
    names = np.array(chosen.pool.groups, dtype=object)
    parts = {"discover": (chosen.pool.labels[~chosen.tune], names[~chosen.tune]),
             "tune": (chosen.pool.labels[chosen.tune], names[chosen.tune]),
             **{split: (held.labels(split), np.array(held.groups(split), dtype=object)) for split in ("confirm", "ood")
                if split in held.masks}}  # fmt: skip
    return {split: {"rows": len(labels), "members": int(labels.sum()), "groups": len(set(groups.tolist()))}
            for split, (labels, groups) in parts.items()}  # fmt: skip


def _notes(rows: Rows, chosen: Selection) -> tuple[str, ...]:
    lost = {why: n + chosen.pool.prepared.dropped.get(why, 0) for why, n in rows.prepared.dropped.items()}
    lost |= {why: n for why, n in chosen.pool.prepared.dropped.items() if why not in lost}
    dropped = (f"{n} examples were left out: {why}" for why, n in lost.items())
    absent = (f"{each.name}: {each.note}" for each in chosen.missing if not each.note.endswith("not asked for"))
    return (*dropped, *absent)


def _plan_record(chosen: Selection) -> dict[str, Any]:
    plan = chosen.plan
    return {"positions": list(position_names(plan.positions)), "probe": plan.probe, "Cs": list(plan.Cs), "n": plan.n,
            "seed": plan.seed, "folds": plan.folds, "k": plan.k, "encoder": plan.encoder, "untrained": plan.untrained,
            "alpha": plan.alpha, "sites": list(chosen.sites)}  # fmt: skip


def _in_order(score: BaselineScore) -> int:
    return BASELINES.index(score.name) if score.name in BASELINES else len(BASELINES)
