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
from assay.features.kept import load
from assay.features.train import Training, TrainPlan, train
from assay.features.world import World, inside

pytestmark = pytest.mark.whole
FILE = Path(scale_train.__file__)


def run(processes: int, state: Path, out: Path, steps: int = 0) -> None:
    arguments = [str(FILE), str(state), str(out), str(steps)]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    done = subprocess.run([sys.executable, *launch, *arguments], env={**os.environ, "OMP_NUM_THREADS": "1"},
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.fixture(scope="module")
def alone():
    return {one.dictionary.architecture: one for one in train(scale_train.stream(), scale_train.SPECS, scale_train.PLAN)}


def equal(out: Path, alone, tolerance: float = 2e-5) -> None:
    for name, one in alone.items():
        other = load(out / name)
        x = scale_train.stream().values["acts"][:500]
        apart = float((other.reconstruct(x) - one.dictionary.reconstruct(x)).norm() / one.dictionary.reconstruct(x).norm())
        assert apart < tolerance, (name, apart)
        kept = dict(one.dictionary.state_dict())
        for key, value in other.state_dict().items():
            assert float((value - kept[key]).norm()) <= tolerance * float(kept[key].norm()) + 1e-7, (name, key)


def test_two_processes_train_the_dictionaries_of_one_and_others_go_on(alone, tmp_path):
    assert all(any(line.dead > 0 for line in alone[name].history) for name in ("topk", "batchtopk")), "aux takes part"
    run(2, tmp_path / "none", tmp_path / "two")
    equal(tmp_path / "two", alone)
    run(2, tmp_path / "state", tmp_path / "unused", steps=15)
    shutil.copytree(tmp_path / "state", tmp_path / "for4")
    found = train(scale_train.stream(), scale_train.SPECS, scale_train.PLAN, tmp_path / "state")
    assert len(found) == len(alone)
    for one in found:
        a, b = one.dictionary.state_dict(), alone[one.dictionary.architecture].dictionary.state_dict()
        assert all(torch.allclose(a[key], b[key], rtol=1e-3, atol=1e-5) for key in a), one.dictionary.architecture
    run(4, tmp_path / "for4", tmp_path / "four")
    equal(tmp_path / "four", alone)


def test_parts_of_a_batch_are_all_of_it_and_a_batch_must_divide():
    class Third(World):
        size = 3

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
