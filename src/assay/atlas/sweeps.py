"""Finished layers of sweeps, kept in the atlas so that an interrupted sweep goes on where it was.

One safetensors file per layer in `sweeps/<key>/`, written beside and then renamed. The key names model,
data, plan and versions (`circuits.patch.sweep_key`), so a file is only ever read by the same measurement.
A file that cannot be read counts as not there.
"""

from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from assay.circuits.patch import Row
from assay.files import write_file


class SweepRows:
    """The layers of one sweep, in the atlas directory."""

    def __init__(self, atlas: Path, key: str) -> None:
        self.folder = atlas / "sweeps" / key[:32]

    def get(self, layer: int) -> Row | None:
        """A finished layer, or None."""
        try:
            found = load((self.folder / f"{layer}.safetensors").read_bytes())
            return Row(found["values"], int(found["n_same"][0]))
        except (OSError, SafetensorError, KeyError):
            return None

    def put(self, layer: int, row: Row) -> None:
        """Keep a finished layer."""
        content = save({"values": row.values, "n_same": np.array([row.n_same])})
        write_file(self.folder / f"{layer}.safetensors", content)
