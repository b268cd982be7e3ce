"""What is explained: latents, neurons, heads, directions, all as values that are 0 where the unit is off.

    of_dictionary(dictionary)                 latents; 0 where they are inactive, at massive tokens and at first positions
    of_neurons(model, "mlp_act.3")            columns of a site; `sign=-1` looks at their negative side
    of_heads(model, "attn_out.3.*")           norm of what head H of layer L adds to the residual stream at a token
    of_directions(model, "resid_post.3", w)   projections on unit vectors, minus their mean over tokens

Latents say themselves when they are on. The others have a value everywhere: they count as on above the value that is
exceeded at a given share of the tokens of the part *shown* (1% if not said otherwise), and that value is kept. Only values
above 0 count, so a neuron that is hardly ever positive is on less often than that.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from assay.errors import ReproduceError, ShapeError, SiteError, bad_argument
from assay.features.codes import Codes
from assay.features.dictionary import Dictionary
from assay.features.opened import PREFIX, dictionary_at
from assay.model.model import Model, Sites
from assay.sites import Site

Values = Mapping[str, Float[Tensor, "token d"]]
KINDS = ("latent", "neuron", "head", "direction")


@runtime_checkable
class UnitSource(Protocol):
    """Something with units: their names, the sites they are read from, and their values."""

    @property
    def kind(self) -> str:
        """One of `KINDS`."""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """Of the units, in the order of columns."""
        ...

    @property
    def sites(self) -> tuple[str, ...]:
        """Canonical sites that are read."""
        ...

    @property
    def record(self) -> dict[str, Any]:
        """Everything that decides the values, as plain values."""
        ...

    def decoder(self) -> Float[Tensor, "unit d"] | None:
        """What each unit adds where it writes, None where there is no one direction."""
        ...


@dataclass(frozen=True, eq=False)
class Latents:
    """Latents of a dictionary, `only` some of them."""

    dictionary: Dictionary
    only: tuple[int, ...]
    kind: str = "latent"

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"latent.{self.dictionary.name}.{unit}" for unit in self.only)

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(self.dictionary.spec.inputs)

    @property
    def record(self) -> dict[str, Any]:
        above = self.dictionary.massive_above
        return {"kind": self.kind, "dictionary": self.dictionary.name, "digest": self.dictionary.digest,
                "width": self.dictionary.width, "units": len(self.only), "chosen": _digest(list(self.only)),
                **({"massive_above": above} if above else {})}  # fmt: skip

    def decoder(self) -> Float[Tensor, "unit d"]:
        return self.dictionary.directions()[list(self.only)].float().cpu()

    def codes(self, values: Values, positions: Tensor) -> tuple[Codes, Bool[Tensor, " token"]]:
        """Active latents of tokens, and which tokens the dictionary is for."""
        x = torch.cat([values[site] for site in self.sites], 1)
        return self.dictionary.codes(x, positions), self.dictionary.typical(x, positions).cpu()


@dataclass(frozen=True, eq=False)
class Columns:
    """Units with a value at every token: neurons, heads or directions.

    `made`: one (site, columns or vectors) for each site, in the order of names. `centred`: whether the mean over tokens is
    taken off.
    """

    kind: str
    names: tuple[str, ...]
    made: tuple[tuple[str, Any], ...]
    sign: int = 1
    centred: bool = False
    written: Float[Tensor, "unit d"] | None = None

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(site for site, _ in self.made))

    @property
    def record(self) -> dict[str, Any]:
        parts = [(site, _digest(what)) for site, what in self.made]
        return {"kind": self.kind, "units": len(self.names), "sites": list(self.sites), "sign": self.sign,
                "centred": self.centred, "chosen": _digest([list(self.names), parts])}  # fmt: skip

    def decoder(self) -> Float[Tensor, "unit d"] | None:
        return self.written

    def dense(self, values: Values) -> Float[Tensor, "token unit"]:
        """Their values, the sign applied, nothing else."""
        return self.sign * torch.cat([self._of(values[site], what) for site, what in self.made], 1)

    def _of(self, x: Tensor, what: Any) -> Float[Tensor, "token some"]:
        if self.kind == "head":
            return x.norm(dim=1, keepdim=True)
        return x[:, what] if self.kind == "neuron" else x @ what.T.to(x)


def of_dictionary(dictionary: Dictionary, only: Sequence[int] | None = None) -> Latents:
    """Latents of a dictionary, all or some. Raises UsageError where it does not say what it reads."""
    if not dictionary.spec.inputs:
        raise bad_argument("dictionary", f"{dictionary.name}, whose file names no input site", "one that says what it reads",
                           "Set spec.inputs when it is loaded.")  # fmt: skip
    return Latents(dictionary, _chosen(only, dictionary.width))


def of_neurons(model: Model, site: Sites, only: Sequence[int] | None = None, sign: int = 1) -> Columns:
    """Columns of one site (`mlp_act.L`; `resid_post.L` has columns too), all or some, or of several sites whole.

    Raises SiteError for a site without one axis per token, UsageError for a column it does not have.
    """
    if sign not in (1, -1):
        raise bad_argument("sign", sign, "1 or -1")
    names, made = [], []
    for found in _by_site(model, site):
        whole, given = found
        shape = model.feature_shape(whole)
        if shape is None or len(shape) != 1:
            raise SiteError(f"site {whole}: units of sites with one axis per token are read, e.g. mlp_act.3.")
        chosen = list(_chosen(given or only, shape[0]))
        names += [f"{whole}.{unit}" if whole.name == "mlp_act" else f"{whole}[{unit}]" for unit in chosen]
        made.append((str(whole), chosen))
    return Columns("neuron", tuple(names), tuple(made), sign, written=_written(model, made))


def of_heads(model: Model, sites: Sites) -> Columns:
    """Heads, as `attn_out.3.1` or `attn_out.3.*` (`z.3.1` and a whole layer `attn_out.3` mean the same heads).

    The value is the norm of what the head adds to the residual stream at a token. Raises SiteError for other sites.
    """
    heads: list[Site] = []
    for site in model.sites(sites):
        if site.name not in ("attn_out", "z"):
            raise SiteError(f"site {site}: heads are attn_out.LAYER.HEAD, e.g. attn_out.3.1 or attn_out.3.*")
        numbers = range(model.n_heads) if site.index is None else (site.index,)
        heads += model.sites([Site("attn_out", site.layer, number) for number in numbers])
    names = tuple(dict.fromkeys(map(str, heads)))
    return Columns("head", names, tuple((name, None) for name in names))


def of_directions(
    model: Model, site: str | Site, vectors: Float[Tensor, "direction d"], names: Sequence[str] | None = None
) -> Columns:
    """Unit vectors at a site; a unit's value is the projection minus its mean over tokens. Vectors of any length are scaled
    to norm 1. Raises ShapeError for another width, UsageError for a vector of zeros or names that are not one for each."""
    (found,) = model.sites(site)
    shape = model.feature_shape(found)
    rows = torch.as_tensor(vectors).detach().float().cpu()
    size = None if shape is None else int(torch.Size(shape).numel())
    if rows.dim() != 2 or not len(rows) or (size is not None and rows.shape[1] != size):
        raise ShapeError(f"vectors: got shape {tuple(rows.shape)}; allowed: (1 or more, {size or 'd'}) at {found}.")
    norms = rows.norm(dim=1, keepdim=True)
    if not bool(torch.isfinite(rows).all()) or not bool((norms > 0).all()):
        raise bad_argument("vectors", "one that is zero or not finite", "finite vectors with a length")
    made = [f"{found}.direction.{number}" for number in range(len(rows))] if names is None else [str(name) for name in names]
    if len(made) != len(rows) or len(set(made)) != len(made):
        raise bad_argument("names", made[:8], f"{len(rows)} different ones")
    unit = rows / norms
    return Columns("direction", tuple(made), ((str(found), unit),), centred=True, written=unit)


def units_again(
    model: Model, record: Mapping[str, Any], names: Sequence[str], vectors: Float[Tensor, "direction d"] | None = None
) -> UnitSource:  # fmt: skip
    """The units that a record is of, by their names. `vectors`: of directions, of norm 1.

    Raises ReproduceError where they are not those units, SiteError for latents of a dictionary that is not open.
    """
    made: UnitSource
    if record["kind"] == "latent":
        made = of_dictionary(dictionary_at(PREFIX + record["dictionary"]), [_place(name)[1] for name in names])
    elif record["kind"] == "head":
        made = of_heads(model, list(names))
    elif record["kind"] == "neuron":
        made = _neurons_again(model, names, record["sign"])
    elif vectors is not None:
        made = Columns("direction", tuple(names), ((record["sites"][0], vectors),), centred=True, written=vectors)
    else:
        raise ReproduceError(f"directions at {record['sites'][0]}: their vectors are not kept. Map them again: assay map MODEL")
    if made.record != record:
        raise ReproduceError(f"{names[0]} and {len(names) - 1} others: the units of this model, and of what is open here, are"
                             " not those that were read. Give what they were read with, or map again.")  # fmt: skip
    return made


def _neurons_again(model: Model, names: Sequence[str], sign: int) -> Columns:
    by_site: dict[str, list[int]] = {}
    for site, number in map(_place, names):
        by_site.setdefault(site, []).append(number)
    parts = [of_neurons(model, site, numbers, sign) for site, numbers in by_site.items()]
    return parts[0] if len(parts) == 1 else Columns("neuron", tuple(names), tuple(part.made[0] for part in parts), sign)


def _place(name: str) -> tuple[str, int]:
    """(site, number) of mlp_act.3.17, resid_post.3[17] or latent.NAME.17."""
    site, _, number = name.rstrip("]").replace("[", ".").rpartition(".")
    return site, int(number)


def nearest(
    decoder: Float[Tensor, "unit d"], k: int, rows: int = 2048
) -> tuple[Int[np.ndarray, "unit k"], Float[np.ndarray, "unit k"]]:  # fmt: skip
    """The k units with the largest cosine to each, itself left out, largest first; -1 and 0 where there are fewer.

    Made `rows` units at a time. A row of zeros is near nothing.
    """
    norms = decoder.norm(dim=1, keepdim=True)
    unit = decoder / norms.clamp_min(1e-12)
    n, kept = len(unit), min(k, len(unit) - 1)
    found, cosines = np.full((n, k), -1, np.int64), np.zeros((n, k), np.float32)
    for start in range(0, n, rows):
        part = unit[start : start + rows] @ unit.T
        part[torch.arange(len(part)), torch.arange(start, start + len(part))] = -torch.inf
        best = part.topk(kept, dim=1)
        found[start : start + rows, :kept], cosines[start : start + rows, :kept] = best.indices.numpy(), best.values.numpy()
    return found, cosines


def _by_site(model: Model, site: Sites) -> list[tuple[Site, list[int] | None]]:
    """Whole sites with the columns that addresses name (`mlp_act.3.7,mlp_act.3.9`), None where the whole site is meant."""
    found: dict[Site, list[int] | None] = {}
    for one in model.sites(site):
        if one.index is None:
            found[one] = None
        elif found.setdefault(one.whole, []) is not None:
            found[one.whole].append(one.index)  # type: ignore[union-attr]
    return list(found.items())


def _written(model: Model, made: Sequence[tuple[str, list[int]]]) -> Tensor | None:
    """What neurons add to the MLP's output: columns of the down-projection, where that is one matrix."""
    modules, rows, dims = dict(model.hf.named_modules()), [], model.dims
    for name, chosen in made:
        (site,) = model.sites(name)
        point = model.layout.points.get(site)
        module = None if point is None or site.name != "mlp_act" else modules.get(getattr(point, "path", ""))
        weight = getattr(module, "weight", None)
        if weight is None or sorted(weight.shape) != sorted((dims.d_mlp, dims.d_model)) or dims.d_mlp == dims.d_model:
            return None
        table = weight.detach().float().cpu()
        rows.append((table.T if table.shape[1] == dims.d_mlp else table)[chosen])
    return torch.cat(rows)


def _chosen(only: Sequence[int] | None, width: int) -> tuple[int, ...]:
    chosen = tuple(range(width)) if only is None else tuple(dict.fromkeys(int(unit) for unit in only))
    if not chosen or not all(0 <= unit < width for unit in chosen):
        raise bad_argument("units", list(chosen)[:8], f"numbers from 0 to {width - 1}")
    return chosen


def _digest(what: Any) -> str:
    content = what.numpy().tobytes() if isinstance(what, Tensor) else repr(what).encode()
    return hashlib.sha256(content).hexdigest()
