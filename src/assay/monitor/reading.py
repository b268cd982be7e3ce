"""Activations of conversations, a block at a time, and what a monitor makes of them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from assay.errors import bad_argument
from assay.model.model import Model
from assay.monitor.records import Monitor, at_site, sources
from assay.monitor.talks import Talk
from assay.monitor.units import unit_scores
from assay.sites import parse_site

Array = NDArray[np.float64]
Report = Callable[[int], None]
TOKENS_AT_ONCE = 16_384
BROKEN = 1e9


@dataclass(frozen=True, eq=False)
class Scored:
    """Of one conversation: scores of the tokens of every judged turn, and of every unit."""

    turns: tuple[Array, ...]
    units: dict[str, Array]


def blocks(talks: Sequence[Talk], tokens: int = TOKENS_AT_ONCE) -> Iterator[list[int]]:
    """Numbers of conversations that are read together, in order."""
    block: list[int] = []
    held = 0
    for number, talk in enumerate(talks):
        if block and held + len(talk.ids) > tokens:
            yield block
            block, held = [], 0
        block.append(number)
        held += len(talk.ids)
    if block:
        yield block


def read(
    model: Model, talks: Sequence[Talk], sites: Sequence[str], report: Report | None = None
) -> Iterator[tuple[int, dict[str, Array]]]:
    """(number, site -> (tokens, d)) of every conversation, in order; flat memory. Sites may be latents (`latent.NAME`)."""
    captured = sources(sites)
    for block in blocks(talks):
        acts = model.capture([list(talks[number].ids) for number in block], captured)
        rows = {site: acts.rows(parse_site(site)) for site in captured}
        for place, number in enumerate(block):
            own = {site: vectors(site, rows[site][place], len(talks[number].ids)) for site in captured}
            yield number, {site: at_site(site, own) for site in sites}
        if report:
            report(len(block))


def vectors(site: str, acts: Tensor, tokens: int) -> NDArray[np.float32]:
    """(tokens, d) of a site in one text; heads side by side. Raises UsageError for a site without a vector per token."""
    if acts.ndim < 2 or len(acts) != tokens or site.startswith("pattern"):
        raise bad_argument("site", site, "sites that have a vector for every token, such as resid_post.3, z.3 or mlp_out.3")
    return acts.float().flatten(1).numpy()


def turn_means(
    model: Model, talks: Sequence[Talk], sites: Sequence[str], report: Report | None = None
) -> dict[str, Array]:
    """site -> (conversations, d): the mean activation over the tokens of judged turns."""
    found: dict[str, list[Array]] = {site: [] for site in sites}
    for number, acts in read(model, talks, sites, report):
        judged = np.concatenate([np.arange(*turn) for turn in talks[number].turns])
        for site in sites:
            found[site].append(acts[site][judged].mean(0))
    return {site: np.array(rows, np.float64) for site, rows in found.items()}


def score(model: Model, monitor: Monitor, talks: Sequence[Talk], report: Report | None = None) -> list[Scored]:
    """Scores of every unit of every conversation."""
    found = []
    for number, acts in read(model, talks, monitor.sites, report):
        scores, logits = monitor.token_scores(acts), monitor.token_logits(acts)
        turns = tuple(scores[slice(*turn)] for turn in talks[number].turns)
        keys = None if logits is None else [logits[slice(*turn)] for turn in talks[number].turns]
        found.append(Scored(turns, unit_scores(turns, monitor.pooling, keys)))
    return found


def finite(scores: Sequence[float] | Array) -> Array:
    """Scores with `BROKEN` in place of what is no number (half precision overflows): it is above every threshold."""
    return np.nan_to_num(np.asarray(scores, np.float64), nan=BROKEN, posinf=BROKEN, neginf=BROKEN)


def reply_scores(scored: Sequence[Scored]) -> Array:
    """The score of each conversation."""
    return np.array([float(one.units["conversation"][0]) for one in scored])
