"""sparsify folders: `cfg.json` and `sae.safetensors`, named after the module whose output (or input) they are for.

1. encoder.weight (latents, d), encoder.bias, W_dec (latents, d: not turned), b_dec, W_skip (d, d) with a skip connection.
2. pre = relu((x - b_dec) W^T + c), without taking b_dec off where `transcode`; then the k largest (`topk`), or the largest of
   each of k groups (`groupmax`). `num_latents` 0 means d_in x expansion_factor. `normalize_decoder` is about training only.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from assay.errors import UsageError, bad_argument
from assay.features.dictionary import Dictionary, Spec
from assay.features.formats.base import FORMATS, OWN, Format, Found, own_part
from assay.features.formats.plain import SCALED, again, free_rows, plain, write_json, write_safetensors
from assay.features.formats.reading import read_config, read_safetensors

CONFIG, WEIGHTS, RUN = "cfg.json", "sae.safetensors", "config.json"
HARMLESS = frozenset(("normalize_decoder", "multi_topk"))
MODULES = {"": "resid_post", "mlp": "mlp_out", "self_attn": "attn_out", "attn": "attn_out", "attention": "attn_out"}


def recognises(path: Path) -> bool:
    """A folder with its two files, or either file."""
    return (_folder(path) / CONFIG).is_file() and (_folder(path) / WEIGHTS).is_file()


def _folder(path: Path) -> Path:
    return path.parent if path.name in (CONFIG, WEIGHTS) else path


def read(path: Path) -> Dictionary:
    """The dictionary. Raises UsageError."""
    folder = _folder(path)
    config = read_config(folder / CONFIG)
    d, k = config.size("d_in"), config.size("k")
    rule = config.choice("activation", ("topk", "groupmax"), "topk")
    transcode, skip = bool(config.get("transcode", bool, False)), bool(config.get("skip_connection", bool, False))
    config.choice("signed", (False,), False, "Latents that may be negative cannot be read.")
    latents, factor = config.get("num_latents", int, 0), config.get("expansion_factor", int, 32)
    width = latents or d * factor
    own = config.get(OWN, dict, {})
    left = config.done(HARMLESS)
    numbers = read_safetensors(folder / WEIGHTS)
    state = {"W_enc": numbers.take("encoder.weight", width, d), "b_enc": numbers.take("encoder.bias", width),
             "W_dec": numbers.take("W_dec", width, d), "b_dec": numbers.take("b_dec", d)}  # fmt: skip
    if skip:
        state["W_skip"] = numbers.take("W_skip", d, d)
    numbers.done()
    inputs, outputs, assumed = _sites(folder.name, transcode)
    if config.values.get("multi_topk"):
        assumed = [*assumed, "multi_topk is of its training: reconstructions are of k latents, with the skip connection"]
    spec = Spec(rule, width, d, d, k, inputs, outputs, not transcode, skip)
    run = _run(folder.parent / RUN)
    said = {key: run[key] for key in ("model", "dataset", "ctx_len", "split") if key in run}
    source: dict[str, Any] = {"format": "sparsify", "from": folder.name, "settings": {**left, **said}}
    return Found(spec, state, source, assumed, f"{folder.name}-{width}", own).dictionary()


def _run(path: Path) -> dict[str, Any]:
    """Settings of the run, where the folder above has them; what else may lie there is no concern of this one."""
    try:
        return read_config(path).values
    except UsageError:
        return {}


def _sites(folder: str, transcode: bool) -> tuple[tuple[str, ...], tuple[str, ...], list[str]]:
    """Inputs and outputs by the module the folder is named after."""
    if folder == "embed_tokens":
        return ("embed",), ("embed",), []
    match = re.fullmatch(r"(?:.*\.)?(?:layers|h)[._](\d+)(?:\.([a-z_]+))?", folder)
    place = MODULES.get(match[2] or "") if match else None
    if match is None or place is None:
        return (), (), []
    output = f"{place}.{match[1]}"
    before = {"mlp_out": "mlp_in", "attn_out": "attn_in", "resid_post": "resid_pre"}[place]
    inputs = (f"{before}.{match[1]}",) if transcode else (output,)
    return inputs, (output,), [f"site {output}: what the module {folder} gives, as no norm follows it"] if match[2] else []


def lacks(dictionary: Dictionary) -> str:
    """Why it has no place here."""
    spec = dictionary.spec
    if dictionary.architecture not in ("topk", "groupmax"):
        return f"it has topk and groupmax only, not {dictionary.architecture}"
    if spec.d_in != spec.d_out:
        return "its inputs and outputs have one size"
    return "it does not normalise inputs in use" if dictionary.input_norm != "none" else ""


def write(dictionary: Dictionary, folder: Path) -> Sequence[str]:
    """Write a folder; what differs there."""
    made, notes, spec = plain(dictionary), [], dictionary.spec
    if made is None:
        raise bad_argument("dictionary", dictionary.architecture, "topk, groupmax")
    if free_rows(dictionary):
        made = made.unit()
        notes.append(SCALED)
    transcode = spec.transcodes or spec.skip
    made = made.shifted(not transcode)
    tensors = {"encoder.weight": made.W_enc, "encoder.bias": made.b_enc, "W_dec": made.W_dec, "b_dec": made.b_dec}
    if made.W_skip is not None:
        tensors["W_skip"] = made.W_skip
    config = {"activation": made.rule, "expansion_factor": max(1, spec.width // spec.d_in), "normalize_decoder": not transcode,
              "num_latents": spec.width, "k": spec.k, "multi_topk": False, "skip_connection": spec.skip, "transcode": transcode,
              "d_in": spec.d_in, OWN: own_part(dictionary, again(dictionary, made))}  # fmt: skip
    write_safetensors(folder / WEIGHTS, tensors)
    write_json(folder / CONFIG, config)
    return notes


FORMATS.add("sparsify", Format("sparsify", "sparsify: cfg.json, sae.safetensors", recognises, read, write, lacks))
