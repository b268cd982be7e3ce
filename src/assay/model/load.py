"""Find a model by name, read it without running anybody's code, and hand it to the engine.

1. `assay.model.find` says where MODEL is: packaged, a GGUF file, a directory, or on the hub.
2. The config is read first; what is not a causal language model is refused before any weights.
3. Weights come from safetensors only (pickles can run code) and must be complete: a weight that the
   files lack would be random, so it is an error, not a warning.
4. The tokenizer must exist and fit the embedding. BOS is one explicit setting: the packaged table,
   else what the tokenizer itself does.
5. The module is put in eval mode; that position t ignores later tokens is checked, and the layout
   is proved, on this very model.

It does not show that the weights are the published ones: only packaged models carry a checksum.
"""

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

import torch
from safetensors import SafetensorError
from torch import nn

from assay.errors import ModelError, bad_argument
from assay.model.find import PICKLES, Found, find_model, use_safetensors
from assay.model.hub import offline
from assay.model.model import Model
from assay.model.offload import home
from assay.model.packaged import PACKAGED, list_models
from assay.signing import INSIDE, REPAIRED, check_signature

__all__ = ["LoadOptions", "Loaded", "list_models", "load_hf", "load_model"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
A_REPAIR = "a repair: see its card"
UNREADABLE = (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, SafetensorError)


class LoadOptions(TypedDict, total=False):
    """Rarely used settings, passed on to `transformers` (names as there)."""

    revision: str | None
    attn_implementation: str | None
    device_map: str | dict[str, Any] | None
    trust_remote_code: bool


@dataclass(frozen=True)
class Loaded:
    """An unmodified Hugging Face module in eval mode, its tokenizer, and where they came from.

    `modified`: how its weights were changed, as its folder says; "" where that says nothing.
    """

    hf: Any
    tokenizer: Any
    name: str
    source: str
    prepend_bos: bool
    bos_id: int | None
    modified: str = ""


def load_model(
    model: str | Path | nn.Module,
    *,
    tokenizer: Any = None,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "float32",
    prepend_bos: bool | None = None,
    check: bool = True,
    **options: Unpack[LoadOptions],
) -> Model:
    """Load a causal language model and prove its layout.

    `model`: packaged name, local directory, `*.gguf`, hub id, or a loaded module (with `tokenizer`;
    its device and dtype stay as they are). `tokenizer`: an object, or where to read one, instead of
    the model's own. `prepend_bos`: None keeps the model's habit. `check=False` puts the
    proof off until first use.

    Raises UsageError for a wrong argument, ModelError for a model that cannot be found or read,
    LayoutError for one whose layout could not be proved.
    """
    loaded = load_hf(
        model, tokenizer=tokenizer, device=device, dtype=dtype, prepend_bos=prepend_bos, **options
    )
    if check:
        refuse_reading_ahead(loaded.hf, loaded.name)
    result = Model(
        hf=loaded.hf,
        tokenizer=loaded.tokenizer,
        name=loaded.name,
        source=loaded.source,
        prepend_bos=loaded.prepend_bos,
        bos_id=loaded.bos_id,
        modified=loaded.modified,
    )
    if check:
        _ = result.proof  # measured now: LayoutError here, not at first use
    return result


def load_hf(
    model: str | Path | nn.Module,
    *,
    tokenizer: Any = None,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "float32",
    prepend_bos: bool | None = None,
    **options: Unpack[LoadOptions],
) -> Loaded:
    """The Hugging Face side of `load_model`: same arguments, nothing proved."""
    if unknown := set(options) - set(LoadOptions.__annotations__):
        known = ", ".join(LoadOptions.__annotations__)
        named = "tokenizer, device, dtype, prepend_bos, check"
        raise bad_argument("load_model", sorted(unknown), f"{named}, {known}")
    torch_dtype, torch_device = _dtype(dtype), _device(device)
    if isinstance(model, nn.Module):
        found, hf = _adopt(model, tokenizer, torch_dtype, torch_device, options)
    else:
        found = find_model(model)
        if found.local:
            check_folder(Path(found.where))
        with _quiet(found.local):
            hf = _read_weights(found, torch_dtype, options)
            if not found.local:
                found = replace(found, source=f"{found.source}@{_commit(found, options)}")
            if not options.get("device_map"):
                hf = _to_device(hf, torch_device, found)
    hf.eval()
    _refuse_empty(hf, found.name)
    if tokenizer is None or isinstance(tokenizer, str | Path):
        with _quiet(found.local):
            tokenizer = _read_tokenizer(found, tokenizer, options)
    _refuse_misfit(tokenizer, hf, found)
    prepend, bos_id = _bos(found, tokenizer, prepend_bos)
    modified = A_REPAIR if found.local and (Path(found.where) / REPAIRED).is_file() else ""
    return Loaded(hf, tokenizer, found.name, found.source, prepend, bos_id, modified)


def check_folder(folder: Path) -> None:
    """The signature of a repaired model, or of any folder that carries one. Raises as `assay.signing.check_signature`."""
    if (folder / REPAIRED).is_file():
        check_signature(folder, "model")
    elif (folder / INSIDE).is_file():
        check_signature(folder)


def refuse_reading_ahead(hf: Any, name: str) -> None:
    """ModelError when a token changes the logits before it: a bidirectional (BERT-like) model."""
    ids = torch.tensor([[1, 2, 3], [1, 2, 4]], device=home(hf.get_input_embeddings()))
    with torch.no_grad():
        logits = hf(input_ids=ids, use_cache=False).logits[:, :2].float()
    moved = (logits[0] - logits[1]).abs().max() / logits.abs().max()
    if moved > 1e-2:  # rounding between two rows of one batch stays far below, also in bf16
        raise ModelError(
            f"{name} reads ahead: changing the last token moves earlier logits by {moved:.0%}. "
            f"Assay reads causal language models; encoders of the BERT kind are not."
        )


def _dtype(dtype: str | torch.dtype) -> torch.dtype:
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise bad_argument("dtype", name, ", ".join(DTYPES), "Weights are converted when read.")
    return DTYPES[name]


def _device(device: str | torch.device) -> torch.device:
    """The device, after a first tensor on it."""
    try:
        chosen = torch.device(device)
        if chosen.type == "meta":
            raise bad_argument("device", str(device), "a device that computes", "Try 'cpu'.")
        torch.zeros(1, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        available = "cpu" if not torch.accelerator.is_available() else f"cpu, {_accelerators()}"
        raise bad_argument("device", str(device), available, f"torch says: {reason}") from error
    return chosen


def _accelerators() -> str:
    kind = torch.accelerator.current_accelerator()
    return ", ".join(f"{kind}:{i}" for i in range(torch.accelerator.device_count()))


def _refuse_empty(hf: Any, name: str) -> None:
    """ModelError for weights on the meta device that nobody brings in, and for modules whose weights are packed."""
    for path, module in hf.named_modules():
        bare = [key for key, value in module.named_parameters(recurse=False) if value.is_meta]
        if bare and not hasattr(module, "_hf_hook"):
            raise ModelError(
                f"{name}: {path}.{bare[0]} has no numbers (it is on the meta device). Load the weights first; to keep them on "
                f'disk, give a name or a folder and device_map="auto" or {{"": "disk"}}.'
            )
        if callable(getattr(module, "weight", None)):
            raise ModelError(
                f"{name}: {path} is a {type(module).__name__}, whose weights are packed and cannot be read. Load the model "
                f"unquantised, or with quantised weights that are parameters (bitsandbytes, FP8)."
            )


def _to_device(hf: Any, device: torch.device, found: Found) -> Any:
    try:
        return hf.to(device)
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"Cannot put {found.name} on {device}: {error}") from error


def _adopt(
    module: Any, tokenizer: Any, dtype: torch.dtype, device: torch.device, options: LoadOptions
) -> tuple[Found, Any]:
    """A module that is loaded already; it stays on its device, in its dtype."""
    name = type(module).__name__
    if not hasattr(module, "config") or not hasattr(module, "get_input_embeddings"):
        raise bad_argument("model", name, "a Hugging Face causal language model, a name or a path")
    if tokenizer is None:
        raise bad_argument(
            "tokenizer", None, "the tokenizer of the loaded model, or where to read it"
        )
    asked_dtype = dtype != torch.float32 and dtype != module.dtype
    asked_device = device.type != "cpu" and device != module.device
    if given := [key for key, value in options.items() if value]:
        raise bad_argument("load_model", given, "no loading options with a loaded model")
    if asked_dtype or asked_device:
        hint = "Move it yourself first: module.to(...)."
        got, has = f"{dtype} on {device}", f"{module.dtype} on {module.device}"
        raise bad_argument("dtype, device", got, f"what the loaded model has ({has})", hint)
    label = getattr(module.config, "name_or_path", "") or name
    return Found(label, label, f"module:{name}", local=True), module


def _read_config(found: Found, options: LoadOptions) -> Any:
    """The config, refused unless it is one of a causal language model."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    trust = bool(options.get("trust_remote_code"))
    try:
        config = AutoConfig.from_pretrained(
            found.where, revision=_revision(options), trust_remote_code=trust,
            local_files_only=not found.local and offline(),
        )  # fmt: skip
    except UNREADABLE as error:
        raise _cannot_read("config", found, error) from error
    remote = trust and "AutoModelForCausalLM" in getattr(config, "auto_map", {})
    if getattr(config, "is_encoder_decoder", False):
        kind = "is an encoder-decoder model"
    elif not remote and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        kind = "is not a causal language model"
    else:
        return config
    raise ModelError(
        f"{found.name} {kind} (model type {config.model_type!r}). "
        f"load_model reads causal (decoder-only) language models."
    )


def _read_weights(found: Found, dtype: torch.dtype, options: LoadOptions) -> Any:
    """The module with every weight read from safetensors."""
    from transformers import AutoModelForCausalLM

    config = _read_config(found, options)
    if found.local:
        _refuse_pickles(Path(found.where))
    try:
        read: Any = AutoModelForCausalLM.from_pretrained(
            found.where,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            revision=_revision(options),
            trust_remote_code=bool(options.get("trust_remote_code")),
            local_files_only=not found.local and offline(),
            attn_implementation=options.get("attn_implementation"),
            device_map=options.get("device_map"),
        )
        hf, info = read
    except UNREADABLE as error:
        raise _cannot_read("weights", found, error) from error
    if missing := sorted(map(str, info["missing_keys"])):
        raise ModelError(
            f"{found.name}: its files lack {len(missing)} weights of {type(hf).__name__} "
            f"({', '.join(missing[:3])}{', ..' if len(missing) > 3 else ''}); they'd be random. "
            f"The checkpoint may be damaged, or saved from a model without a language model head."
        )
    return hf


def _refuse_pickles(folder: Path) -> None:
    files = [file.name for file in folder.iterdir()]
    if any(name.endswith((".safetensors", ".safetensors.index.json")) for name in files):
        return
    if pickles := [name for name in files if name.endswith(PICKLES)]:
        raise ModelError(
            f"{folder} has its weights as pickle only ({pickles[0]}), which can run code. "
            f"{use_safetensors()}"
        )
    raise ModelError(f"{folder} has no weights: no .safetensors file is in it.")


def _read_tokenizer(found: Found, given: str | Path | None, options: LoadOptions) -> Any:
    from transformers import AutoTokenizer

    where = found.where if given is None else str(given)
    trust = bool(options.get("trust_remote_code"))
    revision = _revision(options) if given is None else "main"
    try:
        alone = not Path(where).exists() and offline()
        return AutoTokenizer.from_pretrained(where, revision=revision, trust_remote_code=trust, local_files_only=alone)
    except UNREADABLE as error:
        raise ModelError(
            f"No usable tokenizer in {where}: {str(error).splitlines()[0]} "
            f"Give one: load_model(..., tokenizer=DIRECTORY or object)."
        ) from error


def _refuse_misfit(tokenizer: Any, hf: Any, found: Found) -> None:
    """ModelError for a tokenizer that is empty or has ids the embedding does not know."""
    rows = hf.get_input_embeddings().weight.shape[0]
    if not tokenizer("a b", add_special_tokens=False)["input_ids"]:
        raise ModelError(f"The tokenizer of {found.name} is empty: it gives no tokens for 'a b'.")
    if tokenizer.vocab_size > rows:
        raise ModelError(
            f"The tokenizer does not fit {found.name}: it has {tokenizer.vocab_size} tokens, "
            f"the embedding {rows} rows. Give the tokenizer the model was trained with."
        )


def _bos(found: Found, tokenizer: Any, prepend_bos: bool | None) -> tuple[bool, int | None]:
    """Whether to prepend BOS, and its id: as asked, else as packaged, else as the tokenizer."""
    bos_id = tokenizer.bos_token_id if found.bos_id is None else found.bos_id
    if prepend_bos and bos_id is None:
        raise bad_argument(
            "prepend_bos", True, "False or None", f"The tokenizer of {found.name} has no BOS token."
        )
    if prepend_bos is not None:
        return prepend_bos, bos_id
    if found.prepend_bos is not None:
        return found.prepend_bos, bos_id
    ids = tokenizer("a")["input_ids"]
    return bos_id is not None and ids[:1] == [bos_id], bos_id


def _revision(options: LoadOptions) -> str:
    return options.get("revision") or "main"


def _commit(found: Found, options: LoadOptions) -> str:
    """The commit of a hub model that was just read (its snapshot folder), else the revision."""
    from huggingface_hub import try_to_load_from_cache

    file = try_to_load_from_cache(found.where, "config.json", revision=_revision(options))
    return Path(file).parent.name if isinstance(file, str) else _revision(options)


def _cannot_read(part: str, found: Found, error: BaseException) -> ModelError:
    """What was tried, what came back, what to do."""
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))
    if "trust_remote_code" in str(error):
        hint = "It needs its own Python code; pass trust_remote_code=True only if you trust it."
        return ModelError(f"{found.name}: {reason} {hint}")
    if found.local:
        hint = "The file may be damaged." if isinstance(error, SafetensorError) else ""
        return ModelError(f"Cannot read the {part} of {found.where}: {reason} {hint}".rstrip())
    close = difflib.get_close_matches(found.where.split("/")[-1].lower(), PACKAGED, n=1)
    near = f" A packaged model with a name like this: {close[0]!r}." if close else ""
    return ModelError(
        f"Cannot load {found.where!r}: it is no packaged model ({', '.join(PACKAGED)}), no local "
        f"path, and reading its {part} from the Hugging Face hub failed: {reason} "
        f"Weights are read from safetensors only.{near}"
    )


@contextmanager
def _quiet(local: bool) -> Iterator[None]:
    """No bars and warnings of `transformers` while reading local files; settings are restored."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    if local:
        logging.set_verbosity_error()
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if local and bars:
            logging.enable_progress_bar()
