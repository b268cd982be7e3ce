"""Where units fire most, and a fair sample of where they fire: one pass over a corpus, memory that does not grow with it.

1. A unit is a neuron (a column of a site) or a latent of a dictionary. Its firings are its tokens: of a latent those at
   which it is active, of a neuron all, with the sign that was asked for. The first positions of every row are left out.
2. Top: per unit the n documents in which it is largest, each by its largest token. One context per document: tokens of one
   document are no independent observations.
3. Sample: each firing gets a random number, drawn for its row, and the n largest are kept, again one per document. Sorted by
   value they are a uniform sample over the quantiles of the unit's activation, whatever its distribution.
4. Each context keeps the token ids around it (a window), its value, document and position.

Memory: units x (top + sample) x window numbers. The same rows give the same contexts, however they are batched.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int

from assay.errors import SiteError, bad_argument
from assay.features.dictionary import Dictionary
from assay.model.model import Model
from assay.sites import Site

BATCH = 4096  # tokens
EMPTY = -1
Row = tuple[Sequence[int], Any]
Array = np.ndarray
Report = Callable[[int], Any]


@dataclass(frozen=True, eq=False)
class Firings:
    """Firings of one row: which unit (its column), at which position, how much."""

    units: Int[Array, " firing"]
    positions: Int[Array, " firing"]
    values: Float[Array, " firing"]


@runtime_checkable
class Units(Protocol):
    """Something with a value per token and unit."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns."""
        ...

    def firings(self, rows: Sequence[Sequence[int]]) -> Iterator[Firings]:
        """Firings of every row, in order; positions count from its start."""
        ...


# what has units -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class SiteUnits:
    """Columns of a site, `only` some of them; `sign` -1 looks where they are most negative."""

    model: Model
    site: Site
    only: tuple[int, ...]
    sign: int = 1
    first: int = 1

    @property
    def names(self) -> tuple[str, ...]:
        dot = self.site.name == "mlp_act"
        return tuple(f"{self.site}.{unit}" if dot else f"{self.site}[{unit}]" for unit in self.only)

    def firings(self, rows: Sequence[Sequence[int]]) -> Iterator[Firings]:
        acts = self.model.capture([list(ids) for ids in rows], self.site)
        for part in acts.flat(self.site).split(acts.lengths):
            values = self.sign * part[self.first :, list(self.only)].float().numpy()
            n, width = values.shape
            yield Firings(np.tile(np.arange(width), n), np.repeat(np.arange(n) + self.first, width), values.reshape(-1))


@dataclass(frozen=True, eq=False)
class LatentUnits:
    """Latents of a dictionary, `only` some of them. Tokens that it is not for are left out."""

    model: Model
    dictionary: Dictionary
    sites: tuple[Site, ...]
    only: tuple[int, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"latent.{self.dictionary.name}.{unit}" for unit in self.only)

    def firings(self, rows: Sequence[Sequence[int]]) -> Iterator[Firings]:
        above = {self.model.sites(site)[0]: limit for site, limit in self.dictionary.massive_above.items()}
        acts = self.model.capture([list(ids) for ids in rows], list(dict.fromkeys([*self.sites, *above])))
        x = torch.cat([acts.flat(site).flatten(1).float() for site in self.sites], 1)
        positions = torch.cat([torch.arange(length) for length in acts.lengths])
        keep = self.dictionary.typical(x, positions)
        for site, limit in above.items():
            keep = keep & (acts.flat(site).flatten(1).float().norm(dim=1) <= limit)
        codes = self.dictionary.codes(x, positions)
        column = np.full(self.dictionary.width, EMPTY)
        column[list(self.only)] = np.arange(len(self.only))
        tokens, units = codes.pairs.tokens.numpy(), column[codes.latents.numpy()]
        wanted = (units != EMPTY) & keep.numpy()[tokens]
        tokens, units, values = tokens[wanted], units[wanted], codes.values.float().numpy()[wanted]
        ends = np.cumsum(acts.lengths)
        for start, end in zip(ends - np.array(acts.lengths), ends, strict=True):
            inside = slice(*np.searchsorted(tokens, [start, end]))
            yield Firings(units[inside], tokens[inside] - start, values[inside])


def site_units(model: Model, site: str, only: Sequence[int] | None = None, sign: int = 1, first: int = 1) -> SiteUnits:
    """Units of a site with one axis per token, all or `only` some. Raises SiteError or UsageError."""
    found, *others = model.sites(site)
    if others:
        raise bad_argument("site", site, f"one site, e.g. {found}", f"It names {1 + len(others)}.")
    shape = model.feature_shape(found)
    if found.index is not None or shape is None or len(shape) != 1:
        raise SiteError(f"site {found}: units of whole sites with one axis are read, e.g. mlp_act.3 or resid_post.3.")
    if sign not in (1, -1):
        raise bad_argument("sign", sign, "1 or -1")
    return SiteUnits(model, found, _chosen(only, shape[0], str(found)), sign, first)


