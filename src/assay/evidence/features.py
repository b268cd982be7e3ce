"""A feature: one number per example, read off a site.

Either one unit of a site (`mlp_act.3.17`, a head's norm is none), or a direction at a site: the projection
of the activation on a unit vector. A direction is named after its site and the hash of its numbers
(`resid_post.3#1f0c9a7b`), so that two claims about it meet in the ledger.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from assay.errors import ReproduceError, ShapeError, SiteError, bad_argument
from assay.features.opened import dictionary_at, is_latent
from assay.records import digest
from assay.sites import Site, parse_site

UNIT = 1e-6  # how far from 1 the norm of a direction may be by rounding


@dataclass(frozen=True)
class Feature:
    """A unit (`index`) or a direction (`vector`, unit norm) of a whole site."""

    site: str
    index: int | None = None
    vector: tuple[float, ...] | None = None

    @property
    def name(self) -> str:
        """`site.index`, or `site#hash` for a direction."""
        return f"{self.site}.{self.index}" if self.vector is None else f"{self.site}#{digest(list(self.vector))[:8]}"

    def direction(self, width: int) -> Float[Tensor, " d"]:
        """The unit vector (d,) it is read along. Raises ShapeError when it does not fit the site."""
        if self.vector is not None:
            if len(self.vector) != width:
                raise ShapeError(f"direction at {self.site}: got {len(self.vector)} numbers; allowed: {width}.")
            return torch.tensor(self.vector)
        out = torch.zeros(width)
        if self.index is None or not 0 <= self.index < width:
            raise ShapeError(f"{self.site}: got unit {self.index}; allowed: 0 to {width - 1}.")
        out[self.index] = 1.0
        return out

    def record(self) -> dict[str, Any]:
        """Plain data, as a claim's subject keeps it."""
        return {"site": self.site, "index": self.index, "vector": None if self.vector is None else list(self.vector)}


def direction(site: str, vector: Sequence[float] | Tensor) -> Feature:
    """A direction at a whole site, scaled to unit norm. Raises UsageError for zeros or non-finite numbers."""
    numbers = [float(value) for value in vector]
    norm = math.sqrt(math.fsum(value * value for value in numbers))
    if not math.isfinite(norm) or norm == 0.0:
        raise bad_argument("direction", f"norm {norm}", "finite numbers that are not all zero")
    return Feature(_whole(site), vector=tuple(value / norm for value in numbers))


def feature_of(given: Any) -> Feature:
    """A feature from `Feature`, `mlp_act.3.17`, or the record of one. Raises SiteError or UsageError."""
    if isinstance(given, Feature):
        return _checked(given)
    if isinstance(given, Mapping):
        if "site" not in given or not set(given) <= {"site", "index", "vector"}:
            raise bad_argument("feature", ", ".join(map(str, given)), "site, with index or vector")
        vector = given.get("vector")
        return _checked(Feature(given["site"], given.get("index"), None if vector is None else tuple(vector)))
    if isinstance(given, str | Site):
        site = parse_site(str(given))
        path, _, channel = (site.path or "").rpartition(".")
        if site.name == "block" and path and channel.isdecimal():
            return Feature(f"block.{path}", int(channel))
        if site.index is None:
            raise SiteError(f"feature: got {site}; allowed: one unit, such as {site}.0, or a direction at a site.")
        return Feature(str(site.whole), site.index)
    if isinstance(given, Sequence) and len(given) == 1:
        return feature_of(given[0])
    raise bad_argument("feature", given, "one unit such as mlp_act.3.17, or a Feature")


def dictionary_record(feature: Feature) -> dict[str, Any]:
    """What a claim about a latent keeps of its dictionary, under "dictionary"; nothing for other features."""
    if not is_latent(feature.site):
        return {}
    found = dictionary_at(feature.site)
    inputs = list(found.spec.inputs)
    return {"dictionary": {"name": found.name, "digest": found.digest, "width": found.width, "inputs": inputs}}


def check_dictionary(subject: Mapping[str, Any]) -> None:
    """Raises ReproduceError when another dictionary is open under the name that a claim is about."""
    stated = subject.get("dictionary")
    if stated is not None and (got := dictionary_at(subject["feature"]["site"]).digest) != stated["digest"]:
        raise ReproduceError(f"the claim is about the dictionary {stated['name']} with digest {stated['digest'][:12]};"
                             f" the open one has {got[:12]}. Open the one that was claimed about.")  # fmt: skip


def _checked(feature: Feature) -> Feature:
    """One unit or one direction of unit norm: what is added or compared with controls must be as large as it says."""
    if (feature.index is None) == (feature.vector is None):
        raise bad_argument("feature", feature.site, "a unit or a direction at a site, one of them")
    if feature.vector is None or abs(math.sqrt(math.fsum(x * x for x in feature.vector)) - 1) < UNIT:
        return feature
    return direction(feature.site, feature.vector)


def _whole(site: str) -> str:
    parsed = parse_site(site)
    if parsed.index is not None:
        raise bad_argument("site", site, "a whole site, without a unit", f"Did you mean {parsed.whole}?")
    return str(parsed)
