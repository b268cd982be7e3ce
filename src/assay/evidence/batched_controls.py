"""Many sets of units patched into the same prompts, many to a forward pass.

1. A prompt is repeated once per set; every unit of any set becomes one edit on the rows of its sets.
2. Clean and corrupted prompts agree up to their first different token, and attention looks back only:
   nothing that is patched from one into the other differs before it. Only the positions from there on are
   edited and run again; what lies before is run once per prompt (`model/prefix.py`).
3. Sets are ordered by their first layer; a pass resumes there, from the cached residual stream.
4. Where few sets or positions are left, several prompts share a pass instead.

The numbers are those of one plain run per set, up to rounding; which positions a model recomputes is the
only thing that changes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from assay.data.metrics import Metric
from assay.model.edits import Edit, patch
from assay.model.model import Model
from assay.model.run import Checkpoint
from assay.sites import Site

ALONE_FROM = 256  # repeated positions from which on a prompt fills a pass of its own
TOGETHER_UP_TO = 2048
SETS_AT_ONCE = 16  # sets of one first layer that are worth a pass of their own
Set = tuple[Site, ...]


@dataclass(frozen=True, eq=False)
class Bench:
    """Prompts to be patched, and what into: `values[whole]` is (prompt, pos, *feature), one position for "last".

    `first`: per prompt, the first position at which the two runs can differ. `checkpoint`: the residual
    stream of these prompts, for the layers passes may resume at.
    """

    model: Model
    prompts: Sequence[list[int]]
    values: Mapping[Site, Tensor]
    first: Sequence[int]
    metric: Metric
    positions: str
    checkpoint: Checkpoint | None


def score_sets(bench: Bench, sets: Sequence[Set]) -> Float[Tensor, "set prompt"]:
    """The metric of every prompt with every set patched in. Sets must not be empty."""
    out = torch.empty(len(sets), len(bench.prompts))
    for block in by_first_layer(sets):
        for rows in _together(bench, len(block)):
            found = _tile(bench, [sets[number] for number in block], rows)
            out[torch.tensor(block)[:, None], torch.tensor(rows)[None]] = found.T
    return out


def by_first_layer(sets: Sequence[Set]) -> list[list[int]]:
    """Numbers of the sets, those that begin at the same layer together; small groups join the one before."""
    blocks: list[list[int]] = []
    for number in sorted(range(len(sets)), key=lambda place: first_layer(sets[place])):
        same = blocks and first_layer(sets[blocks[-1][0]]) == first_layer(sets[number])
        if not blocks or (not same and len(blocks[-1]) >= SETS_AT_ONCE):
            blocks.append([])
        blocks[-1].append(number)
    return blocks


def first_layer(units: Set) -> int:
    """The lowest layer a set touches."""
    return min(unit.layer or 0 for unit in units)


def _together(bench: Bench, n_sets: int) -> Iterator[list[int]]:
    """Prompts that share a pass: one alone where it fills it, else neighbours up to the bound."""
    group: list[int] = []
    for row, ids in enumerate(bench.prompts):
        if n_sets * (len(ids) - bench.first[row]) >= ALONE_FROM:
            yield [row]
            continue
        longest = max(len(bench.prompts[other]) for other in (*group, row))
        if group and (len(group) + 1) * n_sets * longest > TOGETHER_UP_TO:
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def _tile(bench: Bench, sets: Sequence[Set], rows: Sequence[int]) -> Float[Tensor, "prompt set"]:
    """One call for all sets on some prompts; row `place * len(sets) + number` is prompt `place`, set `number`."""
    n = len(sets)
    tiled = [row for row in rows for _ in sets]
    users: dict[Site, list[int]] = {}
    for number, units in enumerate(sets):
        for unit in units:
            users.setdefault(unit, []).extend(place * n + number for place in range(len(rows)))
    start = min(map(first_layer, sets))
    scores = bench.model.score(
        [bench.prompts[row] for row in tiled], bench.metric.select(tiled),
        edits=[_edit(bench, unit, where, rows, n) for unit, where in users.items()],
        resume=None if bench.checkpoint is None or start == 0 else bench.checkpoint.select(tiled),
    )  # fmt: skip
    return scores.view(len(rows), n)


def _edit(bench: Bench, unit: Site, where: list[int], rows: Sequence[int], n: int) -> Edit:
    value = part(bench.values[unit.whole][list(rows)], unit, 2)
    if len(rows) > 1:
        value = value.repeat_interleave(n, 0)
        return patch(unit, value[:, 0] if bench.positions == "last" else value, bench.positions, where)
    length = len(bench.prompts[rows[0]])
    if bench.positions == "last":
        return patch(unit, value, [length - 1], where)
    start = bench.first[rows[0]]
    return patch(unit, value[:, start:length], list(range(start, length)), where)


def part(value: Tensor, unit: Site, axis: int) -> Tensor:
    """One head of a whole-layer value, heads on `axis`; other units are whole already."""
    return value if unit.index is None else value.select(axis, unit.index)
