"""A corpus as sparse latents on disk: which latents are active at which token, in a small part of a dense matrix.

1. Texts of a harvest go through a dictionary in their order, about `part_tokens` tokens to a file.
2. Per token the number of active latents, per active latent its number (2 bytes up to 65,536 latents) and value (fp16):
   32 of 4,096 active are 130 bytes, dense fp16 is 8,192.
3. Tokens the dictionary is not for (first, massive) have no active latents and are marked.
4. Files are written beside and renamed, the manifest after each: a killed run goes on with the next part, and a folder
   of another dictionary or harvest is refused.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from safetensors import SafetensorError
from safetensors.numpy import load, save
from torch import Tensor

from assay.errors import StoreError, bad_argument
from assay.features.codes import Codes, from_arrays, to_arrays
from assay.features.dictionary import Dictionary
from assay.features.shards import Shards, Text
from assay.files import write_file

MANIFEST, FORMAT = "codes.json", 1
Report = Callable[[int], Any]


@dataclass(frozen=True, eq=False)
class CodedPart:
    """Some texts as codes. `lengths`: tokens of each text; `typical`: tokens the dictionary is for."""

    codes: Codes
    tokens: Int[Tensor, " token"]
    typical: Bool[Tensor, " token"]
    lengths: Int[Tensor, " text"]
    documents: Int[Tensor, " text"]


def encode_shards(
    dictionary: Dictionary, shards: Shards, folder: Path, part_tokens: int = 65_536, report: Report | None = None
) -> dict[str, Any]:
    """Write the codes of a harvest; the manifest. Raises UsageError where the dictionary does not read its sites, and for
    a folder of other codes."""
    missing = [site for site in dictionary.spec.inputs if site not in shards.sites]
    if missing or not dictionary.spec.inputs:
        raise bad_argument("harvest", f"sites {', '.join(shards.sites)}", f"one with {', '.join(missing) or 'its sites named'}",
                           f"Dictionary {dictionary.name} reads them.")  # fmt: skip
    identity = {"assay": "codes", "format": FORMAT, "dictionary": dictionary.digest, "width": dictionary.width,
                "harvest": list(shards.record["shards"]), "part_tokens": part_tokens}  # fmt: skip
    manifest = _manifest(folder) or {**identity, "name": dictionary.name, "parts": [], "done": False}
    if differs := [key for key, value in identity.items() if manifest.get(key) != value]:
        raise bad_argument("folder", f"{folder}, with codes of another {', '.join(differs)}", "an empty folder")
    for number, texts in enumerate(_parts(shards, part_tokens)):
        if number < len(manifest["parts"]):
            continue
        manifest["parts"].append(_write(dictionary, texts, folder, number))
        write_file(folder / MANIFEST, json.dumps(manifest, indent=1).encode())
        if report is not None:
            report(manifest["parts"][-1]["tokens"])
    manifest["done"] = True
    write_file(folder / MANIFEST, json.dumps(manifest, indent=1).encode())
    return manifest


def read_codes(folder: Path) -> Iterator[CodedPart]:
    """What `encode_shards` wrote, part by part. Raises StoreError for a folder that is unfinished or damaged."""
    manifest = _manifest(folder)
    if manifest is None or not manifest["done"]:
        raise StoreError(f"{folder}: no finished codes there. Run the same `assay dictionary encode` command again.")
    for part in manifest["parts"]:
        content = (folder / part["file"]).read_bytes() if (folder / part["file"]).is_file() else b""
        if hashlib.sha256(content).hexdigest() != part["sha256"]:
            raise StoreError(f"{folder / part['file']}: damaged or missing. Encode again into an empty folder.")
        try:
            arrays = load(content)
        except SafetensorError as error:
            raise StoreError(f"{folder / part['file']}: {error}. Encode again into an empty folder.") from error
        columns = [torch.from_numpy(arrays[name].astype(np.int64)) for name in ("tokens", "typical", "lengths", "documents")]
        yield CodedPart(from_arrays(arrays, manifest["width"]), columns[0], columns[1].bool(), columns[2], columns[3])


def _parts(shards: Shards, part_tokens: int) -> Iterator[list[Text]]:
    texts: list[Text] = []
    held = 0
    for text in shards.rows():
        texts.append(text)
        held += len(text.tokens)
        if held >= part_tokens:
            yield texts
            texts, held = [], 0
    if texts:
        yield texts


def _write(dictionary: Dictionary, texts: list[Text], folder: Path, number: int) -> dict[str, Any]:
    x = torch.cat([torch.cat([text.values[site] for site in dictionary.spec.inputs], 1) for text in texts]).float()
    positions = torch.cat([text.positions for text in texts])
    typical = torch.cat([text.typical for text in texts]) & dictionary.typical(x, positions)
    codes = dictionary.codes(x)
    keep = typical[codes.pairs.tokens]
    codes = Codes(codes.pairs.where(keep), codes.values[keep])
    arrays = {**to_arrays(codes), "tokens": torch.cat([text.tokens for text in texts]).numpy().astype(np.uint32),
              "typical": typical.numpy(), "lengths": np.array([len(text.tokens) for text in texts], np.uint32),
              "documents": np.array([text.document for text in texts], np.uint32)}  # fmt: skip
    content = save(arrays)
    file = f"codes-{number:05d}.safetensors"
    write_file(folder / file, content)
    return {"file": file, "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content), "tokens": len(x),
            "texts": len(texts), "active": len(codes.latents)}  # fmt: skip


def _manifest(folder: Path) -> dict[str, Any] | None:
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text())
        return found if found["assay"] == "codes" else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path}: cannot be read ({error}). Encode into an empty folder.") from error
