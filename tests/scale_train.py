"""Run by torchrun: trains dictionaries of several architectures, or only the first steps of it."""

import sys
from pathlib import Path

import torch

from assay.features.dictionary import Spec
from assay.features.kept import save
from assay.features.stream import TensorStream
from assay.features.train import CHECKPOINT, Training, TrainPlan, train
from assay.scale.training import joined

PLAN = TrainPlan(tokens=128 * 40, batch=128, dead_after=100, checkpoint_every=1000, k_start=6)
NAMES = ("topk", "batchtopk", "jumprelu", "relu", "gated", "matryoshka", "groupmax")
SPECS = [Spec(name, 48, 16, 16, 3) for name in NAMES]


def stream() -> TensorStream:
    generator = torch.Generator().manual_seed(1)
    atoms = torch.nn.functional.normalize(torch.randn(24, 16, generator=generator), dim=1)
    codes = torch.rand(3000, 24, generator=generator) * (torch.rand(3000, 24, generator=generator) < 0.12)
    return TensorStream({"acts": codes @ atoms + 0.02 * torch.randn(3000, 16, generator=generator)})


def threads_of_gloo() -> list[str]:
    names = [each.read_text() for each in Path("/proc/self/task").glob("*/comm")]
    return [name for name in names if "gloo" in name]


def main(state: Path, out: Path | None, steps: int) -> None:
    torch.set_num_threads(1)
    with joined() as group:
        if steps:
            training = Training(stream(), SPECS, PLAN)
            for _ in range(steps):
                training.step()
            training.keep(state / CHECKPOINT)
            return
        found = train(stream(), SPECS, PLAN, state)
    assert not threads_of_gloo(), "the group is gone with its threads, which else meet the end of the interpreter"
    if group.rank == 0 and out is not None:
        for one in found:
            save(one.dictionary, out / one.dictionary.architecture)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
