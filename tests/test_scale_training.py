"""Training in several processes: equal to one, whatever chooses latents, and resumed by another number of them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import scale_train
from assay.errors import UsageError
from assay.features.dictionary import Spec
from assay.features.kept import load
from assay.features.train import Training, TrainPlan, train
from assay.features.world import World, inside

pytestmark = pytest.mark.whole
FILE = Path(scale_train.__file__)


def run(processes: int, what: str, out: Path) -> None:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run([sys.executable, *launch, str(FILE), what, str(out)], env={**os.environ, "OMP_NUM_THREADS": "1"},
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.fixture(scope="module")
def alone():
    return {one.dictionary.architecture: one for one in train(scale_train.stream(), scale_train.SPECS, scale_train.PLAN)}


def equal(out: Path, alone, names, tolerance: float = 2e-5) -> None:
    for name in names:
        other, one = load(out / name), alone[name]
        x = scale_train.stream().values["acts"][:500]
        apart = float((other.reconstruct(x) - one.dictionary.reconstruct(x)).norm() / one.dictionary.reconstruct(x).norm())
        assert apart < tolerance, (name, apart)
        kept = dict(one.dictionary.state_dict())
        for key, value in other.state_dict().items():
            assert float((value - kept[key]).norm()) <= tolerance * float(kept[key].norm()) + 1e-7, (name, key)


def test_two_processes_train_the_dictionaries_of_one_and_others_go_on(alone, tmp_path):
    """Rows divided, and latents divided."""
    assert all(any(line.dead > 0 for line in alone[name].history) for name in ("topk", "batchtopk")), "aux takes part"
    run(2, "train", tmp_path)
    for way, specs in scale_train.WAYS.items():
        equal(tmp_path / way, alone, [spec.architecture for spec in specs])
        shutil.copytree(tmp_path / f"{way}-kept", tmp_path / f"{way}-for4")
        for one in train(scale_train.stream(), specs, scale_train.PLAN, tmp_path / f"{way}-kept"):
            a, b = one.dictionary.state_dict(), alone[one.dictionary.architecture].dictionary.state_dict()
            assert all(torch.allclose(a[key], b[key], rtol=1e-3, atol=1e-5) for key in a), (way, one.dictionary.architecture)
    run(4, "resume", tmp_path)
    for way, specs in scale_train.WAYS.items():
        equal(tmp_path / f"{way}-resumed", alone, [spec.architecture for spec in specs])


def test_what_cannot_be_divided_by_latents():
    class Half(World):
        slices = 2

    plan = TrainPlan(tokens=1280, batch=128)
    for spec, said in ((Spec("gated", 48, 16, 16, 3), "topk, batchtopk"), (Spec("topk", 49, 16, 16, 3), "a multiple of 2"),
                       (Spec("topk", 48, 16, 16, 25), "k latents in each")):  # fmt: skip
        with inside(Half()), pytest.raises(UsageError, match=said):
            Training(scale_train.stream(), [spec], plan)


def test_parts_of_a_batch_are_all_of_it_and_a_batch_must_divide():
    class Third(World):
        parts = 3

    worlds = []
    for rank in range(3):
        worlds.append(Third())
        worlds[-1].rank = rank
    x = torch.arange(12.0)[:, None]
    parts = [each.share({"x": x})["x"] for each in worlds]
    assert sorted(torch.cat(parts).flatten().tolist()) == list(range(12))
    for rows in range(12):
        first = torch.cat([part[: each.first(rows)] for each, part in zip(worlds, parts)])
        assert sorted(first.flatten().tolist()) == list(range(rows))
    with inside(worlds[0]), pytest.raises(UsageError, match="a multiple of 3"):
        Training(scale_train.stream(), scale_train.SPECS, TrainPlan(tokens=1280, batch=128))
