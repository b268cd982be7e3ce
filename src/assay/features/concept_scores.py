"""What a dictionary's latents say about labelled concepts, beside its controls: sparse probes, removal, first letters.

Probes are fitted on one set of texts and scored on another; with two concepts or more, their members together are the
texts of targeted probe perturbation. Controls are asked the same: the recipe with a random decoder on this model, the
recipe on an untrained model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from assay.data.prepare_concept import PreparedConcept, prepare_concept
from assay.errors import bad_argument
from assay.features.absorption import Absorption, first_letters
from assay.features.dictionary import Dictionary
from assay.features.labelled import Labelled, labelled, of_concept
from assay.features.sparse_probing import KS, Probed, Removal, sparse_probing, targeted_perturbation
from assay.model.model import Model
from assay.records import Example

Texts = Mapping[str, tuple[Sequence[Example], Sequence[Example]]]


@dataclass(frozen=True)
class ConceptScores:
    """Of one dictionary. `probes`: by concept; `removal`: None for fewer than two concepts; `letters`: where asked for."""

    probes: Mapping[str, tuple[Probed, ...]]
    removal: Removal | None
    letters: tuple[Absorption, ...] = ()


def concept_scores(
    model: Model, dictionary: Dictionary, texts: Texts, *, letters: bool = False, ks: Sequence[int] = KS
) -> ConceptScores:
    """Probes of every concept of `texts`: name -> (examples for fitting, examples for scores).

    Raises UsageError for texts on both sides, TaskError for examples that this model cannot read.
    """
    prepared = {name: tuple(prepare_concept(side, model) for side in sides) for name, sides in texts.items()}
    for name, (ours, theirs) in texts.items():
        if shared := {example.text for example in ours} & {example.text for example in theirs}:
            raise bad_argument(f"texts of {name}", f"{len(shared)} on both sides, e.g. {min(shared)!r}", "none")
    probes = {}
    for name, sides in prepared.items():
        fit, held = (of_concept(model, dictionary, side, name) for side in sides)
        probes[name] = sparse_probing(fit, held, name, ks)
    removal = None
    if len(prepared) > 1:
        fit, held = (members(model, dictionary, {name: sides[side] for name, sides in prepared.items()}) for side in (0, 1))
        removal = targeted_perturbation(fit, held, dictionary.directions())
    return ConceptScores(probes, removal, first_letters(model, dictionary) if letters else ())


def members(model: Model, dictionary: Dictionary, concepts: Mapping[str, PreparedConcept]) -> Labelled:
    """Members of all concepts; a text has the properties whose members it is among."""
    rows, owners, clusters = [], [], []
    for name, prepared in concepts.items():
        chosen = [number for number, label in enumerate(prepared.labels) if label]
        rows += [prepared.tokens[number] for number in chosen]
        clusters += [f"{name} {prepared.templates[number]}" for number in chosen]
        owners += [name] * len(chosen)
    labels = {name: np.array(owners) == name for name in concepts}
    return labelled(model, dictionary, rows, {name: each.tolist() for name, each in labels.items()}, clusters)
