"""Reading what others wrote as data: every key, tensor and size is checked, nothing is executed.

1. A `Config` is a JSON object whose every key must be asked for or be known as harmless; any other key is an error that
   names it. `Numbers` are the tensors of a file: every one must be asked for, with its shape, and be finite.
2. Sizes are limited; tensors are read as tensors only (safetensors, numpy without pickle, torch with weights_only).
"""

import json
import os
import warnings
import zipfile
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from assay.errors import UsageError, bad_argument

LARGEST_TEXT, LARGEST = 16 << 20, 64 << 30  # bytes of a config, of the tensors of one file
MISSING: Any = object()


def words(text: str) -> frozenset[str]:
    """Names that are written one after the other: keys that are known not to change what is computed."""
    return frozenset(text.split())


@dataclass(eq=False)
class Config:
    """The keys of a JSON object. `asked`: which of them were; `left`: those that do not change what is computed."""

    where: str
    values: dict[str, Any]
    asked: set[str] = field(default_factory=set)

    def get(self, key: str, kind: type | tuple[type, ...] = object, default: Any = MISSING) -> Any:
        """A value. Raises UsageError where it is missing without a default, or of another kind."""
        self.asked.add(key)
        if key not in self.values or (self.values[key] is None and default is not MISSING):
            if default is MISSING:
                raise bad_argument(f"{self.where}: {key}", "nothing", "a value", "The file is not complete.")
            return default
        value = self.values[key]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
            names = kind.__name__ if isinstance(kind, type) else " or ".join(one.__name__ for one in kind)
            raise bad_argument(f"{self.where}: {key}", value, f"a value of type {names}")
        return value

    def choice(self, key: str, allowed: Collection[Any], default: Any = MISSING, hint: str = "") -> Any:
        """One of some values."""
        value = self.get(key, object, default)
        if not any(value == one and type(value) is type(one) for one in allowed):
            raise bad_argument(f"{self.where}: {key}", value, ", ".join(map(str, allowed)), hint)
        return value

    def size(self, key: str, default: Any = MISSING) -> int:
        """A whole number from 1."""
        value = self.get(key, int, default)
        if value is not default and value < 1:
            raise bad_argument(f"{self.where}: {key}", value, "1 or more")
        return value

    def number(self, key: str, default: Any = MISSING) -> float:
        """A finite number."""
        value = self.get(key, (int, float), default)
        if value is not default and not np.isfinite(value):
            raise bad_argument(f"{self.where}: {key}", value, "a finite number")
        return value

    def inner(self, key: str) -> "Config":
        """An object inside, empty where it is missing."""
        return Config(f"{self.where}: {key}", dict(self.get(key, dict, {})))

    def done(self, harmless: Collection[str]) -> dict[str, Any]:
        """What is left, where all of it is known not to change what is computed. Raises UsageError, naming the others."""
        left = {key: value for key, value in self.values.items() if key not in self.asked}
        if unknown := sorted(set(left) - set(harmless)):
            raise bad_argument(f"{self.where}: keys", ", ".join(unknown), ", ".join(sorted(self.asked | set(harmless))),
                               "Each of them may change what the dictionary computes, so it is not guessed.")  # fmt: skip
        return left


def read_config(path: Path) -> Config:
    """A JSON object in a file. Raises UsageError."""
    content = content_of(path, LARGEST_TEXT)
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise bad_argument(str(path), f"{len(content)} bytes", "JSON", f"It cannot be read: {error}.") from error
    if not isinstance(values, dict):
        raise bad_argument(str(path), type(values).__name__, "a JSON object")
    return Config(path.name, values)


def content_of(path: Path, largest: int) -> bytes:
    """The bytes of a file. Raises UsageError for one that cannot be read or is too large."""
    _check_size(path, largest)
    return path.read_bytes()


