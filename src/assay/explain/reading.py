"""Model, units and a corpus read into a folder: which unit is on at which token, part by part.

1. Documents are chosen (`chosen`), divided into parts (`split`) and cut into rows once; rows and their text lie in the folder
   from then on, so that what is sealed is fixed before anything is seen.
2. Rows of a part go through the model, which stops after the last site that is read. Values above 0 are kept where the unit
   is on, in fp32, about `file_tokens` tokens to a file.
3. Not read, and marked: the first `skip_first` positions of a row, and massive positions: what the dictionary says, else
   norms of the residual stream above `factor` times their median (Sun et al. 2024).
4. For neurons, heads and directions the values above which they count as on are measured on the part *shown* and kept: a
   share `fires` of its tokens (of the first `LEVEL_TOKENS`) lies above, rounded down, at least one.
5. Files are written beside and renamed, the manifest after each. A killed run goes on with the next file and ends in the same
   bytes; another model, other units, another corpus or plan are refused in the same folder. Each file is a job that can be done
   in another process (`features/engines.py`); who gets one looks first whether the file is there.
6. *confirm* and *ood* are not read before `read_more` asks for them. Untrained twins read the same rows (`read_twins`).

Held in memory: while reading the rows' text and one file's codes; afterwards the codes of the parts that were asked for last
(`part`), or one file at a time (`iter_parts`).
"""

import hashlib
import json
import shutil
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import scipy.sparse as sp
import torch
from filelock import FileLock, Timeout
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from safetensors.numpy import load, save
from torch import Tensor

from assay.data.corpora import Corpus, open_corpus
from assay.errors import ReproduceError, StoreError, UsageError, bad_argument
from assay.explain.chosen import ChosenDocument, Report, check_context, choose
from assay.explain.split import PARTS, SEALED, SHARES, Assigned, split_documents
from assay.explain.units import Columns, Latents, UnitSource, nearest, units_again
from assay.features.engines import HERE, Where, opened_there, opener_of
from assay.features.harvest import differences
from assay.features.massive import Limits, measure_limits, norms_of
from assay.features.passes import Group, walk_rows
from assay.files import write_file
from assay.model.model import Model
from assay.model.untrained import untrained_model
from assay.sites import Site

MANIFEST, NAMES, LEVELS, NEIGHBOURS, FORMAT = "reading.json", "units.json", "levels.safetensors", "neighbours.safetensors", 1
VECTORS = "vectors.safetensors"  # of directions
LEVEL_TOKENS = 131_072  # of `shown`, that thresholds are measured on
NEAREST = 16  # decoder neighbours kept of each unit
KEPT = 3  # parts in memory
BUFFER = 1 << 25  # values held while thresholds are measured
RESIDUAL = ("embed", "resid_pre", "resid_mid", "resid_post")


@dataclass(frozen=True)
class ReadPlan:
    """`tokens`: of all parts together; `per_document`: of one document at most, unless the corpus is too small for that.

    `fires`: share of tokens at which a unit that has a value everywhere counts as on. `parts`: what is read at once; the others
    by `read_more`.
    """

    tokens: int = 200_000
    context: int = 128
    per_document: int = 512
    shares: Mapping[str, float] = field(default_factory=lambda: dict(SHARES))
    parts: tuple[str, ...] = ("shown", "scored", "tune")
    skip_first: int = 1
    factor: float | None = 10.0
    fires: float = 0.01
    seed: int = 0
    file_tokens: int = 65_536

    def __post_init__(self) -> None:
        for name, least in (("tokens", 100), ("per_document", 8), ("skip_first", 0), ("seed", 0), ("file_tokens", 1)):
            if getattr(self, name) < least:
                raise bad_argument(name, getattr(self, name), f"{least} or more")
        if not 0 < self.fires < 0.5:
            raise bad_argument("fires", self.fires, "above 0 and below 0.5, e.g. 0.01")
        if unknown := [part for part in self.parts if part not in self.shares]:
            raise bad_argument("parts", unknown, ", ".join(part for part in PARTS if part in self.shares))
        if "shown" not in self.shares:
            raise bad_argument("shares", dict(self.shares), "some of 'shown'", "Thresholds and explanations are made from it.")


@dataclass(frozen=True, eq=False)
class Row:
    """Tokens of one document as the model reads them. `place`: tokens of the document before it."""

    document: str
    tokens: Int[np.ndarray, " token"]
    place: int


