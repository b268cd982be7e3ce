"""What a map of a model will take: time, memory, disk and cost, from measured runs.

1. Work per token is counted from shapes (F: floating-point operations, B: bytes), those of the model that a config makes:
       harvest   F = sum over layers run of 2 x weights + 4 x d_attention x context / 2;  B = 2 x stored features;
                 one term per layer run, for what each layer costs whatever its size
       train     F = 2 d K (all pre-activations) + 12 k d (active pairs, forward and back);
                 B = 32 x 2 d K / batch: parameters, gradients and both moments of Adam are read and written each step
       encode    F = 2 d K;  B = 4 K: the selection reads every pre-activation
   with d the width of the site, K latents, k of them active.
2. Seconds per token = sum of rate x work, rates not negative, fitted to measured runs by least squares of the relative
   error (`measured.json`, made by benchmarks/scale.py: CPU time of one thread). Runs that were not fitted, the largest
   among them, give the error that is printed.
3. On GPUs nothing was measured: F / (peak x share reached), B / memory bandwidth, and the slower of the two. The shares
   are assumptions, and printed as such.
4. Memory of a worker: weights + activations of a pass + one shard; of training: 4 copies of the dictionary in fp32
   (parameters, gradients, two moments) + pre-activations of a batch.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls

from assay.errors import UsageError, bad_argument
from assay.model.weightless import without_weights

MEASURED = Path(__file__).parent / "measured.json"
STAGES = ("harvest", "train", "encode")
EXPERTS, ACTIVE = ".experts.", ("num_experts_per_tok", "moe_k", "top_k_experts", "moe_topk")  # in names of weights, in configs
BATCH, PASS_BYTES, SHARD_BYTES = 2048, 1 << 30, 256 << 20
COLUMN_BYTES, CODE_BYTES = 13, 4  # per token beside its features; per active latent


@dataclass(frozen=True)
class Shape:
    """A decoder's sizes. `weights`: in matrices of one layer, the mean of all; `used`: those one token uses (fewer with
    experts); `d_attention`: heads x d_head, 0 without attention; `params`: of the whole model, shared ones once."""

    name: str
    d_model: int
    layers: int
    d_attention: int
    weights: float
    used: float
    params: int

    @staticmethod
    def of(config: Mapping[str, Any], name: str) -> "Shape":
        """From a `config.json`: its model is built without memory, and its weights are counted. Raises UsageError."""
        own, hf = without_weights(config, name)
        layers, d = int(own.num_hidden_layers), int(own.hidden_size)
        heads = int(getattr(own, "num_attention_heads", None) or 0)
        each = int(getattr(own, "head_dim", None) or (d // heads if heads else 0))
        inner = max((m for m in hf.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == layers), key=_size)
        counts = [(part, x.numel(), x.shape[0]) for part, x in inner.named_parameters() if x.ndim > 1]
        active = next((int(getattr(own, key)) for key in ACTIVE if getattr(own, key, None)), None)
        experts = [(n, of) for part, n, of in counts if EXPERTS in part]
        if experts and active is None:
            raise bad_argument("MODEL", f"{name}, whose config does not say how many experts a token uses", ", ".join(ACTIVE))
        idle = sum(n * (1 - min(active or of, of) / of) for n, of in experts)
        total = sum(n for _, n, _ in counts)
        return Shape(name, d, layers, heads * each, total / layers, (total - idle) / layers, _size(hf))


def _size(module: torch.nn.Module) -> int:
    return sum(x.numel() for x in module.parameters())


@dataclass(frozen=True)
class Job:
    """What is to be done. `layers`: run for the harvest; `sites`: of width d each, all stored."""

    shape: Shape
    tokens: int
    latents: int
    k: int = 32
    context: int = 256
    layers: int | None = None
    sites: int = 1
    batch: int = BATCH
    param_bytes: int = 4

    @property
    def depth(self) -> int:
        """Layers run."""
        return self.layers or self.shape.layers


def work(stage: str, job: Job) -> tuple[float, ...]:
    """What one token takes: operations, bytes, and for a harvest layers."""
    d, latents = job.shape.d_model, job.latents
    if stage == "harvest":
        return (2.0 * job.depth * (job.shape.used + job.shape.d_attention * job.context), 2.0 * d * job.sites, job.depth)
    if stage == "train":
        return (2.0 * d * latents + 12.0 * job.k * d, 64.0 * d * latents / job.batch)
    return (2.0 * d * latents, 4.0 * latents)


@dataclass(frozen=True)
class Rates:
    """Seconds per unit of work, and the relative errors on runs that were not fitted."""

    seconds: tuple[float, ...]
    errors: tuple[float, ...]

    def per_token(self, amounts: Sequence[float]) -> float:
        """Seconds."""
        return float(np.dot(self.seconds, amounts))

    @property
    def largest_error(self) -> float:
        """Of the runs that were not fitted."""
        return max(self.errors, default=float("nan"))


def fit(rows: Sequence[tuple[Sequence[float], float]], held: Sequence[tuple[Sequence[float], float]]) -> Rates:
    """Rates from (work, seconds per token) of measured runs; `held`: runs to find the error on, not fitted."""
    amounts = np.array([row for row, _ in rows], float) / np.array([[seconds] for _, seconds in rows])
    units = amounts.max(axis=0)
    found = nnls(amounts / units, np.ones(len(rows)))[0] / units
    errors = tuple(abs(float(np.dot(found, row)) / seconds - 1) for row, seconds in held)
    return Rates(tuple(found.tolist()), errors)


def measured() -> tuple[dict[str, Rates], Mapping[str, Any]]:
    """Rates of each stage from the runs that come with this package, and the record of those runs."""
    record = json.loads(MEASURED.read_text())
    rates = {}
    for stage in STAGES:
        runs = [run for run in record["runs"] if run["stage"] == stage]
        parts = [[(run["work"], run["seconds"]) for run in runs if run["held"] is held] for held in (False, True)]
        rates[stage] = fit(*parts)
    return rates, record


@dataclass(frozen=True)
class Gpu:
    """An accelerator on paper. `peak`: bf16 operations a second, without sparsity; `reached`: assumed share of it."""

    name: str
    peak: float
    memory: float
    bandwidth: float
    dollars: float
    reached: Mapping[str, float] = field(default_factory=lambda: {"harvest": 0.4, "train": 0.25, "encode": 0.4})


GPUS = {
    "h100": Gpu("h100", 989e12, 80e9, 3.35e12, 2.5),
    "a100": Gpu("a100", 312e12, 80e9, 2.0e12, 1.5),
}


@dataclass(frozen=True)
class Stage:
    """One stage of a plan. `error`: the largest relative error on runs not fitted; None where nothing was measured."""

    name: str
    seconds: float
    memory: float
    disk: float
    operations: float
    error: float | None


@dataclass(frozen=True)
class Plan:
    """What everything takes. `dollars`: None without a price."""

    model: str
    stages: tuple[Stage, ...]
    dollars: float | None
    assumptions: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """Of all stages, one after the other."""
        return sum(stage.seconds for stage in self.stages)

    def json(self) -> dict[str, Any]:
        """As plain values."""
        return {"model": self.model, "seconds": self.seconds, "disk_bytes": sum(stage.disk for stage in self.stages),
                "dollars": self.dollars, "assumptions": list(self.assumptions),
                "stages": [asdict(stage) for stage in self.stages]}  # fmt: skip


def plan(job: Job, gpus: int = 0, gpu: str = "h100", workers: int = 1, dollars: float | None = None) -> Plan:
    """What harvest, training and encoding of a job take. `workers`: threads here, where there are no GPUs.

    `dollars`: of an hour of one GPU or thread. Raises UsageError for sizes below 1 and GPUs that are not known.
    """
    for name, value in (("tokens", job.tokens), ("latents", job.latents), ("k", job.k), ("workers", workers)):
        if value < 1:
            raise bad_argument(name, value, "1 or more")
    if job.k > job.latents:
        raise bad_argument("active", job.k, f"1 to {job.latents}, the latents there are")
    if job.depth > job.shape.layers:
        raise bad_argument("layers", job.depth, f"1 to {job.shape.layers}")
    if gpu not in GPUS:
        raise bad_argument("--gpu", gpu, ", ".join(GPUS))
    card, units = GPUS[gpu], gpus or workers
    rates, record = measured() if not gpus else ({}, {})
    stages = []
    for name in STAGES:
        amounts = work(name, job)
        each = rates[name].per_token(amounts) if not gpus else (
            max(amounts[0] / (card.peak * card.reached[name]), amounts[1] / card.bandwidth))  # fmt: skip
        stages.append(Stage(name, each * job.tokens / units, _memory(name, job, units), _disk(name, job),
                            amounts[0] * job.tokens, rates[name].largest_error if not gpus else None))  # fmt: skip
    price = dollars if dollars is not None else card.dollars if gpus else None
    hours = sum(stage.seconds for stage in stages) * units / 3600
    told = _assumptions(job, stages, gpus, card, record, price)
    return Plan(job.shape.name, tuple(stages), None if price is None else hours * price, told)


def _memory(stage: str, job: Job, units: int) -> float:
    """Bytes in one worker or on one GPU. Each holds the whole dictionary; a model too large for one is divided by layers."""
    dictionary = 2.0 * job.shape.d_model * job.latents * 4
    if stage == "harvest":
        return job.shape.params * job.param_bytes + PASS_BYTES + SHARD_BYTES
    if stage == "train":
        return 4 * dictionary + 4.0 * job.latents * -(-job.batch // units)
    return dictionary + (1 << 25)


def _disk(stage: str, job: Job) -> float:
    if stage == "harvest":
        return job.tokens * (2.0 * job.shape.d_model * job.sites + COLUMN_BYTES)
    if stage == "train":
        return 2.0 * job.shape.d_model * job.latents * 4
    return job.tokens * (job.k * (CODE_BYTES if job.latents <= 1 << 16 else CODE_BYTES + 2) + COLUMN_BYTES - 2)


def _assumptions(
    job: Job, stages: Sequence[Stage], gpus: int, card: Gpu, record: Mapping[str, Any], price: float | None
) -> tuple[str, ...]:
    told = ["stages run one after the other; workers share tokens evenly and wait for nothing"]
    if gpus:
        told += [f"nothing was measured on a GPU: {card.name} at {card.peak / 1e12:.0f} TFLOP/s, of which harvest reaches"
                 f" {card.reached['harvest']:.0%}, training {card.reached['train']:.0%}, encoding {card.reached['encode']:.0%}",
                 "reading and writing files is hidden behind computing"]  # fmt: skip
        told += [f"{stage.name} needs {stage.memory / 1e9:,.0f} GB, a {card.name} has {card.memory / 1e9:.0f}: it must be"
                 f" divided over {-(-stage.memory // card.memory):.0f} or more, without loss of speed"
                 for stage in stages if stage.memory > card.memory]  # fmt: skip
    else:
        told.append(f"threads like the one measured ({record['machine']}, {record['dtype']}), as many as workers")
    if price is not None:
        told.append(f"an hour costs ${price:g} per {'GPU' if gpus else 'thread'}")
    return tuple(told)


def read_shape(folder: Path, name: str) -> Shape:
    """From a model's folder, or its `config.json`. Raises UsageError."""
    file = folder / "config.json" if folder.is_dir() else folder
    try:
        return Shape.of(json.loads(file.read_text()), name)
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"MODEL: {file} cannot be read ({error}); allowed: a model's folder, or its config.json.") from error
