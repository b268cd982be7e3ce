"""Assay's own folders: `dictionary.json` and `dictionary.safetensors`, see `features/kept.py`. They hold every dictionary."""

from collections.abc import Sequence
from pathlib import Path

from assay.features import kept
from assay.features.dictionary import Dictionary
from assay.features.formats.base import FORMATS, Format


def _folder(path: Path) -> Path:
    return path.parent if path.name in (kept.JSON, kept.TENSORS) else path


def recognises(path: Path) -> bool:
    """Whether it is one."""
    return kept.is_kept(_folder(path))


def read(path: Path) -> Dictionary:
    """The dictionary. Raises StoreError."""
    return kept.load(_folder(path))


def write(dictionary: Dictionary, folder: Path) -> Sequence[str]:
    """Write one."""
    kept.save(dictionary, folder)
    return ()


FORMATS.add("native", Format("native", "Assay: dictionary.json, dictionary.safetensors", recognises, read, write, lambda _: ""))
