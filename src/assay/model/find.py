"""Where a model is: the names that MODEL can be, in the order they are tried.

1. A packaged name (`glass-en`): fetched and converted on first use.
2. A `.gguf` file: converted on first use.
3. A local directory. `./name` is always a path, also where a packaged model has that name.
4. The name of a GGUF converted before, as `assay models` lists it.
5. A Hugging Face hub id; it is not asked here whether the hub has it.

Anything else is refused, with what is close to it. No weights are read here.
"""

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

from assay.errors import ModelError
from assay.model.cache import models_dir, read_manifest
from assay.model.packaged import PACKAGED, fetch_gguf, fetch_packaged

HUB_ID = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True)
class Found:
    """Where a model is (`where`: local directory or hub id), and its BOS habit if known."""

    where: str
    name: str
    source: str
    local: bool
    prepend_bos: bool | None = None
    bos_id: int | None = None


def find_model(model: str | Path) -> Found:
    """Where MODEL is; packaged models and GGUF files are fetched and converted here."""
    text, path = str(model), Path(model).expanduser()
    if text in PACKAGED:
        return _found_folder(fetch_packaged(text))
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise ModelError(f"No such file: {path}.{_suggest(path.name, _siblings(path))}")
        return _found_folder(fetch_gguf(path), path.stem)
    if path.is_dir():
        return _found_folder(path)
    if path.is_file():
        raise ModelError(_wrong_file(path))
    if text.startswith("gguf-") and (models_dir() / text).is_dir():
        return _found_folder(models_dir() / text)
    if isinstance(model, str) and HUB_ID.fullmatch(text) and text[0] not in ".~":
        if close := difflib.get_close_matches(text, PACKAGED, n=1, cutoff=0.65):
            raise ModelError(f"No model named {text!r}. Did you mean {close[0]!r}?")
        return Found(text, text, f"hub:{text}", local=False)
    near = _suggest(path.name, _siblings(path))
    raise ModelError(f"No such directory: {path}.{near} Packaged models: {', '.join(PACKAGED)}.")


def _found_folder(folder: Path, name: str | None = None) -> Found:
    """A local directory; one that Assay converted says its own name, source and BOS habit."""
    manifest = read_manifest(folder) or {}
    source = manifest.get("source", f"local:{folder.resolve()}")
    bos = {key: manifest.get(key) for key in ("prepend_bos", "bos_id")}
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder} is not a model directory: it has no config.json. "
            f"Give the directory that `save_pretrained` wrote."
        )
    label = manifest.get("name") or name or folder.resolve().name
    return Found(str(folder), label, source, local=True, **bos)


def _wrong_file(path: Path) -> str:
    """What to say about a file that is not a model."""
    if path.suffix in PICKLES:
        return f"{path} is a pickle, which can run code when read. {use_safetensors()}"
    if path.suffix == ".safetensors":
        return f"{path} holds weights only. Give its directory, which must also have config.json."
    return f"{path} is not a model: give a directory, a .gguf file, a packaged name or a hub id."


def use_safetensors() -> str:
    return (
        "Convert it where you trust it: load it there with transformers, then "
        "model.save_pretrained(DIR), and give DIR."
    )


def _siblings(path: Path) -> list[str]:
    parent = path.parent
    return [entry.name for entry in parent.iterdir()] if parent.is_dir() else []


def _suggest(got: str, names: list[str]) -> str:
    close = difflib.get_close_matches(got, names, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
