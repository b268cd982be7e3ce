"""Large pages: given where the system has them, given back when training is done, and nothing where there are none."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from assay import large_pages
from assay.errors import UsageError
from assay.features.dictionary import Spec
from assay.features.stream import TensorStream
from assay.features.train import TrainPlan, train

ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")
linux = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no Linux with glibc")
MEASURE = """
import torch
from assay import large_pages

def kept(name):
    return next(int(line.split()[1]) for line in open("/proc/self/smaps_rollup") if line.startswith(name + ":")) // 1024

before, large = kept("Rss"), kept("AnonHugePages")
assert large_pages.ask()
x = torch.ones(64 << 20)  # 256 MB
assert large_pages.ask()
y = torch.ones(96 << 20)
print(kept("AnonHugePages") - large)
del x, y
print(kept("Rss") - before)
large_pages.give_back()
print(kept("Rss") - before)
assert large_pages.ask()
z = torch.ones(128 << 20)
print(kept("AnonHugePages") - large)
"""


@linux
def test_tensors_are_in_large_pages_until_they_are_given_back():
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    large, held, given_back, again = map(int, done.stdout.split())
    if "[never]" not in ENABLED.read_text():
        assert large > 500 and again > 400, "of 640 MB, and of 512 MB"
    assert held > 600 and given_back < 60


@linux
def test_a_training_that_stops_gives_back_too(monkeypatch):
    given = []
    monkeypatch.setattr(large_pages, "give_back", lambda: given.append(1))
    with pytest.raises(UsageError):
        train(TensorStream({"acts": torch.ones(64, 8)}), [Spec("topk", 16, 8, 8, 2)], TrainPlan(tokens=64, batch=32))
    assert given


@linux
def test_under_a_limit_of_addresses_nothing_is_asked_for():
    limited = """
import resource
from assay import large_pages
resource.setrlimit(resource.RLIMIT_AS, (1 << 29, 1 << 29))
assert large_pages.ask() is False
block = bytearray(1 << 26)
"""
    done = subprocess.run([sys.executable, "-c", limited], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_elsewhere_nothing_happens(monkeypatch):
    monkeypatch.setattr(large_pages, "_heap", lambda: None)
    assert large_pages.ask() is False
    large_pages.give_back()
