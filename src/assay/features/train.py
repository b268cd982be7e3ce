"""Training dictionaries: one loop for every architecture, many dictionaries in one pass over the activations.

1. A first batch gives each dictionary its scales (E|x| = sqrt(d) per site) and its start (`Dictionary.start`).
2. One step: scale, `objective`, gradients clipped to norm `clip`, decoder gradients projected, fused Adam, constraints.
   The learning rate rises over `warmup` of the steps, and falls to 0 over the last `decay` of them.
3. A latent is dead when it has not fired for `dead_after` tokens; the auxiliary loss is for those. The window is a share
   of the run: one of a thousand steps never sees a death in a short run.
4. Where an architecture has a penalty and a target k, its weight is steered: log weight moves with log(L0 / k).
5. Every `checkpoint_every` steps all state goes into one file, written beside and renamed. Batches are numbered and
   random numbers are drawn by step, so that a run that was killed ends with the same numbers, bit for bit.
6. Loss that is not finite, or FVU far above where it has been, stops the run with what to change: nothing is kept of it.
7. At the end thresholds are set on a batch by the final weights, and scales are folded into the weights: the folded
   dictionary must reconstruct that batch as it did before (the median token; rounding may turn a latent on or off).

Several processes (`world.py`) read the same batches and hold the whole dictionary, or a slice of its latents each; the kept
state is that of one process.

The loss is a fraction of variance: the same learning rate serves all sites and models.
"""

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from assay import large_pages
from assay.errors import StoreError, UsageError, bad_argument
from assay.features.dictionary import Dictionary, Objective, Spec, Stage, fvu, make_dictionary, site_scales, spread_total
from assay.features.stream import ActivationStream, Batch, TensorStream
from assay.features.world import world
from assay.files import write_file

Report = Callable[[str, int, int], Any]
STEER, STEERED = 0.03, 6.0  # of the penalty's logarithm: a step at most, a whole run at most (faster, L0 falls past k)
LOG_EVERY, DIVERGED, FEW_STEPS = 10, 3.0, 20
CHECKPOINT = "checkpoint.safetensors"
FOLD_TOLERANCE = 1e-4
LEAST_SPREAD = 1e-9  # of scaled activations, whose mean square is about 1
DIVIDED = ("topk", "batchtopk", "relu", "jumprelu")  # whose latents may be divided over processes