def latent_units(model: Model, dictionary: Dictionary, only: Sequence[int] | None = None) -> LatentUnits:
    """Latents of a dictionary whose spec names its input sites, all or `only` some. Raises UsageError, also for a dictionary
    of another width than these sites have here, or SiteError."""
    if not dictionary.spec.inputs:
        raise bad_argument("dictionary", f"{dictionary.name}, whose file names no input site", "one that says what it reads",
                           "Set spec.inputs when it is loaded.")  # fmt: skip
    sites = tuple(model.sites(list(dictionary.spec.inputs)))
    shapes = [model.feature_shape(site) for site in sites]
    if None not in shapes and (width := sum(math.prod(shape or ()) for shape in shapes)) != dictionary.spec.d_in:
        raise bad_argument("dictionary", f"{dictionary.name}, for {dictionary.spec.d_in} features",
                           f"one for {width}, what {', '.join(map(str, sites))} of {model.name} has")  # fmt: skip
    return LatentUnits(model, dictionary, sites, _chosen(only, dictionary.width, f"latents of {dictionary.name}"))


def _chosen(only: Sequence[int] | None, width: int, what: str) -> tuple[int, ...]:
    chosen = tuple(range(width)) if only is None else tuple(dict.fromkeys(only))
    if not chosen or not all(0 <= unit < width for unit in chosen):
        raise bad_argument("units", list(chosen)[:8], f"numbers from 0 to {width - 1}: {what}")
    return chosen


# what is kept -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Context:
    """One firing: value, the token ids around it, which of them fired, and where it was."""

    value: float
    tokens: tuple[int, ...]
    at: int
    document: Any
    position: int


@dataclass(frozen=True, eq=False)
class UnitContexts:
    """Of one unit. `top` largest first; `sample` by value, largest first; `fired`: tokens at which it was above 0."""

    name: str
    fired: int
    largest: float
    top: tuple[Context, ...]
    sample: tuple[Context, ...]

    def bands(self, n: int) -> tuple[tuple[Context, ...], ...]:
        """The sample in n bands of equal counts, the largest values first."""
        cuts = np.linspace(0, len(self.sample), n + 1).round().astype(int).tolist()
        return tuple(self.sample[a:b] for a, b in zip(cuts[:-1], cuts[1:], strict=True))


@dataclass(frozen=True, eq=False)
class Contexts:
    """Contexts of all units, of a corpus of `n_tokens` in `n_documents`."""

    units: tuple[UnitContexts, ...]
    n_tokens: int
    n_documents: int


