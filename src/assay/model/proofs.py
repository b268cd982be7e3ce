"""Proofs kept on disk, so that a model that was proved here loads without being proved again.

1. The key names all that a proof depends on: weights, code and settings of every module
   (`fingerprint.py`), dtype, device, attention kernel, padding id, versions, and this package's code.
2. A proof is one JSON file under that key, with a checksum, written beside and renamed. A file that
   is missing, damaged or of another format means: prove again, never an error.
3. A kept proof is believed only if the model still gives the logits it gave when it was proved: one
   short pass, so that a change the key cannot see is met too.
4. A model with hooks, or with a `forward` on an instance, is always proved and never kept.

It does not save the proof of a model that was refused: that one is measured again each time.
"""

import contextlib
import functools
import hashlib
import json
import os
import tempfile
from dataclasses import asdict, fields
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from assay.model.cache import cache_dir
from assay.model.fingerprint import Unreadable, tree_hash
from assay.model.layout import Block, Layout, tolerance
from assay.model.points import Dims, Point, Split, relative_error
from assay.model.prove import Proof, SiteProof, probe_tokens, prove
from assay.sites import parse_site

FORMAT = 1  # of the files; raise it to have every model proved again
KEPT = 300  # files; the oldest go first
STRANGE = (Unreadable, ValueError, AttributeError, RecursionError)


def proof_of(hf: nn.Module, pad_id: int, weights: str) -> Proof:
    """The kept proof of this very model, else a fresh one, which is kept. `weights`: their digest."""
    key = proof_key(hf, pad_id, weights)
    kept = None if key is None else _read(key)
    if kept is not None and _agrees(hf, kept[1]):
        return kept[0]
    return fresh_proof(hf, pad_id, weights)


def fresh_proof(hf: nn.Module, pad_id: int, weights: str) -> Proof:
    """The proof measured now, and kept. Raises LayoutError like `prove`."""
    key = proof_key(hf, pad_id, weights)  # before the pass: some modules count their calls
    proof = prove(hf, pad_id)
    if key is not None:
        _write(key, proof, _probe(hf))
    return proof


def proof_key(hf: nn.Module, pad_id: int, weights: str) -> str | None:
    """What the proof depends on, as a hash; None for a model that must be proved each time."""
    try:
        tree = tree_hash(hf)
    except STRANGE:
        return None
    first = next(hf.parameters())
    config: Any = getattr(hf, "config", None)
    parts = [
        FORMAT, tree, weights, pad_id, str(first.dtype), first.device.type,
        getattr(config, "_attn_implementation", None),
        config.to_json_string(use_diff=False) if config is not None else None,
        torch.get_float32_matmul_precision(), torch.is_autocast_enabled(first.device.type),
        *(metadata.version(name) for name in ("torch", "transformers", "assay")), _own_code(),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@functools.cache
def _own_code() -> str:
    """Hash of this package: what finds and proves may change while the version does not."""
    state = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        state.update(file.read_bytes())
    return state.hexdigest()


def _probe(hf: nn.Module) -> Tensor:
    """A few of the logits of the probe prompts, (row, pos, 64), the same way each time."""
    training = [module for module in hf.modules() if module.training]
    hf.eval()
    try:
        with torch.no_grad():
            logits = hf(input_ids=probe_tokens(hf), use_cache=False).logits
    finally:
        for module in training:
            module.training = True
    return logits[..., :: max(1, logits.shape[-1] // 64)].float().cpu()


def _agrees(hf: nn.Module, before: Tensor) -> bool:
    """Another thread count or processor may round differently; another model does more than that."""
    return relative_error(_probe(hf), before) <= 50 * tolerance(next(hf.parameters()).dtype)


# the file --------------------------------------------------------------------------------------


def folder() -> Path:
    """Where proofs are kept."""
    return cache_dir() / "proofs"


def _read(key: str) -> tuple[Proof, Tensor] | None:
    try:
        checksum, _, body = (folder() / f"{key}.json").read_text(encoding="utf-8").partition("\n")
        if checksum != hashlib.sha256(body.encode()).hexdigest():
            return None
        record = json.loads(body)
        return _proof(record), torch.tensor(record["probe"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(key: str, proof: Proof, probe: Tensor) -> None:
    """Keep a proof; a folder that cannot be written costs time, not the run."""
    body = json.dumps({**_record(proof), "probe": probe.tolist()})
    target = folder()
    with contextlib.suppress(OSError):
        target.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=target)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(f"{hashlib.sha256(body.encode()).hexdigest()}\n{body}")
        os.replace(name, target / f"{key}.json")
        for old in sorted(target.iterdir(), key=lambda file: file.stat().st_mtime)[:-KEPT]:
            old.unlink()


def _record(proof: Proof) -> dict[str, Any]:
    """A proof as plain JSON data; sites are written as their addresses."""
    layout = {item.name: getattr(proof.layout, item.name) for item in fields(Layout)}
    layout["dims"] = asdict(proof.layout.dims)
    layout["blocks"] = [asdict(block) for block in proof.layout.blocks]
    layout["points"] = {str(site): asdict(point) for site, point in proof.layout.points.items()}
    for name in ("absent", "refused"):
        layout[name] = {str(site): why for site, why in layout[name].items()}
    return {"layout": layout, "sites": [asdict(site) for site in proof.sites], "absent": proof.absent}


def _proof(record: dict[str, Any]) -> Proof:
    layout = dict(record["layout"])
    layout["dims"] = Dims(**layout["dims"])
    layout["blocks"] = [Block(**block) for block in layout["blocks"]]
    layout["points"] = {parse_site(site): _point(point) for site, point in layout["points"].items()}
    for name in ("absent", "refused"):
        layout[name] = {parse_site(site): why for site, why in layout[name].items()}
    layout["orders"] = {path: (begin, end) for path, (begin, end) in layout["orders"].items()}
    sites = [SiteProof(**site) for site in record["sites"]]
    return Proof(Layout(**layout), sites, record["absent"])


def _point(fact: dict[str, Any]) -> Point:
    split = fact.pop("split")
    return Point(**fact, split=None if split is None else Split(**split))