@dataclass(frozen=True)
class TrainPlan:
    """How to train. `tokens`: in all, in batches of `batch`. `warmup`, `decay`, `k_anneal`: shares of the steps.

    `sparsity`: weight of the penalty (of relu, jumprelu, gated); it rises from 0 over the warm-up, and is steered from there
    where a relu, a gated or a jumprelu with `penalty: "tanh"` has a k.
    `k_start`: active latents at the first step, falling to k over `k_anneal`; default: `k_first` times k, as the architecture
    has it. `dead_after`: tokens; default: a hundredth
    of the run, ten batches at least. `optimiser`: adam or signum (signs of momentum). `frozen`: parameters that stay as
    they start (W_dec: the control whose directions were never fitted).
    """

    tokens: int = 1_000_000
    batch: int = 2048
    lr: float = 3e-3
    betas: tuple[float, float] = (0.9, 0.95)
    warmup: float = 0.02
    decay: float = 0.3
    clip: float = 1.0
    sparsity: float = 0.05
    k_start: int | None = None
    k_anneal: float = 0.1
    dead_after: int | None = None
    optimiser: str = "adam"
    frozen: tuple[str, ...] = ()
    seed: int = 0
    checkpoint_every: int = 200

    def __post_init__(self) -> None:
        for name in ("tokens", "batch", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise bad_argument(name, getattr(self, name), "1 or more")
        for name in ("lr", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise bad_argument(name, getattr(self, name), "above 0")
        for name in ("warmup", "decay", "k_anneal"):
            if not 0 <= getattr(self, name) <= 1:
                raise bad_argument(name, getattr(self, name), "0 to 1, a share of training")
        if self.k_start is not None and self.k_start < 1:
            raise bad_argument("k_start", self.k_start, "1 or more")
        if self.optimiser not in ("adam", "signum"):
            raise bad_argument("optimiser", self.optimiser, "adam, signum")
        if not 0 <= self.sparsity < math.inf:
            raise bad_argument("sparsity", self.sparsity, "0 or more")

    @property
    def steps(self) -> int:
        """Optimiser steps."""
        return max(1, self.tokens // self.batch)

    @property
    def death(self) -> int:
        """Tokens without firing after which a latent is dead."""
        return self.dead_after if self.dead_after is not None else max(10 * self.batch, self.tokens // 100)


@dataclass(frozen=True)
class Log:
    """One line of a training history. `dead`: share of latents; `l0`: active latents per token."""

    step: int
    tokens: int
    loss: float
    fvu: float
    l0: float
    dead: float
    lr: float
    sparsity: float


@dataclass(frozen=True, eq=False)
class Trained:
    """A dictionary and how its training went."""

    dictionary: Dictionary
    history: tuple[Log, ...]
    seconds: float


@dataclass(eq=False)
class _Member:
    """One dictionary in training."""

    dictionary: Dictionary
    whole: Spec  # of all slices together
    optimiser: torch.optim.Optimizer
    scale_in: Tensor
    scale_out: Tensor
    total: float
    silent: Tensor  # tokens since each latent fired
    sparsity: float
    best: float = math.inf
    recent: list[float] = field(default_factory=list)
    history: list[Log] = field(default_factory=list)
    seconds: float = 0.0


def train(
    stream: ActivationStream,
    specs: Sequence[Spec],
    plan: TrainPlan,
    folder: Path | None = None,
    report: Report | None = None,
    names: Sequence[str] = (),
    keep: bool = False,
) -> list[Trained]:
    """Dictionaries of these specs, trained on the same batches. With `folder`, state is kept there and taken up again. It is
    deleted at the end; with `keep` not before `forget`, for who has not written the dictionaries yet.

    Raises UsageError for sites the stream does not have, for divergence, and for a kept state of another run.
    """
    try:
        training = Training(stream, specs, plan, names)
        if folder is not None:
            training.take_up(folder / CHECKPOINT)
        while training.done < plan.steps:
            training.step()
            if report is not None:
                report(training.words(), training.done, plan.steps)
            if folder is not None and training.done % plan.checkpoint_every == 0 and training.done < plan.steps:
                training.keep(folder / CHECKPOINT)
        if folder is not None and keep:
            training.keep(folder / CHECKPOINT)
        found = training.finish()
    finally:
        large_pages.give_back()  # of a training that was stopped, too
    if folder is not None and not keep and world().rank == 0:
        forget(folder)
    return found


def forget(folder: Path) -> None:
    """Delete the state of a training whose dictionaries are kept. Raises StoreError where that cannot be."""
    try:
        (folder / CHECKPOINT).unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(f"{folder / CHECKPOINT}: cannot be deleted ({error.strerror}).") from error


class Training:
    """Dictionaries in training, step by step; `done` steps so far."""

    def __init__(self, stream: ActivationStream, specs: Sequence[Spec], plan: TrainPlan, names: Sequence[str] = ()) -> None:
        large_pages.ask()
        specs = [_completed(spec, stream) for spec in specs]
        if plan.batch % world().parts:
            raise bad_argument("batch", plan.batch, f"a multiple of {world().parts}, the number of processes")
        self.stream, self.plan, self.done = stream, plan, 0
        self.identity = _identity(stream, specs, plan)
        batches = iter(stream.batches(plan.batch, plan.seed))
        self._first = next(batches)
        self._batches: Iterator[Batch] | None = chain([self._first], batches)  # a first block may be costly: it is read once
        given = zip(specs, names or [""] * len(specs), strict=True)
        self.members = [_begin(spec, name, self._first, plan, number) for number, (spec, name) in enumerate(given)]

    def step(self) -> None:
        """One batch for every dictionary."""
        if self._batches is None:
            self._batches = iter(self.stream.batches(self.plan.batch, self.plan.seed, self.done))
        batch = next(self._batches)
        batch = world().share(batch)
        for member in self.members:
            _advance(member, batch, self.plan, self.done)
        self.done += 1
        large_pages.ask()

    def words(self) -> str:
        """Where it is, in a few words."""
        last = [member.history[-1] for member in self.members]
        losses, fvus = (_range([getattr(line, name) for line in last]) for name in ("loss", "fvu"))
        l0 = sum(line.l0 for line in last) / len(last)
        return f"loss {losses}, FVU {fvus}, L0 {l0:.0f}, dead {max(line.dead for line in last):.0%}"

    def keep(self, path: Path) -> None:
        """Write all state, to go on from: the same file, however many processes train."""
        if world().rank == 0 or world().slices > 1:
            _keep(path, self.members, self.identity, self.done)

    def take_up(self, path: Path) -> None:
        """Go on from what `keep` wrote, if it is there. Raises UsageError for the state of another run."""
        self.done = _take_up(path, self.members, self.identity)
        if self.done:
            self._batches = None

    def finish(self) -> list[Trained]:
        """Thresholds set, scales folded, provenance written: what is kept. Of divided latents process 0 gets all, to be used
        after the processes have parted."""
        found = [_finish(member, self._first, self.stream, self.plan) for member in self.members]
        large_pages.give_back()
        return found


def _range(values: Sequence[float]) -> str:
    """Of several members the least and the greatest."""
    low, high = min(values), max(values)
    return f"{low:.3f}" if len(values) == 1 else f"{low:.3f} to {high:.3f}"


def refit(dictionary: Dictionary, acts: Float[Tensor, "token d"]) -> Dictionary:
    """The recipe of a dictionary once more, on other activations of one site. Raises UsageError where it has none."""
    record = dictionary.provenance.get("plan")
    if record is None or dictionary.spec.transcodes:
        raise UsageError(f"dictionary {dictionary.name}: it has no recipe that one site's activations are enough for.")
    plan = plan_of(record, dictionary.spec.k)
    plan = replace(plan, batch=min(plan.batch, len(acts)))
    site = dictionary.spec.inputs or ("acts",)
    stream = TensorStream({site[0]: acts})
    spec = replace(dictionary.spec, inputs=site, outputs=site, norm_limit=None, target_limit=None)
    return train(stream, [spec], plan)[0].dictionary


def plan_of(record: Mapping[str, Any], k: int | None) -> TrainPlan:
    """From what the provenance of a dictionary with k active latents keeps."""
    first = record.get("k_start") or k  # where it says nothing, k was the same from the start
    return TrainPlan(**{**record, "k_start": first, "betas": tuple(record["betas"]), "frozen": tuple(record.get("frozen", ()))})


def with_recipe(dictionary: Dictionary) -> Dictionary:
    """Give a dictionary whose recipe is known the method `refit(acts)`, which controls ask for."""
    if dictionary.provenance.get("plan") is not None and not dictionary.spec.transcodes:
        dictionary.refit = lambda acts: refit(dictionary, acts)  # type: ignore[assignment]
    return dictionary


# one step ----------------------------------------------------------------------------------------


def rate(plan: TrainPlan, step: int) -> float:
    """The learning rate of a step: a linear rise, a plateau, a linear fall."""
    rise = min(1.0, (step + 1) / max(1, round(plan.warmup * plan.steps)))
    fall = min(1.0, (plan.steps - step) / max(1, round(plan.decay * plan.steps)))
    return plan.lr * min(rise, fall)


def k_scale(plan: TrainPlan, k: int | None, step: int, first: float = 1.0) -> float:
    """How many times k latents are active at a step; `first` times at the first one, where the plan does not say."""
    if k is None or not plan.k_anneal:
        return 1.0
    first = first if plan.k_start is None else plan.k_start / k
    left = max(0.0, 1 - step / (plan.k_anneal * plan.steps))
    return 1 + (first - 1) * left


def _advance(member: _Member, batch: Batch, plan: TrainPlan, step: int) -> None:
    began = time.perf_counter()
    dictionary, spec = member.dictionary, member.dictionary.spec
    x = gathered(batch, spec.inputs) * member.scale_in
    y = gathered(batch, spec.outputs) * member.scale_out if spec.transcodes else x
    warm = min(1.0, (step + 1) / max(1, round(plan.warmup * plan.steps)))
    dead = member.silent >= plan.death
    k_now = k_scale(plan, spec.k, step, dictionary.k_first)
    stage = Stage(step, plan.steps, member.total, member.sparsity * warm, dead, k_now)
    lr = rate(plan, step)
    for group in member.optimiser.param_groups:
        group["lr"] = lr
    member.optimiser.zero_grad(set_to_none=True)
    found = dictionary.objective(x, y, stage)
    found.loss.backward()
    world().average(dictionary.parameters())
    _clip(dictionary, plan.clip)
    dictionary.project()
    member.optimiser.step()
    dictionary.after_step(found, stage)
    _observe(member, found, y, plan, step, lr)
    member.seconds += time.perf_counter() - began


@torch.no_grad()
def _clip(dictionary: Dictionary, most: float) -> None:
    """Gradients of all slices together to a norm of at most `most`."""
    grads = {name: each.grad for name, each in dictionary.named_parameters() if each.grad is not None}
    if world().slices == 1:
        norm = torch.nn.utils.get_total_norm(grads.values())
        if not norm <= most:
            torch.nn.utils.clip_grads_with_norm_(dictionary.parameters(), most, norm)
        return
    squares = {name: grad.square().sum() for name, grad in grads.items()}
    own = sum((squares[name] for name in grads if name in dictionary.per_latent), torch.zeros((), device=world().device))
    norm = (world().total(own) + sum(squares[name] for name in grads if name not in dictionary.per_latent)).sqrt()
    for grad in grads.values():
        grad.mul_((most / (norm + 1e-6)).clamp(max=1.0))


@torch.no_grad()
def _observe(member: _Member, found: Objective, y: Tensor, plan: TrainPlan, step: int, lr: float) -> None:
    """Count firings, steer the penalty, keep a line of history, stop what diverges."""
    latents = found.pairs.latents[found.values > 0]
    fired = torch.zeros_like(member.silent, dtype=torch.bool)
    fired[latents] = True
    member.silent += len(y) * world().parts
    member.silent[world().any(fired)] = 0
    share = fvu(y, found.reconstruction, member.total)
    told = torch.stack([found.loss.detach(), share, world().total(share.new_tensor(len(latents) / len(y)))]).double()
    loss, share, l0 = world().mean(told).tolist()
    k = member.dictionary.spec.k
    if member.dictionary.steered and k is not None:
        gain = min(STEER, STEERED / plan.steps)
        member.sparsity *= math.exp(gain * max(-1.0, min(1.0, math.log(max(l0, 1e-3) / k))))
    _check(member, loss, share, step, plan)
    if step % LOG_EVERY == 0 or step == plan.steps - 1:
        dead = float(world().total((member.silent >= plan.death).float().mean()) / world().slices)
        member.history.append(Log(step, (step + 1) * plan.batch, loss, share, l0, dead, lr, member.sparsity))


def _check(member: _Member, loss: float, share: float, step: int, plan: TrainPlan) -> None:
    member.recent = [*member.recent[-(FEW_STEPS - 1) :], share]
    mean = sum(member.recent) / len(member.recent)
    if math.isfinite(loss) and not (len(member.recent) == FEW_STEPS and mean > DIVERGED * max(member.best, 1 / DIVERGED)):
        member.best = min(member.best, mean) if len(member.recent) == FEW_STEPS else member.best
        return
    raise UsageError(
        f"training of {member.dictionary.name} diverged at step {step}: loss {loss:.3g}, FVU {share:.3g}"
        f" (best mean of {FEW_STEPS} steps: {member.best:.3g}). Try a lower learning rate than {plan.lr:g}, or more warm-up."
    )


def gathered(batch: Batch, sites: Sequence[str]) -> Float[Tensor, "token d"]:
    """The sites of a batch side by side."""
    parts = [batch[site] for site in sites]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


# beginning and end -------------------------------------------------------------------------------


def _completed(spec: Spec, stream: ActivationStream) -> Spec:
    """A spec with what the stream knows: widths, and which positions are left alone."""
    inputs = spec.inputs or stream.sites[:1]
    outputs = spec.outputs or inputs
    for site in (*inputs, *outputs):
        if site not in stream.sites:
            raise bad_argument("site", site, ", ".join(stream.sites), "Only harvested sites can be trained on.")
    d_in, d_out = (sum(stream.sizes[site] for site in sites) for sites in (inputs, outputs))
    if (spec.d_in, spec.d_out) != (d_in, d_out):
        raise bad_argument("d_in, d_out", (spec.d_in, spec.d_out), f"{d_in}, {d_out}", "What the sites have.")
    if spec.skip and inputs == outputs:
        raise bad_argument("skip", True, "False where a site reconstructs itself", "The linear path alone would be perfect.")
    limits = [stream.norm_limits.get(sites[0]) if len(sites) == 1 else None for sites in (inputs, outputs)]
    return replace(spec, inputs=inputs, outputs=outputs, skip_first=stream.skip_first, norm_limit=limits[0],
                   target_limit=limits[1])  # fmt: skip


def _slice(spec: Spec) -> Spec:
    """What this process holds of a dictionary. Raises UsageError where it cannot be divided."""
    slices = world().slices
    if slices == 1:
        return spec
    if spec.architecture not in DIVIDED:
        raise bad_argument("architecture", spec.architecture, ", ".join(DIVIDED), "Others: divide the batch, not the latents.")
    if spec.width % slices or spec.width // slices < (spec.k or 1):
        raise bad_argument("width", spec.width, f"a multiple of {slices}, the number of processes, and k latents in each")
    return replace(spec, width=spec.width // slices)


def _begin(whole: Spec, name: str, batch: Batch, plan: TrainPlan, number: int) -> _Member:
    spec = _slice(whole)
    if spec.options.get("decoder") == "free" and len(spec.outputs) > 1:
        raise bad_argument("decoder", "free, for several sites", "unit, or the architecture crosscoder",
                           "Each site has a scale of its own; in raw units other latents would be chosen.")  # fmt: skip
    dictionary = make_dictionary(spec, name)
    x, y = gathered(batch, spec.inputs), gathered(batch, spec.outputs)
    scale_in = site_scales(x, [batch[site].shape[1] for site in spec.inputs])
    scale_out = site_scales(y, [batch[site].shape[1] for site in spec.outputs])
    total = spread_total(y * scale_out)
    if not total > LEAST_SPREAD * y.shape[1]:
        raise bad_argument("batch", f"{len(y)} tokens that are all alike at {', '.join(spec.outputs)}",
                           "tokens that differ: there is nothing to explain in these", "Take a larger batch.")  # fmt: skip
    generator = torch.Generator().manual_seed(plan.seed * 7919 + 104729 + number)
    dictionary.start(x * scale_in, y * scale_out, generator)
    freeze(dictionary, plan.frozen)
    device = world().device
    dictionary.to(device)  # begun on the processor, so that it is the same on every device
    silent = torch.zeros(dictionary.width, dtype=torch.long, device=device)
    optimiser = make_optimiser(dictionary, plan)
    return _Member(dictionary, whole, optimiser, scale_in.to(device), scale_out.to(device), total, silent, plan.sparsity)


def freeze(dictionary: Dictionary, names: Sequence[str]) -> None:
    """Leave parameters as they are, a list of them whole. Raises UsageError for a name that is none."""
    for name in names:
        chosen = [value for key, value in dictionary.named_parameters() if key == name or key.startswith(f"{name}.")]
        if not chosen:
            raise bad_argument("frozen", name, ", ".join(key for key, _ in dictionary.named_parameters()))
        for parameter in chosen:
            parameter.requires_grad_(False)


def make_optimiser(dictionary: Dictionary, plan: TrainPlan) -> torch.optim.Optimizer:
    """Adam, or signum: the sign of momentum."""
    parameters = [parameter for parameter in dictionary.parameters() if parameter.requires_grad]
    if plan.optimiser == "adam":
        return torch.optim.Adam(parameters, lr=plan.lr, betas=plan.betas, eps=1e-8, fused=True)
    return Signum(parameters, plan.lr, plan.betas[1])


class Signum(torch.optim.Optimizer):
    """Steps by the sign of the running mean of gradients (Bernstein et al. 2018)."""

    def __init__(self, parameters: Sequence[torch.nn.Parameter], lr: float, momentum: float) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                mean = state.setdefault("mean", torch.zeros_like(parameter))
                mean.lerp_(parameter.grad, 1 - group["momentum"])
                parameter.sub_(mean.sign(), alpha=group["lr"])


def _finish(member: _Member, batch: Batch, stream: ActivationStream, plan: TrainPlan) -> Trained:
    dictionary, spec = member.dictionary, member.dictionary.spec
    x = gathered(batch, spec.inputs).to(world().device)
    dictionary.settle(x * member.scale_in)
    before = dictionary.reconstruct(x * member.scale_in) / member.scale_out
    dictionary.fold(member.scale_in, member.scale_out)
    apart = float(((before - dictionary.reconstruct(x)).norm(dim=1) / before.norm(dim=1).clamp_min(1e-12)).median())
    if not apart < FOLD_TOLERANCE:
        raise UsageError(f"dictionary {dictionary.name}: folding the scales changed its reconstruction by {apart:.2g}.")
    dictionary = _collected(member).cpu().requires_grad_(False)
    last, k = member.history[-1], spec.k
    first = round(dictionary.k_first * k) if plan.k_start is None and k is not None else plan.k_start
    recipe = {**asdict(plan), "k_start": first, "betas": list(plan.betas), "frozen": list(plan.frozen)}
    dictionary.provenance = {
        "plan": recipe, "stream": dict(stream.record),
        "trained_tokens": plan.steps * plan.batch, "last": asdict(last), "torch": str(torch.__version__),
    }  # fmt: skip
    return Trained(with_recipe(dictionary), tuple(member.history), member.seconds)


# kept state --------------------------------------------------------------------------------------


def _identity(stream: ActivationStream, specs: Sequence[Spec], plan: TrainPlan) -> str:
    """What must be the same for a run to go on."""
    what = {"stream": dict(stream.record), "specs": [spec.json() for spec in specs], "plan": asdict(plan)}
    return json.dumps(what, sort_keys=True, default=str)


def _collected(member: _Member) -> Dictionary:
    """The dictionary of all slices, in process 0."""
    own = member.dictionary
    if world().slices == 1:
        return own
    state = {name: world().collected(value) if name in own.per_latent else value for name, value in own.state_dict().items()}
    if world().rank:
        return own
    found = make_dictionary(member.whole, own.given_name)
    found.load_state_dict(state)
    return found


def _keep(path: Path, members: Sequence[_Member], identity: str, step: int) -> None:
    tensors: dict[str, Tensor] = {}
    scalars = []
    for number, member in enumerate(members):
        for name, value in member.dictionary.state_dict().items():
            tensors[f"{number}.dictionary.{name}"] = value.contiguous()
        for index, state in enumerate(_states(member)):
            for name, value in state.items():
                tensors[f"{number}.optimiser.{index}.{name}"] = torch.as_tensor(value).clone()
        tensors[f"{number}.silent"] = member.silent
        for name in _divided(member, number, tensors):
            tensors[name] = world().collected(tensors[name])
        scalars.append({"sparsity": member.sparsity, "best": member.best, "recent": member.recent,
                        "seconds": member.seconds, "history": [asdict(line) for line in member.history]})  # fmt: skip
    record = {"identity": identity, "step": str(step), "members": json.dumps(scalars)}
    if world().rank == 0:
        write_file(path, save(tensors, record))


def _divided(member: _Member, number: int, names: Iterable[str]) -> list[str]:
    """Which of some names of a kept state have a row for each latent."""
    own = member.dictionary
    order = [name for name, value in own.named_parameters() if value.requires_grad]
    tails = {f"dictionary.{name}" for name in own.per_latent} | {"silent"}
    indices = {str(index) for index, name in enumerate(order) if name in own.per_latent}
    found = []
    for name in names:
        first, _, tail = name.partition(".")
        kind, _, rest = tail.partition(".")
        moment = kind == "optimiser" and rest.partition(".")[0] in indices and not rest.endswith(".step")
        if first == str(number) and (tail in tails or moment):
            found.append(name)
    return found


def _states(member: _Member) -> list[dict[str, Any]]:
    parameters = [p for group in member.optimiser.param_groups for p in group["params"]]
    return [member.optimiser.state[p] for p in parameters]


def _take_up(path: Path, members: Sequence[_Member], identity: str) -> int:
    """Restore what `_keep` wrote; how many steps were done. Raises UsageError for the state of another run."""
    if not path.exists():
        return 0
    try:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            divided = {name for number, member in enumerate(members) for name in _divided(member, number, names)}
            record, tensors = file.metadata(), {name: _rows(file, name, name in divided) for name in names}
    except (OSError, SafetensorError) as error:
        raise StoreError(f"{path}: not a kept state of training ({error}). Delete it to start again.") from error
    if record["identity"] != identity:
        raise bad_argument("folder", f"{path}, which another run left", "an empty folder, or the arguments of that run",
                           f"Differs: {', '.join(_differences(record['identity'], identity))}.")  # fmt: skip
    for number, (member, kept) in enumerate(zip(members, json.loads(record["members"]), strict=True)):
        own = f"{number}.dictionary."
        member.dictionary.load_state_dict({n.removeprefix(own): x for n, x in tensors.items() if n.startswith(own)})
        _restore_optimiser(member, tensors, number)
        member.silent = tensors[f"{number}.silent"].to(world().device)
        member.sparsity, member.best, member.recent = kept["sparsity"], kept["best"], kept["recent"]
        member.seconds, member.history = kept["seconds"], [Log(**line) for line in kept["history"]]
    return int(record["step"])


def _rows(file: Any, name: str, divided: bool) -> Tensor:
    """A tensor of a kept state, or this process's slice of it."""
    if world().slices == 1 or not divided:
        return file.get_tensor(name)
    rows = file.get_slice(name)
    n = rows.get_shape()[0] // world().slices
    return rows[world().rank * n : (world().rank + 1) * n]


def _restore_optimiser(member: _Member, tensors: Mapping[str, Tensor], number: int) -> None:
    state = deepcopy(member.optimiser.state_dict())
    for name, value in tensors.items():
        if name.startswith(own := f"{number}.optimiser."):
            index, field_name = name.removeprefix(own).split(".", 1)
            state["state"].setdefault(int(index), {})[field_name] = value
    member.optimiser.load_state_dict(state)


def _differences(old: str, new: str) -> list[str]:
    before, now = json.loads(old), json.loads(new)
    found = [f"plan.{key}" for key in now["plan"] if before["plan"].get(key) != now["plan"][key]]
    return found + [key for key in ("stream", "specs") if before[key] != now[key]]
