"""What `assay steer` is given: a direction from a file, a feature or labelled texts, and the behaviour it should change."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assay.errors import AssayError, TaskError, UsageError, bad_argument

BEHAVIOURS = {"sentiment": "opinion", "french": "language", "truth": "capitals"}  # concept -> task that shows it
SITES, EARLIEST, LATEST = 6, 0.2, 0.8  # of the depth: candidate layers
TRAIN, HELD_OUT = 400, 200  # labelled texts of a direction and its judge, and those the judge is measured on


@dataclass(frozen=True)
class Asked:
    """The direction as asked for: one of file, feature, concept; none of them: from the behaviour's own pairs."""

    file: str | None
    feature: str | None
    concept: str | None
    method: str | None
    at: str
    site: str | None
    dictionary: str | None
    allow: tuple[str, ...]

    def check(self) -> None:
        """Raises UsageError for a combination that means nothing, before anything is loaded."""
        named = {"--direction": self.file, "--feature": self.feature, "--concept": self.concept}
        if len(given := [option for option, value in named.items() if value is not None]) > 1:
            raise bad_argument(", ".join(named), " and ".join(given), "one of them, or none: then from the behaviour's pairs")
        if self.method is not None and (self.file or self.feature):
            raise bad_argument("--method", self.method, "none: it makes directions of --concept or of the behaviour's pairs")
        if self.dictionary is not None and not (self.feature or "").startswith("latent."):
            raise bad_argument("--dictionary", self.dictionary, "with --feature latent.NAME.N", "NAME is the dictionary's own.")
        if self.feature is not None and self.site is not None and not self.feature.startswith("latent."):
            raise bad_argument("--site", self.site, "none: a unit says itself where it is")


def behaviour_name(asked: Asked, behaviour: str | None, task_file: str | None) -> str | None:
    """The task that shows the behaviour; None where none is named, and what the direction was made from has none.

    Raises UsageError for two, and for none where directions are made from the behaviour's own pairs.
    """
    from assay.data.tasks import TASKS

    if behaviour is not None and task_file is not None:
        raise bad_argument("--behaviour, --file", "both", "one of them")
    if task_file is not None:
        return task_file
    if behaviour is not None:
        found = BEHAVIOURS.get(behaviour, behaviour)
        TASKS.get(found)
        return found
    concept = asked.concept or (None if asked.file is None else _concept_of(asked.file))
    if concept in BEHAVIOURS:
        return BEHAVIOURS[concept]
    if asked.method != "learned" and (asked.concept or asked.file or asked.feature):
        return None
    known = ", ".join(f"{name} ({task})" for name, task in BEHAVIOURS.items())
    raise UsageError(f"--behaviour: got None; allowed: {', '.join(TASKS.names())}, or --file FILE, your own task. A direction"
                     " is made from its pairs unless --direction, --feature or --concept gives one. Concepts with a behaviour"
                     f" of their own: {known}.")  # fmt: skip


def _concept_of(file: str) -> str | None:
    """The concept that a saved direction was made from, as its card says; None for any other file."""
    from assay.steer.files import is_direction, load_direction

    found = load_direction(file).source.get("concept") if is_direction(file) else None
    return found if isinstance(found, str) else None


# directions --------------------------------------------------------------------------------------


def labelled(concept: str, seed: int) -> dict[str, list[Any]]:
    """Labelled texts of discover and tune. Raises TaskError or UsageError for a concept that there is not."""
    from assay.data.concepts import all_examples
    from assay.evidence.source import ConceptSource

    source = ConceptSource(concept)
    whole = all_examples(source.data).splits
    sizes = {"discover": min(TRAIN, len(whole["discover"])), "tune": min(HELD_OUT, len(whole["tune"]))}
    return {split: source.items(split, n, seed) for split, n in sizes.items()}


def default_sites(model: Any, first: int = 0) -> list[str]:
    """resid_post of up to six layers, evenly spread over the middle of the model; none before the layer `first`."""
    import numpy as np

    low, high = (max(share * (model.n_layers - 1), first) for share in (EARLIEST, LATEST))
    found = np.linspace(low, high, min(SITES, model.n_layers)).round().astype(int)
    return [f"resid_post.{layer}" for layer in dict.fromkeys(found.tolist())]


