"""Activations of labelled texts at many sites and positions, from one pass over the texts.

1. Texts are taken by length, `PART` of them at a time: little is padded, and a part that is finished can be kept. The pass
   stops after the last site and makes no logits.
2. Of every site only what is asked for is kept, as fp32 on the CPU:
       concept     at the token that holds the example's character; at the last token where it names none
       last, -k    at the last token, at the k-th from the end
       mean, max   over all tokens but the first of a text (it is massive in many models), per coordinate
       attention   all tokens, for probes that pool themselves
3. Heads and their features lie side by side: a row is one flat vector per text.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from assay.data.prepare_concept import PreparedConcept
from assay.errors import bad_argument
from assay.features.passes import storable
from assay.model.edits import Edit
from assay.model.model import Model, Sites
from assay.records import digest
from assay.sites import Site

Array = NDArray[np.float32]
PART = 256
POSITIONS = ("concept", "last", "mean", "max", "attention")
MOST_BYTES = 2 << 30  # of everything that is kept
VERSION = 1  # of the numbers: another one reads anew


class Kept(Protocol):
    """Where finished parts of a pass are kept, by number."""

    def get(self, part: int) -> Mapping[str, Array] | None: ...

    def put(self, part: int, values: Mapping[str, Array]) -> None: ...


@dataclass(frozen=True, eq=False)
class Read:
    """Rows of texts, in the order they were given.

    `X[site][position]` is (text, d) in fp32; of the position "attention" a list with one (token, d) per text.
    """

    sites: tuple[str, ...]
    positions: tuple[str, ...]
    X: Mapping[str, Mapping[str, Any]]

    def stacked(self, position: str, sites: Sequence[str] | None = None) -> list[Array]:
        """One array per site, for one position."""
        return [self.X[site][position] for site in (self.sites if sites is None else sites)]


def position_names(asked: Sequence[str]) -> tuple[str, ...]:
    """Positions in one spelling, each once. Raises UsageError for others."""
    found = []
    for name in asked:
        text = str(name).strip()
        offset = text[1:].isdecimal() and text[0] == "-" and int(text) < 0
        if text not in POSITIONS and not offset:
            raise bad_argument("position", name, f"{', '.join(POSITIONS)}, or -2, -3, .. counted from the end")
        found.append("last" if offset and int(text) == -1 else str(int(text)) if offset else text)
    if not found:
        raise bad_argument("position", "none", ", ".join(POSITIONS))
    return tuple(dict.fromkeys(found))


def read_key(model: Model, prepared: PreparedConcept, sites: Sequence[str], positions: Sequence[str]) -> str:
    """What decides the numbers of a pass: weights, dtype, tokens, places, sites and positions."""
    dtype = str(model.dtype).removeprefix("torch.")
    return digest([VERSION, model.digest, dtype, prepared.tokens, prepared.at, list(sites), list(positions)])


def read_all(
    model: Model, prepared: PreparedConcept, sites: Sites, positions: Sequence[str] = ("concept",), kept: Kept | None = None,
    progress: Callable[[int], Any] | None = None, edits: Sequence[Edit] = (),
) -> Read:  # fmt: skip
    """All sites at all positions, in one pass. `progress(n)` after n more texts; parts that `kept` has are not read again.
    `edits` are the same for all texts; what is read at an edited site is what the edit leaves there.

    Raises SiteError for sites that have no value of one size per token, UsageError for positions that some text does not
    have, and where all of it would take more than 2 GiB.
    """
    wanted, places = storable(model, sites), position_names(positions)
    check_offsets(prepared, places)
    lengths = np.array([len(ids) for ids in prepared.tokens])
    order = np.argsort(lengths, kind="stable")
    found: dict[str, list[Array]] = {}
    for number, start in enumerate(range(0, len(order), PART)):
        rows = order[start : start + PART]
        part = None if kept is None else kept.get(number)
        if part is None:
            part = _read_part(model, prepared.select(rows.tolist()), wanted, places, len(lengths), edits)
            if kept is not None:
                kept.put(number, part)
        for name, values in part.items():
            found.setdefault(name, []).append(values)
        if progress:
            progress(len(rows))
    back = np.argsort(order, kind="stable")
    return Read(tuple(map(str, wanted)), places,
                {str(site): {place: _in_order(found.pop(_name(site, place)), place, lengths[order], back) for place in places}
                 for site in wanted})  # fmt: skip


def check_offsets(prepared: PreparedConcept, places: Sequence[str]) -> None:
    """Raises UsageError for positions counted from the end that some text does not have."""
    shortest = min(range(len(prepared)), key=lambda row: len(prepared.tokens[row]))
    for place in places:
        if place.startswith("-") and -int(place) > len(prepared.tokens[shortest]):
            text, n = prepared.examples[shortest].text, len(prepared.tokens[shortest])
            raise bad_argument("position", place, f"inside every text; {text[:60]!r} has {n} tokens")


def _read_part(
    model: Model, part: PreparedConcept, sites: Sequence[Site], places: Sequence[str], of: int, edits: Sequence[Edit] = ()
) -> dict[str, Array]:
    """name of (site, position) -> (text, d); of "attention" (tokens of all texts in order, d)."""
    lengths = torch.tensor([len(ids) for ids in part.tokens])
    starts = torch.cumsum(lengths, 0) - lengths
    found: dict[str, Tensor] = {}

    def visit(site: Site, value: Tensor, rows: Tensor) -> None:
        size = lengths[rows]
        flat = value.detach().reshape(len(rows), value.shape[1], -1)
        for place in places:
            name = _name(site, place)
            if name not in found:
                height = int(lengths.sum()) if place == "attention" else len(lengths)
                _refuse_large(len(sites) * len(places) * height * flat.shape[2] * 4 * -(-of // len(lengths)), place)
                found[name] = torch.empty(height, flat.shape[2])
            if place == "attention":
                for row, text in zip(rows.tolist(), flat, strict=True):
                    found[name][starts[row] : starts[row] + lengths[row]] = text[: lengths[row]].float().cpu()
            else:
                found[name][rows] = _at(flat, place, size, torch.tensor(part.at)[rows]).float().cpu()

    for rows in model.batches(part.tokens):
        numbers = torch.tensor(rows)
        model.walk([part.tokens[row] for row in rows], list(sites),
                   lambda site, value, numbers=numbers: visit(site, value, numbers), edits=edits)  # fmt: skip
    return {name: value.numpy() for name, value in found.items()}


def _at(flat: Tensor, place: str, lengths: Tensor, at: Tensor) -> Tensor:
    """(batch, pos, d) -> (batch, d) for one position."""
    if place in ("mean", "max"):
        steps = torch.arange(flat.shape[1])
        real = ((steps < lengths[:, None]) & ((steps > 0) | (lengths[:, None] == 1))).to(flat.device)[..., None]
        if place == "max":
            return flat.masked_fill(~real, -torch.inf).amax(1)
        return torch.where(real, flat.float(), 0).sum(1) / real.sum(1)
    column = at if place == "concept" else lengths - 1 if place == "last" else lengths + int(place)
    return flat[torch.arange(len(flat), device=flat.device), column.to(flat.device)]


def _refuse_large(size: int, place: str) -> None:
    if size > MOST_BYTES:
        most = f"activations of at most {MOST_BYTES >> 30} GiB; this would be {size / 2**30:.1f}"
        raise bad_argument("position", place, most, "Name fewer sites (--site) or fewer examples (--n).")  # fmt: skip


def _in_order(parts: list[Array], place: str, lengths: np.ndarray, back: np.ndarray) -> Any:
    """Rows as they were given."""
    whole = np.concatenate(parts)
    if place != "attention":
        return whole[back]
    texts = np.split(whole, np.cumsum(lengths)[:-1])
    return [texts[row] for row in back]


def _name(site: Site, place: str) -> str:
    return f"{site}@{place}"
