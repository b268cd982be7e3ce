"""Which features of a model fire where: the units of its sites, and the latents of open dictionaries.

1. A feature fires where its value is above a threshold: a quantile of its own values on held-out texts, or one fixed number.
   Most latents are 0 nearly everywhere, so that their quantile is 0 and they fire wherever they are active.
2. A unit is switched off by giving it its median wherever it fires. A latent of value a: its decoder row times (median - a) is
   added where its dictionary writes (times the token's scale where inputs are normalised), so that what the dictionary does
   not explain stays. Its median is mostly 0.
3. One feature is computed before another if it writes before the other reads: a site as a whole does both at once; latents read
   the inputs of their dictionary and write its output, which must then be one site.

Tokens a dictionary is not for (first and massive ones) have no active latents.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Float
from torch import Tensor

from assay.errors import SiteError, TaskError, bad_argument
from assay.features.opened import dictionary_at, is_latent, read_latents, scales, sources_of
from assay.model.activations import Activations
from assay.model.edits import Edit, add, patch
from assay.model.model import Model, Sites
from assay.sites import Site, parse_site

Texts = Sequence[Sequence[int]]


@runtime_checkable
class Firing(Protocol):
    """Says which features fire where."""

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the columns."""
        ...

    def __call__(self, texts: Texts) -> sp.csr_array:
        """Bool (token, feature), all tokens of the first text, then those of the next."""
        ...


@dataclass(frozen=True, eq=False)
class Levels:
    """Per feature of a site, from held-out texts: where it fires from, its off value (median), spread and firing rate."""

    threshold: Float[Tensor, " feature"]
    off: Float[Tensor, " feature"]
    spread: Float[Tensor, " feature"]
    rate: Float[Tensor, " feature"]


@dataclass(frozen=True, eq=False)
class SiteFiring:
    """The features of some sites, every unit or latent one. Made by `site_firing`."""

    model: Model
    levels: Mapping[Site, Levels]

    @property
    def features(self) -> tuple[str, ...]:
        return tuple(unit_name(site, unit) for site, found in self.levels.items() for unit in range(len(found.off)))

    def place(self, feature: int) -> tuple[Site, int]:
        """Site and unit of a column."""
        for site, found in self.levels.items():
            if feature < len(found.off):
                return site, feature
            feature -= len(found.off)
        raise bad_argument("feature", feature, "a column of the firing matrix")

    def __call__(self, texts: Texts) -> sp.csr_array:
        acts = self.model.capture([list(ids) for ids in texts], reads(self.levels))
        parts = [sp.csr_array((values_of(acts, site) > found.threshold).numpy()) for site, found in self.levels.items()]
        return sp.csr_array(sp.hstack(parts, format="csr"))

    def before(self, a: Site, b: Site) -> bool:
        """Whether features of a are written before those of b are read."""
        points = self.model.layout.points
        return len(writes(a)) == 1 and points[writes(a)[0]].order < min(points[site].order for site in reads([b]))


def unit_name(site: Site, unit: int) -> str:
    """`mlp_act.3.17`, `latent.NAME.17`, or `resid_post.3[17]` where the grammar has no units."""
    return f"{site}.{unit}" if site.name in ("mlp_act", "latent") else f"{site}[{unit}]"


def site_firing(
    model: Model, sites: Sites, held_out: Texts, quantile: float = 0.95, threshold: float | None = None, skip: int = 1
) -> SiteFiring:
    """The features of sites (`mlp_act.3`, or `latent.NAME` of an open dictionary) in the order they are computed, firing above
    their `quantile` on held-out texts or a fixed number."""
    if not 0 < quantile < 1:
        raise bad_argument("quantile", quantile, "above 0, below 1")
    points = model.layout.points
    ordered = sorted(_asked(model, sites), key=lambda site: (max(points[each].order for each in reads([site])), str(site)))
    if not any(len(ids) > skip for ids in held_out):
        raise TaskError(f"no held-out text has more than the {skip} tokens left out: thresholds need texts of their own.")
    acts = model.capture([list(ids) for ids in held_out], reads(ordered))
    kept = torch.cat([torch.arange(length) >= skip for length in acts.lengths])
    return SiteFiring(model, {site: _levels(values_of(acts, site)[kept], quantile, threshold) for site in ordered})


def _asked(model: Model, sites: Sites) -> list[Site]:
    """Whole sites of units, and of latents. Raises SiteError for others, and for dictionaries of another model."""
    items = [sites] if isinstance(sites, str | Site) else list(sites)
    names = [name.strip() for item in items for name in str(item).split(",")]
    latents = [parse_site(name) for name in names if is_latent(name)]
    units = [name for name in names if not is_latent(name)]
    found = [*(model.sites(units) if units else []), *latents]
    for site in found:
        heads = site.name in ("q", "k", "v", "z", "pattern")
        if site.index is not None or heads or (site not in model.layout.points and site.name != "latent"):
            raise SiteError(f"site {site}: units of whole sites with one axis are counted, e.g. mlp_act.3, resid_post.3 or"
                            " latent.NAME.")  # fmt: skip
        model.sites(reads([site]))
    return list(dict.fromkeys(found))


def _levels(values: Float[Tensor, "token feature"], quantile: float, threshold: float | None) -> Levels:
    found = np.quantile(values.numpy(), quantile, axis=0).astype(np.float32)
    bars = torch.from_numpy(found) if threshold is None else torch.full((values.shape[1],), float(threshold))
    rate = (values > bars).float().mean(0)
    return Levels(bars, values.median(0).values, values.std(0, correction=0), rate)


# where features read and write -------------------------------------------------------------------


def reads(sites: Iterable[Site]) -> list[Site]:
    """The sites of the model that features of these sites are computed from."""
    return list(dict.fromkeys(parse_site(source) for site in sites for source in sources_of(str(site))))


def writes(site: Site) -> list[Site]:
    """The sites at which a feature of this site can be changed."""
    if site.name != "latent":
        return [site]
    spec = dictionary_at(str(site)).spec
    return [parse_site(target) for target in spec.outputs or spec.inputs]


@torch.no_grad()
def values_of(acts: Activations, site: Site) -> Float[Tensor, "token feature"]:
    """Features of a site at all tokens, texts one after the other."""
    if site.name != "latent":
        return acts.flat(site).float()
    return read_latents(str(site), acts.flat, torch.cat([torch.arange(length) for length in acts.lengths])).float()


def padded(values: Tensor, lengths: Sequence[int]) -> Tensor:
    """(token, ..) -> (text, pos, ..), zeros after the end of shorter texts."""
    return torch.nn.utils.rnn.pad_sequence(list(values.split(list(lengths))), batch_first=True)


def switched(model: Model, acts: Activations, site: Site, unit: int, change: Float[Tensor, " token"]) -> Edit:
    """The edit that adds this change to one feature."""
    (target,) = writes(site)
    values = acts.flat(target)
    if site.name == "latent":
        row = dictionary_at(str(site)).directions()[unit].detach()
        added = (change[:, None] * scales(str(site), acts.flat) * row).view(-1, *(model.feature_shape(target) or row.shape))
        return add(target, padded(added.to(values), acts.lengths))
    values = values.clone()
    values[:, unit] += change.to(values)
    return patch(target, padded(values, acts.lengths))
