"""Rows of tokens through a model: what sites hold, token by token, without padding.

1. Rows are taken by length, so that little is padded; a pass holds at most `PASS_TOKENS`, and what the model's memory
   budget allows. It stops after the last site asked for, and makes no logits.
2. At each site the pass gives (token, feature): heads and their features beside each other, tokens row after row.
3. Which rows go together follows from their lengths alone, so the same rows give the same bits again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from assay.errors import SiteError
from assay.model.model import Model, Sites
from assay.model.request import Request
from assay.sites import Site

PASS_TOKENS = 2048
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
Take = Callable[["Group", Site, Float[Tensor, "token d"]], None]


@dataclass(frozen=True, eq=False)
class Group:
    """Rows of one pass, by their place in the list given; `slots`: where each of their tokens lies among all tokens."""

    rows: list[int]
    slots: Tensor
    positions: Tensor


def storable(model: Model, sites: Sites) -> list[Site]:
    """The sites of a model whose values have one shape at every position. Raises SiteError for others."""
    found = model.sites(sites)
    for site in found:
        if site.name in ("pattern", "logits"):
            raise SiteError(f"site {site}: its values are not of one size per token; allowed: any site but pattern and logits.")
    return found


def walk_rows(
    model: Model, rows: Sequence[np.ndarray], sites: Sequence[Site], take: Take, done: Callable[[Group], None] | None = None
) -> None:
    """All rows through the model. `take(group, site, values)` gets every site of every pass, `done(group)` its end.

    Values are (token, feature), the model's own memory or a copy: keep a copy of what you keep.
    """
    lengths = [len(row) for row in rows]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    for group in _groups(model, rows, sites, lengths):
        chosen = [rows[row].tolist() for row in group]
        width = max(lengths[row] for row in group)
        slots = torch.from_numpy(np.concatenate([np.arange(starts[row], starts[row + 1]) for row in group]))
        positions = torch.from_numpy(np.concatenate([np.arange(lengths[row]) for row in group]))
        places = None
        if any(lengths[row] != width for row in group):
            places = torch.from_numpy(np.concatenate([at * width + np.arange(lengths[row]) for at, row in enumerate(group)]))
            places = places.to(model.device)
        whole = Group(group, slots, positions)

        def visit(site: Site, value: Tensor, whole: Group = whole, places: Tensor | None = places, width: int = width) -> None:
            take(whole, site, _flat(site, value, len(whole.rows), width, places))

        model.walk(chosen, list(sites), visit)
        if done:
            done(whole)


def _groups(model: Model, rows: Sequence[np.ndarray], sites: Sequence[Site], lengths: list[int]) -> list[list[int]]:
    """Rows by length, as many as one pass may hold."""
    if not rows:
        return []
    longest = max(range(len(rows)), key=lengths.__getitem__)
    request = Request([rows[longest].tolist()], tuple(sites), (), "all", None)
    cap = min(PASS_TOKENS, model.engine.tokens_per_batch(request))
    groups: list[list[int]] = []
    for row in sorted(range(len(rows)), key=lengths.__getitem__):
        if not groups or (len(groups[-1]) + 1) * lengths[row] > max(cap, lengths[row]):
            groups.append([])
        groups[-1].append(row)
    return groups


def _flat(site: Site, value: Tensor, batch: int, width: int, places: Tensor | None) -> Tensor:
    if value.shape[:2] != (batch, width):
        raise SiteError(f"site {site}: it gives shape {tuple(value.shape)} for {batch} texts of {width} tokens; allowed:"
                        " sites that give (text, position, ...).")  # fmt: skip
    flat = value.reshape(batch * width, -1)
    return flat if places is None else flat.index_select(0, places.to(flat.device))
