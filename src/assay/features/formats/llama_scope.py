"""Llama Scope: `hyperparams.json` and `checkpoints/final.safetensors`, as the authors' own code (2024) reads them.

1. encoder.weight (latents, d), encoder.bias, decoder.weight (d, latents), decoder.bias.
2. norm_activation "dataset-wise": with s = sqrt(d) / mean norm of inputs (and outputs), b_enc / s_in, W_dec s_in / s_out,
   b_dec / s_out; then latents are in units of raw activations.
3. sparsity_include_decoder_norm: decoder rows are brought to norm 1, their norms go into the encoder.
4. jump_relu_threshold (one number) is compared with what comes out of 2 and 3. A "topk" with a threshold above 0 is a
   JumpReLU. `apply_decoder_bias_to_pre_encoder`: centred.

Another reader (SAELens) leaves out 3 and keeps latents times s_in: the threshold is multiplied there, and latents differ.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from assay.errors import bad_argument
from assay.features.dictionary import Dictionary, Spec
from assay.features.formats.base import FORMATS, OWN, Format, Found, hook_names, known_hook, own_part
from assay.features.formats.plain import SCALED, again, free_rows, plain, unplain, write_json, write_safetensors
from assay.features.formats.reading import read_config, read_safetensors, words

CONFIG, FILES = "hyperparams.json", ("checkpoints/final.safetensors", "sae_weights.safetensors", "final.safetensors")
HARMLESS = words("""
    bias_init_method ddp_size decoder_exactly_fixed_norm device dtype exp_name exp_result_path exp_series
    expansion_factor finetuning init_decoder_norm init_encoder_norm init_encoder_with_decoder_transpose k_warmup_steps
    l1_coefficient l1_coefficient_warmup_steps lp sae_pretrained_name_or_path seed strict_loading tp_size
    use_batch_norm_mse use_ghost_grads
""")


def _folder(path: Path) -> Path:
    return path.parent if path.name == CONFIG else path


def _file(folder: Path) -> Path | None:
    return next((folder / name for name in FILES if (folder / name).is_file()), None)


def recognises(path: Path) -> bool:
    """A folder with its two files, or the first of them."""
    return (_folder(path) / CONFIG).is_file() and _file(_folder(path)) is not None


def read(path: Path) -> Dictionary:
    """The dictionary. Raises UsageError."""
    folder = _folder(path)
    config, file = read_config(folder / CONFIG), _file(folder)
    if file is None:
        raise bad_argument("path", str(path), f"a folder with one of {', '.join(FILES)}")
    d = config.size("d_model")
    width = config.size("d_sae", None) or round(d * config.number("expansion_factor"))
    act = config.choice("act_fn", ("relu", "topk", "jumprelu"), "relu")
    threshold, k = float(config.number("jump_relu_threshold", 0.0)), config.get("top_k", int, None)
    norm = config.choice("norm_activation", ("dataset-wise", "none", "inference"), "none",
                         "Token-wise and batch-wise norms are not undone in its outputs.")  # fmt: skip
    means = config.inner("dataset_average_activation_norm")
    config.choice("use_glu_encoder", (False,), False)
    biased, unit = (
        bool(config.get("use_decoder_bias", bool, True)),
        bool(config.get("sparsity_include_decoder_norm", bool, True)),
    )
    centred = biased and bool(config.get("apply_decoder_bias_to_pre_encoder", bool, True))
    hooks = [config.get(key, str, None) for key in ("hook_point_in", "hook_point_out")]
    own = config.get(OWN, dict, {})
    left = config.done(HARMLESS)
    numbers = read_safetensors(file)
    state = {"W_enc": numbers.take("encoder.weight", width, d), "b_enc": numbers.take("encoder.bias", width),
             "W_dec": numbers.take("decoder.weight", d, width).T.contiguous(),
             "b_dec": numbers.take("decoder.bias", d) if biased else torch.zeros(d)}  # fmt: skip
    numbers.done()
    if norm == "dataset-wise":
        scales = [math.sqrt(d) / _mean(means, key) for key in ("in", "out")]
        state |= {
            "b_enc": state["b_enc"] / scales[0],
            "W_dec": state["W_dec"] * scales[0] / scales[1],
            "b_dec": state["b_dec"] / scales[1],
        }
    if unit:
        norms = state["W_dec"].norm(dim=1)
        state |= {"W_enc": state["W_enc"] * norms[:, None], "b_enc": state["b_enc"] * norms,
                  "W_dec": state["W_dec"] / norms.clamp_min(1e-12)[:, None]}  # fmt: skip
    rule = "jumprelu" if act == "topk" and threshold > 0 else act
    if rule == "jumprelu":
        state["threshold"] = torch.full((width,), threshold)
    (before, early), (after, late) = known_hook(hooks[0]), known_hook(hooks[1] or hooks[0])
    sites = ((before,), (after,)) if before and after else ((), ())
    spec = Spec(rule, width, d, d, (k or 50) if rule == "topk" else None, sites[0], sites[1], centred)
    source = {"format": "llama_scope", "from": folder.name, "settings": left, "hooks": [hook for hook in hooks if hook]}
    return Found(spec, state, source, [], folder.name, own, before_gain=early or late).dictionary()


def _mean(means, key: str) -> float:
    found = float(means.number(key))
    if found <= 0:
        raise bad_argument(f"{CONFIG}: dataset_average_activation_norm: {key}", found, "above 0")
    return found


def lacks(dictionary: Dictionary) -> str:
    """Why it has no place here."""
    if why := unplain(dictionary):
        return why
    made, spec = plain(dictionary), dictionary.spec
    if made is None or made.rule not in ("relu", "topk", "jumprelu"):
        return f"it has relu, topk and jumprelu only, not {dictionary.architecture}"
    if made.threshold is not None and float(made.threshold.max() - made.threshold.min()) > 1e-6 * float(
        made.threshold.abs().max()
    ):
        return "it has one threshold for all latents"
    if spec.skip or spec.d_in != spec.d_out:
        return "its dictionaries have one size of inputs and outputs and no skip connection"
    return "it does not normalise inputs in use" if dictionary.input_norm != "none" else ""


def write(dictionary: Dictionary, folder: Path) -> Sequence[str]:
    """Write a folder; what differs there."""
    made, spec, notes, hooks = plain(dictionary), dictionary.spec, [], hook_names(dictionary)
    assert made is not None
    if made.rule == "topk" and free_rows(dictionary):
        made = made.unit()
        notes.append(SCALED)
    config = {
        "d_model": spec.d_in,
        "d_sae": spec.width,
        "act_fn": made.rule,
        "top_k": spec.k or 50,
        "norm_activation": "inference",
        "jump_relu_threshold": float(made.threshold[0]) if made.threshold is not None else 0.0,
        "use_decoder_bias": True,
        "apply_decoder_bias_to_pre_encoder": made.centred,
        "sparsity_include_decoder_norm": False,
        "use_glu_encoder": False,
        **({"hook_point_in": hooks[0], "hook_point_out": hooks[1]} if all(hooks) else {}),
        OWN: own_part(dictionary, again(dictionary, made)),
    }
    write_safetensors(
        folder / FILES[0],
        {"encoder.weight": made.W_enc, "encoder.bias": made.b_enc, "decoder.weight": made.W_dec.T, "decoder.bias": made.b_dec},
    )
    write_json(folder / CONFIG, config)
    return notes


FORMATS.add(
    "llama_scope", Format("llama_scope", "Llama Scope: hyperparams.json, final.safetensors", recognises, read, write, lacks)
)