@dataclass(frozen=True)
class ContextPlan:
    """`top`, `sample`: contexts kept per unit. `before`, `after`: tokens around the one that fired."""

    top: int = 40
    sample: int = 40
    before: int = 16
    after: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("top", 1), ("sample", 0), ("before", 0), ("after", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise bad_argument(name, getattr(self, name), f"{least} or more")


class _Kept:
    """The n largest keys per unit, one per document."""

    def __init__(self, width: int, n: int, window: int) -> None:
        self.n = n
        self.key = np.full((width, n), -np.inf)
        self.value = np.zeros((width, n), np.float32)
        self.place = np.full((width, n, 2), EMPTY, np.int64)  # document, position
        self.tokens = np.full((width, n, window), EMPTY, np.int32)

    def offer(self, units: Array, keys: Array, values: Array, document: int, positions: Array, windows: Array) -> None:
        """At most one firing per unit, all of one document: kept in place of this document's own or of the smallest."""
        same = self.place[units, :, 0] == document
        slot = np.where(same.any(1), same.argmax(1), self.key[units].argmin(1))
        better = keys > self.key[units, slot]
        units, slot = units[better], slot[better]
        self.key[units, slot], self.value[units, slot] = keys[better], values[better]
        self.place[units, slot, 0], self.place[units, slot, 1] = document, positions[better]
        self.tokens[units, slot] = windows[better]

    def contexts(self, unit: int, documents: Sequence[Any], before: int) -> tuple[Context, ...]:
        slots = [slot for slot in np.lexsort((self.place[unit, :, 0], -self.value[unit])) if self.key[unit, slot] > -np.inf]
        return tuple(self._context(unit, slot, documents, before) for slot in slots)

    def _context(self, unit: int, slot: int, documents: Sequence[Any], before: int) -> Context:
        window = self.tokens[unit, slot].tolist()
        lead = sum(token == EMPTY for token in window[:before])
        document, position = self.place[unit, slot, :2].tolist()
        return Context(float(self.value[unit, slot]), tuple(token for token in window if token != EMPTY), before - lead,
                       documents[document], position)  # fmt: skip


def read_contexts(
    units: Units, rows: Iterable[Row], plan: ContextPlan | None = None, progress: Report | None = None
) -> Contexts:
    """Top contexts and samples of all units over rows of (token ids, document), read once and in order.

    All rows of a document must come one after the other. `progress` is called with the tokens read.
    Raises UsageError when there is no row.
    """
    plan = ContextPlan() if plan is None else plan
    width, window = len(units.names), plan.before + 1 + plan.after
    top, sample = _Kept(width, plan.top, window), _Kept(width, plan.sample, window)
    fired, documents, n_tokens = np.zeros(width, np.int64), [], 0
    number = 0
    for batch in _batches(rows):
        for (ids, document), found in zip(batch, units.firings([ids for ids, _ in batch]), strict=True):
            if not documents or documents[-1] != document:
                documents.append(document)
            fired += np.bincount(found.units[found.values > 0], minlength=width)
            drawn = np.random.default_rng([plan.seed, number]).random(len(found.units))
            _offer(top, found, found.values, ids, len(documents) - 1, plan)
            _offer(sample, found, drawn, ids, len(documents) - 1, plan)
            number, n_tokens = number + 1, n_tokens + len(ids)
        if progress:
            progress(sum(len(ids) for ids, _ in batch))
    if not documents:
        raise bad_argument("rows", "none", "at least one row of token ids")
    made = []
    for unit, name in enumerate(units.names):
        best = top.contexts(unit, documents, plan.before)
        made.append(UnitContexts(name, int(fired[unit]), best[0].value if best else 0.0, best,
                                 sample.contexts(unit, documents, plan.before)))  # fmt: skip
    return Contexts(tuple(made), n_tokens, len(documents))


def _offer(kept: _Kept, found: Firings, keys: Array, ids: Sequence[int], document: int, plan: ContextPlan) -> None:
    """The firing of largest key per unit, ties to the first position; those too small to be kept are not sorted."""
    if not kept.n:
        return
    able = np.flatnonzero(keys > kept.key.min(1)[found.units])
    order = able[np.lexsort((found.positions[able], -keys[able], found.units[able]))]
    first = order[np.flatnonzero(np.diff(found.units[order], prepend=EMPTY))]
    units, positions = found.units[first], found.positions[first]
    padded = np.concatenate([np.full(plan.before, EMPTY), np.asarray(ids), np.full(plan.after, EMPTY)])
    windows = padded[positions[:, None] + np.arange(plan.before + 1 + plan.after)]
    kept.offer(units, keys[first], found.values[first], document, positions, windows)


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Rows in order, up to so many tokens at a time."""
    batch: list[Row] = []
    held = 0
    for ids, document in rows:
        if not len(ids):
            continue
        if batch and held + len(ids) > BATCH:
            yield batch
            batch, held = [], 0
        batch.append((ids, document))
        held += len(ids)
    if batch:
        yield batch


def texts_of(model: Model, contexts: Sequence[Context]) -> list[str]:
    """The text of every window, without the token that begins every text."""
    lead = {model.bos_id} if model.prepend_bos and model.bos_id is not None else set()
    return [model.text([token for token in context.tokens if token not in lead]) for context in contexts]


def fired_token(model: Model, context: Context) -> str:
    """The token that fired."""
    return model.piece(context.tokens[context.at])


@dataclass(frozen=True)
class _EveryToken:
    """One unit that fires everywhere, from position `first` on."""

    first: int

    @property
    def names(self) -> tuple[str, ...]:
        return ("token",)

    def firings(self, rows: Sequence[Sequence[int]]) -> Iterator[Firings]:
        for ids in rows:
            positions = np.arange(min(self.first, len(ids)), len(ids))
            yield Firings(np.zeros_like(positions), positions, np.ones(len(positions), np.float32))


def random_contexts(rows: Iterable[Row], n: int, plan: ContextPlan | None = None, first: int = 1) -> tuple[Context, ...]:
    """Windows around n random tokens, one per document, each token as likely as any other of the corpus. No model is run.

    Fewer than n where the corpus has fewer documents.
    """
    plan = ContextPlan() if plan is None else plan
    found = read_contexts(_EveryToken(first), rows, replace(plan, top=1, sample=n, seed=plan.seed + 1))
    return found.units[0].sample
