"""Activations on disk: a folder of safetensors files and a manifest, read as a stream or in order.

    shards = Shards("acts")                       # an ActivationStream
    for text in shards.rows(): text.name, text.tokens, text.values["resid_post.15"]

1. `manifest.json` says what the activations are of, and names each shard with its tokens, size and SHA-256.
2. A shard has one tensor (token, d) per site; `tokens`, `positions` (from the start of the row), `typical` per token;
   `rows.lengths`, `rows.numbers`, `rows.documents`, `rows.places` per row (place: tokens of the document before it); ids
   of documents in its header. `sums/SITE`, `squares/SITE`, `counts` are what the statistics are made from.
3. Reading maps files into memory and copies only what is asked for. A shard's SHA-256 is compared when it is first used.
4. Shuffling (`blocks.py`): units are neighbouring rows of a shard, at least `UNIT` typical tokens; an epoch takes units of
   all shards in an order drawn by (seed, epoch), and tokens are shuffled inside blocks of `buffer_tokens`. Rows were put
   into shards in a random order, so neighbours in a unit are of different documents.
5. In an object store: a shard is fetched when it is first used, into a file without a name that goes when the shard is
   closed. Columns alone (`read_tensors`) are read by their ranges.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor

from assay.errors import StoreError, bad_argument
from assay.features.blocks import Block, Order, shuffled
from assay.features.massive import Sums
from assay.files import folder_of, is_remote, reaching, read_file, sha256_of, size_of

FORMAT = 1
MANIFEST = "manifest.json"
UNIT = 256
OPEN = 64  # shards kept open
COLUMNS = ("lengths", "numbers", "documents", "places")
KINDS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
         "I32": torch.int32, "U8": torch.uint8}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Text:
    """One row as it was run. `number`: of the row in its corpus' rows; `name`: id of its document; `place`: tokens before."""

    number: int
    name: str
    document: int
    place: int
    tokens: Int[Tensor, " token"]
    typical: Bool[Tensor, " token"]
    values: Mapping[str, Float[Tensor, "token d"]]

    @property
    def positions(self) -> Int[Tensor, " token"]:
        """From the start of the row, a BOS included."""
        return torch.arange(len(self.tokens))


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a harvest; None where there is none. Raises StoreError for a damaged one."""
    file = folder / MANIFEST
    try:
        found = json.loads(read_file(file))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StoreError(f"{file}: the manifest cannot be read ({error}). Harvest again into another folder.") from error
    if not isinstance(found, dict) or found.get("assay") != "activations" or not isinstance(found.get("shards"), list):
        raise StoreError(f"{file}: this is not the manifest of a harvest.")
    if found.get("format") != FORMAT:
        raise StoreError(f"{file}: format {found.get('format')!r}; this version of Assay reads {FORMAT}. Harvest again.")
    return found


class Shards:
    """What `assay harvest` wrote, an `ActivationStream` of its typical tokens.

    `sites`: some of those harvested, None for all. `buffer_tokens`: shuffled at a time. `verify`: compare the SHA-256 of
    each shard when it is first used. Raises StoreError for a folder that is no finished harvest, or is damaged.
    """

    def __init__(
        self, folder: str | Path, sites: tuple[str, ...] | None = None, *, buffer_tokens: int = 65_536, verify: bool = True
    ) -> None:  # fmt: skip
        self.folder, self.buffer_tokens, self.verify = folder_of(folder), buffer_tokens, verify
        manifest = read_manifest(self.folder)
        if manifest is None:
            raise StoreError(f"{folder}: no {MANIFEST} there; allowed: a folder written by `assay harvest`.")
        if manifest["status"] != "done":
            raise StoreError(f"{folder}: the harvest is not finished ({len(manifest['shards'])} shards). Run the same"
                             " `assay harvest` command again: it goes on.")  # fmt: skip
        self.manifest = manifest
        kept = tuple(manifest["sites"])
        if sites is not None and (unknown := [site for site in sites if site not in kept]):
            raise bad_argument("sites", unknown, ", ".join(kept))
        self.sites = kept if sites is None else tuple(sites)
        self.sizes: Mapping[str, int] = {site: manifest["sizes"][site] for site in self.sites}
        self.norm_limits: Mapping[str, float | None] = {site: manifest["limits"]["norm_limits"][site] for site in self.sites}
        self.skip_first: int = manifest["limits"]["skip_first"]
        self.record: Mapping[str, Any] = {
            "from": "shards", **manifest["identity"], "limits": manifest["limits"], "massive": manifest["massive"],
            "buffer_tokens": self.buffer_tokens,
            "shards": [shard["sha256"] for shard in manifest["shards"]],
        }  # fmt: skip
        self._others: tuple[Shards, ...] = ()  # where a token must be typical, too
        self._good: set[str] = set()
        self._opened = lru_cache(OPEN)(self._open)
        for shard in manifest["shards"]:
            self._check_size(shard)
        self.n_tokens = sum(shard["typical"] for shard in manifest["shards"])
        self.all_tokens = sum(shard["tokens"] for shard in manifest["shards"])

    def __reduce__(self) -> tuple[Any, ...]:
        """Sent to another process, it is opened there again."""
        return _reopened, (str(self.folder), self.sites, self.buffer_tokens, self.verify)

    # as a stream -----------------------------------------------------------------------------

    def batches(self, size: int, seed: int = 0, start: int = 0) -> Iterator[dict[str, Float[Tensor, "token d"]]]:
        """Batches of `size` typical tokens, {site: (token, d)} in fp32, from number `start` on, without end."""
        return shuffled(Order(self._units["typical"], self.buffer_tokens, seed), self._load, size, start)

    @cached_property
    def _units(self) -> dict[str, np.ndarray]:
        """Stretches of shards: shard, first token, one after the last, typical tokens."""
        found: dict[str, list[int]] = {"shard": [], "start": [], "stop": [], "typical": []}
        for number, shard in enumerate(self.manifest["shards"]):
            opened = self._opened(number)
            ends = np.cumsum(opened.get_tensor("rows.lengths").numpy().astype(np.int64))
            if (typical := int(opened.get_tensor("typical").sum(dtype=torch.long))) != shard["typical"]:
                raise StoreError(f"{self.folder / shard['file']}: {typical} typical tokens, the manifest says"
                                 f" {shard['typical']}. Harvest again.")  # fmt: skip
            good = np.concatenate([[0], np.cumsum(self._typical(number).numpy().astype(np.int64))])[ends]
            place = np.maximum(good - 1, 0) // UNIT
            last = np.flatnonzero(np.diff(place, append=-1))  # rows that end a unit
            stops, sizes = ends[last], np.diff(good[last], prepend=0)
            found["shard"] += [number] * len(last)
            found["start"] += [0, *stops[:-1].tolist()]
            found["stop"] += stops.tolist()
            found["typical"] += sizes.tolist()
        return {name: np.asarray(values, dtype=np.int64) for name, values in found.items()}

    def _load(self, block: Block) -> tuple[dict[str, Tensor], np.ndarray]:
        units = self._units
        ranges = [(int(units["shard"][u]), int(units["start"][u]), int(units["stop"][u])) for u in block.units]
        masks = [self._typical(shard, start, stop) for shard, start, stop in ranges]
        places = list(zip(ranges, masks, strict=True))
        values = {site: torch.cat([self._slice(shard, site, start, stop)[mask] for (shard, start, stop), mask in places])
                  for site in self.sites}  # fmt: skip
        return values, block.order

    def _typical(self, shard: int, start: int = 0, stop: int | None = None) -> Bool[Tensor, " token"]:
        """Which tokens of a stretch are typical here, and in all harvests beside this one."""
        end = int(self.manifest["shards"][shard]["tokens"]) if stop is None else stop
        masks = [each._slice(shard, "typical", start, end).bool() for each in (self, *self._others)]
        return torch.stack(masks).all(0)

    def alignment(self) -> str:
        """Token ids in their rows, which of them are given, and the size of blocks."""
        state = hashlib.sha256(str(self.buffer_tokens).encode())
        for number in range(len(self.manifest["shards"])):
            opened = self._opened(number)
            for tensor in (opened.get_tensor("tokens"), opened.get_tensor("rows.lengths"), self._typical(number)):
                state.update(tensor.numpy().tobytes())
        return state.hexdigest()

    # in order --------------------------------------------------------------------------------

    def rows(self, start: int = 0) -> Iterator[Text]:
        """All rows in the order they were written, from number `start` of them on, values in the dtype kept."""
        for number, shard in enumerate(self.manifest["shards"]):
            if start >= shard["rows"]:
                start -= shard["rows"]
                continue
            opened = self._opened(number)
            names = json.loads(opened.metadata()["assay"])["documents"]
            columns = {name: opened.get_tensor(f"rows.{name}").tolist() for name in COLUMNS}
            end = sum(columns["lengths"][:start])
            for row in range(start, shard["rows"]):
                begin, end = end, end + columns["lengths"][row]
                values = {site: self._slice(number, site, begin, end) for site in self.sites}
                yield Text(columns["numbers"][row], names[row], columns["documents"][row], columns["places"][row],
                           self._slice(number, "tokens", begin, end), self._slice(number, "typical", begin, end).bool(),
                           values)  # fmt: skip
            start = 0

    def check(self) -> None:
        """Compare the SHA-256 of every shard now. Raises StoreError at the first that differs."""
        self._good.clear()
        for shard in self.manifest["shards"]:
            self._check_bytes(shard)

    # files -----------------------------------------------------------------------------------

    def _slice(self, shard: int, name: str, start: int, stop: int) -> Tensor:
        try:
            return self._opened(shard).get_slice(name)[start:stop]
        except SafetensorError as error:
            raise self._damaged(shard, str(error)) from error

    def _open(self, number: int) -> Any:
        shard = self.manifest["shards"][number]
        self._check_size(shard)
        if self.verify:
            self._check_bytes(shard)
        try:
            return open_shard(self.folder / shard["file"])
        except (OSError, SafetensorError) as error:
            raise self._damaged(number, str(error)) from error

    def _damaged(self, number: int, reason: str) -> StoreError:
        file = self.folder / self.manifest["shards"][number]["file"]
        return StoreError(f"{file}: the shard cannot be read ({reason}). Delete it and harvest with the same command.")

    def _check_size(self, shard: Mapping[str, Any]) -> None:
        file = self.folder / shard["file"]
        if (size := size_of(file)) != shard["size"]:
            got = "is missing" if size is None else f"has {size} bytes, expected {shard['size']}"
            raise StoreError(f"{file}: the shard {got}. Run the same `assay harvest` command again: it makes what is missing.")

    def _check_bytes(self, shard: Mapping[str, Any]) -> None:
        if shard["file"] in self._good:
            return
        file = self.folder / shard["file"]
        if (got := sha256_of(file)) != shard["sha256"]:
            raise StoreError(f"{file}: the shard is damaged: SHA-256 {got}, the manifest says {shard['sha256']}. Delete it"
                             " and run the same `assay harvest` command again: it makes what is missing.")  # fmt: skip
        self._good.add(shard["file"])


def _reopened(folder: str, sites: tuple[str, ...], buffer_tokens: int, verify: bool) -> Shards:
    return Shards(folder, sites, buffer_tokens=buffer_tokens, verify=verify)


def typical_in_all(harvests: Sequence[Shards]) -> list[Shards]:
    """Several harvests of the same rows, opened anew to give the tokens that are typical in all of them.

    Raises UsageError where rows or files differ: other text, another tokenizer, or other --shard-tokens.
    """
    made = [Shards(each.folder, each.sites, buffer_tokens=harvests[0].buffer_tokens, verify=each.verify) for each in harvests]
    first = made[0]
    for each in made[1:]:
        same = len(each.manifest["shards"]) == len(first.manifest["shards"]) and all(
            torch.equal(each._opened(number).get_tensor(name), first._opened(number).get_tensor(name))
            for number in range(len(first.manifest["shards"])) for name in ("tokens", "rows.lengths"))  # fmt: skip
        if not same:
            raise bad_argument("harvests", f"{first.folder}, {each.folder}, which hold other rows, or in other files",
                               "harvests of the same rows in the same files",
                               "Give both the same corpus, --seed, --context and --shard-tokens.")  # fmt: skip
    for each in made:
        each._others = tuple(other for other in made if other is not each)
        each.n_tokens = int(each._units["typical"].sum())
    return made


def sums_of(folder: Path, shards: list[Mapping[str, Any]], sites: tuple[str, ...]) -> dict[str, Sums]:
    """Statistics of each site, added up over shards."""
    found: dict[str, Sums] = {}
    for shard in shards:
        names = ["counts", *(f"{what}/{site}" for site in sites for what in ("sums", "squares"))]
        read = read_tensors(folder / shard["file"], names)
        for site in sites:
            new = Sums(read[f"sums/{site}"], read[f"squares/{site}"], read["counts"])
            found[site] = found[site] + new if site in found else new
    return found


def read_tensors(file: Path, names: Sequence[str]) -> dict[str, Tensor]:
    """Some tensors of a safetensors file, the others left unread. Raises SafetensorError, OSError, ValueError, KeyError."""
    if not is_remote(file):
        with safe_open(file, "pt") as opened:
            return {name: opened.get_tensor(name) for name in names}
    with reaching(file):
        raw = file.open("rb")

    def part(start: int, size: int) -> bytes:
        with reaching(file):
            raw.seek(start)
            return raw.read(size)

    with raw:
        start = 8 + (size := int.from_bytes(part(0, 8), "little"))
        header = json.loads(part(8, size))
        found = {}
        for name in names:
            begin, end = header[name]["data_offsets"]
            values = torch.frombuffer(bytearray(part(start + begin, end - begin)), dtype=KINDS[header[name]["dtype"]])
            found[name] = values.reshape(header[name]["shape"])
    return found


def open_shard(file: Path) -> Any:
    """A safetensors file, mapped into memory; one of an object store is fetched first."""
    if not is_remote(file):
        return safe_open(file, "pt")
    with tempfile.NamedTemporaryFile(prefix="assay-shard-") as here:  # mapped, it stays readable after its name is gone
        with reaching(file), file.open("rb") as there:
            shutil.copyfileobj(there, here, 1 << 24)
        here.flush()
        return safe_open(here.name, "pt")


def remove_temporary(folder: Path) -> None:
    """What a killed writer left beside its shards."""
    if is_remote(folder):
        return
    for stale in folder.glob(".shard-*"):
        with suppress(OSError):
            stale.unlink()
