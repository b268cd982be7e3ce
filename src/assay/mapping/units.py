"""What is mapped: the latents of a dictionary, neurons of a site, heads of a layer, or directions from a file.

A dictionary is one that is shipped with the model, one kept in the atlas, or a path in any known format. Directions are a
`.npy` or `.safetensors` file of vectors (n, d) beside the site they are read at. Whatever they are, they have names, values per
token, and, where they write to the residual stream, decoder rows (`assay.explain.units`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from assay.data.whereabouts import keep_in_mind
from assay.errors import SiteError, UsageError, bad_argument
from assay.evidence.features import Feature, direction, feature_of
from assay.explain.units import UnitSource, of_dictionary, of_directions, of_heads, of_neurons
from assay.features.dictionary import Dictionary
from assay.features.kept import shipped
from assay.features.opened import open_latents
from assay.features.superposition import neuron_outputs, spread_over_neurons
from assay.model.model import Model
from assay.signing import check_signature
from assay.sites import Site, parse_site


@dataclass(frozen=True, eq=False)
class MapUnits:
    """`source`: the units as they are read. `dictionary`: of latents. `vectors`: of directions, by name, of norm 1."""

    source: UnitSource
    site: str
    dictionary: Dictionary | None = None
    vectors: Mapping[str, Tensor] | None = None

    @property
    def kind(self) -> str:
        """latent, neuron, head or direction."""
        return self.source.kind

    def feature(self, name: str) -> Feature:
        """A unit as claims name it."""
        if self.vectors is not None:
            return direction(self.site, self.vectors[name])
        site, bracket, number = name.partition("[")
        return Feature(site, int(number.rstrip("]"))) if bracket else feature_of(name)

    @cached_property
    def decoder(self) -> Float[Tensor, "unit d"] | None:
        """What 1 of each unit adds; None where that is no one direction."""
        return self.source.decoder()

    def spread_over_neurons(self, model: Model) -> Float[np.ndarray, " unit"] | None:
        """Over how many neurons of the MLP that writes last to where they are the units are spread (participation ratio); None
        for neurons, and for units that add no one direction there."""
        sites = [self.site] if self.dictionary is None else list(self.dictionary.spec.outputs)
        layer = _mlp_of(parse_site(sites[0])) if len(sites) == 1 else None
        if self.kind not in ("latent", "direction") or self.decoder is None or layer is None:
            return None
        try:
            return spread_over_neurons(self.decoder, neuron_outputs(model, layer)).numpy()
        except SiteError:  # a model without neurons that write through one matrix
            return None


def find_units(
    model: Model, *, dictionary: str | Dictionary | None = None, site: str | None = None, heads: str | None = None,
    directions: str | None = None, at: str | None = None, atlas: Path | None = None,
) -> MapUnits:  # fmt: skip
    """What a map is about; without any of these the dictionary of the residual stream that is shipped with the model.

    `directions`: a file of vectors, read `at` a site. Raises UsageError for several, or for none where nothing is shipped.
    """
    given = [name for name, value in (("dictionary", dictionary), ("site", site), ("heads", heads), ("directions", directions))
             if value is not None]  # fmt: skip
    if len(given) > 1:
        raise bad_argument(" and ".join(given), "several", "one of dictionary, site, heads and directions")
    if site is not None:
        return MapUnits(of_neurons(model, site), site)
    if heads is not None:
        at_heads = f"attn_out.{heads}" if heads.isdigit() else heads
        return MapUnits(of_heads(model, at_heads), at_heads)
    if directions is not None:
        return _directions(model, directions, at)
    found = dictionary if isinstance(dictionary, Dictionary) else find_dictionary(model.name, dictionary, atlas)
    open_latents(found)
    return MapUnits(of_dictionary(found), ",".join(found.spec.inputs), found)


def find_dictionary(model: str, name: str | None, atlas: Path | None = None) -> Dictionary:
    """A dictionary by name or path; without a name the one of the residual stream that is shipped with the model.

    Raises UsageError, with what there is, for neither.
    """
    there = shipped(model)
    if name is None:
        found = next((each for each in there if not each.spec.transcodes), None)
        if found is None:
            raise bad_argument("dictionary", "none", "a dictionary, --site, --heads or --directions",
                               f"No dictionary comes with {model}. Train one: assay dictionary train")  # fmt: skip
        return found
    if known := next((each for each in there if each.name == name), None):
        return known
    kept = None if atlas is None else atlas / "dictionaries" / name
    place = next((path for path in (Path(name), kept) if path is not None and path.exists()), None)
    if place is None:
        raise bad_argument("dictionary", name, f"a path, or one of {', '.join(each.name for each in there) or 'none shipped'}",
                           "See: assay dictionary list")  # fmt: skip
    from assay.features.formats import load_dictionary

    found = load_dictionary(place)
    keep_in_mind(found.digest, place)
    return found


def _directions(model: Model, path: str, at: str | None) -> MapUnits:
    if at is None:
        raise bad_argument("at", None, "the site at which directions are read", "Give --at resid_post.3.")
    source = of_directions(model, at, _vectors(Path(path)))
    ((found, rows),) = source.made
    return MapUnits(source, found, vectors=dict(zip(source.names, rows, strict=True)))


def _vectors(path: Path) -> Float[Tensor, "direction d"]:
    """Vectors of a file. Raises UsageError for one that holds none; as `assay.signing.check_signature`."""
    if path.is_file():
        check_signature(path)
    try:
        found: Any
        if path.suffix == ".npy":
            found = np.load(path, allow_pickle=False)
        else:
            from safetensors.numpy import load_file

            tensors = load_file(str(path))
            found = np.concatenate([np.atleast_2d(tensors[name]) for name in sorted(tensors)])
        rows = np.atleast_2d(found).astype(np.float32)
    except Exception as error:  # safetensors and numpy have errors of their own for files that are none
        raise UsageError(f"directions: {path} cannot be read ({error}); allowed: .npy or .safetensors of (n, d).") from error
    return torch.from_numpy(rows)


def _mlp_of(site: Site) -> int | None:
    """The layer whose MLP wrote last to a site of the residual stream, or writes it; None for others."""
    behind = {"resid_post": 0, "mlp_out": 0, "resid_pre": 1, "resid_mid": 1}
    layer = None if site.layer is None or site.name not in behind else site.layer - behind[site.name]
    return None if layer is None or layer < 0 else layer
