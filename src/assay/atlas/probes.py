"""Activations read for probes, kept in the atlas so that an interrupted run goes on where it was.

One safetensors file per part of a pass in `probes/<key>/`, written beside and then renamed. The key names weights, tokens,
sites and positions (`probe.read.read_key`); a file that cannot be read counts as not there.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from assay.files import write_file


class KeptActivations:
    """The parts of one pass, in the atlas directory."""

    def __init__(self, atlas: Path, key: str) -> None:
        self.folder = atlas / "probes" / key[:32]

    def get(self, part: int) -> Mapping[str, NDArray[np.float32]] | None:
        """A finished part, or None."""
        try:
            return load((self.folder / f"{part}.safetensors").read_bytes())
        except (OSError, SafetensorError):
            return None

    def put(self, part: int, values: Mapping[str, NDArray[np.float32]]) -> None:
        """Keep a finished part."""
        write_file(self.folder / f"{part}.safetensors", save({name: np.ascontiguousarray(x) for name, x in values.items()}))
