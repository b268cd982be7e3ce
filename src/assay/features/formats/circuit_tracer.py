"""circuit-tracer: a transcoder per layer (`layer_L.safetensors`), or a cross-layer one (`W_enc_L`, `W_dec_L.safetensors`).

1. Per layer: W_enc (latents, d) or turned, W_dec (latents, d) or turned (both ways are in use: the biases say which), b_enc,
   b_dec, W_skip (d_out, d_in), and thresholds where it is a JumpReLU (activation_function.threshold). ReLU otherwise.
2. Cross-layer: W_enc_L.safetensors has W_enc_L (latents, d), b_enc_L, b_dec_L and threshold_L; W_dec_L.safetensors has
   W_dec_L (latents, layers - L, d).
3. `config.yaml` beside them: model_name, feature_input_hook, feature_output_hook, the same for every layer. `mlp.hook_in`
   and `mlp.hook_out` are circuit-tracer's own, around the MLP; others are TransformerLens' (no weights folded): hook_mlp_in
   is the residual stream before the norm, ln2.hook_normalized is without the norm's gain (`before_gain`).
"""

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from assay.errors import bad_argument
from assay.features.dictionary import Dictionary, Spec
from assay.features.formats import cross_layer
from assay.features.formats.base import FORMATS, NORMALIZED, Format, Found, layer_of, waiting
from assay.features.formats.plain import plain, unplain, write_safetensors
from assay.features.formats.reading import LARGEST_TEXT, Numbers, content_of, read_safetensors, tensor_names
from assay.files import write_file

CONFIG = "config.yaml"
OTHERS = ("sae_weights.safetensors", "sae.safetensors", "params.safetensors")
KNOWN = ("model_name", "model_kind", "feature_input_hook", "feature_output_hook", "scan", "transcoders", "repo_id", "subfolder")
GAIN, AFTER_MLP = NORMALIZED["mlp_in"], "mlp.hook_out"
HOOKS = {"mlp.hook_in": "mlp_in", GAIN: "mlp_in", "hook_mlp_out": "mlp_out", AFTER_MLP: "mlp_out",
         "hook_resid_mid": "resid_mid", "hook_mlp_in": "resid_mid", "hook_resid_pre": "resid_pre"}  # fmt: skip
NO_NORM = f"site mlp_out: {AFTER_MLP} is that where no norm follows the MLP"
THRESHOLD = "activation_function.threshold"
KEYS = ("feature_input_hook", "feature_output_hook")


def recognises(path: Path) -> bool:
    """A file of one layer, a folder with such files, or one of a cross-layer transcoder."""
    if path.is_file():
        return path.suffix == ".safetensors" and path.name not in OTHERS and {"W_enc", "W_dec"} <= tensor_names(path)
    return (path / "W_enc_0.safetensors").is_file() or bool(_files(path)) and "W_enc" in tensor_names(_files(path)[0])


def _files(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.glob("*layer_*.safetensors")) if file.name not in OTHERS]


# reading -----------------------------------------------------------------------------------------