@dataclass(frozen=True, eq=False)
class CodedPart:
    """Rows of a part (or of one file of it) and which units are on at their tokens.

    `tokens` (N,): all rows one after the other; `starts` (rows + 1,): where each begins, and N. `codes`: scipy CSR (N, units),
    float32, above 0 where a unit is on, sorted. `typical` (N,): tokens that are read; the others have no codes. `documents`
    (rows,): number of each row's document in `names`.
    """

    name: str
    tokens: Int[np.ndarray, " token"]
    starts: Int[np.ndarray, " row_and_one"]
    documents: Int[np.ndarray, " row"]
    names: tuple[str, ...]
    places: Int[np.ndarray, " row"]
    typical: Bool[np.ndarray, " token"]
    codes: Any
    text: bytes = field(repr=False)
    ends: Int[np.ndarray, " token"] = field(repr=False)

    @property
    def n_tokens(self) -> int:
        """Of all rows, those too that are not read."""
        return len(self.tokens)

    @property
    def n_rows(self) -> int:
        """How many rows."""
        return len(self.documents)

    def row(self, number: int) -> Row:
        """One row."""
        inside = slice(int(self.starts[number]), int(self.starts[number + 1]))
        return Row(self.names[self.documents[number]], self.tokens[inside], int(self.places[number]))

    @property
    def rows(self) -> list[Row]:
        """All rows."""
        return [self.row(number) for number in range(self.n_rows)]

    @cached_property
    def pieces(self) -> list[str]:
        """The text of each token; those of a row joined are its text."""
        known: dict[bytes, str] = {}
        found, start = [], 0
        for end in self.ends.tolist():
            raw = self.text[start:end]
            piece = known.get(raw)
            if piece is None:
                piece = known[raw] = raw.decode("utf-8", "surrogatepass")
            found.append(piece)
            start = end
        return found

    def row_text(self, number: int) -> str:
        """The text of one row."""
        first, last = int(self.starts[number]), int(self.starts[number + 1])
        start = int(self.ends[first - 1]) if first else 0
        return self.text[start : int(self.ends[last - 1])].decode("utf-8", "surrogatepass")

    @cached_property
    def row_of(self) -> Int[np.ndarray, " token"]:
        """The row of each token."""
        return np.repeat(np.arange(self.n_rows), np.diff(self.starts))

    @cached_property
    def positions(self) -> Int[np.ndarray, " token"]:
        """Of each token in its row."""
        return np.arange(self.n_tokens) - self.starts[self.row_of]

    @cached_property
    def document_of(self) -> Int[np.ndarray, " token"]:
        """The document of each token, as a number in `names`."""
        return self.documents[self.row_of]

    @cached_property
    def by_unit(self) -> Any:
        """The same codes as scipy CSC: tokens of each unit, in order."""
        return self.codes.tocsc()


