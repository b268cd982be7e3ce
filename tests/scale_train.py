"""Run by torchrun: trains dictionaries with rows divided, and those that can be with latents divided; or goes on."""

import sys
from pathlib import Path

import torch

from assay.features.dictionary import Spec
from assay.features.kept import save
from assay.features.stream import TensorStream
from assay.features.train import CHECKPOINT, DIVIDED, Trained, Training, TrainPlan, train
from assay.features.world import inside, world
from assay.scale.training import Slices, joined

PLAN = TrainPlan(tokens=128 * 40, batch=128, dead_after=100, checkpoint_every=1000, k_start=6)
NAMES = ("topk", "batchtopk", "jumprelu", "relu", "gated", "matryoshka", "groupmax")
SPECS = [Spec(name, 48, 16, 16, 3) for name in NAMES]
WAYS, STEPS = {"batch": SPECS, "latents": [spec for spec in SPECS if spec.architecture in DIVIDED]}, 15


def stream() -> TensorStream:
    generator = torch.Generator().manual_seed(1)
    atoms = torch.nn.functional.normalize(torch.randn(24, 16, generator=generator), dim=1)
    codes = torch.rand(3000, 24, generator=generator) * (torch.rand(3000, 24, generator=generator) < 0.12)
    return TensorStream({"acts": codes @ atoms + 0.02 * torch.randn(3000, 16, generator=generator)})


def threads_of_gloo() -> list[str]:
    names = [each.read_text() for each in Path("/proc/self/task").glob("*/comm")]
    return [name for name in names if "gloo" in name]


def trained(divide: str, out: Path) -> tuple[list[Trained], Path]:
    """All steps; then the first of them again, kept where others go on."""
    folder, specs = out / f"{divide}-kept", WAYS[divide]
    found = train(stream(), specs, PLAN, folder)
    training = Training(stream(), specs, PLAN)
    for _ in range(STEPS):
        training.step()
    training.keep(folder / CHECKPOINT)
    if divide == "latents":
        first = training.members[0]
        assert first.dictionary.W_enc.shape == (48 // world().slices, 16)
        assert first.optimiser.state[first.dictionary.W_dec]["exp_avg"].shape == (48 // world().slices, 16)
    return found, out / divide


def resumed(divide: str, out: Path) -> tuple[list[Trained], Path]:
    """From what others kept."""
    return train(stream(), WAYS[divide], PLAN, out / f"{divide}-for{world().size}"), out / f"{divide}-resumed"


if __name__ == "__main__":
    torch.set_num_threads(1)
    what = {"train": trained, "resume": resumed}[sys.argv[1]]
    with joined() as group:
        made = [what("batch", Path(sys.argv[2]))]
        with inside(Slices()):
            made.append(what("latents", Path(sys.argv[2])))
    assert not threads_of_gloo(), "the group is gone with its threads, which else meet the end of the interpreter"
    for found, out in made if group.rank == 0 else ():
        for one in found:
            save(one.dictionary, out / one.dictionary.architecture)
