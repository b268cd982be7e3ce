"""*represents*: this feature stands for this concept.

1. A claim names one feature: a unit of a site (`mlp_act.3.17`), a latent of an open dictionary (`latent.NAME.17`; the claim
   keeps the dictionary's digest) or a direction at a site.
2. On tune: thresholds of its activation, random directions from the covariance there, the words' own
   score, the best other units as rivals, untrained twins. All of it before sealed data are read.
3. On confirm and ood: does it rank members above non-members, better than random directions, shuffled
   labels, untrained twins and the words; does it stay silent on non-members and near misses; does it
   fire on members of every kind, and only on them?

Association, not use: that the model relies on the feature is another claim (*uses*).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from assay.data.prepare_concept import PreparedConcept
from assay.errors import SiteError
from assay.evidence.features import Feature, check_dictionary, dictionary_record, feature_of
from assay.evidence.hosts import Host, as_host
from assay.evidence.kinds import KINDS, Columns, Progress
from assay.evidence.lexical import surface_scorer
from assay.evidence.output_side import output_side
from assay.evidence.scored import (
    Scorer,
    ScoreSetup,
    measure_scores,
    numbers,
    projection,
    random_directions,
    record_of,
    thresholds,
)  # fmt: skip
from assay.evidence.second_corpus import second_corpus
from assay.features.opened import is_latent
from assay.model.images import ImageModel
from assay.records import Example, GatePlan, Plan

SCHEMES = ("all", "permuted")
N_RIVALS = 3


class Represents:
    """The kind *represents*, as the trial uses it."""

    name = "represents"
    score = "score"

    def subject(self, model: Any, given: Any) -> dict[str, Any]:
        """One feature. Raises SiteError or UsageError for anything else."""
        if isinstance(model, ImageModel) and not isinstance(given, Mapping | Feature):
            return _of_picture(model, given)
        feature = feature_of(given)
        return {"sites": [feature.name], "feature": feature.record(), **dictionary_record(feature)}

    def words(self, subject: Mapping[str, Any], quantifier: str, data: str) -> str:
        """The claim as one sentence."""
        adverb = {"tends": "tends to stand", "usually": "usually stands", "always": "always stands"}[quantifier]
        return f"{subject['sites'][0]} {adverb} for {data}"

    def load(self, model: Any, items: Sequence[Example]) -> PreparedConcept:
        """Examples ready to be read."""
        return as_host(model).load(items)

    def prepare(
        self, model: Any, plan: Plan, subject: Mapping[str, Any], tune: PreparedConcept
    ) -> tuple[ScoreSetup, dict[str, Any]]:
        """Thresholds and controls, from tune."""
        host, feature, seed = as_host(model), feature_of(subject["feature"]), plan.settings["seed"]
        options = plan.settings["options"]
        check_dictionary(subject)
        acts = host.read(feature.site, tune)
        towards = feature.direction(acts.shape[1])
        claimed = projection(towards)
        half, strict = thresholds(numbers(claimed(acts)), tune.labels)
        directions = random_directions(acts, towards, plan.settings["draws"], seed)
        if is_latent(feature.site):
            directions = {name: _without(drawn, towards) for name, drawn in directions.items()}
        rivals = best_units(acts, tune, feature.index, N_RIVALS)
        setup = ScoreSetup(
            feature.site, claimed, half, strict, surface_scorer(host, [item.text for item in tune.examples], tune.labels),
            {name: projection(towards) for name, towards in directions.items()},
            {str(unit): unit_score(unit) for unit in rivals}, untrained_twins(host, claimed, seed), seed=seed,
            second=second_corpus(host, options, tune, seed),
            output=output_side(host, options, feature, tune, tune.labels, plan.settings["draws"], seed),
        )  # fmt: skip
        record = {"half": half, "strict": strict, "random": record_of(directions), "rivals": rivals,
                  "untrained": sorted(setup.untrained)}  # fmt: skip
        return setup, record | setup.asked()

    def measure(
        self, model: Any, data: PreparedConcept, setup: ScoreSetup, gates: Sequence[GatePlan],
        report: Progress | None = None,
    ) -> Columns:  # fmt: skip
        """All columns the gates need."""
        return measure_scores(as_host(model), data, setup, gates, report)


def _of_picture(model: ImageModel, given: Any) -> dict[str, Any]:
    """A channel or unit of an image model, which alone knows what is a channel and what a module of that name."""
    name = str(given[0] if isinstance(given, Sequence) and not isinstance(given, str) and len(given) == 1 else given)
    site, index = model.resolve(name)
    if index is None or model.layout.points[site].heads:
        raise SiteError(f"feature: got {name}; allowed: one channel or unit of a site, such as block.PATH.0, no head.")
    return {"sites": [model.unit(site, index)], "feature": Feature(site, index).record()}


def _without(drawn: torch.Tensor, towards: torch.Tensor) -> torch.Tensor:
    """A drawn combination of latents without the claimed one. Latents are sparse: where few others are active, a combination
    that has the claimed one in it reads nothing else."""
    rest = drawn - (drawn @ towards) * towards
    return rest / rest.norm().clamp_min(1e-12)


def untrained_twins(host: Host, score: Scorer, seed: int) -> dict[str, tuple[Host, Scorer]]:
    """scheme -> (twin, the same score): for scores that are not fitted."""
    return {scheme: (host.untrained(scheme, seed + number), score) for number, scheme in enumerate(SCHEMES)}


def unit_score(unit: int) -> Scorer:
    """Activations (n, d) -> one unit (n,)."""
    return lambda acts: acts[:, unit]


def best_units(acts: torch.Tensor, tune: PreparedConcept, claimed: int | None, n: int) -> list[int]:
    """The units whose AUROC on tune is furthest from one half, the claimed one left out."""
    from scipy.stats import rankdata

    member = torch.tensor(tune.labels).bool().numpy()
    inside, outside = int(member.sum()), int((~member).sum())
    if not inside or not outside:
        return []
    ranks = rankdata(acts.double().numpy(), axis=0)[member].sum(0)
    merit = abs((ranks - inside * (inside + 1) / 2) / (inside * outside) - 0.5)
    order = [int(unit) for unit in (-merit).argsort(kind="stable") if unit != claimed]
    return order[:n]


KINDS.add("represents", Represents())
