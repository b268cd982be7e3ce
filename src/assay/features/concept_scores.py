"""What a dictionary's latents say about labelled concepts, beside its controls: sparse probes, removal, first letters.

Probes are fitted on one set of texts and scored on another; with two concepts or more, their members together are the
texts of targeted probe perturbation. Controls are asked the same: the recipe with a random decoder on this model, the
recipe on an untrained model.

Texts are read as means over typical tokens. Which they are, `limits` says: those of an evaluation (`limits_from`), or else the
dictionary's own, or 10 x the median norm of the texts for fitting where it has none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from assay.data.prepare_concept import PreparedConcept, prepare_concept
from assay.errors import bad_argument
from assay.features.absorption import Absorption, first_letters
from assay.features.dictionary import Dictionary
from assay.features.held_out import HeldOut, Limits, limits_of, read_tokens
from assay.features.labelled import Labelled, labelled, of_concept
from assay.features.sparse_probing import KS, Probed, Removal, sparse_probing, targeted_perturbation
from assay.model.model import Model
from assay.records import Example

Texts = Mapping[str, tuple[Sequence[Example], Sequence[Example]]]
FIRST = 8192  # tokens that limits are measured on


@dataclass(frozen=True)
class ConceptScores:
    """Of one dictionary. `probes`: by concept; `removal`: None for fewer than two concepts; `letters`: where asked for."""

    probes: Mapping[str, tuple[Probed, ...]]
    removal: Removal | None
    letters: tuple[Absorption, ...] = ()


def concept_scores(
    model: Model, dictionary: Dictionary, texts: Texts, *, limits: Limits | None = None, letters: bool = False,
    ks: Sequence[int] = KS,
) -> ConceptScores:  # fmt: skip
    """Probes of every concept of `texts`: name -> (examples for fitting, examples for scores).

    Raises UsageError for texts on both sides, of whichever concepts, TaskError for examples that this model cannot read.
    """
    prepared = {name: tuple(prepare_concept(side, model) for side in sides) for name, sides in texts.items()}
    for name, (ours, theirs) in texts.items():
        if shared := {example.text for example in ours} & {example.text for example in theirs}:
            raise bad_argument(f"texts of {name}", f"{len(shared)} on both sides, e.g. {min(shared)!r}", "none")
    ours, theirs = ({example.text for sides in texts.values() for example in sides[side] if example.label} for side in (0, 1))
    if shared := ours & theirs:
        said = f"{len(shared)} members for fitting that are members of another concept for scores, e.g. {min(shared)!r}"
        raise bad_argument("texts", said, "none: members of all concepts are one set", "Move them to one side.")
    if limits is None and prepared:
        limits = _limits(model, dictionary, [row for fit, _ in prepared.values() for row in fit.tokens])
    probes = {}
    for name, sides in prepared.items():
        fit, held = (of_concept(model, dictionary, side, name, limits) for side in sides)
        probes[name] = sparse_probing(fit, held, name, ks)
    removal = None
    if len(prepared) > 1:
        fit, held = (members(model, dictionary, {name: sides[side] for name, sides in prepared.items()}, limits)
                     for side in (0, 1))  # fmt: skip
        removal = targeted_perturbation(fit, held, dictionary.directions())
    return ConceptScores(probes, removal, first_letters(model, dictionary) if letters else ())


def limits_from(record: Mapping[str, Any]) -> Limits:
    """The limits of an evaluation (`Evaluation.limits`)."""
    return Limits(record["skip_first"], record["norm_limit"], record["target_limit"], record["measured_here"])


def _limits(model: Model, dictionary: Dictionary, rows: Sequence[Sequence[int]]) -> Limits:
    """The dictionary's own, or measured on the first of these texts."""
    held = next(HeldOut.of(rows).batches(FIRST))
    first = read_tokens(model, dictionary, held, Limits(dictionary.spec.skip_first, None, None), held.names)
    return limits_of(dictionary, first.x, first.y)


def members(
    model: Model, dictionary: Dictionary, concepts: Mapping[str, PreparedConcept], limits: Limits | None = None
) -> Labelled:  # fmt: skip
    """Members of all concepts, each text once; a text has the properties whose members it is among."""
    owners: dict[tuple[int, ...], set[str]] = {}
    clusters: dict[tuple[int, ...], str] = {}
    for name, prepared in concepts.items():
        for row, template, label in zip(prepared.tokens, prepared.templates, prepared.labels, strict=True):
            if label:
                owners.setdefault(tuple(row), set()).add(name)
                clusters.setdefault(tuple(row), f"{name} {template}")
    labels = {name: [int(name in each) for each in owners.values()] for name in concepts}
    return labelled(model, dictionary, list(owners), labels, list(clusters.values()), limits=limits)