class Reading:
    """A folder that `read_features` made. `units`: their names, in the order of columns; `manifest`: as on disk.

    `where`: where further parts and twins are read.
    """

    def __init__(self, folder: Path, source: UnitSource | None = None, where: Where = HERE) -> None:
        self.folder, self.source, self.where = folder, source, where
        self._parts: OrderedDict[str, CodedPart] = OrderedDict()
        self.place: Any = None  # a temporary folder, as long as this is there
        self.coactive: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # of parts, once made (`sampling.coactivation`)
        self.chosen: dict[Any, dict[int, Any]] = {}  # windows by plan and unit, once chosen (`sampling.Samples`)
        self.manifest: dict[str, Any] = _finished(folder)

    @cached_property
    def units(self) -> tuple[str, ...]:
        """Names, in the order of columns."""
        return tuple(json.loads(_whole(self.folder, self.manifest["units"]["names"]))["names"])

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Column of each name."""
        return {name: number for number, name in enumerate(self.units)}

    @property
    def kind(self) -> str:
        """latent, neuron, head or direction."""
        return self.manifest["identity"]["units"]["kind"]

    @property
    def digest(self) -> str:
        """SHA-256 of everything that decides what is in the folder."""
        return _digest(self.manifest["identity"])

    @property
    def parts(self) -> tuple[str, ...]:
        """Those that were read."""
        return tuple(part for part in PARTS if self.manifest["parts"].get(part, {}).get("done"))

    def n_tokens(self, part: str) -> int:
        """Tokens of a part, read or not."""
        return self._rows_record(part)["tokens"]

    def documents(self, part: str) -> tuple[str, ...]:
        """Names of the documents of a part, read or not."""
        return _rows_of(self._rows_folder, self._rows_record(part))["names"]

    def part(self, name: str) -> CodedPart:
        """A whole part in memory; the last few are kept. Raises UsageError for a part that is not read yet."""
        self._must_be_read(name)
        if name not in self._parts:
            files = list(self._files(name))
            self._parts[name] = _coded(name, self._rows(name), files, len(self.units))
            while len(self._parts) > KEPT:
                self._parts.popitem(last=False)
        self._parts.move_to_end(name)
        return self._parts[name]

    def iter_parts(self, name: str) -> Iterator[CodedPart]:
        """The same file by file, nothing kept."""
        self._must_be_read(name)
        rows, width = self._rows(name), len(self.units)
        for record, arrays in self._files(name):
            yield _coded(name, _some_rows(rows, *record["rows"]), [(record, arrays)], width)

    def as_text(self, name: str) -> CodedPart:
        """The rows of a part, read or not, without codes: what can be known of them before any model reads them."""
        rows = self._rows(name)
        n = len(rows["tokens"])
        return CodedPart(name, rows["tokens"], rows["starts"], rows["documents"], rows["names"], rows["places"],
                         np.zeros(n, bool), sp.csr_array((n, len(self.units)), dtype=np.float32), rows["text"],
                         rows["ends"])  # fmt: skip

    def column(self, unit: str | int) -> int:
        """The column of a unit. Raises UsageError for a name or number it does not have."""
        if isinstance(unit, int) and 0 <= unit < len(self.units):
            return unit
        if unit in self.numbers:
            return self.numbers[unit]  # type: ignore[index]
        raise bad_argument("unit", unit, f"a name as {self.units[-1]}, or 0 to {len(self.units) - 1}")

    def neighbours(self) -> tuple[Int[np.ndarray, "unit k"], Float[np.ndarray, "unit k"]] | None:
        """The nearest units by decoder and the cosine, largest first, -1 where there are fewer; None for units without one."""
        record = self.manifest["neighbours"]
        if record is None:
            return None
        arrays = load(_whole(self.folder, record))
        return arrays["units"].astype(np.int64), arrays["cosines"]

    def vectors(self) -> Float[Tensor, "direction d"] | None:
        """Of directions, of norm 1, in the order of columns; None for other units."""
        record = self.manifest["units"].get("vectors")
        return None if record is None else torch.from_numpy(_arrays(self.folder, record)["vectors"])

    def levels(self) -> tuple[Float[np.ndarray, " unit"], Float[np.ndarray, " unit"]] | None:
        """(threshold, mean taken off) of each unit that has a value everywhere; None for latents."""
        record = self.manifest["levels"]
        if record is None:
            return None
        arrays = load(_whole(self.folder, record))
        return arrays["thresholds"], arrays["means"]

    def read_more(
        self, model: Model, parts: Sequence[str] = SEALED, source: UnitSource | None = None, report: Report | None = None
    ) -> "Reading":
        """Read further parts of the same rows; itself. `source`: the units, where this was opened from a folder.

        Raises ReproduceError for another model or other units, UsageError for a part that there is none of.
        """
        wanted = self._source(source)
        self._same(model, wanted)
        _read(self.folder, self._rows_folder, model, wanted, tuple(parts), report, self.where)
        self.source, self.manifest = wanted, _finished(self.folder)
        return self

    def read_twins(
        self, model: Model, scheme: str = "all", parts: Sequence[str] = ("shown", "scored"), seed: int = 0,
        source: UnitSource | None = None, report: Report | None = None,
    ) -> "Reading":  # fmt: skip
        """The same rows through an untrained twin of the model (`untrained_model`), with the same units; kept in `twins/`.

        Thresholds of units that have a value everywhere are measured again, so that they are on as often as in the model.
        """
        wanted = self._source(source)
        self._same(model, wanted)
        twin = untrained_model(model, scheme, seed)
        folder = self.folder / "twins" / f"{scheme}-{seed}"
        identity = {**self.manifest["identity"], "twin": {"scheme": scheme, "seed": seed, "digest": twin.digest}}
        with _writing(folder):
            before = _manifest(folder)
            _refuse_other(folder, before, identity)
            if before is None:
                same = {name: self.manifest[name] for name in ("rows", "split")}
                _keep(folder, {**_empty(identity, wanted, folder), **same, "rows_in": "../.."})
        where = Where(self.where.engine, partial(_twin_there, self.where.opener or opener_of(model), scheme, seed))
        _read(folder, self._rows_folder, twin, wanted, tuple(parts), report, where)
        return Reading(folder, wanted, self.where)

    def anew(self, model: Model) -> "Reading":
        """The same rows and units with no part read, for `read_more` to measure again; in a folder that is gone when this is.

        Thresholds above which neurons, heads and directions are on stay as they were measured. Raises ReproduceError where the
        units cannot be made again from what is kept of them, SiteError for latents of a dictionary that is not open.
        """
        units = units_again(model, self.manifest["identity"]["units"], self.units, self.vectors())
        place = TemporaryDirectory(prefix="assay-reading-")
        records = [*self.manifest["rows"].values(), *self.manifest["units"].values(), self.manifest["levels"],
                   self.manifest["neighbours"]]  # fmt: skip
        for record in (each for each in records if isinstance(each, dict)):
            shutil.copy(self.folder / record["file"], place.name)
        _keep(Path(place.name), {**self.manifest, "parts": {}})
        found = Reading(Path(place.name), units)
        found.place = place
        return found

    # internal --------------------------------------------------------------------------------

    @property
    def _rows_folder(self) -> Path:
        return self.folder / self.manifest.get("rows_in", ".")

    def _rows_record(self, part: str) -> dict[str, Any]:
        return _rows_record(self.manifest, part)

    def _rows(self, part: str) -> dict[str, Any]:
        return _rows_of(self._rows_folder, self._rows_record(part))

    def _files(self, part: str) -> Iterator[tuple[dict[str, Any], dict[str, np.ndarray]]]:
        for record in self.manifest["parts"][part]["files"]:
            yield record, _arrays(self.folder, record)

    def _must_be_read(self, part: str) -> None:
        self._rows_record(part)
        if part not in self.parts:
            raise bad_argument("part", part, f"{', '.join(self.parts) or 'none yet'}, which are read",
                               f"Call read_more(model, ({part!r},)) when its time has come.")  # fmt: skip

    def _source(self, source: UnitSource | None) -> UnitSource:
        wanted = source or self.source
        if wanted is None:
            raise bad_argument("source", None, f"the units of {self.manifest['identity']['units']}",
                               "This reading was opened from its folder, which does not hold them.")  # fmt: skip
        return wanted

    def _same(self, model: Model, source: UnitSource) -> None:
        now = {"model": _model_record(model), "units": source.record}
        if wrong := differences({name: self.manifest["identity"][name] for name in now}, _plain(now)):
            raise ReproduceError(f"{self.folder}: read with another {', '.join(wrong)}. Give what it was read with, or read"
                                 " into another folder.")  # fmt: skip


def read_features(
    model: Model, units: UnitSource, corpus: str | Path | Corpus, folder: str | Path, plan: ReadPlan | None = None,
    report: Report | None = None, ood: str | Path | Corpus | None = None, where: Where = HERE,
) -> Reading:  # fmt: skip
    """Read units of a model over a corpus into a folder; goes on where an earlier run with the same arguments ended.

    `ood`: another corpus for the part *ood*; without it that part is documents of the same corpus, and the manifest says so.
    `report(stage, done, in all)` in tokens. `where`: where the files are made, with the same bytes. Raises UsageError for a
    folder that holds another reading (naming what differs), for a context the model cannot read and a corpus of too few
    documents; CorpusError for one without text; StoreError where the folder cannot be written or another process writes it.
    """
    plan, target = plan or ReadPlan(), Path(folder)
    check_context(model, plan.context)
    model.sites(list(units.sites))
    opened = open_corpus(corpus)
    other = None if ood is None else open_corpus(ood)
    if other is not None and "ood" not in plan.shares:
        raise bad_argument("ood", other.name, "None where shares have no 'ood'")
    identity = _identity(model, units, opened, other, plan)
    with _writing(target):
        before = _manifest(target)
        _refuse_other(target, before, identity)
        if before is None or not before["rows"]:
            manifest = _empty(identity, units, target)
            _write_rows(target, manifest, model, opened, other, plan, report)
    _read(target, target, model, units, plan.parts, report, where)
    return Reading(target, units, where)


def open_reading(folder: str | Path) -> Reading:
    """What `read_features` wrote. Raises StoreError for a folder that is none, is damaged, or of a later version."""
    return Reading(Path(folder))


# identity -----------------------------------------------------------------------------------------


def _model_record(model: Model) -> dict[str, Any]:
    passport = model.passport()
    named = {name: passport[name] for name in ("model", "digest", "dtype", "prepend_bos", "bos_id", "attention")}
    return {**named, "tokenizer": model.tokenizer_digest}


def _identity(model: Model, units: UnitSource, corpus: Corpus, ood: Corpus | None, plan: ReadPlan) -> dict[str, Any]:
    settings = {name: value for name, value in asdict(plan).items() if name != "parts"}
    return _plain({"model": _model_record(model), "units": units.record, "corpus": corpus.record(),
                   "ood": None if ood is None else ood.record(), "plan": settings, "twin": None})  # fmt: skip


def _plain(record: Any) -> Any:
    """As a file gives it back."""
    return json.loads(json.dumps(record))


def _digest(record: Any) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _refuse_other(folder: Path, before: Mapping[str, Any] | None, identity: Mapping[str, Any]) -> None:
    if before is None:
        if strangers := sorted(file.name for file in folder.iterdir() if not file.name.startswith(".")):
            known = {NAMES, VECTORS} | {f"rows-{part}.safetensors" for part in PARTS}
            if not set(strangers) <= known:
                raise bad_argument("folder", str(folder), "an empty folder, or one of an earlier reading",
                                   f"It holds {', '.join(strangers[:3])}.")  # fmt: skip
    elif wrong := differences(before["identity"], identity):
        raise UsageError(f"folder: {str(folder)!r} holds another reading: {'; '.join(wrong[:6])}. Give the same arguments to go"
                         " on, or another folder.")  # fmt: skip


# what is on disk ----------------------------------------------------------------------------------


def _manifest(folder: Path) -> dict[str, Any] | None:
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["assay"] != "reading" or found["format"] > FORMAT:
            raise StoreError(f"{path}: not a reading of format {FORMAT} or earlier. Read into another folder.")
        return found
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path}: cannot be read ({error}). Read into an empty folder.") from error


def _finished(folder: Path) -> dict[str, Any]:
    found = _manifest(folder)
    if found is None or not found["rows"]:
        raise StoreError(f"{folder}: no reading there. Make one with read_features.")
    return found


def _empty(identity: dict[str, Any], units: UnitSource, folder: Path) -> dict[str, Any]:
    """A manifest of nothing; the names of units are written."""
    names = _store(folder, NAMES, json.dumps({"names": list(units.names)}).encode())
    kept = {"n": len(units.names), "names": names}
    if isinstance(units, Columns) and units.kind == "direction":
        kept["vectors"] = _store(folder, VECTORS, save({"vectors": units.made[0][1].numpy().copy()}))
    return {"assay": "reading", "format": FORMAT, "identity": identity, "units": kept,
            "rows": {}, "split": None, "limits": None, "levels": None, "neighbours": None, "parts": {}}  # fmt: skip


def _keep(folder: Path, manifest: Mapping[str, Any]) -> None:
    write_file(folder / MANIFEST, json.dumps(manifest, indent=1).encode())


def _store(folder: Path, file: str, content: bytes) -> dict[str, Any]:
    write_file(folder / file, content)
    return {"file": file, "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def _is_whole(folder: Path, record: Mapping[str, Any]) -> bool:
    path = folder / record["file"]
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == record["sha256"]


def _whole(folder: Path, record: Mapping[str, Any]) -> bytes:
    path = folder / record["file"]
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != record["sha256"]:
        raise StoreError(f"{path}: damaged or missing. Run the same reading again, or into an empty folder.")
    return content


def _arrays(folder: Path, record: Mapping[str, Any]) -> dict[str, np.ndarray]:
    try:
        return load(_whole(folder, record))
    except SafetensorError as error:
        raise StoreError(f"{folder / record['file']}: {error}. Read into an empty folder.") from error


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """The folder, made where it is missing, for one writer; the system frees the lock of a process that dies."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire(timeout=0)
    except Timeout as error:
        raise StoreError(f"{folder}: another process is reading into it. Wait for it, or give another folder.") from error
    except OSError as error:
        raise StoreError(f"{folder}: cannot be written ({error.strerror}). Choose another place.") from error
    try:
        for left in folder.glob(".*.safetensors.*"):
            left.unlink(missing_ok=True)
        for left in folder.glob(".*.json.*"):
            left.unlink(missing_ok=True)
        yield
    finally:
        lock.release()


