"""Activations of a corpus from a running model: as a stream for training, or written to disk.

1. The corpus is packed to rows (`data/corpus_rows.py`); a first sample gives the norm limits (`massive.py`).
2. `LiveStream`: rows in an order drawn by (seed, epoch), a block of rows at a time through the model (stopped after the
   last site), its tokens shuffled and given in batches (`blocks.py`). Nothing is kept on disk. Any batch can be the
   first: what comes before it is counted, not computed.
3. Batches are cut before it is known which tokens are massive, so that counting suffices; a massive token's place in its
   batch is taken by another token of the block, drawn by seed. All other tokens appear once an epoch.
4. `harvest`: rows in an order drawn once, in shards of a fixed set of rows each. A shard is written beside and renamed,
   then entered in the manifest. A killed run loses the shard it was at, and goes on to the same bytes: a shard that is
   there whole, with the rows it should have, is taken up whether or not the manifest already knows it.
5. Shards do not depend on each other: an `Engine` makes them in any order and in any number of processes
   (`engines.py`). The rows of a shard are sent with the job, so workers need the model and the folder, not the corpus.
"""

import hashlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import save, save_file
from torch import Tensor

from assay.data.corpora import HOLDOUT, Corpus, Part, open_corpus
from assay.data.corpus_rows import Row, Rows, packed
from assay.errors import StoreError, UsageError, bad_argument
from assay.features.blocks import Block, Order, shuffled
from assay.features.engines import Engine, OneProcess, opened_there, opener_of
from assay.features.massive import Limits, Mask, Sums, check_factor, kinds_of, measure_limits, norms_of
from assay.features.passes import DTYPES, Group, storable, walk_rows
from assay.features.shards import FORMAT, MANIFEST, read_manifest, read_tensors, remove_temporary, sums_of
from assay.files import folder_of, is_remote, names_in, reaching, sha256_of, size_of, write_file
from assay.model.model import Model, Sites
from assay.passport import run_passport
from assay.sites import Site

LARGEST_FP16 = 65504.0
SHOWN = 80  # characters of a value in an error
Report = Callable[[int], None]


