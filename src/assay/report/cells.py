"""What every picture of a patching sweep shares: cells, colours, labels and the scale.

1. A cell is one layer and one column with its effect and 95% bounds.
2. Colours are centred on the run that was patched: 0 (corrupted) for denoising, 1 (clean) for noising.
   Cells without influence are therefore pale in both directions. Blue moves towards corrupted,
   orange towards clean.
3. The scale is symmetric and reaches 1 effect unit, unless every effect is below half of that: then it
   shrinks to a round number, and the caption says so.

Blue and orange stay apart in the common forms of colour blindness; numbers are always there as well.
"""

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from assay.errors import bad_argument
from assay.records import PatchResult

RAMP = ("#0a3a6b", "#2f6ea8", "#82b1d3", "#c9dcea", "#f6f4ef", "#f7d3b0", "#ec9a58", "#c85f16", "#7f3205")
MISSING = "#d9d9d6"
ROUND = (0.05, 0.1, 0.2, 0.3, 0.5)
MARKS = {"\n": "⏎", "\r": "␍", "\t": "⇥", " ": "␣"}


@dataclass(frozen=True)
class Cell:
    """One cell of a sweep. `label` is how its column is called, a token where there is one."""

    layer: int
    column: str
    label: str
    effect: float
    low: float
    high: float


@dataclass(frozen=True)
class Scale:
    """Colours run from `centre - limit` to `centre + limit`; `shrunk` when that does not reach 1 unit."""

    centre: float
    limit: float
    shrunk: bool

    def share(self, effect: float) -> float:
        """Place on the colour ramp, 0 to 1."""
        return min(1.0, max(0.0, 0.5 + (effect - self.centre) / (2 * self.limit)))


def grid(result: PatchResult) -> np.ndarray:
    """(layer, column) effects, NaN where a cell was not measured."""
    rows = [[math.nan if value is None else value for value in row] for row in result.effect]
    return np.array(rows, dtype=float).reshape(len(result.layers), len(result.columns))


def scale_of(result: PatchResult) -> Scale:
    """The colour scale of a sweep."""
    centre = 1.0 if result.plan.get("direction") == "noise" else 0.0
    effect = grid(result)
    finite = np.abs(effect[np.isfinite(effect)] - centre)
    largest = float(finite.max()) if finite.size else 1.0
    fitting = [limit for limit in ROUND if largest <= limit]
    return Scale(centre, fitting[0], True) if fitting else Scale(centre, max(1.0, largest), False)


def colour(share: float) -> str:
    """Hex colour of a place on the ramp, 0 to 1; grey for NaN."""
    if not math.isfinite(share):
        return MISSING
    place = min(1.0, max(0.0, share)) * (len(RAMP) - 1)
    first = min(int(place), len(RAMP) - 2)
    low, high = (tuple(int(RAMP[k][i : i + 2], 16) for i in (1, 3, 5)) for k in (first, first + 1))
    mixed = (round(a + (b - a) * (place - first)) for a, b in zip(low, high))
    return "#" + "".join(f"{value:02x}" for value in mixed)


def visible(text: str, limit: int = 24) -> str:
    """A token as it can be shown on one line: leading space, newlines and control characters marked."""
    marked = "".join(_mark(char, first=place == 0) for place, char in enumerate(str(text)))
    return marked if len(marked) <= limit else marked[: limit - 1] + "…"


def _mark(char: str, *, first: bool) -> str:
    if char in MARKS and (first or char != " "):
        return MARKS[char]
    return "�" if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Cn") else char


def column_labels(result: PatchResult, tokens: Sequence[str] | None = None) -> list[str]:
    """One label per column: its name, followed by its token where tokens are given.

    Raises UsageError when there are not as many tokens as columns.
    """
    if tokens is None or len(tokens) == 0:
        return [visible(column) for column in result.columns]
    if len(tokens) != len(result.columns):
        raise bad_argument("tokens", len(tokens), f"{len(result.columns)} tokens, one per column")
    return [f"{column} {visible(token)}" for column, token in zip(result.columns, tokens)]


def top_cells(result: PatchResult, n: int = 10, tokens: Sequence[str] | None = None) -> list[Cell]:
    """The n cells that move the behaviour most, strongest first; unmeasured cells are left out."""
    labels, effect = column_labels(result, tokens), grid(result)
    distance = np.nan_to_num(np.abs(effect - scale_of(result).centre), nan=-1.0)
    order = np.argsort(-distance, axis=None, kind="stable")[:n]
    cells = []
    for flat in order:
        i, j = divmod(int(flat), effect.shape[1])
        if distance[i, j] >= 0:
            cells.append(Cell(result.layers[i], result.columns[j], labels[j], float(effect[i, j]),
                              _bound(result.low[i][j]), _bound(result.high[i][j])))  # fmt: skip
    return cells


def _bound(value: float | None) -> float:
    return math.nan if value is None else float(value)


def one_of(axis: str) -> str:
    """One column of an axis, in the singular."""
    return axis[:-1] if axis.endswith("s") else axis


def describe(result: PatchResult) -> str:
    """What 0 and 1 mean, in one line."""
    if result.plan.get("direction") == "noise":
        return "corrupted value written into the clean run: 1 = nothing lost (clean), 0 = all lost (corrupted)"
    return "clean value written into the corrupted run: 0 = no effect (corrupted), 1 = fully restored (clean)"