# rows ---------------------------------------------------------------------------------------------


def _write_rows(
    folder: Path, manifest: dict[str, Any], model: Model, corpus: Corpus, ood: Corpus | None, plan: ReadPlan,
    report: Report | None,
) -> None:  # fmt: skip
    """Choose, divide and write the rows of all parts; the manifest last."""
    outside = plan.shares["ood"] * plan.tokens if ood is not None else 0
    documents, each = choose(model, corpus, round(plan.tokens - outside), plan.per_document, plan.context, plan.seed, report)
    others: list[ChosenDocument] = []
    if ood is not None:
        found, _ = choose(model, ood, round(outside), plan.per_document, plan.context, plan.seed, report)
        others = [ChosenDocument(f"ood:{document.name}", document.rows) for document in found]
    shares = {part: share for part, share in plan.shares.items() if ood is None or part != "ood"}
    whole = sum(shares.values())
    assigned = split_documents([(document.name, document.text) for document in documents],
                               {part: share / whole for part, share in shares.items()}, plan.seed,
                               outside=[(document.name, document.text) for document in others])  # fmt: skip
    by_part: dict[str, list[ChosenDocument]] = {part: [] for part in plan.shares}
    for document in [*documents, *others]:
        if document.name in assigned.homes:
            by_part[assigned.homes[document.name]].append(document)
    if empty := [part for part, found in by_part.items() if not found]:
        raise bad_argument("tokens", plan.tokens, f"enough for documents of every part; {', '.join(empty)} got none",
                           "Give more tokens, or a corpus of more documents.")  # fmt: skip
    manifest["rows"] = {part: _write_part(folder, part, found) for part, found in by_part.items()}
    manifest["split"] = {**assigned.record(), "per_document": each,
                         "ood": "documents of the same corpus" if ood is None else "another corpus"}  # fmt: skip
    _keep(folder, manifest)