def directions_of(
    asked: Asked, model: Any, texts: Mapping[str, list[Any]] | None, pairs: Any, plan: Any, progress: Callable[..., None],
    condition: Any = None,
) -> list[Any]:  # fmt: skip
    """The candidate directions, one per site. `texts`: of a concept, with labels; `pairs()`: the behaviour's discover pairs;
    `condition`: the direction of --condition, which must have been read where it is asked."""
    from assay.sites import parse_site
    from assay.steer.files import read_direction

    if asked.file is not None:
        return [read_direction(asked.file, model, asked.allow, asked.site)]
    if asked.feature is not None:
        return [_feature(asked, model)]
    first = 0 if condition is None else parse_site(condition.site).layer or 0
    sites = [asked.site] if asked.site else default_sites(model, first)
    if asked.method == "learned":
        return _learned(sites[len(sites) // 2], model, pairs(), plan, progress)
    progress("making directions", 0, len(sites))
    method = asked.method or "mean_difference"
    if texts is not None:
        return _of_concept(asked, model, texts["discover"], sites, method)
    from assay.steer.directions import from_pairs, read_pairs_at

    prepared = pairs()
    read = read_pairs_at(model, prepared, sites)
    return [from_pairs(model, prepared, site, method, read=x) for site, x in zip(sites, read, strict=True)]


def _of_concept(asked: Asked, model: Any, examples: Sequence[Any], sites: Sequence[str], method: str) -> list[Any]:
    """One direction per site, all from one pass."""
    from assay.data.prepare_concept import prepare_concept
    from assay.steer.directions import from_concept, read_concept_at

    prepared = prepare_concept(examples, model)
    read = read_concept_at(model, prepared, sites, asked.at)
    name = Path(asked.concept or "").name
    return [from_concept(model, prepared, site, method, asked.at, {"concept": name}, x)
            for site, x in zip(sites, read, strict=True)]  # fmt: skip


def _feature(asked: Asked, model: Any) -> Any:
    """A unit of mlp_act, or a latent of the dictionary that is given."""
    import torch

    from assay.sites import parse_site
    from assay.steer.directions import from_latent, from_vector

    site = parse_site(asked.feature or "")
    if site.name == "latent" and site.index is not None:
        if asked.dictionary is None:
            raise bad_argument("--dictionary", None, "the files of the dictionary that the latent is of")
        from assay.features.formats import load_dictionary

        dictionary = load_dictionary(asked.dictionary)
        if dictionary.name != site.path:
            raise bad_argument("--feature", asked.feature, f"latent.{dictionary.name}.{site.index}: that is its name")
        return from_latent(dictionary, site.index, model, asked.site)
    if site.name != "mlp_act" or site.index is None:
        raise bad_argument("--feature", asked.feature, "a neuron, mlp_act.L.N, or a latent, latent.NAME.N with --dictionary",
                           "A whole site has no direction of its own.")  # fmt: skip
    (found,) = model.sites(site)
    vector = torch.zeros(model.dims.d_mlp)
    vector[found.index] = 1.0
    return from_vector(model, vector, str(found.whole), {"unit": str(found)})


def _learned(site: str, model: Any, pairs: Any, plan: Any, progress: Callable[..., None]) -> list[Any]:
    """Trained on half of the discover templates, stopped by the other half."""
    from assay.steer.apply import residual_norm
    from assay.steer.learned import LearnPlan, learned

    trained: Any = {"add": "add", "clamp": "set"}.get(plan.mode)
    if trained is None:
        raise bad_argument("--mode", plan.mode, "add or clamp: the ways a learned direction is trained for")
    templates = list(dict.fromkeys(pairs.templates))
    if len(templates) < 2:
        raise TaskError("a learned direction needs pairs of two templates or more on discover.")
    train = set(templates[::2])
    rows = [[row for row, name in enumerate(pairs.templates) if (name in train) == side] for side in (True, False)]
    halves = [pairs.select(side) for side in rows]
    norm = residual_norm(model, site, plan.texts)
    return [learned(model, halves[0], site, halves[1], norm, plan.texts[0::2],
                    LearnPlan(mode=trained, positions=plan.positions),
                    report=lambda done, of: progress(f"training at {site}", done, of))]  # fmt: skip


# the behaviour -----------------------------------------------------------------------------------


def judge_of(name: str, texts: Mapping[str, list[Any]] | None, pairs: Mapping[str, Sequence[Any]]) -> Any:
    """A judge trained on the concept's texts, or on the task's prompts with their answers and foils."""
    from assay.steer.judge import train_judge

    if texts is not None:
        parts = (texts["discover"], texts["tune"])
        sides = [([each.text for each in part], [each.label for each in part]) for part in parts]
    else:
        sides = [_sided(pairs[split]) for split in ("discover", "tune")]
    return train_judge(name, *sides[0], *sides[1])


def _sided(pairs: Sequence[Any]) -> tuple[list[str], list[int]]:
    texts = [text for pair in pairs for text in (pair.clean + pair.answers[0], pair.corrupted + pair.foils[0])]
    return texts, [1, 0] * len(pairs)


def other_tasks(behaviour: str, model: Any, seed: int, per_template: int = 1) -> tuple[dict[str, Any], list[str]]:
    """Every bundled task but the behaviour, on its tune split; and why one cannot be used with this model."""
    from assay.data.prepare import prepare
    from assay.data.tasks import TASKS, load_task, n_templates

    found, left = {}, []
    for name in (name for name in TASKS.names() if name != behaviour):
        try:
            found[name] = prepare(load_task(name, "tune", per_template * n_templates(name, "tune"), seed), model)
        except AssayError as error:
            left.append(f"{name} was not looked at: {error}")
    return found, left


def requests_of(model: Any, seed: int, n: int = 36) -> Any:
    """Requests to refuse, look-alikes and harmless ones, of discover. Raises AssayError where they cannot be asked."""
    from assay.data.concepts import load_concept
    from assay.data.prepare_concept import prepare_concept
    from assay.steer.side_effects import askable, opener_metric

    prepared = prepare_concept(load_concept("refusal", "discover", n, seed), model)
    opener_metric(model)
    return askable(model, prepared)
