"""Steering: a direction applied to a run, as edits of the engine.

With x the activation at the direction's site, u its unit vector and N the mean norm of x there (`residual_norm`):

1. add: x + s N u. clamp: x + (s N - x.u) u. cap: x.u above s N becomes s N. floor: x.u below s N becomes s N.
   project_out: x - s (x.u) u, so s = 1 removes the component. s is the *dose*: a fraction of the size of x, comparable
   between sites and models.
2. s = 0 is no steering in every mode: no edit is made, so the run is bit-identical to an unsteered one. To set the component
   to 0 project it out; to cap it at 0 project it out on condition that it is above 0.
3. One s for all prompts, or one per prompt: a batch of sixteen strengths is one list of prompts (`sweep`). Rows with s = 0 are
   not touched.
4. condition: only at positions where the read-out x.w of another direction exceeds a threshold, in the same forward pass. That
   direction may be at an earlier site.
5. phase: all positions, those of the prompt, or generated ones only; "last" adds the prompt's last position, which predicts
   the first new token. What is steered stays in the KV cache of that call; each call runs its prompt anew, so with
   phase="generated" earlier turns that are part of the prompt are never steered.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from assay.data.prepare import beginnings
from assay.errors import bad_argument
from assay.model.edits import Condition, Edit, Phase, Positions, add, cap, clamp, fade, floor
from assay.model.model import Model, Prompts
from assay.sites import Site
from assay.steer.directions import Direction

Mode = Literal["add", "clamp", "project_out", "cap", "floor"]
MASSIVE = 10.0  # times the median norm, as for dictionaries


@dataclass(frozen=True, eq=False)
class Steering:
    """How a direction is applied. `strength`: a dose, or one per prompt; of project_out the share that is removed.

    `condition`: where it applies, at positions whose read-out exceeds `threshold` (in activation units along the unit vector;
    None: the middle between the two sides that the condition's card keeps). Raises UsageError for what is none of these.
    """

    direction: Direction
    mode: Mode = "add"
    strength: float | Sequence[float] = 1.0
    positions: Positions = "all"
    phase: Phase = "all"
    condition: Direction | None = None
    threshold: float | None = None

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise bad_argument("mode", self.mode, ", ".join(get_args(Mode)))
        if self.phase not in get_args(Phase):
            raise bad_argument("phase", self.phase, ", ".join(get_args(Phase)))
        strengths = self.strengths
        if not len(strengths) or not bool(strengths.isfinite().all()):
            raise bad_argument("strength", self.strength, "a finite number, or one per prompt")
        if self.threshold is not None and self.condition is None:
            raise bad_argument("threshold", self.threshold, "None without a condition", "Give the direction to read it on.")

    @property
    def strengths(self) -> Tensor:
        """(1,) or one per prompt, float64."""
        try:
            found = torch.as_tensor(self.strength, dtype=torch.float64)
        except (TypeError, ValueError) as error:
            raise bad_argument("strength", self.strength, "a finite number, or one per prompt") from error
        if found.dim() > 1:
            raise bad_argument("strength", f"numbers of shape {tuple(found.shape)}", "a finite number, or one per prompt")
        return found.reshape(-1)

    def describe(self) -> dict[str, Any]:
        """As plain data."""
        positions = self.positions.tolist() if isinstance(self.positions, Tensor) else self.positions
        strength = self.strengths.tolist() if len(self.strengths) > 1 else float(self.strengths[0])
        record = {"direction": self.direction.name, "mode": self.mode, "strength": strength,
                  "positions": positions if isinstance(positions, str) else list(positions), "phase": self.phase}  # fmt: skip
        if self.condition is not None:
            record["condition"] = {"direction": self.condition.name, "threshold": _threshold(self)}
        return record


def edits(steering: Steering, norm: float = 1.0) -> list[Edit]:
    """The edits that steer; none at strength 0. `norm`: what a dose of 1 is, from `residual_norm`.

    Raises UsageError for a norm that is not positive, or a condition without a threshold.
    """
    if not 0 < norm < float("inf"):
        raise bad_argument("norm", norm, "a positive number", "See residual_norm.")
    doses = steering.strengths
    moved = doses.nonzero().flatten().tolist()
    if not moved:
        return []
    per_row = len(doses) > 1
    return [_edit(steering, doses if per_row else doses[0], norm, moved if per_row else None)]


def _edit(steering: Steering, doses: Tensor, norm: float, rows: list[int] | None) -> Edit:
    site, unit = steering.direction.site, steering.direction.vector
    where = (steering.positions, rows, steering.phase, _condition(steering))
    if steering.mode == "add":
        return add(site, ((doses * norm)[..., None] * unit.double()).float(), *where)
    if steering.mode == "project_out":
        return fade(site, unit, (1 - doses).float(), *where)
    maker = {"clamp": clamp, "cap": cap, "floor": floor}[steering.mode]
    return maker(site, unit, (doses * norm).float(), *where)


def _condition(steering: Steering) -> Condition | None:
    if steering.condition is None:
        return None
    return Condition(steering.condition.site, steering.condition.vector, _threshold(steering))


def _threshold(steering: Steering) -> float:
    """As given, or the middle that the condition's card keeps."""
    assert steering.condition is not None
    found = steering.threshold if steering.threshold is not None else steering.condition.threshold
    if found is None:
        raise bad_argument("threshold", None, "a number", "The condition's card keeps none: say where it begins.")
    return float(found)


def sweep(prompts: Sequence[Any], strengths: Sequence[float]) -> tuple[list[Any], list[float]]:
    """Every prompt at every strength as one list: all prompts at the first strength, then at the second, and so on."""
    return list(prompts) * len(strengths), [float(s) for s in strengths for _ in prompts]


def residual_norm(model: Model, site: str | Site, texts: Prompts) -> float:
    """Mean norm of activations at a site over the typical positions of texts: what a dose of 1 is.

    First positions are left out, and those above ten times the median norm at the site or its guard
    (`assay.features.massive`). Raises UsageError for texts of one token only.
    """
    import numpy as np

    from assay.features.massive import guard_of, norms_of
    from assay.features.passes import Group, walk_rows

    (place,) = model.sites(site)
    guard = guard_of(model, place)
    norms: dict[Site, list[Tensor]] = {place: [], guard: []}

    def take(group: Group, at: Site, values: Tensor) -> None:
        norms[at].append(norms_of(at, values)[group.positions > 0])

    rows = [np.asarray(ids) for ids in beginnings(model, texts) if len(ids) > 1]
    if not rows:
        raise bad_argument("texts", "texts of one token", "at least one text of two tokens or more")
    walk_rows(model, rows, list(norms), take)
    found = {at: torch.cat(parts) for at, parts in norms.items()}
    typical = torch.stack([sizes <= MASSIVE * sizes.median() for sizes in found.values()]).all(0)
    return float(found[place][typical].double().mean())
