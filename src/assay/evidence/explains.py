"""*explains*: a rule predicts when a feature is on.

1. A claim names a feature and an explanation that can be applied to a text: a pattern, a list of words, or the
   labels of a concept (`rules.py`); beside it, if wanted, the sentence it stands for.
2. "Member" means from here on: a text for which the rule says *on*. The feature is on above a threshold; the one
   that parts members from others best on tune.
3. On tune also: other units of the site with thresholds of equal density, for the same rule to explain (a shuffle
   of explanations over features); the units that the rule fits best, as candidates to be told apart; and the unit
   that it fits best in every untrained twin.
4. On confirm and ood: ranking; members against near misses; precision and recall apart; more than the rule
   explains of other features; the right feature found among its nearest.

Only the input side, unless the options name words that the feature should say (`output_side.py`). (Bills et al. 2023; Ma et
al. 2025.)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from assay.data.prepare_concept import PreparedConcept
from assay.errors import TaskError, bad_argument
from assay.evidence.corpus_windows import CorpusHost
from assay.evidence.features import check_dictionary, dictionary_record, feature_of
from assay.evidence.hosts import Host, as_host
from assay.evidence.kinds import KINDS, Columns, Progress
from assay.evidence.output_side import output_side
from assay.evidence.represents import unit_score
from assay.evidence.rules import Rule, rule_of, rule_words, said
from assay.evidence.scored import ScoreInstrument, Scorer, ScoreSetup, measure_with, numbers, projection
from assay.evidence.second_corpus import second_corpus
from assay.evidence.sparse_units import DenseUnits, SparseUnits, Units
from assay.records import Example, GatePlan, Plan

SCHEMES = ("all", "permuted")
N_NEAREST = 9  # besides the feature itself: chance is one in ten


@dataclass(frozen=True, eq=False)
class ExplainSetup(ScoreSetup):
    """Also the rule and its record; `others`: unit -> 1 where that unit is on; `nearest`: unit -> its activation. `unit`: the
    claimed feature's column of the codes, on a host that has codes."""

    rule: Rule = lambda examples: []
    record: Mapping[str, Any] = field(default_factory=dict)
    unit: int | None = None
    others: Mapping[str, Scorer] = field(default_factory=dict)
    nearest: Mapping[str, Scorer] = field(default_factory=dict)


class Explains:
    """The kind *explains*, as the trial uses it."""

    name = "explains"
    score = "score"

    def subject(self, model: Any, given: Any) -> dict[str, Any]:
        """{"feature", "rule", "text"}. Raises SiteError or UsageError for anything else."""
        if not isinstance(given, Mapping) or not {"feature", "rule"} <= set(given) <= {"feature", "rule", "text"}:
            raise bad_argument("subject", given, 'a feature and a rule: {"feature": .., "rule": {"type": ..}, "text": ..}')
        feature, rule = feature_of(given["feature"]), dict(given["rule"])
        rule_of(rule)
        subject = {"sites": [feature.name], "feature": feature.record(), "rule": rule, "text": str(given.get("text", ""))}
        return {**subject, **dictionary_record(feature)}

    def words(self, subject: Mapping[str, Any], quantifier: str, data: str) -> str:
        """The claim as one sentence."""
        adverb = {"tends": "tends to be on", "usually": "is usually on", "always": "is always on"}[quantifier]
        said = f" ({subject['text']})" if subject["text"] else ""
        return f"{subject['sites'][0]} {adverb} where {rule_words(subject['rule'])}{said}, and not elsewhere, in {data}"

    def check_texts(self, subject: Mapping[str, Any], split: str, items: Sequence[Example]) -> None:
        """Raises TaskError unless the rule says yes of some texts of a split and no of others."""
        on = sum(said(subject["rule"], items))
        if 0 < on < len(items):
            return
        hint = " Words that texts are read at are held out: those of one split are in no other." * (on == 0)
        raise TaskError(f"{split}: {rule_words(subject['rule'])} in {'all' if on else 'none'} of {len(items)} texts; a rule"
                        f" must hold in some texts of every split and not in others.{hint} Give a rule that covers"
                        " them (concept, a pattern, a longer list), or texts of your own.")  # fmt: skip

    def load(self, model: Any, items: Sequence[Example]) -> PreparedConcept:
        """Examples ready to be read."""
        return as_host(model).load(items)

    def prepare(
        self, model: Any, plan: Plan, subject: Mapping[str, Any], tune: PreparedConcept
    ) -> tuple[ExplainSetup, dict[str, Any]]:
        """Threshold and controls, from tune."""
        host, feature, seed = as_host(model), feature_of(subject["feature"]), plan.settings["seed"]
        check_dictionary(subject)
        record, options = subject["rule"], plan.settings["options"]
        labels = said(record, tune.examples)
        acts = units_of(host, feature.site, tune)
        column = host.column(feature) if isinstance(host, CorpusHost) else None
        index = feature.index if column is None else column
        claimed = projection(feature.direction(acts.width)) if column is None else unit_score(column)
        scores = numbers(claimed(host.read(feature.site, tune)))
        on = best_threshold(scores, labels)
        everywhere = host.all_units(host.part_of(tune)) if isinstance(host, CorpusHost) else acts
        density = everywhere.share_above(index, on) if index is not None else float(np.mean(np.array(scores, float) > on))
        others = equally_dense(everywhere, density, index, plan.settings["draws"], seed)
        nearest = [unit for unit in fitting_units(acts, labels) if unit != index][:N_NEAREST]
        setup = ExplainSetup(
            feature.site, claimed, on, on, lambda texts: [0.0] * len(texts),
            untrained=best_in_twins(host, feature.site, tune, labels, seed), seed=seed,
            rule=lambda examples: said(record, examples), record=record, unit=column,
            others={str(unit): above(unit, threshold) for unit, threshold in others.items()},
            nearest={str(unit): unit_score(unit) for unit in nearest},
            second=second_corpus(host, options, tune, seed, lambda examples: said(record, examples)),
            output=output_side(host, options, feature, tune, labels, plan.settings["draws"], seed),
        )  # fmt: skip
        controls = {"on": on, "density": density, "others": sorted(others), "nearest": nearest,
                    "untrained": sorted(setup.untrained)}  # fmt: skip
        return setup, controls | (setup.asked() or {"output_side": "not tested"})

    def measure(
        self, model: Any, data: PreparedConcept, setup: ExplainSetup, gates: Sequence[GatePlan],
        report: Progress | None = None,
    ) -> Columns:  # fmt: skip
        """All columns the gates need; labels are what the rule says."""
        said = [replace(example, label=label)
                for example, label in zip(data.examples, setup.rule(data.examples), strict=True)]  # fmt: skip
        ruled = PreparedConcept(said, data.tokens, data.at, data.dropped)
        return measure_with(ScoreInstrument(as_host(model), ruled, setup), gates, report)


