"""Gemma Scope 2: `config.json` and `params.safetensors`; a cross-layer transcoder is one file per layer.

w_enc (d_in, latents), w_dec (latents, d_out), b_enc, b_dec, threshold; with `affine_connection` also affine_skip_connection
(d_in, d_out), which is turned here. JumpReLU, nothing taken off inputs. In files of a cross-layer transcoder w_dec is
(latents, layers, d); rows for layers before its own are not used. Its config names hooks of `model.layers.{all}`. Crosscoders
are kept the same way and are refused.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from assay.errors import bad_argument
from assay.features.dictionary import Dictionary, Spec
from assay.features.formats import cross_layer
from assay.features.formats.base import FORMATS, OWN, Format, Found, hook_name, own_part
from assay.features.formats.plain import again, plain, unplain, write_json, write_safetensors
from assay.features.formats.reading import Config, read_config, read_safetensors, tensor_names, words

CONFIG, FILE = "config.json", "params.safetensors"
HARMLESS = words("""
    average_l0 dtype l0 layer layers model_name num_layers release site training_tokens type width
""")
PLACES = {"output": "resid_post", "self_attn.o_proj.input": "z", "post_feedforward_layernorm.output": "mlp_out",
          "pre_feedforward_layernorm.output": "mlp_in", "post_attention_layernorm.output": "attn_out"}  # fmt: skip
HOOKS = {site: hook for hook, site in PLACES.items()}
NO_SKIP = "A skip connection of a cross-layer transcoder has no counterpart here."
EVERY = "model.layers.{all}."  # how hooks of a cross-layer transcoder begin
KEYS = ("hf_hook_point_in", "hf_hook_point_out")


def recognises(path: Path) -> bool:
    """A folder with params.safetensors, a folder with files of layers, or one file."""
    if path.is_file():
        return path.name == FILE or (path.suffix == ".safetensors" and "w_enc" in tensor_names(path))
    return (path / FILE).is_file() or any("w_enc" in tensor_names(file) for file in _layers(path).values())


def _layers(folder: Path) -> dict[int, Path]:
    """Files of a folder by the last number in their names."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")) if folder.is_dir() else []:
        if number := re.search(r"(\d+)$", file.stem):
            found[int(number[1])] = file
    return found


def read(path: Path) -> Dictionary:
    """The dictionary. Raises UsageError."""
    folder = path if path.is_dir() else path.parent
    file = folder / FILE if path.is_dir() else path
    if path.is_dir() and not file.is_file():
        return _cross_layer(path)
    config = read_config(folder / CONFIG) if (folder / CONFIG).is_file() else Config(CONFIG, {})
    config.choice("architecture", ("jump_relu",), "jump_relu")
    affine = config.get("affine_connection", bool, None)
    hooks = [config.get(key, str, None) for key in KEYS]
    own = config.get(OWN, dict, {})
    left = config.done(HARMLESS)
    numbers = read_safetensors(file)
    d_in, width = numbers.shape("w_enc")
    if len(numbers.tensors["w_dec"].shape if "w_dec" in numbers else ()) == 3:
        raise bad_argument(str(file), "one layer of a cross-layer transcoder", "the folder with the files of all layers")
    _, d_out = numbers.shape("w_dec")
    skip = "affine_skip_connection" in numbers
    if affine is not None and affine != skip:
        raise bad_argument(f"{CONFIG}: affine_connection", affine, f"{str(skip).lower()}, as the tensors")
    state = {"W_enc": numbers.take("w_enc", d_in, width).T.contiguous(), "b_enc": numbers.take("b_enc", width),
             "W_dec": numbers.take("w_dec", width, d_out), "b_dec": numbers.take("b_dec", d_out),
             "threshold": numbers.take("threshold", width)}  # fmt: skip
    if skip:
        state["W_skip"] = numbers.take("affine_skip_connection", d_in, d_out).T.contiguous()
    numbers.done()
    before, after = _site(hooks[0]), _site(hooks[1]) if hooks[1] else _site(hooks[0])
    sites = ((before,), (after,)) if before and after else ((), ())
    spec = Spec("jumprelu", width, d_in, d_out, inputs=sites[0], outputs=sites[1], centred=False, skip=skip)
    source = {"format": "gemma_scope_2", "from": folder.name, "settings": left, "hooks": [hook for hook in hooks if hook]}
    return Found(spec, state, source, [], f"{left.get('model_name', 'gemma-scope-2')}-{folder.name}", own).dictionary()


def _site(hook: str | None) -> str:
    """The canonical form of a module's input or output."""
    match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", hook or "")
    return f"{PLACES[match[2]]}.{match[1]}" if match and match[2] in PLACES else ""