def _check_size(path: Path, largest: int) -> None:
    try:
        size = os.path.getsize(path) if path.is_file() else None
    except OSError:
        size = None
    if size is None:
        raise bad_argument(str(path), "no such file", "a file that can be read")
    if size > largest:
        raise bad_argument(str(path), f"{size} bytes", f"at most {largest} bytes")


@dataclass(eq=False)
class Numbers:
    """The tensors of a file, by name."""

    where: str
    tensors: dict[str, Tensor]

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def shape(self, name: str, axes: int = 2) -> tuple[int, ...]:
        """The shape of a tensor that has so many axes."""
        if name not in self.tensors:
            raise bad_argument(f"{self.where}: {name}", "no such tensor", f"one of {sorted(self.tensors)}")
        shape = tuple(self.tensors[name].shape)
        if len(shape) != axes:
            raise bad_argument(f"{self.where}: {name}", f"shape {shape}", f"{axes} axes")
        return shape

    def take(self, name: str, *shape: int) -> Tensor:
        """A tensor of that shape as fp32, which must be finite."""
        if self.shape(name, len(shape)) != shape:
            raise bad_argument(f"{self.where}: {name}", f"shape {tuple(self.tensors[name].shape)}", f"shape {shape}")
        value = self.tensors.pop(name)
        if not value.is_floating_point() and value.dtype not in (torch.int32, torch.int64):
            raise bad_argument(f"{self.where}: {name}", str(value.dtype), "real numbers")
        value = value.float().contiguous()
        if not bool(value.isfinite().all()):
            raise bad_argument(f"{self.where}: {name}", "values that are not finite", "finite numbers")
        return value

    def done(self) -> None:
        """Raises UsageError for tensors that nobody asked for."""
        if self.tensors:
            raise bad_argument(f"{self.where}: tensors", ", ".join(sorted(self.tensors)), "those of this format only",
                               "Each of them may change what the dictionary computes, so it is not left out.")  # fmt: skip


def read_safetensors(path: Path) -> Numbers:
    """Tensors of a safetensors file. Raises UsageError."""
    from safetensors import SafetensorError, safe_open

    _check_size(path, LARGEST)
    try:
        with safe_open(path, "pt") as file:
            return Numbers(path.name, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise bad_argument(str(path), "a file that cannot be read", "safetensors", f"{error}.") from error


def tensor_names(path: Path) -> frozenset[str]:
    """Names of the tensors of a safetensors file; none where it is not one."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return frozenset(file.keys())
    except (SafetensorError, OSError, ValueError):
        return frozenset()


def read_npz(path: Path) -> Numbers:
    """Arrays of an .npz file, none of them an object. Raises UsageError."""
    _check_size(path, LARGEST)
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(part.file_size for part in archive.infolist())
        if unpacked > LARGEST:
            raise bad_argument(str(path), f"{unpacked} bytes unpacked", f"at most {LARGEST} bytes")
        with np.load(path, allow_pickle=False) as file:
            return Numbers(path.name, {name: torch.from_numpy(np.asarray(file[name])) for name in file.files})
    except UsageError:
        raise
    except Exception as error:  # damaged archives end in errors of many kinds
        raise bad_argument(str(path), "a file that cannot be read", "numpy arrays without objects", f"{error}.") from error


def read_torch(path: Path) -> Numbers:
    """A state dictionary of torch, read as tensors only. Raises UsageError."""
    _check_size(path, LARGEST)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(part.file_size for part in archive.infolist())
        if unpacked > LARGEST:
            raise bad_argument(str(path), f"{unpacked} bytes unpacked", f"at most {LARGEST} bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what a damaged or hostile file raises is not foreseeable
        raise bad_argument(str(path), "a file that cannot be read", "tensors only, as torch.save(state_dict) writes them",
                           f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}") from None  # fmt: skip
    if not isinstance(found, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in found.items()
    ):
        raise bad_argument(str(path), type(found).__name__, "a dictionary of tensors, as a module's state_dict")
    return Numbers(path.name, dict(found))