def best_threshold(scores: Sequence[float | None], labels: Sequence[int]) -> float:
    """The threshold that parts members from non-members best: largest difference of rates (Youden's J), halfway to
    the next lower score."""
    from sklearn.metrics import roc_curve

    values = np.array(scores, dtype=float)
    wrong, right, cuts = roc_curve(labels, values)
    cut = float(cuts[1:][np.argmax(right[1:] - wrong[1:])])
    lower = values[values < cut]
    return (cut + float(lower.max())) / 2 if len(lower) else cut - 1.0


def fitting_units(units: Units, labels: Sequence[int]) -> list[int]:
    """Units by how well the rule fits them: AUROC of their activation, highest first; dead ones left out."""
    member = np.array(labels) == 1
    order, alive = np.argsort(-units.ranks_of(member), kind="stable"), units.alive  # AUROC but for constants
    return order[alive[order]].tolist()


def equally_dense(units: Units, density: float, claimed: int | None, draws: int, seed: int) -> dict[int, float]:
    """Random other units -> threshold above which they are on as often as the feature, within a factor of 2."""
    cuts, share = units.cut(density)
    fit = [unit for unit in np.flatnonzero((density / 2 <= share) & (share <= 2 * density)).tolist() if unit != claimed]
    picked = np.random.default_rng(seed).permutation(fit)[:draws]
    return {int(unit): float(cuts[unit]) for unit in picked}


def above(unit: int, threshold: float) -> Scorer:
    """Activations (n, d) -> 1 where a unit is above its threshold."""
    return lambda acts: (acts[:, unit].double() > threshold).double()


def units_of(host: Host, site: str, data: PreparedConcept) -> Units:
    """All units of a site at some examples, as the host keeps them."""
    return SparseUnits(host.sparse(data)) if isinstance(host, CorpusHost) else DenseUnits(host.read(site, data))


def best_in_twins(
    host: Host, site: str, tune: PreparedConcept, labels: Sequence[int], seed: int
) -> dict[str, tuple[Host, Scorer]]:
    """scheme -> (twin, the unit of the twin that the rule fits best on tune)."""
    found: dict[str, tuple[Host, Scorer]] = {}
    for number, scheme in enumerate(SCHEMES):
        twin = host.untrained(scheme, seed + number)
        units = fitting_units(units_of(twin, site, tune), labels)
        found[scheme] = (twin, unit_score(units[0] if units else 0))
    return found


KINDS.add("explains", Explains())
