"""JumpReLU (Rajamanoharan et al. 2024, arXiv 2407.14435): a latent is active above a threshold of its own.

1. value = pre where pre > threshold, else 0. The step has no gradient: thresholds learn through a rectangle of width
   `bandwidth` around them, d value / d threshold = -threshold / bandwidth, d L0 / d threshold = -1 / bandwidth.
2. Penalty: 6 (L0 / k - 1)^2 (the quadratic that aims at k, and at twice k to begin with: decision 008, 51), or with
   `penalty: "tanh"` tanh(4 x value x norm / scale).
3. Thresholds are raw numbers kept at 0 or more (under Adam the logarithm hardly moves), and start where each latent
   would be active for k / width of a first batch (half of it without a k, which `tanh` does not need); the bandwidth
   starts from the spread of pre-activations there.

Only pairs above threshold - bandwidth / 2, and above 0, take part in a step: all others have value and gradients zero. The
rectangle of a threshold below bandwidth / 2 is cut off at 0, since no threshold lets a negative pre-activation through.
"""

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.errors import bad_argument
from assay.features.codes import Codes, Pairs, above, read, values_at
from assay.features.dictionary import ARCHITECTURES, Dictionary, Objective, Spec, Stage, fvu
from assay.features.screened import Scores
from assay.features.world import deviation, following, world

WIDTH_IN_SPREADS, TANH = 1.5, 4.0  # narrower, too few pairs move a threshold, and latents die
AIM = 6.0  # times the weight of other penalties, or L0 stays above k


class JumpReLU(Dictionary):
    """A threshold per latent."""

    architecture: ClassVar[str] = "jumprelu"
    k_first: ClassVar[float] = 2.0
    option_names: ClassVar[tuple[str, ...]] = ("penalty", "bandwidth", "input_norm")
    per_latent: ClassVar[tuple[str, ...]] = (*Dictionary.per_latent, "threshold")
    bandwidth: Tensor

    def __init__(self, spec: Spec, name: str = "") -> None:
        if spec.options.get("penalty", "quadratic") not in ("quadratic", "tanh"):
            raise bad_argument("penalty", spec.options["penalty"], "quadratic, tanh")
        super().__init__(spec, name)
        self.threshold = nn.Parameter(torch.zeros(spec.width))
        self.register_buffer("bandwidth", torch.tensor(float(spec.options.get("bandwidth", 0.0))))

    @property
    def steered(self) -> bool:
        return self.spec.options.get("penalty") == "tanh"

    @property
    def screens(self) -> bool:
        return True

    def select(self, pre: Scores) -> Codes:
        pairs = above(pre, self.threshold)
        return Codes(pairs, values_at(pre, pairs).relu())

    def choose(self, pre: Scores, stage: Stage) -> Pairs:
        return above(pre, (self.threshold - self.bandwidth / 2).clamp_min(0))

    def objective(self, x: Tensor, y: Tensor, stage: Stage) -> Objective:
        if self.spec.k is None and not self.steered:
            raise bad_argument("k", None, f"1 to {self.width}", "Its penalty aims at so many active latents.")
        with torch.no_grad():
            pre = self.scores(x)
            pairs = self.choose(pre, stage)
        inside = read(pre, x, self.W_enc, self.b_enc, self.shift, pairs)
        threshold = self.threshold[pairs.latents]
        values = jump(inside, threshold, self.bandwidth)
        found = self.rebuilt(x, values, pairs)
        cost = self.penalty(inside, values, threshold, pairs, stage)
        loss = fvu(y, found, stage.total) + stage.sparsity * cost + self.aux(x, y - found.detach(), stage)
        return Objective(loss, found, pairs, values, float(cost.detach()))

    def penalty(self, inside: Tensor, values: Tensor, threshold: Tensor, pairs: Pairs, stage: Stage) -> Float[Tensor, ""]:
        """How far from k active latents, or how many in the smooth count of `tanh`."""
        if self.spec.options.get("penalty") == "tanh":
            norms = self.W_dec.norm(dim=1)[pairs.latents]
            return world().total((TANH * values * norms / stage.total**0.5).tanh().sum() / pairs.n_tokens)
        l0 = following(world().total(step(inside, threshold, self.bandwidth).sum() / pairs.n_tokens))
        aim = min((self.spec.k or 1) * stage.k_scale, float(self.width * world().slices))
        return AIM * (l0 / aim - 1).square()

    @torch.no_grad()
    def start(self, x: Tensor, y: Tensor, generator: torch.Generator) -> None:
        super().start(x, y, generator)
        pre = self.pre(x)
        width = self.width * world().slices
        rank = max(1, round(len(x) * (self.spec.k or width / 2) / width))
        self.threshold.copy_(pre.topk(min(rank + 1, len(x)), dim=0).values[-2:].mean(0).clamp_min(0))  # between two of them
        if not float(self.bandwidth):
            self.bandwidth.copy_(WIDTH_IN_SPREADS * deviation(pre))

    @torch.no_grad()
    def after_step(self, found: Objective, stage: Stage) -> None:
        super().after_step(found, stage)
        self.threshold.clamp_(min=0)

    def fold_values(self, unit: float) -> None:
        self.threshold.div_(unit)
        self.bandwidth.div_(unit)


ARCHITECTURES.add("jumprelu", JumpReLU)


def jump(pre: Tensor, threshold: Tensor, bandwidth: Tensor) -> Tensor:
    """pre where it is above its threshold, else 0; the threshold's gradient through a rectangle."""
    return _Jump.apply(pre, threshold, bandwidth)  # type: ignore[return-value]


def step(pre: Tensor, threshold: Tensor, bandwidth: Tensor) -> Tensor:
    """1 where pre is above its threshold, else 0; gradients of both through a rectangle."""
    return _Step.apply(pre, threshold, bandwidth)  # type: ignore[return-value]


class _Jump(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: Tensor) -> Tensor:
        ctx.save_for_backward(pre, threshold, bandwidth)
        return torch.where(pre > threshold, pre, 0.0).relu()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (pre, threshold, bandwidth), grad = ctx.saved_tensors, grads[0]
        near = ((pre - threshold).abs() <= bandwidth / 2) / bandwidth.clamp_min(1e-12)
        return grad * (pre > threshold), -grad * threshold * near, None


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: Tensor) -> Tensor:
        ctx.save_for_backward(pre, threshold, bandwidth)
        return (pre > threshold).to(pre.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (pre, threshold, bandwidth), grad = ctx.saved_tensors, grads[0]
        near = grad * ((pre - threshold).abs() <= bandwidth / 2) / bandwidth.clamp_min(1e-12)
        return near, -near, None