def _write_part(folder: Path, part: str, documents: Sequence[ChosenDocument]) -> dict[str, Any]:
    rows = [(number, row) for number, document in enumerate(documents) for row in document.rows]
    parts = [[piece.encode("utf-8", "surrogatepass") for piece in row.pieces] for _, row in rows]
    text = b"".join(piece for pieces in parts for piece in pieces)
    arrays = {"tokens": np.concatenate([row.tokens for _, row in rows]).astype(np.int32),
              "lengths": np.array([len(row.tokens) for _, row in rows], np.uint32),
              "documents": np.array([number for number, _ in rows], np.uint32),
              "places": np.array([row.place for _, row in rows], np.uint32),
              "ends": np.cumsum([len(piece) for pieces in parts for piece in pieces]).astype(np.uint64),
              "text": np.frombuffer(text, np.uint8),
              "names": np.frombuffer(json.dumps([document.name for document in documents]).encode(), np.uint8)}  # fmt: skip
    record = _store(folder, f"rows-{part}.safetensors", save(arrays))
    return {**record, "documents": len(documents), "rows": len(rows), "tokens": len(arrays["tokens"])}


def _rows_record(manifest: Mapping[str, Any], part: str) -> dict[str, Any]:
    if part not in manifest["rows"]:
        raise bad_argument("part", part, ", ".join(manifest["rows"]))
    return manifest["rows"][part]


