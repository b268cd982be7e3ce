"""A direction as one file: a .safetensors with the vector, and its card in the file's metadata.

1. The tensor `vector` (d,) fp32 has unit norm; the metadata key `assay.direction` is JSON: format, site, scale, method,
   convention, digests of model and tokenizer, source, card.
2. `sha256` in the card is over all of that and the numbers: a changed file is refused.
3. The file is bound to what it was made on. Loading it with another model (another revision or dtype is another model), another
   tokenizer or another site is refused unless that is allowed by name. A vector that does not fit the site never loads.
4. Any reader of safetensors gets the vector; any other vector file is read by `assay.steer.directions.from_file`, which asks
   for the site. Nothing in a file is executed; the size is limited; files are written beside and renamed.

The hash shows that a file is whole. It does not show who wrote it; a signature (`assay.signing`) is checked on loading, that
of a plain vector file too.
"""

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from assay.data.vectors import WIDEST
from assay.errors import StoreError, UsageError, bad_argument
from assay.files import write_file
from assay.model.model import Model
from assay.records import digest
from assay.signing import check_signature, forget_signature
from assay.sites import Site, parse_site
from assay.steer.directions import Direction, from_file, vector_site

FORMAT = 1
KEY, TENSOR, SUFFIX = "assay.direction", "vector", ".safetensors"
LARGEST = 16 << 20  # bytes of a file
ALLOWED = ("model", "tokenizer", "site")
FIELDS: dict[str, type | tuple[type, ...]] = {
    "format": int, "site": str, "scale": (int, float), "method": str, "convention": dict, "model_digest": str,
    "tokenizer_digest": (str, type(None)), "source": dict, "card": dict, "sha256": str,
}  # fmt: skip


def save_direction(direction: Direction, path: str | Path) -> Path:
    """Write a direction to a .safetensors file. Raises UsageError for another suffix, StoreError where it cannot be written."""
    path = Path(path)
    if path.suffix.lower() != SUFFIX:
        raise bad_argument("path", str(path), f"a {SUFFIX} file", f"For example {path.with_suffix(SUFFIX)}.")
    vector = direction.vector.detach().float().cpu().contiguous()
    record = {"format": FORMAT, "site": direction.site, "scale": direction.scale, "method": direction.method,
              "convention": direction.convention, "model_digest": direction.model_digest,
              "tokenizer_digest": direction.tokenizer_digest, "source": direction.source, "card": direction.card}  # fmt: skip
    try:
        record = json.loads(json.dumps(record, allow_nan=False))  # as it will be read
        record["sha256"] = _hash(record, vector)
    except (TypeError, ValueError, RecursionError) as error:
        raise bad_argument("direction", direction.name, "a card and source of plain, finite values", str(error)) from error
    write_file(path, save({TENSOR: vector}, metadata={KEY: json.dumps(record, sort_keys=True)}))
    forget_signature(path)
    return path


def load_direction(
    path: str | Path, model: Model | None = None, allow: Collection[str] = (), site: str | Site | None = None
) -> Direction:
    """A saved direction, for this model and site (None: the site it was made at).

    Raises UsageError for another model, tokenizer or site, unless `allow` names it ("model", "tokenizer", "site"), and for a
    site it does not fit; StoreError for a file that is none, is damaged or is of a later version; as `check_signature`.
    """
    if unknown := set(allow) - set(ALLOWED):
        raise bad_argument("allow", sorted(unknown), ", ".join(ALLOWED))
    if is_direction(path):
        check_signature(path, "direction")
    direction = _read(Path(path))
    if site is not None:
        direction = _moved(direction, str(_resolved(site, model)), path, allow)
    if model is not None:
        _bound(direction, model, path, allow)
    return direction


def read_direction(path: str | Path, model: Model, allow: Collection[str] = (), site: str | Site | None = None) -> Direction:
    """A saved direction, or the numbers of a plain vector file, whose site must be given. Raises as `load_direction`."""
    if is_direction(path):
        return load_direction(path, model, allow, site)
    if site is None:
        raise UsageError(f"direction {str(path)!r}: it has no card, so it does not say where it belongs."
                         " Give its site, e.g. resid_post.15.")  # fmt: skip
    return from_file(model, str(path), site)


def is_direction(path: str | Path) -> bool:
    """Whether a file says that it is a saved direction."""
    path = Path(path)
    if path.suffix.lower() != SUFFIX or not path.is_file():
        return False
    try:
        with safe_open(path, framework="pt") as file:
            return KEY in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


# reading -----------------------------------------------------------------------------------------


