"""Dictionary files: one file per format; importing this package registers them.

`load_dictionary` reads any of them, `write_dictionary` writes one, `detect` says which format a path is in.
"""

from dataclasses import dataclass
from pathlib import Path

from assay.errors import bad_argument
from assay.features.dictionary import Dictionary
from assay.features.formats import (
    circuit_tracer,
    dictionary_learning,
    gemma_scope,
    gemma_scope_2,
    llama_scope,
    native,
    saelens,
    sparsify,
)
from assay.features.formats.base import FORMATS, Format
from assay.features.formats.gain import folded

__all__ = ["FORMATS", "Format", "Written", "circuit_tracer", "detect", "dictionary_learning", "folded", "gemma_scope",
           "gemma_scope_2", "holders", "llama_scope", "load_dictionary", "native", "saelens", "sparsify",
           "write_dictionary"]  # fmt: skip


@dataclass(frozen=True)
class Written:
    """Where a dictionary was written, and what is different there. `notes`: one sentence each."""

    folder: Path
    format: str
    notes: tuple[str, ...]


def load_dictionary(path: str | Path, format: str | None = None) -> Dictionary:
    """A dictionary from a folder or file of any known format, found by its content where `format` is not given.

    Its `provenance["imported"]` says the format, the settings that were read and left aside, and what was assumed.
    Raises UsageError for a path that is none, for a key or tensor that is not understood, and for shapes, values or
    settings that do not go together.
    """
    place = Path(path)
    return (FORMATS.get(format) if format else detect(place)).read(place)


def detect(path: str | Path) -> Format:
    """The format of a path. Raises UsageError where it is none, or could be several."""
    place = Path(path)
    if not place.exists():
        raise bad_argument("path", str(path), "a folder or file that exists")
    found = [one for one in FORMATS if one.recognises(place)]
    if len(found) == 1:
        return found[0]
    titles = "; ".join(f"{one.name} ({one.title})" for one in FORMATS)
    if found:
        raise bad_argument("path", str(path), f"one format; this could be {', '.join(one.name for one in found)}", "Say which.")
    raise bad_argument("path", str(path), f"a dictionary in one of these formats: {titles}")


def write_dictionary(dictionary: Dictionary, folder: str | Path, format: str) -> Written:
    """Write a dictionary in a format, so that the tool it belongs to makes the same latents and reconstructions of it.

    `notes` of what comes back name every difference. Raises UsageError where the format has no place for it, naming the
    formats that have.
    """
    chosen = FORMATS.get(format)
    if why := chosen.lacks(dictionary):
        others = ", ".join(holders(dictionary)) or "none"
        raise bad_argument("format", format, others, f"{chosen.title} cannot hold {dictionary.name!r}: {why}.")
    return Written(Path(folder), format, tuple(chosen.write(dictionary, Path(folder))))


def holders(dictionary: Dictionary) -> list[str]:
    """The formats that have a place for a dictionary."""
    return [one.name for one in FORMATS if not one.lacks(dictionary)]
