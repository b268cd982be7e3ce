"""Directions that verbs steer along or make claims about: saved ones by name, a feature, a concept, or a task's own pairs."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assay.app import explore
from assay.app.arguments import string
from assay.errors import UsageError, bad_argument, missing

if TYPE_CHECKING:
    from assay.app.workspace import Workspace
    from assay.model.model import Model
    from assay.steer.directions import Direction

FOLDER = "directions"
SITES, EARLIEST, LATEST = 6, 0.2, 0.8  # of the depth: candidate layers
TRAIN = 400  # labelled texts a direction is made from
GIVEN = ("direction", "feature", "concept")
SAVED = string("A saved direction by name (from probe or dose).", longest=400)
FEATURE = string("A neuron, mlp_act.L.N, or a latent, latent.NAME.N.", longest=400)
CONCEPT = string("A concept: the direction is the mean difference of its labelled texts.", longest=400)
SITE = string("Where a direction is made. Default: the residual stream in the middle; dose tries several layers.")


def names(workspace: "Workspace") -> list[str]:
    """Names of the saved directions, newest first."""
    found = sorted((workspace.atlas / FOLDER).glob("*.safetensors"), key=lambda path: -path.stat().st_mtime)
    return [path.stem for path in found]


def saved(workspace: "Workspace", model: "Model", name: str) -> "Direction":
    """A saved direction. Raises UsageError for another name, or one of another model."""
    from assay.steer.files import read_direction

    known = names(workspace)
    if name not in known:
        raise missing("direction", name, ", ".join(known) or "none is saved yet", "Make one: probe, or dose.")
    return read_direction(workspace.atlas / FOLDER / f"{name}.safetensors", model)


def save(workspace: "Workspace", found: "Direction", stem: str) -> str:
    """Write a direction; its name."""
    from assay.steer.files import save_direction

    name = f"{stem}-{found.digest[:8]}"
    save_direction(found, workspace.atlas / FOLDER / f"{name}.safetensors")
    return name


def directions_of(
    workspace: "Workspace", model: "Model", verb: str, arguments: Mapping[str, Any], many: bool = False
) -> "list[Direction]":
    """The direction that the arguments name; `many`: at several layers where no site is named.

    Raises UsageError unless exactly one of direction, feature and concept is given (`task`: where none is).
    """
    given = [name for name in GIVEN if arguments.get(name)]
    if len(given) > 1 or (not given and not arguments.get("task")):
        raise bad_argument(", ".join(GIVEN), " and ".join(given) or "none", "one of them")
    if "direction" in given:
        return [saved(workspace, model, arguments["direction"])]
    if "feature" in given:
        return [_feature(workspace, model, arguments["feature"])]
    sites = [arguments["site"]] if arguments.get("site") else default_sites(model, many)
    seed = arguments.get("seed", 0)
    if "concept" in given:
        return _of_concept(workspace, model, verb, arguments["concept"], sites, seed)
    return _of_pairs(workspace, model, verb, arguments["task"], sites, seed)


def default_sites(model: "Model", many: bool) -> list[str]:
    """resid_post in the middle of the model, or of up to six layers spread over it."""
    last = model.n_layers - 1
    if not many:
        return [f"resid_post.{round(last / 2)}"]
    n = min(SITES, model.n_layers)
    at = [EARLIEST * last + (LATEST - EARLIEST) * last * step / max(1, n - 1) for step in range(n)]
    return list(dict.fromkeys(f"resid_post.{round(layer)}" for layer in at))


def _of_concept(
    workspace: "Workspace", model: "Model", verb: str, name: str, sites: Sequence[str], seed: int
) -> "list[Direction]":
    from assay.data.prepare_concept import prepare_concept
    from assay.steer.directions import from_concept, read_concept_at

    source = explore.concept_of(workspace, name)
    examples = source.items("discover", TRAIN, seed)
    prepared = prepare_concept(examples, model)
    explore.look(workspace, model, f"{verb}: direction of {source.name}", prepared.examples)
    about = {"concept": Path(name).name}
    read = dict(zip(sites, read_concept_at(model, prepared, sites), strict=True))
    return _where_there_is_one(sites, lambda site: from_concept(model, prepared, site, source=about, x=read[site]))


def _of_pairs(
    workspace: "Workspace", model: "Model", verb: str, name: str, sites: Sequence[str], seed: int
) -> "list[Direction]":
    from assay.data.prepare import prepare
    from assay.steer.directions import from_pairs, read_pairs_at

    source = explore.task_of(workspace, name)
    prepared = prepare(source.items("discover", 44, seed), model)
    explore.look(workspace, model, f"{verb}: direction of {source.name}", prepared.pairs)
    read = dict(zip(sites, read_pairs_at(model, prepared, sites), strict=True))
    return _where_there_is_one(sites, lambda site: from_pairs(model, prepared, site, read=read[site]))


def _where_there_is_one(sites: Sequence[str], make: Callable[[str], "Direction"]) -> "list[Direction]":
    """Directions at the sites where the two sides differ (in early layers the last token may be the same in both).

    Raises UsageError where they differ nowhere.
    """
    made, why = [], None
    for site in sites:
        try:
            made.append(make(site))
        except UsageError as error:
            why = error
    if not made and why is not None:
        raise why
    return made


def _feature(workspace: "Workspace", model: "Model", name: str) -> "Direction":
    import torch

    from assay.sites import parse_site
    from assay.steer.directions import from_latent, from_vector

    site = parse_site(name)
    if site.name == "latent" and site.index is not None and site.path:
        return from_latent(workspace.dictionary(site.path), site.index, model)
    if site.name != "mlp_act" or site.index is None:
        raise bad_argument("feature", name, "a neuron, mlp_act.L.N, or a latent, latent.NAME.N")
    (found,) = model.sites(site)
    vector = torch.zeros(model.dims.d_mlp)
    vector[found.index] = 1.0
    return from_vector(model, vector, str(found.whole), {"unit": str(found)})