def _read(path: Path) -> Direction:
    vector, record = _parts(path)
    for name, kind in FIELDS.items():
        if name not in record or not isinstance(record[name], kind) or isinstance(record[name], bool):
            raise StoreError(f"{path}: its card has no proper {name!r}. Save the direction again.")
    if record["format"] > FORMAT:
        raise StoreError(f"{path}: format {record['format']}; allowed: up to {FORMAT}. Install a newer version.")
    sound = vector.dim() == 1 and 0 < len(vector) <= WIDEST and vector.dtype == torch.float32
    if not sound or not math.isclose(float(vector.double().norm()), 1, abs_tol=1e-4):
        raise StoreError(f"{path}: the vector has shape {tuple(vector.shape)}, {vector.dtype}, norm"
                         f" {float(vector.double().norm()):g}; allowed: (d,) fp32 of norm 1.")  # fmt: skip
    if not 0 < record["scale"] < math.inf:
        raise StoreError(f"{path}: its scale is {record['scale']}; allowed: a positive number.")
    if _content({name: value for name, value in record.items() if name != "sha256"}, vector) != record["sha256"]:
        raise StoreError(f"{path}: its content does not have the hash that its card says: it was changed or damaged."
                         " Save the direction again.")  # fmt: skip
    named = {name: record[name] for name in FIELDS if name not in ("format", "sha256", "site")}
    return Direction(str(parse_site(record["site"])), vector, **named)


def _parts(path: Path) -> tuple[torch.Tensor, dict[str, Any]]:
    """The vector and the card, as the file has them."""
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise StoreError(f"{path}: not a file.")
        if size > LARGEST:
            raise StoreError(f"{path}: {size} bytes; allowed for a direction: {LARGEST}.")
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if KEY not in metadata or TENSOR not in file.keys():  # noqa: SIM118
                raise StoreError(f"{path}: it has no card of a direction. As a plain vector, give its site with it.")
            record, vector = json.loads(metadata[KEY], parse_constant=_no_number), file.get_tensor(TENSOR)
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except (SafetensorError, ValueError, RecursionError) as error:
        raise StoreError(f"{path}: not a saved direction, or a damaged one ({error}).") from error
    if not isinstance(record, dict):
        raise StoreError(f"{path}: its card is a {type(record).__name__}; allowed: an object.")
    return vector, record


def _no_number(name: str) -> None:
    raise ValueError(f"{name} in its card")


def _content(record: Mapping[str, Any], vector: torch.Tensor) -> str | None:
    """The hash of what was read; None where it is nested too deep to have one."""
    try:
        return _hash(record, vector)
    except RecursionError:
        return None


def _hash(record: Mapping[str, Any], vector: torch.Tensor) -> str:
    return digest([dict(record), vector.view(torch.int32).tolist()])


# what it is bound to -----------------------------------------------------------------------------


def _resolved(site: str | Site, model: Model | None) -> Site:
    return parse_site(site) if model is None else vector_site(model, site)


def _moved(direction: Direction, site: str, path: str | Path, allow: Collection[str]) -> Direction:
    if site == direction.site:
        return direction
    if "site" not in allow:
        raise _refused(path, f"it was made at {direction.site}, not {site}", "site")
    return replace(direction, site=site, source={**direction.source, "moved_from": direction.site})


def _bound(direction: Direction, model: Model, path: str | Path, allow: Collection[str]) -> None:
    """Refuses a direction that is not of this model."""
    if direction.model_digest != model.digest and "model" not in allow:
        raise _refused(path, _other_model(direction, model), "model")
    if direction.tokenizer_digest != model.tokenizer_digest and not {"model", "tokenizer"} & set(allow):
        raise _refused(path, f"its texts were cut into tokens otherwise than {model.name} cuts them", "tokenizer")
    shape = model.feature_shape(vector_site(model, direction.site))
    if shape != tuple(direction.vector.shape):
        got = f"{len(direction.vector)} numbers for {direction.site}"
        raise UsageError(f"{path}: got {got}; allowed with {model.name}: {shape}.")


def _other_model(direction: Direction, model: Model) -> str:
    made = str(direction.source.get("model", "")) or "a model it does not name"
    if not direction.model_digest:
        return "it does not say which model it was made on"
    hashes = f"{direction.model_digest[:12]}, not {model.digest[:12]}"
    if made == model.name:
        return f"it was made on another revision, dtype or edit of {made} ({hashes})"
    return f"it was made on {made}, not on {model.name} ({hashes})"


def _refused(path: str | Path, why: str, name: str) -> UsageError:
    return UsageError(f"direction {str(path)!r}: {why}. To use it all the same, say so: allow={name!r}"
                      f" (on the command line --allow {name}).")
