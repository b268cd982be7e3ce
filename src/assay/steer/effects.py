"""What a push does to a behaviour: many directions and strengths over the same prompts, in one batch.

1. A *push* is a direction with a strength; `How` is all that is the same for the pushes of one measurement (mode, positions,
   phase, condition, and the residual norm N that makes a strength a dose). The prompts are repeated once per push, each push
   has its own block of rows, and passes resume at the site's layer: rows never see the edits of other rows.
2. Behaviour: y = log-odds of answer against foil after the clean prompts of a task. Effects are (y(s) - y(0)) / span with span
   = mean of clean - corrupted, so 1 is as much as the task's own contrast. Means and intervals are over templates.
3. Per item: the effect on every prompt, and `reversed`, the share of prompts whose least-squares slope over the strengths has
   the opposite sign of the mean slope (Tan et al. 2024, arXiv 2407.12404, find up to half on some data sets).
4. Controls: random directions from three pools (isotropic, covariance of activations, single units) at the same norm and
   strength; the same numbers at other layers, at the same dose.

A next-token effect does not show what longer text will say: see `fluency` and `judge`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from assay.data.metrics import Metric
from assay.data.prepare import PreparedTask
from assay.errors import TaskError, bad_argument
from assay.model.edits import Edit, Phase
from assay.model.model import Model
from assay.probe.variants import chunks, place_of, random_subspaces, tune_tokens, width
from assay.sites import parse_site
from assay.statistics import cluster_means, interval
from assay.steer.apply import Mode, Steering, edits
from assay.steer.directions import Direction

Progress = Callable[[str, int, int], None]
ROWS = 768  # prompts times pushes in one call
SMALLEST_SPAN = 0.05  # nats: below it the task has no contrast to measure effects by


@dataclass(frozen=True, eq=False)
class How:
    """How directions are applied, all but the strength. `norm`: what a dose of 1 is. `positions`: all or last."""

    norm: float
    mode: Mode = "add"
    positions: str = "all"
    phase: Phase = "all"
    condition: Direction | None = None
    threshold: float | None = None

    def __post_init__(self) -> None:
        if self.positions not in ("all", "last"):
            raise bad_argument("positions", self.positions, "all or last")

    def steering(self, direction: Direction, strength: float | Sequence[float]) -> Steering:
        """One direction, applied this way. Raises UsageError for a mode, phase or strength that there is not."""
        return Steering(direction, self.mode, strength, self.positions, self.phase, self.condition, self.threshold)

    def on_prompts(self) -> "How":
        """As measured on the next token of a prompt: steering of generated tokens only would change nothing there, so the
        prompt's last position counts as one of them."""
        return replace(self, phase="last") if self.phase == "generated" else self

    def on_texts(self) -> "How":
        """As measured on whole texts: every position of a text stands for a generated one."""
        return replace(self, phase="all") if self.phase in ("generated", "last") else self


@dataclass(frozen=True, eq=False)
class Push:
    """A direction and the strength it is applied with."""

    direction: Direction
    strength: float


@dataclass(frozen=True)
class Effect:
    """Shares of the task's contrast: mean of template means, its 95% interval, and one number per item."""

    mean: float
    low: float | None
    high: float | None
    items: tuple[float, ...]


def pushed_edits(pushes: Sequence[Push], how: How, each: int) -> list[Edit]:
    """Edits of a list of prompts in which push k has the rows k * each to (k + 1) * each. No edit for strength 0."""
    if how.mode == "add":
        return _added(pushes, how, each)
    found: list[Edit] = []
    for direction in {id(push.direction): push.direction for push in pushes}.values():
        doses = [push.strength if push.direction is direction else 0.0 for push in pushes for _ in range(each)]
        found += edits(how.steering(direction, doses), how.norm)
    return found