def _cross_config(folder: Path) -> tuple[tuple[str, str], dict[str, Any], list[str]]:
    """(names of inputs and outputs without a layer, what else the config says, what is assumed). Raises UsageError."""
    config = read_config(folder / CONFIG) if (folder / CONFIG).is_file() else Config(CONFIG, {})
    config.choice("architecture", ("jump_relu",), "jump_relu")
    config.choice("type", ("clt",), "clt", "What is split into layers is read as a cross-layer transcoder only.")
    config.choice("affine_connection", (False,), False, NO_SKIP)
    hooks = [config.get(key, str, None) for key in KEYS]
    said = {"settings": config.done(HARMLESS), "hooks": [hook for hook in hooks if hook]}
    for key, hook in zip(KEYS, hooks, strict=True):
        if hook and not hook.startswith(EVERY):
            raise bad_argument(f"{CONFIG}: {key}", hook, f"{EVERY}{' or '.join(PLACES)}", "It reads and writes every layer.")
    if not any(hooks):
        return ("mlp_in", "mlp_out"), said, ["sites mlp_in, mlp_out: what such files are for; none is named in them"]
    before, after = (PLACES.get((hook or "").removeprefix(EVERY), "") for hook in hooks)
    return (before, after), said, []


def _cross_layer(folder: Path) -> Dictionary:
    sites, said, assumed = _cross_config(folder)
    files = _layers(folder)
    if sorted(files) != list(range(len(files))):
        raise bad_argument(str(folder), f"layers {sorted(files)}", "a file for every layer from 0 on")
    layers = []
    for number, file in sorted(files.items()):
        numbers = read_safetensors(file)
        d, width = numbers.shape("w_enc")
        if "affine_skip_connection" in numbers:
            raise bad_argument(f"{file.name}: affine_skip_connection", "a skip connection", "none", NO_SKIP)
        decoder = numbers.take("w_dec", width, len(files), d)
        if bool(decoder[:, :number].any()):
            assumed.append(f"layer {number}: decoder rows for layers before it are not zero, and are not used")
        layers.append(
            cross_layer.Layer(
                numbers.take("w_enc", d, width).T.contiguous(),
                numbers.take("b_enc", width),
                numbers.take("threshold", width),
                decoder[:, number:].contiguous(),
                numbers.take("b_dec", d),
            )
        )
        numbers.done()
    source, name = {"format": "gemma_scope_2", "from": folder.name, **said}, said["settings"].get("model_name", "gemma-scope-2")
    return cross_layer.together(layers, sites, source, assumed, f"{name}-{folder.name}")


def lacks(dictionary: Dictionary) -> str:
    """Why it has no place here."""
    if why := unplain(dictionary):
        return why
    if dictionary.architecture not in ("relu", "jumprelu", "batchtopk", "matryoshka"):
        return f"it has thresholds only, not {dictionary.architecture}"
    return "it does not normalise inputs in use" if dictionary.input_norm != "none" else ""


def write(dictionary: Dictionary, folder: Path) -> Sequence[str]:
    """Write a folder; what differs there."""
    made = plain(dictionary)
    assert made is not None
    made = made.shifted(False).jump()
    assert made.threshold is not None
    tensors = {
        "w_enc": made.W_enc.T,
        "w_dec": made.W_dec,
        "b_enc": made.b_enc,
        "b_dec": made.b_dec,
        "threshold": made.threshold,
    }
    if made.W_skip is not None:
        tensors["affine_skip_connection"] = made.W_skip.T
    spec = dictionary.spec
    config = {"architecture": "jump_relu", "model_name": dictionary.provenance.get("model"), "affine_connection": spec.skip,
              "hf_hook_point_in": _hook(spec.inputs), "hf_hook_point_out": _hook(spec.outputs),
              OWN: own_part(dictionary, again(dictionary, made))}  # fmt: skip
    write_safetensors(folder / FILE, tensors)
    write_json(folder / CONFIG, {key: value for key, value in config.items() if value is not None})
    return () if dictionary.architecture == "jumprelu" else (f"{dictionary.architecture} is jumprelu there: the same latents",)


def _hook(sites: Sequence[str]) -> str | None:
    """How the format calls a site."""
    if not sites:
        return None
    name, _, layer = sites[0].partition(".")
    return f"model.layers.{layer}.{HOOKS[name]}" if name in HOOKS and layer.isdigit() else hook_name(sites[0])


FORMATS.add("gemma_scope_2", Format("gemma_scope_2", "Gemma Scope 2: params.safetensors", recognises, read, write, lacks))
