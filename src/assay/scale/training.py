"""Dictionary training in several processes, by torch.distributed: each has a part of every batch.

    torchrun --nproc-per-node 2 -m assay dictionary train HARVEST ... [--divide latents]

1. torchrun says who is who (RANK, WORLD_SIZE); without it a process is alone and nothing here happens.
2. All processes read the same batches and take every R-th row of them (`features/world.py`). Losses are means over rows, or
   take what they need from the whole batch (the bar of batchtopk, L0 of jumprelu, the error dead latents explain), so the
   mean of the gradients is the gradient of the batch: one process and R differ by rounding.
   Parameters, optimiser and counts are whole in every process.
3. Or each holds a slice of the latents, with its optimiser and counts, and reads all rows (`Slices`): per token the k largest
   of each slice are gathered to find the k largest of all, and reconstructions of slices are summed.
   Either way process 0 writes the checkpoint that one process writes: a run that began with 2 goes on with 1 or 4.
4. gloo on processors; nccl on GPUs, process r of a machine on its GPU r: with --device cuda, or ASSAY_BACKEND=nccl.
5. torch.distributed.nn.functional is imported before there is a group: its functions keep the default group of the moment as
   default arguments, so that a group older than the import (an optimiser brings it) is never destroyed, and its threads run
   into the end of the interpreter (SIGABRT now and then).
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # noqa: F401, see 5
from torch import Tensor

from assay.errors import UsageError, bad_argument
from assay.features.world import World, inside

BACKENDS = ("gloo", "nccl")
BACKEND = "ASSAY_BACKEND"


class Group(World):
    """The processes of torch.distributed's default group."""

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.parts = self.size

    def mean(self, x: Tensor) -> Tensor:
        return _reduced(x, dist.ReduceOp.SUM) / self.size

    def least(self, x: Tensor) -> Tensor:
        return _reduced(x, dist.ReduceOp.MIN)

    def all(self, yes: bool) -> bool:
        return bool(_reduced(torch.tensor(int(yes), device=self.device), dist.ReduceOp.MIN))

    def any(self, mask: Tensor) -> Tensor:
        return _reduced(mask.to(torch.uint8), dist.ReduceOp.MAX).bool()

    def gather(self, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(self.size)]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    def average(self, parameters: Iterable[Tensor]) -> None:
        waiting = [(each.grad, dist.all_reduce(each.grad, async_op=True)) for each in parameters if each.grad is not None]
        for grad, work in waiting:
            work.wait()  # type: ignore[union-attr]
            grad.div_(self.size)


class Slices(Group):
    """The same processes, with a slice of the latents each."""

    def __init__(self) -> None:
        super().__init__()
        self.parts, self.slices = 1, self.size

    def mean(self, x: Tensor) -> Tensor:
        return x

    def any(self, mask: Tensor) -> Tensor:
        return mask

    def average(self, parameters: Iterable[Tensor]) -> None:
        """Each gradient is whole where its latent is."""

    def total(self, x: Tensor) -> Tensor:
        return _Total.apply(x)  # type: ignore[return-value]

    def entered(self, x: Tensor) -> Tensor:
        return _Entered.apply(x)  # type: ignore[return-value]

    def largest(self, values: Tensor, k: int) -> Tensor:
        padded = torch.nn.functional.pad(values, (0, k - values.shape[1]), value=-torch.inf)
        every = torch.cat(self.gather(padded).chunk(self.size), 1)
        chosen = torch.zeros_like(every, dtype=torch.bool).scatter(1, every.topk(k, dim=1, sorted=False).indices, True)
        return chosen[:, self.rank * k :][:, : values.shape[1]]

    def every(self, x: Tensor) -> Tensor:
        return self.gather(x.to(torch.uint8)).bool()

    def own(self, latents: Tensor, width: int) -> Tensor:
        return latents[latents // width == self.rank] % width

    def collected(self, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(self.size)] if self.rank == 0 else None
        dist.gather(x.detach().contiguous(), parts)
        return x if parts is None else torch.cat(parts)


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _reduced(x, dist.ReduceOp.SUM)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


class _Entered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _reduced(grads[0], dist.ReduceOp.SUM)


DIVIDE = {"batch": Group, "latents": Slices}


def _reduced(x: Tensor, how: Any) -> Tensor:
    found = x.detach().clone()
    dist.all_reduce(found, how)
    return found


def place_of(asked: str, chosen: str | None, local: int | None, gpus: int) -> tuple[str, str]:
    """(backend, device) of a process, the one with this number on its machine (None: it is alone).

    `asked`: --device; `chosen`: ASSAY_BACKEND; `gpus`: how many torch sees. Raises UsageError for what there is not.
    """
    backend = chosen or ("nccl" if asked.startswith("cuda") else "gloo")
    if backend not in BACKENDS:
        raise bad_argument(BACKEND, backend, ", ".join(BACKENDS))
    cuda = asked.startswith("cuda")
    if local is not None and cuda and (asked != "cuda" or backend != "nccl"):
        raise bad_argument("--device", f"{asked} with {backend}", "cuda with nccl, or cpu",
                           "Each process takes the GPU of its own number.")  # fmt: skip
    if not cuda and (local is None or backend != "nccl"):
        return backend, "cpu"
    given = torch.device(asked).index if cuda else None
    number = given if given is not None else local or 0
    if number >= gpus:
        raise bad_argument("--device", f"cuda:{number}", f"the GPUs that torch sees here: {gpus}",
                           "Without GPUs: --device cpu with HARVEST, and no ASSAY_BACKEND.")  # fmt: skip
    return backend, f"cuda:{number}"


@contextmanager
def joined(divide: str = "batch", device: str = "cpu") -> Iterator[World]:
    """The processes torchrun started, for as long as this lasts; one alone without it. `divide`: batch or latents.

    `device`: cpu, or cuda for a GPU each. Raises UsageError for a backend or a GPU that is none, or others that do not come.
    """
    alone = int(os.environ.get("WORLD_SIZE", "1")) < 2
    local = None if alone else int(os.environ.get("LOCAL_RANK", "0"))
    backend, own = place_of(device, os.environ.get(BACKEND), local, torch.cuda.device_count())
    if own != "cpu":
        torch.cuda.set_device(own)
    if alone:
        with inside(World()) as world:
            world.device = torch.device(own)
            yield world
        return
    try:
        dist.init_process_group(backend)
    except (RuntimeError, ValueError) as error:
        raise UsageError(f"torchrun: the processes do not find each other ({str(error).splitlines()[0]}). Start all of them"
                         " with the same address and port.") from error  # fmt: skip
    try:
        with inside(DIVIDE[divide]()) as group:
            group.device = torch.device(own)
            yield group
    finally:
        dist.destroy_process_group()
