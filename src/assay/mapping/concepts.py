"""*represents* claims of a map: which mapped unit stands for a concept that somebody labelled, if any does?

1. On *discover* of each concept all mapped units are read at the tokens where its examples are read. The one whose value ranks
   members best above the rest, near misses among them, is the candidate (AUROC; of equal ones the first).
2. Below `BAR` nothing is claimed, and the concept says so: of thousands of units that know nothing the best reaches two
   thirds on so few examples.
3. The claim is stated and locked on the concept's *tune*, and tested on its *confirm* and *ood*: labels and texts are the
   concept's, so neither the corpus of the map nor a rule found there can make it true. Candidates are chosen by looking, which
   costs nothing: what was looked at is free, and what decides is sealed.
4. What was stated and tested before is found again.

A rule says where a unit is on, a concept what that stands for: a unit may have claims of both kinds, one, or none.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from assay.atlas.store import Atlas
from assay.data.concepts import CONCEPTS
from assay.data.prepare_concept import PreparedConcept
from assay.errors import TaskError, bad_argument
from assay.evidence.claims import record_look
from assay.evidence.features import Feature
from assay.evidence.hosts import as_host
from assay.evidence.known import state_once
from assay.evidence.run import Settings, Statement, test_claim
from assay.evidence.source import ConceptSource
from assay.mapping.units import MapUnits
from assay.model.model import Model
from assay.probe.scores import aurocs

BAR = 0.75
EXAMPLES = 160
Report = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Candidate:
    """The unit that tells a concept best on *discover*. `why_not`: why nothing is claimed; empty where a claim is."""

    concept: str
    feature: str = ""
    auroc: float = 0.0
    claim: str = ""
    verdict: str = ""
    why_not: str = ""


def check_concepts(units: MapUnits, concepts: Sequence[str]) -> None:
    """Raises UsageError for heads, which have no one direction that such a claim reads, TaskError for an unknown concept."""
    if concepts and units.kind == "head":
        raise bad_argument("concepts", list(concepts), "none, for heads", "Map latents, neurons or directions for that.")
    for concept in concepts:
        ConceptSource(concept).record()


def claim_concepts(
    atlas: Atlas, model: Model, units: MapUnits, names: Sequence[str], concepts: Sequence[str], settings: Settings,
    report: Report | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """A record of each concept: its candidate, and the verdict of the claim about it. Raises what stating and testing raise."""
    found = []
    for number, concept in enumerate(concepts):
        if report:
            report("concepts", number, len(concepts))
        best = candidate(atlas, model, units, names, concept, settings.seed)
        found.append(asdict(best if best.why_not else _claimed(atlas, model, units, best, settings)))
    return found


def candidate(atlas: Atlas, model: Model, units: MapUnits, names: Sequence[str], concept: str, seed: int) -> Candidate:
    """The best of some units on *discover*; the look is in the ledger."""
    source, host = ConceptSource(concept), as_host(model)
    try:
        data = host.load(source.items("discover", EXAMPLES, seed))
    except TaskError as error:  # a tokenizer that cannot read it, or a file without such a split
        return Candidate(concept, why_not=str(error))
    record_look(atlas, model.digest, f"map: units that tell {concept}", data.items)
    values = values_of(host, [units.feature(name) for name in names], data)
    scores = aurocs(values.double().numpy(), np.array(data.labels, bool))
    place = int(scores.argmax())
    why = "" if scores[place] >= BAR else f"no mapped unit tells it with an AUROC of {BAR} on discover"
    return Candidate(concept, names[place], float(scores[place]), why_not=why)


def values_of(host: Any, features: Sequence[Feature], data: PreparedConcept) -> Float[Tensor, "example unit"]:
    """What units are at the tokens that are read; every site is read once."""
    sites = {site: host.read(site, data) for site in dict.fromkeys(feature.site for feature in features)}
    return torch.stack([sites[each.site][:, each.index] if each.vector is None else sites[each.site] @ torch.tensor(each.vector)
                        for each in features], 1)  # fmt: skip


def _claimed(atlas: Atlas, model: Model, units: MapUnits, best: Candidate, settings: Settings) -> Candidate:
    source = ConceptSource(best.concept)
    stated, _, _ = state_once(atlas, model, source, units.feature(best.feature), statement=Statement("represents"),
                              settings=settings)  # fmt: skip
    verdict = atlas.verdict(stated.id)
    if verdict is None:
        verdict = test_claim(atlas, stated.id, model, source=source)
    return Candidate(best.concept, best.feature, best.auroc, stated.id, verdict.verdict)


def names_of(given: str) -> tuple[str, ...]:
    """Concepts from an option: names with commas, or *bundled* for those that come with this package."""
    from assay.data.concepts import PackagedConcept

    wanted = [name.strip() for name in given.split(",") if name.strip()]
    bundled = [name for name in CONCEPTS.names() if not isinstance(CONCEPTS.get(name), PackagedConcept)]
    return tuple(dict.fromkeys(name for each in wanted for name in (bundled if each == "bundled" else [each])))