def read(path: Path) -> Dictionary:
    """The dictionary. Raises UsageError."""
    if path.is_dir() and (path / "W_enc_0.safetensors").is_file():
        return _cross_layer(path)
    files = [path] if path.is_file() else _files(path)
    if len(files) != 1:
        raise bad_argument("path", str(path), f"one file: {', '.join(file.name for file in files) or 'layer_L.safetensors'}",
                           "A dictionary is one layer here: say which.")  # fmt: skip
    file, config = files[0], _config(files[0].parent)
    numbers = read_safetensors(file)
    (width,), (d_out,) = numbers.shape("b_enc", 1), numbers.shape("b_dec", 1)
    d_in = _other(numbers, "W_enc", width)
    state = {"b_enc": numbers.take("b_enc", width), "b_dec": numbers.take("b_dec", d_out)}
    for name, size in (("W_enc", d_in), ("W_dec", d_out)):
        turned = numbers.shape(name) != (width, size)
        state[name] = numbers.take(name, *((size, width) if turned else (width, size)))
        state[name] = state[name].T.contiguous() if turned else state[name]
    if skip := "W_skip" in numbers:
        state["W_skip"] = numbers.take("W_skip", d_out, d_in)
    if name := next((one for one in (THRESHOLD, "threshold") if one in numbers), ""):
        state["threshold"] = numbers.take(name, *([width] if numbers.tensors[name].dim() else [])).expand(width)
    _check(state.get("threshold"), file)
    numbers.done()
    layer, (before, after) = re.search(r"(\d+)$", file.stem), _ends(config)
    inputs, outputs = ((f"{before}.{layer[1]}",), (f"{after}.{layer[1]}",)) if layer and before and after else ((), ())
    spec = Spec(
        "jumprelu" if "threshold" in state else "relu",
        width,
        d_in,
        d_out,
        inputs=inputs,
        outputs=outputs,
        centred=False,
        skip=skip,
    )
    source, name = {"format": "circuit_tracer", "from": file.name, "settings": config}, config.get("model_name", "transcoder")
    return Found(spec, state, source, _assumed(config), f"{name}-{file.stem}", before_gain=_early(config)).dictionary()


def _check(threshold: Tensor | None, file: Path) -> None:
    """Below 0, their rule lets negative values through. Raises UsageError."""
    if threshold is not None and bool((threshold < 0).any()):
        raise bad_argument(f"{file.name}: threshold", float(threshold.min()), "0 or more", "Latents could be negative.")


def _other(numbers: Numbers, name: str, size: int) -> int:
    """The other size of a matrix that has one of this size."""
    shape = numbers.shape(name)
    if size not in shape:
        raise bad_argument(f"{numbers.where}: {name}", f"shape {shape}", f"one axis of {size} latents, as b_enc has")
    return shape[1] if shape[0] == size else shape[0]


def _config(folder: Path) -> dict[str, str]:
    """The plain values of config.yaml. Raises UsageError for keys that are not known."""
    if not (folder / CONFIG).is_file():
        return {}
    text = content_of(folder / CONFIG, LARGEST_TEXT).decode("utf8", "replace")
    found = dict(re.findall(r"^([A-Za-z_]\w*):[ \t]*(.*?)[ \t]*$", text, re.MULTILINE))
    if unknown := sorted(set(found) - set(KNOWN)):
        raise bad_argument(f"{CONFIG}: keys", ", ".join(unknown), ", ".join(KNOWN))
    return {key: _plain(value) for key, value in found.items() if _plain(value) and key != "transcoders"}


def _plain(value: str) -> str:
    """A value without its quotes and the comment after it."""
    quoted = re.match(r"""(["'])(.*?)\1""", value)
    return quoted[2] if quoted else re.sub(r"(^|\s+)#.*$", "", value)


def layers(path: Path) -> list[Path]:
    """The files of a folder with a transcoder for each of several layers; empty for anything else."""
    files = _files(path) if path.is_dir() and not (path / "W_enc_0.safetensors").is_file() else []
    return files if len(files) > 1 else []


def _ends(config: dict[str, str]) -> tuple[str, str]:
    """Names of inputs and outputs, without the layer; empty where not known."""
    before, after = (HOOKS.get(config.get(key, ""), "") for key in KEYS)
    return before, after


def _early(config: dict[str, str]) -> bool:
    """Whether one of them is taken before the gain of the norm."""
    return GAIN in (config.get(key) for key in KEYS)


def _assumed(config: dict[str, str]) -> list[str]:
    return [NO_NORM] if AFTER_MLP in (config.get(key) for key in KEYS) else []