class LiveStream:
    """Typical activations of a running model, an `ActivationStream` of which nothing is kept.

    `n_tokens`: of the corpus, at most (None: all). `keep`: "fp32", "fp16" or "bf16" inside the buffer, which holds at
    most `buffer_tokens` tokens and `buffer_bytes` bytes; batches are fp32. `factor`: times the median norm is massive,
    None for no limit. Documents held out (`holdout`, unless the corpus is a part already) are never read.
    `report(n)` is told of tokens read. Raises SiteError, CorpusError, UsageError.
    """

    def __init__(
        self,
        model: Model,
        corpus: str | Path | Corpus,
        sites: Sites,
        n_tokens: int | None = None,
        context: int = 256,
        *,
        holdout: float = HOLDOUT,
        skip_first: int = 1,
        factor: float | None = 10.0,
        keep: str = "fp32",
        buffer_tokens: int = 65_536,
        buffer_bytes: int = 1 << 30,
        limits: Limits | None = None,
        report: Report | None = None,
    ) -> None:
        if keep not in DTYPES:
            raise bad_argument("keep", keep, ", ".join(DTYPES))
        self.model, self.keep, self.report = model, keep, report
        self._sites = storable(model, sites)
        self.sites = tuple(map(str, self._sites))
        self.rows = packed(model, training_part(corpus, holdout), context, n_tokens)
        self.limits = limits or measure_limits(model, self.rows, self._sites, skip_first, factor)
        self.sizes: Mapping[str, int] = dict(self.limits.sizes)
        self.norm_limits: Mapping[str, float | None] = self.limits.norm_limits
        self.skip_first = self.limits.skip_first
        token_bytes = sum(self.sizes.values()) * DTYPES[keep].itemsize
        self.block_tokens = max(1, min(buffer_tokens, buffer_bytes // token_bytes))
        self._counts = np.maximum(self.rows.lengths - self.skip_first, 0)
        self.n_tokens = Order(self._counts, self.block_tokens, 0).n_tokens
        self.record: Mapping[str, Any] = {
            "from": "live", "model": model.passport(), "corpus": self.rows.record["corpus"], "context": context,
            "tokens": self.rows.n_tokens, "sites": list(self.sites), "keep": keep, "block_tokens": self.block_tokens,
            "limits": self.limits.json(),
        }  # fmt: skip

    def batches(self, size: int, seed: int = 0, start: int = 0) -> Iterator[dict[str, Float[Tensor, "token d"]]]:
        """Batches of `size` typical tokens, {site: (token, d)} in fp32, from number `start` on, without end."""
        return shuffled(Order(self._counts, self.block_tokens, seed), self._load, size, start)

    def alignment(self) -> str:
        """Token ids in their rows, the sizes of blocks, and whose massive tokens are replaced."""
        state = hashlib.sha256(repr((self.rows.lengths.tolist(), self.skip_first, self.block_tokens)).encode())
        for row in range(len(self.rows)):
            state.update(np.ascontiguousarray(self.rows.tokens(row)).tobytes())
        whose = "" if self.limits.factor is None else f", typical of {self.model.digest} at {', '.join(self.sites)}"
        return state.hexdigest() + whose

    def _load(self, block: Block) -> tuple[dict[str, Tensor], np.ndarray]:
        """The values of all tokens of a block past the first positions, and its order without massive ones."""
        rows = [np.asarray(self.rows.tokens(int(row))) for row in block.units]
        values, massive = read_rows(self.model, rows, self._sites, self.limits, self.keep, self.report)
        positions = np.concatenate([np.arange(len(row)) for row in rows])
        past = np.flatnonzero(positions >= self.skip_first)
        return values, _replaced(past[block.order], massive.numpy(), past, block.key)


def _replaced(order: np.ndarray, massive: np.ndarray, past: np.ndarray, key: tuple[int, ...]) -> np.ndarray:
    wrong = np.flatnonzero(massive[order])
    if len(wrong):
        usable = past[~massive[past]]
        if not len(usable):
            raise StoreError("a whole block of tokens is massive: raise the factor, or the size of the buffer.")
        order = order.copy()
        at = order[wrong]  # the same token is replaced by the same one, wherever a run begins
        order[wrong] = usable[np.random.default_rng([*key, 4]).integers(len(usable), size=len(massive))[at]]
    return order


def training_part(corpus: str | Path | Corpus, holdout: float) -> Corpus:
    """The documents that may be trained on; a corpus that is a part already stays as it is."""
    opened = open_corpus(corpus)
    return opened if isinstance(opened, Part) else opened.part("train", holdout)


def read_rows(
    model: Model, rows: Sequence[np.ndarray], sites: Sequence[Site], limits: Limits, keep: str, report: Report | None = None
) -> tuple[dict[str, Float[Tensor, "token d"]], Tensor]:
    """({site: values of all tokens, row after row}, which of them are massive), on the CPU in the dtype of `keep`.

    Raises UsageError where a value does not fit into fp16.
    """
    total = sum(map(len, rows))
    values = {str(site): torch.empty(total, limits.sizes[str(site)], dtype=DTYPES[keep]) for site in sites}
    mask = Mask(limits, torch.zeros(total, dtype=torch.bool))
    read = list(dict.fromkeys([*sites, *model.sites(list(limits.guards.values()))]))

    def take(group: Group, site: Site, found: Tensor) -> None:
        norms = norms_of(site, found)
        mask.see(group, site, norms)
        if str(site) in values:
            _refuse_overflow(site, found, norms, keep)
            values[str(site)][group.slots] = found.to(device="cpu", dtype=DTYPES[keep])

    def done(group: Group) -> None:
        if report:
            report(len(group.slots))

    walk_rows(model, rows, read, take, done)
    return values, mask.massive


def _refuse_overflow(site: Site, values: Tensor, norms: Tensor, keep: str) -> None:
    if keep == "fp16" and float(norms.max()) > LARGEST_FP16 and (most := float(values.abs().max())) > LARGEST_FP16:
        raise bad_argument("dtype", "fp16", "bf16 or fp32 here", f"Site {site} holds {most:.3g}, and fp16 ends at 65504.")


# to disk -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HarvestPlan:
    """What to write. `tokens`: of the corpus (None: all); `dtype` on disk; a shard ends after `shard_tokens` tokens or
    `shard_bytes` bytes, whichever is first; `factor` and `skip_first` as in `Limits`; `seed`: of the order of rows.
    """

    tokens: int | None = None
    context: int = 256
    dtype: str = "fp16"
    holdout: float = HOLDOUT
    skip_first: int = 1
    factor: float | None = 10.0
    seed: int = 0
    shard_tokens: int = 65_536
    shard_bytes: int = 256 << 20

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise bad_argument("dtype", self.dtype, ", ".join(DTYPES))
        check_factor(self.factor)
        for name in ("shard_tokens", "shard_bytes"):
            if getattr(self, name) < 1:
                raise bad_argument(name, getattr(self, name), "1 or more")


@dataclass(frozen=True)
class Harvested:
    """What is in the folder now. `resumed`: shards that were there before; `manifest`: as on disk."""

    folder: Path
    manifest: Mapping[str, Any]
    resumed: int


def harvest(
    model: Model, corpus: str | Path | Corpus, sites: Sites, folder: str | Path, plan: HarvestPlan | None = None,
    report: Callable[[str, int, int], None] | None = None, engine: Engine | None = None,
    opener: Callable[[], Model] | None = None,
) -> Harvested:  # fmt: skip
    """Write the activations of a corpus at sites to a folder; goes on where an earlier run with the same arguments ended.

    `report(stage, tokens done, tokens in all)` after every pass (after every shard with an engine). `folder`: a path, or
    `s3://...`. `engine`: where shards are made, None for here; `opener`: how its workers open the same model (None: it
    is sent to them). Raises UsageError for a folder that holds another harvest (naming what differs), StoreError where
    it cannot be written or another process writes it.
    """
    plan, target = plan or HarvestPlan(), folder_of(folder)
    wanted = storable(model, sites)
    rows = packed(model, training_part(corpus, plan.holdout), plan.context, plan.tokens,
                  (lambda n: report("tokenising", n, plan.tokens or 0)) if report else None)  # fmt: skip
    identity = _identity(model, rows, wanted, plan)
    with _writing(target):
        before = read_manifest(target)
        _refuse_other(target, before, identity)
        if before and before["status"] == "done" and all(_whole(target, shard) for shard in before["shards"]):
            return Harvested(target, before, len(before["shards"]))
        limits = (Limits.of_json(before["limits"], before["sizes"]) if before else
                  measure_limits(model, rows, wanted, plan.skip_first, plan.factor))  # fmt: skip
        tell: Report | None = (lambda n: report("harvesting", n, rows.n_tokens)) if report else None
        maker = ShardMaker(model, tuple(wanted), limits, target, plan, tell if engine is None else None)
        make = lambda: maker  # noqa: E731
        if engine is not None:
            make = partial(_there, opener or opener_of(model), model.digest, replace(maker, model=None))
        jobs = _Harvest(rows, limits, target, plan, identity, before)
        return jobs.run(engine or OneProcess(), make, tell, tell_all=engine is not None)


def _identity(model: Model, rows: Rows, sites: Sequence[Site], plan: HarvestPlan) -> dict[str, Any]:
    """Everything that decides the bytes, as plain values."""
    passport = model.passport()
    settings = {name: value for name, value in asdict(plan).items() if name != "holdout"}
    named = {name: passport[name] for name in ("model", "digest", "dtype", "prepend_bos", "bos_id", "attention")}
    return {"model": {**named, "tokenizer": model.tokenizer_digest},
            "corpus": rows.record["corpus"], "sites": [str(site) for site in sites], **settings,
            "rows": len(rows), "tokens_of_rows": rows.n_tokens}  # fmt: skip


def differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """"name: value before, value now" for all that differs, long values cut."""
    found = []
    for name in sorted(set(before) | set(now)):
        old, new = before.get(name), now.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += differences(old, new, f"{prefix}{name}.")
        elif old != new:
            found.append(f"{prefix}{name}: {repr(old)[:SHOWN]} there, {repr(new)[:SHOWN]} now")
    return found


def _refuse_other(folder: Path, before: Mapping[str, Any] | None, identity: Mapping[str, Any]) -> None:
    if before is None:
        strangers = [name for name in names_in(folder) if not name.startswith(".")]
        if strangers:
            raise bad_argument("out", str(folder), "an empty folder, or one of an earlier harvest",
                               f"It holds {', '.join(strangers[:3])}.")  # fmt: skip
    elif wrong := differences(before["identity"], identity):
        raise UsageError(f"out: {str(folder)!r} holds another harvest; {'; '.join(wrong[:6])}. Give the same arguments to go"
                         " on, or another folder.")  # fmt: skip


def _whole(folder: Path, shard: Mapping[str, Any]) -> bool:
    """Whether a shard of the manifest is there as it was written. In an object store its size must do: it was put there
    whole, and readers compare its SHA-256."""
    file = folder / shard["file"]
    if size_of(file) != shard["size"]:
        return False
    return is_remote(folder) or sha256_of(file) == shard["sha256"]


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """The folder, made where it is missing, for one writer; the system frees the lock of a process that dies."""
    if is_remote(folder):  # no lock there: two writers of one harvest write the same bytes, of another one are refused
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire(timeout=0)
    except Timeout as error:
        raise StoreError(f"{folder}: another process is harvesting into it. Wait for it, or give another folder.") from error
    except OSError as error:
        raise StoreError(f"{folder}: cannot be written ({error.strerror}). Choose another place.") from error
    try:
        remove_temporary(folder)
        yield
    finally:
        lock.release()


@dataclass(frozen=True, eq=False)
class ShardJob:
    """One shard to make: its number and its rows."""

    number: int
    rows: tuple[Row, ...]


@dataclass(frozen=True, eq=False)
class ShardMaker:
    """Makes shards, one after the other: what each process of a harvest holds."""

    model: Model | None
    sites: tuple[Site, ...]
    limits: Limits
    folder: Path
    plan: HarvestPlan
    report: Report | None = None

    def __call__(self, job: ShardJob) -> tuple[int, dict[str, Any], bool]:
        """(number, its line in the manifest, whether it was there before)."""
        file = self.folder / _file_name(job.number)
        if (found := _taken_up(file, job.rows)) is not None:
            return job.number, found, True
        return job.number, self._write(file, job.rows), False

    def _write(self, file: Path, rows: Sequence[Row]) -> dict[str, Any]:
        assert self.model is not None
        values, massive = read_rows(self.model, [row.tokens for row in rows], self.sites, self.limits, self.plan.dtype,
                                    self.report)  # fmt: skip
        lengths = [len(row.tokens) for row in rows]
        positions = torch.from_numpy(np.concatenate([np.arange(length) for length in lengths]))
        kinds = kinds_of(positions, massive, self.plan.skip_first)
        tensors: dict[str, Tensor] = {
            **values, "tokens": torch.from_numpy(np.concatenate([row.tokens for row in rows]).astype(np.int32)),
            "positions": positions.int(), "typical": (kinds == 2).to(torch.uint8),
            "rows.lengths": torch.tensor(lengths, dtype=torch.int32),
            "rows.numbers": torch.tensor([row.number for row in rows]),
            "rows.documents": torch.tensor([row.document for row in rows]),
            "rows.places": torch.tensor([row.place for row in rows]),
            "counts": torch.bincount(kinds, minlength=3).double(),
        }  # fmt: skip
        for site, found in values.items():
            sums = Sums.of(found, kinds)
            tensors |= {f"sums/{site}": sums.total, f"squares/{site}": sums.squares}
        _save(file, tensors, json.dumps({"format": FORMAT, "documents": [row.name for row in rows]}))
        return _line(file, len(positions), int((kinds == 2).sum()), len(rows))


def _there(opener: Callable[[], Model], digest: str, maker: ShardMaker) -> ShardMaker:
    return replace(maker, model=opened_there(opener, digest))


def _taken_up(file: Path, rows: Sequence[Row]) -> dict[str, Any] | None:
    """The line of a shard that a killed run finished, if it has these rows."""
    if size_of(file) is None:
        return None
    try:
        found = read_tensors(file, ("rows.numbers", "rows.lengths", "counts"))
    except (OSError, SafetensorError, ValueError, KeyError):
        return None
    if found["rows.numbers"].tolist() != [row.number for row in rows]:
        return None
    return _line(file, int(found["rows.lengths"].sum()), int(found["counts"][2]), len(rows))


def _line(file: Path, tokens: int, typical: int, rows: int) -> dict[str, Any]:
    return {"file": file.name, "tokens": tokens, "typical": typical, "rows": rows, "size": size_of(file),
            "sha256": sha256_of(file)}  # fmt: skip


class _Harvest:
    """Has the shards made that are missing, and keeps the manifest."""

    def __init__(
        self, rows: Rows, limits: Limits, folder: Path, plan: HarvestPlan, identity: dict[str, Any],
        before: Mapping[str, Any] | None,
    ) -> None:  # fmt: skip
        self.rows, self.limits, self.folder, self.plan, self.identity = rows, limits, folder, plan, identity
        self.known = {shard["file"]: shard for shard in before["shards"]} if before else {}
        self.made = before["made_with"] if before else run_passport()

    def run(self, engine: Engine, make: Callable[[], ShardMaker], tell: Report | None, tell_all: bool) -> Harvested:
        """`tell_all`: of every shard when it is done; else makers tell pass by pass."""
        self._manifest("running")
        parts, resumed, due = list(self._parts()), 0, 0.0
        missing = []
        for number in range(len(parts)):
            known = self.known.get(_file_name(number))
            if known is None or not _whole(self.folder, known):
                self.known.pop(_file_name(number), None)
                if known is not None:
                    _remove(self.folder / known["file"])  # damaged
                missing.append(number)
            else:
                resumed += 1
                if tell:
                    tell(known["tokens"])
        try:
            for _, line, before in engine.run(make, (self._job(number, parts[number]) for number in missing)):
                self.known[line["file"]] = line
                resumed += before
                if tell and (tell_all or before):
                    tell(line["tokens"])
                due = self._checkpoint() if time.monotonic() >= due else due
        finally:
            self._checkpoint()
        names = tuple(self.limits.sizes)
        shards = [shard for _, shard in sorted(self.known.items())]
        massive = {site: sums.record() for site, sums in sums_of(self.folder, shards, names).items()}
        return Harvested(self.folder, self._manifest("done", massive), resumed)

    def _checkpoint(self) -> float:
        """Enter what is there in the manifest; when to do it next, so that it takes a twentieth of the time at most."""
        began = time.monotonic()
        self._manifest("running")
        return began + 20 * (time.monotonic() - began)

    def _job(self, number: int, chosen: np.ndarray) -> ShardJob:
        rows = (self.rows[int(row)] for row in chosen)
        return ShardJob(number, tuple(replace(row, tokens=np.array(row.tokens)) for row in rows))

    def _parts(self) -> Iterator[np.ndarray]:
        """Numbers of the rows of each shard."""
        order = np.random.default_rng([self.plan.seed, 5]).permutation(len(self.rows))
        bytes_each = sum(self.limits.sizes.values()) * DTYPES[self.plan.dtype].itemsize
        most = max(1, min(self.plan.shard_tokens, self.plan.shard_bytes // bytes_each))
        starts = np.cumsum(self.rows.lengths[order]) - self.rows.lengths[order]
        return iter(np.split(order, np.flatnonzero(np.diff(starts // most)) + 1))

    def _manifest(self, status: str, massive: Mapping[str, Any] | None = None) -> dict[str, Any]:
        shards = [shard for _, shard in sorted(self.known.items())]
        record = {"assay": "activations", "format": FORMAT, "status": status, "identity": self.identity,
                  "sites": list(self.limits.sizes), "sizes": dict(self.limits.sizes), "dtype": self.plan.dtype,
                  "tokens": sum(shard["tokens"] for shard in shards), "typical": sum(shard["typical"] for shard in shards),
                  "limits": self.limits.json(), "massive": dict(massive or {}), "made_with": self.made,
                  "shards": shards}  # fmt: skip
        write_file(self.folder / MANIFEST, json.dumps(record, indent=1).encode())
        return record


def _file_name(number: int) -> str:
    return f"shard-{number:06d}.safetensors"


def _remove(file: Path) -> None:
    with reaching(file, "deleted"):
        file.unlink(missing_ok=True)


def _save(target: Path, tensors: dict[str, Tensor], names: str) -> None:
    """Write beside, then rename. Raises StoreError where there is no room."""
    if is_remote(target):
        write_file(target, save(tensors, {"assay": names}))
        return
    beside = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")  # its own: a worker given up may still be writing
    try:
        save_file(tensors, beside, {"assay": names})
        beside.chmod(0o644)
        os.replace(beside, target)
    except (OSError, SafetensorError) as error:
        beside.unlink(missing_ok=True)
        raise StoreError(f"{target}: cannot be written ({error}). Make room, and run the same command again.") from error
