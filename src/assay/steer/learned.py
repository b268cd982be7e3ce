"""A direction trained through the model: the one that most raises a behaviour within a budget.

1. add: x + N w, N the mean residual norm at the site and |w| at most `dose`.
   set: x + (b - x.u) u, a rank-1 change of the identity (LoReFT of rank 1 with a constant target, Wu et al. 2024), with b at
   most `dose` N from the mean of x.u over the pairs at the start. It starts at the u along which adding helps most.
2. Loss on tune pairs: mean of softplus(-m), m the log-odds of answer against foil after clean and after corrupted prompts, so
   that a vector cannot win by what clean prompts have already.
3. Penalty: kl_weight x mean KL(plain || steered) of next-token distributions at several places of ordinary texts.
4. Steps along the gradient, `rate` of the budget (of u: of a radian) where it is steepest so far, less where it is flatter,
   then back into the budget. A step that does not lower the loss is not taken, and the rate is halved. Optimisers that scale
   each coordinate would turn the direction.
5. The whole loss on held-out pairs of other templates is measured every few steps; the best state is kept, and training stops
   when it has not improved for `patience` measurements. Nothing is drawn at random.

What is learned is a handle on tune data. Whether it steers other prompts is for confirm data to say.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from assay.data.metrics import kl
from assay.data.prepare import PreparedTask, beginnings
from assay.errors import ModelError, UsageError, bad_argument
from assay.model.edits import Edit, add, clamp
from assay.model.hooks import ignore
from assay.model.model import Model, Prompts
from assay.records import digest
from assay.sites import Site
from assay.steer.directions import TOWARDS_ANSWER, Direction, _direction, vector_site

Report = Callable[[int, int], None]
SMALLEST = 1e-6  # rate of a step
CUTS = (0.5, 0.75, 1.0)  # where ordinary texts are read, as shares of their length


@dataclass(frozen=True)
class LearnPlan:
    """How a direction is trained. `dose`: the budget, as a fraction of the mean residual norm; `rate`: of the budget per step.

    Raises UsageError for numbers that mean nothing.
    """

    dose: float = 0.2
    mode: Literal["add", "set"] = "add"
    positions: Literal["all", "last"] = "all"
    steps: int = 60
    rate: float = 0.2
    kl_weight: float = 1.0
    every: int = 5
    patience: int = 4

    def __post_init__(self) -> None:
        for name in ("dose", "rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise bad_argument(name, getattr(self, name), "a positive number")
        for name in ("steps", "every", "patience"):
            if getattr(self, name) < 1:
                raise bad_argument(name, getattr(self, name), "1 or more")
        if not 0 <= self.kl_weight < math.inf:
            raise bad_argument("kl_weight", self.kl_weight, "0 or more")
        if self.mode not in ("add", "set") or self.positions not in ("all", "last"):
            raise bad_argument("mode, positions", f"{self.mode}, {self.positions}", "add or set; all or last")


def learned(
    model: Model, task: PreparedTask, site: str | Site, held_out: PreparedTask, norm: float, texts: Prompts = (),
    plan: LearnPlan = LearnPlan(), source: Mapping[str, Any] | None = None, report: Report | None = None,
) -> Direction:  # fmt: skip
    """Train a direction on the pairs of `task`; `norm` is what a dose of 1 is (`residual_norm`), `texts` are ordinary ones.

    The card's `dose` is the strength it was trained to be applied with (of set: as a clamp), `mode` says how. Raises UsageError
    where held-out pairs share a template with the pairs or where nothing helps them, ModelError where training diverges.
    """
    place = vector_site(model, site)
    if shared := set(task.templates) & set(held_out.templates):
        raise bad_argument("held_out", f"{len(shared)} templates that training sees", "pairs of other templates")
    if not 0 < norm < math.inf:
        raise bad_argument("norm", norm, "a positive number", "See residual_norm.")
    if plan.kl_weight and not len(texts):
        raise bad_argument("texts", "none", "ordinary texts for the KL penalty, or kl_weight 0")
    run = _Training(model, place, plan, norm, _ordinary(model, texts) if plan.kl_weight else [])
    best, history = run.fit(task, held_out, report)
    adds = plan.mode == "add"
    raw, dose = (best * norm, float(best.norm())) if adds else (best[:-1], run.start / norm + float(best[-1]))
    source = {"kind": "task", **(source or {}), "n": len(task), "held_out": len(held_out),
              "texts": digest([[pair.clean, pair.corrupted] for pair in (*task.pairs, *held_out.pairs)])}  # fmt: skip
    card = {"dose": dose, "mode": "add" if adds else "clamp", "residual_norm": norm, "plan": asdict(plan), **history}
    convention = {"positions": plan.positions, "sign": TOWARDS_ANSWER}
    return _direction(model, place, raw, f"learned_{plan.mode}", convention, source, card)


def _ordinary(model: Model, texts: Prompts) -> list[list[int]]:
    """Beginnings of ordinary texts, each read at its last token."""
    found: dict[tuple[int, ...], None] = {}
    for ids in beginnings(model, texts):
        found.update((tuple(ids[: max(2, round(cut * len(ids)))]), None) for cut in CUTS if len(ids) > 1)
    if not found:
        raise bad_argument("texts", "texts of one token", "at least one text of two tokens or more")
    return [list(ids) for ids in found]


class _Training:
    """One training run. The state is w (d,) in doses; of set, u and beside it how far b is from its start, (d + 1,)."""

    def __init__(self, model: Model, site: Site, plan: LearnPlan, norm: float, ordinary: list[list[int]]) -> None:
        self.model, self.site, self.plan, self.norm, self.ordinary = model, site, plan, norm, ordinary
        self.width = (model.feature_shape(site) or (0,))[0]
        self.steepest, self.start, self.rate = [0.0, 0.0], 0.0, plan.rate
        self.plain = model.logits(ordinary).float() if ordinary else torch.empty(0)

    def fit(self, task: PreparedTask, held_out: PreparedTask, report: Report | None) -> tuple[Tensor, dict[str, Any]]:
        """The best state and how training went. Raises UsageError where none helps held-out pairs."""
        zero = torch.zeros(self.width)
        before = kept = self._loss(held_out, zero)
        state = best = self._first(task, zero) if self.plan.mode == "set" else zero
        left, done, fresh, here = self.plan.patience, 0, False, self._slope(task, state)
        while done < self.plan.steps and left and self.rate > SMALLEST and bool(here[1].any()):
            trial = self._stepped(state, here[1])
            there = self._slope(task, trial)
            if there[0] < here[0]:
                state, here, fresh = trial, there, True
            else:
                self.rate /= 2
            done += 1
            if report:
                report(done, self.plan.steps)
            if fresh and (done % self.plan.every == 0 or done == self.plan.steps):
                now, fresh = self._loss(held_out, state), False
                better = now.total < kept.total
                left = self.plan.patience if better else left - 1
                best, kept = (state, now) if better else (best, kept)
        if kept is before:
            raise UsageError(f"learning at {self.site}: no step made the loss on held-out pairs less than {before.total:.4g}."
                             " Take another site, more pairs, or a smaller rate or kl_weight.")  # fmt: skip
        return best, {"steps": done, "stopped_early": not left, "held_out": {"before": asdict(before), "after": asdict(kept)}}

    def _first(self, task: PreparedTask, zero: Tensor) -> Tensor:
        """Where set begins: along the steepest way to add, at the mean read-out."""
        _, slope = self._slope(task, zero)
        if not bool(slope.any()):
            raise UsageError(f"learning at {self.site}: answer and foil do not depend on it. Take an earlier site.")
        u = -torch.nn.functional.normalize(slope, dim=0)
        acts = self.model.capture([*task.clean, *task.corrupted], self.site, positions=self.plan.positions).flat(self.site)
        self.start = float((acts.float() @ u).mean())
        return torch.cat([u, torch.zeros(1)])

    def _stepped(self, state: Tensor, slope: Tensor) -> Tensor:
        """One step along the gradient, back into the budget."""
        rate, dose = self.rate, self.plan.dose
        if self.plan.mode == "add":
            moved = state - rate * dose * self._scaled(slope, 0)
            return moved * min(1.0, dose / max(float(moved.norm()), 1e-12))
        u, across = state[:-1], slope[:-1] - (slope[:-1] @ state[:-1]) * state[:-1]
        level = (state[-1:] - rate * dose * self._scaled(slope[-1:], 1)).clamp(-dose, dose)
        return torch.cat([torch.nn.functional.normalize(u - rate * self._scaled(across, 0), dim=0), level])

    def _scaled(self, slope: Tensor, part: int) -> Tensor:
        """A gradient over the largest norm it had so far."""
        wide = slope.double()
        self.steepest[part] = max(self.steepest[part], float(wide.norm()))
        return (wide / max(self.steepest[part], 1e-30)).float()

    def _loss(self, task: PreparedTask, w: Tensor) -> "Loss":
        """The parts of the loss on some pairs."""
        with torch.no_grad():
            odds = torch.cat([values for values, _ in self._odds(task, w)])
            lost = [values.mean() * share for values, share in self._lost(w)]
        kl_mean = float(sum(lost))
        wrong = float(torch.nn.functional.softplus(-odds).mean())
        found = Loss(wrong + self.plan.kl_weight * kl_mean, float(odds.mean()), kl_mean)
        self._finite(found.total)
        return found

    def _slope(self, task: PreparedTask, state: Tensor) -> tuple[float, Tensor]:
        """The loss and its gradient, pass by pass. Raises ModelError where they are not finite."""
        state = state.clone().requires_grad_(True)
        value, slope = 0.0, torch.zeros_like(state)
        parts = ((torch.nn.functional.softplus(-odds).mean() * share for odds, share in self._odds(task, state)),
                 (self.plan.kl_weight * lost.mean() * share for lost, share in self._lost(state)))  # fmt: skip
        for part in itertools.chain(*parts):
            value += float(part.detach())
            slope += torch.autograd.grad(part, state)[0]
        self._finite(value, slope)
        return value, slope

    def _finite(self, value: float, slope: Tensor | None = None) -> None:
        if not math.isfinite(value) or (slope is not None and not bool(slope.isfinite().all())):
            raise ModelError(f"learning at {self.site} diverged: loss or gradient are not finite. Take a smaller dose, or load"
                             " the model in fp32.")  # fmt: skip

    def _odds(self, task: PreparedTask, w: Tensor) -> Iterator[tuple[Tensor, float]]:
        """The metric of clean and corrupted prompts under w, and the share of all prompts, pass by pass."""
        metric = task.metric("logit_diff").select([*range(len(task)), *range(len(task))])
        for logits, rows, share in self._passes([*task.clean, *task.corrupted], w):
            yield metric(logits, rows), share

    def _lost(self, w: Tensor) -> Iterator[tuple[Tensor, float]]:
        """KL(plain || steered) at the ends of ordinary texts."""
        for logits, rows, share in self._passes(self.ordinary, w):
            yield kl(self.plain[rows.cpu()].to(logits.device), logits), share

    def _passes(self, prompts: list[list[int]], w: Tensor) -> Iterator[tuple[Tensor, Tensor, float]]:
        """Last-position logits under w, with their graph where w has one."""
        gradients = w.requires_grad
        for rows in self.model.batches(prompts, gradients=gradients) if prompts else []:
            logits = self.model.walk([prompts[row] for row in rows], self.site, ignore, edits=self._edits(w), logits=True,
                                     gradients=gradients)  # fmt: skip
            assert logits is not None
            yield logits, torch.tensor(rows, device=logits.device), len(rows) / len(prompts)

    def _edits(self, state: Tensor) -> list[Edit]:
        self._finite(float((self.norm * state.detach()).abs().max()))
        if len(state) == self.width:
            return [add(self.site, self.norm * state, self.plan.positions)]
        return [clamp(self.site, state[:-1], self.start + self.norm * state[-1], self.plan.positions)]


@dataclass(frozen=True)
class Loss:
    """Of some pairs: the whole loss, mean log-odds of answer against foil, and mean KL on ordinary texts, in nats."""

    total: float
    log_odds: float
    kl: float
