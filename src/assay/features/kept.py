"""Dictionaries on disk: a folder with `dictionary.json` (what it is) and `dictionary.safetensors` (its numbers).

1. Numbers are kept as fp32 or fp16 and are fp32 again when they are read.
2. A few inputs and what the dictionary makes of them lie beside the numbers, and their digest in the json; a folder whose
   numbers are not finite, no longer do that, or have another digest is refused.
3. Both files are written beside and then renamed, the json last: a folder without it is not a dictionary.

`shipped` lists what comes with this package for a model.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from assay.errors import StoreError, bad_argument
from assay.features.dictionary import Dictionary, Spec, make_dictionary
from assay.features.train import with_recipe
from assay.files import write_file

JSON, TENSORS = "dictionary.json", "dictionary.safetensors"
DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
PROBES, TOLERANCE, LARGEST = 4, 1e-3, 64 << 30  # bytes of tensors
SHIPPED = Path(__file__).parent.parent / "shipped"
FORMAT = 1


def save(dictionary: Dictionary, folder: Path, dtype: str = "fp32") -> Path:
    """Write a dictionary. Raises UsageError for another dtype or numbers that do not fit into it."""
    rounded = as_kept(dictionary, dtype)
    numbers = {name: value.to(DTYPES[dtype]).contiguous() for name, value in rounded.state_dict().items()}
    x = probe_inputs(rounded)
    tensors = {**numbers, "probe.inputs": x, "probe.outputs": rounded.reconstruct(x).contiguous()}
    write_file(folder / TENSORS, save_tensors(tensors))
    record = {"format": FORMAT, "name": dictionary.name, "spec": dictionary.spec.json(), "dtype": dtype,
              "digest": rounded.digest, "provenance": dictionary.provenance}  # fmt: skip
    write_file(folder / JSON, (json.dumps(record, indent=1, default=str) + "\n").encode())
    return folder


def as_kept(dictionary: Dictionary, dtype: str) -> Dictionary:
    """What `load` gives after `save` with this dtype, without its provenance: the numbers rounded, and their digest.

    Raises UsageError for another dtype, and for numbers that do not fit into it.
    """
    if dtype not in DTYPES:
        raise bad_argument("dtype", dtype, ", ".join(DTYPES))
    found = make_dictionary(dictionary.spec, dictionary.name)
    found.load_state_dict({name: _rounded(name, value, dtype).float() for name, value in dictionary.state_dict().items()})
    return found.requires_grad_(False)


def load(folder: Path) -> Dictionary:
    """Read what `save` wrote. Raises StoreError for a folder that is none, is damaged, or is of a later version."""
    record = read_record(folder)
    path = folder / TENSORS
    try:
        if os.path.getsize(path) > LARGEST:
            raise StoreError(f"{path}: larger than {LARGEST >> 30} GB; allowed: less.")
        tensors = load_tensors(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise StoreError(f"{path}: cannot be read ({error}). Fetch or train it again.") from error
    spec = Spec.of(record["spec"])
    if 4 * spec.width * (spec.d_in + spec.d_out) > LARGEST:
        raise StoreError(f"{folder / JSON}: {spec.width} latents; allowed: as many as {LARGEST >> 30} GB hold.")
    dictionary = make_dictionary(spec, record["name"])
    x, y = tensors.pop("probe.inputs", None), tensors.pop("probe.outputs", None)
    try:
        dictionary.load_state_dict({name: value.float() for name, value in tensors.items()})
    except RuntimeError as error:
        raise StoreError(f"{path}: not the numbers of a {record['spec']['architecture']} ({error}).") from error
    dictionary.provenance = dict(record.get("provenance") or {})
    dictionary.requires_grad_(False)
    if bad := [name for name, value in tensors.items() if not bool(value.isfinite().all())]:
        raise StoreError(f"{path}: {bad[0]} has numbers that are not finite. Fetch or train it again.")
    does = x is not None and y is not None and _apart(dictionary.reconstruct(x), y) <= TOLERANCE
    if not does or record["digest"] != dictionary.digest:
        raise StoreError(f"{folder}: what its numbers do is not what was kept beside them. Fetch or train it again.")
    return with_recipe(dictionary)


def read_record(folder: Path) -> Mapping[str, Any]:
    """`dictionary.json` of a folder. Raises StoreError."""
    path = folder / JSON
    try:
        record = json.loads(path.read_text())
        for key in ("name", "digest"):
            if not isinstance(record[key], str):
                raise TypeError(f"{key} is text")
        if record["format"] not in range(1, FORMAT + 1):
            raise StoreError(f"{path}: format {record['format']}; allowed: up to {FORMAT}. Install a newer version.")
        provenance = record.get("provenance") or {}
        parts = [provenance.get(key) or {} for key in ("stream", "imported")] if isinstance(provenance, dict) else [None]
        if not all(isinstance(part, dict) for part in parts):
            raise TypeError("provenance, and stream and imported in it, are objects")
        return {**record, "spec": dict(record["spec"]), "provenance": provenance}
    except OSError as error:
        raise StoreError(f"{folder}: no dictionary ({JSON} cannot be read: {error.strerror}).") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StoreError(f"{path}: not the description of a dictionary ({error}).") from error


def is_kept(folder: Path) -> bool:
    """Whether a folder holds a dictionary in this form."""
    return (folder / JSON).is_file()


def shipped(model: str) -> list[Dictionary]:
    """The dictionaries that come with this package for a packaged model, by folder name; none for other models."""
    return [load(path.parent) for path in sorted((SHIPPED / model).glob(f"**/{JSON}"))] if is_shipped(model) else []


def shipped_folder(known_as: str) -> Path | None:
    """Where a dictionary is that comes with this package, by its name or its digest."""
    for path in sorted(SHIPPED.glob(f"**/{JSON}")):
        record = read_record(path.parent)
        if known_as in (record["name"], record["digest"]):
            return path.parent
    return None


def is_shipped(model: str) -> bool:
    """Whether dictionaries come with this package for a model of that name."""
    return model in {path.name for path in SHIPPED.glob("*") if path.is_dir()}


def probe_inputs(dictionary: Dictionary) -> Tensor:
    """A few inputs on which latents fire: the decoder bias where it is of the input's size, plus some encoder rows."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(PROBES, dictionary.spec.d_in, generator=generator)
    scale = dictionary.spec.norm_limit or 0.0
    size = scale / 20 if scale else float(dictionary.b_dec.detach().norm().clamp_min(1.0))
    return noise / noise.norm(dim=1, keepdim=True) * size


def _rounded(name: str, value: Tensor, dtype: str) -> Tensor:
    found = value.detach().to(DTYPES[dtype]).contiguous()
    if not bool(found.isfinite().all()) and bool(value.isfinite().all()):
        raise bad_argument("dtype", dtype, "fp32", f"Numbers of {name} do not fit into {dtype}.")
    return found


def _apart(found: Tensor, kept: Tensor) -> float:
    return float((found - kept).norm() / kept.norm().clamp_min(1e-12))
