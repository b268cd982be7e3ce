"""One site changed in many ways, many changes to a pass; and what changes of equal size are made of.

1. A *variant* maps the activations of a site to changed ones. Prompts are repeated once per variant, the
   changed activations are patched in row by row, and passes resume at the site's layer: the site itself never
   depends on what is done to it, so it is captured once.
2. Chunks of prompts, and of variants within them, keep memory bounded.
3. Controls are drawn from three pools: isotropic, from the covariance of tune activations, and single units of
   the site. A unit that lies in the claimed subspace is the claim itself and is left out.
4. Controls are matched by size: equal norm for directions that are added, equal mean squared change on tune
   (energy) for subspaces that are erased.

An effect of a change shows what the model does under it. It does not show that the changed activations are
ones the model could have had by itself.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from assay.data.metrics import Metric
from assay.errors import bad_argument
from assay.model.activations import Activations
from assay.model.edits import patch
from assay.model.model import Model
from assay.model.request import Checkpoint
from assay.sites import Site, parse_site

CHUNK_FLOATS = 1 << 24
TUNE_TOKENS = 4096
SAME = 0.9  # share of a unit that lies in the claimed subspace from which on it counts as the claim itself
Variant = Callable[[Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class Place:
    """A whole site, and at which positions of it things are changed: all or last."""

    site: Site
    positions: str

    @property
    def layer(self) -> int:
        return self.site.layer or 0


def place_of(model: Model, site: str, positions: str) -> Place:
    """A site whose activations are vectors. Raises UsageError for any other."""
    (found,) = model.sites(parse_site(site))
    if len(model.feature_shape(found) or ()) != 1:
        raise bad_argument("site", site, "a site with one vector per position, such as resid_post.3, mlp_out.3, mlp_act.3")
    return Place(found, positions)


def width(model: Model, site: Site) -> int:
    """Numbers per position at a site."""
    return (model.feature_shape(site) or (0,))[0]


# running -----------------------------------------------------------------------------------------


def run_variants(
    model: Model,
    prompts: Sequence[list[int]],
    metric: Metric,
    place: Place,
    variants: Sequence[Variant],
    others: Sequence[list[int]] | None = None,
) -> Float[Tensor, "variant prompt"]:
    """The metric of every prompt under every variant. `others`: aligned prompts whose activations variants see too."""
    out = torch.empty(len(variants), len(prompts))
    n_width = width(model, place.site)
    for rows in chunks([len(ids) for ids in prompts], 3 * n_width):
        here = [prompts[row] for row in rows]
        captured, resume = capture_resumable(model, here, [place.site])
        acts = captured[place.site]
        seen = None if others is None else model.capture([others[row] for row in rows], place.site)[place.site]
        for group in chunks([acts.shape[1]] * len(variants), len(rows) * n_width):
            values = torch.cat([variants[number](acts, seen) for number in group])
            tiled = list(range(len(rows))) * len(group)
            edit = patched_in(place, values, [len(here[row]) for row in tiled])
            scores = model.score([here[row] for row in tiled], metric.select([rows[row] for row in tiled]), edits=[edit],
                                 resume=None if resume is None else resume.select(tiled))  # fmt: skip
            out[torch.tensor(group)[:, None], torch.tensor(rows)[None]] = scores.view(len(group), len(rows))
    return out


def capture_resumable(model: Model, prompts: list[list[int]], sites: Sequence[Site]) -> tuple[Activations, Checkpoint | None]:
    """Activations of sites, and what passes resume from that change nothing before the first of them; from one pass."""
    layer = min(min(site.layer or 0 for site in sites), model.n_layers - 1)
    if layer == 0:
        return model.capture(prompts, list(sites)), None
    acts = model.capture(prompts, list(dict.fromkeys([*sites, Site("resid_pre", layer)])))
    return acts, Checkpoint((layer,), acts, tuple(range(len(prompts))), prompts)


def patched_in(place: Place, values: Tensor, lengths: Sequence[int]) -> Any:
    """An edit that writes values (row, pos, d) at the positions of a place."""
    if place.positions == "last":
        return patch(place.site, values[torch.arange(len(values)), torch.tensor(lengths) - 1], "last")
    return patch(place.site, values)


def chunks(lengths: Sequence[int], floats: int) -> Iterator[list[int]]:
    """Numbers in order, as many at a time as the memory bound allows; `floats` per token."""
    chunk: list[int] = []
    longest = 0
    for row, length in enumerate(lengths):
        longest = max(longest, length)
        if chunk and (len(chunk) + 1) * longest * floats > CHUNK_FLOATS:
            yield chunk
            chunk, longest = [], length
        chunk.append(row)
    if chunk:
        yield chunk


def unchanged(acts: Tensor, other: Tensor | None) -> Tensor:
    """The variant that changes nothing: whatever it moves is the instrument's own."""
    return acts


def swapped(acts: Tensor, other: Tensor | None) -> Tensor:
    """The variant that puts the other prompt's whole activation in."""
    assert other is not None
    return other


