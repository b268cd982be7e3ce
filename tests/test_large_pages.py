"""Large pages: given where the system has them, given back when training is done, and nothing where there are none."""

import subprocess
import sys
from pathlib import Path

import pytest

from assay import large_pages

ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")
linux = pytest.mark.skipif(large_pages._heap() is None, reason="no Linux with glibc")
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


def test_elsewhere_nothing_happens(monkeypatch):
    monkeypatch.setattr(large_pages, "_heap", lambda: None)
    assert large_pages.ask() is False
    large_pages.give_back()
