"""A corpus as sparse latents on disk: which latents are active at which token, in a small part of a dense matrix.

1. Texts of a harvest go through a dictionary in their order, about `part_tokens` tokens to a file.
2. Per token the number of active latents, per active latent its number (2 bytes up to 65,536 latents) and value (fp16):
   32 of 4,096 active are 130 bytes, dense fp16 is 8,192.
3. Tokens the dictionary is not for (first, massive) have no active latents and are marked.
4. Files are written beside and renamed, the manifest after each: a killed run goes on with what is missing, a file that
   is there whole is taken up, and a folder of another dictionary or harvest is refused.
5. Where parts begin follows from the lengths of texts alone, so an `Engine` makes them in any order, in any number of
   processes (`engines.py`); each reads the texts of its part itself.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
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
from assay.features.dictionary import Dictionary, Spec, make_dictionary
from assay.features.engines import Engine, OneProcess
from assay.features.shards import Shards, Text, read_tensors
from assay.files import folder_of, names_in, read_file, size_of, write_file

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


@dataclass(frozen=True)
class PartJob:
    """Texts `start` to `stop` of a harvest, in its order."""

    number: int
    start: int
    stop: int


def encode_shards(
    dictionary: Dictionary, shards: Shards, folder: str | Path, part_tokens: int = 65_536, report: Report | None = None,
    engine: Engine | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write the codes of a harvest; the manifest. `engine`: where parts are made, None for here. Raises UsageError where
    the dictionary does not read its sites, and for a folder of other codes."""
    missing = [site for site in dictionary.spec.inputs if site not in shards.sites]
    if missing or not dictionary.spec.inputs:
        raise bad_argument("harvest", f"sites {', '.join(shards.sites)}", f"one with {', '.join(missing) or 'its sites named'}",
                           f"Dictionary {dictionary.name} reads them.")  # fmt: skip
    target = folder_of(folder)
    identity = {"assay": "codes", "format": FORMAT, "dictionary": dictionary.digest, "width": dictionary.width,
                "harvest": list(shards.record["shards"]), "part_tokens": part_tokens}  # fmt: skip
    manifest = _manifest(target)
    if manifest is None and (strangers := [name for name in names_in(target) if not name.startswith(".")]):
        held = f"It holds {', '.join(strangers[:3])}."
        raise bad_argument("folder", f"{folder}, with files of others", "an empty folder", held)
    manifest = manifest or {**identity, "name": dictionary.name, "parts": [], "done": False}
    if differs := [key for key, value in identity.items() if manifest.get(key) != value]:
        raise bad_argument("folder", f"{folder}, with codes of another {', '.join(differs)}", "an empty folder")
    _write_manifest(target, manifest)
    known = {part["file"]: part for part in manifest["parts"] if size_of(target / part["file"]) == part["bytes"]}
    jobs = (job for job in _parts(shards, part_tokens) if _file_name(job.number) not in known)
    state = {name: value.detach().numpy() for name, value in dictionary.state_dict().items()}
    make = partial(_maker, dictionary.spec, dictionary.name, state, shards, target)
    for part in (engine or OneProcess()).run(make, jobs):
        known[part["file"]] = part
        manifest["parts"] = [each for _, each in sorted(known.items())]
        _write_manifest(target, manifest)
        if report is not None:
            report(part["tokens"])
    manifest["done"] = True
    _write_manifest(target, manifest)
    return manifest


def _maker(
    spec: Spec, name: str, state: Mapping[str, np.ndarray], shards: Shards, folder: Path
) -> Callable[[PartJob], dict[str, Any]]:
    dictionary = make_dictionary(spec, name)
    dictionary.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
    return partial(_made, dictionary, shards, folder)


def _made(dictionary: Dictionary, shards: Shards, folder: Path, job: PartJob) -> dict[str, Any]:
    """The line of a part in the manifest; what a killed run finished is taken up."""
    file = folder / _file_name(job.number)
    texts = job.stop - job.start
    content = _content(file)
    try:
        arrays = load(content) if content else {}
    except SafetensorError:
        arrays = {}
    if len(arrays.get("lengths", ())) != texts:
        arrays = _coded(dictionary, list(islice(shards.rows(job.start), texts)))
        content = save(arrays)
        write_file(file, content)
    return {"file": file.name, "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content),
            "tokens": len(arrays["tokens"]), "texts": texts, "active": len(arrays["latents"])}  # fmt: skip


def read_codes(folder: str | Path) -> Iterator[CodedPart]:
    """What `encode_shards` wrote, part by part. Raises StoreError for a folder that is unfinished or damaged."""
    folder = folder_of(folder)
    manifest = _manifest(folder)
    if manifest is None or not manifest["done"]:
        raise StoreError(f"{folder}: no finished codes there. Run the same `assay dictionary encode` command again.")
    for part in manifest["parts"]:
        content = _content(folder / part["file"])
        if hashlib.sha256(content).hexdigest() != part["sha256"]:
            raise StoreError(f"{folder / part['file']}: damaged or missing. Encode again into an empty folder.")
        try:
            arrays = load(content)
        except SafetensorError as error:
            raise StoreError(f"{folder / part['file']}: {error}. Encode again into an empty folder.") from error
        columns = [torch.from_numpy(arrays[name].astype(np.int64)) for name in ("tokens", "typical", "lengths", "documents")]
        yield CodedPart(from_arrays(arrays, manifest["width"]), columns[0], columns[1].bool(), columns[2], columns[3])


def _parts(shards: Shards, part_tokens: int) -> Iterator[PartJob]:
    start = number = held = texts = 0
    for shard in shards.manifest["shards"]:
        for length in read_tensors(shards.folder / shard["file"], ("rows.lengths",))["rows.lengths"].tolist():
            texts, held = texts + 1, held + length
            if held >= part_tokens:
                yield PartJob(number, start, texts)
                start, number, held = texts, number + 1, 0
    if held:
        yield PartJob(number, start, texts)


def _coded(dictionary: Dictionary, texts: list[Text]) -> dict[str, np.ndarray]:
    x = torch.cat([torch.cat([text.values[site] for site in dictionary.spec.inputs], 1) for text in texts]).float()
    positions = torch.cat([text.positions for text in texts])
    typical = torch.cat([text.typical for text in texts]) & dictionary.typical(x, positions)
    codes = dictionary.codes(x, positions)
    keep = typical[codes.pairs.tokens]
    codes = Codes(codes.pairs.where(keep), codes.values[keep])
    return {**to_arrays(codes), "tokens": torch.cat([text.tokens for text in texts]).numpy().astype(np.uint32),
            "typical": typical.numpy(), "lengths": np.array([len(text.tokens) for text in texts], np.uint32),
            "documents": np.array([text.document for text in texts], np.uint32)}  # fmt: skip


def _content(file: Path) -> bytes:
    """Of a file; nothing where there is none."""
    return read_file(file) if size_of(file) is not None else b""


def _file_name(number: int) -> str:
    return f"codes-{number:05d}.safetensors"


def _write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    write_file(folder / MANIFEST, json.dumps(manifest, indent=1).encode())


def _manifest(folder: Path) -> dict[str, Any] | None:
    path = folder / MANIFEST
    try:
        found = json.loads(read_file(path))
        return found if found["assay"] == "codes" else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path}: cannot be read ({error}). Encode into an empty folder.") from error