def _cross_layer(folder: Path) -> Dictionary:
    config, layers = _config(folder), []
    count = len(list(folder.glob("W_enc_*.safetensors")))
    for number in range(count):
        numbers = read_safetensors(folder / f"W_enc_{number}.safetensors")
        decoder = read_safetensors(folder / f"W_dec_{number}.safetensors")
        width, d = numbers.shape(f"W_enc_{number}")
        threshold = f"threshold_{number}"
        layers.append(cross_layer.Layer(
            numbers.take(f"W_enc_{number}", width, d), numbers.take(f"b_enc_{number}", width),
            numbers.take(threshold, width) if threshold in numbers else torch.zeros(width),
            decoder.take(f"W_dec_{number}", width, count - number, d), numbers.take(f"b_dec_{number}", d)))  # fmt: skip
        _check(layers[-1].threshold, folder / numbers.where)
        numbers.done()
        decoder.done()
    source, name = {"format": "circuit_tracer", "from": folder.name, "settings": config}, config.get("model_name", folder.name)
    return cross_layer.together(layers, _ends(config), source, _assumed(config), f"{name}-clt", _early(config))


# writing -----------------------------------------------------------------------------------------


def lacks(dictionary: Dictionary) -> str:
    """Why it has no place here."""
    if dictionary.architecture in ("clt", "clt_jumprelu"):
        return cross_layer.lacks(dictionary)
    if why := unplain(dictionary):
        return why
    if dictionary.architecture not in ("relu", "jumprelu", "batchtopk", "matryoshka"):
        return f"it has relu and thresholds only, not {dictionary.architecture}"
    return "it does not normalise inputs in use" if dictionary.input_norm != "none" else ""


def write(dictionary: Dictionary, folder: Path) -> Sequence[str]:
    """Write a folder; what differs there."""
    spec, clt = dictionary.spec, dictionary.architecture in ("clt", "clt_jumprelu")
    notes, waits = ["positions and norm limits have no place there"], waiting(dictionary)
    ends = waits if waits[0] else (spec.inputs, spec.outputs)
    if clt:
        for number, layer in enumerate(cross_layer.apart(dictionary)):
            write_safetensors(folder / f"W_enc_{number}.safetensors", {
                f"W_enc_{number}": layer.W_enc, f"b_enc_{number}": layer.b_enc, f"b_dec_{number}": layer.b_dec,
                f"threshold_{number}": layer.threshold})  # fmt: skip
            write_safetensors(folder / f"W_dec_{number}.safetensors", {f"W_dec_{number}": layer.W_dec})
    else:
        made = plain(dictionary)
        assert made is not None
        made = made.shifted(False)
        tensors = {"W_enc": made.W_enc, "W_dec": made.W_dec, "b_enc": made.b_enc, "b_dec": made.b_dec, "W_skip": made.W_skip,
                   THRESHOLD: made.threshold}  # fmt: skip
        layer = layer_of(ends[0][0]) if ends[0] else None
        write_safetensors(
            folder / f"layer_{layer or 0}.safetensors", {key: value for key, value in tensors.items() if value is not None}
        )
    if dictionary.architecture in ("batchtopk", "matryoshka", "clt"):
        notes.append(f"{dictionary.architecture} has thresholds per latent there: the same latents in use")
    hooks = [_hook(sites, bool(waits[0])) for sites in ends]
    lines = {"model_name": dictionary.provenance.get("model") or "unknown",
             "model_kind": "cross_layer_transcoder" if clt else "transcoder_set",
             **dict(zip(KEYS, hooks, strict=True))}  # fmt: skip
    write_file(folder / CONFIG, "".join(f'{key}: "{value}"\n' for key, value in lines.items()).encode())
    return notes if all(hooks) else [*notes, "the file names no sites"]


def _hook(sites: Sequence[str], waits: bool) -> str:
    """How the format calls what a layer reads or writes, empty where it has no name for it."""
    name = sites[0].partition(".")[0] if sites else ""
    return GAIN if waits and name == "mlp_in" else next((hook for hook, one in HOOKS.items() if one == name), "")


FORMATS.add(
    "circuit_tracer",
    Format(
        "circuit_tracer",
        "circuit-tracer: layer_L.safetensors, or W_enc_L and W_dec_L.safetensors",
        recognises,
        read,
        write,
        lacks,
    ),
)