def _rows_of(folder: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays of a part's rows, `starts` and `names` made of them."""
    arrays: dict[str, Any] = dict(_arrays(folder, record))
    arrays["starts"] = np.concatenate([[0], np.cumsum(arrays.pop("lengths").astype(np.int64))])
    arrays["names"] = tuple(json.loads(arrays["names"].tobytes()))
    arrays["text"] = arrays["text"].tobytes()
    for name in ("documents", "places", "ends"):
        arrays[name] = arrays[name].astype(np.int64)
    return arrays


def _some_rows(rows: dict[str, Any], first: int, last: int) -> dict[str, Any]:
    """Rows first to last of a part, as a part of their own."""
    begin, end = int(rows["starts"][first]), int(rows["starts"][last])
    before = int(rows["ends"][begin - 1]) if begin else 0
    ends = rows["ends"][begin:end] - before
    return {"tokens": rows["tokens"][begin:end], "starts": rows["starts"][first : last + 1] - begin,
            "documents": rows["documents"][first:last], "places": rows["places"][first:last], "names": rows["names"],
            "text": rows["text"][before : before + int(ends[-1])], "ends": ends}  # fmt: skip


def _coded(name: str, rows: dict[str, Any], files: Sequence[tuple[Any, dict[str, np.ndarray]]], width: int) -> CodedPart:
    joined = {key: np.concatenate([arrays[key] for _, arrays in files]) for key in ("counts", "units", "values", "typical")}
    offsets = np.concatenate([[0], np.cumsum(joined["counts"].astype(np.int64))])
    codes = sp.csr_array((joined["values"], joined["units"].astype(np.int32), offsets), shape=(len(rows["tokens"]), width))
    return CodedPart(name, rows["tokens"], rows["starts"], rows["documents"], rows["names"], rows["places"],
                     joined["typical"].astype(bool), codes, rows["text"], rows["ends"])  # fmt: skip


# through the model --------------------------------------------------------------------------------


def _read(
    folder: Path, rows_in: Path, model: Model, units: UnitSource, parts: tuple[str, ...], report: Report | None, where: Where
) -> None:  # fmt: skip
    """Everything that is missing of these parts."""
    with _writing(folder):
        manifest = _finished(folder)
        for part in parts:
            _rows_record(manifest, part)
        reader = _Reader(folder, rows_in, model, units, manifest, report)
        reader.prepare()
        reader.read(parts, where)


def _twin_there(opener: Callable[[], Model], scheme: str, seed: int) -> Model:
    return untrained_model(opener(), scheme, seed)


def _maker_there(opener: Callable[[], Model], digest: str, reader: "_Reader") -> "Maker":
    """Makes files in another process."""
    reader.model = opened_there(opener, digest)
    return reader.made


@dataclass(frozen=True, eq=False)
class _File:
    """Rows first to last of a part, to become a file. `before`, `in_all`: tokens of the part."""

    part: str
    name: str
    number: int
    rows: list[np.ndarray]
    first: int
    last: int
    before: int
    in_all: int

    @property
    def tokens(self) -> int:
        return sum(map(len, self.rows))


Maker = Callable[[_File], tuple[str, dict[str, Any]]]


class _Reader:
    """Writes the files that are missing, and the manifest after each."""

    def __init__(
        self, folder: Path, rows_in: Path, model: Model, units: UnitSource, manifest: dict[str, Any], report: Report | None
    ) -> None:  # fmt: skip
        self.folder, self.rows_in, self.model, self.units = folder, rows_in, model, units
        self.manifest, self.report = manifest, report
        self.plan = manifest["identity"]["plan"]
        self.sites = model.sites(list(units.sites))
        self.limits: Limits | None = None
        self.above = {model.sites(site)[0]: limit for site, limit in units.dictionary.massive_above.items()} \
            if isinstance(units, Latents) else {}
        self.levels: tuple[Tensor, Tensor] | None = None

    def prepare(self) -> None:
        """Limits of norms, thresholds and neighbours: measured once, read again later."""
        shown = self._part_rows("shown")
        guards = self._guards()
        if self.manifest["limits"] is None and guards:
            settings = (self.plan["skip_first"], self.plan["factor"], self.plan["seed"])
            limits = measure_limits(self.model, cast(Any, shown), guards, *settings)
            self.manifest["limits"] = {"sizes": dict(limits.sizes), **limits.json()}
            _keep(self.folder, self.manifest)
        if self.manifest["limits"] is not None:
            self.limits = Limits.of_json(self.manifest["limits"], self.manifest["limits"]["sizes"])
        if isinstance(self.units, Columns):
            if self.manifest["levels"] is None or not _is_whole(self.folder, self.manifest["levels"]):
                self.manifest["levels"] = self._measure_levels(shown)
                _keep(self.folder, self.manifest)
            arrays = load(_whole(self.folder, self.manifest["levels"]))
            self.levels = (torch.from_numpy(arrays["thresholds"]), torch.from_numpy(arrays["means"]))
        if self.manifest["neighbours"] is None and (decoder := self.units.decoder()) is not None:
            near, cosines = nearest(decoder, NEAREST)
            content = save({"units": near.astype(np.int32), "cosines": cosines.astype(np.float32)})
            self.manifest["neighbours"] = _store(self.folder, NEIGHBOURS, content)
            _keep(self.folder, self.manifest)

    def read(self, parts: Sequence[str], where: Where) -> None:
        """All files of these parts."""
        files, found = {part: self._cut(part) for part in parts}, {}
        for part in parts:
            record = self.manifest["parts"].setdefault(part, {"files": [], "done": False})
            found[part] = {one["file"]: one for one in record["files"] if _is_whole(self.folder, one)}
            for damaged in {one["file"] for one in record["files"]} - found[part].keys():
                (self.folder / damaged).unlink(missing_ok=True)
        missing = [file for part in parts for file in files[part] if file.name not in found[part]]
        for part, made in where.run(self._maker(where), missing) if missing else ():
            found[part][made["file"]] = made
            self._keep_part(part, [found[part][file.name] for file in files[part] if file.name in found[part]], files[part])
        for part in parts:
            self._keep_part(part, [found[part][file.name] for file in files[part]], files[part])

    def _keep_part(self, part: str, found: list[dict[str, Any]], files: Sequence[_File]) -> None:
        before = self.manifest["parts"][part]
        record: dict[str, Any] = {"files": found, "done": len(found) == len(files)}
        if record["done"]:
            record |= {what: sum(one[what] for one in found) for what in ("typical", "active")}
        if record != before:
            self.manifest["parts"][part] = record
            _keep(self.folder, self.manifest)
        if self.report:
            self.report(f"reading {part}", sum(one["tokens"] for one in found), files[0].in_all)

    def _cut(self, part: str) -> list[_File]:
        rows, files, before = self._part_rows(part), [], 0
        for number, (first, last) in enumerate(rows.cuts(self.plan["file_tokens"])):
            chosen = [rows.tokens(row) for row in range(first, last)]
            name = f"codes-{part}-{number:05d}.safetensors"
            files.append(_File(part, name, number, chosen, first, last, before, rows.n_tokens))
            before += files[-1].tokens
        return files

    def _maker(self, where: Where) -> Callable[[], "Maker"]:
        if where.engine is None:
            return lambda: self.made
        there = copy(self)
        there.folder, there.model, there.report, there.manifest = self.folder.absolute(), cast(Any, None), None, {}
        return partial(_maker_there, where.opener or opener_of(self.model), self.model.digest, there)

    def made(self, file: _File) -> tuple[str, dict[str, Any]]:
        """Part and record of a file: one that is there whole (its maker was killed before it could say so), or made now."""
        path = self.folder / file.name
        try:
            content = path.read_bytes()
            arrays = load(content)
        except (OSError, SafetensorError):
            return file.part, self._write(file)
        whole = len(arrays["counts"]) == file.tokens
        return file.part, self._record(file, content, arrays) if whole else self._write(file)

    def _part_rows(self, part: str) -> "_PartRows":
        arrays = _rows_of(self.rows_in, _rows_record(self.manifest, part))
        return _PartRows(arrays["tokens"], arrays["starts"])

    def _guards(self) -> list[Site]:
        """Where massive positions are looked for: nowhere if the dictionary says which they are."""
        if isinstance(self.units, Latents) and self.units.dictionary.spec.norm_limit is not None:
            return []
        return list(dict.fromkeys(_guard(self.model, site) for site in self.sites)) if self.plan["factor"] is not None else []

    def _write(self, file: _File) -> dict[str, Any]:
        n = file.tokens
        typical = np.zeros(n, bool)
        found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        seen = 0

        def take(values: dict[str, Tensor], group: Group, keep: Tensor) -> None:
            nonlocal seen
            tokens, units, numbers, keep = self._codes(values, group, keep)
            slots = group.slots.numpy()
            typical[slots] = keep.numpy()
            found.append((slots[tokens], units, numbers))
            seen += len(slots)
            if self.report:
                self.report(f"reading {file.part}", file.before + seen, file.in_all)

        self._walk(file.rows, take)
        tokens, units, values = (np.concatenate([one[at] for one in found]) for at in range(3))
        order = np.argsort(tokens.astype(np.int64) * len(self.units.names) + units, kind="stable")
        kind = np.uint16 if len(self.units.names) <= np.iinfo(np.uint16).max + 1 else np.uint32
        arrays = {"counts": np.bincount(tokens, minlength=n).astype(np.uint32), "units": units[order].astype(kind),
                  "values": values[order].astype(np.float32), "typical": typical.astype(np.uint8)}  # fmt: skip
        content = save(arrays)
        write_file(self.folder / file.name, content)
        return self._record(file, content, arrays)

    def _record(self, file: _File, content: bytes, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
        return {"file": file.name, "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content),
                "rows": [file.first, file.last], "tokens": file.tokens, "typical": int(arrays["typical"].sum()),
                "active": len(arrays["units"])}  # fmt: skip

    def _codes(
        self, values: dict[str, Tensor], group: Group, keep: Tensor
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, Tensor]:  # fmt: skip
        """(token of the pass, unit, value) of what is on, and which tokens are read."""
        if isinstance(self.units, Latents):
            codes, typical = self.units.codes(values, group.positions)
            keep = keep & typical
            column = torch.full((self.units.dictionary.width,), -1)
            column[list(self.units.only)] = torch.arange(len(self.units.only))
            tokens, units, numbers = codes.pairs.tokens.cpu(), column[codes.latents.cpu()], codes.values.float().cpu()
            on = (units >= 0) & (numbers > 0) & keep[tokens]
            return tokens[on].numpy(), units[on].numpy(), numbers[on].numpy(), keep
        assert isinstance(self.units, Columns) and self.levels is not None
        raw = self.units.dense(values)
        thresholds, means = self.levels
        made = raw - means
        on = (raw > thresholds) & (made > 0) & keep[:, None]
        tokens, units = on.nonzero(as_tuple=True)
        return tokens.numpy(), units.numpy(), made[tokens, units].numpy(), keep

    def _measure_levels(self, shown: "_PartRows") -> dict[str, Any]:
        """The value that a share `fires` of tokens exceeds, and the mean, of every unit."""
        assert isinstance(self.units, Columns)
        source, width = self.units, len(self.units.names)
        chosen = shown.first(LEVEL_TOKENS)
        most = max(1, int(self.plan["fires"] * sum(map(len, chosen)))) + 1
        best, waiting = torch.empty(0, width), []
        total, count = torch.zeros(width, dtype=torch.float64), 0

        def fold() -> None:
            nonlocal best, waiting
            both = torch.cat([best, *waiting])
            best, waiting = both.topk(min(most, len(both)), dim=0).values, []

        def take(values: dict[str, Tensor], group: Group, keep: Tensor) -> None:
            nonlocal total, count
            read = source.dense(values)[keep]
            total, count = total + read.sum(0, dtype=torch.float64), count + len(read)
            waiting.append(read)
            if sum(map(len, waiting)) * width > BUFFER:
                fold()
            if self.report:
                self.report("measuring thresholds", count, sum(map(len, chosen)))

        self._walk(chosen, take)
        fold()
        if not count:
            raise StoreError(f"{self.folder}: no token of the part shown is read: all are first or massive positions.")
        means = (total / count).float() if source.centred else torch.zeros(width)
        above = min(max(1, int(self.plan["fires"] * count)), len(best) - 1)
        thresholds = best[max(above - 1, 0) : above + 1].mean(0)  # between two values: rounding of either moves nothing
        content = save({"thresholds": thresholds.numpy().copy(), "means": means.numpy().copy()})
        return {**_store(self.folder, LEVELS, content), "tokens": count, "fires": self.plan["fires"], "part": "shown"}

    def _walk(self, rows: list[np.ndarray], take: Callable[[dict[str, Tensor], Group, Tensor], None]) -> None:
        """All rows through the model; `take(values by site, group, tokens that are not first or massive)` for every pass."""
        guards = [site for site in map(str, self._limited)]
        read = list(dict.fromkeys([*self.sites, *self._limited, *self.above]))
        held: dict[str, Tensor] = {}

        def see(group: Group, site: Site, values: Tensor) -> None:
            held[str(site)] = values.detach().to("cpu", torch.float32, copy=True)

        def done(group: Group) -> None:
            keep = group.positions >= self.plan["skip_first"]
            for guard in guards:
                limit = None if self.limits is None else self.limits.of(guard)
                if limit is not None:
                    keep = keep & (norms_of(guard, held[guard]) <= limit)
            for guard, limit in self.above.items():
                keep = keep & (norms_of(guard, held[str(guard)]) <= limit)
            for site in map(str, self.sites):
                norms_of(site, held[site])  # an error where the model gives numbers that are none
            take(held, group, keep)
            held.clear()

        walk_rows(self.model, rows, read, see, done)

    @property
    def _limited(self) -> list[Site]:
        return [] if self.limits is None else self.model.sites(list(self.limits.guards))


def _guard(model: Model, site: Site) -> Site:
    """Where massive positions of a site show: the residual stream itself, else what enters the layer."""
    if site.name in RESIDUAL or site.layer is None:
        return site
    wanted = Site("resid_pre", site.layer)
    return wanted if wanted in model.layout.points and wanted not in model.layout.refused else site


@dataclass(frozen=True, eq=False)
class _PartRows:
    """Token ids of a part's rows."""

    ids: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def n_tokens(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.starts)

    def tokens(self, row: int) -> np.ndarray:
        return self.ids[self.starts[row] : self.starts[row + 1]]

    def first(self, tokens: int) -> list[np.ndarray]:
        """Rows from the start, so many tokens at most, one row at least."""
        n = max(1, int(np.searchsorted(self.starts[1:], tokens, side="right")))
        return [self.tokens(row) for row in range(min(n, len(self)))]

    def cuts(self, tokens: int) -> list[tuple[int, int]]:
        """Rows of each file: about so many tokens."""
        edges = np.flatnonzero(np.diff(self.starts[:-1] // tokens)) + 1
        places = [0, *edges.tolist(), len(self)]
        return list(zip(places[:-1], places[1:], strict=True))


__all__ = ["Assigned", "CodedPart", "ReadPlan", "Reading", "Row", "open_reading", "read_features"]