def _added(pushes: Sequence[Push], how: How, each: int) -> list[Edit]:
    """All directions in one edit: a vector per row."""
    rows = [row for row in range(len(pushes) * each) if pushes[row // each].strength]
    if not rows:
        return []
    (edit,) = edits(how.steering(pushes[0].direction, 1.0), how.norm)
    value = torch.stack([(push.strength * how.norm * push.direction.vector.double()).float() for push in pushes])
    every = len(rows) == len(pushes) * each
    return [replace(edit, value=value.repeat_interleave(each, 0), rows=None if every else tuple(rows))]


def scores(
    model: Model, prompts: Sequence[list[int]], metric: Metric, pushes: Sequence[Push], how: How
) -> Float[Tensor, "push prompt"]:
    """The metric of every prompt under every push; all pushes are at one site. Raises UsageError for several sites."""
    if len(sites := {push.direction.site for push in pushes}) != 1:
        raise bad_argument("pushes", f"directions at {', '.join(sorted(sites)) or 'no site'}", "directions at one site")
    layer = min(parse_site(sites.pop()).layer or 0, model.n_layers - 1)
    how = how.on_prompts()
    resume = model.checkpoint(prompts, [layer]) if layer > 0 else None
    out = torch.empty(len(pushes), len(prompts))
    step = max(1, ROWS // len(prompts))
    for start in range(0, len(pushes), step):
        group = pushes[start : start + step]
        tiled = list(range(len(prompts))) * len(group)
        found = model.score([prompts[row] for row in tiled], metric.select(tiled), edits=pushed_edits(group, how, len(prompts)),
                            resume=None if resume is None else resume.select(tiled))  # fmt: skip
        out[start : start + len(group)] = found.view(len(group), len(prompts))
    return out


# effects on a task -------------------------------------------------------------------------------


def span_of(model: Model, task: PreparedTask) -> tuple[Float[Tensor, " item"], float]:
    """Log-odds after the clean prompts, and the task's contrast in nats: mean over templates of clean - corrupted.

    Raises TaskError where the model does not tell the two apart: effects would be shares of nothing.
    """
    metric = task.metric("logit_diff")
    clean, corrupted = (model.score(side, metric) for side in (task.clean, task.corrupted))
    means = cluster_means((clean - corrupted).tolist(), task.templates)
    span = sum(means.values()) / len(means)
    if not span > SMALLEST_SPAN:
        raise TaskError(f"the model does not have this behaviour: log-odds after clean and corrupted prompts differ by"
                        f" {span:.3f} nats on {len(task)} pairs; at least {SMALLEST_SPAN:g} are needed."
                        " See: assay tasks MODEL.")  # fmt: skip
    return clean, span


def effect_of(moved: Sequence[float], templates: Sequence[str]) -> Effect:
    """Summary of one effect per item; no interval below two templates."""
    means = list(cluster_means(list(moved), templates).values())
    return Effect(sum(means) / len(means), *interval(means), tuple(float(value) for value in moved))


def slopes(strengths: Sequence[float], effects: Float[np.ndarray, "strength item"]) -> Float[np.ndarray, " item"]:
    """Least-squares slope of every item's effect over the strengths."""
    centred = np.asarray(strengths, float) - np.mean(strengths)
    return centred @ np.asarray(effects, float) / float(centred @ centred)


def reversed_share(found: Float[np.ndarray, " item"]) -> float:
    """Share of items whose slope has the opposite sign of the mean slope; one that does not move is not reversed."""
    towards = np.sign(found.mean())
    return float((found * towards < 0).mean())


# controls ----------------------------------------------------------------------------------------


def random_directions(
    model: Model, direction: Direction, prompts: Sequence[list[int]], n: int, seed: int
) -> dict[str, Direction]:
    """n random unit directions at a direction's site, in turn from three pools while the units last; name -> direction."""
    _, centred = tune_tokens(model, prompts, place_of(model, direction.site, "all"))
    drawn = random_subspaces(centred, direction.vector[None], n, seed)
    return {name: replace(direction, vector=basis[0], method="random", source={"kind": "random", "pool": name}, card={})
            for name, basis in list(drawn.items())[:n]}  # fmt: skip


def size_of(model: Model, push: Push, how: How, prompts: Sequence[list[int]]) -> float:
    """Root mean square of how far a push moves activations behind the first token of prompts, in doses: of *add* the strength
    itself; of the other modes it hangs on what is there, of *cap* and *floor* also on where they take hold."""
    dose = push.strength * how.norm
    if how.mode == "add":
        return abs(push.strength)
    site, vector = place_of(model, push.direction.site, "all").site, push.direction.vector.float().cpu()
    parts = [part.float().cpu() @ vector for rows in chunks([len(ids) for ids in prompts], width(model, site))
             for part in model.capture([prompts[row] for row in rows], site).rows(site)]  # fmt: skip
    along = torch.cat([part[min(1, len(part) - 1) :] for part in parts]).double()
    moved = {"project_out": push.strength * along, "clamp": dose - along, "cap": (dose - along).clamp(max=0),
             "floor": (dose - along).clamp(min=0)}[how.mode]  # fmt: skip
    return float(moved.square().mean().sqrt()) / how.norm


def matched(push: Push, how: How, size: float, random: Direction) -> tuple[Push, How]:
    """A random direction that moves activations as far as a push does, and how: by adding it, unless the push adds too."""
    if how.mode == "add":
        return Push(random, push.strength), how
    return Push(random, size), replace(how, mode="add")


def other_layers(
    model: Model, direction: Direction, most: int = 3, apart: int = 2, condition: Direction | None = None
) -> list[Direction]:
    """The same numbers at up to `most` other layers, evenly spread and at least `apart` layers away; none without layers.
    With a condition only where that has been read."""
    site = parse_site(direction.site)
    if site.layer is None:
        return []
    read = None if condition is None else parse_site(condition.site)
    first = 0 if read is None or read.layer is None else read.layer + (site.name not in ("resid_post", read.name))
    far = [layer for layer in range(first, model.n_layers) if abs(layer - site.layer) > apart]
    far = far or [layer for layer in range(first, model.n_layers) if layer != site.layer]
    picked = sorted({far[round(place)] for place in np.linspace(0, len(far) - 1, min(most, len(far)))}) if far else []
    return [replace(direction, site=str(replace(site, layer=layer))) for layer in picked]


def percentile_of(effect: float, controls: Sequence[float]) -> float:
    """Share of control effects of smaller size, counted with the effect among them: at most n / (n + 1), never 1."""
    below = sum(abs(control) < abs(effect) for control in controls)
    return below / (len(controls) + 1)