# means and erasure -------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Centre:
    """Mean activation at the first position, where attention sinks are, and at all later ones."""

    first: Float[Tensor, " d"]
    later: Float[Tensor, " d"]

    def at(self, positions: int) -> Float[Tensor, "pos d"]:
        """One mean per position."""
        return torch.stack([self.first, *[self.later] * (positions - 1)])


def tune_tokens(model: Model, prompts: Sequence[list[int]], place: Place) -> tuple[Centre, Float[Tensor, "token d"]]:
    """Means over prompts, and the centred activations (at most `TUNE_TOKENS`, evenly spread) at the place's positions."""
    parts: list[Tensor] = []
    for rows in chunks([len(ids) for ids in prompts], width(model, place.site)):
        parts.extend(model.capture([prompts[row] for row in rows], place.site).rows(place.site))
    first = torch.stack([part[0] for part in parts]).float().mean(0)
    rest = [part[1:] for part in parts if len(part) > 1]
    later = torch.cat(rest).float().mean(0) if rest else first
    if place.positions == "last":
        later = torch.stack([part[-1] for part in parts]).float().mean(0)
    centre = Centre(first, later)
    centred = torch.cat([(part - centre.at(len(part))).float()[-1 if place.positions == "last" else 0 :] for part in parts])
    step = -(-len(centred) // TUNE_TOKENS)
    return centre, centred[::step]


def orthonormal(vectors: Sequence[Tensor]) -> Float[Tensor, "rank d"]:
    """An orthonormal basis of what some vectors span. Raises UsageError where they depend on each other."""
    stacked = torch.stack([vector.double() for vector in vectors])
    if int(torch.linalg.matrix_rank(stacked)) < len(stacked):
        raise bad_argument("feature", f"{len(stacked)} directions that depend on each other", "independent directions")
    return torch.linalg.qr(stacked.T).Q.T.float().contiguous()


def erasure(basis: Float[Tensor, "rank d"], centre: Centre, gain: float = 1.0, last: bool = False) -> Variant:
    """Mean projection: the component in a subspace is set to its mean. `gain`: times that change."""

    def variant(acts: Tensor, other: Tensor | None) -> Tensor:
        means = centre.later[None] if last else centre.at(acts.shape[1])
        return acts - gain * ((acts - means.to(acts)) @ basis.T.to(acts)) @ basis.to(acts)

    return variant


def interchange(basis: Float[Tensor, "rank d"]) -> Variant:
    """The component in a subspace is set to its value in the other prompt."""

    def variant(acts: Tensor, other: Tensor | None) -> Tensor:
        assert other is not None
        return acts - ((acts - other) @ basis.T.to(acts)) @ basis.to(acts)

    return variant


def pushed(vector: Float[Tensor, " d"]) -> Variant:
    """A vector is added at every position."""
    return lambda acts, other: acts + vector.to(acts)


def energy(basis: Float[Tensor, "rank d"], centred: Float[Tensor, "token d"]) -> float:
    """Mean squared change when a subspace is set to its mean."""
    return float((centred @ basis.T).square().sum(1).mean())


# controls ----------------------------------------------------------------------------------------


def random_subspaces(
    centred: Float[Tensor, "token d"], claimed: Float[Tensor, "rank d"], draws: int, seed: int
) -> dict[str, Float[Tensor, "rank d"]]:
    """Orthonormal bases of the claim's rank from three pools, `draws` each while the units last."""
    rng, (rank, d) = np.random.default_rng(seed), claimed.shape
    data = centred.double().numpy()
    inside = (claimed.double() ** 2).sum(0).numpy()
    alive = rng.permutation(np.flatnonzero((data.std(0) > 0) & (inside < SAME)))
    found: dict[str, Tensor] = {}
    for number in range(draws):
        found[f"isotropic.{number:02d}"] = _basis(rng.standard_normal((rank, d)))
        mixed = rng.standard_normal((rank, len(data))) @ data
        if np.linalg.matrix_rank(mixed) == rank:
            found[f"covariance.{number:02d}"] = _basis(mixed)
        if len(units := alive[number * rank : (number + 1) * rank]) == rank:
            found[f"unit.{number:02d}"] = _basis(np.eye(d)[units])
    return found


def _basis(rows: np.ndarray) -> Tensor:
    """Orthonormal rows of the same span; one vector keeps its sign."""
    basis = np.linalg.qr(rows.T)[0].T
    return torch.tensor(basis * np.sign((basis * rows).sum(1, keepdims=True)), dtype=torch.float32)


def matched_gains(
    controls: Mapping[str, Tensor], claimed: Float[Tensor, "rank d"], centred: Float[Tensor, "token d"]
) -> dict[str, float]:
    """Per control, the factor that gives its erasure the energy of the claimed one; controls without any are left out."""
    target = energy(claimed, centred)
    floor = 1e-12 * float(centred.square().sum(1).mean())
    sizes = {name: energy(basis, centred) for name, basis in controls.items()}
    return {name: (target / size) ** 0.5 for name, size in sizes.items() if size > floor}
