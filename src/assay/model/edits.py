"""Edits: interventions at sites, as data.

`patch`, `zero`, `add`, `scale`, and those along a direction, `clamp`, `cap`, `floor`, `fade` and `project_out`, all
make an `Edit`; the engine applies it. An edit names absolute positions of the prompt (never an index into whatever
slice the model happens to process), the prompts it applies to (`rows`), and a phase when tokens are generated. A
`Condition` leaves only positions where something is read off the same pass.

Values: a number; one feature vector, shared by all prompts and positions; one axis more, per prompt
(n, *feature); two more, per prompt and position (n, pos, *feature). Positions are counted as listed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from assay.errors import ShapeError, bad_argument
from assay.sites import Site, parse_site

Positions = str | Sequence[int] | Tensor
Phase = Literal["all", "prompt", "generated", "last"]
Op = Literal["set", "add", "scale", "along", "cap", "floor", "fade"]


@dataclass(frozen=True, eq=False)
class Condition:
    """Where an edit applies: at positions whose component along `direction` (any norm but 0) exceeds `threshold`.

    It is read at `site` in the same pass, after the edits listed before: the edited site itself, or one that is
    computed earlier.
    """

    site: Site
    direction: Tensor
    threshold: float

    def __init__(self, site: str | Site, direction: Tensor, threshold: float) -> None:
        if not abs(float(threshold)) < float("inf"):
            raise bad_argument("threshold", threshold, "a finite number")
        object.__setattr__(self, "site", parse_site(site))
        object.__setattr__(self, "direction", _unit(direction))
        object.__setattr__(self, "threshold", float(threshold))

    def holds(self, seen: Tensor) -> Tensor:
        """Whether it holds at each position of seen (batch, pos, *feature): (batch, pos)."""
        return along(seen, self.direction) > self.threshold


@dataclass(frozen=True, eq=False)
class Edit:
    """One intervention. Made by the functions below; an edit with a `direction` changes the component on it."""

    site: Site
    op: Op
    value: Tensor
    positions: Positions = "all"
    rows: tuple[int, ...] | None = None
    phase: Phase = "all"
    direction: Tensor | None = None
    condition: Condition | None = None

    def describe(self) -> dict[str, object]:
        """The edit as plain data, for plans and passports."""
        positions = self.positions.tolist() if isinstance(self.positions, Tensor) else self.positions
        record = {"site": str(self.site), "op": self.op, "positions": positions,
                  "phase": self.phase, "shape": list(self.value.shape)}  # fmt: skip
        if self.condition is not None:
            record["condition"] = {"site": str(self.condition.site), "threshold": self.condition.threshold}
        return record


def patch(
    site: str | Site,
    value: Tensor | float,
    positions: Positions = "all",
    rows: Sequence[int] | None = None,
    phase: Phase = "all",
    condition: Condition | None = None,
) -> Edit:
    """Replace the activation by `value` (activation patching, mean or resample ablation)."""
    return _edit(site, "set", value, positions, rows, phase, condition)


def zero(
    site: str | Site,
    positions: Positions = "all",
    rows: Sequence[int] | None = None,
    phase: Phase = "all",
    condition: Condition | None = None,
) -> Edit:
    """Replace the activation by zeros (zero ablation)."""
    return _edit(site, "set", 0.0, positions, rows, phase, condition)


def add(
    site: str | Site,
    value: Tensor | float,
    positions: Positions = "all",
    rows: Sequence[int] | None = None,
    phase: Phase = "all",
    condition: Condition | None = None,
) -> Edit:
    """Add `value` to the activation (steering)."""
    return _edit(site, "add", value, positions, rows, phase, condition)


def scale(
    site: str | Site,
    factor: Tensor | float,
    positions: Positions = "all",
    rows: Sequence[int] | None = None,
    phase: Phase = "all",
    condition: Condition | None = None,
) -> Edit:
    """Multiply the activation by `factor`."""
    return _edit(site, "scale", factor, positions, rows, phase, condition)


def clamp(
    site: str | Site,
    direction: Tensor,
    value: Tensor | float,
    positions: Positions = "all",
    rows: Sequence[int] | None = None,
    phase: Phase = "all",
    condition: Condition | None = None,
) -> Edit:
    """Set the component along `direction` (feature-shaped, any norm but 0) to `value`.

    x becomes x + (value - x.u) u with u the unit direction. `value` is a number or one per prompt.
    """
    return _directed(site, "along", direction, value, positions, rows, phase, condition)


def cap(
    site: str | Site,
    direction: Tensor,
    value: Tensor | float,
    positions: Positions = "all",
    rows: Sequence[int] | None = None,
    phase: Phase = "all",
    condition: Condition | None = None,
) -> Edit:
    """Reduce the component along `direction` to `value` where it is above; arguments as for `clamp`."""
    return _directed(site, "cap", direction, value, positions, rows, phase, condition)


def floor(
    site: str | Site,
    direction: Tensor,
    value: Tensor | float,
    positions: Positions = "all",
    rows: Sequence[int] | None = None,
    phase: Phase = "all",
    condition: Condition | None = None,
) -> Edit:
    """Raise the component along `direction` to `value` where it is below; arguments as for `clamp`."""
    return _directed(site, "floor", direction, value, positions, rows, phase, condition)


def fade(
    site: str | Site,
    direction: Tensor,
    factor: Tensor | float,
    positions: Positions = "all",
    rows: Sequence[int] | None = None,
    phase: Phase = "all",
    condition: Condition | None = None,
) -> Edit:
    """Multiply the component along `direction` by `factor`: 0 removes it, 1 leaves it; arguments as for `clamp`."""
    return _directed(site, "fade", direction, factor, positions, rows, phase, condition)


def project_out(
    site: str | Site,
    direction: Tensor,
    positions: Positions = "all",
    rows: Sequence[int] | None = None,
    phase: Phase = "all",
    condition: Condition | None = None,
) -> Edit:
    """Remove the component along `direction` (directional ablation)."""
    return clamp(site, direction, 0.0, positions, rows, phase, condition)


def _edit(
    site: str | Site,
    op: Op,
    value: Tensor | float,
    positions: Positions,
    rows: Sequence[int] | None,
    phase: Phase,
    condition: Condition | None = None,
    direction: Tensor | None = None,
) -> Edit:
    if isinstance(positions, str) and positions not in ("all", "last"):
        raise bad_argument("positions", positions, "'all', 'last', a list of ints or a tensor (n, k)")
    if phase not in ("all", "prompt", "generated", "last"):
        raise bad_argument("phase", phase, "'all', 'prompt', 'generated' or 'last'")
    tensor = value if isinstance(value, Tensor) else torch.tensor(float(value))
    if not torch.isfinite(tensor.detach()).all():
        raise bad_argument("value", "NaN or infinity", "finite numbers")
    chosen = None if rows is None else tuple(int(row) for row in rows)
    return Edit(parse_site(site), op, tensor, positions, chosen, phase, direction, condition)


def _directed(
    site: str | Site,
    op: Op,
    direction: Tensor,
    value: Tensor | float,
    positions: Positions,
    rows: Sequence[int] | None,
    phase: Phase,
    condition: Condition | None,
) -> Edit:
    return _edit(site, op, value, positions, rows, phase, condition, _unit(direction))


def _unit(direction: Tensor) -> Tensor:
    norm = direction.float().norm()
    size = float(norm.detach())
    if not 0 < size < float("inf"):
        raise bad_argument("direction", f"norm {size:g}", "a finite, non-zero vector")
    return direction / norm


def along(x: Tensor, unit: Tensor) -> Tensor:
    """Component of x (..., *feature) along a unit direction (*feature), (...), in fp32 or better."""
    wide = x if x.dtype == torch.float64 else x.float()
    axes = tuple(range(x.dim() - unit.dim(), x.dim()))
    return (wide * unit.to(wide.device, wide.dtype)).sum(axes)


@dataclass
class Frame:
    """Which part of which prompts the model is processing right now.

    Column j of row r is absolute position offset + j - pads[r]. `rows` are the prompts' numbers in
    the caller's list, `lengths` their prompt lengths.
    """

    rows: Tensor
    lengths: Tensor
    pads: Tensor
    offset: int = 0
    width: int = 0

    def columns(self) -> Tensor:
        """Absolute position of every column, (batch, width); negative where there is padding."""
        steps = torch.arange(self.width, device=self.rows.device)
        return self.offset + steps - self.pads[:, None]


def apply_edit(x: Tensor, edit: Edit, frame: Frame, seen: Tensor | None = None) -> Tensor:
    """A copy of x (batch, pos, *feature) with the edit applied where it belongs.

    `seen` (batch, pos, *feature) is what the edit's condition reads; None: x itself.
    """
    value = edit.value.to(x.device, x.dtype if edit.direction is None else edit.value.dtype)
    n_feature = x.dim() - 2
    if edit.rows is None and edit.phase == "all" and edit.condition is None and _everywhere(edit, value, n_feature):
        return _changed(x, value, edit)
    row, column, slot = _where(edit, frame, x.shape[1])
    if edit.condition is not None:
        chosen = edit.condition.holds(x if seen is None else seen).to(x.device)[row, column]
        row, column, slot = row[chosen], column[chosen], slot[chosen]
    if row.numel() == 0:
        return x
    picked = x[row, column]
    out = x.clone()
    out[row, column] = _changed(picked, _values(value, edit, frame, (row, slot), n_feature), edit)
    return out


def _everywhere(edit: Edit, value: Tensor, n_feature: int) -> bool:
    shared = value.dim() == 0 or (edit.direction is None and value.dim() <= n_feature)
    return isinstance(edit.positions, str) and edit.positions == "all" and shared


def _changed(x: Tensor, value: Tensor, edit: Edit) -> Tensor:
    if edit.op == "set":
        return value.expand_as(x).clone()
    if edit.op == "add":
        return x + value
    if edit.op == "scale":
        return x * value
    if edit.direction is None:
        raise bad_argument("direction", None, "a feature-shaped tensor")
    unit = edit.direction.to(x.device)
    now = along(x, unit)
    change = _target(edit.op, now, value.to(now.dtype).expand_as(now)) - now
    return x + (change[(...,) + (None,) * unit.dim()] * unit.to(now.dtype)).to(x.dtype)


def _target(op: Op, now: Tensor, value: Tensor) -> Tensor:
    """The component along a direction after an edit."""
    if op == "cap":
        return torch.minimum(now, value)
    if op == "floor":
        return torch.maximum(now, value)
    return now * value if op == "fade" else value


def _where(edit: Edit, frame: Frame, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Batch rows, columns, and the position's place in the edit's own list."""
    frame.width = width
    device = frame.rows.device
    absolute = frame.columns()
    if isinstance(edit.positions, str) and edit.positions == "all":
        slot = absolute
    else:
        wanted = listed_positions(edit, frame)  # (batch, k)
        hit = absolute[:, :, None] == wanted[:, None, :]
        slot = torch.where(hit.any(-1), hit.float().argmax(-1), -1)
    chosen = (slot >= 0) & (absolute >= 0)
    prompt = absolute < frame.lengths[:, None]
    if edit.phase == "prompt":
        chosen &= prompt
    elif edit.phase == "generated":
        chosen &= ~prompt
    elif edit.phase == "last":
        chosen &= absolute >= frame.lengths[:, None] - 1
    if edit.rows is not None:
        chosen &= torch.isin(frame.rows, torch.tensor(edit.rows, device=device))[:, None]
    row, column = chosen.nonzero(as_tuple=True)
    return row, column, slot[row, column]


