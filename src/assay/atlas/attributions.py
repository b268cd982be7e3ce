"""Finished scores of circuits, kept in the atlas so that an interrupted search goes on from there.

One safetensors file per measurement in `attributions/`, written beside and then renamed. The key names model, data,
plan and versions; a file that cannot be read, or is of another graph, counts as not there.
"""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from assay.circuits.attribute import Attribution
from assay.circuits.graph import Graph
from assay.files import write_file

ARRAYS = ("clean", "corrupted", "steps", "residual")


class KeptScores:
    """Scores of one measurement, in the atlas directory."""

    def __init__(self, atlas: Path, key: str) -> None:
        self.path = atlas / "attributions" / f"{key[:32]}.safetensors"

    def get(self, graph: Graph) -> Attribution | None:
        """The scores, or None."""
        try:
            with safe_open(self.path, "pt") as file:
                about = json.loads(file.metadata()["about"])
                held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            ends = {name.removeprefix("ends."): value for name, value in held.items() if name.startswith("ends.")}
            clean, corrupted, steps, residual = (np.array(held[name].numpy()) for name in ARRAYS)
            found = Attribution(about["plan"], graph, held["values"], clean, corrupted, steps, residual, held["cancelled"],
                                about["templates"], ends, sizes=held.get("sizes"))  # fmt: skip
            return found if held["values"].shape[1] == len(found.names) else None
        except (OSError, SafetensorError, KeyError, ValueError, TypeError):
            return None

    def put(self, found: Attribution) -> None:
        """Keep finished scores."""
        tensors = {"values": found.values.contiguous(), "cancelled": found.cancelled.contiguous(),
                   **{name: torch.from_numpy(np.ascontiguousarray(getattr(found, name))) for name in ARRAYS},
                   **({} if found.sizes is None else {"sizes": found.sizes.contiguous()}),
                   **{f"ends.{name}": value.contiguous() for name, value in found.ends.items()}}  # fmt: skip
        about = {"plan": found.plan, "templates": found.templates}
        write_file(self.path, save(tensors, {"about": json.dumps(about)}))
