"""A monitor as one file: a .safetensors with the numbers, and its card in the file's metadata.

1. Tensors: `weight.I` and `query.I` of every head, `baseline.scores|axes|places`. The metadata key `assay.monitor` is JSON with
   all the rest.
2. `sha256` is over that and the numbers: a changed file is refused. The hash shows that a file is whole, not who wrote it;
   its signature (`assay.signing`) is checked on loading.
3. A monitor of another model loads, and is uncalibrated there: `Monitor.state` says why. One whose sites the model has not,
   or whose widths differ, is refused.
4. Nothing in a file is executed; the size is limited; files are written beside and renamed.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from assay.errors import AssayError, StoreError, UsageError, bad_argument
from assay.features.opened import dictionary_at, is_latent
from assay.files import write_file
from assay.model.model import Model
from assay.monitor.records import Baseline, Head, Monitor
from assay.monitor.thresholds import Threshold
from assay.monitor.units import UNITS, Pooling
from assay.records import digest
from assay.signing import check_signature, forget_signature
from assay.sites import parse_site

FORMAT, KEY, SUFFIX = 1, "assay.monitor", ".safetensors"
LARGEST = 64 << 20  # bytes


def save_monitor(monitor: Monitor, path: str | Path) -> Path:
    """Write a monitor to a .safetensors file. Raises UsageError for another suffix, StoreError where it cannot be written."""
    path = Path(path)
    if path.suffix.lower() != SUFFIX:
        raise bad_argument("path", str(path), f"a {SUFFIX} file", f"For example {path.with_suffix(SUFFIX)}.")
    tensors = {f"weight.{at}": torch.from_numpy(np.array(head.weight, np.float32)) for at, head in enumerate(monitor.heads)}
    tensors |= {f"query.{at}": torch.from_numpy(np.array(head.query, np.float32))
                for at, head in enumerate(monitor.heads) if head.query is not None}  # fmt: skip
    record: dict[str, Any] = {
        "format": FORMAT, "name": monitor.name, "watches": monitor.watches, "pooling": asdict(monitor.pooling),
        "heads": [{"site": head.site, "bias": head.bias} for head in monitor.heads], "bound": dict(monitor.bound),
        "thresholds": {unit: asdict(made) for unit, made in monitor.thresholds.items()}, "odds": list(monitor.odds),
        "card": dict(monitor.card), "drifted": monitor.drifted, "baseline": monitor.baseline and monitor.baseline.site,
    }  # fmt: skip
    if monitor.baseline is not None:
        for name in ("scores", "axes", "places"):
            tensors[f"baseline.{name}"] = torch.from_numpy(np.array(getattr(monitor.baseline, name), np.float32))
    record = json.loads(json.dumps(record, allow_nan=False))
    record["sha256"] = _hash(record, tensors)
    write_file(path, save(tensors, metadata={KEY: json.dumps(record, sort_keys=True)}))
    forget_signature(path)
    return path


def load_monitor(path: str | Path, model: Model | None = None) -> Monitor:
    """A saved monitor. With a model it is checked that it can be read there; whether it is calibrated there, `state` says.

    Raises StoreError for a file that is none, is damaged or of a later version, UsageError for sites the model has not.
    """
    if Path(path).is_file():
        check_signature(path, "monitor")
    record, tensors = _parts(Path(path))
    try:
        monitor = _made(record, tensors)
    except (KeyError, TypeError, ValueError, AssayError) as error:
        raise StoreError(f"{path}: its card is not that of a monitor ({error}). Save the monitor again.") from error
    if model is not None:
        for head in monitor.heads:
            latents = is_latent(head.site)
            shape = (dictionary_at(head.site).width,) if latents else model.feature_shape(model.sites([head.site])[0])
            sizes = {len(each) for each in (head.weight, head.query) if each is not None}
            if shape is not None and sizes != {math.prod(shape)}:
                raise UsageError(f"{path}: it reads {len(head.weight)} numbers at {head.site}; {model.name} has {shape}.")
    return monitor


def _made(record: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Monitor:
    """Raises ValueError and the like for a card or numbers that are none of a monitor's."""
    if any(not bool(each.isfinite().all()) for each in tensors.values()):
        raise ValueError("numbers that are not finite")
    if any(tensors[f"weight.{at}"].dim() != 1 for at in range(len(record["heads"]))):
        raise ValueError("weights that are no vectors")
    if datetime.fromisoformat(record["bound"]["expires"]).tzinfo is None:
        raise ValueError("a date without a time zone")
    queries = {at: tensors[name].numpy() for at in range(len(record["heads"])) if (name := f"query.{at}") in tensors}
    heads = tuple(Head(str(parse_site(head["site"])), tensors[f"weight.{at}"].numpy(), float(head["bias"]), queries.get(at))
                  for at, head in enumerate(record["heads"]))  # fmt: skip
    held = None
    if record["baseline"]:
        parts = [tensors[f"baseline.{name}"].double().numpy() for name in ("scores", "axes", "places")]
        held = Baseline(parts[0], str(record["baseline"]), parts[1], parts[2])
        if held.places.shape != (len(held.scores), len(held.axes)):
            raise ValueError("a baseline whose parts do not fit")
    thresholds = {unit: _threshold(unit, made) for unit, made in record["thresholds"].items()}
    slope, shift = record["odds"]
    return Monitor(str(record["name"]), str(record["watches"]), heads, Pooling(**record["pooling"]), dict(record["bound"]),
                   thresholds, (float(slope), float(shift)), held, dict(record["card"]), str(record["drifted"]))  # fmt: skip


def _threshold(unit: str, made: Mapping[str, Any]) -> Threshold:
    numbers = [each for name, each in made.items() if name != "unit"]
    if unit not in UNITS or made["unit"] != unit or any(type(each) not in (int, float) for each in numbers):
        raise ValueError(f"a threshold of {unit!r} that is none")
    return Threshold(**made)


def _parts(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    try:
        if not path.is_file():
            raise StoreError(f"{path}: no such file.")
        if path.stat().st_size > LARGEST:
            raise StoreError(f"{path}: {path.stat().st_size} bytes; allowed for a monitor: {LARGEST}.")
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if KEY not in metadata:
                raise StoreError(f"{path}: it has no card of a monitor.")
            record = json.loads(metadata[KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        content = {key: value for key, value in record.items() if key != "sha256"} if isinstance(record, dict) else {}
        found = _hash(content, tensors)  # numbers and texts that are none have no hash: ValueError
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except (SafetensorError, ValueError, RecursionError) as error:
        raise StoreError(f"{path}: not a saved monitor, or a damaged one ({error}).") from error
    if not isinstance(record, dict) or not isinstance(record.get("format"), int):
        raise StoreError(f"{path}: its card is not that of a monitor.")
    if record["format"] > FORMAT:
        raise StoreError(f"{path}: format {record['format']}; allowed: up to {FORMAT}. Install a newer version.")
    if found != record.get("sha256"):
        raise StoreError(f"{path}: its content does not have the hash that its card says: it was changed or damaged.")
    return record, tensors


def _hash(record: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> str:
    numbers = {name: [list(x.shape), x.float().contiguous().view(torch.int32).flatten().tolist()]
               for name, x in tensors.items()}  # fmt: skip
    return digest([dict(record), dict(sorted(numbers.items()))])
