"""Write a changed model as a plain Hugging Face checkpoint, and prove that it is one.

1. Weights, config, generation config and tokenizer are written by `save_pretrained` into a hidden folder beside the target.
2. The folder is read back as any checkpoint is, in the same dtype, and must have the same weights, number for number, and
   give the same logits on the same prompts.
3. Only then, with its card beside the weights, is it renamed: a killed run leaves a hidden folder and no half model. The next
   export to the same place removes what killed ones left.

Nothing of Assay is needed to load it. Reading back covers loading; other serving engines may read configs their own way.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from assay.errors import ModelError, StoreError, UsageError
from assay.model.layout import tolerance
from assay.model.load import _quiet, load_hf
from assay.model.model import Model
from assay.steer.weights import Changed

PROMPTS, WIDTH = 4, 12  # of random tokens, on which logits are compared
Cards = Callable[[Mapping[str, Any]], Mapping[str, str]]


@dataclass(frozen=True)
class Exported:
    """Where a checkpoint is, what its weights hash to as read back, by how much its logits differ at most, and whether its
    tokenizer puts BOS before texts by itself."""

    folder: Path
    digest: str
    error: float
    bytes: int
    prepend_bos: bool


def check_target(folder: Path) -> None:
    """UsageError for a place that is taken, StoreError for one that cannot be written. Before any long work."""
    try:
        target = folder.resolve()
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise UsageError(f"--out: {str(folder)!r} is there already and not empty; allowed: a new directory."
                             " Nothing was changed.")  # fmt: skip
        parent = target.parent
        while not parent.exists():
            parent = parent.parent
        Path(tempfile.mkdtemp(prefix=f".{target.name}.tmp-", dir=parent)).rmdir()
    except (OSError, RuntimeError) as error:  # a loop of links is a RuntimeError
        why = getattr(error, "strerror", None) or error
        raise StoreError(f"--out: {str(folder)!r} cannot be made ({why}). Choose another place.") from error


def export(changed: Changed, folder: Path, cards: Cards) -> Exported:
    """Write the changed model to a new folder. `cards`: facts about the files -> text files to put beside them.

    Raises ModelError when what is read back is not the model that was written; then nothing is left at `folder`.
    """
    check_target(folder)
    model, target = changed.model, folder.resolve()
    try:
        with _alone(target), tempfile.TemporaryDirectory(prefix=f".{target.name}.tmp-", dir=target.parent) as work:
            made = Path(work) / "model"
            done = _written(model, made, target)
            facts = {key: value for key, value in vars(done).items() if key != "folder"}
            for name, text in cards(facts).items():
                (made / name).write_text(text, encoding="utf-8")
            for file in made.rglob("*"):
                file.chmod(0o755 if file.is_dir() else 0o644)
            if target.exists():
                target.rmdir()  # empty, see check_target
            os.replace(made, target)
    except OSError as error:
        raise StoreError(f"--out: {folder} cannot be written ({error.strerror or error}). Choose another place.") from error
    return done


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """One writer of a target at a time; what killed ones left is removed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(target.parent / f".{target.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise StoreError(f"--out: another process is writing {target.name}. Wait until it is done.") from error
    try:
        for stale in target.parent.glob(f".{target.name}.tmp-*"):
            shutil.rmtree(stale)  # the lock says nobody is at work
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _written(model: Model, made: Path, target: Path) -> Exported:
    hf: Any = model.hf
    with _quiet(True):
        hf.save_pretrained(made, safe_serialization=True)
        model.tokenizer.save_pretrained(made)
    loaded = load_hf(made, dtype=model.dtype, device=model.device, prepend_bos=None,
                     attn_implementation=getattr(hf.config, "_attn_implementation", None))  # fmt: skip
    error = _difference(hf, loaded.hf, model.dims.d_vocab)
    other = _other_weights(hf, loaded.hf)
    if other or not error <= tolerance(model.dtype):
        named = f"{other} is another; " if other else ""
        raise ModelError(f"the checkpoint does not read back as the model that was written: {named}logits differ by"
                         f" {error:.2g} of their size. Nothing was left at {target}.")  # fmt: skip
    name = str(made)
    again = Model(loaded.hf, loaded.tokenizer, name, name, loaded.prepend_bos, loaded.bos_id)
    size = sum(file.stat().st_size for file in made.rglob("*") if file.is_file())
    return Exported(target, again.digest, error, size, loaded.prepend_bos)


def _other_weights(written: Any, read: Any) -> str:
    """The first weight that is not read back number for number: in half precision logits alone would not show it."""
    mine, other = (dict(hf.named_parameters()) for hf in (written, read))
    names = [name for name in {**mine, **other} if name not in mine or name not in other]
    names += [name for name in mine if name in other and not torch.equal(mine[name].cpu(), other[name].cpu())]
    return names[0] if names else ""


def _difference(written: Any, read: Any, d_vocab: int) -> float:
    """Largest difference of logits, as a share of the largest one."""
    ids = torch.randint(0, d_vocab, (PROMPTS, WIDTH), generator=torch.Generator().manual_seed(0)).to(written.device)
    with torch.no_grad():
        mine, other = (hf(input_ids=ids, use_cache=False).logits.float() for hf in (written, read))
    return float((mine - other).abs().max() / mine.abs().max())
