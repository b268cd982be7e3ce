"""Peak memory of a capture: what it returns plus one batch's working set, however many prompts.

1. Each capture runs in a process of its own, in which the C library returns freed blocks at once
   (glibc's default keeps 50 to 100 MB for reuse here, more after more batches: the allocator's memory,
   not the capture's).
2. The model is loaded and has run once on two tokens; then the peak is reset (Linux; elsewhere the peak
   so far is the baseline, which can hide what stays below it).
3. `extra` is how far the process grows above that while random prompts are captured.
"""

import contextlib
import gc
import json
import os
import resource
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

MB = 1e6
SIZES = (1_000, 10_000)
WIDTH = 16


@dataclass(frozen=True)
class MemoryRow:
    """Sizes in MB; `extra` is the peak above the loaded model."""

    model: str
    site: str
    prompts: int
    positions: str
    outputs: float
    extra: float

    @property
    def working(self) -> float:
        """What the capture needed besides the tensors it returned."""
        return self.extra - self.outputs


def in_own_process(model: str, prompts: int, positions: str) -> MemoryRow:
    """Measure one capture in a fresh interpreter."""
    command = [sys.executable, str(Path(__file__).resolve()), model, str(prompts), positions]
    settings = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=settings)
    return MemoryRow(**json.loads(done.stdout))


def capture(name: str, prompts: int, positions: str) -> MemoryRow:
    """Capture one early site of `prompts` random prompts and see how far the process grew."""
    import torch

    from assay import load_model

    model = load_model(name)
    site = f"resid_post.{model.n_layers // 8}"
    top = min(40_000, model.dims.d_vocab)
    ids = torch.randint(20, top, (prompts, WIDTH), generator=torch.Generator().manual_seed(0)).tolist()
    model.capture([ids[0][:2]], site, positions=positions)
    baseline = _restart_peak()
    flat = model.capture(ids, site, positions=positions).flat(site)
    outputs = flat.numel() * flat.element_size()
    return MemoryRow(name, site, prompts, positions, outputs / MB, (_peak() - baseline) / MB)


def _restart_peak() -> float:
    """Reset the peak where the system can, and return it."""
    gc.collect()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> float:
    """Largest resident size so far, in bytes."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return float(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asdict(capture(sys.argv[1], int(sys.argv[2]), sys.argv[3]))))
