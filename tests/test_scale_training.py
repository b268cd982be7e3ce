"""Training in several processes: equal to one, whatever chooses latents, and resumed by another number of them."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import scale_train
from assay.cli.main import cli
from assay.errors import UsageError
from assay.features.dictionary import Spec
from assay.features.harvest import HarvestPlan, harvest
from assay.features.kept import load
from assay.features.train import CHECKPOINT, Training, TrainPlan, train
from assay.features.world import World, inside
from assay.scale.training import place_of
from test_harvest import Given, model_with_words, some_texts

pytestmark = pytest.mark.whole
FILE = Path(scale_train.__file__)
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def launch(processes: int, *what: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), *what]


def run(processes: int, *what: str) -> None:
    done = subprocess.run(launch(processes, *what), env=ENVIRONMENT, capture_output=True, text=True)
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
    run(2, str(FILE), "train", str(tmp_path))
    for way, specs in scale_train.WAYS.items():
        equal(tmp_path / way, alone, [spec.architecture for spec in specs])
        shutil.copytree(tmp_path / f"{way}-kept", tmp_path / f"{way}-for4")
        for one in train(scale_train.stream(), specs, scale_train.PLAN, tmp_path / f"{way}-kept"):
            a, b = one.dictionary.state_dict(), alone[one.dictionary.architecture].dictionary.state_dict()
            assert all(torch.allclose(a[key], b[key], rtol=1e-3, atol=1e-5) for key in a), (way, one.dictionary.architecture)
    run(4, str(FILE), "resume", str(tmp_path))
    for way, specs in scale_train.WAYS.items():
        equal(tmp_path / f"{way}-resumed", alone, [spec.architecture for spec in specs])


# the command -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(the words of a command that trains on a small harvest, its state dict by one process)."""
    folder = tmp_path_factory.mktemp("command")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ASSAY_CACHE", str(folder / "cache"))
        harvest(model_with_words(), Given(some_texts(1, 150)), ["resid_post.1"], folder / "acts", HarvestPlan(context=16))
    torch.set_num_threads(1)
    words = ["dictionary", "train", str(folder / "acts"), "--width", "48", "--k", "4", "--batch", "64", "--tokens", "51200",
             "--name", "small", "--quiet"]  # fmt: skip
    assert CliRunner().invoke(cli, [*words, "--atlas", str(folder / "one")], catch_exceptions=False).exit_code == 0
    return words, kept(folder / "one")


def kept(atlas: Path) -> dict[str, torch.Tensor]:
    return load(atlas / "dictionaries" / "small").state_dict()


def alike(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], tolerance: float = 2e-5) -> bool:
    return all(float((one[key] - other[key]).norm()) <= tolerance * float(one[key].norm()) + 1e-7 for key in one)


def test_torchrun_of_the_command_trains_the_dictionary_of_one_process(trained, tmp_path):
    words, one = trained
    for way in ("batch", "latents"):
        run(2, "-m", "assay", *words, "--divide", way, "--atlas", str(tmp_path / way))
        assert alike(one, kept(tmp_path / way)), way


def test_a_killed_trainer_ends_the_run_and_the_same_command_finishes_it(trained, tmp_path):
    words, one = trained
    command = ["-m", "assay", *words, "--atlas", str(tmp_path)]
    state = tmp_path / "training" / "small" / CHECKPOINT
    process = subprocess.Popen(launch(2, *command), env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    while process.poll() is None and not state.exists():
        time.sleep(0.002)
    trainers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(trainers[-1]), signal.SIGKILL)
    assert process.wait(120) != 0
    assert state.exists() and not (tmp_path / "dictionaries").exists()
    run(2, *command)
    assert alike(one, kept(tmp_path)) and not state.exists()


# devices -----------------------------------------------------------------------------------------


def test_a_process_trains_on_the_gpu_of_its_own_number_or_on_the_processor():
    assert place_of("cpu", None, None, 0) == place_of("mps", None, None, 0) == ("gloo", "cpu")
    assert place_of("cpu", "gloo", 1, 2) == ("gloo", "cpu")
    assert place_of("cuda", None, 1, 2) == place_of("cpu", "nccl", 1, 2) == ("nccl", "cuda:1")
    assert [place_of(asked, None, None, 2)[1] for asked in ("cuda", "cuda:1")] == ["cuda:0", "cuda:1"]
    for given, said in ((("cuda", None, 2, 2), "cuda:2"), (("cpu", "nccl", 0, 0), "sees here: 0"),
                        (("cpu", "mpi", 0, 0), "mpi"), (("cuda:1", None, 0, 2), "its own number"),
                        (("cuda", "gloo", 0, 2), "cuda with nccl")):  # fmt: skip
        with pytest.raises(UsageError, match=said):
            place_of(*given)


def test_batches_go_to_the_device_and_a_gpu_that_is_not_there_is_refused(trained, tmp_path, monkeypatch):
    class Elsewhere(World):
        device = torch.device("meta")

    assert Elsewhere().share({"x": torch.ones(3, 2)})["x"].device.type == "meta"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for device, said in (("cuda", "cuda:0'; allowed: the GPUs that torch sees here: 0"), ("mps", "cpu or cuda with HARVEST")):
        with pytest.raises(UsageError, match=said):
            CliRunner().invoke(cli, [*trained[0], "--device", device, "--atlas", str(tmp_path)], catch_exceptions=False)


# what cannot be ----------------------------------------------------------------------------------


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