def listed_positions(edit: Edit, frame: Frame) -> Int[Tensor, "batch k"]:
    """Absolute positions that an edit lists; not for "all"."""
    if isinstance(edit.positions, str):  # "last"
        return frame.lengths[:, None] - 1
    table = torch.as_tensor(edit.positions, device=frame.rows.device)
    table = table[frame.rows] if table.dim() == 2 else table[None].expand(len(frame.rows), -1)
    return torch.where(table < 0, table + frame.lengths[:, None], table)


def _values(
    value: Tensor, edit: Edit, frame: Frame, place: tuple[Tensor, Tensor], n_feature: int
) -> Tensor:
    row, slot = place
    extra = value.dim() if edit.direction is not None else value.dim() - n_feature
    if value.dim() == 0 or extra <= 0:
        return value
    prompt = frame.rows[row] if value.shape[0] > 1 else torch.zeros_like(row)
    if extra == 1:
        return value[prompt]
    return value[prompt, slot if value.shape[1] > 1 else torch.zeros_like(slot)]


def check_value(edit: Edit, feature: tuple[int, ...], n_prompts: int) -> None:
    """Refuse, before anything runs, a value that cannot fit its site. Raises ShapeError."""
    shape = tuple(edit.value.shape)
    tail = () if edit.direction is not None else feature
    if edit.direction is not None and tuple(edit.direction.shape) != feature:
        raise ShapeError(f"edit at {edit.site}: direction has shape {tuple(edit.direction.shape)};"
                         f" allowed: {feature}.")  # fmt: skip
    extra = len(shape) - len(tail)
    fits = extra >= 0 and shape[extra:] == tail and extra <= 2 and (
        extra == 0 or shape[0] in (1, n_prompts)
    )  # fmt: skip
    if len(shape) and not fits:
        n = n_prompts
        raise ShapeError(
            f"edit at {edit.site}: the value has shape {shape}; allowed: a number, {tail},"
            f" {(n, *tail)} (one per prompt) or {(n, 'pos', *tail)}."
        )
    if isinstance(edit.positions, Tensor) and edit.positions.dim() == 2:
        if edit.positions.shape[0] != n_prompts:
            raise ShapeError(f"edit at {edit.site}: positions has {edit.positions.shape[0]} rows;"
                             f" allowed: {n_prompts}, one per prompt.")  # fmt: skip
