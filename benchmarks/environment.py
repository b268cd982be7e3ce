"""What must be set before torch is imported, and what a result must say about where it was measured."""

import os
import platform
from importlib import metadata

PACKAGES = ("assay", "torch", "transformers", "transformer-lens", "nnsight")


def prepare() -> None:
    """Idle threads sleep, no progress bars, no network. Only has an effect before torch is imported."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("WANDB_MODE", "disabled")


def versions() -> dict[str, str]:
    """Versions of Python and of every package that is compared; missing peers are left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
